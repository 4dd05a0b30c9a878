//! Compares tiles with untiled calls, on models with random weights and on the small trained model.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use half::f16;
use ndarray::{Array4, Axis, s};
use safetensors::{Dtype, tensor::TensorView};
use sd_core::{Seamless, StopToken};
use sd_schedulers::{NoiseSource, noise::TorchRng};
use serde_json::Value;

use super::{BAND_VALUES, Tiled};
use crate::{
    RunError,
    config::{Config, MOST_CONFIG},
    engine::{Engine, Settings},
    models::vae::{self, Layers, VaeConfig},
    network::{Network, NetworkCall},
    session::Input,
    weights::Weights,
};

/// The largest difference between an exactly tiled and an untiled result, as a share of the largest
/// value. In f32, the moments of a group norm and sums in another order differ by about this much.
const ROUNDING: f32 = 1e-4;

/// An autoencoder, whose halves run untiled or in tiles.
struct Autoencoder {
    config: VaeConfig,
    layers: Layers,
    weights: Arc<Weights>,
    engine: Engine,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Half {
    Decoder,
    Encoder,
}

impl Autoencoder {
    fn open(config: &Path, weights: &Path, seamless: Seamless) -> Self {
        let mut config = VaeConfig::new(&Config::open(config, MOST_CONFIG).unwrap()).unwrap();
        config.seamless = seamless;
        Self {
            layers: config.layers().unwrap(),
            config,
            weights: Arc::new(Weights::open(weights).unwrap()),
            engine: Engine::new(Settings::default()).unwrap(),
        }
    }

    /// Opens the small trained model.
    fn emoji() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("../examples/models/emoji/vae");
        let [config, weights] = ["config.json", "diffusion_pytorch_model.safetensors"];
        Self::open(&folder.join(config), &folder.join(weights), Seamless::NONE)
    }

    /// Opens a model of `tests/golden`, whose tensors are `offset + scale · randn(seed)`, rounded
    /// to f16.
    fn golden(name: &str, seamless: Seamless) -> Self {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let recipe = fs::read_to_string(golden.join(name).join("weights.json")).unwrap();
        let recipe: Value = serde_json::from_str(&recipe).unwrap();
        let tensor = |tensor: &Value| {
            let shape: Vec<usize> = serde_json::from_value(tensor["shape"].clone()).unwrap();
            let number = |key: &str| tensor[key].as_f64().unwrap() as f32;
            let (scale, offset) = (number("scale"), number("offset"));
            let mut values = vec![0.0; shape.iter().product()];
            TorchRng::new(tensor["seed"].as_u64().unwrap()).fill(&mut values);
            let values = values.iter().map(|v| f16::from_f32(offset + scale * v));
            let bytes: Vec<u8> = values.flat_map(f16::to_le_bytes).collect();
            (tensor["name"].as_str().unwrap().to_owned(), shape, bytes)
        };
        let tensors: Vec<_> = recipe["vae"]
            .as_array()
            .unwrap()
            .iter()
            .map(tensor)
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap();
            (name, view)
        });
        let folder = tempfile::tempdir().unwrap();
        let file: PathBuf = folder.path().join("vae.safetensors");
        safetensors::serialize_to_file(views, None, &file).unwrap();
        // The file must exist as long as the weights.
        let _kept = folder.keep();
        Self::open(&golden.join(name).join("vae.json"), &file, seamless)
    }

    fn untiled(&self, half: Half, x: &Array4<f32>) -> Array4<f32> {
        let (config, weights) = (self.config.clone(), self.weights.clone());
        let network = Network::new("VAE", &self.engine, true, move |dialect| match half {
            Half::Decoder => vae::decoder(&config, &weights, dialect),
            Half::Encoder => vae::encoder(&config, &weights, dialect),
        });
        let name = match half {
            Half::Decoder => "latents",
            Half::Encoder => "image",
        };
        let inputs = [(name, Input::F32(x.shape(), x.as_slice().unwrap()))];
        let call = NetworkCall::new(&inputs);
        let found = network.run(call, &StopToken::new(), |shape, values| {
            let shape: Vec<_> = shape.iter().map(|&side| side as usize).collect();
            Array4::from_shape_vec([shape[0], shape[1], shape[2], shape[3]], values.to_vec())
        });
        found.unwrap().unwrap()
    }

    fn tiled(
        &self,
        half: Half,
        x: &Array4<f32>,
        fast: bool,
        band_values: usize,
        stop: &StopToken,
    ) -> Result<Array4<f32>, RunError> {
        let tiled = Tiled {
            name: "VAE",
            layers: match half {
                Half::Decoder => &self.layers.decoder,
                Half::Encoder => &self.layers.encoder,
            },
            norm: self.layers.norm,
            weights: &self.weights,
            engine: &self.engine,
            seamless: self.config.seamless,
            fast,
            band_values,
            stop,
        };
        tiled.run(x.view())
    }

    /// Returns random latents or a random picture for latents of this height and width.
    fn input(&self, half: Half, [batch, height, width]: [usize; 3]) -> Array4<f32> {
        let shape = match half {
            Half::Decoder => (batch, self.config.latent_channels, height, width),
            Half::Encoder => {
                let factor = self.config.factor();
                (batch, 3, height * factor, width * factor)
            }
        };
        let mut x = Array4::zeros(shape);
        TorchRng::new(7).fill(x.as_slice_mut().unwrap());
        x
    }
}

/// Returns the largest difference, as a share of the largest value.
fn difference(found: &Array4<f32>, expected: &Array4<f32>) -> f32 {
    assert_eq!(found.dim(), expected.dim());
    let largest = |array: &Array4<f32>| array.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
    largest(&(found - expected)) / largest(expected)
}

/// Checks exact tiles of both halves, for bands of several sizes. Returns the largest difference.
fn check_exact(model: &Autoencoder, name: &str, sizes: &[[usize; 3]]) {
    for half in [Half::Decoder, Half::Encoder] {
        for &size in sizes {
            let x = model.input(half, size);
            let expected = model.untiled(half, &x);
            // Bands of one unit, of a few units, and of the whole picture.
            for band_values in [0, 3000, 20_000, BAND_VALUES] {
                let found = model.tiled(half, &x, false, band_values, &StopToken::new());
                let error = difference(&found.unwrap(), &expected);
                println!("{name} {half:?} {size:?} {band_values}: {error:.1e}");
                assert!(error < ROUNDING, "{name} {half:?} {size:?}: {error:.1e}");
            }
        }
    }
}

#[test]
fn exact_tiles_equal_an_untiled_call() {
    let models = [
        ("two-sample", [5, 7]),
        ("four", [9, 5]),
        ("three-v", [8, 11]),
        ("three-hole", [6, 3]),
        ("families/asymmetric", [5, 6]),
    ];
    for (name, [height, width]) in models {
        let model = Autoencoder::golden(name, Seamless::NONE);
        check_exact(&model, name, &[[1, height, width], [2, 1, 2]]);
    }
    let sizes = [[1, 12, 12], [1, 17, 9], [1, 3, 20], [1, 1, 1]];
    check_exact(&Autoencoder::emoji(), "emoji", &sizes);
}

#[test]
fn exact_tiles_of_seamless_networks() {
    for seamless in [Seamless::X, Seamless::Y, Seamless::BOTH] {
        let model = Autoencoder::golden("four", seamless);
        check_exact(&model, &format!("{seamless:?}"), &[[1, 9, 5], [1, 1, 2]]);
    }
}

/// Fast tiles differ from an untiled call by their moments alone, not by where a tile ends.
#[test]
fn fast_tiles_have_no_seams() {
    for seamless in [Seamless::NONE, Seamless::BOTH] {
        let model = Autoencoder::golden("four", seamless);
        for half in [Half::Decoder, Half::Encoder] {
            let x = model.input(half, [1, 150, 2]);
            let tiled = |band_values| {
                let found = model.tiled(half, &x, true, band_values, &StopToken::new());
                found.unwrap()
            };
            let whole = tiled(BAND_VALUES);
            let error = difference(&tiled(20_000), &whole);
            println!("{half:?} {seamless:?}: {error:.1e}");
            assert!(error < ROUNDING, "{half:?}: {error:.1e}");
            // The moments differ from the moments of the whole picture.
            assert!(difference(&whole, &model.untiled(half, &x)) > 10.0 * ROUNDING);
        }
    }
}

/// A picture that is not larger than the shrunken one has the moments of the picture itself.
#[test]
fn fast_tiles_of_a_small_picture_are_exact() {
    let model = Autoencoder::golden("four", Seamless::NONE);
    let x = model.input(Half::Decoder, [1, 9, 5]);
    let [fast, exact] = [true, false].map(|fast| {
        let found = model.tiled(Half::Decoder, &x, fast, 3000, &StopToken::new());
        found.unwrap()
    });
    assert_eq!(fast, exact);
}

#[test]
fn a_batch_is_tiled_item_by_item() {
    let model = Autoencoder::golden("four", Seamless::NONE);
    let x = model.input(Half::Decoder, [2, 4, 3]);
    let tiled = |x: &Array4<f32>| {
        let found = model.tiled(Half::Decoder, x, false, 3000, &StopToken::new());
        found.unwrap()
    };
    let both = tiled(&x);
    for i in 0..2 {
        let alone = x.slice(s![i..=i, .., .., ..]).to_owned();
        assert_eq!(
            tiled(&alone).index_axis(Axis(0), 0),
            both.index_axis(Axis(0), i)
        );
    }
}

#[test]
fn a_stopped_token_ends_the_sweeps() {
    let model = Autoencoder::golden("four", Seamless::NONE);
    let x = model.input(Half::Decoder, [1, 4, 3]);
    let stop = StopToken::new();
    stop.stop();
    let found = model.tiled(Half::Decoder, &x, false, 3000, &stop);
    assert!(matches!(found, Err(RunError::Stopped)));
}
