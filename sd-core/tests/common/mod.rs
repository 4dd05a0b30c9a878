//! Fakes for the tests: a whole pipeline without ONNX Runtime or weights.

// Each test file uses only some of these items, and a failed `unwrap` is a failed test.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ndarray::{Array3, Array4, ArrayView2, ArrayView4, ArrayViewMut4, Axis};
use sd_core::{
    BoxError, Call, Denoiser, Inputs, LatentCodec, LatentDistribution, Pipeline, PipelineBuilder,
    Request, SchedulerConfig, StopToken,
    text::{ClipTokenizer, Layer, PromptEncoder, TextModel, TextShape, TextStates},
};

/// A text model whose embeddings depend on every id and on the clip skip.
#[derive(Default)]
pub struct Text {
    pub calls: AtomicUsize,
    /// The call that fails, from 1. 0 for none.
    pub fails_at: usize,
}

impl TextModel for Text {
    fn shape(&self) -> TextShape {
        TextShape::new(3, 4).vocab_size(49500)
    }
    fn run(&self, ids: ArrayView2<'_, i64>, layer: Layer) -> Result<TextStates, BoxError> {
        if self.calls.fetch_add(1, Relaxed) + 1 == self.fails_at {
            return Err("out of memory".into());
        }
        let skip = layer.skip.number() as f32;
        let states = Array3::from_shape_fn((1, 77, 4), |(_, token, i)| {
            (ids[[0, token]] as f32 * skip + i as f32).sin()
        });
        Ok(states.into())
    }
}

/// A denoiser whose prediction depends on all of its inputs, and which counts its calls.
pub struct Model {
    /// 4 latent channels, and embeddings of width 4.
    pub inputs: Inputs,
    pub calls: AtomicUsize,
    /// The largest batch of any call.
    pub batch: AtomicUsize,
    /// The call that fails, from 1. 0 for none.
    pub fails_at: usize,
    /// The call that waits for its token, from 1. 0 for none.
    pub waits_at: usize,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            inputs: Inputs::new(4, 4),
            calls: AtomicUsize::new(0),
            batch: AtomicUsize::new(0),
            fails_at: 0,
            waits_at: 0,
        }
    }
}

impl Denoiser for Model {
    fn inputs(&self) -> &Inputs {
        &self.inputs
    }
    fn predict(&self, call: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        let Call {
            latents,
            timestep,
            context,
            beside,
            stop,
            ..
        } = *call;
        assert_eq!((context.dim().0, context.dim().2), (latents.dim().0, 4));
        let call = self.calls.fetch_add(1, Relaxed) + 1;
        self.batch.fetch_max(latents.dim().0, Relaxed);
        if call == self.fails_at {
            return Err("out of memory".into());
        }
        if call == self.waits_at {
            let (sender, stopped) = std::sync::mpsc::channel();
            let _registered = stop.on_stop(move || sender.send(()).unwrap());
            // The test fails, instead of waiting forever, if the token is never stopped.
            stopped.recv_timeout(Duration::from_secs(60)).unwrap();
            return Err("interrupted".into());
        }
        for (i, context) in context.outer_iter().enumerate() {
            // The factor makes the order of the tokens count.
            let weighted = context
                .indexed_iter()
                .map(|((token, _), value)| value * (token + 1) as f32);
            let beside = beside.map_or(0.0, |beside| beside.index_axis(Axis(0), i).sum());
            let push = weighted.sum::<f32>() / 100.0 + timestep / 1000.0 + beside / 100.0;
            output.index_axis_mut(Axis(0), i).zip_mut_with(
                &latents.index_axis(Axis(0), i),
                |o, x| {
                    *o = 0.8 * x + 0.3 * (x + push).sin();
                },
            );
        }
        Ok(())
    }
}

/// A codec with 8 pixels per latent, whose colours are linear in the latent.
pub struct Codec {
    pub channels: usize,
    pub decodes: AtomicUsize,
}

impl Codec {
    pub fn new(channels: usize) -> Self {
        Self {
            channels,
            decodes: AtomicUsize::new(0),
        }
    }
}

impl LatentCodec for Codec {
    fn latent_channels(&self) -> usize {
        self.channels
    }
    fn factor(&self) -> usize {
        8
    }
    fn decode(&self, latents: ArrayView4<'_, f32>, _: &StopToken) -> Result<Array4<f32>, BoxError> {
        self.decodes.fetch_add(1, Relaxed);
        let (n, _, h, w) = latents.dim();
        Ok(Array4::from_shape_fn(
            (n, 3, 8 * h, 8 * w),
            |(n, c, y, x)| {
                0.1 * latents[[n, c, y / 8, x / 8]] + 0.02 * latents[[n, 3, y / 8, x / 8]] - 0.05
            },
        ))
    }
    fn encode(
        &self,
        image: ArrayView4<'_, f32>,
        _: &StopToken,
    ) -> Result<LatentDistribution, BoxError> {
        let (n, _, h, w) = image.dim();
        let mean = Array4::from_shape_fn((n, 4, h / 8, w / 8), |(n, c, y, x)| {
            if c == 3 {
                0.0
            } else {
                10.0 * (image[[n, c, 8 * y, 8 * x]] + 0.05)
            }
        });
        Ok(LatentDistribution {
            log_variance: Array4::from_elem(mean.dim(), -30.0),
            mean,
            scale: vec![1.0; 4],
            shift: vec![0.0; 4],
        })
    }
}

pub fn tokenizer() -> ClipTokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji/tokenizer");
    ClipTokenizer::load(folder).unwrap()
}

pub fn prompts(text: &Arc<Text>) -> PromptEncoder {
    PromptEncoder::new(Arc::new(tokenizer()), text.clone()).unwrap()
}

/// The fakes of a pipeline.
pub struct Fakes {
    pub text: Arc<Text>,
    pub model: Arc<Model>,
    pub codec: Arc<Codec>,
}

impl Fakes {
    pub fn new() -> Self {
        Self::with(Model::default())
    }

    pub fn with(model: Model) -> Self {
        Self {
            text: Arc::default(),
            model: Arc::new(model),
            codec: Arc::new(Codec::new(4)),
        }
    }

    pub fn builder(&self) -> PipelineBuilder {
        Pipeline::builder(
            prompts(&self.text),
            self.model.clone(),
            self.codec.clone(),
            SchedulerConfig::default(),
        )
        .size(64, 48)
    }

    pub fn pipeline(&self) -> Pipeline {
        self.build(self.builder())
    }

    /// Builds the pipeline, and resets the decodes, so that fitting the previews is not counted.
    pub fn build(&self, builder: PipelineBuilder) -> Pipeline {
        let pipeline = builder.build().unwrap();
        self.decodes();
        pipeline
    }

    /// Returns the number of calls of the denoiser since the last call of this method.
    pub fn calls(&self) -> usize {
        self.model.calls.swap(0, Relaxed)
    }

    /// Returns the number of decodes since the last call of this method.
    pub fn decodes(&self) -> usize {
        self.codec.decodes.swap(0, Relaxed)
    }
}

pub fn base() -> Request {
    Request::new("a fox").negative("blurry").steps(4).seed(7)
}

pub fn latents(pipeline: &Pipeline, request: &Request) -> Array4<f32> {
    pipeline
        .generate(request)
        .unwrap()
        .pictures
        .remove(0)
        .latents
}
