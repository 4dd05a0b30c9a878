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
//!     found.pictures[0].save(format!("{animal}.png"))?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! In the example `txt2img`, `--control NETWORK:PICTURE:WEIGHT` does the same, and may be repeated.
//!
//! # The three kinds
//!
//! | kind | follows | cost | files |
//! |---|---|---|---|
//! | ControlNet | lines, depth, poses, … : what it was trained for | a call in every step, about a third of the UNet's | folders of diffusers, and single files with the names of diffusers or of the authors |
//! | T2I-Adapter | the same, less exactly | one call per run | folders of diffusers, and single files with the names of diffusers or of TencentARC |
//! | IP-Adapter: plain, plus, full face | the look and the contents of the picture | one call of CLIP's vision model per run, and little in every step | the published files |
//!
//! [`Builder::control`](crate::Builder::control) recognises the kind from the tensors. A network
//! must be for the family of the model: Stable Diffusion 1.x, 2.x or SDXL. One for another family is
//! an error when the model is loaded.
//!
//! Several controls can act at once, and networks of all kinds can be combined with each other and
//! with [LoRAs](super::files#loras), [masks, second passes and seamless
//! pictures](super::pictures). Their contributions are added. The weights of the UNet are in memory
//! once. If a request uses no control, its pictures are the same, bit for bit, as those of a
//! pipeline that was loaded without control networks.
//!
//! # The control picture
//! A ControlNet expects the kind of picture that it was trained with, such as white edges on black.
//! If you have a photo, a [`Preprocessor`](crate::Preprocessor) makes the control picture of it:
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
//! | [`Canny`](crate::Preprocessor::Canny) | canny | `canny@photo.png`, `canny(50,150)@photo.png` |
//! | [`Tile`](crate::Preprocessor::TileResample), [`Blur`](crate::Preprocessor::BlurGaussian) | tile, blur | `tile_resample@…`, `blur_gaussian@…` |
//! | [`Luminance`](crate::Preprocessor::RecolorLuminance), [`Intensity`](crate::Preprocessor::RecolorIntensity) | recolor | `recolor_luminance@…` |
//! | [`Threshold`](crate::Preprocessor::Threshold), [`Invert`](crate::Preprocessor::Invert) | scribble, lineart | `threshold@…`, `invert@…` |
//!
//! The results equal sd-webui-controlnet's at the same size. Depth maps, poses, segmentations and
//! soft edges are made by models of their own, which are not a part of this project: make them with
//! [controlnet_aux](https://github.com/huggingface/controlnet_aux) or
//! [sd-webui-controlnet](https://github.com/Mikubill/sd-webui-controlnet), or download them with the
//! picture, and use them without a preprocessor.
//!
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
//! - [`weight`](crate::Control::weight): 1 is what the network was trained with. Far above 1, lines
//!   become hard and colors burn. At 0 the network is not called.
//! - [`during`](crate::Control::during): a control that ends at 0.5 decides the composition and
//!   leaves the details to the prompt.
//! - [`mode`](crate::Control::mode): what wins if the picture and the prompt disagree. The modes are
//!   sd-webui-controlnet's, and diffusers' `guess_mode`.
//!
//! # IP-Adapters
//! An IP-Adapter needs the CLIP vision model that it was trained with, in a folder `image_encoder`
//! beside its file or in the folder above, as in the published repository, or from
//! [`Builder::image_encoder`](crate::Builder::image_encoder). Its picture is cut to a square. Use a
//! weight of 0.5 to 0.8 if the prompt should still matter.
//!
//! # What is not supported
//! Refused with the reason: Control-LoRAs, SDXL's union ControlNet, ControlNet-LLLite, ControlNets
//! that are differences to a model ("diff"), style and color adapters, IP-Adapters for faces
//! (FaceID), InstantID, and networks for other models such as Flux. Weights per block and masks of
//! IP-Adapters are not options here.
//!
//! # Whose arithmetic
//! Outputs, intervals and `guess_mode` are diffusers' 0.42.1: the tests compare 60 runs, of which
//! the largest error is 4.3e-6. Intervals count the steps of the run. diffusers counts the calls of
//! samplers with two calls in a step, such as Heun. The other modes are sd-webui-controlnet's. It
//! compares an interval with the step's number divided by the number of steps, so that its last step
//! may differ. Pictures of another size are scaled with Pillow's Lanczos filter, as in diffusers.
