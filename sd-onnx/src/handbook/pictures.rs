//! Pictures as input and second passes: image to image, inpainting, outpainting, instruct-pix2pix,
//! hires fix, large pictures in windows and seamless pictures.
//!
//! # Image to image
//! [`Request::start`](crate::Request::start) makes a run start from a picture. The picture is
//! encoded to latents, noise of a middle level is added to them, and the run begins at that level:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/pictures/fox.png");
//! use sd_onnx::{Request, Start, files};
//!
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! let fox = files::read_picture(picture)?;
//! let request = Request::new("a cat").start(Start::picture(fox.rgb).strength(0.4));
//! # let request = request.steps(5);
//! let cat = pipeline.generate(&request)?;
//! # assert_eq!(cat.image().dimensions(), (96, 96));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The **strength** sets the level. Near 0 the picture hardly changes. At 1 only a trace of it is
//! left. A run of 20 steps at a strength of 0.4 makes the last 8 steps.
//! [`StrengthRule`](crate::schedulers::ladders::StrengthRule) has the ways in which diffusers,
//! WebUI and ComfyUI count the steps. With ComfyUI's, a run makes all 20 steps, on finer noise
//! levels. A strength that would need more than the model's 1000 training timesteps is then
//! refused.
//!
//! | option | effect | default |
//! |---|---|---|
//! | [`strength`](crate::Start::strength) | how much is redrawn, `0.0..=1.0` | 0.75 |
//! | [`rule`](crate::Start::rule) | how the strength becomes a number of steps | diffusers' |
//! | [`posterior`](crate::Start::posterior) | a sample of the encoder's distribution, or its mode | a sample |
//! | [`noise_multiplier`](crate::Start::noise_multiplier) | less noise gives a smoother picture | 1 |
//! | [`resize`](crate::Start::resize) | how a picture of another size is fitted | stretched |
//! | [`mask`](crate::Start::mask) | which part is redrawn | all of it |
//! | [`color_correction`](crate::Start::color_correction) | the result gets the picture's colors | no |
//!
//! Without a [size](crate::Request::size), the result has the picture's size, rounded down to
//! multiples of 8. `Start::latents` starts from latents instead, for instance from the
//! [`latents`](crate::Picture::latents) of another picture, which saves encoding.
//!
//! # Inpainting
//! With a [`Mask`](crate::Mask), only its white part is redrawn. Every pixel of the black part
//! stays exactly as it is, unless [`keep_original`](crate::Mask::keep_original) is false. A
//! [`blur`](crate::Mask::blur) hides the seam, and mixes the pixels near it. By
//! diffusers' rules, the white part starts from pure noise at a strength of 1.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pictures = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/pictures");
//! # let path = |name: &str| format!("{pictures}/{name}");
//! use sd_onnx::{Mask, Request, Start, files, image::DynamicImage};
//!
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! let fox = files::read_picture(path("fox.png"))?.rgb;
//! let mask = DynamicImage::from(files::read_picture(path("fox-mask.png"))?.rgb).to_luma8();
//! let start = Start::picture(fox.clone()).strength(1.0).mask(Mask::new(mask.clone()));
//! let request = Request::new("a fox on a blue background").start(start);
//! # let request = request.steps(3);
//! let drawn = pipeline.generate(&request)?;
//! for (x, y, pixel) in drawn.image().enumerate_pixels() {
//!     assert!(mask.get_pixel(x, y).0[0] > 0 || pixel == fox.get_pixel(x, y));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Any model can do this: after each step, the latents of the black part are replaced by the
//! picture's, with noise of the step's level. This is the rule of diffusers, where only samplers
//! with two calls in a step, such as Heun, do it twice in a step. An inpainting model takes the
//! mask and the rest of the picture as additional inputs, so its drawing fits the surroundings
//! better. The pipeline makes these inputs from the same request.
//!
//! | option of the mask | effect | default |
//! |---|---|---|
//! | [`rule`](crate::Mask::rule) | how it acts: as in diffusers, as in WebUI, or gray values as strengths | diffusers' |
//! | [`content`](crate::Mask::content) | what the run finds inside: the picture, its blurred surroundings, noise or nothing | the picture |
//! | [`blur`](crate::Mask::blur) | softens the edge, in pixels | 0 |
//! | [`only_masked`](crate::Mask::only_masked) | draws only a region around the mask, in the size of the request | the whole picture |
//! | [`keep_original`](crate::Mask::keep_original) | whether the black part has the picture's pixels | yes |
//!
//! A face that covers 60 pixels of a large picture is too small for a model. With `only_masked` the
//! model draws the region around it in the size of the request, and the result is scaled back and
//! pasted:
//!
//! ```
//! use sd_onnx::{Mask, Request, Start, image::{GrayImage, RgbImage}};
//!
//! # let (group, face) = (RgbImage::new(640, 480), GrayImage::new(640, 480));
//! let mask = Mask::new(face).blur(4.0).only_masked(32);
//! let start = Start::picture(group).strength(0.5).mask(mask);
//! let request = Request::new("a smiling face").size(512, 512).start(start);
//! ```
//!
//! # Outpainting
//! [`Start::outpaint`](crate::Start::outpaint) enlarges a picture, fills the new sides with its
//! blurred edges, and adds a mask over them and over a few pixels next to them, here 16:
//!
//! ```
//! use sd_onnx::{Request, Sides, Start, image::RgbImage};
//!
//! # let fox = RgbImage::new(512, 512);
//! let sides = Sides { right: 256, ..Sides::default() };
//! let request = Request::new("a fox in a meadow").start(Start::outpaint(&fox, sides, 16)?);
//! # Ok::<(), sd_onnx::Problems>(())
//! ```
//!
//! # A second pass in a larger size
//! Models repeat themselves in pictures that are much larger than the pictures they were trained
//! with. [`Request::hires`](crate::Request::hires), WebUI's "Hires. fix", draws the picture in the
//! size of the request, enlarges the latents, and redraws them:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! use sd_onnx::{Hires, Request};
//!
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! let request = Request::new("a fox").hires(Hires::scale(2.0).strength(0.6));
//! # let request = request.steps(3);
//! let picture = pipeline.generate(&request)?;
//! assert_eq!(picture.image().dimensions(), (192, 192));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The second pass can have another [sampler, other steps, guidance and prompts](crate::Hires).
//! Below a strength of about 0.5, the blur of the enlarged latents remains. With
//! [`Upscaler::Pixels`](crate::Upscaler::Pixels) the decoded picture is enlarged instead, which
//! allows lower strengths. [`Upscaler::Network`](crate::Upscaler::Network) enlarges it with a
//! network such as ESRGAN; the chapter [`upscaling`](super::upscaling) describes these.
//!
//! # Large pictures in windows
//! [`Request::tiles`](crate::Request::tiles) draws a large picture without a first pass. In each
//! step, the UNet makes a prediction for each of several overlapping windows, and the predictions
//! are averaged (MultiDiffusion, or with [Gaussian weights](crate::TileWeights::Gaussian) Mixture
//! of Diffusers). This is WebUI's "Tiled Diffusion" and diffusers' panorama:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! use sd_onnx::{Request, Tiles};
//!
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! let request = Request::new("clouds").size(192, 96).tiles(Tiles::new(96, 96));
//! # let request = request.steps(3);
//! let picture = pipeline.generate(&request)?;
//! assert_eq!(picture.image().dimensions(), (192, 96));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every window sees the whole prompt, and therefore draws the whole subject. That suits
//! landscapes and patterns. With a picture to [start](crate::Request::start) from at a low
//! strength, or in a [second pass](#a-second-pass-in-a-larger-size), the windows add details to
//! what is there. The work of a step grows with the number of windows. Up to
//! [`max_batch`](crate::Builder::max_batch) windows share a call. The autoencoder decodes the
//! whole picture at once. If the picture is very large, the autoencoder uses [its own
//! tiles](super::devices#large-pictures), which have nothing to do with these windows.
//!
//! # Instruct-pix2pix
//! A model for instructions, such as "make it winter", takes the picture as an additional input and
//! starts from noise. The request is the same. The strength, its rule and the noise multiplier have
//! no effect, and a mask is refused.
//! [`image_guidance`](crate::Request::image_guidance) sets how closely the model keeps to the
//! picture.
//!
//! # Seamless pictures
//! With [`Builder::seamless`](crate::Builder::seamless), the opposite edges of every picture fit
//! each other along x, along y or along both axes, so that its copies side by side show no edge:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! use sd_onnx::{Request, Seamless};
//!
//! let panorama = sd_onnx::builder().seamless(Seamless::X).load(folder)?;
//! let picture = panorama.generate(&Request::new("clouds").size(128, 64).steps(2))?;
//! # assert_eq!(picture.image().dimensions(), (128, 64));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This is WebUI's "Tiling". It is a setting of the loaded model, because the padding is a part of
//! its networks. A picture to [start](crate::Request::start) from is also encoded seamlessly,
//! except that the encoder of an ordinary autoencoder pads the last row and column of each level
//! with zeros, as in diffusers.
//!
//! # Files
//! [`files::read_picture`](crate::files::read_picture) reads PNG, JPEG and WebP files, and turns
//! them as their EXIF orientation says. The infotext of a result records the strength and the
//! options, but not the picture. [`Infotext::start`](crate::Infotext::start) joins them with the
//! picture, and `txt2img --like FILE --image PICTURE` draws the result again.
