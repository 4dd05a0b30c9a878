//! WebUI's color correction.

use image::RgbImage;

/// Returns `picture` with the colors of `like`.
pub(crate) fn corrected(picture: &RgbImage, like: &RgbImage) -> RgbImage {
    let _ = (picture, like);
    todo!()
}
