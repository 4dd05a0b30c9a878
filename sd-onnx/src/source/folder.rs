//! A Stable Diffusion model in diffusers' folder layout, as written today or since 2022.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use sd_text::outside::{list, printable};

use crate::{
    Error,
    config::{Config, MOST_CONFIG},
    corrections::DEFAULT_CLASS,
    exported,
    weights::{self, Weights},
};

/// A model folder, and the variant that the user asked for.
#[derive(Debug)]
pub(crate) struct ModelFolder {
    path: PathBuf,
    variant: Option<String>,
    /// Whether the files of one component lie directly in the folder.
    flat: bool,
    index: Index,
}

/// The entries of `model_index.json` that are used. The defaults apply if there is no such file.
#[derive(Debug, Default)]
struct Index {
    /// The pipeline class, or `None` for a custom class, which is a list of its file and its name.
    class: Option<String>,
    zeros_for_empty: Option<bool>,
    aesthetics_score: Option<bool>,
}

/// Pipeline classes of unsupported models, with a description of each model.
const REFUSED: [(&str, &str); 5] = [
    ("OnnxStableDiffusionUpscalePipeline", "the x4 upscaler"),
    ("StableDiffusionDepth2ImgPipeline", "a depth-to-image model"),
    ("StableDiffusionUpscalePipeline", "the x4 upscaler"),
    ("StableUnCLIPPipeline", "Stable unCLIP"),
    ("StableUnCLIPImg2ImgPipeline", "Stable unCLIP"),
];

impl ModelFolder {
    /// Opens a folder in the diffusers layout.
    pub fn open(path: &Path, variant: Option<&str>) -> Result<Self, Error> {
        let folder = Self {
            path: path.to_path_buf(),
            variant: variant.map(str::to_owned),
            flat: false,
            index: Index::read(path)?,
        };
        folder.refuse_other_models()?;
        folder.check_variant()?;
        Ok(folder)
    }

    /// Opens a folder that has the files of one component directly in it.
    pub fn flat(path: &Path, variant: Option<&str>) -> Result<Self, Error> {
        let folder = Self {
            path: path.to_path_buf(),
            variant: variant.map(str::to_owned),
            flat: true,
            index: Index::default(),
        };
        folder.check_variant()?;
        Ok(folder)
    }

    /// Refuses models that are known but not supported.
    fn refuse_other_models(&self) -> Result<(), Error> {
        let refuse = |what: &str| {
            Err(Error::Config {
                path: self.path.join("model_index.json"),
                key: "_class_name".into(),
                expected: "the pipeline of a Stable Diffusion model".into(),
                found: format!("the pipeline of {what}, which is not supported"),
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

    /// Whether the UNet takes an aesthetic score, if `model_index.json` says so.
    pub fn takes_score(&self) -> Option<bool> {
        self.index.aesthetics_score
    }

    /// Whether an empty negative prompt is replaced by zeros, if `model_index.json` says so.
    pub fn zeros_for_empty(&self) -> Option<bool> {
        self.index.zeros_for_empty
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the folder of a single component.
    pub fn is_flat(&self) -> bool {
        self.flat
    }

    /// Whether the folder has a component.
    pub fn has(&self, component: &str) -> bool {
        self.flat || self.path.join(component).is_dir()
    }

    /// Returns the path of a component's folder.
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

    /// Reads a component's `config.json`.
    pub fn config(&self, component: &str) -> Result<Config, Error> {
        Config::open(&self.component(component)?.join("config.json"), MOST_CONFIG)
    }

    /// Returns the pipeline class. The result is empty for a custom class.
    pub fn class(&self) -> &str {
        self.index.class.as_deref().unwrap_or_default()
    }

    /// Opens a component's weights.
    pub fn weights(&self, component: &str) -> Result<Weights, Error> {
        Weights::open(&self.weight_file(component)?)
    }

    /// Lists the files that hold a component's weights: one file, its shards in order, or an
    /// exported graph with its data files.
    pub fn weight_files(&self, component: &str) -> Result<Vec<PathBuf>, Error> {
        if let Some(graph) = exported::graph_in(&self.component(component)?)? {
            return exported::files(&graph);
        }
        weights::files(&self.weight_file(component)?)
    }

    /// Returns the model's name.
    pub fn name(&self) -> String {
        folder_name(&self.path)
    }

    /// Returns the weight file of a component, or the index of its shards.
    ///
    /// The requested variant is preferred, then the plain file, then the only file there is. A
    /// pickle is used only if no safetensors file has the requested variant, or if there is no
    /// safetensors file at all.
    fn weight_file(&self, component: &str) -> Result<PathBuf, Error> {
        let folder = self.component(component)?;
        let [mut files, mut pickles] = candidates(&folder, component)?;
        let wanted = |files: &[(String, PathBuf)]| {
            let variant = self.variant.as_ref()?;
            files.iter().position(|(found, _)| found == variant)
        };
        let plain =
            |files: &[(String, PathBuf)]| files.iter().position(|(found, _)| found.is_empty());
        let (of_files, of_pickles) = (wanted(&files), wanted(&pickles));
        if of_files.is_none()
            && let Some(found) = of_pickles
        {
            return Ok(pickles.swap_remove(found).1);
        }
        if files.is_empty() {
            files = pickles;
        }
        if let Some(found) = of_files.or(plain(&files)) {
            return Ok(files.swap_remove(found).1);
        }
        match files.len() {
            1 => Ok(files.swap_remove(0).1),
            0 => Err(Error::Missing {
                path: folder,
                what: plain_file(component).to_owned(),
                hint: "the folder has no weights".into(),
            }),
            _ => Err(Error::Variants {
                path: folder,
                plain: plain_file(component).to_owned(),
                found: files.into_iter().map(|(variant, _)| variant).collect(),
            }),
        }
    }

    /// Checks that the requested variant exists. One component with it is enough (only UNets have a
    /// `non_ema` variant), but a variant that no component has is a mistake.
    fn check_variant(&self) -> Result<(), Error> {
        let Some(variant) = &self.variant else {
            return Ok(());
        };
        let mut found = Vec::new();
        for component in ["unet", "vae", "text_encoder", "text_encoder_2"] {
            // A missing component is reported where it is needed.
            let Ok(folder) = self.component(component) else {
                continue;
            };
            let files = candidates(&folder, component)?.into_iter().flatten();
            found.extend(files.map(|(variant, _)| variant));
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
            hint: format!("available variants: {found}"),
        })
    }
}

/// Returns the name of a model folder: its own, or the repository's in the Hugging Face cache,
/// where the folder's name is a hash.
pub(crate) fn folder_name(path: &Path) -> String {
    // The paths `.` and `..` have no file name.
    let whole = match path.file_name() {
        Some(_) => std::path::absolute(path),
        None => fs::canonicalize(path),
    };
    let whole = whole.unwrap_or_else(|_| path.to_path_buf());
    let mut above = whole
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
                    // optimum's pipeline classes are the diffusers classes with this prefix.
                    class.strip_prefix("ORT").unwrap_or(class).to_owned()
                }),
            },
        })
    }
}

/// Returns the stems of safetensors and pickle file names in transformers and diffusers.
fn stems(component: &str) -> [&'static str; 2] {
    if component.starts_with("text_encoder") || component == "image_encoder" {
        ["model", "pytorch_model"]
    } else {
        ["diffusion_pytorch_model"; 2]
    }
}

/// Returns the name of a component's safetensors file without a variant.
fn plain_file(component: &str) -> &'static str {
    match stems(component)[0] {
        "model" => "model.safetensors",
        _ => "diffusion_pytorch_model.safetensors",
    }
}

/// The extensions of safetensors files and pickles.
const EXTENSIONS: [&str; 2] = [".safetensors", ".bin"];

/// Lists the safetensors files and the pickles of a component, including the indices of shards.
///
/// Each path comes with its variant, which is empty for the plain file. If a variant has both a
/// whole file and an index, only the whole file is listed.
fn candidates(folder: &Path, component: &str) -> Result<[Vec<(String, PathBuf)>; 2], Error> {
    let mut all = [Vec::new(), Vec::new()];
    let stems = stems(component);
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let name = entry.map_err(Error::io(folder))?.file_name();
        let Some(text) = name.to_str() else {
            continue;
        };
        for ((files, stem), extension) in all.iter_mut().zip(stems).zip(EXTENSIONS) {
            if let Some(variant) = variant_of(text, stem, extension) {
                files.push((variant.to_owned(), folder.join(&name)));
            }
        }
    }
    for files in &mut all {
        files.sort_by_key(|(variant, path)| {
            let is_index = path.extension().is_some_and(|e| e == "json");
            (is_index, variant.clone())
        });
        files.dedup_by(|(later, _), (earlier, _)| later == earlier);
    }
    Ok(all)
}

/// Returns the variant in the name of a weight file or index. The result is empty for the plain
/// file, `None` for a shard or any other file.
fn variant_of<'a>(name: &'a str, stem: &str, extension: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(stem)?;
    let variant = if let Some(rest) = rest.strip_suffix(".json") {
        // In an index's name, the variant follows `index`. For a while diffusers wrote it before.
        let rest = rest.strip_prefix(extension)?;
        rest.strip_prefix(".index")
            .or_else(|| rest.strip_suffix(".index"))?
    } else {
        rest.strip_suffix(extension)?
    };
    match variant.strip_prefix('.') {
        Some(variant) if !variant.is_empty() && !variant.contains("-of-") => Some(variant),
        None if variant.is_empty() => Some(""),
        _ => None,
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
            assert_eq!(variant_of(name, "model", ".safetensors"), variant, "{name}");
        }
        for (name, variant) in [
            ("pytorch_model.bin", Some("")),
            ("pytorch_model.fp16.bin", Some("fp16")),
            ("pytorch_model.bin.index.json", Some("")),
            ("pytorch_model-00001-of-00002.bin", None),
            ("model.bin", None),
        ] {
            assert_eq!(variant_of(name, "pytorch_model", ".bin"), variant, "{name}");
        }
    }
}
