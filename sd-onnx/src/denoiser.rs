//! The UNet of a pipeline on ONNX Runtime.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use ndarray::{Array2, Array3, Array4, ArrayView4, ArrayViewMut4, Ix2, aview1};
use sd_core::{BoxError, Call, ControlInput, Denoiser, Hint, Inputs, NetworkReport, StopToken};

use crate::{
    Error, Precision, RunError,
    calibration::Int8Unet,
    contiguous::{Contiguous, rows_of},
    control::Controls,
    engine::Engine,
    exported::{Limits, UnetGraph},
    graph::Dialect,
    lora::{Active, Set, Sites, UNET},
    models::unet::{self, Sinusoids, UnetConfig, guidance_sinusoids, input},
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
    controls: Arc<Controls>,
    loras: Active,
    /// The calibration, if the precision is int8.
    int8: Option<Arc<Int8Unet>>,
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
        let sites = Sites::new(&mut weights, live, engine.dialect().fixed_sizes);
        let mut takes = Takes::of(&config, engine.dialect());
        takes.inputs.controls = controls.inputs();
        let controls = Arc::new(controls);
        let engine = match controls.is_empty() {
            true => engine,
            // ControlNets run in every step, too.
            false => &engine.together(),
        };
        let (of_graph, sample_size) = (controls.clone(), config.sample_size);
        let weights = Arc::new(weights);
        let int8 = (engine.precision == Precision::Int8).then(|| Int8Unet {
            config: config.clone(),
            weights: weights.clone(),
            engine: engine.clone(),
            takes: Takes::of(&config, engine.dialect()),
            calibration: OnceLock::new(),
        });
        let int8 = int8.map(Arc::new);
        let calibrated = int8.clone();
        let write = move |dialect, merged: Option<&Set>| {
            let mut merged = merged.map(|set| set.merged(UNET, &weights)).transpose()?;
            if let Some(int8) = &calibrated {
                merged = Some(int8.calibrated(merged)?);
            }
            let weights = merged.as_ref().unwrap_or(&weights);
            let prompts = of_graph.prompts();
            let steering = of_graph.steering(&prompts);
            unet::steered(&config, weights, steering, dialect)
        };
        Ok(Self {
            takes,
            sample_size,
            limits: Limits::default(),
            network: Network::changeable("UNet", engine, true, sites.into(), write).into(),
            controls,
            loras: Active::None,
            int8,
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
            controls: Arc::default(),
            loras: Active::None,
            int8: None,
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

    fn predict(&self, call: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        let dim = output.dim();
        let steering = self.controls.values(call)?;
        self.takes
            .with_inputs(call, &steering.named(), |inputs| -> Result<(), BoxError> {
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

    fn read_control(
        &self,
        network: usize,
        picture: ControlInput<'_>,
        stop: &StopToken,
    ) -> Result<Hint, BoxError> {
        self.controls.read(network, picture, stop)
    }

    fn report(&self) -> Vec<NetworkReport> {
        let mut reports = self.network.report();
        reports.extend(self.controls.report());
        reports
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
