//! Recognises the family of models that an adapter was trained for.

use super::{
    formats::{Part, Shaped},
    keys::{TEXT, TEXT_2, UNET},
    module::Module,
};
use crate::{checkpoint::Family, weights::Stored};

/// Parts of module names, with underscores, by which adapters for other models are recognised. The
/// texts complete `the file is an adapter for …`.
const OTHERS: [(&str, &str); 17] = [
    ("lora_prior_", "Stable Cascade"),
    ("lora_te3_", "Stable Diffusion 3"),
    ("joint_blocks_", "Stable Diffusion 3"),
    ("double_blocks_", "Flux or one of its relatives"),
    ("single_blocks_", "Flux or one of its relatives"),
    ("single_transformer_blocks_", "Flux or one of its relatives"),
    ("distilled_guidance_layer_", "Chroma"),
    ("adaln_single_", "PixArt or one of its relatives"),
    ("caption_projection_", "PixArt or one of its relatives"),
    ("double_layers_", "AuraFlow"),
    ("cap_embedder_", "Lumina or one of its relatives"),
    ("context_refiner_", "Lumina or one of its relatives"),
    ("noise_refiner_", "Lumina or one of its relatives"),
    ("motion_modules_", "AnimateDiff's motion module"),
    ("controlnet_", "a ControlNet"),
    ("lllite_", "ControlNet-LLLite"),
    ("lora_transformer_", "a diffusion transformer"),
];

/// Beginnings of names, with underscores, of networks of other models.
const OTHER_STARTS: [&str; 11] = [
    "transformer_transformer_blocks_",
    "transformer_single_",
    "transformer_blocks_",
    "transformer_layers_",
    "diffusion_model_blocks_",
    "diffusion_model_layers_",
    "lora_unet_blocks_",
    "lora_unet_layers_",
    "base_model_model_transformer_blocks_",
    "base_model_model_blocks_",
    "base_model_model_layers_",
];

/// Returns the other model that an adapter is for, judged by the names of its modules.
pub(super) fn other<'a>(modules: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let mut found = None;
    for module in modules {
        let name = module.replace('.', "_");
        let mut others = OTHERS.iter();
        if let Some((_, model)) = others.find(|(part, _)| name.contains(part)) {
            return Some(model);
        }
        if OTHER_STARTS.iter().any(|start| name.starts_with(start)) {
            found = Some("a diffusion transformer");
        }
    }
    found
}

/// Recognises the family by the width of the prompt that cross-attention takes, or else by the text
/// encoders. Returns `None` if no module shows it.
pub(super) fn of(modules: &[Module]) -> Option<Family> {
    let is_cross = |module: &&Module| {
        module.networks.contains(&UNET)
            && ["attn2_to_k", "attn2_to_v"]
                .iter()
                .any(|end| module.rest.ends_with(end))
    };
    let mut widths = modules.iter().filter(is_cross).filter_map(inputs);
    let by_width = widths.find_map(|width| match width {
        768 => Some(Family::Sd1),
        1024 => Some(Family::Sd2),
        1280 => Some(Family::Refiner),
        2048 => Some(Family::Xl),
        _ => None,
    });
    let in_network = |network| move |module: &&Module| module.networks == [network];
    let by_encoders = || {
        if modules.iter().any(|module| in_network(TEXT_2)(&module)) {
            return Some(Family::Xl);
        }
        let mut first = modules.iter().filter(in_network(TEXT)).filter_map(inputs);
        // CLIP ViT-L, 768 wide, is in Stable Diffusion 1 and in SDXL.
        first.any(|width| width == 1024).then_some(Family::Sd2)
    };
    by_width.or_else(by_encoders)
}

/// Returns the number of inputs of the layer that a module changes, if its factors show it.
fn inputs(module: &Module) -> Option<usize> {
    let parts = &module.parts;
    let side = |part: Part, axis: usize| -> Option<usize> {
        let tensor: &Stored = parts.get(part)?;
        tensor.shape().get(axis).copied()
    };
    side(Part::Down, 1)
        .or_else(|| side(Part::HadaW1B, 1))
        .or_else(|| side(Part::Diff, 1))
        .or_else(|| {
            let first = side(Part::LokrW1, 1).or_else(|| side(Part::LokrW1B, 1))?;
            let second = side(Part::LokrW2, 1).or_else(|| side(Part::LokrW2B, 1))?;
            first.checked_mul(second)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_for_other_models_are_recognised() {
        for (module, expected) in [
            (
                "lora_unet_double_blocks_0_img_attn_proj",
                "Flux or one of its relatives",
            ),
            (
                "transformer.single_transformer_blocks.0.attn.to_q",
                "Flux or one of its relatives",
            ),
            (
                "diffusion_model.joint_blocks.0.x_block.attn.qkv",
                "Stable Diffusion 3",
            ),
            ("lora_te3_encoder_block_0", "Stable Diffusion 3"),
            ("lora_prior_unet_down_blocks_0", "Stable Cascade"),
            (
                "diffusion_model.blocks.0.self_attn.q",
                "a diffusion transformer",
            ),
            (
                "transformer.transformer_blocks.0.attn.to_q",
                "a diffusion transformer",
            ),
        ] {
            assert_eq!(other([module].into_iter()), Some(expected), "{module}");
        }
        let ours = [
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
            "lora_te2_transformer_resblocks_0_attn_in_proj",
            "transformer.resblocks.0.mlp.c_fc",
        ];
        assert_eq!(other(ours.into_iter()), None);
    }
}
