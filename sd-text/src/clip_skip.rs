//! The layer of the text model that the embedding is taken from.
//!
//! Three conventions for this setting are in use. All of them count from the end of the text model:
//!
//! | the hidden state of | [`ClipSkip`], WebUI | diffusers, SD 1.x and 2.x | diffusers, SDXL |
//! |---|---|---|---|
//! | the last layer | 1 ([`ClipSkip::LAST`]) | `None` or 0 | – |
//! | the penultimate layer | 2 | 1 | `None` or 0 |
//! | `k` layers before the last | `k + 1` | `k` | `k − 1` |
//! | is the final layer norm applied? | yes | yes | **no** |
//!
//! The WebUI column is its "Clip skip" setting. The diffusers columns are its `clip_skip` argument.
//!
//! WebUI applies the setting to both the prompt and the negative prompt, and so does this
//! workspace. diffusers applies it to the prompt only: its negative prompt always uses the layer
//! that `None` stands for. The two agree if that layer is chosen or if the negative prompt is not
//! used. To reproduce diffusers, encode each prompt with the layer it needs and give the embeddings
//! to the request.
//!
//! If no layer is chosen, each text model uses its
//! [default layer](crate::Tower::default_layer): 1 with the final norm for Stable Diffusion 1.x, 2
//! without it for SDXL. Stable Diffusion 2.x was trained on the penultimate layer of OpenCLIP
//! ViT-H, but its diffusers folders omit the last layer (`num_hidden_layers` is 23), so 1 is right
//! for it too. WebUI ignores the setting for Stable Diffusion 2.x and SDXL.
//!
//! References: `modules/sd_hijack_clip.py` of AUTOMATIC1111's WebUI; `encode_prompt` in
//! `pipeline_stable_diffusion.py` and `pipeline_stable_diffusion_xl.py` of diffusers 0.42.

use std::fmt;
use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

/// The layer whose output conditions the denoiser, counted from the end: 1 is the last layer, 2 the
/// penultimate.
///
/// Range: 1 to the model's [`TextShape::layers`](crate::TextShape::layers).
///
/// Default: 1 ([`ClipSkip::LAST`]).
///
/// Whether the final layer norm is applied depends on the model: see [`Layer`](crate::Layer).
///
/// ```
/// use sd_text::ClipSkip;
///
/// // WebUI's "Clip skip 2" is `clip_skip=1` in diffusers.
/// assert_eq!(ClipSkip::new(2)?, ClipSkip::from_diffusers(Some(1)));
/// # Ok::<(), sd_text::ClipSkipError>(())
/// ```
///
/// With serde it is WebUI's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClipSkip(NonZeroUsize);

impl ClipSkip {
    /// The last layer: nothing is skipped. Stable Diffusion 1.x and 2.x use it.
    pub const LAST: Self = Self(NonZeroUsize::MIN);

    /// The layer before the last. SDXL uses it.
    pub const PENULTIMATE: Self = Self(NonZeroUsize::MIN.saturating_add(1));

    /// Creates a clip skip from WebUI's number: 1 is the last layer, 2 the penultimate.
    ///
    /// # Errors
    /// [`ClipSkipError`] if `n` is 0.
    pub fn new(n: usize) -> Result<Self, ClipSkipError> {
        NonZeroUsize::new(n).map(Self).ok_or(ClipSkipError)
    }

    /// Creates a clip skip from the number that diffusers' Stable Diffusion 1.x and 2.x pipelines
    /// take. It is one less than WebUI's number, and `None` is the last layer.
    pub fn from_diffusers(clip_skip: Option<usize>) -> Self {
        Self(NonZeroUsize::MIN.saturating_add(clip_skip.unwrap_or(0)))
    }

    /// Returns WebUI's number, at least 1.
    pub fn number(self) -> usize {
        self.0.get()
    }

    /// Returns how many layers at the end are skipped: 0 for [`LAST`](Self::LAST).
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

/// The error for a clip skip of 0.
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
