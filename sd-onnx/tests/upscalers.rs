//! Compares networks that enlarge pictures with spandrel 0.4.2. The values are in
//! `golden/upscalers`, made by `golden/upscalers.py`.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path, sync::Arc};

use common::{
    Golden, Tensor, Tensors, emoji, golden, golden_json, relative_error, replayed, write_tensors,
};
use ndarray::{Array4, s};
use safetensors::Dtype;
use sd_onnx::{
    BuildError, Error, Hires, PictureUpscaler, Request, StopToken, Upscaler,
    image::{Rgb, RgbImage},
    upscale::{Enlarger, Tiling},
};
use sd_text::outside::chain;
use serde_json::Value;

/// The largest error of a network. f32 sums are computed in another order.
const LIMIT: f64 = 1e-5;

/// Returns the names and scales of all networks.
fn networks() -> Vec<(String, usize)> {
    let cases = golden_json("upscalers", "cases.json");
    let networks = cases["networks"].as_array().unwrap().iter();
    let all: Vec<_> = networks
        .map(|case| {
            let name = case["name"].as_str().unwrap().to_owned();
            (name, case["scale"].as_u64().unwrap() as usize)
        })
        .collect();
    assert_eq!(all.len(), 19);
    all
}

fn tensors(recipes: &Value, name: &str) -> Tensors {
    let mut tensors = replayed(&recipes[name]);
    common::add_windows(name, &mut tensors);
    tensors
}

fn recipes() -> Value {
    golden_json("upscalers", "weights.json")
}

fn open(path: &Path) -> Arc<dyn PictureUpscaler> {
    let network = sd_onnx::builder().load_upscaler(path);
    network.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// Writes tensors to a file, and loads the network.
fn network(tensors: &Tensors) -> Arc<dyn PictureUpscaler> {
    let folder = tempfile::tempdir().unwrap();
    // ONNX Runtime reads the file when the network first runs.
    let path = folder.keep().join("network.safetensors");
    write_tensors(&path, tensors, Dtype::F16);
    open(&path)
}

/// Returns the message about a file that cannot be loaded.
fn refused(tensors: &Tensors) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.safetensors");
    write_tensors(&path, tensors, Dtype::F32);
    match sd_onnx::builder().load_upscaler(&path) {
        Ok(_) => panic!("the file was accepted"),
        Err(error) => {
            let text = chain(&error).to_string();
            assert!(text.contains("network.safetensors: "), "{text}");
            text
        }
    }
}

fn picture(golden: &Golden, name: &str) -> Array4<f32> {
    let (shape, values) = golden.tensor(&format!("{name}.picture"));
    let shape: [usize; 4] = shape.try_into().unwrap();
    Array4::from_shape_vec(shape, values).unwrap()
}

/// Compares a network's result with the golden one.
fn check(network: &dyn PictureUpscaler, golden: &Golden, name: &str) {
    let picture = picture(golden, name);
    let found = network.upscale(picture.view(), &StopToken::new());
    let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
    let (shape, expected) = golden.tensor(&format!("{name}.enlarged"));
    assert_eq!(found.shape(), shape, "{name}");
    let error = relative_error(&found, &expected);
    println!("{name}: {error:.1e}");
    assert!(
        error <= LIMIT,
        "{name}: {error:.2e}, expected at most {LIMIT:.0e}"
    );
}

#[test]
fn networks_as_in_spandrel() {
    let (golden, recipes) = (Golden::of_shape("upscalers"), recipes());
    for (name, scale) in networks() {
        let network = network(&tensors(&recipes, &name));
        assert_eq!(network.scale(), scale, "{name}");
        assert!(
            network.report().is_empty(),
            "{name} is loaded at its first call"
        );
        check(&*network, &golden, &name);
        let report = network.report();
        assert_eq!(report.len(), 1, "{name}");
        // Pictures of other sizes go through the same session.
        let other = Array4::from_elem((1, 3, 5, 23), 0.5);
        let large = network.upscale(other.view(), &StopToken::new()).unwrap();
        assert_eq!(large.dim(), (1, 3, 5 * scale, 23 * scale), "{name}");
        assert_eq!(network.report().len(), 1, "{name}");
    }
}

/// Returns tensors under names that `rename` returns.
fn renamed(tensors: Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    let tensors = tensors.into_iter();
    tensors
        .map(|(name, tensor)| (rename(&name), tensor))
        .collect()
}

/// Returns the name in Real-ESRGAN of a tensor of the golden network `rrdb`, which has two blocks
/// and enlarges four times.
fn real_esrgan(name: &str) -> String {
    let layers = [
        ("model.0.", "conv_first."),
        ("model.1.sub.2.", "conv_body."),
        ("model.1.sub.", "body."),
        ("model.3.", "conv_up1."),
        ("model.6.", "conv_up2."),
        ("model.8.", "conv_hr."),
        ("model.10.", "conv_last."),
    ];
    let (old, new) = layers
        .iter()
        .find(|(old, _)| name.starts_with(old))
        .unwrap();
    let name = name.replacen(old, new, 1).replace("RDB", "rdb");
    name.replace(".0.weight", ".weight")
        .replace(".0.bias", ".bias")
}

fn bsrgan(name: &str) -> String {
    let parts = [
        ("conv_body", "trunk_conv"),
        ("body.", "RRDB_trunk."),
        ("rdb", "RDB"),
        ("conv_up", "upconv"),
        ("conv_hr", "HRconv"),
    ];
    parts
        .iter()
        .fold(real_esrgan(name), |name, (today, theirs)| {
            name.replace(today, theirs)
        })
}

#[test]
fn names_of_all_versions() {
    let (golden, recipes) = (Golden::of_shape("upscalers"), recipes());
    let rrdb = || tensors(&recipes, "rrdb");
    check(&*network(&renamed(rrdb(), real_esrgan)), &golden, "rrdb");
    check(&*network(&renamed(rrdb(), bsrgan)), &golden, "rrdb");
    for wrapper in [
        "module.",
        "netG.",
        "params.",
        "params_ema.",
        "params-ema.",
        "state_dict.",
        "model_state_dict.module.",
        "model.",
        "net.netG.",
    ] {
        let wrapped = renamed(rrdb(), |name| format!("{wrapper}{name}"));
        check(&*network(&wrapped), &golden, "rrdb");
    }
    // The averaged weights are preferred. The others are zeros here.
    let mut both = renamed(rrdb(), |name| format!("params_ema.{name}"));
    for (name, tensor) in rrdb() {
        let values = vec![0.0; tensor.values.len()];
        let shape = tensor.shape;
        both.insert(format!("params.{name}"), Tensor { shape, values });
    }
    check(&*network(&both), &golden, "rrdb");
    let mut shuffled = tensors(&recipes, "swinir-light");
    // Newer files contain the indices, which are computed here.
    for block in ["layers.0", "layers.1"] {
        let name = format!("{block}.residual_group.blocks.1.attn_mask");
        let mask = Tensor {
            shape: vec![4, 64, 64],
            values: vec![7.0; 4 * 64 * 64],
        };
        shuffled.insert(name, mask);
        let name = format!("{block}.residual_group.blocks.0.attn.relative_position_index");
        let index = Tensor {
            shape: vec![64, 64],
            values: vec![7.0; 64 * 64],
        };
        shuffled.insert(name, index);
    }
    check(&*network(&shuffled), &golden, "swinir-light");
}

/// torch wrote the file: a dictionary with two dictionaries, of which one has the averaged weights.
#[test]
fn a_pickle_of_a_training_program() {
    let golden_values = Golden::of_shape("upscalers");
    let network = open(&golden("upscalers").join("compact-x2.pth"));
    assert_eq!(network.scale(), 2);
    check(&*network, &golden_values, "compact-x2");
}

/// Replaces the tensors of a DAT that tell the size of its first windows.
fn dat_window(tensors: &mut Tensors, rows: usize, length: usize) {
    let attention = "layers.0.blocks.0.attn.attns.0";
    for (name, shape) in [
        ("rpe_biases", vec![rows, 2]),
        ("relative_position_index", vec![length, length]),
    ] {
        let values = vec![0.0; shape.iter().product()];
        tensors.insert(format!("{attention}.{name}"), Tensor { shape, values });
    }
}

#[test]
fn files_that_are_no_upscalers_are_named() {
    let recipes = recipes();
    let with = |name: &str, change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors(&recipes, name);
        change(&mut tensors);
        refused(&tensors)
    };
    let of = |shape: &[usize]| Tensor {
        shape: shape.to_vec(),
        values: vec![0.0; shape.iter().product()],
    };
    let one = |name: &str, shape: &[usize]| Tensors::from([(name.to_owned(), of(shape))]);
    for (text, part) in [
        (
            with("rrdb", &|it| {
                drop(it.remove("model.1.sub.0.RDB2.conv3.0.bias"))
            }),
            "tensor `body.0.rdb2.conv3.bias` is missing, expected with shape [32]",
        ),
        (
            with("rrdb", &|it| {
                drop(it.insert("extra.weight".into(), of(&[1])))
            }),
            "the RRDBNet has no place for 1 of its tensors: extra.weight",
        ),
        (
            with("rrdb", &|it| {
                drop(it.insert("model.8.bias".into(), of(&[9])))
            }),
            "tensor `model.8.bias` has shape [9], expected [8]",
        ),
        (
            with("rrdb", &|it| {
                drop(it.insert("model.0.weight".into(), of(&[8, 4, 3, 3])))
            }),
            "the network takes 4 channels, expected 3, 12, 48 or 192: pictures in color (under \
             Real-ESRGAN's names)",
        ),
        (
            with("rrdb", &|it| {
                drop(it.insert("model.10.weight".into(), of(&[1, 8, 3, 3])))
            }),
            "the network returns 1 channels, expected 3",
        ),
        (
            with("rrdb", &|it| {
                drop(it.insert("model.12.weight".into(), of(&[8, 8, 3, 3])))
            }),
            "the last layer is `model.12`, expected a number of 4, 7, 10 and so on",
        ),
        (
            with("rrdb", &|it| {
                drop(it.insert("model.99999999999.weight".into(), of(&[8, 8, 3, 3])));
            }),
            "a tensor begins with `model.99999999999`, expected less than 4096",
        ),
        (
            with("compact", &|it| {
                drop(it.insert("body.8.weight".into(), of(&[47, 12, 3, 3])))
            }),
            "a pixel shuffle has 47 channels, expected 3 times a square number",
        ),
        (
            with("compact", &|it| {
                drop(it.insert("body.9.weight".into(), of(&[3])))
            }),
            "the last layer is `body.9`, expected an even number of at least 2",
        ),
        (
            with("swinir-light", &|it| {
                let table = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table";
                drop(it.insert(table.into(), of(&[224, 2])));
            }),
            "has 224 rows, expected the square of an odd number",
        ),
        (
            with("swinir-light", &|it| {
                let table = "layers.1.residual_group.blocks.0.attn.relative_position_bias_table";
                drop(it.insert(table.into(), of(&[225, 5])));
            }),
            "is missing, or its columns do not divide 12",
        ),
        (
            with("swinir-light", &|it| {
                let name = "layers.0.residual_group.blocks.0.conv_block.cab.0.weight";
                drop(it.insert(name.into(), of(&[1])));
            }),
            "the network HAT is not supported, expected ESRGAN, Real-ESRGAN,",
        ),
        (
            with("dat", &|it| {
                let name = "layers.0.blocks.0.attn.attns.0.rpe_biases";
                it.get_mut(name).unwrap().values.reverse();
            }),
            "has other values than in windows that are wider than high",
        ),
        (
            with("dat", &|it| {
                let name = "layers.0.blocks.0.attn.attns.0.relative_position_index";
                drop(it.insert(name.into(), of(&[34, 34])));
            }),
            "rows, expected those of windows of up to 32 × 32",
        ),
        (
            with("dat", &|it| {
                dat_window(it, 5 * 9, 3 * 5);
            }),
            "the windows have the sides 3 and 5, expected one to be a multiple of the other",
        ),
        (
            with("dat", &|it| dat_window(it, 1, 0)),
            "have 1 and 0 rows, expected those of windows",
        ),
        (
            with("swinir-light", &|it| {
                let table = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table";
                drop(it.insert(table.into(), of(&[65 * 65, 2])));
            }),
            "has 4225 rows, expected the square of an odd number up to 63",
        ),
        (
            with("swinir-light", &|it| {
                let name = "layers.0.residual_group.blocks.0.attn.aligned_relative_position_index";
                drop(it.insert(name.into(), of(&[1])));
            }),
            "the network SRFormer is not supported",
        ),
        (
            with("swinir-light", &|it| {
                let table = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table";
                drop(it.insert(table.into(), of(&[224, 2])));
                *it = renamed(std::mem::take(it), |name| format!("params.{name}"));
            }),
            "expected the square of an odd number up to 63; all names begin with `params.`",
        ),
        (
            with("dat", &|it| {
                drop(it.insert("layers.0.blocks.1.attn.temperature".into(), of(&[5, 1, 1])));
            }),
            "`layers.0` has 5 heads, expected an even divisor of 192",
        ),
        (
            with("dat", &|it| {
                drop(it.remove("layers.1.blocks.1.attn.dwconv.1.running_var"));
            }),
            "tensor `layers.1.blocks.1.attn.dwconv.1.running_var` is missing",
        ),
        (
            refused(&one(
                "model.diffusion_model.input_blocks.0.0.weight",
                &[8, 4, 3, 3],
            )),
            "the file is a Stable Diffusion model, expected a network that enlarges pictures",
        ),
        (
            refused(&one("lora_unet_a.lora_down.weight", &[4, 4])),
            "the file is a LoRA",
        ),
        (
            refused(&one("weight", &[4, 4])),
            "the file is no network that is known, expected a network that enlarges pictures; its \
             tensors: weight",
        ),
        (refused(&Tensors::new()), "it has no tensors"),
    ] {
        assert!(text.contains(part), "{text:?} has no {part:?}");
    }
    let missing = sd_onnx::builder().load_upscaler("no-such-file.pth");
    let Err(Error::Io { path, .. }) = missing else {
        panic!("another result");
    };
    assert_eq!(path, Path::new("no-such-file.pth"));
}

#[test]
fn pictures_of_another_shape_are_refused() {
    let network = network(&tensors(&recipes(), "compact"));
    for shape in [(1, 4, 8, 8), (2, 3, 8, 8), (1, 3, 0, 8), (1, 3, 8, 0)] {
        let picture = Array4::zeros(shape);
        let error = network
            .upscale(picture.view(), &StopToken::new())
            .unwrap_err();
        assert!(
            error.to_string().contains("expected [1, 3, h, w]"),
            "{error}"
        );
    }
    let stop = StopToken::new();
    stop.stop();
    let picture = Array4::zeros((1, 3, 8, 8));
    let error = network.upscale(picture.view(), &stop).unwrap_err();
    assert_eq!(error.to_string(), "stopped");
}

/// Far from its edge, a tile has the same pixels as the whole picture.
#[test]
fn tiles_agree_with_the_whole_picture() {
    let network = network(&tensors(&recipes(), "compact"));
    let picture = RgbImage::from_fn(80, 40, |x, y| {
        Rgb([3 * x as u8, 5 * y as u8, (x * y) as u8])
    });
    let enlarged = |tiling| {
        let enlarger = Enlarger::new(&*network).tiling(tiling);
        let large = enlarger.enlarge(&picture, 4.0, &StopToken::new(), |_| {});
        large.unwrap()
    };
    let whole = enlarged(Tiling::NONE);
    assert_eq!(whole.dimensions(), (320, 160));
    assert_eq!(enlarged(Tiling::default()), whole);
    let tiles = enlarged(Tiling {
        tile: 40,
        overlap: 16,
    });
    let difference = |x: u32| {
        let column = (0..160).map(|y| {
            let pair = tiles
                .get_pixel(x, y)
                .0
                .into_iter()
                .zip(whole.get_pixel(x, y).0);
            pair.map(|(a, b)| a.abs_diff(b)).max().unwrap()
        });
        column.max().unwrap()
    };
    // The tiles begin at 0, 20 and 40, and the network sees 6 pixels around each.
    let inside = (0..20 * 4).chain(27 * 4..34 * 4);
    assert_eq!(inside.map(difference).max(), Some(0));
    assert!((0..320).map(difference).max() > Some(0));
}

#[test]
fn a_pipeline_enlarges_with_the_network_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("4x-small.safetensors");
    write_tensors(&path, &tensors(&recipes(), "compact"), Dtype::F32);
    let builder = sd_onnx::builder()
        .upscaler(&path)
        .upscaler_tiling(Tiling::NONE);
    let pipeline = builder.clone().load(emoji()).unwrap();
    let names: Vec<_> = pipeline
        .upscalers()
        .map(|(name, it)| (name, it.tiling()))
        .collect();
    assert_eq!(names, [("4x-small", Tiling::NONE)]);
    let upscaler = Upscaler::Network("4x-small".to_owned());
    let hires = |hires: Hires| {
        Request::new("a fox")
            .steps(2)
            .seed(1)
            .hires(hires.strength(0.5))
    };
    let picture = pipeline
        .generate(&hires(Hires::scale(1.5).upscaler(upscaler)))
        .unwrap();
    assert_eq!(picture.image().dimensions(), (144, 144));
    let latent = pipeline.generate(&hires(Hires::scale(1.5))).unwrap();
    assert!(picture.image() != latent.image());
    let infotext = picture.pictures[0].infotext();
    assert_eq!(infotext.get("Hires upscaler"), Some("4x-small"));
    let again = pipeline.reproduction(&infotext);
    assert_eq!(again.differences, [""; 0]);
    assert_eq!(
        pipeline.generate(&again.request).unwrap().image(),
        picture.image()
    );
    assert!(
        pipeline
            .device_report()
            .iter()
            .any(|it| it.to_string().contains("upscaler"))
    );

    let Err(Error::Pipeline { source, .. }) = builder.upscaler(&path).load(emoji()) else {
        panic!("two files of the same name were accepted");
    };
    assert!(matches!(source, BuildError::Parts(_)), "{source}");
    let broken = folder.path().join("broken.pth");
    fs::write(&broken, b"PK\x03\x04").unwrap();
    let error = sd_onnx::builder().upscaler(&broken).load(emoji());
    assert!(matches!(error, Err(Error::Pickle(_))));
}

/// What is not finite does not become a picture.
#[test]
fn weights_that_overflow_are_an_error() {
    let mut tensors = tensors(&recipes(), "compact-x2");
    tensors
        .get_mut("body.0.bias")
        .unwrap()
        .values
        .fill(f32::INFINITY);
    let network = network(&tensors);
    let picture = RgbImage::new(16, 16);
    let error = Enlarger::new(&*network).enlarge(&picture, 2.0, &StopToken::new(), |_| {});
    let error = chain(&error.unwrap_err()).to_string();
    assert!(error.contains("enlarging the picture failed"), "{error}");
    assert!(error.contains("NaN or infinity"), "{error}");
    let large = network.upscale(Array4::zeros((1, 3, 8, 8)).view(), &StopToken::new());
    assert!(
        large
            .unwrap()
            .slice(s![.., .., 0, 0])
            .iter()
            .any(|it| !it.is_finite())
    );
}
