//! Measures shortcuts on a UNet, and prints times in seconds as JSON.
//!
//! `call` has the times of UNet calls in turns: whole calls, whole calls that keep their deep
//! features, calls that reuse the features of a branch, and calls that merge a share of the tokens.
//! `ratio` has their least times over the least time of a whole call, and `ratio_of_medians` the
//! same for the medians. `first` has the first call of each graph, which loads it, with the anonymous memory
//! in MiB afterwards.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Parser;
use sd_benches::{memory::anonymous_mib, unet::Run};
use sd_onnx::{DeepCall, DeepFeatures, Device, Precision, text::BoxError};
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    /// Model: a checkpoint file or a folder
    model: PathBuf,
    /// Branches whose deep features are reused
    #[arg(long, value_delimiter = ',', default_value = "0,1,2")]
    branches: Vec<usize>,
    /// Shares of the tokens that are merged
    #[arg(long, value_delimiter = ',', default_value = "0.5")]
    shares: Vec<f32>,
    /// Timed calls of each kind; one call comes before them, untimed
    #[arg(long, default_value_t = 5)]
    calls: usize,
    /// Latent height and width
    #[arg(long, default_value_t = 64)]
    side: usize,
    /// Device: cpu, openvino, openvino-gpu or openvino-npu
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Floating-point format that the networks are computed in: f32, bf16 or f16
    #[arg(long, default_value_t = Precision::F32)]
    precision: Precision,
}

fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    let side = 8 * arguments.side as u32;
    // Whole calls, calls that keep features and calls that merge tokens have a session each.
    let denoiser = sd_onnx::builder()
        .device(arguments.device)
        .precision(arguments.precision)
        .size(side, side)
        .kept_sizes(arguments.branches.len().max(3))
        .load_denoiser(&arguments.model)?;
    let run = Run::new(&*denoiser, arguments.side);
    let features: Vec<_> = arguments
        .branches
        .iter()
        .map(|_| DeepFeatures::default())
        .collect();
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut first = Vec::new();
    for call in 0..=arguments.calls {
        let mut add = |name: String, took: f64| -> Result<(), BoxError> {
            if call > 0 {
                times.entry(name).or_default().push(took);
            } else {
                first.push(json!({ "call": name, "s": took, "anon_mb": anonymous_mib()? }));
            }
            Ok(())
        };
        add("whole".into(), run.time_of(&*denoiser, |call| call)?)?;
        for (&branch, features) in arguments.branches.iter().zip(&features) {
            for reuse in [false, true] {
                let deep = DeepCall {
                    features,
                    reuse,
                    branch,
                };
                let name = if reuse { "reusing" } else { "keeping" };
                let took = run.time_of(&*denoiser, |call| call.deep(deep))?;
                add(format!("{name} {branch}"), took)?;
            }
        }
        for &share in &arguments.shares {
            let took = run.time_of(&*denoiser, |call| call.merge_tokens(share))?;
            add(format!("merging {share}"), took)?;
        }
    }
    let least = |times: &Vec<f64>| times.iter().copied().fold(f64::INFINITY, f64::min);
    let median = |times: &Vec<f64>| {
        let mut times = times.clone();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let ratios = |of: &dyn Fn(&Vec<f64>) -> f64| -> BTreeMap<String, f64> {
        let whole = of(&times["whole"]);
        let ratio = |(name, times): (&String, &Vec<f64>)| (name.clone(), of(times) / whole);
        times.iter().map(ratio).collect()
    };
    let figures = json!({
        "call_s": times,
        "ratio": ratios(&least),
        "ratio_of_medians": ratios(&median),
        "first": first,
    });
    println!("{figures:#}");
    Ok(())
}
