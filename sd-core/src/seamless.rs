//! The axes along which a picture continues at its other edge.

use serde::{Deserialize, Serialize};

/// The axes along which a picture can be repeated without a visible seam.
///
/// A network that draws such pictures has no edges on these axes: its convolutions read past one
/// edge from the opposite edge, where they usually read zeros. A denoiser reports its axes as
/// [`Inputs::seamless`](crate::Inputs::seamless), and the codec of the same pipeline should have
/// the same axes. WebUI calls both axes together "Tiling".
///
/// With serde it is an object such as `{"x": true, "y": false}`.
///
/// ```
/// use sd_core::Seamless;
///
/// let panorama = Seamless { x: true, y: false };
/// assert_eq!(panorama, Seamless::X);
/// assert_eq!(Seamless::default(), Seamless::NONE);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Seamless {
    /// Whether the right edge continues at the left edge.
    ///
    /// Default: false.
    pub x: bool,
    /// Whether the bottom edge continues at the top edge.
    ///
    /// Default: false.
    pub y: bool,
}

impl Seamless {
    /// No axis: an ordinary picture.
    pub const NONE: Self = Self { x: false, y: false };
    /// The horizontal axis, as for a panorama of 360°.
    pub const X: Self = Self { x: true, y: false };
    /// The vertical axis.
    pub const Y: Self = Self { x: false, y: true };
    /// Both axes, as for the texture of a surface.
    pub const BOTH: Self = Self { x: true, y: true };
}
