//! The preprocessing of pictures, as transformers' `CLIPImageProcessor` does it with Pillow.

use sd_core::{
    image::RgbImage,
    pixels::{Filter, resize_window},
};
use serde_json::{Value, json};

use crate::{
    Error,
    config::{Config, SIZE},
};

/// The mean and the standard deviation of the channels in OpenAI's training pictures, where white
/// is 1.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Pillow's number of its bicubic filter.
const BICUBIC: u64 = 3;

/// The values of a `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Preprocess {
    /// The length of the shorter side after resizing, in pixels.
    shortest: usize,
    /// The height and width of the crop, in pixels. At most `shortest`.
    side: usize,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Preprocess {
    /// Returns CLIP's preprocessing for a model that takes pictures of `side` × `side` pixels.
    pub fn clip(side: usize) -> Self {
        Self {
            shortest: side,
            side,
            mean: MEAN,
            std: STD,
        }
    }

    /// Reads a `preprocessor_config.json`. Missing keys have CLIP's values.
    pub fn new(config: &Config, side: usize) -> Result<Self, Error> {
        let classes = ["CLIPImageProcessor", "CLIPFeatureExtractor"].map(|class| json!(class));
        let faster = ["CLIPImageProcessorFast", "CLIPImageProcessorPil"].map(|class| json!(class));
        let classes = [classes, faster].concat();
        config.only("image_processor_type", &classes)?;
        config.only("feature_extractor_type", &classes)?;
        for key in ["do_resize", "do_center_crop", "do_rescale", "do_normalize"] {
            config.only(key, &[json!(true)])?;
        }
        config.only("resample", &[json!(BICUBIC)])?;
        if let Some(factor) = config.finite("rescale_factor")?
            && (factor * 255.0 - 1.0).abs() > 1e-5
        {
            return Err(config.wrong("rescale_factor", "1/255 (anything else is not supported)"));
        }
        let is_side = |value: &Value| *value == json!(side);
        // Older files have numbers instead of objects.
        if let Some(crop) = config.value("crop_size")
            && !(is_side(crop) || ["height", "width"].iter().all(|key| is_side(&crop[key])))
        {
            let expected = format!("a height and a width of {side}, the model's image_size");
            return Err(config.wrong("crop_size", expected));
        }
        let shortest = match config.value("size") {
            None => Some(side),
            Some(size) => size
                .as_u64()
                .or_else(|| size["shortest_edge"].as_u64())
                .map(|size| size as usize),
        };
        let shortest = shortest.filter(|shortest| (side..=*SIZE.end()).contains(shortest));
        let Some(shortest) = shortest else {
            let expected = format!("a `shortest_edge` of at least {side}, the model's image_size");
            return Err(config.wrong("size", expected));
        };
        let three = |key, default: [f32; 3]| {
            let numbers = config.numbers(key, 3)?;
            let numbers = numbers.and_then(|numbers| <[f32; 3]>::try_from(numbers).ok());
            Ok::<_, Error>(numbers.unwrap_or(default))
        };
        let std = three("image_std", STD)?;
        if std.iter().any(|&std| std <= 0.0) {
            return Err(config.wrong("image_std", "a list of 3 positive numbers"));
        }
        Ok(Self {
            shortest,
            side,
            mean: three("image_mean", MEAN)?,
            std,
        })
    }

    /// Writes the values `[3, side, side]` of a picture, whose sides are not 0.
    pub fn write(&self, picture: &RgbImage, pixels: &mut [f32]) {
        let bytes = self.cropped(picture);
        let planes = pixels.chunks_exact_mut(self.side * self.side);
        for (channel, plane) in planes.enumerate() {
            let (mean, std) = (f64::from(self.mean[channel]), f64::from(self.std[channel]));
            let bytes = bytes.iter().skip(channel).step_by(3);
            for (pixel, &byte) in plane.iter_mut().zip(bytes) {
                *pixel = ((f64::from(byte) / 255.0 - mean) / std) as f32;
            }
        }
    }

    /// Returns the bytes `[side, side, 3]` of the centre of a picture that was resized to the
    /// shortest side.
    fn cropped(&self, picture: &RgbImage) -> Vec<u8> {
        let sides = [picture.width(), picture.height()];
        let shorter = u64::from(sides[0].min(sides[1]));
        // The longer side is rounded down. For the shorter side, the division is exact.
        let resized = sides.map(|side| {
            let side = self.shortest as u64 * u64::from(side) / shorter;
            u32::try_from(side).unwrap_or(u32::MAX)
        });
        let side = self.side as u32;
        let [x, y] = resized.map(|resized| resized.saturating_sub(side) / 2);
        resize_window(picture, resized, [x, y, side, side], Filter::Bicubic).into_raw()
    }
}

#[cfg(test)]
mod tests {
    // A failed `unwrap` fails the test.
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use safetensors::SafeTensors;

    use super::*;

    fn of(value: Value) -> Result<Preprocess, String> {
        let Value::Object(map) = value else {
            panic!("an object")
        };
        let config = Config::of("preprocessor_config.json".as_ref(), map);
        Preprocess::new(&config, 28).map_err(|error| error.to_string())
    }

    /// Every byte is Pillow's.
    #[test]
    fn resized_and_cropped_as_pillow() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vision");
        for (model, side) in [("quick-gelu", 28), ("gelu", 32)] {
            let bytes = std::fs::read(golden.join(model).join("golden.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            for name in ["square", "wide", "tall", "tiny"] {
                let picture = tensors.tensor(&format!("{name}.picture")).unwrap();
                let [height, width] = [0, 1].map(|axis| picture.shape()[axis] as u32);
                let picture = RgbImage::from_raw(width, height, picture.data().to_vec()).unwrap();
                let cropped = tensors.tensor(&format!("{name}.cropped")).unwrap();
                let found = Preprocess::clip(side).cropped(&picture);
                assert_eq!(found, cropped.data(), "{model}, {name}");
            }
        }
    }

    #[test]
    fn older_and_newer_files() {
        let default = Preprocess::clip(28);
        for value in [
            json!({}),
            json!({"size": 28, "crop_size": 28, "feature_extractor_type": "CLIPFeatureExtractor"}),
            json!({"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}),
            json!({"rescale_factor": 0.00392156862745098, "resample": 3}),
        ] {
            assert_eq!(of(value), Ok(default.clone()));
        }
        let larger = of(json!({"size": 40})).unwrap();
        assert_eq!((larger.shortest, larger.side), (40, 28));
        let grey = of(json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}));
        let grey = grey.unwrap();
        assert_eq!((grey.mean, grey.std), ([0.5; 3], [0.5; 3]));
    }

    #[test]
    fn other_processing_is_refused() {
        for (value, expected) in [
            (json!({"resample": 2}), "`resample` is 2, expected 3"),
            (
                json!({"do_center_crop": false}),
                "`do_center_crop` is false, expected true",
            ),
            (
                json!({"image_processor_type": "SiglipImageProcessor"}),
                "expected \"CLIPImage",
            ),
            (json!({"crop_size": 32}), "a height and a width of 28"),
            (
                json!({"crop_size": {"height": 28}}),
                "a height and a width of 28",
            ),
            (json!({"size": 27}), "at least 28"),
            (
                json!({"size": {"height": 28, "width": 28}}),
                "a `shortest_edge`",
            ),
            (json!({"size": "large"}), "a `shortest_edge`"),
            (json!({"rescale_factor": 1.0}), "expected 1/255"),
            (json!({"image_std": [1, 1, 0]}), "3 positive numbers"),
            (json!({"image_mean": [1, 1]}), "a list of 3 finite numbers"),
        ] {
            let error = of(value.clone()).unwrap_err();
            assert!(error.contains(expected), "{value}: {error}");
        }
    }
}
