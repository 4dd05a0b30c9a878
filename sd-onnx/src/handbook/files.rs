//! What files are read, and what a PNG says about itself.
//!
//! # Models
//! A folder in the diffusers layout, as published since 2022 or as diffusers writes it today:
//!
//! | folder | files |
//! |---|---|
//! | `unet` | `config.json`, `diffusion_pytorch_model.safetensors` (or shards with their index) |
//! | `vae` | `config.json`, `diffusion_pytorch_model.safetensors` |
//! | `text_encoder` | `config.json`, `model.safetensors` |
//! | `tokenizer` | `vocab.json` and `merges.txt`, or `tokenizer.json` |
//! | `text_encoder_2`, `tokenizer_2` | the same, of SDXL |
//! | `scheduler` | `scheduler_config.json` |
//! | (the folder itself) | `model_index.json`, which may be missing |
//!
//! The [chapter on families](super::families) says which models these are.
//!
//! Where a component has several variants, [`Builder::variant`](crate::Builder::variant) chooses
//! one. A snapshot in the Hugging Face cache, which is made of links, works as it is.
//!
//! # Checkpoint files
//! [`Builder::load`](crate::Builder::load) also takes one file: a `.safetensors` checkpoint as most
//! models are shared, an older `.ckpt`, or a `.gguf`. The content decides, not the name. No copy is
//! converted or written: ONNX Runtime reads the weights where they lie.
//!
//! ```no_run
//! # use sd_onnx::Request;
//! let pipeline = sd_onnx::builder()
//!     .vae("sdxl_vae.safetensors") // in place of the checkpoint's own
//!     .load("sdxl-checkpoint.safetensors")?;
//! pipeline.generate(&Request::new("a fox"))?.pictures[0].save_png("fox.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The shapes of the networks are read from the tensors. The family is recognised by them too:
//! Stable Diffusion 1.x, 2.x, SDXL, its refiner, and their inpainting, instruct-pix2pix and
//! distilled relatives. The family supplies what no tensor says: the number of attention heads, the
//! scaling factor of the autoencoder, the noise schedule, and the tokenizer, which is CLIP's and
//! comes with this crate.
//!
//! **What the UNet predicts** is not in the weights either. The first of these that says something
//! decides, and a later one that disagrees is a warning:
//!
//! 1. [`Builder::prediction`](crate::Builder::prediction);
//! 2. marker tensors: `edm_mean` and `edm_std` (Playground 2.5), `edm_vpred.sigma_max` and
//!    `.sigma_min` (CosXL), `v_pred`, and `ztsnr` for a zero terminal SNR;
//! 3. a `.yaml` file of the same name beside the checkpoint;
//! 4. the header of a safetensors file: `modelspec.prediction_type`, `modelspec.predict_key`,
//!    `ss_v_parameterization`, `ss_zero_terminal_snr`;
//! 5. for Stable Diffusion 2, the spread of one bias of the UNet, by which ComfyUI tells the two
//!    kinds of these models apart;
//! 6. otherwise the noise (`epsilon`).
//!
//! [`inspect`](crate::inspect) shows what is recognised and why, in less than a second.
//!
//! **Parts from elsewhere.** [`Builder::unet`](crate::Builder::unet),
//! [`vae`](crate::Builder::vae), [`text_encoder`](crate::Builder::text_encoder) and
//! [`text_encoder_2`](crate::Builder::text_encoder_2) take a network from another file or folder.
//! If a checkpoint lacks a network, as a file with a UNet alone does, the error names the method
//! and the kind of file that fits.
//!
//! **What is left out.** Averaged copies of the weights (`model_ema.*`) and the state of a training
//! are not used, with one warning for all of them. A tensor that stands among a network's own and
//! has no place in it is an error.
//!
//! # Types of weights
//! | type | how it is read |
//! |---|---|
//! | f32, f16, bf16, f64 | in place |
//! | fp8 (`e4m3fn`, `e5m2`), also with the scales that ComfyUI writes | in place; value × scale in f32 |
//! | GGUF: F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K | decoded to f32 when the model is loaded |
//!
//! One file may mix types. Other types are an error that names them. On the CPU every type is
//! computed with in f32, so a smaller file does not need less memory once it is loaded.
//!
//! **Pickles** (`.ckpt`, `.pt`, `.bin`) are programs, and reading one with Python runs what is in
//! it. Here a reader of this project builds tensors and plain values and calls nothing. A file that
//! asks for any other function is refused, with the name of the function and its place.
//!
//! # Checks and corrections
//! **What is checked.** The class that a `config.json` names must be one that this library computes
//! (`_class_name` of the UNet and the VAE, `architectures` and `model_type` of the text encoder),
//! and every tensor of a file must have its place in that network: a left-over tensor means that
//! the model would draw something else than its author's pictures, and is an error. Known
//! left-overs that no network computes with are ignored: `position_ids`, `logit_scale`,
//! `attn_mask`, the state of an averaged training (`model_ema.decay`), noise schedules
//! (`alphas_cumprod` and the like), and in a text encoder an unused `text_projection`, CLIP's
//! network for pictures and layers behind `num_hidden_layers`. Only regular files are opened.
//!
//! **What is corrected.** Models of 2022 were published with values that diffusers' pipelines
//! replace when they are built. So does [`Builder::load`](crate::Builder::load), by the class in
//! `model_index.json` (without that file, `StableDiffusionPipeline`), and reports each correction
//! as a warning of [`tracing`](https://docs.rs/tracing):
//!
//! | value | becomes | if |
//! |---|---|---|
//! | `steps_offset` of the scheduler | 1 | it is another number, or missing from a class that has the key |
//! | `clip_sample` of the scheduler | false | it is true, or missing from a class where true is the default |
//! | `sample_size` of the UNet | 64 (512 pixels) | it is one number below 64, written by diffusers before 0.9.0 |
//!
//! `StableDiffusionInpaintPipeline` leaves `clip_sample` as it is; the classes of ControlNet, SDXL
//! and LCM correct nothing. [`SchedulerConfig::from_json`](crate::SchedulerConfig::from_json) never
//! does.
//!
//! # While a model is loaded
//! **Leave a model's files as they are while it is loaded.** ONNX Runtime maps weight files into
//! memory and reads f32 weights out of them during every call. If another program shortens such a
//! file, the operating system ends this process (`SIGBUS` on Linux); if it overwrites the file, the
//! pictures change. Replacing a file is safe: write the new file under another name and rename it,
//! as download tools do and as [`files::write`](crate::files::write) does. Weights in f16 and bf16
//! are copied while the model is loaded, and their files are not needed afterwards.
//!
//! # ONNX folders
//! A folder may also hold graphs that another tool exported: optimum, or diffusers for its
//! `OnnxStableDiffusionPipeline`. A component counts as exported if its folder has an ONNX file and
//! no other weights (`.safetensors`, `.bin`, `.ckpt`, `.pt`), so one model may have components of
//! both kinds. Of several ONNX files, `model.onnx` is read; if none has that name, loading fails.
//!
//! | folder | files |
//! |---|---|
//! | `unet`, `text_encoder`, `text_encoder_2` | `model.onnx`, with its weights in it or in a file beside it; `config.json`, which may be missing |
//! | `vae_decoder`, and for pictures to start from `vae_encoder` | the same |
//! | `tokenizer`, `tokenizer_2`, `scheduler`, `model_index.json` | as above |
//!
//! The types and shapes of the inputs are read from the graph. A timestep may be one number or a
//! list, in integers or floats; ids may have 32 or 64 bits; other inputs may be f32, f16 or f64.
//! Pictures are the same as from a diffusers folder with the same weights, with these differences:
//!
//! - **Sizes.** With most exports the sides of pictures must be multiples of 64, for SDXL of 32,
//!   because a UNet's way up is written as doublings of the smallest level. A graph may also have
//!   been exported for one size of picture. Then another size is an error at the first call.
//! - **Clip skip.** Inner layers are found by the structure of the graph. If an optimiser has fused
//!   the layers, only those that are outputs of the graph can be used, and asking for another one
//!   is an error.
//! - **Whole timesteps.** If a graph takes integers, timesteps are rounded to the nearest one.
//!   Ladders of whole timesteps, such as [`Ladder::leading`](crate::schedulers::Ladder::leading),
//!   lose nothing.
//! - **Noise in the encoder.** Some encoders draw the latents themselves. They are changed to
//!   return the mean and the deviation, so that the seed of a request counts.
//! - **No `config.json`.** The sizes come from the graph. The scaling of the latents cannot, and is
//!   0.18215, for SDXL 0.13025. Give models with another scaling a `config.json`.
//!
//! Textual inversions work if the token embedding is found in the graph; otherwise loading fails.
//! Like those of safetensors files, the weights stay where they are: leave the files as they are
//! while the model is loaded.
//!
//! These do not work, and each is an error that says so:
//!
//! - graphs with inputs that this library has no value for, such as the residuals of a ControlNet;
//! - upscalers and depth-to-image models;
//! - operators that ONNX Runtime does not have, and operator sets before 13;
//! - bf16 inputs and outputs, and sparse weights;
//! - weights in a file outside the folder of their graph;
//! - [`Builder::convert`](crate::Builder::convert): convert the model that was exported instead.
//!
//! [`Builder::variant`](crate::Builder::variant) does not choose between graphs.
//!
//! The library downloads no model. Get one with the publisher's own tool, for instance `hf download`.
//!
//! # Converting a model
//! [`Builder::convert`](crate::Builder::convert), and the example `convert`, write a model in
//! another form. [`Conversion`](crate::Conversion) chooses the form and the type of the weights.
//!
//! ```no_run
//! use sd_onnx::{Conversion, ModelForm, WeightType};
//!
//! let conversion = Conversion::new(ModelForm::File).dtype(WeightType::F16);
//! let converted = sd_onnx::builder()
//!     .vae("sdxl_vae.safetensors") // goes into the new model
//!     .convert("my-sdxl", "my-sdxl.safetensors", &conversion)?;
//! for lost in converted.lost {
//!     eprintln!("warning: {lost}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | form | what is written | who reads it |
//! |---|---|---|
//! | [`Folder`](crate::ModelForm::Folder) | a diffusers folder | diffusers, this crate |
//! | [`File`](crate::ModelForm::File) | one safetensors file in the names of latent diffusion | ComfyUI, WebUI and their relatives, diffusers' `from_single_file`, this crate |
//! | [`Onnx`](crate::ModelForm::Onnx) | for each network `model.onnx`, with its weights in `model.onnx_data` | ONNX Runtime from any language, optimum, this crate |
//!
//! The new model appears under its name when it is whole, and nothing is ever overwritten. Tensors
//! are converted one by one, so a conversion needs little memory.
//!
//! **Types.** Without [`Conversion::dtype`](crate::Conversion::dtype) each tensor keeps its type,
//! except that fp8 with scales and GGUF's blocks become f32. With it, numbers are rounded to the
//! nearest one. A number beyond the range of the new type is an error that names its tensor, as
//! 70000 is in f16. bf16 has the range of f32.
//!
//! **What one file cannot say.** A file has no configuration, so whoever reads it takes heads,
//! activations and the like from the family. Before a file is written, it is read as it will be. If
//! a network would come out otherwise, the conversion fails and names the key, for instance
//! `norm_num_groups`. What the model predicts is written as a marker tensor and in the header. A
//! scheduler's other settings, the size that a model draws at, a tokenizer with other words than
//! CLIP's and a pipeline class have no place; each difference is listed in
//! [`Converted::lost`](crate::Converted::lost).
//!
//! Stable Diffusion 2 draws with all but the last layer of its text encoder. A folder has 23
//! layers, a published file has 24, and a file that is made from a folder has 23. Programs that
//! build all 24 find the last one missing and never use it.
//!
//! **What a folder says otherwise.** In a folder whose tokenizer pads with `!`, as for Stable
//! Diffusion 2 and SDXL's second text encoder, each `!` of a prompt is the padding token, in
//! transformers and here. For a file it is a word as any other. So a prompt with `!` may draw
//! another picture after a conversion from a file to a folder, or back.
//!
//! **Graphs** have the inputs and outputs that optimum gives them:
//!
//! | folder | inputs | outputs |
//! |---|---|---|
//! | `text_encoder` | `input_ids` i64 `[batch, length]` | `last_hidden_state`, `pooler_output`, `hidden_states.0` … |
//! | `text_encoder_2` | `input_ids` | `text_embeds`, `last_hidden_state`, `hidden_states.0` … |
//! | `unet` | `sample`, `timestep` (one number), `encoder_hidden_states`; in SDXL `text_embeds` and `time_ids`; in latent consistency models `timestep_cond` | `out_sample` |
//! | `vae_decoder` | `latent_sample`, divided by the scaling factor | `sample` |
//! | `vae_encoder` | `sample` | `latent_parameters`, or `latent_sample` of TAESD |
//!
//! All but the ids are f32, whatever type the weights have. `hidden_states.N` is the state before
//! layer N, without the final norm. A mask or a picture beside the latents is a part of `sample`.
//! The graphs use operators of ONNX Runtime's own domain, `com.microsoft`.
//!
//! # PNG files
//! [`Picture::save_png`](crate::Picture::save_png) writes how the picture was made into the file, in the text that WebUI and its
//! relatives write and read: see [`infotext`](crate::infotext) for the keys. [`Infotext::read_png`](crate::Infotext::read_png) gets it out again, from their files too, and
//! [`Infotext::request`](crate::Infotext::request) makes a request of it and says what can't be had the same.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Infotext, Request};
//!
//! # let path = std::env::temp_dir().join(format!("sd-onnx-fox-{}.png", std::process::id()));
//! let fox = pipeline.generate(&Request::new("a fox").steps(4).seed(1))?;
//! fox.pictures[0].save_png(&path)?;
//!
//! let infotext = Infotext::read_png(&path)?.expect("it says how it was made");
//! assert_eq!(infotext.get("Seed"), Some("1"));
//! let again = infotext.request();
//! assert!(again.differences.is_empty());
//! assert_eq!(pipeline.generate(&again.request)?.image(), fox.image());
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! A file appears under its name when it is whole, or not at all ([`files::write`](crate::files::write)).
