//! The second pass of a batch, in a larger size.

use std::{ops::ControlFlow, sync::Arc, time::Instant};

use image::RgbImage;
use ndarray::{Array4, ArrayView3, Axis, s};

use super::{Batch, Pass, Prompts, Sampled, picture_of};
use crate::{
    Event, GenerateError, Upscaler,
    picture::from_rgb,
    pixels::{Filter, latents::resize_latents, resize_window},
    plan::Second,
    start::{self, EncodedStart},
    upscale::{Enlarger, factor_to},
};

impl<'a> Batch<'a> {
    /// Enlarges the latents of the first pass, and redraws them.
    pub(super) fn second_pass(
        &self,
        second: &Second,
        first: Sampled,
        encoded: &mut Prompts,
        observer: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Sampled, GenerateError> {
        let ended = Instant::now();
        let stopped = |error| match self.stop.is_stopped() {
            true => self.stopped_after(&first, 0),
            false => error,
        };
        let enlarged = self.enlarged(second, &first).map_err(stopped)?;
        let networks = if second.planned.loras == self.plan().loras {
            None
        } else {
            let networks = self.parts.networks(&second.planned.loras, self.stop);
            Some(networks.map_err(stopped)?)
        };
        let networks = networks.as_ref().unwrap_or(self.networks);
        let pictures = self.pictures.clone();
        let batch = Batch::new(
            self.parts,
            networks,
            self.planned,
            Pass::Second,
            pictures,
            encoded,
            self.stop,
        );
        let mut batch = batch.map_err(stopped)?;
        for ((conditioning, _), latents) in batch.conditionings.iter_mut().zip(enlarged) {
            conditioning.start = Some(Arc::new(EncodedStart::second_pass(latents)));
        }
        batch.earlier = Some((first.started, first.steps.len()));
        let between = ended.elapsed();
        let mut sampled = batch.sampled(first.seeds, observer)?;
        sampled.initial_noise = first.initial_noise;
        sampled.steps.splice(..0, first.steps);
        sampled.calls = first.calls + sampled.calls;
        sampled.between = between;
        let prompts = batch.conditionings.into_iter();
        sampled.second_prompts = prompts.map(|(encoded, _)| encoded.model).collect();
        Ok(sampled)
    }

    /// Returns the enlarged latents of each picture after the first pass, `[1, channels, h, w]`.
    fn enlarged(
        &self,
        second: &Second,
        first: &Sampled,
    ) -> Result<Vec<Array4<f32>>, GenerateError> {
        let factor = self.parts.codec.factor();
        let [width, height] = second.sizes.covering.map(|side| side as usize / factor);
        let finite = |i: usize, values: &Array4<f32>| {
            let (request, picture) = self.pictures[i];
            match values.iter().all(|value| value.is_finite()) {
                true => Ok(()),
                false => Err(GenerateError::NotFinite {
                    request,
                    picture,
                    seed: first.seeds[i].seed,
                }),
            }
        };
        let one = |i: usize| {
            let latents = picture_of(&first.latents, i);
            finite(i, &latents)?;
            if let Upscaler::Latent(filter) = second.upscaler {
                return Ok(resize_latents(latents.view(), [height, width], filter));
            }
            let pixels = self.parts.pixels(latents.view(), self.stop)?;
            finite(i, &pixels)?;
            let picture = truncated(pixels.index_axis(Axis(0), 0));
            let (picture, filter) = match &second.upscaler {
                Upscaler::Latent(_) => unreachable!("latents are not decoded"),
                Upscaler::Pixels(filter) => (picture, *filter),
                Upscaler::Network(name) => {
                    let covering = second.sizes.covering;
                    (self.covering(picture, name, covering)?, Filter::Lanczos)
                }
            };
            // The codec takes no other sides than multiples of its factor.
            let window = [0, 0, (width * factor) as u32, (height * factor) as u32];
            let picture = resize_window(&picture, second.sizes.covering, window, filter);
            let codec = &*self.parts.codec;
            let encoded = start::encode(codec, &from_rgb(&picture), self.stop)?;
            Ok(encoded.mode())
        };
        let [to_height, to_width] = second.planned.latents;
        let middle = |latents: Array4<f32>| {
            let (.., height, width) = latents.dim();
            let (y, x) = ((height - to_height) / 2, (width - to_width) / 2);
            let middle = s![.., .., y..y + to_height, x..x + to_width];
            latents.slice(middle).to_owned()
        };
        let pictures = 0..self.pictures.len();
        pictures.map(|i| one(i).map(middle)).collect()
    }

    /// Enlarges a picture with a network until it is about as large as `size`, width and height.
    fn covering(
        &self,
        picture: RgbImage,
        name: &str,
        size: [u32; 2],
    ) -> Result<RgbImage, GenerateError> {
        let network = self.parts.called_upscaler(name, "hires.upscaler")?;
        match factor_to(picture.dimensions().into(), size) {
            Some(factor) => Enlarger::new(&**network).enlarge(&picture, factor, self.stop, |_| {}),
            None => Ok(picture),
        }
    }
}

/// Converts `[3, h, w]` in `-1.0..=1.0` to 8 bits per channel, rounded towards zero as in WebUI's
/// second pass.
fn truncated(pixels: ArrayView3<'_, f32>) -> RgbImage {
    let (_, height, width) = pixels.dim();
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        image::Rgb([0, 1, 2].map(|c| {
            let value = (pixels[[c, y as usize, x as usize]] + 1.0) / 2.0;
            (value.clamp(0.0, 1.0) * 255.0) as u8
        }))
    })
}
