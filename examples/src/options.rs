//! The command-line options that the examples share, and how they become requests.

use std::{
    any::Any,
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, ValueEnum};
use sd_onnx::{
    Builder, Device, GenerateError, Guidance, HiresSize, ImageSize, LoraWeight, Pipeline,
    Precision, Prompt, RefinerShare, RefinerSwitch, Request, Seamless, Shortcuts, Sizes, Stopped,
    TaesdUse, TileWeights, Tiles, VaeTiling,
    schedulers::{
        Ladder, Prediction, Sampler, Scheduler, SchedulerConfig, from_comfyui, from_webui,
        samplers::{SamplerRow, TABLE, WithConventions, row_of},
    },
    text::{PromptText, Side, Warning},
};
use sd_text::{
    Network,
    outside::{chain, printable},
};
use serde_json::{Value, json};

use crate::{
    Failure,
    control::ControlOptions,
    shipped_model,
    start::{OrNone, or_none},
    tell,
};

/// The options that choose a model and set the parameters of a picture.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Model: a checkpoint file (safetensors, pickle or GGUF), or a folder in the diffusers layout
    /// or of ONNX graphs [default: the small model that ships with the examples]
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Parts of the model that are replaced.
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    /// Variant of the weights, such as fp16 [default: the file without a variant, else the only
    /// variant]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Textual inversions: a .safetensors, .pt or .bin file, or a folder of such files; may be
    /// repeated. A prompt uses one by its file's name, or by the token that the file names
    #[arg(long, value_name = "PATH")]
    pub embeddings: Vec<PathBuf>,
    /// LoRA or related adapter to merge into the model, with its weight, such as
    /// fox.safetensors:0.8, or with one weight for the text encoders and one for the UNet, such as
    /// fox.safetensors:0.5:1 [default weight: 1]; may be repeated
    #[arg(long, value_name = "PATH[:WEIGHT]", value_parser = lora)]
    pub lora: Vec<(PathBuf, LoraWeight)>,
    /// Folder of LoRAs that prompts can call by name, as in <lora:fox:0.8>; may be repeated. A
    /// LoRA's name is its file's name without the extension, or the name that the file contains
    #[arg(long, value_name = "DIR")]
    pub loras: Vec<PathBuf>,
    /// Pictures that steer the run.
    #[command(flatten)]
    pub control: ControlOptions,
    /// Axes along which pictures can be repeated without a visible edge: x, y, xy or none. WebUI
    /// calls this tiling [default: none; with txt2img --like, the axes of the file]
    #[arg(long, value_name = "AXES", value_parser = axes)]
    pub seamless: Option<Seamless>,
    /// Negative prompt: what the picture should not show
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub negative: Option<String>,
    /// Prompt for the second text encoder of SDXL [default: the prompt]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt_2: Option<String>,
    /// Negative prompt for the second text encoder of SDXL [default: the negative prompt]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub negative_2: Option<String>,
    /// Encode an empty negative prompt even if the model uses zeros in its place, as SDXL does
    #[arg(long)]
    pub encode_empty: bool,
    /// Width in pixels, a multiple of 8 [default: the model's own]
    #[arg(long, value_name = "N")]
    pub width: Option<u32>,
    /// Height in pixels, a multiple of 8 [default: the model's own]
    #[arg(long, value_name = "N")]
    pub height: Option<u32>,
    /// Draw a large picture in overlapping windows (tiled diffusion): the side of a window or its
    /// width and height in pixels, by how much windows overlap [default: half of the shorter side],
    /// and `gaussian` for windows that count less towards their edges, such as 512, 512x768:128 or
    /// 512:256:gaussian; `none` undoes the windows in the file of txt2img --like
    #[arg(long, value_name = "SIZE[:OVERLAP[:WEIGHTS]]|none", value_parser = or_none(tiles))]
    pub tiles: Option<OrNone<Tiles>>,
    /// Shortcuts, which make the run faster and change the picture: none, fast, faster, or an
    /// object such as {"skip": {"forecast": {"window": 3}}}; the handbook's chapter `shortcuts`
    /// describes them [default: none]
    #[arg(long, value_name = "NAME|JSON", value_parser = shortcuts)]
    pub shortcuts: Option<Shortcuts>,
    /// Steps from noise to picture, 1 to the model's number of training timesteps (usually 1000)
    /// [default: the model's own, usually 20]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub steps: Option<usize>,
    /// Classifier-free guidance (CFG) scale; at 1 and below, the negative prompt is not used and a
    /// step takes half the time [default: the model's own, 7.5 for Stable Diffusion 1.x]
    #[arg(long, value_name = "F", value_parser = finite, allow_negative_numbers = true)]
    pub guidance: Option<f32>,
    /// Seed of the noise; -1 chooses a random one [default: random below 2^32]
    #[arg(long, value_name = "N", value_parser = seed)]
    pub seed: Option<u64>,
    /// Sampler, by any name that `schedulers --list` shows; WebUI's schedule type may follow the
    /// name, as in "DPM++ 2M Karras" [default: the model's own, dpmpp-2m for Stable Diffusion 1.x]
    #[arg(long, value_name = "NAME", value_parser = scheduler)]
    pub scheduler: Option<Named>,
    /// Ladder: the noise levels that the sampler steps through, as a name that `schedulers --list`
    /// shows or an object such as {"karras": {"rho": 5}} [default: the sampler's usual ladder,
    /// often karras; with the model's own sampler, the model's own ladder]
    #[arg(long, value_name = "NAME", value_parser = ladder)]
    pub ladder: Option<Ladder>,
    /// Layer of CLIP that is used, counted from the last one as in WebUI; 0 is the model's own,
    /// which is 1 for Stable Diffusion 1.x and 2 for SDXL [default: 0]
    #[arg(long, value_name = "N")]
    pub clip_skip: Option<usize>,
    /// Size before scaling that SDXL should assume for the picture; with a small size the picture
    /// looks enlarged [default: the picture's size]
    #[arg(long, value_name = "WxH", value_parser = sides)]
    pub original_size: Option<[u32; 2]>,
    /// Pixels that SDXL should assume were cut off at the left and at the top [default: 0,0]
    #[arg(long, value_name = "X,Y", value_parser = corner)]
    pub crop: Option<[u32; 2]>,
    /// Size after cropping that SDXL should assume for the picture [default: the picture's size]
    #[arg(long, value_name = "WxH", value_parser = sides)]
    pub target_size: Option<[u32; 2]>,
    /// --original-size for the negative prompt; needs --negative-target-size [default:
    /// --original-size]
    #[arg(long, value_name = "WxH", value_parser = sides)]
    pub negative_original_size: Option<[u32; 2]>,
    /// --crop for the negative prompt; needs the two sizes for the negative prompt [default:
    /// --crop]
    #[arg(long, value_name = "X,Y", value_parser = corner)]
    pub negative_crop: Option<[u32; 2]>,
    /// --target-size for the negative prompt; needs --negative-original-size [default:
    /// --target-size]
    #[arg(long, value_name = "WxH", value_parser = sides)]
    pub negative_target_size: Option<[u32; 2]>,
    /// Aesthetic score that SDXL's refiner aims at, about 1 to 10 [default: 6]
    #[arg(long, value_name = "F", value_parser = finite, allow_negative_numbers = true)]
    pub aesthetic_score: Option<f32>,
    /// Aesthetic score that SDXL's refiner moves away from, about 1 to 10 [default: 2.5]
    #[arg(long, value_name = "F", value_parser = finite, allow_negative_numbers = true)]
    pub negative_aesthetic_score: Option<f32>,
    /// Model that makes the last steps, such as SDXL's refiner; a file or a folder [default: none]
    #[arg(long, value_name = "PATH")]
    pub refiner: Option<PathBuf>,
    /// Share of the run, 0 to 1, after which the refiner takes over [default: 0.8]
    #[arg(long, value_name = "F", value_parser = share, requires = "refiner")]
    pub refiner_at: Option<f32>,
    /// Unit that --refiner-at is a share of [default: timesteps]
    #[arg(long, value_name = "WHAT", value_enum, requires = "refiner")]
    pub refiner_by: Option<Share>,
    /// Device, precision, memory and threads.
    #[command(flatten)]
    pub machine: Machine,
}

/// The options that choose what the networks run on.
#[derive(Debug, Clone, Default, Args)]
pub struct Machine {
    /// Device: cpu, openvino (a CPU through Intel's OpenVINO), openvino-gpu, openvino-npu or cuda
    #[arg(long, value_name = "NAME", default_value_t)]
    pub device: Device,
    /// Number format that the networks compute in, if the device supports it: f32, bf16, f16 or
    /// int8 (the UNet in 8-bit integers; the first load of a model measures it, which takes longer)
    #[arg(long, value_name = "TYPE", default_value_t)]
    pub precision: Precision,
    /// Keep only one network in memory at a time, and load each one when it is needed
    #[arg(long)]
    pub low_memory: bool,
    /// Threads, 1 to 1024; lowered to the number that the machine runs at once [default: one for
    /// each physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// How the autoencoder decodes and encodes large pictures: `never` in tiles, in `exact` tiles
    /// (less memory, the same picture), in `fast` tiles (even less memory, a slightly different
    /// picture), or `auto`: exact tiles if a call without tiles would need more than 6 GiB, or than
    /// BYTES with auto:BYTES
    #[arg(long, value_name = "HOW", default_value_t)]
    pub vae_tiling: VaeTiling,
}

impl Machine {
    /// Returns `builder` with these settings. Warns on stderr if it lowers the number of threads.
    pub fn apply(&self, builder: Builder) -> Builder {
        builder
            .device(self.device)
            .precision(self.precision)
            .low_memory(self.low_memory)
            .threads(threads(self.threads))
            .vae_tiling(self.vae_tiling)
    }
}

/// The options that replace parts of a model, and settings that its files may state wrongly.
#[derive(Debug, Clone, Default, Args)]
pub struct Elsewhere {
    /// Take the UNet from another file or folder [default: the model's own]
    #[arg(long, value_name = "PATH")]
    pub unet: Option<PathBuf>,
    /// Take the autoencoder (VAE) from another file or folder [default: the model's own]
    #[arg(long, value_name = "PATH")]
    pub vae: Option<PathBuf>,
    /// Decode pictures and previews with this TAESD, a tiny autoencoder, which is faster and less
    /// exact; a file or a folder [default: none]
    #[arg(long, value_name = "PATH")]
    pub taesd: Option<PathBuf>,
    /// Take the text encoder (for SDXL, the first one) from another file or folder [default: the
    /// model's own]
    #[arg(long, value_name = "PATH")]
    pub text_encoder: Option<PathBuf>,
    /// Take SDXL's second text encoder from another file or folder [default: the model's own]
    #[arg(long, value_name = "PATH")]
    pub text_encoder_2: Option<PathBuf>,
    /// Folder with the files of a tokenizer [default: the model's own; for a checkpoint file,
    /// CLIP's]
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// What the UNet predicts; try `v` if a model draws only noise [default: as in the model's
    /// files]
    #[arg(long, value_name = "TYPE", value_enum)]
    pub prediction: Option<Predicts>,
    /// Whether the noise schedule ends in pure noise (zero terminal SNR), as many v-prediction
    /// models expect [default: as in the model's files]
    #[arg(long, value_name = "BOOL")]
    pub zero_terminal_snr: Option<bool>,
}

impl Elsewhere {
    /// Returns `builder` with these parts and settings.
    pub fn apply(&self, mut builder: Builder) -> Builder {
        if let Some(path) = &self.unet {
            builder = builder.unet(path);
        }
        if let Some(path) = &self.vae {
            builder = builder.vae(path);
        }
        if let Some(path) = &self.taesd {
            builder = builder.taesd(path, TaesdUse::PreviewsAndPictures);
        }
        if let Some(path) = &self.text_encoder {
            builder = builder.text_encoder(path);
        }
        if let Some(path) = &self.text_encoder_2 {
            builder = builder.text_encoder_2(path);
        }
        if let Some(path) = &self.tokenizer {
            builder = builder.tokenizer(path);
        }
        if let Some(prediction) = self.prediction {
            builder = builder.prediction(prediction.into());
        }
        if let Some(rescaled) = self.zero_terminal_snr {
            builder = builder.zero_terminal_snr(rescaled);
        }
        builder
    }
}

/// The quantity that a UNet predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Predicts {
    /// The noise
    Epsilon,
    /// The velocity
    V,
    /// The picture without noise
    Sample,
}

impl From<Predicts> for Prediction {
    fn from(predicts: Predicts) -> Self {
        match predicts {
            Predicts::Epsilon => Self::Epsilon,
            Predicts::V => Self::V,
            Predicts::Sample => Self::Sample,
        }
    }
}

/// The unit of [`Options::refiner_at`].
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Share {
    /// Training timesteps, as in diffusers and WebUI
    Timesteps,
    /// Steps of the run
    Steps,
}

impl From<Share> for RefinerShare {
    fn from(share: Share) -> Self {
        match share {
            Share::Timesteps => Self::Timesteps,
            Share::Steps => Self::Steps,
        }
    }
}

/// Parses two whole numbers that are separated by `between`.
fn pair(text: &str, between: char) -> Option<[u32; 2]> {
    let (first, second) = text.split_once(between)?;
    Some([first.trim().parse().ok()?, second.trim().parse().ok()?])
}

/// Parses a width and a height in pixels, such as `1024x768`. Both must be at least 1.
///
/// # Errors
/// Returns a text that says what is expected.
pub fn sides(text: &str) -> Result<[u32; 2], String> {
    let sides = pair(text, 'x').filter(|sides| !sides.contains(&0));
    sides.ok_or_else(|| "expected width x height in pixels, such as 1024x768".to_owned())
}

/// Reads shortcuts from the name of a preset or from a JSON object.
///
/// # Errors
/// A message if they cannot be read.
pub fn shortcuts(text: &str) -> Result<Shortcuts, String> {
    let name = serde_json::from_value(Value::from(text));
    let read = name.or_else(|error| match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text),
        false => Err(error),
    });
    read.map_err(|error| error.to_string())
}

/// Parses the windows of a large picture, such as `512`, `512x768:128` or `512:256:gaussian`.
///
/// # Errors
/// Returns a text that says what is expected.
pub fn tiles(text: &str) -> Result<Tiles, String> {
    let mut parts = text.split(':');
    let side = |text: &str| text.parse().ok().filter(|&side: &u32| side > 0);
    let size = parts.next().unwrap_or_default();
    let size = sides(size)
        .ok()
        .or_else(|| side(size).map(|side| [side; 2]));
    let expected = "expected pixels such as 512, 512x768:128 or 512:256:gaussian, or none";
    let [width, height] = size.ok_or(expected)?;
    let mut tiles = Tiles::new(width, height);
    if let Some(overlap) = parts.next() {
        tiles = tiles.overlap(overlap.parse().map_err(|_| expected)?);
    }
    tiles = tiles.weights(match parts.next() {
        None | Some("equal") => TileWeights::Equal,
        Some("gaussian") => TileWeights::Gaussian,
        Some(_) => return Err(expected.to_owned()),
    });
    match parts.next() {
        None => Ok(tiles),
        Some(_) => Err(expected.to_owned()),
    }
}

/// Parses a position in a picture, x and y in pixels, such as `0,64`.
///
/// # Errors
/// Returns a text that says what is expected.
pub fn corner(text: &str) -> Result<[u32; 2], String> {
    pair(text, ',').ok_or_else(|| "expected x,y in pixels, such as 0,64".to_owned())
}

/// Parses the axes along which pictures are seamless: `x`, `y`, `xy` or `none`.
///
/// # Errors
/// Returns a text that says what is expected.
pub fn axes(text: &str) -> Result<Seamless, String> {
    match text {
        "x" => Ok(Seamless::X),
        "y" => Ok(Seamless::Y),
        "xy" => Ok(Seamless::BOTH),
        "none" => Ok(Seamless::NONE),
        _ => Err("expected x, y, xy or none".to_owned()),
    }
}

/// Parses a share, `0.0..=1.0`.
fn share(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

/// Parses a whole number of at least 1.
///
/// # Errors
/// Returns a text that says what is wrong.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

/// Parses a finite number.
///
/// # Errors
/// Returns a text that says what is wrong.
pub fn finite(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(_) => Err("expected a finite number".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Parses the path of a LoRA and its weights.
///
/// # Errors
/// Returns a text that says what is wrong.
pub fn lora(text: &str) -> Result<(PathBuf, LoraWeight), String> {
    // A path may contain colons too, so only numbers at the end are weights.
    let split = |text: &str| {
        let (path, weight) = text.rsplit_once(':')?;
        Some((path.to_owned(), weight.parse::<f32>().ok()?))
    };
    let (path, weight) = match split(text) {
        None => (text.to_owned(), LoraWeight::from(1.0)),
        Some((path, unet)) => match split(&path) {
            None => (path, LoraWeight::from(unet)),
            Some((path, text_encoder)) => (path, LoraWeight { text_encoder, unet }),
        },
    };
    match path.is_empty() {
        true => Err("expected a path".to_owned()),
        false => Ok((path.into(), weight)),
    }
}

/// Parses a seed: a whole number below 2^64, or -1 for a random number below 2^32.
///
/// # Errors
/// Returns a text that says what is wrong.
pub fn seed(text: &str) -> Result<u64, String> {
    match text {
        "-1" => Ok(rand::random::<u32>().into()),
        _ => text
            .parse()
            .map_err(|error| format!("{error}, expected 0 to 2^64 - 1, or -1 for a random seed")),
    }
}

/// A sampler, and the ladder that its name may include.
#[derive(Debug, Clone)]
pub struct Named {
    /// The sampler.
    pub row: &'static SamplerRow,
    /// The ladder. `None` if the name does not include one.
    pub ladder: Option<Ladder>,
}

/// Finds a sampler by any of its names.
///
/// The name may also be one of WebUI's that includes the ladder, such as `DPM++ 2M Karras` or
/// `k_dpmpp_2m_ka`.
///
/// # Errors
/// Returns a text that lists the expected names.
pub fn scheduler(name: &str) -> Result<Named, String> {
    match (name.parse(), from_webui(name, None)) {
        (Ok(Scheduler::Named(row)), _) => Ok(Named { row, ladder: None }),
        (Ok(Scheduler::Custom(_)), _) => unreachable!("a name is of a row"),
        (Err(_), Ok(preset)) => Ok(Named {
            row: preset.row,
            ladder: Some(preset.ladder),
        }),
        (Err(error), Err(_)) => Err(error.to_string()),
    }
}

/// Returns the ladder that is set by the scheduler's name or by `--ladder`, if any.
///
/// # Errors
/// [`Failure::Arguments`] if both set a ladder.
pub fn chosen_ladder(
    scheduler: Option<&Named>,
    ladder: Option<&Ladder>,
) -> Result<Option<Ladder>, Failure> {
    match (scheduler.and_then(|named| named.ladder.as_ref()), ladder) {
        (Some(_), Some(_)) => {
            let reason = "--scheduler and --ladder both set the ladder; give only one of them";
            Err(Failure::Arguments(reason.to_owned()))
        }
        (of_name, ladder) => Ok(of_name.or(ladder).cloned()),
    }
}

/// Parses a ladder from its name or from JSON.
///
/// # Errors
/// Returns a text that lists the expected names, or says what is wrong with the JSON.
pub fn ladder(text: &str) -> Result<Ladder, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| {
            // The parser of requests explains what is wrong with a field, so a request is wrapped
            // around the ladder.
            let value = serde_json::from_str::<Value>(text);
            let request = value.map(|ladder| json!({"prompt": "", "ladder": ladder}).to_string());
            match request.map(|request| Request::from_json(&request)) {
                Ok(Err(problems)) => problems.to_string(),
                _ => error.to_string(),
            }
        });
    }
    text.parse().map_err(|error| format!("{error}"))
}

/// Returns the number of threads to use: `asked`, but at most what the machine runs at once.
///
/// Warns on stderr if it lowers the number. `None` becomes 0, which is one thread for each physical
/// core.
fn threads(asked: Option<u16>) -> u16 {
    let asked = asked.unwrap_or(0);
    let most = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    if usize::from(asked) > most {
        tell(format_args!(
            "warning: --threads is {asked}, but this machine runs {most} at once; {most} are used"
        ));
    }
    asked.min(most.try_into().unwrap_or(u16::MAX))
}

impl Options {
    /// Returns the first option that is given although only drawing uses it, for a program that
    /// does not draw.
    pub fn of_drawing(&self) -> Option<&'static str> {
        let given = [
            (self.model.is_some(), "--model"),
            (self.variant.is_some(), "--variant"),
            (!self.embeddings.is_empty(), "--embeddings"),
            (!self.lora.is_empty(), "--lora"),
            (!self.loras.is_empty(), "--loras"),
            (!self.control.control.is_empty(), "--control"),
            (self.seamless.is_some(), "--seamless"),
            (self.negative.is_some(), "--negative"),
            (self.prompt_2.is_some(), "--prompt-2"),
            (self.negative_2.is_some(), "--negative-2"),
            (self.encode_empty, "--encode-empty"),
            (self.width.is_some(), "--width"),
            (self.height.is_some(), "--height"),
            (self.tiles.is_some(), "--tiles"),
            (self.shortcuts.is_some(), "--shortcuts"),
            (self.steps.is_some(), "--steps"),
            (self.guidance.is_some(), "--guidance"),
            (self.seed.is_some(), "--seed"),
            (self.scheduler.is_some(), "--scheduler"),
            (self.ladder.is_some(), "--ladder"),
            (self.clip_skip.is_some(), "--clip-skip"),
            (self.original_size.is_some(), "--original-size"),
            (self.crop.is_some(), "--crop"),
            (self.target_size.is_some(), "--target-size"),
            (self.aesthetic_score.is_some(), "--aesthetic-score"),
            (self.refiner.is_some(), "--refiner"),
        ];
        let (_, option) = given.into_iter().find(|(given, _)| *given)?;
        Some(option)
    }

    /// Returns `base` with the fields that these options set.
    ///
    /// If neither has a seed, a random one below 2^32 is chosen. The size is set later, by
    /// [`sized`](Self::sized), because its default depends on the model.
    ///
    /// # Errors
    /// [`Failure::Arguments`] if an option is wrong in a way that shows without a model: an invalid
    /// size, two ladders, a ladder that does not fit the scheduler, or incomplete sizes for the
    /// negative prompt.
    pub fn request(&self, base: Request) -> Result<Request, Failure> {
        // A side that is not known yet counts as 8, the smallest valid one.
        let [width, height] = base.size.unwrap_or([8, 8]);
        let size = ImageSize::new(self.width.unwrap_or(width), self.height.unwrap_or(height));
        size.map_err(Failure::arguments)?;
        let mut request = base;
        if let Some(negative) = &self.negative {
            request = request.negative(negative);
        }
        if let Some(steps) = self.steps {
            request = request.steps(steps);
        }
        if let Some(guidance) = self.guidance {
            request = request.guidance(guidance);
        }
        if let Some(named) = &self.scheduler {
            request = request.scheduler(named.row);
        }
        if let Some(ladder) = chosen_ladder(self.scheduler.as_ref(), self.ladder.as_ref())? {
            request = request.ladder(ladder);
        }
        if let Some(layer) = self.clip_skip {
            request = request.clip_skip(layer);
        }
        if let Some(shortcuts) = self.shortcuts {
            request.shortcuts = shortcuts;
        }
        match &self.tiles {
            None => {}
            Some(OrNone::None) => request.tiles = None,
            Some(OrNone::Value(tiles)) => request.tiles = Some(*tiles),
        }
        self.set_sdxl(&mut request)?;
        let seed = self.seed.or(request.seed);
        request = request.seed(seed.unwrap_or_else(|| rand::random::<u32>().into()));
        check_ladder(&request)?;
        Ok(request)
    }

    /// Sets the fields that only SDXL and its refiner use. Other models refuse them.
    fn set_sdxl(&self, request: &mut Request) -> Result<(), Failure> {
        for (text, option) in [
            (&mut request.prompt_2, &self.prompt_2),
            (&mut request.negative_2, &self.negative_2),
        ] {
            if option.is_some() {
                text.clone_from(option);
            }
        }
        request.prompt_options.encode_empty |= self.encode_empty;
        let set = |sizes: &mut Sizes, [original, crop, target]: [Option<[u32; 2]>; 3]| {
            sizes.original = original.or(sizes.original);
            sizes.crop = crop.unwrap_or(sizes.crop);
            sizes.target = target.or(sizes.target);
        };
        let sizes = [self.original_size, self.crop, self.target_size];
        set(&mut request.sizes, sizes);
        let sizes = [
            self.negative_original_size,
            self.negative_crop,
            self.negative_target_size,
        ];
        if sizes.iter().any(Option::is_some) {
            let negative = request.negative_sizes.get_or_insert_default();
            set(negative, sizes);
            if negative.original.is_none() || negative.target.is_none() {
                return Err(Failure::Arguments(
                    "sizes for the negative prompt need both --negative-original-size and --negative-target-size"
                        .to_owned(),
                ));
            }
        }
        if let Some(score) = self.aesthetic_score {
            request.aesthetic_score = score;
        }
        if let Some(score) = self.negative_aesthetic_score {
            request.negative_aesthetic_score = score;
        }
        if self.refiner_at.is_some() || self.refiner_by.is_some() {
            let RefinerSwitch { at, by } = request.refiner.unwrap_or_default();
            request.refiner = Some(RefinerSwitch {
                at: self.refiner_at.unwrap_or(at),
                by: self.refiner_by.map_or(by, Share::into),
            });
        }
        Ok(())
    }

    /// Returns the request with its size set.
    ///
    /// Each side comes from these options, else from the request or the picture that it starts
    /// from, else from the model.
    pub fn sized(&self, request: Request, pipeline: &Pipeline) -> Request {
        let default = pipeline.default_size();
        let size = pipeline.with_defaults(request.clone()).size;
        let [width, height] = size.unwrap_or([default.width(), default.height()]);
        request.size(self.width.unwrap_or(width), self.height.unwrap_or(height))
    }

    /// Loads the model. It computes at most `batch` pictures in one call.
    ///
    /// # Errors
    /// [`Failure::Work`] if the model cannot be loaded.
    pub fn load(&self, batch: usize) -> Result<Pipeline, Failure> {
        self.load_with(batch, |builder| builder)
    }

    /// Loads the model like [`load`](Self::load), with the settings that `more` adds.
    ///
    /// # Errors
    /// [`Failure::Work`] if the model cannot be loaded.
    pub fn load_with(
        &self,
        batch: usize,
        more: impl FnOnce(Builder) -> Builder,
    ) -> Result<Pipeline, Failure> {
        let builder = self.elsewhere.apply(more(sd_onnx::builder()));
        let mut builder = self.machine.apply(builder).max_batch(batch);
        builder = builder.seamless(self.seamless.unwrap_or_default());
        if let (Some(width), Some(height)) = (self.width, self.height)
            && self.machine.device != Device::Cpu
            && ImageSize::new(width, height).is_ok()
        {
            // OpenVINO compiles the networks for this size. The request reports a wrong size.
            builder = builder.size(width, height);
        }
        if let Some(variant) = &self.variant {
            builder = builder.variant(variant);
        }
        for path in &self.embeddings {
            builder = builder.embeddings(path);
        }
        for (path, weight) in &self.lora {
            builder = builder.lora(path, *weight);
        }
        for folder in &self.loras {
            builder = builder.loras(folder);
        }
        if let Some(path) = &self.refiner {
            builder = builder.refiner(path);
        }
        builder = self.control.load(builder);
        let model = self.model.clone().unwrap_or_else(shipped_model);
        builder.load(model).map_err(Failure::work)
    }
}

/// What a problem expects if a prompt calls a LoRA and the pipeline has no library of LoRAs.
const LIBRARY: &str = "a pipeline with LoRAs (`Builder::loras`, `PipelineBuilder::lora_library`)";

/// What a problem expects if a request calls an upscaler and the pipeline has none. A test in
/// `sd-core/tests/upscale.rs` has the same text.
const UPSCALERS: &str =
    "a pipeline with upscalers (`Builder::upscaler`, `PipelineBuilder::upscaler`)";

impl From<GenerateError> for Failure {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Request(problems) => {
                // A user of the command line knows options, not pipelines.
                let reason = chain(&problems);
                let reason = reason.replace(LIBRARY, "--loras with the folder of the LoRA");
                Self::Arguments(reason.replace(UPSCALERS, "--upscaler with the network's file"))
            }
            GenerateError::Stopped(stopped) => Self::Stopped(how_far(&stopped)),
            error => Self::work(error),
        }
    }
}

/// Returns a text that says how far a run was when it was stopped.
fn how_far(stopped: &Stopped) -> String {
    let s = if stopped.steps == 1 { "" } else { "s" };
    let steps = format!("stopped after {} step{s}", stopped.steps);
    // A run has one request, or makes one picture of each request, so one of the numbers is 0.
    match stopped.pictures.first() {
        Some(first) if first.request + first.picture > 0 => {
            format!("{steps} of picture {}", first.request + first.picture + 1)
        }
        _ => steps,
    }
}

/// The largest number of warnings that [`tell_warnings`] prints.
const MOST_WARNINGS: usize = 20;

/// Prints at most 20 warnings on stderr, each of them once, and says how many more there are.
///
/// A warning may come with the file that it is about.
pub fn tell_warnings<'a>(warnings: impl IntoIterator<Item = (Option<&'a Path>, String)>) {
    let (mut told, mut more) = (HashSet::new(), 0);
    for (file, text) in warnings {
        if !told.insert(text.clone()) {
            continue;
        }
        match file {
            _ if told.len() > MOST_WARNINGS => more += 1,
            Some(file) => tell(format_args!("warning: {}: {text}", file.display())),
            None => tell(format_args!("warning: {text}")),
        }
    }
    if more > 0 {
        tell(format_args!("warning: {more} more warnings are not shown"));
    }
}

/// Returns warnings about the prompts of the requests.
///
/// They name syntax that was probably not meant as it is written, and extra networks that are not
/// LoRAs, because these are not applied. Each prompt is checked once. A negative prompt is checked
/// only if it is used.
pub fn prompt_warnings<'a>(requests: impl IntoIterator<Item = &'a Request>) -> Vec<String> {
    let (mut warnings, mut seen) = (Vec::new(), HashSet::new());
    for request in requests {
        let negative = request.uses_negative().then_some(&request.negative);
        let prompts = [
            ("prompt", Side::Positive, Some(&request.prompt)),
            ("negative prompt", Side::Negative, negative),
        ];
        for (what, side, prompt) in prompts.into_iter().chain(second_prompts(request)) {
            let Some(Prompt::Text(text)) = prompt else {
                continue;
            };
            if !seen.insert((what, text)) {
                continue;
            }
            let read = PromptText::parse(text, side, request.prompt_options.syntax);
            for Warning { span, text } in read.warnings() {
                warnings.push(format!("the {what}, at byte {}: {text}", span.start));
            }
            for network in read.networks().iter().filter(|it| !is_lora(it)) {
                // The same text as in `Infotext::request`, so that it is printed once.
                let named = printable(&text[network.span.clone()]);
                warnings.push(format!("`{named}` is not applied"));
            }
        }
    }
    warnings
}

/// Returns the prompts that a request has for its second pass, with their names. The negative
/// prompt is left out if it is not used.
fn second_prompts(request: &Request) -> Vec<(&'static str, Side, Option<&Prompt>)> {
    let Some(hires) = &request.hires else {
        return Vec::new();
    };
    // Whether the negative prompt is used depends on these fields.
    let mut second = Request::new("").steps(hires.steps.unwrap_or(request.step_count()));
    second.prompt = hires.prompt.clone().unwrap_or(request.prompt.clone());
    second.prompt_options = request.prompt_options;
    second.guidance = hires.guidance.clone().or(request.guidance.clone());
    second.scheduler = hires.scheduler.clone().or(request.scheduler.clone());
    let negative = hires.negative.as_ref();
    let negative = negative.filter(|_| second.uses_negative());
    vec![
        (
            "prompt of the second pass",
            Side::Positive,
            hires.prompt.as_ref(),
        ),
        (
            "negative prompt of the second pass",
            Side::Negative,
            negative,
        ),
    ]
}

/// Returns whether an extra network of a prompt is a LoRA: `<lora:…>` or `<lyco:…>`. A pipeline
/// applies a LoRA or refuses the prompt, and ignores all other networks.
pub fn is_lora(network: &Network) -> bool {
    matches!(&*network.name, "lora" | "lyco")
}

/// Checks that the scheduler of a request can run on the request's ladder.
///
/// # Errors
/// [`Failure::Arguments`] if it cannot. The text names both.
pub fn check_ladder(request: &Request) -> Result<(), Failure> {
    if let (Some(Scheduler::Named(row)), Some(ladder)) = (&request.scheduler, &request.ladder)
        && !row.fits(ladder)
    {
        return Err(Failure::Arguments(format!(
            "the ladder {} does not fit the scheduler {}, which needs a ladder of whole timesteps, such as leading, linspace or trailing",
            ladder_name(ladder),
            row.name
        )));
    }
    Ok(())
}

/// Returns one line that says how a pipeline draws a request.
///
/// The line leaves out the prompt and every parameter in `varies`, which has names of options
/// without dashes, such as "steps".
pub fn summary(request: &Request, pipeline: &Pipeline, varies: &[&str]) -> String {
    let same = |name: &str| !varies.contains(&name);
    let has_ladder = request.ladder.is_some();
    let request = &pipeline.with_defaults(request.clone());
    let scheduler = request.scheduler.as_ref();
    let scheduler = scheduler.map_or("own", |it| title(it, pipeline.scheduler_config()));
    let ladder = request
        .ladder
        .as_ref()
        .filter(|_| has_ladder || same("scheduler"));
    let ladder = ladder.map_or_else(|| "its usual ladder".to_owned(), ladder_name);
    let mut parts = Vec::new();
    match (same("scheduler"), same("ladder")) {
        (true, true) => parts.push(format!("{scheduler} on {ladder}")),
        (true, false) => parts.push(scheduler.to_owned()),
        (false, true) => parts.push(format!("on {ladder}")),
        (false, false) => {}
    }
    if same("steps") {
        let s = if request.step_count() == 1 { "" } else { "s" };
        parts.push(format!("{} step{s}", request.step_count()));
    }
    if let Some(scale) = request.guidance.as_ref().and_then(Guidance::scale)
        && same("guidance")
    {
        parts.push(format!("guidance {scale}"));
    }
    if let Some(layer) = request.clip_skip.filter(|&layer| layer > 0)
        && same("clip-skip")
    {
        parts.push(format!("clip skip {layer}"));
    }
    if let Some([width, height]) = request.size
        && same("size")
    {
        parts.push(format!("{width}×{height}"));
    }
    match request.hires.as_ref().map(|hires| hires.size) {
        Some(HiresSize::Scale(factor)) => parts.push(format!("then ×{factor}")),
        Some(HiresSize::Pixels([width, height])) => parts.push(format!("then {width}×{height}")),
        _ => {}
    }
    if let Some(seed) = request.seed
        && same("seed")
    {
        parts.push(format!("seed {seed}"));
    }
    if let Prompt::Text(text) = &request.negative
        && !text.trim().is_empty()
        && same("negative")
    {
        parts.push(format!("negative \"{}\"", printable(text.trim())));
    }
    parts.join(", ")
}

/// Returns the title of a sampler, or "own" if it is not in the table.
///
/// A sampler with other conventions, or with the options of WebUI or ComfyUI, has the title of its
/// row in the table too.
fn title(scheduler: &Scheduler, config: &SchedulerConfig) -> &'static str {
    fn inner(sampler: &Arc<dyn Sampler>) -> &dyn Sampler {
        match (&**sampler as &dyn Any).downcast_ref::<WithConventions>() {
            Some(wrapped) => &*wrapped.sampler,
            None => &**sampler,
        }
    }
    let sampler = scheduler.sampler(config);
    let named = scheduler
        .row(config)
        .or_else(|| row_of(inner(&sampler), config));
    let has_options_of = |row: &&SamplerRow| {
        let presets = [
            row.webui.and_then(|name| from_webui(name, None).ok()),
            row.comfyui
                .and_then(|name| from_comfyui(name, "normal").ok()),
        ];
        let mut presets = presets.into_iter().flatten();
        presets.any(|preset| inner(&preset.sampler) == inner(&sampler))
    };
    let row = named.or_else(|| TABLE.iter().find(has_options_of));
    row.map_or("own", |row| row.title)
}

/// Returns the name of a ladder, or its JSON if it has options.
pub fn ladder_name(ladder: &Ladder) -> String {
    match (ladder.name(), serde_json::to_string(ladder)) {
        (Some(name), _) => name.to_owned(),
        (None, Ok(json)) => printable(json),
        (None, Err(_)) => ladder.kind().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    // In a test, a panic is the failure.
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_name_is_a_scheduler() {
        for row in TABLE {
            for name in row.aliases().chain([row.name]) {
                assert!(scheduler(name).unwrap().ladder.is_none(), "{name}");
            }
        }
        for (name, row, ladder) in [
            ("DPM++ 2M Karras", "dpmpp-2m", "karras"),
            ("DPM++ 2M SDE SGM Uniform", "dpmpp-2m-sde", "sgm-uniform"),
            ("k_dpmpp_2m_ka", "dpmpp-2m", "karras"),
        ] {
            let named = scheduler(name).unwrap();
            let found = (named.row.name, named.ladder.unwrap().name());
            assert_eq!(found, (row, Some(ladder)), "{name}");
        }
        let error = scheduler("DPM++ 2M Karas").unwrap_err();
        assert!(error.contains("is no scheduler, expected "), "{error}");
    }

    #[test]
    fn windows_are_sizes_overlaps_and_weights() {
        let square = Tiles::new(512, 512);
        for (text, expected) in [
            ("512", square),
            ("512x512", square),
            ("512x768:128", Tiles::new(512, 768).overlap(128)),
            ("512:0:equal", square.overlap(0)),
            (
                "512:256:gaussian",
                square.overlap(256).weights(TileWeights::Gaussian),
            ),
        ] {
            assert_eq!(tiles(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "0",
            "512x",
            "512:",
            "512:-8",
            "512:8:cubic",
            "512:8:equal:1",
            "512::equal",
        ] {
            assert!(
                tiles(text).unwrap_err().starts_with("expected pixels"),
                "{text}"
            );
        }
    }

    #[test]
    fn samplers_of_other_programs_have_their_names() {
        let config = SchedulerConfig::default();
        for row in TABLE {
            let webui = row.webui.and_then(|name| from_webui(name, None).ok());
            let comfyui = row
                .comfyui
                .and_then(|name| from_comfyui(name, "karras").ok());
            for preset in [webui, comfyui].into_iter().flatten() {
                let scheduler = Scheduler::from(preset.sampler);
                assert_eq!(title(&scheduler, &config), preset.row.title);
            }
        }
    }

    #[test]
    fn a_ladder_that_cannot_be_read_is_explained() {
        assert!(ladder(r#"{"karras": {"rho": 5}}"#).is_ok());
        for (text, part) in [
            (r#"{"karras": {"rho": "x"}}"#, "karras.rho"),
            (r#"{"karras": {"shift": 3}}"#, "rho"),
            (r#"{"karras": {}}, "steps": 5"#, "trailing characters"),
        ] {
            let error = ladder(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn seeds_are_whole_numbers_or_minus_one() {
        assert_eq!(seed("18446744073709551615"), Ok(u64::MAX));
        assert!(seed("-1").unwrap() < 1 << 32);
        for wrong in ["-2", "", "1.5", "18446744073709551616"] {
            assert!(seed(wrong).unwrap_err().contains("or -1"), "{wrong}");
        }
    }
}
