//! Where does it go? For contributors: which files of this project a change touches.
//!
//! # The map
//! There are four crates. Each crate uses only crates below it in this list.
//!
//! - **`sd-onnx`** knows ONNX Runtime, model folders, weights and the graphs of the networks. It
//!   does not know how a sampler steps.
//! - **`sd-core`** knows the pipeline: requests, guidance, pictures, and the traits
//!   [`Denoiser`](crate::Denoiser) and [`LatentCodec`](crate::LatentCodec). It does not know ONNX
//!   Runtime or the files of models.
//! - **`sd-text`** knows the prompt language, CLIP's tokenizer and the trait
//!   [`TextModel`](crate::text::TextModel). It does not know samplers or ONNX Runtime.
//! - **`sd-schedulers`** knows noise schedules, ladders, samplers and noise. It knows nothing else.
//!
//! A change belongs to the lowest crate that knows all the words in its description. "Guidance that
//! fades out" needs the word guidance, so it goes into `sd-core`. "A UNet with one more input"
//! needs two words: the input is declared in `sd-core`, and the UNet is written in `sd-onnx`.
//!
//! # A sampler
//! | change | file |
//! |---|---|
//! | the algorithm, its options, names and ladder | a new file in `sd-schedulers/src/samplers` |
//! | `mod`, `pub use` and its place in the table | `mod.rs` and `table.rs` in the same folder |
//! | its class in diffusers | `sd-schedulers/src/config` |
//! | reference values | `sd-schedulers/tests/golden` |
//!
//! The page of [`samplers`](crate::schedulers::samplers) lists the steps one by one. A program that
//! defines its own sampler needs none of them: see [`pieces`](super::pieces).
//!
//! # A model family
//! Most families differ from a known one by options of the UNet. An option that changes only layers
//! needs two changes:
//!
//! - In `sd-onnx/src/models/unet.rs`, read the key of `config.json`, write the layers, and no
//!   longer refuse the key.
//! - In `sd-onnx/tests/golden/family_shapes.py`, describe a small model with this option.
//!
//! `families.py` in the same folder then runs diffusers on the small model and writes the reference
//! values. No other file knows the option: the test that compares small models with diffusers finds
//! the new one by its folder. For example, `encoder_hid_dim`, a projection of the prompt in front
//! of the UNet of Kolors, was added in these two files and in a line of the tests' README.
//!
//! Some families need more:
//!
//! - **An operator or a layer that no network has yet:** operators are in
//!   `sd-onnx/src/graph/mod.rs`, layers in `sd-onnx/src/graph/layers.rs`.
//! - **A new input of the denoiser:** `Inputs` declares it and `Call` carries it, both in
//!   `sd-core/src/backend.rs`. `sd-onnx/src/parts.rs` passes it to the session.
//! - **The source of the value of that input:** in `sd-core/src`, `request.rs` has the setting,
//!   `plan.rs` checks it, `run.rs` and `guided.rs` pass it on.
//! - **A pipeline class of diffusers,** with its text encoders and its corrections:
//!   `sd-onnx/src/source/folder.rs`, `sd-onnx/src/corrections.rs`.
//! - **Another autoencoder:** a new file in `sd-onnx/src/models/vae`, and a variant of `Network` in
//!   `sd-onnx/src/models/vae/mod.rs`.
//! - **Another kind of denoiser,** such as a transformer: a new file in `sd-onnx/src/models`,
//!   beside `unet.rs`.
//!
//! # A form that models are converted to
//! - **Another name of a tensor in a single file:** the tables in `sd-onnx/src/checkpoint`, which
//!   reading and writing share. Names without a table are in `sd-onnx/src/checkpoint/stored`.
//! - **Another file of a diffusers folder:** `folder.rs` and `index.rs` in `sd-onnx/src/convert`.
//! - **An input or an output of the graphs:** `sd-onnx/src/convert/onnx.rs`.
//! - **Another type of weights:** `sd-onnx/src/convert/numbers.rs`.
//!
//! `sd-onnx/tests/golden/convert.py` compares converted models with the originals, in diffusers and
//! in Python's ONNX Runtime. It is run by hand.
//!
//! # A graph that another tool exported
//! - **Another name, type or shape of an input or output:** `unet.rs`, `text.rs` or `vae.rs` in
//!   `sd-onnx/src/exported`.
//! - **Another way of writing a layer norm or an attention,** for clip skip:
//!   `sd-onnx/src/exported/layers.rs`.
//! - **Reference exports:** `sd-onnx/tests/golden/exports.py`.
//!
//! # A network that enlarges pictures
//! - **The network:** a new file in `sd-onnx/src/models/upscalers`, which recognises it and writes
//!   it, a variant of `Network` in `mod.rs` there, and without its row in `names.rs`.
//! - **What its picture goes through before and after:** `sd-onnx/src/upscaler.rs`.
//! - **How pictures of any size are enlarged with it:** `sd-core/src/upscale`.
//! - **Reference values:** a row in `sd-onnx/tests/golden/upscalers.py`.
//!
//! # A provider
//! A provider is the part of ONNX Runtime that computes on one kind of device: the CPU, CUDA,
//! OpenVINO.
//!
//! | change | file |
//! |---|---|
//! | its name, its precisions, and the check that it is available | `sd-onnx/src/device.rs` |
//! | the options of its sessions | `sd-onnx/src/provider.rs` |
//! | inputs that stay on the device between calls | `sd-onnx/src/binding.rs` |
//! | its graphs and calls, tested on the CPU | `sd-onnx/src/rehearsal.rs` |
//! | the form of graph that it runs fast and right | `sd-onnx/src/graph/dialect.rs` |
//! | a build of ONNX Runtime that contains it, or its plugin | `sd-onnx/src/runtime/release.rs` |
//!
//! `Network` in `sd-onnx/src/network.rs` makes all sessions and decides when to make them. Models,
//! parts and the builder do not change.
//!
//! # A file format
//! A tensor is a place in a file, or bytes in memory. Networks ask for tensors by the names that
//! diffusers and transformers give them today.
//!
//! - **Older names of diffusers and transformers for the same tensors:** a table in
//!   `sd-onnx/src/weights/names.rs`.
//! - **Names of another program,** as in a checkpoint file: tables in `sd-onnx/src/checkpoint`, one
//!   file for each kind of network.
//! - **Another way in which a checkpoint records what it predicts:**
//!   `sd-onnx/src/checkpoint/prediction.rs`.
//! - **Another container than safetensors:** a new file in `sd-onnx/src/weights`, and a line in
//!   `sd-onnx/src/weights/file.rs`, which recognises it.
//! - **A type of numbers:** `sd-onnx/src/weights/types.rs`, and `decode.rs` beside it if ONNX
//!   Runtime does not cast the type.
//! - **Another layout of folders:** `sd-onnx/src/source/folder.rs`.
//! - **Weights that come from two components,** as with a ControlNet: `Graph::over` in
//!   `sd-onnx/src/graph/mod.rs`.
//!
//! # A LoRA or a related adapter
//! An adapter changes weights before a graph is written, or its factors are inputs of the graph.
//! All files are in `sd-onnx/src/lora` unless a path is given.
//!
//! - **Another name of a tensor, or the prefix of another training tool:** the tables in `keys.rs`.
//!   A name that a checkpoint uses too is in `sd-onnx/src/checkpoint/split.rs`.
//! - **Another name of a layer of the model:** `targets.rs`.
//! - **Another format:** a new file in `formats`, with its checks and its arithmetic, a variant of
//!   `Format` in `formats/mod.rs`, the roles of its tensors in `formats/parts.rs`, and a row of the
//!   table in `mod.rs`.
//! - **Another place where alpha or a title is stored:** `facts.rs`.
//! - **A family, or a model whose adapters are refused:** `family.rs`.
//! - **What counts as an adapter in `inspect`:** `sd-onnx/src/checkpoint/kind.rs`.
//! - **Another container or layout of the file:** `mod.rs`, as for a [file format](#a-file-format).
//! - **How weights are merged, and how much memory that takes:** `merge.rs`. `merging.rs` connects
//!   it to the builder.
//! - **How factors become inputs:** `live.rs`, and `sd-onnx/src/graph/live.rs` for the layers.
//! - **Which files of a folder prompts can call:** `library.rs`.
//! - **The syntax of calls in prompts:** `spec.rs`, `weight.rs` and `blocks.rs` in
//!   `sd-core/src/lora`.
//! - **How the LoRAs of a PNG are found again:** `sd-core/src/infotext/loras.rs`.
//! - **What a PNG records:** `sd-core/src/lora/mod.rs`, and `keys.rs`, `write.rs` and `request.rs`
//!   in `sd-core/src/infotext`.
//! - **Reference values:** a case in `sd-onnx/tests/golden/lora_cases.py`. `lora.py` beside it
//!   writes the files, and the tests in `tests/golden.rs` read them.
//!
//! # A text encoder
//! - **The network:** a new file in `sd-onnx/src/models`, beside `clip_text.rs`, and its
//!   `TextModel` in `sd-onnx/src/parts.rs`.
//! - **Its folder, and which of its layers is read:** `TowerParts` in `sd-onnx/src/source/mod.rs`.
//! - **Reading its `config.json` when a model is loaded:** `TextFiles` in `sd-onnx/src/builder.rs`.
//! - **How the towers of one model are joined:** `sd-text/src/encoder.rs`.
//! - **Another tokenizer:** `sd-text/src/tokenizer.rs` and the folder of that name.
//!
//! The prompt language in `sd-text/src/prompt` is the same for all of them.
