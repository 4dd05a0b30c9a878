//! Networks that enlarge pictures. Each one is recognised by the names of its tensors, and
//! configured by their shapes, as in spandrel 0.4.2.

mod compact;
mod dat;
mod names;
mod rrdb;
mod swinir;
mod tail;

use std::collections::BTreeMap;

use self::{compact::Compact, dat::Dat, names::unsupported, rrdb::Rrdb, swinir::SwinIr};
pub(crate) use self::{names::unwrapped, tail::regions};
use crate::{
    Error,
    graph::{Conv, Dialect, Dim, Graph, Model, Value},
    weights::{Mapped, View, Weights},
};

/// The name of the input: a picture `[1, 3, h, w]`, whose sides are multiples of `unshuffle` and of
/// the windows' sides times `unshuffle`.
pub(crate) const PICTURE: &str = "picture";

/// The name of the input with the regions of shifted windows, `[1, windows, h, w]`, for the height
/// and width after the squares of pixels became channels.
pub(crate) const REGIONS: &str = "regions";

/// The name of the output, `[1, 3, h', w']`.
const ENLARGED: &str = "enlarged";

/// The channels of a picture.
const COLORS: usize = 3;

/// The largest factor between the input of a graph and its output.
const MOST_FACTOR: usize = 32;

/// The largest number of channels, of layers, or of blocks in a layer.
const MOST: usize = 4096;

/// The names and shapes of a file's tensors, without a wrapper around all names.
pub(crate) type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// A network that enlarges pictures.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UpscalerConfig {
    /// The factor between the sides of the input picture and of the result.
    pub scale: usize,
    /// The side of the squares of pixels that become channels before the network, or 1.
    pub unshuffle: usize,
    /// The sides of the picture must be multiples of this number. It includes `unshuffle`.
    pub multiple: usize,
    /// The factor of the colors within the network, and the colors that are subtracted before.
    pub range: f32,
    pub mean: [f32; COLORS],
    /// The heights and widths of the windows whose regions are the input [`REGIONS`]. Empty if the
    /// network does not have it. The sides of the regions are multiples of the largest one.
    pub windows: Vec<[usize; 2]>,
    network: Network,
}

#[derive(Debug, Clone, PartialEq)]
enum Network {
    Rrdb(Rrdb),
    Compact(Compact),
    SwinIr(SwinIr),
    Dat(Dat),
}

impl UpscalerConfig {
    /// Recognises a network, and returns its configuration and where its tensors are in the file.
    /// `Ok(None)` if the file is no known network.
    ///
    /// # Errors
    /// Returns what is not supported: another network by its name, or a shape.
    pub fn recognise(shapes: &Shapes<'_>) -> Result<Option<(Self, Vec<Mapped>)>, String> {
        // First, because some of them contain tensors of the networks below.
        if let Some(name) = unsupported(shapes) {
            return Err(format!(
                "the network {name} is not supported, expected ESRGAN, Real-ESRGAN, \
                 SRVGGNetCompact, SwinIR or DAT"
            ));
        }
        if let Some(found) = rrdb::recognise(shapes)? {
            return Ok(Some(found));
        }
        if let Some(found) = swinir::recognise(shapes)? {
            return Ok(Some(found));
        }
        if let Some(found) = dat::recognise(shapes)? {
            return Ok(Some(found));
        }
        compact::recognise(shapes)
    }

    /// Creates the configuration of a network that takes the picture as it is.
    fn plain(scale: usize, network: Network) -> Self {
        Self {
            scale,
            unshuffle: 1,
            multiple: 1,
            range: 1.0,
            mean: [0.0; COLORS],
            windows: Vec::new(),
            network,
        }
    }

    /// Returns a small tensor whose values the configuration assumes, and the values.
    pub fn assumed(&self) -> Option<(String, Vec<f32>)> {
        match &self.network {
            Network::Dat(network) => Some(network.assumed()),
            _ => None,
        }
    }

    /// Returns the class of the network.
    pub fn class(&self) -> &'static str {
        match self.network {
            Network::Rrdb(_) => "RRDBNet",
            Network::Compact(_) => "SRVGGNetCompact",
            Network::SwinIr(_) => "SwinIR",
            Network::Dat(_) => "DAT",
        }
    }

    /// Returns whether the class knows a tensor that the graph does not use.
    pub fn is_left_out(&self, name: &str) -> bool {
        match self.network {
            Network::SwinIr(_) => swinir::is_left_out(name),
            Network::Dat(_) => dat::is_left_out(name),
            Network::Rrdb(_) | Network::Compact(_) => false,
        }
    }

    /// Writes the graph.
    pub fn graph(&self, weights: &Weights, dialect: Dialect) -> Result<Model, Error> {
        // ONNX Runtime reorders these few weights itself, and keeps more tensors in blocks.
        let dialect = Dialect {
            channel_block: None,
            ..dialect.for_few_weights()
        };
        let mut g = Graph::new("upscaler", weights, dialect);
        let mut x = g.input(PICTURE, &image(COLORS, ["h", "w"]));
        if self.unshuffle > 1 {
            x = g.pixel_unshuffle(x, COLORS, self.unshuffle);
        }
        let regions = |g: &mut Graph| {
            let dims = image(self.windows.len(), ["region h", "region w"]);
            g.input(REGIONS, &dims)
        };
        let x = match &self.network {
            Network::Rrdb(network) => network.write(&mut g, x)?,
            Network::Compact(network) => network.write(&mut g, x)?,
            Network::SwinIr(network) => {
                let regions = regions(&mut g);
                network.write(&mut g, x, regions)?
            }
            Network::Dat(network) => {
                let regions = regions(&mut g);
                network.write(&mut g, x, regions)?
            }
        };
        g.output(ENLARGED, x, &image(COLORS, ["H", "W"]));
        g.finish()
    }
}

fn image(channels: usize, [height, width]: [&'static str; 2]) -> [Dim; 4] {
    [
        Dim::Fixed(1),
        Dim::Fixed(channels),
        Dim::Any(height),
        Dim::Any(width),
    ]
}

/// Writes nearest-neighbour doubling, the convolution `name` and a leaky ReLU.
fn doubled(g: &mut Graph, x: Value, name: &str, channels: usize) -> Result<Value, Error> {
    let x = g.upsample(x);
    let x = g.conv2d(x, name, [channels; 2], Conv::SAME)?;
    Ok(g.leaky_relu(x, SLOPE))
}

/// The slope of the leaky ReLU of most networks.
const SLOPE: f32 = 0.2;

/// Returns the shape of a convolution's weight: output channels, input channels, height and width.
fn conv(shapes: &Shapes<'_>, name: &str) -> Result<[usize; 4], String> {
    let name = format!("{name}.weight");
    let shape = shapes
        .get(&*name)
        .ok_or_else(|| format!("tensor `{name}` is missing"))?;
    let found: Option<[usize; 4]> = (*shape).try_into().ok();
    let found = found.filter(|sides| sides.iter().all(|side| (1..=MOST).contains(side)));
    found.ok_or_else(|| {
        format!("tensor `{name}` has shape {shape:?}, expected four sides of 1 to {MOST}")
    })
}

/// Returns the length of a vector.
fn length(shapes: &Shapes<'_>, name: &str) -> Result<usize, String> {
    match shapes.get(name) {
        Some([length]) if (1..=MOST).contains(length) => Ok(*length),
        Some(found) => Err(format!(
            "tensor `{name}` has shape {found:?}, expected one side of 1 to {MOST}"
        )),
        None => Err(format!("tensor `{name}` is missing")),
    }
}

/// Returns the side of the squares of pixels that a network with so many input channels takes.
fn unshuffle_of(channels: usize) -> Result<usize, String> {
    let sides = [1, 2, 4, 8];
    let found = sides
        .into_iter()
        .find(|side| COLORS * side * side == channels);
    found.ok_or_else(|| {
        format!(
            "the network takes {channels} channels, expected 3, 12, 48 or 192: pictures in color"
        )
    })
}

/// Returns the factor of a pixel shuffle that leaves so many of `channels` channels.
fn shuffle_of(channels: usize, left: usize) -> Result<usize, String> {
    let found = (1..=MOST_FACTOR).find(|factor| left * factor * factor == channels);
    found.ok_or_else(|| {
        format!("a pixel shuffle has {channels} channels, expected {left} times a square number")
    })
}

/// Checks that a network returns pictures in color.
fn check_colors(found: usize) -> Result<(), String> {
    match found {
        COLORS => Ok(()),
        _ => Err(format!(
            "the network returns {found} channels, expected {COLORS}"
        )),
    }
}

/// Returns the numbers that follow `prefix` and end at a dot or with the name.
fn numbers<'a>(shapes: &'a Shapes<'_>, prefix: &'a str) -> impl Iterator<Item = usize> + 'a {
    let rests = shapes
        .keys()
        .filter_map(move |name| name.strip_prefix(prefix));
    rests.filter_map(|rest| rest.split('.').next()?.parse().ok())
}

/// Returns how many modules a list has: one more than the largest number after `prefix`.
fn count(shapes: &Shapes<'_>, prefix: &str) -> Result<usize, String> {
    let last = numbers(shapes, prefix).max();
    let last = last.ok_or_else(|| format!("no tensor begins with `{prefix}`"))?;
    match last < MOST {
        true => Ok(last + 1),
        false => Err(format!(
            "a tensor begins with `{prefix}{last}`, expected less than {MOST}"
        )),
    }
}

/// Returns where each tensor is in the file, under the name that `today` returns for it.
fn mapped<'a>(shapes: &Shapes<'a>, today: impl Fn(&str) -> String) -> Vec<Mapped> {
    let names = shapes.keys();
    names
        .map(|name| Mapped {
            name: today(name),
            stored: (*name).to_owned(),
            view: View::Whole,
        })
        .collect()
}
