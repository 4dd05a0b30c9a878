//! Selects the execution provider of a session, and reads which provider runs its nodes.

use std::sync::{Arc, Mutex, PoisonError};

use ort::{
    ep::{self, ArbitrarilyConfigurableExecutionProvider},
    logging::LogLevel,
    session::builder::{GraphOptimizationLevel, SessionBuilder},
};
use serde_json::json;

use crate::{Device, engine::Engine, runtime::OpenVino};

/// The provider with ONNX Runtime's own kernels.
const CPU: &str = "CPUExecutionProvider";
const OPENVINO: &str = "OpenVINOExecutionProvider";

/// Selects the provider for the engine's device. Returns the placement of the session's nodes,
/// which is known after the session is created.
///
/// Every session names its provider. Otherwise, under the policy that `ort` sets, ONNX Runtime may
/// choose any registered provider.
pub(crate) fn on_device(
    builder: SessionBuilder,
    exported: bool,
    engine: &Engine,
) -> ort::Result<(SessionBuilder, Placement)> {
    let (runtime, device) = (&engine.runtime, engine.device);
    let Some(openvino) = engine.openvino else {
        let named = runtime.with_devices(device, |found| {
            let named = builder.with_devices(found, None);
            named.map_err(<ort::Error>::from)
        });
        return Ok((named?, Placement::Cpu));
    };
    let placed = Arc::new(Mutex::new(Placed::default()));
    let log = placed.clone();
    let optimization = match (openvino, exported) {
        // Without constant folding, this provider takes only parts of an exported UNet, and fails
        // to run them.
        (OpenVino::BuiltIn, true) => GraphOptimizationLevel::Level1,
        // OpenVINO optimises the graph itself. With ONNX Runtime's constant folding, a UNet with
        // f16 weights exceeds the 2 GB limit of Protocol Buffers.
        _ => GraphOptimizationLevel::Disable,
    };
    let builder = builder
        .with_optimization_level(optimization)?
        // ONNX Runtime reports the placement of nodes only in its verbose log.
        .with_log_level(LogLevel::Verbose)?
        .with_logger(Arc::new(move |_, _, _, _, message: &str| {
            let mut placed = log.lock().unwrap_or_else(PoisonError::into_inner);
            placed.read(message);
        }))?;
    let settings = settings(engine);
    let builder = match openvino {
        OpenVino::BuiltIn => {
            let provider = ep::OpenVINO::default()
                .with_device_type(name(device))
                .with_arbitrary_config("load_config", &settings);
            builder.with_execution_providers([provider.build().error_on_failure()])?
        }
        OpenVino::Plugin => {
            let options = [(format!("{OPENVINO}.load_config"), settings)];
            runtime.with_devices(device, |found| {
                let named = builder.with_devices(found, Some(&options));
                named.map_err(<ort::Error>::from)
            })?
        }
    };
    Ok((builder, Placement::OpenVino(placed)))
}

/// Returns OpenVINO's name of a device.
fn name(device: Device) -> &'static str {
    match device {
        Device::OpenVinoGpu => "GPU",
        Device::OpenVinoNpu => "NPU",
        _ => "CPU",
    }
}

/// Returns OpenVINO's properties as JSON. They always include the precision, because OpenVINO's
/// default is the fastest precision of the device.
fn settings(engine: &Engine) -> String {
    let mut properties = json!({ "INFERENCE_PRECISION_HINT": engine.precision.to_string() });
    if engine.device == Device::OpenVino {
        // One stream lets a single call use all cores.
        properties["NUM_STREAMS"] = "1".into();
        if engine.threads > 0 {
            properties["INFERENCE_NUM_THREADS"] = engine.threads.to_string().into();
        }
    }
    json!({ name(engine.device): properties }).to_string()
}

/// The placement of a session's nodes on providers.
pub(crate) enum Placement {
    /// All nodes run on ONNX Runtime's own kernels.
    Cpu,
    /// The log of the session contains the placement, once the session is created.
    OpenVino(Arc<Mutex<Placed>>),
}

/// The number of nodes on ONNX Runtime's own kernels, as read from its log.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    on_cpu: usize,
}

impl Placed {
    /// Reads one log message. The message with the number is `Node(s) placed on
    /// [CPUExecutionProvider]. Number of nodes: 3`. It begins with `All nodes` if there is no other
    /// provider.
    fn read(&mut self, message: &str) {
        let count = message
            .split_once("placed on [CPUExecutionProvider]. Number of nodes: ")
            .and_then(|(_, count)| count.trim().parse().ok());
        if let Some(count) = count {
            self.on_cpu = count;
        }
    }
}

impl Placement {
    /// Returns the number of nodes on each provider, for a graph with `nodes` nodes.
    pub fn providers(&self, nodes: usize) -> Vec<(String, usize)> {
        match self {
            Self::Cpu => vec![(CPU.into(), nodes)],
            Self::OpenVino(placed) => {
                let on_cpu = placed.lock().unwrap_or_else(PoisonError::into_inner).on_cpu;
                let others = nodes.saturating_sub(on_cpu);
                vec![(OPENVINO.into(), others), (CPU.into(), on_cpu)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_how_many_nodes_are_left() {
        let mut placed = Placed::default();
        for message in [
            "Node placements",
            " Node(s) placed on [OpenVINOExecutionProvider]. Number of nodes: 1",
            " Node(s) placed on [CPUExecutionProvider]. Number of nodes: 3\n",
        ] {
            placed.read(message);
        }
        assert_eq!(placed.on_cpu, 3);
        placed.read(" All nodes placed on [CPUExecutionProvider]. Number of nodes: 12");
        let providers = Placement::OpenVino(Arc::new(Mutex::new(placed))).providers(20);
        assert_eq!(providers, [(OPENVINO.into(), 8), (CPU.into(), 12)]);
        assert_eq!(Placement::Cpu.providers(20), [(CPU.into(), 20)]);
    }
}
