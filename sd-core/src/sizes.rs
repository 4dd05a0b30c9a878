//! The sizes that SDXL takes as inputs.

use serde::{Deserialize, Serialize};

use crate::ImageSize;

/// The size conditioning of SDXL ("micro-conditioning", section 2.2 of
/// <https://arxiv.org/abs/2307.01952>). In training, SDXL was given these sizes for each picture.
///
/// They change what is drawn, not the size of the picture. A small [`original`](Self::original)
/// gives the look of a small picture that was enlarged. A [`crop`](Self::crop) other than 0 gives a
/// subject that is cut off. A pipeline whose model does not take sizes refuses them.
///
/// ```
/// use sd_core::{Request, Sizes};
///
/// let request = Request::new("a fox").sizes(Sizes::default().original(512, 512).crop(0, 64));
/// # assert_eq!(request.sizes.crop, [0, 64]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Sizes {
    /// Width and height of the training picture before it was scaled, in pixels.
    ///
    /// Default: the size of the requested picture.
    pub original: Option<[u32; 2]>,
    /// The upper left corner at which the training picture was cropped: x and y, in pixels.
    ///
    /// Default: `[0, 0]`, not cropped.
    pub crop: [u32; 2],
    /// Width and height to which the training picture was cropped, in pixels.
    ///
    /// Default: the size of the requested picture.
    pub target: Option<[u32; 2]>,
}

impl Sizes {
    /// Sets [`original`](Self::original), in pixels.
    pub fn original(mut self, width: u32, height: u32) -> Self {
        self.original = Some([width, height]);
        self
    }

    /// Sets [`crop`](Self::crop), in pixels.
    pub fn crop(mut self, x: u32, y: u32) -> Self {
        self.crop = [x, y];
        self
    }

    /// Sets [`target`](Self::target), in pixels.
    pub fn target(mut self, width: u32, height: u32) -> Self {
        self.target = Some([width, height]);
        self
    }
}

/// The sizes that a network takes, in order: `add_time_ids` of diffusers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SizeIds {
    /// Six values: height and width of the original, y and x of the crop, height and width of the
    /// target. SDXL takes them.
    Target,
    /// Five values: height and width of the original, y and x of the crop, and the aesthetic score.
    /// SDXL's refiner takes them.
    Score,
}

impl SizeIds {
    /// Returns the number of values.
    pub fn count(self) -> usize {
        match self {
            Self::Target => 6,
            Self::Score => 5,
        }
    }

    /// Returns the values for a picture of `size`. `score` is the aesthetic score, which
    /// [`Target`](Self::Target) does not use.
    pub fn values(self, sizes: &Sizes, size: ImageSize, score: f32) -> Vec<f32> {
        let own = [size.width(), size.height()];
        let [width, height] = sizes.original.unwrap_or(own);
        let [x, y] = sizes.crop;
        let mut values = [height, width, y, x].map(|value| value as f32).to_vec();
        match self {
            Self::Target => {
                let [width, height] = sizes.target.unwrap_or(own);
                values.extend([height as f32, width as f32]);
            }
            Self::Score => values.push(score),
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights_come_first() {
        let size = ImageSize::new(1024, 768).unwrap();
        let none = Sizes::default();
        let all = none.original(1, 2).crop(3, 4).target(5, 6);
        assert_eq!(
            SizeIds::Target.values(&none, size, 0.0),
            [768.0, 1024.0, 0.0, 0.0, 768.0, 1024.0]
        );
        assert_eq!(
            SizeIds::Target.values(&all, size, 0.0),
            [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]
        );
        assert_eq!(
            SizeIds::Score.values(&all, size, 6.0),
            [2.0, 1.0, 4.0, 3.0, 6.0]
        );
        for ids in [SizeIds::Target, SizeIds::Score] {
            assert_eq!(ids.values(&all, size, 6.0).len(), ids.count());
        }
    }
}
