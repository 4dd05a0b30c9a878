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
//! dependencies, the lints, the documentation, the public names, the tests, the benches in test
//! mode, and the packages. Besides Rust, it needs Python 3.11 or newer.
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
//! model family, a provider, a file format, a format of LoRAs, a text encoder. The page of
//! [`samplers`](crate::schedulers::samplers#add-a-sampler-to-this-crate) has a complete list of
//! steps for a sampler.
//!
//! A program that only needs its own sampler, guidance or networks does not have to change this
//! project: see [`pieces`](super::pieces).
//!
//! # Public names
//! The files in `.ci/public` list every public item of the four library crates with its signature.
//! The script `.ci/public_names.py` compares them with the code. If it prints a difference, decide
//! whether users should see this change, and update the lists:
//!
//! ```sh
//! .ci/public_names.py --write
//! ```
//!
//! The difference is then part of the change, so that a review shows what users gain and lose. The
//! script reads rustdoc's JSON, whose format changes with the compiler. It works with Rust 1.95 and
//! says so if another version runs.
//!
//! # Dependencies
//! The script `.ci/dependencies.py` fails if a crate in `Cargo.lock` has a licence that is not on
//! its list, needs a newer Rust than this project, does not come from the registry, or is there in
//! two versions for no known reason. An exception is a line in the script, with its reason.
//!
//! Advisories about security and abandoned crates are in a database on the network, which `.ci/run`
//! does not use. Before a release, and when `Cargo.lock` changes, check them by hand:
//!
//! ```sh
//! cargo install cargo-audit --locked
//! cargo audit
//! ```
//!
//! `cargo deny check advisories`, of the crate `cargo-deny`, does the same. `cargo audit` warns
//! about `paste`, which its author no longer maintains. It is a macro that `tokenizers` uses.
//!
//! A new dependency needs a reason that the standard library and the present dependencies do not
//! meet. Name it in the table `workspace.dependencies` of the top `Cargo.toml`, with only the
//! features that are used. A Cargo feature adds something to choose from. It never changes what a
//! program already does, because another crate in the program may turn it on:
//!
//! - `vocabulary` of `sd-text` adds 196 kB of data to the program. Programs that load a tokenizer
//!   from files do not need it. `sd-onnx` turns it on, because checkpoint files have no tokenizer.
//! - `fetch` of `sd-onnx` allows it to download ONNX Runtime. It is off by default, because a
//!   library should not use the network or run pip unless its user agrees.
//!
//! # What a release may change
//! Versions follow [semantic versioning](https://semver.org) as Cargo understands it: before 1.0,
//! the second number changes when something breaks, and the third one otherwise. The four crates
//! share one version number. These changes break something:
//!
//! - **A name**: a line of `.ci/public` is removed or changed, or a trait gets a method without a
//!   body. A new variant or field breaks nothing if the type is `#[non_exhaustive]`. New public
//!   types that may grow should be.
//! - **A picture**: the same request, seed, model and device give other pixels, apart from rounding
//!   in the last bits. A new version of ONNX Runtime may change such bits too. A correction that
//!   makes pictures equal to the reference program is allowed, but it is still a breaking change.
//! - **A default** of a request or of a model, because pictures change with it.
//! - **The infotext**: a picture that an earlier release made is no longer drawn again from its
//!   PNG file, or another program no longer reads a key that it read. New keys break nothing.
//! - **The JSON of a request**, and the names that `by_name`, `from_webui` and `from_comfyui`
//!   accept, if an old text is refused or means something else. New fields have defaults.
//! - **An error instead of a result**, for a file or a request that worked.
//! - **A public dependency**: its types are in our interface, so a release of `ndarray`, `image`,
//!   `rand`, `serde`, `serde_json` or `futures-core` that breaks them breaks our users. The crate
//!   `ort` is not one of them, because no type of it is public.
//!
//! These changes break nothing: the text of a message or a log, speed, memory, and the layout of
//! the cache folder. `ort` is pinned to a release candidate, and any release may move the pin.
//!
//! The oldest Rust that works is 1.92, because `ort` needs it. A release that needs a newer Rust
//! changes the second number of the version, and asks for a Rust that is at least six months old.
//!
//! # Make a release
//! 1. Run `.ci/run` and `cargo audit`, and the check with the oldest Rust:
//!    `cargo +1.92 check --workspace --all-targets --locked`.
//! 2. Compare `.ci/public` with the last release. For breaking changes raise the second number of
//!    `version` in the top `Cargo.toml`, otherwise the third one. The four lines of
//!    `workspace.dependencies` have the same number.
//! 3. In `CHANGELOG.md`, replace "not yet released" with the date.
//! 4. Commit, and try the upload: `cargo publish --workspace --dry-run`.
//! 5. Upload with `cargo publish --workspace`. It skips the examples and the benches, and uploads
//!    the crates in the order of their dependencies: `sd-schedulers` and `sd-text`, then `sd-core`,
//!    then `sd-onnx`. If it stops in between, upload the rest with `cargo publish -p NAME`.
//! 6. Tag the commit with the version.
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
