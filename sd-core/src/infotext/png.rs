//! The texts of PNG files. An infotext is the `parameters` chunk.

use std::io::{self, BufRead, Read, Seek};

use flate2::{Crc, read::ZlibDecoder};
use image::RgbImage;

use super::{
    Infotext, InfotextError, MAX_BYTES,
    file::{array, decoded, inflated, invalid},
};

/// The keyword of WebUI's chunk.
pub(super) const KEYWORD: &str = "parameters";

/// The first bytes of a PNG file.
pub(super) const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// The keywords of the chunks that are read.
const KEYWORDS: [&str; 11] = [
    KEYWORD,
    // ComfyUI's.
    "prompt",
    "workflow",
    // InvokeAI's.
    "invokeai_metadata",
    "invokeai_graph",
    "sd-metadata",
    "Dream",
    // NovelAI's.
    "Software",
    "Description",
    "Source",
    "Comment",
];

/// Encodes a picture as a PNG, with an infotext if one is given.
///
/// The infotext is stored in a Latin-1 chunk (`tEXt`) if that can hold it, as Pillow does for
/// WebUI, and otherwise in a UTF-8 chunk (`iTXt`).
///
/// ```
/// use sd_core::{Infotext, files, image::RgbImage};
///
/// let infotext = Infotext::parse("a fox\nSteps: 20, Sampler: Euler, Seed: 42")?;
/// let bytes = files::png(&RgbImage::new(8, 8), Some(&infotext))?;
/// assert_eq!(Infotext::from_bytes(&bytes)?, Some(infotext));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Returns an error if the picture has no pixels or is too large for a PNG.
pub fn png(image: &RgbImage, infotext: Option<&Infotext>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Twenty times as fast as the default compression, for files up to twice as large.
    encoder.set_compression(png::Compression::Fast);
    if let Some(infotext) = infotext {
        let (keyword, text) = (KEYWORD.to_owned(), infotext.to_string());
        let latin1: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
        // A text whose Latin-1 bytes would be read as another text goes into a chunk that is always
        // UTF-8: `Ã©` in Latin-1 is `é` in UTF-8.
        if latin1.is_some_and(|latin1| decoded(&latin1) == text) {
            encoder.add_text_chunk(keyword, text)?;
        } else {
            encoder.add_itxt_chunk(keyword, text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// The texts of a PNG file that may say how it was made.
#[derive(Default)]
pub(super) struct Texts {
    /// The last chunk of each keyword.
    found: Vec<(&'static str, Chunk)>,
    /// The contents of the last `eXIf` chunk of a possible length.
    pub exif: Option<Vec<u8>>,
    /// Width and height in pixels.
    pub size: [u32; 2],
    /// Whether the pixels are RGB or RGBA with 8 bits, without interlacing.
    pub is_plain: bool,
}

/// A text chunk, which is only decompressed if its text is needed.
enum Chunk {
    Whole { kind: [u8; 4], content: Vec<u8> },
    Damaged,
    TooLong,
}

impl Texts {
    /// Reads the chunks one by one. Only chunks with one of [`KEYWORDS`] are read.
    pub fn read(png: &mut (impl BufRead + Seek)) -> io::Result<Self> {
        let mut texts = Self::default();
        let mut signature = [0; SIGNATURE.len()];
        png.read_exact(&mut signature)?;
        loop {
            let length = u32::from_be_bytes(array(png)?);
            let kind: [u8; 4] = array(png)?;
            // The longest keyword with its NUL.
            const START: u32 = 80;
            let mut start = Vec::new();
            match &kind {
                b"IEND" => return Ok(texts),
                b"tEXt" | b"zTXt" | b"iTXt" | b"IHDR" => {
                    let bytes = length.min(START);
                    png.by_ref().take(bytes.into()).read_to_end(&mut start)?;
                }
                _ => {}
            }
            let rest = length - start.len() as u32;
            let keyword = start.split(|&byte| byte == 0).next().unwrap_or_default();
            let known = KEYWORDS.iter().find(|known| known.as_bytes() == keyword);
            // The added bytes leave room for the keyword and the fields before the text.
            let fits = length as usize <= MAX_BYTES + START as usize;
            match (&kind, known) {
                (b"IHDR", _) => texts.header(&start),
                (b"eXIf", _) if fits => {
                    texts.exif = rest_of(png, kind, Vec::new(), length)?.or(texts.exif);
                    continue;
                }
                (_, Some(known)) if start.len() > known.len() => {
                    let chunk = if fits {
                        let content = rest_of(png, kind, start, rest)?;
                        content.map_or(Chunk::Damaged, |mut content| Chunk::Whole {
                            kind,
                            content: content.split_off(known.len() + 1),
                        })
                    } else {
                        png.seek_relative(i64::from(rest) + 4)?;
                        Chunk::TooLong
                    };
                    texts.found.retain(|(keyword, _)| keyword != known);
                    texts.found.push((known, chunk));
                    continue;
                }
                _ => {}
            }
            // Skips the checksum, too.
            png.seek_relative(i64::from(rest) + 4)?;
        }
    }

    /// Reads the header: width, height, bit depth, colour type, two methods and interlacing.
    fn header(&mut self, header: &[u8]) {
        let &[a, b, c, d, e, f, g, h, depth, colour, _, _, interlaced] = header else {
            return;
        };
        self.size = [[a, b, c, d], [e, f, g, h]].map(u32::from_be_bytes);
        // 2 is RGB, 6 is RGBA.
        self.is_plain = depth == 8 && matches!(colour, 2 | 6) && interlaced == 0;
    }

    /// Returns whether there is a text with this keyword.
    pub fn has(&self, keyword: &str) -> bool {
        self.found.iter().any(|(found, _)| *found == keyword)
    }

    /// Returns the text with this keyword, one of [`KEYWORDS`].
    pub fn text(&self, keyword: &str) -> io::Result<Option<String>> {
        let chunk = self.found.iter().find(|(found, _)| *found == keyword);
        match chunk {
            None => Ok(None),
            Some((_, Chunk::Whole { kind, content })) => text(*kind, content).map(Some),
            Some((_, Chunk::TooLong)) => Err(invalid(InfotextError::TooLong)),
            Some((_, Chunk::Damaged)) => Err(invalid(
                "the chunk of the infotext is damaged: its checksum is wrong",
            )),
        }
    }
}

/// Returns the chunk that begins with `start`, or `None` if its checksum is wrong.
fn rest_of(
    png: &mut impl Read,
    kind: [u8; 4],
    start: Vec<u8>,
    rest: u32,
) -> io::Result<Option<Vec<u8>>> {
    let mut chunk = start;
    png.by_ref().take(rest.into()).read_to_end(&mut chunk)?;
    let mut crc = Crc::new();
    crc.update(&kind);
    crc.update(&chunk);
    Ok((u32::from_be_bytes(array(png)?) == crc.sum()).then_some(chunk))
}

/// Returns the text of a chunk. `chunk` begins after the keyword.
fn text(kind: [u8; 4], chunk: &[u8]) -> io::Result<String> {
    match &kind {
        b"tEXt" => Ok(decoded(chunk)),
        b"zTXt" => {
            let (_method, text) = chunk.split_first().ok_or_else(cut_short)?;
            Ok(decoded(&inflated(ZlibDecoder::new(text))?))
        }
        _ => {
            let (&compressed, chunk) = chunk.split_first().ok_or_else(cut_short)?;
            let (_method, chunk) = chunk.split_first().ok_or_else(cut_short)?;
            // The first two fields are the language and the keyword in that language.
            let text = chunk
                .splitn(3, |&byte| byte == 0)
                .nth(2)
                .ok_or_else(cut_short)?;
            let text = if compressed == 1 {
                inflated(ZlibDecoder::new(text))?
            } else {
                text.to_owned()
            };
            String::from_utf8(text).map_err(|_| invalid("the infotext is not UTF-8"))
        }
    }
}

fn cut_short() -> io::Error {
    invalid("the chunk of the infotext is cut short")
}
