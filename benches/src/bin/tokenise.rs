//! Measures how long it takes to tokenise and to parse prompts.
//!
//! Each line of standard input is a prompt. The output is JSON with the quickest of many calls for
//! each prompt, in microseconds. `compare/tokenise.py` runs this program next to Hugging Face's
//! `tokenizers` in Python.

use std::{hint::black_box, io, path::PathBuf, time::Instant};

use clap::Parser;
use sd_onnx::text::{BoxError, Cleanup, ClipTokenizer, PromptText, Side, Syntax, attention};

#[derive(Parser)]
struct Arguments {
    /// Folder of a tokenizer
    tokenizer: PathBuf,
    /// Calls for each prompt
    #[arg(long, default_value_t = 1000)]
    calls: usize,
}

fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    let tokenizer = ClipTokenizer::load(&arguments.tokenizer)?;
    let mut rows = Vec::new();
    for line in io::stdin().lines() {
        let prompt = line?;
        let tokenise = quickest(arguments.calls, || {
            black_box(tokenizer.tokenize(black_box(&prompt), Cleanup::Transformers));
        });
        let parse = quickest(arguments.calls, || {
            let parsed = PromptText::parse(black_box(&prompt), Side::Positive, Syntax::WebUi);
            for branch in parsed.branches() {
                let schedule = branch.schedule(1);
                black_box(attention(&schedule.at(0).text, Syntax::WebUi));
            }
        });
        let ids = tokenizer.tokenize(&prompt, Cleanup::Transformers);
        rows.push(serde_json::json!({"ids": ids, "tokenise_us": tokenise, "parse_us": parse}));
    }
    println!("{}", serde_json::Value::from(rows));
    Ok(())
}

/// Returns the time of the quickest call, in microseconds.
fn quickest(calls: usize, mut call: impl FnMut()) -> f64 {
    let time = |_| {
        let started = Instant::now();
        call();
        started.elapsed()
    };
    let quickest = (0..calls.max(1)).map(time).min().unwrap_or_default();
    quickest.as_secs_f64() * 1e6
}
