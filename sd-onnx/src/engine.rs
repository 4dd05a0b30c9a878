//! The ONNX Runtime library, the device and the settings that all networks of a pipeline share.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{
    Device, Error, Precision,
    graph::Dialect,
    network::Sessions,
    runtime::{OpenVino, Runtime},
};

/// An ONNX Runtime library, the device that networks run on, and the limits on memory and threads.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub runtime: Arc<Runtime>,
    pub device: Device,
    pub precision: Precision,
    /// The source of OpenVINO's provider. `None` if the device does not need it.
    pub openvino: Option<OpenVino>,
    /// The number of channels per block of ONNX Runtime's blocked convolutions. `None` if graphs
    /// are written with plain convolutions.
    channel_block: Option<usize>,
    /// Whether calls are made as CUDA needs them: sessions keep inputs on the device for later
    /// calls with the same inputs, and the two halves of guidance run as one batch.
    pub as_cuda: bool,
    /// The number of threads per call, or 0 for one per physical core.
    pub threads: u16,
    /// The number of loaded sessions per network, if each input size needs a session. At least 1.
    pub kept_sizes: usize,
    /// The sessions of all networks, if only one network may be loaded at a time.
    exclusive: Option<Arc<Mutex<Vec<Loaded>>>>,
    /// The UNet whose networks are made.
    unet: Arc<()>,
    /// Whether new networks stay loaded together with others of the same UNet.
    together: bool,
}

/// The sessions of a network, and the UNet with which it stays loaded.
#[derive(Debug)]
struct Loaded {
    sessions: Weak<Sessions>,
    unet: Option<Arc<()>>,
}

/// The settings of a new [`Engine`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings<'a> {
    pub device: Device,
    pub precision: Precision,
    pub threads: u16,
    /// The path of the ONNX Runtime library. `None` searches for one.
    pub library: Option<&'a Path>,
    /// As in [`Engine`], but 0 counts as 1.
    pub kept_sizes: usize,
    /// Whether only one network may be loaded at a time.
    pub low_memory: bool,
}

impl Engine {
    /// Starts ONNX Runtime and checks that the device and the precision are available. If `library`
    /// is `None`, the library is searched for.
    ///
    /// # Errors
    /// [`Error::Runtime`] when the library cannot be found or started, when it does not have the
    /// device, or when the device does not support the precision.
    pub fn new(settings: Settings<'_>) -> Result<Self, Error> {
        let Settings {
            device, precision, ..
        } = settings;
        device.check_precision(precision)?;
        let runtime = Runtime::start(settings.library, device)?;
        let openvino = device.check(&runtime)?;
        let channel_block = match device {
            Device::Cpu => runtime.channel_block(),
            _ => None,
        };
        let engine = Self {
            channel_block,
            as_cuda: device == Device::Cuda,
            runtime,
            device,
            precision,
            openvino,
            threads: settings.threads,
            kept_sizes: settings.kept_sizes.max(1),
            exclusive: settings.low_memory.then(Arc::default),
            unet: Arc::default(),
            together: false,
        };
        #[cfg(test)]
        let engine = engine.rehearsing();
        Ok(engine)
    }

    /// Returns the form in which graphs are written.
    pub fn dialect(&self) -> Dialect {
        match self.as_cuda {
            true => Dialect::cuda(self.precision),
            false => Dialect {
                channel_block: self.channel_block,
                ..Dialect::of(self.openvino, self.precision)
            },
        }
    }

    /// Returns whether the factors of LoRAs must not be empty. OpenVINO has no empty tensors, and
    /// cuDNN no empty convolutions.
    pub fn pads_factors(&self) -> bool {
        self.dialect().fixed_sizes || self.as_cuda
    }

    /// Returns whether a network is unloaded when another one is needed.
    pub fn low_memory(&self) -> bool {
        self.exclusive.is_some()
    }

    /// Returns the same engine for another UNet and the networks that run beside it.
    pub fn for_unet(&self) -> Self {
        Self {
            unet: Arc::default(),
            ..self.clone()
        }
    }

    /// Returns the same engine for networks that run in the same steps of a UNet. If only one
    /// network may be loaded at a time, these networks count as one.
    pub fn together(&self) -> Self {
        Self {
            together: true,
            ..self.clone()
        }
    }

    /// Returns the same engine in f32 for networks that are not calibrated, if the precision is
    /// int8.
    pub fn without_int8(&self) -> Self {
        let mut engine = self.clone();
        if self.precision == Precision::Int8 {
            engine.precision = Precision::F32;
        }
        engine
    }

    /// Registers the sessions of a network, so that [`make_room`](Self::make_room) can unload them.
    /// Does nothing if there is no limit on loaded networks.
    pub fn register(&self, sessions: &Arc<Sessions>) {
        if let Some(all) = &self.exclusive {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|network| network.sessions.strong_count() > 0);
            all.push(Loaded {
                sessions: Arc::downgrade(sessions),
                unet: self.together.then(|| self.unet.clone()),
            });
        }
    }

    /// Unloads all networks except the one with `sessions`, which this engine has made, if only one
    /// may be loaded.
    pub fn make_room(&self, sessions: &Arc<Sessions>) {
        let Some(all) = &self.exclusive else {
            return;
        };
        let all = all.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = |other: &Loaded| {
            let unet = other.unet.as_ref();
            self.together && unet.is_some_and(|unet| Arc::ptr_eq(unet, &self.unet))
        };
        for other in all.iter().filter(|other| !stays(other)) {
            if let Some(other) = other.sessions.upgrade()
                && !Arc::ptr_eq(&other, sessions)
            {
                other.unload();
            }
        }
    }
}

#[cfg(test)]
thread_local! {
    /// The precision of [`rehearse_cuda`].
    static REHEARSED: std::cell::Cell<Option<Precision>> = const { std::cell::Cell::new(None) };
}

/// Calls `load`, and makes the engines that it creates for the CPU do everything as on CUDA, except
/// that the CPU runs the nodes: they write CUDA's graphs, keep inputs, and batch guidance.
#[cfg(test)]
pub(crate) fn rehearse_cuda<T>(precision: Precision, load: impl FnOnce() -> T) -> T {
    REHEARSED.set(Some(precision));
    let loaded = load();
    REHEARSED.set(None);
    loaded
}

#[cfg(test)]
impl Engine {
    fn rehearsing(self) -> Self {
        match REHEARSED.get() {
            Some(precision) => Self {
                as_cuda: true,
                precision,
                ..self
            },
            None => self,
        }
    }
}
