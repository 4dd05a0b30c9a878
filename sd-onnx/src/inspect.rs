//! A look at a model file or folder without loading it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use sd_text::outside;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    Error, checkpoint, hash,
    parts::{check_text_encoder, check_unet, check_vae},
    source::{self, Elsewhere, Source},
    weights::{WeightFile, Weights},
};

/// What a file or a folder is, read from its headers and configurations alone.
///
/// [`inspect`] makes one. The fields serialise to JSON under their own names.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The file or folder.
    pub path: PathBuf,
    /// How it is stored, such as `safetensors`, `pickle`, `GGUF` or `diffusers folder`.
    pub format: String,
    /// What it is, such as `SDXL` or `a LoRA`.
    pub what: String,
    /// What the UNet predicts, such as `v_prediction`. None without a UNet.
    pub prediction: Option<String>,
    /// Why the prediction is believed to be that.
    pub prediction_because: Option<String>,
    /// The pipeline class in diffusers. None where there is no UNet.
    pub class: Option<String>,
    /// The networks; for a file that is no model, all its tensors as one part.
    pub parts: Vec<Part>,
    /// Bytes of memory that the weights take once they are loaded, in f32. Working memory comes on
    /// top: for SDXL at 1024×1024 about 5 GB. None for what cannot be loaded by itself.
    pub memory: Option<u64>,
    /// What the file says about itself: the header metadata of a safetensors file, such as how a
    /// LoRA was trained.
    pub metadata: BTreeMap<String, String>,
    /// The networks that the model needs and the file lacks.
    pub missing: Vec<String>,
    /// Why it cannot be drawn with, or what of it will not work. Empty if all will.
    pub problems: Vec<String>,
    /// What a user should know, such as tensors that are left out.
    pub warnings: Vec<String>,
}

/// One network of a model, or all tensors of a file that is no model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Part {
    /// The folder's name in diffusers: `unet`, `vae`, `text_encoder`, `text_encoder_2`. `tensors`
    /// for a file that is no model.
    pub name: String,
    /// How many tensors there are.
    pub tensors: usize,
    /// How many numbers the tensors have.
    pub parameters: u64,
    /// How many bytes they take in the file.
    pub bytes: u64,
    /// The types of the numbers, such as `F16`, each with how many tensors have it.
    pub types: BTreeMap<String, usize>,
}

/// The hashes that WebUI and model sites show for a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Hashes {
    /// SHA-256 of the whole file, 64 hexadecimal digits.
    pub sha256: String,
    /// WebUI's model hash: the first 10 digits of `sha256`. Model sites call it AutoV2.
    pub short: String,
    /// WebUI's model hash of 2022: the first 8 digits of the SHA-256 of 65,536 bytes from byte
    /// 1,048,576 on. Model sites call it AutoV1.
    pub old: String,
    /// SHA-256 of a safetensors file behind its header, which WebUI shows for LoRA. Its first 12
    /// digits are what model sites call AutoV3. None for other formats.
    pub data: Option<String>,
}

/// Reads what a file or a folder is: a checkpoint, a part of a model, a diffusers folder, a LoRA, a
/// textual inversion and others. No weights are loaded and ONNX Runtime is not started, so it takes
/// less than a second.
///
/// ```
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
/// let found = sd_onnx::inspect(folder)?;
/// assert_eq!(found.format, "diffusers folder");
/// assert_eq!(found.prediction.as_deref(), Some("epsilon"));
/// assert!(found.problems.is_empty());
/// let unet = found.parts.iter().find(|part| part.name == "unet").unwrap();
/// println!("{} parameters in {} bytes", unet.parameters, unet.bytes);
/// # Ok::<(), sd_onnx::Error>(())
/// ```
///
/// # Errors
/// [`Error`] when the path cannot be read, or is a file of no format that is known. A model that is
/// understood but cannot be used is no error: see [`Inspection::problems`].
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection, Error> {
    todo!()
}
