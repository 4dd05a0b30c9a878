//! Textual inversion: learned vectors that a prompt calls by a name.
//!
//! Gal et al. 2022, arXiv 2208.01618. In the text model's embedding such vectors take rows of their own, in the prompt
//! tokens of their own: [`ClipTokenizer::add_inversion`](crate::ClipTokenizer::add_inversion).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2};
use safetensors::{Dtype, tensor::TensorInfo};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Far above what there is, 75 vectors for each of SDXL's two text models: 600 kB.
const MOST_BYTES: usize = 16 << 20;
/// The header names one tensor or two, and perhaps who trained them.
const MOST_HEADER: usize = 1 << 20;
const CLIP_L: &str = "clip_l";
const CLIP_G: &str = "clip_g";

/// A name and its vectors.
///
/// ```no_run
/// use sd_text::{ClipTokenizer, TextualInversion};
///
/// let mut tokenizer = ClipTokenizer::load("stable-diffusion-v1-5/tokenizer")?;
/// let inversion = TextualInversion::load("EasyNegative.safetensors")?;
/// let vectors = inversion.vectors(768)?; // the rows 49408, 49409, … of the embedding
/// let ids = tokenizer.add_inversion(&inversion, 49408)?;
/// assert_eq!(ids.len(), vectors.nrows());
/// assert!(tokenizer.encode("blurry, easynegative").ids.contains(&49408));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TextualInversion {
    name: String,
    sha256: String,
    path: PathBuf,
    /// One, or `clip_l` and `clip_g`; all of as many rows, at least one, and of at least one column.
    tensors: Vec<(String, Array2<f32>)>,
}

impl TextualInversion {
    /// Reads a safetensors file. What its tensors are called says which of three kinds it is of:
    ///
    /// - `emb_params`, as WebUI and kohya's scripts write it. The name is that of the file, less `.safetensors`;
    /// - `clip_l` and `clip_g`, for the two text models of SDXL, or one of them. The name is that of the file. The vectors
    ///   of `clip_l` also fit Stable Diffusion 1.x, which has the same text model;
    /// - a single tensor of another name, as diffusers writes it. The name is the tensor's: `<cat-toy>`.
    ///
    /// [`named`](Self::named) gives it another. A tensor is `[vectors, width]`, or of one vector `[width]`, in f32, f16 or
    /// bf16. Files of more than 16 MiB are not read.
    ///
    /// # Errors
    /// [`InversionError::Read`], [`InversionError::File`] or [`InversionError::Tensor`] name the file and what in it is
    /// wrong.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, InversionError> {
        let path = path.as_ref();
        let read = |source| InversionError::Read {
            path: path.into(),
            source,
        };
        let mut bytes = Vec::new();
        // One byte more tells that there are more.
        File::open(path)
            .and_then(|file| file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(read)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, path, &bytes)
    }

    /// Reads the bytes of such a file. `name` stands for that of the file, also in errors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, InversionError> {
        Self::parse(name, Path::new(name), bytes)
    }

    /// Vectors of one's own, `[vectors, width]`.
    ///
    /// # Errors
    /// [`InversionError::Tensor`] if there are none, or a value is not finite.
    pub fn new(name: impl Into<String>, vectors: Array2<f32>) -> Result<Self, InversionError> {
        let name = name.into();
        let path = PathBuf::from(&name);
        check(&path, &name, &vectors)?;
        let bytes: Vec<u8> = vectors
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Ok(Self {
            sha256: sha256(&bytes),
            tensors: vec![(name.clone(), vectors)],
            name,
            path,
        })
    }

    /// The same under another name.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What a prompt calls it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The SHA-256 of its file in hexadecimal digits, by which infotexts name it; of vectors of one's own that of their numbers, each as
    /// four bytes, the lowest first.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The file it is from, or, of one that is from none, its first name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many vectors it has, at least 1, and so how many tokens it takes in a prompt.
    pub fn count(&self) -> usize {
        self.tensors[0].1.nrows()
    }

    /// The vectors for a text model of this width, `[vectors, width]`.
    ///
    /// # Errors
    /// [`InversionError::Width`] if it was trained for another model.
    pub fn vectors(&self, width: usize) -> Result<ArrayView2<'_, f32>, InversionError> {
        let mut all = self.tensors.iter();
        all.find(|(_, vectors)| vectors.ncols() == width)
            .map(|(_, vectors)| vectors.view())
            .ok_or_else(|| InversionError::Width {
                path: self.path.clone(),
                tensor: self.tensor_names(),
                expected: width,
                found: self.tensors.iter().map(|(_, v)| v.ncols()).collect(),
            })
    }

    fn parse(name: &str, path: &Path, bytes: &[u8]) -> Result<Self, InversionError> {
        let stored = stored(bytes).map_err(|problem| InversionError::File {
            path: path.into(),
            problem,
        })?;
        let mut tensors = Vec::with_capacity(stored.len());
        for (tensor, Stored { info, data }) in &stored {
            tensors.push((tensor.clone(), matrix(path, tensor, info, data)?));
        }
        let of_file = [CLIP_L, CLIP_G, "emb_params"];
        let name = match &tensors[..] {
            [(tensor, _)] if !of_file.contains(&tensor.as_str()) => tensor.as_str(),
            _ => name,
        };
        if let [(_, first), (tensor, second)] = &tensors[..]
            && first.nrows() != second.nrows()
        {
            return Err(InversionError::Tensor {
                path: path.into(),
                tensor: tensor.clone(),
                found: format!("{} vectors", second.nrows()),
                expected: format!("{}, as the other tensor", first.nrows()),
            });
        }
        Ok(Self {
            name: name.to_owned(),
            sha256: sha256(bytes),
            path: path.into(),
            tensors,
        })
    }

    /// That the vectors are `found`, and not `expected`.
    pub(crate) fn unfit(&self, found: String, expected: String) -> InversionError {
        InversionError::Tensor {
            path: self.path.clone(),
            tensor: self.tensor_names(),
            found,
            expected,
        }
    }

    /// That its name is something else already.
    pub(crate) fn name_taken(&self, found: String) -> InversionError {
        InversionError::Name {
            path: self.path.clone(),
            tensor: self.tensor_names(),
            name: self.name.clone(),
            found,
        }
    }

    fn tensor_names(&self) -> String {
        let names: Vec<&str> = self.tensors.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A textual inversion that a text names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedInversion {
    /// [`TextualInversion::name`].
    pub name: String,
    /// [`TextualInversion::sha256`].
    pub sha256: String,
}

/// Why a textual inversion cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InversionError {
    /// The file can't be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no safetensors file, or not one of a textual inversion.
    #[error("{}: no usable textual inversion: {problem}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected, and what was found.
        problem: String,
    },
    /// A tensor is not of a form that vectors have.
    #[error("{}: tensor `{tensor}` is {found}, expected {expected}", .path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in it.
        tensor: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The vectors are of another width than the text model's: it was trained for another one.
    #[error("{}: tensor `{tensor}` has vectors of {found:?} numbers, expected {expected}, the text model's width", .path.display())]
    Width {
        /// The file.
        path: PathBuf,
        /// The tensor's name in it, or of both.
        tensor: String,
        /// The width of the text model.
        expected: usize,
        /// That of each tensor.
        found: Vec<usize>,
    },
    /// The name can't be told from something else in a prompt.
    #[error("{}: tensor `{tensor}` is called {name:?}, expected a name of its own, found {found}", .path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// The tensor's name in it, or of both.
        tensor: String,
        /// The name.
        name: String,
        /// What else it is.
        found: String,
    },
    /// The ids for its vectors are others' already.
    #[error("{}: its ids begin at {found}, expected at least {expected}: those below are taken", .path.display())]
    Ids {
        /// The file.
        path: PathBuf,
        /// The first id that was asked for.
        found: u32,
        /// How many there are.
        expected: usize,
    },
}

/// A tensor in a file.
struct Stored<'b> {
    info: TensorInfo,
    data: &'b [u8],
}

/// The tensors of a file: one, or `clip_l` before `clip_g`.
fn stored(bytes: &[u8]) -> Result<Vec<(String, Stored<'_>)>, String> {
    #[derive(Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__", default)]
        _metadata: Option<serde::de::IgnoredAny>,
        #[serde(flatten)]
        tensors: BTreeMap<String, TensorInfo>,
    }

    if bytes.len() > MOST_BYTES {
        return Err(format!("it has more than {MOST_BYTES} bytes"));
    }
    // `torch.save` makes ZIP files of pickles, and once made bare pickles of a magic number first.
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02\x8a\x0a") {
        let hint =
            "it is a pickle, which can run code when it is read; save it again as safetensors";
        return Err(hint.to_owned());
    }
    let (length, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or_else(|| format!("it has {} bytes, expected at least 8", bytes.len()))?;
    let length = u64::from_le_bytes(*length);
    let (header, data) = usize::try_from(length)
        .ok()
        .filter(|&length| length <= MOST_HEADER)
        .and_then(|length| rest.split_at_checked(length))
        .ok_or_else(|| {
            format!(
                "bytes 0 to 7 say that the header has {length} bytes, expected at most {}",
                rest.len().min(MOST_HEADER)
            )
        })?;
    let Header { mut tensors, .. } = serde_json::from_slice(header).map_err(|error| {
        format!("the header, from byte 8 on, is not that of safetensors: {error}")
    })?;

    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    if names.len() != 1 && names != [CLIP_G, CLIP_L] {
        let shown = names
            .iter()
            .take(4)
            .map(|name| format!("`{}`", short(name)));
        let shown = match names.len() {
            0 => String::new(),
            1..=4 => format!(" ({})", shown.collect::<Vec<_>>().join(", ")),
            _ => format!(" ({}, …)", shown.collect::<Vec<_>>().join(", ")),
        };
        return Err(format!(
            "it has {} tensors{shown}, expected one, or `{CLIP_L}` and `{CLIP_G}`",
            names.len(),
        ));
    }
    let first = tensors.remove_entry(CLIP_L);
    first
        .into_iter()
        .chain(tensors)
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let place = data.get(start..end);
            let problem = || {
                let (name, length) = (short(&name), data.len());
                format!("tensor `{name}` is from byte {start} to {end} of {length}")
            };
            let data = place.ok_or_else(problem)?;
            Ok((name, Stored { info, data }))
        })
        .collect()
}

/// A tensor's values, `[vectors, width]`.
fn matrix(
    path: &Path,
    tensor: &str,
    info: &TensorInfo,
    data: &[u8],
) -> Result<Array2<f32>, InversionError> {
    let of_shape = || short(&format!("of shape {:?}", info.shape));
    let (rows, width) = match info.shape[..] {
        [width] => (1, width),
        [rows, width] => (rows, width),
        _ => {
            return Err(wrong(
                path,
                tensor,
                of_shape(),
                "[vectors, width] or [width]",
            ));
        }
    };
    let values: Vec<f32> = match info.dtype {
        Dtype::F32 => words(data).map(f32::from_le_bytes).collect(),
        Dtype::F16 => words(data)
            .map(|word| f16::from_le_bytes(word).to_f32())
            .collect(),
        Dtype::BF16 => words(data)
            .map(|word| bf16::from_le_bytes(word).to_f32())
            .collect(),
        other => {
            let found = format!("of type {other}");
            return Err(wrong(path, tensor, found, "F32, F16 or BF16"));
        }
    };
    if values.len() * info.dtype.bitsize() != data.len() * 8
        || rows.checked_mul(width) != Some(values.len())
    {
        let found = format!("{} with {} bytes of data", of_shape(), data.len());
        return Err(wrong(path, tensor, found, "as many as shape and type make"));
    }
    let vectors = Array2::from_shape_vec((rows, width), values)
        .expect("the values are as many as the shape says, checked above");
    check(path, tensor, &vectors)?;
    Ok(vectors)
}

fn words<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.as_chunks::<N>().0.iter().copied()
}

/// That there are values, all of them finite.
fn check(path: &Path, tensor: &str, vectors: &Array2<f32>) -> Result<(), InversionError> {
    if vectors.is_empty() {
        let found = format!("of shape {:?}", vectors.shape());
        let expected = "at least one vector of at least one number";
        return Err(wrong(path, tensor, found, expected));
    }
    let odd = vectors.indexed_iter().find(|(_, value)| !value.is_finite());
    match odd {
        Some((at, value)) => Err(wrong(path, tensor, format!("{value} at {at:?}"), "finite")),
        None => Ok(()),
    }
}

fn wrong(path: &Path, tensor: &str, found: String, expected: &str) -> InversionError {
    InversionError::Tensor {
        path: path.into(),
        tensor: short(tensor),
        found,
        expected: expected.to_owned(),
    }
}

/// The beginning of a text, for a message.
fn short(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
