//! The preprocessors of sd-webui-controlnet that need no model.
//!
//! Source: sd-webui-controlnet 1.1.455, `scripts/preprocessor/model_free_preprocessors.py` and
//! `scripts/preprocessor/legacy`.

use std::ops::RangeInclusive;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::{
    Problem, Problems,
    pixels::{canny, gaussian_blur, intensity, invert, luminance, threshold, tile},
};

/// Turns a picture into a control picture.
///
/// The variants have the names, defaults and ranges of sd-webui-controlnet. [`crate::pixels`] has
/// the functions behind them. Preprocessors that run a model, such as for depth or poses, are not
/// part of this crate: their pictures are used with [`Preprocessor::None`].
///
/// With serde, [`None`](Self::None) and [`Invert`](Self::Invert) are the names `"none"` and
/// `"invert"`. Each other variant is an object with its name and the parameters that differ from
/// the defaults, such as `{"canny": {}}`.
///
/// ```
/// use sd_core::Preprocessor;
///
/// let canny: Preprocessor = serde_json::from_str(r#"{"canny": {"low": 50}}"#)?;
/// assert_eq!(canny, Preprocessor::Canny { low: 50, high: 200 });
/// assert_eq!(serde_json::to_string(&Preprocessor::Invert)?, r#""invert""#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Preprocessor {
    /// The picture itself. This is the default.
    #[default]
    None,
    /// Edges in white on black: [`canny`].
    ///
    /// The picture is first padded to multiples of 64 by repeating its last row and its last
    /// column, which can change lines at the right and at the lower edge.
    Canny {
        /// The gradient from which edges continue, `1..=255`.
        ///
        /// Default: 100.
        #[serde(default = "defaults::low")]
        low: u8,
        /// The gradient from which edges start, `1..=255`.
        ///
        /// Default: 200.
        #[serde(default = "defaults::high")]
        high: u8,
    },
    /// White where all colors are above a threshold, and black elsewhere: [`threshold`].
    Threshold {
        /// The largest color that becomes black, `0..=255`.
        ///
        /// Default: 127.
        #[serde(default = "defaults::threshold")]
        threshold: u8,
    },
    /// The picture in gray, by its lightness: [`luminance`].
    RecolorLuminance {
        /// The exponent of the lightness, `0.1..=2.0`.
        ///
        /// Default: 1.
        #[serde(default = "defaults::one")]
        gamma: f32,
    },
    /// The picture in gray, by its largest color: [`intensity`].
    RecolorIntensity {
        /// The exponent of the color, `0.1..=2.0`.
        ///
        /// Default: 1.
        #[serde(default = "defaults::one")]
        gamma: f32,
    },
    /// The picture with inverted colors, for black lines on white: [`invert`].
    Invert,
    /// The picture blurred: [`gaussian_blur`].
    BlurGaussian {
        /// The standard deviation in pixels, `0.01..=64.0`.
        ///
        /// Default: 9.
        #[serde(default = "defaults::sigma")]
        sigma: f32,
    },
    /// The picture without its details: [`tile`].
    TileResample {
        /// The factor by which the picture is made smaller, `1.0..=8.0`. Below 1.1 the picture
        /// stays as it is.
        ///
        /// Default: 1, which changes nothing.
        #[serde(default = "defaults::one")]
        factor: f32,
    },
}

/// The default values of the parameters.
mod defaults {
    pub(super) fn low() -> u8 {
        100
    }
    pub(super) fn high() -> u8 {
        200
    }
    pub(super) fn threshold() -> u8 {
        127
    }
    pub(super) fn one() -> f32 {
        1.0
    }
    pub(super) fn sigma() -> f32 {
        9.0
    }
}

/// A parameter: its name, its value, and the values that can be used.
type Parameter = (&'static str, f32, RangeInclusive<f32>);

impl Preprocessor {
    /// Returns the preprocessor with a name of sd-webui-controlnet, with its default parameters.
    ///
    /// The name is what the program stores in pictures as "Module", such as `canny` or
    /// `invert (from white bg & black line)`. The result is `None` if the preprocessor runs a
    /// model, or is not known.
    ///
    /// ```
    /// use sd_core::Preprocessor;
    ///
    /// let blur = Preprocessor::BlurGaussian { sigma: 9.0 };
    /// assert_eq!(Preprocessor::from_webui("blur_gaussian"), Some(blur));
    /// assert_eq!(Preprocessor::from_webui("depth_midas"), None);
    /// ```
    pub fn from_webui(name: &str) -> Option<Self> {
        let name = if name == INVERT { "invert" } else { name };
        ALL.into_iter().find(|known| known.webui_name() == name)
    }

    /// Returns the name of sd-webui-controlnet, such as `"canny"`. serde uses the same names.
    pub fn webui_name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Canny { .. } => "canny",
            Self::Threshold { .. } => "threshold",
            Self::RecolorLuminance { .. } => "recolor_luminance",
            Self::RecolorIntensity { .. } => "recolor_intensity",
            Self::Invert => "invert",
            Self::BlurGaussian { .. } => "blur_gaussian",
            Self::TileResample { .. } => "tile_resample",
        }
    }

    /// Returns the parameters as sd-webui-controlnet's "Threshold A" and "Threshold B". A
    /// preprocessor has both, only the first, or none.
    ///
    /// ```
    /// use sd_core::Preprocessor;
    ///
    /// let canny = Preprocessor::Canny { low: 50, high: 200 };
    /// assert_eq!(canny.thresholds(), [Some(50.0), Some(200.0)]);
    /// assert_eq!(Preprocessor::Invert.thresholds(), [None, None]);
    /// ```
    pub fn thresholds(self) -> [Option<f32>; 2] {
        self.parameters()
            .map(|parameter| parameter.map(|(_, value, _)| value))
    }

    /// Sets the parameters from sd-webui-controlnet's "Threshold A" and "Threshold B".
    ///
    /// As in sd-webui-controlnet, a value out of range changes nothing, such as -1, which the
    /// program stores for "the default". Fractions are dropped where a parameter is a whole number.
    ///
    /// ```
    /// use sd_core::Preprocessor;
    ///
    /// let canny = Preprocessor::Canny { low: 100, high: 200 };
    /// let wide = canny.with_thresholds([Some(50.0), Some(-1.0)]);
    /// assert_eq!(wide, Preprocessor::Canny { low: 50, high: 200 });
    /// ```
    #[must_use]
    pub fn with_thresholds(self, values: [Option<f32>; 2]) -> Self {
        let mut new = self;
        let parameters = self.parameters();
        let [first, second] = [0, 1].map(|index| {
            let (_, old, range) = parameters[index].as_ref()?;
            Some(
                values[index]
                    .filter(|value| range.contains(value))
                    .unwrap_or(*old),
            )
        });
        let [a, b] = [first.unwrap_or_default(), second.unwrap_or_default()];
        match &mut new {
            Self::None | Self::Invert => {}
            Self::Canny { low, high } => (*low, *high) = (a as u8, b as u8),
            Self::Threshold { threshold } => *threshold = a as u8,
            Self::RecolorLuminance { gamma } | Self::RecolorIntensity { gamma } => *gamma = a,
            Self::BlurGaussian { sigma } => *sigma = a,
            Self::TileResample { factor } => *factor = a,
        }
        new
    }

    /// Returns an error if a parameter is out of range.
    ///
    /// # Errors
    /// [`Problems`], with the name of each such parameter.
    pub fn check(self) -> Result<(), Problems> {
        let parameters = self.parameters().into_iter().flatten();
        let wrong = parameters.filter(|(_, value, range)| !range.contains(value));
        Problems::check(wrong.map(problem).collect())
    }

    /// Makes a control picture of the same size as `picture`.
    ///
    /// sd-webui-controlnet first scales the picture to its "Preprocessor resolution". This method
    /// does not: scale the picture with [`resize`](crate::pixels::resize) before. "Pixel Perfect"
    /// corresponds to the size of the drawn picture.
    ///
    /// # Errors
    /// [`Problems`] if a parameter is out of range, as [`check`](Self::check) reports them.
    ///
    /// ```
    /// use sd_core::{Preprocessor, image::RgbImage};
    ///
    /// let picture = RgbImage::new(96, 64);
    /// let inverted = Preprocessor::Invert.apply(&picture)?;
    /// assert_eq!(inverted.get_pixel(0, 0).0, [255; 3]);
    ///
    /// let blur = Preprocessor::BlurGaussian { sigma: 65.0 };
    /// let error = blur.apply(&picture).expect_err("a large sigma");
    /// assert_eq!(error.to_string(), "sigma is 65, expected 0.01 to 64");
    /// # Ok::<(), sd_core::Problems>(())
    /// ```
    pub fn apply(self, picture: &RgbImage) -> Result<RgbImage, Problems> {
        self.check()?;
        Ok(match self {
            Self::None => picture.clone(),
            Self::Canny { low, high } => padded(picture, |picture| {
                canny(picture, f32::from(low), f32::from(high))
            }),
            Self::Threshold { threshold: most } => threshold(picture, most),
            Self::RecolorLuminance { gamma } => luminance(picture, gamma),
            Self::RecolorIntensity { gamma } => intensity(picture, gamma),
            Self::Invert => invert(picture),
            Self::BlurGaussian { sigma } => gaussian_blur(picture, sigma),
            Self::TileResample { factor } => tile(picture, factor),
        })
    }

    /// Returns what sd-webui-controlnet calls the first and the second slider.
    fn parameters(self) -> [Option<Parameter>; 2] {
        let whole = |name, value: u8, range| Some((name, f32::from(value), range));
        match self {
            Self::None | Self::Invert => [None, None],
            Self::Canny { low, high } => [
                whole("low", low, 1.0..=255.0),
                whole("high", high, 1.0..=255.0),
            ],
            Self::Threshold { threshold } => [whole("threshold", threshold, 0.0..=255.0), None],
            Self::RecolorLuminance { gamma } | Self::RecolorIntensity { gamma } => {
                [Some(("gamma", gamma, 0.1..=2.0)), None]
            }
            Self::BlurGaussian { sigma } => [Some(("sigma", sigma, 0.01..=64.0)), None],
            Self::TileResample { factor } => [Some(("factor", factor, 1.0..=8.0)), None],
        }
    }
}

/// The name that sd-webui-controlnet shows and stores for "invert".
const INVERT: &str = "invert (from white bg & black line)";

/// Each preprocessor with its default parameters.
const ALL: [Preprocessor; 8] = [
    Preprocessor::None,
    Preprocessor::Canny {
        low: 100,
        high: 200,
    },
    Preprocessor::Threshold { threshold: 127 },
    Preprocessor::RecolorLuminance { gamma: 1.0 },
    Preprocessor::RecolorIntensity { gamma: 1.0 },
    Preprocessor::Invert,
    Preprocessor::BlurGaussian { sigma: 9.0 },
    Preprocessor::TileResample { factor: 1.0 },
];

fn problem((name, value, range): Parameter) -> Problem {
    let expected = format!("{} to {}", range.start(), range.end());
    Problem::new(name, expected, value)
}

/// Processes a picture with sides that are multiples of 64, and crops the result. The outermost
/// pixel continues beyond the right and the lower edge.
fn padded(picture: &RgbImage, process: impl FnOnce(&RgbImage) -> RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let larger = |side: u32| side.checked_next_multiple_of(64).unwrap_or(side);
    let (new_width, new_height) = (larger(width), larger(height));
    if picture.is_empty() || (new_width, new_height) == (width, height) {
        return process(picture);
    }
    let padded = RgbImage::from_fn(new_width, new_height, |x, y| {
        *picture.get_pixel(x.min(width - 1), y.min(height - 1))
    });
    let processed = process(&padded);
    image::imageops::crop_imm(&processed, 0, 0, width, height).to_image()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::golden;

    #[test]
    fn every_byte_is_the_extensions() {
        for case in golden::preprocessors("apply") {
            let name = case["name"].as_str().expect("a name");
            let preprocessor = Preprocessor::from_webui(name).expect("a known name");
            let values = [0, 1].map(|index| case["thresholds"].get(index).map(golden::float));
            let picture = preprocessor
                .with_thresholds(values)
                .apply(&golden::control(&case));
            golden::check(&case, &picture.expect("values within their ranges"));
        }
    }

    #[test]
    fn defaults_and_ranges_are_the_extensions() {
        let cases = golden::preprocessors("parameters");
        assert_eq!(cases.len(), ALL.len());
        for case in cases {
            let name = case["name"].as_str().expect("a name");
            let known = Preprocessor::from_webui(name).expect("a known name");
            let found: Vec<_> = known.parameters().into_iter().flatten().collect();
            let expected = case["parameters"].as_array().expect("parameters");
            assert_eq!(found.len(), expected.len(), "{case}");
            for ((_, value, range), expected) in found.into_iter().zip(expected) {
                let [value_, start, end] = [0, 1, 2].map(|index| golden::float(&expected[index]));
                assert_eq!((value, range), (value_, start..=end), "{case}");
            }
        }
    }

    #[test]
    fn serde_has_the_defaults_and_the_names() {
        for known in ALL {
            let name = known.webui_name();
            let short = match known {
                Preprocessor::None | Preprocessor::Invert => format!("{name:?}"),
                _ => format!("{{{name:?}: {{}}}}"),
            };
            let read: Preprocessor = serde_json::from_str(&short).expect("the name is enough");
            assert_eq!(read, known);
            let json = serde_json::to_string(&known).expect("a plain value");
            assert_eq!(
                serde_json::from_str::<Preprocessor>(&json).expect("what was written"),
                known
            );
        }
        let unknown = serde_json::from_str::<Preprocessor>(r#"{"canny": {"middle": 1}}"#);
        assert!(unknown.is_err());
    }

    #[test]
    fn values_out_of_range_are_errors() {
        let wrong = [
            Preprocessor::Canny { low: 0, high: 0 },
            Preprocessor::RecolorLuminance { gamma: f32::NAN },
            Preprocessor::RecolorIntensity { gamma: 2.1 },
            Preprocessor::BlurGaussian { sigma: -1.0 },
            Preprocessor::TileResample {
                factor: f32::INFINITY,
            },
        ];
        let picture = RgbImage::new(3, 2);
        for (index, wrong) in wrong.into_iter().enumerate() {
            let problems = wrong.apply(&picture).expect_err("out of range");
            assert_eq!(problems.iter().count(), if index == 0 { 2 } else { 1 });
        }
    }

    #[test]
    fn every_size_keeps_its_size() {
        for (width, height) in [(0, 0), (0, 5), (7, 0), (1, 1), (1, 65), (130, 1), (64, 64)] {
            let picture = RgbImage::new(width, height);
            for known in ALL {
                let known = known.with_thresholds([Some(2.0), None]);
                let result = known.apply(&picture).expect("values within their ranges");
                assert_eq!(result.dimensions(), (width, height), "{known:?}");
            }
        }
    }
}
