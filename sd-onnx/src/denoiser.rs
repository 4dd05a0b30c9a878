//! The UNet of a pipeline on ONNX Runtime.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use ndarray::{Array2, Array3, Array4, ArrayD, ArrayView4, ArrayViewMut4, Ix2, aview1};
use sd_core::{
    BoxError, Call, ControlInput, DeepCall, Denoiser, Hint, Inputs, NetworkReport, StopToken,
};

use crate::{
    Error, Precision, RunError,
    calibration::Int8Unet,
    contiguous::{Contiguous, rows_of},
    control::Controls,
    engine::Engine,
    exported::{Limits, UnetGraph},
    graph::Dialect,
    lora::{Active, Set, Sites, UNET},
    models::unet::{
        self, OUTPUT, Part, Shortcuts, Sinusoids, TokenOrder, UnetConfig, deep_name,
        guidance_sinusoids, input,
    },
    network::{Named, Network, NetworkCall},
    weights::Weights,
};

/// The UNet. Clones share the network.
#[derive(Clone)]
pub(crate) struct OnnxDenoiser {
    takes: Takes,
    sample_size: [usize; 2],
    /// The input sizes that an exported graph accepts.
    limits: Limits,
    network: Arc<Network>,
    /// `None` for an exported graph.
    short: Option<Arc<Short>>,
    controls: Arc<Controls>,
    loras: Active,
    /// The calibration, if the precision is int8.
    int8: Option<Arc<Int8Unet>>,
    precision: Precision,
}

/// What a UNet needs for calls with shortcuts.
struct Short {
    config: UnetConfig,
    /// The layers outside of a branch, over the same weights. It is a separate network, because
    /// both take turns in a run. It is loaded when it is first used.
    outside: Network,
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
        controls: Controls,
        engine: &Engine,
    ) -> Result<Self, Error> {
        weights.check(
            unet::CLASS,
            |_| false,
            |outline| unet::graph(&config, outline, Dialect::default()).map(drop),
        )?;
        controls.check_prompts(&config, &weights)?;
        let dialect = engine.dialect();
        let sites = Arc::new(Sites::new(&mut weights, live, engine.pads_factors()));
        let mut takes = Takes::of(&config, dialect);
        takes.inputs.controls = controls.inputs();
        takes.inputs.batches_guidance = engine.as_cuda;
        takes.inputs.deep_branches = config.branches();
        // The number of merged tokens changes the sizes within the graph from call to call.
        takes.inputs.token_merging =
            !dialect.fixed_sizes && config.merging_size(config.sample_size).is_some();
        let controls = Arc::new(controls);
        let weights = Arc::new(weights);
        let int8 = (engine.precision == Precision::Int8).then(|| Int8Unet {
            config: config.clone(),
            weights: weights.clone(),
            engine: engine.clone(),
            takes: Takes::of(&config, dialect),
            calibration: OnceLock::new(),
        });
        let int8 = int8.map(Arc::new);
        let calibrated = int8.clone();
        let source = Arc::new((weights, controls.clone(), config.clone()));
        let write = move |dialect, shortcuts, merged: Option<&Set>| {
            let (weights, controls, config) = &*source;
            let mut merged = merged.map(|set| set.merged(UNET, weights)).transpose()?;
            if let Some(int8) = &calibrated {
                merged = Some(int8.calibrated(merged)?);
            }
            let weights = merged.as_ref().unwrap_or(weights);
            let prompts = controls.prompts();
            let steering = controls.steering(&prompts);
            unet::shortened(config, weights, steering, shortcuts, dialect)
        };
        // ControlNets and the layers outside of a branch run in the same steps.
        let engine = &engine.together();
        let network = |name| Network::changeable(name, engine, true, sites.clone(), write.clone());
        Ok(Self {
            takes,
            sample_size: config.sample_size,
            limits: Limits::default(),
            network: network("UNet").into(),
            short: Some(Arc::new(Short {
                outside: network("outer UNet"),
                config,
            })),
            controls,
            loras: Active::None,
            int8,
            precision: engine.precision,
        })
    }

    /// Creates a UNet from a graph that another tool exported.
    ///
    /// # Errors
    /// Returns [`Error::Graph`] in another precision than f32, because the graph computes the
    /// sinusoids of the timestep itself, and its layers cannot be written in int8.
    pub fn exported(graph: UnetGraph, engine: &Engine) -> Result<Self, Error> {
        if engine.precision == Precision::Int8 {
            let problem = "the layers of an exported UNet cannot be written in int8; use it in f32, \
                           or load the model that it was exported from";
            return Err(graph.limits.wrong(problem));
        }
        if engine.precision != Precision::F32 {
            return Err(graph.limits.wrong(format!(
                "an exported UNet computes the sines of the timestep itself, which {} makes wrong \
                 by several percent; use it in f32, or load the model that it was exported from",
                engine.precision
            )));
        }
        Ok(Self {
            takes: Takes {
                inputs: graph.inputs,
                guidance_width: graph.guidance_width,
                sinusoids: None,
            },
            sample_size: graph.sample_size,
            limits: graph.limits,
            network: Network::new("UNet", engine, true, move |_| Ok(graph.model.clone())).into(),
            short: None,
            controls: Arc::default(),
            loras: Active::None,
            int8: None,
            precision: engine.precision,
        })
    }

    /// Returns the UNet's calibration, if the precision is int8.
    pub fn int8(&self) -> Option<&Int8Unet> {
        self.int8.as_deref()
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
    /// that the first call does not have to. ControlNets are loaded, too.
    pub fn prepare(&self, [height, width]: [usize; 2], length: usize) -> Result<(), Error> {
        let inputs = &self.takes.inputs;
        let latents = Array4::zeros((1, inputs.channels, height, width));
        let context = Array3::zeros((1, length, inputs.context));
        let pooled = inputs.pooled.map(|width| Array2::zeros((1, width)));
        let sizes = inputs.sizes.map(|ids| Array2::zeros((1, ids.count())));
        let beside = Array4::zeros((1, inputs.extra_channels, height, width));
        let guidance = ndarray::arr1(&[1.0]);
        let stop = StopToken::new();
        let mut call = Call::new(latents.view(), 0.0, context.view(), &stop);
        call.pooled = pooled.as_ref().map(|pooled| pooled.view());
        call.sizes = sizes.as_ref().map(|sizes| sizes.view());
        call.guidance = Some(guidance.view());
        call.beside = Some(beside.view());
        self.controls.prepare(&call)?;
        let steering = self.controls.no_values(&call);
        self.takes
            .with_inputs(&call, &steering.named(), |inputs| {
                self.network.prepare(inputs)
            })
            .expect("every input is given")
    }
}

impl Denoiser for OnnxDenoiser {
    fn inputs(&self) -> &Inputs {
        &self.takes.inputs
    }

    fn predict(&self, call: &Call<'_>, output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        let tokens = self.tokens(call)?;
        let steering = self.controls.values(call)?;
        let steering = steering.named();
        self.takes
            .with_inputs(call, &steering, |inputs| -> Result<(), BoxError> {
                for (name, input) in inputs {
                    let fits = self.limits.check(name, input.shape());
                    fits.map_err(RunError::from)?;
                }
                match &tokens {
                    Some(tokens) => tokens.with_inputs(|tokens| {
                        self.run(call, &[inputs, tokens].concat(), true, output)
                    }),
                    None => self.run(call, inputs, false, output),
                }
            })?
    }

    fn read_control(
        &self,
        network: usize,
        picture: ControlInput<'_>,
        stop: &StopToken,
    ) -> Result<Hint, BoxError> {
        self.controls.read(network, picture, stop)
    }

    fn precision(&self) -> Option<&'static str> {
        (self.precision != Precision::F32).then(|| self.precision.name())
    }

    fn report(&self) -> Vec<NetworkReport> {
        let mut reports = self.network.report();
        reports.extend(self.short.iter().flat_map(|short| short.outside.report()));
        reports.extend(self.controls.report());
        reports
    }
}

impl OnnxDenoiser {
    /// Runs the graph that a call needs, with these inputs.
    fn run(
        &self,
        call: &Call<'_>,
        inputs: &[Named<'_>],
        merges_tokens: bool,
        mut output: ArrayViewMut4<'_, f32>,
    ) -> Result<(), BoxError> {
        let dim = output.dim();
        let shortcuts = |part| Shortcuts {
            part,
            merges_tokens,
        };
        // Only calls that need them have the deep features as outputs: with more outputs, OpenVINO
        // rounds in bf16 at other places.
        let whole = match call.deep {
            Some(_) => Part::Keeping,
            None => Part::Whole,
        };
        let of_whole = self.of_network(call, inputs, shortcuts(whole));
        let read = |_: &[i64], data: &[f32]| {
            ArrayView4::from_shape(dim, data).map(|prediction| output.assign(&prediction))
        };
        let Some(deep) = call.deep else {
            return Ok(self.network.run(of_whole, call.stop, read)??);
        };
        let (short, shape) = self.deep_shape(call, deep)?;
        let name = deep_name(deep.branch);
        if !deep.reuse {
            let names = [OUTPUT, &name];
            let found = self.network.run_all(of_whole, call.stop, &names)?;
            let [prediction, features] =
                <[ArrayD<f32>; 2]>::try_from(found).map_err(|_| "the network has two outputs")?;
            output.assign(&prediction.into_shape_with_order(dim)?);
            deep.features.keep(features);
            return Ok(());
        }
        let reused = deep.features.with(|features| -> Result<(), BoxError> {
            if features.shape() != shape {
                let found = features.shape();
                return Err(format!(
                    "the deep features have shape {found:?}, expected {shape:?} for branch {}",
                    deep.branch
                )
                .into());
            }
            let features = Contiguous::new(features.view());
            let mut inputs = inputs.to_vec();
            inputs.push((&name, features.input()));
            let shortcuts = shortcuts(Part::Outside(deep.branch));
            let outside = self.of_network(call, &inputs, shortcuts);
            Ok(short.outside.run(outside, call.stop, read)??)
        });
        reused.unwrap_or_else(|| Err("the call reuses deep features, but none were kept".into()))
    }

    fn of_network<'a>(
        &'a self,
        call: &Call<'_>,
        inputs: &'a [Named<'a>],
        shortcuts: Shortcuts,
    ) -> NetworkCall<'a> {
        NetworkCall {
            inputs,
            loras: &self.loras,
            step: call.step,
            shortcuts,
        }
    }

    /// Returns the networks for deep features, and the shape of the features
    /// `[batch, channels, h, w]`.
    fn deep_shape(
        &self,
        call: &Call<'_>,
        deep: DeepCall<'_>,
    ) -> Result<(&Short, [usize; 4]), String> {
        let (batch, _, height, width) = call.latents.dim();
        let of_branch = |short: &Short| short.config.deep_shape(deep.branch, [height, width]);
        let short = self.short.as_deref();
        let found = short.and_then(|short| Some((short, of_branch(short)?)));
        let (short, [channels, height, width]) = found.ok_or_else(|| {
            let DeepCall { branch, .. } = deep;
            let branches = self.takes.inputs.deep_branches;
            format!("this UNet has {branches} branches for deep features, found branch {branch}")
        })?;
        Ok((short, [batch, channels, height, width]))
    }

    /// Returns the tokens that a call merges, if any.
    fn tokens(&self, call: &Call<'_>) -> Result<Option<TokenOrder>, String> {
        let share = call.merge_tokens;
        if share == 0.0 {
            return Ok(None);
        }
        if !(0.0..=0.75).contains(&share) {
            return Err(format!(
                "the share of merged tokens is {share}, expected 0 to 0.75"
            ));
        }
        let (_, _, height, width) = call.latents.dim();
        let short = self.short.as_ref();
        let size = short.and_then(|short| short.config.merging_size([height, width]));
        match size.filter(|_| self.takes.inputs.token_merging) {
            Some(size) => TokenOrder::new(size, share),
            None => Err("this UNet cannot merge tokens".into()),
        }
    }
}

/// What a UNet, or a ControlNet, takes from a call.
#[derive(Debug, Clone)]
pub(crate) struct Takes {
    pub inputs: Inputs,
    /// The width of the guidance scale's sinusoids, if the guidance scale is an input.
    guidance_width: Option<usize>,
    /// Set if the graph's inputs are sinusoids instead of numbers.
    sinusoids: Option<UnetSinusoids>,
}

/// The sinusoids of the timestep and of SDXL's sizes.
#[derive(Debug, Clone)]
struct UnetSinusoids {
    timestep: Sinusoids,
    sizes: Option<Sinusoids>,
}

impl Takes {
    /// Returns what the graph of a configuration takes.
    pub fn of(config: &UnetConfig, dialect: Dialect) -> Self {
        let sinusoids = dialect.sinusoid_inputs.then(|| UnetSinusoids {
            timestep: config.timestep_sinusoids(),
            sizes: config.size_sinusoids(),
        });
        Self {
            inputs: config.inputs.clone(),
            guidance_width: config.guidance_width,
            sinusoids,
        }
    }

    /// Calls `use_them` with the inputs that the graph takes from a call, and with `more`.
    ///
    /// # Errors
    /// Returns a message that names an input if the call does not have it.
    pub fn with_inputs<T>(
        &self,
        call: &Call<'_>,
        more: &[Named<'_>],
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
        inputs.extend_from_slice(more);
        Ok(use_them(&inputs))
    }

    /// Returns the sinusoids of the guidance scales, a row for each picture, if the network takes
    /// them.
    fn guidance(&self, call: &Call<'_>) -> Option<Contiguous<'static, Ix2>> {
        let (width, scales) = self.guidance_width.zip(call.guidance)?;
        let rows = scales.iter().map(|&scale| guidance_sinusoids(scale, width));
        Some(rows_of(scales.len(), rows.flatten().collect()))
    }
}
