//! CLIP's tokenizer on prompts as people write them.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sd_benches::shipped_model;
use sd_onnx::text::ClipTokenizer;

const SHORT: &str = "a fox";
const LONG: &str = "masterpiece, best quality, highly detailed portrait of a cute fox girl in a flower field at sunset, \
                    golden hour, soft light, watercolour, intricate, sharp focus, trending, 8k, bokeh, volumetric fog, \
                    by a famous painter, wide angle, cinematic composition";

fn tokenizer(c: &mut Criterion) {
    let folder = shipped_model().join("tokenizer");
    let tokenizer = ClipTokenizer::load(&folder).expect("the shipped tokenizer");
    let mut group = c.benchmark_group("tokenizer");
    for (name, prompt, tokens) in [("2 tokens", SHORT, 2), ("55 tokens", LONG, 55)] {
        assert_eq!(tokenizer.encode(prompt).used, tokens + 2);
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(name, |b| b.iter(|| tokenizer.encode(black_box(prompt))));
    }
    group.finish();
    c.bench_function("load the tokenizer", |b| {
        b.iter(|| ClipTokenizer::load(black_box(&folder)))
    });
}

criterion_group!(benches, tokenizer);
criterion_main!(benches);
