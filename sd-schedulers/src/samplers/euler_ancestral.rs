use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{ComfyUi, SamplerRow, WebUi};
use super::steps::{add, ancestral, slide};
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, NoisePath},
};

/// Ancestral sampling with Euler steps: each step goes further down than the next rung and adds
/// noise to come back up. It is of first order and calls the model once per step.
///
/// Reference implementations: k-diffusion's `sample_euler_ancestral` and diffusers'
/// `EulerAncestralDiscreteScheduler`, after the ancestral sampling of
/// <https://arxiv.org/abs/2006.11239>.
///
/// With down² + up² = sigma'², a step is x = D + down / sigma (x - D) + up noise.
///
/// No noise is drawn for the last step, which ends at sigma 0. (diffusers draws it and multiplies
/// it by 0.)
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EulerAncestral {
    /// The share of the ancestral noise that is added, `0.0..=1.0`. 0 adds none, which is
    /// [`Euler`](crate::samplers::Euler). A value below 0 counts as 0. Above 1, the noise is at
    /// most all of the next rung's noise.
    ///
    /// Default: 1.
    pub eta: f32,
    /// A factor for the noise. A value below 0 counts as 0.
    ///
    /// Default: 1.
    pub s_noise: f32,
    /// The scaling in which a step on a flow model is split into its two parts. Other models ignore
    /// it.
    ///
    /// With [`NoisePath::Flow`], it is the flow's own scaling, as in diffusers'
    /// `LTXEulerAncestralRFScheduler` and ComfyUI. With [`NoisePath::Exploding`], flow models are
    /// treated like other models.
    ///
    /// Default: [`NoisePath::Exploding`].
    pub flow: NoisePath,
}

impl Default for EulerAncestral {
    fn default() -> Self {
        Self {
            eta: 1.0,
            s_noise: 1.0,
            flow: NoisePath::Exploding,
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<EulerAncestral>(
    "euler-a",
    "Euler a",
    "https://arxiv.org/abs/2006.11239",
    Ladder::karras(),
    |_| Box::new(EulerAncestral::default()),
)
.diffusers("EulerAncestralDiscreteScheduler")
.webui(
    WebUi::new(&["k_euler_a", "k_euler_ancestral"], Ladder::normal, || {
        Arc::new(EulerAncestral::default())
    })
    .ensd(),
)
.comfyui(&[ComfyUi::new("euler_ancestral", || {
    Arc::new(EulerAncestral {
        flow: NoisePath::Flow,
        ..EulerAncestral::default()
    })
})])
.stochastic();

impl Sampler for EulerAncestral {
    fn conventions(&self) -> Conventions {
        Conventions {
            flow: self.flow,
            ..Conventions::default()
        }
    }

    fn adds_noise(&self) -> bool {
        self.eta > 0.0 && self.s_noise > 0.0
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let (eta, s_noise) = (
            f64::from(self.eta).max(0.0),
            f64::from(self.s_noise).max(0.0),
        );
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            let next = rungs.sigmas()[at.index + 1];
            let (sigma, to) = (f64::from(at.sigma), f64::from(next));
            let up = match rungs.path() {
                NoisePath::Exploding => {
                    let (down, up) = ancestral(sigma, to, eta);
                    slide(x, &denoised, down / sigma);
                    up
                }
                NoisePath::Flow => {
                    let (keep, down, up) = ancestral_on_flow(sigma, to, eta);
                    slide(x, &denoised, down / sigma);
                    let keep = keep as f32;
                    x.iter_mut().for_each(|x| *x *= keep);
                    up
                }
            };
            if s_noise * up > 0.0 {
                run.noise(at.sigma, next, &mut noise);
                add(x, s_noise * up, &noise);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}

/// Does the same as [`ancestral`] for x = (1 - sigma) clean + sigma noise.
///
/// Returns a factor for x at the sigma to go down to, that sigma, and the deviation of the noise.
/// The factor gives x the share of the clean sample that `to` requires.
fn ancestral_on_flow(from: f64, to: f64, eta: f64) -> (f64, f64, f64) {
    if to >= from {
        return (1.0, to, 0.0);
    }
    let down = (to * (1.0 + (to / from - 1.0) * eta)).max(0.0);
    let keep = (1.0 - to) / (1.0 - down);
    let up = (to * to - (keep * down).powi(2)).max(0.0).sqrt();
    (keep, down, up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_make_up_the_next_sigma() {
        for (from, to) in [(1.0, 0.9), (0.5, 0.03), (0.03, 0.0), (0.5, 0.5)] {
            for eta in [0.0, 0.3, 1.0, 9.0] {
                let (keep, down, up) = ancestral_on_flow(from, to, eta);
                assert!((keep * (1.0 - down) - (1.0 - to)).abs() <= 1e-12);
                assert!((up.hypot(keep * down) - to).abs() <= 1e-12);
            }
        }
        assert_eq!(ancestral_on_flow(0.8, 0.4, 0.0), (1.0, 0.4, 0.0));
    }
}
