//! Opens a model: a folder or a single file, optionally with parts from other files.
//!
//! Both forms provide the same things for each network: the values of a `config.json`, and the
//! weights under their current names. The networks are built without knowing the form.

mod file;
mod folder;
mod vision;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use sd_core::{Inputs, SizeIds};
use sd_text::{ClipTokenizer, Layer, outside::printable};
use serde_json::{Map, Value};

use self::file::ModelFile;
pub(crate) use self::{
    file::{MOST_YAML, recognise},
    folder::{ModelFolder, folder_name},
    vision::{FOLDER as IMAGE_ENCODER, PREPROCESSING, PREPROCESSOR, VisionFiles},
};
use crate::{
    Error,
    checkpoint::{Family, Predicts},
    config::{Config, read_text},
    corrections::{Corrections, Task},
    exported,
    models::vae::KL,
    weights::Weights,
};

/// A model: a folder or a single file, and the parts from elsewhere that replace or complete it.
#[derive(Debug)]
pub(crate) struct Source {
    base: Base,
    elsewhere: Vec<(&'static str, Base)>,
    /// A folder of tokenizer files that replaces the model's tokenizers.
    tokenizer: Option<PathBuf>,
}

/// Files or folders to take parts of a model from, in place of the model itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Elsewhere {
    pub unet: Option<PathBuf>,
    pub vae: Option<PathBuf>,
    pub text_encoder: Option<PathBuf>,
    pub text_encoder_2: Option<PathBuf>,
    /// A folder of tokenizer files, or a model folder.
    pub tokenizer: Option<PathBuf>,
}

#[derive(Debug)]
enum Base {
    Folder(ModelFolder),
    File(Box<ModelFile>),
}

/// A text encoder of a model: the names of its components, and the layer whose states are used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TowerParts {
    pub encoder: &'static str,
    pub tokenizer: &'static str,
    pub layer: Layer,
    /// Whether the encoder has a pooled output.
    pub pooled: bool,
}

impl TowerParts {
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

/// Returns the text encoders of a model, in the order in which their states are concatenated. The
/// flags say whether the model has `text_encoder` and `text_encoder_2`.
fn towers_of([first, second]: [bool; 2]) -> &'static [TowerParts] {
    match (first, second) {
        (true, true) => &[TowerParts::FIRST, TowerParts::SECOND],
        (false, true) => &[TowerParts::SECOND],
        _ => &[TowerParts::ONLY],
    }
}

impl Source {
    /// Opens a model and checks that it has these components, in its own files or from elsewhere.
    /// `predicts` is the kind of prediction that the user has set for the UNet.
    pub fn open(
        path: &Path,
        variant: Option<&str>,
        elsewhere: &Elsewhere,
        predicts: Option<Predicts>,
        components: &[&str],
    ) -> Result<Self, Error> {
        let parts = [
            ("unet", &elsewhere.unet),
            ("vae", &elsewhere.vae),
            ("text_encoder", &elsewhere.text_encoder),
            ("text_encoder_2", &elsewhere.text_encoder_2),
        ];
        let given = |(name, path): (&'static str, &Option<PathBuf>)| {
            let path = path.as_ref()?;
            Some(Base::part(path, variant, predicts, name).map(|base| (name, base)))
        };
        let source = Self {
            base: Base::open(path, variant, predicts)?,
            elsewhere: parts
                .into_iter()
                .filter_map(given)
                .collect::<Result<_, _>>()?,
            tokenizer: elsewhere.tokenizer.clone(),
        };
        for &name in components {
            if name == "vae" && source.exported_codec()?.is_some() {
                continue;
            }
            source.of(name).require(name)?;
        }
        source.refuse_unneeded()?;
        Ok(source)
    }

    /// Refuses parts from elsewhere that the model cannot use.
    fn refuse_unneeded(&self) -> Result<(), Error> {
        let towers = self.towers();
        let is_needed = |name: &str| {
            ["unet", "vae"].contains(&name) || towers.iter().any(|tower| tower.encoder == name)
        };
        match self.elsewhere.iter().find(|(name, _)| !is_needed(name)) {
            None => Ok(()),
            Some((name, base)) => Err(Error::Checkpoint {
                path: base.path().to_path_buf(),
                problem: format!(
                    "this part was given as `{name}`, which {} does not have",
                    printable(self.path().display())
                ),
            }),
        }
    }

    /// Opens a model of which only the text encoder and the tokenizer are used. `path` is a model,
    /// or a folder that holds the files of both, as CLIP's own folders do.
    pub fn open_text(
        path: &Path,
        variant: Option<&str>,
        elsewhere: &Elsewhere,
    ) -> Result<Self, Error> {
        if path.join("text_encoder").is_dir() || !path.join("config.json").is_file() {
            return Self::open(path, variant, elsewhere, None, &["text_encoder"]);
        }
        let given = [
            &elsewhere.unet,
            &elsewhere.vae,
            &elsewhere.text_encoder,
            &elsewhere.text_encoder_2,
        ];
        if let Some(path) = given.into_iter().flatten().next() {
            return Err(Error::Checkpoint {
                path: path.clone(),
                problem: "this part was given from elsewhere, but a CLIP folder is used alone"
                    .into(),
            });
        }
        Ok(Self {
            base: Base::Folder(ModelFolder::flat(path, variant)?),
            elsewhere: Vec::new(),
            tokenizer: elsewhere.tokenizer.clone(),
        })
    }

    /// Returns the folder or file that a component comes from.
    fn of(&self, component: &str) -> &Base {
        let part = self.elsewhere.iter().find(|(name, _)| *name == component);
        part.map_or(&self.base, |(_, base)| base)
    }

    /// Returns the folder or file that determines how the model draws. A UNet from elsewhere brings
    /// its noise schedule and text encoders, unless it is a bare component folder.
    fn model(&self) -> &Base {
        match self.of("unet") {
            Base::Folder(folder) if folder.is_flat() => &self.base,
            base => base,
        }
    }

    /// Returns the text encoders, in the order in which their states are concatenated.
    pub fn towers(&self) -> &'static [TowerParts] {
        match self.model() {
            Base::File(file) => towers_of(file.text_encoders()),
            Base::Folder(folder) => {
                let has = |name| {
                    let given = self.elsewhere.iter().any(|(part, _)| *part == name);
                    given || folder.has(name)
                };
                towers_of(["text_encoder", "text_encoder_2"].map(has))
            }
        }
    }

    /// Returns which size conditioning the UNet takes, if it is an SDXL UNet.
    ///
    /// Default: an aesthetic score for the refiner, which has one text encoder, and the target size
    /// for other models.
    pub fn sizes(&self) -> SizeIds {
        let is_refiner = matches!(self.towers(), [tower] if tower.pooled);
        let takes_score = match self.model() {
            Base::Folder(folder) => folder.takes_score(),
            Base::File(file) => file.takes_score(),
        };
        match takes_score.unwrap_or(is_refiner) {
            true => SizeIds::Score,
            false => SizeIds::Target,
        }
    }

    /// Returns whether an empty negative prompt is replaced by zeros.
    ///
    /// Default: only with two text encoders, as in SDXL's base.
    pub fn zero_empty_negative(&self) -> bool {
        let is_base = self.towers().len() == 2;
        let said = match self.model() {
            Base::Folder(folder) => folder.zeros_for_empty(),
            Base::File(file) => file.zeros_for_empty(),
        };
        said.unwrap_or(is_base)
    }

    /// The path of the model's folder or file.
    pub fn path(&self) -> &Path {
        self.base.path()
    }

    /// Returns the model's name.
    pub fn name(&self) -> String {
        match &self.base {
            Base::Folder(folder) => folder.name(),
            Base::File(file) => file.name(),
        }
    }

    /// Returns the pipeline class in diffusers. The result is empty for a custom class.
    pub fn class(&self) -> &str {
        match self.model() {
            Base::Folder(folder) => folder.class(),
            Base::File(file) => file.class(),
        }
    }

    /// Returns the pipeline class's corrections to the configurations. A file needs no corrections.
    pub fn corrections(&self) -> Corrections {
        match self.model() {
            Base::Folder(folder) => Corrections::of_class(folder.class()),
            Base::File(_) => Corrections::of_class(""),
        }
    }

    /// Like [`corrections`](Self::corrections), for the class that diffusers has for a task.
    pub fn corrections_for(&self, task: Task) -> Corrections {
        match self.model() {
            Base::Folder(folder) => Corrections::for_task(folder.class(), task),
            Base::File(_) => Corrections::of_class(""),
        }
    }

    /// Returns the storage format, in words.
    pub fn format(&self) -> String {
        let is_exported = |name| self.graph(name).is_ok_and(|graph| graph.is_some());
        match &self.base {
            Base::Folder(_) if self.has("unet") && is_exported("unet") => "ONNX folder".to_owned(),
            Base::Folder(_) => "diffusers folder".to_owned(),
            Base::File(file) => file.format().to_string(),
        }
    }

    /// Returns a short description of the model. `inputs` are the inputs of its UNet.
    pub fn title(&self, inputs: Option<&Inputs>) -> String {
        match (self.model(), inputs) {
            (Base::File(file), _) => file.title(),
            (_, None) => "parts of a model".to_owned(),
            (_, Some(inputs)) if inputs.sizes == Some(SizeIds::Score) => "SDXL refiner".to_owned(),
            (_, Some(inputs)) if inputs.pooled.is_some() => "SDXL".to_owned(),
            (_, Some(inputs)) if inputs.context <= 768 => "Stable Diffusion 1.x".to_owned(),
            _ => "Stable Diffusion 2.x".to_owned(),
        }
    }

    /// Returns the keyword of a distilled model, or of another model with special defaults, if the
    /// tensors or the header of a file identify it.
    pub fn word(&self) -> Option<&'static str> {
        match self.model() {
            Base::Folder(_) => None,
            Base::File(file) => file.word(),
        }
    }

    /// Returns the reason for the kind of prediction that [`scheduler`](Self::scheduler) reports.
    pub fn because(&self) -> String {
        match self.model() {
            Base::Folder(_) => "because scheduler_config.json says so".to_owned(),
            Base::File(file) => file.because().to_owned(),
        }
    }

    /// Returns the file's metadata. The result is empty for a folder.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        match &self.base {
            Base::Folder(_) => BTreeMap::new(),
            Base::File(file) => file.metadata().clone(),
        }
    }

    /// Lists the components that the model has, in its own files or from elsewhere. An exported
    /// autoencoder counts as two components, `vae_decoder` and `vae_encoder`.
    pub fn components(&self) -> Result<Vec<&'static str>, Error> {
        const NETWORKS: [&str; 4] = ["unet", "vae", "text_encoder", "text_encoder_2"];
        let mut there: Vec<_> = NETWORKS.into_iter().filter(|name| self.has(name)).collect();
        if let Some(path) = self.exported_codec()? {
            let halves = ["vae_decoder", "vae_encoder"];
            there.extend(halves.into_iter().filter(|half| path.join(half).is_dir()));
        }
        Ok(there)
    }

    /// Lists the components that the model needs, but has neither in its own files nor from
    /// elsewhere.
    pub fn missing(&self) -> Result<Vec<&'static str>, Error> {
        let has_codec = self.exported_codec()?.is_some();
        let towers = self.towers().iter().map(|tower| tower.encoder);
        let needed = ["unet", "vae"].into_iter().chain(towers);
        let is_there = |name: &&str| self.has(name) || (*name == "vae" && has_codec);
        Ok(needed.filter(|name| !is_there(name)).collect())
    }

    /// Returns the warnings about the file, for the user. The result is empty for a folder.
    pub fn warnings(&self) -> &[String] {
        match &self.base {
            Base::Folder(_) => &[],
            Base::File(file) => file.warnings(),
        }
    }

    /// Whether a component is available.
    pub fn has(&self, component: &str) -> bool {
        self.of(component).has(component)
    }

    /// Returns a component's `config.json`. A VAE file cannot store how latents are scaled, so its
    /// configuration gets the scaling of the model's latents.
    pub fn config(&self, component: &str) -> Result<Config, Error> {
        let mut config = self.of(component).config(component)?;
        let is_file = matches!(self.of(component), Base::File(_));
        if component == "vae" && is_file && config.text("_class_name", KL)? == KL {
            self.scale(&mut config)?;
        }
        Ok(config)
    }

    /// Warns about an autoencoder from elsewhere that scales latents differently from the model's
    /// own. It belongs to another family.
    pub fn warn_of_scaling(&self, config: &Config) -> Result<(), Error> {
        let is_from_elsewhere = self.elsewhere.iter().any(|(name, _)| *name == "vae");
        if !is_from_elsewhere || config.text("_class_name", KL)? != KL {
            return Ok(());
        }
        let expected = match (self.model(), self.towers().iter().any(|tower| tower.pooled)) {
            _ if self.base.has("vae") => {
                let own = self.base.config("vae")?;
                match own.text("_class_name", KL)? == KL {
                    true => own.finite("scaling_factor")?,
                    false => None,
                }
            }
            (Base::File(file), _) => file.scaling_factor().map(|factor| factor as f32),
            (Base::Folder(_), true) => Some(Family::Xl.scaling_factor() as f32),
            (Base::Folder(_), false) => Some(Family::Sd1.scaling_factor() as f32),
        };
        if let (Some(expected), Some(found)) = (expected, config.finite("scaling_factor")?)
            && (expected - found).abs() > 1e-5
        {
            tracing::warn!(
                "{}: this autoencoder scales latents by {found}, but the model by {expected}: it \
                 belongs to another family, and the pictures will be wrong",
                printable(config.path().display())
            );
        }
        Ok(())
    }

    /// Whether the autoencoder is an `AutoencoderKL` from a file, with a scaling that neither the
    /// file nor the model determines.
    pub fn is_bare_vae(&self) -> bool {
        let config = self.config("vae");
        let is_set = config.is_ok_and(|config| {
            config.is_set("scaling_factor")
                || config.text("_class_name", KL).is_ok_and(|it| it != KL)
        });
        matches!(self.of("vae"), Base::File(_)) && !is_set
    }

    /// Sets the scaling of the model's latents in an autoencoder's configuration that has none.
    fn scale(&self, config: &mut Config) -> Result<(), Error> {
        const KEYS: [&str; 4] = [
            "scaling_factor",
            "shift_factor",
            "latents_mean",
            "latents_std",
        ];
        if KEYS.iter().any(|key| config.is_set(key)) {
            return Ok(());
        }
        if self.base.has("vae") && !std::ptr::eq(self.of("vae"), &self.base) {
            let own = self.base.config("vae")?;
            // The factors of another autoencoder class do not apply to `AutoencoderKL`.
            for key in KEYS
                .iter()
                .filter(|_| own.text("_class_name", KL).is_ok_and(|class| class == KL))
            {
                if let Some(value) = own.value(key) {
                    config.set(key, value.clone());
                }
            }
        }
        let factor = match self.model() {
            Base::File(file) => file.scaling_factor(),
            Base::Folder(_) if self.towers().iter().any(|tower| tower.pooled) => {
                Some(Family::Xl.scaling_factor())
            }
            Base::Folder(_) => Some(Family::Sd1.scaling_factor()),
        };
        if let Some(factor) = factor
            && !config.is_set(KEYS[0])
        {
            config.set(KEYS[0], factor.into());
        }
        Ok(())
    }

    /// Returns the file of a component's graph, if another tool exported the component.
    pub fn graph(&self, component: &str) -> Result<Option<PathBuf>, Error> {
        match self.of(component) {
            Base::Folder(folder) => exported::graph_in(&folder.component(component)?),
            Base::File(_) => Ok(None),
        }
    }

    /// Returns the model folder, if its autoencoder consists of exported graphs.
    pub fn exported_codec(&self) -> Result<Option<&Path>, Error> {
        match self.of("vae") {
            Base::Folder(folder) if !folder.is_flat() => {
                let path = folder.path();
                Ok(exported::has_codec(path)?.then_some(path))
            }
            _ => Ok(None),
        }
    }

    /// Opens a component's weights.
    pub fn weights(&self, component: &str) -> Result<Weights, Error> {
        match self.of(component) {
            Base::Folder(folder) => folder.weights(component),
            Base::File(file) => file.weights(component),
        }
    }

    /// Lists the files that hold a component's weights: one file, or its shards in order.
    pub fn weight_files(&self, component: &str) -> Result<Vec<PathBuf>, Error> {
        match self.of(component) {
            Base::Folder(folder) => folder.weight_files(component),
            Base::File(file) => Ok(vec![file.path().to_path_buf()]),
        }
    }

    /// Returns the path and the text of `scheduler_config.json`. For a file, returns the path of
    /// the file and the text that diffusers would write.
    pub fn scheduler(&self) -> Result<(PathBuf, String), Error> {
        match self.model() {
            Base::Folder(folder) => {
                let path = folder.component("scheduler")?.join("scheduler_config.json");
                let text = read_text(&path, crate::config::MOST_CONFIG)?;
                Ok((path, text))
            }
            Base::File(file) => Ok((file.path().to_path_buf(), file.scheduler())),
        }
    }

    /// Loads the tokenizer of a text encoder.
    pub fn tokenizer(&self, tower: TowerParts) -> Result<ClipTokenizer, Error> {
        let tokenizer = match self.tokenizer_folder(tower)? {
            Some(folder) => ClipTokenizer::load(folder)?,
            None => ClipTokenizer::clip(),
        };
        Ok(match self.pad(tower) {
            Some(pad) => tokenizer.padded_with(pad)?,
            None => tokenizer,
        })
    }

    /// Returns the files of a text encoder's tokenizer.
    pub fn tokenizer_files(&self, tower: TowerParts) -> Result<TokenizerFiles, Error> {
        let Some(folder) = self.tokenizer_folder(tower)? else {
            let pad = self.pad(tower).unwrap_or("<|endoftext|>");
            return Ok(TokenizerFiles::Made(ClipTokenizer::clip_files(pad)));
        };
        let files = TOKENIZER_FILES.iter().map(|name| folder.join(name));
        Ok(TokenizerFiles::Copied(
            files.filter(|file| file.is_file()).collect(),
        ))
    }

    /// Returns the tokenizer folder of a text encoder.
    ///
    /// The user's folder comes first, then the folder that the encoder is from, then the model's
    /// own. Returns `None` for a single file, which has no tokenizer.
    fn tokenizer_folder(&self, tower: TowerParts) -> Result<Option<PathBuf>, Error> {
        if let Some(folder) = &self.tokenizer {
            let of_model = folder.join(tower.tokenizer);
            let is_model = of_model.is_dir();
            return Ok(Some(if is_model { of_model } else { folder.clone() }));
        }
        for base in [self.of(tower.encoder), &self.base, self.model()] {
            match base {
                // A bare text encoder folder, such as CLIP's own, has no tokenizer folder.
                Base::Folder(folder) if folder.is_flat() && !std::ptr::eq(base, &self.base) => {}
                Base::Folder(folder) if folder.has(tower.tokenizer) => {
                    return folder.component(tower.tokenizer).map(Some);
                }
                _ => {}
            }
        }
        match self.model() {
            Base::Folder(folder) => folder.component(tower.tokenizer).map(Some),
            Base::File(_) => Ok(None),
        }
    }

    /// Returns the padding token of a text encoder, where its tokenizer's files do not determine
    /// it.
    ///
    /// That is the case for the model of a single file, with CLIP's tokenizer or with one tokenizer
    /// folder for all text encoders.
    fn pad(&self, tower: TowerParts) -> Option<&'static str> {
        let one_for_all = self.tokenizer.as_ref();
        let is_said = match one_for_all {
            Some(folder) => folder.join(tower.tokenizer).is_dir(),
            None => self
                .tokenizer_folder(tower)
                .is_ok_and(|folder| folder.is_some()),
        };
        match self.model() {
            Base::File(file) if !is_said => file.pad(tower),
            _ => None,
        }
    }

    /// Returns the contents of `model_index.json`. For a file, only the entries that are not
    /// classes.
    pub fn index(&self) -> Result<Map<String, Value>, Error> {
        match self.model() {
            Base::File(file) => Ok(file.index()),
            Base::Folder(folder) => {
                let path = folder.path().join("model_index.json");
                match path.is_file() {
                    true => Ok(Config::open(&path, crate::config::MOST_CONFIG)?.into_map()),
                    false => Ok(Map::new()),
                }
            }
        }
    }
}

/// The files of a tokenizer.
#[derive(Debug)]
pub(crate) enum TokenizerFiles {
    /// Files to copy from a folder.
    Copied(Vec<PathBuf>),
    /// CLIP's tokenizer files: names and contents.
    Made([(&'static str, String); 4]),
}

/// The files that a tokenizer is read from.
const TOKENIZER_FILES: [&str; 6] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

impl Base {
    fn open(path: &Path, variant: Option<&str>, predicts: Option<Predicts>) -> Result<Self, Error> {
        if path.is_dir() {
            return ModelFolder::open(path, variant).map(Self::Folder);
        }
        if path.exists() {
            if let Some(variant) = variant {
                tracing::warn!(
                    "{}: a file has no variants, so `{}` is ignored",
                    printable(path.display()),
                    printable(variant)
                );
            }
            return ModelFile::open(path, predicts).map(|file| Self::File(Box::new(file)));
        }
        Err(Error::Missing {
            path: path.to_path_buf(),
            what: "model".into(),
            hint:
                "expected a checkpoint file, or a folder in the diffusers layout, with unet, vae, \
                   text_encoder, tokenizer and scheduler in it"
                    .into(),
        })
    }

    /// Opens the source of one component: a folder with only that component, or a model.
    fn part(
        path: &Path,
        variant: Option<&str>,
        predicts: Option<Predicts>,
        component: &str,
    ) -> Result<Self, Error> {
        if !path.exists() {
            return Err(Error::Missing {
                path: path.to_path_buf(),
                what: format!("the file or folder for `{component}`"),
                hint: "check the path given to the builder".into(),
            });
        }
        let base = match path.join("config.json").is_file() {
            true => Self::Folder(ModelFolder::flat(path, variant)?),
            false => Self::open(path, variant, predicts)?,
        };
        base.require(component)?;
        Ok(base)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder.path(),
            Self::File(file) => file.path(),
        }
    }

    fn config(&self, component: &str) -> Result<Config, Error> {
        match self {
            Self::Folder(folder) => folder.config(component),
            Self::File(file) => file.config(component),
        }
    }

    fn has(&self, component: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.has(component),
            Self::File(file) => file.has(component),
        }
    }

    fn require(&self, component: &str) -> Result<(), Error> {
        match self {
            Self::Folder(folder) => folder.component(component).map(drop),
            Self::File(file) => file.require(component),
        }
    }
}
