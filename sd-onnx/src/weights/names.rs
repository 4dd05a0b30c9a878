//! Tables of older tensor names.
//!
//! The networks in `models` ask for tensors by the current names in diffusers and transformers. A
//! file with older names is read as if it had the current ones.

/// Prefixes of names: the older prefix and the current one. transformers 5 dropped the prefix from
/// `CLIPTextModel`. `CLIPTextModelWithProjection` still has it, and is read without.
const BEGINNINGS: [(&str, &str); 1] = [("text_model.", "")];

/// Parts within a name: the older part and the current one. These are in the attention of the
/// autoencoder, which diffusers 0.18 renamed. Most published folders have the older names.
const WITHIN: [(&str, &str); 4] = [
    (".attentions.0.query.", ".attentions.0.to_q."),
    (".attentions.0.key.", ".attentions.0.to_k."),
    (".attentions.0.value.", ".attentions.0.to_v."),
    (".attentions.0.proj_attn.", ".attentions.0.to_out.0."),
];

/// Returns the current name of a tensor that a file calls `stored`. Most names are current.
pub(super) fn today(stored: &str) -> String {
    let beginning = BEGINNINGS
        .iter()
        .find_map(|&(before, today)| Some((today, stored.strip_prefix(before)?)));
    let name = match beginning {
        Some((today, rest)) => format!("{today}{rest}"),
        None => stored.to_owned(),
    };
    match WITHIN.iter().find(|&&(before, _)| name.contains(before)) {
        Some(&(before, today)) => name.replacen(before, today, 1),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::today;

    #[test]
    fn older_names_are_read_as_todays() {
        for (stored, expected) in [
            (
                "text_model.encoder.layers.3.mlp.fc1.bias",
                "encoder.layers.3.mlp.fc1.bias",
            ),
            (
                "decoder.mid_block.attentions.0.proj_attn.weight",
                "decoder.mid_block.attentions.0.to_out.0.weight",
            ),
            (
                "encoder.mid_block.attentions.0.query.bias",
                "encoder.mid_block.attentions.0.to_q.bias",
            ),
        ] {
            assert_eq!(today(stored), expected);
            assert_eq!(today(expected), expected);
        }
        // Neither part is in the place where the tables apply.
        for name in [
            "vision_model.text_model.bias",
            "mid_block.attentions.0.transformer_blocks.0.attn1.query.weight",
        ] {
            assert_eq!(today(name), name);
        }
    }
}
