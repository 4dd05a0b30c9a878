//! The samplers that the classes make from their keys. The DPM-Solver family has its own file.

use std::sync::Arc;

use super::super::class::Class;
use super::super::{ConfigError, clip_sample};
use super::File;
use crate::{
    Ladder, NoiseSchedule, Prediction, Sampler,
    ladders::{Conventions, FinalSigma, Spacing, TimestepRounding},
    samplers::{
        Ddim, Ddpm, DdpmVariance, Dpm2, Dpm2Ancestral, DpmPlusPlusSde, Euler, EulerAncestral, Heun,
        Lcm, LcmBoundary, Lms, Pndm, Tcd, WithConventions,
    },
};

pub(super) type Read = Result<(Arc<dyn Sampler>, Ladder), ConfigError>;

const ENDS: [(&str, FinalSigma); 2] = [
    ("zero", FinalSigma::Zero),
    ("sigma_min", FinalSigma::SigmaMin),
];

/// The classes.
impl File<'_> {
    pub(super) fn read(&self, class: &Class) -> Read {
        match class.name {
            "DDIMScheduler" | "DDIMParallelScheduler" => self.ddim(),
            "DDPMScheduler" | "DDPMParallelScheduler" => self.ddpm(),
            "PNDMScheduler" => self.pndm(),
            "LCMScheduler" => self.lcm(),
            "TCDScheduler" => self.tcd(),
            "EulerDiscreteScheduler" => self.euler(),
            "EulerAncestralDiscreteScheduler" => {
                let ladder = Ladder::Spaced(self.spacing(Spacing::Linspace)?);
                Ok((Arc::new(EulerAncestral::default()), ladder))
            }
            "HeunDiscreteScheduler" => {
                let heun = Heun {
                    clip: clip_sample(self.keys, false)?,
                    ..Heun::default()
                };
                Ok((Arc::new(heun), self.k_ladder(true)?))
            }
            "LMSDiscreteScheduler" => Ok((Arc::new(Lms::default()), self.k_ladder(false)?)),
            "KDPM2DiscreteScheduler" => {
                let dpm2 = Dpm2 {
                    timestep_rounding: TimestepRounding::KarrasRounded,
                    ..Dpm2::default()
                };
                Ok((Arc::new(dpm2), self.k_ladder(true)?))
            }
            "KDPM2AncestralDiscreteScheduler" => {
                let dpm2 = Dpm2Ancestral {
                    timestep_rounding: TimestepRounding::KarrasRounded,
                    ..Dpm2Ancestral::default()
                };
                Ok((Arc::new(dpm2), self.k_ladder(true)?))
            }
            "DPMSolverSDEScheduler" => {
                Ok((Arc::new(DpmPlusPlusSde::default()), self.k_ladder(false)?))
            }
            "DPMSolverMultistepScheduler" => self.multistep(),
            "DPMSolverSinglestepScheduler" => self.singlestep(),
            "DEISMultistepScheduler" => self.deis(),
            "UniPCMultistepScheduler" => self.unipc(),
            "SASolverScheduler" => self.sa_solver(),
            "FlowMatchEulerDiscreteScheduler" => {
                let ladder = self.flow_match()?;
                if self.keys.flag("stochastic_sampling", false)? {
                    Ok((flow_lcm(), ladder))
                } else {
                    Ok((Arc::new(Euler::default()), ladder))
                }
            }
            "FlowMatchHeunDiscreteScheduler" => {
                let factor = self.keys.positive("shift")?.unwrap_or(1.0);
                Ok((Arc::new(Heun::default()), Ladder::flow_shifted(factor)))
            }
            "FlowMatchLCMScheduler" => {
                self.must_be_null("scale_factors")?;
                Ok((flow_lcm(), self.flow_match()?))
            }
            "EDMEulerScheduler" => {
                let euler = self.euler_to(self.end()?);
                Ok((euler, self.edm_ladder()?))
            }
            "EDMDPMSolverMultistepScheduler" => self.edm_multistep(),
            name => Err(ConfigError::Class {
                found: format!("`{name}` (it goes from picture to noise)"),
            }),
        }
    }

    fn ddim(&self) -> Read {
        let spacing = self.spacing(Spacing::Leading)?;
        self.infinite_sigma(spacing != Spacing::Leading)?;
        let ddim = Ddim::from_config(self.config);
        Ok((Arc::new(ddim), Ladder::Spaced(spacing)))
    }

    fn ddpm(&self) -> Read {
        let variances = [
            ("fixed_small", DdpmVariance::Small),
            ("fixed_small_log", DdpmVariance::Small),
            ("fixed_large", DdpmVariance::Large),
        ];
        let spacing = self.spacing(Spacing::Leading)?;
        self.infinite_sigma(spacing != Spacing::Leading)?;
        let variance = self.keys.one_of("variance_type", &variances)?;
        let ddpm = Ddpm {
            variance: variance.unwrap_or_default(),
            clip: self.config.clip,
        };
        Ok((self.starting_at_noise(ddpm), Ladder::Spaced(spacing)))
    }

    fn pndm(&self) -> Read {
        let pndm = Pndm {
            skip_prk_steps: self.keys.flag("skip_prk_steps", false)?,
            ..Pndm::from_config(self.config)
        };
        let spacing = self.spacing(Spacing::Leading)?;
        Ok((Arc::new(pndm), Ladder::Spaced(spacing)))
    }

    fn lcm(&self) -> Read {
        let ladder = self.distilled()?;
        let lcm = Lcm {
            boundary: LcmBoundary::Preserving,
            timestep_scaling: self.keys.positive("timestep_scaling")?.unwrap_or(10.0) as f32,
            clip: self.config.clip,
        };
        Ok((self.starting_at_noise(lcm), ladder))
    }

    fn tcd(&self) -> Read {
        let ladder = self.distilled()?;
        Ok((self.starting_at_noise(Tcd::default()), ladder))
    }

    fn euler(&self) -> Read {
        let end = self.end()?;
        let mut ladder = self.k_ladder(true)?;
        let log_linear = [("linear", false), ("log_linear", true)];
        let log_linear = self.keys.one_of("interpolation_type", &log_linear)?;
        if let Ladder::Shaped { over, .. } = &mut ladder {
            if end == FinalSigma::SigmaMin {
                return Err(self.refuse("final_sigmas_type", "`zero` on a shaped ladder"));
            }
            if log_linear == Some(true) {
                // diffusers takes the ends of the ladder that the shape replaces.
                let schedule = NoiseSchedule::new(self.config)?;
                over.sigma_min.get_or_insert(schedule.sigma_min().into());
                over.sigma_max.get_or_insert(schedule.sigma_max().into());
            }
        } else if log_linear == Some(true) {
            return Err(self.refuse("interpolation_type", "`linear` on a spacing"));
        }
        let continuous = self.keys.text("timestep_type")? == Some("continuous");
        if continuous && self.config.prediction == Prediction::V {
            return Err(self.refuse("timestep_type", "`discrete` with `v_prediction`"));
        }
        Ok((self.euler_to(end), ladder))
    }
}

/// Code that several classes share.
impl File<'_> {
    pub(super) fn end(&self) -> Result<FinalSigma, ConfigError> {
        let end = self.keys.one_of("final_sigmas_type", &ENDS)?;
        Ok(end.unwrap_or_default())
    }

    /// Refuses a schedule with alpha-bar 0 at the last timestep if the ladder reaches it and the
    /// model predicts noise, because noise cannot be predicted there.
    pub(super) fn infinite_sigma(&self, reached: bool) -> Result<(), ConfigError> {
        let epsilon = self.config.prediction == Prediction::Epsilon;
        if reached && epsilon && self.config.rescale_betas_zero_snr {
            let expected = "false with `epsilon` if the ladder begins at the last timestep";
            return Err(self.refuse("rescale_betas_zero_snr", expected));
        }
        Ok(())
    }

    /// Wraps the sampler so that it begins a schedule with zero terminal SNR at alpha-bar 0, as
    /// these classes do.
    fn starting_at_noise(&self, sampler: impl Sampler) -> Arc<dyn Sampler> {
        let conventions = Conventions {
            on_grid_only: self.config.rescale_betas_zero_snr,
            ..sampler.conventions()
        };
        WithConventions::wrap(Arc::new(sampler), conventions)
    }

    fn euler_to(&self, end: FinalSigma) -> Arc<dyn Sampler> {
        let euler = Euler::default();
        let conventions = Conventions {
            end,
            ..euler.conventions()
        };
        WithConventions::wrap(Arc::new(euler), conventions)
    }
}

/// Returns the sampler of diffusers' flow classes that steps like a consistency model.
fn flow_lcm() -> Arc<dyn Sampler> {
    Arc::new(Lcm {
        boundary: LcmBoundary::None,
        ..Lcm::default()
    })
}
