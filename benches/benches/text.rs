//! Measures CLIP's tokenizer and the prompt language, with usual prompts and with far longer ones.
//!
//! Parsing a prompt is compared with tokenising it, and parsing a megabyte with parsing 100 kB. The
//! ratios are printed.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sd_benches::{shipped_model, written};
use sd_onnx::text::{
    Chunking, Cleanup, ClipTokenizer, PromptText, Side, Syntax, TextualInversion, attention,
};

const SHORT: &str = "a fox";
const LONG: &str = "masterpiece, best quality, highly detailed portrait of a cute fox girl in a flower field at sunset, \
                    golden hour, soft light, watercolour, intricate, sharp focus, trending, 8k, bokeh, volumetric fog, \
                    by a famous painter, wide angle, cinematic composition";
/// [`LONG`] with the syntax of the prompt language.
const MARKED: &str = "(masterpiece, best quality:1.2), highly detailed portrait of a [cute:wild:0.5] fox girl in a \
                      ((flower field)) at [sunset|dawn], golden hour, soft light, watercolour, (intricate:0.8), sharp \
                      focus, trending, 8k, \\(bokeh\\), volumetric fog, <lora:painter:0.7> by a famous painter, wide angle \
                      AND cinematic composition :0.6";

/// Returns the time of the quickest call. Other programs may have slowed down the rest.
fn quickest(calls: usize, mut call: impl FnMut()) -> Duration {
    let time = |_| {
        let started = Instant::now();
        call();
        started.elapsed()
    };
    (0..calls).map(time).min().unwrap_or_default()
}

/// Parses a prompt as far as it is parsed before it is tokenised, and returns the number of
/// segments.
fn parse(text: &str) -> usize {
    let prompt = PromptText::parse(text, Side::Positive, Syntax::WebUi);
    let mut segments = 0;
    for branch in prompt.branches() {
        // An alternation has another text at each step. Only one step is parsed here, so that the
        // time depends on the length of the prompt.
        let schedule = branch.schedule(1);
        segments += attention(&schedule.at(0).text, Syntax::WebUi).len();
    }
    segments
}

fn tokenizer(c: &mut Criterion) {
    let folder = shipped_model().join("tokenizer");
    let tokenizer = ClipTokenizer::load(&folder).expect("the shipped tokenizer");
    let mut group = c.benchmark_group("tokenizer");
    for (name, prompt, tokens) in [("2 tokens", SHORT, 2), ("55 tokens", LONG, 55)] {
        assert_eq!(tokenizer.encode(prompt).used, tokens + 2);
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(name, |b| b.iter(|| tokenizer.encode(black_box(prompt))));
    }
    // The tokenizer looks for each of these names at every token, and finds none of them.
    let mut named = ClipTokenizer::load(&folder).expect("the shipped tokenizer");
    for name in 0..100 {
        let name = format!("portrait golden {name}");
        let inversion = TextualInversion::new(name, ndarray::Array2::zeros((4, 8)));
        let first = named.vocab_size() as u32;
        named
            .add_inversion(&inversion.expect("zeros are finite"), first)
            .expect("a new name");
    }
    assert_eq!(named.encode(LONG), tokenizer.encode(LONG));
    group.bench_function("55 tokens, 100 textual inversions", |b| {
        b.iter(|| named.encode(black_box(LONG)))
    });
    group.finish();
    c.bench_function("load the tokenizer", |b| {
        b.iter(|| ClipTokenizer::load(black_box(&folder)))
    });
}

fn prompts(c: &mut Criterion) {
    let folder = shipped_model().join("tokenizer");
    let tokenizer = ClipTokenizer::load(&folder).expect("the shipped tokenizer");
    let mut group = c.benchmark_group("prompt");
    for (name, prompt, parts) in [("plain", LONG, 1), ("with its language", MARKED, 2)] {
        let parsed = PromptText::parse(prompt, Side::Positive, Syntax::WebUi);
        assert_eq!(parsed.branches().count(), parts, "{name}");
        let parsing = quickest(2000, || {
            black_box(parse(black_box(prompt)));
        });
        let tokenising = quickest(2000, || {
            black_box(tokenizer.tokenize(black_box(prompt), Cleanup::Transformers));
        });
        println!(
            "{name}: parsing takes 1/{:.1} of tokenising, {parsing:.1?} of {tokenising:.1?}",
            tokenising.as_secs_f64() / parsing.as_secs_f64()
        );
        group.throughput(Throughput::Bytes(prompt.len() as u64));
        group.bench_function(format!("parse, {name}"), |b| {
            b.iter(|| parse(black_box(prompt)))
        });
        let segments = attention(prompt, Syntax::WebUi);
        group.bench_function(format!("chunks, {name}"), |b| {
            b.iter(|| {
                tokenizer.chunks(
                    black_box(&segments),
                    &Chunking::default(),
                    Cleanup::Transformers,
                )
            })
        });
    }

    let [short, long] = [100_000, 1_000_000].map(|bytes| written(MARKED, bytes));
    let [tenth, whole] = [&short, &long].map(|text| {
        quickest(10, || {
            black_box(parse(black_box(text)));
        })
    });
    println!(
        "1 MB parses in {:.1} times the time of 100 kB: {whole:.1?}, {tenth:.1?}",
        whole.as_secs_f64() / tenth.as_secs_f64()
    );
    group.sample_size(10);
    for (name, text) in [("100 kB", &short), ("1 MB", &long)] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(format!("parse, {name}"), |b| {
            b.iter(|| parse(black_box(text)))
        });
    }
    group.finish();
}

criterion_group!(benches, tokenizer, prompts);
criterion_main!(benches);
