//! What configurations say, compared by what this crate makes of them.

use std::collections::BTreeSet;

use sd_core::{SizeIds, schedulers::from_config};
use sd_text::outside::printable;
use serde_json::{Map, Value, json};

use crate::{
    Error,
    config::Config,
    models::{clip_text::ClipTextConfig, unet::UnetConfig, vae::VaeConfig},
};

/// The configuration of a text encoder as the class of its folder has it, also of one that is a
/// part of a whole CLIP.
pub(super) fn text_config(config: Config, pooled: bool) -> Config {
    let mut config = config.section("text_config");
    let class = match pooled {
        true => "CLIPTextModelWithProjection",
        false => "CLIPTextModel",
    };
    config.set("architectures", json!([class]));
    config.set("model_type", json!("clip_text_model"));
    config
}

/// A key that two configurations give different meanings.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub key: String,
    /// The values, in the form for a message.
    pub old: String,
    pub new: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, old, new } = self;
        write!(f, "`{key}` is {old}, and is read as {new}")
    }
}

/// The keys in which two configurations of a network differ, as far as it computes something else.
/// The size that a model draws at unless it is told another one is left out.
///
/// # Errors
/// When this crate cannot compute either.
pub(super) fn network(
    component: &str,
    [old, new]: [&Config; 2],
    sizes: SizeIds,
) -> Result<Vec<Difference>, Error> {
    let meaning = |config: &Config| -> Result<String, Error> {
        Ok(match component {
            "unet" => {
                let mut unet = UnetConfig::new(config, sizes)?;
                unet.sample_size = [0; 2];
                format!("{unet:?}")
            }
            "vae" => format!("{:?}", VaeConfig::new(config)?),
            _ => {
                let mut text = ClipTextConfig::new(config.clone())?;
                // Where it counts, the weights have it.
                text.projection_width = 0;
                // The largest id of a text, which is what no id stands for, is the last one of the
                // vocabulary.
                text.end = text.end.or(Some(text.vocab_size as i64 - 1));
                format!("{text:?}")
            }
        })
    };
    meaning(old)?;
    let expected = meaning(new)?;
    Ok(differences([old.map(), new.map()], |map| {
        let config = Config::of(new.path(), map);
        meaning(&config).is_ok_and(|found| found == expected)
    }))
}

/// The keys in which two configurations of a scheduler differ, as far as it draws something else by
/// them.
pub(super) fn scheduler(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<Difference> {
    let meaning = |map: Map<String, Value>| {
        let configured = from_config(&Value::Object(map).to_string()).ok()?;
        let mut config = configured.config;
        config.ignored.clear();
        let (sampler, ladder) = (configured.sampler, configured.ladder);
        Some(format!(
            "{} {config:?} {sampler:?} {ladder:?}",
            configured.class
        ))
    };
    let expected = meaning(new.clone());
    differences([old, new], |map| meaning(map) == expected)
}

/// The keys whose value in `old` changes what `new` means.
fn differences(
    [old, new]: [&Map<String, Value>; 2],
    means_the_same: impl Fn(Map<String, Value>) -> bool,
) -> Vec<Difference> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let shown = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "not given".to_owned(),
        Some(value) => printable(value),
    };
    let differs = |key: &String| {
        let (old, found) = (old.get(key), new.get(key));
        if old == found {
            return None;
        }
        let mut changed = new.clone();
        match old {
            Some(value) => changed.insert(key.clone(), value.clone()),
            None => changed.remove(key),
        };
        (!means_the_same(changed)).then(|| Difference {
            key: printable(key),
            old: shown(old),
            new: shown(found),
        })
    };
    keys.into_iter().filter_map(differs).collect()
}

#[cfg(test)]
mod tests {
    // In a test it is the failure.
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    fn config(value: Value) -> Config {
        Config::parse(Path::new("config.json"), &value.to_string()).unwrap()
    }

    fn keys(found: Vec<Difference>) -> Vec<String> {
        found.into_iter().map(|difference| difference.key).collect()
    }

    #[test]
    fn only_what_a_network_computes_by_counts() {
        let unet = |more: Value| {
            let mut unet = json!({"block_out_channels": [64, 128], "sample_size": 64,
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]});
            let (unet_map, more) = (unet.as_object_mut().unwrap(), more);
            unet_map.extend(more.as_object().unwrap().clone());
            config(unet)
        };
        let found = |old: Value, new: Value| {
            let (old, new) = (unet(old), unet(new));
            keys(network("unet", [&old, &new], SizeIds::Target).unwrap())
        };
        // The same in other words, or of no effect.
        let same = json!({"attention_head_dim": [8, 8], "_name_or_path": "x", "sample_size": 32});
        assert!(found(same, json!({"norm_num_groups": 32})).is_empty());
        let other = json!({"attention_head_dim": [4, 8], "norm_num_groups": 16});
        let expected = ["attention_head_dim", "norm_num_groups"];
        assert_eq!(found(other, json!({})), expected);

        let text = |end: u64| config(json!({"eos_token_id": end, "projection_dim": end + 1}));
        let ends = |old, new| keys(network("text_encoder", [&old, &new], SizeIds::Target).unwrap());
        assert!(ends(text(2), text(49407)).is_empty());
        assert_eq!(ends(text(7), text(49407)), ["eos_token_id"]);

        let [vae, sdxl] =
            [0.18215, 0.13025].map(|factor| config(json!({"scaling_factor": factor})));
        assert_eq!(
            keys(network("vae", [&vae, &sdxl], SizeIds::Target).unwrap()),
            ["scaling_factor"]
        );
    }

    #[test]
    fn a_scheduler_differs_by_what_it_draws() {
        let euler = |more: Value| {
            let mut map = json!({"_class_name": "EulerDiscreteScheduler"});
            map.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            map.as_object().unwrap().clone()
        };
        let old =
            euler(json!({"use_karras_sigmas": true, "trained_betas": null, "steps_offset": 0}));
        let found = scheduler(&old, &euler(json!({})));
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].to_string(),
            "`use_karras_sigmas` is true, and is read as not given"
        );
    }
}
