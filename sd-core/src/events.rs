//! A run on its own thread, as a sequence of events.

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

use crate::{Event, GenerateError, OnStop, Picture, Pipeline, Request, Stage, StepInfo, StopToken};

/// An event of [`Events`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Update {
    /// A picture has completed a step.
    Step {
        /// The state of the run, in numbers.
        step: StepInfo,
        /// A picture of the model's current estimate, usually with one pixel for each latent. See
        /// [`Progress::preview`](crate::Progress::preview).
        preview: RgbImage,
    },
    /// A picture is finished.
    Picture(Box<Picture>),
}

/// A run on its own thread, as an iterator over its events. [`Pipeline::events`] starts it.
///
/// The iterator ends after the last picture or after the first error. A run that was stopped yields
/// [`GenerateError::Stopped`] last. The run waits while two events have not been read. Dropping the
/// iterator stops the run, but not the caller's token.
pub struct Events(Running);

/// A run on its own thread, as a `Stream` for any async executor. [`Events::into_stream`] creates
/// it.
pub struct EventStream(Running);

struct Running {
    receiver: Pin<Box<Receiver<Item>>>,
    /// Stops only this run, as other runs may share the caller's token.
    stop: StopToken,
    /// Stops this run when the caller's token is stopped.
    _callers: OnStop,
    thread: Option<JoinHandle<()>>,
}

type Item = Result<Update, GenerateError>;

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
            let error = GenerateError::backend(Stage::Thread)(error.into());
            // Sending cannot fail: the channel is empty, and its receiver is still here.
            let _ = sender.try_send(Err(error));
        });
        Self(Running {
            receiver: Box::pin(receiver),
            stop,
            _callers: callers,
            thread: thread.ok(),
        })
    }

    /// Turns the iterator into a `Stream` of the same events.
    pub fn into_stream(self) -> EventStream {
        EventStream(self.0)
    }
}

impl Running {
    /// Waits for the thread after the last event, and passes on a panic of the run. Only custom
    /// parts can cause one.
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
        // Nobody may be left to read the error.
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
        // The channel is closed first, so that a run that waits for its reader can end.
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
