//! The names of CLIP's text encoders: in transformers before version 5, and in OpenCLIP, which has
//! query, key and value in one matrix.

use super::{Shapes, Stored, reversed, whole};
use crate::checkpoint::text::{OPEN_CLIP, OPEN_CLIP_LAYER};

/// The parts of OpenCLIP's fused matrix, in order.
const FUSED: [&str; 3] = ["q", "k", "v"];

pub(super) fn transformers(prefix: &str, shapes: &Shapes<'_>) -> Result<Vec<Stored>, String> {
    let tensors = shapes.iter().map(|(&today, shape)| {
        let before = match today.starts_with("text_projection.") {
            true => "",
            false => "text_model.",
        };
        whole(format!("{prefix}{before}{today}"), today, shape)
    });
    Ok(tensors.collect())
}

pub(super) fn open_clip(prefix: &str, shapes: &Shapes<'_>) -> Result<Vec<Stored>, String> {
    let mut tensors = Vec::new();
    for (&today, &shape) in shapes {
        let lost = || today.to_owned();
        if today == "text_projection.weight" {
            let &[rows, columns] = shape else {
                return Err(lost());
            };
            tensors.push(Stored {
                shape: vec![columns, rows],
                transposed: true,
                ..whole(format!("{prefix}text_projection"), today, shape)
            });
        } else if let Some(name) = reversed(&OPEN_CLIP, today) {
            tensors.push(whole(format!("{prefix}{name}"), today, shape));
        } else {
            let inside = today.strip_prefix("encoder.layers.");
            let (layer, inside) = inside.and_then(|it| it.split_once('.')).ok_or_else(lost)?;
            let (module, leaf) = inside.rsplit_once('.').ok_or_else(lost)?;
            let layer = format!("{prefix}transformer.resblocks.{layer}");
            let part = module.strip_prefix("self_attn.");
            match part.and_then(|part| part.strip_suffix("_proj")) {
                // The fused matrix is added with the query, and includes key and value.
                Some("q") => tensors.push(fused(&layer, today, leaf, shapes).ok_or_else(lost)?),
                Some("k" | "v") => {}
                _ => {
                    let module = reversed(&OPEN_CLIP_LAYER, module).ok_or_else(lost)?;
                    tensors.push(whole(format!("{layer}.{module}.{leaf}"), today, shape));
                }
            }
        }
    }
    Ok(tensors)
}

/// Returns the concatenation of query, key and value. `query` is the current name of the query.
fn fused(layer: &str, query: &str, leaf: &str, shapes: &Shapes<'_>) -> Option<Stored> {
    let weights = FUSED.map(|part| query.replace(".q_proj.", &format!(".{part}_proj.")));
    let shape = shapes.get(query)?;
    let is_same = |name: &String| shapes.get(name.as_str()) == Some(shape);
    if !weights.iter().all(is_same) {
        return None;
    }
    let mut shape = shape.to_vec();
    *shape.first_mut()? *= FUSED.len();
    Some(Stored {
        name: format!("{layer}.attn.in_proj_{leaf}"),
        shape,
        weights: weights.into(),
        transposed: false,
    })
}
