//! The networks of a pipeline on ONNX Runtime: text model, denoiser and codec.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use ndarray::{
    Array2, Array3, Array4, ArrayD, ArrayView2, ArrayView4, ArrayViewMut4, Axis, CowArray,
    Dimension, Ix2, IxDyn, Slice, aview1,
};
use sd_core::{
    BoxError, Call, Denoiser, Inputs, LatentCodec, LatentDistribution, LatentRgb, NetworkReport,
    StopToken,
};
use sd_text::{Layer, TextModel, TextShape, TextStates};

use crate::{
    Error, Precision, RunError,
    engine::Engine,
    exported::{Codec, Limits, TextFile, TextGraph, UnetGraph},
    graph::{Dialect, Model},
    lora::{Active, Set, Sites, UNET},
    models::{
        clip_text::{self, ClipTextConfig, ENDS, IDS, PROJECTION},
        unet::{self, Sinusoids, UnetConfig, input},
        vae::{self, VaeConfig},
    },
    network::{Named, Network, NetworkCall},
    session::Input,
    weights::Weights,
};

/// The weights of a text encoder.
#[derive(Debug)]
pub(crate) struct TextWeights {
    /// The network's folder in diffusers.
    pub network: &'static str,
    pub config: ClipTextConfig,
    pub weights: Weights,
    /// The names of the weights whose LoRAs can be inputs.
    pub live: BTreeSet<String>,
}

/// CLIP's text transformer. Clones share the network.
#[derive(Debug, Clone)]
pub(crate) struct OnnxTextModel {
    config: ClipTextConfig,
    shape: TextShape,
    network: Arc<Network>,
    /// The outputs of an exported graph, which may lack some of them.
    exported: Option<Arc<TextGraph>>,
    loras: Active,
}

impl OnnxTextModel {
    /// Loads the network. `more` `[any, width]` is appended to the stored rows of the token
    /// embedding.
    pub fn new(
        text: TextWeights,
        more: ArrayView2<'_, f32>,
        engine: &Engine,
    ) -> Result<Self, Error> {
        let TextWeights {
            network: name,
            config,
            mut weights,
            live,
        } = text;
        let shape = text_shape(&config, more);
        weights.check(
            clip_text::CLASS,
            |name| clip_text::is_left_out(&config, name),
            |outline| clip_text::graph(&config, outline, more, Dialect::default()).map(drop),
        )?;
        // On OpenVINO an input cannot be empty, so a text encoder has padded inputs there, too.
        let sites = Sites::new(&mut weights, &live, engine.dialect().fixed_sizes);
        let (of_graph, more) = (config.clone(), more.to_owned());
        // One session takes texts of any length, because the network is small.
        let write = move |dialect, merged: Option<&Set>| {
            let merged = merged.map(|set| set.merged(name, &weights)).transpose()?;
            let weights = merged.as_ref().unwrap_or(&weights);
            clip_text::graph(&of_graph, weights, more.view(), dialect)
        };
        let network = Network::changeable("text encoder", engine, false, sites.into(), write);
        network.prepare(&[])?;
        Ok(Self {
            network: network.into(),
            shape,
            config,
            exported: None,
            loras: Active::None,
        })
    }

    /// Like [`new`](Self::new), for a graph that another tool exported.
    pub fn exported(
        file: &TextFile,
        more: ArrayView2<'_, f32>,
        engine: &Engine,
    ) -> Result<Self, Error> {
        let graph = file.graph(more)?;
        let model = graph.model.clone();
        let network = Network::new("text encoder", engine, false, move |_| Ok(model.clone()));
        network.prepare(&[])?;
        Ok(Self {
            network: network.into(),
            shape: text_shape(file.config(), more),
            config: file.config().clone(),
            exported: Some(graph.into()),
            loras: Active::None,
        })
    }

    /// Returns the weights whose LoRAs can be inputs.
    pub fn sites(&self) -> &Arc<Sites> {
        self.network.sites()
    }

    /// Returns the model with LoRAs. Both share the network.
    pub fn with_loras(&self, loras: Active) -> Self {
        Self {
            loras,
            ..self.clone()
        }
    }

    /// Returns the outputs with these names for `ids` `[batch, length]`. `ends` holds the position
    /// of one token in each text.
    pub fn outputs(
        &self,
        ids: ArrayView2<'_, i64>,
        ends: &[i64],
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, BoxError> {
        let shape = [ids.nrows(), ids.ncols()];
        if let Some(graph) = &self.exported {
            let fits = graph.limits.check(IDS, &shape);
            let fits =
                fits.and_then(|()| outputs.iter().try_for_each(|output| graph.check(output)));
            fits.map_err(RunError::from)?;
        }
        let ids = ids.as_standard_layout();
        let ids = ids.as_slice().expect("standard layout");
        let inputs = [
            (IDS, Input::I64(&shape, ids)),
            (ENDS, Input::I64(&[ends.len(), 1], ends)),
        ];
        let call = NetworkCall {
            inputs: &inputs,
            loras: &self.loras,
            step: 0,
        };
        Ok(self.network.run_for(call, outputs)?)
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

    fn report(&self) -> Vec<NetworkReport> {
        self.network.report()
    }
}

/// Returns the shape of the text model. `more` is appended to the stored rows of the token
/// embedding.
fn text_shape(config: &ClipTextConfig, more: ArrayView2<'_, f32>) -> TextShape {
    let mut shape = TextShape::new(config.layers, config.width)
        .max_length(config.max_length)
        .vocab_size(config.vocab_size + more.nrows());
    shape.pooled = config.projection;
    shape
}

/// The UNet. Clones share the network.
#[derive(Clone)]
pub(crate) struct OnnxDenoiser {
    inputs: Inputs,
    /// The width of the guidance scale's sinusoids, if the guidance scale is an input.
    guidance_width: Option<usize>,
    /// Set if the graph's inputs are sinusoids instead of numbers.
    sinusoids: Option<UnetSinusoids>,
    sample_size: [usize; 2],
    /// The input sizes that an exported graph accepts.
    limits: Limits,
    network: Arc<Network>,
    loras: Active,
}

/// The sinusoids of the timestep and of SDXL's sizes.
#[derive(Clone)]
struct UnetSinusoids {
    timestep: Sinusoids,
    sizes: Option<Sinusoids>,
}

impl OnnxDenoiser {
    /// Creates a UNet that is loaded later. `live` are the names of the weights whose LoRAs can be
    /// inputs.
    ///
    /// # Errors
    /// Returns an error if tensors are missing, have another shape or are not used.
    pub fn new(
        config: UnetConfig,
        mut weights: Weights,
        live: &BTreeSet<String>,
        engine: &Engine,
    ) -> Result<Self, Error> {
        weights.check(
            unet::CLASS,
            |_| false,
            |outline| unet::graph(&config, outline, Dialect::default()).map(drop),
        )?;
        let sites = Sites::new(&mut weights, live, engine.dialect().fixed_sizes);
        let sinusoids = engine.dialect().sinusoid_inputs.then(|| UnetSinusoids {
            timestep: config.timestep_sinusoids(),
            sizes: config.size_sinusoids(),
        });
        Ok(Self {
            inputs: config.inputs.clone(),
            guidance_width: config.guidance_width,
            sinusoids,
            sample_size: config.sample_size,
            limits: Limits::default(),
            network: Network::changeable(
                "UNet",
                engine,
                true,
                sites.into(),
                move |dialect, merged| {
                    let merged = merged.map(|set| set.merged(UNET, &weights)).transpose()?;
                    let weights = merged.as_ref().unwrap_or(&weights);
                    unet::graph(&config, weights, dialect)
                },
            )
            .into(),
            loras: Active::None,
        })
    }

    /// Creates a UNet from a graph that another tool exported.
    ///
    /// # Errors
    /// Returns [`Error::Graph`] in another precision than f32, because the graph computes the
    /// sinusoids of the timestep itself.
    pub fn exported(graph: UnetGraph, engine: &Engine) -> Result<Self, Error> {
        if engine.precision != Precision::F32 {
            return Err(graph.limits.wrong(format!(
                "an exported UNet computes the sines of the timestep itself, which {} makes wrong \
                 by several percent; use it in f32, or load the model that it was exported from",
                engine.precision
            )));
        }
        Ok(Self {
            inputs: graph.inputs,
            guidance_width: graph.guidance_width,
            sinusoids: None,
            sample_size: graph.sample_size,
            limits: graph.limits,
            network: Network::new("UNet", engine, true, move |_| Ok(graph.model.clone())).into(),
            loras: Active::None,
        })
    }

    /// Returns the weights whose LoRAs can be inputs.
    pub fn sites(&self) -> &Arc<Sites> {
        self.network.sites()
    }

    /// Returns the UNet with LoRAs. Both share the network.
    pub fn with_loras(&self, loras: Active) -> Self {
        Self {
            loras,
            ..self.clone()
        }
    }

    /// Returns the height and width of the latents that the model was made for.
    pub fn sample_size(&self) -> [usize; 2] {
        self.sample_size
    }

    /// Loads the network for latents of this height and width and prompts of `length` tokens, so
    /// that the first call does not have to.
    pub fn prepare(&self, [height, width]: [usize; 2], length: usize) -> Result<(), Error> {
        let latents = Array4::zeros((1, self.inputs.channels, height, width));
        let context = Array3::zeros((1, length, self.inputs.context));
        let pooled = self.inputs.pooled.map(|width| Array2::zeros((1, width)));
        let sizes = self.inputs.sizes.map(|ids| Array2::zeros((1, ids.count())));
        let beside = Array4::zeros((1, self.inputs.extra_channels, height, width));
        let guidance = ndarray::arr1(&[1.0]);
        let stop = StopToken::new();
        let mut call = Call::new(latents.view(), 0.0, context.view(), &stop);
        call.pooled = pooled.as_ref().map(|pooled| pooled.view());
        call.sizes = sizes.as_ref().map(|sizes| sizes.view());
        call.guidance = Some(guidance.view());
        call.beside = Some(beside.view());
        self.with_inputs(&call, |inputs| self.network.prepare(inputs))
            .expect("every input is given")
    }

    /// Calls `use_them` with the inputs that the graph takes from a call.
    ///
    /// # Errors
    /// Returns a message that names an input if the call does not have it.
    fn with_inputs<T>(
        &self,
        call: &Call<'_>,
        use_them: impl FnOnce(&[Named<'_>]) -> T,
    ) -> Result<T, String> {
        let latents = Contiguous::new(call.latents);
        let context = Contiguous::new(call.context);
        let pooled = call.pooled.map(Contiguous::new);
        let mut sizes = call.sizes.map(Contiguous::new);
        let beside = call.beside.map(Contiguous::new);
        let guidance = self.guidance(call);
        // Bound to a variable, because `timestep` borrows it.
        let number = [call.timestep];
        let mut timestep = Contiguous::new(aview1(&number)).into_dyn();
        if let Some(sinusoids) = &self.sinusoids {
            timestep = rows_of(1, sinusoids.timestep.of(number)).into_dyn();
            sizes = sizes.zip(sinusoids.sizes.as_ref()).map(|(sizes, of)| {
                let numbers = of.of(sizes.0.iter().copied());
                rows_of(sizes.0.nrows(), numbers)
            });
        }
        let mut inputs = vec![
            (input::LATENTS, latents.input()),
            (input::TIMESTEP, timestep.input()),
            (input::CONTEXT, context.input()),
        ];
        let takes = &self.inputs;
        for (name, taken, given) in [
            (
                input::BESIDE,
                takes.extra_channels > 0,
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
        Ok(use_them(&inputs))
    }

    /// Returns the sinusoids of the guidance scales, a row for each picture, if the network takes
    /// them.
    fn guidance(&self, call: &Call<'_>) -> Option<Contiguous<'static, Ix2>> {
        let (width, scales) = self.guidance_width.zip(call.guidance)?;
        let rows = scales
            .iter()
            .map(|&scale| unet::guidance_sinusoids(scale, width));
        Some(rows_of(scales.len(), rows.flatten().collect()))
    }
}

impl Denoiser for OnnxDenoiser {
    fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    fn predict(&self, call: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        let dim = output.dim();
        self.with_inputs(call, |inputs| -> Result<(), BoxError> {
            for (name, input) in inputs {
                let fits = self.limits.check(name, input.shape());
                fits.map_err(RunError::from)?;
            }
            let of_network = NetworkCall {
                inputs,
                loras: &self.loras,
                step: call.step,
            };
            self.network.run(of_network, call.stop, |_, data| {
                ArrayView4::from_shape(dim, data).map(|prediction| output.assign(&prediction))
            })??;
            Ok(())
        })?
    }

    fn report(&self) -> Vec<NetworkReport> {
        self.network.report()
    }
}

/// Arranges numbers in rows of equal length.
fn rows_of<'a>(rows: usize, numbers: Vec<f32>) -> Contiguous<'a, Ix2> {
    let width = numbers.len() / rows.max(1);
    let rows = Array2::from_shape_vec((rows, width), numbers).expect("whole rows");
    Contiguous(rows.into())
}

/// An array in row-major order, which ONNX Runtime expects. It is copied only if it is in another
/// order.
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

impl<'a, D: Dimension> Contiguous<'a, D> {
    fn into_dyn(self) -> Contiguous<'a, IxDyn> {
        Contiguous(self.0.into_dyn())
    }
}

/// The autoencoder. The encoder is loaded at its first use, because text-to-image never needs it.
pub(crate) struct OnnxCodec {
    config: VaeConfig,
    decoder: Half,
    networks: Networks,
    engine: Engine,
    encoder: OnceLock<Half>,
}

/// The source of an autoencoder's networks.
enum Networks {
    Weights(Arc<Weights>),
    Exported(Box<Codec>),
}

/// The encoder or the decoder of an autoencoder.
struct Half {
    network: Network,
    /// The input sizes that an exported graph accepts.
    limits: Limits,
}

impl Half {
    fn exported((model, limits): (Model, Limits), name: &'static str, engine: &Engine) -> Self {
        Self {
            network: Network::new(name, engine, true, move |_| Ok(model.clone())),
            limits,
        }
    }
}

impl OnnxCodec {
    /// Creates an autoencoder that is loaded later.
    ///
    /// # Errors
    /// Returns an error if the file has tensors that no graph uses, or if the decoder lacks some.
    pub fn new(config: VaeConfig, weights: Weights, engine: &Engine) -> Result<Self, Error> {
        check_codec(&config, &weights)?;
        let weights = Arc::new(weights);
        let (of_graph, of_weights) = (config.clone(), weights.clone());
        Ok(Self {
            decoder: Half {
                network: Network::new("VAE decoder", engine, true, move |dialect| {
                    vae::decoder(&of_graph, &of_weights, dialect.for_few_weights())
                }),
                limits: Limits::default(),
            },
            config,
            networks: Networks::Weights(weights),
            engine: engine.clone(),
            encoder: OnceLock::new(),
        })
    }

    /// Creates an autoencoder from graphs that another tool exported.
    pub fn exported(codec: Codec, engine: &Engine) -> Result<Self, Error> {
        Ok(Self {
            decoder: Half::exported(codec.decoder()?, "VAE decoder", engine),
            config: codec.config.clone(),
            networks: Networks::Exported(codec.into()),
            engine: engine.clone(),
            encoder: OnceLock::new(),
        })
    }

    /// Loads the decoder for latents of this height and width, so that the first picture does not
    /// have to.
    pub fn prepare(&self, [height, width]: [usize; 2]) -> Result<(), Error> {
        let latents = Array4::zeros((1, self.config.latent_channels, height, width));
        let latents = Contiguous::new(latents.view());
        self.decoder
            .network
            .prepare(&[("latents", latents.input())])
    }

    fn encoder(&self) -> Result<&Half, Error> {
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder);
        }
        let name = "VAE encoder";
        let encoder = match &self.networks {
            Networks::Weights(weights) => {
                let (config, weights) = (self.config.clone(), weights.clone());
                Half {
                    network: Network::new(name, &self.engine, true, move |dialect| {
                        vae::encoder(&config, &weights, dialect.for_few_weights())
                    }),
                    limits: Limits::default(),
                }
            }
            Networks::Exported(codec) => Half::exported(codec.encoder()?, name, &self.engine),
        };
        // Two threads may both have created one. The first one stays.
        Ok(self.encoder.get_or_init(|| encoder))
    }
}

/// Checks that the decoder has all its weights, and that decoder and encoder use all weights in the
/// file.
fn check_codec(config: &VaeConfig, weights: &Weights) -> Result<(), Error> {
    let dialect = Dialect::default();
    // The encoder may never be used. Its graph is written here only to find out which tensors
    // belong to it. If a tensor is missing, the first use of the encoder reports it.
    let has_encoder = vae::encoder(config, &weights.outline(), dialect).is_ok();
    let left_out =
        |name: &str| vae::is_left_out(config, name) || (!has_encoder && vae::is_of_encoder(name));
    weights.check(config.class(), left_out, |outline| {
        if has_encoder {
            vae::encoder(config, outline, dialect)?;
        }
        vae::decoder(config, outline, dialect).map(drop)
    })
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
        let encoder = self.encoder().map_err(RunError::from)?;
        let moments = run_image(encoder, "image", image, stop)?;
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
            // The same limits as in diffusers' `DiagonalGaussianDistribution`.
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

    fn report(&self) -> Vec<NetworkReport> {
        let halves = [Some(&self.decoder), self.encoder.get()];
        let networks = halves.into_iter().flatten().map(|half| &half.network);
        networks.flat_map(Network::report).collect()
    }
}

/// The preview colours of SD 1.x latents, which also fit SD 2.x. They are the `latent_rgb_factors`
/// of `SD15` in ComfyUI's `comfy/latent_formats.py`. ComfyUI's `latent_preview.py` applies them to
/// the latents unchanged, for colours between −1 and 1, without a bias.
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

/// The preview colours of SDXL latents, which have a bias: `SDXL` in the same file.
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

/// Runs a network with one image input and one image output.
fn run_image(
    half: &Half,
    input: &str,
    x: ArrayView4<'_, f32>,
    stop: &StopToken,
) -> Result<Array4<f32>, BoxError> {
    let shape = x.shape();
    let fits = half.limits.check(input, shape);
    fits.map_err(RunError::from)?;
    let x = x.as_standard_layout();
    let inputs = [(
        input,
        Input::F32(shape, x.as_slice().expect("standard layout")),
    )];
    Ok(half
        .network
        .run(NetworkCall::new(&inputs), stop, |shape, data| {
            let dims: Vec<usize> = shape.iter().map(|&side| side as usize).collect();
            let found = ArrayD::from_shape_vec(dims, data.to_vec())?;
            found.into_dimensionality()
        })??)
}
