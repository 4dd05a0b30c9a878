//! Faster runs, whose pictures change a little.
//!
//! Nearly all the time of a run goes into calls of the UNet, which this chapter calls the network.
//! A *shortcut* leaves out some of these calls, or a part of their work. Each shortcut trades
//! exactness for speed, so all of them are off by default.
//!
//! ```no_run
//! use sd_onnx::{Request, Shortcuts};
//!
//! # let pipeline = sd_onnx::builder().load("stable-diffusion-v1-5")?;
//! let request = Request::new("a fox in the snow").steps(50).shortcuts(Shortcuts::FAST);
//! let generation = pipeline.generate(&request)?;
//! let calls = generation.pictures[0].timings.calls;
//! println!("{} of {} calls were made", calls.full + calls.shallow, calls.total());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! In the examples, the option is `--shortcuts fast`, or an object in JSON, as in
//! `--shortcuts '{"skip": {"forecast": {"window": 3}}}'`.
//!
//! # Presets
//! Both presets forecast the network's output in some steps. They compute the first four steps, the
//! last one, and some of the steps between. The time of a run falls about as the number of computed
//! steps:
//!
//! | preset | between the first four steps and the last | computed of 20 steps | of 50 |
//! |---|---|---|---|
//! | [`FAST`](crate::Shortcuts::FAST), `fast` | every second step is computed | 12 | 27 |
//! | [`FASTER`](crate::Shortcuts::FASTER), `faster` | every third step is computed | 10 | 20 |
//!
//! # Methods
//! [`Request::shortcuts`](crate::Request::shortcuts) is a preset or a combination of your own: at
//! most one method of the table, and either or both of the options below the table.
//!
//! | [`Skip`](crate::shortcuts::Skip) | what it does | needs |
//! |---|---|---|
//! | [`Forecast`](crate::shortcuts::Forecast) | Spectrum: computes some of the steps, and forecasts the network's output in the others by a polynomial fit of the earlier outputs | nothing |
//! | [`Stability`](crate::shortcuts::Stability) | SADA: uses the last output again while the run of the picture is stable | a model that is neither a flow model nor an EDM model |
//! | [`Deep`](crate::shortcuts::Deep) | DeepCache: computes only the outer layers of the UNet in most steps | a UNet whose graph this library writes |
//!
//! - [`guidance`](crate::Shortcuts::guidance) is adaptive guidance. It is a threshold: once the
//!   predictions for the prompt and the negative prompt are this similar, the rest of the run
//!   leaves the negative prompt out. At the usual scales this changes the picture strongly, because
//!   the scale multiplies even small differences between the predictions.
//! - [`merge_tokens`](crate::Shortcuts::merge_tokens) is token merging. It is the share of the
//!   tokens that are merged before the largest self-attention. It saves time only for large
//!   pictures.
//!
//! The simplest shortcut is a run of fewer steps. It needs no option, and has a row in the tables
//! below.
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
//! - The three methods of the table need a sampler that calls the model once in each step and adds
//!   no noise between steps. After new noise, earlier outputs say little about the next one. So the
//!   methods refuse ancestral and SDE samplers, DDPM, LCM, TCD, Restart, and others with `eta` or
//!   `s_churn` above 0. They also refuse samplers with more than one call in a step (Heun, DPM2,
//!   PNDM, PLMS) and DPM adaptive. 22 of the 42 samplers remain, such as DPM++ 2M, Euler and DDIM.
//! - [`Stability`](crate::shortcuts::Stability) refuses the CFG++ samplers, flow models and EDM
//!   models.
//! - [`Deep`](crate::shortcuts::Deep) refuses [windows](crate::Request::tiles), and networks that
//!   cannot be cut, such as UNets that another tool exported to ONNX.
//! - [`guidance`](crate::Shortcuts::guidance) refuses the CFG++ samplers, which use the negative
//!   prompt in every step.
//! - [`merge_tokens`](crate::Shortcuts::merge_tokens) refuses networks that cannot merge tokens:
//!   all UNets on OpenVINO, and UNets that another tool exported to ONNX.
//!
//! # Shortcuts with other options
//! - [`Deep`](crate::shortcuts::Deep) and [`merge_tokens`](crate::Shortcuts::merge_tokens) need
//!   other graphs of the UNet, so a run with them loads the UNet again, in place of the loaded one.
//!   [`Builder::kept_sizes`](crate::Builder::kept_sizes) of 2 keeps both.
//! - The method starts again with its first, computed steps when the prompt changes
//!   (`[fox:cat:0.5]`), when a LoRA's weight changes, and when a control starts or stops acting. A
//!   prompt that alternates (`[fox|cat]`) changes in each step, so every step is computed.
//! - The method also starts again when a refiner takes over, and at the start of a
//!   [second pass](crate::Request::hires).
//! - A run that starts from a picture can take all shortcuts. The method counts its steps from the
//!   first step that the run makes.
//! - Pictures share a batch only if their shortcuts are equal. Pictures with
//!   [`Stability`](crate::shortcuts::Stability) never share a batch.
//! - Each prompt of a run is forecast separately: each text between `AND`s, the negative prompt,
//!   and the third prompt of instruct-pix2pix.
//!
//! # What a run reports
//! [`StepInfo::calls`](crate::StepInfo::calls) counts the calls of a step, and
//! [`Timings::calls`](crate::Timings::calls) the calls of all steps of a picture. The fields of
//! [`NetworkCalls`](crate::NetworkCalls) are the calls that computed everything, the calls that
//! reused deep features, the calls that were skipped, and the calls for the negative prompt that
//! were left out.
//!
//! The infotext of a picture has `SD shortcuts`, the shortcuts as JSON, so the picture can be drawn
//! again with the same shortcuts. It also has `SD network calls`, such as `24 of 40`: 24 calls were
//! made, where a run without shortcuts makes 40.
