//! Faster runs, whose pictures change a little.
//!
//! Nearly all the time of a run goes into calls of the network. A *shortcut* leaves out some of
//! them, or a part of their work. Each one trades exactness for speed, so all of them are off by
//! default.
//!
//! ```no_run
//! use sd_onnx::{Request, Shortcuts};
//!
//! # let pipeline = sd_onnx::builder().load("stable-diffusion-v1-5")?;
//! let request = Request::new("a fox in the snow").steps(50).shortcuts(Shortcuts::FAST);
//! let generation = pipeline.generate(&request)?;
//! let calls = generation.pictures[0].timings.calls;
//! println!("{} of {} calls of the network", calls.full + calls.shallow, calls.total());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! In the examples, the option is `--shortcuts fast`, or an object in JSON, as in
//! `--shortcuts '{"skip": {"forecast": {"window": 3}}}'`.
//!
//! # Methods
//! [`Request::shortcuts`](crate::Request::shortcuts) is a preset, or a combination of one method
//! that skips calls with the two options below the table.
//!
//! | [`Skip`](crate::shortcuts::Skip) | what it does | needs |
//! |---|---|---|
//! | [`Forecast`](crate::shortcuts::Forecast) | Spectrum: computes some of the steps, and forecasts the network's output for the others by a polynomial fit of all earlier outputs | nothing |
//! | [`Stability`](crate::shortcuts::Stability) | SADA: uses the last output again where the run is stable, which each picture decides for itself | a model of a diffusion process |
//! | [`Deep`](crate::shortcuts::Deep) | DeepCache: computes only the outer layers of the UNet in most steps | a UNet that can be cut |
//!
//! - [`guidance`](crate::Shortcuts::guidance), adaptive guidance: once the predictions for the
//!   prompt and the negative prompt are as similar as this, the rest of the run leaves the negative
//!   prompt out. At the usual scales this changes the picture strongly, because even small
//!   differences of the predictions are multiplied by the scale.
//! - [`merge_tokens`](crate::Shortcuts::merge_tokens), token merging: the share of tokens that the
//!   largest self-attention merges. It pays off for large pictures.
//!
//! Before a shortcut, consider a run of fewer steps: that is the simplest shortcut, and it has a
//! row in the tables below.
//!
//! # What they cost
//! These figures are from the small model of the examples, with the first prompts of its evaluation
//! (48 prompts for DPM++ 2M at 20 steps, 32 for the others), on a CPU that was busy with other
//! work. The PSNR compares a picture with the picture without shortcuts, of the same seed and
//! number of steps. The column *thing* is how often the picture shows the right thing. One picture
//! is 2 or 3 percent. The network calls are for the prompt and the negative prompt together.
//!
//! | sampler, steps | shortcuts | network calls | time | PSNR, mean | PSNR, worst | thing |
//! |---|---|---|---|---|---|---|
//! | DPM++ 2M Karras, 20 | none | 40.0 | 1.00 | – | – | 100.0 % |
//! | | `fast` | 24.0 | 0.61 | 26.9 dB | 13.9 dB | 100.0 % |
//! | | `faster` | 20.0 | 0.53 | 19.6 dB | 13.2 dB | 100.0 % |
//! | | `{"skip": {"stability": {}}}` | 20.8 | 0.53 | 23.1 dB | 14.9 dB | 97.9 % |
//! | | `{"skip": {"forecast": {}}}` | 20.0 | 0.52 | 16.8 dB | 11.5 dB | 75.0 % |
//! | | none, 12 steps | 24.0 | 0.60 | 21.9 dB | 13.4 dB | 95.8 % |
//! | DPM++ 2M Karras, 50 | none | 100.0 | 1.00 | – | – | 100.0 % |
//! | | `fast` | 54.0 | 0.52 | 30.9 dB | 15.8 dB | 100.0 % |
//! | | `faster` | 40.0 | 0.37 | 27.2 dB | 14.8 dB | 96.9 % |
//! | | `{"skip": {"stability": {}}}` | 56.0 | 0.49 | 37.0 dB | 28.0 dB | 100.0 % |
//! | | `{"skip": {"forecast": {}}}` | 30.0 | 0.29 | 24.2 dB | 17.3 dB | 96.9 % |
//! | | none, 30 steps | 60.0 | 0.57 | 50.8 dB | 38.2 dB | 100.0 % |
//! | | none, 20 steps | 40.0 | 0.36 | 34.5 dB | 24.7 dB | 100.0 % |
//! | Euler Karras, 20 | none | 40.0 | 1.00 | – | – | 100.0 % |
//! | | `fast` | 24.0 | 0.53 | 27.6 dB | 18.8 dB | 96.9 % |
//! | | `faster` | 20.0 | 0.51 | 20.6 dB | 16.1 dB | 100.0 % |
//! | | `{"skip": {"stability": {}}}` | 27.6 | 0.61 | 34.6 dB | 22.0 dB | 100.0 % |
//! | | none, 12 steps | 24.0 | 0.59 | 34.0 dB | 18.9 dB | 100.0 % |
//!
//! For this model, forecasts pay off at 20 steps of DPM++ 2M, where they keep the picture better
//! than fewer steps do. A run of 50 steps, or one of Euler, keeps the picture better with fewer
//! steps. The presets give less weight to single outputs
//! ([`ridge`](crate::shortcuts::Forecast::ridge) 1) than the authors' options, and compute the
//! remaining steps at equal distances.
//!
//! `cargo run --release --example evaluate -- --shortcuts fast --fewer 0.6 --steps 20` measures
//! such rows.
//!
//! # What is refused
//! A shortcut that cannot be taken is an error that names the reason:
//!
//! - Methods that skip calls need a sampler of an ODE that calls the model once in each step. They
//!   refuse samplers that add noise between steps (ancestral and SDE samplers, DDPM, LCM, TCD,
//!   Restart, and others with `eta` or `s_churn` above 0), because earlier outputs say little about
//!   the next one after new noise. They also refuse samplers with more than one call in a step
//!   (Heun, DPM2, PNDM, PLMS) and DPM adaptive. 22 of the 42 samplers remain.
//! - [`Stability`](crate::shortcuts::Stability) refuses the CFG++ samplers, flow models and EDM
//!   models.
//! - [`Deep`](crate::shortcuts::Deep) refuses [windows](crate::Request::tiles), and networks that
//!   cannot be cut.
//! - [`guidance`](crate::Shortcuts::guidance) refuses the CFG++ samplers, which use the negative
//!   prompt in every step.
//! - [`merge_tokens`](crate::Shortcuts::merge_tokens) refuses networks that cannot merge tokens.
//!
//! # How they work together with other options
//! - Where the prompt changes (`[fox:cat:0.5]`), a LoRA's weight changes, or a control begins or
//!   ends to act, the method starts again with its first, computed steps. A prompt that alternates
//!   (`[fox|cat]`) therefore computes every step.
//! - A refiner starts again, too, and so does a [second pass](crate::Request::hires).
//! - Runs that start from a picture work; their positions count from their own first step.
//! - Pictures share a batch only if their shortcuts are equal, and never with
//!   [`Stability`](crate::shortcuts::Stability).
//! - Each prompt of a run (between `AND`s, the negative prompt, and the third prompt of
//!   instruct-pix2pix) has forecasts of its own.
//!
//! # What a run reports
//! [`StepInfo::calls`](crate::StepInfo::calls) counts the calls of a step, and
//! [`Timings::calls`](crate::Timings::calls) the calls of a picture: how many computed everything,
//! how many reused deep features, how many outputs were forecast, and how many negative prompts were
//! left out. The infotext of a picture has `SD shortcuts`, which reproduces the picture, and
//! `SD network calls`, such as `24 of 40`.
