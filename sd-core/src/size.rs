//! The checked size of a picture.

use serde::{Deserialize, Serialize};

use crate::{Problem, Problems};

/// The size of a picture in pixels. Width and height are positive multiples of 8.
///
/// With serde it is an array of the width and the height, as in a [`Request`](crate::Request).
///
/// ```
/// use sd_core::ImageSize;
///
/// let size: ImageSize = serde_json::from_str("[768, 512]")?;
/// assert_eq!((size.width(), size.height()), (768, 512));
/// assert!(serde_json::from_str::<ImageSize>("[768, 500]").is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "[u32; 2]", into = "[u32; 2]")]
pub struct ImageSize {
    width: u32,
    height: u32,
}

/// Returns the smallest multiple of 8 that is also a multiple of `factor`.
pub(crate) fn unit(factor: usize) -> usize {
    let mut units = (1..=factor).map(|n| 8 * n);
    units.find(|unit| unit.is_multiple_of(factor)).unwrap_or(8)
}

impl ImageSize {
    /// Creates a size from a width and a height in pixels.
    ///
    /// # Errors
    /// [`Problems`], with each side that is not a positive multiple of 8.
    pub fn new(width: u32, height: u32) -> Result<Self, Problems> {
        let wrong = |side: u32| side == 0 || !side.is_multiple_of(8);
        check_sides(width, height, wrong, "a positive multiple of 8")?;
        Ok(Self { width, height })
    }

    /// Returns the width in pixels.
    pub fn width(self) -> u32 {
        self.width
    }

    /// Returns the height in pixels.
    pub fn height(self) -> u32 {
        self.height
    }

    /// Returns the number of pixels: width times height.
    pub fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Returns the height and width of the latents.
    pub(crate) fn latents(self, factor: usize) -> Result<[usize; 2], Problems> {
        let wrong = |side: u32| !(side as usize).is_multiple_of(factor);
        let expected = format!("a multiple of this model's factor, {factor}");
        check_sides(self.width, self.height, wrong, &expected)?;
        Ok([self.height as usize / factor, self.width as usize / factor])
    }
}

impl TryFrom<[u32; 2]> for ImageSize {
    type Error = Problems;

    /// Creates a size from a width and a height, like [`new`](Self::new).
    fn try_from([width, height]: [u32; 2]) -> Result<Self, Problems> {
        Self::new(width, height)
    }
}

impl From<ImageSize> for [u32; 2] {
    fn from(size: ImageSize) -> Self {
        [size.width, size.height]
    }
}

fn check_sides(
    width: u32,
    height: u32,
    wrong: impl Fn(u32) -> bool,
    expected: &str,
) -> Result<(), Problems> {
    let mut problems = Vec::new();
    for (what, side) in [("width", width), ("height", height)] {
        if wrong(side) {
            problems.push(Problem::new(what, expected, side));
        }
    }
    Problems::check(problems)
}

impl std::fmt::Display for ImageSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_multiples_of_eight_and_of_the_factor() {
        assert!(ImageSize::new(512, 392).is_ok());
        for (width, height) in [(0, 64), (64, 0), (63, 64), (64, 12)] {
            assert!(ImageSize::new(width, height).is_err(), "{width}×{height}");
        }
        assert_eq!(
            ImageSize::new(520, 392).unwrap().latents(8).unwrap(),
            [49, 65]
        );
        assert!(ImageSize::new(520, 392).unwrap().latents(16).is_err());
    }
}
