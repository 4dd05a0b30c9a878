//! The settings that a model was trained with, and the sampler of its author:
//! `scheduler_config.json`.
//!
//! [`SchedulerConfig`] has the settings. [`from_config`] also returns the sampler and the ladder.

mod class;
mod configured;
mod error;
mod json;
#[cfg(test)]
mod tests;

pub use configured::{Configured, from_config};
pub use error::ConfigError;
#[doc(hidden)] // Public for the other crates of this workspace.
pub use json::without_infinities;

use std::fmt::Display;

use crate::printable::printable;
use crate::schedule::{BetaSchedule, ClipSample, Prediction};
use class::{Class, Kind, PREDICTIONS};
use json::{Keys, numbers, wrong};

/// The part of a diffusers `scheduler_config.json` that describes the *model*: the noise that it
/// was trained on, and its prediction.
///
/// The same file also names the author's choice of sampler (`_class_name`, `timestep_spacing`,
/// `use_karras_sigmas`). That is a choice for each run rather than a fact about the model, so it is
/// not stored here. [`from_config`] reads both.
///
/// Default: the configuration of Stable Diffusion 1.5.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// The number T of noise levels that the model was trained on, `2..=100_000`.
    ///
    /// Default: 1000.
    pub num_train_timesteps: usize,
    /// The first beta, above 0 and below 1.
    ///
    /// Default: 0.00085.
    pub beta_start: f64,
    /// The last beta, above 0 and below 1.
    ///
    /// Default: 0.012.
    pub beta_end: f64,
    /// How the betas rise from the first to the last.
    ///
    /// Default: [`BetaSchedule::ScaledLinear`].
    pub beta_schedule: BetaSchedule,
    /// The betas themselves, one per training timestep, each above 0 and below 1. They replace the
    /// three fields above.
    ///
    /// Default: `None`.
    pub trained_betas: Option<Vec<f32>>,
    /// The offset that the leading spacing adds to its timesteps. It is below
    /// `num_train_timesteps`.
    ///
    /// Default: 1.
    pub steps_offset: usize,
    /// What the model predicts.
    ///
    /// Default: [`Prediction::Epsilon`].
    pub prediction: Prediction,
    /// Whether DDIM's last step ends at alpha-bar 1, which is no noise. Otherwise it ends at the
    /// alpha-bar of timestep 0.
    ///
    /// Default: false.
    pub set_alpha_to_one: bool,
    /// How denoised samples are clipped, for models of pixels: `clip_sample` or `thresholding`. If
    /// the file asks for both, `thresholding` takes precedence.
    ///
    /// Default: [`ClipSample::None`].
    pub clip: ClipSample,
    /// The smallest and the largest sigma of the training, for [`Prediction::Edm`] only. Both are
    /// above 0, and the first is below the second.
    ///
    /// Default: `[0.002, 80.0]`.
    pub sigma_range: [f64; 2],
    /// Whether to rescale the betas so that the last timestep is almost pure noise:
    /// <https://arxiv.org/abs/2305.08891>.
    ///
    /// Default: false.
    pub rescale_betas_zero_snr: bool,
    /// The keys of the file that have no effect, for a warning to the user.
    ///
    /// These are keys that no class of diffusers has, such as `tensor_format`, and keys for ladders
    /// or betas that the file's class lacks, such as `use_karras_sigmas` with DDIM. Each name is
    /// escaped and cut so that it can be printed. At most eight names are listed, followed by the
    /// number of further ones, such as `3 more`.
    ///
    /// Default: empty.
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
            clip: ClipSample::None,
            sigma_range: EDM_RANGE,
            rescale_betas_zero_snr: false,
            ignored: Vec::new(),
        }
    }
}

impl SchedulerConfig {
    /// Reads the facts about a diffusion model from the text of a `scheduler_config.json`. The
    /// sampler that the file names does not matter.
    ///
    /// A key that is missing or `null` takes the default that diffusers 0.42.1 gives it in the
    /// file's class (`_class_name`). Without a class, it takes the defaults of `PNDMScheduler`,
    /// with which Stable Diffusion 1.x was published.
    ///
    /// If neither the class nor the file has a key for clipping, nothing is clipped. If neither has
    /// `set_alpha_to_one`, alpha-bar ends at one. (diffusers would use the defaults of the class
    /// that it converts the file to, so that a DDIM made from an Euler configuration clips latents
    /// to ±1.)
    ///
    /// Python writes infinite numbers as `Infinity`, which is not JSON, for example in
    /// `lambda_min_clipped` of DPM-Solver. They are read as null.
    ///
    /// Keys that the class lacks are ignored, as in diffusers; see [`ignored`](Self::ignored). One
    /// such key is an error, because ignoring it would change the picture:
    /// `predict_epsilon: false`, with which files from before `prediction_type` say that the model
    /// predicts the sample. It is accepted if `prediction_type` is present too.
    ///
    /// ```
    /// use sd_schedulers::{Prediction, SchedulerConfig};
    ///
    /// let config = SchedulerConfig::from_json(r#"{"prediction_type": "v_prediction"}"#)?;
    /// assert_eq!(config.prediction, Prediction::V);
    /// assert_eq!(config.num_train_timesteps, 1000);
    /// # Ok::<(), sd_schedulers::config::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// - [`ConfigError::Json`] if the text is not a JSON object.
    /// - [`ConfigError::Class`] if the class is unknown, unsupported or for flow models.
    /// - [`ConfigError::Value`] if a value has the wrong type or is out of range, or for
    ///   `predict_epsilon` as above.
    ///
    /// Whether the betas make a usable schedule is checked by
    /// [`NoiseSchedule::new`](crate::NoiseSchedule::new).
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let keys = Keys::parse(text)?;
        let class = Class::find(keys.text("_class_name")?.unwrap_or("PNDMScheduler"))?;
        let found = match class.kind {
            Kind::Flow => Some(format!("`{}` (for flow models)", class.name)),
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

    /// Reads the facts about a model with this prediction.
    fn of(keys: &Keys, class: &Class, prediction: Prediction) -> Result<Self, ConfigError> {
        if class.has_betas() && keys.is("predict_epsilon", false) && keys.is_null("prediction_type")
        {
            let expected = "true, or `sample` as `prediction_type`";
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
                ClipSample::None => clip_sample(keys, class.clip_sample)?,
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

    /// Checks that every field is within the range that its documentation gives.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first field that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let timesteps = self.num_train_timesteps;
        check(
            (2..=100_000).contains(&timesteps),
            "num_train_timesteps",
            "2 to 100000",
            timesteps,
        )?;
        for (key, found) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            check(is_beta(found), key, "a number between 0 and 1", found)?;
        }
        let offset = self.steps_offset;
        let expected = format!("less than {timesteps}");
        check(offset < timesteps, "steps_offset", expected, offset)?;
        self.validate_trained_betas()?;
        self.validate_clip()?;
        self.validate_edm()
    }

    fn validate_trained_betas(&self) -> Result<(), ConfigError> {
        let Some(betas) = &self.trained_betas else {
            return Ok(());
        };
        let timesteps = self.num_train_timesteps;
        check(
            betas.len() == timesteps,
            "trained_betas",
            format!("{timesteps} betas"),
            format_args!("{} betas", betas.len()),
        )?;
        for &beta in betas {
            let expected = "numbers between 0 and 1";
            check(is_beta(beta.into()), "trained_betas", expected, beta)?;
        }
        Ok(())
    }

    fn validate_clip(&self) -> Result<(), ConfigError> {
        let above_0 = "a number above 0";
        match self.clip {
            ClipSample::None => Ok(()),
            ClipSample::Range(range) => {
                let key = "clip_sample_range";
                check(is_positive(range.into()), key, above_0, range)
            }
            ClipSample::Dynamic { ratio, max } => {
                let key = "dynamic_thresholding_ratio";
                check((0.0..=1.0).contains(&ratio), key, "0 to 1", ratio)?;
                check(max > 0.0, "sample_max_value", above_0, max)
            }
        }
    }

    fn validate_edm(&self) -> Result<(), ConfigError> {
        let Prediction::Edm { sigma_data, .. } = self.prediction else {
            return Ok(());
        };
        let above_0 = "a number above 0";
        let [min, max] = self.sigma_range;
        let data = f64::from(sigma_data);
        check(is_positive(data), "sigma_data", above_0, sigma_data)?;
        check(is_positive(min), "sigma_min", above_0, min)?;
        let rises = is_positive(max) && min < max;
        check(rises, "sigma_max", format!("a number above {min}"), max)
    }

    /// Returns the clipping of a diffusers class that has `clip_sample` but not `thresholding`.
    pub(crate) fn clip_range(&self) -> ClipSample {
        match self.clip {
            ClipSample::Range(_) => self.clip,
            ClipSample::None | ClipSample::Dynamic { .. } => ClipSample::None,
        }
    }

    /// Returns the clipping of a diffusers class that has `thresholding` but not `clip_sample`.
    pub(crate) fn thresholding(&self) -> ClipSample {
        match self.clip {
            ClipSample::Dynamic { .. } => self.clip,
            ClipSample::None | ClipSample::Range(_) => ClipSample::None,
        }
    }
}

/// The range of sigmas in table 1 of <https://arxiv.org/abs/2206.00364>.
const EDM_RANGE: [f64; 2] = [0.002, 80.0];

/// Returns the value of [`SchedulerConfig::ignored`].
fn ignored(keys: &Keys, class: &Class) -> Vec<String> {
    let mut names = keys.names().filter(|key| class.ignores(key, keys));
    let mut shown: Vec<String> = names.by_ref().take(MOST_IGNORED).map(printable).collect();
    let more = names.count();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    shown
}

/// The largest number of ignored keys that are named.
const MOST_IGNORED: usize = 8;

/// Reads [`ClipSample::Range`] or [`ClipSample::None`].
fn clip_sample(keys: &Keys, default: bool) -> Result<ClipSample, ConfigError> {
    if !keys.flag("clip_sample", default)? {
        return Ok(ClipSample::None);
    }
    let range = keys.positive("clip_sample_range")?.unwrap_or(1.0);
    Ok(ClipSample::Range(range as f32))
}

/// Reads [`ClipSample::Dynamic`] or [`ClipSample::None`].
fn thresholding(keys: &Keys) -> Result<ClipSample, ConfigError> {
    if !keys.flag("thresholding", false)? {
        return Ok(ClipSample::None);
    }
    let ratio = keys.number("dynamic_thresholding_ratio")?.unwrap_or(0.995);
    let max = keys.positive("sample_max_value")?.unwrap_or(1.0);
    Ok(ClipSample::Dynamic {
        ratio: ratio as f32,
        max: max as f32,
    })
}

/// Returns an error about the key unless its value is `ok`.
fn check(
    ok: bool,
    key: &'static str,
    expected: impl Into<String>,
    found: impl Display,
) -> Result<(), ConfigError> {
    match ok {
        true => Ok(()),
        false => Err(wrong(key, expected, found)),
    }
}

fn is_beta(beta: f64) -> bool {
    beta > 0.0 && beta < 1.0
}

fn is_positive(number: f64) -> bool {
    number > 0.0 && number.is_finite()
}
