//! The parts of a pipeline on ONNX Runtime: text model, denoiser, codec.

use std::sync::{Arc, OnceLock};

use ndarray::{
    Array3, Array4, ArrayD, ArrayView2, ArrayView3, ArrayView4, ArrayViewMut4, Axis, Slice,
};
use sd_core::{BoxError, Denoiser, LatentCodec, LatentDistribution, LatentRgb, StopToken};
use sd_text::{ClipSkip, TextModel};

use crate::{
    Error,
    models::{
        clip_text::{self, ClipTextConfig},
        unet::{self, UnetConfig},
        vae::{self, VaeConfig},
    },
    runtime::Runtime,
    session::{Input, Session},
    weights::Weights,
};

/// CLIP's text transformer.
#[derive(Debug)]
pub(crate) struct OnnxTextModel {
    config: ClipTextConfig,
    /// Those of the file and those behind them.
    vocab_size: usize,
    session: Session,
}

impl OnnxTextModel {
    /// `more` `[any, width]` are rows of the token embedding behind the stored ones.
    pub fn new(
        config: ClipTextConfig,
        weights: &Weights,
        more: ArrayView2<'_, f32>,
        runtime: &Arc<Runtime>,
        threads: u16,
    ) -> Result<Self, Error> {
        let session = Session::new(
            "text encoder",
            &clip_text::graph(&config, weights, more)?,
            runtime,
            threads,
        )?;
        Ok(Self {
            vocab_size: config.vocab_size + more.nrows(),
            config,
            session,
        })
    }

    /// The width of the output [`clip_text::PROJECTION`], if there is one.
    pub fn projection(&self) -> Option<usize> {
        self.config.projection
    }

    /// What the outputs of these names hold for `ids` `[batch, length]`, and for one token of each
    /// text, at `ends`.
    pub fn run(
        &self,
        ids: ArrayView2<'_, i64>,
        ends: &[i64],
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, BoxError> {
        let shape = [ids.nrows(), ids.ncols()];
        let ids = ids.as_standard_layout();
        let ids = ids.as_slice().expect("standard layout");
        let inputs = [
            ("input_ids", Input::I64(&shape, ids)),
            ("ends", Input::I64(&[ends.len(), 1], ends)),
        ];
        Ok(self.session.run_for(inputs, outputs)?)
    }
}

impl TextModel for OnnxTextModel {
    fn layers(&self) -> usize {
        self.config.layers
    }

    fn width(&self) -> usize {
        self.config.width
    }

    fn max_length(&self) -> usize {
        self.config.max_length
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn hidden_states(
        &self,
        ids: ArrayView2<'_, i64>,
        clip_skip: ClipSkip,
    ) -> Result<Array3<f32>, BoxError> {
        let output = clip_text::output_name(clip_skip.number());
        // Nothing is pooled.
        let ends = vec![0; ids.nrows()];
        let states = self.run(ids, &ends, &[&output])?.remove(0);
        Ok(states.into_dimensionality()?)
    }
}

/// The UNet.
pub(crate) struct OnnxDenoiser {
    config: UnetConfig,
    session: Session,
}

impl OnnxDenoiser {
    pub fn new(
        config: UnetConfig,
        weights: &Weights,
        runtime: &Arc<Runtime>,
        threads: u16,
    ) -> Result<Self, Error> {
        let session = Session::new("UNet", &unet::graph(&config, weights)?, runtime, threads)?;
        Ok(Self { config, session })
    }

    /// Height and width of the latents the model was made for.
    pub fn sample_size(&self) -> [usize; 2] {
        self.config.sample_size
    }
}

impl Denoiser for OnnxDenoiser {
    fn latent_channels(&self) -> usize {
        self.config.in_channels
    }

    fn context_width(&self) -> usize {
        self.config.cross_attention_dim
    }

    fn predict(
        &self,
        latents: ArrayView4<'_, f32>,
        timestep: f32,
        context: ArrayView3<'_, f32>,
        mut output: ArrayViewMut4<'_, f32>,
        stop: &StopToken,
    ) -> Result<(), BoxError> {
        let (shape, context_shape) = (latents.shape(), context.shape());
        let (latents, context) = (latents.as_standard_layout(), context.as_standard_layout());
        let inputs = [
            (
                "sample",
                Input::F32(shape, latents.as_slice().expect("standard layout")),
            ),
            ("timestep", Input::F32(&[1], &[timestep])),
            (
                "encoder_hidden_states",
                Input::F32(context_shape, context.as_slice().expect("standard layout")),
            ),
        ];
        let dim = output.dim();
        self.session.run(inputs, stop, |_, data| {
            ArrayView4::from_shape(dim, data).map(|prediction| output.assign(&prediction))
        })??;
        Ok(())
    }
}

/// The autoencoder. The encoder's session is made when it is first used: text to image never needs it.
pub(crate) struct OnnxCodec {
    config: VaeConfig,
    decoder: Session,
    weights: Weights,
    runtime: Arc<Runtime>,
    threads: u16,
    encoder: OnceLock<Session>,
}

impl OnnxCodec {
    pub fn new(
        config: VaeConfig,
        weights: Weights,
        runtime: &Arc<Runtime>,
        threads: u16,
    ) -> Result<Self, Error> {
        let decoder = Session::new(
            "VAE decoder",
            &vae::decoder(&config, &weights)?,
            runtime,
            threads,
        )?;
        Ok(Self {
            config,
            decoder,
            weights,
            runtime: runtime.clone(),
            threads,
            encoder: OnceLock::new(),
        })
    }

    fn encoder(&self) -> Result<&Session, Error> {
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder);
        }
        let model = vae::encoder(&self.config, &self.weights)?;
        let encoder = Session::new("VAE encoder", &model, &self.runtime, self.threads)?;
        // Two threads may both have made one; the first stays.
        Ok(self.encoder.get_or_init(|| encoder))
    }
}

impl LatentCodec for OnnxCodec {
    fn latent_channels(&self) -> usize {
        self.config.latent_channels
    }

    fn factor(&self) -> usize {
        self.config.factor()
    }

    fn decode(
        &self,
        latents: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<Array4<f32>, BoxError> {
        let VaeConfig {
            scaling_factor,
            shift_factor,
            ..
        } = self.config;
        let latents = latents.mapv(|v| v / scaling_factor + shift_factor);
        let latents = latents.as_standard_layout();
        run_image(&self.decoder, "latents", latents.view(), stop)
    }

    fn encode(&self, image: ArrayView4<'_, f32>) -> Result<LatentDistribution, BoxError> {
        let moments = run_image(self.encoder()?, "image", image, &StopToken::new())?;
        let channels = self.config.latent_channels as isize;
        let part = |from, to| {
            moments
                .slice_axis(Axis(1), Slice::new(from, Some(to), 1))
                .to_owned()
        };
        Ok(LatentDistribution {
            mean: part(0, channels),
            // As diffusers' `DiagonalGaussianDistribution` clamps it.
            log_variance: part(channels, 2 * channels).mapv_into(|v| v.clamp(-30.0, 20.0)),
            scale: self.config.scaling_factor,
            shift: self.config.shift_factor,
        })
    }

    fn latent_rgb(&self) -> Option<LatentRgb> {
        let config = &self.config;
        let is_sd1 = config.latent_channels == 4
            && config.factor() == 8
            && config.scaling_factor == 0.18215
            && config.shift_factor == 0.0;
        is_sd1.then(sd1_latent_rgb)
    }
}

/// The colours of SD 1.x's latents, which SD 2.x has too: the facts of `latent_rgb_factors` of `SD15` in ComfyUI's
/// `comfy/latent_formats.py`, which its `latent_preview.py` uses as they are here, between −1 and 1 and without a bias.
fn sd1_latent_rgb() -> LatentRgb {
    LatentRgb {
        weights: vec![
            [0.3512, 0.2297, 0.3227],
            [0.3250, 0.4974, 0.2350],
            [-0.2829, 0.1762, 0.2721],
            [-0.2120, -0.2616, -0.7177],
        ],
        bias: [0.0; 3],
    }
}

/// Runs a session of one image input and one image output.
fn run_image(
    session: &Session,
    input: &str,
    x: ArrayView4<'_, f32>,
    stop: &StopToken,
) -> Result<Array4<f32>, BoxError> {
    let shape = x.shape();
    let x = x.as_standard_layout();
    let inputs = [(
        input,
        Input::F32(shape, x.as_slice().expect("standard layout")),
    )];
    Ok(session.run(inputs, stop, |shape, data| {
        let dims: Vec<usize> = shape.iter().map(|&side| side as usize).collect();
        let [n, c, h, w] = dims[..] else {
            unreachable!("the graph's output has four dimensions")
        };
        Array4::from_shape_vec((n, c, h, w), data.to_vec())
    })??)
}
