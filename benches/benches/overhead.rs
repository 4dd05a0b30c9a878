//! Measures everything but the networks, for latents of 4×64×64 and a picture of 512×512.
//!
//! A step of the pipeline is compared with the arithmetic that no sampler can avoid: one pass of
//! guidance and one Euler step. The ratio is printed. After the first step, the pipeline must not
//! allocate.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use ndarray::{Array3, Array4, ArrayView2, ArrayView4, ArrayViewMut4};
use sd_benches::shipped_model;
use sd_onnx::{
    Call, ClassifierFree, Denoiser, Event, Inputs, LatentCodec, LatentDistribution, Pipeline,
    Request, SchedulerConfig, StopToken,
    guidance::{Apg, Method},
    guide,
    schedulers::{
        samplers::{DpmPlusPlusSde, Euler},
        schedule::ClipSample,
    },
    text::{BoxError, ClipTokenizer, Layer, PromptEncoder, TextModel, TextShape, TextStates},
};

/// The system's allocator, with a count of the allocations.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// Safety: every call is passed to the system's allocator unchanged.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Networks that only fill their output: zeros as embeddings, a constant as the noise, grey
/// pictures.
struct Free(Inputs);

impl Free {
    fn new() -> Arc<Self> {
        Arc::new(Self(Inputs::new(4, 768)))
    }
}

impl TextModel for Free {
    fn shape(&self) -> TextShape {
        TextShape::new(12, 768)
    }

    fn run(&self, ids: ArrayView2<'_, i64>, _: Layer) -> Result<TextStates, BoxError> {
        Ok(Array3::zeros((ids.nrows(), ids.ncols(), 768)).into())
    }
}

impl Denoiser for Free {
    fn inputs(&self) -> &Inputs {
        &self.0
    }

    fn predict(&self, _: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        output.fill(0.1);
        Ok(())
    }
}

impl LatentCodec for Free {
    fn latent_channels(&self) -> usize {
        4
    }

    fn factor(&self) -> usize {
        8
    }

    fn decode(&self, latents: ArrayView4<'_, f32>, _: &StopToken) -> Result<Array4<f32>, BoxError> {
        let (n, _, h, w) = latents.dim();
        Ok(Array4::zeros((n, 3, 8 * h, 8 * w)))
    }

    fn encode(
        &self,
        _: ArrayView4<'_, f32>,
        _: &StopToken,
    ) -> Result<LatentDistribution, BoxError> {
        Err("this codec only decodes".into())
    }
}

fn pipeline() -> Pipeline {
    let tokenizer = ClipTokenizer::load(shipped_model().join("tokenizer"));
    let tokenizer = Arc::new(tokenizer.expect("the shipped tokenizer"));
    let prompts = PromptEncoder::new(tokenizer, Free::new()).expect("parts that fit");
    let config = SchedulerConfig::default();
    let parts = Pipeline::builder(prompts, Free::new(), Free::new(), config);
    parts.size(512, 512).build().expect("parts that fit")
}

/// Runs a request, and measures from the end of its first step to the end of its last step.
///
/// Returns the number of steps in between, the time and the number of allocations.
fn between_steps(pipeline: &Pipeline, request: &Request) -> (u32, Duration, usize) {
    let mut first = None;
    let mut last = (Instant::now(), 0);
    pipeline
        .run(std::slice::from_ref(request), &StopToken::new(), |event| {
            if let Event::Step(progress) = event {
                black_box(progress.latents);
                last = (Instant::now(), ALLOCATIONS.load(Relaxed));
                first.get_or_insert(last);
            }
            ControlFlow::Continue(())
        })
        .expect("nothing to fail");
    let first = first.expect("at least a step");
    (
        request.step_count() as u32 - 1,
        last.0 - first.0,
        last.1 - first.1,
    )
}

/// Asserts that steps with every guidance option, or with noise, do not allocate.
fn assert_that_options_allocate_nothing(pipeline: &Pipeline, request: &Request) {
    let all_of_guidance = ClassifierFree {
        rescale: 0.7,
        method: Method::Apg(Apg::default()),
        threshold: ClipSample::Dynamic {
            ratio: 0.995,
            max: 10.0,
        },
        ..ClassifierFree::default()
    };
    let noisy = request.clone().scheduler(DpmPlusPlusSde::default());
    for request in [request.clone().guidance(all_of_guidance), noisy] {
        let (.., allocations) = between_steps(pipeline, &request.steps(20));
        assert_eq!(
            allocations, 0,
            "a step with every guidance option, or with noise, allocates"
        );
    }
}

fn step(c: &mut Criterion) {
    let mut group = c.benchmark_group("a step over 4×64×64 latents");
    let length = 4 * 64 * 64;
    let values = |phase: f32| {
        (0..length)
            .map(|i| (i as f32 + phase).sin())
            .collect::<Vec<_>>()
    };
    let (unconditional, noisy) = (values(1.0), values(2.0));
    let (mut conditional, mut x) = (values(3.0), noisy);
    let mut alone = || {
        guide(black_box(&mut conditional), black_box(&unconditional), 0.9);
        // The Euler step for a model that predicts noise.
        for (x, noise) in x.iter_mut().zip(black_box(&conditional)) {
            *x += -0.001 * noise;
        }
        black_box(&x);
    };

    let pipeline = pipeline();
    let request = Request::new("a fox").seed(1).steps(500);
    let request = request.scheduler(Euler::default());
    let (steps, _, allocations) = between_steps(&pipeline, &request);
    assert_eq!(allocations, 0, "a step allocates after the first one");
    assert_that_options_allocate_nothing(&pipeline, &request);
    // The two take turns, and the quickest time of each counts, because other programs may run.
    let (mut floor, mut step) = (Duration::MAX, Duration::MAX);
    for _ in 0..20 {
        let started = Instant::now();
        (0..steps).for_each(|_| alone());
        floor = floor.min(started.elapsed() / steps);
        step = step.min(between_steps(&pipeline, &request).1 / steps);
    }
    let ratio = step.as_secs_f64() / floor.as_secs_f64();
    println!(
        "a step of the pipeline takes {ratio:.1} times as long as guidance and Euler alone: {step:.1?}, {floor:.1?}"
    );

    group.bench_function("guidance and Euler alone", |b| b.iter(&mut alone));
    group.bench_function("the pipeline, networks of a fill each", |b| {
        b.iter_custom(|steps| {
            let (mut done, mut took) = (0, Duration::ZERO);
            while u64::from(done) < steps {
                let (steps, more, _) = between_steps(&pipeline, &request);
                done += steps;
                took += more;
            }
            took.mul_f64(steps as f64 / f64::from(done))
        })
    });
    group.finish();
}

fn run(c: &mut Criterion) {
    let pipeline = pipeline();
    let request = Request::new("a fox").seed(1);
    let image = pipeline.generate(&request).expect("nothing to fail");
    assert_eq!(image.image().dimensions(), (512, 512));
    c.bench_function("all but the networks, 512×512, 20 steps", |b| {
        b.iter(|| pipeline.generate(&request))
    });
}

criterion_group!(benches, step, run);
criterion_main!(benches);
