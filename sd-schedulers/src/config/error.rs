use thiserror::Error;

/// A configuration that can't be used. Each message names the key, what was expected and what was
/// found. Text from the file is escaped and cut in it.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not JSON, or not a JSON object.
    #[error("the scheduler configuration is not a JSON object: {0}")]
    Json(String),
    /// The scheduler class is unknown, or its model is one that this crate can't sample.
    #[error("`_class_name`: expected a scheduler class that this program can use, found {found}")]
    Class {
        /// The class found, and why it can't be used, if that is known.
        found: String,
    },
    /// A value has the wrong type, is out of range, or can't stand beside another one.
    #[error("`{key}`: expected {expected}, found {found}")]
    Value {
        /// The key of the JSON file.
        key: &'static str,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The betas make a noise schedule whose sigmas, as float32, do not rise at this training
    /// timestep.
    #[error(
        "the betas: expected betas whose sigmas are finite and rise with every timestep, found sigma {sigma} at timestep {timestep}"
    )]
    Sigmas {
        /// The first timestep at fault.
        timestep: usize,
        /// Its sigma.
        sigma: f32,
    },
}
