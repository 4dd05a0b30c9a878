//! The EXIF data of WebP files.
//!
//! A file is a RIFF container: `RIFF`, a length, `WEBP`, and then chunks with a name, a length and
//! a byte of padding after an odd length. All numbers are little-endian.

use std::io::{self, BufRead, ErrorKind, Read, Seek};

use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::webp::WebPEncoder};

use super::{
    Infotext, InfotextError, exif,
    file::{array, invalid},
};

/// The largest EXIF data that is read, 16 MiB. ComfyUI's holds two graphs.
const MOST: u32 = 16 << 20;

/// Encodes a picture as a lossless WebP, with an infotext if one is given.
///
/// The infotext is stored in the EXIF field `UserComment` as UTF-16, as in WebUI 1.10. An infotext
/// without entries is not read back.
///
/// ```
/// use sd_core::{Infotext, files, image::RgbImage};
///
/// let infotext = Infotext::parse("a fox\nSteps: 20, Sampler: Euler, Seed: 42")?;
/// let bytes = files::webp(&RgbImage::new(8, 8), Some(&infotext))?;
/// assert_eq!(Infotext::from_bytes(&bytes)?, Some(infotext));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Returns an error if the picture has no pixels or more than 16,384 in a row or column.
pub fn webp(image: &RgbImage, infotext: Option<&Infotext>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = WebPEncoder::new_lossless(&mut bytes);
    if let Some(infotext) = infotext {
        let exif = exif::with_comment(&infotext.to_string());
        encoder.set_exif_metadata(exif).map_err(io::Error::other)?;
    }
    let (width, height) = image.dimensions();
    let encoded = encoder.write_image(image, width, height, ExtendedColorType::Rgb8);
    encoded.map_err(io::Error::other)?;
    Ok(bytes)
}

/// Returns the EXIF data of a WebP file, which usually stands behind the pixels.
pub(super) fn exif(webp: &mut (impl BufRead + Seek)) -> io::Result<Option<Vec<u8>>> {
    let _riff: [u8; 4] = array(webp)?;
    // The length covers everything behind itself. Bytes after that length are not chunks.
    let mut left = u64::from(u32::from_le_bytes(array(webp)?));
    let _webp: [u8; 4] = array(webp)?;
    left = left.saturating_sub(4);
    while left >= 8 {
        let name: [u8; 4] = array(webp)?;
        let length = u32::from_le_bytes(array(webp)?);
        if &name == b"EXIF" {
            if length > MOST {
                return Err(invalid(InfotextError::TooLong));
            }
            let mut content = Vec::new();
            webp.by_ref()
                .take(length.into())
                .read_to_end(&mut content)?;
            if content.len() < length as usize {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            return Ok(Some(content));
        }
        let padded = u64::from(length) + u64::from(length % 2);
        webp.seek_relative(padded as i64)?;
        left = left.saturating_sub(8 + padded);
    }
    Ok(None)
}
