//! One graph, ready to run.

use std::sync::{Arc, Mutex, PoisonError};

use ort::{
    session::{OutputSelector, RunOptions, SessionInputValue},
    value::TensorRef,
};

use crate::{Error, graph::Model, runtime::Runtime, weights::not_utf8};

/// The session option under which ONNX Runtime looks for external data of a model given as bytes.
const WEIGHTS_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// A session and the name that errors call it by. Runs one call at a time; others wait.
#[derive(Debug)]
pub(crate) struct Session {
    name: &'static str,
    session: Mutex<ort::session::Session>,
}

/// An input of a call.
pub(crate) enum Input<'a> {
    F32(&'a [usize], &'a [f32]),
    I64(&'a [usize], &'a [i64]),
}

impl Session {
    /// Loads `model`; `threads` 0 is one per physical core.
    pub fn new(
        name: &'static str,
        model: &Model,
        runtime: &Arc<Runtime>,
        threads: u16,
    ) -> Result<Self, Error> {
        let _span = tracing::info_span!("load", session = name).entered();
        let failed = |error: ort::Error| Error::onnx(format!("loading the {name}"))(error);
        let folder = model
            .weights_root
            .to_str()
            .ok_or_else(|| not_utf8(&model.weights_root))?;
        let mut builder = ort::session::Session::builder(&runtime.environment)
            .map_err(failed)?
            .with_intra_threads(threads.into())
            .map_err(|e| failed(e.into()))?
            .with_config_entry(WEIGHTS_FOLDER, folder)
            .map_err(|e| failed(e.into()))?;
        let session = builder.commit_from_memory(&model.bytes).map_err(failed)?;
        Ok(Self {
            name,
            session: Mutex::new(session),
        })
    }

    /// Runs the graph for the one output called `output`, whose shape and values `read` is given.
    pub fn run<const N: usize, T>(
        &self,
        inputs: [(&str, Input<'_>); N],
        output: &str,
        read: impl FnOnce(&[i64], &[f32]) -> T,
    ) -> Result<T, Error> {
        let failed = |error: ort::Error| Error::onnx(format!("running the {}", self.name))(error);
        let inputs = inputs.into_iter().map(
            |(name, input)| -> ort::Result<(String, SessionInputValue<'_>)> {
                Ok((
                    name.to_owned(),
                    match input {
                        Input::F32(shape, data) => {
                            TensorRef::from_array_view((shape, data))?.into()
                        }
                        Input::I64(shape, data) => {
                            TensorRef::from_array_view((shape, data))?.into()
                        }
                    },
                ))
            },
        );
        let inputs = inputs.collect::<ort::Result<Vec<_>>>().map_err(failed)?;
        let options = RunOptions::new()
            .map_err(failed)?
            .with_outputs(OutputSelector::no_default().with(output));
        // A panic elsewhere while the lock was held left the session as it was: it is only ever read here.
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run_with_options(inputs, &options).map_err(failed)?;
        let (shape, data) = outputs[output]
            .try_extract_tensor::<f32>()
            .map_err(failed)?;
        Ok(read(shape, data))
    }
}
