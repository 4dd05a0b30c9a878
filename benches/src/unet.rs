//! Timed calls of a UNet.

use std::time::Instant;

use ndarray::{Array2, Array3, Array4};
use sd_onnx::{Call, ControlCall, Denoiser, StopToken, text::BoxError};

/// The inputs of a UNet call.
#[derive(Debug)]
pub struct Run {
    latents: Array4<f32>,
    context: Array3<f32>,
    pooled: Option<Array2<f32>>,
    sizes: Option<Array2<f32>>,
    stop: StopToken,
}

impl Run {
    /// Makes inputs for latents of this height and width. SDXL's inputs are ones.
    pub fn new(denoiser: &dyn Denoiser, side: usize) -> Self {
        let inputs = denoiser.inputs();
        let wave = |i: usize| (i as f32 * 0.37).sin();
        Self {
            latents: Array4::from_shape_fn((1, inputs.channels, side, side), |(_, c, y, x)| {
                wave(c * 4099 + y * 67 + x * 3)
            }),
            context: Array3::from_shape_fn((1, 77, inputs.context), |(_, i, j)| wave(i * 7 + j)),
            pooled: inputs.pooled.map(|width| Array2::ones((1, width))),
            sizes: inputs.sizes.map(|ids| Array2::ones((1, ids.count()))),
            stop: StopToken::new(),
        }
    }

    /// Returns the time of a call in which these control networks act, in seconds.
    ///
    /// # Errors
    /// Any error of the denoiser.
    pub fn time<'a>(
        &'a self,
        denoiser: &dyn Denoiser,
        controls: &'a [ControlCall<'a>],
    ) -> Result<f64, BoxError> {
        self.time_of(denoiser, |call| call.controls(controls))
    }

    /// Returns the time of a call that `change` may change, in seconds.
    ///
    /// # Errors
    /// Any error of the denoiser.
    pub fn time_of<'a>(
        &'a self,
        denoiser: &dyn Denoiser,
        change: impl FnOnce(Call<'a>) -> Call<'a>,
    ) -> Result<f64, BoxError> {
        let mut call = Call::new(self.latents.view(), 500.0, self.context.view(), &self.stop);
        call.pooled = self.pooled.as_ref().map(|pooled| pooled.view());
        call.sizes = self.sizes.as_ref().map(|sizes| sizes.view());
        let mut output = Array4::zeros(self.latents.dim());
        let started = Instant::now();
        denoiser.predict(&change(call), output.view_mut())?;
        Ok(started.elapsed().as_secs_f64())
    }
}
