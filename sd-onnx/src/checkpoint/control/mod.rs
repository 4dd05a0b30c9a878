//! Recognises a ControlNet, a T2I-Adapter or an IP-Adapter in one file.

mod adapter;
mod image;
mod kind;

use super::{
    Component, Family, File, Kind, Problem, names::Tensor, prediction::is_mark, unet::ControlNet,
};
use crate::weights::is_no_weight;

pub(super) use self::kind::kind;

/// The contents of a file that guides a model.
#[derive(Debug)]
pub(crate) struct ControlFile {
    pub kind: ControlKind,
    /// The network. An IP-Adapter has no configuration, and its tensors keep their names.
    pub component: Component,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// What a file that guides a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlKind {
    Net,
    Adapter,
    Image,
}

/// The prefix of a ControlNet's tensors in the files that its authors published.
const PREFIX: &str = "control_model.";

/// Recognises a file, and maps its tensors to their current names.
pub(super) fn read(file: &File<'_>) -> Result<ControlFile, Problem> {
    let (kind, component) = match super::kind(file) {
        Kind::ControlNet => return control_net(file),
        Kind::T2iAdapter => (ControlKind::Adapter, adapter::read(&all(file))?),
        Kind::IpAdapter => (ControlKind::Image, image::read(&all(file))?),
        kind @ Kind::Other(_) => return Err(Problem::Other(kind)),
        kind => return Err(Problem::NoControl(kind)),
    };
    Ok(ControlFile {
        kind,
        component,
        warnings: Vec::new(),
    })
}

fn control_net(file: &File<'_>) -> Result<ControlFile, Problem> {
    let (tensors, others) = of_net(file);
    let mut warnings = Vec::new();
    if !others.is_empty() {
        warnings.push(format!(
            "{} tensors of the file do not belong to the ControlNet, and are ignored: {}",
            others.len(),
            super::list(&others)
        ));
    }
    let net = ControlNet::read(&tensors)?;
    let pools = pools(file, net.family());
    Ok(ControlFile {
        kind: ControlKind::Net,
        component: net.component(pools)?,
        warnings,
    })
}

/// Returns the tensors of the ControlNet, and the names of the others. The first published files
/// also have the whole model that the ControlNet was trained with.
fn of_net<'a>(file: &File<'a>) -> (Vec<Tensor<'a>>, Vec<&'a str>) {
    let has_prefix = file.shapes.keys().any(|name| name.starts_with(PREFIX));
    let (mut tensors, mut others) = (Vec::new(), Vec::new());
    for (&stored, &shape) in &file.shapes {
        let rest = match has_prefix {
            true => stored.strip_prefix(PREFIX),
            false => Some(stored),
        };
        match rest {
            Some(rest) => tensors.push(Tensor {
                rest,
                stored,
                shape,
            }),
            None if is_no_weight(stored) || is_mark(stored) => {}
            None => others.push(stored),
        }
    }
    (tensors, others)
}

/// Returns all tensors of a file.
fn all<'a>(file: &File<'a>) -> Vec<Tensor<'a>> {
    let tensors = file.shapes.iter().map(|(&stored, &shape)| Tensor {
        rest: stored,
        stored,
        shape,
    });
    tensors.collect()
}

/// Whether the outputs of a ControlNet for `family` are averaged over the picture. No tensor shows
/// it. The `.yaml` file beside the only published one, "shuffle", says so. Without that file the
/// name decides, as in sd-webui-controlnet.
fn pools(file: &File<'_>, family: Family) -> bool {
    let said = file.yaml.into_iter().flat_map(str::lines).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "global_average_pooling").then(|| value.trim().eq_ignore_ascii_case("true"))
    });
    let is_shuffle = file.name.to_ascii_lowercase().contains("shuffle");
    said.unwrap_or(is_shuffle && family != Family::Xl)
}
