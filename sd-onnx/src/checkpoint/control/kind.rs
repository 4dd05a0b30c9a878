//! Recognises files that guide a model, also the ones that are not supported.

use super::PREFIX;
use crate::checkpoint::{File, Kind};

// Files that are not supported. Each text completes `the file is …`.
const CONTROL_LORA: Kind = Kind::Other(
    "a Control-LoRA, which is not supported, because most of its layers are differences to the \
     layers of a model",
);
const LLLITE: Kind = Kind::Other(
    "a ControlNet-LLLite, which is not supported, because it changes the inside of a model's \
     attention",
);
const DIFFERENCE: Kind = Kind::Other(
    "the difference between a ControlNet and its model, which is not supported, because the \
     model's weights would have to be added to it",
);
const UNION: Kind = Kind::Other(
    "SDXL's union ControlNet, which is not supported, because it also takes the kinds of its \
     pictures",
);
const LATER: Kind = Kind::Other(
    "a ControlNet of a diffusion transformer such as Stable Diffusion 3 or Flux, which is not \
     supported",
);
const VIDEO: Kind =
    Kind::Other("AnimateDiff's ControlNet, which is not supported, because it guides a video");
const FACE: Kind = Kind::Other(
    "an IP-Adapter for faces, which is not supported, because it takes the embedding of a face \
     recogniser and not the one of CLIP",
);
const STYLE: Kind = Kind::Other(
    "T2I-Adapter's style adapter or its CoAdapter fuser, which is not supported, because it \
     changes the prompt and takes no picture",
);

// How the names of tensors begin by which these files and a ControlNet are recognised.
const NET_STARTS: [&str; 4] = [
    "controlnet_",
    "input_hint_block.",
    "zero_convs.",
    "control_add_embedding.",
];
const UNION_STARTS: [&str; 3] = [
    "control_add_embedding.",
    "spatial_ch_projs.",
    "task_embedding",
];
const LATER_STARTS: [&str; 4] = [
    "transformer_blocks.",
    "joint_blocks.",
    "double_blocks.",
    "x_embedder.",
];
const STYLE_STARTS: [&str; 3] = [
    "style_embedding",
    "transformer_layes.",
    "spatial_feat_mapping.",
];

/// The width of the embeddings of the face recognisers that are in use. CLIP's are wider.
const FACE_WIDTH: usize = 512;

/// Returns what kind of a file that guides a model this is, or `None` for any other file.
pub(in crate::checkpoint) fn kind(file: &File<'_>) -> Option<Kind> {
    let names = Names(file);
    if names.has("lora_controlnet") {
        return Some(CONTROL_LORA);
    }
    if names.starts("lllite_unet_") {
        return Some(LLLITE);
    }
    if names.starts("ip_adapter.") || names.starts("image_proj.") {
        return Some(image(file, names));
    }
    if names.start_with_any(&NET_STARTS) {
        return Some(net(names));
    }
    if file.shapes.keys().any(|name| name.starts_with(PREFIX)) {
        return Some(Kind::ControlNet);
    }
    if names.start_with_any(&STYLE_STARTS) {
        return Some(STYLE);
    }
    let light = names.has("body.0.in_conv.weight") && names.has("body.0.out_conv.weight");
    let full = names.has("conv_in.weight") && names.has("body.0.block1.weight");
    (light || full || names.starts("adapter.body.")).then_some(Kind::T2iAdapter)
}

/// Returns the kind of a ControlNet.
fn net(names: Names<'_, '_>) -> Kind {
    let is_lora = names.ends(".up") && names.ends(".down");
    match names {
        _ if names.has("difference") => DIFFERENCE,
        _ if names.start_with_any(&UNION_STARTS) => UNION,
        _ if names.contains("motion_modules.") => VIDEO,
        _ if names.start_with_any(&LATER_STARTS) => LATER,
        _ if is_lora => CONTROL_LORA,
        _ => Kind::ControlNet,
    }
}

/// Returns the kind of an IP-Adapter.
fn image(file: &File<'_>, names: Names<'_, '_>) -> Kind {
    let width = |name: &str| file.shapes.get(name).and_then(|shape| shape.get(1));
    let takes_face = ["image_proj.proj.0.weight", "image_proj.proj_in.weight"];
    let is_face = names.starts("image_proj.perceiver_resampler.")
        || names.contains("_lora.")
        || takes_face
            .iter()
            .any(|name| width(name) == Some(&FACE_WIDTH));
    match is_face {
        true => FACE,
        false => Kind::IpAdapter,
    }
}

/// The names of a file's tensors, with and without the prefix of a ControlNet.
#[derive(Clone, Copy)]
struct Names<'f, 'a>(&'f File<'a>);

impl Names<'_, '_> {
    fn any(self, matches: impl Fn(&str) -> bool) -> bool {
        let names = self.0.shapes.keys();
        names
            .map(|name| name.strip_prefix(PREFIX).unwrap_or(name))
            .any(matches)
    }

    fn has(self, name: &str) -> bool {
        self.any(|found| found == name)
    }

    fn starts(self, start: &str) -> bool {
        self.any(|name| name.starts_with(start))
    }

    fn start_with_any(self, starts: &[&str]) -> bool {
        starts.iter().any(|start| self.starts(start))
    }

    fn ends(self, end: &str) -> bool {
        self.any(|name| name.ends_with(end))
    }

    fn contains(self, part: &str) -> bool {
        self.0.shapes.keys().any(|name| name.contains(part))
    }
}
