//! Texts that are hidden in the pixels of a PNG, by the WebUI extension `sd_webui_stealth_pnginfo`
//! and by NovelAI.
//!
//! The bits are the lowest bits of alpha, or those of red, green and blue, one pixel after the
//! other down each column, and the columns from left to right. The highest bit of a byte comes
//! first: 15 bytes that name the kind, the number of the text's bits as four bytes, and the text,
//! which may be compressed with gzip.

use std::io::{self, BufRead, Seek};

use flate2::read::GzDecoder;
use png::{ColorType, Decoder};

use crate::{
    MAX_PIXELS,
    infotext::{
        InfotextError, MAX_BYTES,
        file::{decoded, inflated, invalid},
    },
};

/// The names of the kinds, and whether their texts are compressed.
const IN_ALPHA: [(&[u8; 15], bool); 2] = [(b"stealth_pnginfo", false), (b"stealth_pngcomp", true)];
const IN_COLOURS: [(&[u8; 15], bool); 2] =
    [(b"stealth_rgbinfo", false), (b"stealth_rgbcomp", true)];

/// Returns the hidden text of a PNG with RGB or RGBA of 8 bits, which is not interlaced.
///
/// Only the lowest bits of the pixels are kept, which takes a 32nd of the picture's memory.
pub(in crate::infotext) fn text(
    png: impl BufRead + Seek,
    [width, height]: [u32; 2],
) -> io::Result<Option<String>> {
    let pixels = u64::from(width) * u64::from(height);
    // A smaller picture has no room for a text, and a larger one is too large to decode here.
    if !(8 * 19..=MAX_PIXELS).contains(&pixels) {
        return Ok(None);
    }
    let damaged = |error: png::DecodingError| invalid(format!("the picture is damaged: {error}"));
    let mut reader = Decoder::new(png).read_info().map_err(damaged)?;
    let has_alpha = reader.info().color_type == ColorType::Rgba;
    // Which bytes of a pixel have a bit.
    let (channels, used) = if has_alpha { (4, 3..4) } else { (3, 0..3) };
    let mut bits = Bits::new(width as usize, height as usize, used.len());
    for y in 0..height as usize {
        let Some(row) = reader.next_row().map_err(damaged)? else {
            return Ok(None);
        };
        for (x, pixel) in row.data().chunks_exact(channels).enumerate() {
            for (channel, byte) in pixel[used.clone()].iter().enumerate() {
                bits.set(x, y, channel, byte & 1);
            }
        }
    }
    let mut bytes = bits.bytes();
    let name: Vec<u8> = bytes.by_ref().take(15).collect();
    let kinds = if has_alpha { IN_ALPHA } else { IN_COLOURS };
    let kind = kinds.into_iter().find(|(known, _)| name == *known);
    let Some((_, is_compressed)) = kind else {
        return Ok(None);
    };
    let length = bytes
        .by_ref()
        .take(4)
        .fold(0, |all, byte| all << 8 | u32::from(byte));
    let length = length as usize / 8;
    if length > MAX_BYTES {
        return Err(invalid(InfotextError::TooLong));
    }
    let text: Vec<u8> = bytes.take(length).collect();
    if text.len() < length {
        return Err(invalid("the text hidden in the pixels is cut short"));
    }
    let text = if is_compressed {
        inflated(GzDecoder::new(&*text))?
    } else {
        text
    };
    Ok(Some(decoded(&text)))
}

/// The lowest bits of a picture, packed.
struct Bits {
    packed: Vec<u8>,
    height: usize,
    /// The number of bits of a pixel.
    channels: usize,
    count: usize,
}

impl Bits {
    fn new(width: usize, height: usize, channels: usize) -> Self {
        let count = width * height * channels;
        Self {
            packed: vec![0; count.div_ceil(8)],
            height,
            channels,
            count,
        }
    }

    fn set(&mut self, x: usize, y: usize, channel: usize, bit: u8) {
        let at = (x * self.height + y) * self.channels + channel;
        // A row has at most the width of the header.
        if let Some(byte) = self.packed.get_mut(at / 8) {
            *byte |= bit << (7 - at % 8);
        }
    }

    /// Returns the whole bytes, column by column.
    fn bytes(&self) -> impl Iterator<Item = u8> {
        self.packed[..self.count / 8].iter().copied()
    }
}
