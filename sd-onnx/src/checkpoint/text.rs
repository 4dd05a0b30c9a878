//! CLIP's text encoders, with transformers' names or OpenCLIP's.

use serde_json::json;

use super::{
    Component, Family, Problem, View,
    names::{Fate, Renamed, Tensor, object},
};

/// A text encoder of a checkpoint.
#[derive(Debug)]
pub(super) struct Tower<'a> {
    /// The name of its folder in diffusers.
    pub component: &'static str,
    tensors: &'a [Tensor<'a>],
    is_open_clip: bool,
}

impl<'a> Tower<'a> {
    /// Returns the text encoder with these tensors, or `None` if there are no tensors.
    pub fn of(tensors: &'a [Tensor<'a>]) -> Option<Self> {
        let names = ["token_embedding.weight", "transformer.resblocks."];
        let is_open_clip = |tensor: &Tensor<'_>| names.iter().any(|n| tensor.rest.starts_with(n));
        (!tensors.is_empty()).then(|| Self {
            component: "text_encoder",
            is_open_clip: tensors.iter().any(is_open_clip),
            tensors,
        })
    }

    pub fn named(self, component: &'static str) -> Self {
        Self { component, ..self }
    }

    /// Whether its tensors have OpenCLIP's names.
    pub fn is_open_clip(&self) -> bool {
        self.is_open_clip
    }

    /// Returns the width of the token embedding, or 0 if it is missing.
    pub fn width(&self) -> usize {
        let is_embedding = |tensor: &&Tensor<'_>| tensor.rest.ends_with("token_embedding.weight");
        let embedding = self.tensors.iter().find(is_embedding);
        embedding.map_or(0, |tensor| tensor.shape.get(1).copied().unwrap_or(0))
    }

    /// Whether OpenCLIP trained the encoder, whatever its names are.
    ///
    /// The family decides, if it is known. Otherwise, OpenCLIP's encoders are second encoders,
    /// encoders with OpenCLIP's names, and encoders wider than CLIP ViT-L.
    fn is_of_open_clip(&self, family: Option<Family>) -> bool {
        let second = self.component == "text_encoder_2";
        match family {
            Some(Family::Sd1) => false,
            Some(Family::Sd2) => true,
            Some(Family::Xl | Family::Refiner) => second,
            None => second || self.is_open_clip || self.width() > 768,
        }
    }

    /// Returns the tokenizer's folder and its padding token.
    pub fn pad(&self, family: Option<Family>) -> (&'static str, &'static str) {
        let tokenizer = match self.component {
            "text_encoder_2" => "tokenizer_2",
            _ => "tokenizer",
        };
        (tokenizer, Family::pad(self.is_of_open_clip(family)))
    }
}

/// The width of an attention head.
const HEAD: usize = 64;
/// The width and the number of layers of OpenCLIP ViT-H, Stable Diffusion 2's text encoder. Stable
/// Diffusion 2 was trained with the state before the last layer.
const VIT_H: (usize, usize) = (1024, 24);
/// The last id of CLIP's vocabulary, which is the end of text.
const END: usize = 49407;

/// Maps the names of a text encoder and infers its configuration from the shapes.
pub(super) fn read(tower: &Tower<'_>, family: Option<Family>) -> Result<Component, Problem> {
    let mut tensors = Renamed::of(tower.tensors, |tensor| match tower.is_open_clip {
        true => open_clip(tensor),
        false => transformers(tensor.rest),
    })?;
    let shape = |problem: String| Problem::Shape {
        component: match tower.component {
            "text_encoder_2" => "second text encoder",
            _ => "text encoder",
        },
        problem,
    };
    let (vocabulary, width) = match *tensors.shape("embeddings.token_embedding.weight") {
        [vocabulary, width] if vocabulary > 1 && width > 0 => (vocabulary, width),
        ref other => {
            return Err(shape(format!(
                "the token embedding has shape {other:?}, expected a row for each token"
            )));
        }
    };
    if width % HEAD != 0 {
        return Err(shape(format!(
            "it is {width} wide, which heads of {HEAD} do not divide"
        )));
    }
    let layers = used_layers(&mut tensors, width, family);
    let projection = tensors.dim("text_projection.weight", 0);
    let second = tower.component == "text_encoder_2";
    let end = END.min(vocabulary - 1);
    let config = json!({
        "architectures": [match second {
            true => "CLIPTextModelWithProjection",
            false => "CLIPTextModel",
        }],
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "hidden_act": match tower.is_of_open_clip(family) {
            true => "gelu",
            false => "quick_gelu",
        },
        "hidden_size": width,
        "intermediate_size": tensors.dim("encoder.layers.0.mlp.fc1.weight", 0),
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": tensors.dim("embeddings.position_embedding.weight", 0),
        "model_type": "clip_text_model",
        "num_attention_heads": width / HEAD,
        "num_hidden_layers": layers,
        "pad_token_id": if tower.is_of_open_clip(family) { 0 } else { end },
        "projection_dim": if projection > 0 { projection } else { width },
        "vocab_size": vocabulary,
    });
    Ok(tensors.component(object(config)))
}

/// Returns the number of layers that the model uses, and removes the tensors of the others.
fn used_layers(tensors: &mut Renamed, width: usize, family: Option<Family>) -> usize {
    let has_projection = tensors.has("text_projection.weight");
    let mut layers = tensors.count(|i| format!("encoder.layers.{i}.layer_norm1.weight"));
    // Layers after a gap are unused. Silently ending the encoder there would give other pictures.
    let count = layers;
    tensors.leave_over(|name| layer_of(name) >= Some(count));
    // Stable Diffusion 2's folder in diffusers has one layer fewer than OpenCLIP's model. So do
    // files that were made from a folder, which also lack the projection.
    if family == Some(Family::Sd2) || family.is_none() && width == VIT_H.0 {
        layers = match width == VIT_H.0 {
            true => layers.min(VIT_H.1 - 1),
            false => layers - usize::from(has_projection && layers > 1),
        };
        tensors.remove(|name| name == "text_projection.weight" || layer_of(name) >= Some(layers));
    }
    layers
}

/// Returns a warning if published encoders of this width have another number of layers.
pub(super) fn unusual(component: &Component) -> Option<String> {
    let number = |key: &str| component.config.get(key)?.as_u64();
    let (width, layers) = (number("hidden_size")?, number("num_hidden_layers")?);
    let (_, usual) = PUBLISHED.into_iter().find(|(of, _)| *of == width)?;
    (layers != usual).then(|| {
        format!("the text encoder has {layers} layers, where others of width {width} have {usual}")
    })
}

/// The widths and layer counts of the text encoders of Stable Diffusion 1.x, 2.x and SDXL.
const PUBLISHED: [(u64, u64); 3] = [(768, 12), (1024, 23), (1280, 32)];

/// Returns the number of the layer that a tensor belongs to.
fn layer_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("encoder.layers.")?;
    rest.split('.').next()?.parse().ok()
}

/// The modules of a layer.
const LAYER: [&str; 8] = [
    "layer_norm1",
    "layer_norm2",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
];

/// OpenCLIP's names of the weights outside the layers, with the current names.
pub(super) const OPEN_CLIP: [(&str, &str); 4] = [
    (
        "token_embedding.weight",
        "embeddings.token_embedding.weight",
    ),
    (
        "positional_embedding",
        "embeddings.position_embedding.weight",
    ),
    ("ln_final.weight", "final_layer_norm.weight"),
    ("ln_final.bias", "final_layer_norm.bias"),
];

/// OpenCLIP's names of the modules in a layer, without the fused query, key and value, with the
/// current names.
pub(super) const OPEN_CLIP_LAYER: [(&str, &str); 5] = [
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
];

/// Maps a tensor with transformers' names, most of which used to begin with `text_model.`.
fn transformers(name: &str) -> Fate {
    let today = name.strip_prefix("text_model.").unwrap_or(name);
    // CLIP's image encoder.
    if ["vision_model.", "visual_projection."]
        .iter()
        .any(|start| today.starts_with(start))
    {
        return Fate::LeftOut;
    }
    let embeddings = [
        "embeddings.token_embedding.weight",
        "embeddings.position_embedding.weight",
        "text_projection.weight",
    ];
    if embeddings.contains(&today) {
        return Fate::whole(today);
    }
    // A projection that is a plain matrix has OpenCLIP's layout.
    if today == "text_projection" {
        return transposed_projection();
    }
    let Some((module, "weight" | "bias")) = today.rsplit_once('.') else {
        return Fate::Unknown;
    };
    let is_layers = |rest: &str| {
        let rest = rest.split_once('.');
        rest.is_some_and(|(layer, module)| {
            layer.bytes().all(|byte| byte.is_ascii_digit()) && LAYER.contains(&module)
        })
    };
    let in_layer = module.strip_prefix("encoder.layers.");
    match module == "final_layer_norm" || in_layer.is_some_and(is_layers) {
        true => Fate::whole(today),
        false => Fate::Unknown,
    }
}

/// Maps a tensor with OpenCLIP's names.
fn open_clip(tensor: &Tensor<'_>) -> Fate {
    match tensor.rest {
        "text_projection" => return transposed_projection(),
        "text_projection.weight" => return Fate::whole("text_projection.weight"),
        // OpenCLIP's image encoder.
        rest if rest.starts_with("visual.") => return Fate::LeftOut,
        _ => {}
    }
    if let Some((_, today)) = OPEN_CLIP.iter().find(|(stored, _)| *stored == tensor.rest) {
        return Fate::whole(*today);
    }
    let Some((layer, module)) = tensor
        .rest
        .strip_prefix("transformer.resblocks.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return Fate::Unknown;
    };
    if !layer.bytes().all(|byte| byte.is_ascii_digit()) {
        return Fate::Unknown;
    }
    let name = |rest: &str| format!("encoder.layers.{layer}.{rest}");
    if let Some(leaf @ ("weight" | "bias")) = module.strip_prefix("attn.in_proj_") {
        // Query, key and value, concatenated along the rows.
        let rows = tensor.shape.first().copied().unwrap_or(0);
        if rows == 0 || rows % 3 != 0 {
            return Fate::Unknown;
        }
        let part = |(i, part): (usize, &str)| {
            let view = View::Rows {
                from: i * (rows / 3),
                count: rows / 3,
            };
            (name(&format!("self_attn.{part}_proj.{leaf}")), view)
        };
        return Fate::Weights(["q", "k", "v"].into_iter().enumerate().map(part).collect());
    }
    let Some((module, leaf @ ("weight" | "bias"))) = module.rsplit_once('.') else {
        return Fate::Unknown;
    };
    match OPEN_CLIP_LAYER.iter().find(|(stored, _)| *stored == module) {
        Some((_, today)) => Fate::whole(name(&format!("{today}.{leaf}"))),
        None => Fate::Unknown,
    }
}

fn transposed_projection() -> Fate {
    Fate::Weights(vec![(
        "text_projection.weight".to_owned(),
        View::Transposed,
    )])
}
