//! What each parameter does to the picture, with the command that shows it.
//!
//! A picture starts as noise: a small array of random numbers, called *latents*. In each step the
//! model estimates the clean latents from the noisy latents and the prompt, and the sampler moves
//! the latents part of the way towards that estimate. At the end the autoencoder turns the latents
//! into pixels. In Stable Diffusion 1.x, each position in the latents becomes 8 × 8 pixels.
//!
//! A *sampler* is the rule that computes each step of a run. A *scheduler* is a sampler as a
//! request names it, alone or with its options. A *ladder* is the list of noise levels, or
//! *sigmas*, that the steps of a run go through.
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
//! The defaults of steps, guidance, scheduler and ladder in this table apply to Stable
//! Diffusion 1.x. Other models have other defaults, listed in
//! [`Builder::load`](crate::Builder::load). [`Pipeline::defaults`](crate::Pipeline::defaults)
//! returns the defaults of a loaded model.
//!
//! # Sheets of pictures
//! The sections below name sheets in `examples/pictures` of the repository. A sheet shows how one
//! or two parameters change the pictures. The commands make the sheets again, in the current
//! folder, when they run in the repository.
//!
//! The small model of the project drew them. Its own size is 96 × 96 pixels. The own size of Stable
//! Diffusion 1.x is 512 × 512. With `--model PATH`, the examples `grid` and `steps` make the same
//! sheet with another model.
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
//! `seed-size.png` shows six seeds at five sizes: one fox in each square, wide or tall picture near
//! the model's own size, two to four foxes in the large ones, and part of a fox or none in the
//! small ones.
//!
//! ```sh
//! cargo run --release --example grid -- "a fox" --x seed=1,2,3,4,5,6 --y size=64x64,96x96,128x96,96x128,192x192 --output seed-size.png
//! ```
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
//! | the seed is from | [`NoiseKind`](crate::schedulers::noise::NoiseKind) |
//! |---|---|
//! | diffusers with a generator on the CPU, ComfyUI, WebUI's "CPU" | `Torch`, the default |
//! | WebUI's "NV" | `Philox` |
//! | diffusers with a generator on a CUDA device, WebUI's "GPU" (its default) | `Cuda` |
//! | diffusers' old ONNX pipelines | `Numpy` |
//!
//! `Cuda` needs the number of threads that the graphics card holds, which
//! [`cuda_threads`](crate::schedulers::noise::cuda_threads) looks up by the name of the card.
//!
//! Ancestral samplers and SDE samplers add more noise during the run. Ancestral samplers draw it
//! from the generator of the seed, or from a fresh generator of the seed plus
//! [`ensd`](crate::Request::ensd). SDE samplers take it from a random path over the noise levels.
//! This path is the same for any number of steps.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Request, schedulers::noise::{NoiseKind, Variation}};
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
//! `one-run.png` shows one run of ten steps. The upper row shows the model's estimate of the clean
//! picture in each step. The lower row shows the noisy latents after the step, as a picture. The
//! labels show sigma before and after the step.
//!
//! ```sh
//! cargo run --release --example steps -- "a fox" --seed 1 --steps 10 --output one-run.png
//! ```
//!
//! `steps.png` shows three samplers with 1 to 150 steps. With one or two steps the fox is a blur,
//! and with five DPM++ 2M still fails. From about 15 steps on the picture is finished, and 50 or
//! 150 steps only take longer. With Euler a, every number of steps is another picture.
//!
//! ```sh
//! cargo run --release --example grid -- "a fox" --seed 1 --x steps=1,2,5,10,15,20,30,50,150 --y scheduler=euler,dpmpp-2m,euler-a --output steps.png
//! ```
//!
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
//! `guidance.png` shows scales from 1 to 100. The colours burn at 15 and the picture breaks at 30.
//! 50 steps instead of 20 do not repair it.
//!
//! ```sh
//! cargo run --release --example grid -- "a fox" --seed 1 --x guidance=1,2,4,7.5,15,30,100 --y steps=20,50 --output guidance.png
//! ```
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
//! With the samplers of CFG++, such as [`EulerCfgPp`](crate::schedulers::samplers::EulerCfgPp), the
//! scale has another meaning. Its range is `0.0..=1.0`, and 0.6 corresponds to 7.5 with other
//! samplers.
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
//! `clip-skip.png` shows all four layers of the small model's text encoder. In training, this model
//! also saw layer 2, so 1 and 2 give almost the same pictures. At 3 little changes. Layer 4, the
//! first of the text encoder, understands less of the prompt: backgrounds change, and the rocket
//! turns gray.
//!
//! ```sh
//! cargo run --release --example grid -- --seed 1 --x "prompt=a fox|a cat|strawberry on white|small rocket on a blue background|a pizza" --y clip-skip=1,2,3,4 --output clip-skip.png
//! ```
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
//! # Prompt
//! The [chapter on prompts](super::prompts) describes the language of prompts. The example `tokens`
//! shows how a prompt is read, token by token:
//!
//! ```sh
//! cargo run --release --example tokens -- "a (fox:1.2), [snow:0.5]"
//! ```
//!
//! The option `--embeddings` of the examples loads [textual
//! inversions](super::pieces#textual-inversion), which a prompt uses by their names. The option
//! `--lora` merges [LoRAs](super::files#loras) into the model, and `--loras` lets prompts call
//! them.
//!
//! `prompts.png` shows a fox and an owl alone, one after the other in a run (`[fox:owl:0.5]`), in
//! turns (`[fox|owl]`), and combined (`AND`). The predictions of combined parts are added. A blue
//! background with nothing on it therefore outweighs the fox, unless its weight is a half.
//!
//! ```sh
//! cargo run --release --example grid -- --x "prompt=a fox|an owl|a [fox:owl:0.5]|a [fox:owl:0.2]|a [fox|owl]|a fox AND a blue background :0.5|a fox AND a blue background|a fox AND an owl" --y seed=1,2,3 --output prompts.png
//! ```
//!
//! `weights.png` shows [weights](super::prompts#weights) from 0.25 to 1.5. The small model was
//! trained for weights on the colours of backgrounds, which make a colour pale or deep. Weights far
//! from 1 cost sharpness.
//!
//! ```sh
//! cargo run --release --example grid -- --x "prompt=a fox, (blue:0.25) background|a fox, (blue:0.5) background|a fox, blue background|a fox, (blue:1.5) background|(blue:0.5) background|(blue:1.5) background|a fox on (red:0.5)|a fox on red|a fox on (red:1.5)" --y seed=1,2,3 --output weights.png
//! ```
//!
//! # Scheduler and ladder
//! A request chooses the scheduler and the ladder separately. Any scheduler runs on any ladder,
//! with a few exceptions: DDIM as in diffusers, for instance, can only use noise levels that the
//! model was trained on, and Karras' ladder has others. The [chapter on sampling](super::sampling)
//! describes both. [The table of samplers](crate::schedulers::samplers#the-table) has the paper of
//! each sampler, its cost, and its names in diffusers, WebUI and ComfyUI.
//!
//! [`from_config`](crate::schedulers::from_config) returns the sampler and the ladder of a model's
//! `scheduler_config.json`. [`from_webui`](crate::schedulers::from_webui) returns both for a name
//! such as `DPM++ 2M Karras`.
//!
//! `ladders.png` shows the noise levels of all named ladders in 20 steps, Karras' in black. Below
//! them, it shows eight numbers on their way from noise, with DPM++ 2M on Karras' ladder.
//!
//! ```sh
//! cargo run --release --example schedulers -- --scheduler dpmpp-2m --ladder karras --plot ladders.png
//! ```
//!
//! `schedulers-1.png` to `schedulers-3.png` show every sampler at a guidance scale of 0.6 and of
//! 7.5. The last three are the samplers of CFG++, whose scale is at most 1, and which burn at 7.5.
//! `cargo run --release --example schedulers -- --list` lists the names.
//!
//! ```sh
//! cargo run --release --example grid -- "a fox" --seed 1 --x scheduler=euler,euler-a,heun,dpm2,dpm2-a,lms,ddim,ddpm,pndm,plms,ipndm,ipndm-v,deis,deis-tab --y guidance=0.6,7.5 --output schedulers-1.png
//! cargo run --release --example grid -- "a fox" --seed 1 --x scheduler=dpm-solver-1m,dpm-solver-2m,dpm-solver-3m,dpm-solver-2s,dpm-solver-3s,dpmpp-2m,dpmpp-3m,dpmpp-2s,dpmpp-3s,dpmpp-2s-a,dpmpp-sde,dpmpp-2m-sde,dpmpp-2m-sde-heun,dpmpp-3m-sde --y guidance=0.6,7.5 --output schedulers-2.png
//! cargo run --release --example grid -- "a fox" --seed 1 --x scheduler=dpm-fast,dpm-adaptive,unipc,sa-solver,sa-solver-pece,lcm,tcd,er-sde,res-2m,gradient-estimation,restart,euler-cfg-pp,euler-a-cfg-pp,ddim-cfg-pp --y guidance=0.6,7.5 --output schedulers-3.png
//! ```
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
//! [`DpmPlusPlus2M`]: crate::schedulers::samplers::DpmPlusPlus2M
//! [`Heun`]: crate::schedulers::samplers::Heun
//! [`Euler`]: crate::schedulers::samplers::Euler
//! [`EulerAncestral`]: crate::schedulers::samplers::EulerAncestral
//! [`DpmFast`]: crate::schedulers::samplers::DpmFast
//! [`DpmAdaptive`]: crate::schedulers::samplers::DpmAdaptive
