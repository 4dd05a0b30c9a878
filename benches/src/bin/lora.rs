//! Measures LoRAs on a model, and prints the times and the memory as JSON. Times are in seconds and
//! memory is in MiB.
//!
//! The LoRAs have random factors, small enough to leave the model working. `load` has the time of
//! loading the UNet without LoRAs, with a library of LoRAs, and with one merged. `call` has the
//! times of UNet calls in turns: a plain UNet, one with a library and no LoRA called, and one with
//! a LoRA. `switch` has the time of ten switches between two LoRAs, each with the first call after
//! it, and the anonymous memory afterwards.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use clap::{Parser, ValueEnum};
use sd_benches::{memory::anonymous_mib, unet::Run};
use sd_onnx::{Denoiser, Device, Error, LoraCall, Pipeline, Precision, text::BoxError};
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    /// Model folder in the diffusers layout, with `unet/diffusion_pytorch_model.safetensors`
    model: PathBuf,
    /// Rank of the LoRAs
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Layers that the LoRAs change
    #[arg(long, default_value = "attention")]
    layers: Layers,
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

#[derive(Clone, Copy, ValueEnum)]
enum Layers {
    /// The projections of the attention layers
    Attention,
    /// All linear layers of the transformers
    Transformers,
    /// All linear layers and convolutions
    All,
}

impl Layers {
    fn has(self, name: &str) -> bool {
        let is_weight = name.ends_with(".weight") && !name.contains("norm");
        is_weight
            && match self {
                Self::Attention => name.contains(".attn"),
                Self::Transformers => name.contains(".attentions."),
                Self::All => true,
            }
    }
}

fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir()?;
    let shapes = shapes(
        &arguments
            .model
            .join("unet/diffusion_pytorch_model.safetensors"),
    )?;
    for name in ["first", "second"] {
        let file = folder.path().join(format!("{name}.safetensors"));
        write_lora(&file, &shapes, &arguments)?;
    }
    let side = 8 * arguments.side as u32;
    let builder = || {
        sd_onnx::builder()
            .device(arguments.device)
            .precision(arguments.precision)
            .size(side, side)
    };
    let (plain_load, plain) = timed(|| builder().load(&arguments.model))?;
    let (library_load, library) = timed(|| builder().loras(folder.path()).load(&arguments.model))?;
    let run = Run::new(&**plain.denoiser(), arguments.side);
    let call = calls(&run, &plain, &library, arguments.calls)?;
    let switch = switches(&run, &library)?;
    drop((plain, library));
    let mut loads = Vec::new();
    for _ in 0..3 {
        let lora = folder.path().join("first.safetensors");
        let (plain, _) = timed(|| builder().load(&arguments.model))?;
        let (merged, _) = timed(|| builder().lora(lora, 0.8).load(&arguments.model))?;
        loads.push(json!({ "plain_s": plain, "merged_s": merged }));
    }
    let figures = json!({
        "load": { "plain_s": plain_load, "library_s": library_load, "in_turns": loads },
        "call": call,
        "switch": switch,
    });
    println!("{figures:#}");
    Ok(())
}

/// Returns the time of a load, and the pipeline.
fn timed(load: impl FnOnce() -> Result<Pipeline, Error>) -> Result<(f64, Pipeline), Error> {
    let started = Instant::now();
    let pipeline = load()?;
    Ok((started.elapsed().as_secs_f64(), pipeline))
}

/// Returns the UNet of a library with the LoRA `index`.
fn with_lora(library: &Pipeline, index: usize) -> Result<Arc<dyn Denoiser>, BoxError> {
    let call = LoraCall::new(index, 0.8, vec![0.8]);
    let loras = library.lora_library().ok_or("the pipeline has a library")?;
    Ok(loras.networks(&[call])?.denoiser)
}

/// Measures calls in turns: of a plain UNet, of one with a library and no LoRA called, and of one
/// with a LoRA.
fn calls(run: &Run, plain: &Pipeline, library: &Pipeline, count: usize) -> Result<Value, BoxError> {
    let with = with_lora(library, 0)?;
    let denoisers = [
        ("plain", plain.denoiser()),
        ("none", library.denoiser()),
        ("lora", &with),
    ];
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for call in 0..=count {
        for (name, denoiser) in denoisers {
            let took = run.time(&**denoiser, &[])?;
            if call > 0 {
                times.entry(name).or_default().push(took);
            }
        }
    }
    let least = |name: &str| times[name].iter().copied().fold(f64::INFINITY, f64::min);
    let [none, lora] = ["none", "lora"].map(|name| least(name) / least("plain"));
    Ok(json!({ "s": times, "none_ratio": none, "lora_ratio": lora }))
}

/// Measures ten switches between two LoRAs, and the anonymous memory after each.
fn switches(run: &Run, library: &Pipeline) -> Result<Vec<Value>, BoxError> {
    let mut switches = Vec::new();
    for switch in 0..10 {
        let started = Instant::now();
        let denoiser = with_lora(library, (switch + 1) % 2)?;
        let took = started.elapsed().as_secs_f64();
        let (first, second) = (run.time(&*denoiser, &[])?, run.time(&*denoiser, &[])?);
        drop(denoiser);
        let memory = anonymous_mib()?;
        switches.push(
            json!({ "switch_s": took, "first_s": first, "second_s": second, "anon_mb": memory }),
        );
    }
    Ok(switches)
}

/// Returns the names and shapes of the tensors in a safetensors file.
fn shapes(path: &Path) -> Result<BTreeMap<String, Vec<usize>>, BoxError> {
    let failed = |error| format!("{}: {error}", path.display());
    let mut file = File::open(path).map_err(failed)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(failed)?;
    let mut header = vec![0; usize::try_from(u64::from_le_bytes(length))?];
    file.read_exact(&mut header).map_err(failed)?;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&header)?;
    let tensors = header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__");
    let shape =
        |(name, of): (String, Value)| Ok((name, serde_json::from_value(of["shape"].clone())?));
    tensors.map(shape).collect()
}

/// Writes a LoRA in f32 with peft's names.
fn write_lora(
    path: &Path,
    shapes: &BTreeMap<String, Vec<usize>>,
    arguments: &Arguments,
) -> Result<(), BoxError> {
    let rank = arguments.rank;
    let mut header = BTreeMap::new();
    let mut values: Vec<f32> = Vec::new();
    let of_layers = shapes.iter().filter(|(name, _)| arguments.layers.has(name));
    for (name, shape) in of_layers {
        let module = name.trim_end_matches(".weight");
        let mut down = shape.clone();
        down[0] = rank;
        let mut up = vec![1; shape.len()];
        up[..2].copy_from_slice(&[shape[0], rank]);
        for (factor, shape) in [("lora_A", down), ("lora_B", up)] {
            let from = 4 * values.len();
            let count: usize = shape.iter().product();
            values.extend((0..count).map(|i| 0.01 * ((from + i) as f32 * 0.7).sin()));
            let offsets = [from, 4 * values.len()];
            let tensor = json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets });
            header.insert(format!("unet.{module}.{factor}.weight"), tensor);
        }
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = fs::File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    file.write_all(&bytes)?;
    Ok(())
}
