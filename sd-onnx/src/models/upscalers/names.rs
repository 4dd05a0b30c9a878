//! The dictionaries around the tensors of a file, and the names of networks that are not supported.

use super::Shapes;

/// The keys under which training programs store a network, in spandrel's order.
const WRAPPERS: [&str; 7] = [
    "model_state_dict.",
    "state_dict.",
    "params_ema.",
    "params-ema.",
    "params.",
    "model.",
    "net.",
];

/// The prefixes that all names of a network may have.
const PREFIXES: [&str; 2] = ["module.", "netG."];

/// Returns the ways to read a file's names, the most usual first: the prefix that is cut off, and
/// the tensors that have it.
pub(crate) fn unwrapped<'a>(shapes: &Shapes<'a>) -> Vec<(String, Shapes<'a>)> {
    let mut found: Vec<(String, Shapes<'a>)> = Vec::new();
    for wrapper in [""].into_iter().chain(WRAPPERS) {
        let inner = without(shapes, wrapper);
        if inner.is_empty() {
            continue;
        }
        let mut prefix = wrapper.to_owned();
        let mut names = inner;
        found.push((prefix.clone(), names.clone()));
        for common in PREFIXES {
            if names.keys().all(|name| name.starts_with(common)) {
                prefix += common;
                names = without(&names, common);
                found.push((prefix.clone(), names.clone()));
            }
        }
    }
    found
}

fn without<'a>(shapes: &Shapes<'a>, prefix: &str) -> Shapes<'a> {
    let inner = shapes.iter();
    inner
        .filter_map(|(name, shape)| Some((name.strip_prefix(prefix)?, *shape)))
        .collect()
}

/// Tensors by which other networks are recognised, as in spandrel. All tensors of a row must be
/// there.
const OTHERS: [(&str, &[&str]); 18] = [
    (
        "MM-RealSR",
        &["body.0.rdb1.conv1.weight", "am_list.0.fc.0.weight"],
    ),
    (
        "HAT",
        &["layers.0.residual_group.blocks.0.conv_block.cab.0.weight"],
    ),
    (
        "SRFormer",
        &["layers.0.residual_group.blocks.0.attn.aligned_relative_position_index"],
    ),
    (
        "Swin2SR",
        &[
            "layers.0.residual_group.blocks.0.norm1.weight",
            "patch_embed.proj.weight",
        ],
    ),
    ("RGT", &["before_RG.1.weight", "layers.0.blocks.0.gamma"]),
    (
        "DRCT",
        &["conv_first.weight", "layers.0.swin1.norm1.weight"],
    ),
    ("ATD", &["conv_first.weight", "layers.0.residual_group.td"]),
    (
        "CRAFT",
        &["layers.0.residual_group.hf_blocks.0.attn.temperature"],
    ),
    ("GRL", &["conv_first.weight", "norm_start.weight"]),
    (
        "OmniSR",
        &["residual_layer.0.residual_layer.0.layer.0.fn.0.weight"],
    ),
    ("SPAN", &["block_1.c1_r.sk.weight"]),
    ("PLKSR", &["feats.0.weight", "feats.1.refine.weight"]),
    ("MoSR", &["gblocks.0.weight", "gblocks.1.fc1.weight"]),
    (
        "Real-CUGAN",
        &["unet1.conv1.conv.0.weight", "unet2.conv1.conv.0.weight"],
    ),
    ("SCUNet", &["m_head.0.weight", "m_tail.0.weight"]),
    ("SAFMN", &["to_feat.weight", "feats.0.safm.mfr.0.weight"]),
    ("Swift-SRGAN", &["initial.cnn.depthwise.weight"]),
    (
        "GFPGAN",
        &["toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight"],
    ),
];

/// Returns the name of a network that is recognised but not supported.
pub(super) fn unsupported(shapes: &Shapes<'_>) -> Option<&'static str> {
    let mut others = OTHERS.iter();
    let found = others.find(|(_, names)| names.iter().all(|name| shapes.contains_key(name)));
    found.map(|(name, _)| *name)
}
