//! Selects the execution provider of a session, and reads which provider runs its nodes.

use std::sync::{Arc, Mutex, PoisonError};

use ort::{
    ep::{
        self, ArbitrarilyConfigurableExecutionProvider, ArenaExtendStrategy,
        cuda::ConvAlgorithmSearch,
    },
    logging::LogLevel,
    session::builder::{GraphOptimizationLevel, SessionBuilder},
};
use serde_json::json;

use crate::{Device, engine::Engine, runtime::OpenVino};

/// The provider with ONNX Runtime's own kernels.
const CPU: &str = "CPUExecutionProvider";
const OPENVINO: &str = "OpenVINOExecutionProvider";
const CUDA: &str = "CUDAExecutionProvider";

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
    if device == Device::Cuda {
        let (builder, placed) = placement_logged(builder)?;
        let builder = builder.with_execution_providers([cuda().build().error_on_failure()])?;
        return Ok((builder, Placement::Logged(CUDA, placed)));
    }
    let Some(openvino) = engine.openvino else {
        let named = runtime.with_devices(device, |found| {
            let named = builder.with_devices(found, None);
            named.map_err(<ort::Error>::from)
        });
        return Ok((named?, Placement::Cpu));
    };
    let optimization = match (openvino, exported) {
        // Without constant folding, this provider takes only parts of an exported UNet, and fails
        // to run them.
        (OpenVino::BuiltIn, true) => GraphOptimizationLevel::Level1,
        // OpenVINO optimises the graph itself. With ONNX Runtime's constant folding, a UNet with
        // f16 weights exceeds the 2 GB limit of Protocol Buffers.
        _ => GraphOptimizationLevel::Disable,
    };
    let (builder, placed) = placement_logged(builder.with_optimization_level(optimization)?)?;
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
    Ok((builder, Placement::Logged(OPENVINO, placed)))
}

/// Returns the builder with a log that is read for the placement of nodes. ONNX Runtime reports it
/// only there.
fn placement_logged(builder: SessionBuilder) -> ort::Result<(SessionBuilder, Arc<Mutex<Placed>>)> {
    let placed = Arc::new(Mutex::new(Placed::default()));
    let log = placed.clone();
    let builder = builder.with_log_level(LogLevel::Verbose)?;
    let builder = builder.with_logger(Arc::new(move |_, _, _, _, message: &str| {
        let mut placed = log.lock().unwrap_or_else(PoisonError::into_inner);
        placed.read(message);
    }))?;
    Ok((builder, placed))
}

/// Returns CUDA's provider on the first graphics card that CUDA lists.
///
/// None of these settings was measured, because this project has no such card. The settings that
/// are not made here, and why:
///
/// - `enable_cuda_graph` replays the launches of a call. It needs the same addresses for all inputs
///   and outputs of all calls, one session for each size, and no node on the CPU, where the graphs
///   of this crate compute shapes.
/// - `prefer_nhwc` transposes the tensors around each `Conv` for the layout that tensor cores want.
///   Only a measurement can say whether the convolutions gain more than the transposes cost.
/// - `session.disable_cpu_ep_fallback` refuses graphs with a node on the CPU, so it refuses the
///   computation of shapes, too.
pub(crate) fn cuda() -> ep::CUDA {
    ep::CUDA::default()
        .with_device_id(0)
        // cuDNN chooses the algorithms by its tables. The other search, `EXHAUSTIVE`, tries all of
        // them in the first call of each size, and may choose others in the next process, so that
        // the same request would give other bits.
        .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
        // With at most 32 MB of working memory, fast algorithms would be left out.
        .with_conv_max_workspace(true)
        // The other strategy rounds each extension up to a power of two.
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        // TensorFloat-32 has 11 bits of precision, like f16, which nobody expects of f32.
        .with_tf32(false)
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
    /// All nodes run on this provider, except some on ONNX Runtime's own kernels. The log of the
    /// session contains the numbers, once the session is created.
    Logged(&'static str, Arc<Mutex<Placed>>),
}

/// The numbers of nodes, as read from ONNX Runtime's log.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    /// The nodes on ONNX Runtime's own kernels.
    on_cpu: usize,
    /// The nodes on the CUDA provider, after ONNX Runtime's own optimisations of the graph.
    on_cuda: Option<usize>,
}

impl Placed {
    /// Reads one log message. The message with the number is `Node(s) placed on
    /// [CPUExecutionProvider]. Number of nodes: 3`. It begins with `All nodes` if there is no other
    /// provider.
    fn read(&mut self, message: &str) {
        let count = |provider: &str| {
            let (_, rest) = message.split_once("placed on [")?;
            let rest = rest.strip_prefix(provider)?;
            let count = rest.strip_prefix("]. Number of nodes: ")?;
            count.trim().parse().ok()
        };
        if let Some(count) = count(CPU) {
            self.on_cpu = count;
        }
        self.on_cuda = count(CUDA).or(self.on_cuda);
    }
}

impl Placement {
    /// Returns the number of nodes on each provider, for a graph with `nodes` nodes.
    pub fn providers(&self, nodes: usize) -> Vec<(String, usize)> {
        match self {
            Self::Cpu => vec![(CPU.into(), nodes)],
            Self::Logged(provider, placed) => {
                let placed = placed.lock().unwrap_or_else(PoisonError::into_inner);
                let others = match *provider {
                    CUDA => placed.on_cuda.unwrap_or(0),
                    // OpenVINO takes whole parts of the graph, which the log counts as one node.
                    _ => nodes.saturating_sub(placed.on_cpu),
                };
                vec![((*provider).into(), others), (CPU.into(), placed.on_cpu)]
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
        placed.read(" Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 5");
        let placed = Arc::new(Mutex::new(placed));
        let of = |provider| Placement::Logged(provider, placed.clone()).providers(20);
        assert_eq!(of(OPENVINO), [(OPENVINO.into(), 8), (CPU.into(), 12)]);
        assert_eq!(of(CUDA), [(CUDA.into(), 5), (CPU.into(), 12)]);
        assert_eq!(Placement::Cpu.providers(20), [(CPU.into(), 20)]);
    }
}
