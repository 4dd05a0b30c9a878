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
//! FIGURES
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
