//! What sessions are made with.

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

/// ONNX Runtime, the device that networks run on and how they may use it.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub runtime: Arc<Runtime>,
    pub device: Device,
    pub precision: Precision,
    /// Where OpenVINO's provider comes from, if it drives the device.
    pub openvino: Option<OpenVino>,
    /// The number of channels per block, where ONNX Runtime's own kernels run convolutions over
    /// blocks of channels.
    channel_block: Option<usize>,
    /// 0 for one per physical core.
    pub threads: u16,
    /// The sessions of a network that are kept where each size needs one. At least 1.
    pub kept_sizes: usize,
    /// All networks, if only one of them may be loaded at a time.
    exclusive: Option<Arc<Mutex<Vec<Weak<Sessions>>>>>,
}

/// What an [`Engine`] is made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings<'a> {
    pub device: Device,
    pub precision: Precision,
    pub threads: u16,
    pub library: Option<&'a Path>,
    pub kept_sizes: usize,
    pub low_memory: bool,
}

impl Engine {
    /// Starts ONNX Runtime, from `library` or where else it is found, and checks that it has the
    /// device and the device the precision.
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
        Ok(Self {
            channel_block,
            runtime,
            device,
            precision,
            openvino,
            threads: settings.threads,
            kept_sizes: settings.kept_sizes.max(1),
            exclusive: settings.low_memory.then(Arc::default),
        })
    }

    /// The form that graphs are written in.
    pub fn dialect(&self) -> Dialect {
        Dialect {
            channel_block: self.channel_block,
            ..Dialect::of(self.openvino, self.precision)
        }
    }

    /// Whether networks are unloaded when another one is needed.
    pub fn low_memory(&self) -> bool {
        self.exclusive.is_some()
    }

    /// Adds a network to those of which only one may be loaded, if there is such a limit.
    pub fn register(&self, sessions: &Arc<Sessions>) {
        if let Some(all) = &self.exclusive {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|network| network.strong_count() > 0);
            all.push(Arc::downgrade(sessions));
        }
    }

    /// Unloads all other networks, if only one may be loaded.
    pub fn make_room(&self, sessions: &Arc<Sessions>) {
        let Some(all) = &self.exclusive else {
            return;
        };
        let all = all.lock().unwrap_or_else(PoisonError::into_inner);
        for other in all.iter().filter_map(Weak::upgrade) {
            if !Arc::ptr_eq(&other, sessions) {
                other.unload();
            }
        }
    }
}
