use std::fmt::{self, Write};

use super::seed_sequence::SeedSequence;
use super::{NoiseError, NoiseSource};

/// The largest sigma of a tree. Above it, the positions of the nodes would not all fit into 64
/// bits.
const LIMIT: f32 = 1e7;

/// The path of a Brownian motion over sigma, fixed by its seed alone.
///
/// However many steps a run has, and in whatever order they are requested, their noise consists of
/// increments of one path. More steps therefore make the same picture finer.
///
/// It is the `BrownianTree` of torchsde 0.2.6, as k-diffusion's `BrownianTreeNoiseSampler` and
/// diffusers' `DPMSolverSDEScheduler` use it, after the virtual Brownian tree of
/// <https://arxiv.org/abs/2001.01328>. A node is an interval and the increment W over it. The
/// interval is cut at its middle, rounded to six decimals. By the Brownian bridge, the halves have
/// the increments
/// ```text
/// W(left, middle) = (middle − left) / (right − left) W
///     + sqrt((middle − left) (right − middle) / (right − left)) z
/// W(middle, right) = W − W(left, middle)
/// ```
/// where z is the first draw from the node's own generator. [`between`](NoiseSource::between)
/// returns `(W(to) − W(from)) / sqrt(|to − from|)`.
///
/// The result is equal to torchsde's float32 bit for bit, as far as the nodes' source is torch's:
/// `TorchRng::new` for the CPU, `Philox::webui` for WebUI's "NV", and
/// `|seed| Philox::cuda(seed, threads)` for a card.
///
/// # Cost
/// The tree keeps the nodes on the way to both ends of the last interval. If the next interval
/// shares an end with it, as is usual, the query costs one draw for each of about 24 levels, except
/// for the top levels that the new end shares. Making the tree allocates about 400 bytes per value.
/// Nothing is allocated afterwards.
///
/// # Where the variance is not 1
/// As in torchsde, times are rounded to six decimals. The noise of an interval shorter than 1e-5
/// therefore has a variance other than 1, and the noise of one shorter than 1e-6 may be 0. There is
/// no path outside the tree's range. Between equal sigmas, the noise is 0.
///
/// ```
/// use sd_schedulers::{NoiseSource, noise::{BrownianTree, TorchRng}};
///
/// let mut tree = BrownianTree::over(&[14.6, 3.0, 0.03, 0.0], 64, 42, TorchRng::new)?;
/// let [mut whole, mut first, mut second] = [[0.0; 64]; 3];
/// tree.between(14.6, 0.03, &mut whole);
/// tree.between(14.6, 3.0, &mut first);
/// tree.between(3.0, 0.03, &mut second);
/// for ((whole, first), second) in whole.iter().zip(first).zip(second) {
///     let sum = first * 11.6_f32.sqrt() + second * 2.97_f32.sqrt();
///     assert!((whole * 14.57_f32.sqrt() - sum).abs() < 1e-4);
/// }
/// # Ok::<(), sd_schedulers::noise::NoiseError>(())
/// ```
#[derive(Clone)]
pub struct BrownianTree<S, F> {
    source: F,
    /// The generator for noise that belongs to no interval.
    plain: S,
    seeds: SeedSequence,
    /// The square root of the unrounded length of the range.
    deviation: f32,
    start: f64,
    end: f64,
    /// The increment over the whole range.
    root: Vec<f32>,
    /// The nodes that contain either end of the requested interval, from the root on.
    descents: [Vec<Node>; 2],
    /// The split nodes that are known at each depth.
    levels: Vec<[Split; 2]>,
}

#[derive(Clone, Copy)]
struct Node {
    left: f64,
    middle: f64,
    right: f64,
    /// The index among the nodes at its depth, counted from the left.
    place: u64,
}

/// The increments over the halves of a node.
#[derive(Clone)]
struct Split {
    place: Option<u64>,
    halves: [Vec<f32>; 2],
}

impl<S: NoiseSource, F: FnMut(u64) -> S> BrownianTree<S, F> {
    /// Makes the tree of a run over these sigmas, from the smallest above 0 to the largest, as
    /// k-diffusion and diffusers do.
    ///
    /// A run that starts within a ladder, as in image to image, has the path of the whole ladder in
    /// WebUI. Pass all sigmas of the ladder for that.
    ///
    /// `len` is the number of values at a time. With another number of values, the tree is made
    /// anew. `seed` is the picture's seed. In WebUI, neither a variation nor ENSD changes it.
    /// `source` makes the generator of a node from a seed of 32 bits.
    ///
    /// # Errors
    /// [`NoiseError::Range`] if no sigma is above 0, or one is above 10⁷.
    pub fn over(sigmas: &[f32], len: usize, seed: u64, source: F) -> Result<Self, NoiseError> {
        let (mut min, mut max) = (f32::INFINITY, 0.0_f32);
        for &sigma in sigmas.iter().filter(|&&sigma| sigma > 0.0) {
            (min, max) = (min.min(sigma), max.max(sigma));
        }
        Self::new([min, max], len, seed, source)
    }

    /// Makes a tree like [`over`](Self::over), from the smallest and the largest sigma.
    ///
    /// # Errors
    /// [`NoiseError::Range`] if the sigmas are not in that order, below 0 or above 10⁷.
    pub fn new(range: [f32; 2], len: usize, seed: u64, mut source: F) -> Result<Self, NoiseError> {
        let [min, max] = range;
        if !((0.0..=max).contains(&min) && max <= LIMIT) {
            let limit = LIMIT;
            return Err(NoiseError::Range { min, max, limit });
        }
        let mut tree = Self {
            plain: source(seed),
            source,
            seeds: SeedSequence::new(seed),
            deviation: (f64::from(max) - f64::from(min)).sqrt() as f32,
            start: rounded(min.into()),
            end: rounded(max.into()),
            root: Vec::new(),
            descents: [Vec::new(), Vec::new()],
            levels: Vec::new(),
        };
        tree.grow(len);
        Ok(tree)
    }

    /// Draws the root and allocates all levels.
    fn grow(&mut self, len: usize) {
        self.root = vec![0.0; len];
        (self.source)(self.seeds.word(&[]).into()).fill(&mut self.root);
        self.root.iter_mut().for_each(|w| *w *= self.deviation);
        // A node that contains a time is at least two millionths long, and half as long as its
        // parent to within one millionth.
        let halvings = ((self.end - self.start) * 1e6).max(1.0).log2();
        let depth = halvings as usize + 2;
        let split = || Split {
            place: None,
            halves: [vec![0.0; len], vec![0.0; len]],
        };
        self.levels.clear();
        self.levels.resize_with(depth, || [split(), split()]);
        for descent in &mut self.descents {
            descent.clear();
            descent.reserve(depth);
        }
    }

    /// Writes the increment between two times, `a < b`, to `out`.
    fn increment(&mut self, a: f64, b: f64, out: &mut [f32]) {
        let [a, b] = [a, b].map(|time| rounded(time).clamp(self.start, self.end));
        if a >= b {
            return out.fill(0.0);
        }
        for (nodes, time) in self.descents.iter_mut().zip([a, b]) {
            descend(nodes, [self.start, self.end], time);
        }
        self.split();
        // From left to right: the right halves of the nodes that contain a, deepest first, then the
        // left halves of the nodes that contain b.
        let levels = &self.levels;
        let after = self.descents[0].iter().enumerate().rev();
        let after = after
            .filter(|(_, node)| a <= node.middle && node.right <= b)
            .map(|(depth, node)| half(&levels[depth], 2 * node.place + 1));
        let before = self.descents[1].iter().enumerate();
        let before = before
            .filter(|(_, node)| a <= node.left && node.middle <= b)
            .map(|(depth, node)| half(&levels[depth], 2 * node.place));
        let mut parts = after.chain(before);
        out.copy_from_slice(parts.next().unwrap_or(&self.root));
        for part in parts {
            for (out, w) in out.iter_mut().zip(part) {
                *out += w;
            }
        }
    }

    /// Splits the nodes of both descents that are not split yet.
    fn split(&mut self) {
        let deepest = self.descents[0].len().max(self.descents[1].len());
        for depth in 0..deepest {
            let [a, b] = [0, 1].map(|end: usize| self.descents[end].get(depth).copied());
            for (node, other) in [(a, b), (b, a)] {
                let Some(node) = node else { continue };
                let (above, below) = self.levels.split_at_mut(depth);
                let splits = &mut below[0];
                if splits.iter().any(|split| split.place == Some(node.place)) {
                    continue;
                }
                let w: &[f32] = match above.last() {
                    Some(level) => half(level, node.place),
                    None => &self.root,
                };
                // Do not overwrite the split that the other end needs.
                let kept = other.is_some_and(|other| splits[0].place == Some(other.place));
                let split = &mut splits[usize::from(kept)];
                split.place = Some(node.place);
                let [first, second] = &mut split.halves;
                let seed = self.seeds.word(&[node.place, depth as u64]);
                (self.source)(seed.into()).fill(second);
                bridge(&node, w, first, second);
            }
        }
    }
}

impl<S: NoiseSource, F: FnMut(u64) -> S> NoiseSource for BrownianTree<S, F> {
    /// Fills `out` with noise that belongs to no interval, from a generator with the tree's seed.
    fn fill(&mut self, out: &mut [f32]) {
        self.plain.fill(out);
    }

    fn between(&mut self, from: f32, to: f32, out: &mut [f32]) {
        if out.len() != self.root.len() {
            self.grow(out.len());
        }
        // A NaN has no order, so the noise is 0.
        let order = from.partial_cmp(&to).filter(|order| order.is_ne());
        let Some(order) = order else {
            return out.fill(0.0);
        };
        let (low, high, sign) = if order.is_lt() {
            (from, to, 1.0)
        } else {
            (to, from, -1.0)
        };
        self.increment(low.into(), high.into(), out);
        let deviation = (high - low).sqrt();
        out.iter_mut().for_each(|w| *w = *w * sign / deviation);
    }
}

impl<S, F> fmt::Debug for BrownianTree<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrownianTree")
            .field("start", &self.start)
            .field("end", &self.end)
            .field("len", &self.root.len())
            .finish_non_exhaustive()
    }
}

/// Finds the nodes that contain `time`, from the root on.
fn descend(nodes: &mut Vec<Node>, [mut left, mut right]: [f64; 2], time: f64) {
    nodes.clear();
    let mut place = 0;
    while left < time && time < right {
        let middle = rounded(0.5 * (right + left));
        nodes.push(Node {
            left,
            middle,
            right,
            place,
        });
        place *= 2;
        if time < middle {
            right = middle;
        } else {
            left = middle;
            place += 1;
        }
    }
}

/// Returns the increment over the node at `place`, which is a half of a node in the level above it.
fn half(above: &[Split; 2], place: u64) -> &[f32] {
    let parent = Some(place / 2);
    let [one, other] = above;
    let split = if one.place == parent { one } else { other };
    &split.halves[usize::from(place % 2 == 1)]
}

/// Splits a node's increment `w` into the halves `first` and `second`, from unit noise in `second`.
/// Each operation rounds to float32, in torch's order.
fn bridge(node: &Node, w: &[f32], first: &mut [f32], second: &mut [f32]) {
    let (before, after) = (node.middle - node.left, node.right - node.middle);
    let scale = 1.0 / (node.right - node.left);
    let deviation = (before * after * scale).sqrt() as f32;
    let (before, scale) = (before as f32, scale as f32);
    for ((first, second), w) in first.iter_mut().zip(second).zip(w) {
        *first = before * w * scale + deviation * *second;
        *second = w - *first;
    }
}

/// Rounds to six decimals, as Python's `round(time, 6)` does: to the decimal number nearest to the
/// exact value, half to even.
fn rounded(time: f64) -> f64 {
    let mut text = Text {
        bytes: [0; 64],
        len: 0,
    };
    let written = write!(text, "{time:.6}").ok();
    let digits = written.and_then(|()| std::str::from_utf8(&text.bytes[..text.len]).ok());
    digits
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(time)
}

/// A number as text, without an allocation.
struct Text {
    bytes: [u8; 64],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let place = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::TorchRng;

    /// The expected values are Python's. The exact values of the first two times are halfway
    /// between decimals. The next two have others.
    #[test]
    fn times_are_rounded_as_python_rounds_them() {
        for (time, expected) in [
            (0.0078125, 0.007812),
            (0.0234375, 0.023438),
            (1.0000005, 1.000001),
            (2.6754165, 2.675416),
            (14.614_642_143_249_512, 14.614642),
            (f64::from(f32::MAX), f64::from(f32::MAX)),
            (f64::INFINITY, f64::INFINITY),
        ] {
            assert_eq!(rounded(time), expected);
        }
    }

    /// There must be a level for every node that contains a time, whatever the range.
    #[test]
    fn there_is_room_for_the_deepest_descent() {
        for max in [0.030_001_f32, 0.031, 1.0, 14.6, 4096.0, LIMIT] {
            let tree = BrownianTree::new([0.03, max], 0, 0, TorchRng::new).unwrap();
            let mut nodes = Vec::new();
            for i in 0..2000 {
                let time = rounded(tree.start + (tree.end - tree.start) * f64::from(i) / 1999.0);
                descend(&mut nodes, [tree.start, tree.end], time);
                assert!(nodes.len() <= tree.levels.len(), "{max}: {}", nodes.len());
            }
        }
    }
}
