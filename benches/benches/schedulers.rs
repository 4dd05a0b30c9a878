//! A step of each sampler over the latents of a 512 × 512 picture, without a model; and noise.
//!
//! Floor of a step: Euler reads and writes `x` and reads `denoised`, 3 × 64 KiB, which lie in the second-level cache.

use std::{hint::black_box, ops::ControlFlow, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::SeedableRng;
use sd_onnx::schedulers::{
    Ladder, NoiseSchedule, NoiseSource, RandNormal, Run, Rung, SchedulerConfig, TABLE, TorchRng,
};

const LATENTS: usize = 4 * 64 * 64;
const STEPS: usize = 20;

/// Costs nothing, so that the sampler's own work is what is measured: the denoised latents and the noise stay what
/// they are.
struct Free;

impl Run for Free {
    fn denoise(&mut self, _: &[f32], _: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        black_box(denoised);
        ControlFlow::Continue(())
    }

    fn noise(&mut self, out: &mut [f32]) {
        black_box(out);
    }
}

fn samplers(c: &mut Criterion) {
    let config = SchedulerConfig::default();
    let schedule = Arc::new(NoiseSchedule::new(&config).expect("the default is valid"));
    let mut group = c.benchmark_group(format!("sampler, {STEPS} steps"));
    group.throughput(Throughput::Elements(STEPS as u64));
    for row in &TABLE {
        let sampler = (row.build)(&config);
        let rungs = Ladder::leading()
            .rungs(&schedule, STEPS, &sampler.conventions())
            .expect("20 of 1000 steps");
        let mut start = vec![0.0; LATENTS];
        TorchRng::new(0).fill(&mut start);
        start.iter_mut().for_each(|x| *x *= rungs.initial_scale());
        let mut x = start.clone();
        let done = sampler.sample(&mut x, &rungs, &mut Free);
        assert!(
            done.is_continue() && x.iter().all(|x| x.abs() < 0.2),
            "all noise is gone, but for the last sigma that DDIM keeps"
        );
        group.bench_function(row.name, |b| {
            b.iter(|| {
                x.copy_from_slice(&start);
                sampler.sample(black_box(&mut x), &rungs, &mut Free)
            });
        });
    }
    group.finish();
}

fn noise(c: &mut Criterion) {
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

criterion_group!(benches, samplers, noise);
criterion_main!(benches);
