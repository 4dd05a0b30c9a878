//! Measures each stage on ONNX Runtime, and whole pictures, with the small model of the examples.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array4;
use sd_benches::shipped_model;
use sd_onnx::{Call, Pipeline, Request, StopToken, text::ClipSkip};

fn stages(c: &mut Criterion) {
    let mut group = c.benchmark_group("emoji, 96×96");
    group.sample_size(20);
    group.bench_function("load", |b| {
        b.iter(|| sd_onnx::builder().load(shipped_model()).expect("it loads"))
    });

    let pipeline = sd_onnx::builder()
        .load(shipped_model())
        .expect("the shipped model");
    let encoder = pipeline.prompt_encoder();
    let prompt = encoder
        .encode("a fox", ClipSkip::LAST)
        .expect("a short prompt");
    group.bench_function("text encoder", |b| {
        b.iter(|| encoder.encode(black_box("a fox"), ClipSkip::LAST))
    });

    let latents = Array4::from_shape_fn((1, 4, 12, 12), |(_, c, y, x)| {
        ((c * 144 + y * 12 + x) as f32).sin()
    });
    let mut output = latents.clone();
    let unet = pipeline.denoiser();
    let mut predict = || {
        let stop = StopToken::new();
        let call = Call::new(latents.view(), 500.0, prompt.embedding.view(), &stop);
        unet.predict(&call, output.view_mut())
    };
    predict().expect("12 × 12 latents");
    group.bench_function("UNet", |b| b.iter(&mut predict));
    assert!(output.iter().all(|v| v.is_finite()) && output != latents);

    let codec = pipeline.codec();
    let image = codec
        .decode(latents.view(), &StopToken::new())
        .expect("12 × 12 latents");
    assert_eq!(image.dim(), (1, 3, 96, 96));
    group.bench_function("VAE decoder", |b| {
        b.iter(|| codec.decode(black_box(latents.view()), &StopToken::new()))
    });
    group.bench_function("VAE encoder", |b| {
        b.iter(|| codec.encode(black_box(image.view()), &StopToken::new()))
    });
    group.finish();

    whole(c, &pipeline);
}

fn whole(c: &mut Criterion, pipeline: &Pipeline) {
    let mut group = c.benchmark_group("emoji, a fox in 20 steps");
    group.sample_size(10).throughput(Throughput::Elements(20));
    let request = Request::new("a fox").seed(1);
    let image = pipeline.generate(&request).expect("a fox").image().clone();
    assert!(
        image
            .pixels()
            .any(|pixel| pixel.0[0] > pixel.0[2].saturating_add(80)),
        "a fox has orange in it"
    );
    group.bench_function("guidance 7.5", |b| b.iter(|| pipeline.generate(&request)));
    let unguided = request.clone().guidance(1.0);
    group.bench_function("guidance 1", |b| b.iter(|| pipeline.generate(&unguided)));
    group.finish();
}

criterion_group!(benches, stages);
criterion_main!(benches);
