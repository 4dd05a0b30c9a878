//! One stage of a model by itself, in a process of its own: seconds to load it, seconds for a call, and the most memory
//! that the process had, once it was loaded and at the end. `compare/compare.py` runs it next to other programs.

use std::{path::PathBuf, time::Instant};

use clap::{Parser, ValueEnum};
use ndarray::{Array2, Array3, Array4};
use sd_onnx::{
    Call, ImageSize, Sizes, StopToken,
    text::{BoxError, ClipSkip},
};

#[derive(Parser)]
struct Arguments {
    /// Model folder in the diffusers layout
    model: PathBuf,
    stage: Stage,
    /// Timed calls, after one that is not
    #[arg(long, default_value_t = 5)]
    calls: usize,
    /// Latent height
    #[arg(long, default_value_t = 64)]
    height: usize,
    /// Latent width
    #[arg(long, default_value_t = 64)]
    width: usize,
    #[arg(long, default_value_t = 0)]
    threads: u16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stage {
    TextEncoder,
    Unet,
    VaeDecoder,
}

fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    let Arguments { height, width, .. } = arguments;
    let builder = sd_onnx::builder().threads(arguments.threads);
    let (bare, started) = (peak_mib()?, Instant::now());
    let mut call: Box<dyn FnMut() -> Result<(), BoxError>> = match arguments.stage {
        Stage::TextEncoder => {
            let encoder = builder.load_prompt_encoder(&arguments.model)?;
            let mut calls = 0;
            Box::new(move || {
                calls += 1;
                // The encoder remembers prompts, so each call has another one.
                let prompt = format!("a cute fox girl, watercolour {calls}");
                encoder.encode(&prompt, ClipSkip::LAST)?;
                Ok(())
            })
        }
        Stage::Unet => {
            let unet = builder.load_denoiser(&arguments.model)?;
            let inputs = unet.inputs();
            let latents = Array4::from_shape_fn((1, inputs.channels, height, width), ripple4);
            let context = Array3::from_shape_fn((1, 77, inputs.context), |(_, i, j)| {
                ((i * 7 + j) as f32).sin()
            });
            let pooled = inputs
                .pooled
                .map(|width| Array2::from_shape_fn((1, width), |(_, j)| (j as f32).sin()));
            let size = ImageSize::new(8 * width as u32, 8 * height as u32)?;
            let sizes = inputs
                .sizes
                .map(|ids| ids.values(&Sizes::default(), size, 6.0));
            let sizes = sizes
                .map(|values| Array2::from_shape_vec((1, values.len()), values))
                .transpose()?;
            let mut output = Array4::zeros(latents.dim());
            let stop = StopToken::new();
            Box::new(move || {
                let mut call = Call::new(latents.view(), 500.0, context.view(), &stop);
                call.pooled = pooled.as_ref().map(|pooled| pooled.view());
                call.sizes = sizes.as_ref().map(|sizes| sizes.view());
                unet.predict(&call, output.view_mut())
            })
        }
        Stage::VaeDecoder => {
            let codec = builder.load_codec(&arguments.model)?;
            let latents =
                Array4::from_shape_fn((1, codec.latent_channels(), height, width), ripple4);
            Box::new(move || codec.decode(latents.view(), &StopToken::new()).map(drop))
        }
    };
    let (load, loaded) = (started.elapsed().as_secs_f64(), peak_mib()?);
    call()?;
    let mut seconds = Vec::new();
    for _ in 0..arguments.calls.max(1) {
        let started = Instant::now();
        call()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let figures = serde_json::json!({
        "load_s": load,
        "call_s": seconds[seconds.len() / 2],
        "fastest_s": seconds[0],
        "slowest_s": seconds[seconds.len() - 1],
        "bare_mb": bare,
        "load_peak_mb": loaded,
        "peak_mb": peak_mib()?,
    });
    println!("{figures}");
    Ok(())
}

/// Values of about unit size without a pattern that a network could use.
fn ripple4((_, c, y, x): (usize, usize, usize, usize)) -> f32 {
    1.4 * ((c * 4099 + y * 67 + x * 3) as f32 * 0.37).sin()
}

/// The most memory the process ever had resident, in MiB. Linux tells.
fn peak_mib() -> Result<f64, BoxError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .ok_or("no VmHWM: this needs Linux")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
