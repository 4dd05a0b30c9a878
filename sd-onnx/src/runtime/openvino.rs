//! OpenVINO's execution provider, built into the library or registered as a plugin.

use std::sync::PoisonError;

use ort::{ep::ExecutionProvider, memory::DeviceType};

use super::{Runtime, RuntimeError, locate::locate, processor, release::Product};
use crate::Device;

/// The source of OpenVINO's provider, which determines how a session selects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenVino {
    /// The provider is part of the library. `ort::ep::OpenVINO` adds it to a session.
    BuiltIn,
    /// The provider is a plugin. A session gets its devices from [`Runtime::with_devices`].
    Plugin,
}

impl Runtime {
    /// Prepares OpenVINO's provider for `device` and returns its source.
    ///
    /// ONNX Runtime does not list the devices of a built-in provider. A missing device causes an
    /// error only when a session is created.
    pub fn openvino(&self, device: Device) -> Result<OpenVino, RuntimeError> {
        if self.has_openvino()? {
            return Ok(OpenVino::BuiltIn);
        }
        self.register_plugin()?;
        if self.with_devices(device, |found| found.is_some()) {
            return Ok(OpenVino::Plugin);
        }
        Err(self.no_device(device))
    }

    /// Calls `use_it` with the entry for `device` in ONNX Runtime's device list, for
    /// `SessionBuilder::with_devices`, or with `None` if there is no such entry. The first of
    /// several GPUs is used.
    ///
    /// Every session should select its device in this way or with `ort::ep::OpenVINO`. Under the
    /// policy that `ort` sets, ONNX Runtime may run a session without a selected device on a
    /// registered plugin.
    ///
    /// No plugin is registered during the call, because `ort` reads ONNX Runtime's device list
    /// without a lock, here and in `with_devices`.
    pub fn with_devices<T>(
        &self,
        device: Device,
        use_it: impl FnOnce(Option<ort::device::Device<'_>>) -> T,
    ) -> T {
        // OpenVINO's plugin has a second provider, whose name ends in `.AUTO` and which lets
        // OpenVINO choose the device.
        const OPENVINO: &str = "OpenVINOExecutionProvider";
        let wanted = match device {
            Device::Cpu => Some(("CPUExecutionProvider", DeviceType::CPU)),
            Device::OpenVino => Some((OPENVINO, DeviceType::CPU)),
            Device::OpenVinoGpu => Some((OPENVINO, DeviceType::GPU)),
            Device::OpenVinoNpu => Some((OPENVINO, DeviceType::NPU)),
            Device::Cuda => None,
        };
        let _locked = self.plugin.lock().unwrap_or_else(PoisonError::into_inner);
        use_it(self.environment.devices().find(|found| {
            let provider = found.ep().unwrap_or_default();
            Some((provider, found.hardware_device().ty())) == wanted
        }))
    }

    /// Creates the error for a device that is not available.
    pub fn no_device(&self, device: Device) -> RuntimeError {
        let listed = |&device: &Device| self.with_devices(device, |found| found.is_some());
        let mut available = vec![Device::Cpu];
        if self.has_openvino().unwrap_or_default() {
            available.push(Device::OpenVino);
        }
        let openvino = [Device::OpenVino, Device::OpenVinoGpu, Device::OpenVinoNpu];
        available.extend(openvino.into_iter().filter(listed));
        if self.has_cuda.get().is_some() {
            available.push(Device::Cuda);
        }
        let hint = match device {
            Device::OpenVino if !processor::is_intel() => format!(
                "OpenVINO's plugin lists only Intel processors; on others, load a model on \
                 `openvino` before one on another device, or put the path of the library from the \
                 Python package {} {} into {}",
                Product::OpenVinoBuild.package(),
                Product::OpenVinoBuild.version(),
                Product::OpenVinoBuild.variable(),
            ),
            Device::Cuda => format!(
                "this library is built without CUDA, and a process can load only one; load a model \
                 on `cuda` before one on another device, with the library from the Python package \
                 {} {}, whose path may be in {}",
                Product::CudaBuild.package(),
                Product::CudaBuild.version(),
                Product::CudaBuild.variable(),
            ),
            Device::OpenVinoGpu => "an Intel GPU needs Intel's OpenCL driver".into(),
            Device::OpenVinoNpu => "an Intel NPU needs Intel's NPU driver".into(),
            _ => String::new(),
        };
        RuntimeError::NoDevice {
            device,
            path: self.path.clone(),
            available: available.iter().map(ToString::to_string).collect(),
            hint,
        }
    }

    /// Returns whether the library has OpenVINO's provider built in.
    fn has_openvino(&self) -> Result<bool, RuntimeError> {
        ort::ep::OpenVINO::is_available().map_err(|error| RuntimeError::Start {
            path: self.path.clone(),
            problem: error.message().to_owned(),
        })
    }

    /// Registers the plugin if it is not registered yet.
    fn register_plugin(&self) -> Result<(), RuntimeError> {
        let lock = || self.plugin.lock().unwrap_or_else(PoisonError::into_inner);
        if lock().is_some() {
            return Ok(());
        }
        // Not under the lock, because a download takes minutes.
        let plugin = locate(None, Product::OpenVinoPlugin);
        let refused = |plugin, problem| RuntimeError::Plugin {
            plugin,
            path: self.path.clone(),
            problem,
        };
        let plugin = plugin.map_err(|error| match error {
            RuntimeError::NotOnnxRuntime { path, problem } => refused(path, problem),
            error => error,
        })?;
        let mut registered = lock();
        if registered.is_some() {
            return Ok(());
        }
        self.environment
            .register_ep_library("sd-onnx.openvino", &plugin)
            .map_err(|error| refused(plugin.clone(), error.message().to_owned()))?;
        tracing::info!(path = %plugin.display(), "registered OpenVINO's plugin");
        *registered = Some(plugin);
        Ok(())
    }
}
