//! Pictures that steer a run: ControlNets, T2I-Adapters and IP-Adapters.
//!
//! A prompt describes what a picture shows. A *control picture* shows where the lines are, how deep
//! the scene is, or what the result should look like. A *control network*, which is trained for one
//! kind of control picture, makes the run follow it.
//!
//! ```no_run
//! use sd_onnx::{Control, Request, files};
//!
//! let pipeline = sd_onnx::builder()
//!     .named_control("canny", "control_v11p_sd15_canny.safetensors")
//!     .load("stable-diffusion-v1-5")?;
//! let edges = files::read_picture("edges.png")?.rgb;
//! for animal in ["a fox", "an owl", "a cat"] {
//!     let control = Control::new("canny", edges.clone()).weight(0.8);
//!     let found = pipeline.generate(&Request::new(animal).seed(1).control(control))?;
//!     found.pictures[0].image.save(format!("{animal}.png"))?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! In the example `txt2img`, `--control PATH:PICTURE:WEIGHT` does the same:
//!
//! ```text
//! txt2img "a fox" --model stable-diffusion-v1-5 \
//!     --control control_v11p_sd15_canny.safetensors:edges.png:0.8
//! ```
//!
//! # The three kinds
//!
//! | kind | follows | cost | files |
//! |---|---|---|---|
//! | ControlNet | lines, depth, poses, … : the feature that it was trained for | a call in every step, about a third of the UNet's | folders of diffusers, and single files with the names of diffusers or of the original authors |
//! | T2I-Adapter | the same, less exactly | one call for each control and pass of a request | folders of diffusers, and single files with the names of diffusers or of TencentARC |
//! | IP-Adapter: plain, plus, full face | the look and the contents of the picture | one call of CLIP's vision model for each control and pass of a request, and little in every step | the published single files |
//!
//! A single file is a `.safetensors` file or a pickle (`.pth`, `.bin`). Pickles are read
//! [without running them](super::files#types-of-weights).
//! [`Builder::control`](crate::Builder::control) recognises the kind from the tensors, or from the
//! `config.json` of a folder. A network must be for the family of the model: Stable Diffusion 1.x,
//! 2.x or SDXL. A network for another family is an error when the model is loaded.
//!
//! A request has at most [16](crate::MAX_CONTROLS) controls. Networks of all kinds can be combined
//! with each other and with [LoRAs](super::files#loras), [masks, second passes and seamless
//! pictures](super::pictures). Their contributions are added. A request may use a ControlNet or a
//! T2I-Adapter several times, with different pictures, but each IP-Adapter only once. Controls do
//! not act on a [refiner](crate::Builder::refiner).
//!
//! [`control_name`](crate::control_name) returns the name that a network gets from its path. A
//! loaded pipeline lists its networks:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! let edges = format!("{folder}/controlnets/edges");
//! let pipeline = sd_onnx::builder().control(edges).load(folder)?;
//! for network in &pipeline.denoiser().inputs().controls {
//!     println!("{} is a {:?}", network.name, network.kind);
//! }
//! # assert_eq!(pipeline.denoiser().inputs().controls[0].name, "edges");
//! # Ok::<(), sd_onnx::Error>(())
//! ```
//!
//! # The control picture
//! A ControlNet expects the kind of picture that it was trained with, such as white edges on black.
//! If you have a photo, a [`Preprocessor`](crate::Preprocessor) makes the control picture from it:
//!
//! ```
//! use sd_onnx::{Control, Preprocessor, Request, image::RgbImage};
//!
//! # let photo = RgbImage::new(512, 512);
//! let edges = Preprocessor::Canny { low: 100, high: 200 };
//! let control = Control::new("canny", photo).preprocessor(edges);
//! let request = Request::new("a fox").control(control);
//! ```
//!
//! | preprocessor | for ControlNets such as | `--control` |
//! |---|---|---|
//! | [`Canny`](crate::Preprocessor::Canny) | canny | `canny@photo.png`, `"canny(50,150)@photo.png"` |
//! | [`TileResample`](crate::Preprocessor::TileResample), [`BlurGaussian`](crate::Preprocessor::BlurGaussian) | tile, blur | `"tile_resample(4)@…"`, `blur_gaussian@…` |
//! | [`RecolorLuminance`](crate::Preprocessor::RecolorLuminance), [`RecolorIntensity`](crate::Preprocessor::RecolorIntensity) | recolor | `recolor_luminance@…`, `recolor_intensity@…` |
//! | [`Threshold`](crate::Preprocessor::Threshold), [`Invert`](crate::Preprocessor::Invert) | scribble, lineart | `threshold@…`, `invert@…` |
//!
//! Shells require the quotation marks, because parentheses have a meaning there. `TileResample` has
//! a factor of 1 by default, which changes nothing.
//!
//! The results equal sd-webui-controlnet's at the same size. Depth maps, poses, segmentations and
//! soft edges need models that this project does not include. Make them with
//! [controlnet_aux](https://github.com/huggingface/controlnet_aux) or
//! [sd-webui-controlnet](https://github.com/Mikubill/sd-webui-controlnet), and pass them without a
//! preprocessor.
//!
//! # The size of the control picture
//! - **Any size is accepted.** The picture is fitted to the size of each pass, as
//!   [`resize`](crate::Control::resize) says, and then processed. The preprocessor therefore works
//!   at the resolution of the pass.
//! - **T2I-Adapters** for SDXL need sides in multiples of 16 pixels
//!   ([`ControlInputs::multiple`](crate::ControlInputs::multiple)), all other networks in multiples
//!   of 8.
//! - **[`ControlPicture::Values`](crate::ControlPicture::Values)** are not resized. A request with
//!   a second pass refuses them, because its passes differ in size.
//! - **With [windows](super::pictures#large-pictures-in-windows)**, the control picture of a
//!   ControlNet covers the whole picture. Each window sees its part of it, and does not share a
//!   call with other windows. An IP-Adapter shows its whole picture to every window. T2I-Adapters
//!   are refused.
//! - **With [`Mask::only_masked`](crate::Mask::only_masked)**, the control picture covers the whole
//!   start. It is fitted to the size of the start, and the region that is drawn is cut out of both.
//!   `ControlPicture::Values` are not cut and must show only that region. An IP-Adapter sees its
//!   whole picture.
//!
//! # Inpainting
//! A ControlNet for inpainting reads the picture that the run starts from, with a hole where the
//! mask is white:
//!
//! ```
//! use sd_onnx::{Control, ControlPicture, Mask, Request, Start, image::{GrayImage, RgbImage}};
//!
//! # let (photo, mask) = (RgbImage::new(512, 512), GrayImage::new(512, 512));
//! let request = Request::new("a hat")
//!     .start(Start::picture(photo).strength(1.0).mask(Mask::new(mask)))
//!     .control(Control::new("inpaint", ControlPicture::Start));
//! ```
//!
//! # How strongly, when, and against the prompt
//! - [`weight`](crate::Control::weight): 1 is the weight of the training. Far above 1, lines become
//!   hard and colors burn. At 0 the network is not called.
//! - [`during`](crate::Control::during): a control that ends at 0.5 decides the composition and
//!   leaves the details to the prompt.
//! - [`mode`](crate::Control::mode): whether the picture or the prompt wins where they disagree.
//!
//! | [mode](crate::ControlMode) | effect | when to choose it |
//! |---|---|---|
//! | `Balanced` | all layers act fully, on the prompt and on the negative prompt | by default |
//! | `Prompt` | most layers act less | the picture forces things that contradict the prompt |
//! | `Control` | the same, but only on the prediction for the prompt, so that guidance enlarges the effect | the result does not follow the picture closely enough |
//! | `Guess` | diffusers' `guess_mode`: as `Control`, with other factors for the layers | the prompt is empty, and the picture alone decides |
//!
//! The first three modes are sd-webui-controlnet's. A T2I-Adapter accepts only these, and an
//! IP-Adapter accepts only `Balanced`. Without guidance (a scale of 1), `Control` is the same as
//! `Prompt`.
//!
//! # IP-Adapters
//! An IP-Adapter shows a picture to the model as if it were a part of the prompt. The picture is
//! cut to a square. Use a weight of 0.5 to 0.8 if the prompt should still matter.
//!
//! ```no_run
//! use sd_onnx::{Control, Request, files};
//!
//! let pipeline = sd_onnx::builder()
//!     .named_control("look", "IP-Adapter/models/ip-adapter-plus_sd15.safetensors")
//!     .load("stable-diffusion-v1-5")?;
//! let painting = files::read_picture("painting.jpg")?.rgb;
//! let look = Control::new("look", painting).weight(0.6);
//! let found = pipeline.generate(&Request::new("a fox in a forest").control(look))?;
//! found.pictures[0].image.save("fox.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```text
//! txt2img "a fox in a forest" --model stable-diffusion-v1-5 \
//!     --control IP-Adapter/models/ip-adapter-plus_sd15.safetensors:painting.jpg:0.6
//! ```
//!
//! The adapter needs the CLIP vision model that it was trained with. In a copy of the published
//! repository, the program finds it: it looks for a folder `image_encoder` beside the adapter's
//! file, in the folder above, and there in `models` and `sdxl_models`. It takes the first whose
//! width fits the adapter. [`Builder::image_encoder`](crate::Builder::image_encoder) and
//! `--image-encoder` name a vision model in another place.
//!
//! # Memory and time
//! - The weights of the UNet are in memory once, with or without control networks.
//! - On a CPU, a ControlNet needs as much memory as its weights have in f32, about 1.4 GB for
//!   Stable Diffusion 1.x. This is twice the size of a file in f16.
//! - With [`Builder::low_memory`](crate::Builder::low_memory), the UNet and its ControlNets stay
//!   loaded together, because every step needs them.
//! - If a request uses no control, its pictures are the same, bit for bit, as from a pipeline
//!   that was loaded without control networks. A step takes a little longer, because the UNet
//!   receives zeros.
//!
//! # What is not supported
//! Loading these networks is an error that names them: Control-LoRAs, SDXL's union ControlNet,
//! ControlNet-LLLite, ControlNets that are differences to a model ("diff"), style adapters,
//! IP-Adapters for faces (FaceID), InstantID, and networks for other models such as Flux. Models
//! that another tool exported to ONNX have no inputs for control networks. Weights per block, and
//! masks for IP-Adapters, are not supported.
//!
//! # Whose arithmetic
//! Outputs, intervals and `guess_mode` are diffusers' 0.42.1: the tests compare 60 runs, whose
//! largest error is 4.3e-6. An interval here counts steps. In diffusers it counts calls, so Heun,
//! with two calls in a step, ends elsewhere. The other modes are sd-webui-controlnet's.
//! sd-webui-controlnet divides the step's number by the number of steps, so the last step in which
//! a picture acts may differ. Pictures of another size are scaled with Pillow's Lanczos filter, as
//! in diffusers.
