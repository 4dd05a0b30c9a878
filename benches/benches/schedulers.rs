//! Measures a step of each sampler, without a model, and the generation of noise.
//!
//! The latents have the sizes of a 512×512 and of a 1024×1024 picture. Memory sets the floor of a
//! step: Euler reads and writes `x` and reads `denoised`. These are in the second-level cache
//! (three times 64 KiB) or in the third-level cache. A step of Euler is therefore compared with a
//! loop that adds two arrays into a third one.
//!
//! No sampler may allocate after its first step. `benches/compare/schedulers.py` compares the
//! results with diffusers' `step`.

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

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::SeedableRng;
use sd_onnx::schedulers::{
    NoiseSchedule, NoiseSource, Run, Rung, Rungs, Sampler, SchedulerConfig, Step, by_name,
    noise::{RandNormal, TorchRng},
    samplers::{Euler, SamplerRow, TABLE},
};

const STEPS: usize = 20;

/// The number of steps before the measurement begins.
///
/// By then, all buffers of a run have been written to, and multistep methods have reached their
/// full order.
const FIRST: usize = 8;

/// The sides of the latents, which have 4 channels, and the names of the groups.
const SIZES: [(usize, &str); 2] = [(64, "step-4x64x64"), (128, "step-4x128x128")];

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

/// A model and a noise source that cost nothing, so that only the sampler's own work is measured.
///
/// They leave the denoised latents and the noise unchanged.
struct Free {
    /// The numbers of allocations at the end of the first and at the end of the last step.
    allocations: Option<[usize; 2]>,
    /// The end of step [`FIRST`].
    begun: Instant,
    /// The end of the last step.
    ended: Instant,
}

impl Default for Free {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            allocations: None,
            begun: now,
            ended: now,
        }
    }
}

impl Run for Free {
    fn denoise(&mut self, _: &[f32], _: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        black_box(denoised);
        ControlFlow::Continue(())
    }

    /// Replaces the default, which copies one array into the other.
    fn denoise_both(
        &mut self,
        _: &[f32],
        _: Rung,
        denoised: &mut [f32],
        unconditional: &mut [f32],
    ) -> ControlFlow<()> {
        black_box((denoised, unconditional));
        ControlFlow::Continue(())
    }

    fn noise(&mut self, _: f32, _: f32, out: &mut [f32]) {
        black_box(out);
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        match step.index + 1 {
            FIRST => self.begun = Instant::now(),
            STEPS => self.ended = Instant::now(),
            _ => {}
        }
        let now = ALLOCATIONS.load(Relaxed);
        let [first, _] = self.allocations.unwrap_or([now; 2]);
        self.allocations = Some([first, now]);
        ControlFlow::Continue(())
    }
}

/// Returns a sampler and the rungs of its usual ladder.
fn ready(row: &SamplerRow, steps: usize) -> (Box<dyn Sampler>, Rungs) {
    let config = SchedulerConfig::default();
    let schedule = Arc::new(NoiseSchedule::new(&config).expect("the default is valid"));
    let sampler = (row.build)(&config);
    let rungs = row
        .default_ladder
        .rungs(&schedule, steps, &sampler.conventions())
        .expect("few of 1000 steps, on the usual ladder");
    (sampler, rungs)
}

fn samplers(c: &mut Criterion) {
    for (side, name) in SIZES {
        let mut group = c.benchmark_group(name);
        // There are many samplers and their steps are short, so each needs little time.
        group.warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(1));
        let mut noise = vec![0.0; 4 * side * side];
        TorchRng::new(0).fill(&mut noise);
        for row in TABLE.iter() {
            let (sampler, rungs) = ready(row, STEPS);
            let scale = rungs.initial_scale();
            let start: Vec<f32> = noise.iter().map(|noise| noise * scale).collect();
            let mut x = start.clone();
            let mut run = Free::default();
            let done = sampler.sample(&mut x, &rungs, &mut run);
            assert!(
                done.is_continue() && x.iter().all(|x| x.abs() < 0.2),
                "{}: more noise is left than at the last sigma",
                row.name
            );
            let [first, last] = run.allocations.expect("at least a step");
            assert_eq!(first, last, "{}: a step allocates", row.name);
            if run.ended <= run.begun {
                println!(
                    "{}: not timed, because it takes fewer and larger steps",
                    row.name
                );
                continue;
            }
            group.bench_function(row.name, |b| {
                b.iter_custom(|runs| {
                    let mut took = Duration::ZERO;
                    for _ in 0..runs {
                        x.copy_from_slice(&start);
                        let mut run = Free::default();
                        let _ = sampler.sample(black_box(&mut x), &rungs, &mut run);
                        took += run.ended - run.begun;
                    }
                    took / (STEPS - FIRST) as u32
                });
            });
        }
        group.finish();
    }
}

/// Compares a step of Euler with the sum of two arrays.
fn floor(c: &mut Criterion) {
    const MANY: usize = 200;
    let row = by_name("euler").expect("a row of the table");
    let (_, rungs) = ready(row, MANY);
    for (side, name) in SIZES {
        let length = 4 * side * side;
        let values =
            |phase: f32| -> Vec<f32> { (0..length).map(|i| (i as f32 + phase).sin()).collect() };
        let (a, b, mut sum) = (values(1.0), values(2.0), vec![0.0; length]);
        let mut add = || {
            let pairs = black_box(&a).iter().zip(black_box(&b));
            for (sum, (a, b)) in sum.iter_mut().zip(pairs) {
                *sum = a + b;
            }
            black_box(&sum);
        };
        let mut x = values(3.0);
        let mut euler = || {
            let _ = Euler::default().sample(black_box(&mut x), &rungs, &mut Free::default());
        };
        // The two take turns, and the quickest time of each counts, because other programs may run.
        let (mut least_add, mut least_euler) = (Duration::MAX, Duration::MAX);
        for _ in 0..50 {
            let started = Instant::now();
            (0..MANY).for_each(|_| add());
            least_add = least_add.min(started.elapsed() / MANY as u32);
            let started = Instant::now();
            euler();
            least_euler = least_euler.min(started.elapsed() / MANY as u32);
        }
        let ratio = least_euler.as_secs_f64() / least_add.as_secs_f64();
        println!(
            "{name}: a step of Euler takes {ratio:.2} times as long as the sum of two arrays: {least_euler:.1?}, {least_add:.1?}"
        );
        // As a test it may be built without optimisation, and run beside other tests.
        let measured = !std::env::args().any(|argument| argument == "--test");
        assert!(!measured || ratio <= 2.0, "{ratio:.2} times");
        let mut group = c.benchmark_group(name);
        group.bench_function("the sum of two arrays", |b| b.iter(&mut add));
        group.finish();
    }
}

fn noise(c: &mut Criterion) {
    const LATENTS: usize = 4 * 64 * 64;
    let mut group = c.benchmark_group("noise, 4×64×64");
    group.throughput(Throughput::Elements(LATENTS as u64));
    let mut out = vec![0.0; LATENTS];
    let mut torch = TorchRng::new(0);
    torch.fill(&mut out);
    let variance = out.iter().map(|x| x * x).sum::<f32>() / LATENTS as f32;
    assert!((variance - 1.0).abs() < 0.05, "unit normal");
    group.bench_function("torch", |b| b.iter(|| torch.fill(black_box(&mut out))));
    let mut xoshiro = RandNormal::new(rand::rngs::SmallRng::seed_from_u64(0));
    group.bench_function("rand", |b| b.iter(|| xoshiro.fill(black_box(&mut out))));
    group.finish();
}

criterion_group!(benches, floor, samplers, noise);
criterion_main!(benches);
