//! What sessions are made with.

use std::{path::Path, sync::Arc};

use crate::{Device, Error, graph::Model, runtime::Runtime, session::Session};

/// ONNX Runtime, the device that networks run on, and the threads that each may use. Makes
/// [`Session`]s.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    runtime: Arc<Runtime>,
    /// 0 for one per physical core.
    threads: u16,
}

impl Engine {
    /// Starts ONNX Runtime, from `library` or where else it is found, and checks that it has the
    /// device.
    pub fn new(device: Device, threads: u16, library: Option<&Path>) -> Result<Self, Error> {
        let runtime = Runtime::start(library, device)?;
        device.check(&runtime)?;
        Ok(Self { runtime, threads })
    }

    /// Gets a graph ready to run. Errors call it by `name`.
    pub fn session(&self, name: &'static str, model: &Model) -> Result<Session, Error> {
        Session::new(name, model, &self.runtime, self.threads)
    }
}
