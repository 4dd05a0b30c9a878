//! Loads one model with its weights in each supported type of numbers. The result must have the
//! same bits as from a folder with the same values in f32.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, path::Path};

use common::{Golden, Model, Tensor, Tensors, golden, load, plain_file, write_tensors};
use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};
use sd_onnx::{Pipeline, Request};
use sd_text::outside::chain;

const SHAPE: &str = "four";
const COMPONENTS: [&str; 3] = ["text_encoder", "unet", "vae"];

/// Returns the bits of the picture and the latents of a short run.
fn bits(pipeline: &Pipeline) -> Vec<u32> {
    let request = Request::new("a cute fox girl")
        .size(64, 64)
        .steps(2)
        .seed(5);
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    let all = picture.latents.iter().chain(&picture.pixels);
    let bits: Vec<u32> = all.map(|value| value.to_bits()).collect();
    assert!(bits.iter().any(|&b| f32::from_bits(b) != 0.0));
    bits
}

/// A tensor as it is stored in a file, and its values in f32.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
    values: Vec<f32>,
    /// Tensors stored beside it. The first part replaces `weight` at the end of the tensor's name.
    beside: Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>,
}

/// Draws with two models, without a LoRA and with one merged into the weights.
fn assert_same_bits(stored: &Path, plain: &Path) {
    let [stored_bits, plain_bits] = [stored, plain].map(|folder| bits(&load(folder)));
    assert!(stored_bits == plain_bits, "the bits differ");
    let lora = golden("lora").join("sd1-lora.safetensors");
    let with_lora = |folder| bits(&sd_onnx::builder().lora(&lora, 0.8).load(folder).unwrap());
    let with_lora = [stored, plain].map(with_lora);
    assert!(with_lora[0] == with_lora[1], "the bits differ with a LoRA");
    assert!(with_lora[0] != plain_bits, "the LoRA changes nothing");
}

/// Writes each tensor of the model as `store` returns it, and draws. `store` receives the number,
/// the name and the values of the tensor. The same values in f32 must give the same bits.
fn same_bits(store: impl Fn(usize, &str, &Tensor) -> Stored) {
    let model = Model::of_shape(SHAPE);
    let [stored, plain] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for folder in [&stored, &plain] {
        model.write_without_weights(folder.path());
    }
    for component in COMPONENTS {
        let path = |folder: &Path| folder.join(component).join(plain_file(component));
        let mut widened = Tensors::new();
        let mut tensors = BTreeMap::new();
        for (index, (name, tensor)) in model.weights[component].iter().enumerate() {
            let stored = store(index, name, tensor);
            let (shape, values) = (tensor.shape.clone(), stored.values);
            widened.insert(name.clone(), Tensor { shape, values });
            for (end, dtype, shape, bytes) in stored.beside {
                let layer = name.strip_suffix("weight").unwrap();
                tensors.insert(format!("{layer}{end}"), (dtype, shape, bytes));
            }
            tensors.insert(name.clone(), (stored.dtype, stored.shape, stored.bytes));
        }
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).unwrap();
            (name, view)
        });
        safetensors::serialize_to_file(views, None, &path(stored.path())).unwrap();
        write_tensors(&path(plain.path()), &widened, Dtype::F32);
    }
    assert_same_bits(stored.path(), plain.path());
}

/// Returns torch's values of all codes of an 8-bit type.
fn codes(dtype: Dtype) -> Vec<f32> {
    let name = match dtype {
        Dtype::F8_E4M3 => "f8_e4m3fn",
        _ => "f8_e5m2",
    };
    let file = Golden::of_file(&golden("number_types.safetensors"));
    file.tensor(name).1
}

/// Returns the code of the largest value that is no further from zero than `value`.
fn code(codes: &[f32], value: f32) -> u8 {
    let positive = &codes[..0x80];
    let finite = positive.iter().take_while(|code| code.is_finite());
    let above = finite.take_while(|&&code| code <= value.abs()).count();
    let sign = if value < 0.0 { 0x80 } else { 0 };
    (above - 1) as u8 | sign
}

/// Stores a tensor in a type without scales.
fn plain(dtype: Dtype, tensor: &Tensor) -> Stored {
    let values = tensor.values.iter();
    let codes = match dtype {
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => codes(dtype),
        _ => Vec::new(),
    };
    let (bytes, values): (Vec<Vec<u8>>, Vec<f32>) = values
        .map(|&value| match dtype {
            // The value lies between two values of f32.
            Dtype::F64 => {
                let wide = f64::from(value) * (1.0 + 1e-8);
                (wide.to_le_bytes().to_vec(), wide as f32)
            }
            Dtype::F32 => (value.to_le_bytes().to_vec(), value),
            Dtype::F16 => {
                let half = f16::from_f32(value);
                (half.to_le_bytes().to_vec(), half.to_f32())
            }
            Dtype::BF16 => {
                let half = bf16::from_f32(value);
                (half.to_le_bytes().to_vec(), half.to_f32())
            }
            _ => {
                let code = code(&codes, value);
                (vec![code], codes[usize::from(code)])
            }
        })
        .unzip();
    Stored {
        dtype,
        shape: tensor.shape.clone(),
        bytes: bytes.concat(),
        values,
        beside: Vec::new(),
    }
}

/// Stores a tensor as codes with one scale for each of `rows` parts. Returns the scales as well;
/// none of them is 1.
fn scaled(dtype: Dtype, tensor: &Tensor, rows: usize) -> (Stored, Vec<u8>) {
    let codes = codes(dtype);
    let (mut stored, mut scales) = (plain(dtype, tensor), Vec::new());
    (stored.bytes, stored.values) = (Vec::new(), Vec::new());
    for part in tensor.values.chunks(tensor.values.len() / rows) {
        let largest = part.iter().fold(0f32, |most, value| most.max(value.abs()));
        let scale = largest.max(1e-3) / 448.0;
        scales.extend(scale.to_le_bytes());
        for value in part {
            let code = code(&codes, value / scale);
            stored.bytes.push(code);
            stored.values.push(codes[usize::from(code)] * scale);
        }
    }
    (stored, scales)
}

/// Returns whether ComfyUI's tools quantise a tensor. They quantise the weights of linear layers;
/// these tests include convolutions.
fn is_quantised(name: &str, tensor: &Tensor) -> bool {
    name.ends_with(".weight") && tensor.shape.len() > 1
}

#[test]
fn f8_e4m3_everywhere() {
    same_bits(|_, _, tensor| plain(Dtype::F8_E4M3, tensor));
}

#[test]
fn f64_everywhere() {
    same_bits(|_, _, tensor| plain(Dtype::F64, tensor));
}

#[test]
fn every_type_within_one_file() {
    let types = [
        Dtype::F8_E4M3,
        Dtype::F8_E5M2,
        Dtype::F64,
        Dtype::F16,
        Dtype::BF16,
        Dtype::F32,
    ];
    same_bits(|index, _, tensor| plain(types[index % types.len()], tensor));
}

#[test]
fn scales_as_comfyui_named_them_first() {
    same_bits(|_, name, tensor| {
        if !is_quantised(name, tensor) {
            return plain(Dtype::F16, tensor);
        }
        let (mut stored, scale) = scaled(Dtype::F8_E4M3, tensor, 1);
        let input = 3f32.to_le_bytes().to_vec();
        stored.beside = vec![
            ("scale_weight", Dtype::F32, vec![1], scale),
            ("scale_input", Dtype::F32, vec![1], input),
        ];
        stored
    });
}

#[test]
fn scales_as_comfyui_names_them_now() {
    same_bits(|index, name, tensor| {
        if !is_quantised(name, tensor) {
            return plain(Dtype::BF16, tensor);
        }
        let (dtype, format) = match index % 3 {
            0 => (Dtype::F8_E5M2, r#"{"format": "float8_e5m2"}"#),
            _ => (Dtype::F8_E4M3, r#"{"format": "float8_e4m3fn"}"#),
        };
        let (rows, shape) = match index % 2 {
            0 => (1, vec![]),
            _ => (tensor.shape[0], vec![tensor.shape[0], 1]),
        };
        let (mut stored, scale) = scaled(dtype, tensor, rows);
        let format = format.as_bytes().to_vec();
        stored.beside = vec![
            ("weight_scale", Dtype::F32, shape, scale),
            ("comfy_quant", Dtype::U8, vec![format.len()], format),
        ];
        stored
    });
}

#[test]
fn other_types_are_refused_by_name() {
    let model = Model::of_shape(SHAPE);
    let folder = tempfile::tempdir().unwrap();
    model.write(folder.path());
    let path = folder.path().join("unet").join(plain_file("unet"));
    let tensors = &model.weights["unet"];
    let (name, tensor) = tensors.iter().next().unwrap();
    let codes = vec![1; tensor.values.len()];
    for (dtype, expected) in [(Dtype::I8, "has type I8"), (Dtype::U8, "has type U8")] {
        let stored: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| (name, tensor, plain(Dtype::F32, tensor).bytes))
            .collect();
        let views = stored.iter().map(|(of, tensor, bytes)| {
            let (dtype, bytes) = match *of == name {
                true => (dtype, &codes),
                false => (Dtype::F32, bytes),
            };
            let view = TensorView::new(dtype, tensor.shape.clone(), bytes).unwrap();
            (of, view)
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let error = sd_onnx::builder().load(folder.path()).unwrap_err();
        let error = chain(&error);
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }
}

/// A UNet in GGUF. Its weights are blocks of Q8_0, with another shape if their rows are not whole
/// blocks. All other tensors are F32.
#[test]
fn a_unet_in_gguf() {
    let model = Model::of_shape(SHAPE);
    let [stored, plain] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for folder in [&stored, &plain] {
        model.write(folder.path());
    }
    let path = |folder: &Path| folder.join("unet").join(plain_file("unet"));
    let (mut pairs, mut count) = (Vec::new(), 1u64);
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    let mut widened = Tensors::new();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    text(&mut pairs, "general.architecture");
    pairs.extend(8u32.to_le_bytes());
    text(&mut pairs, "sd1");
    for (name, tensor) in &model.weights["unet"] {
        let (shape, numbers) = (&tensor.shape, tensor.values.len());
        let is_quantised = is_quantised(name, tensor) && numbers.is_multiple_of(32);
        let mut dims = shape.clone();
        if is_quantised && !shape.last().unwrap().is_multiple_of(32) {
            dims = vec![numbers / 32, 32];
            text(&mut pairs, &format!("comfy.gguf.orig_shape.{name}"));
            pairs.extend([9u32, 5].iter().flat_map(|n| n.to_le_bytes()));
            pairs.extend((shape.len() as u64).to_le_bytes());
            pairs.extend(shape.iter().flat_map(|&side| (side as i32).to_le_bytes()));
            count += 1;
        }
        text(&mut entries, name);
        entries.extend((dims.len() as u32).to_le_bytes());
        let sides = dims
            .iter()
            .rev()
            .flat_map(|&side| (side as u64).to_le_bytes());
        entries.extend(sides);
        entries.extend(if is_quantised { 8u32 } else { 0 }.to_le_bytes());
        entries.extend((data.len() as u64).to_le_bytes());
        let mut values = tensor.values.clone();
        match is_quantised {
            true => values.chunks_mut(32).for_each(|block| {
                let largest = block.iter().fold(0f32, |most, value| most.max(value.abs()));
                let scale = f16::from_f32(largest.max(1e-4) / 127.0);
                data.extend(scale.to_le_bytes());
                for value in block {
                    let code = (*value / scale.to_f32()).round().clamp(-127.0, 127.0);
                    data.push(code as i8 as u8);
                    *value = code * scale.to_f32();
                }
            }),
            false => data.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
        data.resize(data.len().next_multiple_of(32), 0);
        let shape = shape.clone();
        widened.insert(name.clone(), Tensor { shape, values });
    }
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((model.weights["unet"].len() as u64).to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend([pairs, entries].concat());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    // The name ends with `.safetensors`, but the format is recognised by the content.
    std::fs::write(path(stored.path()), file).unwrap();
    write_tensors(&path(plain.path()), &widened, Dtype::F32);
    assert!(count > 3, "some tensors have another shape");
    assert_same_bits(stored.path(), plain.path());
}
