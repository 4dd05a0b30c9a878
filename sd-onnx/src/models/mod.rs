//! The networks of Stable Diffusion and SDXL, the networks that guide them, CLIP's vision model,
//! and networks that enlarge pictures. Each file writes its network as ONNX graphs, from the values
//! of a `config.json` or from the shapes of the tensors.

pub(crate) mod blocks;
pub(crate) mod clip_layer;
pub(crate) mod clip_text;
pub(crate) mod clip_vision;
pub(crate) mod control_net;
pub(crate) mod image_prompt;
pub(crate) mod t2i_adapter;
pub(crate) mod unet;
pub(crate) mod upscalers;
pub(crate) mod vae;
