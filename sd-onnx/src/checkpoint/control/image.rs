//! An IP-Adapter: a projection of a picture's embedding, and keys and values for the UNet's
//! attention to it.

use serde_json::Map;

use crate::checkpoint::{
    Component, Family, Problem,
    names::{Fate, Renamed, Tensor},
};

/// Returns the adapter with its published names, and the family of the models that it guides.
pub(super) fn read(tensors: &[Tensor<'_>]) -> Result<(Component, Option<Family>), Problem> {
    let renamed = Renamed::of(tensors, |tensor| match is_known(tensor.rest) {
        true => Fate::whole(tensor.rest),
        false => Fate::Unknown,
    })?;
    let keys = |name: &&String| name.ends_with(".to_k_ip.weight");
    let Some(keys) = renamed.tensors.keys().find(keys) else {
        return Err(shape(
            "it has no keys for the UNet's attention, `ip_adapter.1.to_k_ip.weight`",
        ));
    };
    let family = match renamed.dim(keys, 1) {
        768 => Some(Family::Sd1),
        1024 => Some(Family::Sd2),
        2048 => Some(Family::Xl),
        _ => None,
    };
    Ok((renamed.component(Map::new()), family))
}

fn shape(problem: impl Into<String>) -> Problem {
    Problem::Shape {
        component: "IP-Adapter",
        problem: problem.into(),
    }
}

/// Whether an IP-Adapter can have a tensor with this name. The graph of the projection decides
/// about its tensors.
fn is_known(name: &str) -> bool {
    let parts: Vec<_> = name.split('.').collect();
    match parts[..] {
        ["image_proj", ..] => true,
        ["ip_adapter", number, "to_k_ip" | "to_v_ip", "weight"] => number.parse::<usize>().is_ok(),
        _ => false,
    }
}
