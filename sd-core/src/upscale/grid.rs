//! Pictures in tiles that overlap: WebUI's `split_grid` and `combine_grid`.
//!
//! Source: WebUI 1.10.1, `modules/images.py`; Pillow 13.0.0, `src/libImaging/Paste.c`.

use image::{Rgb, RgbImage};

use crate::{Problem, Problems, pixels::alpha};

/// Tiles of equal size that cover a picture and overlap.
///
/// The tiles are spread evenly, so most of them overlap by more than [`overlap`](Self::overlap).
/// When the tiles are joined, each one covers its left and upper neighbors, and only its first
/// `overlap` columns and rows fade in.
///
/// If the picture is smaller than a tile, the tile begins at a negative place, and what lies
/// outside the picture is black. Such a tile fades in too, from black, so the joined picture is
/// dark at its left or upper edge, as in WebUI. Use tiles that are not larger than the picture to
/// avoid it.
///
/// ```
/// use sd_core::{image::{Rgb, RgbImage}, upscale::Grid};
///
/// let picture = RgbImage::from_fn(100, 64, |x, y| Rgb([x as u8, y as u8, 0]));
/// let grid = Grid::new([100, 64], [64, 64], 16)?;
/// assert_eq!(grid.places().collect::<Vec<_>>(), [[0, 0], [36, 0]]);
/// // Tiles that nothing has changed give the picture again.
/// let joined = grid.joined(1, |place| Ok::<_, ()>(grid.tile(&picture, place)));
/// assert_eq!(joined, Ok(picture));
/// # Ok::<(), sd_core::Problems>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    picture: [u32; 2],
    tile: [u32; 2],
    overlap: u32,
    counts: [u32; 2],
}

impl Grid {
    /// Divides a picture into tiles. Sizes are a width and a height in pixels.
    ///
    /// # Errors
    /// Returns the problem if a side is 0 or above 2³⁰, or if `overlap` is not below both sides of
    /// a tile.
    pub fn new(picture: [u32; 2], tile: [u32; 2], overlap: u32) -> Result<Self, Problems> {
        Self::checked(picture, tile, overlap).map_err(|problem| Problems(vec![problem]))
    }

    /// Like [`new`](Self::new).
    pub(super) fn checked(
        picture: [u32; 2],
        tile: [u32; 2],
        overlap: u32,
    ) -> Result<Self, Problem> {
        const MOST: u32 = 1 << 30;
        for (field, size) in [("picture", picture), ("tile", tile)] {
            if size.iter().any(|side| !(1..=MOST).contains(side)) {
                let found = format!("{}×{}", size[0], size[1]);
                return Err(Problem::new(field, format!("sides of 1 to {MOST}"), found));
            }
        }
        let most = tile[0].min(tile[1]) - 1;
        if overlap > most {
            let expected = format!("at most {most}, less than a side of a tile");
            return Err(Problem::new("overlap", expected, overlap));
        }
        let count = |axis: usize| {
            let (whole, step) = (picture[axis], tile[axis] - overlap);
            whole.saturating_sub(overlap).div_ceil(step).max(1)
        };
        Ok(Self {
            picture,
            tile,
            overlap,
            counts: [count(0), count(1)],
        })
    }

    /// Returns the size of the picture, width and height in pixels.
    pub fn picture(&self) -> [u32; 2] {
        self.picture
    }

    /// Returns the size of a tile, width and height in pixels.
    pub fn tile_size(&self) -> [u32; 2] {
        self.tile
    }

    /// Returns how many pixels of a tile fade in.
    pub fn overlap(&self) -> u32 {
        self.overlap
    }

    /// Returns the number of columns and of rows of tiles.
    pub fn counts(&self) -> [u32; 2] {
        self.counts
    }

    /// Returns the number of tiles.
    pub fn len(&self) -> u64 {
        u64::from(self.counts[0]) * u64::from(self.counts[1])
    }

    /// Returns false, because a grid has at least one tile.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Iterates over the places of the tiles, `[x, y]` of the upper left corner, row by row.
    pub fn places(&self) -> impl Iterator<Item = [i64; 2]> {
        let [columns, rows] = self.counts;
        (0..rows).flat_map(move |row| {
            (0..columns).map(move |column| [self.place(0, column), self.place(1, row)])
        })
    }

    /// Returns where the tile with this index along an axis begins.
    fn place(&self, axis: usize, index: u32) -> i64 {
        let [whole, tile] = [self.picture[axis], self.tile[axis]].map(i64::from);
        let step = match self.counts[axis] {
            1 => 0.0,
            count => (whole - tile) as f64 / f64::from(count - 1),
        };
        let place = (f64::from(index) * step) as i64;
        // The last tile ends with the picture, whatever the rounding.
        place.min(whole - tile)
    }

    /// Returns the tile of a picture at a place. What lies outside the picture is black.
    pub fn tile(&self, picture: &RgbImage, [x, y]: [i64; 2]) -> RgbImage {
        let inside = |at: i64| u32::try_from(at).ok();
        RgbImage::from_fn(self.tile[0], self.tile[1], |dx, dy| {
            let from = inside(x + i64::from(dx)).zip(inside(y + i64::from(dy)));
            let pixel = from.and_then(|(x, y)| picture.get_pixel_checked(x, y));
            pixel.copied().unwrap_or(Rgb([0; 3]))
        })
    }

    /// Joins tiles that are `scale` times as large as those of the grid. `tile` is called with the
    /// place of each tile, row by row, and returns the changed tile. Only one row of tiles is in
    /// memory at a time.
    ///
    /// # Errors
    /// Returns the first error of `tile`.
    ///
    /// # Panics
    /// If `scale` is 0, if the joined picture or a tile has a side above 2³¹, if the joined picture
    /// or a row of its tiles has too many pixels for the memory, or if a tile has another size than
    /// `scale` times [`tile_size`](Self::tile_size).
    pub fn joined<E>(
        &self,
        scale: u32,
        mut tile: impl FnMut([i64; 2]) -> Result<RgbImage, E>,
    ) -> Result<RgbImage, E> {
        let large = self.scaled(scale);
        let [width, height] = large.picture;
        let fading = large.fading();
        let mut joined = RgbImage::new(width, height);
        let [columns, rows] = self.counts;
        for row in 0..rows {
            let y = self.place(1, row);
            let mut strip = RgbImage::new(width, large.tile[1]);
            for column in 0..columns {
                let x = self.place(0, column);
                let of_row = tile([x, y])?;
                assert_eq!(of_row.dimensions(), large.tile.into(), "the size of a tile");
                paste(&mut strip, &of_row, [x * i64::from(scale), 0], &fading);
            }
            paste(&mut joined, &strip, [0, y * i64::from(scale)], &fading);
        }
        Ok(joined)
    }

    /// Returns the grid of a picture that is `scale` times as large. It has as many tiles.
    fn scaled(&self, scale: u32) -> Self {
        let times = |side: u32| {
            side.checked_mul(scale)
                .filter(|side| (1..=1 << 31).contains(side))
        };
        let side =
            |side: u32| times(side).expect("the scale is not 0 and the picture not too large");
        Self {
            picture: self.picture.map(side),
            tile: self.tile.map(side),
            overlap: self.overlap * scale,
            counts: self.counts,
        }
    }

    /// Returns the opacity of the first columns or rows of a tile.
    fn fading(&self) -> Vec<u8> {
        let overlap = self.overlap as f32;
        let share = |i: u32| (i as f32 * 255.0 / overlap) as u8;
        (0..self.overlap).map(share).collect()
    }
}

/// Lays a picture over another one at a place. Along each axis on which the place is not 0, the
/// first columns or rows have the opacity `fading`.
fn paste(onto: &mut RgbImage, picture: &RgbImage, [x, y]: [i64; 2], fading: &[u8]) {
    let share = |at: i64, i: u32| match at {
        0 => 255,
        _ => fading.get(i as usize).copied().unwrap_or(255),
    };
    for (dx, dy, &above) in picture.enumerate_pixels() {
        let place = (
            u32::try_from(x + i64::from(dx)),
            u32::try_from(y + i64::from(dy)),
        );
        let (Ok(to_x), Ok(to_y)) = place else {
            continue;
        };
        let Some(below) = onto.get_pixel_mut_checked(to_x, to_y) else {
            continue;
        };
        // One of both is 255: a tile is pasted along a row, and a row along the columns.
        let share = share(x, dx).min(share(y, dy));
        for (below, above) in below.0.iter_mut().zip(above.0) {
            *below = alpha::mixed(*below, above, share);
        }
    }
}
