//! Contributing: how to build and test this project, write golden files, and add parts.
//!
//! # Build
//! The project needs Rust 1.92 or newer and a C compiler. `cargo build --workspace` builds all
//! crates. `sd-onnx` compiles without ONNX Runtime, because it loads the library at run time. The
//! examples and the benches turn on the Cargo feature `fetch`, which downloads the library with
//! Python 3 and pip when it is first needed. In a build of the whole workspace, the feature is on
//! for all crates.
//!
//! # Test
//! `cargo test --workspace` runs all tests, and with them the examples of the documentation. It
//! needs no model and no Python packages. Once the libraries are in the cache folder, it needs no
//! network.
//!
//! - The tests of `sd-core`, `sd-text` and `sd-schedulers` need no ONNX Runtime. Where they need
//!   networks, they use a few lines of Rust instead.
//! - The tests of `sd-onnx` make small models with random weights, and draw with the small model in
//!   `examples/models/emoji`.
//! - A test that needs OpenVINO prints `SKIPPED, not passed` if the library is not found or the
//!   processor lacks the precision.
//!
//! The script `.ci/run` runs everything that must pass before a change is accepted: the format, the
//! lints, the documentation, the tests, the benches in test mode, and the packages.
//!
//! # Golden files
//! A golden file has values that a reference program computed, for example diffusers 0.42.1. The
//! folder `tests/golden` of each crate has the files and the Python scripts that wrote them. The
//! Rust tests only read the files.
//!
//! Each script says in its first lines which packages or files it needs, with their versions. Most
//! scripts stop if a version differs. For example, this writes the token ids of `sd-text` again:
//!
//! ```sh
//! cd sd-text/tests/golden
//! pip install -r requirements.txt
//! python make.py
//! ```
//!
//! For a new golden file:
//!
//! 1. Write a script that asserts the version of the reference, and computes the values with the
//!    reference's own code or with the formulas of the paper in float64.
//! 2. Choose cases in which a mistake changes the values, and let the script assert that it does.
//! 3. Keep the file small. Weights are not stored but generated from a seed.
//! 4. In the test, state the tolerance, and the reason for it in a comment.
//!
//! # Add a part
//! [`where_it_goes`](super::where_it_goes) lists the files that a change touches: a sampler, a
//! model family, a provider, a file format, a text encoder. The page of
//! [`schedulers`](crate::schedulers) has a complete list of steps for a sampler.
//!
//! A program that only needs its own sampler, guidance or networks does not have to change this
//! project: see [`pieces`](super::pieces).
//!
//! # Rules
//! - A crate knows only the crates below it. `sd-onnx` is the only crate that names ONNX Runtime,
//!   and no type of the crate `ort` is part of its interface.
//! - No input makes the library panic. An error names the file, the value and what was expected.
//! - The message of an error never contains the message of its `source`. An error of another
//!   library that may quote a file, such as `serde_json`'s, is made printable and becomes a part of
//!   the message instead of a source. A program prints all messages of the chain.
//! - Every public item has a documentation comment, and its examples are tested.
//! - A claim that a number equals another program's needs a golden file. A claim about time or
//!   memory needs a measurement in `benches/README.md`, with the machine.
//! - A change that a user notices has a line in `CHANGELOG.md`.
