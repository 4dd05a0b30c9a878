//! OpenVINO's provider: in the library itself, or in a plugin that is registered with it.

use std::path::PathBuf;

use ort::{ep::ExecutionProvider, memory::DeviceType};

use super::{Runtime, RuntimeError, named};
use crate::Device;

/// The environment variable that names the plugin's library.
const VARIABLE: &str = "ORT_OPENVINO_PLUGIN";

/// The name of the provider in lists of devices. Beside it there is another one, which ends in
/// `.AUTO` and lets OpenVINO choose the device.
const PROVIDER: &str = "OpenVINOExecutionProvider";

/// Where OpenVINO's provider comes from, which decides how a session names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenVino {
    /// It is a part of the library: `ort::ep::OpenVINO` adds it to a session.
    BuiltIn,
    /// It is a plugin: a session is given [`Runtime::openvino_devices`].
    Plugin,
}

impl Runtime {
    /// Makes OpenVINO's provider for `device` ready, and returns where it comes from.
    ///
    /// The devices of a provider that is built in are not listed by ONNX Runtime, so a missing one
    /// shows when a session is made.
    pub fn openvino(&self, device: Device) -> Result<OpenVino, RuntimeError> {
        let start = |error: ort::Error| RuntimeError::Start {
            path: self.path.clone(),
            problem: error.message().to_owned(),
        };
        if ort::ep::OpenVINO::is_available().map_err(start)? {
            return Ok(OpenVino::BuiltIn);
        }
        self.register_plugin()?;
        if self.openvino_devices(device).next().is_some() {
            return Ok(OpenVino::Plugin);
        }
        Err(RuntimeError::NoDevice {
            device,
            path: self.path.clone(),
            available: self.available(),
            hint: String::new(),
        })
    }

    /// Returns what a session is given to run on `device`, once [`openvino`](Self::openvino) has
    /// returned [`OpenVino::Plugin`]. With several GPUs it is the first.
    pub fn openvino_devices(
        &self,
        device: Device,
    ) -> impl Iterator<Item = ort::device::Device<'_>> {
        let wanted = match device {
            Device::OpenVino => Some(DeviceType::CPU),
            Device::OpenVinoGpu => Some(DeviceType::GPU),
            Device::OpenVinoNpu => Some(DeviceType::NPU),
            Device::Cpu | Device::Cuda => None,
        };
        let of_provider = self
            .environment
            .devices()
            .filter(|d| d.ep().is_ok_and(|ep| ep == PROVIDER));
        of_provider
            .filter(move |found| Some(found.hardware_device().ty()) == wanted)
            .take(1)
    }

    /// The devices that sessions of this process can be made for.
    fn available(&self) -> Vec<String> {
        let openvino = [Device::OpenVino, Device::OpenVinoGpu, Device::OpenVinoNpu];
        let listed = openvino
            .into_iter()
            .filter(|&device| self.openvino_devices(device).next().is_some());
        [Device::Cpu]
            .into_iter()
            .chain(listed)
            .map(|device| device.to_string())
            .collect()
    }

    /// Registers the plugin unless that was done before.
    fn register_plugin(&self) -> Result<(), RuntimeError> {
        let mut registered = self
            .plugin
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if registered.is_some() {
            return Ok(());
        }
        let plugin = locate()?;
        self.environment
            .register_ep_library("sd-onnx.openvino", &plugin)
            .map_err(|error| RuntimeError::Plugin {
                plugin: plugin.clone(),
                path: self.path.clone(),
                problem: error.message().to_owned(),
            })?;
        tracing::info!(path = %plugin.display(), "registered OpenVINO's plugin");
        *registered = Some(plugin);
        Ok(())
    }
}

/// The plugin's library.
fn locate() -> Result<PathBuf, RuntimeError> {
    match std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        Some(path) => named(path.into(), " (from ORT_OPENVINO_PLUGIN)"),
        None => Err(RuntimeError::NotFound {
            searched: vec![format!("{VARIABLE} (not set)")],
            hint: "name OpenVINO's plugin there".into(),
        }),
    }
}
