//! Which model files load, how to use LoRAs, how to convert models, and what a PNG records.
//!
//! # Models
//! A model can be a folder in the diffusers layout, as published since 2022 or as diffusers writes
//! it today:
//!
//! | folder | files |
//! |---|---|
//! | `unet` | `config.json`, `diffusion_pytorch_model.safetensors` (or shards with their index) |
//! | `vae` | `config.json`, `diffusion_pytorch_model.safetensors` |
//! | `text_encoder` | `config.json`, `model.safetensors` |
//! | `tokenizer` | `vocab.json` and `merges.txt`, or `tokenizer.json` |
//! | `text_encoder_2`, `tokenizer_2` | the same files, for SDXL |
//! | `scheduler` | `scheduler_config.json` |
//! | (the model's folder) | `model_index.json`, which may be missing |
//!
//! If a component has no safetensors file, its [pickle](#types-of-weights) is read:
//! `diffusion_pytorch_model.bin`, or `pytorch_model.bin` for a text encoder. The
//! [chapter on families](super::families) lists the models that load.
//!
//! [`Builder::variant`](crate::Builder::variant) selects one of several variants of the weights,
//! such as `fp16`. A snapshot in the Hugging Face cache, which consists of links, works as it is.
//!
//! The library downloads no model. Use the publisher's own tool, for instance `hf download`.
//!
//! # Checkpoint files
//! [`Builder::load`](crate::Builder::load) also takes a single file: the `.safetensors` checkpoint
//! that most models are shared as, an older `.ckpt`, or a `.gguf`. The format is recognised by the
//! content, not by the name. The examples take a folder or a file in the option `--model`.
//!
//! No converted model is left on the disk, but [temporary files](super::devices#temporary-files)
//! may take several gigabytes while a model is loaded. [Types of weights](#types-of-weights) lists
//! which weights are copied into memory.
//!
//! ```no_run
//! # use sd_onnx::Request;
//! let pipeline = sd_onnx::builder()
//!     .vae("sdxl_vae.safetensors") // replaces the checkpoint's VAE
//!     .load("sdxl-checkpoint.safetensors")?;
//! pipeline.generate(&Request::new("a fox"))?.pictures[0].save_png("fox.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The tensors determine the shapes of the networks and the family: Stable Diffusion 1.x, 2.x,
//! SDXL, its refiner, and their inpainting, instruct-pix2pix and distilled relatives. The family
//! determines what the tensors do not: the number of attention heads, the scaling factor of the
//! autoencoder and the noise schedule. The tokenizer is CLIP's, which is part of this crate.
//! [`Builder::tokenizer`](crate::Builder::tokenizer) replaces it.
//!
//! **What the UNet predicts** is not in the weights either. The first source in this list that has
//! an answer is used. A later source that disagrees causes a warning:
//!
//! 1. [`Builder::prediction`](crate::Builder::prediction);
//! 2. marker tensors: `edm_mean` and `edm_std` (Playground 2.5), `edm_vpred.sigma_max` and
//!    `edm_vpred.sigma_min` (CosXL), `v_pred`, and `ztsnr` for a zero terminal SNR;
//! 3. a `.yaml` file of the same name beside the checkpoint;
//! 4. the header of a safetensors file: `modelspec.prediction_type`, `modelspec.predict_key`,
//!    `ss_v_parameterization`, `ss_zero_terminal_snr`;
//! 5. for Stable Diffusion 2, the standard deviation of one bias tensor of the UNet, the test that
//!    ComfyUI uses: above 0.09 means v-prediction;
//! 6. otherwise the noise (`epsilon`).
//!
//! If a model draws only noise or a brown blur, the prediction is usually wrong. Set it in the
//! program, or with `--prediction v` in the examples:
//!
//! ```no_run
//! use sd_onnx::schedulers::Prediction;
//!
//! let pipeline = sd_onnx::builder().prediction(Prediction::V).load("model.safetensors")?;
//! # Ok::<(), sd_onnx::Error>(())
//! ```
//!
//! Such a model may also need [`zero_terminal_snr(true)`](crate::Builder::zero_terminal_snr).
//!
//! [`inspect`](crate::inspect) reports what is recognised and why, without loading the weights. A
//! checkpoint file loads by itself if [`problems`](crate::Inspection::problems) and
//! [`missing`](crate::Inspection::missing) are both empty. In a folder, the files of the tokenizer
//! and the scheduler and the inputs of ONNX graphs are not checked.
//!
//! **Parts from other files.** [`Builder::unet`](crate::Builder::unet),
//! [`vae`](crate::Builder::vae), [`text_encoder`](crate::Builder::text_encoder) and
//! [`text_encoder_2`](crate::Builder::text_encoder_2) take a network from another file or folder.
//! If a checkpoint lacks a network, the error names the method that supplies it and the kind of
//! file to give. A GGUF file usually contains only a UNet:
//!
//! ```no_run
//! let pipeline = sd_onnx::builder()
//!     .vae("sdxl_vae.safetensors")
//!     .text_encoder("clip_l.safetensors")
//!     .text_encoder_2("clip_g.safetensors")
//!     .load("sdxl.gguf")?;
//! # Ok::<(), sd_onnx::Error>(())
//! ```
//!
//! **Ignored tensors.** Averaged copies of the weights (`model_ema.*`) are ignored. Training state
//! and tensors that belong to no network are ignored with a warning. A tensor whose name places it
//! in a network that has no such tensor is an error.
//!
//! # LoRAs
//! A LoRA is a small file that changes some weights of a model, for instance to teach it a style or
//! a character. An *adapter* is a LoRA or a file of a related format.
//! There are two ways to use adapters, which can be combined:
//!
//! | | [`Builder::lora`](crate::Builder::lora) | [`Builder::loras`](crate::Builder::loras) |
//! |---|---|---|
//! | argument | one file and its weight | a folder of files |
//! | pictures | all pictures of the pipeline | pictures whose prompt calls the file: `<lora:fox:0.8>` |
//! | change of a weight | only by loading the model again | from request to request, and from step to step |
//! | in the examples `txt2img`, `grid`, `steps` | `--lora fox.safetensors:0.8` | `--loras FOLDER` |
//!
//! **Merged by the builder.** The adapters are merged into the weights when the model is loaded:
//!
//! ```no_run
//! use sd_onnx::{LoraWeight, Request};
//!
//! let pipeline = sd_onnx::builder()
//!     .lora("watercolour.safetensors", 0.8)
//!     .lora("fox.safetensors", LoraWeight { text_encoder: 0.5, unet: 1.0 })
//!     .load("model.safetensors")?;
//! pipeline.generate(&Request::new("a fox, watercolour"))?.pictures[0].save_png("fox.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The option `--lora` may be repeated, and its default weight is 1. With two numbers, as in
//! `--lora fox.safetensors:0.5:1`, the first is for the text encoders and the second for the UNet.
//!
//! **Called by prompts.** A prompt calls an adapter by the name of its file, or by the name that it
//! had in training:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let loras = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji/loras");
//! use sd_onnx::Request;
//!
//! let pipeline = sd_onnx::builder().loras(loras).load(folder)?;
//! let draw = |prompt: &str| pipeline.generate(&Request::new(prompt).seed(1).steps(4));
//! let plain = draw("a fox")?;
//! let ink = draw("a fox <lora:ink:0.8>")?;
//! // Only the last steps are drawn in ink.
//! let late = draw("a fox <lora:ink:0@0.5,1@0.6>")?;
//! // Two at once, the second for the UNet only.
//! let both = draw("a fox <lora:ink:0.5> <lora:sepia:te=0:unet=1>")?;
//! # for (a, b) in [(&plain, &ink), (&ink, &late), (&late, &both)] {
//! #     assert_ne!(a.image(), b.image());
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`LoraLibrary`](crate::LoraLibrary#calls-in-prompts) describes the syntax, which is WebUI's,
//! with weights that change over the steps and weights of blocks. A prompt that calls an adapter
//! that is not there, or that does not fit the model, is an error.
//! [`Pipeline::loras`](crate::Pipeline::loras) lists the adapters.
//!
//! The factors of a LoRA or LoCon are inputs of the networks. Switching to other adapters of these
//! formats takes about 0.01 s. The inputs make every call of the network a little slower, also a
//! call without adapters. For the UNet of Stable Diffusion 1.5 at 512 × 512 and adapters of rank 16
//! on a CPU, compared with a pipeline without a folder:
//!
//! | layers that the files in the folder change | prompt without an adapter | with an adapter |
//! |---|---|---|
//! | the projections of the attention layers | + 2 % | + 2 % |
//! | all linear layers of the transformers | + 3 % | + 2 % |
//! | all linear layers and convolutions | + 5 % | + 8 % |
//!
//! The other formats are merged into the weights, together with all other adapters of the request.
//! Then the networks are loaded again whenever the adapters or their weights change.
//! [`LoraInfo::live`](crate::LoraInfo::live) shows which kind an adapter is.
//!
//! On OpenVINO, a network is compiled for a rank: 4, 16, or a multiple of 64. The first request
//! with a higher rank compiles the network again, which then serves all lower ranks.
//!
//! **Weights.** At 0 the adapter changes nothing, and at 1 it makes the change that was trained.
//! Negative numbers and numbers above 1 are allowed. Infinite numbers and NaN are errors.
//!
//! **Formats.** These formats are read. One file may mix them:
//!
//! | format | what it stores for a layer |
//! |---|---|
//! | LoRA, LoCon | two matrices of low rank, whose product is added to the weight |
//! | LoHa | two such products, which are multiplied number by number |
//! | LoKr | two matrices, whose Kronecker product is added |
//! | DoRA | another format, usually LoRA, and the lengths of the changed weight's rows or columns |
//! | GLoRA | two products of low rank, one of which is multiplied by the weight itself |
//! | IA³ | one factor for each input or output |
//! | OFT, BOFT | rotations of the outputs |
//! | full differences, norms | the whole difference of a weight, a bias or a norm |
//!
//! **Files.** An adapter is a safetensors file, a pickle (`.pt`, `.bin`), or a folder that peft or
//! diffusers saved (`adapter_model.safetensors` or `pytorch_lora_weights.safetensors`, or `.bin`).
//! The tensors may have the names of kohya's scripts, LyCORIS, OneTrainer, SimpleTuner, ComfyUI,
//! peft or any version of diffusers. The alphas of diffusers and peft are read from the metadata or
//! from `adapter_config.json` beside the file. Textual inversions in the file are loaded too, and a
//! prompt calls them by their names. [`Builder::embeddings`](crate::Builder::embeddings) loads
//! textual inversions from files of their own.
//!
//! [`inspect`](crate::inspect) describes an adapter without a model. Many adapters have words that
//! a prompt must contain. If the file does not name them, the [`tags`](crate::Adapter::tags) of its
//! training pictures may show them:
//!
//! ```no_run
//! let found = sd_onnx::inspect("watercolour.safetensors")?;
//! if let Some(adapter) = found.adapter {
//!     println!("{:?} for {:?}", adapter.formats, adapter.family);
//!     println!("words: {:?}", adapter.trigger_phrase);
//! }
//! # Ok::<(), sd_onnx::Error>(())
//! ```
//!
//! **What must fit.** An adapter must be for the model's family: one for Stable Diffusion 1.x does
//! not fit SDXL. A fine-tuned or distilled model of the family is fine, and so is an inpainting
//! model. The model's weights may have any of the [types below](#types-of-weights).
//! [`Error::Adapter`](crate::Error::Adapter) reports
//! another family, an adapter for a model that is not supported (such as Flux), a factor of the
//! wrong shape, and an adapter of which nothing fits. Single tensors that fit nothing are ignored,
//! with one `tracing` warning per file.
//!
//! **Steps and guidance** stay at the model's defaults. For a LoRA that needs few steps, such as an
//! LCM or Lightning LoRA, set [`steps`](crate::Request::steps),
//! [`guidance`](crate::Request::guidance) and [`scheduler`](crate::Request::scheduler) as its
//! author recommends.
//!
//! **Several adapters** are merged in the order in which they are given or called. The order
//! changes the result only for formats that depend on the weight: DoRA, IA³, OFT, BOFT and GLoRA.
//!
//! **Arithmetic.** Where programs disagree, an adapter changes the weights as WebUI 1.10 does, if
//! WebUI reads the format correctly. At a weight m, every format gives `W + m · (W₁ − W)`, where W
//! is the model's weight and W₁ the changed weight at 1.
//!
//! **Memory.** Merged weights are f32, four bytes for each number. All other weights are loaded as
//! they are without adapters ([Types of weights](#types-of-weights)). Adapters that are inputs take
//! twice the memory of their factors as f32. Only the adapters of the last request that called any
//! are in memory.
//!
//! **What is not possible:**
//!
//! - Networks that another tool exported to ONNX. They are an error.
//! - A change of the autoencoder, or of the refiner that
//!   [`Builder::refiner`](crate::Builder::refiner) loads. They stay as they are.
//! - [`Builder::convert`](crate::Builder::convert) with adapters. It is an error.
//!
//! # Types of weights
//! | in the file | in memory on the CPU |
//! |---|---|
//! | f32 | f32, mapped from the file and read during every call |
//! | f16, bf16, f64 | f32, converted when the model is loaded |
//! | fp8 (`e4m3fn`, `e5m2`) | f32, converted when the model is loaded |
//! | fp8 with the scales that ComfyUI writes | f32, value × scale, computed at the same time |
//! | GGUF: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K | f32, decoded when the model is loaded |
//!
//! One file may mix types. Any other type is an error that names the type. The CPU computes in f32,
//! so an fp8, f16 or GGUF file saves disk space, but no memory once it is loaded. The
//! [chapter on devices](super::devices#memory) lists how much memory a model needs, and the formats
//! that other devices compute in.
//!
//! **Pickles** (`.ckpt`, `.pt`, `.bin`) are programs: loading one in Python runs the code in it.
//! This crate's own reader builds only tensors and plain values and calls nothing. A file that asks
//! for any other function is refused, and the error names the function and its position.
//!
//! # Checks and corrections
//! **What is checked.** The class that a `config.json` names must be one that this library
//! computes: `_class_name` of the UNet and the VAE, `architectures` and `model_type` of the text
//! encoder. Every tensor of a network must have a place in it. A left-over tensor is an error,
//! because without it the model would draw other pictures than its author intended. Only regular
//! files are opened.
//!
//! These tensors are ignored, because no network uses them:
//!
//! - `position_ids`, `logit_scale` and `attn_mask`;
//! - the counters of weight averaging, `model_ema.decay` and `model_ema.num_updates`;
//! - noise schedules, such as `alphas_cumprod`;
//! - in a text encoder, an unused `text_projection`, CLIP's image network, and layers beyond
//!   `num_hidden_layers`.
//!
//! **What is corrected.** Models of 2022 have configuration values that diffusers' pipelines
//! replace at load time. [`Builder::load`](crate::Builder::load) replaces them as well. The class
//! in `model_index.json` decides which values are replaced; without that file, the class is
//! `StableDiffusionPipeline`. Each correction causes a warning through
//! [`tracing`](https://docs.rs/tracing):
//!
//! - `steps_offset` of the scheduler becomes 1 if it is another number, or if it is missing from a
//!   class that has the key;
//! - `clip_sample` of the scheduler becomes false if it is true, or if it is missing from a class
//!   where true is the default;
//! - `sample_size` of the UNet becomes 64 (512 pixels) if it is a single number below 64 in a file
//!   written by diffusers before 0.9.0.
//!
//! Three classes of diffusers can load the same folder, but they correct different values. For such
//! a folder, the request decides which class applies, as a user of diffusers would choose it:
//!
//! | request | class | `steps_offset` | `clip_sample` | `skip_prk_steps` of PNDM |
//! |---|---|---|---|---|
//! | without a picture | `StableDiffusionPipeline` | 1 | false | unchanged |
//! | from a picture | `StableDiffusionImg2ImgPipeline` | 1 | false | unchanged |
//! | with a mask of diffusers' rule, or with an inpainting model | `StableDiffusionInpaintPipeline` | 1 | unchanged | true |
//!
//! The classes of ControlNet, T2I-Adapter, SDXL, LCM and instruct-pix2pix correct nothing, and
//! neither does [`SchedulerConfig::from_json`](crate::SchedulerConfig::from_json). Checkpoint files
//! need no correction.
//!
//! # While a model is loaded
//! **Do not change a model's files while it is loaded.** ONNX Runtime maps weight files into memory
//! and reads f32 weights from them during every call, whatever the format of the file. If another
//! program shortens such a file, the operating system ends this process (`SIGBUS` on Linux). If
//! another program overwrites the file, the pictures change. Replacing a file is safe: write the
//! new file under another name and rename it, as download tools and
//! [`files::write`](crate::files::write) do.
//!
//! Weights of other types become f32 in memory while their network is loaded, and the file is not
//! read after that. The VAE encoder is loaded when the first picture is encoded, and reads its
//! weights then.
//!
//! # ONNX folders
//! A folder may also contain graphs that another tool exported, such as optimum, or diffusers'
//! exporter for its `OnnxStableDiffusionPipeline`. A component counts as exported if its folder has
//! an ONNX file and no other weights (`.safetensors`, `.bin`, `.ckpt`, `.pt`), so one model may
//! have components of both kinds. If a folder has several ONNX files, `model.onnx` is read. If none
//! of them has that name, loading fails.
//!
//! | folder | files |
//! |---|---|
//! | `unet` | `model.onnx`, `config.json` |
//! | `text_encoder`, `text_encoder_2` | `model.onnx`, `config.json` |
//! | `vae_decoder` | `model.onnx`, `config.json` |
//! | `vae_encoder`, needed only to encode pictures | `model.onnx`, `config.json` |
//! | `tokenizer`, `tokenizer_2`, `scheduler`, `model_index.json` | as above |
//!
//! The weights of a graph are in `model.onnx` or in a file beside it. Every `config.json` may be
//! missing.
//!
//! The inputs are read from the graph: a timestep as a scalar or a list, integer or float; token
//! ids of 32 or 64 bits; values in f32, f16 or f64; optionally guidance, pooled text and sizes. The
//! pictures equal the ones that the same weights draw from a diffusers folder, with these limits:
//!
//! - **Sizes.** Width and height must usually be multiples of 64 pixels for Stable Diffusion 1.x
//!   and 2.x and of 32 for SDXL, because exporters write each upsampling as an exact doubling.
//!   Graphs written by [`Builder::convert`](crate::Builder::convert) have no such limit. A graph
//!   that was exported for one size gives an error at the first call with another.
//! - **Clip skip.** Inner layers are found by the structure of the graph. If an optimiser has fused
//!   that structure, only layers that are outputs of the graph can be used. Any other layer is an
//!   error.
//! - **Integer timesteps.** A graph with integer timesteps receives the nearest ones. Ladders with
//!   integer timesteps, such as [`Ladder::leading`](crate::schedulers::Ladder::leading), are exact.
//! - **Sampling inside the VAE encoder.** An exported encoder that adds random noise is changed to
//!   return mean and deviation, so that results depend only on the seed.
//! - **No `config.json`.** Shapes come from the graph. The scaling factor is then 0.18215, or
//!   0.13025 for SDXL. A model with another scaling factor needs a `config.json`. The default size
//!   is the size of the graph if that is fixed, else 512×512, or 1024×1024 for SDXL.
//!
//! Textual inversions work if the token embedding is found in the graph; otherwise loading fails.
//! The weights stay in their files, as with safetensors files, so the same rule applies: do not
//! change the files while the model is loaded.
//!
//! The following do not work. Each is an error that gives the reason:
//!
//! - graphs with inputs that this library has no value for, such as the residuals of a ControlNet;
//! - upscalers and depth-to-image models;
//! - operators that ONNX Runtime does not have, and operator sets before 13;
//! - bf16 inputs and outputs, and sparse weights;
//! - weights in a file outside the folder of their graph;
//! - [`Builder::vae`](crate::Builder::vae) from an ONNX folder;
//! - [`Builder::lora`](crate::Builder::lora) on an ONNX folder;
//! - [`Builder::convert`](crate::Builder::convert): convert the model that was exported instead.
//!
//! [`Builder::variant`](crate::Builder::variant) does not choose between graphs.
//!
//! # Converting a model
//! [`Builder::convert`](crate::Builder::convert), and the example `convert`, write a model in
//! another form. [`Conversion`](crate::Conversion) selects the form and the type of the weights.
//!
//! ```no_run
//! use sd_onnx::{Conversion, ModelForm, WeightType};
//!
//! let conversion = Conversion::new(ModelForm::File).weight_type(WeightType::F16);
//! let converted = sd_onnx::builder()
//!     .vae("sdxl_vae.safetensors") // written into the new model
//!     .convert("my-sdxl", "my-sdxl.safetensors", &conversion)?;
//! for lost in converted.lost {
//!     eprintln!("warning: {lost}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The forms are:
//!
//! - [`Folder`](crate::ModelForm::Folder): a diffusers folder. diffusers and this crate read it.
//! - [`File`](crate::ModelForm::File): one safetensors file with latent-diffusion tensor names.
//!   ComfyUI, WebUI and their relatives, diffusers' `from_single_file` and this crate read it.
//! - [`Onnx`](crate::ModelForm::Onnx): for each network a `model.onnx`, with its weights in
//!   `model.onnx_data`. ONNX Runtime from any language, optimum and this crate read it.
//!
//! The new model appears under its name only when it is complete. An existing file or folder is
//! never overwritten. Tensors are converted one at a time, so memory use is small. Parts that do
//! not fit each other are an error, as when a model is loaded. ONNX graphs cannot be converted
//! back. [LoRAs](#loras) cannot be written into the new model yet.
//!
//! **Types.** Without [`Conversion::weight_type`](crate::Conversion::weight_type) each tensor keeps
//! its type, except that fp8 with scales and the blocks of GGUF become f32. With it, every number
//! is rounded to the nearest value of the new type. A number outside the range of the type, such as
//! 70000 in f16, is an error that names the tensor. bf16 has the range of f32.
//!
//! **What one file cannot store.** A file has no configuration: its reader assumes attention heads,
//! activations and similar values from the family. Before writing, the conversion checks how the
//! file would be read. If any network would differ, the conversion fails and names the key, for
//! instance `num_attention_heads`. The small model that ships with the project is such a case.
//!
//! v-prediction and EDM are recorded as marker tensors, and the prediction also in the header.
//! These settings are lost if they differ from what the reader assumes:
//!
//! - the other scheduler settings (sampler, betas, spacing);
//! - a default size that is not a multiple of 64 pixels from 256 to 2048;
//! - a vocabulary other than CLIP's;
//! - the pipeline class.
//!
//! [`ConversionReport::lost`](crate::ConversionReport::lost) lists each of them. **Without them the
//! file can draw different pictures.**
//!
//! Stable Diffusion 2 uses the output of the penultimate layer of its text encoder. Published files
//! have all 24 layers. Diffusers folders have 23, and so does a file converted from one. Programs
//! that build 24 layers report the last as missing but do not use it.
//!
//! **`!` in prompts.** Some tokenizers in folders (Stable Diffusion 2, SDXL's second) pad with `!`.
//! With such a tokenizer each `!` of a prompt counts as padding, as in transformers. With a
//! checkpoint file, `!` is an ordinary word. A prompt with `!` can therefore draw another picture
//! after a conversion, and [`ConversionReport::lost`](crate::ConversionReport::lost) reports this.
//!
//! **Graphs** have the inputs and outputs that optimum gives them:
//!
//! - `text_encoder` takes `input_ids`, i64 `[batch, length]`. It returns `last_hidden_state`,
//!   `pooler_output`, `hidden_states.0`, `hidden_states.1` and so on.
//! - `text_encoder_2` takes `input_ids`. It returns `text_embeds`, `last_hidden_state`,
//!   `hidden_states.0` and so on.
//! - `unet` takes `sample`, `timestep` (one number) and `encoder_hidden_states`; in SDXL also
//!   `text_embeds` and `time_ids`, and in latent consistency models also `timestep_cond`. It
//!   returns `out_sample`.
//! - `vae_decoder` takes `latent_sample`, already divided by the scaling factor. It returns
//!   `sample`.
//! - `vae_encoder` takes `sample`. It returns `latent_parameters`, or `latent_sample` for TAESD.
//!
//! All inputs and outputs except `input_ids` are f32, whatever the type of the weights.
//! `hidden_states.N` is the state before layer N, without the final norm. For inpainting and
//! instruct-pix2pix, `sample` also has the extra channels. The graphs contain operators of the
//! `com.microsoft` domain, so only ONNX Runtime runs them.
//!
//! # Picture files
//! [`Picture::save_png`](crate::Picture::save_png) writes the settings of the picture into the
//! file, in the text format that WebUI and its relatives write and read.
//! [`files::jpeg`](crate::files::jpeg) and [`files::webp`](crate::files::webp) write it into JPEG
//! and WebP files. [`infotext`](crate::infotext) lists the keys.
//! [`Infotext::read`](crate::Infotext::read) reads the text back, from files of these programs and
//! from files of ComfyUI, InvokeAI and NovelAI. [`Infotext::request`](crate::Infotext::request)
//! turns it into a request and lists what cannot be reproduced.
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
//! let infotext = Infotext::read(&path)?.expect("the file has an infotext");
//! assert_eq!(infotext.get("Seed"), Some("1"));
//! let again = infotext.request();
//! assert!(again.differences.is_empty());
//! assert_eq!(pipeline.generate(&again.request)?.image(), fox.image());
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A picture that was drawn with [LoRAs](#loras) also records their names, hashes and weights.
//! [`Pipeline::reproduction`](crate::Pipeline::reproduction) returns the same request for a loaded
//! model. It lists merged LoRAs as a difference if the model was loaded with others. LoRAs that the
//! prompt calls are found in the pipeline's folders by their hashes, even if a file was renamed.
//! This works for pictures of WebUI, too. A LoRA that is not there is removed from the prompt, and
//! is listed as a difference.
//!
//! A file appears under its name only when it is complete ([`files::write`](crate::files::write)).
