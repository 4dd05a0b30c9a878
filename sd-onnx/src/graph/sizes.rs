//! Writes the sizes of inputs into a finished graph, which this crate or another tool has written.

use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, decode_key, decode_varint, encode_varint, skip_field},
};

use super::proto;

/// The number of a model's field `graph`, and the number of a graph's field `input`.
const GRAPH: u32 = 7;
const INPUT: u32 = 11;

/// Returns the model `bytes` with fixed sizes for the inputs that `sizes` names. All other fields
/// are kept byte for byte.
///
/// # Errors
/// [`DecodeError`] when `bytes` is not a valid ONNX model.
pub(crate) fn fixed(bytes: &[u8], sizes: &[(&str, &[usize])]) -> Result<Vec<u8>, DecodeError> {
    edited(bytes, GRAPH, |graph| {
        edited(graph, INPUT, |input| {
            let mut input = proto::ValueInfo::decode(input)?;
            let fixed = sizes.iter().find(|(name, _)| *name == input.name);
            let tensor = input.r#type.as_mut().and_then(|it| it.tensor_type.as_mut());
            if let (Some((_, sizes)), Some(tensor)) = (fixed, tensor) {
                let dim = sizes.iter().map(|&size| proto::Dimension {
                    size: Some(proto::DimensionSize::Value(size as i64)),
                });
                tensor.shape = Some(proto::Shape { dim: dim.collect() });
            }
            Ok(input.encode_to_vec())
        })
    })
}

/// Copies a Protocol Buffers message, and replaces the content of each field with the number
/// `wanted` by the result of `edit`. Such a field is itself a message.
fn edited(
    bytes: &[u8],
    wanted: u32,
    mut edit: impl FnMut(&[u8]) -> Result<Vec<u8>, DecodeError>,
) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let field = rest;
        let (number, kind) = decode_key(&mut rest)?;
        let key = field.len() - rest.len();
        if number != wanted {
            skip_field(kind, number, &mut rest, DecodeContext::default())?;
            out.extend_from_slice(&field[..field.len() - rest.len()]);
            continue;
        }
        out.extend_from_slice(&field[..key]);
        let length = decode_varint(&mut rest)? as usize;
        let Some((content, after)) = rest.split_at_checked(length) else {
            // `skip_field` returns the same error as for any other truncated field.
            skip_field(kind, number, &mut &field[key..], DecodeContext::default())?;
            break;
        };
        let content = edit(content)?;
        encode_varint(content.len() as u64, &mut out);
        out.extend_from_slice(&content);
        rest = after;
    }
    Ok(out)
}

#[cfg(test)]
// A failed `unwrap` fails the test.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::graph::{Dim, value_info};

    #[test]
    fn only_named_inputs_change() {
        let any = [Dim::Any("batch"), Dim::Fixed(4), Dim::Any("height")];
        let input = |name: &str| value_info(name, proto::DataType::Float, &any);
        let graph = proto::Graph {
            name: "g".into(),
            input: vec![input("a"), input("b")],
            output: vec![input("c")],
            ..Default::default()
        };
        let model = proto::Model {
            ir_version: 9,
            producer_name: "test".into(),
            graph: Some(graph),
            opset_import: Vec::new(),
        };
        // Adds a field that this crate's messages do not have. Other tools write such fields.
        let mut bytes = model.encode_to_vec();
        prost::encoding::string::encode(14, &"kept".to_owned(), &mut bytes);

        let changed = fixed(&bytes, &[("b", &[1, 4, 64])]).unwrap();
        let mut expected = model.clone();
        let fixed_dims = [Dim::Fixed(1), Dim::Fixed(4), Dim::Fixed(64)];
        expected.graph.as_mut().unwrap().input[1] =
            value_info("b", proto::DataType::Float, &fixed_dims);
        assert_eq!(proto::Model::decode(&*changed).unwrap(), expected);
        assert!(changed.windows(4).any(|it| it == b"kept"));
        assert_eq!(fixed(&bytes, &[]).unwrap(), bytes);
        assert!(fixed(&bytes[..bytes.len() - 60], &[]).is_err());
    }
}
