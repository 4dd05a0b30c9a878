//! The three networks of Stable Diffusion 1.x, each as one graph driven by its `config.json`.

pub(crate) mod blocks;
pub(crate) mod clip_text;
pub(crate) mod unet;
pub(crate) mod vae;
