//! Measures how long it takes to encode texts.
//!
//! Each line of standard input is a JSON list of texts, which are encoded as one batch. Each line
//! of standard output is a JSON object with the seconds that a batch took and the first eight
//! numbers of every embedding. `compare/embed.py` runs this program next to transformers.

use std::{io, path::PathBuf, time::Instant};

use clap::Parser;
use ndarray::s;
use sd_onnx::text::BoxError;

#[derive(Parser)]
struct Arguments {
    /// Folder of a Stable Diffusion model or of a CLIP model
    model: PathBuf,
    /// Threads; 0 means one for each physical core
    #[arg(long, default_value_t = 0)]
    threads: u16,
}

fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    let builder = sd_onnx::builder().threads(arguments.threads);
    let encoder = builder.load_text_encoder(&arguments.model)?;
    for line in io::stdin().lines() {
        let texts: Vec<String> = serde_json::from_str(&line?)?;
        let encoder = encoder.clone().batch(texts.len());
        let started = Instant::now();
        let found = encoder.encode_pooled(&texts)?;
        let seconds = started.elapsed().as_secs_f64();
        let first = found.pooled.slice(s![.., ..8]);
        let first: Vec<Vec<f32>> = first.outer_iter().map(|row| row.to_vec()).collect();
        println!(
            "{}",
            serde_json::json!({"seconds": seconds, "pooled": first})
        );
    }
    Ok(())
}
