//! From which layer of the text model the embedding is taken.
//!
//! Three conventions are in use for the same thing, all counted from the end of the text model:
//!
//! | the hidden state of | [`ClipSkip`] and WebUI's "Clip skip" | `clip_skip` of diffusers, SD 1.x and 2.x | `clip_skip` of diffusers, SDXL |
//! |---|---|---|---|
//! | the last layer | 1 ([`ClipSkip::LAST`]) | `None` or 0 | – |
//! | the one before it, the penultimate | 2 | 1 | `None` or 0 |
//! | `k` layers before the last | `k + 1` | `k` | `k − 1` |
//! | then the final layer norm? | yes | yes | **no** |
//!
//! WebUI applies the setting to the prompt and the negative prompt alike, and so does this
//! workspace. diffusers applies it to the prompt only: its negative prompt always comes from the
//! layer that `None` stands for. The two agree if that layer is asked for, or if the negative
//! prompt is not used. To draw as diffusers does, encode each prompt with the layer it needs, and
//! give the embeddings to a request.
//!
//! Followed: `modules/sd_hijack_clip.py` of AUTOMATIC1111's WebUI; `encode_prompt` of
//! `pipeline_stable_diffusion.py` and `pipeline_stable_diffusion_xl.py` of diffusers 0.42.
//!
//! If no layer is asked for, each text model is read at
//! [its own layer](crate::Tower::own_layer): 1 with the norm for Stable Diffusion 1.x, 2 without it
//! for SDXL. Stable Diffusion 2.x was trained on the penultimate layer of OpenCLIP ViT-H. Its
//! diffusers folders leave the last layer out (`num_hidden_layers` is 23), so that 1 is right for
//! them too. WebUI ignores the setting for Stable Diffusion 2.x and SDXL.

use std::fmt;
use std::num::NonZeroUsize;

/// Which layer's output conditions the denoiser, counted from the end: 1 is the last layer, 2 the
/// penultimate. Range: 1 to the model's [`TextShape::layers`](crate::TextShape::layers).
///
/// The model decides whether the final layer norm follows: see [`Layer`](crate::Layer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClipSkip(NonZeroUsize);

impl ClipSkip {
    /// The last layer: nothing is skipped. The own layer of Stable Diffusion 1.x and 2.x.
    pub const LAST: Self = Self(NonZeroUsize::MIN);

    /// The layer before the last. The own layer of SDXL.
    pub const PENULTIMATE: Self = Self(NonZeroUsize::MIN.saturating_add(1));

    /// WebUI's number: 1 is the last layer, 2 the penultimate.
    ///
    /// # Errors
    /// [`ClipSkipError`] if `n` is 0.
    pub fn new(n: usize) -> Result<Self, ClipSkipError> {
        NonZeroUsize::new(n).map(Self).ok_or(ClipSkipError)
    }

    /// The number diffusers' Stable Diffusion 1.x and 2.x pipelines take: one less than ours, or `None` for the last layer.
    pub fn from_diffusers(clip_skip: Option<usize>) -> Self {
        Self(NonZeroUsize::MIN.saturating_add(clip_skip.unwrap_or(0)))
    }

    /// WebUI's number, at least 1.
    pub fn number(self) -> usize {
        self.0.get()
    }

    /// How many layers at the end are left out: 0 for [`LAST`](Self::LAST).
    pub fn skipped(self) -> usize {
        self.number() - 1
    }
}

impl Default for ClipSkip {
    fn default() -> Self {
        Self::LAST
    }
}

impl TryFrom<usize> for ClipSkip {
    type Error = ClipSkipError;

    fn try_from(n: usize) -> Result<Self, ClipSkipError> {
        Self::new(n)
    }
}

impl fmt::Display for ClipSkip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A clip skip of 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "clip skip is 0, expected 1 (the last layer) or more; diffusers' `clip_skip` is one less, see `ClipSkip::from_diffusers`"
)]
pub struct ClipSkipError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_one() {
        assert_eq!(ClipSkip::new(1), Ok(ClipSkip::LAST));
        assert_eq!(ClipSkip::default(), ClipSkip::LAST);
        assert_eq!(ClipSkip::new(2).unwrap().skipped(), 1);
        assert_eq!(ClipSkip::try_from(3).unwrap().to_string(), "3");
        assert_eq!(ClipSkip::new(0), Err(ClipSkipError));
    }

    #[test]
    fn one_more_than_in_diffusers() {
        assert_eq!(ClipSkip::from_diffusers(None), ClipSkip::LAST);
        assert_eq!(ClipSkip::from_diffusers(Some(0)), ClipSkip::LAST);
        assert_eq!(ClipSkip::from_diffusers(Some(1)).number(), 2);
        assert_eq!(
            ClipSkip::from_diffusers(Some(usize::MAX)).number(),
            usize::MAX
        );
    }
}
