//! Devices, precisions and memory: where networks run, how fast, and how much memory they need.
//!
//! # Which device
//! | [`Device`] | runs on | [`Precision`] |
//! |---|---|---|
//! | `Cpu`, the default | any processor | f32; [int8](#int8-on-the-cpu) on x86-64 with VNNI or AMX, except on Windows |
//! | `OpenVino` | x86-64 processors, fastest with AMX | f32, [bf16](#what-bf16-changes) |
//! | `OpenVinoGpu` | Intel's graphics cards | f32, f16 |
//! | `OpenVinoNpu` | Intel's neural processors | f16 |
//! | `Cuda` | NVIDIA's graphics cards since 2018 | f32, f16 |
//!
//! `Cpu` needs only ONNX Runtime. The three devices of OpenVINO also need its provider, on Linux or
//! Windows. `OpenVinoGpu` and `OpenVinoNpu` also need the driver of the device. `Cuda` needs
//! [the driver and NVIDIA's libraries](#nvidia-gpus).
//! [`Device::precisions`](crate::Device::precisions) lists the precisions of a device on this
//! machine.
//!
//! `OpenVinoGpu`, `OpenVinoNpu` and `Cuda` are untested, because no machine of this project has
//! such a device. The section [NVIDIA GPUs](#nvidia-gpus) lists what was tested of `Cuda` without a
//! card.
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
//! # int8 on the CPU
//! `Cpu` computes most layers of the UNet in 8-bit integers when
//! [`Builder::precision`](crate::Builder::precision) is [`Int8`](crate::Precision::Int8). The
//! processor needs AVX-512 VNNI, AVX-VNNI or AMX. On Windows, int8 is not available.
//! `Device::Cpu.precisions()` contains `Int8` if this machine supports it. Otherwise, loading fails
//! with [`RuntimeError::Precision`](crate::RuntimeError::Precision). In the examples, the option is
//! `--precision int8`.
//!
//! ```no_run
//! use sd_onnx::{Precision, Request};
//!
//! let builder = sd_onnx::builder().precision(Precision::Int8);
//! let pipeline = builder.load("stable-diffusion-v1-5")?; // the first time, it is calibrated
//! pipeline.generate(&Request::new("a fox"))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - *Weights* become integers when the model is loaded, with a scale for each output channel.
//!   LoRAs that are merged into the weights become integers with them. LoRAs that a prompt calls
//!   stay in f32.
//! - *Linear layers* measure the range of their input in each call.
//! - *Convolutions* have fixed ranges, from the calibration. A value outside of its range is
//!   clipped. The ranges are therefore wider than the measured ones: by 10 % on each side for
//!   inputs, and by 50 % on each side for outputs.
//! - Attention, norms, activation functions and the sums between layers stay in f32, and so do the
//!   first and the last convolution and the layers of the timestep.
//!
//! The first load of a model *calibrates* it. The calibration first draws three pictures of six
//! steps in f32, with the model's own sampler, guidance and size, and measures the ranges. It then
//! draws one picture of three steps, in which each layer also computes in int8 on the same input,
//! and measures the errors. A layer whose squared error is more than 0.1 % of its squared output
//! stays in f32. With guidance, these are 42 calls of the UNet. For Stable Diffusion 1.5 at
//! 256×256, the calibration took as much processor time as one and a half pictures of 20 steps.
//!
//! The result is a JSON file in `sd-onnx/calibration` in the user's own cache folder. Later loads
//! read it. Other weights of the UNet, other merged LoRAs, or another
//! [prediction](crate::Builder::prediction) need another calibration. A damaged file is replaced,
//! with a `tracing` warning. Without a cache folder, the model is calibrated each time that it is
//! loaded.
//!
//! Text encoders, autoencoders, upscalers and a refiner compute in f32.
//!
//! Sixteen pictures of the small model of the examples, of 20 steps each, have a PSNR against f32
//! of 34.0 dB in the mean, 34.6 dB in the median and at least 27.0 dB. In Stable Diffusion 1.5,
//! 84 % of the operations are in int8, and a UNet call takes about half of its time in f32.
//!
//! What the calibration does not measure is refused when the model is loaded, because values
//! outside of the measured ranges are clipped: control networks, whose outputs are added within the
//! UNet, and models that read a picture or a mask beside the latents, as for inpainting and
//! instruct-pix2pix. They are used in f32. Exported UNets are refused, too.
//!
//! # NVIDIA GPUs
//! [`Device::Cuda`] runs on Linux and Windows on x86-64. It needs:
//!
//! - a card with compute capability 7.5 or higher: Turing (GTX 16, RTX 20) and newer;
//! - NVIDIA's driver 580 or newer, for CUDA 13;
//! - ONNX Runtime's build with CUDA. With the feature `fetch` it is downloaded when the device is
//!   first used: 256 MB, which takes 313 MB on the disk (on Windows 168 and 213 MB). Otherwise,
//!   `ORT_DYLIB_PATH` or [`Builder::runtime`](crate::Builder::runtime) names the library
//!   `libonnxruntime.so.1.31.1` or `onnxruntime.dll` of the Python package `onnxruntime-gpu`. Keep
//!   the two other libraries of the package beside it;
//! - the libraries of CUDA 13 and cuDNN 9, which are never downloaded. The system finds them if
//!   they were installed from NVIDIA's packages, although `LD_LIBRARY_PATH` (on Windows, `PATH`)
//!   may have to name their folders. If they were installed with pip, `ORT_CUDA_PATH` names their
//!   folder:
//!
//! ```console
//! $ pip install "nvidia-cuda-runtime~=13.0" "nvidia-cuda-nvrtc~=13.0" "nvidia-cublas~=13.0" \
//!       "nvidia-curand~=10.0" "nvidia-cudnn-cu13~=9.0"
//! $ export ORT_CUDA_PATH=$(python3 -c "import nvidia; print(list(nvidia.__path__)[0])")
//! $ cargo run --release --example txt2img -- "a fox" --device cuda --precision f16
//! ```
//!
//! A process loads one ONNX Runtime. The build with CUDA also runs networks on the CPU. A program
//! that uses both devices must therefore load a model on `Cuda` first. Each of these errors names
//! what is missing:
//!
//! - [`RuntimeError::NoDevice`](crate::RuntimeError::NoDevice): ONNX Runtime is built without CUDA.
//! - [`RuntimeError::CudaLibraries`](crate::RuntimeError::CudaLibraries): NVIDIA's libraries.
//! - [`RuntimeError::NoGpu`](crate::RuntimeError::NoGpu): the driver or the card.
//!
//! **f16.** All values of the UNet, the text encoders and the ControlNets are f16, and so are their
//! weights: f16 weights are read in place, and others go through a [temporary
//! file](#temporary-files). The sinusoids of timesteps are computed in f32 outside of the network.
//! ONNX Runtime's kernels for group norms and matrix products sum in f32. An autoencoder computes
//! in f16 if its configuration has `"force_upcast": false`, or if it has no such key and the
//! `scaling_factor` of Stable Diffusion 1.x and 2.x. SDXL's autoencoder computes in f32, because
//! its values exceed f16. Image encoders and networks that enlarge pictures compute in f32, too. If
//! a value overflows in f16, the result is [an error](crate::GenerateError::NotFinite) instead of a
//! picture.
//!
//! **f32.** TensorFloat-32 is off.
//!
//! **Copies.** The samplers run on the CPU. In each call, the latents go to the card and the
//! prediction comes back. For 512 × 512 pixels this is 65,536 bytes each way, or twice as much with
//! guidance, because the prompt and the negative prompt are one batch. The other inputs, such as
//! the embeddings of the prompts and the factors of LoRAs, stay on the card until they change. The
//! outputs of a ControlNet pass through the memory of the CPU in each step.
//!
//! **What was tested without a card.** The graphs in f32 and f16 run on the CPU and give the values
//! of diffusers. There, ONNX Runtime computes most operators of the f16 graphs in f32. These tests
//! therefore show that the graphs are right, but not how much f16 rounds. In torch, one call of the
//! small test models in f16 differs from f32 by up to 1.6 %. ONNX Runtime 1.31.1 was also started
//! with substitutes for NVIDIA's libraries that compute nothing. It placed all graphs in f32 and
//! f16 on its CUDA kernels, except for operators on sizes, and a second call with the same inputs
//! copied none of them. The errors for a missing driver, library and card were seen.
//!
//! **What was not seen** is a picture, a time, or the memory on a card. On a machine with a card,
//! `tests/cuda.rs` checks the networks, and the program `benches/compare/cuda.py` measures them.
//!
//! # What a size costs
//! `Cpu` and `Cuda` take pictures of any size. OpenVINO compiles the UNet and the VAE for one size
//! of pictures, one batch and one length of prompts. It compiles them for
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
//! except that the UNet, its ControlNets and the network for reused deep features stay loaded
//! together. This saves the memory of the text encoders while the UNet runs, and the memory of the
//! UNet while the VAE runs. It costs the time to load each network again.
//!
//! Two of the [shortcuts](super::shortcuts) change the memory of a run:
//!
//! - [Deep features](crate::shortcuts::Deep) need a second network over the same weights: the
//!   layers outside of the branch. It is loaded when features are first reused. For Stable
//!   Diffusion 1.5 at 512×512 on `Cpu`, it adds 39 MiB for branch 0, 47 MiB for branch 1 and 86 MiB
//!   for branch 2.
//! - [Merged tokens](crate::Shortcuts::merge_tokens) and deep features need another graph of the
//!   whole UNet, which replaces the usual one. So the UNet is loaded again when a request has such
//!   a shortcut and the request before it did not, or the other way round. With two
//!   [`kept_sizes`](crate::Builder::kept_sizes), both graphs stay loaded, which costs 1,189 MiB
//!   more.
//!
//! # Large pictures
//! The autoencoder needs the most memory for a large picture. The autoencoder of Stable Diffusion
//! 1.x, 2.x or SDXL needs 4 KiB for each pixel in an untiled call: 1 GiB for 512×512 pixels, 16 GiB
//! for 2048×2048, where its attention needs even more. A call that would need more than a bound runs in tiles instead, one band of rows
//! after another. The bound is 6 GiB by default. There are two kinds of
//! [tiles](crate::VaeTiling):
//!
//! - *Exact* tiles, the default, need about 1 KiB for each pixel: 4 GiB for 2048×2048. The picture
//!   is the same, except for rounding.
//! - *Fast* tiles need about half of this memory, and no less time. The picture is slightly
//!   different, because the group norms of the largest level use means that are estimated from a
//!   sample of the rows.
//!
//! [`Builder::vae_tiling`](crate::Builder::vae_tiling), and `--vae-tiling` in the examples, sets
//! the bound or chooses the tiles. The weights of the UNet and of the text encoders come on top,
//! unless [`Builder::low_memory`](crate::Builder::low_memory) unloads these networks before the
//! picture is decoded:
//!
//! ```no_run
//! use sd_onnx::{Request, Tiles, VaeTiling};
//!
//! let pipeline = sd_onnx::builder()
//!     .vae_tiling(VaeTiling::Fast)
//!     .low_memory(true)
//!     .load("stable-diffusion-v1-5")?;
//! let request = Request::new("mountains under snow").size(2048, 2048);
//! pipeline.generate(&request.tiles(Tiles::new(512, 512)))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The largest anonymous memory of a process that decodes one picture with random weights in the
//! size of Stable Diffusion 1.5's autoencoder, on the CPU in f32, in MiB:
//!
//! | | untiled | exact tiles | fast tiles |
//! |---|---|---|---|
//! | 512×512 | 1,074 | 601 | |
//! | 1024×1024 | 4,243 | 1,372 | |
//! | 2048×2048 | 21,144 | 4,451 | 2,404 |
//!
//! At 2048×2048 the untiled process took 570 s of processor time, exact tiles 748 s (1.31 times)
//! and fast tiles 830 s (1.46 times), on two cores of an AMD EPYC that other programs used, too. At
//! 1024×1024 no value of the untiled picture and of exact tiles differed by more than 0.05 of 255
//! levels. At 2048×2048 fast tiles differed from the untiled picture by at most 5 levels, with a
//! PSNR of 50.7 dB.
//!
//! Three pictures of 2048×2048 pixels were decoded with the small model of the examples. Exact
//! tiles differed from the untiled call by at most 0.4 of 255 levels. Fast tiles differed by at
//! most 2.1 levels and had a PSNR of 57 to 60 dB. The differences are smooth and show no seams. The
//! project's program `benches/src/bin/vae.rs` repeats these measurements, and makes pictures of the
//! differences.
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
//! - On CUDA in f16, the file holds the weights that are not stored as f16: 1.7 and 5.1 GB.
//! - On OpenVINO otherwise, it holds the weights that are not stored as f32: 3.4 and 10 GB.
//!   OpenVINO would keep an f32 copy of them in memory.
//!
//! Once the network is loaded, the file no longer has a name. Its space is freed when the network
//! is unloaded. The system can drop its pages from memory as it can with any file.
//!
//! # Stopping
//! A [`StopToken`](crate::StopToken) ends a call on `Cpu` within one operator, some tens of
//! milliseconds. A call on CUDA runs to its end, because its operators are queued on the card
//! within milliseconds. OpenVINO runs a network as one operator, so the run ends when the current
//! call is over: about a second for Stable Diffusion 1.5 in bf16, half a minute for a VAE in f32 at
//! 1024 × 1024. A network that is being loaded or compiled, such as for the first picture of
//! another size, is finished first.
//!
//! [`Device`]: crate::Device
//! [`Device::Cuda`]: crate::Device::Cuda
//! [`Precision`]: crate::Precision
