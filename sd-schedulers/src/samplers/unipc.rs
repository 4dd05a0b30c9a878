use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dpm_solver::conventions;
use super::predictor_corrector::PredictorCorrector;
use super::row::{ComfyUi, SamplerRow, WebUi};
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, FinalSigma, FirstX},
    samplers::{Needs, WithConventions},
    schedule::ClipSample,
};

/// UniPC, multistep: algorithms 1 (the corrector) and 2 (the predictor) of
/// <https://arxiv.org/abs/2302.04867>. Its order is `order` + 1, or `order` without the corrector.
/// It calls the model once per step.
///
/// The order is reached from the outputs of as many steps. Reference implementation: diffusers'
/// `UniPCMultistepScheduler`.
///
/// A step is a step of DDIM plus a weighted sum of the differences of the last values. The weights
/// make it exact for polynomials in log sigma. Once the model has seen x on the next rung, its
/// value joins them and x is corrected. The prediction and the correction differ only in the
/// weights. If the `step` of a [`Run`] replaces the predicted value, the replacement stays. The
/// last x is never corrected. A step to sigma 0 is a step of DDIM, so it ends at the denoised
/// sample.
///
/// WebUI's "UniPC" and ComfyUI's `uni_pc` are [`Bh1`](UniPcVariant::Bh1) with order 3. ComfyUI's
/// `uni_pc_bh2` is [`Bh2`](UniPcVariant::Bh2) with order 3.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UniPc {
    /// The number of values that the predictor uses, `1..=3`: `solver_order` in diffusers. A value
    /// outside counts as the nearer end.
    ///
    /// Default: 2.
    pub order: usize,
    /// The function B of the paper: `solver_type` in diffusers.
    ///
    /// Default: [`UniPcVariant::Bh2`].
    pub variant: UniPcVariant,
    /// Whether the values are denoised samples. Otherwise they are noises, (x - D) / sigma.
    ///
    /// Default: true.
    pub predict_x0: bool,
    /// Whether orders fall to 1 towards the last step. It limits the whole method to order 2 for
    /// many steps.
    ///
    /// Default: true.
    pub lower_order_final: bool,
    /// The steps whose result is not corrected: `disable_corrector` in diffusers.
    ///
    /// Default: 0.
    ///
    /// Bit i stands for step i, and bit 127 for all later steps too.
    /// [`uncorrected_at`](Self::uncorrected_at) makes such a value, and
    /// [`NEVER_CORRECTED`](Self::NEVER_CORRECTED) has all bits set. In serde, it is a list of the
    /// bits that are set.
    #[serde(with = "bits")]
    pub uncorrected: u128,
    /// The sigma at which a run ends: `final_sigmas_type` in diffusers.
    ///
    /// Default: [`FinalSigma::Zero`], which does not give finite results in diffusers if the values
    /// are noises.
    pub end: FinalSigma,
    /// The clipping of the denoised sample, for models of pixels. If the values are noises, nothing
    /// is clipped, as in diffusers.
    ///
    /// Default: [`ClipSample::None`].
    pub clip: ClipSample,
}

/// How [`UniPc`] scales its corrections, by a function of the step h in log sigma.
///
/// Default: [`UniPcVariant::Bh2`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UniPcVariant {
    /// B = h. With [`FinalSigma::Zero`], the result is not finite in diffusers.
    Bh1,
    /// B = e^h - 1.
    #[default]
    Bh2,
}

impl Default for UniPc {
    fn default() -> Self {
        Self {
            order: 2,
            variant: UniPcVariant::Bh2,
            predict_x0: true,
            lower_order_final: true,
            uncorrected: 0,
            end: FinalSigma::Zero,
            clip: ClipSample::None,
        }
    }
}

impl UniPc {
    /// The value of [`uncorrected`](Self::uncorrected) without any corrector: UniP.
    pub const NEVER_CORRECTED: u128 = u128::MAX;

    /// Returns the value of [`uncorrected`](Self::uncorrected) for which all steps but these,
    /// counted from 0, are corrected.
    ///
    /// ```
    /// use sd_schedulers::samplers::UniPc;
    ///
    /// let unipc = UniPc { uncorrected: UniPc::uncorrected_at([0, 3]), ..UniPc::default() };
    /// assert_eq!(unipc.uncorrected, 0b1001);
    /// ```
    pub fn uncorrected_at(steps: impl IntoIterator<Item = usize>) -> u128 {
        let all = steps.into_iter();
        all.fold(0, |bits, step| bits | (1 << step.min(127)))
    }

    /// Returns the order of the step from rung `index`.
    fn order_at(&self, rungs: &Rungs, index: usize) -> usize {
        let order = self.order.clamp(1, 3).min(index + 1);
        if self.lower_order_final {
            order.min(rungs.steps_left(index))
        } else {
            order
        }
    }

    /// Returns the weights of the values in a step of `order` from rung `index`, in addition to a
    /// step of DDIM.
    ///
    /// The weights belong to the differences of the values from the value on the rung that the step
    /// leaves. The first belongs to the value on the rung where the step ends, and is 0 without the
    /// corrector. The others belong to the values on earlier rungs.
    fn weights(&self, sigmas: &[f32], index: usize, order: usize, corrector: bool) -> [f64; 3] {
        let sigma = |rung: usize| f64::from(sigmas[rung]);
        let h = (sigma(index) / sigma(index + 1)).ln();
        let (z, unit) = if self.predict_x0 {
            (-h, 1.0)
        } else {
            (h, sigma(index + 1))
        };
        let scale = match self.variant {
            UniPcVariant::Bh1 => z,
            UniPcVariant::Bh2 => z.exp_m1(),
        };
        // The positions of the other values, in steps from the rung that is left. The corrector's
        // is 1.
        let mut places = [1.0; 3];
        for back in 1..order {
            places[back - 1] = (sigma(index) / sigma(index - back)).ln() / h;
        }
        let count = order - 1 + usize::from(corrector);
        let mut parts = [1, 2, 3].map(|k| FACTORIALS[k] * phi(k, z) / scale);
        match (order, corrector) {
            // As in the authors' code, this is the limit for short steps, which is of the same
            // order.
            (2, false) | (1, true) => parts[0] = 0.5,
            _ => solve(&places[..count], &mut parts[..count]),
        }
        let mut weights = [0.0; 3];
        for k in 0..count {
            let place = if k + 1 < order { k + 1 } else { 0 };
            weights[place] = -unit * scale * parts[k] / places[k];
        }
        weights
    }

    /// Returns the weights of the correction of the step from rung `index`: the corrector's weights
    /// minus the weights in the prediction.
    fn correction(&self, rungs: &Rungs, index: usize) -> Option<[f64; 4]> {
        let step = rungs.index_in_whole(index).min(127);
        if (self.uncorrected >> step) & 1 == 1 {
            return None;
        }
        let order = self.order_at(rungs, index);
        let of = |corrector| self.weights(rungs.sigmas(), index, order, corrector);
        let ([newest, second, third], [_, of_second, of_third]) = (of(true), of(false));
        Some([newest, second - of_second, third - of_third, 0.0])
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<UniPc>(
    "unipc",
    "UniPC",
    "https://arxiv.org/abs/2302.04867",
    Ladder::linspace(),
    |config| {
        Box::new(UniPc {
            clip: config.thresholding(),
            ..UniPc::default()
        })
    },
)
.diffusers("UniPCMultistepScheduler")
.webui(WebUi::new(&[], Ladder::sgm_uniform, webui).on_its_own_ladder())
.comfyui(&[
    ComfyUi::new("uni_pc", || Arc::new(third_order(UniPcVariant::Bh1))).drop_next_to_last(),
    ComfyUi::new("uni_pc_bh2", || Arc::new(third_order(UniPcVariant::Bh2))).drop_next_to_last(),
])
.order(3);

/// Returns WebUI's UniPC, which runs on even timesteps from T - 1 to 0 and ends at the last of
/// them.
fn webui() -> Arc<dyn Sampler> {
    let unipc = UniPc {
        end: FinalSigma::SigmaMin,
        ..third_order(UniPcVariant::Bh1)
    };
    let conventions = Conventions {
        first_x: FirstX::VariancePreserving,
        end: FinalSigma::SigmaMin,
        ..Conventions::default()
    };
    WithConventions::wrap(Arc::new(unipc), conventions)
}

fn third_order(variant: UniPcVariant) -> UniPc {
    UniPc {
        order: 3,
        variant,
        ..UniPc::default()
    }
}

impl Sampler for UniPc {
    fn conventions(&self) -> Conventions {
        conventions(self.end)
    }

    fn needs(&self) -> Needs {
        self.clip.needs()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let values = self.order.clamp(1, 3);
        let mut state = PredictorCorrector::new(!self.predict_x0, values, x.len());
        let mut denoised = vec![0.0; x.len()];
        let mut scratch = self.clip.scratch(x.len());
        let sigmas = rungs.sigmas();
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            if self.predict_x0 {
                self.clip.apply(&mut denoised, &mut scratch);
            }
            let (index, next) = (at.index, sigmas[at.index + 1]);
            let before = index.checked_sub(1);
            let correction = before.and_then(|before| self.correction(rungs, before));
            state.correct(x, &denoised, at.sigma, correction);
            if next == 0.0 {
                x.copy_from_slice(&denoised);
            } else if next < at.sigma {
                let order = self.order_at(rungs, index);
                let [_, second, third] = self.weights(sigmas, index, order, false);
                let ratio = f64::from(next) / f64::from(at.sigma);
                state.predict(x, &denoised, at.sigma, ratio, [second, third, 0.0]);
            } else {
                state.settle(x);
            }
            run.step(Step::new(rungs, index, x, &denoised))?;
            std::mem::swap(&mut denoised, &mut state.last);
        }
        ControlFlow::Continue(())
    }
}

const FACTORIALS: [f64; 4] = [1.0, 1.0, 2.0, 6.0];

/// Returns the sum over j from 1 of z^j / (j + k)!, for k from 1 to 3. It is z times the paper's
/// function phi with k + 1.
fn phi(k: usize, z: f64) -> f64 {
    if z.abs() < 1.0 {
        // The recurrence below would lose digits by cancellation.
        let (mut sum, mut term) = (0.0, 1.0 / FACTORIALS[k]);
        for j in 1..20 {
            term *= z / (j + k) as f64;
            sum += term;
        }
        sum
    } else {
        let mut phi = z.exp_m1() / z - 1.0;
        for factorial in &FACTORIALS[2..=k] {
            phi = phi / z - 1.0 / factorial;
        }
        phi
    }
}

/// Solves for the weights of nodes whose weighted sums of the powers 0, 1, … are equal to `sums`.
/// The weights replace `sums`.
///
/// It is algorithm 4.6.2 of Golub and Van Loan's "Matrix Computations".
fn solve(nodes: &[f64], sums: &mut [f64]) {
    let count = nodes.len();
    for k in 0..count {
        for i in (k + 1..count).rev() {
            sums[i] -= nodes[k] * sums[i - 1];
        }
    }
    for k in (0..count).rev() {
        for i in k + 1..count {
            sums[i] /= nodes[i] - nodes[i - k - 1];
        }
        for i in k..count.saturating_sub(1) {
            sums[i] -= sums[i + 1];
        }
    }
}

/// The serde form of a set of bits: a list of the ones that are set, as JSON has no numbers of 128
/// bits.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bits: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((0..128).filter(|i| bits & (1 << i) != 0))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let mut bits = 0;
        for i in Vec::<u32>::deserialize(deserializer)? {
            let bit = 1_u128.checked_shl(i);
            bits |= bit.ok_or_else(|| D::Error::custom(format!("bit {i}, expected 0 to 127")))?;
        }
        Ok(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_solve_their_equations() {
        let nodes = [-2.0, -0.7, 1.0];
        let mut weights = [3.0, -1.0, 2.0];
        solve(&nodes, &mut weights);
        for (power, expected) in [3.0, -1.0, 2.0].into_iter().enumerate() {
            let term = |k: usize| weights[k] * f64::powi(nodes[k], power as i32);
            let sum: f64 = (0..3).map(term).sum();
            assert!((sum - expected).abs() < 1e-13, "{power}: {sum}");
        }
    }

    #[test]
    fn phi_is_one_function_where_series_and_recurrence_meet() {
        for k in 1..=3 {
            for z in [-1.0, 1.0] {
                let (series, recurrence) = (phi(k, z * (1.0 - 1e-15)), phi(k, z));
                assert!((series - recurrence).abs() < 1e-14, "{k} {z}");
            }
        }
        assert_eq!(UniPc::uncorrected_at([0, 3, 500]), (1 << 127) | 0b1001);
    }
}
