//! Converts a model to another form: a diffusers folder, one file, or ONNX graphs.
//!
//! The model is read in the same way as by [`Builder::load`]. The graphs of all its networks are
//! built before anything is written, so a missing or unused tensor is the same error here as there.
//! The new model appears under its name only when it is complete ([`output`]), and at most a few of
//! its tensors are in memory at a time ([`tensors`]).

mod facts;
mod file;
mod fit;
mod folder;
mod index;
mod numbers;
mod onnx;
mod output;
mod parts;
mod tensors;
mod tokenizers;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use sd_core::StopToken;
use serde::{Deserialize, Serialize};

pub use self::numbers::WeightType;
use self::output::Output;
use crate::{Builder, ConvertError};

/// The form to convert a model to.
///
/// With serde it is `"folder"`, `"file"` or `"onnx"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ModelForm {
    /// A folder in the diffusers layout, for diffusers and this crate.
    Folder,
    /// One safetensors file with latent-diffusion tensor names, for ComfyUI, WebUI and their
    /// relatives, and diffusers' `from_single_file`.
    File,
    /// A folder with one ONNX graph per network, and its weights in a file beside the graph. Inputs
    /// and outputs have the names that optimum's exports use.
    ///
    /// The graphs contain operators of the `com.microsoft` domain, so only ONNX Runtime runs them.
    /// They cannot be converted back.
    Onnx,
}

/// The target form and weight type of a conversion, for [`Builder::convert`].
///
/// ```
/// use sd_onnx::{Conversion, ModelForm, StopToken, WeightType};
///
/// let stop = StopToken::new();
/// let conversion = Conversion::new(ModelForm::File)
///     .weight_type(WeightType::F16)
///     .progress(|progress| println!("{} of {} bytes", progress.done, progress.total))
///     .stop(stop.clone());
/// # let _ = conversion;
/// ```
#[derive(Clone)]
pub struct Conversion {
    form: ModelForm,
    weight_type: Option<WeightType>,
    progress: Option<Arc<dyn Fn(ConversionProgress) + Send + Sync>>,
    stop: StopToken,
}

/// How much of a conversion is done, as passed to the function of [`Conversion::progress`].
///
/// With serde it is an object with a key for each field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConversionProgress {
    /// Bytes of weights written so far.
    pub done: u64,
    /// Bytes of weights that the conversion will write in total.
    pub total: u64,
}

/// What a conversion wrote, returned by [`Builder::convert`].
///
/// With serde it is an object with a key for each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConversionReport {
    /// The new file or folder.
    pub path: PathBuf,
    /// Number of tensors written.
    pub tensors: usize,
    /// Bytes of weights written.
    pub bytes: u64,
    /// What the new form cannot store or stores differently, one sentence each.
    ///
    /// The networks compute the same, but a lost scheduler setting, tokenizer or default size can
    /// change the pictures unless the user sets it by hand.
    pub lost: Vec<String>,
}

impl Conversion {
    /// Creates a conversion to `form` that keeps the types of the weights.
    pub fn new(form: ModelForm) -> Self {
        Self {
            form,
            weight_type: None,
            progress: None,
            stop: StopToken::new(),
        }
    }

    /// Sets the type of all weights. Numbers are rounded to nearest, ties to even.
    ///
    /// Default: each tensor keeps its type, except that GGUF blocks and fp8 with scales become f32.
    pub fn weight_type(mut self, weight_type: WeightType) -> Self {
        self.weight_type = Some(weight_type);
        self
    }

    /// Sets a function that is called with the progress after each tensor or part of a tensor.
    ///
    /// Default: none.
    pub fn progress(mut self, report: impl Fn(ConversionProgress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(report));
        self
    }

    /// Sets a token that stops the conversion. The conversion checks it after each write, returns
    /// [`ConvertError::Stopped`] and leaves nothing behind.
    ///
    /// Default: none.
    pub fn stop(mut self, stop: StopToken) -> Self {
        self.stop = stop;
        self
    }
}

impl Builder {
    /// Converts a model to another form and writes it to `out`.
    ///
    /// `path` is a diffusers folder or a checkpoint file; ONNX graphs cannot be converted. `out`
    /// must not exist, and appears only if the conversion succeeds. A process that is killed leaves
    /// a hidden folder beside `out`. Its name begins with `.converting-`, and it can be deleted.
    ///
    /// Parts from elsewhere, such as [`vae`](Self::vae), become parts of the new model. So do the
    /// settings of [`tokenizer`](Self::tokenizer), [`prediction`](Self::prediction) and
    /// [`zero_terminal_snr`](Self::zero_terminal_snr). Settings that only matter for drawing, such
    /// as the device, threads and clip skip, have no effect.
    ///
    /// ```
    /// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// # let folder = std::env::temp_dir().join(format!("sd-onnx-convert-{}", std::process::id()));
    /// # std::fs::create_dir(&folder)?;
    /// # let out = folder.join("emoji-f32");
    /// use sd_onnx::{Conversion, ModelForm, WeightType};
    ///
    /// let conversion = Conversion::new(ModelForm::Folder).weight_type(WeightType::F32);
    /// let converted = sd_onnx::builder().convert(model, &out, &conversion)?;
    /// assert!(converted.lost.is_empty());
    /// sd_onnx::builder().load(&out)?;
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// - [`ConvertError::Model`] with the errors of [`load`](Self::load) about the model's files,
    ///   and about parts that do not fit each other.
    /// - [`ConvertError::Model`] with [`Error::Io`] when `out` exists or cannot be written, for
    ///   example because the disk is full.
    /// - [`ConvertError::Model`] with [`Error::TensorValues`] when a number is beyond the range of
    ///   the requested type, such as 70000 in f16.
    /// - [`ConvertError::Form`] when the form cannot represent the model. For example, a file does
    ///   not store the number of attention heads, so a network with a number that is unusual for
    ///   its family is refused. The variant is also returned when the builder has a
    ///   [`codec`](Self::codec), a [`refiner`](Self::refiner), a [`lora`](Self::lora) or textual
    ///   inversions, which cannot be written.
    /// - [`ConvertError::Stopped`] when the token of [`Conversion::stop`] was stopped.
    ///
    /// [`Error::Io`]: crate::Error::Io
    /// [`Error::TensorValues`]: crate::Error::TensorValues
    pub fn convert(
        &self,
        path: impl AsRef<Path>,
        out: impl AsRef<Path>,
        conversion: &Conversion,
    ) -> Result<ConversionReport, ConvertError> {
        let (path, out) = (path.as_ref(), out.as_ref());
        let _span = tracing::info_span!("convert", model = %path.display()).entered();
        let output = Output::new(out)?;
        let parts = self.parts(path)?;
        let steps = Steps {
            conversion,
            tensors: 0,
            done: 0,
            total: 0,
        };
        let (steps, lost) = match conversion.form {
            ModelForm::Folder => folder::write(&parts, &output, steps)?,
            ModelForm::File => file::write(&parts, &output, steps)?,
            ModelForm::Onnx => onnx::write(&parts, &output, steps)?,
        };
        let (tensors, bytes) = (steps.tensors, steps.done);
        output.finish()?;
        Ok(ConversionReport {
            path: out.to_path_buf(),
            tensors,
            bytes,
            lost,
        })
    }
}

/// The progress of a conversion, and the conversion whose callbacks receive it.
#[derive(Debug)]
struct Steps<'c> {
    conversion: &'c Conversion,
    tensors: usize,
    done: u64,
    total: u64,
}

impl Steps<'_> {
    /// Adds bytes that were just written, reports the progress, and checks the stop token.
    fn done(&mut self, bytes: u64) -> Result<(), ConvertError> {
        self.done += bytes;
        if let Some(report) = &self.conversion.progress {
            report(ConversionProgress {
                done: self.done,
                total: self.total,
            });
        }
        match self.conversion.stop.is_stopped() {
            true => Err(ConvertError::Stopped),
            false => Ok(()),
        }
    }

    /// Adds tensors that are going to be written to the total.
    fn expect(&mut self, tensors: &[tensors::New<'_>]) {
        self.tensors += tensors.len();
        self.total += tensors.iter().map(tensors::New::length).sum::<u64>();
    }
}

impl fmt::Debug for Conversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversion")
            .field("form", &self.form)
            .field("weight_type", &self.weight_type)
            .field("progress", &self.progress.as_ref().map(|_| "given"))
            .field("stop", &self.stop)
            .finish()
    }
}
