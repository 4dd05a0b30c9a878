//! Opens a ControlNet, a T2I-Adapter or an IP-Adapter: a folder of diffusers, or a file.

use std::path::{Path, PathBuf};

use sd_text::outside::printable;

use crate::{
    Error,
    checkpoint::{self, ControlKind, Family},
    config::{Config, MOST_CONFIG},
    models::{
        control_net,
        image_prompt::{self, ImagePromptConfig},
        t2i_adapter,
    },
    source::{self, IMAGE_ENCODER, ModelFolder, folder_name},
    weights::{WeightFile, Weights},
};

/// The files of a network that guides a model, opened.
#[derive(Debug)]
pub(crate) enum ControlFiles {
    /// A ControlNet. The tensors have diffusers' names of today.
    Net { config: Config, weights: Weights },
    /// A T2I-Adapter. The tensors have diffusers' names of today.
    Adapter { config: Config, weights: Weights },
    /// An IP-Adapter. The tensors have the names of its authors: `image_proj.*` and
    /// `ip_adapter.1.to_k_ip.weight`.
    Image {
        weights: Weights,
        /// The folder of the CLIP vision model that it was trained with, if one is beside it.
        encoder: Option<PathBuf>,
    },
}

/// The name of a ControlNet's folder within a model folder.
pub(crate) const CONTROL_NET: &str = "controlnet";

/// How the names of weight files begin that say nothing about their contents.
const PLAIN: [&str; 3] = ["diffusion_pytorch_model", "pytorch_model", "model"];

impl ControlFiles {
    /// Opens a folder of one network, a model folder that has a folder `controlnet`, or a file.
    /// `variant` is the variant of the weights in a folder, such as `fp16`.
    ///
    /// # Errors
    /// - [`Error::Io`], [`Error::Json`], [`Error::Safetensors`], [`Error::Gguf`] or
    ///   [`Error::Pickle`] when a file cannot be read.
    /// - [`Error::Missing`] or [`Error::Variants`] when the weights or the configuration cannot be
    ///   found.
    /// - [`Error::Config`] when the folder has another class.
    /// - [`Error::Checkpoint`] when the file is something else, or is not supported.
    /// - [`Error::UnusedTensors`] when it has unknown tensors.
    pub fn open(path: &Path, variant: Option<&str>) -> Result<Self, Error> {
        if path.is_dir() {
            return Self::of_folder(path, variant);
        }
        if let Some(variant) = variant {
            tracing::debug!(
                "{}: a file has no variants, so `{}` is ignored",
                printable(path.display()),
                printable(variant)
            );
        }
        let file = WeightFile::open(path)?;
        let (files, warnings) = Self::of_file(&file)?;
        for warning in warnings {
            tracing::warn!("{}: {warning}", printable(path.display()));
        }
        Ok(files)
    }

    /// Reads a file that is open. Returns also warnings for the user.
    pub fn of_file(file: &WeightFile) -> Result<(Self, Vec<String>), Error> {
        let path = &file.path;
        let found = source::recognise(file, None, checkpoint::read_control)?;
        let component = found.component;
        if !component.unused.is_empty() {
            let mut tensors = component.unused;
            tensors.sort();
            return Err(Error::UnusedTensors {
                path: path.clone(),
                class: class(found.kind),
                tensors,
            });
        }
        let weights = Weights::mapped(file, &component.tensors)?;
        let config = match beside(path)? {
            Some(config) if found.kind != ControlKind::Image => config,
            _ => Config::of(path, component.config),
        };
        let files = match found.kind {
            ControlKind::Net => Self::Net { config, weights },
            ControlKind::Adapter => Self::Adapter { config, weights },
            ControlKind::Image => {
                let projection = ImagePromptConfig::new(path, &weights)?;
                image_prompt::check(&projection, &weights)?;
                Self::Image {
                    encoder: encoder(path, &projection),
                    weights,
                }
            }
        };
        let warnings = [found.warnings, file.warnings.clone()].concat();
        Ok((files, warnings))
    }

    /// Returns the class in a folder's `config.json`, if it is the class of a network that guides a
    /// model, also of one that is not supported. The folder may be a model folder that has nothing
    /// but a folder `controlnet`.
    pub fn class_in(folder: &Path) -> Option<String> {
        let whole = folder.join("config.json");
        let config = match whole.is_file() {
            true => whole,
            false if folder.join("unet").exists() => return None,
            false => folder.join(CONTROL_NET).join("config.json"),
        };
        let config = Config::open(&config, MOST_CONFIG).ok()?;
        let class = config.value("_class_name")?.as_str()?;
        let known = [control_net::CLASS, t2i_adapter::CLASS].into_iter();
        let mut known = known.chain(REFUSED.iter().map(|(name, _)| *name));
        known.any(|name| name == class).then(|| class.to_owned())
    }

    /// Returns the family of the models that the network guides, if its shapes show it.
    pub fn family(&self) -> Option<Family> {
        let of_width = |width| match width {
            768 => Some(Family::Sd1),
            1024 => Some(Family::Sd2),
            2048 => Some(Family::Xl),
            _ => None,
        };
        match self {
            Self::Net { config, .. } if config.is_set("addition_embed_type") => Some(Family::Xl),
            Self::Net { config, .. } => of_width(config.value("cross_attention_dim")?.as_u64()?),
            Self::Adapter { config, .. } => {
                let is_xl = config
                    .value("adapter_type")
                    .is_some_and(|kind| kind == "full_adapter_xl");
                // The published adapters of Stable Diffusion are for its first version.
                Some(if is_xl { Family::Xl } else { Family::Sd1 })
            }
            Self::Image { weights, .. } => {
                let mut names = weights.names();
                let keys = names.find(|name| name.ends_with(".to_k_ip.weight"))?;
                of_width(*weights.shape(keys)?.get(1)? as u64)
            }
        }
    }

    fn of_folder(path: &Path, variant: Option<&str>) -> Result<Self, Error> {
        let config = path.join("config.json");
        let inner = path.join(CONTROL_NET);
        if !config.is_file() {
            if inner.join("config.json").is_file() {
                return Self::of_folder(&inner, variant);
            }
            return Err(Error::Missing {
                path: path.to_path_buf(),
                what: "a ControlNet or a T2I-Adapter".into(),
                hint: format!(
                    "expected a folder with `config.json` and \
                     `diffusion_pytorch_model.safetensors`, or a model folder that has a folder \
                     `{CONTROL_NET}`; an IP-Adapter is given as a file"
                ),
            });
        }
        let config = Config::open(&config, MOST_CONFIG)?;
        let kind = kind_of(&config)?;
        let folder = ModelFolder::flat(path, variant)?;
        let weights = folder.weights(CONTROL_NET)?;
        Ok(match kind {
            ControlKind::Adapter => Self::Adapter { config, weights },
            _ => Self::Net { config, weights },
        })
    }
}

/// Returns the name by which requests call a control network that was loaded from `path` with
/// [`Builder::control`](crate::Builder::control): the name of the file without its extension, or
/// the name of the folder. A file that has diffusers' name for weights is called as its folder.
///
/// ```
/// assert_eq!(sd_onnx::control_name("models/canny.safetensors"), "canny");
/// let inside = "canny/diffusion_pytorch_model.safetensors";
/// assert_eq!(sd_onnx::control_name(inside), "canny");
/// ```
pub fn control_name(path: impl AsRef<Path>) -> String {
    name_of(path.as_ref())
}

pub(crate) fn name_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    if path.is_dir() {
        return folder_name(path);
    }
    match path.parent() {
        Some(folder) if is_plain(path) && !folder.as_os_str().is_empty() => folder_name(folder),
        _ => stem.into_owned(),
    }
}

/// Whether a weight file has a name that says nothing about its contents.
fn is_plain(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let first = name.split(['.', '-']).next().unwrap_or_default();
    PLAIN.contains(&first)
}

/// Classes of diffusers that guide a model and are not supported, with the reason.
const REFUSED: [(&str, &str); 12] = [
    (
        "ControlNetUnionModel",
        "SDXL's union ControlNet, which also takes the kinds of its pictures",
    ),
    (
        "ControlNetXSAdapter",
        "a ControlNet-XS, whose layers run between the layers of the UNet",
    ),
    ("CosmosControlNetModel", LATER),
    ("FluxControlNetModel", LATER),
    ("FluxMultiControlNetModel", LATER),
    ("HunyuanDiT2DControlNetModel", LATER),
    (
        "MultiAdapter",
        "several adapters at once; give each of them by itself",
    ),
    ("QwenImageControlNetModel", LATER),
    ("SanaControlNetModel", LATER),
    ("SD3ControlNetModel", LATER),
    (
        "SparseControlNetModel",
        "AnimateDiff's ControlNet, which guides a video",
    ),
    (
        "UNetControlNetXSModel",
        "a ControlNet-XS, whose layers run between the layers of the UNet",
    ),
];
const LATER: &str = "a ControlNet of a diffusion transformer such as Stable Diffusion 3 or Flux";

/// Returns what a folder has, by its class.
fn kind_of(config: &Config) -> Result<ControlKind, Error> {
    let class = config.text("_class_name", control_net::CLASS)?;
    match class {
        control_net::CLASS => return Ok(ControlKind::Net),
        t2i_adapter::CLASS => return Ok(ControlKind::Adapter),
        _ => {}
    }
    let expected = format!("\"{}\" or \"{}\"", control_net::CLASS, t2i_adapter::CLASS);
    match REFUSED.iter().find(|(name, _)| *name == class) {
        Some((_, what)) => Err(Error::Config {
            path: config.path().to_path_buf(),
            key: "_class_name".into(),
            expected,
            found: format!("\"{class}\", {what}, which is not supported"),
        }),
        None => Err(config.wrong("_class_name", expected)),
    }
}

fn class(kind: ControlKind) -> &'static str {
    match kind {
        ControlKind::Net => control_net::CLASS,
        ControlKind::Adapter => t2i_adapter::CLASS,
        ControlKind::Image => image_prompt::CLASS,
    }
}

/// Returns the `config.json` beside a file that has diffusers' name for weights, if it is the one
/// of a network that guides a model.
fn beside(path: &Path) -> Result<Option<Config>, Error> {
    let beside = path.with_file_name("config.json");
    if !is_plain(path) || !beside.is_file() {
        return Ok(None);
    }
    let config = Config::open(&beside, MOST_CONFIG)?;
    Ok(kind_of(&config).is_ok().then_some(config))
}

/// Returns the folder of the CLIP vision model that an IP-Adapter was trained with.
///
/// The published repository has the adapters and an encoder in each of its folders `models` and
/// `sdxl_models`. The adapters for SDXL whose names end with `vit-h` need the encoder in `models`.
/// The widths decide.
fn encoder(path: &Path, projection: &ImagePromptConfig) -> Option<PathBuf> {
    let folder = std::path::absolute(path).ok()?;
    let folder = folder.parent()?;
    let above = folder.parent();
    let in_above = ["", "models", "sdxl_models"];
    let others = above
        .into_iter()
        .flat_map(|above| in_above.map(|name| above.join(name)));
    let mut places = [folder.to_path_buf()].into_iter().chain(others);
    places.find_map(|place| {
        let encoder = place.join(IMAGE_ENCODER);
        let config = Config::open(&encoder.join("config.json"), MOST_CONFIG).ok()?;
        // A whole CLIP model has its own width of embeddings.
        let whole = config
            .object("vision_config")
            .map(|_| config.value("projection_dim").cloned());
        let config = config.section("vision_config");
        let width = match (projection.takes_hidden(), whole) {
            (true, _) => config.value("hidden_size")?.as_u64()?,
            (false, Some(width)) => width?.as_u64()?,
            (false, None) => config.value("projection_dim")?.as_u64()?,
        };
        (width == projection.input as u64).then_some(encoder)
    })
}
