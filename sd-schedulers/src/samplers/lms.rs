use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::{History, adams_bashforth, last_sigmas};
use super::row::{ComfyUi, SamplerRow, WebUi};
use super::steps::noise_in;
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, NoisePath},
    samplers::EndPoint,
};

/// Linear multistep (Adams-Bashforth on uneven rungs) on the probability-flow ODE of
/// <https://arxiv.org/abs/2206.00364>. It is of order 1 to 4 and calls the model once per step.
///
/// The method has no paper. Reference implementations: k-diffusion's `sample_lms` and diffusers'
/// `LMSDiscreteScheduler`.
///
/// The slopes (x - D) / sigma of the last steps define a polynomial in sigma, which is integrated
/// from sigma to sigma'. The order starts at 1 and rises by 1 per step. The step to sigma 0 follows
/// the same rule, so it ends at the denoised sample only with first order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lms {
    /// The number of slopes, `1..=4`. 1 is Euler. A value outside counts as the nearer end.
    ///
    /// Default: 4.
    pub order: usize,
}

impl Default for Lms {
    fn default() -> Self {
        Self { order: 4 }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Lms>(
    "lms",
    "LMS",
    "https://arxiv.org/abs/2206.00364",
    Ladder::karras(),
    |_| Box::new(Lms::default()),
)
.diffusers("LMSDiscreteScheduler")
.webui(WebUi::new(&["k_lms"], Ladder::normal, || {
    Arc::new(Lms::default())
}))
.comfyui(&[ComfyUi::new("lms", || Arc::new(Lms::default()))])
.order(4)
.ends("own formula");

impl Sampler for Lms {
    fn conventions(&self) -> Conventions {
        Conventions {
            flow: NoisePath::Flow,
            ..Conventions::default()
        }
    }

    fn ends(&self) -> EndPoint {
        match self.order {
            0 | 1 => EndPoint::Last,
            _ => EndPoint::Formula,
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let most = self.order.clamp(1, 4);
        let (mut denoised, mut slopes) = (vec![0.0; x.len()], History::new(most, x.len()));
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            noise_in(x, &denoised, at.sigma, slopes.push());
            let (sigma, order) = (f64::from(at.sigma), most.min(at.index + 1));
            let next = f64::from(rungs.sigmas()[at.index + 1]);
            let nodes = last_sigmas(rungs.sigmas(), at.index, order);
            let [_, older @ ..] = adams_bashforth(&nodes[..order], next);
            let weights = older.map(|weight| (next - sigma) * weight);
            slopes.step(x, &denoised, next / sigma, weights);
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
