//! One graph, ready to run.

use std::{
    collections::HashSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use ndarray::ArrayD;
use ort::{
    session::{
        OutputSelector, RunOptions, SelectedOutputMarker, SessionInputValue, SessionOutputs,
    },
    value::TensorRef,
};
use sd_core::{NetworkReport, StopToken};

use crate::{Error, engine::Engine, graph::Model, provider::on_device, weights::not_utf8};

/// The session option under which ONNX Runtime looks for external data of a model given as bytes.
const WEIGHTS_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// The session option that has `DequantizeLinear` folded like every other operator of constants. In
/// networks of whole numbers, which are not written here, it stands before the operators that
/// compute with them, and is kept.
const FOLD_SCALES: &str = "session.disable_quant_qdq";

/// The option of a call after which ONNX Runtime gives back the memory that it allocated for
/// tensors, and its value.
const GIVE_BACK: (&str, &str) = ("memory.enable_memory_arena_shrinkage", "cpu:0");

/// A session and the name that errors call it by. Runs one call at a time; others wait.
#[derive(Debug)]
pub(crate) struct Session {
    name: &'static str,
    report: NetworkReport,
    slot: Arc<Slot>,
    planned: Planned,
}

/// An input of a call.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    F32(&'a [usize], &'a [f32]),
    I64(&'a [usize], &'a [i64]),
}

impl Input<'_> {
    /// The sizes of its dimensions.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(shape, _) | Self::I64(shape, _) => shape,
        }
    }
}

impl Session {
    /// Loads `model`. Errors call it by `name`.
    pub fn new(name: &'static str, model: &Model, engine: &Engine) -> Result<Self, Error> {
        let _span = tracing::info_span!("load", session = name).entered();
        let failed = |error: ort::Error| Error::onnx(format!("loading the {name}"))(error);
        let folder = model
            .weights_root
            .to_str()
            .ok_or_else(|| not_utf8(&model.weights_root))?;
        let mut builder = ort::session::Session::builder(&engine.runtime.environment)
            .map_err(failed)?
            .with_intra_threads(engine.threads.into())
            .map_err(|e| failed(e.into()))?
            .with_config_entry(WEIGHTS_FOLDER, folder)
            .map_err(|e| failed(e.into()))?;
        if model.has_scales {
            // Otherwise it would multiply weights with their scales anew in every call.
            builder = builder
                .with_config_entry(FOLD_SCALES, "1")
                .map_err(|e| failed(e.into()))?;
        }
        for (name, bytes) in &model.memory {
            builder = builder
                .with_external_initializer_file_in_memory(name, bytes.clone())
                .map_err(|e| failed(e.into()))?;
        }
        let (mut builder, placement) = on_device(builder, engine).map_err(failed)?;
        let session = builder.commit_from_memory(&model.bytes).map_err(failed)?;
        Ok(Self {
            name,
            report: NetworkReport::new(name, placement.providers(model.nodes)),
            slot: Arc::new(Slot {
                session: Mutex::new(Some(session)),
                changed: Condvar::new(),
            }),
            planned: Planned::default(),
        })
    }

    /// Where its nodes run.
    pub fn report(&self) -> NetworkReport {
        self.report.clone()
    }

    /// Runs a graph of one output, whose shape and values `read` is given, unless `stop` is stopped before the end: while
    /// it waits for another call or within its own.
    pub fn run<T>(
        &self,
        inputs: &[(&str, Input<'_>)],
        stop: &StopToken,
        read: impl FnOnce(&[i64], &[f32]) -> T,
    ) -> Result<T, Error> {
        // Of this call only: a stop that comes late finds nothing to end.
        let mut options = RunOptions::new().map_err(|e| self.failed(e))?;
        let first = self.planned.prepare(inputs, &mut options);
        let first = first.map_err(|e| self.failed(e))?;
        let options = Arc::new(options);
        let (slot, running) = (self.slot.clone(), options.clone());
        let _on_stop = stop.on_stop(move || {
            // It never fails with options that are there.
            let _ = running.terminate();
            slot.wake_all();
        });
        // Neither this nor its drop holds the slot's lock while the callback comes or goes.
        let session = self.slot.take(Some(stop)).ok_or(Error::Stopped)?;
        let read = |outputs: &SessionOutputs<'_>| -> ort::Result<T> {
            let (shape, data) = outputs[0].try_extract_tensor::<f32>()?;
            Ok(read(shape, data))
        };
        let result = self
            .call(session, inputs, &options, read)
            .map_err(|error| {
                if stop.is_stopped() {
                    Error::Stopped
                } else {
                    error
                }
            })?;
        self.planned.add(first);
        Ok(result)
    }

    /// Runs what of the graph the outputs called `names` need, to its end, and returns them in their order.
    pub fn run_for(
        &self,
        inputs: &[(&str, Input<'_>)],
        names: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, Error> {
        let outputs = names
            .iter()
            .fold(OutputSelector::no_default(), |all, name| all.with(*name));
        let mut options = RunOptions::new().map_err(|e| self.failed(e))?;
        let first = self.planned.prepare(inputs, &mut options);
        let first = first.map_err(|e| self.failed(e))?;
        let options = options.with_outputs(outputs);
        let session = self.slot.take(None).expect("nothing stops it");
        let read = |outputs: &SessionOutputs<'_>| -> ort::Result<Vec<ArrayD<f32>>> {
            let mut arrays = Vec::with_capacity(names.len());
            for &name in names {
                let (shape, data) = outputs[name].try_extract_tensor::<f32>()?;
                let shape: Vec<usize> = shape.iter().map(|&side| side as usize).collect();
                let array = ArrayD::from_shape_vec(shape, data.to_vec())
                    .expect("the values are as many as the shape says");
                arrays.push(array);
            }
            Ok(arrays)
        };
        let arrays = self.call(session, inputs, &options, read)?;
        self.planned.add(first);
        Ok(arrays)
    }

    fn call<T>(
        &self,
        mut session: Taken<'_>,
        inputs: &[(&str, Input<'_>)],
        options: &RunOptions<impl SelectedOutputMarker>,
        read: impl FnOnce(&SessionOutputs<'_>) -> ort::Result<T>,
    ) -> Result<T, Error> {
        let inputs = inputs.iter().map(
            |&(name, input)| -> ort::Result<(&str, SessionInputValue<'_>)> {
                Ok((
                    name,
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
        let inputs = inputs
            .collect::<ort::Result<Vec<_>>>()
            .map_err(|e| self.failed(e))?;
        let outputs = session
            .session()
            .run_with_options(inputs, options)
            .map_err(|e| self.failed(e))?;
        read(&outputs).map_err(|e| self.failed(e))
    }

    fn failed(&self, error: ort::Error) -> Error {
        Error::onnx(format!("running the {}", self.name))(error)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.slot.lock().take());
        give_memory_back();
    }
}

/// Lets the system have what the allocator keeps of memory that was freed: glibc's keeps a third to a half of a model's.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // Safety: it takes no pointers, touches only what is free, and may run beside all other calls of the allocator.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The shapes of inputs for which ONNX Runtime has planned its memory.
///
/// In the first call with some shapes it allocates each tensor by itself, and notes the sizes. Each
/// later call with these shapes takes one block for all its tensors, which is up to 8 % faster in
/// small networks. The block would lie beside the memory of the first call, which ONNX Runtime
/// keeps: 2,091 MB in place of 1,288 for the decoder of Stable Diffusion 1.x at 512 × 512. So that
/// memory is given back after the first call, and later calls hold less than they would without a
/// plan: 1,081 MB.
#[derive(Debug, Default)]
struct Planned(Mutex<HashSet<Vec<usize>>>);

impl Planned {
    /// Prepares the options of a call with these inputs. Returns their shapes if there is no plan
    /// for them yet.
    fn prepare(
        &self,
        inputs: &[(&str, Input<'_>)],
        options: &mut RunOptions,
    ) -> ort::Result<Option<Vec<usize>>> {
        // Flat, because an input always has as many dimensions.
        let sides = inputs.iter().flat_map(|(_, input)| input.shape());
        let shapes: Vec<usize> = sides.copied().collect();
        if self.lock().contains(&shapes) {
            return Ok(None);
        }
        options.set(GIVE_BACK.0, GIVE_BACK.1)?;
        Ok(Some(shapes))
    }

    /// Remembers the shapes of a call that ran to its end. A call that was stopped leaves no plan.
    fn add(&self, shapes: Option<Vec<usize>>) {
        if let Some(shapes) = shapes {
            self.lock().insert(shapes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Vec<usize>>> {
        // Nothing panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the session lies while no call runs.
#[derive(Debug)]
struct Slot {
    session: Mutex<Option<ort::session::Session>>,
    /// It was put back, or a token was stopped.
    changed: Condvar,
}

impl Slot {
    /// Waits for the session; none when `stop` is stopped first.
    fn take(&self, stop: Option<&StopToken>) -> Option<Taken<'_>> {
        let mut slot = self.lock();
        loop {
            if stop.is_some_and(StopToken::is_stopped) {
                return None;
            }
            if let Some(session) = slot.take() {
                return Some(Taken {
                    slot: self,
                    session: Some(session),
                });
            }
            slot = self
                .changed
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Under the lock: not between a waiting call's look at its token and its sleep.
    fn wake_all(&self) {
        let _slot = self.lock();
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Option<ort::session::Session>> {
        // A session is in it or not, whatever panicked.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The session, out of its slot until this is dropped, also by a panic.
struct Taken<'a> {
    slot: &'a Slot,
    session: Option<ort::session::Session>,
}

impl Taken<'_> {
    fn session(&mut self) -> &mut ort::session::Session {
        self.session.as_mut().expect("it is there until the drop")
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.slot.lock() = self.session.take();
        // All, for the first to wake may be one that was stopped.
        self.slot.changed.notify_all();
    }
}
