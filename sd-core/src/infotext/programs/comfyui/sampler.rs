//! The samplers of ComfyUI: KSampler, KSamplerAdvanced, SamplerCustom and SamplerCustomAdvanced.

use serde_json::Value;

use super::{Graph, Reader, Text};
use crate::infotext::keys;

/// The key of ComfyUI's ladder.
const SCHEDULER: &str = "Scheduler";

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
                self.ladder(node, node);
                self.noise(node, "seed");
                self.guided(node);
            }
            "KSamplerAdvanced" => {
                self.is_read[node] = true;
                self.ladder(node, node);
                self.noise(node, "noise_seed");
                self.part(node);
                self.guided(node);
            }
            "SamplerCustom" => {
                self.is_read[node] = true;
                self.custom_ladder(node);
                self.noise(node, "noise_seed");
                if self.value(node, "add_noise") == Some(Value::Bool(false)) {
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
                self.ladder(node, node);
                let key = ["seed", "noise_seed"]
                    .into_iter()
                    .find(|key| self.graph.value(node, key).is_some());
                self.noise(node, key.unwrap_or("seed"));
                self.guided(node);
            }
        }
        let is_noise = self.latents(node, "latent_image");
        let has_size = self
            .building
            .entries
            .iter()
            .any(|(key, _)| key == keys::SIZE);
        if !is_noise && !has_size {
            self.building
                .unread("ComfyUI's sampler started from other latents, without a size");
        }
    }

    /// Adds the steps, the sampler, the scheduler and the strength.
    fn ladder(&mut self, node: usize, names: usize) {
        let steps = self.text_of(node, "steps");
        self.building.entry(keys::STEPS, steps);
        let sampler = self.text_of(names, "sampler_name");
        // The first versions wrote the names of functions.
        let sampler = sampler.map(|name| name.trim_start_matches("sample_").to_owned());
        self.building.entry(keys::SAMPLER, sampler);
        let scheduler = self.text_of(node, "scheduler");
        self.building.entry(SCHEDULER, scheduler);
        self.strength(node);
    }

    fn strength(&mut self, node: usize) {
        let strength = self
            .number_of(node, "denoise")
            .filter(|&strength| strength != 1.0);
        self.building.entry(keys::DENOISING_STRENGTH, strength);
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
            self.strength(sigmas.node);
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

    /// Notes that a KSamplerAdvanced ran only a part of its steps.
    fn part(&mut self, node: usize) {
        let [steps, start, end] = ["steps", "start_at_step", "end_at_step"]
            .map(|key| self.value(node, key).and_then(|value| value.as_u64()));
        let (steps, start) = (steps.unwrap_or(0), start.unwrap_or(0));
        let end = end.unwrap_or(steps).min(steps);
        if start > 0 || end < steps {
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
