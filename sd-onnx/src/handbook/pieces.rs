//! The pieces of a pipeline, used on their own or replaced.
//!
//! # Embeddings
//! A prompt can be encoded once and used many times. The text encoder can also be loaded alone, so
//! that the program holds no UNet in memory while it encodes.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! use sd_onnx::{Request, text::ClipSkip};
//!
//! let encoder = sd_onnx::builder().load_prompt_encoder(folder)?;
//! let fox = encoder.encode("a fox", ClipSkip::LAST)?;
//! assert_eq!(fox.embedding.dim(), (1, 77, 64)); // 768 wide in Stable Diffusion 1.x
//!
//! let pipeline = sd_onnx::builder().load(folder)?;
//! let draw = |request: Request| pipeline.generate(&request.steps(2).seed(1));
//! let kept = draw(Request::new(fox.clone()))?;
//! let typed = draw(Request::new("a fox"))?;
//! assert_eq!(kept.image(), typed.image());
//!
//! // Halfway between two prompts.
//! let banana = encoder.encode("a banana", ClipSkip::LAST)?;
//! let half = sd_onnx::slerp(fox.embedding.view(), banana.embedding.view(), 0.5)?;
//! assert_ne!(draw(Request::new(half))?.image(), typed.image());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A program that draws nothing, and only compares or searches texts by CLIP's embeddings, can use
//! [`TextEncoder`](crate::TextEncoder). Its page has an example.
//!
//! # Comparing pictures with texts
//! CLIP was trained to give a text and a picture that it describes similar embeddings.
//! [`ImageEncoder`](crate::ImageEncoder) encodes pictures, so that a program can choose the picture
//! that fits its prompt best, sort pictures by a text, or find similar ones:
//!
//! ```no_run
//! use sd_onnx::{ImageEncoder, Request, TextEncoder, similarity};
//!
//! let prompt = "a fox in the snow";
//! let pipeline = sd_onnx::builder().load("stable-diffusion-v1-5")?;
//! let found = pipeline.generate(&Request::new(prompt).count(8))?;
//!
//! let clip = "clip-vit-large-patch14";
//! let text = TextEncoder::load(clip)?.encode_pooled([prompt])?;
//! let text = text.projected.expect("CLIP's folders have a projection");
//! let pictures = found.pictures.iter().map(|picture| &picture.image);
//! let pictures = ImageEncoder::load(clip)?.encode(pictures)?.projected;
//! let fits = pictures.rows().into_iter().map(|picture| similarity(text.row(0), picture));
//! let best = fits.enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
//! println!("{best:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Both encoders must come from the same CLIP model. The text encoder of Stable Diffusion 1.x is
//! the one of ViT-L/14, but its folder has neither the projection nor the vision model, so the
//! example loads CLIP's own folder. With such models, a text and a picture that fit have a
//! similarity far below 1, so compare similarities with each other rather than with a fixed number.
//!
//! # Textual inversion
//! A textual inversion gives a name to learned vectors, and a prompt uses the vectors by writing
//! the name. [`Builder::embeddings`](crate::Builder::embeddings) loads them from a file or from a
//! folder of files: `.embeddings("EasyNegative.safetensors")`, `.embeddings("embeddings")`.
//!
//! A file may also be a pickle, `.pt` or `.bin`. Pickles are programs, but this library never runs
//! them: it calls nothing in them, and it refuses a pickle that asks for anything but tensors.
//!
//! The name is the name of the file. If the file was written by diffusers, the name stored in it,
//! such as `<cat-toy>`, works as well. A name that is an ordinary word, such as `tree`, replaces
//! this word in every prompt, as in WebUI.
//!
//! The example makes up its vectors instead of loading them:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! use ndarray::Array2;
//! use sd_onnx::text::{ClipSkip, TextualInversion};
//!
//! let width = sd_onnx::builder().load_prompt_encoder(folder)?.width();
//! let mine = TextualInversion::new("my style", Array2::from_elem((2, width), 0.25))?;
//! let encoder = sd_onnx::builder().embedding(mine).load_prompt_encoder(folder)?;
//! let fox = encoder.encode("a fox in My Style", ClipSkip::LAST)?;
//! // Two vectors are two tokens, numbered after CLIP's own.
//! assert_eq!(fox.tokens.ids[4..6], [49408, 49409]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Noise
//! The [`initial_noise`](crate::Picture::initial_noise) of a picture can be kept, changed and
//! passed to another request. This example moves in steps from the picture of one seed to the
//! picture of another. ([`Request::variation`](crate::Request::variation) does the same with two
//! seeds, by WebUI's method.)
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Request, slerp};
//!
//! let request = Request::new("a fox").steps(2);
//! let pictures = pipeline.generate(&request.clone().seed(1).count(2))?.pictures;
//! let [first, second] = [&pictures[0].initial_noise, &pictures[1].initial_noise];
//! let film = [0.0, 0.25, 0.5, 0.75].map(|t| {
//!     let between = slerp(first.view(), second.view(), t)?;
//!     pipeline.generate(&request.clone().initial_noise(between))
//! });
//! let [beginning, ..] = film;
//! assert_eq!(beginning?.image(), &pictures[0].image);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Pictures as latents
//! [`encode_image`](crate::Pipeline::encode_image) and [`decode`](crate::Pipeline::decode) convert
//! between a picture and its latents:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::Request;
//!
//! let fox = pipeline.generate(&Request::new("a fox").seed(1))?;
//! let latents = pipeline.encode_image(fox.image())?.mode();
//! assert_eq!(latents.dim(), (1, 4, 12, 12));
//! let again = pipeline.decode(latents.view())?;
//! let pairs = again.iter().zip(fox.image().iter());
//! let difference: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
//! assert!(difference / (96 * 96 * 3) < 16, "much the same picture");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A custom sampler
//! A type that implements [`Sampler`](crate::schedulers::Sampler) can be given to a request. This
//! one is Euler's method with steps that are a little too long or too short:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use std::ops::ControlFlow;
//! use sd_onnx::{Request, schedulers::{Run, Rungs, Sampler, Step}};
//!
//! #[derive(Debug, PartialEq)]
//! struct Stretched {
//!     factor: f32,
//! }
//!
//! impl Sampler for Stretched {
//!     fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
//!         let mut denoised = vec![0.0; x.len()];
//!         for at in rungs.iter() {
//!             run.denoise(x, at, &mut denoised)?;
//!             let step = self.factor * (rungs.sigmas()[at.index + 1] / at.sigma - 1.0);
//!             x.iter_mut().zip(&denoised).for_each(|(x, d)| *x += (*x - d) * step);
//!             run.step(Step::new(rungs, at.index, x, &denoised))?;
//!         }
//!         ControlFlow::Continue(())
//!     }
//! }
//!
//! let request = Request::new("a fox").steps(4).scheduler(Stretched { factor: 1.02 });
//! let generation = pipeline.generate(&request)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A PNG file records only the `Debug` output of such a sampler. The alternative is to write the
//! loop yourself and to call the model as a plain function D(x; sigma):
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Request, text::ClipSkip};
//! use sd_onnx::schedulers::{
//!     Ladder, NoiseSource, ladders::Conventions, noise::TorchRng, samplers::Euler,
//! };
//!
//! let encode = |text| pipeline.prompt_encoder().encode(text, ClipSkip::LAST);
//! let (prompt, negative) = (encode("a fox")?, encode("")?);
//! let size = pipeline.default_size();
//! let rungs = Ladder::karras().rungs(pipeline.schedule(), 4, &Conventions::default())?;
//! let model = pipeline.guided(size, &prompt, Some(&negative), 7.5)?;
//! let mut model = model.rungs(&rungs);
//!
//! let mut latents = ndarray::Array4::zeros(model.shape());
//! let x = latents.as_slice_mut().unwrap();
//! TorchRng::new(1).fill(x);
//! x.iter_mut().for_each(|x| *x *= rungs.initial_scale());
//! let mut denoised = vec![0.0; x.len()];
//! for at in rungs.iter() {
//!     model.denoise(x, at, &mut denoised)?;
//!     // Euler's method: a straight line to the next noise level.
//!     let next = rungs.sigmas()[at.index + 1];
//!     for (x, denoised) in x.iter_mut().zip(&denoised) {
//!         *x += (*x - denoised) / at.sigma * (next - at.sigma);
//!     }
//! }
//! let picture = pipeline.decode(latents.view())?;
//!
//! let request = Request::new("a fox").scheduler(Euler::default()).ladder(Ladder::karras());
//! let same = pipeline.generate(&request.steps(4).seed(1))?;
//! let close = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
//! assert!(picture.iter().zip(same.image().iter()).all(close));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Custom guidance
//! [`Guide`](crate::Guide) merges the prediction for the prompt with the prediction for the
//! negative prompt. Its page has an example that guides at some noise levels only.
//!
//! A guide receives a description of each call. It can keep values from one call to the next in a
//! memory that belongs to the picture. This guide smooths the direction of the prompt over the
//! steps:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Guide, Request, guidance::{Memory, GuidanceStep}};
//!
//! #[derive(Debug)]
//! struct Smooth { scale: f32 }
//!
//! impl Guide for Smooth {
//!     fn merge(
//!         &self,
//!         conditional: &mut [f32],
//!         unconditional: &[f32],
//!         _: &GuidanceStep<'_>,
//!         memory: &mut Memory,
//!     ) {
//!         // The memory is empty at the first call. Afterwards it keeps its length.
//!         let first = memory.kept.is_empty();
//!         memory.kept.resize(conditional.len(), 0.0);
//!         let pairs = conditional.iter_mut().zip(unconditional);
//!         for ((c, u), direction) in pairs.zip(&mut memory.kept) {
//!             let now = *c - u;
//!             *direction = if first { now } else { 0.5 * (*direction + now) };
//!             *c = u + self.scale * *direction;
//!         }
//!     }
//! }
//!
//! let request = Request::new("a fox").steps(4).seed(1);
//! let plain = pipeline.generate(&request.clone().guidance(7.5))?;
//! let smooth = pipeline.generate(&request.guidance(Smooth { scale: 7.5 }))?;
//! assert_ne!(plain.image(), smooth.image());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Custom networks
//! [`Pipeline::builder`](crate::Pipeline::builder) takes any [`Denoiser`](crate::Denoiser), any
//! [`LatentCodec`](crate::LatentCodec) and any [`PromptEncoder`](crate::text::PromptEncoder), which
//! can contain any [`TextModel`](crate::text::TextModel). The front page of `sd-core` implements
//! all three in forty lines. Such parts can be combined with the parts of a model folder, or can
//! wrap them:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! use std::sync::{Arc, atomic::{AtomicUsize, Ordering::Relaxed}};
//! use sd_onnx::{Call, Denoiser, Inputs, Pipeline, Request};
//! use sd_onnx::{ndarray::ArrayViewMut4, text::BoxError};
//!
//! /// Counts the calls of another denoiser.
//! struct Counted { inner: Arc<dyn Denoiser>, calls: AtomicUsize }
//!
//! impl Denoiser for Counted {
//!     fn inputs(&self) -> &Inputs { self.inner.inputs() }
//!     fn predict(&self, call: &Call<'_>, output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
//!         self.calls.fetch_add(1, Relaxed);
//!         self.inner.predict(call, output)
//!     }
//! }
//!
//! let model = sd_onnx::builder().load(folder)?;
//! let inner = model.denoiser().clone();
//! let counted = Arc::new(Counted { inner, calls: AtomicUsize::new(0) });
//! let pipeline = Pipeline::builder(
//!     model.prompt_encoder().clone(),
//!     counted.clone(),
//!     model.codec().clone(),
//!     model.scheduler_config().clone(),
//! );
//! pipeline.size(64, 64).build()?.generate(&Request::new("a fox").steps(4))?;
//! assert_eq!(counted.calls.load(Relaxed), 8); // guidance calls it twice a step
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
