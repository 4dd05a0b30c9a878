use std::ops::Range;

use sd_schedulers::schedule::ClipSample;
use serde::{Deserialize, Serialize};

use super::{
    Apg, GuidanceStep, Guide, Memory, ZeroStar,
    rescale::{deviation, rescale},
};
use crate::Problem;

/// Merges two predictions into `unconditional + scale · (conditional − unconditional)`, which is
/// written over `conditional`. This is classifier-free guidance,
/// <https://arxiv.org/abs/2207.12598>.
///
/// At scale 1 the result is the conditional prediction, and at 0 the unconditional one. Larger
/// scales follow the prompt more closely. Beyond about 15, Stable Diffusion's colours burn out.
/// Both slices must have the same length.
///
/// ```
/// let mut conditional = [3.0];
/// sd_core::guide(&mut conditional, &[1.0], 7.5);
/// assert_eq!(conditional, [16.0]);
/// ```
pub fn guide(conditional: &mut [f32], unconditional: &[f32], scale: f32) {
    for (c, &u) in conditional.iter_mut().zip(unconditional) {
        *c = u + scale * (*c - u);
    }
}

/// Classifier-free guidance with all its options. It covers diffusers' guiders
/// `ClassifierFreeGuidance`, `AdaptiveProjectedGuidance` and `ClassifierFreeZeroStarGuidance`.
///
/// ```
/// use sd_core::{ClassifierFree, Request, guidance::{Apg, Method}};
///
/// let guidance = ClassifierFree {
///     method: Method::Apg(Apg::default()),
///     interval: [0.0, 0.8],
///     ..ClassifierFree::from(12.0)
/// };
/// let request = Request::new("a fox").guidance(guidance);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifierFree {
    /// The guidance scale ("CFG").
    ///
    /// At 1 or less the negative prompt is ignored and each step takes half the time, as in
    /// diffusers.
    ///
    /// For the CFG++ samplers, which [need](sd_schedulers::samplers::Needs::unconditional) the
    /// unconditional output, it is their scale, as ComfyUI's CFG field is: `0.0..=1.0`. They always
    /// use the negative prompt.
    ///
    /// Default: 7.5.
    pub scale: f32,
    /// The share by which the standard deviation of the merged prediction is moved back to the
    /// standard deviation of the conditional prediction, `0.0..=1.0`. This prevents burnt colours;
    /// the paper uses 0.7.
    ///
    /// It is section 3.4 of <https://arxiv.org/abs/2305.08891> and diffusers' `guidance_rescale`,
    /// applied to the network's raw outputs.
    ///
    /// Default: 0, no rescaling.
    pub rescale: f32,
    /// The steps in which guidance is on, `[start, stop]` as shares of the number of steps N, with
    /// `0.0 <= start < 1.0` and `start <= stop <= 1.0`.
    ///
    /// Guidance is on in step i if `int(start · N) <= i < int(stop · N)`, where `int` rounds
    /// down, as with diffusers' `start` and `stop`. In the other steps the conditional prediction
    /// is used unchanged, and the unconditional one is not computed unless the sampler needs it.
    /// Steps are counted by the rungs of the ladder, even if the sampler makes other steps.
    ///
    /// Guidance is harmful at the highest noise levels and useless at the lowest, according to
    /// <https://arxiv.org/abs/2404.07724>. The interval of that paper is an interval of sigmas.
    ///
    /// Default: `[0.0, 1.0]`, all steps.
    pub interval: [f64; 2],
    /// The formula that merges the predictions.
    ///
    /// Default: [`Method::Plain`].
    pub method: Method,
    /// How the denoised sample of each step is clipped, with or without guidance.
    ///
    /// [`ClipSample::Dynamic`] is dynamic thresholding, section 2.3 of
    /// <https://arxiv.org/abs/2205.11487>. It is meant for models of pixels, whose samples are
    /// `-1.0..=1.0`. Latents reach about ±4.
    ///
    /// Default: [`ClipSample::None`].
    pub threshold: ClipSample,
}

/// The formula by which [`ClassifierFree`] merges the predictions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Method {
    /// Plain classifier-free guidance: [`guide`].
    #[default]
    Plain,
    /// Adaptive projected guidance.
    Apg(Apg),
    /// CFG-Zero*.
    ZeroStar(ZeroStar),
}

impl Default for ClassifierFree {
    fn default() -> Self {
        Self {
            scale: 7.5,
            rescale: 0.0,
            interval: [0.0, 1.0],
            method: Method::Plain,
            threshold: ClipSample::None,
        }
    }
}

impl From<f32> for ClassifierFree {
    /// Creates guidance with this scale and no other options.
    fn from(scale: f32) -> Self {
        Self {
            scale,
            ..Self::default()
        }
    }
}

impl ClassifierFree {
    /// Returns whether nothing but the scale is set.
    pub(crate) fn is_plain(&self) -> bool {
        *self
            == Self {
                scale: self.scale,
                ..Self::default()
            }
    }

    pub(super) fn uses_negative(&self, steps: usize) -> bool {
        self.scale > 1.0 && !self.on(Some(steps)).is_empty()
    }

    /// Returns the steps in which the predictions are merged, if the scale asks for it.
    fn on(&self, steps: Option<usize>) -> Range<usize> {
        let Range { start, end } = match steps {
            // The casts round down, as the shares are not negative.
            Some(steps) => {
                let [start, stop] = self.interval.map(|share| (share * steps as f64) as usize);
                start..stop
            }
            None => 0..usize::MAX,
        };
        match self.method {
            Method::ZeroStar(method) => start.max(method.zero_steps)..end,
            _ => start..end,
        }
    }

    /// Returns whether CFG-Zero* replaces the output of this step with zeros.
    fn zeroes(&self, index: usize) -> bool {
        matches!(self.method, Method::ZeroStar(method) if index < method.zero_steps)
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let Self {
            scale,
            rescale,
            interval: [start, stop],
            ..
        } = *self;
        let mut checks = vec![
            (
                scale.is_finite(),
                "guidance",
                "a finite number",
                scale.to_string(),
            ),
            (
                (0.0..=1.0).contains(&rescale),
                "guidance.rescale",
                "0 to 1",
                rescale.to_string(),
            ),
            (
                (0.0..1.0).contains(&start) && (start..=1.0).contains(&stop),
                "guidance.interval",
                "[start, stop] with 0 <= start < 1 and start <= stop <= 1",
                format!("[{start}, {stop}]"),
            ),
            (
                is_usable(self.threshold),
                "guidance.threshold",
                "a finite number above 0, and a ratio of 0 to 1",
                format!("{:?}", self.threshold),
            ),
        ];
        if let Method::Apg(method) = self.method {
            checks.push((
                method.is_usable(),
                "guidance.method.apg",
                "finite numbers, and a norm_threshold of 0 or more",
                format!("{method:?}"),
            ));
        }
        let wrong = checks.into_iter().filter(|(usable, ..)| !usable);
        wrong
            .map(|(_, what, expected, found)| Problem::new(what, expected, found))
            .collect()
    }
}

/// Returns whether a threshold has an effect. Samplers ignore a threshold that has none.
fn is_usable(threshold: ClipSample) -> bool {
    match threshold {
        ClipSample::None => true,
        ClipSample::Range(range) => range > 0.0 && range.is_finite(),
        ClipSample::Dynamic { ratio, max } => {
            (0.0..=1.0).contains(&ratio) && max > 0.0 && max.is_finite()
        }
    }
}

impl Guide for ClassifierFree {
    fn needs_unconditional(&self, at: &GuidanceStep<'_>) -> bool {
        (self.scale > 1.0 || at.both) && self.on(at.steps).contains(&at.rung.index)
    }

    fn merge(
        &self,
        conditional: &mut [f32],
        unconditional: &[f32],
        at: &GuidanceStep<'_>,
        memory: &mut Memory,
    ) {
        let before = (self.rescale > 0.0).then(|| deviation(conditional));
        match self.method {
            Method::Plain => guide(conditional, unconditional, self.scale),
            Method::Apg(method) => {
                method.merge(conditional, unconditional, self.scale, at, &mut memory.kept);
            }
            Method::ZeroStar(method) => method.merge(conditional, unconditional, self.scale),
        }
        if let Some(before) = before {
            rescale(conditional, before, self.rescale);
        }
    }

    fn finish(&self, denoised: &mut [f32], at: &GuidanceStep<'_>, memory: &mut Memory) {
        if self.zeroes(at.rung.index) {
            // The output of this step is zeros.
            let [skip, _] = at.coefficients();
            for (denoised, x) in denoised.iter_mut().zip(at.x) {
                *denoised = skip * x;
            }
        }
        self.threshold.apply(denoised, &mut memory.scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_interpolates_and_extrapolates() {
        for (scale, expected) in [(0.0, 1.0), (1.0, 3.0), (7.5, 16.0)] {
            let mut conditional = [3.0];
            guide(&mut conditional, &[1.0], scale);
            assert_eq!(conditional, [expected]);
        }
    }

    #[test]
    fn what_is_out_of_range_is_told() {
        let plain = ClassifierFree::default();
        assert!(plain.problems().is_empty());
        let apg = |apg| ClassifierFree {
            method: Method::Apg(apg),
            ..plain
        };
        assert!(apg(Apg::default()).problems().is_empty());
        let with_interval = |interval| ClassifierFree { interval, ..plain };
        let with_threshold = |threshold| ClassifierFree { threshold, ..plain };
        let wrong = [
            (
                ClassifierFree::from(f32::NAN),
                "guidance is NaN, expected a finite number",
            ),
            (
                ClassifierFree {
                    rescale: 1.5,
                    ..plain
                },
                "guidance.rescale is 1.5, expected 0 to 1",
            ),
            (
                with_interval([1.0, 1.0]),
                "guidance.interval is [1, 1], expected",
            ),
            (with_interval([0.5, 0.4]), "is [0.5, 0.4]"),
            (with_interval([0.0, f64::NAN]), "is [0, NaN]"),
            (with_interval([-0.1, 0.4]), "is [-0.1, 0.4]"),
            (
                with_threshold(ClipSample::Range(0.0)),
                "guidance.threshold is Range(0.0)",
            ),
            (
                with_threshold(ClipSample::Dynamic {
                    ratio: 1.1,
                    max: 1.0,
                }),
                "is Dynamic",
            ),
            (
                apg(Apg {
                    norm_threshold: -1.0,
                    ..Apg::default()
                }),
                "guidance.method.apg is Apg {",
            ),
            (
                apg(Apg {
                    momentum: f32::INFINITY,
                    ..Apg::default()
                }),
                "guidance.method.apg is Apg {",
            ),
        ];
        for (guidance, expected) in wrong {
            let problems = guidance.problems();
            assert_eq!(problems.len(), 1, "{guidance:?}");
            let problem = problems[0].to_string();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
