//! The traits that a backend implements. The third one, `TextModel`, is in [`sd_text`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use ndarray::{
    Array4, ArrayD, ArrayView1, ArrayView2, ArrayView3, ArrayView4, ArrayViewMut4, Axis, Zip,
};

use crate::{
    ControlCall, ControlInput, ControlInputs, Hint, LatentRgb, Seamless, SizeIds, StopToken,
    upscale::Tiling,
};

pub use sd_text::{BoxError, NetworkReport};

/// The network that predicts the noise (or v, or the sample) in noisy latents.
pub trait Denoiser: Send + Sync {
    /// Returns a description of the network's inputs. A pipeline checks its other parts and every
    /// request against it.
    fn inputs(&self) -> &Inputs;

    /// Computes the network's raw output for a call, and writes it to `output`. The output has the
    /// shape of [`Call::latents`], and every element is written.
    ///
    /// # Errors
    /// Returns any error of the backend. When [`Call::stop`] is stopped, the call may return early
    /// with any error. A call that is short anyway may ignore the token.
    fn predict(&self, call: &Call<'_>, output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError>;

    /// Lets a control network read a picture. `network` is an index in [`Inputs::controls`]. The
    /// pipeline calls it once for each control and pass of a request, and hands the hint back in
    /// [`Call::controls`].
    ///
    /// Default: an error, for a denoiser without control networks.
    ///
    /// # Errors
    /// The same as for [`predict`](Self::predict).
    fn read_control(
        &self,
        network: usize,
        picture: ControlInput<'_>,
        stop: &StopToken,
    ) -> Result<Hint, BoxError> {
        let _ = (picture, stop);
        Err(format!("there is no control network {network}").into())
    }

    /// Returns the name of the number format that the network computes in, such as `int8`, if it is
    /// not f32. Infotexts record it as `SD precision`.
    ///
    /// Default: `None`. The network computes in f32.
    fn precision(&self) -> Option<&'static str> {
        None
    }

    /// Returns where the nodes of the loaded network run.
    ///
    /// Default: an empty list.
    fn report(&self) -> Vec<NetworkReport> {
        Vec::new()
    }
}

/// The inputs that a denoiser takes.
///
/// ```
/// use sd_core::{Inputs, SizeIds};
///
/// let sd15 = Inputs::new(4, 768);
/// let sdxl = Inputs::new(4, 2048).pooled(1280).sizes(SizeIds::Target);
/// let inpainting = Inputs::new(4, 768).extra_channels(5);
/// # assert_eq!((sd15.pooled, sdxl.pooled, inpainting.extra_channels), (None, Some(1280), 5));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inputs {
    /// The number of latent channels, 4 in Stable Diffusion.
    pub channels: usize,
    /// The width of the text embeddings that the network attends to: 768 in Stable Diffusion 1.x,
    /// 2048 in SDXL.
    pub context: usize,
    /// The width of the pooled text embedding, 1280 in SDXL.
    ///
    /// Default: `None`. The network does not take it.
    pub pooled: Option<usize>,
    /// The sizes that the network takes, and their order.
    ///
    /// Default: `None`. The network does not take sizes.
    pub sizes: Option<SizeIds>,
    /// Whether the network takes the guidance scale as an input, as latent consistency models do.
    /// Such a network is called once per step, without a negative prompt.
    ///
    /// Default: false.
    pub guidance: bool,
    /// The number of extra input channels beside the latents: 5 for inpainting (mask and masked
    /// latents), 4 for instruct-pix2pix.
    ///
    /// Default: 0.
    pub extra_channels: usize,
    /// The side, in latents, of the square patches that the network divides its input into. The
    /// height and width of the latents must be multiples of it. Stable Diffusion 3 and Flux have 2.
    ///
    /// Default: 1.
    pub patch: usize,
    /// The axes along which the network draws seamless pictures.
    ///
    /// Default: [`Seamless::NONE`].
    pub seamless: Seamless,
    /// The control networks that requests can [call](crate::Control). Their names are different.
    ///
    /// Default: none.
    pub controls: Vec<ControlInputs>,
    /// The number of branches at which a call can reuse [deep features](DeepCall), 0 if it cannot.
    ///
    /// Default: 0.
    pub deep_branches: usize,
    /// Whether calls can [merge tokens](Call::merge_tokens).
    ///
    /// Default: false.
    pub token_merging: bool,
    /// Whether a call with the prompt and the negative prompt in one batch is faster than two
    /// calls, as it is on most GPUs. The pipeline then batches them where it can.
    ///
    /// Default: false.
    pub batches_guidance: bool,
}

impl Inputs {
    /// Describes a network that takes latents of `channels` channels and text embeddings of width
    /// `context`, and no other inputs. Stable Diffusion 1.x and 2.x are such networks.
    pub fn new(channels: usize, context: usize) -> Self {
        Self {
            channels,
            context,
            pooled: None,
            sizes: None,
            guidance: false,
            extra_channels: 0,
            patch: 1,
            seamless: Seamless::NONE,
            controls: Vec::new(),
            deep_branches: 0,
            token_merging: false,
            batches_guidance: false,
        }
    }

    /// Sets [`pooled`](Self::pooled).
    pub fn pooled(mut self, width: usize) -> Self {
        self.pooled = Some(width);
        self
    }

    /// Sets [`sizes`](Self::sizes).
    pub fn sizes(mut self, ids: SizeIds) -> Self {
        self.sizes = Some(ids);
        self
    }

    /// Sets [`guidance`](Self::guidance).
    pub fn guidance(mut self, taken: bool) -> Self {
        self.guidance = taken;
        self
    }

    /// Sets [`extra_channels`](Self::extra_channels).
    pub fn extra_channels(mut self, channels: usize) -> Self {
        self.extra_channels = channels;
        self
    }

    /// Sets [`patch`](Self::patch).
    pub fn patch(mut self, side: usize) -> Self {
        self.patch = side;
        self
    }

    /// Sets [`seamless`](Self::seamless).
    pub fn seamless(mut self, axes: Seamless) -> Self {
        self.seamless = axes;
        self
    }

    /// Adds a control network to [`controls`](Self::controls).
    pub fn control(mut self, network: ControlInputs) -> Self {
        self.controls.push(network);
        self
    }

    /// Sets [`deep_branches`](Self::deep_branches).
    pub fn deep_branches(mut self, branches: usize) -> Self {
        self.deep_branches = branches;
        self
    }

    /// Sets [`token_merging`](Self::token_merging).
    pub fn token_merging(mut self, possible: bool) -> Self {
        self.token_merging = possible;
        self
    }

    /// Sets [`batches_guidance`](Self::batches_guidance).
    pub fn batches_guidance(mut self, faster: bool) -> Self {
        self.batches_guidance = faster;
        self
    }
}

/// One call of a denoiser.
///
/// A call is borrowed and [`Copy`], so that a denoiser that wraps another one can pass it on,
/// changed or unchanged. A pipeline sets exactly the inputs that the network's [`Inputs`] declare.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Call<'a> {
    /// The noisy latents, `[batch, channels, h, w]`, in the scaling that the network was trained
    /// on: variance-preserving, or for a flow model the straight path between the picture and the
    /// noise.
    pub latents: ArrayView4<'a, f32>,
    /// The training timestep, which some ladders make fractional: `0.0..=num_train_timesteps - 1`,
    /// or `0.0..=num_train_timesteps` for a flow model. For an EDM model it is 0.25 · ln σ.
    pub timestep: f32,
    /// The text embeddings, `[batch, tokens, width]`.
    pub context: ArrayView3<'a, f32>,
    /// The pooled text embeddings, `[batch, width]`.
    pub pooled: Option<ArrayView2<'a, f32>>,
    /// The sizes, `[batch, ids]`, in the order of [`SizeIds`].
    pub sizes: Option<ArrayView2<'a, f32>>,
    /// The guidance scale of each picture, `[batch]`.
    pub guidance: Option<ArrayView1<'a, f32>>,
    /// The extra channels beside the latents, `[batch, channels, h, w]`.
    pub beside: Option<ArrayView4<'a, f32>>,
    /// The control networks that act in the call. The denoiser adds the outputs of all ControlNets
    /// and T2I-Adapters, and attends to the tokens of IP-Adapters.
    ///
    /// Default: none.
    pub controls: &'a [ControlCall<'a>],
    /// The step of the run that the call belongs to, counted from 0. A sampler may make several
    /// calls in a step. A run that starts from a picture has fewer steps than its ladder.
    ///
    /// Default: 0.
    pub step: usize,
    /// The deep features that the call keeps or reuses.
    ///
    /// Default: `None`. The call computes everything and keeps nothing.
    pub deep: Option<DeepCall<'a>>,
    /// The share of the tokens that the largest self-attention merges before it, `0.0..=0.75`
    /// (token merging, <https://arxiv.org/abs/2303.17604>).
    ///
    /// Default: 0. No tokens are merged.
    pub merge_tokens: f32,
    /// The token that ends the call early.
    pub stop: &'a StopToken,
}

/// What a call does with the deep features of a UNet (DeepCache,
/// <https://arxiv.org/abs/2312.00858>).
///
/// A UNet's innermost levels change little from one step to the next. A call either computes
/// everything and keeps the features that enter the up path's last layers, or takes these features
/// from an earlier call and computes only the outer layers.
#[derive(Debug, Clone, Copy)]
pub struct DeepCall<'a> {
    /// The place of the features. Each prompt of a run has its own.
    pub features: &'a DeepFeatures,
    /// Whether the call takes the features from there. Otherwise it computes and keeps them.
    pub reuse: bool,
    /// The branch at which the network is cut, from 0, the outermost one, to
    /// [`Inputs::deep_branches`] - 1. A higher branch reuses less.
    pub branch: usize,
}

/// Deep features that a denoiser keeps from one call to the next.
#[derive(Debug, Default)]
pub struct DeepFeatures(Mutex<Option<ArrayD<f32>>>);

impl DeepFeatures {
    /// Keeps features, in place of the earlier ones.
    pub fn keep(&self, features: ArrayD<f32>) {
        *self.lock() = Some(features);
    }

    /// Calls `use_them` with the features, and returns `None` if there are none.
    pub fn with<T>(&self, use_them: impl FnOnce(&ArrayD<f32>) -> T) -> Option<T> {
        self.lock().as_ref().map(use_them)
    }

    fn lock(&self) -> MutexGuard<'_, Option<ArrayD<f32>>> {
        // The features are replaced as a whole, so they are complete even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Call<'a> {
    /// Creates a call with latents, timestep and text embeddings, which are the only inputs of
    /// Stable Diffusion 1.x and 2.x.
    pub fn new(
        latents: ArrayView4<'a, f32>,
        timestep: f32,
        context: ArrayView3<'a, f32>,
        stop: &'a StopToken,
    ) -> Self {
        Self {
            latents,
            timestep,
            context,
            pooled: None,
            sizes: None,
            guidance: None,
            beside: None,
            controls: &[],
            step: 0,
            deep: None,
            merge_tokens: 0.0,
            stop,
        }
    }

    /// Sets [`pooled`](Self::pooled).
    pub fn pooled(mut self, pooled: ArrayView2<'a, f32>) -> Self {
        self.pooled = Some(pooled);
        self
    }

    /// Sets [`sizes`](Self::sizes).
    pub fn sizes(mut self, sizes: ArrayView2<'a, f32>) -> Self {
        self.sizes = Some(sizes);
        self
    }

    /// Sets [`guidance`](Self::guidance).
    pub fn guidance(mut self, scales: ArrayView1<'a, f32>) -> Self {
        self.guidance = Some(scales);
        self
    }

    /// Sets [`beside`](Self::beside).
    pub fn beside(mut self, picture: ArrayView4<'a, f32>) -> Self {
        self.beside = Some(picture);
        self
    }

    /// Sets [`controls`](Self::controls).
    pub fn controls(mut self, controls: &'a [ControlCall<'a>]) -> Self {
        self.controls = controls;
        self
    }

    /// Sets [`step`](Self::step).
    pub fn step(mut self, step: usize) -> Self {
        self.step = step;
        self
    }

    /// Sets [`deep`](Self::deep).
    pub fn deep(mut self, deep: DeepCall<'a>) -> Self {
        self.deep = Some(deep);
        self
    }

    /// Sets [`merge_tokens`](Self::merge_tokens).
    pub fn merge_tokens(mut self, share: f32) -> Self {
        self.merge_tokens = share;
        self
    }
}

/// The autoencoder between latents and pictures.
pub trait LatentCodec: Send + Sync {
    /// Returns the number of latent channels, 4 in Stable Diffusion 1.x.
    fn latent_channels(&self) -> usize;

    /// Returns the number of pixels per latent on each side, 8 in Stable Diffusion 1.x.
    fn factor(&self) -> usize;

    /// Decodes latents `[batch, channels, h, w]` to pictures `[batch, 3, h·factor, w·factor]`.
    ///
    /// The latents are in the pipeline's scaling, which the codec undoes. The pixels are about
    /// `-1.0..=1.0` and are not clamped.
    ///
    /// # Errors
    /// Returns any error of the backend. When `stop` is stopped, the call may return early with any
    /// error.
    fn decode(
        &self,
        latents: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<Array4<f32>, BoxError>;

    /// Encodes pictures `[batch, 3, H, W]`, `-1.0..=1.0`, to the distribution of their latents.
    ///
    /// # Errors
    /// Returns the same errors as [`decode`](Self::decode).
    fn encode(
        &self,
        image: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<LatentDistribution, BoxError>;

    /// Returns the name of an approximation, such as `fast tiles`, if the codec decodes latents of
    /// this height and width differently from the model's autoencoder. Infotexts record the name as
    /// `SD decoder`.
    ///
    /// Default: `None`. The codec computes the autoencoder as it is.
    fn approximation(&self, [height, width]: [usize; 2]) -> Option<&'static str> {
        let _ = (height, width);
        None
    }

    /// Returns the coefficients of previews, if they are known.
    ///
    /// Default: `None`. The pipeline [fits](LatentRgb::fit) them when it is built.
    fn latent_rgb(&self) -> Option<LatentRgb> {
        None
    }

    /// Returns where the nodes of the loaded networks run.
    ///
    /// Default: an empty list.
    fn report(&self) -> Vec<NetworkReport> {
        Vec::new()
    }
}

/// A network that enlarges pictures by a whole factor, such as ESRGAN.
///
/// [`Enlarger`](crate::upscale::Enlarger) enlarges pictures of any size by any factor with it.
pub trait PictureUpscaler: Send + Sync {
    /// Returns the factor by which both sides grow, at least 1. A network with the factor 1
    /// restores pictures without enlarging them.
    fn scale(&self) -> usize;

    /// Enlarges a picture `[1, 3, h, w]`, red, green and blue, `0.0..=1.0`, to
    /// `[1, 3, h·scale, w·scale]`. The result is not clamped.
    ///
    /// # Errors
    /// Returns any error of the backend. When `stop` is stopped, the call may return early with any
    /// error.
    fn upscale(
        &self,
        picture: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<Array4<f32>, BoxError>;

    /// Returns the size of the tiles in which large pictures go through the network. It bounds the
    /// memory of a call.
    ///
    /// Default: [`Tiling::default`], tiles of 192 pixels that overlap by 8.
    fn tiling(&self) -> Tiling {
        Tiling::default()
    }

    /// Returns where the nodes of the loaded network run.
    ///
    /// Default: an empty list.
    fn report(&self) -> Vec<NetworkReport> {
        Vec::new()
    }
}

/// A Gaussian distribution over latents, the output of a variational autoencoder's encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentDistribution {
    /// The mean, `[batch, channels, h, w]`, in the autoencoder's own scaling.
    pub mean: Array4<f32>,
    /// The logarithm of the variance, `-30.0..=20.0`, of the same shape. It is minus infinity for
    /// an autoencoder without a distribution, such as TAESD.
    pub log_variance: Array4<f32>,
    /// The factor of each channel, by which the latents are multiplied after `shift` is subtracted,
    /// to bring them to the pipeline's scaling. It is `scaling_factor`, for Playground 2.5 divided
    /// by `latents_std`.
    pub scale: Vec<f32>,
    /// The value that is subtracted from each channel: `shift_factor` or `latents_mean`, 0 for most
    /// models.
    pub shift: Vec<f32>,
}

impl LatentDistribution {
    /// Returns the most likely latents, in the pipeline's scaling.
    pub fn mode(&self) -> Array4<f32> {
        self.scaled(self.mean.clone())
    }

    /// Returns latents that are drawn with unit noise of the same shape, in the pipeline's scaling:
    /// `mean + exp(log_variance / 2) · noise`.
    ///
    /// # Panics
    /// If the noise has another shape.
    pub fn sample(&self, noise: ArrayView4<'_, f32>) -> Array4<f32> {
        let mut latents = self.mean.clone();
        Zip::from(&mut latents)
            .and(&self.log_variance)
            .and(&noise)
            .for_each(|latent, log_variance, noise| *latent += (0.5 * log_variance).exp() * noise);
        self.scaled(latents)
    }

    /// Brings latents to the pipeline's scaling.
    fn scaled(&self, mut latents: Array4<f32>) -> Array4<f32> {
        for (mut channel, (scale, shift)) in latents
            .axis_iter_mut(Axis(1))
            .zip(self.scale.iter().zip(&self.shift))
        {
            channel.mapv_inplace(|value| (value - shift) * scale);
        }
        latents
    }
}
