//! A model in another form: a diffusers folder, one file, or graphs of ONNX.
//!
//! The model is read as for drawing: the configurations and the weights under today's names, from
//! whatever it is in. Before anything is written, the graphs of all its networks are made, so that
//! a tensor that is missing or left over is an error here as it is there. The new model appears
//! under its name when it is whole ([`output`]), and never more than a few of its tensors are in
//! memory ([`tensors`]).

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

pub use self::numbers::WeightType;
use self::output::Output;
use crate::{Builder, Error};

/// A form that a model can be converted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ModelForm {
    /// A folder in the diffusers layout, for diffusers and this crate.
    Folder,
    /// One safetensors file in the names of latent diffusion, for ComfyUI, WebUI and their
    /// relatives, and diffusers' `from_single_file`.
    File,
    /// A folder with a graph of ONNX for each network and its weights beside it. The graphs have
    /// the inputs and outputs of optimum's exports, and use operators of ONNX Runtime.
    Onnx,
}

/// How a model is converted: to which form, and whether its weights change their type.
/// [`Builder::convert`] does it.
#[derive(Clone)]
pub struct Conversion {
    form: ModelForm,
    dtype: Option<WeightType>,
    progress: Option<Arc<dyn Fn(ConversionProgress) + Send + Sync>>,
    stop: StopToken,
}

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConversionProgress {
    /// Bytes of weights that are written.
    pub done: u64,
    /// Bytes of all weights.
    pub total: u64,
}

/// What a conversion wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Converted {
    /// The new file or folder.
    pub path: PathBuf,
    /// Tensors that were written.
    pub tensors: usize,
    /// Bytes of weights that were written.
    pub bytes: u64,
    /// What the old model says and the new one cannot say, or says otherwise, each in a sentence.
    /// The networks are always the same. What is listed here, such as a scheduler's settings or a
    /// tokenizer, may have to be given by hand.
    pub lost: Vec<String>,
}

impl Conversion {
    /// A conversion to a form. Weights keep their types.
    pub fn new(form: ModelForm) -> Self {
        Self {
            form,
            dtype: None,
            progress: None,
            stop: StopToken::new(),
        }
    }

    /// Sets the type of all weights. Numbers are rounded to the nearest one of the type, and to the
    /// even one of two that are equally near. Default: each tensor keeps its type, except that
    /// GGUF's blocks and fp8 with a scale become the f32 numbers that they are computed with.
    pub fn dtype(mut self, dtype: WeightType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Sets a function that is called after each tensor. Default: none.
    pub fn progress(mut self, report: impl Fn(ConversionProgress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(report));
        self
    }

    /// Sets a token that ends the conversion with [`Error::Stopped`] after the next tensor. Nothing
    /// of the new model is left then. Default: none.
    pub fn stop(mut self, stop: StopToken) -> Self {
        self.stop = stop;
        self
    }
}

impl Builder {
    /// Writes a model in another form. `path` is anything that [`load`](Self::load) takes with its
    /// weights in files: a diffusers folder or a checkpoint. `out` must not exist; it is there when
    /// the conversion has succeeded, whole, and otherwise not. A process that is killed leaves a
    /// hidden folder beside `out`, whose name begins with `.converting-` and which can be deleted.
    ///
    /// Parts from elsewhere, such as [`vae`](Self::vae), go into the new model, and so do
    /// [`tokenizer`](Self::tokenizer), [`prediction`](Self::prediction) and
    /// [`zero_terminal_snr`](Self::zero_terminal_snr). The settings of loading (device, threads,
    /// clip skip and the like) change nothing.
    ///
    /// ```
    /// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// # let folder = std::env::temp_dir().join(format!("sd-onnx-convert-{}", std::process::id()));
    /// # std::fs::create_dir(&folder)?;
    /// # let out = folder.join("emoji-f32");
    /// use sd_onnx::{Conversion, ModelForm, WeightType};
    ///
    /// let conversion = Conversion::new(ModelForm::Folder).dtype(WeightType::F32);
    /// let converted = sd_onnx::builder().convert(model, &out, &conversion)?;
    /// assert!(converted.lost.is_empty());
    /// sd_onnx::builder().load(&out)?;
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// - What [`load`](Self::load) refuses in the model's files, and parts that do not fit each
    ///   other.
    /// - [`Error::Io`] when `out` exists or cannot be written, also because the disk is full.
    /// - [`Error::TensorValues`] when a number is beyond the range of the type asked for, such as
    ///   70000 in f16.
    /// - [`Error::Conversion`] when the form has no way to say what the model is. A file cannot say
    ///   how many heads its networks have, for one, so that a network with other heads than its
    ///   family would draw something else.
    /// - [`Error::Stopped`] by [`Conversion::stop`].
    pub fn convert(
        &self,
        path: impl AsRef<Path>,
        out: impl AsRef<Path>,
        conversion: &Conversion,
    ) -> Result<Converted, Error> {
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
        Ok(Converted {
            path: out.to_path_buf(),
            tensors,
            bytes,
            lost,
        })
    }
}

/// How far a conversion is, and who wants to know.
#[derive(Debug)]
struct Steps<'c> {
    conversion: &'c Conversion,
    tensors: usize,
    done: u64,
    total: u64,
}

impl Steps<'_> {
    /// More bytes are written.
    fn done(&mut self, bytes: u64) -> Result<(), Error> {
        self.done += bytes;
        if let Some(report) = &self.conversion.progress {
            report(ConversionProgress {
                done: self.done,
                total: self.total,
            });
        }
        match self.conversion.stop.is_stopped() {
            true => Err(Error::Stopped),
            false => Ok(()),
        }
    }

    /// Counts what is going to be written.
    fn expect(&mut self, tensors: &[tensors::New<'_>]) {
        self.tensors += tensors.len();
        self.total += tensors.iter().map(tensors::New::length).sum::<u64>();
    }
}

impl fmt::Debug for Conversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversion")
            .field("form", &self.form)
            .field("dtype", &self.dtype)
            .field("progress", &self.progress.as_ref().map(|_| "given"))
            .field("stop", &self.stop)
            .finish()
    }
}
