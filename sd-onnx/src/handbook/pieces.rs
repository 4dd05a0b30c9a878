//! The pieces of a pipeline, used by themselves or replaced.
//!
//! # Embeddings
//! A prompt is encoded once and kept. The text encoder can be loaded alone, so that a program holds no UNet for it.
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
//! // Between two prompts: half fox, half banana.
//! let banana = encoder.encode("a banana", ClipSkip::LAST)?;
//! let half = sd_onnx::slerp(fox.embedding.view(), banana.embedding.view(), 0.5)?;
//! assert_ne!(draw(Request::new(half))?.image(), typed.image());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Programs that draw nothing, and only want CLIP's embeddings of texts to compare or to search by, take
//! [`TextEncoder`](crate::TextEncoder): its page has the example.
//!
//! # Textual inversion
//! Learned vectors take the place of a name in prompts. As a rule they come in a file, or a folder
//! full of them: `.embeddings("EasyNegative.safetensors")`, `.embeddings("embeddings")`. The
//! pickles `.pt` and `.bin` are read too, but never run: nothing in them is called, and one that
//! asks for anything but tensors is refused. A prompt calls them by the name of the file, and also
//! by the name that diffusers gave them within it (`<cat-toy>`). A name that is an ordinary word,
//! such as `tree`, takes the place of the word in every prompt, as in WebUI. Here they are made up.
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
//! assert_eq!(fox.tokens.ids[4..6], [49408, 49409]); // two vectors, two tokens behind CLIP's own
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Noise
//! A picture's [`initial_noise`](crate::Picture::initial_noise) can be kept, changed and given to another request: here to go from one
//! seed's picture to another's, all values together. ([`Request::variation`](crate::Request::variation) does so by two seeds alone, as WebUI
//! does it.)
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
//! # A sampler of one's own
//! As an `impl` of [`Sampler`](crate::schedulers::Sampler) it goes into a request
//! ([its crate's front page](crate::schedulers) has one in ten lines). Or write the loop yourself, and call the model as a plain function
//! D(x; sigma):
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Request, text::ClipSkip};
//! use sd_onnx::schedulers::{Conventions, Euler, Ladder, NoiseSource, TorchRng};
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
//! # Guidance of one's own
//! [`Guide`](crate::Guide) merges the two predictions; its page has guidance on an interval of noise levels. It is told what the call is
//! about, and keeps what it wants to know at the next call in a memory that belongs to the picture. This one smooths the direction of the
//! prompt over the steps:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Guide, Request, guidance::{Memory, Moment}};
//!
//! #[derive(Debug)]
//! struct Smooth { scale: f32 }
//!
//! impl Guide for Smooth {
//!     fn merge(&self, conditional: &mut [f32], unconditional: &[f32], _: &Moment<'_>, memory: &mut Memory) {
//!         // Empty before the first call, and then as long as it was left.
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
//! # Networks of one's own
//! [`Pipeline::builder`](crate::Pipeline::builder) takes any [`Denoiser`](crate::Denoiser), [`LatentCodec`](crate::LatentCodec) and, in a
//! [`PromptEncoder`](crate::text::PromptEncoder), any [`TextModel`](crate::text::TextModel): the front page of `sd-core` has all three in forty
//! lines. They can be mixed with parts of a model folder, or wrap them:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! use std::sync::{Arc, atomic::{AtomicUsize, Ordering::Relaxed}};
//! use sd_onnx::{Call, Denoiser, Inputs, Pipeline, Request, ndarray::ArrayViewMut4, text::BoxError};
//!
//! /// Counts the calls of another.
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
//! assert_eq!(counted.calls.load(Relaxed), 8); // twice a step, for guidance
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
