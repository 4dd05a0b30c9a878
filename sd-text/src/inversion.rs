//! Textual inversion: learned vectors that a prompt calls by a name.
//!
//! Gal et al. 2022, arXiv 2208.01618. In the text model's embedding such vectors take rows of their own, in the prompt
//! tokens of their own: [`ClipTokenizer::add_inversion`](crate::ClipTokenizer::add_inversion).

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
/// What a tensor is called that says nothing of the inversion's name; the last is WebUI's.
const NO_NAMES: [&str; 4] = [CLIP_L, CLIP_G, "emb_params", "*"];
/// How a tensor's name begins when a file of WebUI was converted key by key.
const CONVERTED: &str = "string_to_param.";

/// Learned vectors and the names that a prompt calls them by.
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
    /// At least one.
    names: Vec<String>,
    sha256: String,
    path: PathBuf,
    /// One, or `clip_l` and `clip_g`; all of as many rows, at least one, and of at least one column.
    tensors: Vec<(String, Array2<f32>)>,
}

impl TextualInversion {
    /// Reads a file of one tensor, or of the tensors `clip_l` and `clip_g` for the two text models
    /// of SDXL. The vectors of `clip_l` also fit Stable Diffusion 1.x, which has the same text
    /// model.
    ///
    /// The file is safetensors or a file of `torch.save` (`.pt`, `.bin`), whatever its name. A file
    /// of `torch.save` holds the tensors in a dictionary; WebUI has them within that under
    /// `string_to_param`, where the name of the tensor then begins with `string_to_param.`. Such
    /// files are programs in Python. Here they are read without running them, and one that asks for
    /// anything but tensors is refused.
    ///
    /// A prompt can call the inversion by the name of the file, less its extension, as in WebUI.
    /// If the single tensor has a name of its own, such as diffusers' `<cat-toy>`, a prompt can
    /// call it by that too, and it is the first of the [`names`](Self::names). `emb_params`,
    /// `clip_l`, `clip_g` and `*` are no names of their own, and neither is a `string_to_param.` in
    /// front. [`named`](Self::named) gives the inversion another name.
    ///
    /// A tensor is `[vectors, width]`, or of one vector `[width]`, in f64, f32, f16 or bf16. Files
    /// of more than 16 MiB are not read.
    ///
    /// # Errors
    /// [`InversionError::Read`], [`InversionError::File`] or [`InversionError::Tensor`] name the file and what in it is
    /// wrong.
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
            names: vec![name],
            path,
        })
    }

    /// Replaces all its names by this one.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.names = vec![name.into()];
        self
    }

    /// What a prompt calls it by: the first of its [`names`](Self::names).
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// All that a prompt can call it by, at least one.
    pub fn names(&self) -> &[String] {
        &self.names
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
                expected: format!("{}, as the other tensor", first.nrows()),
            });
        }
        Ok(Self {
            names,
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

    /// That its first name is something else already.
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
    /// [`TextualInversion::name`].
    pub name: String,
    /// [`TextualInversion::sha256`].
    pub sha256: String,
}

/// Why a textual inversion cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InversionError {
    /// The file can't be read: it is no regular file, too large, empty, or a web page or a pointer
    /// of Git LFS in the place of the file.
    #[error("{}: {}", printable(.path.display()), printable(.source))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is neither safetensors nor a harmless file of `torch.save`, or not one of a textual
    /// inversion.
    #[error("{}: no usable textual inversion: {problem}", printable(.path.display()))]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected, and what was found, in printable characters.
        problem: String,
    },
    /// A tensor is not of a form that vectors have.
    #[error("{}: tensor `{}` is {}, expected {expected}", printable(.path.display()), printable(.tensor), printable(.found))]
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
    #[error("{}: tensor `{}` has vectors of {found:?} numbers, expected {expected}, the text model's width", printable(.path.display()), printable(.tensor))]
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
    #[error("{}: tensor `{}` is called \"{}\", expected a name of its own, found {}", printable(.path.display()), printable(.tensor), printable(.name), printable(.found))]
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
    #[error("{}: its ids begin at {found}, expected at least {expected}: those below are taken", printable(.path.display()))]
    Ids {
        /// The file.
        path: PathBuf,
        /// The first id that was asked for.
        found: u32,
        /// How many there are.
        expected: usize,
    },
}

/// A tensor's values, `[vectors, width]`.
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
        tensor: tensor.to_owned(),
        found,
        expected: expected.to_owned(),
    }
}
