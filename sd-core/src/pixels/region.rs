//! The region around a mask that "only masked" draws.

use image::GrayImage;

/// Returns x, y, width and height of the region. `None` for an empty mask.
pub(crate) fn region(mask: &GrayImage, padding: u32, drawn: [u32; 2]) -> Option<[u32; 4]> {
    let _ = (mask, padding, drawn);
    todo!()
}
