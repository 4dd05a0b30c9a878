//! A graph that is loaded into ONNX Runtime and ready to run.

use std::{
    collections::HashSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use ndarray::ArrayD;
use ort::{
    logging::LogLevel,
    session::{
        NoSelectedOutputs, OutputSelector, RunOptions, SelectedOutputMarker, SessionInputValue,
        SessionOutputs,
    },
    value::TensorRef,
};
use sd_core::{NetworkReport, StopToken};

use crate::{
    Device, Error, RunError, binding::Binding, engine::Engine, graph::Model, provider::on_device,
    weights::not_utf8,
};

/// The session option with the folder of the external data, for a model given as bytes.
const WEIGHTS_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// The session option that lets ONNX Runtime fold `DequantizeLinear` like any other operator on
/// constants.
///
/// By default it keeps the operator, and joins it with the operators that follow into operators on
/// integers. This crate writes those operators itself where it wants them.
const FOLD_SCALES: &str = "session.disable_quant_qdq";

/// The run option that makes ONNX Runtime release the memory that it allocated for tensors when the
/// call ends. Its value lists the devices.
const GIVE_BACK: &str = "memory.enable_memory_arena_shrinkage";

/// A session of ONNX Runtime. It runs one call at a time, and other calls wait.
#[derive(Debug)]
pub(crate) struct Session {
    /// The network's name in errors.
    name: &'static str,
    /// The names of the graph's inputs.
    inputs: HashSet<String>,
    /// The name of the graph's first output.
    output: String,
    /// Whether inputs are kept on the device.
    binds: bool,
    report: NetworkReport,
    /// Shared with the callbacks of stop tokens, which wake the calls that wait for the session.
    slot: Arc<Slot>,
    planned: Planned,
}

/// An input of a call: its shape and its values in row-major order.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    F32(&'a [usize], &'a [f32]),
    I64(&'a [usize], &'a [i64]),
    /// f32 values that other calls may share, such as the factors of LoRAs. A session can keep them
    /// alive, and then knows without comparing them that they have not changed.
    Shared(&'a [usize], &'a Arc<[f32]>),
}

impl Input<'_> {
    /// Returns the sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(shape, _) | Self::I64(shape, _) | Self::Shared(shape, _) => shape,
        }
    }
}

impl Session {
    /// Loads `model`. Errors call it `name`.
    ///
    /// # Errors
    /// - [`Error::Io`] when the path of the weights' folder is not valid UTF-8.
    /// - [`Error::Onnx`] when ONNX Runtime refuses the model or the device.
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
            // Otherwise ONNX Runtime would multiply the weights by their scales in every call.
            builder = builder
                .with_config_entry(FOLD_SCALES, "1")
                .map_err(|e| failed(e.into()))?;
        }
        for (name, bytes) in &model.memory {
            builder = builder
                .with_external_initializer_file_in_memory(name, bytes.clone())
                .map_err(|e| failed(e.into()))?;
        }
        let (mut builder, placement) =
            on_device(builder, model.exported, engine).map_err(failed)?;
        let session = builder.commit_from_memory(&model.bytes).map_err(failed)?;
        let inputs = session.inputs().iter();
        let inputs = inputs.map(|input| input.name().to_owned()).collect();
        let output = session.outputs().first();
        let output = output.map_or_else(String::new, |output| output.name().to_owned());
        let binding = engine.as_cuda.then(|| Binding::new(&session));
        let loaded = Loaded {
            binding: binding.transpose().map_err(failed)?,
            session,
        };
        Ok(Self {
            name,
            inputs,
            output,
            binds: engine.as_cuda,
            report: NetworkReport::new(name, placement.providers(model.nodes)),
            slot: Arc::new(Slot {
                session: Mutex::new(Some(loaded)),
                changed: Condvar::new(),
            }),
            planned: Planned {
                devices: match engine.device {
                    Device::Cuda => "cpu:0;gpu:0",
                    _ => "cpu:0",
                },
                shapes: Mutex::default(),
            },
        })
    }

    /// Returns whether the graph has an input of this name.
    pub fn takes(&self, name: &str) -> bool {
        self.inputs.contains(name)
    }

    /// Returns how many inputs were copied to the device, or `None` if none are kept there.
    #[cfg(test)]
    pub fn copies(&self) -> Option<usize> {
        let slot = self.slot.lock();
        let binding = slot.as_ref().and_then(|loaded| loaded.binding.as_ref());
        binding.map(|binding| binding.copies)
    }

    /// Returns the number of nodes that each provider runs.
    pub fn report(&self) -> NetworkReport {
        self.report.clone()
    }

    /// Runs a graph, and passes the shape and the values of its first output to `read`. Stopping
    /// `stop` ends the call, both while it waits for another call and while it runs.
    ///
    /// # Errors
    /// - [`RunError::Stopped`] when `stop` is stopped before the call has ended.
    /// - [`RunError::Onnx`] when ONNX Runtime fails.
    pub fn run<T>(
        &self,
        inputs: &[(&str, Input<'_>)],
        stop: &StopToken,
        read: impl FnOnce(&[i64], &[f32]) -> T,
    ) -> Result<T, RunError> {
        self.run_whole(inputs, stop, &[&self.output], |outputs| {
            let (shape, data) = outputs[0].try_extract_tensor::<f32>()?;
            Ok(read(shape, data))
        })
    }

    /// Runs the whole graph, and returns its outputs `names` in this order. Stopping `stop` ends
    /// the call like [`run`](Self::run).
    ///
    /// # Errors
    /// The same as for [`run`](Self::run).
    pub fn run_all(
        &self,
        inputs: &[(&str, Input<'_>)],
        stop: &StopToken,
        names: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, RunError> {
        self.run_whole(inputs, stop, names, |outputs| arrays(outputs, names))
    }

    /// Runs the whole graph. `names` are the outputs that `read` needs. On a device, the others are
    /// not copied to the host.
    fn run_whole<T>(
        &self,
        inputs: &[(&str, Input<'_>)],
        stop: &StopToken,
        names: &[&str],
        read: impl FnOnce(&SessionOutputs<'_>) -> ort::Result<T>,
    ) -> Result<T, RunError> {
        // Each call has its own options, so a late stop cannot end a later call.
        let mut options = RunOptions::new().map_err(|e| self.failed(e))?;
        let first = self.planned.prepare(inputs, &mut options);
        let first = first.map_err(|e| self.failed(e))?;
        let options = Arc::new(options);
        let (slot, running) = (self.slot.clone(), options.clone());
        let _on_stop = stop.on_stop(move || {
            // This cannot fail, because the options are valid.
            let _ = running.terminate();
            slot.wake_all();
        });
        // The slot's lock is not held while the callback is registered or removed, because the
        // callback takes that lock.
        let session = self.slot.take(Some(stop)).ok_or(RunError::Stopped)?;
        let result = match self.binds {
            true => self.call_bound(session, inputs, names, &options, read),
            // All outputs: options that select outputs cannot be shared with the callback.
            false => self.call(session, inputs, &options, read),
        };
        let result = result.map_err(|error| match stop.is_stopped() {
            true => RunError::Stopped,
            false => error,
        })?;
        self.planned.add(first);
        Ok(result)
    }

    /// Runs only the part of the graph that the outputs `names` need, and returns these outputs in
    /// the order of `names`. The call cannot be stopped.
    ///
    /// # Errors
    /// [`RunError::Onnx`] when ONNX Runtime fails.
    pub fn run_for(
        &self,
        inputs: &[(&str, Input<'_>)],
        names: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, RunError> {
        let mut options = RunOptions::new().map_err(|e| self.failed(e))?;
        let first = self.planned.prepare(inputs, &mut options);
        let first = first.map_err(|e| self.failed(e))?;
        let none = OutputSelector::no_default();
        let options = options.with_outputs(names.iter().fold(none, |all, name| all.with(*name)));
        let session = self
            .slot
            .take(None)
            .expect("a call without a stop token is not stopped");
        let read = |outputs: &SessionOutputs<'_>| arrays(outputs, names);
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
    ) -> Result<T, RunError> {
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
                        Input::Shared(shape, data) => {
                            TensorRef::from_array_view((shape, &**data))?.into()
                        }
                    },
                ))
            },
        );
        let inputs = inputs
            .collect::<ort::Result<Vec<_>>>()
            .map_err(|e| self.failed(e))?;
        let outputs = session
            .loaded()
            .session
            .run_with_options(inputs, options)
            .map_err(|e| self.failed(e))?;
        read(&outputs).map_err(|e| self.failed(e))
    }

    /// Runs the graph with the inputs that are already on the device.
    fn call_bound<T>(
        &self,
        mut session: Taken<'_>,
        inputs: &[(&str, Input<'_>)],
        names: &[&str],
        options: &RunOptions<NoSelectedOutputs>,
        read: impl FnOnce(&SessionOutputs<'_>) -> ort::Result<T>,
    ) -> Result<T, RunError> {
        let Loaded { session, binding } = session.loaded();
        let binding = binding.as_mut().expect("the session binds its inputs");
        let outputs = binding.run(session, inputs, names, options);
        outputs
            .and_then(|outputs| read(&outputs))
            .map_err(|e| self.failed(e))
    }

    fn failed(&self, error: ort::Error) -> RunError {
        RunError::onnx(self.name)(error)
    }
}

/// Copies the outputs `names`.
fn arrays(outputs: &SessionOutputs<'_>, names: &[&str]) -> ort::Result<Vec<ArrayD<f32>>> {
    let array = |&name: &&str| {
        let (shape, data) = outputs[name].try_extract_tensor::<f32>()?;
        let shape: Vec<usize> = shape.iter().map(|&side| side as usize).collect();
        let array = ArrayD::from_shape_vec(shape, data.to_vec());
        Ok(array.expect("the number of values fits the shape"))
    };
    names.iter().map(array).collect()
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.slot.lock().take());
        give_memory_back();
    }
}

/// Returns freed memory to the system. glibc's allocator otherwise keeps a third to a half of a
/// model's memory.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // Safety: `malloc_trim` takes no pointers, changes only free memory, and may run at the same
    // time as any other call of the allocator.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The input shapes for which ONNX Runtime has a memory plan.
///
/// In the first call with new shapes, ONNX Runtime allocates each tensor separately and records the
/// sizes. Each later call with the same shapes allocates one block for all tensors, which is up to
/// 8 % faster in small networks.
///
/// By default ONNX Runtime keeps the memory of the first call, so the block comes on top of it. For
/// the VAE decoder of Stable Diffusion 1.x at 512 × 512, that makes 2,091 MB instead of 1,288 MB.
/// The memory is therefore released after the first call. Later calls then hold 1,081 MB, less than
/// without a plan.
#[derive(Debug)]
struct Planned {
    /// The devices whose memory is released, for [`GIVE_BACK`].
    devices: &'static str,
    shapes: Mutex<HashSet<Vec<usize>>>,
}

impl Planned {
    /// Prepares the options of a call with these inputs. Returns the shapes of the inputs if ONNX
    /// Runtime has no plan for them yet.
    fn prepare(
        &self,
        inputs: &[(&str, Input<'_>)],
        options: &mut RunOptions,
    ) -> ort::Result<Option<Vec<usize>>> {
        // Providers that report the placement of nodes in the log would write it in every call.
        options.set_log_level(LogLevel::Fatal)?;
        // The shapes are concatenated. This is unambiguous, because the number of dimensions of
        // each input is fixed.
        let sides = inputs.iter().flat_map(|(_, input)| input.shape());
        let shapes: Vec<usize> = sides.copied().collect();
        if self.lock().contains(&shapes) {
            return Ok(None);
        }
        options.set(GIVE_BACK, self.devices)?;
        Ok(Some(shapes))
    }

    /// Remembers the shapes of a call that has completed. A stopped call leaves no plan.
    fn add(&self, shapes: Option<Vec<usize>>) {
        if let Some(shapes) = shapes {
            self.lock().insert(shapes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Vec<usize>>> {
        // No code that holds the lock panics.
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session of ONNX Runtime, and the inputs that it keeps on the device, if it does.
#[derive(Debug)]
struct Loaded {
    // Dropped first, because it refers to the session.
    binding: Option<Binding>,
    session: ort::session::Session,
}

/// The place of the session while no call runs.
#[derive(Debug)]
struct Slot {
    session: Mutex<Option<Loaded>>,
    /// Signals that the session was put back, or that a stop token was stopped.
    changed: Condvar,
}

impl Slot {
    /// Waits for the session and takes it. Returns `None` if `stop` is stopped first.
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

    /// Wakes all waiting calls. It takes the lock, so that the signal cannot fall between the
    /// moment when a call checks its token and the moment when it starts to wait.
    fn wake_all(&self) {
        let _slot = self.lock();
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Loaded>> {
        // Even after a panic, the slot either holds a complete session or is empty.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that was taken out of its slot. Dropping this value puts it back, even during a panic.
struct Taken<'a> {
    slot: &'a Slot,
    session: Option<Loaded>,
}

impl Taken<'_> {
    fn loaded(&mut self) -> &mut Loaded {
        self.session
            .as_mut()
            .expect("the session is present until the drop")
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.slot.lock() = self.session.take();
        // All waiting calls are woken, because the first one to wake may have been stopped.
        self.slot.changed.notify_all();
    }
}
