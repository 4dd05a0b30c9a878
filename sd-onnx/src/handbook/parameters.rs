//! What each parameter does to the picture. The README shows the effects in pictures.
//!
//! A picture starts as noise: a small array of random numbers, called *latents*. In each step the
//! model estimates the clean latents from the noisy latents and the prompt, and the sampler moves
//! the latents part of the way towards that estimate. At the end the autoencoder turns the latents
//! into pixels. In Stable Diffusion 1.x, each position in the latents becomes 8 × 8 pixels.
//!
//! | parameter | default | useful | too low | too high |
//! |---|---|---|---|---|
//! | [`steps`] | 20 | 15 to 30 | a blurred, unfinished picture | [no gain](#steps) |
//! | [`guidance`] | 7.5 | 4 to 10 | the prompt is half ignored | [burnt colours](#guidance) |
//! | [`seed`] | random | any | | |
//! | [`variation`] | none | 0.05 to 0.3 | the seed's picture | the other seed's picture |
//! | [`noise`] | `Torch` | [any](#noise) | | |
//! | [`size`] | the model's | near the default | mush | the subject is repeated |
//! | [`clip_skip`] | the model's | 1 or 2 | | [another picture](#clip-skip) |
//! | [`scheduler`] | DPM++ 2M | any | | |
//! | [`ladder`] | the scheduler's | any | | |
//!
//! The defaults of steps, guidance, scheduler and ladder in this table are those of Stable
//! Diffusion 1.x. Other models have other defaults, listed in
//! [`Builder::load`](crate::Builder::load). [`Pipeline::defaults`](crate::Pipeline::defaults)
//! returns the defaults of a loaded model.
//!
//! # Seed and size
//! Together, the seed and the size decide the noise that a picture starts from, unless the request
//! sets one of the options below. The prompt, the model, the number of steps and the scheduler do
//! not change that noise. For this reason neighbouring settings with the same seed give similar
//! pictures.
//!
//! A size far from the model's own gives bad pictures. The model never saw such small pictures in
//! training, and it fills a picture that is too large with several copies of the subject.
//!
//! The same seed at another size is different noise, and so a different picture. [`seed_resize`]
//! keeps the composition that the seed has at the size given there.
//!
//! A [`variation`] mixes the noise of a second seed into the first. A small share changes details
//! and keeps the picture, which is a way to explore the neighbourhood of a good picture.
//!
//! # Noise
//! [`noise`] selects the random number generator that turns a seed into noise. A seed from another
//! program gives the same noise only with the generator of that program:
//!
//! | the seed is from | [`NoiseKind`](crate::schedulers::NoiseKind) |
//! |---|---|
//! | diffusers with a generator on the CPU, ComfyUI, WebUI's "CPU" | `Torch`, the default |
//! | WebUI's "NV" | `Philox` |
//! | diffusers with a generator on a CUDA device, WebUI's "GPU" (its default) | `Cuda` |
//! | diffusers' old ONNX pipelines | `Numpy` |
//!
//! `Cuda` needs the number of threads that the graphics card holds, which
//! [`cuda_threads`](crate::schedulers::cuda_threads) looks up by the name of the card.
//!
//! Ancestral samplers and SDE samplers add more noise during the run. Ancestral samplers draw it
//! from the generator of the seed, or from a fresh generator of the seed plus
//! [`ensd`](crate::Request::ensd). SDE samplers take it from a random path over the noise levels.
//! This path is the same for any number of steps.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Request, schedulers::{NoiseKind, Variation}};
//!
//! let fox = Request::new("a fox").steps(4).seed(1);
//! let near = fox.clone().variation(Variation { seed: 2, strength: 0.1, ..Variation::default() });
//! let of_webui = fox.clone().noise(NoiseKind::Philox);
//! let pictures = pipeline.generate_all(&[fox, near, of_webui])?.pictures;
//! let noise = |i: usize| &pictures[i].initial_noise;
//! let far = |i: usize| (noise(i) - noise(0)).mapv(|d| d * d).sum();
//! assert!(far(1) < 0.1 * far(2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Steps
//! More steps follow the same path in smaller strides. Samplers of second order, such as
//! [`DpmPlusPlus2M`] and [`Heun`], are as close to the end of the path after 20 steps as [`Euler`]
//! is after many more. Further steps only cost time.
//!
//! [`EulerAncestral`] and the other ancestral samplers add fresh noise in every step, so their path
//! has no fixed end: 30 steps draw a different picture from 20.
//!
//! Some samplers call the model more than once a step; [`Heun`] calls it twice. Others choose their
//! own steps: [`DpmFast`] makes about one step for every three that the request asks for, and
//! [`DpmAdaptive`] makes as many as its tolerance needs, whatever the request says. The steps that
//! an observer receives are the sampler's own.
//!
//! # Guidance
//! In each step the model is called twice: for the prompt, and for the negative prompt, which is
//! empty if the request has none. The guidance scale, also called CFG, sets how far to move from
//! the second prediction towards the first, and beyond it. A scale of 1 is the first prediction
//! itself, and 7.5 moves seven and a half times as far. [`guide`](crate::guide()) has the formula.
//! At 1 and below, the model is called for the prompt only, which takes half the time.
//!
//! A large scale pushes the latents out of the range that the autoencoder was trained on. First the
//! colours saturate and the contrasts harden, and then the picture falls apart into debris. If the
//! latents or the pixels contain NaN or infinity in the end, the result is
//! [`GenerateError::NotFinite`](crate::GenerateError::NotFinite).
//!
//! [`ClassifierFree`](crate::ClassifierFree) has more options than the scale:
//!
//! - [rescaling](crate::ClassifierFree::rescale), [adaptive projection](crate::guidance::Apg) and
//!   [thresholds](crate::ClassifierFree::threshold) counter burnt colours at large scales;
//! - [CFG-Zero*](crate::guidance::ZeroStar) is for flow models;
//! - the [interval](crate::ClassifierFree::interval) selects the steps that are guided. A step
//!   without guidance takes half the time. In the last fifth of the steps guidance changes very
//!   little; without it there, a picture takes nine tenths of the time.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{ClassifierFree, Request};
//!
//! let request = Request::new("a fox").steps(5).seed(1);
//! let strong = pipeline.generate(&request.clone().guidance(15.0))?;
//! let plain = ClassifierFree::from(15.0);
//! let guidance = ClassifierFree { rescale: 0.7, interval: [0.0, 0.8], ..plain };
//! let tamed = pipeline.generate(&request.guidance(guidance))?;
//! assert_ne!(strong.image(), tamed.image());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With the samplers of CFG++, such as [`EulerCfgPp`](crate::schedulers::EulerCfgPp), the scale has
//! another meaning. Its range is `0.0..=1.0`, and 0.6 corresponds to 7.5 with other samplers.
//!
//! # Clip skip
//! The text model processes the prompt in layers, 12 of them in Stable Diffusion 1.x. Each layer
//! works on the output of the layer before. Clip skip selects the layer whose output is used: 1 is
//! the last layer, 2 is the layer before it. **It skips layers of the text model, not denoising
//! steps**, and has almost no effect on the time.
//!
//! Use the layer that the model was trained with. Many anime models were trained with 2. All others
//! were trained with 1 and misread the prompt slightly with 2. A higher number makes the reading
//! more superficial, until the picture is a different one. SDXL has
//! [its own rule](super::families#clip-skip).
//!
//! The setting applies to the prompt and to the negative prompt, as in WebUI. diffusers numbers the
//! layers from 0, so its 1 is 2 here, and it applies `clip_skip` to the prompt only. Its negative
//! prompt always uses the last layer. The same settings therefore give a different picture in
//! diffusers, unless each prompt is encoded with its own layer here:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Request, text::ClipSkip};
//!
//! let encoder = pipeline.prompt_encoder();
//! let prompt = encoder.encode("a fox", ClipSkip::from_diffusers(Some(1)))?;
//! let negative = encoder.encode("a pizza", ClipSkip::LAST)?;
//! let request = Request::new(prompt).steps(2).seed(1);
//! let as_diffusers = pipeline.generate(&request.negative(negative))?;
//!
//! let request = Request::new("a fox").negative("a pizza").steps(2).seed(1);
//! let as_webui = pipeline.generate(&request.clip_skip(2))?;
//! assert_ne!(as_diffusers.image(), as_webui.image());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Scheduler and ladder
//! The scheduler (*sampler* in the papers) is the rule for one step. The ladder is the list of
//! noise levels that the steps go through. Any scheduler runs on any ladder, with a few exceptions:
//! DDIM as in diffusers, for instance, can only use noise levels that the model was trained on, and
//! Karras' ladder has others. The [chapter on sampling](super::sampling) describes both.
//!
//! [`steps`]: crate::Request::steps
//! [`guidance`]: crate::Request::guidance
//! [`seed`]: crate::Request::seed
//! [`variation`]: crate::Request::variation
//! [`noise`]: crate::Request::noise
//! [`size`]: crate::Request::size
//! [`seed_resize`]: crate::Request::seed_resize
//! [`clip_skip`]: crate::Request::clip_skip
//! [`scheduler`]: crate::Request::scheduler
//! [`ladder`]: crate::Request::ladder
//! [`DpmPlusPlus2M`]: crate::schedulers::DpmPlusPlus2M
//! [`Heun`]: crate::schedulers::Heun
//! [`Euler`]: crate::schedulers::Euler
//! [`EulerAncestral`]: crate::schedulers::EulerAncestral
//! [`DpmFast`]: crate::schedulers::DpmFast
//! [`DpmAdaptive`]: crate::schedulers::DpmAdaptive
