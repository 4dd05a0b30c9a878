//! What a model was trained with, and how its author runs it: `scheduler_config.json`.

mod class;
mod configured;
mod error;
mod json;
#[cfg(test)]
mod tests;

pub use crate::betas::BetaSchedule;
pub use configured::{Configured, from_config};
pub use error::ConfigError;
#[doc(hidden)] // For the other crates of this workspace.
pub use json::without_infinities;

use crate::printable::printable;
use crate::{Clip, Prediction};
use class::{Class, Kind, PREDICTIONS};
use json::{Keys, numbers, wrong};

/// What a diffusers `scheduler_config.json` says of the *model*: the noise it was trained on and what it predicts.
///
/// The same file also says which sampler its author liked (`_class_name`, `timestep_spacing`, `use_karras_sigmas`);
/// that is a choice for each run, not a fact of the model, and is not kept here: [`from_config`] reads it too.
///
/// The default is Stable Diffusion 1.5.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// Number of noise levels T the model was trained on: 2 to 100,000. Default 1000.
    pub num_train_timesteps: usize,
    /// First beta, in (0, 1). Default 0.00085.
    pub beta_start: f64,
    /// Last beta, in (0, 1). Default 0.012.
    pub beta_end: f64,
    /// How the betas rise from the first to the last. Default [`BetaSchedule::ScaledLinear`].
    pub beta_schedule: BetaSchedule,
    /// The betas themselves, one per training timestep; they replace the three fields above. Default none.
    pub trained_betas: Option<Vec<f32>>,
    /// Added to the timesteps of the leading spacing; below `num_train_timesteps`. Default 1.
    pub steps_offset: usize,
    /// What the model's output is. Default [`Prediction::Epsilon`].
    pub prediction: Prediction,
    /// Whether DDIM's last step ends at alpha-bar 1 (no noise) or at that of timestep 0. Default false.
    pub set_alpha_to_one: bool,
    /// What is done to the denoised sample, for models of pixels: `clip_sample`, or `thresholding`, which wins. Default nothing.
    pub clip: Clip,
    /// For [`Prediction::Edm`] only: the smallest and the largest sigma of the training, above 0 and rising. Default 0.002 and 80.
    pub sigma_range: [f64; 2],
    /// Rescale the betas so that the last timestep is (all but) pure noise: <https://arxiv.org/abs/2305.08891>.
    /// Default false.
    pub rescale_betas_zero_snr: bool,
    /// Keys of the file that have no effect, for a warning: keys that no class of diffusers has,
    /// such as `tensor_format`, and ladders or betas that are asked for but that the file's class
    /// lacks, such as `use_karras_sigmas` of DDIM. Each name is escaped and cut so that it can be
    /// printed. After eight names comes how many more there are. Default none.
    pub ignored: Vec<String>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            steps_offset: 1,
            prediction: Prediction::Epsilon,
            set_alpha_to_one: false,
            clip: Clip::None,
            sigma_range: EDM_RANGE,
            rescale_betas_zero_snr: false,
            ignored: Vec::new(),
        }
    }
}

impl SchedulerConfig {
    /// Reads the facts of a diffusion model out of the text of a `scheduler_config.json`, whatever sampler that asks for.
    ///
    /// A missing key, or one that is `null`, takes the value that diffusers 0.42.1 gives it in the class the file names
    /// (`_class_name`; without one, `PNDMScheduler`, with which Stable Diffusion 1.x was published). A key which that
    /// class lacks altogether and the file does not have is as if it were not there: nothing is clipped, and alpha-bar
    /// ends at one. (diffusers would fall back on the defaults of the class it makes *next*, so that a DDIM made from
    /// an Euler configuration clips latents to ±1.)
    ///
    /// Python writes infinite numbers as `Infinity`, which is not JSON (`lambda_min_clipped` of DPM-Solver); they are
    /// read as null.
    ///
    /// Keys that the class lacks are ignored, as in diffusers; see [`ignored`](Self::ignored). One
    /// of them would draw another picture: `predict_epsilon` false, with which files before
    /// `prediction_type` said that the model predicts the sample. It is an error where
    /// `prediction_type` is missing.
    ///
    /// # Errors
    /// [`ConfigError`] for text that is not a JSON object, a class of no diffusion model, a value of the wrong type
    /// or out of range. That the betas make a usable schedule is seen by [`NoiseSchedule::new`](crate::NoiseSchedule::new).
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let keys = Keys::parse(text)?;
        let class = Class::find(keys.text("_class_name")?.unwrap_or("PNDMScheduler"))?;
        let found = match class.kind {
            Kind::Flow => Some(format!("`{}` (of flow models)", class.name)),
            _ if class.has_flow_sigmas() && keys.flag("use_flow_sigmas", false)? => {
                Some(format!("`{}` with `use_flow_sigmas`", class.name))
            }
            _ => None,
        };
        if let Some(found) = found {
            return Err(ConfigError::Class { found });
        }
        let prediction = match class.kind {
            Kind::Edm => keys.edm()?,
            _ => keys
                .one_of("prediction_type", &PREDICTIONS)?
                .unwrap_or_default(),
        };
        Self::of(&keys, class, prediction)
    }

    /// The facts of a model that predicts this.
    fn of(keys: &Keys, class: &Class, prediction: Prediction) -> Result<Self, ConfigError> {
        if class.has_betas() && keys.is("predict_epsilon", false) && keys.is_null("prediction_type")
        {
            let expected = "true, or `prediction_type`: `sample` beside it";
            return Err(keys.refuse("predict_epsilon", expected));
        }
        let (beta_start, beta_end, beta_schedule) = class.betas;
        let mut config = Self {
            num_train_timesteps: keys.integer("num_train_timesteps")?.unwrap_or(1000),
            beta_start,
            beta_end,
            beta_schedule,
            trained_betas: None,
            steps_offset: keys.integer("steps_offset")?.unwrap_or(0),
            prediction,
            set_alpha_to_one: keys.flag("set_alpha_to_one", class.set_alpha_to_one)?,
            clip: match thresholding(keys)? {
                Clip::None => clip_sample(keys, class.clip_sample)?,
                thresholding => thresholding,
            },
            sigma_range: match prediction {
                Prediction::Edm { .. } => [
                    keys.number("sigma_min")?.unwrap_or(EDM_RANGE[0]),
                    keys.number("sigma_max")?.unwrap_or(EDM_RANGE[1]),
                ],
                _ => EDM_RANGE,
            },
            rescale_betas_zero_snr: keys.flag("rescale_betas_zero_snr", false)?,
            ignored: ignored(keys, class),
        };
        if class.has_betas() {
            config.beta_start = keys.number("beta_start")?.unwrap_or(beta_start);
            config.beta_end = keys.number("beta_end")?.unwrap_or(beta_end);
            let rises = keys.one_of("beta_schedule", class.beta_schedules)?;
            config.beta_schedule = rises.unwrap_or(beta_schedule);
            config.trained_betas = keys.get("trained_betas", "an array of numbers", numbers)?;
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks the ranges that the fields' documentation gives.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first field out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let timesteps = self.num_train_timesteps;
        let check = |ok: bool, key, expected: &str, found: String| match ok {
            true => Ok(()),
            false => Err(wrong(key, expected, found)),
        };
        let beta = |beta: f64| beta > 0.0 && beta < 1.0;
        let positive = |number: f64| number > 0.0 && number.is_finite();
        check(
            (2..=100_000).contains(&timesteps),
            "num_train_timesteps",
            "2 to 100000",
            timesteps.to_string(),
        )?;
        for (key, found) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            check(
                beta(found),
                key,
                "a number between 0 and 1",
                found.to_string(),
            )?;
        }
        let offset = self.steps_offset;
        check(
            offset < timesteps,
            "steps_offset",
            &format!("less than {timesteps}"),
            offset.to_string(),
        )?;
        if let Some(betas) = &self.trained_betas {
            let expected = format!("{timesteps} betas");
            check(
                betas.len() == timesteps,
                "trained_betas",
                &expected,
                format!("{} betas", betas.len()),
            )?;
            if let Some(wrong) = betas.iter().find(|b| !beta(f64::from(**b))) {
                check(
                    false,
                    "trained_betas",
                    "numbers between 0 and 1",
                    wrong.to_string(),
                )?;
            }
        }
        let above_0 = "a number above 0";
        match self.clip {
            Clip::None => {}
            Clip::Range(range) => check(
                positive(range.into()),
                "clip_sample_range",
                above_0,
                range.to_string(),
            )?,
            Clip::Dynamic { ratio, max } => {
                check(
                    (0.0..=1.0).contains(&ratio),
                    "dynamic_thresholding_ratio",
                    "0 to 1",
                    ratio.to_string(),
                )?;
                check(max > 0.0, "sample_max_value", above_0, max.to_string())?;
            }
        }
        if let Prediction::Edm { sigma_data, .. } = self.prediction {
            let [min, max] = self.sigma_range;
            let data = sigma_data.to_string();
            check(positive(sigma_data.into()), "sigma_data", above_0, data)?;
            check(positive(min), "sigma_min", above_0, min.to_string())?;
            let expected = format!("a number above {min}");
            let rises = positive(max) && min < max;
            check(rises, "sigma_max", &expected, max.to_string())?;
        }
        Ok(())
    }

    /// What a class of diffusers does to the denoised sample that knows `clip_sample`, but not `thresholding`.
    pub(crate) fn clip_range(&self) -> Clip {
        match self.clip {
            Clip::Range(_) => self.clip,
            Clip::None | Clip::Dynamic { .. } => Clip::None,
        }
    }

    /// What a class does that knows `thresholding`, but not `clip_sample`.
    pub(crate) fn thresholding(&self) -> Clip {
        match self.clip {
            Clip::Dynamic { .. } => self.clip,
            Clip::None | Clip::Range(_) => Clip::None,
        }
    }
}

/// What EDM's authors trained on: table 1 of <https://arxiv.org/abs/2206.00364>.
const EDM_RANGE: [f64; 2] = [0.002, 80.0];

/// [`SchedulerConfig::ignored`].
fn ignored(keys: &Keys, class: &Class) -> Vec<String> {
    let mut names = keys.names().filter(|key| class.ignores(key, keys));
    let mut shown: Vec<String> = names.by_ref().take(MOST_IGNORED).map(printable).collect();
    let more = names.count();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    shown
}

/// The most names of ignored keys that are kept.
const MOST_IGNORED: usize = 8;

/// [`Clip::Range`], or none.
fn clip_sample(keys: &Keys, default: bool) -> Result<Clip, ConfigError> {
    if !keys.flag("clip_sample", default)? {
        return Ok(Clip::None);
    }
    let range = keys.positive("clip_sample_range")?.unwrap_or(1.0);
    Ok(Clip::Range(range as f32))
}

/// [`Clip::Dynamic`], or none.
fn thresholding(keys: &Keys) -> Result<Clip, ConfigError> {
    if !keys.flag("thresholding", false)? {
        return Ok(Clip::None);
    }
    let ratio = keys.number("dynamic_thresholding_ratio")?.unwrap_or(0.995);
    let max = keys.positive("sample_max_value")?.unwrap_or(1.0);
    Ok(Clip::Dynamic {
        ratio: ratio as f32,
        max: max as f32,
    })
}
