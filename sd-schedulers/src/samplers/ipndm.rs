use std::ops::ControlFlow;

use super::history::{ADAMS_BASHFORTH, History, adams_bashforth, last_sigmas};
use super::steps::noise_in;
use crate::{Conventions, Ends, Path, Run, Rungs, Sampler, Step};

/// iPNDM: PNDM with lower orders in the place of its Runge-Kutta steps, section 3.1 of <https://arxiv.org/abs/2204.13902>. It starts at first
/// order, and of which it then is depends on the [`weights`](Self::weights); one model call a step; ComfyUI's `ipndm` and `ipndm_v`, and the
/// formula of diffusers' `IPNDMScheduler`, which is bound to a ladder and a model of its own.
///
/// x = x + (sigma' - sigma) times a weighted mean of the noises (x - D) / sigma of the last steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipndm {
    /// How many noises are used: 1 to 4, the default; outside of that the nearer end.
    pub order: usize,
    /// How they are weighed. Default [`IpndmWeights::Even`].
    pub weights: IpndmWeights,
    /// Whether a step to sigma 0 goes to the denoised sample. Default true, as in ComfyUI; diffusers: false.
    pub denoise_last: bool,
}

/// The weights of the noises in [`Ipndm`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpndmWeights {
    /// Those of Adams and Bashforth, as if all steps were of one length: `ipndm`. Where they are not, the method is of second order, whatever
    /// [`Ipndm::order`] above 1.
    #[default]
    Even,
    /// Those of the steps' own lengths, by which the method is of its order from exact first steps: [`Lms`](crate::Lms).
    Variable,
    /// `ipndm_v` of the diff-sampler code and of ComfyUI: meant to be [`Variable`](Self::Variable), but three slips make the weights of orders
    /// 3 and 4 other ones, those of order 4 even where steps are of one length. The order that is left was seen at 1.2 to 1.8: first.
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

impl Sampler for Ipndm {
    fn conventions(&self) -> Conventions {
        Conventions {
            flow: Path::Flow,
            ..Conventions::default()
        }
    }

    fn ends(&self) -> Ends {
        if self.denoise_last || self.order <= 1 {
            Ends::Last
        } else {
            Ends::Own
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
                // 1, but for the published ones of order 4.
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

/// What diff-sampler and ComfyUI take those means to be, for three or four nodes.
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
