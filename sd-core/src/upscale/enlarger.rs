//! Enlarging pictures with a network, and with filters, as WebUI does.
//!
//! Source: WebUI 1.10.1, `modules/upscaler.py` and `modules/upscaler_utils.py`.

use std::fmt;

use image::RgbImage;
use ndarray::{Array4, ArrayView3, Axis};

use super::Grid;
use crate::{
    GenerateError, PictureUpscaler, Problem, Problems, Stage, StopToken,
    pixels::{Filter, resize},
};

/// The largest picture, in pixels, that a network or a filter may return. Enlarging to this size by
/// Lanczos takes 3.7 GB.
const MOST_PIXELS: u64 = 1 << 28;

/// The largest scale of a network.
pub(crate) const MOST_SCALE: usize = 64;

/// The largest number of runs of a network for one picture.
const MOST_RUNS: usize = 3;

/// The multiple to which the sides of an enlarged picture are rounded down.
const UNIT: f64 = 8.0;

/// How a large picture goes through a network: in square tiles that overlap.
///
/// Larger tiles need more memory. Around each seam the network does not see what follows, so a
/// larger overlap hides seams better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tiling {
    /// The side of a tile in pixels, before it is enlarged. 0 stands for the whole picture at once.
    /// A picture that is narrower or lower than a tile has narrower or lower tiles. WebUI fills
    /// such tiles with black.
    ///
    /// Default: 192, WebUI's `ESRGAN_tile`.
    pub tile: u32,
    /// The number of pixels by which tiles overlap at least, before they are enlarged. Values of a
    /// tile's shorter side or more count as one less than that side.
    ///
    /// Default: 8, WebUI's `ESRGAN_tile_overlap`.
    pub overlap: u32,
}

impl Default for Tiling {
    fn default() -> Self {
        Self {
            tile: 192,
            overlap: 8,
        }
    }
}

impl Tiling {
    /// Enlarges whole pictures at once.
    pub const NONE: Self = Self {
        tile: 0,
        overlap: 0,
    };

    /// Returns the tiles of a picture.
    fn grid(self, picture: [u32; 2]) -> Result<Grid, Problem> {
        let tile = match self.tile {
            0 => picture,
            tile => picture.map(|side| side.min(tile)),
        };
        let most = tile[0].min(tile[1]).saturating_sub(1);
        Grid::checked(picture, tile, self.overlap.min(most))
    }
}

/// How far an [`Enlarger`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TileProgress {
    /// The number of tiles that are finished.
    pub done: u64,
    /// The number of tiles of all runs of the network.
    pub total: u64,
}

/// Enlarges pictures with a network, by any factor.
///
/// As in WebUI, the network runs up to three times, until the picture is at least as large as it
/// should be. Then Lanczos resizes it to the exact size. Lanczos enlarges it if three runs are not
/// enough. Between the runs, and after each tile, the picture is rounded to 8 bits.
///
/// - A factor of 1 runs the network once.
/// - Another factor does not run it if the rounded size is not larger than the picture. For
///   example, 100 pixels and a factor of 1.03 give 96.
/// - A network whose own factor is 1 runs once at most, and Lanczos does the rest. With a factor of
///   1 it shrinks sides to multiples of 8.
/// - Shrinking always uses Lanczos.
///
/// WebUI gives the networks blue, green and red instead of red, green and blue. The networks were
/// trained with red first, and get it here, so details differ a little from WebUI's.
///
/// ```
/// # fn example(network: &dyn sd_core::PictureUpscaler) -> Result<(), sd_core::GenerateError> {
/// use sd_core::{StopToken, image::RgbImage, upscale::Enlarger};
///
/// let picture = RgbImage::new(320, 240);
/// let enlarger = Enlarger::new(network);
/// let large = enlarger.enlarge(&picture, 2.5, &StopToken::new(), |progress| {
///     println!("tile {} of {}", progress.done, progress.total);
/// })?;
/// assert_eq!(large.dimensions(), (800, 600));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Enlarger<'a> {
    network: &'a dyn PictureUpscaler,
    tiling: Tiling,
}

impl fmt::Debug for Enlarger<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enlarger")
            .field("scale", &self.network.scale())
            .field("tiling", &self.tiling)
            .finish_non_exhaustive()
    }
}

impl<'a> Enlarger<'a> {
    /// Creates an enlarger with the [tiling](PictureUpscaler::tiling) of the network.
    pub fn new(network: &'a dyn PictureUpscaler) -> Self {
        Self {
            network,
            tiling: network.tiling(),
        }
    }

    /// Sets the tiles in which pictures go through the network.
    ///
    /// Default: the network's [own](PictureUpscaler::tiling).
    pub fn tiling(mut self, tiling: Tiling) -> Self {
        self.tiling = tiling;
        self
    }

    /// Returns a picture whose sides are `factor` times as long, rounded down to multiples of 8.
    /// `on_tile` is called after each tile. A factor below 1 makes the picture smaller, without the
    /// network.
    ///
    /// # Errors
    /// - [`GenerateError::Request`] if the picture is empty, if the factor is not a positive
    ///   number, if the result would have a side below 8 pixels, if a picture would have more than
    ///   2²⁸ pixels, or if the network's scale is not `1..=64`.
    /// - [`GenerateError::Backend`] if the network fails.
    /// - [`GenerateError::Stopped`] if `stop` is stopped.
    pub fn enlarge(
        &self,
        picture: &RgbImage,
        factor: f64,
        stop: &StopToken,
        mut on_tile: impl FnMut(TileProgress),
    ) -> Result<RgbImage, GenerateError> {
        let plan = self.plan(picture.dimensions().into(), factor)?;
        let total = plan.runs.iter().map(Grid::len).sum();
        let (mut done, mut large) = (0, None);
        for grid in &plan.runs {
            let before = large.as_ref().unwrap_or(picture);
            let after = grid.joined(plan.scale, |place| {
                let tile = self.tile(&grid.tile(before, place), stop)?;
                done += 1;
                on_tile(TileProgress { done, total });
                Ok::<_, GenerateError>(tile)
            })?;
            large = Some(after);
        }
        let large = large.as_ref().unwrap_or(picture);
        let [width, height] = plan.size;
        Ok(resize(large, width, height, Filter::Lanczos))
    }

    /// Returns the tiles of each run of the network, and the size of the result.
    ///
    /// # Errors
    /// Returns the problem with the factor or with the size of the picture.
    pub(crate) fn plan(&self, picture: [u32; 2], factor: f64) -> Result<Plan, Problem> {
        let size = final_size(picture, factor)?;
        let scale = self.network.scale();
        if !(1..=MOST_SCALE).contains(&scale) {
            let expected = format!("a network with a scale of 1 to {MOST_SCALE}");
            return Err(Problem::new("upscaler", expected, scale));
        }
        let scale = scale as u32;
        let (mut runs, mut now) = (Vec::new(), picture);
        for run in 0..MOST_RUNS {
            if now[0] >= size[0] && now[1] >= size[1] && (run > 0 || factor != 1.0) {
                break;
            }
            let [width, height] = now.map(|side| u64::from(side) * u64::from(scale));
            if width.saturating_mul(height) > MOST_PIXELS {
                let expected = format!("a network that returns at most {MOST_PIXELS} pixels");
                return Err(Problem::new(
                    "upscaler",
                    expected,
                    format!("{width}×{height}"),
                ));
            }
            runs.push(self.tiling.grid(now)?);
            now = now.map(|side| side * scale);
            if scale == 1 {
                break;
            }
        }
        Ok(Plan { scale, runs, size })
    }

    /// Runs the network once.
    fn tile(&self, tile: &RgbImage, stop: &StopToken) -> Result<RgbImage, GenerateError> {
        let stopped = || GenerateError::Stopped(Box::default());
        if stop.is_stopped() {
            return Err(stopped());
        }
        let _span = tracing::info_span!("upscale").entered();
        let scale = self.network.scale();
        let (width, height) = tile.dimensions();
        let expected = (1, 3, height as usize * scale, width as usize * scale);
        let failed = GenerateError::backend(Stage::Upscaler);
        let large = match self.network.upscale(to_shares(tile).view(), stop) {
            Ok(large) => large,
            Err(_) if stop.is_stopped() => return Err(stopped()),
            Err(error) => return Err(failed(error)),
        };
        if large.dim() != expected {
            let problem = format!(
                "the network returned {:?}, expected {expected:?}",
                large.dim()
            );
            return Err(failed(problem.into()));
        }
        if !large.iter().all(|value| value.is_finite()) {
            return Err(failed(
                "the enlarged picture contains NaN or infinity".into(),
            ));
        }
        Ok(to_bytes(large.index_axis(Axis(0), 0)))
    }
}

/// The runs of a network for a picture.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    scale: u32,
    /// The tiles of each run.
    runs: Vec<Grid>,
    /// The width and the height of the result.
    size: [u32; 2],
}

/// Returns the size of a picture that is enlarged by a factor, as WebUI computes it.
pub(super) fn final_size(picture: [u32; 2], factor: f64) -> Result<[u32; 2], Problem> {
    if picture.contains(&0) {
        let found = format!("{}×{}", picture[0], picture[1]);
        return Err(Problem::new("picture", "at least one pixel", found));
    }
    let sides = picture.map(|side| (f64::from(side) * factor / UNIT).floor() * UNIT);
    // `enlarged` makes a picture of the size before it is rounded.
    let pixels: f64 = picture
        .iter()
        .map(|&side| f64::from(side) * factor)
        .product();
    // The comparison is false for NaN.
    if !(sides.iter().all(|&side| side >= UNIT) && pixels <= MOST_PIXELS as f64) {
        let expected = format!(
            "a factor that gives sides of at least 8 pixels, and at most \
                                {MOST_PIXELS} pixels, from {}×{}",
            picture[0], picture[1]
        );
        return Err(Problem::new("factor", expected, factor));
    }
    Ok(sides.map(|side| side as u32))
}

/// Returns a picture whose sides are `factor` times as long, rounded down to multiples of 8, as
/// WebUI's upscalers "Lanczos" and "Nearest" make it. They resize with the filter to the rounded
/// product, and with Lanczos to the multiple of 8.
///
/// ```
/// use sd_core::{image::RgbImage, pixels::Filter, upscale::enlarged};
///
/// let large = enlarged(&RgbImage::new(100, 60), 1.5, Filter::Nearest)?;
/// assert_eq!(large.dimensions(), (144, 88));
/// # Ok::<(), sd_core::Problems>(())
/// ```
///
/// # Errors
/// Returns the problem if the picture is empty, if the factor is not a positive number, or if the
/// result would have a side below 8 pixels or more than 2²⁸ pixels.
pub fn enlarged(picture: &RgbImage, factor: f64, filter: Filter) -> Result<RgbImage, Problems> {
    let own = <[u32; 2]>::from(picture.dimensions());
    let size = final_size(own, factor).map_err(|problem| Problems(vec![problem]))?;
    let [width, height] = size;
    if own[0] >= width && own[1] >= height {
        return Ok(resize(picture, width, height, Filter::Lanczos));
    }
    let [wide, high] = own.map(|side| (f64::from(side) * factor) as u32);
    let large = resize(picture, wide, high, filter);
    Ok(resize(&large, width, height, Filter::Lanczos))
}

/// Returns the factor by which WebUI enlarges a picture to cover a size, or `None` if it is large
/// enough.
pub(crate) fn factor_to([width, height]: [u32; 2], to: [u32; 2]) -> Option<f64> {
    let [x, y] = [(to[0], width), (to[1], height)].map(|(to, own)| f64::from(to) / f64::from(own));
    Some(x.max(y)).filter(|&factor| factor > 1.0)
}

/// Converts 8 bits per channel to `[1, 3, h, w]` in `0.0..=1.0`.
fn to_shares(picture: &RgbImage) -> Array4<f32> {
    let (width, height) = picture.dimensions();
    let shape = (1, 3, height as usize, width as usize);
    Array4::from_shape_fn(shape, |(_, c, y, x)| {
        (f64::from(picture.get_pixel(x as u32, y as u32).0[c]) / 255.0) as f32
    })
}

/// Converts `[3, h, w]` in `0.0..=1.0` to 8 bits per channel, rounded to nearest, halves to even.
fn to_bytes(shares: ArrayView3<'_, f32>) -> RgbImage {
    let (_, height, width) = shares.dim();
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        image::Rgb([0, 1, 2].map(|c| {
            let share = shares[[c, y as usize, x as usize]].clamp(0.0, 1.0);
            (255.0 * share).round_ties_even() as u8
        }))
    })
}
