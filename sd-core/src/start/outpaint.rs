//! Pictures that grow beyond their borders.

use image::{GrayImage, Luma, RgbImage};

use super::{Mask, MaskedContent, Start};
use crate::{MAX_PIXELS, Problem, Problems};

/// How many pixels a picture grows on each side.
///
/// ```
/// use sd_core::Sides;
///
/// let wider = Sides { left: 128, right: 128, ..Sides::default() };
/// assert_eq!(wider.top, 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(clippy::exhaustive_structs, reason = "a picture has four sides")]
pub struct Sides {
    /// On the left. Default: 0.
    pub left: u32,
    /// Above. Default: 0.
    pub top: u32,
    /// On the right. Default: 0.
    pub right: u32,
    /// Below. Default: 0.
    pub bottom: u32,
}

impl Start {
    /// Creates a start that draws beyond the borders of a picture (outpainting). The picture grows
    /// by `sides`, and a [`mask`](Self::mask) covers what is new. The run finds the blurred edges
    /// of the picture there ([`MaskedContent::Fill`]), and the strength is 0.8.
    ///
    /// The mask also covers `overlap` pixels of the picture next to each new part. They are
    /// redrawn, so that the seam fits.
    ///
    /// Each side of the enlarged picture should be a multiple of 8 and of the model's factor.
    /// Otherwise the size is rounded down, and the whole picture is scaled a little. A model for
    /// inpainting (with 9 input channels) gives the best results. Ordinary models often draw a
    /// border or a second picture.
    ///
    /// ```
    /// use sd_core::{Request, Sides, Start, image::RgbImage};
    ///
    /// let sides = Sides { right: 256, ..Sides::default() };
    /// let start = Start::outpaint(&RgbImage::new(512, 512), sides, 16)?;
    /// let mask = start.mask.as_ref().expect("outpainting has a mask");
    /// assert_eq!(mask.values.dim(), (512, 768));
    /// assert_eq!([495, 496, 767].map(|x| mask.values[[0, x]]), [0, 255, 255]);
    /// let request = Request::new("a fox in a wide meadow").start(start);
    /// # Ok::<(), sd_core::Problems>(())
    /// ```
    ///
    /// # Errors
    /// [`Problems`] if the picture has no pixels, or if the result would have more than
    /// [`MAX_PIXELS`] pixels.
    pub fn outpaint(picture: &RgbImage, sides: Sides, overlap: u32) -> Result<Self, Problems> {
        let Sides {
            left,
            top,
            right,
            bottom,
        } = sides;
        let (own_width, own_height) = picture.dimensions();
        if own_width == 0 || own_height == 0 {
            let problem = Problem::new("start.from", "a picture with pixels", "empty");
            return Err(Problems(vec![problem]));
        }
        let grown = |sides: [u32; 3]| sides.into_iter().map(u64::from).sum::<u64>();
        let (width, height) = (
            grown([own_width, left, right]),
            grown([own_height, top, bottom]),
        );
        if width.saturating_mul(height) > MAX_PIXELS {
            let expected = format!("at most {MAX_PIXELS} pixels with the new sides");
            let problem = Problem::new("start.from", expected, format!("{width}×{height}"));
            return Err(Problems(vec![problem]));
        }
        let (width, height) = (width as u32, height as u32);
        let own = |at: u32, before: u32, own: u32| at.saturating_sub(before).min(own - 1);
        let grown = RgbImage::from_fn(width, height, |x, y| {
            *picture.get_pixel(own(x, left, own_width), own(y, top, own_height))
        });
        // A side that does not grow has no overlap.
        let edge = |side: u32| {
            if side > 0 {
                side.saturating_add(overlap)
            } else {
                0
            }
        };
        let is_new = |at: u32, before: u32, after: u32, size: u32| {
            at < edge(before) || at >= size - edge(after).min(size)
        };
        let mask = GrayImage::from_fn(width, height, |x, y| {
            let new = is_new(x, left, right, width) || is_new(y, top, bottom, height);
            Luma([if new { 255 } else { 0 }])
        });
        let mask = Mask::new(mask).content(MaskedContent::Fill);
        Ok(Self::picture(grown).strength(0.8).mask(mask))
    }
}
