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
use crate::{Ladder, Prediction, Row, Sampler, row_of};

/// All that a diffusers `scheduler_config.json` says: see [`from_config`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Configured {
    /// The class, `_class_name`.
    pub class: &'static str,
    /// The facts of the model.
    pub config: SchedulerConfig,
    /// The sampler with the class's options and conventions.
    pub sampler: Arc<dyn Sampler>,
    /// The ladder. A shift by the picture's size is for 1024 × 1024 pixels: [`Ladder::for_size`] is for other ones.
    pub ladder: Ladder,
    /// `noise_sampler_seed` of `DPMSolverSDEScheduler`: the seed of its Brownian tree, where it is not the picture's.
    pub noise_seed: Option<u64>,
}

impl Configured {
    /// The row of the sampler, if its options are those that the row has.
    pub fn row(&self) -> Option<&'static Row> {
        row_of(&*self.sampler, &self.config)
    }
}

/// Reads a `scheduler_config.json` of diffusers 0.42.1: the model, the sampler and the ladder that its class would use.
///
/// ```
/// use sd_schedulers::{Ladder, from_config};
///
/// let configured = from_config(r#"{"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": true}"#)?;
/// assert_eq!(configured.row().map(|row| row.name), Some("dpmpp-2m"));
/// assert_eq!(configured.ladder, Ladder::karras());
/// # Ok::<(), sd_schedulers::ConfigError>(())
/// ```
///
/// The classes are the discrete diffusion ones (DDIM, DDPM, PNDM, LCM, TCD, Euler, Euler ancestral, Heun, LMS, KDPM2, KDPM2 ancestral,
/// DPM-Solver multistep, singlestep and SDE, DEIS, UniPC, SA-Solver), those of flow matching (Euler, Heun, LCM) and of EDM (Euler, DPM-Solver).
/// What diffusers takes as an argument of `step` instead of a key, such as DDIM's eta, has its default.
///
/// Every key means what it means to the class: also one that is missing or null, which has the
/// class's default. Keys that the class does not have are ignored, as in diffusers;
/// [`SchedulerConfig::ignored`] lists those that a user should hear of.
///
/// # Errors
/// [`ConfigError`], naming the key, for values that the class does not take, or takes and then
/// fails; for values that contradict each other; for `predict_epsilon` false (see
/// [`SchedulerConfig::from_json`]); and for what this crate lacks: a learned variance, a
/// `lambda_min_clipped` that leaves timesteps out, `interpolation_type` `log_linear` on a spacing,
/// `timestep_type` `continuous` with `v_prediction`, `solver_p`, `tau_func`, `invert_sigmas`,
/// `scale_factors`, solver orders above 3.
pub fn from_config(json: &str) -> Result<Configured, ConfigError> {
    let keys = Keys::parse(json)?;
    let Some(name) = keys.text("_class_name")? else {
        return Err(keys.refuse("_class_name", "the name of a class of diffusers"));
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

/// A configuration whose facts are known.
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
