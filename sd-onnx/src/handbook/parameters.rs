//! What each parameter does to the picture. The README shows all of this in pictures.
//!
//! A picture begins as noise, a small array of random numbers called *latents*. At each step the model guesses, from the
//! noisy latents and the prompt, what the clean ones are, and the sampler goes a part of the way there. At the end the
//! autoencoder turns the latents into pixels, 8 × 8 of them for each place in Stable Diffusion 1.x.
//!
//! | parameter | default | useful | too little | too much |
//! |---|---|---|---|---|
//! | [`steps`](crate::Request::steps) | 20 | 15 to 30 | blurred, unfinished | nothing is gained; ancestral samplers draw another picture for every number |
//! | [`guidance`](crate::Request::guidance) | 7.5 | 4 to 10 | the prompt is half ignored | burnt colours, hard contrasts, then debris |
//! | [`seed`](crate::Request::seed) | random | any | | |
//! | [`variation`](crate::Request::variation) | none | 0.05 to 0.3 | the seed's picture | the other seed's picture |
//! | [`noise`](crate::Request::noise) | torch's, on a CPU | another program's | | |
//! | [`size`](crate::Request::size) | the model's | near the model's | mush: the model never saw so small a picture | the subject is repeated, for the model draws several pictures side by side |
//! | [`clip_skip`](crate::Request::clip_skip) | the model's own | 1 or 2 | | the prompt is read too superficially: another picture |
//! | [`scheduler`](crate::Request::scheduler) | DPM++ 2M | | | |
//! | [`ladder`](crate::Request::ladder) | the scheduler's | | | |
//!
//! The defaults of steps, guidance, scheduler and ladder here are those of Stable Diffusion 1.x.
//! Other models want others, and get them: [`Builder::load`](crate::Builder::load) has the
//! table. [`Pipeline::defaults`](crate::Pipeline::defaults) returns those of a loaded model.
//!
//! # Seed and size
//! They decide the noise, unless one of the following is set. The same seed at the same size begins as the same noise whatever the prompt, model, steps
//! or scheduler, which is why neighbouring settings give pictures that look alike. At another size it is another noise, and
//! so another picture, unless [`seed_resize`](crate::Request::seed_resize) says which size's composition to keep.
//!
//! A [`variation`](crate::Request::variation) mixes the noise of another seed in. A little of it changes details and keeps the
//! picture, which is the way to look around in the neighbourhood of a good one.
//!
//! # Noise
//! Whose noise a seed stands for is [`noise`](crate::Request::noise). A seed from another program means the same picture only with
//! that program's generator:
//!
//! | seeds of | [`NoiseKind`](crate::schedulers::NoiseKind) |
//! |---|---|
//! | diffusers with a generator on the CPU, ComfyUI, WebUI with "CPU" | `Torch`, the default |
//! | WebUI with "NV" | `Philox` |
//! | diffusers with a generator on a CUDA device, WebUI with "GPU" (its default) | `Cuda`, which needs to know the card |
//! | diffusers' old ONNX pipelines | `Numpy` |
//!
//! Ancestral samplers and the "SDE" ones draw more noise on the way: the former from the seed's generator (or that of the seed and an offset,
//! [`ensd`](crate::Request::ensd)), the latter along a path of noise that is the same for any number of steps.
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
//! let far = |i: usize| (&pictures[i].initial_noise - &pictures[0].initial_noise).mapv(|d| d * d).sum();
//! assert!(far(1) < 0.1 * far(2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Steps
//! More steps follow the same path in smaller strides. Samplers of second order ([`DpmPlusPlus2M`](crate::schedulers::DpmPlusPlus2M),
//! [`Heun`](crate::schedulers::Heun)) are as near to its end after 20 steps as [`Euler`](crate::schedulers::Euler) is after
//! many more; from then on only time is spent. [`EulerAncestral`](crate::schedulers::EulerAncestral) adds fresh noise in
//! every step, so its path has no end to come near to: 30 steps draw another picture than 20.
//!
//! A few samplers call the model more than once a step ([`Heun`](crate::schedulers::Heun) twice), and a few make steps of their own:
//! [`DpmFast`](crate::schedulers::DpmFast) one for every three, and [`DpmAdaptive`](crate::schedulers::DpmAdaptive) as many as it finds
//! it needs, whatever the number asked for. What an observer is told counts those.
//!
//! # Guidance
//! At each step the model is asked twice: for the prompt, and for the negative prompt (the empty one, if none is given). The
//! guidance scale, also called CFG, says how far to go from the second answer in the direction of the first, and beyond it:
//! 1 is the first answer itself, 7.5 goes seven and a half times as far. See [`guide`](crate::guide()). At 1 and below only the prompt is
//! asked for, which takes half the time. A large scale pushes the latents out of the range that the autoencoder knows:
//! colours saturate, edges harden, in the end it is debris, and
//! [`GenerateError::NotFinite`](crate::GenerateError::NotFinite) when numbers run out.
//!
//! There is more than the scale to guidance: [`ClassifierFree`](crate::ClassifierFree) has what helps against burnt colours at large scales
//! ([rescaling](crate::ClassifierFree::rescale), [adaptive projection](crate::guidance::Apg),
//! [thresholds](crate::ClassifierFree::threshold)), [CFG-Zero*](crate::guidance::ZeroStar) for flow models, and the
//! [interval](crate::ClassifierFree::interval) of steps in which there is guidance at all. Outside of it a step costs half: without guidance in
//! the last fifth, where it changes next to nothing, a picture is done in nine tenths of the time.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{ClassifierFree, Request};
//!
//! let request = Request::new("a fox").steps(5).seed(1);
//! let strong = pipeline.generate(&request.clone().guidance(15.0))?;
//! let guidance = ClassifierFree { rescale: 0.7, interval: [0.0, 0.8], ..ClassifierFree::from(15.0) };
//! let tamed = pipeline.generate(&request.guidance(guidance))?;
//! assert_ne!(strong.image(), tamed.image());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Under the samplers of CFG++ ([`EulerCfgPp`](crate::schedulers::EulerCfgPp)) the scale means something else: 0 to 1, 0.6 where it would be
//! 7.5 elsewhere.
//!
//! # Clip skip
//! The text model reads the prompt in layers (12 in Stable Diffusion 1.x), each working on what the
//! one before made of it. Clip skip takes the result of an earlier layer: 1 is the last, 2 the one
//! before. **It skips layers of the text model, not steps of the noise**, and costs and saves next
//! to nothing. Models that were trained on the second to last layer (many of those for anime) want
//! 2; all others were trained on 1, and 2 gives them a reading that is a little off. SDXL has [a
//! rule of its own](super::families#clip-skip).
//!
//! The setting applies to the prompt and to the negative prompt, as in WebUI. diffusers numbers the
//! layers from 0 (its 1 is 2 here) and applies `clip_skip` to the prompt only: its negative prompt
//! always comes from the last layer. A picture drawn by diffusers with a `clip_skip` therefore
//! differs from the picture with the same settings here, unless each prompt is encoded with its own
//! layer:
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
//! The scheduler (in the papers: the sampler) is the rule by which a step is made; the ladder is the list of noise levels that
//! the steps go through. They are chosen apart from each other; only some, DDIM as diffusers has it among them, can't leave the
//! levels that the model was trained on, as Karras' do. They have [a chapter of their own](super::sampling).
