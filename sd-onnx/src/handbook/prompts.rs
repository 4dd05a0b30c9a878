//! The prompt language: how to write prompts, and how long they may be.
//!
//! Prompts are in WebUI's language unless [`PromptOptions`](crate::PromptOptions) selects another
//! one. [`text::prompt`](crate::text::prompt) has the complete rules. The example `tokens` shows
//! how a prompt is read: `cargo run --release --example tokens -- "…"`.
//!
//! | text | meaning |
//! |---|---|
//! | `(fox)`, `((fox))`, `(fox:1.3)` | weights of 1.1, 1.21 and 1.3 |
//! | `[fox]` | a weight of 1 / 1.1 |
//! | `\(`, `\)`, `\[`, `\]`, `\\` | the character itself |
//! | `[fox:owl:0.5]`, `[fox:owl:12]` | fox; after half of the steps, or after step 12, owl |
//! | `[snow:0.3]`, `[snow::0.3]` | snow after 0.3 of the steps; snow until then |
//! | `[fox\|owl]` | fox and owl in turns, step by step |
//! | `a fox AND snow :0.5` | a prediction for each part, [added by weight](#parts) |
//! | `BREAK` | the start of the next window of 75 tokens |
//! | `# …` | a comment, to the end of the line |
//! | `<lora:name:0.8>` | a [LoRA](super::files#loras) and its weight |
//! | `<hypernet:name:1>` | another extra network, which is not applied |
//!
//! Extra networks are removed from the text, so their place has no meaning.
//! [`Builder::loras`](crate::Builder::loras) sets the folder of the LoRAs. Without it, a prompt
//! that calls a LoRA is an error. Networks of other kinds are listed in
//! [`PromptText::networks`](crate::text::PromptText::networks) and not applied.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::Request;
//!
//! let draw = |prompt: &str| pipeline.generate(&Request::new(prompt).seed(1).steps(4));
//! let [fox, owl, first_fox] = [draw("a fox")?, draw("an owl")?, draw("a [fox:owl:0.5]")?];
//! assert_ne!(first_fox.image(), fox.image());
//! assert_ne!(first_fox.image(), owl.image());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # When
//! The number in a schedule, such as `[fox:owl:12]`, says when the text changes. A number without a
//! decimal point is a step. A number with a point is a share of all steps. So `1` is the first
//! step, and `1.0` is the end of the run, at which it is too late to change the text.
//!
//! The steps of a prompt are calls of the model, as in WebUI. For samplers that call the model
//! twice a step, such as Heun, DPM2 and DPM++ SDE, the schedule has twice as many steps. For others
//! that call it more often, such as PNDM, the schedule has as many steps as the sampler makes
//! calls. Also as in WebUI, a text stays one call longer than its number says: `[a:b:3]` shows `a`
//! in the first four calls.
//!
//! # Weights
//! By default, the embedding of each token is multiplied by its weight. Then all embeddings of the
//! window are scaled so that their mean does not change. WebUI calls this method "Original". WebUI
//! computes the mean over all texts of a schedule together, while here each text has its own mean.
//! [`Emphasis`](crate::text::Emphasis) lists the other methods, and [`Syntax`](crate::text::Syntax)
//! selects the notation of ComfyUI or compel.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{PromptOptions, Request, text::{Emphasis, Syntax}};
//!
//! let options = PromptOptions::default();
//! let of_comfyui = options.syntax(Syntax::ComfyUi).emphasis(Emphasis::Interpolate);
//! let request = Request::new("a fox on ((red:1.2):1.1)").prompt_options(of_comfyui).steps(2);
//! # pipeline.generate(&request)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Length
//! A long prompt is split into windows of 75 tokens, at a comma if one is near the end of the
//! window. The denoiser receives all windows. The prompt and the negative prompt need not be
//! equally long; [`same_length`](crate::PromptOptions::same_length) makes them so.
//!
//! Nothing is cut off unless [`Chunking::max_chunks`](crate::text::Chunking::max_chunks) is set.
//! [`Tokens::cut`](crate::text::Tokens::cut) then contains the text that was cut off.
//!
//! A prompt is refused if it has more than:
//!
//! - [`MAX_PROMPT_BYTES`](crate::MAX_PROMPT_BYTES), 64 KiB;
//! - [`MAX_WINDOWS`](crate::MAX_WINDOWS), 4096, over all texts that the prompt shows during the
//!   run;
//! - [`MAX_BRANCHES`](crate::MAX_BRANCHES), 64 parts between `AND`s.
//!
//! # Parts
//! `AND` splits a prompt into parts. Each part costs one call of the denoiser in every step. The
//! negative prompt always costs one more, because the parts are combined relative to it:
//! `negative + Σ weight · (part − negative)`. Guidance is then applied to this sum. The method
//! is composable diffusion, <https://arxiv.org/abs/2206.01714>.
//!
//! # Warnings
//! Any text can be read as a prompt. Where the grammar of schedules does not match, WebUI takes the
//! whole part literally. Two examples are a `|` outside of brackets and a backslash at the end.
//! This library does the same and adds a warning:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::Request;
//!
//! let picture = pipeline.generate(&Request::new("a (fox|owl)").steps(1))?.pictures.remove(0);
//! let read = picture.prompt.text.unwrap();
//! assert_eq!(read.warnings()[0].span, 6..7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
