//! What a request gives back.

use std::{io, path::Path};

use image::RgbImage;
use ndarray::{Array4, ArrayView3, Axis};
use sd_text::PromptEmbedding;

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

    /// Writes a PNG, whatever the path's extension. The file appears when it is whole, replacing one of that name.
    ///
    /// # Errors
    /// When the folder cannot be written to or the disk is full; then no part of the file is left.
    pub fn save_png(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.temporary_png(path.as_ref())?.persist(path)?;
        Ok(())
    }

    /// As [`save_png`](Self::save_png), but a file that is already there stays and is an error of kind
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists).
    ///
    /// # Errors
    /// As `save_png`, and when the file exists.
    pub fn save_new_png(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.temporary_png(path.as_ref())?.persist_noclobber(path)?;
        Ok(())
    }

    fn temporary_png(&self, path: &Path) -> io::Result<tempfile::NamedTempFile> {
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        // A temporary file is the user's alone by default; a picture is as readable as the umask lets any file be.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder)?;
        self.image
            .write_to(&mut io::BufWriter::new(&mut file), image::ImageFormat::Png)
            .map_err(|error| match error {
                image::ImageError::IoError(error) => error,
                other => io::Error::other(other),
            })?;
        Ok(file)
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
