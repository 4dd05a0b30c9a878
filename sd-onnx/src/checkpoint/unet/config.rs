//! Infers the UNet's configuration, in the form that diffusers writes.

use serde_json::{Map, Value, json};

use super::{Level, Unet, only_cross, shape};
use crate::checkpoint::{Component, Family, Problem, family::SIZE_WIDTH, names::object};

impl Unet {
    /// Returns the component. `pooled` is the width of the pooled text, where it is known.
    pub fn component(
        self,
        family: Family,
        pooled: Option<usize>,
        sample_size: Value,
    ) -> Result<Component, Problem> {
        let config = self.config(family, pooled, sample_size)?;
        Ok(self.tensors.component(config))
    }

    fn config(
        &self,
        family: Family,
        pooled: Option<usize>,
        sample_size: Value,
    ) -> Result<Map<String, Value>, Problem> {
        let levels = &self.levels;
        let [down, up] = self.block_types();
        let channels: Vec<_> = levels.iter().map(|level| level.channels).collect();
        let time_width = self.tensors.dim("time_embedding.linear_1.weight", 0);
        let is_usual = channels[0].checked_mul(4) == Some(time_width);
        let only_cross: Vec<_> = levels.iter().map(|level| level.only_cross).collect();
        let [depths, reverse] = self.depths()?;
        let projected = self.tensors.shape("encoder_hid_proj.weight");
        let added = self.added(family, pooled)?;
        let [input, output] = self.channels();
        let config = json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.42.1",
            "act_fn": "silu",
            "addition_embed_type": added.map(|_| "text_time"),
            "addition_time_embed_dim": added.map(|(size, _)| size),
            "attention_head_dim": self.heads(family)?,
            "block_out_channels": channels,
            "center_input_sample": false,
            "conv_in_kernel": self.tensors.dim("conv_in.weight", 2),
            "conv_out_kernel": self.tensors.dim("conv_out.weight", 2),
            "cross_attention_dim": self.context_width(),
            "down_block_types": down,
            "downsample_padding": 1,
            "encoder_hid_dim": projected.get(1),
            "encoder_hid_dim_type": projected.get(1).map(|_| "text_proj"),
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "in_channels": input,
            "layers_per_block": same(levels.iter().map(|level| level.resnets)),
            "mid_block_only_cross_attention": self.mid_only_cross(),
            "mid_block_scale_factor": 1,
            "mid_block_type": self.has_mid.then_some(match self.mid {
                Some(_) => "UNetMidBlock2DCrossAttn",
                None => "UNetMidBlock2D",
            }),
            "norm_eps": 1e-5,
            "norm_num_groups": 32,
            "only_cross_attention": match only_cross.contains(&true) {
                true => json!(only_cross),
                false => json!(false),
            },
            "out_channels": output,
            "projection_class_embeddings_input_dim": added.map(|(_, width)| width),
            "reverse_transformer_layers_per_block": reverse,
            "sample_size": sample_size,
            "time_cond_proj_dim": self.guidance_width(),
            "time_embedding_dim": (!is_usual).then_some(time_width),
            "transformer_layers_per_block": depths,
            "up_block_types": up,
            "use_linear_projection": self.projects_linearly(),
        });
        Ok(object(config))
    }

    /// Returns the classes of the down blocks and of the up blocks, each in the network's order.
    pub(super) fn block_types(&self) -> [Vec<&'static str>; 2] {
        let [down, mut up] = [0, 1].map(|way| {
            let (cross, plain) = match way {
                0 => ("CrossAttnDownBlock2D", "DownBlock2D"),
                _ => ("CrossAttnUpBlock2D", "UpBlock2D"),
            };
            let named = move |level: &Level| match level.has_attention()[way] {
                true => cross,
                false => plain,
            };
            self.levels.iter().map(named).collect::<Vec<_>>()
        });
        up.reverse();
        [down, up]
    }

    /// Returns the width of a size's sinusoidal embedding, and the width of everything that is
    /// added to the time embedding.
    pub(super) fn added(
        &self,
        family: Family,
        pooled: Option<usize>,
    ) -> Result<Option<(usize, usize)>, Problem> {
        let Some(width) = self.added_width() else {
            return Ok(None);
        };
        let ids = if family == Family::Refiner { 5 } else { 6 };
        let size = match pooled {
            None => SIZE_WIDTH,
            Some(pooled) => match width.checked_sub(pooled) {
                Some(sizes) if sizes > 0 && sizes % (2 * ids) == 0 => sizes / ids,
                _ => {
                    return Err(shape(format!(
                        "it adds {width} numbers to the time, which are not the {pooled} of the \
                         pooled text plus {ids} equally wide sizes"
                    )));
                }
            },
        };
        Ok(Some((size, width)))
    }

    /// Returns `attention_head_dim`, which, despite its name, is the number of heads.
    pub(super) fn heads(&self, family: Family) -> Result<Value, Problem> {
        let last = self.levels.len() - 1;
        let mut heads = Vec::new();
        for (i, level) in self.levels.iter().enumerate() {
            let used = level.has_attention().contains(&true) || i == last && self.mid.is_some();
            heads.push(match family.heads(level.channels) {
                Some(heads) => heads,
                None if !used => 1,
                None => {
                    return Err(shape(format!(
                        "level {i} has {} channels, which heads of {} do not divide",
                        level.channels,
                        family.name()
                    )));
                }
            });
        }
        Ok(same(heads))
    }

    fn mid_only_cross(&self) -> Option<bool> {
        let is_cross = only_cross(&self.tensors, "mid_block.attentions.0")?;
        is_cross.then_some(true)
    }

    /// Returns `transformer_layers_per_block` and `reverse_transformer_layers_per_block`.
    pub(super) fn depths(&self) -> Result<[Value; 2], Problem> {
        let last = self.levels.len() - 1;
        let per_level = self.levels.iter().enumerate().map(|(i, level)| {
            let mut all = level
                .down
                .iter()
                .chain(&level.up)
                .filter(|&&count| count > 0);
            // A level without a transformer can have any number. The last one takes the middle
            // block's.
            let default = if i == last { self.mid } else { None };
            let first = all.next().copied().or(default).unwrap_or(1);
            let is_same = all.all(|&count| count == first);
            is_same.then_some(first)
        });
        let per_level: Option<Vec<_>> = per_level.collect();
        if let Some(per_level) = &per_level
            && self.mid.is_none_or(|mid| mid == per_level[last])
        {
            return Ok([same(per_level.iter().copied()), Value::Null]);
        }
        let list = |layers: &[usize], default: usize| match layers.first() {
            Some(&first) if first > 0 => json!(layers),
            _ => json!(default),
        };
        let mid = self.mid.unwrap_or(1);
        let down = self.levels.iter().enumerate().map(|(i, level)| {
            let default = if i == last { mid } else { 1 };
            list(&level.down, default)
        });
        let up = self.levels.iter().rev().map(|level| list(&level.up, 1));
        let first = self.levels[last].down.first().copied().unwrap_or(0);
        if let Some(mid) = self.mid.filter(|&mid| first > 0 && mid != first) {
            return Err(shape(format!(
                "the middle block has {mid} transformer layers and the block before it {first}, \
                 expected equal numbers"
            )));
        }
        Ok([down.collect(), up.collect()])
    }
}

/// Returns a list, or a single number if all values are equal.
pub(super) fn same(values: impl IntoIterator<Item = usize>) -> Value {
    let values: Vec<_> = values.into_iter().collect();
    match values.iter().all(|value| *value == values[0]) {
        true => json!(values[0]),
        false => json!(values),
    }
}
