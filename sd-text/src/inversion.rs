//! Textual inversion: learned vectors that a prompt refers to by name.
//!
//! Gal et al. 2022, arXiv 2208.01618. The vectors take additional rows of the text model's
//! embedding, and their ids appear in place of the name in a prompt: see
//! [`ClipTokenizer::add_inversion`](crate::ClipTokenizer::add_inversion).

mod stored;

use std::io;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2};
use safetensors::Dtype;
use sha2::{Digest, Sha256};

use crate::outside::{self, list, printable};

use stored::{MOST_BYTES, Stored, stored};

const CLIP_L: &str = "clip_l";
const CLIP_G: &str = "clip_g";
/// Tensor names that do not name the inversion. The last is WebUI's.
const NO_NAMES: [&str; 4] = [CLIP_L, CLIP_G, "emb_params", "*"];
/// The start of a tensor's name if a WebUI file was converted key by key.
const CONVERTED: &str = "string_to_param.";

/// Learned vectors and the names by which a prompt refers to them.
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
    /// At least one name.
    names: Vec<String>,
    sha256: String,
    path: PathBuf,
    /// One tensor, or `clip_l` and `clip_g`. All have the same number of rows, at least one row and
    /// at least one column.
    tensors: Vec<(String, Array2<f32>)>,
}

impl TextualInversion {
    /// Reads a textual inversion from a file.
    ///
    /// The file has one tensor, or the tensors `clip_l` and `clip_g` for the two text models of
    /// SDXL. The vectors of `clip_l` also fit Stable Diffusion 1.x, which has the same text model.
    ///
    /// The format is safetensors, or what `torch.save` writes (`.pt`, `.bin`). It is detected from
    /// the contents, whatever the file's name. A `torch.save` file contains a dictionary of
    /// tensors. WebUI nests them under the key `string_to_param`, and the names of these tensors
    /// then begin with `string_to_param.`. A `torch.save` file is a Python program. This crate
    /// reads it without running it, and refuses a file that asks for anything but tensors.
    ///
    /// A prompt can refer to the inversion by the file name without its extension, as in WebUI. If
    /// the single tensor has a meaningful name, such as diffusers' `<cat-toy>`, a prompt can use it
    /// too, and it is the first of the [`names`](Self::names). `emb_params`, `clip_l`, `clip_g` and
    /// `*` are not meaningful names, and a `string_to_param.` at the start is removed.
    /// [`named`](Self::named) sets another name.
    ///
    /// A tensor has the shape `[vectors, width]`, or `[width]` for a single vector, and the type
    /// f64, f32, f16 or bf16. Files of more than 16 MiB are refused.
    ///
    /// # Errors
    /// All errors name the file and the problem.
    ///
    /// - [`InversionError::Read`] if the file cannot be read.
    /// - [`InversionError::File`] if the file is not a textual inversion.
    /// - [`InversionError::Tensor`] if a tensor has another shape or type, or a value that is not
    ///   finite.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, InversionError> {
        let path = path.as_ref();
        let bytes =
            outside::read(path, MOST_BYTES as u64).map_err(|source| InversionError::Read {
                path: path.into(),
                source,
            })?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, path, &bytes)
    }

    /// Reads the bytes of a file that [`load`](Self::load) accepts. `name` replaces the file name,
    /// also in errors.
    ///
    /// # Errors
    /// As [`load`](Self::load), except for [`InversionError::Read`].
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, InversionError> {
        Self::parse(name, Path::new(name), bytes)
    }

    /// Creates an inversion from vectors, `[vectors, width]`.
    ///
    /// ```
    /// use ndarray::Array2;
    /// use sd_text::TextualInversion;
    ///
    /// let inversion = TextualInversion::new("wumpus", Array2::zeros((2, 768)))?;
    /// assert_eq!(inversion.count(), 2);
    /// assert_eq!(inversion.vectors(768)?.dim(), (2, 768));
    /// assert!(inversion.vectors(1024).is_err());
    /// # Ok::<(), sd_text::InversionError>(())
    /// ```
    ///
    /// # Errors
    /// [`InversionError::Tensor`] if there are no vectors, or if a value is not finite.
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
            names: vec![name],
            path,
        })
    }

    /// Replaces all names with this one.
    ///
    /// ```
    /// use ndarray::Array2;
    /// use sd_text::TextualInversion;
    ///
    /// let inversion = TextualInversion::new("wumpus", Array2::zeros((1, 768)))?;
    /// assert_eq!(inversion.named("<wumpus>").name(), "<wumpus>");
    /// # Ok::<(), sd_text::InversionError>(())
    /// ```
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.names = vec![name.into()];
        self
    }

    /// Returns the first of the [`names`](Self::names).
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// Returns all names by which a prompt can refer to the inversion. There is at least one.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the SHA-256 of the file in hexadecimal digits, by which infotexts name the
    /// inversion. If the inversion was created from vectors, it is the SHA-256 of their f32 values
    /// as little-endian bytes.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Returns the path of the file, or the first name if there is no file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of vectors, at least 1. The inversion takes as many tokens in a prompt.
    pub fn count(&self) -> usize {
        self.tensors[0].1.nrows()
    }

    /// Returns the vectors for a text model of this width, `[vectors, width]`.
    ///
    /// # Errors
    /// [`InversionError::Width`] if there are no vectors of this width, because the inversion was
    /// trained for another model.
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
        for (tensor, stored) in stored {
            let vectors = matrix(path, &tensor, &stored)?;
            tensors.push((tensor, vectors));
        }
        let mut names = vec![name.to_owned()];
        if let [(tensor, _)] = &tensors[..] {
            let own = tensor.strip_prefix(CONVERTED).unwrap_or(tensor);
            if !NO_NAMES.contains(&own) && own != name {
                names.insert(0, own.to_owned());
            }
        }
        if let [(_, first), (tensor, second)] = &tensors[..]
            && first.nrows() != second.nrows()
        {
            return Err(InversionError::Tensor {
                path: path.into(),
                tensor: tensor.clone(),
                found: format!("{} vectors", second.nrows()),
                expected: format!("{}, as in the other tensor", first.nrows()),
            });
        }
        Ok(Self {
            names,
            sha256: sha256(bytes),
            path: path.into(),
            tensors,
        })
    }

    /// Returns the error that the vectors are `found` instead of `expected`.
    pub(crate) fn unfit(&self, found: String, expected: String) -> InversionError {
        InversionError::Tensor {
            path: self.path.clone(),
            tensor: self.tensor_names(),
            found,
            expected,
        }
    }

    /// Returns the error that the name cannot be used, because it is `found`.
    pub(crate) fn name_taken(&self, found: String) -> InversionError {
        InversionError::Name {
            path: self.path.clone(),
            tensor: self.tensor_names(),
            name: self.name().to_owned(),
            found,
        }
    }

    fn tensor_names(&self) -> String {
        list(self.tensors.iter().map(|(name, _)| name))
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
    /// The name: the first of [`TextualInversion::names`] that the tokenizer could use.
    pub name: String,
    /// The SHA-256: [`TextualInversion::sha256`].
    pub sha256: String,
}

/// The error of loading or adding a textual inversion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InversionError {
    /// The file cannot be read: it is not a regular file, too large or empty, or it is a web page
    /// or a Git LFS pointer instead of the file.
    #[error("{}: cannot be read", printable(.path.display()))]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is not safetensors, not a harmless `torch.save` file, or not a textual inversion.
    #[error("{}: not a usable textual inversion: {problem}", printable(.path.display()))]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found, in printable characters.
        problem: String,
    },
    /// A tensor cannot hold the vectors: its shape, its type, its size or a value is wrong.
    #[error("{}: tensor `{}` is {}, expected {expected}", printable(.path.display()), printable(.tensor), printable(.found))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The name of the tensor in the file.
        tensor: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The vectors do not have the text model's width: the inversion was trained for another model.
    #[error("{}: tensor `{}` has vectors of {found:?} numbers, expected {expected}, the text model's width", printable(.path.display()), printable(.tensor))]
    Width {
        /// The file.
        path: PathBuf,
        /// The name of the tensor in the file, or the names of both tensors.
        tensor: String,
        /// The width of the text model.
        expected: usize,
        /// The width of each tensor.
        found: Vec<usize>,
    },
    /// The name cannot be used: it is not 1 to 255 tokens long, or it already means something else
    /// in a prompt.
    #[error("{}: tensor `{}` is called \"{}\", expected a unique name of 1 to 255 tokens, found {}", printable(.path.display()), printable(.tensor), printable(.name), printable(.found))]
    Name {
        /// The file.
        path: PathBuf,
        /// The name of the tensor in the file, or the names of both tensors.
        tensor: String,
        /// The name of the inversion.
        name: String,
        /// What the name consists of or already means.
        found: String,
    },
    /// The ids for the vectors are taken already, or too large.
    #[error("{}: its ids begin at {found}, expected free ids from {expected} to 2147483646", printable(.path.display()))]
    Ids {
        /// The file.
        path: PathBuf,
        /// The first id that was requested.
        found: u32,
        /// The lowest id that is free.
        expected: usize,
    },
}

/// Reads a tensor's values, `[vectors, width]`.
fn matrix(path: &Path, tensor: &str, stored: &Stored<'_>) -> Result<Array2<f32>, InversionError> {
    let Stored { dtype, shape, data } = stored;
    let of_shape = || format!("of shape {shape:?}");
    let (rows, width) = match shape[..] {
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
    let values: Vec<f32> = match dtype {
        Dtype::F64 => words(data)
            .map(|word| f64::from_le_bytes(word) as f32)
            .collect(),
        Dtype::F32 => words(data).map(f32::from_le_bytes).collect(),
        Dtype::F16 => words(data)
            .map(|word| f16::from_le_bytes(word).to_f32())
            .collect(),
        Dtype::BF16 => words(data)
            .map(|word| bf16::from_le_bytes(word).to_f32())
            .collect(),
        other => {
            let found = format!("of type {other}");
            return Err(wrong(path, tensor, found, "F64, F32, F16 or BF16"));
        }
    };
    if values.len() * dtype.bitsize() != data.len() * 8
        || rows.checked_mul(width) != Some(values.len())
    {
        let found = format!("{} with {} bytes of data", of_shape(), data.len());
        return Err(wrong(
            path,
            tensor,
            found,
            "as many bytes as shape and type need",
        ));
    }
    let vectors = Array2::from_shape_vec((rows, width), values)
        .expect("the number of values was checked above");
    check(path, tensor, &vectors)?;
    Ok(vectors)
}

fn words<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.as_chunks::<N>().0.iter().copied()
}

/// Checks that there are values and that all of them are finite.
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
        tensor: tensor.to_owned(),
        found,
        expected: expected.to_owned(),
    }
}
