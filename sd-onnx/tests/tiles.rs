//! Compares pictures that are drawn in windows with diffusers 0.42.1 and with averaged predictions,
//! on random-weight models.
//!
//! `tests/golden/tiles.py` wrote the values. The README beside it describes them.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Golden, Model, golden, relative_error, write_family};
use sd_onnx::{
    PromptOptions, Request, TileWeights, Tiles,
    schedulers::{Ladder, by_name},
    text::Syntax,
};
use serde_json::Value;

/// The largest error of a run. diffusers averages the results of the steps, which changes the order
/// of the sums, and the model amplifies differences. Each mistake that `tiles.py` tries moves the
/// latents by at least 1e-3.
const WHOLE_RUN: f64 = 1e-4;

fn write(model: &str, folder: &Path) {
    match model.strip_prefix("families/") {
        Some(family) => write_family(family, folder),
        None => Model::of_shape(model).write(folder),
    }
}

/// Returns the request of a case for a model with `factor` pixels per latent.
fn request(case: &Value, factor: u32) -> Request {
    let text = |key: &str| case[key].as_str().unwrap();
    let whole = |key: &str| case[key].as_u64().unwrap() as u32;
    let window = factor * whole("window");
    let weights = match text("weights") {
        "equal" => TileWeights::Equal,
        "gaussian" => TileWeights::Gaussian,
        other => panic!("{other}"),
    };
    let tiles = Tiles::new(window, window).overlap(factor * whole("overlap"));
    let options = PromptOptions::default().syntax(Syntax::Plain);
    Request::new(text("prompt"))
        .negative(text("negative"))
        .size(whole("width"), whole("height"))
        .steps(whole("steps") as usize)
        .guidance(case["guidance"].as_f64().unwrap() as f32)
        .seed(whole("seed").into())
        .scheduler(by_name(text("scheduler")).unwrap())
        .ladder(Ladder::leading())
        .prompt_options(options.same_length(true).encode_empty(true))
        .tiles(tiles.weights(weights))
}

#[test]
fn runs_in_windows() {
    let values = Golden::of_file(&golden("tiles").join("tiles.safetensors"));
    let cases = std::fs::read_to_string(golden("tiles").join("cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for case in &cases {
        let [name, model] = ["name", "model"].map(|key| case[key].as_str().unwrap());
        let folder = folder.path().join(model);
        if !folder.exists() {
            write(model, &folder);
        }
        // Windows of one call are predicted as in calls of their own.
        for batch in [1, 3] {
            let pipeline = sd_onnx::builder().max_batch(batch).load(&folder).unwrap();
            let request = request(case, pipeline.codec().factor() as u32);
            let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
            let (_, expected) = values.tensor(&format!("{name}.latents"));
            let error = relative_error(&picture.latents, &expected);
            println!("{name}, {batch} in a call: {error:.1e}");
            assert!(
                error <= WHOLE_RUN,
                "{name}: relative L2 error {error:.2e}, expected at most {WHOLE_RUN:.0e}"
            );
        }
    }
    assert_eq!(cases.len(), 7);
}
