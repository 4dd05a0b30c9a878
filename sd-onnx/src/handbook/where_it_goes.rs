//! Where does it go? Which file of this project a change touches, for those who want to change it.
//!
//! # The map
//! There are four crates. Each one uses only crates that stand below it.
//!
//! | crate | what it knows | what it does not know |
//! |---|---|---|
//! | `sd-onnx` | ONNX Runtime, model folders, weights, the graphs of the networks | how a sampler steps |
//! | `sd-core` | the pipeline: requests, guidance, pictures, and the traits [`Denoiser`](crate::Denoiser) and [`LatentCodec`](crate::LatentCodec) | ONNX Runtime, files of models |
//! | `sd-text` | the prompt language, CLIP's tokenizer, and the trait [`TextModel`](crate::text::TextModel) | samplers, ONNX Runtime |
//! | `sd-schedulers` | noise schedules, ladders, samplers and noise | everything else |
//!
//! A change belongs to the lowest crate that knows all the words in its description. "Guidance that
//! fades out" needs the word guidance, so it goes into `sd-core`. "A UNet with one more input"
//! needs two words: the input is declared in `sd-core`, and the UNet is written in `sd-onnx`.
//!
//! # A sampler
//! | change | file |
//! |---|---|
//! | the algorithm and its options | a new file in `sd-schedulers/src/samplers` |
//! | its name, its paper and its usual ladder | a row in `sd-schedulers/src/samplers/table.rs` |
//! | `mod` and `pub use` | `sd-schedulers/src/samplers/mod.rs`, `sd-schedulers/src/lib.rs` |
//! | its names in WebUI, ComfyUI and diffusers | `sd-schedulers/src/names`, `sd-schedulers/src/config` |
//! | reference values | `sd-schedulers/tests/golden` |
//!
//! [`schedulers`](crate::schedulers) lists the steps one by one. A sampler of a program's own needs
//! none of them: see [`pieces`](super::pieces).
//!
//! # A model family
//! Most families differ from a known one by options of the UNet. An option that changes layers only
//! is one change:
//!
//! | change | file |
//! |---|---|
//! | read the key of `config.json`, write the layers, no longer refuse the key | `sd-onnx/src/models/unet.rs` |
//! | describe a small model with this option | `sd-onnx/tests/golden/family_shapes.py` |
//!
//! `families.py` in the same folder then runs diffusers on the small model and writes the reference
//! values. Nothing else knows the option: the test that compares small models with diffusers finds
//! the new one by its folder. For example, `encoder_hid_dim`, a projection of the prompt in front
//! of the UNet of Kolors, was added in these two files and a line of the tests' README.
//!
//! Some families need more:
//!
//! | change | file |
//! |---|---|
//! | an operator or a layer that no network has yet | `sd-onnx/src/graph/mod.rs` for operators, `graph/layers.rs` for layers |
//! | a new input of the denoiser | `Inputs` declares it and `Call` carries it, in `sd-core/src/backend.rs`; `sd-onnx/src/parts.rs` hands it to the session |
//! | where the value of that input comes from | `sd-core/src/request.rs` asks for it, `plan.rs` checks it, `run.rs` and `guided.rs` pass it on |
//! | a class of diffusers' pipelines: its text encoders, what it corrects | `sd-onnx/src/source/folder.rs`, `sd-onnx/src/corrections.rs` |
//! | another autoencoder | a new file in `sd-onnx/src/models/vae`, and a variant of `Network` in `vae/mod.rs` |
//! | another kind of denoiser, such as a transformer | a new file in `sd-onnx/src/models`, beside `unet.rs` |
//!
//! # A form that models are converted to
//! | change | file |
//! |---|---|
//! | another name of a tensor in one file | the tables in `sd-onnx/src/checkpoint`, which both ways share; what has no table in `checkpoint/stored` |
//! | another file of a diffusers folder | `sd-onnx/src/convert/folder.rs`, `index.rs` |
//! | an input or an output of the graphs | `sd-onnx/src/convert/onnx.rs` |
//! | another type of weights | `sd-onnx/src/convert/numbers.rs` |
//!
//! `tests/golden/convert.py` compares converted models with the originals in diffusers and in
//! Python's ONNX Runtime; it is run by hand.
//!
//! # A graph that another tool exported
//! | change | file |
//! |---|---|
//! | another name, type or shape of an input or output | `sd-onnx/src/exported/unet.rs`, `text.rs` or `vae.rs` |
//! | another way of writing a layer norm or an attention, for clip skip | `sd-onnx/src/exported/layers.rs` |
//! | reference exports | `sd-onnx/tests/golden/exports.py` |
//!
//! # A provider
//! A provider is what ONNX Runtime computes with: the CPU, CUDA, OpenVINO.
//!
//! | change | file |
//! |---|---|
//! | its name, its precisions, and the check that this machine has it | `sd-onnx/src/device.rs` |
//! | the options of its sessions | `sd-onnx/src/provider.rs` |
//! | the form of graph that it runs fast and right | `sd-onnx/src/graph/dialect.rs` |
//! | a build of ONNX Runtime that contains it, or its plugin | `sd-onnx/src/runtime/release` |
//!
//! All sessions are made by `Network` in `sd-onnx/src/network.rs`, which also decides when. Models,
//! parts and the builder do not change.
//!
//! # A file format
//! A tensor is a place in a file, or bytes in memory. Networks ask for tensors by the names that
//! diffusers and transformers give them today.
//!
//! | change | file |
//! |---|---|
//! | older names of diffusers and transformers for the same tensors | a table in `sd-onnx/src/weights/names.rs` |
//! | names of another program, as in a checkpoint file | tables in `sd-onnx/src/checkpoint`, one file for each kind of network |
//! | another way in which a checkpoint says what it predicts | `sd-onnx/src/checkpoint/prediction.rs` |
//! | another container than safetensors | a new file in `sd-onnx/src/weights`, and a line in `weights/file.rs`, which recognises it |
//! | a type of numbers | `sd-onnx/src/weights/types.rs`, and `decode.rs` if ONNX Runtime does not cast it |
//! | another layout of folders | `sd-onnx/src/source/folder.rs` |
//! | weights that come from two components, as with a ControlNet | `Graph::over` in `sd-onnx/src/graph/mod.rs` |
//!
//! # A text encoder
//! | change | file |
//! |---|---|
//! | the network | a new file in `sd-onnx/src/models`, beside `clip_text.rs`, and its `TextModel` in `sd-onnx/src/parts.rs` |
//! | which folder it is in, and which of its layers is read | `TowerParts` in `sd-onnx/src/source/mod.rs` |
//! | reading its `config.json` when a model is loaded | `TextFiles` in `sd-onnx/src/builder.rs` |
//! | how the towers of one model are joined | `sd-text/src/encoder.rs` |
//! | another tokenizer | `sd-text/src/tokenizer.rs` and the folder of that name |
//!
//! The prompt language in `sd-text/src/prompt` is the same for all of them.
