//! What a request gives back.

use std::{io, path::Path};

use image::RgbImage;
use ndarray::{Array4, ArrayView3, Axis};
use sd_text::PromptEmbedding;

use crate::files;

/// The pictures of a request, and what they were made from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Generation {
    /// One for each of the request's count, at least one.
    pub pictures: Vec<Picture>,
    /// The prompt as the model read it; tells what was cut off if it was too long.
    pub prompt: PromptEmbedding,
    /// The negative prompt; none at guidance 1 and below, where it is not looked at.
    pub negative: Option<PromptEmbedding>,
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
    /// The seed really used.
    pub seed: u64,
    /// The picture.
    pub image: RgbImage,
    /// The picture before rounding, `[1, 3, height, width]`, −1 to 1.
    pub pixels: Array4<f32>,
    /// The finished latents, `[1, channels, h, w]`, in the scaling that the denoiser works in (before division by the
    /// VAE's `scaling_factor`).
    pub latents: Array4<f32>,
    /// The unit noise it began as, before scaling, of the same shape.
    pub initial_noise: Array4<f32>,
}

impl Picture {
    pub(crate) fn new(
        seed: u64,
        mut pixels: Array4<f32>,
        latents: Array4<f32>,
        initial_noise: Array4<f32>,
    ) -> Self {
        pixels.mapv_inplace(|v| v.clamp(-1.0, 1.0));
        let image = to_rgb(pixels.index_axis(Axis(0), 0));
        Self {
            seed,
            image,
            pixels,
            latents,
            initial_noise,
        }
    }

    /// Writes a PNG, whatever the path's extension, as [`files::write`] does.
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

    fn png(&self) -> io::Result<Vec<u8>> {
        let mut png = io::Cursor::new(Vec::new());
        self.image
            .write_to(&mut png, image::ImageFormat::Png)
            .map_err(io::Error::other)?;
        Ok(png.into_inner())
    }
}

/// `[3, h, w]`, −1 to 1, → 8 bits per channel, rounded to nearest. NaN becomes black.
fn to_rgb(pixels: ArrayView3<'_, f32>) -> RgbImage {
    let (_, height, width) = pixels.dim();
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let byte =
            |c| ((pixels[[c, y as usize, x as usize]] / 2.0 + 0.5) * 255.0).round_ties_even() as u8;
        image::Rgb([byte(0), byte(1), byte(2)])
    })
}
