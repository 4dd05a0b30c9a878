use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::{ADAMS_BASHFORTH, History, adams_bashforth, last_sigmas};
use super::row::{ComfyUi, SamplerRow};
use super::steps::noise_in;
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, NoisePath},
    samplers::EndPoint,
};

/// iPNDM: PNDM with lower orders instead of its Runge-Kutta steps, section 3.1 of
/// <https://arxiv.org/abs/2204.13902>. It calls the model once per step.
///
/// The first step is of first order. The order afterwards depends on the
/// [`weights`](Self::weights). Reference implementations: ComfyUI's `ipndm` and `ipndm_v`, and the
/// formula of diffusers' `IPNDMScheduler`, which is bound to its own ladder and model.
///
/// A step adds (sigma' - sigma) times a weighted mean of the noises (x - D) / sigma of the last
/// steps to x.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ipndm {
    /// The number of noises, `1..=4`. A value outside counts as the nearer end.
    ///
    /// Default: 4.
    pub order: usize,
    /// The weights of the noises.
    ///
    /// Default: [`IpndmWeights::Even`].
    pub weights: IpndmWeights,
    /// Whether a step to sigma 0 goes to the denoised sample, as in ComfyUI. diffusers has false.
    ///
    /// Default: true.
    pub denoise_last: bool,
}

/// The weights of the noises in [`Ipndm`].
///
/// Default: [`IpndmWeights::Even`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpndmWeights {
    /// The weights of Adams and Bashforth for steps of equal length: `ipndm`. On steps of other
    /// lengths, the method is of second order for every [`Ipndm::order`] above 1.
    #[default]
    Even,
    /// The weights for the actual lengths of the steps, as in [`Lms`](crate::samplers::Lms). From
    /// exact first steps, the method has its full order.
    Variable,
    /// The weights of `ipndm_v` in the diff-sampler code and in ComfyUI.
    ///
    /// They are meant to be [`Variable`](Self::Variable), but three slips change the weights of
    /// orders 3 and 4, and order 4 even for steps of equal length. The measured order is
    /// 1.2 to 1.8, so the method is of first order.
    VariablePublished,
}

impl Default for Ipndm {
    fn default() -> Self {
        Self {
            order: 4,
            weights: IpndmWeights::Even,
            denoise_last: true,
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Ipndm>(
    "ipndm",
    "iPNDM",
    "https://arxiv.org/abs/2204.13902",
    Ladder::karras(),
    |_| Box::new(Ipndm::default()),
)
.comfyui(&[ComfyUi::new("ipndm", || Arc::new(Ipndm::default()))])
.order(2);

pub(super) const VARIABLE: SamplerRow = SamplerRow::new::<Ipndm>(
    "ipndm-v",
    "iPNDM, variable step",
    "https://arxiv.org/abs/2204.13902",
    Ladder::karras(),
    |_| {
        Box::new(Ipndm {
            weights: IpndmWeights::VariablePublished,
            ..Ipndm::default()
        })
    },
)
.comfyui(&[ComfyUi::new("ipndm_v", || {
    Arc::new(Ipndm {
        weights: IpndmWeights::VariablePublished,
        ..Ipndm::default()
    })
})]);

impl Sampler for Ipndm {
    fn conventions(&self) -> Conventions {
        Conventions {
            flow: NoisePath::Flow,
            ..Conventions::default()
        }
    }

    fn ends(&self) -> EndPoint {
        if self.denoise_last || self.order <= 1 {
            EndPoint::Last
        } else {
            EndPoint::Formula
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let most = self.order.clamp(1, 4);
        let (mut denoised, mut noises) = (vec![0.0; x.len()], History::new(most, x.len()));
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            noise_in(x, &denoised, at.sigma, noises.push());
            let (sigma, order) = (f64::from(at.sigma), most.min(at.index + 1));
            let next = f64::from(rungs.sigmas()[at.index + 1]);
            if next == 0.0 && self.denoise_last {
                x.copy_from_slice(&denoised);
            } else if next < sigma {
                let nodes = last_sigmas(rungs.sigmas(), at.index, order);
                let nodes = &nodes[..order];
                let weights = match self.weights {
                    IpndmWeights::Even => ADAMS_BASHFORTH[order - 1],
                    IpndmWeights::VariablePublished if order > 2 => published(nodes, next),
                    _ => adams_bashforth(nodes, next),
                };
                // It is 1, except for the published weights of order 4.
                let total: f64 = weights.iter().sum();
                let way = next - sigma;
                let [_, older @ ..] = weights.map(|weight| way * weight);
                noises.step(x, &denoised, 1.0 + way / sigma * total, older);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}

/// Returns the weights that diff-sampler and ComfyUI compute for three or four nodes.
fn published(nodes: &[f64], to: f64) -> [f64; 4] {
    let (h, h_1, h_2) = (to - nodes[0], nodes[0] - nodes[1], nodes[1] - nodes[2]);
    let (half, ratio) = (h / h_1 / 2.0, h_1 / h_2);
    let third = (1.0 - h * h / (3.0 * h_1 * (h_1 + h_2))) / 2.0;
    let weights = [
        1.0 + half + third,
        -half - (1.0 + ratio) * third,
        ratio * third,
        0.0,
    ];
    let Some(oldest) = nodes.get(3) else {
        return weights;
    };
    let h_3 = nodes[2] - oldest;
    let fourth = ((1.0 - h / (3.0 * (h + h_1))) / 2.0
        + (1.0 - h / (2.0 * (h + h_1))) * h / (6.0 * (h + h_1 + h_2)))
        * (h * (h + h_1) * (h + h_1 + h_2))
        / (h_1 * (h_1 + h_2) * (h_1 + h_2 + h_3));
    let far = h_1 * (h_1 + h_2) / (h_2 * (h_2 + h_3));
    [
        weights[0] + fourth,
        weights[1] - (1.0 + ratio + far) * fourth,
        weights[2] + (ratio + far * (1.0 + h_2 / h_3)) * fourth,
        -far * ratio * fourth,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_weights_are_off_from_order_4_on() {
        let nodes = [1.0, 2.0, 3.0, 4.0];
        let third = published(&nodes[..3], 0.0);
        assert!((third[0] - ADAMS_BASHFORTH[2][0]).abs() < 1e-14);
        assert!((published(&nodes, 0.0)[0] - 57.0 / 24.0).abs() < 1e-14);
    }
}
