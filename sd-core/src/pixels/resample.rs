//! Pillow's `Image.resize` for 8-bit pictures, bit for bit.

use image::{ImageBuffer, Pixel};
use serde::{Deserialize, Serialize};

/// The filter of [`resize`], under Pillow's name.
///
/// With serde it is a name in lower case, such as `"lanczos"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Filter {
    /// Takes the nearest pixel.
    Nearest,
    /// Averages the pixels under a box.
    Box,
    /// Weights the pixels by a triangle.
    Bilinear,
    /// Keys' cubic convolution with a = −0.5.
    Bicubic,
    /// The sinc function, windowed to three pixels on each side.
    Lanczos,
}

/// Resizes a picture.
pub fn resize<P>(
    picture: &ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
    filter: Filter,
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8>,
{
    resize_window(picture, [width, height], [0, 0, width, height], filter)
}

/// Resizes a picture to `full` (width, height) and returns only `window` (x, y, width, height).
pub fn resize_window<P>(
    picture: &ImageBuffer<P, Vec<u8>>,
    full: [u32; 2],
    window: [u32; 4],
    filter: Filter,
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8>,
{
    let _ = (picture, full, window, filter);
    todo!()
}
