//! Pictures that steer a run: ControlNets, T2I-Adapters and IP-Adapters.

mod encoded;
mod network;
mod preprocess;

use image::RgbImage;
use ndarray::{ArcArray, Array, Ix3};
use serde::{Deserialize, Serialize};

pub(crate) use self::encoded::EncodedControl;
pub use self::network::{
    ControlCall, ControlInput, ControlInputs, ControlKind, ControlLayers, Hint,
};
pub use self::preprocess::Preprocessor;
use crate::Resize;

/// The largest number of controls of a request, 16.
pub const MAX_CONTROLS: usize = 16;

/// A picture that steers a run through a control network of the pipeline.
///
/// A ControlNet or a T2I-Adapter makes the run follow the lines, depths or poses in the picture,
/// whichever it was trained for. An IP-Adapter makes the run draw what the picture shows, as if the
/// picture were a part of the prompt. The pipeline lists its networks as
/// [`controls`](crate::Inputs::controls) of the denoiser's inputs.
///
/// A request has at most [`MAX_CONTROLS`] controls. It may use a ControlNet or a T2I-Adapter
/// several times, but each IP-Adapter only once. Controls act on both passes of a request with a
/// [second pass](crate::Hires), and not on a refiner.
///
/// ```
/// use sd_core::{Control, Request, image::RgbImage};
///
/// let edges = RgbImage::new(512, 512);
/// let request = Request::new("a fox").control(Control::new("canny", edges).weight(0.8));
/// # assert_eq!(request.controls[0].weight, 0.8);
/// ```
///
/// With serde it is an object with a key for each field. Only `network` and `picture` are required.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Control {
    /// The name of the control network: the [name](ControlInputs::name) that the pipeline has for
    /// it. In `sd-onnx`, `control_name` describes the rule: usually it is the name of the file
    /// without the extension.
    pub network: String,
    /// The picture.
    ///
    /// With [`Mask::only_masked`](crate::Mask::only_masked), it covers the whole start: it is
    /// fitted to the size of the start, and the drawn region is cut out of both.
    /// [`ControlPicture::Values`] are not cut and must show only the region that is drawn. An
    /// IP-Adapter sees the whole picture.
    pub picture: ControlPicture,
    /// How strongly the picture acts, a finite number. 0.5 to 1.5 is useful. At 0 the network is
    /// not called, and the result is the same as without the control.
    ///
    /// Default: 1.
    #[serde(default = "default_weight")]
    pub weight: f32,
    /// The share of the run's steps before the picture begins to act, `0.0..=1.0`.
    ///
    /// The rule is diffusers' (`control_guidance_start` and `control_guidance_end`): in a run of
    /// `n` steps, the picture acts in step `i`, counted from 0, if `i / n >= start` and
    /// `(i + 1) / n <= end`. In a run of 20 steps, `during(0.0, 0.5)` acts in the first ten. A
    /// sampler such as Heun calls the network twice in a step, but only the steps are counted. A
    /// run that starts from a picture has fewer steps than its ladder.
    ///
    /// Default: 0.
    #[serde(default)]
    pub start: f32,
    /// The share of the run's steps after which the picture does not act any more,
    /// `start..=1.0`.
    ///
    /// Default: 1.
    #[serde(default = "default_end")]
    pub end: f32,
    /// Whether the picture or the prompt wins where they disagree. An IP-Adapter accepts only the
    /// default.
    ///
    /// Default: [`ControlMode::Balanced`].
    #[serde(default)]
    pub mode: ControlMode,
    /// How a picture of another size or shape is fitted to the size of the request. An IP-Adapter
    /// ignores it: it sees the centre of the picture, cut to a square, as CLIP does.
    /// [`Resize::Latent`] is refused.
    ///
    /// Default: [`Resize::Stretch`] with Pillow's Lanczos filter, as in diffusers.
    #[serde(default)]
    pub resize: Resize,
    /// What is done to a picture of pixels after it was fitted to the size, such as finding its
    /// edges. An IP-Adapter and the other forms of [`ControlPicture`] accept only the default.
    ///
    /// Default: [`Preprocessor::None`].
    #[serde(default)]
    pub preprocessor: Preprocessor,
}

/// The picture of a [`Control`].
///
/// With serde it is `{"pixels": …}` or `{"values": …}` with an array of `ndarray`'s format, or
/// `"start"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ControlPicture {
    /// A picture, `[height, width, 3]`, red, green and blue. Networks of one channel get its
    /// luminance.
    Pixels(ArcArray<u8, Ix3>),
    /// Values as the network takes them, `[channels, height, width]` in the size of the request,
    /// usually `0.0..=1.0`. All numbers must be finite. A request with a second pass in a larger
    /// size refuses them, because they are not resized. An IP-Adapter does not accept them.
    Values(ArcArray<f32, Ix3>),
    /// The picture in [`Request::start`](crate::Request::start), in which the pixels under the mask
    /// are −1: the input of a ControlNet for inpainting. Without a mask, nothing is hidden.
    /// An IP-Adapter does not accept it.
    Start,
}

/// Whether the picture of a [`Control`] or the prompt wins where they disagree.
///
/// The names in quotation marks are sd-webui-controlnet's.
/// A T2I-Adapter has four layers, whose factors in the second and the third mode are 0.25, 0.62,
/// 0.825 and 1. The factors of a ControlNet's layers are 0.825^(12 − i), where `i` counts the
/// layers from 0.
///
/// With serde it is a name in lower case, such as `"prompt"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ControlMode {
    /// All layers act fully, on the prompt and on the negative prompt: "Balanced".
    #[default]
    Balanced,
    /// Each layer has a smaller factor than the next one: "My prompt is more important".
    Prompt,
    /// The same factors, but the network acts only on the prediction for the prompt. Guidance then
    /// enlarges its effect: "ControlNet is more important".
    Control,
    /// diffusers' `guess_mode`, for ControlNets and without a prompt. Only the prediction for the
    /// prompt is changed, and the factors of the layers grow from 0.1 to 1 in equal ratios. A
    /// T2I-Adapter refuses it.
    Guess,
}

fn default_weight() -> f32 {
    1.0
}

fn default_end() -> f32 {
    1.0
}

impl Control {
    /// Steers a run by a picture through the control network `network`.
    pub fn new(network: impl Into<String>, picture: impl Into<ControlPicture>) -> Self {
        Self {
            network: network.into(),
            picture: picture.into(),
            weight: default_weight(),
            start: 0.0,
            end: default_end(),
            mode: ControlMode::default(),
            resize: Resize::default(),
            preprocessor: Preprocessor::None,
        }
    }

    /// Sets [`weight`](Self::weight).
    pub fn weight(mut self, weight: f32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets [`start`](Self::start) and [`end`](Self::end): the part of the run in which the picture
    /// acts, in shares of its steps.
    ///
    /// ```
    /// # use sd_core::{Control, image::RgbImage};
    /// // The edges decide the composition only.
    /// let control = Control::new("canny", RgbImage::new(512, 512)).during(0.0, 0.5);
    /// # assert_eq!(control.end, 0.5);
    /// ```
    pub fn during(mut self, start: f32, end: f32) -> Self {
        (self.start, self.end) = (start, end);
        self
    }

    /// Sets [`mode`](Self::mode).
    pub fn mode(mut self, mode: ControlMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets [`resize`](Self::resize).
    pub fn resize(mut self, resize: Resize) -> Self {
        self.resize = resize;
        self
    }

    /// Sets [`preprocessor`](Self::preprocessor).
    ///
    /// ```
    /// use sd_core::{Control, Preprocessor, image::RgbImage};
    ///
    /// let photo = RgbImage::new(512, 512);
    /// let edges = Preprocessor::Canny { low: 100, high: 200 };
    /// let control = Control::new("canny", photo).preprocessor(edges);
    /// # assert_eq!(control.preprocessor, edges);
    /// ```
    pub fn preprocessor(mut self, preprocessor: Preprocessor) -> Self {
        self.preprocessor = preprocessor;
        self
    }
}

impl From<RgbImage> for ControlPicture {
    fn from(picture: RgbImage) -> Self {
        let shape = [picture.height() as usize, picture.width() as usize, 3];
        let pixels = Array::from_shape_vec(shape, picture.into_raw());
        Self::Pixels(
            pixels
                .expect("a picture has three values per pixel")
                .into_shared(),
        )
    }
}

impl From<Array<f32, Ix3>> for ControlPicture {
    fn from(values: Array<f32, Ix3>) -> Self {
        Self::Values(values.into_shared())
    }
}
