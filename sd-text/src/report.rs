//! Reports which execution providers run the nodes of a loaded network.

use std::fmt;

use serde::Serialize;

/// A loaded network, and how many of its nodes each execution provider of ONNX Runtime runs.
///
/// Its `Display` implementation prints one line:
///
/// ```
/// use sd_text::NetworkReport;
///
/// let providers = [("OpenVINOExecutionProvider", 1544), ("CPUExecutionProvider", 0)];
/// let providers = providers.map(|(name, nodes)| (name.to_owned(), nodes));
/// let report = NetworkReport::new("UNet", Vec::from(providers));
/// assert_eq!(
///     report.to_string(),
///     "UNet: OpenVINOExecutionProvider 1544, CPUExecutionProvider 0"
/// );
/// assert_eq!(report.nodes("CPUExecutionProvider"), 0);
/// ```
///
/// With serde it is an object with a key for each field.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct NetworkReport {
    /// The name of the network, such as "text encoder", "UNet", "VAE decoder" or "VAE encoder".
    /// "outer UNet" is the part of a UNet that runs when deep features are reused.
    pub network: String,
    /// Each provider and the number of graph nodes that it runs. Nodes that the device's own
    /// provider does not take run on ONNX Runtime's CPU kernels. Their provider,
    /// `CPUExecutionProvider`, is always last.
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
