//! An IP-Adapter: a projection of a picture's embedding, and keys and values for the UNet's
//! attention to it.

use serde_json::Map;

use crate::checkpoint::{
    Component, Problem,
    names::{Fate, Renamed, Tensor},
};

/// Returns the adapter with its published names.
pub(super) fn read(tensors: &[Tensor<'_>]) -> Result<Component, Problem> {
    let renamed = Renamed::of(tensors, |tensor| match is_known(tensor.rest) {
        true => Fate::whole(tensor.rest),
        false => Fate::Unknown,
    })?;
    let mut names = renamed.tensors.keys();
    if names.any(|name| name.ends_with(".to_k_ip.weight")) {
        return Ok(renamed.component(Map::new()));
    }
    Err(Problem::Shape {
        component: "IP-Adapter",
        problem: "it has no keys for the UNet's attention, such as `ip_adapter.1.to_k_ip.weight`"
            .to_owned(),
    })
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
