//! Converts a model to a diffusers folder, one file, or ONNX graphs.
//!
//! ```sh
//! cargo run --release --example convert -- model.safetensors model --to folder --dtype f16
//! ```

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use sd_examples::{
    Failure, SAFETENSORS, check_output, options::Elsewhere, print, stopped_by_ctrl_c, tell,
};
use sd_onnx::{Conversion, ConvertError, ModelForm, WeightType};

/// Writes a model in another form.
///
/// The model may be a diffusers folder or a checkpoint file, and parts may come from other files.
/// The output appears only when it is complete. Nothing is overwritten.
///
/// Anything that the new form cannot store, such as the scheduler's settings, is reported as a
/// warning. Pictures may then differ. If a reader of the new form would see another network, the
/// conversion fails. ONNX graphs cannot be converted.
#[derive(Parser)]
#[command(name = "convert", version, verbatim_doc_comment)]
struct Arguments {
    /// Model to read: a diffusers folder or a checkpoint file
    path: PathBuf,
    /// File or folder to write, which must not exist
    out: PathBuf,
    /// Form of the new model
    #[arg(long, value_name = "FORM", value_enum)]
    to: Form,
    /// Type of all weights, which are rounded to the nearest number [default: unchanged; GGUF
    /// blocks and scaled fp8 become f32]
    #[arg(long, value_name = "TYPE", value_enum)]
    dtype: Option<Type>,
    /// Variant of the weights in a folder, such as fp16 [default: the file without a variant, else
    /// the only variant]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    #[command(flatten)]
    elsewhere: Elsewhere,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    /// A diffusers folder
    Folder,
    /// One safetensors file, as ComfyUI and WebUI read it
    File,
    /// A folder of ONNX graphs with their weights, for ONNX Runtime
    Onnx,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
}

fn main() -> ExitCode {
    sd_examples::main(run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let out = &arguments.out;
    let form = match arguments.to {
        Form::Folder => ModelForm::Folder,
        Form::File => ModelForm::File,
        Form::Onnx => ModelForm::Onnx,
    };
    if form == ModelForm::File {
        check_output("out", out, SAFETENSORS).map_err(as_argument)?;
    }
    let mut builder = arguments.elsewhere.apply(sd_onnx::builder());
    if let Some(variant) = &arguments.variant {
        builder = builder.variant(variant);
    }
    let bar = bytes_bar();
    let conversion = conversion(form, arguments.dtype, &bar);
    let converted = builder.convert(&arguments.path, out, &conversion);
    // The position is read first, because clearing moves the bar to its end.
    let done = bar.position();
    bar.finish_and_clear();
    let converted = converted.map_err(|error| match error {
        ConvertError::Stopped => Failure::Stopped(format!(
            "stopped after {} of {}; nothing of the new model is left",
            HumanBytes(done),
            HumanBytes(bar.length().unwrap_or(0))
        )),
        error => Failure::work(error),
    })?;
    for lost in &converted.lost {
        tell(format_args!("warning: {lost}"));
    }
    tell(format_args!(
        "{} tensors, {}",
        converted.tensors,
        HumanBytes(converted.bytes)
    ));
    print(format_args!("{}", converted.path.display()))
}

/// Returns a conversion that moves the bar and that Ctrl-C stops.
fn conversion(form: ModelForm, dtype: Option<Type>, bar: &ProgressBar) -> Conversion {
    let bar = bar.clone();
    let conversion = Conversion::new(form)
        .stop(stopped_by_ctrl_c())
        .progress(move |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        });
    match dtype {
        Some(Type::F32) => conversion.weight_type(WeightType::F32),
        Some(Type::F16) => conversion.weight_type(WeightType::F16),
        Some(Type::Bf16) => conversion.weight_type(WeightType::Bf16),
        None => conversion,
    }
}

/// Rewords a message of [`check_output`], because the path is an argument and not an option.
fn as_argument(failure: Failure) -> Failure {
    let named = |reason: String| reason.replacen("--out is", "the output is", 1);
    match failure {
        Failure::Arguments(reason) => Failure::Arguments(named(reason)),
        Failure::Work(reason) => Failure::Work(reason.replacen("for --out", "for the output", 1)),
        stopped => stopped,
    }
}

/// Returns a progress bar over bytes.
fn bytes_bar() -> ProgressBar {
    let template = "{bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, ETA {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    ProgressBar::new(0).with_style(style)
}
