//! Compares ControlNets, T2I-Adapters and IP-Adapters with diffusers 0.42.1, and ControlNet's modes
//! with sd-webui-controlnet, on random-weight models.
//!
//! `tests/golden/control.py` wrote the values. The README beside it describes them.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/controls.rs"]
mod controls;

use common::relative_error;
use controls::Controls;
use serde_json::Value;

/// The largest error of a run. Guidance and the model itself amplify differences.
const WHOLE_RUN: f64 = 1e-4;

/// Returns why a run is not compared. diffusers does something there that this crate does not.
fn left_out(run: &Value) -> Option<&'static str> {
    match run["name"].as_str().unwrap() {
        "ip-blocks" => Some("weights per block are not supported"),
        "controlnet-heun" => Some("diffusers counts the calls of the network as steps"),
        _ => None,
    }
}

fn runs_of(name: &str, expected: usize) {
    let folder = tempfile::tempdir().unwrap();
    let controls = Controls::write(name, folder.path());
    let (mut seen, mut wrong) = (0, Vec::new());
    for run in controls.cases["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        if let Some(reason) = left_out(run) {
            println!("{name} is not compared: {reason}");
            continue;
        }
        let pipeline = controls.load(sd_onnx::builder(), run);
        let request = controls.request(run);
        let found = match pipeline.generate(&request) {
            Ok(found) => found,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (_, expected) = controls.values.tensor(&format!("run.{name}.latents"));
        let error = relative_error(&found.pictures[0].latents, &expected);
        println!("{name}: {error:.1e}");
        if error > WHOLE_RUN {
            wrong.push(format!(
                "{name}: {error:.2e}, expected at most {WHOLE_RUN:.0e}"
            ));
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, expected);
}

#[test]
fn runs_of_sd1_are_those_of_diffusers() {
    runs_of("sd1", 34);
}

#[test]
fn runs_of_sdxl_are_those_of_diffusers() {
    runs_of("sdxl", 23);
}

#[test]
fn runs_of_ssd_are_those_of_diffusers() {
    runs_of("ssd", 3);
}
