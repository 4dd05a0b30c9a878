//! Measures control networks on a UNet, and prints times in seconds as JSON.
//!
//! `call` has the times of UNet calls in turns: a plain UNet, one that was loaded with the control
//! networks of which none acts, and one in which one of them acts. `none_ratio` is the cost of the
//! inputs that the UNet has for control networks. `own_s` is what a network adds to a call, which
//! for a ControlNet is the call of its network. `read` has the time in which a network reads a picture,
//! once per run.

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use clap::Parser;
use ndarray::Array4;
use sd_benches::unet::Run;
use sd_onnx::{
    ControlCall, ControlInput, ControlKind, Denoiser, Device, Hint, Precision, StopToken,
    image::RgbImage, text::BoxError,
};
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    /// Model: a checkpoint file or a folder
    model: PathBuf,
    /// Control networks: files or folders
    #[arg(required = true)]
    controls: Vec<PathBuf>,
    /// Timed calls of each UNet; one call comes before them, untimed
    #[arg(long, default_value_t = 5)]
    calls: usize,
    /// Latent height and width
    #[arg(long, default_value_t = 64)]
    side: usize,
    /// Device: cpu, openvino, openvino-gpu, openvino-npu or cuda
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Floating-point format that the networks are computed in: f32, bf16, f16 or int8
    #[arg(long, default_value_t = Precision::F32)]
    precision: Precision,
}

fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    let side = 8 * arguments.side as u32;
    let builder = || {
        sd_onnx::builder()
            .device(arguments.device)
            .precision(arguments.precision)
            .size(side, side)
    };
    let plain = builder().load_denoiser(&arguments.model)?;
    let controls = arguments.controls.iter();
    let steered = controls.fold(builder(), |builder, path| builder.control(path));
    let steered = steered.load_denoiser(&arguments.model)?;
    let run = Run::new(&*plain, arguments.side);
    let (hints, read) = hints(&*steered, side as usize)?;
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for call in 0..=arguments.calls {
        let mut add = |name: &str, took: f64| {
            if call > 0 {
                times.entry(name.to_owned()).or_default().push(took);
            }
        };
        add("plain", run.time(&*plain, &[])?);
        add("none", run.time(&*steered, &[])?);
        for (network, hint) in hints.iter().enumerate() {
            let acting = [ControlCall::new(network, &hint.prompt, 1.0)];
            let name = &steered.inputs().controls[network].name;
            add(name, run.time(&*steered, &acting)?);
        }
    }
    let least = |name: &str| times[name].iter().copied().fold(f64::INFINITY, f64::min);
    let median = |name: &str| {
        let mut times = times[name].clone();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let networks = steered.inputs().controls.iter().map(|it| it.name.as_str());
    let own: BTreeMap<_, _> = networks
        .map(|name| (name, least(name) - least("none")))
        .collect();
    let figures = json!({
        "call_s": times,
        "none_ratio": least("none") / least("plain"),
        "none_ratio_of_medians": median("none") / median("plain"),
        "own_s": own,
        "read_s": read,
    });
    println!("{figures:#}");
    Ok(())
}

/// Lets every control network read a picture. Returns the hints, and the time of the second
/// reading, because the first one loads the network.
fn hints(denoiser: &dyn Denoiser, side: usize) -> Result<(Vec<Hint>, Vec<f64>), BoxError> {
    let stop = StopToken::new();
    let picture = RgbImage::from_fn(side as u32, side as u32, |x, y| {
        sd_onnx::image::Rgb([x as u8, y as u8, (x ^ y) as u8])
    });
    let (mut hints, mut times) = (Vec::new(), Vec::new());
    for (network, of) in denoiser.inputs().controls.iter().enumerate() {
        let values = Array4::from_shape_fn((1, of.channels, side, side), |(_, c, y, x)| {
            f32::from(picture.get_pixel(x as u32, y as u32).0[c]) / 255.0
        });
        let input = match of.kind {
            ControlKind::ImagePrompt => ControlInput::Pixels(&picture),
            _ => ControlInput::Values(values.view()),
        };
        denoiser.read_control(network, input, &stop)?;
        let started = Instant::now();
        hints.push(denoiser.read_control(network, input, &stop)?);
        times.push(started.elapsed().as_secs_f64());
    }
    Ok((hints, times))
}
