//! Compares calls that reuse deep features with DeepCache 0.1.1, and calls that merge tokens with
//! tomesd 0.1.3, on random-weight models.
//!
//! `tests/golden/shortcuts.py` wrote the values. The README beside it describes them.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/controls.rs"]
mod controls;
#[path = "common/exports.rs"]
mod exports;

use std::{path::Path, sync::Arc};

use common::{Golden, Model, emoji, golden, relative_error, write_family};
use controls::Controls;
use exports::write_export;
use ndarray::{Array2, Array3, Array4, s};
use sd_onnx::{
    Builder, Call, ControlCall, ControlInput, DeepCall, DeepFeatures, Denoiser, LoraCall,
    LoraLibrary, Pipeline, Seamless, StopToken, text::BoxError,
};
use sd_text::outside::chain;
use serde_json::Value;

/// The largest error of a call. f32 sums are computed in another order: torch's own results differ
/// from double precision by up to 8e-6.
const ONE_CALL: f64 = 1e-5;

/// The largest difference between a LoRA that is an input and a LoRA that is merged. Networks with
/// random weights amplify rounding.
const LORA: f64 = 3e-5;

fn within(limit: f64, what: &str, error: f64) {
    println!("{what}: {error:.1e}");
    assert!(
        error <= limit,
        "{what}: relative L2 error {error:.2e}, expected at most {limit:.0e}"
    );
}

/// The inputs of several calls that differ in their latents and timesteps.
struct Inputs {
    latents: Vec<Array4<f32>>,
    timesteps: Vec<f32>,
    context: Array3<f32>,
    pooled: Option<Array2<f32>>,
    sizes: Option<Array2<f32>>,
    stop: StopToken,
}

impl Inputs {
    /// Reads the inputs of a golden case.
    fn of_case(values: &Golden, case: &Value) -> Self {
        let find = |key: &str| values.find(&format!("{}.{key}", case["name"].as_str().unwrap()));
        let latents = |index: usize| {
            let (dims, values) = find(&format!("sample.{index}")).unwrap();
            Array4::from_shape_vec([dims[0], dims[1], dims[2], dims[3]], values).unwrap()
        };
        let row = |key: &str| {
            let (dims, values) = find(key)?;
            Some(Array2::from_shape_vec([dims[0], dims[1]], values).unwrap())
        };
        let timesteps = case["timesteps"].as_array().unwrap().iter();
        let timesteps: Vec<_> = timesteps.map(|t| t.as_f64().unwrap() as f32).collect();
        let (dims, context) = find("context").unwrap();
        Self {
            latents: (0..timesteps.len()).map(latents).collect(),
            timesteps,
            context: Array3::from_shape_vec([dims[0], dims[1], dims[2]], context).unwrap(),
            pooled: row("pooled"),
            sizes: row("time_ids"),
            stop: StopToken::new(),
        }
    }

    /// Makes inputs for two calls of a denoiser on one picture.
    fn waves(denoiser: &dyn Denoiser, [height, width]: [usize; 2]) -> Self {
        let inputs = denoiser.inputs();
        let wave = |i: usize| (i as f32 * 0.37).sin();
        let latents = |seed: usize| {
            Array4::from_shape_fn((1, inputs.channels, height, width), |(_, c, y, x)| {
                wave(seed + c * 4099 + y * 67 + x * 3)
            })
        };
        Self {
            latents: vec![latents(0), latents(5)],
            timesteps: vec![500.0, 450.0],
            context: Array3::from_shape_fn((1, 77, inputs.context), |(_, i, j)| wave(i * 7 + j)),
            pooled: inputs.pooled.map(|width| Array2::ones((1, width))),
            sizes: inputs.sizes.map(|ids| Array2::ones((1, ids.count()))),
            stop: StopToken::new(),
        }
    }

    fn call(&self, index: usize) -> Call<'_> {
        let latents = self.latents[index].view();
        let mut call = Call::new(
            latents,
            self.timesteps[index],
            self.context.view(),
            &self.stop,
        );
        call.pooled = self.pooled.as_ref().map(|pooled| pooled.view());
        call.sizes = self.sizes.as_ref().map(|sizes| sizes.view());
        call
    }
}

fn predict(denoiser: &dyn Denoiser, call: Call<'_>) -> Result<Array4<f32>, BoxError> {
    let mut output = Array4::zeros(call.latents.dim());
    denoiser.predict(&call, output.view_mut())?;
    Ok(output)
}

fn keeping(features: &DeepFeatures, branch: usize) -> DeepCall<'_> {
    DeepCall {
        features,
        reuse: false,
        branch,
    }
}

fn reusing(features: &DeepFeatures, branch: usize) -> DeepCall<'_> {
    DeepCall {
        reuse: true,
        ..keeping(features, branch)
    }
}

fn write(model: &str, folder: &Path) {
    match model.strip_prefix("families/") {
        Some(family) => write_family(family, folder),
        None => Model::of_shape(model).write(folder),
    }
}

/// Calls `test` with the denoiser, the inputs and the expected results of each golden case.
fn with_each_case(test: impl Fn(&dyn Denoiser, &Inputs, &Value, &dyn Fn(&str) -> Vec<f32>)) {
    let values = Golden::of_shape("shortcuts");
    let cases = common::golden_json("shortcuts", "cases.json");
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        write(case["model"].as_str().unwrap(), folder.path());
        let denoiser = sd_onnx::builder().load_denoiser(folder.path()).unwrap();
        let name = case["name"].as_str().unwrap();
        let expected = |key: &str| values.tensor(&format!("{name}.{key}")).1;
        test(&*denoiser, &Inputs::of_case(&values, case), case, &expected);
    }
}

#[test]
fn deep_features_are_reused_as_in_deepcache() {
    with_each_case(|denoiser, inputs, case, expected| {
        let name = case["name"].as_str().unwrap();
        let branches = case["branches"].as_array().unwrap();
        let branches = branches.iter().map(|it| it.as_u64().unwrap() as usize);
        // The last one of the file is the last one that there is.
        assert_eq!(
            branches.clone().max(),
            Some(denoiser.inputs().deep_branches - 1)
        );
        for branch in branches {
            let features = DeepFeatures::default();
            let call = inputs.call(0).deep(keeping(&features, branch));
            let full = predict(denoiser, call).unwrap();
            let error = relative_error(&full, &expected("full"));
            within(ONE_CALL, &format!("{name} full"), error);
            for index in 1..inputs.latents.len() {
                let call = inputs.call(index).deep(reusing(&features, branch));
                let reused = predict(denoiser, call).unwrap();
                let error = relative_error(&reused, &expected(&format!("deep.{branch}.{index}")));
                within(
                    ONE_CALL,
                    &format!("{name} branch {branch}, call {index}"),
                    error,
                );
            }
        }
    });
}

#[test]
fn tokens_are_merged_as_in_tomesd() {
    with_each_case(|denoiser, inputs, case, expected| {
        let name = case["name"].as_str().unwrap();
        for ratio in case["ratios"].as_array().unwrap() {
            let call = inputs.call(0).merge_tokens(ratio.as_f64().unwrap() as f32);
            let merged = predict(denoiser, call).unwrap();
            let error = relative_error(&merged, &expected(&format!("merged.{ratio}")));
            within(ONE_CALL, &format!("{name} merged {ratio}"), error);
        }
        let branch = case["both"]["branch"].as_u64().unwrap() as usize;
        let ratio = case["both"]["ratio"].as_f64().unwrap() as f32;
        let features = DeepFeatures::default();
        for index in 0..inputs.latents.len() {
            let deep = match index {
                0 => keeping(&features, branch),
                _ => reusing(&features, branch),
            };
            let call = inputs.call(index).merge_tokens(ratio).deep(deep);
            let found = predict(denoiser, call).unwrap();
            let error = relative_error(&found, &expected(&format!("both.{index}")));
            within(ONE_CALL, &format!("{name} both, call {index}"), error);
        }
        // Afterwards, a call without shortcuts is as before.
        let full = predict(denoiser, inputs.call(0)).unwrap();
        within(
            ONE_CALL,
            &format!("{name} full"),
            relative_error(&full, &expected("full")),
        );
    });
}

/// Checks, for some branches, that a call that reuses the features of the same call returns the
/// same prediction, and that a call with other latents does not. `acting` are control networks.
fn reuse_is_exact(denoiser: &dyn Denoiser, inputs: &Inputs, acting: &[ControlCall<'_>]) {
    let plain = predict(denoiser, inputs.call(0).controls(acting)).unwrap();
    let other = predict(denoiser, inputs.call(1).controls(acting)).unwrap();
    for branch in (0..denoiser.inputs().deep_branches).step_by(2) {
        let features = DeepFeatures::default();
        let call =
            |index: usize, deep| predict(denoiser, inputs.call(index).controls(acting).deep(deep));
        let full = call(0, keeping(&features, branch)).unwrap();
        assert_eq!(full, plain, "branch {branch} changes a whole call");
        let same = call(0, reusing(&features, branch)).unwrap();
        // The kernels of both graphs may add in another order.
        let error = relative_error(&same, full.as_slice().unwrap());
        within(1e-6, &format!("branch {branch}"), error);
        let next = call(1, reusing(&features, branch)).unwrap();
        let error = relative_error(&next, other.as_slice().unwrap());
        assert!(error > 1e-4, "branch {branch} reuses nothing: {error:.1e}");
    }
}

#[test]
fn reusing_the_features_of_the_same_call_changes_nothing() {
    for model in ["four", "three-v", "three-hole", "two-sample", "four-last"] {
        println!("{model}");
        let folder = tempfile::tempdir().unwrap();
        write(model, folder.path());
        let denoiser = sd_onnx::builder().load_denoiser(folder.path()).unwrap();
        reuse_is_exact(&*denoiser, &Inputs::waves(&*denoiser, [11, 13]), &[]);
    }
}

#[test]
fn seamless_pictures_reuse_features() {
    let folder = tempfile::tempdir().unwrap();
    write("four", folder.path());
    let seamless = sd_onnx::builder().seamless(Seamless::BOTH);
    let denoiser = seamless.load_denoiser(folder.path()).unwrap();
    let inputs = Inputs::waves(&*denoiser, [16, 16]);
    reuse_is_exact(&*denoiser, &inputs, &[]);
}

/// Returns the UNet of a library with the LoRA `sd1-locon`, whose factors are inputs.
fn called(library: &Pipeline) -> Arc<dyn Denoiser> {
    let mut loras = library.loras().iter();
    let index = loras.position(|lora| lora.name == "sd1-locon" && lora.live);
    let call = LoraCall::new(index.unwrap(), 0.8, vec![0.8]);
    let library: &dyn LoraLibrary = library.lora_library().unwrap();
    library.networks(&[call]).unwrap().denoiser
}

#[test]
fn loras_reach_the_outer_layers() {
    let folder = tempfile::tempdir().unwrap();
    write("four", folder.path());
    let lora = golden("lora").join("sd1-locon.safetensors");
    let merged = sd_onnx::builder().lora(lora, 0.8);
    let merged = merged.load_denoiser(folder.path()).unwrap();
    let library = sd_onnx::builder().loras(golden("lora"));
    let library = library.load(folder.path()).unwrap();
    let live = called(&library);
    let plain = sd_onnx::builder().load_denoiser(folder.path()).unwrap();
    let inputs = Inputs::waves(&*plain, [8, 8]);
    reuse_is_exact(&*merged, &inputs, &[]);
    reuse_is_exact(&*live, &inputs, &[]);

    // The features are those of the UNet without a LoRA, so only the outer layers differ.
    let features = DeepFeatures::default();
    predict(&*plain, inputs.call(0).deep(keeping(&features, 2))).unwrap();
    let call = || inputs.call(0).deep(reusing(&features, 2));
    let [without, merged, live] =
        [plain, merged, live].map(|denoiser| predict(&*denoiser, call()).unwrap());
    let error = relative_error(&live, merged.as_slice().unwrap());
    within(LORA, "live and merged", error);
    let effect = relative_error(&live, without.as_slice().unwrap());
    assert!(effect > 1e-3, "{effect:.1e}");
}

#[test]
fn tokens_are_merged_with_loras() {
    let folder = tempfile::tempdir().unwrap();
    write("four", folder.path());
    let lora = golden("lora").join("sd1-locon.safetensors");
    let merged = sd_onnx::builder().lora(lora, 0.8);
    let merged = merged.load_denoiser(folder.path()).unwrap();
    let library = sd_onnx::builder().loras(golden("lora"));
    let library = library.load(folder.path()).unwrap();
    let live = called(&library);
    let inputs = Inputs::waves(&*live, [8, 10]);
    let call = || inputs.call(0).merge_tokens(0.5);
    let [without, merged, live] = [library.denoiser().clone(), merged, live]
        .map(|denoiser| predict(&*denoiser, call()).unwrap());
    let error = relative_error(&live, merged.as_slice().unwrap());
    within(LORA, "live and merged", error);
    let effect = relative_error(&live, without.as_slice().unwrap());
    assert!(effect > 1e-3, "{effect:.1e}");
}

/// Residuals, features and tokens of control networks reach the outer layers, and nothing is asked
/// for those that belong to the inner ones.
#[test]
fn control_networks_reach_the_outer_layers() {
    for name in ["sd1", "sdxl"] {
        println!("{name}");
        let folder = tempfile::tempdir().unwrap();
        let controls = Controls::write(name, folder.path());
        let builder = ["controlnet", "adapter", "ip"].iter();
        let builder = builder.fold(sd_onnx::builder(), |builder: Builder, part| {
            builder.control(controls.part(part, &Value::Null))
        });
        let denoiser = builder.load_denoiser(controls.model()).unwrap();
        let calls = controls.cases["calls"].as_array().unwrap();
        let all = calls.iter().find(|call| call["kind"] == "all").unwrap();
        let stop = StopToken::new();
        let picture = controls.picture(all["pictures"][0].as_str().unwrap());
        let (wide, high) = picture.dimensions();
        let values = Array4::from_shape_fn((1, 3, high as usize, wide as usize), |(_, c, y, x)| {
            f32::from(picture.get_pixel(x as u32, y as u32).0[c]) / 255.0
        });
        let image = controls.picture(all["image"].as_str().unwrap());
        let hints = [
            ControlInput::Values(values.view()),
            ControlInput::Values(values.view()),
            ControlInput::Pixels(&image),
        ];
        let mut network = 0..;
        let hints = hints.map(|input| {
            let network = network.next().unwrap();
            denoiser.read_control(network, input, &stop).unwrap()
        });
        let acting =
            [0, 1, 2].map(|network| ControlCall::new(network, &hints[network].prompt, 0.7));
        // The size of the UNet's latents for this control picture.
        let (dims, _) = controls.values.tensor("call.all.sample");
        let inputs = Inputs::waves(&*denoiser, [dims[2], dims[3]]);
        reuse_is_exact(&*denoiser, &inputs, &acting);

        // The features are those of a call without control networks.
        let features = DeepFeatures::default();
        let branch = denoiser.inputs().deep_branches / 2;
        predict(&*denoiser, inputs.call(0).deep(keeping(&features, branch))).unwrap();
        let call = inputs.call(0).deep(reusing(&features, branch));
        let without = predict(&*denoiser, call).unwrap();
        for one in &acting {
            let controls = std::slice::from_ref(one);
            let with = predict(&*denoiser, call.controls(controls)).unwrap();
            let effect = relative_error(&with, without.as_slice().unwrap());
            assert!(effect > 1e-4, "network {}: {effect:.1e}", one.network);
        }
    }
}

/// Returns the names of the loaded networks.
fn loaded(denoiser: &dyn Denoiser) -> Vec<String> {
    let report = denoiser.report().into_iter();
    report.map(|network| network.network.to_string()).collect()
}

#[test]
fn the_outer_layers_are_loaded_when_they_are_used() {
    for low_memory in [false, true] {
        let pipeline = sd_onnx::builder().low_memory(low_memory).load(emoji());
        let pipeline = pipeline.unwrap();
        let denoiser = &**pipeline.denoiser();
        let inputs = Inputs::waves(denoiser, [12, 12]);
        let features = DeepFeatures::default();
        predict(denoiser, inputs.call(0).deep(keeping(&features, 0))).unwrap();
        assert_eq!(loaded(denoiser), ["UNet"]);
        predict(denoiser, inputs.call(0).deep(reusing(&features, 0))).unwrap();
        assert_eq!(loaded(denoiser), ["UNet", "outer UNet"]);
        predict(denoiser, inputs.call(0)).unwrap();
        assert_eq!(loaded(denoiser), ["UNet", "outer UNet"]);
        if low_memory {
            let codec = pipeline.codec();
            codec
                .decode(inputs.latents[0].view(), &inputs.stop)
                .unwrap();
            assert!(loaded(denoiser).is_empty());
        }
    }
}

#[test]
fn features_of_several_pictures_are_kept_apart() {
    let denoiser = sd_onnx::builder().load_denoiser(emoji()).unwrap();
    let one = Inputs::waves(&*denoiser, [12, 12]);
    let both = Inputs {
        latents: vec![ndarray::concatenate![
            ndarray::Axis(0),
            one.latents[0],
            one.latents[1]
        ]],
        timesteps: vec![500.0],
        context: ndarray::concatenate![ndarray::Axis(0), one.context, one.context],
        pooled: None,
        sizes: None,
        stop: StopToken::new(),
    };
    let features = DeepFeatures::default();
    let full = predict(&*denoiser, both.call(0).deep(keeping(&features, 1))).unwrap();
    let reused = predict(&*denoiser, both.call(0).deep(reusing(&features, 1))).unwrap();
    within(
        1e-6,
        "both",
        relative_error(&reused, full.as_slice().unwrap()),
    );
    let alone = predict(&*denoiser, one.call(0)).unwrap();
    let first = reused.slice(s![..1, .., .., ..]).to_owned();
    within(
        ONE_CALL,
        "the first",
        relative_error(&first, alone.as_slice().unwrap()),
    );
}

/// Returns the message of the error that a call ends with.
fn refused(denoiser: &dyn Denoiser, call: Call<'_>) -> String {
    chain(&*predict(denoiser, call).unwrap_err()).to_string()
}

#[test]
fn what_cannot_be_reused_is_an_error() {
    let denoiser = sd_onnx::builder().load_denoiser(emoji()).unwrap();
    let denoiser = &*denoiser;
    let branches = denoiser.inputs().deep_branches;
    let (inputs, features) = (Inputs::waves(denoiser, [12, 12]), DeepFeatures::default());
    let error = refused(denoiser, inputs.call(0).deep(reusing(&features, 0)));
    assert!(error.contains("none were kept"), "{error}");
    let error = refused(denoiser, inputs.call(0).deep(keeping(&features, branches)));
    let expected = format!("{branches} branches for deep features, found branch {branches}");
    assert!(error.contains(&expected), "{error}");

    predict(denoiser, inputs.call(0).deep(keeping(&features, 0))).unwrap();
    let larger = Inputs::waves(denoiser, [12, 16]);
    let error = refused(denoiser, larger.call(0).deep(reusing(&features, 0)));
    assert!(
        error.contains("12, 12]") && error.contains("12, 16]"),
        "{error}"
    );
    let last = branches - 1;
    let error = refused(denoiser, inputs.call(0).deep(reusing(&features, last)));
    assert!(error.contains(&format!("for branch {last}")), "{error}");
}

#[test]
fn what_cannot_be_merged_is_an_error() {
    let denoiser = sd_onnx::builder().load_denoiser(emoji()).unwrap();
    let denoiser = &*denoiser;
    assert!(denoiser.inputs().token_merging);
    let inputs = Inputs::waves(denoiser, [12, 12]);
    for share in [-0.5, 0.8, f32::NAN] {
        let error = refused(denoiser, inputs.call(0).merge_tokens(share));
        assert!(error.contains("expected 0 to 0.75"), "{error}");
    }
    // Less than one token.
    let plain = predict(denoiser, inputs.call(0)).unwrap();
    let few = predict(denoiser, inputs.call(0).merge_tokens(0.001)).unwrap();
    assert_eq!(plain, few);
}

#[test]
fn an_exported_unet_has_no_shortcuts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = write_export("optimum-sd1", folder.path());
    let denoiser = sd_onnx::builder().load_denoiser(folder).unwrap();
    let denoiser = &*denoiser;
    let takes = denoiser.inputs();
    assert_eq!((takes.deep_branches, takes.token_merging), (0, false));
    let (inputs, features) = (Inputs::waves(denoiser, [16, 16]), DeepFeatures::default());
    let error = refused(denoiser, inputs.call(0).deep(keeping(&features, 0)));
    assert!(error.contains("0 branches"), "{error}");
    let error = refused(denoiser, inputs.call(0).merge_tokens(0.5));
    assert!(error.contains("cannot merge tokens"), "{error}");
}
