//! ComfyUI's graph, which its PNG files hold as `prompt` and its WebP files as EXIF data.
//!
//! A graph can compute anything. The reader finds the first sampler of the picture, follows its
//! links to the model, the LoRAs, the texts and the size, and lists every other node that the
//! picture depends on as not read.

mod graph;
mod sampler;

use std::collections::{HashMap, HashSet};

use sd_text::outside::printable;
use serde_json::Value;

use super::{Building, lora, stem, written};
use crate::infotext::{
    COMFYUI, Infotext, InfotextError, MAX_BYTES, keys, translated::without_loras,
};
use graph::{Graph, Link, saves};
use sampler::{Refiner, is_sampler};

/// The value of `Version`.
pub(in crate::infotext) const VERSION: &str = "ComfyUI";

/// Reads a graph.
pub(in crate::infotext) fn infotext(text: &str) -> Result<Infotext, InfotextError> {
    let unreadable = InfotextError::OtherFormat(COMFYUI);
    if text.len() > MAX_BYTES {
        return Err(InfotextError::TooLong);
    }
    let graph = Graph::parse(text).ok_or(unreadable.clone())?;
    let reached = graph.reached(graph.outputs());
    let samplers: Vec<usize> = (0..graph.len())
        .filter(|&node| reached[node] && is_sampler(&graph, node))
        .collect();
    let has_before = graph.depend_on(&BESIDE, |node| is_sampler(&graph, node));
    let mut firsts = samplers.iter().copied();
    let first = firsts
        .find(|&node| !has_before[node])
        .ok_or(unreadable.clone())?;
    let mut reader = Reader {
        is_read: vec![false; graph.len()],
        graph: &graph,
        building: Building::default(),
        loras: Vec::new(),
        lora_of: HashMap::new(),
        skips: Vec::new(),
        refiner: None,
    };
    if let [_, _] = samplers[..]
        && let Some(&second) = samplers.iter().find(|&&node| node != first)
        && reader.is_refiner(first, second)
    {
        reader.refiner = reader.refiner_of(second);
    }
    reader.sampler(first);
    reader.refined();
    reader.others(&reached, &samplers);
    let infotext = reader.building.done(VERSION);
    if infotext.get(keys::STEPS).is_none() && infotext.get(keys::SAMPLER).is_none() {
        return Err(unreadable);
    }
    Ok(infotext)
}

/// Returns the graph in a text of EXIF data: `prompt:{…}`. ComfyUI writes it in lower case, and
/// other nodes with a capital letter.
pub(in crate::infotext) fn in_exif(text: &str) -> Option<&str> {
    let (name, graph) = text.split_once(':')?;
    (name.eq_ignore_ascii_case("prompt") && graph.trim_start().starts_with('{')).then_some(graph)
}

/// Inputs of a sampler that do not hold the picture.
const BESIDE: [&str; 9] = [
    "model", "positive", "negative", "clip", "vae", "guider", "sampler", "sigmas", "noise",
];

/// Classes of nodes that do not change the picture, or only load what another node applies.
const INERT: [&str; 10] = [
    "Note",
    "MarkdownNote",
    "Reroute",
    "VAEDecode",
    "LoadImage",
    "LoadImageMask",
    "ControlNetLoader",
    "DiffControlNetLoader",
    "CLIPVisionLoader",
    "UpscaleModelLoader",
];

/// Classes of nodes that hold a value, and the input that is their value.
const VALUES: [(&str, &str); 18] = [
    ("PrimitiveNode", "value"),
    ("PrimitiveInt", "value"),
    ("PrimitiveFloat", "value"),
    ("PrimitiveBoolean", "value"),
    ("PrimitiveString", "value"),
    ("PrimitiveStringMultiline", "value"),
    ("INTConstant", "value"),
    ("FloatConstant", "value"),
    ("StringConstant", "string"),
    ("String Literal", "string"),
    ("CR Text", "text"),
    ("Text Multiline", "text"),
    ("CR Seed", "seed"),
    ("Seed (rgthree)", "seed"),
    ("Seed Everywhere", "seed"),
    ("easy seed", "seed"),
    ("easy int", "value"),
    ("easy float", "value"),
];

/// Follows the links from a sampler.
struct Reader<'a> {
    graph: &'a Graph,
    /// The nodes whose effect is in the infotext.
    is_read: Vec<bool>,
    building: Building,
    loras: Vec<CalledLora>,
    /// The index of the LoRA of each node that has been read.
    lora_of: HashMap<usize, usize>,
    /// The clip skip of each text.
    skips: Vec<Option<u64>>,
    /// The sampler that finishes the run with another model.
    refiner: Option<Refiner>,
}

struct CalledLora {
    name: String,
    text_encoder: f64,
    unet: f64,
}

/// Which of the two texts a link leads to.
#[derive(Clone, Copy, PartialEq)]
enum Text {
    Positive,
    Negative,
}

/// The largest number of nodes that hold a value between the value and its user. No real graph has
/// as many.
const MOST_VALUES: usize = 32;

/// The longest name of a LoRA's file in bytes. No file system has longer paths.
const MOST_NAME: usize = 4096;

/// Visits the nodes along a chain of links, and ends it at a node that was visited before.
struct Walk {
    next: Option<Link>,
    visited: HashSet<usize>,
}

impl Walk {
    fn from(next: Option<Link>) -> Self {
        Self {
            next,
            visited: HashSet::new(),
        }
    }

    /// Returns the node to visit, unless the chain ends here.
    fn step(&mut self) -> Option<Link> {
        self.next
            .take()
            .filter(|link| self.visited.insert(link.node))
    }
}

impl<'a> Reader<'a> {
    /// Returns the value of an input, also through nodes that hold a value. If it comes from any
    /// other node, that is not read.
    fn value(&mut self, node: usize, key: &str) -> Option<&'a Value> {
        let graph = self.graph;
        let (mut at, mut input) = (node, key);
        for _ in 0..MOST_VALUES {
            let Some(link) = graph.link(at, input) else {
                return graph.value(at, input);
            };
            let class = &graph.node(link.node).class;
            let Some((_, value)) = VALUES.iter().find(|(known, _)| known == class) else {
                at = link.node;
                break;
            };
            self.is_read[link.node] = true;
            (at, input) = (link.node, value);
        }
        // A malicious graph may have many such values, each with a long text.
        if !self.building.is_full() {
            self.building.unread(format!(
                "ComfyUI's `{}` of node {} comes from node {}, which cannot be read",
                printable(key),
                graph.named(node),
                graph.named(at),
            ));
        }
        None
    }

    fn text_of(&mut self, node: usize, key: &str) -> Option<String> {
        self.value(node, key).and_then(written)
    }

    fn number_of(&mut self, node: usize, key: &str) -> Option<f64> {
        self.value(node, key)?.as_f64()
    }

    /// Returns the node that an input is linked to, through reroutes.
    fn link(&self, node: usize, key: &str) -> Option<Link> {
        self.graph.source(node, key)
    }

    /// Follows the model to its file, and adds the LoRAs on the way.
    fn model(&mut self, node: usize, key: &str) {
        let mut walk = Walk::from(self.link(node, key));
        while let Some(Link { node, .. }) = walk.step() {
            match self.graph.node(node).class.as_str() {
                "LoraLoader" | "LoraLoaderModelOnly" => {
                    if let Some(strength) = self.number_of(node, "strength_model") {
                        self.lora(node, |lora| lora.unet = strength);
                    }
                }
                _ => {
                    let names = ["ckpt_name", "unet_name"];
                    let name = names
                        .iter()
                        .find(|key| self.graph.value(node, key).is_some());
                    if let Some(name) = name.and_then(|key| self.text_of(node, key)) {
                        self.building.entry(keys::MODEL, Some(stem(&name)));
                        self.is_read[node] = self.is_plain_loader(node);
                        return;
                    }
                }
            }
            walk.next = self
                .link(node, "model")
                .or_else(|| self.link(node, "model1"));
        }
    }

    /// Returns whether a node does nothing but load a model with its own configuration.
    fn is_plain_loader(&mut self, node: usize) -> bool {
        match self.graph.node(node).class.as_str() {
            "CheckpointLoaderSimple" | "unCLIPCheckpointLoader" | "Checkpoint Loader (Simple)" => {
                true
            }
            "CheckpointLoader" => {
                let config = self.text_of(node, "config_name").unwrap_or_default();
                [
                    "v1-inference.yaml",
                    "v1-inference_clip_skip_2.yaml",
                    "v2-inference.yaml",
                ]
                .contains(&config.as_str())
            }
            "UNETLoader" => self.text_of(node, "weight_dtype").as_deref() == Some("default"),
            _ => false,
        }
    }

    /// Changes a LoRA, which is added if it is new.
    fn lora(&mut self, node: usize, change: impl FnOnce(&mut CalledLora)) {
        let index = match self.lora_of.get(&node) {
            Some(&index) => index,
            None => {
                let name = self.value(node, "lora_name").and_then(Value::as_str);
                // Many nodes may share one long text.
                let Some(name) = name.filter(|name| name.len() <= MOST_NAME) else {
                    return;
                };
                self.lora_of.insert(node, self.loras.len());
                self.loras.push(CalledLora {
                    name: stem(name).to_owned(),
                    text_encoder: 0.0,
                    unet: 0.0,
                });
                self.loras.len() - 1
            }
        };
        self.is_read[node] = true;
        change(&mut self.loras[index]);
    }

    /// Follows a text encoder to its file, for the clip skip and the LoRAs.
    fn clip(&mut self, node: usize, which: Text) {
        let mut skip = None;
        let mut walk = Walk::from(self.link(node, "clip"));
        while let Some(Link { node, .. }) = walk.step() {
            match self.graph.node(node).class.as_str() {
                "CLIPSetLastLayer" => {
                    let layer = self.value(node, "stop_at_clip_layer");
                    let layer = layer.and_then(|layer| layer.as_i64()).filter(|&it| it < 0);
                    // The node nearest to the text counts.
                    skip = skip.or(layer.map(i64::unsigned_abs));
                    self.is_read[node] = layer.is_some();
                }
                "LoraLoader" if which == Text::Positive => {
                    if let Some(strength) = self.number_of(node, "strength_clip") {
                        self.lora(node, |lora| lora.text_encoder = strength);
                    }
                }
                "CheckpointLoader" => {
                    let config = self.text_of(node, "config_name").unwrap_or_default();
                    let skips = config.contains("clip_skip_2");
                    skip = skip.or(skips.then_some(2));
                }
                _ => {}
            }
            walk.next = self.link(node, "clip");
        }
        self.skips.push(skip);
    }

    /// Follows a conditioning to its text.
    fn conditioning(&mut self, node: usize, key: &str, which: Text) {
        let mut walk = Walk::from(self.link(node, key));
        while let Some(Link { node, output }) = walk.step() {
            match self.graph.node(node).class.as_str() {
                "CLIPTextEncode" => {
                    self.is_read[node] = true;
                    let text = self.words(node, "text").unwrap_or_default();
                    self.prompt(text, None, which);
                    return self.clip(node, which);
                }
                "CLIPTextEncodeSDXL" => {
                    self.sizes(node, which);
                    self.is_read[node] = true;
                    let [text, second] = ["text_l", "text_g"].map(|key| self.words(node, key));
                    self.prompt(text.unwrap_or_default(), second, which);
                    return self.clip(node, which);
                }
                "ConditioningZeroOut" => {
                    self.is_read[node] = true;
                    self.building.unread(format!(
                        "ComfyUI's {} prompt was an embedding of zeros, but here it is the empty \
                         text",
                        match which {
                            Text::Positive => "positive",
                            Text::Negative => "negative",
                        }
                    ));
                    return;
                }
                // The text of a node that is not known, whose effect is not read.
                _ => {
                    let keys = ["text", "text_g", "prompt"];
                    let is_text =
                        |key: &&&str| self.graph.value(node, key).is_some_and(Value::is_string);
                    if let Some(key) = keys.iter().find(is_text) {
                        let text = self.text_of(node, key).unwrap_or_default();
                        self.prompt(text, None, which);
                        return self.clip(node, which);
                    }
                }
            }
            let side = if output == 1 { "negative" } else { "positive" };
            let inputs = ["conditioning", "conditioning_1", "conditioning_to", side];
            walk.next = inputs.iter().find_map(|key| self.link(node, key));
        }
        self.building.unread(format!(
            "ComfyUI's `{}` of node {} leads to no text",
            printable(key),
            self.graph.named(node)
        ));
    }

    /// Returns a text of ComfyUI's own nodes, which do not read calls of LoRAs. They are left out,
    /// because WebUI's format would call the LoRAs.
    fn words(&mut self, node: usize, key: &str) -> Option<String> {
        let text = self.text_of(node, key)?;
        let (words, calls) = without_loras(&text);
        if calls.is_empty() {
            return Some(text);
        }
        let calls = calls.concat();
        self.building.unread(format!(
            "ComfyUI reads `{}` in a prompt as words and not as LoRAs, and they are left out here",
            printable(calls)
        ));
        Some(words)
    }

    fn prompt(&mut self, text: String, second: Option<String>, which: Text) {
        if text.contains("embedding:") {
            self.building.unread(format!(
                "ComfyUI's prompt names textual inversions as `embedding:name`, which is read as \
                 text: `{}`",
                printable(&text)
            ));
        }
        let (place, key) = match which {
            Text::Positive => (&mut self.building.prompt, keys::SD_PROMPT_2),
            Text::Negative => (&mut self.building.negative, keys::SD_NEGATIVE_PROMPT_2),
        };
        let second = second.filter(|second| *second != text);
        *place = text;
        self.building.entry(key, second);
    }

    /// Adds the size conditioning of SDXL.
    fn sizes(&mut self, node: usize, which: Text) {
        let mut pair = |keys: [&str; 2]| -> Option<[u64; 2]> {
            let [a, b] = keys.map(|key| self.value(node, key)?.as_u64());
            Some([a?, b?])
        };
        let original = pair(["width", "height"]);
        let crop = pair(["crop_w", "crop_h"]).unwrap_or_default();
        let target = pair(["target_width", "target_height"]);
        let json = serde_json::json!({"original": original, "crop": crop, "target": target});
        let key = match which {
            Text::Positive => keys::SD_SIZES,
            Text::Negative => keys::SD_NEGATIVE_SIZES,
        };
        self.building.entry(key, Some(json));
    }

    /// Follows the latents to their size. Returns whether they come from noise alone.
    fn latents(&mut self, node: usize, key: &str) -> bool {
        let mut walk = Walk::from(self.link(node, key));
        while let Some(Link { node, .. }) = walk.step() {
            let class = self.graph.node(node).class.as_str();
            if class.starts_with("Empty") && class.contains("Latent") {
                self.is_read[node] = true;
                let [width, height] = ["width", "height"].map(|key| self.text_of(node, key));
                self.building.size(width, height);
                let batch = self.value(node, "batch_size");
                if let Some(size) = batch.and_then(|it| it.as_u64()).filter(|&size| size > 1) {
                    self.building.unread(format!(
                        "the picture is one of a batch of {size}, whose noise ComfyUI draws at \
                         once, and the first one is drawn here"
                    ));
                }
                return true;
            }
            if class == "VAEEncode" {
                self.is_read[node] = true;
                return false;
            }
            walk.next = ["samples", "latent", "latent_image"]
                .iter()
                .find_map(|key| self.link(node, key));
        }
        false
    }

    /// Adds the LoRAs to the prompt, and everything that is not read.
    fn others(&mut self, reached: &[bool], samplers: &[usize]) {
        // ComfyUI applies the LoRA that is nearest to the file first.
        for lora_ in self.loras.iter().rev() {
            let call = lora(&lora_.name, lora_.text_encoder, lora_.unet);
            self.building.prompt += &call;
        }
        let skip = self.skips.first().copied().flatten();
        self.building.entry(keys::CLIP_SKIP, skip);
        if self.skips.iter().any(|other| *other != skip) {
            let unread = "ComfyUI's positive and negative prompt have different clip skips, and \
                          the first is used for both";
            self.building.unread(unread);
        }
        for node in (0..self.graph.len()).filter(|&node| reached[node]) {
            let class = self.graph.node(node).class.as_str();
            if class == "VAELoader" {
                let name = self.text_of(node, "vae_name");
                self.building.entry("VAE", name.as_deref().map(stem));
                continue;
            }
            if self.is_read[node] || INERT.contains(&class) || saves(class) {
                continue;
            }
            if self.building.is_full() {
                continue;
            }
            let named = self.graph.named(node);
            self.building
                .unread(if samplers.binary_search(&node).is_ok() {
                    format!("ComfyUI sampled more than once, and node {named} is ignored")
                } else {
                    format!("ComfyUI's node {named} is ignored")
                });
        }
    }
}
