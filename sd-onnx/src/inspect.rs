//! Inspects a model file or folder without loading it.

mod control;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ndarray::Array2;
use sd_core::SchedulerConfig;
use sd_schedulers::Prediction;
use sd_text::outside;
use serde::Serialize;

pub use self::control::ControlFacts;
use crate::{
    Error,
    checkpoint::{self, Kind},
    control::CONTROL_NET,
    exported,
    graph::Dialect,
    hash,
    lora::Lora,
    models::{
        clip_text::{self, ClipTextConfig},
        clip_vision::{self, ClipVisionConfig},
        unet::{self, UnetConfig},
        vae::{self, VaeConfig},
    },
    source::{self, Elsewhere, IMAGE_ENCODER, Source, VisionFiles},
    weights::{Format, Sizes, WeightFile, Weights},
};

/// A description of a model file or folder, returned by [`inspect`].
///
/// A checkpoint file loads by itself if [`problems`](Self::problems) and [`missing`](Self::missing)
/// are both empty. In a folder, the files of the tokenizer and the scheduler and the inputs of ONNX
/// graphs are not checked.
///
/// The fields serialise to JSON under their own names.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The path that was inspected.
    pub path: PathBuf,
    /// The format, such as `safetensors`, `pickle`, `GGUF`, `diffusers folder` or `ONNX folder`.
    pub format: String,
    /// The kind of model or file, such as `SDXL` or `a LoRA`.
    pub kind: String,
    /// What the UNet predicts, such as `v_prediction`. `None` if there is no UNet.
    pub prediction: Option<String>,
    /// The evidence for [`prediction`](Self::prediction), such as a tensor or a key.
    pub prediction_because: Option<String>,
    /// The pipeline class in diffusers. `None` if there is no UNet.
    pub class: Option<String>,
    /// The networks. A file that is not a model has one part named `tensors`.
    pub parts: Vec<Part>,
    /// The size of all weights in f32, the type that the CPU computes in, in bytes. Working memory
    /// is extra: about 5 GB for SDXL at 1024×1024. `None` for a file that is neither a model nor a
    /// part of one, or that cannot be used.
    pub memory: Option<u64>,
    /// The metadata in the header of a safetensors or GGUF file, such as the training settings of a
    /// LoRA. Empty for other formats.
    pub metadata: BTreeMap<String, String>,
    /// What an adapter, such as a LoRA, changes. `None` for other files.
    pub adapter: Option<Adapter>,
    /// What a ControlNet, a T2I-Adapter or an IP-Adapter guides and takes. `None` for other files.
    pub control: Option<ControlFacts>,
    /// The networks that the model needs and the file does not have. Supply them with
    /// [`Builder::vae`](crate::Builder::vae) and similar methods.
    pub missing: Vec<String>,
    /// The reasons why loading would fail. Empty if there are none.
    pub problems: Vec<String>,
    /// Other facts about the file, such as tensors that are ignored.
    pub warnings: Vec<String>,
}

/// What a LoRA or a related adapter changes, and what its trainer wrote about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Adapter {
    /// The family that it was trained for, such as `SDXL`. `None` if its shapes do not show it.
    pub family: Option<String>,
    /// The formats of its modules, such as `LoRA` or `LoKr`.
    pub formats: Vec<String>,
    /// The most frequent rank of its modules. `None` for formats without a rank.
    pub rank: Option<usize>,
    /// The alpha in the metadata. The scale of a module is alpha divided by the rank.
    pub alpha: Option<f64>,
    /// The number of layers that it changes, by network. A name that may belong to several networks
    /// counts for the first of them.
    pub layers: BTreeMap<String, usize>,
    /// The names of the textual inversions in the file.
    pub inversions: Vec<String>,
    /// The title in the metadata, or else the name that it had in training.
    pub title: Option<String>,
    /// The base model in the metadata.
    pub base_model: Option<String>,
    /// The words that call it in a prompt, in the metadata.
    pub trigger_phrase: Option<String>,
    /// The tags of the training pictures in the metadata and how often they occur, the most
    /// frequent first, at most 1000. Frequent tags often call an adapter that has no trigger
    /// phrase.
    pub tags: Vec<(String, u64)>,
}

/// One network of a model, or all tensors of a file that is not a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Part {
    /// The name of the network's folder in diffusers: `unet`, `vae`, `text_encoder`,
    /// `text_encoder_2` or `image_encoder`. In an ONNX folder also `vae_decoder` and `vae_encoder`.
    /// For a ControlNet, a T2I-Adapter or an IP-Adapter, `controlnet`, `adapter` or `ip_adapter`.
    /// For a file that is not a model, `tensors`.
    pub name: String,
    /// The number of tensors.
    pub tensors: usize,
    /// The number of parameters.
    pub parameters: u64,
    /// The size of the parameters in the file, in bytes.
    pub bytes: u64,
    /// The number of tensors of each type, such as `F16`.
    pub types: BTreeMap<String, usize>,
}

/// The hashes that WebUI and model sites show for a file. Returned by [`hashes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Hashes {
    /// The SHA-256 of the whole file, 64 hexadecimal digits.
    pub sha256: String,
    /// AutoV1 of model sites, and WebUI's model hash of 2022: the first 8 digits of the SHA-256 of
    /// the 65,536 bytes that start at byte 1,048,576.
    pub auto_v1: String,
    /// AutoV2 of model sites, and WebUI's model hash: the first 10 digits of
    /// [`sha256`](Self::sha256).
    pub auto_v2: String,
    /// AutoV3 of model sites, which WebUI shows for LoRA files: the first 12 digits of
    /// [`data_sha256`](Self::data_sha256). `None` for other formats than safetensors.
    pub auto_v3: Option<String>,
    /// The SHA-256 of the bytes after the header of a safetensors file, 64 digits. Trainers write
    /// it into the header as `sshs_model_hash`. `None` for other formats.
    pub data_sha256: Option<String>,
}

/// Identifies a file or folder: a checkpoint, a part of a model, a diffusers folder, an ONNX
/// folder, CLIP's vision model, a LoRA, a ControlNet, a T2I-Adapter, an IP-Adapter, a textual
/// inversion and others.
///
/// It takes less than a second, because it loads no weights and does not start ONNX Runtime.
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
/// - [`Error::Io`] if the path cannot be read.
/// - [`Error::Safetensors`], [`Error::Gguf`], [`Error::Pickle`] or [`Error::Checkpoint`] if a file
///   has an unknown format or is malformed.
/// - [`Error::Missing`] if a folder has no network.
/// - [`Error::Json`] or [`Error::Config`] if the `model_index.json` of a folder cannot be used.
///
/// A recognised model that cannot be used is not an error: see [`Inspection::problems`].
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection, Error> {
    let path = path.as_ref();
    if path.is_dir() {
        if let Some(found) = control::of_folder(path) {
            return Ok(found);
        }
        let source = Source::open(path, None, &Elsewhere::default(), None, &[]);
        return match source.and_then(|source| of_source(path, source)) {
            // Many other folders have a `config.json`, such as the ones of a diffusers folder.
            Err(missing @ Error::Missing { .. }) if path.join("config.json").is_file() => {
                match VisionFiles::open(path, None) {
                    Ok(files) if files.weights.shape(clip_vision::CLASS_TOKEN).is_some() => {
                        let format = "transformers folder".to_owned();
                        Ok(of_vision(path, files, format, BTreeMap::new()))
                    }
                    Ok(_) | Err(Error::Missing { .. }) => Err(missing),
                    Err(error) => Err(error),
                }
            }
            found => found,
        };
    }
    let file = WeightFile::open(path)?;
    let kind = source::recognise(&file, None, |facts| Ok(checkpoint::kind(facts)))?;
    if matches!(kind, Kind::Model | Kind::Vae | Kind::TextEncoder) {
        return match Source::open(path, None, &Elsewhere::default(), None, &[]) {
            Ok(source) => of_source(path, source),
            Err(error) => Ok(of_other(&file, name(kind), outside::chain(&error))),
        };
    }
    if kind == Kind::ImageEncoder {
        return Ok(match VisionFiles::open(path, None) {
            Ok(files) => of_vision(path, files, file.format.to_string(), file.metadata),
            Err(error) => of_other(&file, name(kind), outside::chain(&error)),
        });
    }
    if matches!(kind, Kind::ControlNet | Kind::T2iAdapter | Kind::IpAdapter) {
        let found = control::of_file(&file);
        return Ok(
            found.unwrap_or_else(|error| of_other(&file, name(kind), outside::chain(&error)))
        );
    }
    let mut found = of_other(&file, name(kind), format!("the file is {kind}"));
    if kind == Kind::Lora {
        match Lora::open(path) {
            Ok(lora) => found.adapter = Some(of_adapter(lora)),
            Err(error) => found.problems = vec![outside::chain(&error)],
        }
    }
    Ok(found)
}

/// Reads a whole file and returns its hashes.
///
/// This takes about 10 s for 7 GB, and longer on a slow disk.
///
/// ```no_run
/// let found = sd_onnx::hashes("model.safetensors")?;
/// println!("Model hash: {}", found.auto_v2); // as in WebUI
/// # Ok::<(), sd_onnx::Error>(())
/// ```
///
/// # Errors
/// - [`Error::Io`] if the file cannot be read or is a folder.
/// - [`Error::Safetensors`], [`Error::Gguf`], [`Error::Pickle`] or [`Error::Checkpoint`] if the
///   file has an unknown format or is malformed.
pub fn hashes(path: impl AsRef<Path>) -> Result<Hashes, Error> {
    let path = path.as_ref();
    let sha256 = hash::sha256(&[path.to_path_buf()]).map_err(Error::io(path))?;
    let file = outside::open_binary(path).map_err(Error::io(path))?;
    let of = |from, length| hash::sha256_of(&file, from, length);
    let part = of(0x10_0000, 0x1_0000).map_err(Error::io(path))?;
    let data_sha256 = match WeightFile::open(path)?.format {
        Format::Safetensors { data_start } => {
            Some(of(data_start, u64::MAX).map_err(Error::io(path))?)
        }
        Format::Pickle | Format::Gguf => None,
    };
    Ok(Hashes {
        auto_v1: part[..8].to_owned(),
        auto_v2: sha256[..10].to_owned(),
        auto_v3: data_sha256.as_ref().map(|digits| digits[..12].to_owned()),
        sha256,
        data_sha256,
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
    let mut warnings = source.warnings().to_vec();
    if VisionFiles::is_in(path) {
        // A pipeline does not load it, so what is wrong with it is no problem of the model.
        match VisionFiles::open(path, None) {
            Ok(files) => {
                parts.push(Part::of_vision(&files));
                let problem = check_vision(files);
                warnings.extend(problem.map(|problem| of_part(IMAGE_ENCODER, &problem)));
            }
            Err(error) => warnings.push(of_part(IMAGE_ENCODER, &outside::chain(&error))),
        }
    }
    // The same holds for a ControlNet in the folder.
    if let Some(found) = control::of_folder(&path.join(CONTROL_NET)) {
        parts.extend(found.parts);
        let problems = found.problems.iter();
        warnings.extend(problems.map(|problem| of_part(CONTROL_NET, problem)));
    }
    if parts.is_empty() && problems.is_empty() {
        return Err(Error::Missing {
            path: path.to_path_buf(),
            what: "a model".into(),
            hint: "expected a folder that contains `unet`, `vae` or `text_encoder`".into(),
        });
    }
    let unet = source.has("unet").then(|| source.config("unet"));
    let unet = unet.and_then(|config| UnetConfig::new(&config.ok()?, source.sizes()).ok());
    let scheduler = source.scheduler().ok().filter(|_| source.has("unet"));
    let prediction = scheduler.and_then(|(_, text)| prediction(&text));
    let memory = parts.iter().map(|part| 4 * part.parameters).sum();
    Ok(Inspection {
        path: path.to_path_buf(),
        format: source.format(),
        kind: source.title(unet.as_ref().map(|unet| &unet.inputs)),
        prediction_because: prediction.is_some().then(|| source.because()),
        prediction,
        class: source.has("unet").then(|| source.class().to_owned()),
        parts,
        memory: Some(memory),
        adapter: None,
        control: None,
        metadata: source.metadata(),
        missing: source.missing()?.into_iter().map(str::to_owned).collect(),
        problems: problems.iter().map(|error| outside::chain(error)).collect(),
        warnings,
    })
}

/// Describes a folder or a file of CLIP's vision model, which may also have CLIP's text model.
fn of_vision(
    path: &Path,
    files: VisionFiles,
    format: String,
    metadata: BTreeMap<String, String>,
) -> Inspection {
    let part = Part::of_vision(&files);
    Inspection {
        path: path.to_path_buf(),
        format,
        kind: name(Kind::ImageEncoder).to_owned(),
        prediction: None,
        prediction_because: None,
        class: None,
        memory: Some(4 * part.parameters),
        parts: vec![part],
        adapter: None,
        control: None,
        metadata,
        missing: Vec::new(),
        problems: check_vision(files).into_iter().collect(),
        warnings: Vec::new(),
    }
}

/// Returns the reason why loading a vision model would fail.
fn check_vision(files: VisionFiles) -> Option<String> {
    let VisionFiles {
        config, weights, ..
    } = files;
    let config = ClipVisionConfig::new(config);
    let checked = config.and_then(|config| clip_vision::check(&config, &weights));
    checked.err().map(|error| outside::chain(&error))
}

/// Returns a warning about a network in a model folder that a pipeline does not load by itself.
fn of_part(part: &str, problem: &str) -> String {
    format!("`{part}` cannot be loaded: {problem}")
}

/// Returns the name of a kind of file, without the explanation after it.
fn name(kind: Kind) -> &'static str {
    let text = kind.text();
    let end = [", which", " and not"]
        .iter()
        .find_map(|rest| text.find(rest));
    &text[..end.unwrap_or(text.len())]
}

/// Returns diffusers' name of the prediction in a scheduler configuration.
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

/// Checks the weights of a component as loading would.
fn check(source: &Source, component: &str, weights: &Weights) -> Result<(), Error> {
    let config = source.config(component)?;
    let dialect = Dialect::default();
    match component {
        "unet" => {
            let config = UnetConfig::new(&config, source.sizes())?;
            let write = |weights: &Weights| unet::graph(&config, weights, dialect).map(drop);
            weights.check(unet::CLASS, |_| false, write)
        }
        "vae" => {
            let config = VaeConfig::new(&config)?;
            // A file may contain only the decoder.
            let has_encoder = vae::encoder(&config, &weights.outline(), dialect).is_ok();
            let write = |weights: &Weights| {
                if has_encoder {
                    vae::encoder(&config, weights, dialect)?;
                }
                vae::decoder(&config, weights, dialect).map(drop)
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
            let write = |weights: &Weights| {
                clip_text::graph(&config, weights, none.view(), dialect).map(drop)
            };
            weights.check(clip_text::CLASS, left_out, write)
        }
    }
}

fn of_adapter(lora: Lora) -> Adapter {
    Adapter {
        family: lora.family.map(|family| family.name().to_owned()),
        formats: lora.formats().into_iter().map(str::to_owned).collect(),
        rank: lora.rank(),
        layers: lora.layers(),
        inversions: lora.inversion_names().map(str::to_owned).collect(),
        alpha: lora.facts.alpha,
        title: lora.facts.title.or(lora.facts.output_name),
        base_model: lora.facts.base_model,
        trigger_phrase: lora.facts.trigger_phrase,
        tags: lora.facts.tags,
    }
}

fn of_other(file: &WeightFile, kind: &str, problem: String) -> Inspection {
    Inspection {
        path: file.path.clone(),
        format: file.format.to_string(),
        kind: kind.to_owned(),
        prediction: None,
        prediction_because: None,
        class: None,
        parts: vec![Part::of("tensors", file.sizes())],
        memory: None,
        adapter: None,
        control: None,
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

    /// Describes a vision model, without the text model of a whole CLIP model.
    fn of_vision(files: &VisionFiles) -> Self {
        let sizes = files.weights.sizes_without(clip_vision::is_left_out);
        Self::of(IMAGE_ENCODER, sizes)
    }
}
