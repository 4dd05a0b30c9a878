//! Recognises what a file is, also when it is not a model.

use std::fmt;

use super::{File, control};

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A UNet, with or without other networks.
    Model,
    /// An autoencoder alone.
    Vae,
    /// One or two text encoders alone.
    TextEncoder,
    /// CLIP's vision model alone.
    ImageEncoder,
    Lora,
    TextualInversion,
    ControlNet,
    T2iAdapter,
    IpAdapter,
    /// ESRGAN or a related network.
    Upscaler,
    /// Another network or model. The text completes `the file is …`.
    Other(&'static str),
    Unknown,
}

impl Kind {
    /// Whether [`read`](super::read) accepts such a file, in which it may find networks.
    pub(super) fn is_read(self) -> bool {
        let read = [Self::Model, Self::Vae, Self::TextEncoder, Self::Unknown];
        read.contains(&self)
    }

    /// Returns the text that completes `the file is …`.
    pub fn text(self) -> &'static str {
        match self {
            Self::Model => "a Stable Diffusion model",
            Self::Vae => "an autoencoder",
            Self::TextEncoder => "a text encoder",
            Self::ImageEncoder => {
                "CLIP's vision model, which embeds pictures and cannot draw \
                 (`Builder::load_image_encoder`)"
            }
            Self::Lora => {
                "a LoRA, which changes a model and cannot draw by itself (`Builder::lora`)"
            }
            Self::TextualInversion => {
                "a textual inversion, which adds words to a model and cannot draw by itself"
            }
            Self::ControlNet => "a ControlNet, which guides a model and cannot draw by itself",
            Self::T2iAdapter => "a T2I-Adapter, which guides a model and cannot draw by itself",
            Self::IpAdapter => "an IP-Adapter, which guides a model and cannot draw by itself",
            Self::Upscaler => {
                "an upscaler of pictures and not a model to draw with (`Builder::upscaler`)"
            }
            Self::Other(what) => what,
            Self::Unknown => "nothing that is known",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A mark in tensor names by which a file is recognised.
enum Sign {
    /// Some name contains this text.
    Has(&'static str),
    /// Some name begins with this text.
    Starts(&'static str),
    /// Some name ends with this text.
    Ends(&'static str),
    /// Some name equals this text.
    Is(&'static str),
}

use Sign::{Ends, Has, Is, Starts};

// Other models and networks. Each text completes `the file is …`.
const MOTION: Kind = Kind::Other("AnimateDiff's motion module, which is not supported");
const SD3: Kind = Kind::Other("Stable Diffusion 3, which is not supported");
const FLUX: Kind = Kind::Other("Flux or one of its relatives, which is not supported");
const CASCADE: Kind = Kind::Other("Stable Cascade, which is not supported");
const CASCADE_VAE: Kind = Kind::Other("Stable Cascade's autoencoder, which is not supported");
const SVD: Kind = Kind::Other("Stable Video Diffusion, which is not supported");
const UNCLIP: Kind = Kind::Other("Stable unCLIP, which is not supported");
const DEPTH: Kind = Kind::Other("a depth-to-image model, which is not supported");
const UPSCALER_X4: Kind = Kind::Other("the x4 upscaler, which is not supported");
const LUMINA: Kind = Kind::Other("Lumina or one of its relatives, which is not supported");
const PIXART: Kind = Kind::Other("PixArt or one of its relatives, which is not supported");
const TRANSFORMER: Kind = Kind::Other("a diffusion transformer, which is not supported");
const VIDEO: Kind = Kind::Other("a video model, which is not supported");

/// The signs and the kinds that they identify. The first sign that is found decides. Files that
/// guide a model have been recognised before, because a ControlNet has the blocks of a UNet.
#[rustfmt::skip]
const SIGNS: [(Sign, Kind); 63] = [
    (Starts("lora_"), Kind::Lora),
    (Has(".lora_"), Kind::Lora),
    (Has("_lora."), Kind::Lora),
    (Has(".lora."), Kind::Lora),
    (Ends(".hada_w1_a"), Kind::Lora),
    (Ends(".hada_w1_b"), Kind::Lora),
    (Ends(".lokr_w1"), Kind::Lora),
    (Ends(".lokr_w1_a"), Kind::Lora),
    (Ends(".dora_scale"), Kind::Lora),
    (Ends(".oft_diag"), Kind::Lora),
    (Ends(".oft_blocks"), Kind::Lora),
    (Starts("oft_unet_"), Kind::Lora),
    (Starts("lycoris_"), Kind::Lora),
    (Starts("bundle_emb."), Kind::Lora),
    (Ends(".lokr_w2"), Kind::Lora),
    (Ends(".on_input"), Kind::Lora),
    (Ends(".diff"), Kind::Lora),
    (Ends(".w_norm"), Kind::Lora),
    (Ends(".a1.weight"), Kind::Lora),
    (Has("motion_modules."), MOTION),
    (Has("joint_blocks."), SD3),
    (Has("double_blocks."), FLUX),
    (Has("single_blocks."), FLUX),
    (Has("single_transformer_blocks."), FLUX),
    (Has("double_layers."), Kind::Other("AuraFlow, which is not supported")),
    (Has("clip_txt_mapper."), CASCADE),
    (Has("clip_txt_pooled_mapper."), CASCADE),
    (Has(".channelwise."), CASCADE),
    (Has("clip_mapper."), CASCADE),
    (Has("effnet_mapper."), CASCADE),
    (Has("vquantizer."), CASCADE_VAE),
    (Has(".time_stack."), SVD),
    (Has("noise_augmentor."), UNCLIP),
    (Starts("embedder.model.visual."), UNCLIP),
    (Starts("depth_model."), DEPTH),
    (Starts("low_scale_model."), UPSCALER_X4),
    (Has("label_emb.weight"), UPSCALER_X4),
    (Has("cap_embedder."), LUMINA),
    (Has("adaln_single."), PIXART),
    (Has("t_block.1."), PIXART),
    (Has("scale_shift_table"), PIXART),
    (Has("mlp_t5."), Kind::Other("Hunyuan-DiT, which is not supported")),
    (Has("txt_in."), TRANSFORMER),
    (Has("distilled_guidance_layer."), Kind::Other("Chroma, which is not supported")),
    (Starts("patch_embedding."), VIDEO),
    (Has("diffusion_model.patch_embedding."), VIDEO),
    (Has(".adaLN_modulation."), TRANSFORMER),
    (Is("emb_params"), Kind::TextualInversion),
    (Starts("string_to_param"), Kind::TextualInversion),
    (Starts("model.1.sub."), Kind::Upscaler),
    (Starts("RRDB_trunk."), Kind::Upscaler),
    (Starts("body.0.rdb1."), Kind::Upscaler),
    (Starts("body.0.weight"), Kind::Upscaler),
    (Has(".residual_group."), Kind::Upscaler),
    (Starts("upsampler."), Kind::Upscaler),
    (Starts("params_ema."), Kind::Upscaler),
    (Has("input_blocks.0.0.weight"), Kind::Model),
    (Ends("down_blocks.0.resnets.0.time_emb_proj.weight"), Kind::Model),
    (Ends("decoder.conv_in.weight"), Kind::Vae),
    (Ends("encoder.conv_in.weight"), Kind::Vae),
    (Has("token_embedding.weight"), Kind::TextEncoder),
    (Starts("vision_model."), Kind::ImageEncoder),
    (Ends("coder.layers.0.weight"), Kind::Vae),
];

/// Recognises a file by the names and shapes of its tensors.
pub(super) fn of(file: &File<'_>) -> Kind {
    if let Some(kind) = control::kind(file) {
        return kind;
    }
    for (sign, kind) in &SIGNS {
        let matches = |name: &&str| match sign {
            Has(part) => name.contains(part),
            Starts(start) => name.starts_with(start),
            Ends(end) => name.ends_with(end),
            Is(name_of) => name == name_of,
        };
        if file.shapes.keys().any(matches) {
            return by_channels(file, *kind);
        }
    }
    if is_inversion(file) {
        return Kind::TextualInversion;
    }
    let tiny = |prefix: &str, layer: usize| {
        let conv = format!("{prefix}{layer}.weight");
        let block = format!("{prefix}{}.conv.0.weight", if layer == 0 { 1 } else { 3 });
        [conv, block]
            .iter()
            .all(|name| file.shapes.contains_key(name.as_str()))
    };
    let halves = [
        ("", 0),
        ("", 1),
        ("taesd_encoder.", 0),
        ("taesd_decoder.", 1),
    ];
    match halves
        .into_iter()
        .any(|(prefix, layer)| tiny(prefix, layer))
    {
        true => Kind::Vae,
        false => Kind::Unknown,
    }
}

/// Returns the kind of a UNet in view of its inputs. Models that also take a depth map, a small
/// picture or a picture's embedding are not supported.
fn by_channels(file: &File<'_>, kind: Kind) -> Kind {
    if kind != Kind::Model {
        return kind;
    }
    let prefixes = ["model.diffusion_model.", "diffusion_model.", "unet.", ""];
    let shape = |name: &str| {
        let found = prefixes
            .iter()
            .find_map(|prefix| file.shapes.get(format!("{prefix}{name}").as_str()));
        found.map_or(&[][..], |shape| *shape)
    };
    let first = [shape("input_blocks.0.0.weight"), shape("conv_in.weight")];
    let ([&[_, channels, ..], _] | [_, &[_, channels, ..]]) = first else {
        return kind;
    };
    match channels {
        5 => return DEPTH,
        7 => return UPSCALER_X4,
        _ => {}
    }
    // Stable unCLIP is a Stable Diffusion 2 that adds a picture's embedding to the time embedding.
    // Its input is twice as wide as CLIP ViT-L's or OpenCLIP ViT-H's embedding.
    let added = shape("label_emb.0.0.weight").get(1);
    let class = shape("class_embedding.linear_1.weight");
    let is_sd2 = file
        .shapes
        .keys()
        .any(|name| name.starts_with("cond_stage_model."))
        || matches!(added, Some(1536 | 2048));
    if !class.is_empty() || added.is_some() && is_sd2 {
        return UNCLIP;
    }
    if shape("encoder_hid_proj.weight").get(1) == Some(&4096) {
        return Kind::Other("Kolors, whose text encoder is not supported");
    }
    kind
}

/// Whether the file is one matrix, or SDXL's two, with rows as wide as a text encoder.
fn is_inversion(file: &File<'_>) -> bool {
    let is_rows = |shape: &&[usize]| {
        let width = shape.last().copied().unwrap_or(0);
        (1..=2).contains(&shape.len()) && [768, 1024, 1280].contains(&width)
    };
    let count = file.shapes.len();
    let two = file.shapes.contains_key("clip_l") && file.shapes.contains_key("clip_g");
    (count == 1 || count == 2 && two) && file.shapes.values().all(is_rows)
}
