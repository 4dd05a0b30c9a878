//! CLIP's vision model in a folder or a file.

use std::path::Path;

use sd_text::outside::printable;
use serde_json::{Map, Value, json};

use super::folder::ModelFolder;
use crate::{
    Error,
    config::{Config, MOST_CONFIG},
    weights::Weights,
};

/// The name of the vision model's folder in diffusers.
pub(crate) const FOLDER: &str = "image_encoder";

/// The name of the file with the preprocessing of pictures.
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";

/// The name of the folder with that file in diffusers.
pub(crate) const PREPROCESSING: &str = "feature_extractor";

/// The files of a vision model, opened.
pub(crate) struct VisionFiles {
    /// The `config.json`, or the one that a file without it would have.
    pub config: Config,
    pub weights: Weights,
    /// The `preprocessor_config.json`, if there is one.
    pub preprocessor: Option<Config>,
}

impl VisionFiles {
    /// Opens a model folder with an `image_encoder`, a folder with the files of a CLIP model, or a
    /// weight file.
    pub fn open(path: &Path, variant: Option<&str>) -> Result<Self, Error> {
        let inner = path.join(FOLDER);
        if inner.is_dir() {
            return Self::of_folder(&inner, variant, &path.join(PREPROCESSING));
        }
        if path.join("config.json").is_file() {
            return Self::of_folder(path, variant, path);
        }
        if path.is_file() {
            if let Some(variant) = variant {
                tracing::warn!(
                    "{}: a file has no variants, so `{}` is ignored",
                    printable(path.display()),
                    printable(variant)
                );
            }
            return Self::of_file(path);
        }
        Err(missing(path))
    }

    /// Returns whether a model folder has a vision model.
    pub fn is_in(path: &Path) -> bool {
        path.join(FOLDER).is_dir()
    }

    /// Opens a folder with the files of one model. `beside` is another folder that may have the
    /// preprocessing.
    fn of_folder(path: &Path, variant: Option<&str>, beside: &Path) -> Result<Self, Error> {
        let folder = ModelFolder::flat(path, variant)?;
        Ok(Self {
            config: folder.config(FOLDER)?,
            weights: folder.weights(FOLDER)?,
            preprocessor: preprocessor(path).or(preprocessor(beside)).transpose()?,
        })
    }

    /// Opens a weight file. Its configuration is a `config.json` beside it, or else the one of the
    /// published model with these shapes.
    fn of_file(path: &Path) -> Result<Self, Error> {
        let weights = Weights::open(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = folder.join("config.json");
        if beside.is_file() {
            return Ok(Self {
                config: Config::open(&beside, MOST_CONFIG)?,
                weights,
                preprocessor: preprocessor(folder).transpose()?,
            });
        }
        Ok(Self {
            config: Config::of(path, published(path, &weights)?),
            weights,
            preprocessor: None,
        })
    }
}

/// Reads the preprocessing in a folder.
fn preprocessor(folder: &Path) -> Option<Result<Config, Error>> {
    let path = folder.join(PREPROCESSOR);
    path.is_file().then(|| Config::open(&path, MOST_CONFIG))
}

/// The published vision models: their width and their number of layers, which identify them, their
/// number of heads, and their activation function. They are ViT-L/14 of OpenAI, for 224 or 336
/// pixels, and ViT-H/14 and ViT-bigG/14 of OpenCLIP. ComfyUI knows the same ones.
const PUBLISHED: [(usize, usize, usize, &str); 3] = [
    (1024, 24, 16, "quick_gelu"),
    (1280, 32, 16, "gelu"),
    (1664, 48, 16, "gelu"),
];

/// Returns the configuration of the published model that has these weights.
fn published(path: &Path, weights: &Weights) -> Result<Map<String, Value>, Error> {
    let size = |name: &str, axis: usize| {
        let shape = weights.shape(name)?;
        shape.get(axis).copied()
    };
    let embedding = |name: &str| format!("vision_model.embeddings.{name}.weight");
    let sizes = || {
        let patches = embedding("patch_embedding");
        let positions = size(&embedding("position_embedding"), 0)?;
        Some([
            size(&patches, 0)?,
            size(&patches, 2)?,
            positions.checked_sub(1)?.isqrt(),
            size("vision_model.encoder.layers.0.mlp.fc1.weight", 0)?,
            size("visual_projection.weight", 0)?,
        ])
    };
    let [width, patch, patches, inner, projection] = sizes().ok_or_else(|| missing(path))?;
    let name = |layer| format!("vision_model.encoder.layers.{layer}.layer_norm1.weight");
    let layers = (0..).take_while(|&layer| weights.shape(&name(layer)).is_some());
    let layers = layers.count();
    let known = PUBLISHED
        .iter()
        .find(|known| (known.0, known.1) == (width, layers));
    let Some((_, _, heads, activation)) = known else {
        return Err(Error::Missing {
            path: path.to_path_buf(),
            what: "the configuration of CLIP's vision model".into(),
            hint: format!(
                "the file has {layers} layers of width {width}, which is not ViT-L/14, ViT-H/14 or \
                 ViT-bigG/14, so it needs its `config.json` in the same folder"
            ),
        });
    };
    let config = json!({
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": activation,
        "patch_size": patch,
        "image_size": patches.saturating_mul(patch),
        "projection_dim": projection,
    });
    match config {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

fn missing(path: &Path) -> Error {
    Error::Missing {
        path: path.to_path_buf(),
        what: "CLIP's vision model".into(),
        hint:
            "expected a folder with `config.json` and `model.safetensors`, such as the folder of \
               a CLIP model or the folder `image_encoder`, or a weight file with tensors named \
               `vision_model.…` and `visual_projection.weight`"
                .into(),
    }
}

#[cfg(test)]
mod tests {
    // A failed `unwrap` fails the test.
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        models::clip_vision::ClipVisionConfig,
        weights::{Place, Type},
    };

    /// Returns weights with the shapes of a ViT, and without numbers.
    fn vit(width: usize, layers: usize, positions: usize) -> Weights {
        let mut weights = Weights::empty("vit.safetensors".as_ref());
        let mut add = |name: &str, shape: &[usize]| {
            weights.place(name, Type::F16, shape, Place::Memory([].into()));
        };
        let embeddings = "vision_model.embeddings";
        add(
            &format!("{embeddings}.patch_embedding.weight"),
            &[width, 3, 14, 14],
        );
        add(
            &format!("{embeddings}.position_embedding.weight"),
            &[positions, width],
        );
        add("visual_projection.weight", &[768, width]);
        for layer in 0..layers {
            let layer = format!("vision_model.encoder.layers.{layer}");
            add(&format!("{layer}.layer_norm1.weight"), &[width]);
            add(&format!("{layer}.mlp.fc1.weight"), &[width * 4, width]);
        }
        weights
    }

    #[test]
    fn published_models_are_recognised_by_their_shapes() {
        let path = Path::new("vit.safetensors");
        let config = |weights| {
            let config = Config::of(path, published(path, &weights)?);
            ClipVisionConfig::new(config)
        };
        for (width, layers, positions, side) in [
            (1024, 24, 257, 224),
            (1024, 24, 577, 336),
            (1280, 32, 257, 224),
        ] {
            let found = config(vit(width, layers, positions)).unwrap();
            assert_eq!(
                (found.side, found.width, found.projection),
                (side, width, 768)
            );
            assert_eq!(found.length(), positions);
        }
        let error = config(vit(768, 12, 50)).unwrap_err().to_string();
        assert!(error.contains("12 layers of width 768"), "{error}");
        let error = config(Weights::empty(path)).unwrap_err().to_string();
        assert!(error.contains("CLIP's vision model not found"), "{error}");
    }
}
