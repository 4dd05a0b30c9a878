//! The names of tensors in adapter files.
//!
//! A name is split into a module and the role of the tensor in it, and the module into the prefix
//! of a network and a rest. The rest is compared with the names of a model's own modules in
//! [`targets`](super::targets), with underscores instead of dots.

use super::formats::Part;
use crate::checkpoint;

/// The ends of names, each with the role that it stands for. Where one end contains another, the
/// longer one comes first.
const ENDS: [(&str, Part); 52] = [
    // kohya's names, which LyCORIS, OneTrainer and most other tools use.
    (".lora_up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_mid.weight", Part::Mid),
    // diffusers' names: until 0.16, until 0.20, and in text encoders.
    ("_lora.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    // peft's names. Names with the name of an adapter are in `peft`.
    (".lora_B.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B", Part::Up),
    (".lora_A", Part::Down),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".lora_magnitude_vector", Part::Magnitude),
    // Alpha, also beside diffusers' names.
    ("_lora.down.weight.alpha", Part::Alpha),
    (".lora.down.weight.alpha", Part::Alpha),
    (".lora_linear_layer.down.weight.alpha", Part::Alpha),
    ("_lora.alpha", Part::Alpha),
    (".lora.alpha", Part::Alpha),
    (".lora_linear_layer.alpha", Part::Alpha),
    (".alpha", Part::Alpha),
    (".scale", Part::Scale),
    (".dora_scale", Part::DoraScale),
    (".hada_w1_a", Part::HadaW1A),
    (".hada_w1_b", Part::HadaW1B),
    (".hada_t1", Part::HadaT1),
    (".hada_w2_a", Part::HadaW2A),
    (".hada_w2_b", Part::HadaW2B),
    (".hada_t2", Part::HadaT2),
    (".lokr_w1", Part::LokrW1),
    (".lokr_w1_a", Part::LokrW1A),
    (".lokr_w1_b", Part::LokrW1B),
    (".lokr_w2", Part::LokrW2),
    (".lokr_w2_a", Part::LokrW2A),
    (".lokr_w2_b", Part::LokrW2B),
    (".lokr_t2", Part::LokrT2),
    (".on_input", Part::OnInput),
    (".diff", Part::Diff),
    (".diff_b", Part::DiffB),
    (".w_norm", Part::WNorm),
    (".b_norm", Part::BNorm),
    (".a1.weight", Part::GloraA1),
    (".a2.weight", Part::GloraA2),
    (".b1.weight", Part::GloraB1),
    (".b2.weight", Part::GloraB2),
    (".bm.weight", Part::GloraBm),
    (".oft_blocks", Part::OftBlocks),
    (".oft_diag", Part::OftDiag),
    (".rescale", Part::Rescale),
    // These are no adapter's names by themselves. The other tensors of the module decide.
    (".bias", Part::Bias),
    (".weight", Part::Ia3),
];

/// Splits a name into the module's name and the role. Returns `None` for a name that no adapter
/// format has.
pub(super) fn split(key: &str) -> Option<(&str, Part)> {
    if let Some(found) = peft(key) {
        return Some(found);
    }
    ENDS.iter()
        .find_map(|&(end, part)| Some((key.strip_suffix(end)?, part)))
}

/// Returns kohya's name of a role, or peft's where kohya has none, such as `lora_up.weight`.
pub(super) fn name(part: Part) -> &'static str {
    let found = ENDS.iter().find(|(_, other)| *other == part);
    found.map_or("", |(end, _)| end.trim_start_matches(['.', '_']))
}

/// Splits a peft name that contains the name of an adapter: `x.lora_A.default.weight`.
fn peft(key: &str) -> Option<(&str, Part)> {
    let (rest, last) = match key.strip_suffix(".weight") {
        Some(rest) => rest.rsplit_once('.')?,
        None => return None,
    };
    let roles = [
        (".lora_A", Part::Down),
        (".lora_B", Part::Up),
        (".lora_magnitude_vector", Part::Magnitude),
    ];
    let found = roles
        .iter()
        .find_map(|&(end, part)| Some((rest.strip_suffix(end)?, part)));
    // `x.lora_A.weight` has no adapter's name. Its rest would be `x`.
    found.filter(|_| !last.is_empty())
}

/// The prefixes of trainers and libraries with the networks that they stand for, beside the
/// prefixes of checkpoints.
const PREFIXES: [(&str, &str); 12] = [
    ("lora_unet_", UNET),
    // kohya's OFT.
    ("oft_unet_", UNET),
    // LyCORIS' own wrapper, which SimpleTuner uses.
    ("lycoris_", UNET),
    ("lora_te_", TEXT),
    ("lora_te1_", TEXT),
    ("lora_te2_", TEXT_2),
    ("oft_te_", TEXT),
    ("oft_te1_", TEXT),
    ("oft_te2_", TEXT_2),
    // The names that Open Model Initiative agreed on.
    ("clip_l.", TEXT),
    ("clip_h.", TEXT),
    ("clip_g.", TEXT_2),
];

pub(crate) const UNET: &str = "unet";
pub(super) const TEXT: &str = "text_encoder";
pub(super) const TEXT_2: &str = "text_encoder_2";

/// What peft puts before the names of a model that it wraps.
const WRAPPER: &str = "base_model.model.";

/// Returns the networks that a module may belong to, and its name there with underscores instead of
/// dots. Without a prefix, that is any network.
pub(super) fn locate(module: &str) -> (&'static [&'static str], String) {
    let unwrapped = |mut name: &'_ str| -> String {
        while let Some(rest) = name.strip_prefix(WRAPPER) {
            name = rest;
        }
        name.to_owned()
    };
    let name = unwrapped(module);
    let known = PREFIXES
        .iter()
        .find_map(|&(prefix, network)| Some((network, name.strip_prefix(prefix)?)));
    // The prefixes of checkpoints come first, because some are longer.
    let known = checkpoint::network_of(&name).or(known);
    let (networks, rest): (&[&str], String) = match known {
        Some((UNET, rest)) => (&[UNET], unwrapped(rest)),
        Some((TEXT_2, rest)) => (&[TEXT_2], unwrapped(rest)),
        Some((TEXT, rest)) => (&[TEXT], unwrapped(rest)),
        // An autoencoder, which adapters do not change.
        Some(_) => (&[], name),
        None => (&[UNET, TEXT, TEXT_2], name),
    };
    // diffusers' attention processors are no modules of the network.
    (networks, rest.replace(".processor.", ".").replace('.', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_module_and_a_role() {
        for (key, module, part) in [
            ("lora_unet_x.lora_up.weight", "lora_unet_x", Part::Up),
            (
                "unet.x.processor.to_q_lora.down.weight",
                "unet.x.processor.to_q",
                Part::Down,
            ),
            ("unet.x.to_q.lora.up.weight", "unet.x.to_q", Part::Up),
            ("unet.x.to_q.lora_A.weight", "unet.x.to_q", Part::Down),
            ("unet.x.to_q.lora_B.style.weight", "unet.x.to_q", Part::Up),
            (
                "x.lora_magnitude_vector.default.weight",
                "x",
                Part::Magnitude,
            ),
            ("x.lora_linear_layer.up.weight", "x", Part::Up),
            ("x.to_q_lora.down.weight.alpha", "x.to_q", Part::Alpha),
            ("x.alpha", "x", Part::Alpha),
            ("x.b1.weight", "x", Part::GloraB1),
            ("x.weight", "x", Part::Ia3),
        ] {
            assert_eq!(split(key), Some((module, part)), "{key}");
        }
        assert_eq!(name(Part::Up), "lora_up.weight");
        assert_eq!(name(Part::HadaW1B), "hada_w1_b");
        assert_eq!(split("x.lora_embedding_A"), None);
        assert_eq!(split(""), None);
    }

    #[test]
    fn a_module_has_a_network_and_underscores() {
        let any: &[&str] = &[UNET, TEXT, TEXT_2];
        for (module, networks, name) in [
            ("lora_unet_down_blocks_0", &[UNET][..], "down_blocks_0"),
            ("oft_unet_input_blocks_1_1", &[UNET], "input_blocks_1_1"),
            (
                "unet.mid_block.attn1.processor.to_q",
                &[UNET],
                "mid_block_attn1_to_q",
            ),
            ("unet.base_model.model.conv_in", &[UNET], "conv_in"),
            ("base_model.model.unet.conv_in", &[UNET], "conv_in"),
            ("diffusion_model.out.2", &[UNET], "out_2"),
            ("lora_te1_text_model_x", &[TEXT], "text_model_x"),
            ("lora_te2_text_model_x", &[TEXT_2], "text_model_x"),
            ("text_encoder.text_model.x", &[TEXT], "text_model_x"),
            (
                "text_encoders.clip_g.transformer.text_model.x",
                &[TEXT_2],
                "text_model_x",
            ),
            ("base_model.model.text_model.x", any, "text_model_x"),
            ("first_stage_model.x", &[], "first_stage_model_x"),
        ] {
            let found = locate(module);
            assert_eq!((found.0, found.1.as_str()), (networks, name), "{module}");
        }
    }
}
