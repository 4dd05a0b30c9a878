//! Devices, precisions and memory: where networks run, how fast, and how much memory they need.
//!
//! # Which device
//! | [`Device`] | runs on | [`Precision`] |
//! |---|---|---|
//! | `Cpu`, the default | any processor | f32 |
//! | `OpenVino` | x86-64 processors, fastest with AMX | f32, bf16 |
//! | `OpenVinoGpu` | Intel's graphics cards | f32, f16 |
//! | `OpenVinoNpu` | Intel's neural processors | f16 |
//!
//! `Cpu` needs only ONNX Runtime. The other devices also need OpenVINO's provider, on Linux or
//! Windows. `OpenVinoGpu` and `OpenVinoNpu` also need the driver of the device.
//! [`Device::precisions`](crate::Device::precisions) lists the precisions of a device on this
//! machine.
//!
//! `OpenVinoGpu` and `OpenVinoNpu` are untested, because no machine of this project has such a
//! device.
//!
//! Use OpenVINO in bf16 on a processor that computes in bf16. Compared with `Cpu`, a UNet call
//! takes a third of the time with AMX (Intel's Xeons since 2023), and about half of the time with
//! AVX-512 BF16 (AMD since Zen 4). In f32, `Cpu` and OpenVINO take about the same time, and `Cpu`
//! starts faster and needs less memory. The project's `benches/README.md` compares them with each
//! other and with other programs.
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
//! [`Pipeline::device_report`](crate::Pipeline::device_report) lists, for each network, how many
//! nodes each provider of ONNX Runtime runs. Nodes that the device's provider does not support run
//! on the CPU. The graphs of this library have almost no such nodes. On processors that are not
//! from Intel, they are the nodes of the text encoder's causal attention.
//!
//! With the Cargo feature `fetch`, the libraries are downloaded when they are first needed. For
//! OpenVINO this is a download of 52 MB, which takes 152 MB on the disk. On Windows with a
//! processor that is not from Intel, `OpenVino` cannot be downloaded. Without the feature, the
//! libraries must be installed in one of the places listed in the
//! [crate's documentation](crate#onnx-runtime).
//!
//! # What bf16 changes
//! bf16 has the range of f32 and 8 bits of precision. The output of one UNet call differs from f32
//! by about 2 %. A picture has the same composition, and small details differ. The small model of
//! the examples follows its 256 evaluation prompts as often as in f32. In every precision, the same
//! request on the same machine gives the same bits every time.
//!
//! The sines of timesteps and sizes are computed in f32, outside of the network. A UNet that
//! another tool exported to ONNX computes them inside, where bf16 would make them wrong by several
//! percent. Exported UNets are therefore refused in bf16.
//!
//! # What a size costs
//! `Cpu` takes pictures of any size. OpenVINO compiles the UNet and the VAE for one size of
//! pictures, one batch and one length of prompts. It compiles them for
//! [`Builder::size`](crate::Builder::size) when the model is loaded. The first picture of another
//! size waits until the networks are compiled again, which takes as long as loading them.
//! [`Builder::kept_sizes`](crate::Builder::kept_sizes) sets how many sizes stay compiled. Each of
//! them costs a copy of the weights.
//!
//! # Memory
//! The largest anonymous memory of a process that draws one picture, in MiB, with random weights in
//! the published sizes. Files that are mapped, such as f32 weights on the CPU, come on top, and the
//! system can drop them. `low_memory` is [`Builder::low_memory`](crate::Builder::low_memory).
//!
//! | | memory | with `low_memory` |
//! |---|---|---|
//! | Stable Diffusion 1.5, 512×512, CPU in f32 | 2,599 | 1,319 |
//! | Stable Diffusion 1.5, 512×512, OpenVINO in bf16 | 2,530 | 1,839 |
//! | SDXL, 1024×1024, CPU in f32 | 16,602 | 9,571 |
//! | SDXL, 1024×1024, OpenVINO in bf16 | 8,626 | 5,347 |
//!
//! With [`Builder::low_memory`](crate::Builder::low_memory), only one network is loaded at a time,
//! except that the UNet and its ControlNets stay loaded together. This saves the memory of the text
//! encoders while the UNet runs, and the memory of the UNet while the VAE runs. It costs the time
//! to load each network again.
//!
//! # Large pictures
//! The autoencoder needs the most memory for a large picture. With an ordinary one, an untiled call
//! needs 4 KiB for each pixel. Above a bound, which is 6 GiB by default, it therefore runs in
//! exact tiles: one band of rows after another, with the same result, except for rounding.
//! [`Builder::vae_tiling`](crate::Builder::vae_tiling) sets the bound, or chooses fast tiles, which
//! need less memory and estimate some means of the network from a sample of the rows.
//!
//! The largest anonymous memory of a process that decodes one picture with random weights in the
//! size of Stable Diffusion 1.5's autoencoder, on the CPU in f32, in MiB:
//!
//! | | untiled | exact tiles |
//! |---|---|---|
//! | 512×512 | 1,074 | 601 |
//! | 1024×1024 | 4,243 | 1,372 |
//!
//! Exact tiles took 1.5 times the processor time of the untiled call at 512×512. At 1024×1024 no
//! value of the two pictures differed by more than 0.05 of 255 levels.
//!
//! Three pictures of 2048×2048 pixels were decoded with the small model of the examples. Exact tiles
//! differed from the untiled call by at most 0.4 of 255 levels. Fast tiles differed by at most 2.1
//! levels and had a PSNR of 57 to 60 dB. The differences are smooth and show no seams. The program
//! `vae` of the benches repeats these measurements, and makes pictures of the differences.
//!
//! OpenVINO compiles each part of the network for one size of bands. Tiles are untested there.
//!
//! # Temporary files
//! Weights are mapped from the model's own file where the device can read them as they are stored.
//! Others are written to a temporary file in the cache folder while the network is loaded, and
//! mapped from there. The sizes below are for the UNets of Stable Diffusion 1.5 and of SDXL:
//!
//! - On `Cpu`, the file holds the filters of convolutions in another order, as f32: 2.4 and 1.3 GB.
//!   If it cannot be written, ONNX Runtime reorders the filters in memory, and `tracing` receives a
//!   warning.
//! - On OpenVINO in bf16 on Intel's processors, the file holds the weights that are not stored as
//!   bf16: 1.7 and 5.1 GB.
//! - On OpenVINO otherwise, it holds the weights that are not stored as f32: 3.4 and 10 GB.
//!   OpenVINO would keep an f32 copy of them in memory.
//!
//! Once the network is loaded, the file no longer has a name. Its space is freed when the network
//! is unloaded. The system can drop its pages from memory as it can with any file.
//!
//! # Stopping
//! A [`StopToken`](crate::StopToken) ends a call on `Cpu` within one operator, some tens of
//! milliseconds. OpenVINO runs a network as one operator, so the run ends when the current call is
//! over: about a second for Stable Diffusion 1.5 in bf16, half a minute for a VAE in f32 at
//! 1024 × 1024. A network that is being loaded or compiled, such as for the first picture of
//! another size, is finished first.
//!
//! [`Device`]: crate::Device
//! [`Precision`]: crate::Precision
