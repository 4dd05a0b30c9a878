//! Reads the tensors of a textual inversion's file in either format.

use std::borrow::Cow;
use std::collections::BTreeMap;

use safetensors::{Dtype, tensor::TensorInfo};
use serde::Deserialize;

use super::{CLIP_G, CLIP_L, CONVERTED};
use crate::outside::{self, list, printable};
use crate::pickle::{self, PickledTensor};

/// The most bytes of a file. This is far above the largest in use: 75 vectors for each of SDXL's
/// two text models take 600 kB.
pub(super) const MOST_BYTES: usize = 16 << 20;
/// The most bytes of a safetensors header. It names one tensor or two, and perhaps the author.
const MOST_HEADER: usize = 1 << 20;
/// The key of the tensors in WebUI's files.
const PARAMETERS: &str = "string_to_param";

/// A tensor in a file.
pub(super) struct Stored<'b> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// The values in row-major order, little-endian.
    pub data: Cow<'b, [u8]>,
}

type Tensors<'b> = BTreeMap<String, Stored<'b>>;

/// Returns the tensors of a file: one, or `clip_l` before `clip_g`.
pub(super) fn stored(bytes: &[u8]) -> Result<Vec<(String, Stored<'_>)>, String> {
    if bytes.len() > MOST_BYTES {
        return Err(format!("it has more than {MOST_BYTES} bytes"));
    }
    if let Some(what) = outside::stand_in(bytes) {
        return Err(what.to_owned());
    }
    let mut tensors = match pickle::is_pickle(bytes) {
        true => pickled(bytes)?,
        false => safetensors(bytes)?,
    };
    let first = tensors.remove_entry(CLIP_L);
    Ok(first.into_iter().chain(tensors).collect())
}

/// Checks, before any value is read, that these are the tensors of an inversion.
fn check<'n>(names: impl Iterator<Item = &'n str>) -> Result<(), String> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    if names.len() == 1 || names == [CLIP_G, CLIP_L] {
        return Ok(());
    }
    let shown = match names.len() {
        0 => String::new(),
        _ => format!(" ({})", list(names.iter().map(|name| format!("`{name}`")))),
    };
    Err(format!(
        "it has {} tensors{shown}, expected one, or `{CLIP_L}` and `{CLIP_G}`",
        names.len(),
    ))
}

/// Reads the tensors of a `torch.save` file.
fn pickled(bytes: &[u8]) -> Result<Tensors<'_>, String> {
    let pickle =
        pickle::from_bytes("", bytes.to_vec()).map_err(|error| error.problem.to_string())?;
    let tensor = |(name, tensor): (&str, &PickledTensor)| {
        let data = pickle
            .bytes(tensor)
            .map_err(|error| error.problem.to_string())?;
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        Ok((
            name.to_owned(),
            Stored {
                dtype,
                shape,
                data: data.into(),
            },
        ))
    };
    // The other entries of WebUI's files describe the training. Among them, `string_to_token` may
    // be a tensor too.
    let is_webui = pickle.entry(pickle.root(), PARAMETERS).is_some();
    let prefix = if is_webui { CONVERTED } else { "" };
    let tensors = || {
        pickle
            .tensors()
            .filter(|(name, _)| name.starts_with(prefix))
    };
    check(tensors().map(|(name, _)| name))?;
    tensors().map(tensor).collect()
}

/// Reads the tensors of a safetensors file.
fn safetensors(bytes: &[u8]) -> Result<Tensors<'_>, String> {
    #[derive(Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__", default)]
        _metadata: Option<serde::de::IgnoredAny>,
        #[serde(flatten)]
        tensors: BTreeMap<String, TensorInfo>,
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
    let Header { tensors, .. } = serde_json::from_slice(header).map_err(|error| {
        format!(
            "the header, from byte 8 on, is not a safetensors header: {}",
            printable(error)
        )
    })?;

    check(tensors.keys().map(String::as_str))?;
    tensors
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let place = data.get(start..end);
            let problem = || {
                let (name, length) = (printable(&name), data.len());
                format!("tensor `{name}` spans bytes {start} to {end} of {length}")
            };
            let data = place.ok_or_else(problem)?;
            let (dtype, shape) = (info.dtype, info.shape);
            Ok((
                name,
                Stored {
                    dtype,
                    shape,
                    data: data.into(),
                },
            ))
        })
        .collect()
}
