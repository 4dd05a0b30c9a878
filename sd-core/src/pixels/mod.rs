//! Scales pictures with the same bytes as Pillow.
//!
//! Image to image, image encoders and second passes use [`resize`] and [`resize_window`].
//! [`LatentFilter`] names the ways to scale latents.

// The modules, with the reference that each equals, and the largest difference:
//
// - `resample`: Pillow's `Image.resize`, none
// - `blur`: OpenCV's and Pillow's `GaussianBlur`, none
// - `fill`: WebUI's `fill` in `modules/masking.py`, none
// - `region`: WebUI's `get_crop_region_v2` and `expand_crop_region`, none
// - `color`: WebUI's "Apply color correction", none
// - `alpha`: Pillow's `Image.paste` with a mask, none
// - `latents`: torch's `interpolate`, up to 1e-6
//
// `tests/golden/pixels.py` runs the references and writes their results for the tests.

#[cfg(test)]
pub(crate) mod golden;
mod resample;

pub(crate) mod alpha;
pub(crate) mod blur;
pub(crate) mod color;
pub(crate) mod fill;
pub(crate) mod latents;
pub(crate) mod region;

pub use self::{
    latents::LatentFilter,
    resample::{Filter, resize, resize_window},
};
