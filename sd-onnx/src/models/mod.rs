//! The networks of Stable Diffusion and SDXL, CLIP's vision model, and networks that enlarge
//! pictures. Each file writes its network as ONNX graphs, from the values of a `config.json` or from
//! the shapes of the tensors.

pub(crate) mod blocks;
pub(crate) mod clip_layer;
pub(crate) mod clip_text;
pub(crate) mod clip_vision;
pub(crate) mod unet;
pub(crate) mod upscalers;
pub(crate) mod vae;
