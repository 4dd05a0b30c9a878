//! Seamless pictures in infotexts.

use super::{Infotext, keys};
use crate::Seamless;

/// The value of `Tiling` in a file of a picture that is seamless on both axes.
const TRUE: &str = "True";

/// Returns the key and the value for a picture that is seamless on these axes.
pub(super) fn entry(seamless: Seamless) -> Option<(&'static str, &'static str)> {
    match seamless {
        Seamless::NONE => None,
        Seamless::BOTH => Some((keys::TILING, TRUE)),
        Seamless::X => Some((keys::SD_TILING, "x")),
        Seamless::Y => Some((keys::SD_TILING, "y")),
    }
}

/// Returns the difference for a picture that is seamless on these axes. `None` for an ordinary
/// picture.
pub(crate) fn note(seamless: Seamless) -> Option<String> {
    let axes = axes(seamless)?;
    Some(format!(
        "the picture is seamless along {axes}, for which the model has to be loaded"
    ))
}

/// Returns the difference if the pipeline is seamless along other axes than the infotext says.
/// `None` for an ordinary pipeline.
pub(crate) fn note_of_pipeline(seamless: Seamless) -> Option<String> {
    let axes = axes(seamless)?;
    Some(format!(
        "this pipeline draws pictures that are seamless along {axes}, unlike this picture"
    ))
}

fn axes(seamless: Seamless) -> Option<&'static str> {
    match seamless {
        Seamless::NONE => None,
        Seamless::BOTH => Some("x and y"),
        Seamless::X => Some("x"),
        Seamless::Y => Some("y"),
    }
}

impl Infotext {
    /// Returns the axes along which the picture is seamless: both with WebUI's `Tiling: True`, and
    /// one with this crate's `SD tiling`.
    ///
    /// The axes are not a part of a [`Request`](crate::Request). A model has to be loaded for them.
    ///
    /// ```
    /// use sd_core::{Infotext, Seamless};
    ///
    /// let text = "grass\nSteps: 20, Sampler: Euler, Seed: 42, Tiling: True";
    /// assert_eq!(Infotext::parse(text)?.seamless(), Seamless::BOTH);
    /// # Ok::<(), sd_core::InfotextError>(())
    /// ```
    pub fn seamless(&self) -> Seamless {
        let all = [Seamless::BOTH, Seamless::X, Seamless::Y];
        let mut written = all
            .into_iter()
            .filter(|&axes| entry(axes).is_some_and(|(key, value)| self.get(key) == Some(value)));
        let is_known = |axes: &Seamless| *axes == Seamless::BOTH || !self.is_foreign();
        written.find(is_known).unwrap_or_default()
    }
}
