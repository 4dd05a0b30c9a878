//! The infotext in PNG files, which is their `parameters` chunk.

use std::{
    io::{self, BufRead, BufReader, Cursor, ErrorKind, Read, Seek},
    path::Path,
};

use flate2::{Crc, read::ZlibDecoder};
use image::RgbImage;
use sd_text::outside;

use super::{Infotext, InfotextError, MAX_BYTES};

/// The keyword of WebUI's chunk.
const KEYWORD: &str = "parameters";

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// How many bytes at the start of a text chunk show which program wrote it: the longest keyword
/// with its NUL, and some of the text.
const START_BYTES: u32 = 100;

impl Infotext {
    /// Reads the infotext of a PNG file: its `parameters` chunk, plain (`tEXt`), compressed
    /// (`zTXt`) or international (`iTXt`), before or after the pixels. Returns `None` if the file
    /// does not say how the picture was made.
    ///
    /// If there are several chunks, the last one counts, of whatever kind, as in Pillow. The
    /// standard defines `tEXt` and `zTXt` as Latin-1. Bytes that are valid UTF-8 are read as UTF-8,
    /// because some programs write it.
    ///
    /// # Errors
    /// - An I/O error if the file cannot be read or is not a regular file.
    /// - An error of kind [`InvalidData`](ErrorKind::InvalidData) if the file is not a PNG or is
    ///   damaged.
    /// - An error of kind `InvalidData` that contains an [`InfotextError`] if the file holds the
    ///   metadata of another program (ComfyUI's workflow, InvokeAI's metadata, …), or a text that
    ///   [`parse`](Self::parse) refuses.
    pub fn read_png(path: impl AsRef<Path>) -> io::Result<Option<Self>> {
        read(BufReader::new(outside::open_binary(path)?))
    }

    /// Reads the infotext from the bytes of a PNG file, as [`read_png`](Self::read_png) does.
    ///
    /// # Errors
    /// Returns the same errors as `read_png`, except that no file is opened.
    pub fn from_png(bytes: &[u8]) -> io::Result<Option<Self>> {
        read(Cursor::new(bytes))
    }
}

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
/// assert_eq!(Infotext::from_png(&bytes)?, Some(infotext));
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
        if latin1.is_some_and(|latin1| decoded(latin1) == text) {
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

/// Reads the chunks one by one. Only text chunks are read, and only the last text is decompressed.
fn read(mut png: impl BufRead + Seek) -> io::Result<Option<Infotext>> {
    let mut signature = [0; SIGNATURE.len()];
    png.read_exact(&mut signature)?;
    if signature != SIGNATURE {
        return Err(invalid("the file is not a PNG"));
    }
    let mut last = None;
    let mut other = None;
    loop {
        let length = u32::from_be_bytes(array(&mut png)?);
        let kind: [u8; 4] = array(&mut png)?;
        let mut start = Vec::new();
        match &kind {
            b"IEND" => break,
            b"tEXt" | b"zTXt" | b"iTXt" => {
                let bytes = length.min(START_BYTES);
                png.by_ref().take(bytes.into()).read_to_end(&mut start)?;
            }
            _ => {}
        }
        let rest = u64::from(length) - start.len() as u64;
        let keyword = start.split(|&byte| byte == 0).next().unwrap_or_default();
        if keyword == KEYWORD.as_bytes() && start.len() > keyword.len() {
            // The added bytes leave room for the keyword and the fields before the text.
            if length as usize > MAX_BYTES + START_BYTES as usize {
                return Err(invalid(InfotextError::TooLong));
            }
            let mut chunk = start;
            png.by_ref().take(rest).read_to_end(&mut chunk)?;
            let mut crc = Crc::new();
            crc.update(&kind);
            crc.update(&chunk);
            if u32::from_be_bytes(array(&mut png)?) != crc.sum() {
                return Err(invalid(
                    "the chunk of the infotext is damaged: its checksum is wrong",
                ));
            }
            last = Some((kind, chunk.split_off(KEYWORD.len() + 1)));
        } else {
            other = other.or(program(&start));
            // Skips the checksum, too.
            png.seek_relative(rest as i64 + 4)?;
        }
    }
    match (last, other) {
        (Some((kind, chunk)), _) => {
            let text = text(kind, &chunk)?;
            Infotext::parse(&text).map(Some).map_err(invalid)
        }
        (None, Some(program)) => Err(invalid(InfotextError::OtherFormat(program))),
        (None, None) => Ok(None),
    }
}

/// Returns the program that writes a text chunk with this start instead of an infotext.
fn program(start: &[u8]) -> Option<&'static str> {
    let keywords: [(&[u8], &str); 7] = [
        (b"prompt\0{", super::COMFYUI),
        (b"workflow\0{", super::COMFYUI),
        (b"invokeai_metadata\0", super::INVOKEAI),
        (b"invokeai_graph\0", super::INVOKEAI),
        (b"sd-metadata\0", super::INVOKEAI),
        (b"Dream\0", super::INVOKEAI),
        (b"Software\0NovelAI", super::NOVELAI),
    ];
    let (_, program) = keywords
        .into_iter()
        .find(|(known, _)| start.starts_with(known))?;
    Some(program)
}

/// Returns the text of a chunk. `chunk` begins after the keyword.
fn text(kind: [u8; 4], chunk: &[u8]) -> io::Result<String> {
    match &kind {
        b"tEXt" => Ok(decoded(chunk.to_owned())),
        b"zTXt" => {
            let (_method, text) = chunk.split_first().ok_or_else(cut_short)?;
            Ok(decoded(inflated(text)?))
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
                inflated(text)?
            } else {
                text.to_owned()
            };
            String::from_utf8(text).map_err(|_| invalid("the infotext is not UTF-8"))
        }
    }
}

/// Decodes bytes as UTF-8 if they are valid, and otherwise as Latin-1.
fn decoded(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        error
            .as_bytes()
            .iter()
            .map(|&byte| char::from(byte))
            .collect()
    })
}

fn inflated(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    // One byte more than allowed, to recognize a longer text.
    ZlibDecoder::new(bytes)
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut text)?;
    if text.len() > MAX_BYTES {
        return Err(invalid(InfotextError::TooLong));
    }
    Ok(text)
}

fn array<const N: usize>(png: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    png.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn cut_short() -> io::Error {
    invalid("the chunk of the infotext is cut short")
}

fn invalid(problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, problem)
}

#[cfg(test)]
// A failed `unwrap` is a failed test.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_png_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let problem = || Infotext::read_png(&path).unwrap_err().to_string();
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
        assert!(problem().contains("git lfs pull"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(problem().contains("a folder"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_are_not_read() {
        assert!(Infotext::read_png("/dev/zero").is_err());
    }
}
