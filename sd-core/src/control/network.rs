//! Describes control networks to a denoiser.

use image::RgbImage;
use ndarray::{ArrayD, ArrayView4};

/// A control network of a denoiser.
///
/// ```
/// use sd_core::{ControlInputs, ControlKind};
///
/// let canny = ControlInputs::new("canny", ControlKind::ControlNet);
/// assert_eq!((canny.channels, canny.multiple), (3, 8));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ControlInputs {
    /// The name by which requests call the network.
    pub name: String,
    /// The kind of network.
    pub kind: ControlKind,
    /// The number of channels of its picture: 3, or 1 for luminance.
    ///
    /// Default: 3.
    pub channels: usize,
    /// The sides of its picture must be multiples of this number of pixels.
    ///
    /// Default: 8.
    pub multiple: usize,
    /// Whether the network acts only on the prediction for the prompt, in every
    /// [mode](crate::ControlMode), as ControlNets with pooled outputs do.
    ///
    /// Default: false.
    pub prompt_only: bool,
}

/// The kind of a control network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ControlKind {
    /// A ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of the denoiser's first half,
    /// which is called in every step.
    ControlNet,
    /// A T2I-Adapter (Mou et al. 2023, arXiv 2302.08453): a small network, which is called once.
    Adapter,
    /// An IP-Adapter (Ye et al. 2023, arXiv 2308.06721): the denoiser attends to an encoded
    /// picture.
    ImagePrompt,
}

impl ControlInputs {
    /// Describes a control network.
    pub fn new(name: impl Into<String>, kind: ControlKind) -> Self {
        Self {
            name: name.into(),
            kind,
            channels: 3,
            multiple: 8,
            prompt_only: false,
        }
    }

    /// Sets [`channels`](Self::channels).
    pub fn channels(mut self, channels: usize) -> Self {
        self.channels = channels;
        self
    }

    /// Sets [`multiple`](Self::multiple).
    pub fn multiple(mut self, pixels: usize) -> Self {
        self.multiple = pixels;
        self
    }

    /// Sets [`prompt_only`](Self::prompt_only).
    pub fn prompt_only(mut self, prompt_only: bool) -> Self {
        self.prompt_only = prompt_only;
        self
    }
}

/// The picture that a control network reads, once for each control and pass of a request.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum ControlInput<'a> {
    /// The values of the picture, `[1, channels, height, width]` in the size of the run, for
    /// ControlNets and T2I-Adapters. They are `0.0..=1.0`, except that masked pixels are −1. The
    /// values of [`ControlPicture::Values`](crate::ControlPicture::Values) may be any finite
    /// numbers.
    Values(ArrayView4<'a, f32>),
    /// The picture in its own size, for IP-Adapters.
    Pixels(&'a RgbImage),
}

/// What a control network has read from a picture.
///
/// Only the denoiser interprets the arrays: for a ControlNet the embedded picture or its values,
/// features for a T2I-Adapter, tokens for an IP-Adapter.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Hint {
    /// The arrays for the prompt. Their first dimension is 1.
    pub prompt: Vec<ArrayD<f32>>,
    /// The arrays for the negative prompt, if they differ.
    pub negative: Option<Vec<ArrayD<f32>>>,
}

impl Hint {
    /// Creates a hint of these arrays, for the prompt and for the negative prompt.
    pub fn new(arrays: Vec<ArrayD<f32>>) -> Self {
        Self {
            prompt: arrays,
            negative: None,
        }
    }

    /// Sets [`negative`](Self::negative).
    pub fn negative(mut self, arrays: Vec<ArrayD<f32>>) -> Self {
        self.negative = Some(arrays);
        self
    }
}

/// A control network that acts in a [call](crate::Call) of a denoiser.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ControlCall<'a> {
    /// The index in [`Inputs::controls`](crate::Inputs::controls).
    pub network: usize,
    /// The arrays of the [`Hint`], for every picture of the batch.
    pub hint: &'a [ArrayD<f32>],
    /// How strongly the network acts, not 0.
    pub weight: f32,
    /// The factors of its layers.
    pub layers: ControlLayers,
}

impl<'a> ControlCall<'a> {
    /// Creates a call of a control network whose layers act equally.
    pub fn new(network: usize, hint: &'a [ArrayD<f32>], weight: f32) -> Self {
        Self {
            network,
            hint,
            weight,
            layers: ControlLayers::Equal,
        }
    }

    /// Sets [`layers`](Self::layers).
    pub fn layers(mut self, layers: ControlLayers) -> Self {
        self.layers = layers;
        self
    }

    /// Returns the factor of each of the network's `count` outputs: the weight times the factors of
    /// the [layers](Self::layers).
    pub fn factors(&self, kind: ControlKind, count: usize) -> Vec<f32> {
        let factors = self.layers.factors(kind, count).into_iter();
        factors.map(|factor| self.weight * factor).collect()
    }
}

/// The factors of the outputs of a control network, which lead to different depths of the denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ControlLayers {
    /// All factors are 1.
    #[default]
    Equal,
    /// sd-webui-controlnet's soft weights. Output `i` of a ControlNet has 0.825^(12 − i), whatever
    /// the number of outputs is. The outputs of a T2I-Adapter have 0.25, 0.62, 0.825 and 1.
    Soft,
    /// diffusers' weights of `guess_mode`, which grow from 0.1 to 1 in equal ratios.
    Guess,
}

impl ControlLayers {
    /// Returns the factors for `count` outputs.
    fn factors(self, kind: ControlKind, count: usize) -> Vec<f32> {
        match (self, kind) {
            (Self::Equal, _) | (_, ControlKind::ImagePrompt) => vec![1.0; count],
            (Self::Soft, ControlKind::Adapter) => {
                let factors = [0.25, 0.62, 0.825];
                (0..count)
                    .map(|i| factors.get(i).copied().unwrap_or(1.0))
                    .collect()
            }
            (Self::Soft, ControlKind::ControlNet) => (0..count)
                .map(|i| 0.825_f64.powi(12 - i as i32) as f32)
                .collect(),
            (Self::Guess, _) => {
                let last = count.saturating_sub(1).max(1) as f32;
                (0..count)
                    .map(|i| 10_f32.powf(i as f32 / last - 1.0))
                    .collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published weights: `torch.logspace(-1, 0, 13)` in diffusers' `controlnet.py`, and the
    /// soft weights of sd-webui-controlnet's `hook.py`.
    #[test]
    fn layers_have_the_published_factors() {
        let hint = [];
        let of = |layers, kind, count| {
            let call = ControlCall::new(0, &hint, 2.0).layers(layers);
            call.factors(kind, count)
        };
        let net = ControlKind::ControlNet;
        assert_eq!(of(ControlLayers::Equal, net, 2), [2.0, 2.0]);
        let guess = of(ControlLayers::Guess, net, 13);
        for (i, expected) in [(0, 0.2), (6, 0.632_455_6), (12, 2.0)] {
            assert!((guess[i] - expected).abs() < 1e-6, "{guess:?}");
        }
        let soft = of(ControlLayers::Soft, net, 10);
        for (i, expected) in [(0, 0.198_827_92), (9, 1.123_031_2)] {
            assert!((soft[i] - expected).abs() < 1e-6, "{soft:?}");
        }
        let soft = of(ControlLayers::Soft, ControlKind::Adapter, 4);
        assert_eq!(soft, [0.5, 1.24, 1.65, 2.0]);
    }
}
