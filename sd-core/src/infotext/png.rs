//! The `parameters` chunk of PNG files.

use std::{
    io::{self, BufRead, BufReader, Cursor, Seek},
    path::Path,
};

use image::RgbImage;
use sd_text::outside;

use super::Infotext;

/// WebUI's keyword.
const KEYWORD: &str = "parameters";

/// The longest text that a compressed chunk may hold.
const MAX_TEXT_BYTES: usize = 2 << 20;

impl Infotext {
    /// Reads the infotext of a PNG file: its `parameters` chunk, plain or compressed, Latin-1 (`tEXt`, `zTXt`) or UTF-8
    /// (`iTXt`), before or after the picture. None if it has none.
    ///
    /// # Errors
    /// When the file can't be read, is no regular file or no PNG, or has a compressed text of more than 2 MiB.
    pub fn read_png(path: impl AsRef<Path>) -> io::Result<Option<Self>> {
        read(BufReader::new(outside::open_binary(path)?))
    }

    /// As [`read_png`](Self::read_png), of the bytes of a file.
    ///
    /// # Errors
    /// When they are no PNG, or have a compressed text of more than 2 MiB.
    pub fn from_png(bytes: &[u8]) -> io::Result<Option<Self>> {
        read(Cursor::new(bytes))
    }
}

/// A PNG with an infotext: as Latin-1 if that can hold it, else UTF-8, as Pillow does for WebUI. The infotext has no NUL,
/// which no text chunk can hold.
pub(crate) fn png(image: &RgbImage, infotext: &Infotext) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Twenty times as fast as the default, for files up to twice as large.
    encoder.set_compression(png::Compression::Fast);
    let (keyword, text) = (KEYWORD.to_owned(), infotext.to_string());
    if text.chars().all(|c| u8::try_from(c).is_ok()) {
        encoder.add_text_chunk(keyword, text)?;
    } else {
        encoder.add_itxt_chunk(keyword, text)?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

fn read(png: impl BufRead + Seek) -> io::Result<Option<Infotext>> {
    let mut reader = png::Decoder::new(png).read_info()?;
    let mut text = parameters(reader.info())?;
    if text.is_none() {
        reader.finish()?;
        text = parameters(reader.info())?;
    }
    Ok(text.map(|text| Infotext::parse(&text)))
}

fn parameters(info: &png::Info<'_>) -> io::Result<Option<String>> {
    let (plain, compressed, utf8) = (
        &info.uncompressed_latin1_text,
        &info.compressed_latin1_text,
        &info.utf8_text,
    );
    if let Some(chunk) = plain.iter().find(|chunk| chunk.keyword == KEYWORD) {
        return Ok(Some(chunk.text.clone()));
    }
    if let Some(chunk) = compressed.iter().find(|chunk| chunk.keyword == KEYWORD) {
        let mut chunk = chunk.clone();
        // Of itself the text would be as long as the file says.
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES)?;
        return Ok(Some(chunk.get_text()?));
    }
    if let Some(chunk) = utf8.iter().find(|chunk| chunk.keyword == KEYWORD) {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES)?;
        return Ok(Some(chunk.get_text()?));
    }
    Ok(None)
}

#[cfg(test)]
// In a test it is the failure.
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
