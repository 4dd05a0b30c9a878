//! Scales pictures with the same bytes as Pillow, and makes control pictures with the same bytes as
//! OpenCV.
//!
//! Image to image, image encoders and second passes use [`resize`] and [`resize_window`].
//! [`LatentFilter`] names the ways to scale latents.
//!
//! The other functions make the picture that a control network is shown, of any picture:
//! [`canny`], [`threshold`], [`invert`], [`luminance`], [`intensity`], [`gaussian_blur`],
//! [`tile`] and [`inpaint_condition`]. They accept pictures of any size.

// The modules, with the reference that each equals, and the largest difference:
//
// - `resample`: Pillow's `Image.resize`, none
// - `canny`: OpenCV's `Canny`, none
// - `tones`: sd-webui-controlnet's preprocessors, none
// - `tile`: sd-webui-controlnet's `tile_resample`, up to 1 where it becomes larger again
// - `inpaint`: diffusers' `make_inpaint_condition`, none
// - `blur`: OpenCV's and Pillow's `GaussianBlur`, none
// - `fill`: WebUI's `fill` in `modules/masking.py`, none
// - `region`: WebUI's `get_crop_region_v2` and `expand_crop_region`, none
// - `color`: WebUI's "Apply color correction", none
// - `alpha`: Pillow's `Image.paste` with a mask, none
// - `latents`: torch's `interpolate`, up to 1e-6
//
// `tests/golden/pixels.py` and `preprocessors.py` run the references and write their results for
// the tests.

mod canny;
#[cfg(test)]
pub(crate) mod golden;
mod inpaint;
mod resample;
mod tile;
mod tones;

pub(crate) mod alpha;
pub(crate) mod blur;
pub(crate) mod color;
pub(crate) mod fill;
pub(crate) mod latents;
pub(crate) mod region;

pub use self::{
    blur::gaussian_blur,
    canny::canny,
    inpaint::{MaskSizeError, inpaint_condition},
    latents::LatentFilter,
    resample::{Filter, resize, resize_window},
    tile::tile,
    tones::{intensity, invert, luminance, threshold},
};
