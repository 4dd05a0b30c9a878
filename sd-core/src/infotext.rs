//! How a picture was made, in the text that WebUI writes into its PNG files.

use std::io;

use image::RgbImage;

use crate::Picture;

/// How a picture was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Infotext {}

/// The infotext of a picture.
pub(crate) fn of(_picture: &Picture) -> Infotext {
    Infotext {}
}

/// A PNG with an infotext.
pub(crate) fn png(image: &RgbImage, _infotext: &Infotext) -> io::Result<Vec<u8>> {
    let mut png = io::Cursor::new(Vec::new());
    image
        .write_to(&mut png, image::ImageFormat::Png)
        .map_err(io::Error::other)?;
    Ok(png.into_inner())
}
