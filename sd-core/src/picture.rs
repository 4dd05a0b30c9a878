//! What a request gives back.

use std::{io, path::Path, sync::Arc, time::Duration};

use image::RgbImage;
use ndarray::{Array3, Array4, ArrayView3, Axis};
use sd_schedulers::Seeds;
use serde::{Serialize, Serializer};

use crate::{
    Conditioning, Infotext, files, infotext, model_id::ModelId, plan::Planned, preview::to_byte,
};

/// The pictures of a call.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Generation {
    /// Request by request, each of its count: at least one.
    pub pictures: Vec<Picture>,
}

impl Generation {
    /// The first picture.
    ///
    /// # Panics
    /// When the caller has taken all of [`pictures`](Self::pictures) out; as it was made there is at least one.
    pub fn image(&self) -> &RgbImage {
        &self.pictures[0].image
    }
}

/// One picture.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Picture {
    /// Which request of the call it answers, from 0.
    pub request: usize,
    /// Which picture of that request it is, from 0.
    pub index: usize,
    /// The seed really used.
    pub seed: u64,
    /// The picture.
    pub image: RgbImage,
    /// The picture before rounding, `[1, 3, height, width]`, −1 to 1.
    pub pixels: Array4<f32>,
    /// The finished latents, `[1, channels, h, w]`, in the scaling that the denoiser works in (before division by the
    /// VAE's `scaling_factor`).
    pub latents: Array4<f32>,
    /// The unit noise it began as, before scaling, of the same shape: the variation and all else that [`seeds`](Self::seeds) says is in it.
    pub initial_noise: Array4<f32>,
    /// The prompt as the model read it.
    pub prompt: Conditioning,
    /// The negative prompt; none where it is not looked at, as at guidance 1 and below.
    pub negative: Option<Conditioning>,
    /// How long it took.
    pub timings: Timings,
    pub(crate) made: Made,
}

impl Picture {
    /// How it was made, as WebUI writes it: what [`save_png`](Self::save_png) puts into the file. The first call of a
    /// pipeline reads the model's file through for its hash, if that is not known yet.
    pub fn infotext(&self) -> Infotext {
        infotext::of(self)
    }

    /// All that decided its noise.
    pub fn seeds(&self) -> Seeds {
        self.made.seeds
    }

    /// Writes a PNG with its [`infotext`](Self::infotext), whatever the path's extension, as [`files::write`] does.
    ///
    /// # Errors
    /// As `files::write`.
    pub fn save_png(&self, path: impl AsRef<Path>) -> io::Result<()> {
        files::write(path, &self.png()?)
    }

    /// Writes a PNG where no file is yet, as [`files::write_new`] does.
    ///
    /// # Errors
    /// As `files::write_new`.
    pub fn save_new_png(&self, path: impl AsRef<Path>) -> io::Result<()> {
        files::write_new(path, &self.png()?)
    }

    /// The bytes of that PNG.
    ///
    /// # Errors
    /// When the picture is too large for a PNG.
    pub fn png(&self) -> io::Result<Vec<u8>> {
        files::png(&self.image, Some(&self.infotext()))
    }
}

/// How long the parts of making a picture took.
///
/// With serde it is an object of seconds: `{"encode": 0.1, "steps": [0.5, 0.5], "decode": 1.5}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// Encoding its prompts; next to nothing where a picture before it had the same.
    #[serde(serialize_with = "seconds")]
    pub encode: Duration,
    /// Each step, of all pictures of its batch together, without observers.
    #[serde(serialize_with = "each_in_seconds")]
    pub steps: Vec<Duration>,
    /// Decoding its latents.
    #[serde(serialize_with = "seconds")]
    pub decode: Duration,
}

impl Timings {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.encode + self.steps.iter().sum::<Duration>() + self.decode
    }
}

pub(crate) fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn each_in_seconds<S: Serializer>(times: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(times.iter().map(Duration::as_secs_f64))
}

/// What a picture was made from, for its infotext.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub planned: Arc<Planned>,
    pub seeds: Seeds,
    pub batch_size: usize,
    /// From 0.
    pub batch_position: usize,
    pub model: Option<Arc<ModelId>>,
    /// The name of the pipeline's refiner.
    pub refiner: Option<Arc<str>>,
}

/// `[1, 3, h, w]` or `[3, h, w]` of −1 to 1 → 8 bits per channel, rounded to nearest. NaN becomes black.
pub(crate) fn to_rgb(pixels: ArrayView3<'_, f32>) -> RgbImage {
    let (_, height, width) = pixels.dim();
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        image::Rgb([0, 1, 2].map(|c| to_byte(pixels[[c, y as usize, x as usize]])))
    })
}

/// 8 bits per channel → `[1, 3, h, w]`, −1 to 1.
pub(crate) fn from_rgb(image: &RgbImage) -> Array4<f32> {
    let (width, height) = image.dimensions();
    let shape = (3, height as usize, width as usize);
    Array3::from_shape_fn(shape, |(c, y, x)| {
        f32::from(image.get_pixel(x as u32, y as u32).0[c]) / 127.5 - 1.0
    })
    .insert_axis(Axis(0))
}
