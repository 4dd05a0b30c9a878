//! A Stable Diffusion model in diffusers' folder layout, as it is written today and as it was published since 2022.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use sd_core::SizeIds;
use sd_text::{
    Layer,
    outside::{list, printable},
};

use crate::{
    Error,
    config::{Config, MOST_CONFIG},
    corrections::{Corrections, DEFAULT_CLASS},
    exported,
    weights::{self, Weights},
};

/// A model folder and the variant asked for.
#[derive(Debug)]
pub(crate) struct ModelFolder {
    path: PathBuf,
    variant: Option<String>,
    /// Whether the components have no folders of their own.
    flat: bool,
    index: Index,
}

/// What `model_index.json` says; the defaults where there is none.
#[derive(Debug, Default)]
struct Index {
    /// The pipeline class. None for a class of one's own, which is a list of its file and its name.
    class: Option<String>,
    zeros_for_empty: Option<bool>,
    aesthetics_score: Option<bool>,
}

/// A text encoder of a model: its folder, the folder of its tokenizer, and the layer that is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TowerFolder {
    pub encoder: &'static str,
    pub tokenizer: &'static str,
    pub layer: Layer,
    /// Whether it has a pooled output.
    pub pooled: bool,
}

impl TowerFolder {
    /// The text encoder of Stable Diffusion 1.x and 2.x.
    pub const ONLY: Self = Self {
        encoder: "text_encoder",
        tokenizer: "tokenizer",
        layer: Layer::LAST,
        pooled: false,
    };
    /// The first text encoder of SDXL.
    const FIRST: Self = Self {
        layer: Layer::SDXL,
        ..Self::ONLY
    };
    /// The second text encoder of SDXL, and the only one of its refiner.
    const SECOND: Self = Self {
        encoder: "text_encoder_2",
        tokenizer: "tokenizer_2",
        layer: Layer::SDXL,
        pooled: true,
    };
}

/// Pipeline classes of models that are not supported, and what they are.
const REFUSED: [(&str, &str); 5] = [
    ("OnnxStableDiffusionUpscalePipeline", "the x4 upscaler"),
    ("StableDiffusionDepth2ImgPipeline", "a depth-to-image model"),
    ("StableDiffusionUpscalePipeline", "the x4 upscaler"),
    ("StableUnCLIPPipeline", "Stable unCLIP"),
    ("StableUnCLIPImg2ImgPipeline", "Stable unCLIP"),
];

impl ModelFolder {
    /// Checks that the folder is a Stable Diffusion model that has these components.
    pub fn open(path: &Path, variant: Option<&str>, components: &[&str]) -> Result<Self, Error> {
        if !path.is_dir() {
            return Err(Error::Missing {
                path: path.to_path_buf(),
                what: "the model folder".into(),
                hint: "expected a folder in the diffusers layout, with unet, vae, text_encoder, tokenizer and scheduler in it"
                    .into(),
            });
        }
        let folder = Self {
            path: path.to_path_buf(),
            variant: variant.map(str::to_owned),
            flat: false,
            index: Index::read(path)?,
        };
        folder.refuse_other_models()?;
        for name in components {
            folder.component(name)?;
        }
        folder.check_variant()?;
        Ok(folder)
    }

    /// Opens a folder of which only the text encoder and the tokenizer are used. It may be a Stable
    /// Diffusion model's folder, or have the files of both directly in it, as CLIP's own folders
    /// do.
    pub fn open_text(path: &Path, variant: Option<&str>) -> Result<Self, Error> {
        if path.join("text_encoder").is_dir() || !path.join("config.json").is_file() {
            return Self::open(path, variant, &["text_encoder", "tokenizer"]);
        }
        let folder = Self {
            path: path.to_path_buf(),
            variant: variant.map(str::to_owned),
            flat: true,
            index: Index::default(),
        };
        folder.check_variant()?;
        Ok(folder)
    }

    /// Refuses models that are known and not supported, by their names.
    fn refuse_other_models(&self) -> Result<(), Error> {
        let refuse = |what: &str| {
            Err(Error::Config {
                path: self.path.join("model_index.json"),
                key: "_class_name".into(),
                expected: "the pipeline of a Stable Diffusion model".into(),
                found: format!("that of {what}, which is not supported"),
            })
        };
        for component in ["transformer", "text_encoder_3"] {
            if self.path.join(component).exists() {
                return refuse("a later model, such as Stable Diffusion 3 or Flux");
            }
        }
        let class = self.index.class.as_deref();
        match REFUSED.iter().find(|(name, _)| class == Some(name)) {
            Some((_, what)) => refuse(what),
            None => Ok(()),
        }
    }

    /// The text encoders, in the order in which their states stand side by side.
    pub fn towers(&self) -> &'static [TowerFolder] {
        let [first, second] =
            ["text_encoder", "text_encoder_2"].map(|name| self.path.join(name).is_dir());
        match (first, second) {
            (true, true) => &[TowerFolder::FIRST, TowerFolder::SECOND],
            (false, true) => &[TowerFolder::SECOND],
            _ => &[TowerFolder::ONLY],
        }
    }

    /// The sizes that the UNet takes, if it is an SDXL UNet. The refiner, which has one text
    /// encoder, takes a score.
    pub fn sizes(&self) -> SizeIds {
        let is_refiner = matches!(self.towers(), [tower] if tower.pooled);
        match self.index.aesthetics_score.unwrap_or(is_refiner) {
            true => SizeIds::Score,
            false => SizeIds::Target,
        }
    }

    /// Whether an empty negative prompt is zeros. Default: only with two text encoders, as in
    /// SDXL's base.
    pub fn zero_empty_negative(&self) -> bool {
        let is_base = self.towers().len() == 2;
        self.index.zeros_for_empty.unwrap_or(is_base)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a component.
    pub fn component(&self, name: &str) -> Result<PathBuf, Error> {
        if self.flat {
            return Ok(self.path.clone());
        }
        let path = self.path.join(name);
        if path.is_dir() {
            return Ok(path);
        }
        Err(Error::Missing {
            path: self.path.clone(),
            what: format!("the folder `{name}`"),
            hint: "a Stable Diffusion folder in the diffusers layout has unet, vae, text_encoder, tokenizer and scheduler"
                .into(),
        })
    }

    /// A component's `config.json`.
    pub fn config(&self, component: &str) -> Result<Config, Error> {
        Config::open(&self.component(component)?.join("config.json"), MOST_CONFIG)
    }

    /// The pipeline class, empty for a class of one's own.
    pub fn class(&self) -> &str {
        self.index.class.as_deref().unwrap_or_default()
    }

    /// What the folder's pipeline class corrects in its configurations.
    pub fn corrections(&self) -> Corrections {
        Corrections::of_class(self.class())
    }

    /// A component's weights.
    pub fn weights(&self, component: &str) -> Result<Weights, Error> {
        Weights::open(&self.weight_file(component)?)
    }

    /// The files that a component's weights lie in: one, or its shards in their order, or an
    /// exported graph and what its weights lie in.
    pub fn weight_files(&self, component: &str) -> Result<Vec<PathBuf>, Error> {
        if let Some(graph) = exported::graph_in(&self.component(component)?)? {
            return exported::files(&graph);
        }
        weights::files(&self.weight_file(component)?)
    }

    /// What the model is called: the folder's name, or in the Hugging Face cache, where that is a hash, the repository's.
    pub fn name(&self) -> String {
        // `.` and `..` have no name.
        let path = match self.path.file_name() {
            Some(_) => std::path::absolute(&self.path),
            None => fs::canonicalize(&self.path),
        };
        let path = path.unwrap_or_else(|_| self.path.clone());
        let mut above = path
            .ancestors()
            .map(|folder| folder.file_name().unwrap_or_default().to_string_lossy());
        let name = above.next().unwrap_or_default();
        let repository = match (above.next().as_deref(), above.next()) {
            (Some("snapshots"), Some(repository)) => repository
                .strip_prefix("models--")
                .and_then(|repository| repository.rsplit("--").next().map(str::to_owned)),
            _ => None,
        };
        repository.unwrap_or_else(|| name.into_owned())
    }

    /// The safetensors file of a component, or the index of its shards: the variant asked for where the component has
    /// it, else the plain one, else the only one there.
    fn weight_file(&self, component: &str) -> Result<PathBuf, Error> {
        let folder = self.component(component)?;
        let mut files = candidates(&folder, stem(component))?;
        let wanted = self
            .variant
            .as_ref()
            .and_then(|variant| files.iter().position(|(v, _)| v == variant));
        let plain = files.iter().position(|(variant, _)| variant.is_empty());
        if let Some(found) = wanted.or(plain) {
            return Ok(files.swap_remove(found).1);
        }
        match files.len() {
            1 => Ok(files.swap_remove(0).1),
            0 => Err(no_safetensors(folder, stem(component))),
            _ => Err(Error::Variants {
                path: folder,
                plain: format!("{}.safetensors", stem(component)),
                found: files.into_iter().map(|(variant, _)| variant).collect(),
            }),
        }
    }

    /// A variant may be there for one component only (`non_ema` always is), but one that is nowhere is a mistake.
    fn check_variant(&self) -> Result<(), Error> {
        let Some(variant) = &self.variant else {
            return Ok(());
        };
        let mut found = Vec::new();
        for component in ["unet", "vae", "text_encoder", "text_encoder_2"] {
            // One that is not there is not needed: see `open`.
            let Ok(folder) = self.component(component) else {
                continue;
            };
            let files = candidates(&folder, stem(component))?;
            found.extend(files.into_iter().map(|(variant, _)| variant));
        }
        found.retain(|v| !v.is_empty());
        if found.contains(variant) {
            return Ok(());
        }
        found.sort();
        found.dedup();
        let found = if found.is_empty() {
            "none".into()
        } else {
            list(found)
        };
        Err(Error::Missing {
            path: self.path.clone(),
            what: format!("the variant `{}`", printable(variant)),
            hint: format!("variants that are there: {found}"),
        })
    }
}

impl Index {
    fn read(folder: &Path) -> Result<Self, Error> {
        let index = match Config::open(&folder.join("model_index.json"), MOST_CONFIG) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(Self {
                    class: Some(DEFAULT_CLASS.to_owned()),
                    ..Self::default()
                });
            }
            index => index?,
        };
        let flag = |key| {
            index
                .is_set(key)
                .then(|| index.bool(key, false))
                .transpose()
        };
        Ok(Self {
            zeros_for_empty: flag("force_zeros_for_empty_prompt")?,
            aesthetics_score: flag("requires_aesthetics_score")?,
            class: match index.value("_class_name") {
                None => Some(DEFAULT_CLASS.to_owned()),
                Some(class) => class.as_str().map(|class| {
                    // optimum's pipelines are diffusers' classes with this in front.
                    class.strip_prefix("ORT").unwrap_or(class).to_owned()
                }),
            },
        })
    }
}

/// What transformers and diffusers call their weight files.
fn stem(component: &str) -> &'static str {
    if component.starts_with("text_encoder") {
        "model"
    } else {
        "diffusion_pytorch_model"
    }
}

/// The safetensors files and shard indices of a component, each with its variant (empty for the plain one), whole
/// files before indices.
fn candidates(folder: &Path, stem: &str) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let name = entry.map_err(Error::io(folder))?.file_name();
        if let Some(variant) = name.to_str().and_then(|name| variant_of(name, stem)) {
            files.push((variant.to_owned(), folder.join(&name)));
        }
    }
    files.sort_by_key(|(variant, path)| {
        (
            path.extension().is_some_and(|e| e == "json"),
            variant.clone(),
        )
    });
    files.dedup_by(|(later, _), (earlier, _)| later == earlier);
    Ok(files)
}

/// The variant of a weight file or an index, empty for the plain one; none for a shard or another file.
fn variant_of<'a>(name: &'a str, stem: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(stem)?;
    let variant = if let Some(rest) = rest.strip_suffix(".json") {
        // `.safetensors.index`, with the variant after it or, for a while, before `index`.
        let rest = rest.strip_prefix(".safetensors")?;
        rest.strip_prefix(".index")
            .or_else(|| rest.strip_suffix(".index"))?
    } else {
        rest.strip_suffix(".safetensors")?
    };
    match variant.strip_prefix('.') {
        Some(variant) if !variant.is_empty() && !variant.contains("-of-") => Some(variant),
        None if variant.is_empty() => Some(""),
        _ => None,
    }
}

/// There is no safetensors file: says what to do with what is there instead.
fn no_safetensors(folder: PathBuf, stem: &str) -> Error {
    let pickled = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .find_map(|entry| {
            let name = entry.file_name().to_str()?.to_owned();
            (name.ends_with(".bin") || name.ends_with(".ckpt")).then_some(name)
        });
    let hint = match pickled {
        Some(name) => format!(
            "there is only `{}`, a pickle, which can run code when it is read; save the model again as safetensors: \
             in Python, `StableDiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)`",
            printable(name)
        ),
        None => "the folder has no weights".into(),
    };
    Error::Missing {
        path: folder,
        what: format!("{stem}.safetensors"),
        hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_as_its_folder_or_repository() {
        let name = |path: &str| {
            ModelFolder {
                path: path.into(),
                variant: None,
                flat: false,
                index: Index::default(),
            }
            .name()
        };
        assert_eq!(name("/a/stable-diffusion-v1-5/"), "stable-diffusion-v1-5");
        assert_eq!(name("models/emoji"), "emoji");
        assert_eq!(name("/h/models--org--sd-v1-5/snapshots/0a1b"), "sd-v1-5");
        assert_eq!(name("/h/models--gpt/snapshots/0a1b"), "gpt");
        assert_eq!(name("/h/mine/snapshots/0a1b"), "0a1b");
        let here = std::env::current_dir().unwrap();
        let here = here.file_name().unwrap().to_str().unwrap();
        assert_eq!(name("."), here);
        assert_eq!(name("src/.."), here);
        assert_eq!(name("/"), "");
    }

    #[test]
    fn file_names_tell_their_variant() {
        for (name, variant) in [
            ("model.safetensors", Some("")),
            ("model.fp16.safetensors", Some("fp16")),
            ("model.safetensors.index.json", Some("")),
            ("model.safetensors.index.fp16.json", Some("fp16")),
            ("model.safetensors.fp16.index.json", Some("fp16")),
            ("model-00001-of-00002.safetensors", None),
            ("model.fp16-00001-of-00002.safetensors", None),
            ("model.bin", None),
            ("pytorch_model.safetensors", None),
            ("model.json", None),
        ] {
            assert_eq!(variant_of(name, "model"), variant, "{name}");
        }
    }
}
