//! The EXIF data of JPEG files.
//!
//! A file consists of segments: `FF`, a marker, and for most markers a length of two bytes that
//! includes itself (ITU T.81, annex B). EXIF data is an APP1 segment that begins with `Exif\0\0`.

use std::io::{self, BufRead, ErrorKind, Read, Seek};

use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::jpeg::JpegEncoder};

use super::{
    Infotext, exif,
    file::{array, invalid},
};

/// The first bytes of a JPEG file.
pub(super) const START: [u8; 3] = [0xff, 0xd8, 0xff];

/// The largest EXIF data that fits into a segment, in bytes.
const MOST: usize = u16::MAX as usize - 2 - HEADER.len();

/// The start of an APP1 segment with EXIF data.
const HEADER: &[u8] = exif::HEADER;

/// Encodes a picture as a JPEG, with an infotext if one is given.
///
/// `quality` is `1..=100`, from the smallest file to the best picture. WebUI's default is 80. The
/// infotext is stored in the EXIF field `UserComment` as UTF-16, as in WebUI 1.10. An infotext
/// without entries is not read back.
///
/// ```
/// use sd_core::{Infotext, files, image::RgbImage};
///
/// let infotext = Infotext::parse("a fox\nSteps: 20, Sampler: Euler, Seed: 42")?;
/// let bytes = files::jpeg(&RgbImage::new(8, 8), 90, Some(&infotext))?;
/// assert_eq!(Infotext::from_bytes(&bytes)?, Some(infotext));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Returns an error
/// - if the quality is out of range,
/// - if the picture has no pixels or more than 65,535 in a row or column,
/// - if the infotext is too long for a JPEG: its EXIF data has at most 65,527 bytes, which are
///   32,737 characters, or half as many emoji.
pub fn jpeg(image: &RgbImage, quality: u8, infotext: Option<&Infotext>) -> io::Result<Vec<u8>> {
    let wrong = |problem| io::Error::new(ErrorKind::InvalidInput, problem);
    if !(1..=100).contains(&quality) {
        return Err(wrong(format!(
            "the quality is {quality}, expected 1 to 100"
        )));
    }
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
    if let Some(infotext) = infotext {
        let exif = exif::with_comment(&infotext.to_string());
        if exif.len() > MOST {
            let length = exif.len();
            return Err(wrong(format!(
                "the infotext takes {length} bytes as EXIF data, but a JPEG can hold {MOST}: write \
                 a PNG or WebP"
            )));
        }
        encoder.set_exif_metadata(exif).map_err(io::Error::other)?;
    }
    let (width, height) = image.dimensions();
    let encoded = encoder.write_image(image, width, height, ExtendedColorType::Rgb8);
    encoded.map_err(io::Error::other)?;
    Ok(bytes)
}

/// Returns the EXIF data of a JPEG file, which stands before the pixels.
pub(super) fn exif(jpeg: &mut (impl BufRead + Seek)) -> io::Result<Option<Vec<u8>>> {
    let _start: [u8; 2] = array(jpeg)?;
    loop {
        let [first, mut marker] = array(jpeg)?;
        if first != 0xff {
            return Err(invalid("the JPEG is damaged: expected a segment"));
        }
        // Any number of bytes FF may stand before a marker.
        while marker == 0xff {
            [marker] = array(jpeg)?;
        }
        match marker {
            // The pixels, or the end of the file.
            0xda | 0xd9 => return Ok(None),
            // Markers without a length.
            0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let Some(length) = u16::from_be_bytes(array(jpeg)?).checked_sub(2) else {
            return Err(invalid("the JPEG is damaged: a segment is too short"));
        };
        if marker == 0xe1 {
            let mut content = Vec::new();
            jpeg.by_ref()
                .take(length.into())
                .read_to_end(&mut content)?;
            if content.len() < length.into() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            // An APP1 segment may also hold XMP.
            if content.starts_with(HEADER) {
                return Ok(Some(content));
            }
        } else {
            jpeg.seek_relative(length.into())?;
        }
    }
}
