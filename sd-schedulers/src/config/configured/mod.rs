mod dpm_solvers;
mod ladders;
mod samplers;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::class::{Class, Kind};
use super::json::Keys;
use super::{ConfigError, SchedulerConfig};
use crate::{
    Ladder, Prediction, Sampler,
    samplers::{SamplerRow, row_of},
};

/// Everything that a diffusers `scheduler_config.json` says. See [`from_config`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Configured {
    /// The class in `_class_name`.
    pub class: &'static str,
    /// The facts about the model.
    pub config: SchedulerConfig,
    /// The sampler, with the options and conventions of the class.
    pub sampler: Arc<dyn Sampler>,
    /// The ladder. If its shift depends on the picture's size, it is for 1024 × 1024 pixels.
    /// [`Ladder::for_size`] adapts it to other sizes.
    pub ladder: Ladder,
    /// `noise_sampler_seed` of `DPMSolverSDEScheduler`: the seed of the Brownian tree, if it
    /// differs from the picture's seed.
    pub noise_seed: Option<u64>,
}

impl Configured {
    /// Returns the row of the sampler if the sampler has exactly the options of that row.
    pub fn row(&self) -> Option<&'static SamplerRow> {
        row_of(&*self.sampler, &self.config)
    }
}

/// Reads the model, the sampler and the ladder from a `scheduler_config.json` of diffusers 0.42.1.
///
/// The sampler and the ladder are the ones that the file's class would use in diffusers.
///
/// ```
/// use sd_schedulers::{Ladder, from_config};
///
/// let json = r#"{"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": true}"#;
/// let configured = from_config(json)?;
/// assert_eq!(configured.row().map(|row| row.name), Some("dpmpp-2m"));
/// assert_eq!(configured.ladder, Ladder::karras());
/// # Ok::<(), sd_schedulers::config::ConfigError>(())
/// ```
///
/// The supported classes are:
/// - the discrete diffusion classes: DDIM, DDPM, PNDM, LCM, TCD, Euler, Euler ancestral, Heun, LMS,
///   KDPM2, KDPM2 ancestral, DPM-Solver multistep, singlestep and SDE, DEIS, UniPC and SA-Solver;
/// - the flow matching classes: Euler, Heun and LCM;
/// - the EDM classes: Euler and DPM-Solver.
///
/// Options that diffusers takes as arguments of `step` rather than as keys, such as DDIM's eta,
/// have their defaults.
///
/// Every key has the meaning that it has for the class. A key that is missing or null has the
/// class's default. Keys that the class lacks are ignored, as in diffusers;
/// [`SchedulerConfig::ignored`] lists the ones that a user should know about.
///
/// # Errors
/// Every error names the key.
/// - [`ConfigError::Json`] if the text is not a JSON object.
/// - [`ConfigError::Class`] if the class is unknown or not supported.
/// - [`ConfigError::Value`] for a value that the class rejects, or accepts and then fails on; for
///   values that contradict each other; for `predict_epsilon: false` (see
///   [`SchedulerConfig::from_json`]); and for a missing `_class_name`.
/// - [`ConfigError::Value`] also for what this crate lacks: a learned variance, a
///   `lambda_min_clipped` that leaves out timesteps, `interpolation_type` `log_linear` on a
///   spacing, `timestep_type` `continuous` with `v_prediction`, `solver_p`, `tau_func`,
///   `invert_sigmas`, `scale_factors`, and solver orders above 3.
pub fn from_config(json: &str) -> Result<Configured, ConfigError> {
    let keys = Keys::parse(json)?;
    let Some(name) = keys.text("_class_name")? else {
        return Err(keys.refuse("_class_name", "the name of a diffusers class"));
    };
    let class = Class::find(name)?;
    let prediction = match class.kind {
        Kind::Flow => Prediction::Flow,
        Kind::Edm => keys.edm()?,
        Kind::Diffusion | Kind::Inverse => keys
            .one_of("prediction_type", class.predictions)?
            .unwrap_or_default(),
    };
    let mut config = SchedulerConfig::of(&keys, class, prediction)?;
    config.rescale_betas_zero_snr &= class.zero_snr;
    let (sampler, ladder) = File {
        keys: &keys,
        config: &config,
    }
    .read(class)?;
    let noise_seed = match class.name {
        "DPMSolverSDEScheduler" => {
            let seed = "a non-negative integer";
            keys.get("noise_sampler_seed", seed, serde_json::Value::as_u64)?
        }
        _ => None,
    };
    Ok(Configured {
        class: class.name,
        config,
        sampler,
        ladder,
        noise_seed,
    })
}

/// A configuration file, and the facts about its model.
struct File<'a> {
    keys: &'a Keys,
    config: &'a SchedulerConfig,
}

impl File<'_> {
    fn refuse(&self, key: &'static str, expected: impl Into<String>) -> ConfigError {
        self.keys.refuse(key, expected)
    }

    fn must_be_null(&self, key: &'static str) -> Result<(), ConfigError> {
        self.keys.get(key, "null", |_| None::<()>).map(|_| ())
    }

    fn is_flow(&self) -> bool {
        self.config.prediction == Prediction::Flow
    }

    fn count(
        &self,
        key: &'static str,
        range: RangeInclusive<usize>,
        default: usize,
    ) -> Result<usize, ConfigError> {
        let found = self.keys.integer(key)?.unwrap_or(default);
        if range.contains(&found) {
            return Ok(found);
        }
        Err(self.refuse(key, format!("{} to {}", range.start(), range.end())))
    }
}
