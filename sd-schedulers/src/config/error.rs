use thiserror::Error;

/// A configuration that can't be used. Each says the key, what was expected and what was found.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not JSON, or not a JSON object.
    #[error("the scheduler configuration is not a JSON object: {0}")]
    Json(String),
    /// The configuration is of a scheduler whose model this crate can't sample, can't sample so, or doesn't know.
    #[error(
        "`_class_name`: expected a scheduler class of Stable Diffusion that can be used here, found `{found}`"
    )]
    Class {
        /// The class found, and why not, if that is known.
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
    /// A key that no class of diffusers has.
    #[error("`{key}`: expected a key of a scheduler class, such as {like}")]
    Key {
        /// The key.
        key: String,
        /// Keys that are spelled alike.
        like: String,
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
