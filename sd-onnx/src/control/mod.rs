//! The control networks of a UNet.

mod net;

use ndarray::{ArrayD, IxDyn};
use sd_core::{
    BoxError, Call, ControlInput, ControlInputs, ControlKind, Hint, NetworkReport, StopToken,
};

use self::net::ControlNet;
use crate::{
    Error,
    models::unet::{Steering, UnetConfig, residual_name},
    network::Named,
    session::Input,
    weights::Weights,
};

/// The control networks of a UNet. The default is none.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    networks: Vec<(ControlInputs, ControlNetwork)>,
    /// The UNet that they control. `None` if there are none.
    unet: Option<UnetConfig>,
}

/// A control network.
#[derive(Debug)]
enum ControlNetwork {
    Net(Box<ControlNet>),
}

/// The values of the inputs that a UNet has for control networks, by name.
#[derive(Debug, Default)]
pub(crate) struct Values(Vec<(String, ArrayD<f32>)>);

impl Values {
    /// Returns the inputs with their names.
    pub fn named(&self) -> Vec<Named<'_>> {
        let named = self.0.iter().map(|(name, values)| {
            let data = values.as_slice().expect("made in standard layout");
            (name.as_str(), Input::F32(values.shape(), data))
        });
        named.collect()
    }
}

impl Controls {
    /// Returns whether there are no control networks.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// Describes the networks to a pipeline.
    pub fn inputs(&self) -> Vec<ControlInputs> {
        let inputs = self.networks.iter().map(|(inputs, _)| inputs.clone());
        inputs.collect()
    }

    /// Returns the inputs that the UNet's graph needs. `prompts` are [`prompts`](Self::prompts).
    pub fn steering<'w>(&self, prompts: &'w [&'w Weights]) -> Steering<'w> {
        Steering {
            residuals: self.has(ControlKind::ControlNet),
            features: 0,
            prompts,
        }
    }

    fn has(&self, kind: ControlKind) -> bool {
        self.networks.iter().any(|(inputs, _)| inputs.kind == kind)
    }

    /// Returns the weights of the IP-Adapters.
    pub fn prompts(&self) -> Vec<&Weights> {
        Vec::new()
    }

    /// Lets a network read a picture.
    pub fn read(
        &self,
        network: usize,
        picture: ControlInput<'_>,
        stop: &StopToken,
    ) -> Result<Hint, BoxError> {
        let (_, network) = self.network(network)?;
        match (network, picture) {
            (ControlNetwork::Net(net), ControlInput::Values(values)) => net.read(values, stop),
            _ => Err("the control network does not take this form of a picture".into()),
        }
    }

    fn network(&self, index: usize) -> Result<&(ControlInputs, ControlNetwork), String> {
        let missing = || format!("there is no control network {index}");
        self.networks.get(index).ok_or_else(missing)
    }

    /// Runs the networks that act in a call, and returns the values of the UNet's inputs.
    pub fn values(&self, call: &Call<'_>) -> Result<Values, BoxError> {
        let mut values = self.no_values(call);
        let residuals = values.0.iter_mut();
        let mut residuals: Vec<_> = residuals.map(|(_, values)| values).collect();
        for control in call.controls {
            match &self.network(control.network)?.1 {
                ControlNetwork::Net(net) => net.add(call, control, &mut residuals)?,
            }
        }
        Ok(values)
    }

    /// Returns the values of the UNet's inputs if no network acts in a call: zeros.
    pub fn no_values(&self, call: &Call<'_>) -> Values {
        let Some(unet) = &self.unet else {
            return Values::default();
        };
        let (batch, _, height, width) = call.latents.dim();
        let mut values = Vec::new();
        let zeros = |[channels, height, width]: [usize; 3]| {
            ArrayD::zeros(IxDyn(&[batch, channels, height, width]))
        };
        if self.has(ControlKind::ControlNet) {
            let shapes = unet.residual_shapes([height, width]);
            let last = shapes.len() - 1;
            for (i, shape) in shapes.into_iter().enumerate() {
                let name = residual_name((i < last).then_some(i));
                values.push((name, zeros(shape)));
            }
        }
        Values(values)
    }

    /// Loads the networks that run in every step, for the sizes of a call.
    pub fn prepare(&self, call: &Call<'_>) -> Result<(), Error> {
        self.networks
            .iter()
            .try_for_each(|(_, network)| match network {
                ControlNetwork::Net(net) => net.prepare(call),
            })
    }

    /// Returns where the nodes of the loaded networks run.
    pub fn report(&self) -> Vec<NetworkReport> {
        let of = |(_, network): &(ControlInputs, ControlNetwork)| match network {
            ControlNetwork::Net(net) => net.report(),
        };
        self.networks.iter().flat_map(of).collect()
    }
}
