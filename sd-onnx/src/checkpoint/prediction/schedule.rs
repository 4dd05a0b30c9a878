//! Infers the contents of `scheduler_config.json`, and the size at which a model draws.

use serde_json::{Map, Value, json};

use super::{Evidence, Predicts};
use crate::checkpoint::{Family, Task, names::object};

impl Evidence {
    /// Returns the scheduler's configuration.
    ///
    /// It is the configuration in the family's published folder, with the prediction of this model.
    /// A zero terminal SNR also needs timesteps that begin at pure noise.
    pub fn scheduler(&self, family: Family, task: Task, is_lcm: bool) -> Map<String, Value> {
        match self.predicts {
            Predicts::Edm => return playground(),
            Predicts::EdmV => return cosxl(self.sigmas),
            Predicts::Epsilon | Predicts::V => {}
        }
        let is_v = self.predicts == Predicts::V;
        let (class, more) = self.class(family, task, is_lcm);
        let [start, end] = self.betas.unwrap_or([0.00085, 0.012]);
        let mut config = object(json!({
            "_class_name": class,
            "_diffusers_version": "0.42.1",
            "beta_end": end,
            "beta_schedule": "scaled_linear",
            "beta_start": start,
            "clip_sample": false,
            "num_train_timesteps": 1000,
            "prediction_type": if is_v { "v_prediction" } else { "epsilon" },
            "set_alpha_to_one": false,
            "steps_offset": 1,
            "trained_betas": null,
        }));
        config.extend(object(more));
        if self.zero_snr {
            config.insert("rescale_betas_zero_snr".into(), json!(true));
            config.insert("timestep_spacing".into(), json!("trailing"));
        }
        config
    }

    /// Returns the scheduler's class, and the keys that depend on the class.
    fn class(&self, family: Family, task: Task, is_lcm: bool) -> (&'static str, Value) {
        let trailing = json!({"timestep_spacing": "trailing"});
        let leading = json!({"timestep_spacing": "leading"});
        let lcm = json!({
            "original_inference_steps": 50,
            "set_alpha_to_one": true,
            "steps_offset": 0,
            "timestep_spacing": "leading",
        });
        if is_lcm {
            return ("LCMScheduler", lcm);
        }
        // The schedulers in the model cards of SDXL-Turbo, SDXL-Lightning, SDXS and DMD2.
        match self.distilled.map(|(word, _)| word) {
            Some("turbo") => return ("EulerAncestralDiscreteScheduler", trailing),
            Some("lightning" | "sdxs") => return ("EulerDiscreteScheduler", trailing),
            Some("dmd2") => return ("LCMScheduler", lcm),
            _ => {}
        }
        match (family, task) {
            (Family::Xl | Family::Refiner, _) => ("EulerDiscreteScheduler", leading),
            // The scheduler in the model card of instruct-pix2pix.
            (_, Task::Edit) => ("EulerAncestralDiscreteScheduler", leading),
            (Family::Sd1, Task::Inpaint) => ("DDIMScheduler", leading),
            _ if self.predicts == Predicts::V => ("DDIMScheduler", leading),
            _ => ("PNDMScheduler", json!({"skip_prk_steps": true})),
        }
    }

    /// Returns the UNet's `sample_size`: the side of the latents, or height and width. A file whose
    /// header gives no resolution gets the family's size.
    pub fn sample_size(&self, family: Family) -> Value {
        if let Some([width, height]) = self.resolution.map(|sides| sides.map(|side| side / 8)) {
            return match width == height {
                true => json!(width),
                false => json!([height, width]),
            };
        }
        json!(match family {
            Family::Xl if self.distilled_name() == Some("Turbo") => 64,
            Family::Xl | Family::Refiner => 128,
            Family::Sd2 if self.predicts == Predicts::V => 96,
            Family::Sd1 | Family::Sd2 => 64,
        })
    }
}

/// Returns the published configuration of Playground 2.5.
fn playground() -> Map<String, Value> {
    object(json!({
        "_class_name": "EDMDPMSolverMultistepScheduler",
        "_diffusers_version": "0.42.1",
        "algorithm_type": "dpmsolver++",
        "final_sigmas_type": "zero",
        "lower_order_final": true,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "rho": 7.0,
        "sigma_data": 0.5,
        "sigma_max": 80.0,
        "sigma_min": 0.002,
        "solver_order": 2,
        "solver_type": "midpoint",
    }))
}

fn cosxl([min, max]: [f64; 2]) -> Map<String, Value> {
    object(json!({
        "_class_name": "EDMEulerScheduler",
        "_diffusers_version": "0.42.1",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "sigma_data": 1.0,
        "sigma_max": max,
        "sigma_min": min,
        "sigma_schedule": "exponential",
    }))
}
