//! A run on a thread of its own, as a sequence of events.

use std::{
    fmt,
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll},
    thread::JoinHandle,
};

use async_channel::{Receiver, Sender};
use futures_core::Stream;
use image::RgbImage;

use crate::{Error, Event, OnStop, Picture, Pipeline, Request, StepInfo, StopToken};

/// What [`Events`] yield.
#[derive(Debug)]
#[non_exhaustive]
pub enum Update {
    /// A picture is a step further.
    Step {
        /// How far.
        step: StepInfo,
        /// A small picture of what it is so far, a pixel for each latent, as [`Progress::preview`](crate::Progress::preview)
        /// makes it.
        preview: RgbImage,
    },
    /// A picture is finished.
    Picture(Box<Picture>),
}

/// A run on a thread of its own, as an iterator over its events: [`Pipeline::events`] starts it.
///
/// Ends after the last picture or the first error; a run that was stopped yields [`Error::Stopped`]
/// last. The run waits when it is two events ahead of who reads them. Dropping this stops the run,
/// and leaves the caller's token as it is.
pub struct Events(Running);

/// [`Events`] as a `Stream`, for any async executor.
pub struct EventStream(Running);

struct Running {
    receiver: Pin<Box<Receiver<Item>>>,
    /// Stops this run alone. The caller's token may be that of other runs.
    stop: StopToken,
    /// Passes the caller's stop on.
    _callers: OnStop,
    thread: Option<JoinHandle<()>>,
}

type Item = Result<Update, Error>;

impl Events {
    pub(crate) fn start(pipeline: Pipeline, requests: Vec<Request>, callers: &StopToken) -> Self {
        let (sender, receiver) = async_channel::bounded(2);
        let stop = StopToken::new();
        let stopped = stop.clone();
        let callers = callers.on_stop(move || stopped.stop());
        let (token, sender_there) = (stop.clone(), sender.clone());
        let run = move || send(&pipeline, &requests, &token, &sender_there);
        let thread = std::thread::Builder::new()
            .name("sd-events".into())
            .spawn(run);
        let thread = thread.map_err(|error| {
            let error = Error::backend("starting a thread")(error.into());
            // The channel is empty and its reader is here.
            let _ = sender.try_send(Err(error));
        });
        Self(Running {
            receiver: Box::pin(receiver),
            stop,
            _callers: callers,
            thread: thread.ok(),
        })
    }

    /// The same events as a `Stream`.
    pub fn into_stream(self) -> EventStream {
        EventStream(self.0)
    }
}

impl Running {
    /// After the last event: a panic of the run, which only parts of the caller's own can have, goes on here.
    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

fn send(pipeline: &Pipeline, requests: &[Request], stop: &StopToken, sender: &Sender<Item>) {
    let result = pipeline.run(requests, stop, |event| {
        let update = match event {
            Event::Step(progress) => Update::Step {
                step: progress.step,
                preview: progress.preview(),
            },
            Event::Picture(picture) => Update::Picture(picture),
        };
        match sender.send_blocking(Ok(update)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    if let Err(error) = result {
        // Nobody may be left to read it.
        let _ = sender.send_blocking(Err(error));
    }
}

impl Iterator for Events {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let event = self.0.receiver.recv_blocking().ok();
        if event.is_none() {
            self.0.join();
        }
        event
    }
}

impl Stream for EventStream {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let event = self.0.receiver.as_mut().poll_next(context);
        if matches!(event, Poll::Ready(None)) {
            self.0.join();
        }
        event
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A run that waits to be read must not wait for ever.
        self.receiver.close();
        self.stop.stop();
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.0.stop).finish()
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EventStream").field(&self.0.stop).finish()
    }
}
