//! A run as a stream of events.

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

use crate::{Error, Event, Picture, Pipeline, Request, StepInfo, StopToken};

/// What a [stream](Pipeline::stream) yields.
#[derive(Debug)]
#[non_exhaustive]
pub enum StreamEvent {
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

/// A run on a thread of its own, as an iterator and as a [`Stream`] for any executor. Ends after the last picture or the
/// first error; a run that was stopped yields [`Error::Stopped`] last. The run is never more than two events ahead of who
/// reads them. Dropping it stops the run.
pub struct Events {
    receiver: Pin<Box<Receiver<Item>>>,
    stop: StopToken,
    thread: Option<JoinHandle<()>>,
}

type Item = Result<StreamEvent, Error>;

impl Events {
    pub(crate) fn start(pipeline: Pipeline, requests: Vec<Request>, stop: StopToken) -> Self {
        let (sender, receiver) = async_channel::bounded(2);
        let token = stop.clone();
        let thread = std::thread::spawn(move || send(&pipeline, &requests, &token, &sender));
        Self {
            receiver: Box::pin(receiver),
            stop,
            thread: Some(thread),
        }
    }

    /// The run's token.
    pub fn stop_token(&self) -> &StopToken {
        &self.stop
    }

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
    let mut failed = false;
    let result = pipeline.run(requests, stop, |event| {
        let event = match event {
            Event::Step(progress) => progress.preview().map(|preview| StreamEvent::Step {
                step: progress.step,
                preview,
            }),
            Event::Picture(picture) => Ok(StreamEvent::Picture(picture)),
        };
        failed = event.is_err();
        match sender.send_blocking(event) {
            Ok(()) if !failed => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    });
    if let Err(error) = result
        && !failed
    {
        // Nobody may be left to read it.
        let _ = sender.send_blocking(Err(error));
    }
}

impl Iterator for Events {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let event = self.receiver.recv_blocking().ok();
        if event.is_none() {
            self.join();
        }
        event
    }
}

impl Stream for Events {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let event = self.receiver.as_mut().poll_next(context);
        if matches!(event, Poll::Ready(None)) {
            self.join();
        }
        event
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.receiver.close();
        self.stop.stop();
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}
