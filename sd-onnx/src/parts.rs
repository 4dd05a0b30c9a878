//! The parts of a pipeline on ONNX Runtime: text model, denoiser, codec.

use std::sync::OnceLock;

use ndarray::{
    Array2, Array4, ArrayD, ArrayView2, ArrayView4, ArrayViewMut4, Axis, CowArray, Dimension, Slice,
};
use sd_core::{
    BoxError, Call, Denoiser, Inputs, LatentCodec, LatentDistribution, LatentRgb, StopToken,
};
use sd_text::{Layer, TextModel, TextShape, TextStates};

use crate::{
    Error,
    engine::Engine,
    exported::{Codec, Limits, TextFile, TextGraph, UnetGraph},
    graph::Model,
    models::{
        clip_text::{self, ClipTextConfig, ENDS, IDS, PROJECTION},
        unet::{self, UnetConfig, input},
        vae::{self, VaeConfig},
    },
    session::{Input, Session},
    weights::Weights,
};

/// CLIP's text transformer.
#[derive(Debug)]
pub(crate) struct OnnxTextModel {
    config: ClipTextConfig,
    shape: TextShape,
    session: Session,
    /// What an exported graph has, which may be less than all.
    exported: Option<TextGraph>,
}

impl OnnxTextModel {
    /// `more` `[any, width]` are rows of the token embedding behind the stored ones.
    pub fn new(
        config: ClipTextConfig,
        weights: &Weights,
        more: ArrayView2<'_, f32>,
        engine: &Engine,
    ) -> Result<Self, Error> {
        let graph = text_graph(&config, weights, more)?;
        Ok(Self {
            session: engine.session("text encoder", &graph)?,
            shape: text_shape(&config, more),
            config,
            exported: None,
        })
    }

    /// As [`new`](Self::new), of a graph that another tool exported.
    pub fn exported(
        file: &TextFile,
        more: ArrayView2<'_, f32>,
        engine: &Engine,
    ) -> Result<Self, Error> {
        let graph = file.graph(more)?;
        Ok(Self {
            session: engine.session("text encoder", &graph.model)?,
            shape: text_shape(file.config(), more),
            config: file.config().clone(),
            exported: Some(graph),
        })
    }

    /// Returns the outputs of these names for `ids` `[batch, length]`. `ends` is the place of one
    /// token in each text.
    pub fn outputs(
        &self,
        ids: ArrayView2<'_, i64>,
        ends: &[i64],
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, BoxError> {
        let shape = [ids.nrows(), ids.ncols()];
        if let Some(graph) = &self.exported {
            graph.limits.check(IDS, &shape)?;
            outputs.iter().try_for_each(|output| graph.check(output))?;
        }
        let ids = ids.as_standard_layout();
        let ids = ids.as_slice().expect("standard layout");
        let inputs = [
            (IDS, Input::I64(&shape, ids)),
            (ENDS, Input::I64(&[ends.len(), 1], ends)),
        ];
        Ok(self.session.run_for(&inputs, outputs)?)
    }
}

impl TextModel for OnnxTextModel {
    fn shape(&self) -> TextShape {
        self.shape
    }

    fn run(&self, ids: ArrayView2<'_, i64>, layer: Layer) -> Result<TextStates, BoxError> {
        let ends: Vec<_> = ids
            .outer_iter()
            .map(|ids| self.config.end_of(ids))
            .collect();
        let name = clip_text::output_name(layer);
        let mut names = vec![name.as_str()];
        names.extend(self.config.projection.map(|_| PROJECTION));
        let mut outputs = self.outputs(ids, &ends, &names)?.into_iter();
        let hidden = outputs.next().expect("an array for each name");
        Ok(TextStates {
            hidden: hidden.into_dimensionality()?,
            pooled: match outputs.next() {
                Some(pooled) => Some(pooled.into_dimensionality()?),
                None => None,
            },
        })
    }
}

/// Writes the graph of a text encoder and checks that it uses all weights.
pub(crate) fn text_graph(
    config: &ClipTextConfig,
    weights: &Weights,
    more: ArrayView2<'_, f32>,
) -> Result<Model, Error> {
    let graph = clip_text::graph(config, weights, more)?;
    weights.check_all_used(clip_text::CLASS, |name| {
        clip_text::is_left_out(config, name)
    })?;
    Ok(graph)
}

/// `more` are rows of the token embedding behind the stored ones.
fn text_shape(config: &ClipTextConfig, more: ArrayView2<'_, f32>) -> TextShape {
    let mut shape = TextShape::new(config.layers, config.width)
        .max_length(config.max_length)
        .vocab_size(config.vocab_size + more.nrows());
    shape.pooled = config.projection;
    shape
}

/// The UNet.
pub(crate) struct OnnxDenoiser {
    inputs: Inputs,
    /// The width of the sinusoids of the guidance scale, if it is an input.
    guidance_width: Option<usize>,
    sample_size: [usize; 2],
    /// The sizes that an exported graph takes.
    limits: Limits,
    session: Session,
}

impl OnnxDenoiser {
    pub fn new(config: UnetConfig, weights: &Weights, engine: &Engine) -> Result<Self, Error> {
        let graph = unet_graph(&config, weights)?;
        Ok(Self {
            session: engine.session("UNet", &graph)?,
            inputs: config.inputs,
            guidance_width: config.guidance_width,
            sample_size: config.sample_size,
            limits: Limits::default(),
        })
    }

    /// A UNet that another tool exported.
    pub fn exported(graph: UnetGraph, engine: &Engine) -> Result<Self, Error> {
        Ok(Self {
            session: engine.session("UNet", &graph.model)?,
            inputs: graph.inputs,
            guidance_width: graph.guidance_width,
            sample_size: graph.sample_size,
            limits: graph.limits,
        })
    }

    /// Height and width of the latents the model was made for.
    pub fn sample_size(&self) -> [usize; 2] {
        self.sample_size
    }
}

/// Writes the graph of a UNet and checks that it uses all weights.
pub(crate) fn unet_graph(config: &UnetConfig, weights: &Weights) -> Result<Model, Error> {
    let graph = unet::graph(config, weights)?;
    weights.check_all_used(unet::CLASS, |_| false)?;
    Ok(graph)
}

impl Denoiser for OnnxDenoiser {
    fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    fn predict(&self, call: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        let latents = Contiguous::new(call.latents);
        let context = Contiguous::new(call.context);
        let pooled = call.pooled.map(Contiguous::new);
        let sizes = call.sizes.map(Contiguous::new);
        let beside = call.beside.map(Contiguous::new);
        let guidance = self.guidance_width.zip(call.guidance);
        let guidance = guidance.map(|(width, scales)| {
            let rows = scales
                .iter()
                .map(|&scale| unet::guidance_sinusoids(scale, width));
            let values: Vec<f32> = rows.flatten().collect();
            Array2::from_shape_vec((scales.len(), width), values).expect("a row for each scale")
        });
        let guidance = guidance
            .as_ref()
            .map(|sinusoids| Contiguous::new(sinusoids.view()));
        let mut inputs = vec![
            (input::LATENTS, latents.input()),
            (
                input::TIMESTEP,
                Input::F32(&[1], std::slice::from_ref(&call.timestep)),
            ),
            (input::CONTEXT, context.input()),
        ];
        let takes = &self.inputs;
        for (name, taken, given) in [
            (
                input::BESIDE,
                takes.beside > 0,
                beside.as_ref().map(Contiguous::input),
            ),
            (
                input::POOLED,
                takes.pooled.is_some(),
                pooled.as_ref().map(Contiguous::input),
            ),
            (
                input::SIZES,
                takes.sizes.is_some(),
                sizes.as_ref().map(Contiguous::input),
            ),
            (
                input::GUIDANCE,
                takes.guidance,
                guidance.as_ref().map(Contiguous::input),
            ),
        ] {
            if taken {
                let missing = || format!("the call has no `{name}`, which this UNet takes");
                inputs.push((name, given.ok_or_else(missing)?));
            }
        }
        for (name, input) in &inputs {
            self.limits.check(name, input.shape())?;
        }
        let dim = output.dim();
        self.session.run(&inputs, call.stop, |_, data| {
            ArrayView4::from_shape(dim, data).map(|prediction| output.assign(&prediction))
        })??;
        Ok(())
    }
}

/// An array in row-major order, as ONNX Runtime reads it. Copied only if it is in another order.
struct Contiguous<'a, D: Dimension>(CowArray<'a, f32, D>);

impl<'a, D: Dimension> Contiguous<'a, D> {
    fn new(array: ndarray::ArrayView<'a, f32, D>) -> Self {
        Self(match array.is_standard_layout() {
            true => array.into(),
            false => array.as_standard_layout().into_owned().into(),
        })
    }

    fn input(&self) -> Input<'_> {
        Input::F32(self.0.shape(), self.0.as_slice().expect("standard layout"))
    }
}

/// The autoencoder. The encoder's session is made when it is first used: text to image never needs it.
pub(crate) struct OnnxCodec {
    config: VaeConfig,
    decoder: Half,
    networks: Networks,
    engine: Engine,
    encoder: OnceLock<Half>,
}

/// Where the networks of an autoencoder are from.
enum Networks {
    Weights(Weights),
    Exported(Codec),
}

/// One network of an autoencoder.
struct Half {
    session: Session,
    /// The sizes that an exported graph takes.
    limits: Limits,
}

impl OnnxCodec {
    pub fn new(config: VaeConfig, weights: Weights, engine: &Engine) -> Result<Self, Error> {
        let decoder = decoder_graph(&config, &weights)?;
        Ok(Self {
            decoder: Half {
                session: engine.session("VAE decoder", &decoder)?,
                limits: Limits::default(),
            },
            config,
            networks: Networks::Weights(weights),
            engine: engine.clone(),
            encoder: OnceLock::new(),
        })
    }

    /// An autoencoder that another tool exported.
    pub fn exported(codec: Codec, engine: &Engine) -> Result<Self, Error> {
        let (decoder, limits) = codec.decoder()?;
        Ok(Self {
            decoder: Half {
                session: engine.session("VAE decoder", &decoder)?,
                limits,
            },
            config: codec.config.clone(),
            networks: Networks::Exported(codec),
            engine: engine.clone(),
            encoder: OnceLock::new(),
        })
    }

    fn encoder(&self) -> Result<&Half, Error> {
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder);
        }
        let (model, limits) = match &self.networks {
            Networks::Weights(weights) => (vae::encoder(&self.config, weights)?, Limits::default()),
            Networks::Exported(codec) => codec.encoder()?,
        };
        let session = self.engine.session("VAE encoder", &model)?;
        let encoder = Half { session, limits };
        // Two threads may both have made one; the first stays.
        Ok(self.encoder.get_or_init(|| encoder))
    }
}

/// Writes the graph of a decoder and checks that it and the encoder use all weights.
pub(crate) fn decoder_graph(config: &VaeConfig, weights: &Weights) -> Result<Model, Error> {
    let decoder = vae::decoder(config, weights)?;
    // The encoder's session may never be needed; its graph shows here which tensors are its own.
    // Where one is missing, the first use of the encoder says so.
    let has_encoder = vae::encoder(config, weights).is_ok();
    weights.check_all_used(config.class(), |name| {
        vae::is_left_out(config, name) || (!has_encoder && vae::is_of_encoder(name))
    })?;
    Ok(decoder)
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
        let mut latents = latents.as_standard_layout().into_owned();
        let channels = self.config.scale.iter().zip(&self.config.shift);
        for (mut channel, (scale, shift)) in latents.axis_iter_mut(Axis(1)).zip(channels) {
            channel.mapv_inplace(|value| value / scale + shift);
        }
        run_image(&self.decoder, "latents", latents.view(), stop)
    }

    fn encode(
        &self,
        image: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<LatentDistribution, BoxError> {
        let moments = run_image(self.encoder()?, "image", image, stop)?;
        let channels = self.config.latent_channels as isize;
        let (expected, found) = match self.config.is_variational() {
            true => (2 * channels, moments.dim().1),
            false => (channels, moments.dim().1),
        };
        if found as isize != expected {
            return Err(
                format!("the encoder returned {found} channels, expected {expected}").into(),
            );
        }
        let part = |from, to| {
            moments
                .slice_axis(Axis(1), Slice::new(from, Some(to), 1))
                .to_owned()
        };
        let mean = part(0, channels);
        let log_variance = match self.config.is_variational() {
            // As diffusers' `DiagonalGaussianDistribution` clamps it.
            true => part(channels, 2 * channels).mapv_into(|v| v.clamp(-30.0, 20.0)),
            false => Array4::from_elem(mean.dim(), f32::NEG_INFINITY),
        };
        Ok(LatentDistribution {
            mean,
            log_variance,
            scale: self.config.scale.clone(),
            shift: self.config.shift.clone(),
        })
    }

    fn latent_rgb(&self) -> Option<LatentRgb> {
        let config = &self.config;
        if config.latent_channels != 4 || config.factor() != 8 || config.shift != [0.0; 4] {
            return None;
        }
        if config.scale == [0.18215; 4] {
            Some(sd1_latent_rgb())
        } else if config.scale == [0.13025; 4] {
            Some(sdxl_latent_rgb())
        } else {
            None
        }
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

/// The same of SDXL's latents, which have a bias: `SDXL` in that file.
fn sdxl_latent_rgb() -> LatentRgb {
    LatentRgb {
        weights: vec![
            [0.3651, 0.4232, 0.4341],
            [-0.2533, -0.0042, 0.1068],
            [0.1076, 0.1111, -0.0362],
            [-0.3165, -0.2492, -0.2188],
        ],
        bias: [0.1084, -0.0175, -0.0011],
    }
}

/// Runs a network of one image input and one image output.
fn run_image(
    half: &Half,
    input: &str,
    x: ArrayView4<'_, f32>,
    stop: &StopToken,
) -> Result<Array4<f32>, BoxError> {
    let shape = x.shape();
    half.limits.check(input, shape)?;
    let x = x.as_standard_layout();
    let inputs = [(
        input,
        Input::F32(shape, x.as_slice().expect("standard layout")),
    )];
    Ok(half.session.run(&inputs, stop, |shape, data| {
        let dims: Vec<usize> = shape.iter().map(|&side| side as usize).collect();
        let found = ArrayD::from_shape_vec(dims, data.to_vec())?;
        found.into_dimensionality()
    })??)
}
