//! What models are read, and what a PNG says about itself.
//!
//! # Models
//! A folder in the diffusers layout, as published since 2022 or as diffusers writes it today:
//!
//! | folder | files |
//! |---|---|
//! | `unet` | `config.json`, `diffusion_pytorch_model.safetensors` (or shards with their index) |
//! | `vae` | `config.json`, `diffusion_pytorch_model.safetensors` |
//! | `text_encoder` | `config.json`, `model.safetensors` |
//! | `tokenizer` | `vocab.json` and `merges.txt`, or `tokenizer.json` |
//! | `scheduler` | `scheduler_config.json` |
//!
//! Weights are f32, f16 or bf16, and are computed with in f32 on the CPU. Where a component has
//! several variants, [`Builder::variant`](crate::Builder::variant) says which. A snapshot in the Hugging Face cache, which is made of links, works as it is. Pickles
//! (`.bin`, `.ckpt`) can run code when they are read, and are refused. Inpainting models, SDXL and single-file checkpoints are not
//! read yet.
//!
//! The library downloads no model. Get one with the publisher's own tool, for instance `hf download`.
//!
//! # PNG files
//! [`Picture::save_png`](crate::Picture::save_png) writes how the picture was made into the file, in the text that WebUI and its
//! relatives write and read: see [`infotext`](crate::infotext) for the keys. [`Infotext::read_png`](crate::Infotext::read_png) gets it out again, from their files too, and
//! [`Infotext::request`](crate::Infotext::request) makes a request of it and says what can't be had the same.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Infotext, Request};
//!
//! # let path = std::env::temp_dir().join(format!("sd-onnx-fox-{}.png", std::process::id()));
//! let fox = pipeline.generate(&Request::new("a fox").steps(4).seed(1))?;
//! fox.pictures[0].save_png(&path)?;
//!
//! let infotext = Infotext::read_png(&path)?.expect("it says how it was made");
//! assert_eq!(infotext.get("Seed"), Some("1"));
//! let again = infotext.request();
//! assert!(again.differences.is_empty());
//! assert_eq!(pipeline.generate(&again.request)?.image(), fox.image());
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! A file appears under its name when it is whole, or not at all ([`files::write`](crate::files::write)).
