//! What a model was trained with, as its `scheduler_config.json` says it.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::Prediction;

/// What a diffusers `scheduler_config.json` says of the *model*: the noise it was trained on and what it predicts.
///
/// The same file also says which sampler its author liked (`_class_name`, `timestep_spacing`, `use_karras_sigmas`);
/// that is a choice for each run, not a fact of the model, and is not kept here.
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
    /// Clip the denoised sample to plus or minus this (above 0), for models of pixels. Default none.
    pub clip_sample: Option<f32>,
    /// Rescale the betas so that the last timestep is (all but) pure noise: <https://arxiv.org/abs/2305.08891>.
    /// Default false.
    pub rescale_betas_zero_snr: bool,
}

/// How the betas rise over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BetaSchedule {
    /// `linear`: evenly spaced betas (<https://arxiv.org/abs/2006.11239>).
    Linear,
    /// `scaled_linear`: evenly spaced square roots of betas; Stable Diffusion's.
    ScaledLinear,
    /// `squaredcos_cap_v2`: from a squared cosine alpha-bar, betas capped at 0.999 (<https://arxiv.org/abs/2102.09672>).
    Cosine,
}

/// A configuration that can't be used. Each says the key, what was expected and what was found.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not JSON, or not a JSON object.
    #[error("the scheduler configuration is not a JSON object: {0}")]
    Json(String),
    /// The configuration is of a scheduler whose model this crate can't sample (flow matching, EDM, …) or doesn't know.
    #[error(
        "`_class_name`: expected a scheduler of a discrete variance-preserving model, found `{found}`"
    )]
    Class {
        /// The class found.
        found: String,
    },
    /// A value has the wrong type or is out of range.
    #[error("`{key}`: expected {expected}, found {found}")]
    Value {
        /// The key of the JSON file.
        key: &'static str,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The betas make a noise schedule whose sigmas do not rise, as float32, at this training timestep.
    #[error(
        "the betas: expected finite sigmas that rise with every timestep, found {sigma} at timestep {timestep}"
    )]
    Sigmas {
        /// The first timestep at fault.
        timestep: usize,
        /// Its sigma.
        sigma: f32,
    },
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
            clip_sample: None,
            rescale_betas_zero_snr: false,
        }
    }
}

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`.
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
    /// # Errors
    /// [`ConfigError`] for text that is not a JSON object, a class this crate can't sample, a value of the wrong type
    /// or out of range. That the betas make a usable schedule is seen by [`NoiseSchedule::new`](crate::NoiseSchedule::new).
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let json: Map<String, Value> = serde_json::from_str(&without_infinities(text))
            .map_err(|e| ConfigError::Json(e.to_string()))?;
        let keys = Keys(&json);
        let class_name = keys
            .get("_class_name", "a string", Value::as_str)?
            .unwrap_or("PNDMScheduler");
        let class = CLASSES.iter().find(|class| class.name == class_name);
        let class = class.ok_or_else(|| ConfigError::Class {
            found: class_name.to_owned(),
        })?;
        if keys.get("use_flow_sigmas", "a boolean", Value::as_bool)? == Some(true) {
            return Err(ConfigError::Class {
                found: format!("{class_name} with use_flow_sigmas"),
            });
        }

        let clips = keys
            .get("clip_sample", "a boolean", Value::as_bool)?
            .unwrap_or(class.clip_sample);
        let clip_range = keys
            .get("clip_sample_range", "a number", Value::as_f64)?
            .unwrap_or(1.0);
        let config = Self {
            num_train_timesteps: keys.integer("num_train_timesteps")?.unwrap_or(1000),
            beta_start: keys
                .get("beta_start", "a number", Value::as_f64)?
                .unwrap_or(class.betas.0),
            beta_end: keys
                .get("beta_end", "a number", Value::as_f64)?
                .unwrap_or(class.betas.1),
            beta_schedule: keys
                .get("beta_schedule", BETA_SCHEDULES, beta_schedule)?
                .unwrap_or(class.betas.2),
            trained_betas: keys.get("trained_betas", "an array of numbers", numbers)?,
            steps_offset: keys.integer("steps_offset")?.unwrap_or(0),
            prediction: keys
                .get("prediction_type", PREDICTIONS, prediction)?
                .unwrap_or(Prediction::Epsilon),
            set_alpha_to_one: keys
                .get("set_alpha_to_one", "a boolean", Value::as_bool)?
                .unwrap_or(class.set_alpha_to_one),
            clip_sample: clips.then_some(clip_range as f32),
            rescale_betas_zero_snr: keys
                .get("rescale_betas_zero_snr", "a boolean", Value::as_bool)?
                .unwrap_or(false),
        };
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
            false => Err(ConfigError::Value {
                key,
                expected: expected.to_owned(),
                found,
            }),
        };
        let beta = |beta: f64| beta > 0.0 && beta < 1.0;
        check(
            (2..=100_000).contains(&timesteps),
            "num_train_timesteps",
            "2 to 100000",
            timesteps.to_string(),
        )?;
        check(
            beta(self.beta_start),
            "beta_start",
            "a number between 0 and 1",
            self.beta_start.to_string(),
        )?;
        check(
            beta(self.beta_end),
            "beta_end",
            "a number between 0 and 1",
            self.beta_end.to_string(),
        )?;
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
        if let Some(range) = self.clip_sample {
            check(
                range > 0.0 && range.is_finite(),
                "clip_sample_range",
                "a number above 0",
                range.to_string(),
            )?;
        }
        Ok(())
    }
}

/// What a scheduler class of diffusers 0.42.1 takes missing keys to be.
struct Class {
    name: &'static str,
    betas: (f64, f64, BetaSchedule),
    /// The class's default; false where it has no such key.
    clip_sample: bool,
    /// The class's default; true where it has no such key.
    set_alpha_to_one: bool,
}

const DDPM: (f64, f64, BetaSchedule) = (0.0001, 0.02, BetaSchedule::Linear);
const KARRAS: (f64, f64, BetaSchedule) = (0.00085, 0.012, BetaSchedule::Linear);
const LATENT: (f64, f64, BetaSchedule) = (0.00085, 0.012, BetaSchedule::ScaledLinear);

const fn class(
    name: &'static str,
    betas: (f64, f64, BetaSchedule),
    clip_sample: bool,
    set_alpha_to_one: bool,
) -> Class {
    Class {
        name,
        betas,
        clip_sample,
        set_alpha_to_one,
    }
}

/// tests/golden/defaults.json has the same, read from the classes' sources.
#[rustfmt::skip]
static CLASSES: [Class; 21] = [
    class("DDIMInverseScheduler", DDPM, true, true),
    class("DDIMParallelScheduler", DDPM, true, true),
    class("DDIMScheduler", DDPM, true, true),
    class("DDPMParallelScheduler", DDPM, true, true),
    class("DDPMScheduler", DDPM, true, true),
    class("DEISMultistepScheduler", DDPM, false, true),
    class("DPMSolverMultistepInverseScheduler", DDPM, false, true),
    class("DPMSolverMultistepScheduler", DDPM, false, true),
    class("DPMSolverSDEScheduler", KARRAS, false, true),
    class("DPMSolverSinglestepScheduler", DDPM, false, true),
    class("EulerAncestralDiscreteScheduler", DDPM, false, true),
    class("EulerDiscreteScheduler", DDPM, false, true),
    class("HeunDiscreteScheduler", KARRAS, false, true),
    class("KDPM2AncestralDiscreteScheduler", KARRAS, false, true),
    class("KDPM2DiscreteScheduler", KARRAS, false, true),
    class("LCMScheduler", LATENT, false, true),
    class("LMSDiscreteScheduler", DDPM, false, true),
    class("PNDMScheduler", DDPM, false, false),
    class("SASolverScheduler", DDPM, false, true),
    class("TCDScheduler", LATENT, false, true),
    class("UniPCMultistepScheduler", DDPM, false, true),
];

struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    /// The value of a key, `None` when it is missing or null, an error when `read` can't take it.
    fn get<T>(
        &self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(ConfigError::Value {
                    key,
                    expected: expected.to_owned(),
                    found: excerpt(value),
                }),
            },
        }
    }

    fn integer(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        self.get(key, "a non-negative integer", |value| {
            usize::try_from(value.as_u64()?).ok()
        })
    }
}

const BETA_SCHEDULES: &str = "`linear`, `scaled_linear` or `squaredcos_cap_v2`";
const PREDICTIONS: &str = "`epsilon`, `v_prediction` or `sample`";

fn beta_schedule(value: &Value) -> Option<BetaSchedule> {
    match value.as_str()? {
        "linear" => Some(BetaSchedule::Linear),
        "scaled_linear" => Some(BetaSchedule::ScaledLinear),
        "squaredcos_cap_v2" => Some(BetaSchedule::Cosine),
        _ => None,
    }
}

fn prediction(value: &Value) -> Option<Prediction> {
    match value.as_str()? {
        "epsilon" => Some(Prediction::Epsilon),
        "v_prediction" => Some(Prediction::V),
        "sample" => Some(Prediction::Sample),
        _ => None,
    }
}

fn numbers(value: &Value) -> Option<Vec<f32>> {
    value
        .as_array()?
        .iter()
        .map(|number| Some(number.as_f64()? as f32))
        .collect()
}

/// The text with Python's `NaN` and infinities, outside of strings, made null.
fn without_infinities(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    let (mut quoted, mut escaped) = (false, false);
    while let Some(next) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"]
            .into_iter()
            .find(|word| !quoted && rest.starts_with(word));
        match word {
            Some(_) => out.push_str("null"),
            None => out.push(next),
        }
        quoted ^= next == '"' && !escaped;
        escaped = next == '\\' && quoted && !escaped;
        rest = &rest[word.map_or(next.len_utf8(), str::len)..];
    }
    out
}

/// The value as JSON, cut to a length that fits a message.
fn excerpt(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_keys_take_the_defaults_of_their_class_in_diffusers() {
        let golden: Value =
            serde_json::from_str(include_str!("../tests/golden/defaults.json")).unwrap();
        let classes = golden["classes"].as_array().unwrap();
        assert_eq!(classes.len(), CLASSES.len());
        for class in classes {
            let name = class["_class_name"].as_str().unwrap();
            let bare =
                SchedulerConfig::from_json(&format!(r#"{{"_class_name": "{name}"}}"#)).unwrap();
            let clips = class.get("clip_sample").is_some_and(|v| v == true);
            assert_eq!(
                bare.num_train_timesteps,
                class["num_train_timesteps"].as_u64().unwrap() as usize,
                "{name}"
            );
            assert_eq!(
                bare.beta_start,
                class["beta_start"].as_f64().unwrap(),
                "{name}"
            );
            assert_eq!(bare.beta_end, class["beta_end"].as_f64().unwrap(), "{name}");
            assert_eq!(
                Some(bare.beta_schedule),
                beta_schedule(&class["beta_schedule"]),
                "{name}"
            );
            assert_eq!(
                Some(bare.prediction),
                prediction(&class["prediction_type"]),
                "{name}"
            );
            assert_eq!(
                bare.steps_offset as u64,
                class.get("steps_offset").map_or(0, |v| v.as_u64().unwrap()),
                "{name}"
            );
            assert_eq!(bare.clip_sample, clips.then_some(1.0), "{name}");
            assert_eq!(
                bare.set_alpha_to_one,
                class.get("set_alpha_to_one").is_none_or(|v| v == true),
                "{name}"
            );
            assert!(
                class
                    .get("rescale_betas_zero_snr")
                    .is_none_or(|v| v == false),
                "{name}"
            );
        }
    }

    #[test]
    fn the_published_stable_diffusion_1_5_configuration_is_the_default() {
        let text = r#"{
            "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
            "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
            "clip_sample": false
        }"#;
        assert_eq!(
            SchedulerConfig::from_json(text).unwrap(),
            SchedulerConfig::default()
        );
    }

    #[test]
    fn every_key_changes_its_field() {
        let text = r#"{"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 2, "beta_start": 0.1,
            "beta_end": 0.2, "beta_schedule": "squaredcos_cap_v2", "trained_betas": [0.25, 0.5], "steps_offset": 1,
            "prediction_type": "v_prediction", "set_alpha_to_one": false, "clip_sample": true,
            "clip_sample_range": 2.5, "rescale_betas_zero_snr": true}"#;
        let expected = SchedulerConfig {
            num_train_timesteps: 2,
            beta_start: 0.1,
            beta_end: 0.2,
            beta_schedule: BetaSchedule::Cosine,
            trained_betas: Some(vec![0.25, 0.5]),
            steps_offset: 1,
            prediction: Prediction::V,
            set_alpha_to_one: false,
            clip_sample: Some(2.5),
            rescale_betas_zero_snr: true,
        };
        assert_eq!(SchedulerConfig::from_json(text).unwrap(), expected);
    }

    #[test]
    fn null_is_missing() {
        let text = r#"{"_class_name": null, "beta_start": null, "clip_sample": null, "prediction_type": null}"#;
        assert_eq!(
            SchedulerConfig::from_json(text),
            SchedulerConfig::from_json("{}")
        );
    }

    #[test]
    fn pythons_infinities_are_null() {
        let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity,
            "é\"NaN": [NaN, Infinity], "beta_end": NaN, "beta_schedule": "squaredcos_cap_v2"}"#;
        let config = SchedulerConfig::from_json(text).unwrap();
        assert_eq!(
            (config.beta_end, config.beta_schedule),
            (0.02, BetaSchedule::Cosine)
        );
        assert!(without_infinities(text).contains(r#""é\"NaN": [null, null]"#));
    }

    #[test]
    fn errors_name_the_key_and_what_was_found() {
        let cases = [
            ("", "not a JSON object"),
            ("[]", "not a JSON object"),
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#,
                "FlowMatchEulerDiscreteScheduler",
            ),
            (
                r#"{"_class_name": "EDMEulerScheduler"}"#,
                "EDMEulerScheduler",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true}"#,
                "use_flow_sigmas",
            ),
            (
                r#"{"_class_name": 3}"#,
                "`_class_name`: expected a string, found 3",
            ),
            (
                r#"{"num_train_timesteps": 1}"#,
                "`num_train_timesteps`: expected 2 to 100000, found 1",
            ),
            (
                r#"{"num_train_timesteps": 1e3}"#,
                "`num_train_timesteps`: expected a non-negative integer, found 1000.0",
            ),
            (r#"{"num_train_timesteps": -4}"#, "found -4"),
            (
                r#"{"num_train_timesteps": 18446744073709551615}"#,
                "expected 2 to 100000",
            ),
            (
                r#"{"beta_start": "0.1"}"#,
                r#"`beta_start`: expected a number, found "0.1""#,
            ),
            (
                r#"{"beta_start": 0}"#,
                "`beta_start`: expected a number between 0 and 1, found 0",
            ),
            (
                r#"{"beta_end": 1.0}"#,
                "`beta_end`: expected a number between 0 and 1, found 1",
            ),
            (
                r#"{"beta_schedule": "sigmoid"}"#,
                "`beta_schedule`: expected `linear`, `scaled_linear`",
            ),
            (
                r#"{"prediction_type": "flow_prediction"}"#,
                r#"found "flow_prediction""#,
            ),
            (
                r#"{"steps_offset": 1000}"#,
                "`steps_offset`: expected less than 1000, found 1000",
            ),
            (
                r#"{"trained_betas": [0.1]}"#,
                "`trained_betas`: expected 1000 betas, found 1 betas",
            ),
            (
                r#"{"trained_betas": [0.1, "x"]}"#,
                "`trained_betas`: expected an array of numbers",
            ),
            (
                r#"{"num_train_timesteps": 2, "trained_betas": [0.1, 1.5]}"#,
                "found 1.5",
            ),
            (
                r#"{"clip_sample": 1}"#,
                "`clip_sample`: expected a boolean, found 1",
            ),
            (
                r#"{"clip_sample": true, "clip_sample_range": -1}"#,
                "`clip_sample_range`: expected a number above 0",
            ),
            (
                r#"{"set_alpha_to_one": "yes"}"#,
                "`set_alpha_to_one`: expected a boolean",
            ),
            (
                r#"{"rescale_betas_zero_snr": 0}"#,
                "`rescale_betas_zero_snr`: expected a boolean",
            ),
        ];
        for (text, expected) in cases {
            let message = SchedulerConfig::from_json(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
