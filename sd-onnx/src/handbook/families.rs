//! The families of models, and what each of them needs.
//!
//! [`Builder::load`](crate::Builder::load) recognises the family from the model's files. Nothing
//! has to be chosen, and the same request works for every family:
//!
//! | family | what is different | requests also have |
//! |---|---|---|
//! | Stable Diffusion 1.x | | |
//! | Stable Diffusion 2.x | OpenCLIP's text encoder; some predict v | |
//! | SDXL and its fine-tunes, Turbo, Lightning, Hyper, DMD2, SSD-1B, Vega, KOALA | two text encoders, a pooled text embedding, sizes | [`sizes`](crate::Request::sizes), [`prompt_2`](crate::Request::prompt_2) |
//! | SDXL's refiner | one text encoder, an aesthetic score | [`refiner`](crate::Request::refiner), [`aesthetic_score`](crate::Request::aesthetic_score) |
//! | Playground 2.5, CosXL | SDXL in the preconditioning of EDM | |
//! | latent consistency models (LCM) | the guidance scale is an input: one call a step, no negative prompt | |
//! | BK-SDM, tiny-sd, SDXS | blocks that are shorter or missing | |
//! | inpainting models | a mask and masked latents beside the latents | [`beside`](crate::Request::beside) |
//! | instruct-pix2pix models | the latents of a picture beside the latents | [`beside`](crate::Request::beside), [`image_guidance`](crate::Request::image_guidance) |
//! | TAESD, TAESDXL, `AsymmetricAutoencoderKL` | another autoencoder, in `vae`, by [`Builder::vae`](crate::Builder::vae) or by [`Builder::codec`](crate::Builder::codec) | |
//!
//! Stable Diffusion 2's depth and unCLIP models, the ×4 upscaler, Stable Diffusion 3 and Flux are
//! refused, with an error that names them. Each family was checked against diffusers 0.42.1 on two
//! shapes or more: text embeddings and UNet calls to 1e-5, whole runs to 1e-4.
//!
//! # SDXL
//! Two text encoders read the prompt. Their hidden states stand side by side in the embedding, and
//! the second one also gives a pooled embedding: of the whole text, or of the first window of a
//! long one. Weights, `BREAK`, `AND` and schedules act on both encoders; weights leave the pooled
//! embedding alone. [`prompt_2`](crate::Request::prompt_2) gives the second encoder another text. A
//! textual inversion must hold vectors for both (`clip_l` and `clip_g`).
//!
//! **An empty negative prompt** becomes zeros, in the embedding and in the pooled embedding, if the
//! model's `force_zeros_for_empty_prompt` is true, as in SDXL's base.
//! [`PromptOptions::encode_empty`](crate::PromptOptions::encode_empty) encodes it instead.
//! diffusers uses zeros only if no negative prompt is given, and encodes `""`.
//!
//! **Sizes.** In training the model knew how large each picture had been and how it was cropped.
//! [`Sizes`](crate::Sizes) sets these values: a small `original` gives a soft, enlarged look, a
//! `crop` a subject that is cut off. The negative prompt has the same sizes unless
//! [`negative_sizes`](crate::Request::negative_sizes) sets both `original` and `target`.
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
//! two steps, and the sampler goes on as if nothing had happened:
//!
//! ```no_run
//! use sd_onnx::Request;
//!
//! let pipeline = sd_onnx::builder().refiner("sdxl-refiner-1.0").load("sdxl-base-1.0")?;
//! pipeline.generate(&Request::new("a fox").refiner(0.8))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! 0.8 is a share of the training timesteps, as in diffusers and WebUI: all steps below timestep
//! 200 are the refiner's. [`RefinerShare::Steps`](crate::RefinerShare::Steps) counts steps instead.
//!
//! # Clip skip
//! Programs disagree about what clip skip means for these models. This library applies the number
//! to every text encoder, in WebUI's numbering, and keeps each family's rule on the final layer
//! norm:
//!
//! | | layer by default | final norm | clip skip N here | N in WebUI | N in diffusers |
//! |---|---|---|---|---|---|
//! | Stable Diffusion 1.x | 1, the last | yes | layer N | layer N | layer N + 1, for the prompt only |
//! | Stable Diffusion 2.x | 1, the last of the 23 in the folder | yes | layer N | ignores it | layer N + 1, for the prompt only |
//! | SDXL, both encoders | 2, the penultimate | no | layer N | ignores it, except by an option | layer N + 2, for the prompt only |
//!
//! [`Pipeline::reproduction`](crate::Pipeline::reproduction) therefore leaves out the clip skip of
//! a WebUI picture that was made with one of the last two.
//!
//! # Models with more inputs
//! Inpainting and instruct-pix2pix models take more channels than the latents have. A request
//! carries them as an array in the size of the latents:
//!
//! - inpainting: the mask (1 where something new is drawn), then the latents of the picture with
//!   the masked part gray, in the pipeline's scaling;
//! - instruct-pix2pix: the latents of the picture, *not* scaled (the
//!   [`mean`](crate::LatentDistribution::mean) that the encoder gives). Without the prompt they are
//!   zeros, and [`image_guidance`](crate::Request::image_guidance) says how closely the result
//!   keeps to them.
//!
//! # What a denoiser takes
//! [`Denoiser::inputs`](crate::Denoiser::inputs) describes all of this, and a pipeline checks its
//! parts and every request against it:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! let pipeline = sd_onnx::builder().load(folder)?;
//! let inputs = pipeline.denoiser().inputs();
//! assert_eq!((inputs.channels, inputs.pooled, inputs.beside), (4, None, 0));
//!
//! let sizes = sd_onnx::Sizes::default().crop(8, 8);
//! let error = pipeline.generate(&sd_onnx::Request::new("a fox").sizes(sizes)).unwrap_err();
//! assert!(error.to_string().contains("this model does not take sizes"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
