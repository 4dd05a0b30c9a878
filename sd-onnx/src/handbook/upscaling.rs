//! Larger pictures: networks that enlarge pictures, second passes with them, and redrawing in
//! tiles.
//!
//! An *upscaler* is a way to enlarge a picture: a network, or a filter such as Lanczos. The word
//! *tile* has three meanings. For an [`Enlarger`](crate::upscale::Enlarger), it is a part of the
//! picture that goes through the network at once. For [`Pipeline::upscale_by_tiles`], it is a part
//! that is redrawn as a picture of its own. For [`Request::tiles`](crate::Request::tiles), it is a
//! window in which each step of one run works.
//!
//! | to get | use |
//! |---|---|
//! | a larger copy of any picture | [`Enlarger`](crate::upscale::Enlarger), the example `upscale` |
//! | a larger drawing, with details of the new size | [`Request::hires`](crate::Request::hires) |
//! | a drawing that is larger than the model can draw at once | [`Request::tiles`](crate::Request::tiles) |
//! | a very large drawing, tile by tile | [`Pipeline::upscale_by_tiles`] |
//!
//! # Networks
//! [`Builder::load_upscaler`](crate::Builder::load_upscaler) loads a network from a `.safetensors`
//! or `.pth` file, without a model. Pickles are read without running them.
//!
//! ```no_run
//! use sd_onnx::{StopToken, files, upscale::Enlarger};
//!
//! let network = sd_onnx::builder().load_upscaler("RealESRGAN_x4plus.pth")?;
//! let picture = files::read_picture("fox.png")?.rgb;
//! let enlarger = Enlarger::new(&*network);
//! let large = enlarger.enlarge(&picture, 2.5, &StopToken::new(), |progress| {
//!     println!("tile {} of {}", progress.done, progress.total);
//! })?;
//! large.save("large.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The file has no configuration. The network is recognised by the names of its tensors, and their
//! shapes are its configuration:
//!
//! | network | variants or tensor names | factor |
//! |---|---|---|
//! | ESRGAN, Real-ESRGAN, BSRGAN, ESRGAN+ | of all three versions (`model.0`, `RRDB_trunk`, `conv_first`) | 1 to 32, such as 4, also with pixel unshuffle (`x2plus`) |
//! | SRVGGNetCompact of Real-ESRGAN, with parametric ReLU | `body.0` | 1 to 32 |
//! | SwinIR | all heads: classical, lightweight, real-world, and without enlargement (noise, JPEG) | 1 to 32 |
//! | DAT | classical and lightweight | 1 to 32 |
//!
//! The tensors may be in a dictionary `params_ema`, `params`, `state_dict` or `model`, and may all
//! begin with `module.` or `netG.`. Results agree with spandrel 0.4.2 to 1e-5. The error for HAT
//! and other networks that are recognised but not supported names them. Pictures are in color;
//! a network for gray pictures is refused.
//!
//! The factor of a call need not be the network's. As in WebUI, sides are rounded down to multiples
//! of 8. The network runs up to three times until the picture is large enough, and Lanczos resizes
//! it to the exact size:
//!
//! - A factor of 1 runs the network once.
//! - Another factor does not run it if the rounded size is not larger than the picture. For
//!   example, 100 pixels and a factor of 1.03 give 96.
//! - If three runs are not enough, or if the network's own factor is 1, Lanczos enlarges the rest.
//! - Shrinking always uses Lanczos.
//!
//! # Tiles
//! A picture of 1024 × 1024 pixels would take many gigabytes in one call. So it goes through the
//! network in tiles, 192 pixels wide and high, which overlap by 8, WebUI's defaults.
//! [`Builder::upscaler_tiling`](crate::Builder::upscaler_tiling) and
//! [`Enlarger::tiling`](crate::upscale::Enlarger::tiling) set other
//! [tiles](crate::upscale::Tiling). The first pixels of each tile fade in over its neighbor. If
//! seams show, make the overlap larger: a network sees up to a hundred pixels around each pixel. A
//! stop token ends the work within a tile.
//!
//! # A second pass
//! A pipeline holds networks by the names of their files.
//! [`Upscaler::Network`](crate::Upscaler::Network) calls one for a
//! [second pass](super::pictures#a-second-pass-in-a-larger-size):
//!
//! ```no_run
//! use sd_onnx::{Hires, Request, Upscaler};
//!
//! let pipeline = sd_onnx::builder()
//!     .upscaler("RealESRGAN_x4plus.pth")
//!     .load("stable-diffusion-v1-5")?;
//! let upscaler = Upscaler::Network("RealESRGAN_x4plus".to_owned());
//! let hires = Hires::scale(2.0).upscaler(upscaler).strength(0.35);
//! let picture = pipeline.generate(&Request::new("a fox").hires(hires))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An enlarged picture is sharp, unlike enlarged latents, so a strength of 0.2 to 0.5 suffices. The
//! infotext records the name as WebUI does (`Hires upscaler`), and
//! [`Pipeline::reproduction`](crate::Pipeline::reproduction) finds the network by it.
//!
//! The pixels differ a little from WebUI's. WebUI gives the networks blue, green and red, although
//! they were trained with red, green and blue. It also fills the tiles of a picture smaller than
//! 192 pixels with black, and joins the tiles of SwinIR without fading.
//!
//! # Redrawing in tiles
//! [`Pipeline::upscale_by_tiles`] is WebUI's script "SD upscale". It enlarges the
//! [start](crate::Request::start) of a request, cuts it into tiles of the size that the model
//! draws, redraws each one by image to image, and joins them. The result may be far larger than a
//! model can draw at once:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! use std::ops::ControlFlow;
//! use sd_onnx::{
//!     Request, Start, StopToken, Upscaler, image::RgbImage, pixels::Filter, upscale::TiledRedraw,
//! };
//!
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! # let picture = RgbImage::new(80, 64);
//! let request = Request::new("a fox").start(Start::picture(picture).strength(0.3));
//! # let request = request.steps(5);
//! let redraw = TiledRedraw::new(2.0).upscaler(Upscaler::Pixels(Filter::Lanczos)).overlap(32);
//! let stop = StopToken::new();
//! let large = pipeline.upscale_by_tiles(&request, &redraw, &stop, |_| {
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(large[0].image.dimensions(), (160, 128));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! All tiles have the same prompt. Above a strength of about 0.4, each tile draws the whole subject
//! of the prompt again.
//!
//! [`Pipeline::upscale_by_tiles`]: crate::Pipeline::upscale_by_tiles
