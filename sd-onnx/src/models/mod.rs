//! The networks of Stable Diffusion and SDXL, the networks that guide them, and CLIP's vision model.
//! Each file writes its network as ONNX graphs, from the values of a `config.json`.

pub(crate) mod blocks;
pub(crate) mod clip_layer;
pub(crate) mod clip_text;
pub(crate) mod clip_vision;
pub(crate) mod control_net;
pub(crate) mod image_prompt;
pub(crate) mod t2i_adapter;
pub(crate) mod unet;
pub(crate) mod vae;
