use serde::{Deserialize, Serialize};

use super::slerp::check_strength;
use super::{NoiseError, NoiseKind, NoiseSource, Slerp, check_length, volume};

/// The greatest height and width to resize from, in latents: pictures of 32,768 pixels.
const MAX_SIDE: usize = 4096;

/// What decides the noise of one picture: what WebUI's `rng.py` makes of a seed and its companions.
///
/// Each picture of a batch has its own and is what it would be alone.
/// ```
/// use sd_schedulers::{NoiseKind, NoiseSource, Seeds, Variation};
///
/// // WebUI with the source "NV": a fifth of the way to another seed, noise on the way by the ENSD of NovelAI.
/// let seeds = Seeds {
///     seed: 42,
///     kind: NoiseKind::Philox,
///     variation: Some(Variation { seed: 7, strength: 0.2, ..Variation::default() }),
///     sampler_offset: 31337,
///     ..Seeds::default()
/// };
/// let mut x = vec![0.0; 4 * 64 * 64];
/// let mut noise = seeds.first([4, 64, 64], &mut x)?;
/// // What a sampler draws on the way.
/// let mut drawn = vec![0.0; x.len()];
/// noise.fill(&mut drawn);
/// # assert!(x != drawn);
/// # Ok::<(), sd_schedulers::NoiseError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seeds {
    /// The seed. torch's CPU generator takes the low 32 bits, numpy's refuses more, the others take all 64. Default 0.
    pub seed: u64,
    /// Whose noise it stands for. Default [`NoiseKind::Torch`].
    pub kind: NoiseKind,
    /// Another seed whose first noise is mixed in. What a sampler draws on the way stays the seed's. Default none.
    pub variation: Option<Variation>,
    /// Height and width, in latents, of the picture whose composition is kept at another size: the noise of that
    /// size, its middle over the middle of this size's. Of the same size it changes nothing. 1 to 4096; WebUI's pixels divided by 8,
    /// rounded down. Default none.
    pub resize_from: Option<[usize; 2]>,
    /// What is added to the seed, wrapping at 2⁶⁴, for the generator that a sampler draws from on the way: WebUI's
    /// `eta_noise_seed_delta` (ENSD); 31337 is NovelAI's. Default 0: the generator of the first noise goes on.
    pub sampler_offset: u64,
}

/// A seed whose noise is mixed into another's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variation {
    /// Its seed. Default 0, as in WebUI.
    #[serde(default)]
    pub seed: u64,
    /// How much of it: 0, the default, is none, 1 is nothing else.
    pub strength: f32,
    /// How they are mixed. Default WebUI's way.
    #[serde(default)]
    pub slerp: Slerp,
}

impl Seeds {
    /// Those of picture `index` of several: the seed moves on by one a picture, wrapping at 2⁶⁴, or where there is a variation, its seed
    /// does and the picture's stays, as in WebUI.
    pub fn image(mut self, index: u64) -> Self {
        match &mut self.variation {
            Some(variation) if variation.strength != 0.0 => {
                variation.seed = variation.seed.wrapping_add(index);
            }
            _ => self.seed = self.seed.wrapping_add(index),
        }
        self
    }

    /// That [`first`](Self::first) can be made of it, the length aside.
    ///
    /// # Errors
    /// [`NoiseError::Strength`], [`NoiseError::ResizeFrom`] and [`NoiseError::NumpySeed`].
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

    /// Fills `out`, of `shape` (channels, height and width), with the unit normal noise that the picture begins as, and returns the source that
    /// its sampler goes on with: the generator of the first noise, or a fresh one of the seed and
    /// [`sampler_offset`](Self::sampler_offset).
    ///
    /// As exact as the [`kind`](Self::kind), and to 1e-5 with a [`variation`](Self::variation).
    ///
    /// # Errors
    /// As [`check`](Self::check), and [`NoiseError::Length`].
    pub fn first(
        &self,
        shape: [usize; 3],
        out: &mut [f32],
    ) -> Result<Box<dyn NoiseSource + Send>, NoiseError> {
        self.check()?;
        check_length(shape, out.len())?;
        let mut source = self.kind.source(self.seed)?;
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

    /// The source for a sampler whose noise belongs to one path ([`Needs::brownian`](crate::Needs::brownian)), instead of
    /// the one that [`first`](Self::first) returns: the [`BrownianTree`](crate::BrownianTree) of the seed over `sigmas`, for `len` values
    /// at a time. Neither the variation nor the offset changes it.
    ///
    /// # Errors
    /// [`NoiseError::Range`] without a sigma above 0 and for one above 10⁷, and [`NoiseError::NumpySeed`].
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

    /// Mixes the variation in.
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

/// Lays the middle of `small` over the middle of `large`, channel by channel; both sizes are height and width, none of them 0.
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

/// Where a short row lies in the middle of a long one, or the middle of a long one in a short one.
struct Overlap {
    /// Its first value in the row that is copied.
    from: usize,
    /// Its first value in the row that is written.
    to: usize,
    count: usize,
}

impl Overlap {
    /// Of a longer `small`, half of the difference is left out at its start, rounded up, and as much at its end: WebUI rounds the half of a
    /// negative difference down. So of an odd difference one value of `large` stays.
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
