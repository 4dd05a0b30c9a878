//! The control networks of a UNet.

mod adapter;
mod files;
mod net;
mod picture;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use sd_core::{
    BoxError, Call, ControlInput, ControlInputs, ControlKind, Hint, NetworkReport, Seamless,
    StopToken,
};
use sd_text::outside::{chain, printable};

pub use self::files::control_name;
pub(crate) use self::files::{CONTROL_NET, ControlFiles};
use self::{adapter::Adapter, files::name_of, net::ControlNet, picture::PicturePrompt};
use crate::{
    Error, ImageEncoder,
    engine::Engine,
    graph::Dialect,
    models::{
        control_net::ControlNetConfig,
        image_prompt::{self, ImagePromptConfig},
        t2i_adapter::T2iAdapterConfig,
        unet::{self, Steering, UnetConfig, feature_name, residual_name},
    },
    network::Named,
    session::Input,
    source::VisionFiles,
    weights::Weights,
};

/// The files of a control network, as a user gives them.
#[derive(Debug, Clone)]
pub(crate) struct ControlPath {
    /// The name by which requests call the network. `None` is the name of the file.
    pub name: Option<String>,
    pub path: PathBuf,
}

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
    Adapter(Adapter),
    /// An IP-Adapter, and its index among the IP-Adapters.
    Picture(usize, Box<PicturePrompt>),
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

    /// Adds an array, times a factor, to the values called `name`. If its batch is 1, every picture
    /// gets it.
    fn add(&mut self, name: &str, found: &ArrayD<f32>, factor: f32) -> Result<(), BoxError> {
        let values = self.0.iter_mut().find(|(known, _)| known == name);
        let Some((_, values)) = values else {
            return Err(format!("the UNet has no input `{name}`").into());
        };
        let expected = values.shape().to_vec();
        let Some(found) = found.broadcast(expected.as_slice()) else {
            let found = found.shape();
            return Err(format!("`{name}` has shape {found:?}, expected {expected:?}").into());
        };
        values.scaled_add(factor, &found);
        Ok(())
    }
}

/// The settings of [`Controls::open`].
pub(crate) struct ControlSettings<'a> {
    pub paths: &'a [ControlPath],
    /// The vision model of the IP-Adapters, if it is not beside their files.
    pub image_encoder: Option<&'a Path>,
    pub variant: Option<&'a str>,
    pub seamless: Seamless,
}

impl Controls {
    /// Opens the control networks of a UNet.
    ///
    /// # Errors
    /// An error if a file cannot be used, or does not fit the UNet, or if two networks have the
    /// same name.
    pub fn open(
        settings: &ControlSettings<'_>,
        unet: &UnetConfig,
        engine: &Engine,
    ) -> Result<Self, Error> {
        let mut controls = Self::default();
        let mut encoders = Vec::new();
        for ControlPath { name, path } in settings.paths {
            let name = name.clone().unwrap_or_else(|| name_of(path));
            if controls
                .networks
                .iter()
                .any(|(known, _)| known.name == name)
            {
                let name = printable(&name);
                let problem = format!("another control network is called `{name}`, too");
                return Err(Error::Checkpoint {
                    path: path.clone(),
                    problem,
                });
            }
            let opened = controls.opened(&name, path, settings, unet, engine, &mut encoders)?;
            controls.networks.push(opened);
            controls.unet = Some(unet.clone());
        }
        match settings.image_encoder {
            Some(path) if controls.pictures().next().is_none() => Err(Error::Checkpoint {
                path: path.to_path_buf(),
                problem: "this vision model was given for IP-Adapters, but there are none".into(),
            }),
            _ => Ok(controls),
        }
    }

    fn opened(
        &self,
        name: &str,
        path: &Path,
        settings: &ControlSettings<'_>,
        unet: &UnetConfig,
        engine: &Engine,
        encoders: &mut Vec<(PathBuf, ImageEncoder)>,
    ) -> Result<(ControlInputs, ControlNetwork), Error> {
        Ok(match ControlFiles::open(path, settings.variant)? {
            ControlFiles::Net { config, weights } => {
                let mut config = ControlNetConfig::new(&config)?;
                config.unet.inputs = config.unet.inputs.seamless(settings.seamless);
                let net = ControlNet::new(config, weights, unet, engine)?;
                (net.inputs(name), ControlNetwork::Net(net.into()))
            }
            ControlFiles::Adapter { config, weights } => {
                let config = T2iAdapterConfig::new(&config)?;
                let adapter = Adapter::new(config, weights, unet, engine)?;
                (adapter.inputs(name), ControlNetwork::Adapter(adapter))
            }
            ControlFiles::Image { weights, encoder } => {
                let config = ImagePromptConfig::new(path, &weights)?;
                let encoder = settings.image_encoder.map(Path::to_path_buf).or(encoder);
                let encoder = encoder.ok_or_else(|| Error::Missing {
                    path: path.to_path_buf(),
                    what: "the vision model of the IP-Adapter".into(),
                    hint: "set it with `Builder::image_encoder`, or put its folder \
                           `image_encoder` beside the file"
                        .into(),
                })?;
                let known = encoders.iter().find(|(path, _)| *path == encoder);
                let encoder = match known {
                    // Clones share the network.
                    Some((_, encoder)) => encoder.clone(),
                    None => {
                        let files = VisionFiles::open(&encoder, settings.variant)?;
                        let loaded = ImageEncoder::new(files, engine)?;
                        encoders.push((encoder, loaded.clone()));
                        loaded
                    }
                };
                let picture = PicturePrompt::new(config, weights, encoder, unet, engine)?;
                let index = self.prompts().len();
                let inputs = picture.inputs(name);
                (inputs, ControlNetwork::Picture(index, picture.into()))
            }
        })
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
            features: self.features(),
            prompts,
        }
    }

    fn has(&self, kind: ControlKind) -> bool {
        self.networks.iter().any(|(inputs, _)| inputs.kind == kind)
    }

    /// Returns the number of features of T2I-Adapters that the UNet takes.
    fn features(&self) -> usize {
        let features = self.networks.iter().map(|(_, network)| match network {
            ControlNetwork::Adapter(adapter) => adapter.features(),
            _ => 0,
        });
        features.max().unwrap_or(0)
    }

    fn pictures(&self) -> impl Iterator<Item = (usize, &PicturePrompt)> {
        self.networks
            .iter()
            .filter_map(|(_, network)| match network {
                ControlNetwork::Picture(index, picture) => Some((*index, &**picture)),
                _ => None,
            })
    }

    /// Returns the weights of the IP-Adapters.
    pub fn prompts(&self) -> Vec<&Weights> {
        self.pictures()
            .map(|(_, picture)| picture.weights())
            .collect()
    }

    /// Checks that the weights of IP-Adapters fit the UNet, and that it uses all of them.
    pub fn check_prompts(&self, unet: &UnetConfig, weights: &Weights) -> Result<(), Error> {
        let of_unet = weights.outline();
        self.prompts().into_iter().try_for_each(|prompt| {
            let is_other = |name: &str| !image_prompt::is_left_out(name);
            prompt.check(image_prompt::CLASS, is_other, |outline| {
                let steering = Steering {
                    prompts: &[outline],
                    ..Steering::default()
                };
                unet::steered(unet, &of_unet, steering, Dialect::default()).map(drop)
            })
        })
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
            (ControlNetwork::Adapter(adapter), ControlInput::Values(values)) => {
                adapter.read(values, stop)
            }
            (ControlNetwork::Picture(_, prompt), ControlInput::Pixels(picture)) => {
                prompt.read(picture, stop)
            }
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
        for control in call.controls {
            let (inputs, network) = self.network(control.network)?;
            let added = match network {
                ControlNetwork::Net(net) => net.add(call, control, &mut values),
                ControlNetwork::Adapter(adapter) => adapter.add(control, &mut values),
                ControlNetwork::Picture(index, picture) => {
                    picture.set(*index, control, &mut values)
                }
            };
            let name = printable(&inputs.name);
            added.map_err(|error| format!("the control network `{name}`: {}", chain(&*error)))?;
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
        let features = unet.feature_shapes([height, width]).into_iter();
        let features = features.take(self.features()).enumerate();
        values.extend(features.map(|(i, shape)| (feature_name(i), zeros(shape))));
        for (index, picture) in self.pictures() {
            values.extend(picture.nothing(index, batch));
        }
        Values(values)
    }

    /// Loads the networks that run in every step, for the sizes of a call. T2I-Adapters and the
    /// projections of IP-Adapters are loaded at their first use.
    pub fn prepare(&self, call: &Call<'_>) -> Result<(), Error> {
        self.networks.iter().try_for_each(|(_, of)| match of {
            ControlNetwork::Net(net) => net.prepare(call),
            ControlNetwork::Adapter(_) | ControlNetwork::Picture(..) => Ok(()),
        })
    }

    /// Returns where the nodes of the loaded networks run.
    pub fn report(&self) -> Vec<NetworkReport> {
        let of = |(_, network): &(ControlInputs, ControlNetwork)| match network {
            ControlNetwork::Net(net) => net.report(),
            ControlNetwork::Adapter(adapter) => adapter.network().report(),
            ControlNetwork::Picture(_, picture) => picture.report(),
        };
        self.networks.iter().flat_map(of).collect()
    }
}

/// Returns the error for a network of another model. `found` and `expected` describe its outputs
/// and the inputs of the UNet.
fn misfit(path: &Path, kind: &str, found: &str, expected: &str) -> Error {
    Error::Checkpoint {
        path: path.to_path_buf(),
        problem: format!(
            "the file is {kind} for another model: it has {found}, expected {expected}"
        ),
    }
}
