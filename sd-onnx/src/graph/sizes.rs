//! Writes the sizes of inputs into a finished graph, whoever wrote it.

use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, decode_key, decode_varint, encode_varint, skip_field},
};

use super::proto;

/// The field of a model that is its graph, and the field of a graph that is an input.
const GRAPH: u32 = 7;
const INPUT: u32 = 11;

/// Returns the model `bytes` with the sizes of the inputs that `sizes` names fixed. All else stays
/// as it is, byte for byte.
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

/// Copies a message and replaces the content of each field of messages with the number `wanted`.
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
            // The same error as for any other field that is cut short.
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
// In a test it is the failure.
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
        // A field that the messages here do not know, as other tools write them.
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
