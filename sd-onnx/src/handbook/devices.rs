//! Devices, precisions and memory: what a picture is computed on, how fast, and in how much memory.
//!
//! # Which device
//! | [`Device`](crate::Device) | runs on | [`Precision`](crate::Precision) | needs |
//! |---|---|---|---|
//! | `Cpu`, the default | any processor | f32 | ONNX Runtime |
//! | `OpenVino` | a processor with x86-64 instructions, fastest with AMX | f32, bf16 | OpenVINO's provider; Linux or Windows |
//! | `OpenVinoGpu`, `OpenVinoNpu` | Intel's graphics cards and neural processors | f32 and f16, f16 | the same, and the device's driver |
//!
//! The GPU and the NPU could not be tested: no machine of this project has one.
//!
//! On a processor with AMX, use OpenVINO in bf16: a UNet call takes a third of the time that it
//! takes on `Cpu`, and the UNet half the memory. In f32, `Cpu` and OpenVINO take about the same
//! time, and `Cpu` starts faster. The project's `benches/README.md` compares them with
//! each other and with other programs.
//!
//! ```no_run
//! use sd_onnx::{Device, Precision, Request};
//!
//! let pipeline = sd_onnx::builder()
//!     .device(Device::OpenVino)
//!     .precision(Precision::Bf16)
//!     .size(512, 768) // compiles the networks for this size
//!     .load("stable-diffusion-v1-5")?;
//! for network in pipeline.device_report() {
//!     println!("{network}"); // "UNet: OpenVINOExecutionProvider 1544, CPUExecutionProvider 0"
//! }
//! pipeline.generate(&Request::new("a fox"))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A device or a precision that is not available is an error, never replaced by another one.
//! [`Pipeline::device_report`](crate::Pipeline::device_report) lists which provider of ONNX Runtime
//! runs how many nodes of each network. Nodes that a device's provider does not take run on the
//! CPU; for the graphs of this library there are none.
//!
//! With the Cargo feature `fetch` the libraries are downloaded when they are first needed: 52 MB for
//! OpenVINO. Without it, see the [crate's documentation](crate#onnx-runtime) for where they are
//! looked for.
//!
//! # What bf16 changes
//! bf16 has the range of f32 and 8 bits of precision. The output of one UNet call differs from f32
//! by about 2 %. A picture has the same composition, and small details differ. The same request
//! on the same machine gives the same bits every time, in every precision.
//!
//! Sines of timesteps and sizes are computed in f32, outside of the network. A UNet that another
//! tool exported to ONNX computes them itself, which would be wrong by several percent, so exported
//! UNets are refused in bf16.
//!
//! # What a size costs
//! `Cpu` takes pictures of any size. OpenVINO compiles the UNet and the VAE for one size of
//! pictures, one batch and one length of prompts. It does so for
//! [`Builder::size`](crate::Builder::size) when the model is loaded. The first picture of another
//! size waits until the networks are compiled again, which takes as long as loading them.
//! [`Builder::kept_sizes`](crate::Builder::kept_sizes) sets how many sizes stay compiled: each costs
//! a copy of the weights.
//!
//! # Less memory
//! With [`Builder::low_memory`](crate::Builder::low_memory) only one network is loaded at a time.
//! It saves the text encoders' memory while the UNet runs, and the UNet's while the VAE runs, and
//! costs the time to load each of them again.
//!
//! In bf16 the weights of the UNet and the text encoders are mapped from the model's own file if
//! they are stored as bf16. From files of other types they are converted into a temporary file in
//! the cache folder while the network is loaded: 1.7 GB for Stable Diffusion 1.5, 5.1 GB for SDXL.
//! The file has no name any more once the network is loaded, and its space is free again when the
//! network is unloaded.
//!
//! # Stopping
//! A [`StopToken`](crate::StopToken) ends a call on `Cpu` within one operator, some tens of
//! milliseconds. OpenVINO runs a network as one operator, so the picture ends when the running call
//! is over: about a second for Stable Diffusion 1.5 in bf16, half a minute for a VAE in f32 at
//! 1024 × 1024.
