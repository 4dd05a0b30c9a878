//! In a program: sharing a pipeline, several requests, watching, stopping, streaming, timings.
//!
//! # One pipeline, many threads
//! A [`Pipeline`](crate::Pipeline) is `Send + Sync`, its clones share the model, and every method takes `&self`.
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
//! **What runs at once, and what waits.** Each network (text encoder, UNet, VAE decoder, VAE encoder) runs one call at a
//! time, on all the threads that the [builder](crate::Builder::threads) gave it; a second call waits for the first to end.
//! Different networks run side by side, and so do those of different pipelines. Two pictures on one pipeline therefore take
//! turns step by step and are done in about the time of one after the other. That is on purpose: a call already uses every
//! core, and two at once would need the memory of two. A server that wants more throughput on a machine of many cores loads
//! the model twice with half the threads each.
//!
//! **What is shared.** The process has one ONNX Runtime. Pipelines may share parts:
//! [`Builder::codec`](crate::Builder::codec) gives a second model the autoencoder of the first. A part is freed when the last
//! pipeline that has it is dropped.
//!
//! # Several requests
//! [`generate_all`](crate::Pipeline::generate_all) takes requests that differ in anything. All are checked before the first
//! network runs, and the error tells everything that is wrong in any of them. A text that several have is encoded once.
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
//! let what = problems.iter().map(|problem| &*problem.what);
//! assert_eq!(what.collect::<Vec<_>>(), ["width", "steps"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! A request is a plain value. [`Request::from_json`](crate::Request::from_json) reads it from what
//! a web page sends, `{"prompt": "a fox", "steps": 30, "scheduler": "euler-a"}`, and names every
//! field that is wrong.
//!
//! # Watching
//! [`run`](crate::Pipeline::run) tells a closure of every step and hands over every picture as it is finished. A step says how
//! far the run is, and gives a look at it: [`preview`](crate::Progress::preview), a small picture that costs next to nothing, or
//! [`decode`](crate::Progress::decode), the full one.
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
//! The closure stops the run by [`Break`](std::ops::ControlFlow::Break); any other thread does by the
//! [`StopToken`](crate::StopToken). On the CPU a token takes effect within one operator of the network that is running, a
//! fraction of a second at full size; a provider that runs the whole graph as one node finishes the call first. A call that
//! waits for another thread's gives up its place. (Only the text encoder, which takes a moment, runs to its end.) What comes back is
//! [`GenerateError::Stopped`](crate::GenerateError::Stopped), with the latents so far; nothing is decoded any more, and the
//! pipeline is as good as before.
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
//! [`events`](crate::Pipeline::events) is the same on a thread of its own: an iterator over steps (with their previews) and
//! pictures, for a window's event loop; [`into_stream`](crate::Events::into_stream) makes a `Stream` of it, for any async
//! executor. Dropping it stops the run.
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
//! [`Picture::timings`](crate::Picture::timings) says what encoding, each step and decoding took. With a subscriber of the
//! `tracing` crate there are spans `load` (fields `model`, `session`), `encode` (`clip_skip`), `denoise` (`seed`, `steps`, `width`,
//! `height`, `scheduler`, `ladder`, `batch`), `unet` (`timestep`, `sigma`) and `decode`, and an event for each step.
//!
//! # What can go wrong
//! Nothing that a user types makes the library panic. [`Error`](crate::Error) is what loading a model fails with, and names the file,
//! the tensor and what was expected of it; [`GenerateError`](crate::GenerateError) is what drawing fails with. Prompts are at most 64 KiB
//! ([of long ones](super::prompts#length)), pictures at most 4096 × 4096 pixels unless
//! [`Builder::max_pixels`](crate::Builder::max_pixels) says otherwise: a server wants less. Where memory runs out within ONNX
//! Runtime, that is an error too, as far as the system says so and does not end the process.
