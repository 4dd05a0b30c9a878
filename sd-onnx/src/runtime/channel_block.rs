//! Determines the number of channels per block of ONNX Runtime's blocked convolutions.

use ort::{session::Session, value::TensorRef};
use prost::Message;

use super::Runtime;
use crate::{
    Device,
    graph::{BLOCKED, proto},
};

/// The possible numbers of channels per block on x86-64: with AVX and with AVX-512.
const BLOCKS: [usize; 2] = [8, 16];

/// The numbers of channels and of positions of the tensor that is reordered as a test.
const CHANNELS: usize = 32;
const PLACES: usize = 3;

impl Runtime {
    /// Returns the number of channels per block that the operators in ONNX Runtime's domain
    /// `com.microsoft.nchwc` use. Returns `None` if these operators are not known to work here.
    ///
    /// The number depends on ONNX Runtime and on the processor. It is found by reordering a small
    /// tensor, because convolutions with a wrong number would give wrong results.
    pub fn channel_block(&self) -> Option<usize> {
        *self.channel_block.get_or_init(|| {
            if !has_blocks() {
                return None;
            }
            let numbers: Vec<f32> = (0..CHANNELS * PLACES).map(|n| n as f32).collect();
            let reordered = self.reordered(&numbers);
            let reordered = reordered
                .inspect_err(|error| tracing::debug!(%error))
                .ok()?;
            BLOCKS
                .into_iter()
                .find(|&block| reordered == in_blocks(&numbers, block))
        })
    }

    /// Returns the result of `ReorderInput` on a tensor `[1, CHANNELS, 1, PLACES]`.
    fn reordered(&self, numbers: &[f32]) -> ort::Result<Vec<f32>> {
        let shape = [1, CHANNELS, 1, PLACES];
        let model = model(&shape).encode_to_vec();
        let builder = Session::builder(&self.environment)?.with_intra_threads(1)?;
        let mut session = self
            .with_devices(Device::Cpu, |found| -> ort::Result<_> {
                Ok(builder.with_devices(found, None)?)
            })?
            .commit_from_memory(&model)?;
        let input = TensorRef::from_array_view((shape, numbers))?;
        let outputs = session.run(ort::inputs![input])?;
        let (_, reordered) = outputs[0].try_extract_tensor::<f32>()?;
        Ok(reordered.to_vec())
    }
}

/// Returns whether the processor has the instructions that the operators need. On other processors
/// the operators must not be called.
///
/// False on Windows: ONNX Runtime opens weight files there in a way that does not allow the
/// temporary file of the filters to be open for writing, which was not tested.
fn has_blocks() -> bool {
    #[cfg(all(target_arch = "x86_64", not(windows)))]
    return std::arch::is_x86_feature_detected!("avx");
    #[cfg(not(all(target_arch = "x86_64", not(windows))))]
    false
}

/// Reorders `[CHANNELS, PLACES]` to `[CHANNELS / block, PLACES, block]`.
fn in_blocks(numbers: &[f32], block: usize) -> Vec<f32> {
    let channels = 0..CHANNELS;
    let blocks = channels.step_by(block);
    blocks
        .flat_map(|first| (0..PLACES).map(move |place| (first, place)))
        .flat_map(|(first, place)| {
            (first..first + block).map(move |channel| numbers[channel * PLACES + place])
        })
        .collect()
}

/// Returns a model with a single operator, `ReorderInput`.
fn model(shape: &[usize]) -> proto::Model {
    let dims = shape.iter().map(|&size| proto::Dimension {
        size: Some(proto::DimensionSize::Value(size as i64)),
    });
    let tensor = proto::TensorType {
        elem_type: proto::DataType::Float as i32,
        shape: Some(proto::Shape {
            dim: dims.collect(),
        }),
    };
    let value = |name: &str| proto::ValueInfo {
        name: name.to_owned(),
        r#type: Some(proto::Type {
            tensor_type: Some(tensor.clone()),
        }),
    };
    let node = proto::Node {
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        op_type: "ReorderInput".to_owned(),
        domain: BLOCKED.to_owned(),
        ..Default::default()
    };
    let opset = |domain: &str, version| proto::OperatorSet {
        domain: domain.to_owned(),
        version,
    };
    proto::Model {
        ir_version: 9,
        graph: Some(proto::Graph {
            name: "blocks".to_owned(),
            node: vec![node],
            input: vec![value("x")],
            output: vec![value("y")],
            ..Default::default()
        }),
        opset_import: vec![opset("", 20), opset(BLOCKED, 1)],
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lie_in_blocks_of_channels() {
        let numbers: Vec<f32> = (0..CHANNELS * PLACES).map(|n| n as f32).collect();
        let blocked = in_blocks(&numbers, 8);
        assert_eq!(
            blocked[..10],
            [0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0, 1.0, 4.0]
        );
        assert_eq!(blocked[24], 24.0);
    }
}
