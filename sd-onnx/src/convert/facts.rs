//! Compares two configurations by their effect: by what this crate reads from them.

use std::{collections::BTreeSet, fmt};

use sd_core::{SizeIds, schedulers::from_config};
use sd_text::outside::printable;
use serde_json::{Map, Value, json};

use crate::{
    Error,
    config::Config,
    models::{clip_text::ClipTextConfig, unet::UnetConfig, vae::VaeConfig},
};

/// Returns a text encoder's configuration as transformers writes it for the encoder's class. The
/// `text_config` section of a whole CLIP model's configuration is taken out.
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

/// Keys whose values differ and change the meaning: one key, or several that have an effect only
/// together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// At least one key.
    pub keys: Vec<Key>,
}

/// A key and its value in two configurations, formatted for a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub name: String,
    pub old: String,
    pub new: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Key { name, old, new }) in self.keys.iter().enumerate() {
            let and = if place == 0 { "" } else { ", and " };
            write!(f, "{and}`{name}` is {old}, and is read as {new}")?;
        }
        match self.keys.len() {
            1 => Ok(()),
            _ => f.write_str("; only together do they change the meaning"),
        }
    }
}

/// A network's configuration as this crate reads it.
#[derive(Debug, PartialEq)]
enum Network {
    Unet(UnetConfig),
    Vae(VaeConfig),
    Text(ClipTextConfig),
}

impl Network {
    fn new(component: &str, config: &Config, sizes: SizeIds) -> Result<Self, Error> {
        Ok(match component {
            "unet" => {
                let mut unet = UnetConfig::new(config, sizes)?;
                unet.sample_size = [0; 2];
                Self::Unet(unet)
            }
            "vae" => {
                let mut vae = VaeConfig::new(config)?;
                // This decides the precision on a device, and not what is computed. Checkpoints do
                // not store it.
                vae.fits_f16 = false;
                Self::Vae(vae)
            }
            _ => {
                let mut text = ClipTextConfig::new(config.clone())?;
                // Where the projection is used, its width follows from the weights.
                text.projection_width = 0;
                // Without an `eos_token_id` that counts, the text ends at its largest id, which is
                // the last id of the vocabulary.
                text.end = text.end.or(Some(text.vocab_size as i64 - 1));
                Self::Text(text)
            }
        })
    }
}

/// Returns the keys that make two configurations of a network differ in what the network computes.
/// The default picture size of a model is not compared.
///
/// # Errors
/// Returns the error of whichever configuration this crate cannot read.
pub(super) fn network(
    component: &str,
    [old, new]: [&Config; 2],
    sizes: SizeIds,
) -> Result<Vec<Difference>, Error> {
    // Read both first: a configuration that cannot be read is an error, not a difference.
    let found = Network::new(component, old, sizes)?;
    let expected = Network::new(component, new, sizes)?;
    if found == expected {
        return Ok(Vec::new());
    }
    Ok(differences([old.map(), new.map()], |map| {
        let config = Config::of(new.path(), map);
        Network::new(component, &config, sizes).is_ok_and(|found| found == expected)
    }))
}

/// Returns the keys that make two scheduler configurations lead to different pictures.
pub(super) fn scheduler(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<Difference> {
    let meaning = |map: &Map<String, Value>| {
        let mut configured = from_config(&Value::Object(map.clone()).to_string()).ok()?;
        configured.config.ignored.clear();
        Some(configured)
    };
    let expected = meaning(new);
    let is_expected = |map: &Map<String, Value>| match (&meaning(map), &expected) {
        (Some(found), Some(expected)) => {
            found.class == expected.class
                && found.config == expected.config
                && *found.sampler == *expected.sampler
                && found.ladder == expected.ladder
                && found.noise_seed == expected.noise_seed
        }
        (None, None) => true,
        _ => false,
    };
    match is_expected(old) {
        true => Vec::new(),
        false => differences([old, new], |map| is_expected(&map)),
    }
}

/// Returns the keys whose value in `old` changes the meaning of `new`.
///
/// If no key does so alone, returns a set of keys that do so together, and that needs all of its
/// keys. `old` and `new` must differ in meaning.
fn differences(
    [old, new]: [&Map<String, Value>; 2],
    means_the_same: impl Fn(Map<String, Value>) -> bool,
) -> Vec<Difference> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let mut changed: Vec<_> = keys
        .into_iter()
        .filter(|&key| old.get(key) != new.get(key))
        .collect();
    // `new`, with the values of these keys replaced by those in `old`.
    let with_old = |keys: &[&String]| {
        let mut map = new.clone();
        for &key in keys {
            match old.get(key) {
                Some(value) => map.insert(key.clone(), value.clone()),
                None => map.remove(key),
            };
        }
        map
    };
    let shown = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "not given".to_owned(),
        Some(value) => printable(value),
    };
    let difference = |keys: &[&String]| Difference {
        keys: keys
            .iter()
            .map(|&key| Key {
                name: printable(key),
                old: shown(old.get(key)),
                new: shown(new.get(key)),
            })
            .collect(),
    };
    let alone = changed
        .iter()
        .filter(|&&key| !means_the_same(with_old(&[key])));
    let alone: Vec<_> = alone.map(|&key| difference(&[key])).collect();
    if !alone.is_empty() {
        return alone;
    }
    // Leave out every key that the difference does not need.
    let mut place = 0;
    while place < changed.len() {
        let key = changed.remove(place);
        if means_the_same(with_old(&changed)) {
            changed.insert(place, key);
            place += 1;
        }
    }
    vec![difference(&changed)]
}

#[cfg(test)]
mod tests {
    // A failed `unwrap` fails the test.
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    fn config(value: Value) -> Config {
        Config::parse(Path::new("config.json"), &value.to_string()).unwrap()
    }

    fn keys(found: Vec<Difference>) -> Vec<String> {
        let keys = found.into_iter().flat_map(|difference| difference.keys);
        keys.map(|key| key.name).collect()
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
        // Equal values in another notation, or keys without an effect.
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
    #[test]
    fn what_only_several_keys_change_together_is_found() {
        // Normalising the latents needs both of these keys.
        let old = json!({"latents_mean": [1, 2, 3, 4], "latents_std": [1, 1, 1, 2],
            "_name_or_path": "x"});
        let [old, new] = [old, json!({})].map(config);
        let found = network("vae", [&old, &new], SizeIds::Target).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].to_string(),
            "`latents_mean` is [1,2,3,4], and is read as not given, and `latents_std` is \
             [1,1,1,2], and is read as not given; only together do they change the meaning"
        );
        // Two changes that cancel each other out are no difference.
        let same = json!({"latents_mean": [0, 0, 0, 0], "latents_std": [2, 2, 2, 2],
            "scaling_factor": 0.5});
        let [same, new] = [same, json!({"scaling_factor": 0.25})].map(config);
        let found = network("vae", [&same, &new], SizeIds::Target).unwrap();
        assert_eq!(found, []);
    }
}
