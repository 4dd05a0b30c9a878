//! Enlarges pictures: with networks, and by redrawing them in tiles.
//!
//! - [`Enlarger`] enlarges a picture with a network, as WebUI does, and [`enlarged`] with a filter.
//! - [`Pipeline::upscale_by_tiles`](crate::Pipeline::upscale_by_tiles) redraws an enlarged picture
//!   tile by tile, WebUI's script "SD upscale".
//! - [`Grid`] divides a picture into tiles that overlap, and joins them again.
//!
//! The arithmetic follows `modules/upscaler.py`, `modules/upscaler_utils.py`, `modules/images.py`
//! and `scripts/sd_upscale.py` of WebUI 1.10.1.

mod enlarger;
mod grid;
mod redraw;

pub use self::{
    enlarger::{Enlarger, TileProgress, Tiling, enlarged},
    grid::Grid,
    redraw::{TiledPicture, TiledRedraw},
};
use enlarger::final_size;
pub(crate) use enlarger::{MOST_SCALE, factor_to};
