//! An IP-Adapter on ONNX Runtime.

use std::sync::{Arc, OnceLock};

use ndarray::{Array4, ArrayD, IxDyn};
use sd_core::{
    BoxError, ControlCall, ControlInputs, ControlKind, Hint, NetworkReport, StopToken,
    image::RgbImage,
};

use super::{Values, misfit};
use crate::{
    Error, ImageEncoder, ImageLayer,
    contiguous::Contiguous,
    engine::Engine,
    models::{
        image_prompt::{self, EMBEDS, HIDDEN, ImagePromptConfig, TOKENS},
        unet::{UnetConfig, prompt_names},
    },
    network::{Network, NetworkCall},
    weights::Weights,
};

/// An IP-Adapter: CLIP's vision model, a projection to tokens, and weights for the UNet.
#[derive(Debug)]
pub(crate) struct PicturePrompt {
    config: ImagePromptConfig,
    encoder: ImageEncoder,
    projection: Network,
    weights: Arc<Weights>,
    /// The tokens for the negative prompt, which do not depend on the picture.
    negative: OnceLock<ArrayD<f32>>,
}

impl PicturePrompt {
    /// Creates an IP-Adapter for the UNet of this configuration. The projection is loaded at its
    /// first use.
    ///
    /// # Errors
    /// - [`Error::Checkpoint`] if the adapter is for another UNet or another vision model.
    /// - An error if tensors are missing, have another shape or are not used.
    pub fn new(
        config: ImagePromptConfig,
        weights: Weights,
        encoder: ImageEncoder,
        unet: &UnetConfig,
        engine: &Engine,
    ) -> Result<Self, Error> {
        image_prompt::check(&config, &weights)?;
        let width = |width: usize| format!("a width of {width}");
        if config.context != unet.prompt_width() {
            let [own, taken] = [config.context, unet.prompt_width()].map(width);
            return Err(misfit(weights.path(), config.name(), &own, &taken));
        }
        let given = match config.takes_hidden() {
            true => encoder.width(),
            false => encoder.projected_width(),
        };
        if config.input != given {
            return Err(Error::Checkpoint {
                path: weights.path().to_path_buf(),
                problem: format!(
                    "the file is {}, which needs a vision model with {} of width {}, but the \
                     vision model that was loaded has {given}",
                    config.name(),
                    match config.takes_hidden() {
                        true => "hidden states",
                        false => "embeddings",
                    },
                    config.input
                ),
            });
        }
        let weights = Arc::new(weights);
        let (of_graph, of_weights) = (config.clone(), weights.clone());
        let projection = Network::new("IP-Adapter", engine, true, move |dialect| {
            image_prompt::graph(&of_graph, &of_weights, dialect)
        });
        Ok(Self {
            config,
            encoder,
            projection,
            weights,
            negative: OnceLock::new(),
        })
    }

    /// Describes the network to a pipeline.
    pub fn inputs(&self, name: &str) -> ControlInputs {
        ControlInputs::new(name, ControlKind::ImagePrompt)
    }

    /// Returns the weights, which have keys and values for the UNet.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Computes the tokens of a picture, and the ones for the negative prompt.
    ///
    /// As in diffusers, the negative tokens are made from an embedding of zeros, or from the hidden
    /// states of a picture whose preprocessed values are zeros.
    pub fn read(&self, picture: &RgbImage, stop: &StopToken) -> Result<Hint, BoxError> {
        let state = match self.config.takes_hidden() {
            true => self.hidden(self.encoder.pixel_values([picture])?)?,
            false => self.encoder.encode([picture])?.projected.into_dyn(),
        };
        let tokens = self.tokens(&state, stop)?;
        let negative = match self.negative.get() {
            Some(known) => known.clone(),
            None => {
                let side = self.encoder.side();
                let state = match self.config.takes_hidden() {
                    true => self.hidden(Array4::zeros((1, 3, side, side)))?,
                    false => ArrayD::zeros(IxDyn(&[1, self.config.input])),
                };
                let found = self.tokens(&state, stop)?;
                self.negative.get_or_init(|| found).clone()
            }
        };
        Ok(Hint::new(vec![tokens]).negative(vec![negative]))
    }

    fn hidden(&self, pixels: Array4<f32>) -> Result<ArrayD<f32>, BoxError> {
        let states = self
            .encoder
            .hidden_states(pixels.view(), ImageLayer::Penultimate);
        Ok(states?.into_dyn())
    }

    fn tokens(&self, state: &ArrayD<f32>, stop: &StopToken) -> Result<ArrayD<f32>, BoxError> {
        let state = Contiguous::new(state.view());
        let name = match self.config.takes_hidden() {
            true => HIDDEN,
            false => EMBEDS,
        };
        let inputs = [(name, state.input())];
        let mut found = self
            .projection
            .run_all(NetworkCall::new(&inputs), stop, &[TOKENS])?;
        Ok(found.remove(0))
    }

    /// Returns the inputs of the UNet if no picture acts: tokens of zeros, and a weight of 0.
    pub fn nothing(&self, adapter: usize, batch: usize) -> [(String, ArrayD<f32>); 2] {
        let count = self.config.tokens().unwrap_or(self.encoder.length());
        let tokens = ArrayD::zeros(IxDyn(&[batch, count, self.config.context]));
        let [name, weight] = prompt_names(adapter);
        [(name, tokens), (weight, ArrayD::zeros(IxDyn(&[1])))]
    }

    /// Sets the inputs of the UNet to the tokens of a picture.
    pub fn set(
        &self,
        adapter: usize,
        control: &ControlCall<'_>,
        values: &mut Values,
    ) -> Result<(), BoxError> {
        let [tokens] = control.hint else {
            return Err("the hint is not one of an IP-Adapter".into());
        };
        let [name, weight] = prompt_names(adapter);
        values.add(&name, tokens, 1.0)?;
        let one = ArrayD::ones(IxDyn(&[1]));
        values.add(&weight, &one, control.weight)
    }

    /// Returns where the nodes of the loaded networks run.
    pub fn report(&self) -> Vec<NetworkReport> {
        let mut reports = self.projection.report();
        reports.extend(self.encoder.report());
        reports
    }
}
