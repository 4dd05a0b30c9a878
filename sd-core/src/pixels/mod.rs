//! Operations on pixels, each with the results of the reference that people compare with.
//!
//! | function | reference |
//! |---|---|
//! | [`resize`] | Pillow's `Image.resize`, bit for bit |
//!
//! The other operations serve image to image inside this crate.

// Image to image calls these.
#[allow(dead_code)]
pub(crate) mod blur;
#[allow(dead_code)]
pub(crate) mod color;
#[allow(dead_code)]
pub(crate) mod fill;
#[allow(dead_code)]
pub(crate) mod latents;
#[allow(dead_code)]
pub(crate) mod region;
mod resample;

pub use latents::LatentFilter;
pub use resample::{Filter, resize, resize_window};
