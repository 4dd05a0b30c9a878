//! Loads and runs one stage of a model, and prints the time and the memory that it took as JSON.
//!
//! `compare/compare.py` runs this program next to other engines, each in its own process. Times are
//! in seconds and memory is in MiB: `peak_mb` is the largest resident set, and `rss_anon_mb` is the
//! largest sample of anonymous memory. Fields that begin with `bare` were measured before the load,
//! and fields that begin with `load` after it.

use std::{fs, path::PathBuf, time::Instant};

use clap::{Parser, ValueEnum};
use ndarray::{Array2, Array3, Array4};
use sd_benches::memory::{AnonymousPeak, anonymous_mib, peak_mib};
use sd_onnx::{
    Builder, Call, Device, ImageSize, Precision, Request, Sizes, StopToken,
    schedulers::{Ladder, samplers::Euler},
    text::{BoxError, ClipSkip},
};

/// The prompt of the text encoder and of the picture.
const PROMPT: &str = "a cute fox girl, watercolour";

#[derive(Parser)]
struct Arguments {
    /// Model folder in the diffusers layout
    model: PathBuf,
    stage: Stage,
    /// Timed calls; one call comes before them, untimed and for a picture with only one step
    #[arg(long, default_value_t = 5)]
    calls: usize,
    /// Latent height
    #[arg(long, default_value_t = 64)]
    height: usize,
    /// Latent width
    #[arg(long, default_value_t = 64)]
    width: usize,
    /// Threads; 0 means one for each physical core
    #[arg(long, default_value_t = 0)]
    threads: u16,
    /// Device: cpu, openvino, openvino-gpu, openvino-npu or cuda
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Floating-point format that the networks are computed in: f32, bf16, f16 or int8
    #[arg(long, default_value_t = Precision::F32)]
    precision: Precision,
    /// Keep only one network in memory at a time
    #[arg(long)]
    low_memory: bool,
    /// File to write the output of the last call to, as little-endian f32
    #[arg(long)]
    dump: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stage {
    TextEncoder,
    Unet,
    VaeDecoder,
    /// 20 steps of Euler with guidance, from the prompt to pixels in -1 to 1
    Picture,
}

/// A function that runs the stage once and returns its output.
///
/// The argument is the number of the call. Call 0 is not timed.
type Run = Box<dyn FnMut(usize) -> Result<Vec<f32>, BoxError>>;

fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    let builder = sd_onnx::builder()
        .threads(arguments.threads)
        .device(arguments.device)
        .precision(arguments.precision)
        .low_memory(arguments.low_memory)
        .size(8 * arguments.width as u32, 8 * arguments.height as u32);
    let anonymous = AnonymousPeak::start()?;
    let (bare, bare_anonymous) = (peak_mib()?, anonymous_mib()?);
    let started = Instant::now();
    let mut run = match arguments.stage {
        Stage::TextEncoder => text_encoder(builder, &arguments)?,
        Stage::Unet => unet(builder, &arguments)?,
        Stage::VaeDecoder => vae_decoder(builder, &arguments)?,
        Stage::Picture => picture(builder, &arguments)?,
    };
    let load = started.elapsed().as_secs_f64();
    let (load_peak, load_anonymous) = (peak_mib()?, anonymous.mib());
    run(0)?;
    let mut seconds = Vec::new();
    let mut output = Vec::new();
    for call in 1..=arguments.calls.max(1) {
        let started = Instant::now();
        output = run(call)?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    if let Some(file) = &arguments.dump {
        let bytes: Vec<u8> = output.iter().flat_map(|x| x.to_le_bytes()).collect();
        fs::write(file, bytes).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let figures = serde_json::json!({
        "load_s": load,
        "calls_s": seconds,
        "call_s": sorted[sorted.len() / 2],
        "fastest_s": sorted[0],
        "slowest_s": sorted[sorted.len() - 1],
        "bare_mb": bare,
        "load_peak_mb": load_peak,
        "peak_mb": peak_mib()?,
        "bare_anon_mb": bare_anonymous,
        "load_rss_anon_mb": load_anonymous,
        "rss_anon_mb": anonymous.mib(),
    });
    println!("{figures}");
    Ok(())
}

fn text_encoder(builder: Builder, arguments: &Arguments) -> Result<Run, BoxError> {
    let encoder = builder.load_prompt_encoder(&arguments.model)?;
    Ok(Box::new(move |call| {
        // The encoder caches prompts, so each call has a different one.
        let prompt = format!("{PROMPT} {call}");
        let read = encoder.encode(&prompt, ClipSkip::LAST)?;
        Ok(read.embedding.iter().copied().collect())
    }))
}

fn unet(builder: Builder, arguments: &Arguments) -> Result<Run, BoxError> {
    let &Arguments { height, width, .. } = arguments;
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
    Ok(Box::new(move |_| {
        let mut call = Call::new(latents.view(), 500.0, context.view(), &stop);
        call.pooled = pooled.as_ref().map(|pooled| pooled.view());
        call.sizes = sizes.as_ref().map(|sizes| sizes.view());
        unet.predict(&call, output.view_mut())?;
        Ok(output.iter().copied().collect())
    }))
}

fn vae_decoder(builder: Builder, arguments: &Arguments) -> Result<Run, BoxError> {
    let &Arguments { height, width, .. } = arguments;
    let codec = builder.load_codec(&arguments.model)?;
    let latents = Array4::from_shape_fn((1, codec.latent_channels(), height, width), ripple4);
    Ok(Box::new(move |_| {
        let pixels = codec.decode(latents.view(), &StopToken::new())?;
        Ok(pixels.into_iter().collect())
    }))
}

fn picture(builder: Builder, arguments: &Arguments) -> Result<Run, BoxError> {
    let pipeline = builder.load(&arguments.model)?;
    let request = Request::new(PROMPT)
        .negative("blurry, low quality")
        .size(8 * arguments.width as u32, 8 * arguments.height as u32)
        .scheduler(Euler::default())
        .ladder(Ladder::leading())
        .guidance(7.5)
        .seed(42);
    Ok(Box::new(move |call| {
        let request = request.clone();
        let request = match call {
            // The pipeline caches prompts, so the untimed call has different ones.
            0 => request.prompt("warm").negative("up").steps(1),
            _ => request.steps(20),
        };
        let mut generation = pipeline.generate(&request)?;
        Ok(generation.pictures.remove(0).pixels.into_iter().collect())
    }))
}

/// Returns values of about unit size, without a pattern that could favour a network.
fn ripple4((_, c, y, x): (usize, usize, usize, usize)) -> f32 {
    1.4 * ((c * 4099 + y * 67 + x * 3) as f32 * 0.37).sin()
}
