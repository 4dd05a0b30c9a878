//! Where the operators of a loaded network run.

use std::fmt;

/// A network that is loaded, and which part of ONNX Runtime runs how many of its nodes.
///
/// It is displayed as one line, such as `UNet: OpenVINOExecutionProvider 1544, CPUExecutionProvider
/// 0`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct NetworkReport {
    /// The name of the network: "text encoder", "UNet", "VAE decoder" or "VAE encoder".
    pub network: String,
    /// Each provider and the number of the graph's nodes that it runs. Nodes that the device's own
    /// provider does not take run on ONNX Runtime's CPU kernels, the `CPUExecutionProvider`, which
    /// is always the last.
    pub providers: Vec<(String, usize)>,
}

impl NetworkReport {
    /// Creates the report of a network.
    pub fn new(network: impl Into<String>, providers: Vec<(String, usize)>) -> Self {
        Self {
            network: network.into(),
            providers,
        }
    }

    /// Returns the number of nodes that `provider` runs.
    pub fn nodes(&self, provider: &str) -> usize {
        let of_it = self.providers.iter().filter(|(name, _)| name == provider);
        of_it.map(|(_, nodes)| nodes).sum()
    }
}

impl fmt::Display for NetworkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.network)?;
        for (index, (provider, nodes)) in self.providers.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma} {provider} {nodes}")?;
        }
        Ok(())
    }
}
