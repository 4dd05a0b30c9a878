//! The families of models, and what each of them needs.
//!
//! [`Builder::load`](crate::Builder::load) recognises the family from the model's files. Nothing
//! has to be chosen, and the same request works for every family:
//!
//! - **Stable Diffusion 1.x.**
//! - **Stable Diffusion 2.x** has OpenCLIP's text encoder. Some of these models predict v.
//! - **SDXL** and its fine-tunes, Turbo, Lightning, Hyper, DMD2, SSD-1B, Vega and KOALA have two
//!   text encoders and take a pooled text embedding and sizes. Requests also have
//!   [`sizes`](crate::Request::sizes) and [`prompt_2`](crate::Request::prompt_2).
//! - **SDXL's refiner** has one text encoder and takes an aesthetic score. Requests also have
//!   [`refiner`](crate::Request::refiner) and [`aesthetic_score`](crate::Request::aesthetic_score).
//! - **Playground 2.5 and CosXL** are SDXL with EDM's preconditioning.
//! - **Latent consistency models (LCM)** take the guidance scale as an input. They need one call a
//!   step and no negative prompt.
//! - **BK-SDM, tiny-sd and SDXS** have blocks that are shorter or missing.
//! - **Inpainting models** take a mask and masked latents beside the latents. Requests also have
//!   [`beside`](crate::Request::beside).
//! - **Instruct-pix2pix models** take the latents of a picture beside the latents. Requests also
//!   have [`beside`](crate::Request::beside) and
//!   [`image_guidance`](crate::Request::image_guidance).
//! - **TAESD, TAESDXL and `AsymmetricAutoencoderKL`** are other autoencoders. They load from the
//!   folder `vae`, with [`Builder::vae`](crate::Builder::vae) or with
//!   [`Builder::codec`](crate::Builder::codec). With [`Builder::taesd`](crate::Builder::taesd), a
//!   TAESD decodes previews beside the model's own autoencoder.
//!
//! [LoRAs](super::files#loras) work with any of these models, but do not change an autoencoder or a
//! refiner that [`Builder::refiner`](crate::Builder::refiner) loads. A LoRA must be for the same
//! family as the model.
//!
//! Stable Diffusion 2's depth and unCLIP models, the ×4 upscaler, Stable Diffusion 3 and Flux are
//! refused with an error that names them.
//!
//! Each family was checked against diffusers 0.42.1 on two shapes or more. Text embeddings and UNet
//! calls agree to 1e-5, whole runs to 1e-4.
//!
//! # SDXL
//! Two text encoders read the prompt. Their hidden states stand side by side in the embedding. The
//! second encoder also gives a pooled embedding of the whole text, or of the first window of a long
//! text. Weights, `BREAK`, `AND` and schedules act on both encoders, but weights do not change the
//! pooled embedding. [`prompt_2`](crate::Request::prompt_2) gives the second encoder another text.
//! A textual inversion must have vectors for both encoders (`clip_l` and `clip_g`).
//!
//! **An empty negative prompt** becomes zeros, in the embedding and in the pooled embedding, if the
//! model's `force_zeros_for_empty_prompt` is true, as in SDXL's base.
//! [`PromptOptions::encode_empty`](crate::PromptOptions::encode_empty) encodes it instead.
//! diffusers uses zeros only if no negative prompt is given, and encodes `""`.
//!
//! **Sizes.** In training, the model received the original size of each picture and how it was
//! cropped. [`Sizes`](crate::Sizes) sets these values: a small `original` gives a soft, enlarged
//! look, and a `crop` gives a subject that is cut off. The negative prompt has the same sizes
//! unless [`negative_sizes`](crate::Request::negative_sizes) sets both `original` and `target`.
//!
//! ```
//! use sd_onnx::{Request, Sizes};
//!
//! let request = Request::new("a fox in the snow")
//!     .size(1024, 1024)
//!     .sizes(Sizes::default().original(4096, 4096))
//!     .negative_sizes(Sizes::default().original(512, 512).target(1024, 1024));
//! # assert_eq!(request.sizes.original, Some([4096, 4096]));
//! ```
//!
//! **The refiner** makes the last steps, with its own text encoder and UNet. It takes over between
//! two steps, and the sampler continues without interruption:
//!
//! ```no_run
//! use sd_onnx::Request;
//!
//! let pipeline = sd_onnx::builder().refiner("sdxl-refiner-1.0").load("sdxl-base-1.0")?;
//! pipeline.generate(&Request::new("a fox").refiner(0.8))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! 0.8 is a share of the training timesteps, as in diffusers and WebUI: the refiner makes all steps
//! below timestep 200. With [`RefinerShare::Steps`](crate::RefinerShare::Steps) it is a share of
//! the steps of the run instead.
//!
//! # Clip skip
//! Programs disagree about the meaning of clip skip for these models. This library applies the
//! number to every text encoder, in WebUI's numbering, and keeps each family's rule on the final
//! layer norm:
//!
//! | | default layer | final norm | N here | N in WebUI | N in diffusers |
//! |---|---|---|---|---|---|
//! | Stable Diffusion 1.x | 1, the last | yes | layer N | layer N | layer N + 1 |
//! | Stable Diffusion 2.x | 1, the last | yes | layer N | ignored | layer N + 1 |
//! | SDXL, both encoders | 2, the penultimate | no | layer N | ignored by default | layer N + 2 |
//!
//! - For Stable Diffusion 2.x, the folder has 23 layers, and the last of them is the default.
//! - WebUI has an option to apply the number to SDXL as well.
//! - diffusers applies the number to the prompt only, in every family.
//!
//! [`Pipeline::reproduction`](crate::Pipeline::reproduction) therefore leaves out the clip skip of
//! a WebUI picture that was made with Stable Diffusion 2.x or SDXL.
//!
//! # Models with more inputs
//! Inpainting and instruct-pix2pix models take more channels than the latents have. The pipeline
//! makes them from the [picture](super::pictures) that a request starts from. A request can also
//! carry them itself, in [`beside`](crate::Request::beside), as an array in the size of the
//! latents:
//!
//! - inpainting: the mask (1 where something new is drawn), then the latents of the picture with
//!   the masked part gray, in the pipeline's scaling;
//! - instruct-pix2pix: the latents of the picture, *not* scaled (the
//!   [`mean`](crate::LatentDistribution::mean) that the encoder gives).
//!   [`image_guidance`](crate::Request::image_guidance) sets how closely the result keeps to the
//!   picture. It costs a third call in each step, in which these channels are zeros.
//!
//! # What a denoiser takes
//! [`Denoiser::inputs`](crate::Denoiser::inputs) describes all of these inputs. A pipeline checks
//! its parts and every request against this description:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! let pipeline = sd_onnx::builder().load(folder)?;
//! let inputs = pipeline.denoiser().inputs();
//! assert_eq!((inputs.channels, inputs.pooled, inputs.extra_channels), (4, None, 0));
//!
//! let sizes = sd_onnx::Sizes::default().crop(8, 8);
//! let error = pipeline.generate(&sd_onnx::Request::new("a fox").sizes(sizes)).unwrap_err();
//! assert!(error.to_string().contains("this model does not take sizes"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
