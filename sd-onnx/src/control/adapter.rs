//! A T2I-Adapter on ONNX Runtime.

use ndarray::ArrayView4;
use sd_core::{BoxError, ControlCall, ControlInputs, ControlKind, Hint, StopToken};

use super::{Values, misfit};
use crate::{
    Error,
    contiguous::Contiguous,
    engine::Engine,
    models::{
        t2i_adapter::{self, PICTURE, T2iAdapterConfig},
        unet::{UnetConfig, feature_name},
    },
    network::{Network, NetworkCall},
    weights::Weights,
};

/// A T2I-Adapter. It is called once per run.
#[derive(Debug)]
pub(crate) struct Adapter {
    config: T2iAdapterConfig,
    network: Network,
    /// The number of features.
    features: usize,
}

impl Adapter {
    /// Creates an adapter that is loaded at its first use, for the UNet of this configuration.
    ///
    /// # Errors
    /// - [`Error::Checkpoint`] if the adapter is for another UNet.
    /// - An error if tensors are missing, have another shape or are not used.
    pub fn new(
        config: T2iAdapterConfig,
        weights: Weights,
        unet: &UnetConfig,
        engine: &Engine,
    ) -> Result<Self, Error> {
        t2i_adapter::check(&config, &weights)?;
        let own: Vec<_> = config.outputs().collect();
        let taken = unet.feature_shapes([64, 64]);
        let first = taken[0][1];
        let taken = taken
            .into_iter()
            .map(|[channels, height, _]| (channels, (first / height).ilog2()));
        let taken: Vec<_> = taken.collect();
        if !taken.starts_with(&own) {
            let [own, taken] = [own, taken].map(|features| {
                let (channels, halved): (Vec<_>, Vec<_>) = features.into_iter().unzip();
                format!("features of {channels:?} channels, halved {halved:?} times")
            });
            return Err(misfit(weights.path(), "a T2I-Adapter", &own, &taken));
        }
        let of_graph = config.clone();
        let network = Network::new("T2I-Adapter", engine, true, move |dialect| {
            t2i_adapter::graph(&of_graph, &weights, dialect)
        });
        Ok(Self {
            config,
            network,
            features: own.len(),
        })
    }

    /// Describes the network to a pipeline.
    pub fn inputs(&self, name: &str) -> ControlInputs {
        ControlInputs::new(name, ControlKind::Adapter)
            .channels(self.config.picture_channels)
            .multiple(self.config.factor)
    }

    /// Returns the number of features.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Returns the network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Computes the features of a picture `[1, channels, height, width]`.
    pub fn read(&self, picture: ArrayView4<'_, f32>, stop: &StopToken) -> Result<Hint, BoxError> {
        let picture = Contiguous::new(picture);
        let inputs = [(PICTURE, picture.input())];
        let names: Vec<_> = (0..self.features).map(feature_name).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let call = NetworkCall::new(&inputs);
        Ok(Hint::new(self.network.run_all(call, stop, &names)?))
    }

    /// Adds the features, times their factors, to the inputs of the UNet.
    pub fn add(&self, control: &ControlCall<'_>, values: &mut Values) -> Result<(), BoxError> {
        let factors = control.factors(ControlKind::Adapter, control.hint.len());
        for (i, (found, factor)) in control.hint.iter().zip(factors).enumerate() {
            values.add(&feature_name(i), found, factor)?;
        }
        Ok(())
    }
}
