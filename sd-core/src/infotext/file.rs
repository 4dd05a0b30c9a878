//! Infotexts in picture files: which format a file has, and where its texts are.

use std::{
    io::{self, BufRead, BufReader, Cursor, ErrorKind, Read, Seek},
    path::Path,
};

use sd_text::outside;

use super::{
    COMFYUI, INVOKEAI, Infotext, InfotextError, MAX_BYTES, NOVELAI, UNKNOWN,
    exif::{self, Exif},
    jpeg, png,
    programs::{self, comfyui, invokeai, novelai, stealth},
    webp,
};

impl Infotext {
    /// Reads the infotext in a PNG, JPEG or WebP file. Returns `None` if the file has none. The
    /// format is recognized by the content of the file, not by its extension.
    ///
    /// The first of these that the file has is read:
    ///
    /// 1. The `parameters` text of a PNG, WebUI's infotext: plain (`tEXt`), compressed (`zTXt`) or
    ///    international (`iTXt`), before or after the pixels.
    /// 2. The texts that ComfyUI, InvokeAI and NovelAI write into a PNG. The
    ///    [module](super#other-programs) describes what is read of them.
    /// 3. The EXIF data of any of the formats: the `UserComment` if it is an infotext with entries,
    ///    or ComfyUI's `prompt:` in `Make`, `Model` or `ImageDescription`.
    /// 4. The text hidden in the pixels of a PNG, as the WebUI extension "stealth pnginfo" and
    ///    NovelAI write it. Only then are the pixels decoded.
    ///
    /// If there are several chunks with the same keyword, the last one counts, of whatever kind, as
    /// in Pillow. The standard defines `tEXt` and `zTXt` as Latin-1. Bytes that are valid UTF-8 are
    /// read as UTF-8, because some programs write it.
    ///
    /// # Errors
    /// - An I/O error if the file cannot be read or is not a regular file.
    /// - An error of kind [`InvalidData`](ErrorKind::InvalidData) if the file has another format or
    ///   is damaged.
    /// - An error of kind `InvalidData` that contains an [`InfotextError`] if the file holds the
    ///   metadata of a program that cannot be read, or a text that [`parse`](Self::parse) refuses.
    pub fn read(path: impl AsRef<Path>) -> io::Result<Option<Self>> {
        read(BufReader::new(outside::open_binary(path)?))
    }

    /// Reads the infotext in the bytes of a file, as [`read`](Self::read) does.
    ///
    /// # Errors
    /// Returns the same errors as `read`, except that no file is opened.
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Option<Self>> {
        read(Cursor::new(bytes))
    }
}

/// Reads the texts of a file, whose format its first bytes show.
fn read(mut file: impl BufRead + Seek) -> io::Result<Option<Infotext>> {
    let mut start = Vec::new();
    file.by_ref().take(12).read_to_end(&mut start)?;
    file.rewind()?;
    if start.starts_with(&png::SIGNATURE) {
        return of_png(file);
    }
    let exif = if start.starts_with(&jpeg::START) {
        jpeg::exif(&mut file)?
    } else if start.starts_with(b"RIFF") && start.ends_with(b"WEBP") && start.len() == 12 {
        webp::exif(&mut file)?
    } else {
        return Err(invalid(
            "the file is no picture, expected PNG, JPEG or WebP",
        ));
    };
    match exif {
        Some(exif) => of_exif(&exif),
        None => Ok(None),
    }
}

fn of_png(mut file: impl BufRead + Seek) -> io::Result<Option<Infotext>> {
    let texts = png::Texts::read(&mut file)?;
    if let Some(text) = texts.text(png::KEYWORD)? {
        return programs::any(&text).map(Some).map_err(invalid);
    }
    let other = |program| Err(invalid(InfotextError::OtherFormat(program)));
    let is_json = |text: &String| text.trim_start().starts_with('{');
    if let Some(graph) = texts.text("prompt")?.filter(is_json) {
        return comfyui::infotext(&graph).map(Some).map_err(invalid);
    }
    if let Some(metadata) = texts.text("invokeai_metadata")? {
        return invokeai::metadata(&metadata).map(Some).map_err(invalid);
    }
    if let Some(metadata) = texts.text("sd-metadata")? {
        return invokeai::sd_metadata(&metadata).map(Some).map_err(invalid);
    }
    if let Some(command) = texts.text("Dream")? {
        return invokeai::dream(&command).map(Some).map_err(invalid);
    }
    if let Some(software) = texts.text("Software")?
        && software.starts_with(novelai::SOFTWARE)
    {
        let Some(comment) = texts.text("Comment")? else {
            return other(NOVELAI);
        };
        let description = texts.text("Description")?;
        let source = texts.text("Source")?;
        let [description, source] = [&description, &source].map(|text| text.as_deref());
        return novelai::infotext(&comment, description, source, Some(texts.size))
            .map(Some)
            .map_err(invalid);
    }
    if let Some(exif) = &texts.exif
        && let Some(infotext) = of_exif(exif)?
    {
        return Ok(Some(infotext));
    }
    if texts.is_plain {
        file.rewind()?;
        if let Some(text) = stealth::text(file, texts.size)? {
            return programs::any(&text).map(Some).map_err(invalid);
        }
    }
    if texts.text("workflow")?.as_ref().is_some_and(is_json) {
        return other(COMFYUI);
    }
    if texts.has("invokeai_graph") {
        return other(INVOKEAI);
    }
    Ok(None)
}

fn of_exif(bytes: &[u8]) -> io::Result<Option<Infotext>> {
    // Anything that no known program wrote must not hide what follows.
    let Some(exif) = Exif::parse(bytes) else {
        return Ok(None);
    };
    if let Some(comment) = exif.user_comment() {
        let text = exif::comment(comment, exif.order()).map_err(invalid)?;
        match programs::any(&text) {
            Err(InfotextError::OtherFormat(UNKNOWN)) => {}
            // A camera's comment is not an infotext.
            Ok(infotext) if infotext.entries.is_empty() => {}
            infotext => return infotext.map(Some).map_err(invalid),
        }
    }
    let texts = exif.texts().into_iter().flatten().map(decoded);
    for text in texts {
        if let Some(graph) = comfyui::in_exif(&text) {
            return comfyui::infotext(graph).map(Some).map_err(invalid);
        }
    }
    Ok(None)
}

/// Decodes bytes as UTF-8 if they are valid, and otherwise as Latin-1.
pub(super) fn decoded(bytes: &[u8]) -> String {
    let latin1 = || bytes.iter().map(|&byte| char::from(byte)).collect();
    std::str::from_utf8(bytes).map_or_else(|_| latin1(), str::to_owned)
}

/// Decompresses a text of at most [`MAX_BYTES`].
pub(super) fn inflated(decoder: impl Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    // One byte more than allowed, to recognize a longer text.
    decoder.take(MAX_BYTES as u64 + 1).read_to_end(&mut text)?;
    if text.len() > MAX_BYTES {
        return Err(invalid(InfotextError::TooLong));
    }
    Ok(text)
}

pub(super) fn array<const N: usize>(file: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn invalid(problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, problem)
}

#[cfg(test)]
// A failed `unwrap` is a failed test.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_picture_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let problem = || Infotext::read(&path).unwrap_err().to_string();
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
        assert!(problem().contains("git lfs pull"));
        std::fs::write(&path, "GIF89a").unwrap();
        assert!(problem().contains("expected PNG, JPEG or WebP"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(problem().contains("a folder"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_are_not_read() {
        assert!(Infotext::read("/dev/zero").is_err());
    }
}
