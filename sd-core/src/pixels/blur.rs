//! Gaussian blurs, as OpenCV and as Pillow compute them.

use image::{GrayImage, ImageBuffer, Pixel};

/// Blurs a mask as WebUI does it with OpenCV.
pub(crate) fn gaussian(mask: &GrayImage, sigma: f32) -> GrayImage {
    let _ = (mask, sigma);
    todo!()
}

/// Blurs a picture as Pillow's `ImageFilter.GaussianBlur`, bit for bit.
pub(crate) fn pillow_gaussian<P>(
    picture: &ImageBuffer<P, Vec<u8>>,
    radius: f32,
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8>,
{
    let _ = (picture, radius);
    todo!()
}
