//! The pictures that a request gives, and how long they took.

use std::{io, path::Path, sync::Arc, time::Duration};

use image::RgbImage;
use ndarray::{Array3, Array4, ArrayView3, Axis};
use sd_schedulers::noise::Seeds;
use serde::{Serialize, Serializer};

use crate::{
    Conditioning, Infotext, NetworkCalls, Seamless, files, infotext,
    lora::Lora,
    model_id::ModelId,
    plan::{Halves, Planned},
    preview::to_byte,
};

/// The pictures of a call.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Generation {
    /// The pictures, request by request. There is at least one.
    pub pictures: Vec<Picture>,
}

impl Generation {
    /// Returns the first picture.
    ///
    /// # Panics
    /// Panics if the caller has removed all [`pictures`](Self::pictures).
    pub fn image(&self) -> &RgbImage {
        &self.pictures[0].image
    }
}

/// A finished picture.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Picture {
    /// The index of the request in the call, from 0.
    pub request: usize,
    /// The index of the picture in its request, from 0.
    pub index: usize,
    /// The seed that was used.
    pub seed: u64,
    /// The picture as 8-bit RGB.
    pub image: RgbImage,
    /// The picture before it was rounded to 8 bits, `[1, 3, height, width]`, `-1.0..=1.0`. After
    /// [color correction](crate::Start::color_correction), or if only the region of a
    /// [mask](crate::Mask::only_masked) was drawn, the drawn pixels are rounded to 8 bits already,
    /// except where a gray mask mixes them with the original.
    pub pixels: Array4<f32>,
    /// The finished latents, `[1, channels, h, w]`, in the scaling that the denoiser works in. The
    /// codec has yet to divide them by the VAE's `scaling_factor`. They are the latents at the end
    /// of the run, before pixels of the original are [put back](crate::Mask::keep_original).
    pub latents: Array4<f32>,
    /// The unit Gaussian noise that the picture started from, before scaling,
    /// `[1, channels, h, w]`. It is the request's
    /// [`initial_noise`](crate::Request::initial_noise) if that was set. Otherwise the variation
    /// and everything else that [`seeds`](Self::seeds) describes is mixed in.
    pub initial_noise: Array4<f32>,
    /// The prompt as the denoiser received it.
    pub prompt: Conditioning,
    /// The negative prompt as the denoiser received it. `None` if it was not used, as at a guidance
    /// scale of 1 or less.
    pub negative: Option<Conditioning>,
    /// How long the picture took.
    pub timings: Timings,
    pub(crate) made: Made,
}

impl Picture {
    /// Returns how the picture was made, in the format of WebUI. [`save_png`](Self::save_png)
    /// writes it into the file.
    ///
    /// The first call for a pipeline may read the whole model file, to compute its hash.
    pub fn infotext(&self) -> Infotext {
        infotext::of(self)
    }

    /// Returns everything that determined the noise of the picture.
    pub fn seeds(&self) -> Seeds {
        self.made.seeds
    }

    /// Writes a PNG with its [`infotext`](Self::infotext), as [`files::write`] does. The extension
    /// of the path does not matter.
    ///
    /// # Errors
    /// Returns the errors of [`png`](Self::png) and of `files::write`.
    pub fn save_png(&self, path: impl AsRef<Path>) -> io::Result<()> {
        files::write(path, &self.png()?)
    }

    /// Writes a PNG with its [`infotext`](Self::infotext) unless the file exists, as
    /// [`files::write_new`] does.
    ///
    /// # Errors
    /// Returns the errors of [`png`](Self::png) and of `files::write_new`.
    pub fn save_new_png(&self, path: impl AsRef<Path>) -> io::Result<()> {
        files::write_new(path, &self.png()?)
    }

    /// Returns the bytes of a PNG with its [`infotext`](Self::infotext).
    ///
    /// # Errors
    /// Returns an error if the picture is too large for a PNG.
    pub fn png(&self) -> io::Result<Vec<u8>> {
        files::png(&self.image, Some(&self.infotext()))
    }
}

/// How long the stages of making a picture took, and how often the network was called.
///
/// With serde it is an object with a key for each field, such as
/// `{"encode": 0.1, "steps": [0.5, 0.5], "calls": {"full": 4, …}, "between": 0.0, "decode": 1.5}`.
/// Times are in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// The time to encode the prompts, and the picture that the run starts from. Almost zero if an
    /// earlier picture of the call had the same ones.
    #[serde(serialize_with = "seconds")]
    pub encode: Duration,
    /// The time of each step, for all pictures of the batch together, without the observer.
    #[serde(serialize_with = "each_in_seconds")]
    pub steps: Vec<Duration>,
    /// The calls of the network in all steps of both passes. They are the same for all pictures of
    /// the batch.
    pub calls: NetworkCalls,
    /// The time between the two passes, if there is a [second](crate::Hires) one: to enlarge the
    /// picture, to encode the prompts of the second pass and to load its LoRAs. Otherwise zero.
    #[serde(serialize_with = "seconds")]
    pub between: Duration,
    /// The time to decode the latents, and to finish the picture.
    #[serde(serialize_with = "seconds")]
    pub decode: Duration,
}

impl Timings {
    /// Returns the sum of all times.
    pub fn total(&self) -> Duration {
        self.encode + self.steps.iter().sum::<Duration>() + self.between + self.decode
    }
}

pub(crate) fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn each_in_seconds<S: Serializer>(times: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(times.iter().map(Duration::as_secs_f64))
}

/// The facts of a picture that its infotext reports.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub planned: Arc<Planned>,
    /// The prompts of the second pass.
    pub second_prompts: Option<Halves>,
    pub seeds: Seeds,
    pub batch_size: usize,
    /// The position of the picture in its batch, from 0.
    pub batch_position: usize,
    pub model: Option<Arc<ModelId>>,
    /// The LoRAs that are merged into the pipeline's networks.
    pub loras: Arc<[Arc<Lora>]>,
    /// The names and hashes of the LoRAs that the prompts call, each as WebUI writes it. A picture
    /// does not keep the library, which may keep networks.
    pub called: Vec<String>,
    /// The name of the pipeline's refiner.
    pub refiner: Option<Arc<str>>,
    /// The axes along which the denoiser draws seamless pictures.
    pub seamless: Seamless,
    /// How the codec approximates the model's autoencoder.
    pub decoder: Option<&'static str>,
    /// The number format that the denoiser computes in, if it is not f32.
    pub precision: Option<&'static str>,
}

/// Converts `[3, h, w]` in `-1.0..=1.0` to 8 bits per channel, rounded to nearest. NaN becomes
/// black.
pub(crate) fn to_rgb(pixels: ArrayView3<'_, f32>) -> RgbImage {
    let (_, height, width) = pixels.dim();
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        image::Rgb([0, 1, 2].map(|c| to_byte(pixels[[c, y as usize, x as usize]])))
    })
}

/// Converts 8 bits per channel to `[1, 3, h, w]` in `-1.0..=1.0`.
pub(crate) fn from_rgb(image: &RgbImage) -> Array4<f32> {
    let (width, height) = image.dimensions();
    let shape = (3, height as usize, width as usize);
    Array3::from_shape_fn(shape, |(c, y, x)| {
        f32::from(image.get_pixel(x as u32, y as u32).0[c]) / 127.5 - 1.0
    })
    .insert_axis(Axis(0))
}
