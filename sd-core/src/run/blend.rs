//! What keeps the latents outside of masks.

use std::time::Duration;

use ndarray::Array2;
use sd_schedulers::{Rungs, ladders::NoisePath};

use super::{Batch, begun::Begun};
use crate::{MaskRule, plan::Encoded};

/// Keeps latents outside of masks.
pub(super) struct Blend<'a> {
    /// The mask of each picture, `[h, w]`: the share that is redrawn.
    masks: Vec<Array2<f32>>,
    rule: MaskRule,
    /// Whether the sampler is one that WebUI runs on timesteps.
    of_timesteps: bool,
    rungs: &'a Rungs,
    begun: &'a Begun,
}

impl<'a> Batch<'a> {
    /// Returns what keeps the latents outside the masks, if the pictures have masks.
    pub(super) fn blend<'b>(&self, begun: &'b Begun) -> Option<Blend<'b>>
    where
        'a: 'b,
    {
        let of = |(encoded, _): &(Encoded, Duration)| {
            let mask = encoded.start.as_deref()?.mask.as_ref();
            mask.filter(|mask| mask.blends)
                .map(|mask| mask.shares.clone())
        };
        let plan = self.plan();
        let mask = plan.request.start.as_ref()?.mask.as_ref()?;
        Some(Blend {
            masks: self.conditionings.iter().map(of).collect::<Option<_>>()?,
            rule: mask.rule,
            of_timesteps: plan.of_timesteps,
            rungs: &plan.rungs,
            begun,
        })
    }
}

impl Blend<'_> {
    /// Replaces `x` outside the masks by `clean_share · original + noise_share · noise`. `redrawn`
    /// converts the values of the masks to the share of `x`.
    fn mix(
        &self,
        x: &mut [f32],
        [clean_share, noise_share]: [f32; 2],
        redrawn: impl Fn(f32) -> f32,
    ) {
        let Begun {
            clean,
            initial_noise,
            ..
        } = self.begun;
        let originals = clean.iter().zip(initial_noise);
        let channels = clean.dim().1;
        let masks = self.masks.iter();
        let masks = masks.flat_map(|mask| std::iter::repeat_n(mask, channels).flatten());
        for ((x, (clean, noise)), &mask) in x.iter_mut().zip(originals).zip(masks) {
            let mask = redrawn(mask);
            *x = mask * *x + (1.0 - mask) * (clean_share * clean + noise_share * noise);
        }
    }

    /// Acts after step `index` of `total` steps, with the latents `x` at the noise level `sigma`.
    pub fn after_step(&self, index: usize, total: usize, sigma: f32, x: &mut [f32]) {
        let shares = [clean_share(self.rungs, sigma), sigma];
        match self.rule {
            MaskRule::Diffusers => self.mix(x, shares, |mask| mask),
            MaskRule::WebUi => {}
            MaskRule::Differential => {
                let next = index + 1;
                if next < total {
                    let passed = next as f32 / total as f32;
                    self.mix(x, shares, |mask| f32::from(u8::from(1.0 - mask <= passed)));
                }
            }
        }
    }

    /// Returns the latents that the network sees instead of `x` at the noise level `sigma`.
    pub fn seen(&self, x: &[f32], sigma: f32) -> Option<Vec<f32>> {
        if self.rule != MaskRule::WebUi || !self.of_timesteps {
            return None;
        }
        let mut seen = x.to_vec();
        // The original without noise, in the variance-preserving scaling of these samplers.
        let share = match self.rungs.path() {
            NoisePath::Flow => 1.0,
            NoisePath::Exploding => sigma.hypot(1.0),
        };
        self.mix(&mut seen, [share, 0.0], |mask| mask);
        Some(seen)
    }

    /// Acts on the denoised latents of a call.
    pub fn denoised(&self, denoised: &mut [f32]) {
        if self.rule == MaskRule::WebUi && !self.of_timesteps {
            self.mix(denoised, [1.0, 0.0], |mask| mask);
        }
    }

    /// Acts on the finished latents.
    pub fn last(&self, latents: &mut [f32]) {
        if self.rule == MaskRule::WebUi {
            self.mix(latents, [1.0, 0.0], |mask| mask);
        }
    }
}

/// Returns the share of the clean latents in noisy ones at a noise level.
pub(super) fn clean_share(rungs: &Rungs, sigma: f32) -> f32 {
    match rungs.path() {
        NoisePath::Flow => 1.0 - sigma,
        NoisePath::Exploding => 1.0,
    }
}
