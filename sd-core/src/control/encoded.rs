//! The controls of a run, as far as they do not change from step to step.

use std::sync::Arc;

use image::{GrayImage, Rgb, RgbImage};
use ndarray::{Array4, ArrayView2, Axis, Zip, s};

use super::{
    Control, ControlCall, ControlInput, ControlInputs, ControlKind, ControlLayers, ControlMode,
    ControlPicture, Hint, Preprocessor,
};
use crate::{
    Denoiser, GenerateError, ImageSize, Stage, Start, StopToken,
    start::{Prepared, Region},
};

/// A control of a run, with what the network has read from its picture.
#[derive(Debug, Clone)]
pub(crate) struct EncodedControl {
    network: usize,
    hint: Arc<Hint>,
    prompt_only: bool,
    weight: f32,
    /// The shares of the run's steps between which the picture acts.
    during: [f32; 2],
    mode: ControlMode,
}

impl EncodedControl {
    /// Lets the networks read the pictures of the controls. Controls of weight 0 are left out.
    ///
    /// # Errors
    /// [`GenerateError::Backend`] if a network fails.
    pub fn all(
        controls: &[Control],
        start: Option<&Start>,
        size: ImageSize,
        denoiser: &dyn Denoiser,
        stop: &StopToken,
    ) -> Result<Vec<Self>, GenerateError> {
        let acting = controls.iter().filter(|control| control.weight != 0.0);
        let encode = |control| Self::new(control, start, size, denoiser, stop);
        acting.map(encode).collect()
    }

    fn new(
        control: &Control,
        start: Option<&Start>,
        size: ImageSize,
        denoiser: &dyn Denoiser,
        stop: &StopToken,
    ) -> Result<Self, GenerateError> {
        if stop.is_stopped() {
            return Err(GenerateError::Stopped(Box::default()));
        }
        let networks = &denoiser.inputs().controls;
        let network = networks.iter().position(|of| of.name == control.network);
        // The denoiser of a LoRA library may lack a network that the pipeline's own one has.
        let network = network.ok_or_else(|| GenerateError::Backend {
            stage: Stage::Control {
                network: control.network.clone(),
            },
            source: "the denoiser has no such control network".into(),
        })?;
        let inputs = &networks[network];
        let hint = match (inputs.kind, &control.picture) {
            (ControlKind::ImagePrompt, ControlPicture::Pixels(_)) => {
                let picture = pixels(control);
                denoiser.read_control(network, ControlInput::Pixels(&picture), stop)
            }
            _ => {
                let values = values(control, inputs, start, size);
                denoiser.read_control(network, ControlInput::Values(values.view()), stop)
            }
        };
        let hint = hint.map_err(|source| match stop.is_stopped() {
            true => GenerateError::Stopped(Box::default()),
            false => GenerateError::Backend {
                stage: Stage::Control {
                    network: inputs.name.clone(),
                },
                source,
            },
        })?;
        Ok(Self {
            network,
            hint: hint.into(),
            prompt_only: inputs.prompt_only,
            weight: control.weight,
            during: [control.start, control.end],
            mode: control.mode,
        })
    }

    /// Returns the call of the network in step `step` of a run of `steps` steps, for the prompt or
    /// for the negative prompt. `None` if the picture does not act.
    pub fn call(&self, negative: bool, step: usize, steps: usize) -> Option<ControlCall<'_>> {
        // A sampler may make more steps than there are rungs.
        let step = step.min(steps.saturating_sub(1));
        let share = |step: usize| step as f32 / steps.max(1) as f32;
        let [start, end] = self.during;
        if share(step) < start || share(step + 1) > end {
            return None;
        }
        let (layers, of_prompt) = match self.mode {
            ControlMode::Balanced => (ControlLayers::Equal, false),
            ControlMode::Prompt => (ControlLayers::Soft, false),
            ControlMode::Control => (ControlLayers::Soft, true),
            // diffusers does not weight the layers of a network with pooled outputs.
            ControlMode::Guess if self.prompt_only => (ControlLayers::Equal, true),
            ControlMode::Guess => (ControlLayers::Guess, true),
        };
        if negative && (of_prompt || self.prompt_only) {
            return None;
        }
        let hint = match &self.hint.negative {
            Some(hint) if negative => hint,
            _ => &self.hint.prompt,
        };
        Some(ControlCall::new(self.network, hint, self.weight).layers(layers))
    }
}

/// Returns the values of a control's picture, `[1, channels, height, width]`, in the size of the
/// run.
fn values(
    control: &Control,
    inputs: &ControlInputs,
    start: Option<&Start>,
    size: ImageSize,
) -> Array4<f32> {
    let prepared = || start.and_then(|start| Prepared::new(start, size));
    match &control.picture {
        ControlPicture::Pixels(_) => {
            let drawn_in_part = start.filter(|start| start.only_masked().is_some());
            let region = drawn_in_part.and_then(|_| prepared()?.region);
            of_picture(&fitted(control, region, inputs, size), inputs)
        }
        ControlPicture::Values(values) => values.to_owned().insert_axis(Axis(0)),
        ControlPicture::Start => {
            let prepared = prepared().expect("the plan has checked that there is a picture");
            let mut values = of_picture(&prepared.picture, inputs);
            if let Some(mask) = &prepared.mask {
                hide(&mut values, mask);
            }
            values
        }
    }
}

/// Fits the picture of a control to the size of the run, and lets its preprocessor work on it. If
/// only a region of the start is drawn, the same region of the picture is used.
fn fitted(
    control: &Control,
    region: Option<Region>,
    inputs: &ControlInputs,
    size: ImageSize,
) -> RgbImage {
    let mut picture = pixels(control);
    if inputs.channels == 1 && control.preprocessor == Preprocessor::None {
        // Pillow rounds the luminance before it scales.
        picture = luminance(&picture);
    }
    let to = [size.width(), size.height()];
    let fitted = match region {
        Some(region) => region.of(&picture, control.resize, to),
        None => control.resize.to(&picture, to),
    };
    let made = control.preprocessor.apply(&fitted);
    made.expect("the plan has checked the parameters")
}

/// Sets the pixels under a mask to −1, as in diffusers' inputs for ControlNets of inpainting.
fn hide(values: &mut Array4<f32>, mask: &GrayImage) {
    let [height, width] = [mask.height(), mask.width()].map(|side| side as usize);
    let mask = ArrayView2::from_shape((height, width), mask.as_raw());
    let mask = mask.expect("a gray picture has one value per pixel");
    for mut channel in values.slice_mut(s![0, .., .., ..]).outer_iter_mut() {
        Zip::from(&mut channel).and(&mask).for_each(|value, &mask| {
            if mask > 127 {
                *value = -1.0;
            }
        });
    }
}

/// Returns the picture of a control.
fn pixels(control: &Control) -> RgbImage {
    let ControlPicture::Pixels(pixels) = &control.picture else {
        unreachable!("the plan refuses other pictures here");
    };
    let (height, width, _) = pixels.dim();
    let values = pixels.iter().copied().collect();
    let picture = RgbImage::from_raw(width as u32, height as u32, values);
    picture.expect("the plan has checked the shape")
}

/// Returns the values of a picture, `0.0..=1.0`.
fn of_picture(picture: &RgbImage, inputs: &ControlInputs) -> Array4<f32> {
    let gray = (inputs.channels == 1).then(|| luminance(picture));
    let picture = gray.as_ref().unwrap_or(picture);
    let (width, height) = picture.dimensions();
    let shape = (1, inputs.channels, height as usize, width as usize);
    Array4::from_shape_fn(shape, |(_, c, y, x)| {
        f32::from(picture.get_pixel(x as u32, y as u32).0[c]) / 255.0
    })
}

/// Returns a picture in gray, by its luminance, as Pillow converts RGB.
fn luminance(picture: &RgbImage) -> RgbImage {
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [red, green, blue] = picture.get_pixel(x, y).0.map(u32::from);
        let sum = red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000;
        Rgb([(sum >> 16) as u8; 3])
    })
}
