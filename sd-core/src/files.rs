//! Reading and encoding pictures, and writing files atomically.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::Path,
};

use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::MAX_PIXELS;

pub use crate::infotext::{jpeg::jpeg, png::png, webp::webp};

/// A picture that was read from a file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReadPicture {
    /// The colours, 8 bits each. Where the picture is transparent, they are what the file has
    /// there, often black.
    pub rgb: RgbImage,
    /// The opacity, if the file has one: 255 where the picture is opaque.
    pub alpha: Option<GrayImage>,
}

/// Reads a PNG, JPEG or WebP file. The format is recognised by the content.
///
/// The picture is turned as its EXIF orientation says. 16-bit values are rounded to 8 bits, and
/// grey pictures and palettes become colours. Colour profiles are ignored. An animation gives its
/// first frame.
///
/// ```no_run
/// use sd_core::{Request, Start, files};
///
/// let sketch = files::read_picture("sketch.jpg")?;
/// let request = Request::new("a fox").start(Start::picture(sketch.rgb));
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Returns an error if the file cannot be read or is damaged, if it is in another format or in
/// CMYK, or if it has more than [`MAX_PIXELS`] pixels. The size is checked before the pixels are
/// decoded.
pub fn read_picture(path: impl AsRef<Path>) -> io::Result<ReadPicture> {
    let path = path.as_ref();
    let wrong = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    // By the content alone, whatever the file is called.
    let reader = ImageReader::new(BufReader::new(File::open(path)?));
    let reader = reader.with_guessed_format()?;
    let mut reader = match reader.format() {
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) => reader,
        Some(other) => {
            let problem = format!("the format is {other:?}, expected PNG, JPEG or WebP");
            return Err(wrong(problem));
        }
        None => return Err(wrong("no picture, expected PNG, JPEG or WebP".into())),
    };
    if reader.format() == Some(ImageFormat::Jpeg) && jpeg_components(path)? == Some(4) {
        return Err(wrong("the colours are CMYK, expected RGB or grey".into()));
    }
    let mut limits = Limits::default();
    // Four values of 16 bits for each pixel, and as much again for the decoder.
    limits.max_alloc = Some(16 * MAX_PIXELS);
    reader.limits(limits);
    let damaged = |error: image::ImageError| wrong(format!("the picture is damaged: {error}"));
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let problem = format!("has {width}×{height} pixels, expected at most {MAX_PIXELS} in all");
        return Err(wrong(problem));
    }
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    let alpha = picture.color().has_alpha().then(|| {
        let picture = picture.to_rgba8();
        let values = picture.pixels().map(|pixel| pixel.0[3]).collect();
        let alpha = GrayImage::from_raw(picture.width(), picture.height(), values);
        alpha.expect("there is a value for each pixel")
    });
    Ok(ReadPicture {
        rgb: picture.to_rgb8(),
        alpha,
    })
}

/// Returns the number of colour components in the header of a JPEG file: 4 for CMYK, which the
/// decoder would convert by a guess. `None` if the header cannot be read, which the decoder
/// reports.
///
/// A file consists of segments: `FF`, a marker, and for most markers a length of two bytes that
/// includes itself (ITU T.81, annex B).
fn jpeg_components(path: &Path) -> io::Result<Option<u8>> {
    let mut file = BufReader::new(File::open(path)?);
    let mut segment = |length: usize| -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::with_capacity(length);
        file.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        Ok((bytes.len() == length).then_some(bytes))
    };
    // The start of the picture has no length.
    let mut next = segment(2)?;
    while next.is_some() {
        let Some(bytes) = segment(4)? else {
            return Ok(None);
        };
        let [0xff, marker, high, low] = bytes[..] else {
            return Ok(None);
        };
        let Some(length) = u16::from_be_bytes([high, low]).checked_sub(2) else {
            return Ok(None);
        };
        next = segment(length.into())?;
        // The starts of frames. C4, C8 and CC are other segments.
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            return Ok(next.and_then(|frame| frame.get(5).copied()));
        }
    }
    Ok(None)
}

/// Writes a file atomically: the file appears under its name only when it is complete.
///
/// An existing file is replaced, and the new file takes over its permissions. A link to a file is
/// followed. Anything that is not a regular file, such as a device or a pipe, is written to
/// directly.
///
/// # Errors
/// Returns an error if the folder cannot be written to or the disk is full. No incomplete file is
/// left behind.
pub fn write(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    match fs::metadata(path) {
        Ok(there) if !there.is_file() => fs::write(path, bytes),
        Ok(there) => {
            let real = fs::canonicalize(path)?;
            let file = temporary(&real, bytes)?;
            // The new file must not be readable for more users than the old one.
            file.as_file().set_permissions(there.permissions())?;
            file.persist(&real)?;
            Ok(())
        }
        Err(_) => {
            temporary(path, bytes)?.persist(path)?;
            Ok(())
        }
    }
}

/// Writes a file as [`write()`] does, unless it already exists.
///
/// # Errors
/// Returns the errors of `write`, and one of kind [`AlreadyExists`](io::ErrorKind::AlreadyExists)
/// if the file exists.
pub fn write_new(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    temporary(path, bytes)?.persist_noclobber(path)?;
    Ok(())
}

fn temporary(path: &Path, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // By default only the owner can read a temporary file. This one gets the permissions that the
    // umask gives to any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // The error itself would name the temporary file, which the caller does not know.
    let file = builder.tempfile_in(folder);
    let mut file = file.map_err(|error| io::Error::from(error.kind()))?;
    // `as_file_mut` bypasses the wrapper, whose errors would name the temporary file, too.
    file.as_file_mut().write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_new(&path, b"one").unwrap();
        assert_eq!(
            write_new(&path, b"two").unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let error = write(folder.path().join("no/such"), b"").unwrap_err();
        assert!(!error.to_string().contains("tmp"), "{error}");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn pictures_of_many_kinds_are_read() {
        use image::{Luma, LumaA, Rgb, Rgba, buffer::ConvertBuffer};
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let rgb = RgbImage::from_fn(24, 16, |x, y| Rgb([x as u8 * 10, y as u8 * 15, 128]));
        for name in ["a.png", "a.webp", "a.jpg"] {
            rgb.save(path(name)).unwrap();
            let read = read_picture(path(name)).unwrap();
            assert_eq!(
                (read.rgb.dimensions(), &read.alpha),
                ((24, 16), &None),
                "{name}"
            );
            let error = read
                .rgb
                .iter()
                .zip(rgb.iter())
                .map(|(a, b)| a.abs_diff(*b))
                .max();
            let most = if name == "a.jpg" { 40 } else { 0 };
            assert!(error <= Some(most), "{name}: {error:?}");
        }
        // The content decides, not the name.
        fs::rename(path("a.png"), path("b.jpg")).unwrap();
        assert_eq!(read_picture(path("b.jpg")).unwrap().rgb, rgb);
        let deep: image::ImageBuffer<Rgb<u16>, Vec<u16>> = rgb.convert();
        deep.save(path("deep.png")).unwrap();
        assert_eq!(read_picture(path("deep.png")).unwrap().rgb, rgb);
        let clear = image::RgbaImage::from_fn(8, 8, |x, _| Rgba([1, 2, 3, x as u8]));
        clear.save(path("clear.png")).unwrap();
        let read = read_picture(path("clear.png")).unwrap();
        assert_eq!(read.rgb.get_pixel(5, 0), &Rgb([1, 2, 3]));
        assert_eq!(read.alpha.unwrap().get_pixel(5, 0), &Luma([5]));
        let gray = image::GrayAlphaImage::from_pixel(8, 8, LumaA([7, 9]));
        gray.save(path("gray.png")).unwrap();
        let read = read_picture(path("gray.png")).unwrap();
        assert_eq!(read.rgb.get_pixel(0, 0), &Rgb([7, 7, 7]));
        assert_eq!(read.alpha.unwrap().get_pixel(0, 0), &Luma([9]));
    }

    /// Inserts a segment after the start of a JPEG file.
    fn with_segment(jpeg: &[u8], marker: u8, content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u16 + 2).to_be_bytes();
        [&jpeg[..2], &[0xff, marker], &length, content, &jpeg[2..]].concat()
    }

    #[test]
    fn pictures_are_turned_and_cmyk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        let picture =
            RgbImage::from_fn(24, 16, |x, _| image::Rgb([if x < 12 { 255 } else { 0 }; 3]));
        picture.save(&path).unwrap();
        let jpeg = fs::read(&path).unwrap();
        // EXIF with one entry: the orientation 6, a quarter turn to the right.
        let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0".to_vec();
        exif.extend(b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0");
        fs::write(&path, with_segment(&jpeg, 0xe1, &exif)).unwrap();
        let turned = read_picture(&path).unwrap().rgb;
        assert_eq!(turned.dimensions(), (16, 24));
        assert!(turned.get_pixel(8, 2).0[0] > 200 && turned.get_pixel(8, 21).0[0] < 50);
        // The start of a frame with four components.
        let frame = b"\x08\0\x08\0\x08\x04\x01\x11\0\x02\x11\0\x03\x11\0\x04\x11\0";
        fs::write(&path, with_segment(&jpeg, 0xc0, frame)).unwrap();
        let error = read_picture(&path).unwrap_err().to_string();
        assert!(error.contains("CMYK"), "{error}");
        for length in 0..jpeg.len().min(200) {
            fs::write(&path, &jpeg[..length]).unwrap();
            assert!(read_picture(&path).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn files_that_are_no_pictures_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_picture(&path).map(drop).unwrap_err().to_string()
        };
        assert!(refused(b"").contains("no picture"));
        assert!(refused(b"GIF89a\x01\0\x01\0\0\0\0").contains("the format is Gif"));
        let mut png = Vec::new();
        let picture = RgbImage::new(64, 64);
        let mut to = io::Cursor::new(&mut png);
        picture.write_to(&mut to, ImageFormat::Png).unwrap();
        assert!(refused(&png[..png.len() / 2]).contains("damaged"));
        // A bomb: a header that claims 65,535 × 65,535 pixels, with a right checksum.
        let mut bomb = png.clone();
        bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        let mut crc = !0u32;
        for byte in &bomb[12..29] {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
            }
        }
        bomb[29..33].copy_from_slice(&(!crc).to_be_bytes());
        let error = refused(&bomb);
        assert!(
            error.contains("65535×65535") || error.contains("limits"),
            "{error}"
        );
        assert!(read_picture(folder.path()).is_err());
        assert!(read_picture(folder.path().join("no")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_private_file_stays_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write(&path, b"one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        write(&target, b"one").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write(&link, b"two").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"two");
        write("/dev/null", b"gone").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
