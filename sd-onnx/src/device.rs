//! The device that networks run on.

use std::{fmt, str::FromStr};

use sd_text::outside::printable;
use serde::{Deserialize, Serialize};

use crate::{
    Precision,
    runtime::{OpenVino, Runtime, RuntimeError, processor},
};

/// The device that the networks of a model run on.
///
/// A device that is not available is an error. It is never replaced by another one.
///
/// On the CPU, ONNX Runtime runs the operators of a network one after the other, and a
/// [`StopToken`](crate::StopToken) ends a call within one operator. If the call takes a second, an
/// operator takes some tens of milliseconds. OpenVINO's provider runs the whole network as one
/// operator, so a call that has started runs to its end. So does a call on CUDA, because the CPU
/// has usually launched all of its operators before the GPU has run them.
///
/// A device is written and parsed as a short name, with serde as a string:
///
/// ```
/// use sd_onnx::Device;
///
/// assert_eq!("openvino-gpu".parse(), Ok(Device::OpenVinoGpu));
/// assert_eq!(Device::OpenVinoGpu.to_string(), "openvino-gpu");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Device {
    /// `cpu`: ONNX Runtime's own kernels, in f32 or int8. This is the default.
    #[default]
    Cpu,
    /// `openvino`: the CPU through Intel's OpenVINO, in f32 or bf16. Linux and Windows on x86-64.
    OpenVino,
    /// `openvino-gpu`: an Intel GPU through OpenVINO, in f32 or f16.
    OpenVinoGpu,
    /// `openvino-npu`: an Intel NPU through OpenVINO, in f16.
    OpenVinoNpu,
    /// `cuda`: an NVIDIA GPU through CUDA, in f32 or f16. Linux and Windows on x86-64.
    ///
    /// It needs an NVIDIA GPU with compute capability 7.5 or higher (Turing, from 2018 on), its
    /// driver for CUDA 13, and the libraries of CUDA 13 and cuDNN 9. The handbook's
    /// [devices](crate::handbook::devices#nvidia-gpus) says how to install them. The first card
    /// that CUDA lists is used. The environment variable `CUDA_VISIBLE_DEVICES` selects another
    /// one.
    Cuda,
}

impl Device {
    /// All devices, in the order in which messages list them.
    const ALL: [Self; 5] = [
        Self::Cpu,
        Self::OpenVino,
        Self::OpenVinoGpu,
        Self::OpenVinoNpu,
        Self::Cuda,
    ];

    /// Returns the precisions that this device supports on this machine.
    ///
    /// [`Cpu`](Self::Cpu) supports int8 on Linux and macOS if the processor has AVX-512 VNNI or
    /// AVX-VNNI, as all processors with AMX do. [`OpenVino`](Self::OpenVino) supports bf16 if the
    /// processor has AVX-512 or AVX-NE-CONVERT. The lists for Intel's GPUs and NPUs are taken from
    /// OpenVINO's documentation.
    ///
    /// ```
    /// use sd_onnx::{Device, Precision};
    ///
    /// assert!(Device::Cpu.precisions().contains(&Precision::F32));
    /// ```
    pub fn precisions(self) -> &'static [Precision] {
        match self {
            Self::Cpu if processor::has_int8() => &[Precision::F32, Precision::Int8],
            Self::Cpu => &[Precision::F32],
            Self::OpenVino if processor::has_bf16() => &[Precision::F32, Precision::Bf16],
            Self::OpenVino => &[Precision::F32],
            Self::OpenVinoGpu => &[Precision::F32, Precision::F16],
            Self::OpenVinoNpu => &[Precision::F16],
            Self::Cuda => &[Precision::F32, Precision::F16],
        }
    }

    /// Checks that this device supports `precision`.
    ///
    /// ```
    /// use sd_onnx::{Device, Precision};
    ///
    /// assert!(Device::OpenVino.check_precision(Precision::F32).is_ok());
    /// assert!(Device::Cpu.check_precision(Precision::Bf16).is_err());
    /// ```
    ///
    /// # Errors
    /// [`RuntimeError::Precision`] if it does not. The message lists the supported precisions.
    pub fn check_precision(self, precision: Precision) -> Result<(), RuntimeError> {
        if self.precisions().contains(&precision) {
            return Ok(());
        }
        Err(RuntimeError::Precision {
            device: self,
            precision,
        })
    }

    /// Checks that the device is available with this library. Returns where OpenVINO's provider
    /// comes from, if the device needs it.
    pub(crate) fn check(self, runtime: &Runtime) -> Result<Option<OpenVino>, RuntimeError> {
        match self {
            Self::Cpu => Ok(None),
            Self::OpenVino | Self::OpenVinoGpu | Self::OpenVinoNpu => {
                runtime.openvino(self).map(Some)
            }
            Self::Cuda => runtime.check_cuda().map(|()| None),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::OpenVino => "openvino",
            Self::OpenVinoGpu => "openvino-gpu",
            Self::OpenVinoNpu => "openvino-npu",
            Self::Cuda => "cuda",
        })
    }
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    /// Parses the name that [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, ParseDeviceError> {
        Self::ALL
            .into_iter()
            .find(|device| device.to_string() == text)
            .ok_or_else(|| ParseDeviceError { text: text.into() })
    }
}

impl TryFrom<String> for Device {
    type Error = ParseDeviceError;

    /// Parses the name like [`FromStr`].
    fn try_from(text: String) -> Result<Self, ParseDeviceError> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

/// The error of parsing a text that is not the name of a [`Device`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is not a device, expected {}", printable(text), one_of(&Device::ALL))]
pub struct ParseDeviceError {
    text: String,
}

/// Joins names for a message: "a, b or c".
pub(crate) fn one_of(all: &[impl fmt::Display]) -> String {
    let names: Vec<_> = all.iter().map(ToString::to_string).collect();
    match &names[..] {
        [] => "none".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
// In a test it is the failure.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_back() {
        for device in Device::ALL {
            assert_eq!(device.to_string().parse(), Ok(device));
            let json = serde_json::to_string(&device).unwrap();
            assert_eq!(json, format!("\"{device}\""));
            assert_eq!(serde_json::from_str::<Device>(&json).unwrap(), device);
        }
        let error = "OpenVINO\n".parse::<Device>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"OpenVINO\\n\" is not a device, expected cpu, openvino, openvino-gpu, openvino-npu or cuda"
        );
    }

    #[test]
    fn each_device_has_its_precisions() {
        use Precision::{Bf16, F16, F32, Int8};
        let of = |device: Device| {
            [F32, Bf16, F16, Int8].map(|precision| device.check_precision(precision).is_ok())
        };
        assert_eq!(of(Device::Cpu), [true, false, false, processor::has_int8()]);
        assert_eq!(
            of(Device::OpenVino),
            [true, processor::has_bf16(), false, false]
        );
        assert_eq!(of(Device::OpenVinoGpu), [true, false, true, false]);
        assert_eq!(of(Device::OpenVinoNpu), [false, false, true, false]);
        assert_eq!(of(Device::Cuda), [true, false, true, false]);
        let said =
            |device: Device, precision| device.check_precision(precision).unwrap_err().to_string();
        assert_eq!(
            said(Device::OpenVinoGpu, Bf16),
            "the device `openvino-gpu` does not compute in bf16 on this machine, expected f32 or f16"
        );
        assert_eq!(
            said(Device::OpenVinoNpu, F32),
            "the device `openvino-npu` does not compute in f32 on this machine, expected f16"
        );
    }
}
