//! The beginning of a run: noise, and the pictures that it starts from.

use ndarray::{Array3, Array4, Axis, Ix3, Zip};
use sd_schedulers::{
    NoiseSource,
    noise::{NoiseError, Seeds},
};

use super::{Batch, blend::clean_share};
use crate::{
    GenerateError, MaskRule, MaskedContent, Posterior, Stage,
    plan::Planned,
    start::{Begin, Clean, EncodedMask, EncodedStart, StartBeside},
};

/// The pictures of a batch before the first step.
pub(super) struct Begun {
    /// The unit noise.
    pub initial_noise: Array4<f32>,
    /// The first latents.
    pub latents: Array4<f32>,
    /// The latents of the pictures that the run starts from, or zeros.
    pub clean: Array4<f32>,
    /// The source of the noise that the sampler adds to each picture.
    pub noise: Vec<BoxNoise>,
    /// The extra channels beside the latents of each picture, if they are made from its start.
    pub beside: Vec<Array4<f32>>,
}

/// The source of the noise that a sampler adds to one picture.
pub(super) type BoxNoise = Box<dyn NoiseSource + Send>;

impl Batch<'_> {
    /// Draws the noise of the pictures, and returns the first latents.
    pub(super) fn begin(&self, seeds: &[Seeds]) -> Result<Begun, GenerateError> {
        let shape = self.shape();
        let plan = self.plan();
        let [_, channels, height, width] = shape;
        let mut begun = Begun {
            initial_noise: Array4::zeros(shape),
            latents: Array4::zeros(shape),
            clean: Array4::zeros(shape),
            noise: Vec::with_capacity(seeds.len()),
            beside: Vec::new(),
        };
        for (i, &seeds) in seeds.iter().enumerate() {
            let (request, index) = self.pictures[i];
            let start = self.conditionings[i].0.start.as_deref();
            let mut drawn = Drawn::new(start, [1, channels, height, width]);
            let mut noise = begun.initial_noise.index_axis_mut(Axis(0), i);
            let values = noise.as_slice_mut();
            let values = values.expect("a row of a new array is contiguous");
            let source = drawn.source(plan, seeds, values).map_err(|error| {
                let stage = Stage::Noise { seed: seeds.seed };
                GenerateError::backend(stage)(error.into())
            })?;
            begun.noise.push(source);
            let request = &self.planned(request).request;
            if let Some(given) = &request.initial_noise {
                noise.assign(&given.index_axis(Axis(0), index));
            }
            let mut latents = begun.latents.index_axis_mut(Axis(0), i);
            latents.assign(&noise);
            latents *= plan.rungs.initial_scale();
            if let Some(start) = start {
                begun.beside.extend(drawn.beside(start));
                let Some(mut clean) = drawn.clean(start, index) else {
                    continue;
                };
                if let Some(mask) = &start.mask {
                    let content = masked_content(mask, seeds, clean.raw_dim());
                    let content = content.map_err(|error| {
                        let stage = Stage::Noise { seed: seeds.seed };
                        GenerateError::backend(stage)(error.into())
                    })?;
                    if let Some(content) = content {
                        let shares = mask.shares.broadcast(clean.raw_dim());
                        let shares = shares.expect("the mask has the size of the latents");
                        Zip::from(&mut clean).and(&content).and(shares).for_each(
                            |clean, content, share| {
                                *clean = *clean * (1.0 - share) + content * share;
                            },
                        );
                    }
                }
                begun.clean.index_axis_mut(Axis(0), i).assign(&clean);
                if plan.begin == Begin::Picture {
                    let multiplier = request.start.as_ref().map_or(1.0, |it| it.noise_multiplier);
                    latents *= multiplier;
                    match plan.noised_at {
                        None => {
                            let share = clean_share(&plan.rungs, plan.rungs.initial_scale());
                            latents.scaled_add(share, &clean);
                        }
                        Some(sigma) => {
                            // The sampler takes the latents, in the variance-preserving scaling, as
                            // if they had the noise level of its first rung.
                            latents *= sigma / plan.rungs.initial_scale();
                            latents.scaled_add(1.0, &clean);
                            let first = plan.rungs.sigmas()[0];
                            latents *= first.hypot(1.0) / sigma.hypot(1.0);
                        }
                    }
                }
            }
        }
        Ok(begun)
    }
}

/// The noise that is drawn for a picture beside the initial noise, to sample latents.
#[derive(Default)]
struct Drawn {
    /// Drawn before the initial noise. Empty if the run does not need it.
    clean: Array4<f32>,
    /// Drawn after the initial noise.
    beside: Array4<f32>,
}

impl Drawn {
    fn new(start: Option<&EncodedStart>, shape: [usize; 4]) -> Self {
        let Some(start) = start.filter(|start| start.posterior == Posterior::Sample) else {
            return Self::default();
        };
        let zeros = |drawn: bool| {
            if drawn {
                Array4::zeros(shape)
            } else {
                Array4::default([0; 4])
            }
        };
        Self {
            clean: zeros(matches!(start.clean, Some(Clean::Encoded(_)))),
            // diffusers' inpainting pipelines also draw it if the network does not take it. The
            // picture of an instruct-pix2pix model is not sampled.
            beside: zeros(match (&start.mask, &start.beside) {
                (Some(mask), None) => mask.rule == MaskRule::Diffusers,
                (mask, _) => mask.is_some(),
            }),
        }
    }

    /// Draws the noise, with the initial unit noise in `first`, and returns the source of the noise
    /// that the sampler adds between steps.
    fn source(
        &mut self,
        plan: &Planned,
        seeds: Seeds,
        first: &mut [f32],
    ) -> Result<BoxNoise, NoiseError> {
        let [height, width] = plan.latents;
        let channels = first.len() / (height * width);
        let contiguous = "a new array is contiguous";
        let before = self.clean.as_slice_mut().expect(contiguous);
        let mut going_on = seeds.first_after(before, [channels, height, width], first)?;
        if !self.beside.is_empty() {
            going_on.fill(self.beside.as_slice_mut().expect(contiguous));
        }
        if plan.sampler.needs().brownian {
            seeds.tree(&plan.tree, first.len())
        } else {
            Ok(going_on)
        }
    }

    /// Returns the latents of the picture that the run starts from, `[channels, h, w]`. `index` is
    /// the index of the picture in its request.
    fn clean(&self, start: &EncodedStart, index: usize) -> Option<Array3<f32>> {
        let latents = match start.clean.as_ref()? {
            Clean::Latents(latents) => {
                let index = index.min(latents.dim().0 - 1);
                return Some(latents.index_axis(Axis(0), index).to_owned());
            }
            Clean::Encoded(encoded) if self.clean.is_empty() => encoded.mode(),
            Clean::Encoded(encoded) => encoded.sample(self.clean.view()),
        };
        Some(latents.index_axis_move(Axis(0), 0))
    }

    /// Returns the extra channels beside the latents, `[1, channels, h, w]`.
    fn beside(&self, start: &EncodedStart) -> Option<Array4<f32>> {
        let (kind, encoded) = start.beside.as_ref()?;
        let (StartBeside::Masked, Some(mask)) = (kind, &start.mask) else {
            // An instruct-pix2pix model takes the latents in the autoencoder's own scaling.
            return Some(encoded.mean.clone());
        };
        let latents = match self.beside.is_empty() {
            true => encoded.mode(),
            false => encoded.sample(self.beside.view()),
        };
        let mask = mask.beside.view().insert_axis(Axis(0)).insert_axis(Axis(0));
        let joined = ndarray::concatenate(Axis(1), &[mask, latents.view()]);
        Some(joined.expect("the mask has the size of the latents"))
    }
}

/// Returns the latents `[channels, h, w]` that a run finds inside a mask. `None` if these are the
/// picture's.
fn masked_content(
    mask: &EncodedMask,
    seeds: Seeds,
    shape: Ix3,
) -> Result<Option<Array3<f32>>, NoiseError> {
    let mut content = Array3::zeros(shape);
    match mask.content {
        MaskedContent::Original | MaskedContent::Fill => return Ok(None),
        MaskedContent::Nothing => {}
        MaskedContent::Noise => {
            // Neither the variation nor another size changes this noise.
            let plain = Seeds {
                seed: seeds.seed,
                kind: seeds.kind,
                ..Seeds::default()
            };
            let (channels, height, width) = content.dim();
            let values = content.as_slice_mut();
            let values = values.expect("a new array is contiguous");
            plain.first([channels, height, width], values)?;
        }
    }
    Ok(Some(content))
}
