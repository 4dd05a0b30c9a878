//! The prompt language: what a prompt from WebUI means, and what else a text can be read as.
//!
//! Prompts are in WebUI's language unless [`PromptOptions`](crate::PromptOptions) say otherwise; [`text::prompt`](crate::text::prompt) has its
//! rules. `cargo run --release --example tokens -- "…"` shows how a prompt is read.
//!
//! | written | means |
//! |---|---|
//! | `(fox)`, `((fox))`, `(fox:1.3)` | 1.1 times, 1.21 times, 1.3 times the attention |
//! | `[fox]` | 1 / 1.1 times |
//! | `\(`, `\)`, `\[`, `\]`, `\\` | the character |
//! | `[fox:owl:0.5]`, `[fox:owl:12]` | fox; after half of the steps, or after step 12, owl |
//! | `[snow:0.3]`, `[snow::0.3]` | snow after that; until then |
//! | `[fox\|owl]` | the one and the other in turns, step by step |
//! | `a fox AND snow :0.5` | each a prediction of its own; they are added, by their weights |
//! | `BREAK` | the next window of 75 tokens begins here |
//! | `# …` | a comment, to the end of the line |
//! | `<lora:name:0.8>` | an extra network: told in [`PromptText::networks`](crate::text::PromptText::networks), nothing acts on it yet |
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
//! A number without a point is a step, one with a point is a part of all steps: `1` is after the first step, `1.0` never. What counts are
//! calls of the model, for which a schedule is made that is twice as long under the samplers that call it twice a step (Heun, DPM2, DPM++ SDE
//! and so on), and as long as the calls under others that call it more often (PNDM). As in WebUI a text stays one call longer than it says: `[a:b:3]` shows a in four.
//!
//! # Weights
//! A token's embedding is multiplied by its weight, then all of its window so that their mean is what it was. WebUI calls it "Original", and takes
//! the mean over all texts of a schedule at once; here each has its own. The others are [`Emphasis`](crate::text::Emphasis), and ComfyUI's
//! and compel's way to write weights is [`Syntax`](crate::text::Syntax).
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{PromptOptions, Request, text::{Emphasis, Syntax}};
//!
//! let of_comfyui = PromptOptions::default().syntax(Syntax::ComfyUi).emphasis(Emphasis::Interpolate);
//! let request = Request::new("a fox on ((red:1.2):1.1)").prompt_options(of_comfyui).steps(2);
//! # pipeline.generate(&request)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Length
//! A long prompt is parted into windows of 75 tokens, at a comma if one is near, and the denoiser sees all of them. Prompt
//! and negative prompt need not be equally long ([`same_length`](crate::PromptOptions::same_length) makes them). Nothing is cut off unless
//! [`Chunking::at_most`](crate::text::Chunking::at_most) says so, and then [`Tokens::cut`](crate::text::Tokens::cut) has what. More than
//! [`MAX_PROMPT_BYTES`](crate::MAX_PROMPT_BYTES) (64 KiB), [`MAX_WINDOWS`](crate::MAX_WINDOWS) (4096, over all texts that the prompt shows) or
//! [`MAX_BRANCHES`](crate::MAX_BRANCHES) (64) are refused.
//!
//! # Parts
//! Each part of an `AND` costs a call of the denoiser a step, and the negative prompt is always one more: the parts are weighed against it,
//! `negative + Σ weight · (part − negative)`, and guidance goes on from there. <https://arxiv.org/abs/2206.01714>
//!
//! # Warnings
//! A prompt means something whatever is in it. Where the grammar of schedules fails (a `|` outside of brackets, a backslash at the end), WebUI
//! takes the part literally, and so do we, with a warning:
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
