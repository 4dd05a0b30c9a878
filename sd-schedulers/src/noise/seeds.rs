use serde::{Deserialize, Serialize};

use super::slerp::check_strength;
use super::{NoiseError, NoiseKind, NoiseSource, Slerp, check_length, volume};

/// The largest height and width to resize from, in latents. It stands for pictures of 32,768
/// pixels.
const MAX_SIDE: usize = 4096;

/// Everything that decides the noise of one picture: a seed and its companions, as in WebUI's
/// `rng.py`.
///
/// Each picture of a batch has its own `Seeds`, so it has the same noise as if it were drawn alone.
///
/// ```
/// use sd_schedulers::{NoiseSource, noise::{NoiseKind, Seeds, Variation}};
///
/// // WebUI with the source "NV", a fifth of the way to another seed, and NovelAI's ENSD for the
/// // noise that the sampler adds.
/// let seeds = Seeds {
///     seed: 42,
///     kind: NoiseKind::Philox,
///     variation: Some(Variation { seed: 7, strength: 0.2, ..Variation::default() }),
///     sampler_offset: 31337,
///     ..Seeds::default()
/// };
/// let mut x = vec![0.0; 4 * 64 * 64];
/// let mut noise = seeds.first([4, 64, 64], &mut x)?;
/// // The noise that a sampler adds.
/// let mut drawn = vec![0.0; x.len()];
/// noise.fill(&mut drawn);
/// # assert!(x != drawn);
/// # Ok::<(), sd_schedulers::noise::NoiseError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seeds {
    /// The seed. torch's CPU generator uses the low 32 bits. numpy refuses seeds of more than 32
    /// bits. The others use all 64 bits.
    ///
    /// Default: 0.
    pub seed: u64,
    /// The generator that the seed is for.
    ///
    /// Default: [`NoiseKind::Torch`].
    pub kind: NoiseKind,
    /// Another seed whose first noise is mixed in. It does not change the noise that the sampler
    /// adds.
    ///
    /// Default: `None`.
    pub variation: Option<Variation>,
    /// The height and width, in latents, of a picture whose composition to keep at another size.
    ///
    /// Default: `None`.
    ///
    /// The noise is made for that size, and its middle is laid over the middle of the noise of this
    /// size. If both sizes are equal, it changes nothing. Each side is `1..=4096`. For WebUI's
    /// pixels, divide by 8 and round down.
    pub resize_from: Option<[usize; 2]>,
    /// A number to add to the seed, wrapping at 2⁶⁴, for the noise that the sampler adds:
    /// WebUI's `eta_noise_seed_delta` (ENSD). NovelAI's is 31337.
    ///
    /// Default: 0, where the generator of the first noise continues.
    pub sampler_offset: u64,
}

/// A seed whose noise is mixed into the noise of another seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variation {
    /// The seed of the variation.
    ///
    /// Default: 0, as in WebUI.
    #[serde(default)]
    pub seed: u64,
    /// The share of the variation, `0.0..=1.0`: 0 is none of it, and 1 is nothing else.
    ///
    /// Default: 0.
    pub strength: f32,
    /// How the two noises are mixed.
    ///
    /// Default: [`Slerp::Columns`], WebUI's way.
    #[serde(default)]
    pub slerp: Slerp,
}

impl Seeds {
    /// Returns the seeds of picture `index` of several.
    ///
    /// The seed grows by one per picture, wrapping at 2⁶⁴. If there is a variation, its seed
    /// grows instead and the picture's seed stays, as in WebUI.
    ///
    /// ```
    /// use sd_schedulers::noise::Seeds;
    ///
    /// let seeds = Seeds { seed: 42, ..Seeds::default() };
    /// assert_eq!(seeds.image(3).seed, 45);
    /// ```
    pub fn image(mut self, index: u64) -> Self {
        match &mut self.variation {
            Some(variation) if variation.strength != 0.0 => {
                variation.seed = variation.seed.wrapping_add(index);
            }
            _ => self.seed = self.seed.wrapping_add(index),
        }
        self
    }

    /// Checks that [`first`](Self::first) can make noise from these seeds, apart from the length.
    ///
    /// # Errors
    /// - [`NoiseError::Strength`] if the strength of the variation is not in `0.0..=1.0`.
    /// - [`NoiseError::ResizeFrom`] if a side of [`resize_from`](Self::resize_from) is not in
    ///   `1..=4096`.
    /// - [`NoiseError::NumpySeed`] if numpy refuses a seed.
    pub fn check(&self) -> Result<(), NoiseError> {
        self.kind.check(self.seed)?;
        self.kind.check(self.sampler_seed())?;
        if let Some(variation) = self.variation {
            check_strength(variation.strength)?;
            self.kind.check(variation.seed)?;
        }
        match self.resize_from {
            Some(side) if !side.iter().all(|side| (1..=MAX_SIDE).contains(side)) => {
                Err(resize_from(side))
            }
            _ => Ok(()),
        }
    }

    /// Fills `out` with the unit normal noise that the picture starts from, and returns the source
    /// for the noise that its sampler adds.
    ///
    /// `out` has the shape `shape`: channels, height and width. The source is the generator of the
    /// first noise or, if [`sampler_offset`](Self::sampler_offset) is not 0, a fresh generator with
    /// the offset seed.
    ///
    /// The noise is as exact as its [`kind`](Self::kind), and exact to 1e-5 with a
    /// [`variation`](Self::variation).
    ///
    /// # Errors
    /// - The errors of [`check`](Self::check).
    /// - [`NoiseError::Length`] if `out` does not have the number of values of `shape`.
    pub fn first(
        &self,
        shape: [usize; 3],
        out: &mut [f32],
    ) -> Result<Box<dyn NoiseSource + Send>, NoiseError> {
        self.first_after(&mut [], shape, out)
    }

    /// Does the same as [`first`](Self::first), but fills `before` with noise of the seed first.
    ///
    /// diffusers draws the sample of a picture's latents from the generator of a run, before the
    /// noise that the run starts from. A variation changes only the noise in `out`.
    ///
    /// # Errors
    /// The same as for [`first`](Self::first).
    pub fn first_after(
        &self,
        before: &mut [f32],
        shape: [usize; 3],
        out: &mut [f32],
    ) -> Result<Box<dyn NoiseSource + Send>, NoiseError> {
        self.check()?;
        check_length(shape, out.len())?;
        let mut source = self.kind.source(self.seed)?;
        if !before.is_empty() {
            source.fill(before);
        }
        source.fill(out);
        let [channels, height, width] = shape;
        match self.resize_from {
            Some(small) if small != [height, width] && !out.is_empty() => {
                let shape = [channels, small[0], small[1]];
                let mut noise = vec![0.0; volume(shape).ok_or_else(|| resize_from(small))?];
                self.kind.source(self.seed)?.fill(&mut noise);
                self.vary(&mut noise, shape)?;
                paste(&noise, small, out, [height, width]);
            }
            _ => self.vary(out, shape)?,
        }
        if self.sampler_offset == 0 {
            Ok(source)
        } else {
            self.kind.source(self.sampler_seed())
        }
    }

    /// Returns the source for a sampler whose noise belongs to one path
    /// ([`Needs::brownian`](crate::samplers::Needs::brownian)). It replaces the source that
    /// [`first`](Self::first) returns.
    ///
    /// It is the [`BrownianTree`](crate::noise::BrownianTree) of the seed over `sigmas`, for `len`
    /// values at a time. Neither the variation nor the offset changes it.
    ///
    /// # Errors
    /// - [`NoiseError::Range`] if no sigma is above 0, or one is above 10⁷.
    /// - [`NoiseError::NumpySeed`] if numpy refuses the seed.
    pub fn tree(
        &self,
        sigmas: &[f32],
        len: usize,
    ) -> Result<Box<dyn NoiseSource + Send>, NoiseError> {
        self.kind.tree(self.seed, sigmas, len)
    }

    fn sampler_seed(&self) -> u64 {
        self.seed.wrapping_add(self.sampler_offset)
    }

    /// Mixes the variation into the noise.
    fn vary(&self, noise: &mut [f32], shape: [usize; 3]) -> Result<(), NoiseError> {
        match self.variation {
            Some(variation) if variation.strength != 0.0 => {
                let mut other = vec![0.0; noise.len()];
                self.kind.source(variation.seed)?.fill(&mut other);
                let Variation {
                    slerp, strength, ..
                } = variation;
                slerp.mix(noise, &other, shape, strength)
            }
            _ => Ok(()),
        }
    }
}

fn resize_from([height, width]: [usize; 2]) -> NoiseError {
    NoiseError::ResizeFrom {
        height,
        width,
        max: MAX_SIDE,
    }
}

/// Copies the middle of `small` over the middle of `large`, channel by channel. Both sizes are
/// height and width, none of them 0.
fn paste(small: &[f32], small_size: [usize; 2], large: &mut [f32], large_size: [usize; 2]) {
    let rows = Overlap::new(small_size[0], large_size[0]);
    let columns = Overlap::new(small_size[1], large_size[1]);
    let small = small.chunks_exact(small_size[0] * small_size[1]);
    let large = large.chunks_exact_mut(large_size[0] * large_size[1]);
    for (small, large) in small.zip(large) {
        for row in 0..rows.count {
            let from = (rows.from + row) * small_size[1] + columns.from;
            let to = (rows.to + row) * large_size[1] + columns.to;
            large[to..to + columns.count].copy_from_slice(&small[from..from + columns.count]);
        }
    }
}

/// Where a short row lies in the middle of a long one, or the middle of a long row in a short one.
struct Overlap {
    /// The first value of the overlap in the row that is read.
    from: usize,
    /// The first value of the overlap in the row that is written.
    to: usize,
    count: usize,
}

impl Overlap {
    /// Finds the overlap along one side.
    ///
    /// If `small` is the longer one, half of the difference, rounded up, is left out at each end,
    /// because WebUI rounds the half of a negative difference down. With an odd difference, one
    /// value of `large` therefore stays.
    fn new(small: usize, large: usize) -> Self {
        if small <= large {
            return Self {
                from: 0,
                to: (large - small) / 2,
                count: small,
            };
        }
        let from = (small - large).div_ceil(2);
        Self {
            from,
            to: 0,
            count: small - 2 * from,
        }
    }
}
