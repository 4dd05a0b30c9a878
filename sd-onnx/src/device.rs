//! What a model runs on.

use std::{fmt, str::FromStr};

use crate::runtime::{Runtime, RuntimeError};

/// What a model runs on. One that can't be had is an error, never another in its place.
///
/// A [`StopToken`](crate::StopToken) ends a call within one operator where ONNX Runtime runs the operators one by one, as on
/// the CPU: some tens of milliseconds where the call takes a second. A provider that takes the whole graph as one operator,
/// as OpenVINO's does, ends it when the call is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// ONNX Runtime's own kernels, in f32. The default, and the one that this version drives.
    #[default]
    Cpu,
    /// Intel's OpenVINO provider. Not driven yet: asking for it is [`RuntimeError::NoDevice`].
    OpenVino,
    /// NVIDIA's CUDA provider. Not driven yet: asking for it is [`RuntimeError::NoDevice`].
    Cuda,
}

impl Device {
    /// Checks that the device can be had with this library.
    pub(crate) fn check(self, runtime: &Runtime) -> Result<(), RuntimeError> {
        match self {
            Self::Cpu => Ok(()),
            device => Err(RuntimeError::NoDevice {
                device,
                path: runtime.path.clone(),
                available: vec![Self::Cpu.to_string()],
            }),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::OpenVino => "openvino",
            Self::Cuda => "cuda",
        })
    }
}

impl FromStr for Device {
    type Err = String;

    /// The device that [`Display`](fmt::Display) writes so.
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Cpu, Self::OpenVino, Self::Cuda]
            .into_iter()
            .find(|device| device.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no device, expected cpu, openvino or cuda"))
    }
}
