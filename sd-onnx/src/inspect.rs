//! A look at a model file or folder without loading it.

use std::{
    collections::BTreeMap,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use ndarray::Array2;
use sd_core::SchedulerConfig;
use sd_schedulers::Prediction;
use sd_text::outside;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    Error,
    checkpoint::{self, Kind},
    exported, hash,
    models::{
        clip_text::{self, ClipTextConfig},
        unet::{self, UnetConfig},
        vae::{self, VaeConfig},
    },
    source::{self, Elsewhere, Source},
    weights::{Format, Sizes, WeightFile, Weights},
};

/// What a file or a folder is, read from its headers and configurations alone.
///
/// [`inspect`] makes one. The fields serialise to JSON under their own names.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The file or folder.
    pub path: PathBuf,
    /// How it is stored, such as `safetensors`, `pickle`, `GGUF` or `diffusers folder`.
    pub format: String,
    /// What it is, such as `SDXL` or `a LoRA`.
    pub what: String,
    /// What the UNet predicts, such as `v_prediction`. None without a UNet.
    pub prediction: Option<String>,
    /// Why the prediction is believed to be that.
    pub prediction_because: Option<String>,
    /// The pipeline class in diffusers. None where there is no UNet.
    pub class: Option<String>,
    /// The networks; for a file that is no model, all its tensors as one part.
    pub parts: Vec<Part>,
    /// Bytes of memory that the weights take once they are loaded, in f32. Working memory comes on
    /// top: for SDXL at 1024×1024 about 5 GB. None for what cannot be loaded by itself.
    pub memory: Option<u64>,
    /// What the file says about itself: the header metadata of a safetensors file, such as how a
    /// LoRA was trained.
    pub metadata: BTreeMap<String, String>,
    /// The networks that the model needs and the file lacks.
    pub missing: Vec<String>,
    /// Why it cannot be drawn with, or what of it will not work. Empty if all will.
    pub problems: Vec<String>,
    /// What a user should know, such as tensors that are left out.
    pub warnings: Vec<String>,
}

/// One network of a model, or all tensors of a file that is no model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Part {
    /// The folder's name in diffusers: `unet`, `vae`, `text_encoder`, `text_encoder_2`. `tensors`
    /// for a file that is no model.
    pub name: String,
    /// How many tensors there are.
    pub tensors: usize,
    /// How many numbers the tensors have.
    pub parameters: u64,
    /// How many bytes they take in the file.
    pub bytes: u64,
    /// The types of the numbers, such as `F16`, each with how many tensors have it.
    pub types: BTreeMap<String, usize>,
}

/// The hashes that WebUI and model sites show for a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Hashes {
    /// SHA-256 of the whole file, 64 hexadecimal digits.
    pub sha256: String,
    /// WebUI's model hash: the first 10 digits of `sha256`. Model sites call it AutoV2.
    pub short: String,
    /// WebUI's model hash of 2022: the first 8 digits of the SHA-256 of 65,536 bytes from byte
    /// 1,048,576 on. Model sites call it AutoV1.
    pub old: String,
    /// SHA-256 of a safetensors file behind its header, which WebUI shows for LoRA. Its first 12
    /// digits are what model sites call AutoV3. None for other formats.
    pub data: Option<String>,
}

/// Reads what a file or a folder is: a checkpoint, a part of a model, a diffusers folder, a LoRA, a
/// textual inversion and others. No weights are loaded and ONNX Runtime is not started, so it takes
/// less than a second.
///
/// ```
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
/// let found = sd_onnx::inspect(folder)?;
/// assert_eq!(found.format, "diffusers folder");
/// assert_eq!(found.prediction.as_deref(), Some("v_prediction"));
/// assert!(found.problems.is_empty());
/// let unet = found.parts.iter().find(|part| part.name == "unet").unwrap();
/// println!("{} parameters in {} bytes", unet.parameters, unet.bytes);
/// # Ok::<(), sd_onnx::Error>(())
/// ```
///
/// # Errors
/// [`Error`] when the path cannot be read, or is a file of no format that is known. A model that is
/// understood but cannot be used is no error: see [`Inspection::problems`].
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection, Error> {
    let path = path.as_ref();
    if path.is_dir() {
        return of_source(
            path,
            Source::open(path, None, &Elsewhere::default(), None, &[])?,
        );
    }
    let file = WeightFile::open(path)?;
    let kind = source::recognise(&file, None, |facts| Ok(checkpoint::kind(facts)))?;
    if matches!(kind, Kind::Model | Kind::Vae | Kind::TextEncoder) {
        return match Source::open(path, None, &Elsewhere::default(), None, &[]) {
            Ok(source) => of_source(path, source),
            Err(error) => Ok(of_other(&file, name(kind), error.to_string())),
        };
    }
    Ok(of_other(&file, name(kind), format!("the file is {kind}")))
}

/// Reads a whole file and returns its hashes. For 7 GB that takes some 10 s, more where the disk is
/// slow.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, or is a folder.
pub fn hashes(path: impl AsRef<Path>) -> Result<Hashes, Error> {
    let path = path.as_ref();
    let sha256 = hash::sha256(&[path.to_path_buf()]).map_err(Error::io(path))?;
    let file = outside::open_binary(path).map_err(Error::io(path))?;
    let of = |from: u64, length: u64| -> io::Result<String> {
        let mut file = &file;
        file.seek(SeekFrom::Start(from))?;
        let mut hasher = Sha256::new();
        let mut file = file.take(length);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        Ok(hash::hex(&hasher.finalize()))
    };
    let old = of(0x10_0000, 0x1_0000).map_err(Error::io(path))?;
    let data = match WeightFile::open(path)?.format {
        Format::Safetensors { data_start } => {
            Some(of(data_start, u64::MAX).map_err(Error::io(path))?)
        }
        Format::Pickle | Format::Gguf => None,
    };
    Ok(Hashes {
        short: sha256[..10].to_owned(),
        old: old[..8].to_owned(),
        sha256,
        data,
    })
}

fn of_source(path: &Path, source: Source) -> Result<Inspection, Error> {
    let mut parts = Vec::new();
    let mut problems = Vec::new();
    for component in source.components()? {
        let graph = source.graph(component)?;
        let sizes = match graph {
            Some(graph) => exported::outline(&graph),
            None => source.weights(component).map(|weights| {
                problems.extend(check(&source, component, &weights).err());
                weights.sizes()
            }),
        };
        match sizes {
            Ok(sizes) => parts.push(Part::of(component, sizes)),
            Err(error) => problems.push(error),
        }
    }
    let unet = source.has("unet").then(|| source.config("unet"));
    let unet = unet.and_then(|config| UnetConfig::new(&config.ok()?, source.sizes()).ok());
    let scheduler = source.scheduler().ok().filter(|_| source.has("unet"));
    let prediction = scheduler.and_then(|(_, text)| prediction(&text));
    let memory = parts.iter().map(|part| 4 * part.parameters).sum();
    Ok(Inspection {
        path: path.to_path_buf(),
        format: source.format(),
        what: source.title(unet.as_ref().map(|unet| &unet.inputs)),
        prediction_because: prediction.is_some().then(|| source.because()),
        prediction,
        class: source.has("unet").then(|| source.class().to_owned()),
        parts,
        memory: Some(memory),
        metadata: source.metadata(),
        missing: source.missing()?.into_iter().map(str::to_owned).collect(),
        problems: problems.iter().map(Error::to_string).collect(),
        warnings: source.warnings().to_vec(),
    })
}

/// What a kind of file is called, without what follows from it.
fn name(kind: Kind) -> &'static str {
    let text = kind.text();
    let end = [", which", " and not"]
        .iter()
        .find_map(|rest| text.find(rest));
    &text[..end.unwrap_or(text.len())]
}

/// What a scheduler's configuration says that the UNet predicts, in diffusers' words.
fn prediction(scheduler: &str) -> Option<String> {
    let config = SchedulerConfig::from_json(scheduler).ok()?;
    Some(match config.prediction {
        Prediction::Epsilon => "epsilon".to_owned(),
        Prediction::V => "v_prediction".to_owned(),
        Prediction::Sample => "sample".to_owned(),
        Prediction::Edm { v: false, .. } => "epsilon, preconditioned as in EDM".to_owned(),
        Prediction::Edm { v: true, .. } => "v_prediction, preconditioned as in EDM".to_owned(),
        other => format!("{other:?}"),
    })
}

/// Finds what loading would refuse.
fn check(source: &Source, component: &str, weights: &Weights) -> Result<(), Error> {
    let config = source.config(component)?;
    match component {
        "unet" => {
            let config = UnetConfig::new(&config, source.sizes())?;
            let write = |weights: &Weights| unet::graph(&config, weights).map(drop);
            weights.check(unet::CLASS, |_| false, write)
        }
        "vae" => {
            let config = VaeConfig::new(&config)?;
            // A file may have the decoder alone.
            let has_encoder = vae::encoder(&config, &weights.outline()).is_ok();
            let write = |weights: &Weights| {
                if has_encoder {
                    vae::encoder(&config, weights)?;
                }
                vae::decoder(&config, weights).map(drop)
            };
            let left_out = |name: &str| {
                vae::is_left_out(&config, name) || (!has_encoder && vae::is_of_encoder(name))
            };
            weights.check(config.class(), left_out, write)
        }
        _ => {
            let mut config = ClipTextConfig::new(config)?;
            let tower = source.towers().iter().find(|it| it.encoder == component);
            let is_pooled = tower.is_some_and(|tower| tower.pooled);
            config.projection = is_pooled.then_some(config.projection_width);
            let left_out = |name: &str| clip_text::is_left_out(&config, name);
            let none = Array2::zeros((0, config.width));
            let write =
                |weights: &Weights| clip_text::graph(&config, weights, none.view()).map(drop);
            weights.check(clip_text::CLASS, left_out, write)
        }
    }
}

fn of_other(file: &WeightFile, what: &str, problem: String) -> Inspection {
    Inspection {
        path: file.path.clone(),
        format: file.format.to_string(),
        what: what.to_owned(),
        prediction: None,
        prediction_because: None,
        class: None,
        parts: vec![Part::of("tensors", file.sizes())],
        memory: None,
        metadata: file.metadata.clone(),
        missing: Vec::new(),
        problems: vec![problem],
        warnings: file.warnings.clone(),
    }
}

impl Part {
    fn of(name: &str, sizes: Sizes) -> Self {
        Self {
            name: name.to_owned(),
            tensors: sizes.tensors,
            parameters: sizes.parameters,
            bytes: sizes.bytes,
            types: sizes.types,
        }
    }
}
