//! A ControlNet on ONNX Runtime.

use std::sync::Arc;

use ndarray::{Array4, ArrayD, ArrayView4, Axis, s};
use sd_core::{
    BoxError, Call, ControlCall, ControlInputs, ControlKind, Hint, NetworkReport, StopToken,
};

use super::{Values, misfit};
use crate::{
    Error,
    contiguous::Contiguous,
    denoiser::Takes,
    engine::Engine,
    models::{
        control_net::{self, ControlNetConfig, EMBEDDED, PICTURE},
        unet::{UnetConfig, residual_name},
    },
    network::{Network, NetworkCall},
    weights::Weights,
};

/// A ControlNet. Its sessions are separate from the UNet's.
#[derive(Debug)]
pub(crate) struct ControlNet {
    config: ControlNetConfig,
    takes: Takes,
    /// Embeds a picture, once per run.
    embedding: Network,
    network: Network,
    /// The names of the outputs.
    outputs: Vec<String>,
}

impl ControlNet {
    /// Creates a ControlNet that is loaded later, for the UNet of this configuration.
    ///
    /// # Errors
    /// - [`Error::Checkpoint`] if the ControlNet is for another UNet.
    /// - An error if tensors are missing, have another shape or are not used.
    pub fn new(
        config: ControlNetConfig,
        weights: Weights,
        unet: &UnetConfig,
        engine: &Engine,
    ) -> Result<Self, Error> {
        check_fits(&config, &weights, unet)?;
        control_net::check(&config, &weights)?;
        let skips = config.unet.residual_shapes([64, 64]).len() - 1;
        let outputs = (0..skips).map(|skip| residual_name(Some(skip)));
        let weights = Arc::new(weights);
        let (of_embedding, picture_weights) = (config.clone(), weights.clone());
        let of_network = config.clone();
        Ok(Self {
            takes: Takes::of(&config.unet, engine.dialect()),
            embedding: Network::new("ControlNet's picture", engine, true, move |dialect| {
                control_net::embedding(&of_embedding, &picture_weights, dialect)
            }),
            network: Network::new("ControlNet", &engine.together(), true, move |dialect| {
                control_net::graph(&of_network, &weights, dialect)
            }),
            outputs: outputs.chain([residual_name(None)]).collect(),
            config,
        })
    }

    /// Describes the network to a pipeline.
    pub fn inputs(&self, name: &str) -> ControlInputs {
        ControlInputs::new(name, ControlKind::ControlNet)
            .channels(self.config.picture_channels)
            .multiple(self.config.factor())
            .prompt_only(self.config.is_pooled)
    }

    /// Embeds a picture `[1, channels, height, width]`.
    pub fn read(&self, picture: ArrayView4<'_, f32>, stop: &StopToken) -> Result<Hint, BoxError> {
        let picture = match self.config.is_bgr {
            true => picture.slice(s![.., ..;-1, .., ..]),
            false => picture,
        };
        let picture = Contiguous::new(picture);
        let inputs = [(PICTURE, picture.input())];
        let call = NetworkCall::new(&inputs);
        Ok(Hint::new(self.embedding.run_all(
            call,
            stop,
            &[EMBEDDED],
        )?))
    }

    /// Runs the network for a call, and adds its outputs, times their factors, to the inputs of the
    /// UNet.
    pub fn add(
        &self,
        call: &Call<'_>,
        control: &ControlCall<'_>,
        values: &mut Values,
    ) -> Result<(), BoxError> {
        let [embedded] = control.hint else {
            return Err("the hint is not one of a ControlNet".into());
        };
        let found = self.outputs(call, embedded)?;
        let factors = control.factors(ControlKind::ControlNet, found.len());
        for ((name, mut found), factor) in self.outputs.iter().zip(found).zip(factors) {
            if self.config.is_pooled {
                // Averaged over the picture.
                let mean = found
                    .mean_axis(Axis(3))
                    .and_then(|rows| rows.mean_axis(Axis(2)));
                let mean = mean.ok_or("an output of the ControlNet is empty")?;
                let mean = mean.insert_axis(Axis(2)).insert_axis(Axis(3));
                found.assign(&mean);
            }
            values.add(name, &found, factor)?;
        }
        Ok(())
    }

    fn outputs(
        &self,
        call: &Call<'_>,
        embedded: &ArrayD<f32>,
    ) -> Result<Vec<ArrayD<f32>>, BoxError> {
        let embedded = Contiguous::new(embedded.view());
        let names: Vec<_> = self.outputs.iter().map(String::as_str).collect();
        let more = [(EMBEDDED, embedded.input())];
        let found = self.takes.with_inputs(call, &more, |inputs| {
            let of_network = NetworkCall::new(inputs);
            self.network.run_all(of_network, call.stop, &names)
        })?;
        Ok(found?)
    }

    /// Loads the network for the sizes of a call.
    pub fn prepare(&self, call: &Call<'_>) -> Result<(), Error> {
        let (_, _, height, width) = call.latents.dim();
        let channels = self.config.unet.first_channels();
        let embedded = Array4::zeros((1, channels, height, width));
        let embedded = Contiguous::new(embedded.view());
        self.takes
            .with_inputs(call, &[(EMBEDDED, embedded.input())], |inputs| {
                self.network.prepare(inputs)
            })
            .expect("the call has every input of the UNet")
    }

    /// Returns where the nodes of the loaded networks run.
    pub fn report(&self) -> Vec<NetworkReport> {
        let mut reports = self.embedding.report();
        reports.extend(self.network.report());
        reports
    }
}

/// Checks that a ControlNet has the outputs that a UNet takes, and takes the inputs that the UNet's
/// pipeline has.
fn check_fits(
    config: &ControlNetConfig,
    weights: &Weights,
    unet: &UnetConfig,
) -> Result<(), Error> {
    let [own, other] = [&config.unet, unet];
    let shapes = |config: &UnetConfig| config.residual_shapes([64, 64]);
    let (own_inputs, inputs) = (&own.inputs, &other.inputs);
    let fits = own_inputs.context == inputs.context
        && own_inputs.channels == inputs.channels
        && own_inputs
            .pooled
            .is_none_or(|pooled| inputs.pooled == Some(pooled))
        && own_inputs
            .sizes
            .is_none_or(|sizes| inputs.sizes == Some(sizes))
        && shapes(own) == shapes(other);
    if fits {
        return Ok(());
    }
    let [own, other] = [own, other].map(|config| {
        let channels: Vec<_> = shapes(config).iter().map(|shape| shape[0]).collect();
        let width = config.inputs.context;
        let sizes = match config.inputs.sizes {
            Some(_) => "sizes",
            None => "no sizes",
        };
        format!("prompts of width {width}, {sizes}, and outputs of {channels:?} channels")
    });
    Err(misfit(weights.path(), "a ControlNet", &own, &other))
}
