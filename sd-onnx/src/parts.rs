//! The networks of a pipeline on ONNX Runtime, except the UNet: text model and codec.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use ndarray::{Array4, ArrayD, ArrayView2, ArrayView4, Axis, Slice};
use sd_core::{BoxError, LatentCodec, LatentDistribution, LatentRgb, NetworkReport, StopToken};
use sd_text::{Layer, TextModel, TextShape, TextStates};

use crate::{
    Error, RunError,
    contiguous::Contiguous,
    engine::Engine,
    exported::{Codec, Limits, TextFile, TextGraph},
    graph::{Dialect, Model},
    lora::{Active, Set, Sites},
    models::{
        clip_text::{self, ClipTextConfig, ENDS, IDS, PROJECTION},
        vae::{self, Layers, VaeConfig},
    },
    network::{Network, NetworkCall},
    session::Input,
    tiles::{self, BAND_VALUES, Tiled, Turn, VaeTiling, untiled_bytes},
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
        let sites = Sites::new(&mut weights, &live, engine.pads_factors());
        let (of_graph, more) = (config.clone(), more.to_owned());
        // One session takes texts of any length, because the network is small.
        let write = move |dialect, _, merged: Option<&Set>| {
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
            loras: &self.loras,
            ..NetworkCall::new(&inputs)
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

/// The autoencoder. The encoder is loaded at its first use, because text-to-image never needs it.
pub(crate) struct OnnxCodec {
    config: VaeConfig,
    decoder: Half,
    networks: Networks,
    engine: Engine,
    encoder: OnceLock<Half>,
    tiling: VaeTiling,
    /// The layers that tiles run. `None` for a network that only runs untiled.
    layers: Option<Layers>,
    /// The turn of the calls in tiles.
    turn: Turn,
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
    /// Creates an autoencoder that is loaded later. `tiling` has an effect only if the network has
    /// [layers](VaeConfig::layers).
    ///
    /// # Errors
    /// Returns an error if the file has tensors that no graph uses, or if the decoder lacks some.
    pub fn new(
        config: VaeConfig,
        weights: Weights,
        tiling: VaeTiling,
        engine: &Engine,
    ) -> Result<Self, Error> {
        check_codec(&config, &weights)?;
        let weights = Arc::new(weights);
        let (of_graph, of_weights) = (config.clone(), weights.clone());
        Ok(Self {
            decoder: Half {
                network: Network::new("VAE decoder", engine, true, move |dialect| {
                    let dialect = dialect.for_autoencoder(of_graph.fits_f16);
                    vae::decoder(&of_graph, &of_weights, dialect)
                }),
                limits: Limits::default(),
            },
            layers: config.layers(),
            config,
            networks: Networks::Weights(weights),
            engine: engine.clone(),
            encoder: OnceLock::new(),
            tiling,
            turn: Turn::default(),
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
            tiling: VaeTiling::Never,
            layers: None,
            turn: Turn::default(),
        })
    }

    /// Loads the decoder for latents of this height and width, so that the first picture does not
    /// have to. Does nothing if such latents are decoded in tiles.
    pub fn prepare(&self, [height, width]: [usize; 2]) -> Result<(), Error> {
        if self
            .tiles_of(|it| &it.decoder, [1, height, width])
            .is_some()
        {
            return Ok(());
        }
        let latents = Array4::zeros((1, self.config.latent_channels, height, width));
        let latents = Contiguous::new(latents.view());
        self.decoder
            .network
            .prepare(&[("latents", latents.input())])
    }

    /// Returns the layers that run in tiles, and whether the tiles are fast ones, for an input of
    /// this batch, height and width. Returns `None` for an untiled call.
    fn tiles_of(
        &self,
        half: impl Fn(&Layers) -> &Vec<vae::Layer>,
        [batch, height, width]: [usize; 3],
    ) -> Option<(&[vae::Layer], bool)> {
        let layers = half(self.layers.as_ref()?);
        let fast = match self.tiling {
            VaeTiling::Never => None,
            VaeTiling::Exact => Some(false),
            VaeTiling::Fast => Some(true),
            VaeTiling::Auto { most_bytes } => {
                let bytes = untiled_bytes(layers, batch, [height, width]);
                (bytes > most_bytes).then_some(false)
            }
        };
        fast.map(|fast| (layers.as_slice(), fast))
    }

    /// Runs half of the network in tiles. Returns `None` for an untiled call.
    fn run_tiled(
        &self,
        name: &'static str,
        half: impl Fn(&Layers) -> &Vec<vae::Layer>,
        x: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Option<Result<Array4<f32>, RunError>> {
        let (batch, _, height, width) = x.dim();
        let (layers, fast) = self.tiles_of(half, [batch, height, width])?;
        let Networks::Weights(weights) = &self.networks else {
            return None;
        };
        let Some(_turn) = self.turn.take(stop) else {
            return Some(Err(RunError::Stopped));
        };
        // The untiled networks keep the memory of their largest call.
        self.decoder.network.unload();
        if let Some(encoder) = self.encoder.get() {
            encoder.network.unload();
        }
        let tiled = Tiled {
            name,
            layers,
            norm: self.layers.as_ref()?.norm,
            weights,
            engine: &self.engine,
            seamless: self.config.seamless,
            fast,
            band_values: BAND_VALUES,
            stop,
        };
        Some(tiled.run(x))
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
                        let dialect = dialect.for_autoencoder(config.fits_f16);
                        vae::encoder(&config, &weights, dialect)
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
        let tiled = self.run_tiled("VAE decoder", |it| &it.decoder, latents.view(), stop);
        if let Some(image) = tiled {
            return Ok(image?);
        }
        run_image(&self.decoder, "latents", latents.view(), stop)
    }

    fn encode(
        &self,
        image: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<LatentDistribution, BoxError> {
        let (_, _, height, width) = image.dim();
        let factor = self.config.factor();
        let halves = [height, width].iter().all(|side| side % factor == 0);
        if !halves && matches!(self.tiling, VaeTiling::Exact | VaeTiling::Fast) {
            return Err(format!(
                "a picture of {width}×{height} pixels cannot be encoded in tiles, expected \
                 multiples of {factor}"
            )
            .into());
        }
        let tiled = match halves {
            true => self.run_tiled("VAE encoder", |it| &it.encoder, image, stop),
            false => None,
        };
        let moments = match tiled {
            Some(moments) => moments?,
            None => {
                let encoder = self.encoder().map_err(RunError::from)?;
                run_image(encoder, "image", image, stop)?
            }
        };
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

    fn approximation(&self, [height, width]: [usize; 2]) -> Option<&'static str> {
        let (layers, fast) = self.tiles_of(|it| &it.decoder, [1, height, width])?;
        (fast && tiles::is_sampled(layers, height)).then_some("fast tiles")
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
