//! Using the library in a program: threads, requests, progress, stopping, streams and timings.
//!
//! # One pipeline, many threads
//! A [`Pipeline`](crate::Pipeline) is `Send + Sync`, its clones share the model, and every method
//! takes `&self`.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! use sd_onnx::Request;
//!
//! let pipeline = sd_onnx::builder().load(folder)?;
//! let pictures = std::thread::scope(|scope| {
//!     let threads = ["a fox", "a banana"].map(|prompt| {
//!         let pipeline = &pipeline;
//!         let request = Request::new(prompt).steps(2).seed(1);
//!         scope.spawn(move || pipeline.generate(&request))
//!     });
//!     threads.map(|thread| thread.join().expect("no panic"))
//! });
//! for generation in pictures {
//!     assert_eq!(generation?.image().dimensions(), (96, 96));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **What runs at once, and what waits.** Each network (text encoder, UNet, VAE decoder, VAE
//! encoder) runs one call at a time, on all the [threads](crate::Builder::threads) that the builder
//! gave it. A second call waits for the first to end. Different networks run side by side, and so
//! do the networks of different pipelines.
//!
//! Two threads that draw on one pipeline therefore take turns, step by step. Drawing both pictures
//! takes about as long as drawing one after the other. This is on purpose: a call already uses
//! every core, and two calls at once would need twice the memory. For more throughput on a machine
//! with many cores, a server can load the model twice, each time with half of the threads.
//!
//! **What is shared.** A process has one ONNX Runtime. Pipelines can share parts:
//! [`Builder::codec`](crate::Builder::codec) loads a model with the autoencoder of another one. A
//! part is freed when the last pipeline that contains it is dropped.
//!
//! # Several requests
//! [`generate_all`](crate::Pipeline::generate_all) takes several requests, which may differ in
//! every field. All requests are checked before the first network runs, and the error lists every
//! problem of every request. A text that several requests share is encoded once.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{GenerateError, Request};
//!
//! let requests = [
//!     Request::new("a fox").steps(2).seed(1).count(2),
//!     Request::new("a banana").steps(3).guidance(4.0),
//! ];
//! let pictures = pipeline.generate_all(&requests)?.pictures;
//! let whose = pictures.iter().map(|picture| (picture.request, picture.index));
//! assert_eq!(whose.collect::<Vec<_>>(), [(0, 0), (0, 1), (1, 0)]);
//!
//! let wrong = Request::new("a fox").size(63, 64).steps(0);
//! let Err(GenerateError::Request(problems)) = pipeline.generate(&wrong) else {
//!     panic!("it is wrong")
//! };
//! let fields = problems.iter().map(|problem| &*problem.field);
//! assert_eq!(fields.collect::<Vec<_>>(), ["width", "steps"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A request is a plain value. [`Request::from_json`](crate::Request::from_json) reads it from JSON
//! that a web page sends, such as `{"prompt": "a fox", "steps": 30, "scheduler": "euler-a"}`, and
//! names every field that is wrong.
//!
//! # Watching
//! [`run`](crate::Pipeline::run) calls a closure after every step and with every finished picture,
//! as a `Box<Picture>`. The event of a step has the number of the step and can show the unfinished
//! picture: [`preview`](crate::Progress::preview) makes a small picture that costs almost nothing,
//! and [`decode`](crate::Progress::decode) makes the full one. With a TAESD, a tiny autoencoder
//! that [`Builder::taesd`](crate::Builder::taesd) adds, `preview` makes a picture of full size.
//! This takes about a fiftieth of the time of `decode`.
//!
//! The closure returns [`ControlFlow`](std::ops::ControlFlow), so `?` cannot pass on a `Result` in
//! it. Collect the pictures as below and save them after the run, or keep the error in a variable
//! outside of the closure and return `Break`.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use std::ops::ControlFlow;
//! use sd_onnx::{Event, Request, StopToken};
//!
//! let mut pictures = Vec::new();
//! pipeline.run(&[Request::new("a fox").steps(4)], &StopToken::new(), |event| {
//!     match event {
//!         Event::Step(progress) => {
//!             let step = progress.step;
//!             println!("{} of {}, sigma {}", step.index + 1, step.total, step.sigma);
//!             assert_eq!(progress.preview().dimensions(), (12, 12));
//!         }
//!         Event::Picture(picture) => pictures.push(picture),
//!         _ => {}
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(pictures.len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Stopping
//! The closure stops the run by returning [`Break`](std::ops::ControlFlow::Break), for example
//! after a number of steps. Any other thread can stop it with the [`StopToken`](crate::StopToken).
//!
//! On the CPU, a token ends the running network call within one operator, a fraction of a second at
//! full size. OpenVINO runs the whole graph as one operator, so it finishes the call first. A call
//! that waits for the call of another thread stops waiting. The text encoder runs to its end, which
//! takes only a moment.
//!
//! The run then returns [`GenerateError::Stopped`](crate::GenerateError::Stopped) with the latents
//! of the unfinished pictures. No picture is decoded after the stop. The pipeline can be used as
//! before, but a stopped token stays stopped, so the next run needs a new one.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use std::{ops::ControlFlow, time::Duration};
//! use sd_onnx::{GenerateError, Request, StopToken};
//!
//! let stop = StopToken::new();
//! let button = stop.clone();
//! std::thread::spawn(move || {
//!     std::thread::sleep(Duration::from_millis(50));
//!     button.stop();
//! });
//! let long = [Request::new("a fox").steps(1000)];
//! match pipeline.run(&long, &stop, |_| ControlFlow::Continue(())) {
//!     Err(GenerateError::Stopped(stopped)) => {
//!         println!("stopped after {} steps", stopped.steps);
//!         // To show what there is so far:
//!         for picture in &stopped.pictures {
//!             if let Some(denoised) = &picture.denoised {
//!                 pipeline.decode(denoised.view())?;
//!             }
//!         }
//!     }
//!     other => panic!("{other:?}"),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Iterators and streams
//! [`events`](crate::Pipeline::events) runs the requests on a separate thread. It returns an
//! iterator over the steps, with their previews, and the pictures. Its `next` blocks until there is
//! an event, so a window should read it on another thread than its event loop.
//! [`into_stream`](crate::Events::into_stream) turns the iterator into a `Stream` for any async
//! executor. The run waits while two events have not been read. Dropping the iterator or the stream
//! stops the run.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use futures_lite::{StreamExt, future::block_on};
//! use sd_onnx::{Request, StopToken, Update};
//!
//! block_on(async {
//!     let requests = vec![Request::new("a fox").steps(4)];
//!     let mut events = pipeline.events(requests, &StopToken::new()).into_stream();
//!     while let Some(event) = events.next().await {
//!         match event? {
//!             Update::Step { step, preview } => {
//!                 assert!(step.index < 4 && preview.width() == 12);
//!             }
//!             Update::Picture(picture) => assert_eq!(picture.image.width(), 96),
//!             _ => {}
//!         }
//!     }
//!     Ok::<(), sd_onnx::GenerateError>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Timings and traces
//! [`Picture::timings`](crate::Picture::timings) has the time of encoding, of each step and of
//! decoding. Its field [`calls`](crate::Timings::calls) counts the calls of the network, and the
//! calls that [shortcuts](super::shortcuts) saved.
//!
//! A subscriber of the [`tracing`](https://docs.rs/tracing) crate receives an event for each step,
//! at the level debug, and these spans, at the level info except for `unet`, which is at debug:
//!
//! | span | fields |
//! |---|---|
//! | `load` | `model` in the span of the whole model, `session` in the span of each network |
//! | `encode` | `clip_skip` |
//! | `denoise` | `seed`, `steps`, `width`, `height`, `scheduler`, `ladder`, `batch` |
//! | `unet` | `timestep`, `sigma` |
//! | `decode` | |
//! | `convert` | `model` |
//!
//! # What can go wrong
//! User input never makes the library panic. Each kind of work has its own error:
//!
//! | work | error |
//! |---|---|
//! | loading or inspecting a model | [`Error`](crate::Error), which names the file |
//! | building a pipeline from custom parts | [`BuildError`](crate::BuildError) |
//! | drawing, decoding or encoding a picture | [`GenerateError`](crate::GenerateError) |
//! | encoding texts | [`TextError`](crate::text::TextError) |
//! | converting a model | [`ConvertError`](crate::ConvertError) |
//!
//! A stopped run is a variant of [`GenerateError`](crate::GenerateError), and
//! [`is_stopped`](crate::GenerateError::is_stopped) separates it from failures. If a network
//! failed, the variant [`Backend`](crate::GenerateError::Backend) names it and the step with a
//! [`Stage`](crate::Stage), and its cause is a [`RunError`](crate::RunError).
//!
//! The message of an error does not contain the message of its cause, which
//! [`source`](std::error::Error::source) returns. So print the whole chain. The crates `anyhow` and
//! `eyre` do this when they print an error, and without them it takes a loop:
//!
//! ```
//! use std::error::Error;
//!
//! fn chain(error: &dyn Error) -> String {
//!     let mut text = error.to_string();
//!     let mut cause = error.source();
//!     while let Some(error) = cause {
//!         text += &format!(": {error}");
//!         cause = error.source();
//!     }
//!     text
//! }
//!
//! let error = sd_onnx::builder().load("no-such-model").unwrap_err();
//! println!("error: {}", chain(&error));
//! ```
//!
//! Prompts are limited to 64 KiB, with [two more limits](super::prompts#length). Pictures are
//! limited to 4096 × 4096 pixels; [`Builder::max_pixels`](crate::Builder::max_pixels) sets another
//! limit, and a server should set a lower one.
//!
//! If ONNX Runtime runs out of memory, the result is an error, provided that the operating system
//! reports it and does not end the process instead.
