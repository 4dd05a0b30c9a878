use thiserror::Error;

/// A configuration that cannot be used.
///
/// Each message names the key, what was expected and what was found. Text from the file is escaped
/// and cut so that it can be printed.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not JSON, or not a JSON object.
    #[error("the scheduler configuration is not a JSON object: {0}")]
    Json(String),
    /// The scheduler class is unknown, or its model is one that this crate cannot sample.
    #[error("`_class_name`: expected a scheduler class that this crate supports, found {found}")]
    Class {
        /// The class in the file, and why it cannot be used if that is known.
        found: String,
    },
    /// A value has the wrong type, is out of range, or contradicts another value.
    #[error("`{key}`: expected {expected}, found {found}")]
    Value {
        /// The key in the JSON file.
        key: &'static str,
        /// The expected value.
        expected: String,
        /// The value in the file.
        found: String,
    },
    /// The sigmas of the noise schedule, as float32, are not finite or do not rise at this training
    /// timestep.
    #[error(
        "noise schedule: expected sigmas that are finite and rise with every timestep, found sigma {sigma} at timestep {timestep}"
    )]
    Sigmas {
        /// The first timestep whose sigma is wrong, as an index from 0.
        timestep: usize,
        /// The sigma at that timestep.
        sigma: f32,
    },
}
