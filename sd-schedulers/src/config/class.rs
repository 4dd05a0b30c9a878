//! The scheduler classes of diffusers 0.42.1, their keys and their defaults.

use super::ConfigError;
use super::json::Keys;
use crate::Prediction;
use crate::printable::printable;
use crate::schedule::BetaSchedule;

/// A scheduler class whose model this crate can sample.
pub(super) struct Class {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) betas: (f64, f64, BetaSchedule),
    pub(super) beta_schedules: &'static [(&'static str, BetaSchedule)],
    /// The values that `prediction_type` may have.
    pub(super) predictions: &'static [(&'static str, Prediction)],
    /// The default of `clip_sample`, or false if the class has no such key.
    pub(super) clip_sample: bool,
    /// The default of `set_alpha_to_one`, or true if the class has no such key.
    pub(super) set_alpha_to_one: bool,
    /// Whether the class has the key `rescale_betas_zero_snr`.
    pub(super) zero_snr: bool,
    /// Whether the class has the keys `use_karras_sigmas`, `use_exponential_sigmas` and
    /// `use_beta_sigmas`.
    pub(super) shapes: bool,
}

/// The kind of model that a class samples, and its direction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A diffusion model, or a flow model where the class has the key `use_flow_sigmas`.
    Diffusion,
    /// A flow model.
    Flow,
    /// A model with the preconditioning of EDM.
    Edm,
    /// A diffusion model, run from picture to noise.
    Inverse,
}

impl Class {
    const fn new(name: &'static str, betas: (f64, f64, BetaSchedule)) -> Self {
        Self {
            name,
            kind: Kind::Diffusion,
            betas,
            beta_schedules: &BETAS,
            predictions: &PREDICTIONS,
            clip_sample: false,
            set_alpha_to_one: true,
            zero_snr: false,
            shapes: false,
        }
    }

    pub(super) fn find(name: &str) -> Result<&'static Self, ConfigError> {
        let found = CLASSES.iter().find(|class| class.name == name);
        found.ok_or_else(|| ConfigError::Class {
            found: match OTHERS.iter().find(|(other, _)| *other == name) {
                Some((_, why)) => format!("`{name}` ({why})"),
                None => format!("`{}`", printable(name)),
            },
        })
    }

    /// Whether the class has the key `use_flow_sigmas`.
    pub(super) fn has_flow_sigmas(&self) -> bool {
        self.predictions.contains(&FLOW)
    }

    /// Whether the class has keys for betas.
    pub(super) fn has_betas(&self) -> bool {
        !matches!(self.kind, Kind::Flow | Kind::Edm)
    }

    /// Whether a key has no effect although its author expected one.
    ///
    /// This is so for a key that no class has, and for a key that this class lacks although it
    /// would change the picture in other classes. Other foreign keys are not reported, because
    /// nearly every published file has some.
    pub(super) fn ignores(&self, key: &str, keys: &Keys) -> bool {
        match key {
            _ if key.starts_with('_') => false,
            "use_karras_sigmas" | "use_exponential_sigmas" | "use_beta_sigmas" => {
                !self.shapes && keys.is(key, true)
            }
            "use_flow_sigmas" => !self.has_flow_sigmas() && keys.is(key, true),
            "use_lu_lambdas" => self.name != "DPMSolverMultistepScheduler" && keys.is(key, true),
            "trained_betas" => !self.has_betas() && !keys.is_null(key),
            _ => !KEYS.contains(&key),
        }
    }
}

const DDPM: (f64, f64, BetaSchedule) = (0.0001, 0.02, BetaSchedule::Linear);
const KARRAS: (f64, f64, BetaSchedule) = (0.00085, 0.012, BetaSchedule::Linear);
const LATENT: (f64, f64, BetaSchedule) = (0.00085, 0.012, BetaSchedule::ScaledLinear);

const BETAS: [(&str, BetaSchedule); 3] = [
    ("linear", BetaSchedule::Linear),
    ("scaled_linear", BetaSchedule::ScaledLinear),
    ("squaredcos_cap_v2", BetaSchedule::Cosine),
];
const HEUN_BETAS: [(&str, BetaSchedule); 4] = [
    BETAS[0],
    BETAS[1],
    BETAS[2],
    ("exp", BetaSchedule::Exponential),
];
const DDPM_BETAS: [(&str, BetaSchedule); 5] = [
    BETAS[0],
    BETAS[1],
    BETAS[2],
    ("sigmoid", BetaSchedule::Sigmoid),
    ("laplace", BetaSchedule::Laplace),
];

pub(super) const PREDICTIONS: [(&str, Prediction); 3] = [
    ("epsilon", Prediction::Epsilon),
    ("v_prediction", Prediction::V),
    ("sample", Prediction::Sample),
];
const WITHOUT_SAMPLE: [(&str, Prediction); 2] = [PREDICTIONS[0], PREDICTIONS[1]];
const FLOW: (&str, Prediction) = ("flow_prediction", Prediction::Flow);
const WITH_FLOW: [(&str, Prediction); 4] = [PREDICTIONS[0], PREDICTIONS[1], PREDICTIONS[2], FLOW];
const EULER_PREDICTIONS: [(&str, Prediction); 4] = [
    PREDICTIONS[0],
    PREDICTIONS[1],
    PREDICTIONS[2],
    ("original_sample", Prediction::Sample),
];

/// A class with `clip_sample` and the defaults of DDIM and DDPM.
const fn pixels(name: &'static str) -> Class {
    Class {
        clip_sample: true,
        zero_snr: true,
        ..Class::new(name, DDPM)
    }
}

/// A class with `use_flow_sigmas`.
const fn dpm(name: &'static str) -> Class {
    Class {
        predictions: &WITH_FLOW,
        shapes: true,
        ..Class::new(name, DDPM)
    }
}

const fn without_sample(class: Class) -> Class {
    Class {
        predictions: &WITHOUT_SAMPLE,
        ..class
    }
}

const fn with_shapes(class: Class) -> Class {
    Class {
        shapes: true,
        ..class
    }
}

const fn with_zero_snr(class: Class) -> Class {
    Class {
        zero_snr: true,
        ..class
    }
}

const fn of_kind(kind: Kind, class: Class) -> Class {
    Class { kind, ..class }
}

/// The supported classes.
///
/// `tests/golden/defaults.json` holds the same values for the diffusion models, read from the
/// sources of the classes.
#[rustfmt::skip]
pub(super) static CLASSES: [Class; 26] = [
    of_kind(Kind::Inverse, pixels("DDIMInverseScheduler")),
    pixels("DDIMParallelScheduler"),
    pixels("DDIMScheduler"),
    Class { beta_schedules: &DDPM_BETAS, ..pixels("DDPMParallelScheduler") },
    Class { beta_schedules: &DDPM_BETAS, ..pixels("DDPMScheduler") },
    dpm("DEISMultistepScheduler"),
    of_kind(Kind::Inverse, dpm("DPMSolverMultistepInverseScheduler")),
    with_zero_snr(dpm("DPMSolverMultistepScheduler")),
    with_shapes(without_sample(Class::new("DPMSolverSDEScheduler", KARRAS))),
    dpm("DPMSolverSinglestepScheduler"),
    of_kind(Kind::Edm, Class::new("EDMDPMSolverMultistepScheduler", LATENT)),
    of_kind(Kind::Edm, Class::new("EDMEulerScheduler", LATENT)),
    with_zero_snr(without_sample(Class::new("EulerAncestralDiscreteScheduler", DDPM))),
    Class { predictions: &EULER_PREDICTIONS, ..with_shapes(with_zero_snr(Class::new("EulerDiscreteScheduler", DDPM))) },
    of_kind(Kind::Flow, with_shapes(Class::new("FlowMatchEulerDiscreteScheduler", LATENT))),
    of_kind(Kind::Flow, Class::new("FlowMatchHeunDiscreteScheduler", LATENT)),
    of_kind(Kind::Flow, with_shapes(Class::new("FlowMatchLCMScheduler", LATENT))),
    Class { beta_schedules: &HEUN_BETAS, ..with_shapes(Class::new("HeunDiscreteScheduler", KARRAS)) },
    with_shapes(without_sample(Class::new("KDPM2AncestralDiscreteScheduler", KARRAS))),
    with_shapes(without_sample(Class::new("KDPM2DiscreteScheduler", KARRAS))),
    with_zero_snr(Class::new("LCMScheduler", LATENT)),
    with_shapes(Class::new("LMSDiscreteScheduler", DDPM)),
    Class { set_alpha_to_one: false, ..without_sample(Class::new("PNDMScheduler", DDPM)) },
    dpm("SASolverScheduler"),
    with_zero_snr(Class::new("TCDScheduler", LATENT)),
    with_zero_snr(dpm("UniPCMultistepScheduler")),
];

/// The classes that are not supported, and why. The reason follows the class name in an error text.
#[rustfmt::skip]
static OTHERS: [(&str, &str); 25] = [
    ("AmusedScheduler", "for masked image tokens"),
    ("BlockRefinementScheduler", "for text tokens"),
    ("CMStochasticIterativeScheduler", "for consistency models of pixels"),
    ("CogVideoXDDIMScheduler", "for video, with its own shift"),
    ("CogVideoXDPMScheduler", "for video, with its own shift"),
    ("ConsistencyDecoderScheduler", "for a decoder of latents"),
    ("CosineDPMSolverMultistepScheduler", "for audio"),
    ("DDPMWuerstchenScheduler", "its schedule is continuous"),
    ("DiscreteDDIMScheduler", "for text tokens"),
    ("EntropyBoundScheduler", "for text tokens"),
    ("FlowMapEulerDiscreteScheduler", "for flow maps, whose models take two times"),
    ("HeliosDMDScheduler", "for video, in stages"),
    ("HeliosScheduler", "for video, in stages"),
    ("IPNDMScheduler", "its model is trained on its own schedule; use the sampler `ipndm`"),
    ("KarrasVeScheduler", "for pixels, deprecated"),
    ("LTXEulerAncestralRFScheduler", "for video"),
    ("MiniMaxH3Scheduler", "for video"),
    ("PiflowScheduler", "for flow models distilled to policies"),
    ("RFD4ProteinaScheduler", "for proteins"),
    ("RePaintScheduler", "it goes back and forth under a mask"),
    ("SCMScheduler", "for TrigFlow models"),
    ("ScoreSdeVeScheduler", "for pixels"),
    ("ScoreSdeVpScheduler", "for pixels, deprecated"),
    ("UnCLIPScheduler", "for unCLIP, with a learned variance"),
    ("VQDiffusionScheduler", "for discrete tokens"),
];

/// The keys of all classes, including the unsupported ones.
///
/// When diffusers converts the file of one class to another class, the keys of the first class stay
/// in the file.
#[rustfmt::skip]
pub(super) static KEYS: [&str; 101] = [
    "algorithm_type", "alpha_cum_end", "alpha_cum_start", "base_image_seq_len", "base_shift", "beta_end", "beta_max",
    "beta_min", "beta_schedule", "beta_start", "block_length", "clip_denoised", "clip_sample", "clip_sample_range",
    "correct_steps", "corrector_k", "corrector_order", "corrector_selection", "corrector_selection_tau",
    "corrector_steps", "disable_corrector", "dynamic_thresholding_ratio", "editing_threshold", "entropy_bound", "eps",
    "eta", "euler_at_final", "final_sigmas_type", "final_step_size_scale", "flow_shift", "gamma", "gamma_cum_start",
    "interpolation_type", "invert_sigmas", "lambda_min_clipped", "lower_order_final", "mask_token_id",
    "max_image_seq_len", "max_shift", "minimal_topk", "n_grid", "noise_mode", "noise_sampler_seed",
    "num_inference_steps", "num_policy_substeps", "num_train_timesteps", "num_vec_classes",
    "original_inference_steps", "predict_x0", "prediction_type", "predictor_order", "rescale_betas_zero_snr", "rho",
    "s", "s_churn", "s_max", "s_min", "s_noise", "sample_max_value", "sampling_eps", "scale_factors", "scaler",
    "schedule_mode", "scheduler_type", "set_alpha_to_one", "shift", "shift_terminal", "sigma_data", "sigma_max",
    "sigma_min", "sigma_schedule", "skip_prk_steps", "snr", "snr_shift_scale", "solver_order", "solver_p",
    "solver_type", "stage_range", "stages", "steps_offset", "stochastic_sampling", "t_max", "t_min", "tau_func",
    "threshold", "thresholding", "time_shift_type", "timestep_scaling", "timestep_spacing", "timestep_type",
    "trained_betas", "tsr_k", "tsr_sigma", "upscale_mode", "use_beta_sigmas", "use_dynamic_shifting",
    "use_exponential_sigmas", "use_flow_sigmas", "use_karras_sigmas", "use_lu_lambdas", "variance_type",
];
