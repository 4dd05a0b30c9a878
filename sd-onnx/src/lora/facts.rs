//! The facts in an adapter's metadata: its size, its names, its base model and its trigger words.

use std::collections::BTreeMap;

use serde_json::Value;

use super::keys::split;

/// The facts that trainers write into the header of a safetensors file. All of them may be missing,
/// and none of them changes how an adapter is merged.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Facts {
    /// The rank that was asked for, `ss_network_dim`. Single modules may have another one.
    pub rank: Option<f64>,
    /// `ss_network_alpha`.
    pub alpha: Option<f64>,
    /// The name that the adapter had in training, `ss_output_name`. WebUI accepts it in prompts.
    pub output_name: Option<String>,
    /// The title, `modelspec.title`.
    pub title: Option<String>,
    /// The base model as its trainer names it, `ss_base_model_version` or
    /// `modelspec.architecture`.
    pub base_model: Option<String>,
    /// The words that call the adapter by its author's description, `modelspec.trigger_phrase`.
    pub trigger_phrase: Option<String>,
    /// The tags of the training pictures and how often they occur, the most frequent first. They
    /// come from `ss_tag_frequency`.
    pub tags: Vec<(String, u64)>,
    /// The hash that WebUI writes into infotexts, `sshs_model_hash`.
    pub hash: Option<String>,
}

/// The largest number of tags that is kept. Some files list a hundred thousand.
const MOST_TAGS: usize = 1000;

impl Facts {
    pub(super) fn of(metadata: &BTreeMap<String, String>) -> Self {
        // Some tools write `None` for a missing value.
        let text = |key: &str| {
            let text = metadata.get(key).map(|text| text.trim());
            text.filter(|text| !text.is_empty() && *text != "None")
        };
        let owned = |key: &str| text(key).map(str::to_owned);
        let number = |key: &str| {
            let number = text(key).and_then(|text| text.parse::<f64>().ok());
            number.filter(|number| number.is_finite())
        };
        Self {
            rank: number("ss_network_dim"),
            alpha: number("ss_network_alpha"),
            output_name: owned("ss_output_name"),
            title: owned("modelspec.title"),
            base_model: owned("ss_base_model_version").or_else(|| owned("modelspec.architecture")),
            trigger_phrase: owned("modelspec.trigger_phrase"),
            tags: text("ss_tag_frequency").map_or(Vec::new(), tags),
            hash: owned("sshs_model_hash").filter(|hash| is_hash(hash)),
        }
    }
}

/// Returns whether a text has the 12 hexadecimal digits that are shown of a hash.
fn is_hash(text: &str) -> bool {
    text.len() >= 12 && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// Adds up the tags of all folders of training pictures. The result is empty for other contents.
fn tags(json: &str) -> Vec<(String, u64)> {
    let Ok(Value::Object(folders)) = serde_json::from_str(json) else {
        return Vec::new();
    };
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for folder in folders.into_iter().map(|(_, folder)| folder) {
        let Value::Object(tags) = folder else {
            continue;
        };
        for (tag, count) in tags {
            let all = counts.entry(tag.trim().to_owned()).or_default();
            *all = all.saturating_add(count.as_u64().unwrap_or(0));
        }
    }
    let mut counts: Vec<_> = counts
        .into_iter()
        .filter(|(tag, _)| !tag.is_empty())
        .collect();
    // The sort is stable, so equally frequent tags stay in alphabetical order.
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    counts.truncate(MOST_TAGS);
    counts
}

/// The alphas that diffusers and peft write beside the tensors.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct PeftAlphas(Vec<PeftAlpha>);

/// The alpha of one network.
#[derive(Debug, Clone, PartialEq)]
struct PeftAlpha {
    /// The network's folder in diffusers, or `None` where the settings are for the only network.
    network: Option<String>,
    alpha: f64,
    /// The alphas of single modules, by the ends of their names.
    patterns: Vec<(String, f64)>,
    /// Whether alpha is divided by the root of the rank.
    is_root: bool,
}

/// diffusers' key in the metadata of a safetensors file.
const DIFFUSERS: &str = "lora_adapter_metadata";

impl PeftAlphas {
    /// Reads diffusers' metadata, in which every key begins with its network.
    pub fn of_metadata(metadata: &BTreeMap<String, String>) -> Self {
        let settings = metadata
            .get(DIFFUSERS)
            .map(|json| serde_json::from_str(json));
        let Some(Ok(Value::Object(settings))) = settings else {
            return Self::default();
        };
        let mut all = Vec::new();
        for (key, value) in &settings {
            let network = match key.as_str() {
                "lora_alpha" => None,
                key => match key.strip_suffix(".lora_alpha") {
                    Some(network) => Some(network),
                    None => continue,
                },
            };
            let prefix = network.map_or(String::new(), |network| format!("{network}."));
            let setting = |key: &str| settings.get(&format!("{prefix}{key}"));
            all.extend(PeftAlpha::new(network, value, setting));
        }
        Self(all)
    }

    /// Reads peft's own `adapter_config.json`.
    pub fn of_config(json: &Value) -> Self {
        let alpha = json.get("lora_alpha").unwrap_or(&Value::Null);
        Self(
            PeftAlpha::new(None, alpha, |key| json.get(key))
                .into_iter()
                .collect(),
        )
    }

    /// Returns the scale of a module of this rank, or `None` without settings for the network.
    pub fn scale(&self, network: &str, module: &str, rank: usize) -> Option<f64> {
        let of = |alpha: &&PeftAlpha| alpha.network.as_deref().is_none_or(|of| of == network);
        let settings = self.0.iter().find(of)?;
        // The settings name text encoders' modules as transformers did before version 5.
        let older = format!("text_model.{module}");
        let is_end = |end: &str| {
            let rest = module.strip_suffix(end).or_else(|| older.strip_suffix(end));
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let pattern = settings.patterns.iter().find(|(end, _)| is_end(end));
        let alpha = pattern.map_or(settings.alpha, |&(_, alpha)| alpha);
        let rank = rank as f64;
        Some(alpha / if settings.is_root { rank.sqrt() } else { rank })
    }
}

impl PeftAlpha {
    fn new<'v>(
        network: Option<&str>,
        alpha: &Value,
        setting: impl Fn(&str) -> Option<&'v Value>,
    ) -> Option<Self> {
        let patterns = setting("alpha_pattern").and_then(Value::as_object);
        let patterns = patterns.into_iter().flatten();
        Some(Self {
            network: network.map(str::to_owned),
            alpha: alpha.as_f64()?,
            patterns: patterns
                .filter_map(|(pattern, alpha)| Some((end(pattern), alpha.as_f64()?)))
                .collect(),
            is_root: setting("use_rslora") == Some(&Value::Bool(true)),
        })
    }
}

/// Returns the end of the names of the modules that a pattern is for.
///
/// Patterns are regular expressions, of which peft and diffusers write only whole names, with or
/// without an anchor. For a LoRA from kohya's scripts, diffusers writes the names of the factors
/// in its old attention processors, which it does not find again itself.
fn end(pattern: &str) -> String {
    let plain = pattern
        .trim_start_matches('^')
        .trim_end_matches('$')
        .replace("\\.", ".");
    let module = split(&plain).map_or(plain.as_str(), |(module, _)| module);
    let module = module.replace(".processor.", ".");
    match module.strip_suffix(".to_out") {
        Some(rest) => format!("{rest}.to_out.0"),
        None => module,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tags_of_all_folders_are_added_up() {
        let json = json!({
            "10_cat": { "cat": 7, " fur ": 3 },
            "2_dog": { "dog": 4, "fur": 2, "x": "y" },
            "other": [1],
        });
        let expected = [("cat", 7), ("fur", 5), ("dog", 4), ("x", 0)];
        let expected = expected.map(|(tag, count)| (tag.to_owned(), count));
        assert_eq!(tags(&json.to_string()), expected);
        assert_eq!(tags("["), []);
        assert_eq!(tags("7"), []);
    }

    #[test]
    fn facts_are_optional() {
        let metadata = [
            ("ss_network_dim", "16"),
            ("ss_network_alpha", "None"),
            ("ss_output_name", "style"),
            ("modelspec.architecture", "stable-diffusion-v1/lora"),
        ];
        let metadata = metadata.map(|(key, text)| (key.to_owned(), text.to_owned()));
        let facts = Facts::of(&metadata.into());
        assert_eq!(facts.rank, Some(16.0));
        assert_eq!(facts.alpha, None);
        assert_eq!(facts.output_name.as_deref(), Some("style"));
        assert_eq!(
            facts.base_model.as_deref(),
            Some("stable-diffusion-v1/lora")
        );
        assert_eq!(Facts::of(&BTreeMap::new()), Facts::default());
    }

    #[test]
    fn alphas_in_the_metadata() {
        let json = json!({
            "unet.lora_alpha": 8,
            "unet.alpha_pattern": { "attn1.to_q": 2.0 },
            "unet.use_rslora": false,
            "text_encoder.lora_alpha": 4,
            "text_encoder.use_rslora": true,
        });
        let metadata = BTreeMap::from([(DIFFUSERS.to_owned(), json.to_string())]);
        let alphas = PeftAlphas::of_metadata(&metadata);
        assert_eq!(alphas.scale("unet", "x.attn1.to_k", 16), Some(0.5));
        assert_eq!(alphas.scale("unet", "x.attn1.to_q", 16), Some(0.125));
        assert_eq!(alphas.scale("unet", "x.myattn1.to_q", 16), Some(0.5));
        for pattern in [
            "^x.attn1.to_out.0",
            r"x\.attn1\.to_out\.0$",
            "x.attn1.processor.to_out_lora.down.weight",
        ] {
            assert_eq!(end(pattern), "x.attn1.to_out.0");
        }
        assert_eq!(alphas.scale("text_encoder", "x", 16), Some(1.0));
        assert_eq!(alphas.scale("text_encoder_2", "x", 16), None);
        let alphas = PeftAlphas::of_config(&json!({ "lora_alpha": 32, "r": 16 }));
        assert_eq!(alphas.scale("unet", "x", 16), Some(2.0));
        assert_eq!(PeftAlphas::of_config(&json!([])), PeftAlphas::default());
    }
}
