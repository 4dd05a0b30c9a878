//! Turns texts into CLIP's embeddings.
//!
//! ```sh
//! cargo run --release --example encode -- "a fox" "an owl" --output texts.safetensors
//! ```

use std::{
    collections::HashMap,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use ndarray::{Array, Array2, Array3, Dimension};
use safetensors::{Dtype, tensor::TensorView};
use sd_examples::{
    Failure, SAFETENSORS, check_output,
    options::{Machine, positive},
    print, save_new, shipped_model, tell,
};
use sd_onnx::{
    TextEncoder, files,
    text::{ClipSkip, TextError, Tokens},
};

/// Writes CLIP's embeddings of texts as safetensors.
///
/// The file contains hidden [texts, tokens, width], pooled [texts, width], ids [texts, tokens] and,
/// if the model has a text projection, projected. tokens is the length of the longest text. The
/// metadata holds the texts as JSON.
///
/// If the model has two text encoders, as SDXL does, the first one is used, at the same layer as
/// for any other model. SDXL itself draws with both encoders, at an earlier layer and without the
/// final norm: txt2img --dump writes those embeddings.
#[derive(Parser)]
#[command(name = "encode", version, verbatim_doc_comment)]
struct Arguments {
    /// Texts, each of at most one window of tokens [default: the lines of standard input]
    texts: Vec<String>,
    /// Stable Diffusion or CLIP model: a file or a folder [default: the small model that ships with
    /// the examples]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Variant of the weights, such as fp16 [default: the file without a variant, else the only
    /// variant]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Textual inversions: a .safetensors, .pt or .bin file, or a folder of such files; may be
    /// repeated
    #[arg(long, value_name = "PATH")]
    embeddings: Vec<PathBuf>,
    /// Layer that hidden is taken from, counted from the last one as in WebUI
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    clip_skip: usize,
    /// Write only pooled, projected and ids, which is faster and takes less space
    #[arg(long, conflicts_with = "clip_skip")]
    pooled: bool,
    /// Scale pooled and projected to length 1
    #[arg(long)]
    normalise: bool,
    /// Truncate texts that are too long instead of failing
    #[arg(long)]
    truncate: bool,
    /// Texts per model call
    #[arg(long, value_name = "N", default_value = "16", value_parser = positive)]
    batch: usize,
    #[command(flatten)]
    machine: Machine,
    /// File to write, replacing a file of that name [default: a new file in this folder, named
    /// texts.safetensors]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    sd_examples::main(run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let clip_skip = ClipSkip::new(arguments.clip_skip).map_err(Failure::arguments)?;
    if let Some(path) = &arguments.output {
        check_output("output", path, SAFETENSORS)?;
    }
    let texts = match &arguments.texts[..] {
        [] => lines().map_err(Failure::at(Path::new("standard input")))?,
        texts => texts.to_vec(),
    };
    if texts.is_empty() {
        return Err(Failure::Arguments("expected at least one text".to_owned()));
    }

    let encoder = load(arguments)?.clip_skip(clip_skip);
    let found = Embeddings::of(&texts, &encoder, arguments.pooled)?;
    let saved = save(&texts, &found, arguments.output.as_deref())?;
    print(format_args!("{}", saved.display()))
}

/// Loads the text encoder.
fn load(arguments: &Arguments) -> Result<TextEncoder, Failure> {
    let mut builder = arguments.machine.apply(sd_onnx::builder());
    if let Some(variant) = &arguments.variant {
        builder = builder.variant(variant);
    }
    for path in &arguments.embeddings {
        builder = builder.embeddings(path);
    }
    let model = arguments.model.clone().unwrap_or_else(shipped_model);
    let encoder = builder.load_text_encoder(model).map_err(Failure::work)?;
    Ok(encoder
        .normalised(arguments.normalise)
        .truncated(arguments.truncate)
        .batch(arguments.batch))
}

/// The longest standard input, in bytes. It holds about a hundred thousand captions, whose
/// embeddings fill the memory of most machines.
const MAX_INPUT: u64 = 16 << 20;

/// Returns the lines of standard input. On a terminal, it first prints how to end the input.
fn lines() -> io::Result<Vec<String>> {
    let input = io::stdin().lock();
    if input.is_terminal() {
        let end = if cfg!(windows) {
            "Ctrl-Z and Enter"
        } else {
            "Ctrl-D"
        };
        tell(format_args!("Reading texts, one per line, until {end}:"));
    }
    let mut bytes = Vec::new();
    input.take(MAX_INPUT + 1).read_to_end(&mut bytes)?;
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    if bytes.len() as u64 > MAX_INPUT {
        return Err(invalid(format!("longer than {MAX_INPUT} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| invalid(error.to_string()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The embeddings that are written.
struct Embeddings {
    hidden: Option<Array3<f32>>,
    pooled: Array2<f32>,
    projected: Option<Array2<f32>>,
    tokens: Vec<Tokens>,
}

impl Embeddings {
    /// Encodes the texts. With `pooled`, there are no hidden states.
    fn of(texts: &[String], encoder: &TextEncoder, pooled: bool) -> Result<Self, Failure> {
        let failed = |error: TextError| match error {
            TextError::ClipSkip { .. } => Failure::arguments(error),
            _ => Failure::work(error),
        };
        if pooled {
            let found = encoder.encode_pooled(texts).map_err(failed)?;
            return Ok(Self {
                hidden: None,
                pooled: found.pooled,
                projected: found.projected,
                tokens: found.tokens,
            });
        }
        let found = encoder.encode(texts).map_err(failed)?;
        Ok(Self {
            hidden: Some(found.hidden),
            pooled: found.pooled,
            projected: found.projected,
            tokens: found.tokens,
        })
    }
}

/// Writes the embeddings to `output` or to a new file, and returns its path.
fn save(texts: &[String], found: &Embeddings, output: Option<&Path>) -> Result<PathBuf, Failure> {
    let default = Path::new("texts.safetensors");
    let file = file(texts, found).map_err(Failure::at(output.unwrap_or(default)))?;
    match output {
        Some(path) => {
            files::write(path, &file).map_err(Failure::at(path))?;
            Ok(path.to_path_buf())
        }
        None => save_new(default, &file),
    }
}

/// Returns the safetensors file of the embeddings.
fn file(texts: &[String], found: &Embeddings) -> io::Result<Vec<u8>> {
    let longest = found.tokens.iter().map(|tokens| tokens.used).max();
    let longest = longest.unwrap_or(0);
    let ids = found
        .tokens
        .iter()
        .flat_map(|tokens| &tokens.ids[..longest]);
    let ids = ids.flat_map(|&id| i64::from(id).to_le_bytes()).collect();
    let mut tensors = vec![
        ("pooled", values(&found.pooled)),
        ("ids", (Dtype::I64, vec![found.tokens.len(), longest], ids)),
    ];
    tensors.extend(
        found
            .hidden
            .as_ref()
            .map(|hidden| ("hidden", values(hidden))),
    );
    let projected = found.projected.as_ref();
    tensors.extend(projected.map(|projected| ("projected", values(projected))));
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        let view = TensorView::new(*dtype, shape.clone(), data);
        (*name, view.expect("as many bytes as the shape has numbers"))
    });
    let texts = serde_json::to_string(texts).map_err(io::Error::other)?;
    let metadata = HashMap::from([("texts".to_owned(), texts)]);
    safetensors::serialize(views, Some(metadata)).map_err(io::Error::other)
}

fn values<D: Dimension>(array: &Array<f32, D>) -> (Dtype, Vec<usize>, Vec<u8>) {
    let data = array.iter().flat_map(|value| value.to_le_bytes()).collect();
    (Dtype::F32, array.shape().to_vec(), data)
}
