//! The samplers of ComfyUI: KSampler, KSamplerAdvanced, SamplerCustom and SamplerCustomAdvanced.

use sd_text::outside::printable;
use serde_json::Value;

use super::{Graph, Reader, Text, stem};
use crate::infotext::keys;

/// The key of ComfyUI's ladder.
const SCHEDULER: &str = "Scheduler";

/// A sampler that finishes the run with another model.
pub(super) struct Refiner {
    node: usize,
    /// The node that loads the model, and the name of its file.
    model: usize,
    name: String,
}

/// The samplers that neither add noise nor use earlier steps, so that a run can be divided between
/// two nodes.
const ONE_STEP: [&str; 6] = ["euler", "euler_cfg_pp", "heun", "heunpp2", "dpm_2", "ddim"];

/// Returns whether a node samples: one of ComfyUI's own, or any with the inputs of a KSampler.
pub(super) fn is_sampler(graph: &Graph, node: usize) -> bool {
    let has = |key| graph.value(node, key).is_some() || graph.link(node, key).is_some();
    match graph.node(node).class.as_str() {
        "KSampler" | "KSamplerAdvanced" | "SamplerCustom" | "SamplerCustomAdvanced" => true,
        _ => ["sampler_name", "steps", "cfg"].into_iter().all(has),
    }
}

impl Reader<'_> {
    /// Reads the settings of a sampler, and what it depends on.
    pub(super) fn sampler(&mut self, node: usize) {
        match self.graph.node(node).class.as_str() {
            "KSampler" => {
                self.is_read[node] = true;
                self.ladder(node);
                self.noise(node, "seed");
                self.guided(node);
            }
            "KSamplerAdvanced" => {
                self.is_read[node] = true;
                self.ladder(node);
                self.noise(node, "noise_seed");
                self.part(node);
                self.guided(node);
            }
            "SamplerCustom" => {
                self.is_read[node] = true;
                self.custom_ladder(node);
                self.noise(node, "noise_seed");
                if self.value(node, "add_noise") == Some(&Value::Bool(false)) {
                    self.building
                        .unread("ComfyUI's sampler started without noise");
                }
                self.guided(node);
            }
            "SamplerCustomAdvanced" => {
                self.is_read[node] = true;
                self.custom_ladder(node);
                if let Some(noise) = self.link(node, "noise") {
                    self.is_read[noise.node] = self.graph.node(noise.node).class == "RandomNoise";
                    self.noise(noise.node, "noise_seed");
                }
                if let Some(guider) = self.link(node, "guider") {
                    self.guider(guider.node);
                }
            }
            // A node that is not known, which also has these inputs.
            _ => {
                self.ladder(node);
                let key = ["seed", "noise_seed"]
                    .into_iter()
                    .find(|key| self.graph.value(node, key).is_some());
                self.noise(node, key.unwrap_or("seed"));
                self.guided(node);
            }
        }
        let is_noise = self.latents(node, "latent_image");
        let sigmas = match self.graph.node(node).class.as_str() {
            "SamplerCustom" | "SamplerCustomAdvanced" => self.link(node, "sigmas"),
            _ => None,
        };
        self.strength(sigmas.map_or(node, |link| link.node), is_noise);
        if !is_noise {
            self.building
                .unread("ComfyUI's sampler started from other latents, without a size");
        }
    }

    /// Adds the steps, the sampler and the scheduler.
    fn ladder(&mut self, node: usize) {
        let steps = self.text_of(node, "steps");
        self.building.entry(keys::STEPS, steps);
        let sampler = self.text_of(node, "sampler_name");
        // The first versions wrote the names of functions.
        let sampler = sampler.map(|name| name.trim_start_matches("sample_").to_owned());
        self.building.entry(keys::SAMPLER, sampler);
        let scheduler = self.text_of(node, "scheduler");
        self.building.entry(SCHEDULER, scheduler);
    }

    /// Adds the strength of a node. `is_noise` is whether its latents are empty.
    fn strength(&mut self, node: usize, is_noise: bool) {
        let strength = self.number_of(node, "denoise");
        let Some(strength) = strength.filter(|&strength| strength != 1.0) else {
            return;
        };
        if is_noise {
            self.building.unread(format!(
                "ComfyUI's sampler ran only the last part of its ladder, with a denoise of \
                 {strength} on empty latents, but here the whole ladder is run"
            ));
        } else {
            self.building
                .entry(keys::DENOISING_STRENGTH, Some(strength));
        }
    }

    /// Adds the steps, the sampler and the ladder of nodes that have a node for each.
    fn custom_ladder(&mut self, node: usize) {
        if let Some(sigmas) = self.link(node, "sigmas") {
            let steps = self.text_of(sigmas.node, "steps");
            self.building.entry(keys::STEPS, steps);
            let class = self.graph.node(sigmas.node).class.clone();
            let (scheduler, is_read) = match class.as_str() {
                "BasicScheduler" => (self.text_of(sigmas.node, "scheduler"), true),
                "SDTurboScheduler" => (Some(class), true),
                // Its values may not be the usual ones.
                _ => (Some(class), false),
            };
            self.is_read[sigmas.node] = is_read;
            self.building.entry(SCHEDULER, scheduler);
        }
        if let Some(sampler) = self.link(node, "sampler") {
            let class = self.graph.node(sampler.node).class.clone();
            let name = match class.as_str() {
                "KSamplerSelect" => {
                    self.is_read[sampler.node] = true;
                    self.text_of(sampler.node, "sampler_name")
                }
                _ => SAMPLERS
                    .iter()
                    .find(|(known, _)| *known == class)
                    .map(|(_, name)| (*name).to_owned()),
            };
            self.building.entry(keys::SAMPLER, name);
        }
    }

    fn noise(&mut self, node: usize, key: &str) {
        let seed = self.text_of(node, key);
        self.building.entry(keys::SEED, seed);
    }

    /// Reads the guidance, the texts and the model of a node that has all of them.
    fn guided(&mut self, node: usize) {
        let scale = self.text_of(node, "cfg");
        self.building.entry(keys::CFG_SCALE, scale);
        self.conditioning(node, "positive", Text::Positive);
        self.conditioning(node, "negative", Text::Negative);
        self.model(node, "model");
    }

    fn guider(&mut self, node: usize) {
        match self.graph.node(node).class.as_str() {
            "BasicGuider" => {
                self.is_read[node] = true;
                self.building.entry(keys::CFG_SCALE, Some(1));
                self.conditioning(node, "conditioning", Text::Positive);
                self.model(node, "model");
            }
            // The guidance of instruct-pix2pix, if the conditionings are those of that model.
            "DualCFGGuider" => {
                let scale = self.text_of(node, "cfg_conds");
                self.building.entry(keys::CFG_SCALE, scale);
                let image = self.text_of(node, "cfg_cond2_negative");
                self.building.entry(keys::IMAGE_CFG_SCALE, image);
                self.conditioning(node, "cond1", Text::Positive);
                self.conditioning(node, "negative", Text::Negative);
                self.model(node, "model");
            }
            class => {
                self.is_read[node] = class == "CFGGuider";
                self.guided(node);
            }
        }
    }

    /// Returns whether `second` finishes the run of `first` on the same ladder, as SDXL's refiner
    /// does.
    pub(super) fn is_refiner(&mut self, first: usize, second: usize) -> bool {
        let [a, b] = [first, second].map(|node| self.graph.node(node).class.as_str());
        let latents = self.link(second, "latent_image").map(|link| link.node);
        if [a, b] != ["KSamplerAdvanced"; 2] || latents != Some(first) {
            return false;
        }
        let same = ["steps", "cfg", "sampler_name", "scheduler"];
        let is = |value: Option<String>, expected| value.as_deref() == Some(expected);
        let [(steps, start, at), (_, from, end)] = [first, second].map(|node| self.span(node));
        (start, from) == (0, at)
            && (1..steps).contains(&at)
            && end == steps
            && same
                .iter()
                .all(|key| self.value(first, key) == self.value(second, key))
            && is(self.text_of(first, "add_noise"), "enable")
            && is(self.text_of(first, "return_with_leftover_noise"), "enable")
            && is(self.text_of(second, "add_noise"), "disable")
            && is(
                self.text_of(second, "return_with_leftover_noise"),
                "disable",
            )
    }

    /// Returns the refiner of a sampler, if a plain loader loads its model.
    pub(super) fn refiner_of(&mut self, node: usize) -> Option<Refiner> {
        let model = self.link(node, "model")?.node;
        let name = self.text_of(model, "ckpt_name")?;
        let name = stem(&name).to_owned();
        self.is_plain_loader(model)
            .then_some(Refiner { node, model, name })
    }

    /// Adds the model of the refiner and its share of the steps. Its texts are only read if they
    /// are those of the first sampler.
    pub(super) fn refined(&mut self) {
        let Some(Refiner { node, model, name }) = self.refiner.take() else {
            return;
        };
        self.is_read[node] = true;
        self.is_read[model] = true;
        let (steps, at, _) = self.span(node);
        self.building.entry(keys::REFINER, Some(name));
        let sampler = self.text_of(node, "sampler_name").unwrap_or_default();
        if !ONE_STEP.contains(&sampler.as_str()) {
            self.building.unread(format!(
                "ComfyUI started `{}` anew for the refiner, without the earlier steps and with its \
                 own noise, but here it goes on",
                printable(sampler)
            ));
        }
        // The run switches at the first step of at least `share · steps` in f32, which may round
        // up.
        let share = |at: f64| (at / steps as f64) as f32;
        let exact = share(at as f64);
        let share = if exact * steps as f32 > at as f32 {
            share(at as f64 - 0.5)
        } else {
            exact
        };
        self.building.entry(keys::REFINER_SWITCH_AT, Some(share));
        self.building
            .entry(keys::REFINER_SWITCH_BY_SAMPLING_STEPS, Some("True"));
        for key in ["positive", "negative"] {
            let Some(text) = self.link(node, key).map(|link| link.node) else {
                continue;
            };
            let of_first = match key {
                "positive" => self.building.prompt.clone(),
                _ => self.building.negative.clone(),
            };
            let is_plain = self.graph.node(text).class == "CLIPTextEncode";
            if is_plain && self.text_of(text, "text") == Some(of_first) {
                self.is_read[text] = true;
            }
        }
    }

    /// Returns the number of steps of a KSamplerAdvanced, the first one that it runs, and the end
    /// of those that it runs.
    fn span(&mut self, node: usize) -> (u64, u64, u64) {
        let [steps, start, end] = ["steps", "start_at_step", "end_at_step"]
            .map(|key| self.value(node, key).and_then(Value::as_u64));
        let steps = steps.unwrap_or(0);
        (steps, start.unwrap_or(0), end.unwrap_or(steps).min(steps))
    }

    /// Notes that a KSamplerAdvanced ran only a part of its steps.
    fn part(&mut self, node: usize) {
        let (steps, start, end) = self.span(node);
        if (start > 0 || end < steps) && self.refiner.is_none() {
            self.building.unread(format!(
                "ComfyUI's sampler ran the steps from {start} to {end} of {steps}, and all are run \
                 here"
            ));
        }
        if self.text_of(node, "add_noise").as_deref() == Some("disable") {
            self.building
                .unread("ComfyUI's sampler started without noise");
        }
    }
}

/// Nodes for a sampler with options, and its name. The options are not read.
const SAMPLERS: [(&str, &str); 8] = [
    ("SamplerEulerAncestral", "euler_ancestral"),
    ("SamplerDPMPP_2M_SDE", "dpmpp_2m_sde"),
    ("SamplerDPMPP_3M_SDE", "dpmpp_3m_sde"),
    ("SamplerDPMPP_SDE", "dpmpp_sde"),
    ("SamplerDPMPP_2S_Ancestral", "dpmpp_2s_ancestral"),
    ("SamplerDPMAdaptative", "dpm_adaptive"),
    ("SamplerLMS", "lms"),
    ("SamplerER_SDE", "er_sde"),
];
