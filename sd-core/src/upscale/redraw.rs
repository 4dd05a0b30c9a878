//! Redrawing a large picture tile by tile: WebUI's script "SD upscale".
//!
//! Source: WebUI 1.10.1, `scripts/sd_upscale.py`.

use std::{fmt, ops::ControlFlow};

use image::RgbImage;

use super::{Enlarger, Grid, enlarged, final_size};
use crate::{
    Event, GenerateError, Infotext, Picture, Pipeline, Problem, Problems, Request, Start,
    StartFrom, StopToken, Upscaler,
    infotext::keys,
    plan::{Planned, plan},
    size::unit,
};

/// The largest number of tiles of a call, over all pictures.
const MOST_TILES: u64 = 10_000;

/// The largest number of pixels of all tiles of a call. The tiles before and after redrawing take
/// 1.5 GiB.
const MOST_PIXELS: u64 = 1 << 28;

/// How [`Pipeline::upscale_by_tiles`] enlarges a picture and divides it.
///
/// ```
/// use sd_core::{Upscaler, pixels::Filter, upscale::TiledRedraw};
///
/// let redraw = TiledRedraw::new(2.0)
///     .upscaler(Upscaler::Pixels(Filter::Lanczos))
///     .overlap(64);
/// # assert_eq!(redraw.overlap, 64);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TiledRedraw {
    /// The factor of both sides, a positive number. The sides of the result are rounded down to
    /// multiples of 8. WebUI calls it "Scale Factor".
    pub factor: f64,
    /// How the picture is enlarged, by a filter or by a network. Latents cannot be scaled here.
    ///
    /// Default: `None`. The picture keeps its size and [`factor`](Self::factor) has no effect,
    /// WebUI's "None".
    pub upscaler: Option<Upscaler>,
    /// The number of pixels by which tiles overlap at least, less than a side of a tile. WebUI
    /// calls it "Tile overlap".
    ///
    /// Default: 64, as in WebUI.
    pub overlap: u32,
}

impl TiledRedraw {
    /// Creates the options for a factor, with the defaults of all others. The picture is not
    /// enlarged unless an [`upscaler`](Self::upscaler) is set too.
    pub fn new(factor: f64) -> Self {
        Self {
            factor,
            upscaler: None,
            overlap: 64,
        }
    }

    /// Sets [`upscaler`](Self::upscaler).
    pub fn upscaler(mut self, upscaler: Upscaler) -> Self {
        self.upscaler = Some(upscaler);
        self
    }

    /// Sets [`overlap`](Self::overlap).
    pub fn overlap(mut self, pixels: u32) -> Self {
        self.overlap = pixels;
        self
    }
}

/// A picture that was redrawn in tiles.
#[derive(Clone)]
pub struct TiledPicture {
    /// The picture as 8-bit RGB.
    pub image: RgbImage,
    /// The seed of the first tile. Each further tile has the next seed.
    pub seed: u64,
    first: Box<Picture>,
    entries: Vec<(String, String)>,
}

impl TiledPicture {
    /// Returns how the picture was made: the infotext of the first tile, with WebUI's keys
    /// `SD upscale overlap` and `SD upscale upscaler`.
    ///
    /// The first call for a pipeline may read the whole model file, to compute its hash.
    pub fn infotext(&self) -> Infotext {
        let mut infotext = self.first.infotext();
        infotext.insert(self.entries.iter().cloned());
        infotext
    }
}

impl fmt::Debug for TiledPicture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TiledPicture")
            .field("size", &self.image.dimensions())
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Enlarges a picture, and redraws it tile by tile by image to image, so that the result may be
    /// larger than the pipeline can draw at once. It is WebUI's script "SD upscale".
    ///
    /// The picture is the [start](Request::start) of the request, whose other options apply to each
    /// tile. The tiles have the [size](Request::size) of the request, or of the
    /// [pipeline](Self::default_size). If the enlarged picture is smaller, so are the tiles. WebUI
    /// fills such a tile with black instead, and lets it fade in from black. Each tile has its own
    /// seed, counted up from the request's. With a strength of 0.2 to 0.4 the tiles get new details
    /// and still fit each other. For each further picture of [`count`](Request::count), all seeds
    /// are one higher.
    ///
    /// Each tile is drawn with all [controls](Request::controls) as they are. A control whose
    /// picture is [`ControlPicture::Start`](crate::ControlPicture::Start) reads the tile.
    ///
    /// `observer` receives the events of each tile. The index of the request in an event is the
    /// index of the tile. No event comes while a network enlarges the picture. `stop` ends that
    /// work too.
    ///
    /// ```
    /// # fn example(
    /// #     pipeline: &sd_core::Pipeline,
    /// #     picture: sd_core::image::RgbImage,
    /// # ) -> Result<(), sd_core::GenerateError> {
    /// use std::ops::ControlFlow;
    /// use sd_core::{Request, Start, StopToken, Upscaler, upscale::TiledRedraw};
    ///
    /// let request = Request::new("a fox, fine fur").start(Start::picture(picture).strength(0.3));
    /// let redraw = TiledRedraw::new(2.0).upscaler(Upscaler::Network("4x-sharp".to_owned()));
    /// let stop = StopToken::new();
    /// let large = pipeline.upscale_by_tiles(&request, &redraw, &stop, |_| {
    ///     ControlFlow::Continue(())
    /// })?;
    /// println!("{:?}", large[0].image.dimensions());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`run`](Self::run). [`GenerateError::Request`] also reports a start
    /// that is no whole picture, an upscaler that scales latents or is unknown, an overlap or a
    /// factor that cannot be used, and more than 10,000 tiles or 2²⁸ pixels in all tiles.
    /// All of these are reported before the picture is enlarged.
    pub fn upscale_by_tiles(
        &self,
        request: &Request,
        redraw: &TiledRedraw,
        stop: &StopToken,
        mut observer: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<TiledPicture>, GenerateError> {
        let (picture, planned, grid) = self.check_redraw(request, redraw)?;
        let picture = self.enlarged_for(picture, redraw, stop)?;
        let seed = planned.seeds.seed;
        let work = tiles(request, &picture, &grid, seed);
        let mut found: Vec<Option<RgbImage>> = vec![None; work.len()];
        let mut first: Vec<Option<Box<Picture>>> = vec![None; request.count];
        let of_picture = grid.len() as usize;
        self.run(&work, stop, |event| {
            if let Event::Picture(tile) = &event {
                let index = tile.request;
                found[index] = Some(tile.image.clone());
                if index % of_picture == 0 {
                    first[index / of_picture] = Some(tile.clone());
                }
            }
            observer(event)
        })?;
        let mut found = found
            .into_iter()
            .map(|tile| tile.expect("all tiles were drawn"));
        let joined = first.into_iter().zip(0..).map(|(first, index)| {
            let next = |_| Ok::<_, GenerateError>(found.next().expect("a tile for each place"));
            Ok(TiledPicture {
                image: grid.joined(1, next)?,
                seed: seed.wrapping_add(index),
                first: first.expect("the first tile was drawn"),
                entries: entries(redraw),
            })
        });
        joined.collect()
    }

    /// Checks everything that can be checked before the picture is enlarged. Returns the picture,
    /// the plan of a tile, and the tiles of the enlarged picture.
    fn check_redraw(
        &self,
        request: &Request,
        redraw: &TiledRedraw,
    ) -> Result<(RgbImage, Planned, Grid), GenerateError> {
        let mut problems = Vec::new();
        let start = request.start.clone().unwrap_or_else(|| {
            problems.push(Problem::new("start", "a picture", "none"));
            Start::picture(RgbImage::new(8, 8))
        });
        if start.mask.is_some() {
            let expected = "nothing, because the whole picture is redrawn";
            problems.push(Problem::new("start.mask", expected, "given"));
        }
        if matches!(start.from, StartFrom::Latents(_)) {
            problems.push(Problem::new("start.from", "a picture", "latents"));
        }
        if let Some(noise) = &request.initial_noise {
            let expected = "nothing, because each tile has its own noise";
            problems.push(Problem::new(
                "initial_noise",
                expected,
                format!("{:?}", noise.dim()),
            ));
        }
        match &redraw.upscaler {
            Some(Upscaler::Network(name)) => {
                problems.extend(self.parts.called_upscaler(name, "upscaler").err());
            }
            Some(Upscaler::Latent(_)) => {
                let expected = "a filter of pixels or a network";
                problems.push(Problem::new("upscaler", expected, "one of latents"));
            }
            Some(Upscaler::Pixels(_)) | None => {}
        }
        Problems::check(problems)?;
        let picture = start.rgb().ok_or_else(|| {
            let expected = "a picture of shape (h, w, 3)";
            Problem::new("start.from", expected, "another array")
        })?;
        let size = self.parts.size;
        let size = request.size.unwrap_or([size.width(), size.height()]);
        let blank = RgbImage::new(8, 8);
        let tile = tile_request(request, blank, size, request.seed);
        // The number of pictures is checked with everything else.
        let tile = Request {
            count: request.count,
            ..tile
        };
        let planned = plan(&self.parts, &[tile])?.remove(0);
        let planned = std::sync::Arc::into_inner(planned).expect("nothing else holds the plan");
        let mut large = picture.dimensions().into();
        if redraw.upscaler.is_some() {
            large = final_size(large, redraw.factor)?;
        }
        let inputs = self.parts.denoiser.inputs();
        let unit = unit(self.parts.codec.factor() * inputs.patch) as u32;
        let size = [planned.size.width(), planned.size.height()];
        let grid = grid(large, size, unit, redraw.overlap, request.count)?;
        Ok((picture, planned, grid))
    }

    /// Returns a picture, enlarged.
    fn enlarged_for(
        &self,
        picture: RgbImage,
        redraw: &TiledRedraw,
        stop: &StopToken,
    ) -> Result<RgbImage, GenerateError> {
        match &redraw.upscaler {
            None | Some(Upscaler::Latent(_)) => Ok(picture),
            Some(Upscaler::Pixels(filter)) => Ok(enlarged(&picture, redraw.factor, *filter)?),
            Some(Upscaler::Network(name)) => {
                let network = self.parts.called_upscaler(name, "upscaler")?;
                Enlarger::new(&**network).enlarge(&picture, redraw.factor, stop, |_| {})
            }
        }
    }
}

/// Returns the tiles of a picture, of which `count` pictures are made. They are no larger than the
/// picture, and their sides are multiples of `unit`.
fn grid(
    picture: [u32; 2],
    tile: [u32; 2],
    unit: u32,
    overlap: u32,
    count: usize,
) -> Result<Grid, Problem> {
    Grid::checked(picture, tile, overlap)?;
    let side = |axis: usize| tile[axis].min((picture[axis] / unit * unit).max(unit));
    let tile = [side(0), side(1)];
    // A tile that became smaller may be smaller than the overlap.
    let grid = Grid::checked(picture, tile, overlap.min(tile[0].min(tile[1]) - 1))?;
    let tiles = grid.len().saturating_mul(count as u64);
    if tiles > MOST_TILES {
        let expected = format!("at most {MOST_TILES} tiles");
        return Err(Problem::new("size", expected, tiles));
    }
    let of_tile = u64::from(tile[0]) * u64::from(tile[1]);
    let pixels = tiles.saturating_mul(of_tile);
    if pixels > MOST_PIXELS {
        let expected = format!("at most {MOST_PIXELS} pixels in all tiles");
        return Err(Problem::new("size", expected, pixels));
    }
    Ok(grid)
}

/// Returns the requests of all tiles, picture by picture.
fn tiles(request: &Request, picture: &RgbImage, grid: &Grid, seed: u64) -> Vec<Request> {
    let size = grid.tile_size();
    let tile = |place| grid.tile(picture, place);
    let of_first: Vec<_> = grid
        .places()
        .zip(0..)
        .map(|(place, index)| {
            let seed = seed.wrapping_add(index);
            tile_request(request, tile(place), size, Some(seed))
        })
        .collect();
    let of_picture = |index: u64| {
        of_first.iter().map(move |tile| Request {
            seed: tile.seed.map(|seed| seed.wrapping_add(index)),
            ..tile.clone()
        })
    };
    (0..request.count as u64).flat_map(of_picture).collect()
}

/// Returns the request of a tile.
fn tile_request(request: &Request, tile: RgbImage, size: [u32; 2], seed: Option<u64>) -> Request {
    let mut start = request.start.clone();
    if let Some(start) = &mut start {
        start.from = Start::picture(tile).from;
    }
    Request {
        start,
        size: Some(size),
        seed,
        count: 1,
        ..request.clone()
    }
}

/// Returns WebUI's entries of the script.
fn entries(redraw: &TiledRedraw) -> Vec<(String, String)> {
    let upscaler = redraw.upscaler.as_ref();
    let name = match upscaler.map(|upscaler| (upscaler, upscaler.webui())) {
        None => "None".to_owned(),
        Some((_, Some(name))) => name.to_owned(),
        Some((upscaler, None)) => format!("{upscaler:?}"),
    };
    vec![
        (
            keys::SD_UPSCALE_OVERLAP.to_owned(),
            redraw.overlap.to_string(),
        ),
        (keys::SD_UPSCALE_UPSCALER.to_owned(), name),
    ]
}
