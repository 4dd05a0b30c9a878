//! Assigns the scales of ComfyUI's scaled 8-bit weights. A weight is its stored value times a
//! scale, in f32.
//!
//! Two generations of names are in use. A file of the older generation is marked by a tensor
//! `scaled_fp8`, and has `X.scale_weight` beside `X.weight`. A file of the newer one has
//! `X.weight_scale`, and a JSON text that names the format, in `X.comfy_quant` or in the header's
//! `_quantization_metadata`.
//!
//! `X.scale_input` and `X.input_scale` are for products in 8 bits, which this crate does not
//! compute. The flag `full_precision_matrix_mult` asks for products in full precision, which this
//! crate always computes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use sd_text::outside::printable;
use serde_json::{Map, Value};

use super::{Stored, WeightFile, types::Type};
use crate::Error;

/// The factors of a stored tensor's values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scale {
    /// One factor for all values.
    All(f32),
    /// One factor for each row, that is, for each index of the first axis.
    Rows(Arc<[f32]>),
}

/// The last parts of the names of scales, which replace `weight` in the weight's name.
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];
const UNUSED: [&str; 2] = ["scale_input", "input_scale"];
const FORMAT: &str = "comfy_quant";
/// The tensor that marks a file of the older generation. Its type repeats the type of the weights,
/// its length selects how ComfyUI multiplies, and its value has no meaning.
const MARK: &str = "scaled_fp8";
/// The key of the header's metadata that lists the formats of the layers.
const HEADER: &str = "_quantization_metadata";

/// Assigns each weight of a file its scale. Removes the scales and their metadata from the list of
/// tensors, so that only the model's own tensors remain.
///
/// # Errors
/// [`Error::TensorValues`] for an unsupported quantisation format, or for a scale that does not fit
/// its weight.
pub(super) fn attach(file: &mut WeightFile) -> Result<(), Error> {
    let formats = header_formats(file)?;
    let beside = |stored: &Stored| {
        let (_, end) = split(&stored.name);
        SCALES.contains(&end) || UNUSED.contains(&end) || end == FORMAT || end == MARK
    };
    if formats.is_empty() && !file.tensors.iter().any(beside) {
        return Ok(());
    }
    let (beside, mut weights): (Vec<_>, Vec<_>) = file.tensors.drain(..).partition(beside);
    let places = places(&weights);
    let mut said: HashMap<&str, String> = HashMap::new();
    for stored in &beside {
        let (layer, end) = split(&stored.name);
        if end == FORMAT {
            said.insert(layer, format_of(stored)?);
        }
    }
    let mut scaled = HashSet::new();
    for stored in &beside {
        let (layer, end) = split(&stored.name);
        if !SCALES.contains(&end) {
            continue;
        }
        let Some(&index) = places.get(layer) else {
            return Err(wrong(stored, "is a scale without a weight in the file"));
        };
        if !scaled.insert(layer) {
            return Err(wrong(stored, "is a second scale of the same weight"));
        }
        let of = &mut weights[index];
        let rows = said
            .get(layer)
            .or_else(|| formats.get(layer.trim_end_matches('.')))
            .is_some_and(|format| format.ends_with(ROWS));
        of.scale = scale(stored, of, rows)?;
    }
    for (layer, format) in &said {
        if let Some(&index) = places.get(*layer) {
            check_format(&weights[index], format, scaled.contains(layer))?;
        }
    }
    for (layer, format) in &formats {
        let Some((name, index)) = place_of(layer, &places) else {
            return Err(Error::TensorValues {
                path: file.path.clone(),
                tensor: HEADER.to_owned(),
                problem: format!(
                    "of the header names layer `{}`, which is not in the file",
                    printable(layer)
                ),
            });
        };
        check_format(&weights[index], format, scaled.contains(name.as_str()))?;
    }
    check_all_scaled(&beside, &weights, &scaled)?;
    file.tensors = weights;
    Ok(())
}

/// Returns the index of each layer's weight, by the weight's name without its last part.
fn places(weights: &[Stored]) -> HashMap<String, usize> {
    let layers = weights.iter().enumerate().filter_map(|(index, stored)| {
        let layer = stored.name.strip_suffix("weight")?;
        Some((layer.to_owned(), index))
    });
    layers.collect()
}

/// Returns the name and index under which a layer of the header has its weight. Some tools omit the
/// network's prefix.
fn place_of(layer: &str, places: &HashMap<String, usize>) -> Option<(String, usize)> {
    let names = [
        format!("{layer}."),
        format!("model.diffusion_model.{layer}."),
    ];
    names.into_iter().find_map(|name| {
        let index = *places.get(&name)?;
        Some((name, index))
    })
}

/// Checks that every 8-bit matrix has a scale if its network uses scales. Without its scale, such a
/// weight would have the wrong values.
fn check_all_scaled(
    beside: &[Stored],
    weights: &[Stored],
    scaled: &HashSet<&str>,
) -> Result<(), Error> {
    let marks = beside.iter().filter(|stored| {
        let (_, end) = split(&stored.name);
        end == MARK || SCALES.contains(&end)
    });
    let networks: HashSet<&str> = marks.map(|stored| network(&stored.name)).collect();
    let lacks = |stored: &&Stored| {
        let Some(layer) = stored.name.strip_suffix("weight") else {
            return false;
        };
        let of = network(&stored.name);
        let is_of = networks.contains(of) || networks.contains("");
        is_of && stored.dtype.is_f8() && stored.shape.len() == 2 && !scaled.contains(layer)
    };
    match weights.iter().find(lacks) {
        None => Ok(()),
        Some(stored) => Err(wrong(
            stored,
            "has an 8-bit type but no scale, in a network whose weights have scales",
        )),
    }
}

/// Returns the first part of a name if it names a network. Empty otherwise, as in a file with only
/// one network.
fn network(name: &str) -> &str {
    const NETWORKS: [&str; 10] = [
        "model",
        "diffusion_model",
        "unet",
        "first_stage_model",
        "vae",
        "cond_stage_model",
        "conditioner",
        "text_encoders",
        "text_encoder",
        "text_encoder_2",
    ];
    let first = name.split('.').next().unwrap_or_default();
    if NETWORKS.contains(&first) { first } else { "" }
}

/// Splits a name after its last dot.
fn split(name: &str) -> (&str, &str) {
    let end = name.rfind('.').map_or(0, |dot| dot + 1);
    name.split_at(end)
}

/// The suffix of formats with one scale per row.
const ROWS: &str = "_rowwise";

/// Returns the type of the values in a format, or `None` for an unsupported format.
fn type_of(format: &str) -> Option<Type> {
    match format.strip_suffix(ROWS).unwrap_or(format) {
        "float8_e4m3fn" => Some(Type::F8_E4M3),
        "float8_e5m2" => Some(Type::F8_E5M2),
        _ => None,
    }
}

/// Checks that a weight has the type of its format, and a scale.
fn check_format(weight: &Stored, format: &str, is_scaled: bool) -> Result<(), Error> {
    let format_name = printable(format);
    if type_of(format) != Some(weight.dtype) {
        let found = weight.dtype;
        let problem = format!("has type {found}, but its format is {format_name}");
        return Err(wrong(weight, problem));
    }
    if !is_scaled {
        let problem = format!("has the format {format_name}, but no scale");
        return Err(wrong(weight, problem));
    }
    Ok(())
}

/// Returns the scale of the weight `of`, or `None` if the scale is 1.
fn scale(stored: &Stored, of: &Stored, rows: bool) -> Result<Option<Scale>, Error> {
    if !matches!(stored.dtype, Type::F32 | Type::F16 | Type::BF16 | Type::F64) {
        return Err(wrong(
            stored,
            format!(
                "has type {}, expected scales in F32, F16, BF16 or F64",
                stored.dtype
            ),
        ));
    }
    let values = stored.source().values()?;
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(wrong(stored, format!("has the value {value}")));
    }
    if !values.is_empty() && values.iter().all(|&value| value == 1.0) {
        return Ok(None);
    }
    if !of.dtype.is_f8() {
        return Err(wrong(
            stored,
            format!(
                "is the scale of a weight of {}, expected one of F8_E4M3 or F8_E5M2",
                of.dtype
            ),
        ));
    }
    if let [value] = values[..] {
        return Ok(Some(Scale::All(value)));
    }
    let count = of.shape.first().copied().unwrap_or(1);
    let is_column = stored.shape.first() == Some(&count)
        && stored.shape.len() > 1
        && stored.shape.iter().skip(1).all(|&side| side == 1);
    // torch would apply a plain list along the last axis if that has the same length.
    let is_list = stored.shape == [count] && (rows || of.shape.last() != Some(&count));
    if is_column || is_list {
        return Ok(Some(Scale::Rows(values.into())));
    }
    let [found, weight] = [&stored.shape, &of.shape].map(|s| printable(format_args!("{s:?}")));
    Err(wrong(
        stored,
        format!(
            "has shape {found} for a weight of shape {weight}, expected one scale or [{count}, 1]"
        ),
    ))
}

/// Returns the format that a `comfy_quant` tensor names.
fn format_of(stored: &Stored) -> Result<String, Error> {
    if !matches!(stored.dtype, Type::U8 | Type::I8) {
        let problem = format!("has type {}, expected a JSON text in U8", stored.dtype);
        return Err(wrong(stored, problem));
    }
    let bytes = stored.source().small_bytes()?;
    let value = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(stored, format!("is not JSON: {}", printable(error))))?;
    let format = format_in(&value);
    let format = format.ok_or_else(|| wrong(stored, "names no `format`"))?;
    supported(&format).map_err(|problem| wrong(stored, problem))?;
    Ok(format)
}

/// Returns the formats in the header's metadata, by layer.
fn header_formats(file: &WeightFile) -> Result<HashMap<String, String>, Error> {
    let Some(text) = file.metadata.get(HEADER) else {
        return Ok(HashMap::new());
    };
    let wrong = |problem: String| Error::TensorValues {
        path: file.path.clone(),
        tensor: HEADER.to_owned(),
        problem: format!("of the header {problem}"),
    };
    let value: Value = serde_json::from_str(text)
        .map_err(|error| wrong(format!("is not JSON: {}", printable(error))))?;
    let none = Map::new();
    let layers = match value.get("layers") {
        None => &none,
        Some(layers) => layers
            .as_object()
            .ok_or_else(|| wrong("has `layers` that are not an object".to_owned()))?,
    };
    let mut formats = HashMap::new();
    for (layer, value) in layers {
        let layer_name = printable(layer);
        let format = format_in(value)
            .ok_or_else(|| wrong(format!("names no `format` of layer `{layer_name}`")))?;
        supported(&format)
            .map_err(|problem| wrong(format!("says that layer `{layer_name}` {problem}")))?;
        formats.insert(layer.clone(), format);
    }
    Ok(formats)
}

/// Returns a layer's format: the `format` of an object, or the text itself.
fn format_in(value: &Value) -> Option<String> {
    let format = value.get("format").unwrap_or(value);
    format.as_str().map(str::to_owned)
}

fn supported(format: &str) -> Result<(), String> {
    match type_of(format) {
        Some(_) => Ok(()),
        None => Err(format!(
            "is quantised as {}, which is not supported; float8_e4m3fn and float8_e5m2 are",
            printable(format)
        )),
    }
}

fn wrong(stored: &Stored, problem: impl Into<String>) -> Error {
    Error::TensorValues {
        path: stored.file.to_path_buf(),
        tensor: stored.name.clone(),
        problem: problem.into(),
    }
}

#[cfg(test)]
// A failed `unwrap` fails the test.
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use safetensors::{Dtype, serialize_to_file, tensor::TensorView};

    use super::*;

    type Entry<'a> = (&'a str, Dtype, &'a [usize], Vec<u8>);

    /// Opens a file with these tensors and this metadata.
    fn opened(tensors: &[Entry<'_>], header: Option<&str>) -> Result<WeightFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.to_vec(), bytes).unwrap();
            (*name, view)
        });
        let header = header.map(|text| HashMap::from([(HEADER.to_owned(), text.to_owned())]));
        serialize_to_file(views, header, &path).unwrap();
        WeightFile::open(&path).map_err(|error| error.to_string())
    }

    fn weight(name: &str) -> Entry<'_> {
        (name, Dtype::F8_E4M3, &[2, 2], vec![0; 4])
    }

    fn factors<'a>(name: &'a str, shape: &'a [usize], values: &[f32]) -> Entry<'a> {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        (name, Dtype::F32, shape, bytes.collect())
    }

    fn json<'a>(name: &'a str, shape: &'a [usize; 1], text: &str) -> Entry<'a> {
        (name, Dtype::U8, shape, text.as_bytes().to_vec())
    }

    #[test]
    fn both_generations_of_names() {
        let format = r#"{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}"#;
        let length = [format.len()];
        let column = Some(Scale::Rows([2.0, 3.0].into()));
        for (tensors, header, expected) in [
            (
                vec![factors("a.scale_weight", &[], &[0.5])],
                None,
                Some(Scale::All(0.5)),
            ),
            (
                vec![
                    factors("a.scale_weight", &[1], &[0.5]),
                    factors("a.scale_input", &[1], &[7.0]),
                    (MARK, Dtype::F8_E4M3, &[0], vec![]),
                ],
                None,
                Some(Scale::All(0.5)),
            ),
            (
                vec![
                    factors("a.weight_scale", &[2, 1], &[2.0, 3.0]),
                    factors("a.input_scale", &[], &[7.0]),
                    json("a.comfy_quant", &length, format),
                ],
                None,
                column.clone(),
            ),
            (
                vec![factors("a.weight_scale", &[], &[0.25])],
                Some(r#"{"layers": {"a": {"format": "float8_e4m3fn"}}}"#),
                Some(Scale::All(0.25)),
            ),
            (
                vec![factors("a.weight_scale", &[2], &[2.0, 3.0])],
                Some(r#"{"layers": {"a": {"format": "float8_e4m3fn_rowwise"}}}"#),
                column,
            ),
            (vec![factors("a.scale_weight", &[], &[1.0])], None, None),
            (vec![], None, None),
        ] {
            let tensors = [vec![weight("a.weight"), weight("b.bias")], tensors].concat();
            let file = opened(&tensors, header).unwrap();
            let mut names: Vec<_> = file.tensors.iter().map(|it| it.name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, ["a.weight", "b.bias"]);
            let scale = |name: &str| {
                let mut tensors = file.tensors.iter();
                tensors.find(|it| it.name == name).unwrap().scale.clone()
            };
            assert_eq!(scale("a.weight"), expected);
            assert_eq!(scale("b.bias"), None);
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let half = || factors("a.weight_scale", &[], &[0.5]);
        let format =
            |text: &'static str| json("a.comfy_quant", Box::leak(Box::new([text.len()])), text);
        let nvfp4 = r#"{"layers": {"a": {"format": "nvfp4"}}}"#;
        for (tensors, header, expected) in [
            (
                vec![format(r#"{"format": "int8_tensorwise"}"#)],
                None,
                "`a.comfy_quant` is quantised as int8_tensorwise",
            ),
            (
                vec![format(r#"{"format": "mxfp8"}"#)],
                None,
                "quantised as mxfp8",
            ),
            (vec![], Some(nvfp4), "layer `a` is quantised as nvfp4"),
            (vec![], Some("{"), "of the header is not JSON"),
            (
                vec![],
                Some(r#"{"layers": 3}"#),
                "`layers` that are not an object",
            ),
            (
                vec![],
                Some(r#"{"layers": {"a": {}}}"#),
                "names no `format` of layer `a`",
            ),
            (
                vec![format("{}")],
                None,
                "`a.comfy_quant` names no `format`",
            ),
            (vec![format("")], None, "`a.comfy_quant` is not JSON"),
            (
                vec![format(r#"{"format": "float8_e4m3fn"}"#)],
                None,
                "`a.weight` has the format float8_e4m3fn, but no scale",
            ),
            (
                vec![half(), format(r#"{"format": "float8_e5m2"}"#)],
                None,
                "`a.weight` has type F8_E4M3, but its format is float8_e5m2",
            ),
            (
                vec![half(), factors("a.scale_weight", &[], &[2.0])],
                None,
                "second scale of the same weight",
            ),
            (
                vec![factors("a.weight_scale", &[], &[f32::NAN])],
                None,
                "has the value NaN",
            ),
            // A list as long as both axes is ambiguous, and one scale per column is not supported.
            (
                vec![factors("a.weight_scale", &[2], &[2.0, 3.0])],
                None,
                "has shape [2] for a weight of shape [2, 2]",
            ),
            (
                vec![factors("a.weight_scale", &[1, 2], &[2.0, 3.0])],
                None,
                "has shape [1, 2] for",
            ),
            (
                vec![("a.weight_scale", Dtype::U8, &[1], vec![1])],
                None,
                "has type U8, expected scales",
            ),
            (
                vec![
                    ("b.weight", Dtype::F16, &[1], vec![0; 2]),
                    factors("b.weight_scale", &[], &[2.0]),
                ],
                None,
                "is the scale of a weight of F16",
            ),
        ] {
            let tensors = [vec![weight("a.weight")], tensors].concat();
            let error = opened(&tensors, header).unwrap_err();
            assert!(error.contains(expected), "{error}, expected {expected}");
            assert!(error.contains("model.safetensors: "), "{error}");
        }
    }
}
