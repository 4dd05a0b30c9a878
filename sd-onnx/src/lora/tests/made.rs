//! Small models and adapters for tests.

use std::{collections::BTreeMap, path::Path};

use safetensors::{Dtype, tensor::TensorView};

use super::super::{
    Fitted, Lora, Targets, Use, merge,
    merge::{Changed, Merged, changed},
};
use crate::{Error, weights::Weights};

/// A tensor of a test's file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Made {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Made {
    /// Numbers that differ from one another and from tensor to tensor.
    pub fn new(shape: &[usize], seed: usize) -> Self {
        let count = shape.iter().product::<usize>();
        let value = |place: usize| ((place * 7 + seed * 13) % 23) as f32 / 11.0 - 1.0;
        Self {
            shape: shape.to_vec(),
            values: (0..count).map(value).collect(),
        }
    }

    pub fn number(value: f32) -> Self {
        Self {
            shape: Vec::new(),
            values: vec![value],
        }
    }
}

/// Writes tensors to a safetensors file, in f32.
pub(super) fn write(path: &Path, tensors: &BTreeMap<String, Made>) {
    let bytes: Vec<Vec<u8>> = tensors
        .values()
        .map(|made| {
            made.values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, made), bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, made.shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The UNet of the tests, with a linear layer, a convolution, a norm, and a first convolution that
/// takes more channels than an ordinary model's.
pub(super) fn unet() -> BTreeMap<String, Made> {
    let block = "down_blocks.0.attentions.0";
    [
        ("conv_in.weight".to_owned(), Made::new(&[4, 9, 3, 3], 1)),
        ("conv_in.bias".to_owned(), Made::new(&[4], 2)),
        (
            format!("{block}.transformer_blocks.0.attn1.to_q.weight"),
            Made::new(&[8, 4], 3),
        ),
        (
            format!("{block}.transformer_blocks.0.attn2.to_k.weight"),
            Made::new(&[4, 6], 4),
        ),
        (format!("{block}.norm.weight"), Made::new(&[4], 5)),
        (format!("{block}.norm.bias"), Made::new(&[4], 6)),
        (
            "down_blocks.0.resnets.0.conv1.weight".to_owned(),
            Made::new(&[6, 4, 3, 3], 7),
        ),
        (
            "down_blocks.0.resnets.0.conv1.bias".to_owned(),
            Made::new(&[6], 8),
        ),
    ]
    .into()
}

/// The beginning of names of the linear layer in kohya's files.
pub(super) const TO_Q: &str =
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";

/// A text encoder, whose query, key and value are one tensor in OpenCLIP.
pub(super) fn text() -> BTreeMap<String, Made> {
    let parts = ["q", "k", "v"].into_iter().enumerate();
    let mut tensors: BTreeMap<String, Made> = parts
        .flat_map(|(seed, part)| {
            let name = format!("encoder.layers.0.self_attn.{part}_proj");
            [
                (format!("{name}.weight"), Made::new(&[4, 4], 20 + seed)),
                (format!("{name}.bias"), Made::new(&[4], 30 + seed)),
            ]
        })
        .collect();
    tensors.insert(
        "encoder.layers.0.mlp.fc1.weight".to_owned(),
        Made::new(&[8, 4], 40),
    );
    tensors
}

/// A model and an adapter in a temporary folder.
pub(super) struct Case {
    folder: tempfile::TempDir,
    /// The file name of the adapter.
    pub file: &'static str,
    pub networks: Vec<(&'static str, Weights)>,
}

impl Case {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let networks = [("unet", unet()), ("text_encoder", text())].map(|(name, tensors)| {
            let path = folder.path().join(format!("{name}.safetensors"));
            write(&path, &tensors);
            (name, Weights::open(&path).unwrap())
        });
        Self {
            folder,
            file: "adapter.safetensors",
            networks: networks.into(),
        }
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.folder.path().join(self.file)
    }

    pub fn targets(&self) -> Targets<'_> {
        let networks: Vec<_> = self
            .networks
            .iter()
            .map(|(name, weights)| (*name, weights))
            .collect();
        Targets::new(&networks)
    }

    pub fn write(&self, tensors: &[(&str, Made)]) -> &Self {
        let tensors = tensors.iter().cloned();
        let tensors = tensors
            .map(|(name, made)| (name.to_owned(), made))
            .collect();
        write(&self.path(), &tensors);
        self
    }

    pub fn fit(&self) -> Result<Fitted, Error> {
        Lora::open(&self.path())?.fit(&self.targets())
    }

    /// Merges an adapter with multiplier 1 into all networks.
    pub fn merged(&self) -> Result<BTreeMap<String, Vec<f32>>, Error> {
        let adapter = self.fit()?;
        let one = Use {
            adapter: &adapter,
            multiplier: &|_| 1.0,
            rank: None,
        };
        self.changed(&[one])
    }

    pub fn changed(&self, uses: &[Use<'_>]) -> Result<BTreeMap<String, Vec<f32>>, Error> {
        let mut all = BTreeMap::new();
        for (network, weights) in &self.networks {
            for Changed { name, bytes, .. } in changed(network, weights, uses)? {
                let values = bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&bytes| f32::from_le_bytes(bytes));
                all.insert(format!("{network}.{name}"), values.collect());
            }
        }
        Ok(all)
    }
}

#[test]
fn a_lora_is_up_times_down_times_alpha_over_rank() {
    let case = Case::new();
    let (up, down) = (Made::new(&[8, 2], 50), Made::new(&[2, 4], 51));
    case.write(&[
        (&format!("{TO_Q}.lora_up.weight"), up.clone()),
        (&format!("{TO_Q}.lora_down.weight"), down.clone()),
        (&format!("{TO_Q}.alpha"), Made::number(1.0)),
    ]);
    let name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    let weight = unet()[name].clone();
    let merged = case.merged().unwrap();
    let found = &merged[&format!("unet.{name}")];
    assert_eq!(merged.len(), 1);
    for row in 0..8 {
        for column in 0..4 {
            let product = |rank: usize| up.values[row * 2 + rank] * down.values[rank * 4 + column];
            let expected = weight.values[row * 4 + column] + (product(0) + product(1)) / 2.0;
            assert!((found[row * 4 + column] - expected).abs() < 1e-6);
        }
    }
    // Only the first rank, still with the scale of the whole rank.
    let adapter = case.fit().unwrap();
    let used = Use {
        adapter: &adapter,
        multiplier: &|_| -2.0,
        rank: Some(1),
    };
    let merged = case.changed(&[used]).unwrap();
    let found = merged[&format!("unet.{name}")][5];
    let expected = weight.values[5] - up.values[2] * down.values[1];
    assert!((found - expected).abs() < 1e-6);
    // A multiplier of 0 changes nothing.
    let used = Use {
        multiplier: &|_| 0.0,
        ..used
    };
    assert!(case.changed(&[used]).unwrap().is_empty());
}

#[test]
fn a_fused_projection_is_three_tensors() {
    let mut case = Case::new();
    let fused = "lora_te_transformer_resblocks_0_attn_in_proj";
    let (up, down) = (Made::new(&[12, 1], 52), Made::new(&[1, 4], 53));
    case.write(&[
        (&format!("{fused}.lora_up.weight"), up.clone()),
        (&format!("{fused}.lora_down.weight"), down.clone()),
        (&format!("{fused}.diff_b"), Made::new(&[12], 54)),
    ]);
    let merged = case.merged().unwrap();
    assert_eq!(merged.len(), 6);
    for (index, part) in ["q", "k", "v"].into_iter().enumerate() {
        let name = format!("encoder.layers.0.self_attn.{part}_proj");
        let found = &merged[&format!("text_encoder.{name}.weight")];
        let weight = &text()[&format!("{name}.weight")];
        let expected = weight.values[6] + up.values[index * 4 + 1] * down.values[2];
        assert!((found[6] - expected).abs() < 1e-6, "{part}");
        let found = &merged[&format!("text_encoder.{name}.bias")];
        let bias = &text()[&format!("{name}.bias")];
        let expected = bias.values[3] + Made::new(&[12], 54).values[index * 4 + 3];
        assert!((found[3] - expected).abs() < 1e-6, "{part}");
    }
    // A second adapter changes only the key, and both changes add up.
    let both = case.fit().unwrap();
    case.file = "second.safetensors";
    let single = "lora_te_text_model_encoder_layers_0_self_attn_k_proj";
    let diff = Made::new(&[4, 4], 55);
    case.write(&[(&format!("{single}.diff"), diff.clone())]);
    let key = case.fit().unwrap();
    let uses = [&both, &key].map(|adapter| Use {
        adapter,
        multiplier: &|_| 1.0,
        rank: None,
    });
    let two = case.changed(&uses).unwrap();
    for (name, values) in &two {
        for (place, (found, one)) in values.iter().zip(&merged[name]).enumerate() {
            let is_key = name.ends_with("k_proj.weight");
            let expected = one + if is_key { diff.values[place] } else { 0.0 };
            assert!((found - expected).abs() < 1e-6, "{name}");
        }
    }
    assert_eq!(two.len(), 6);
}

#[test]
fn the_first_convolution_of_an_inpainting_model_keeps_its_other_channels() {
    let case = Case::new();
    case.write(&[("lora_unet_conv_in.diff", Made::new(&[4, 4, 3, 3], 56))]);
    let merged = case.merged().unwrap();
    let (found, weight) = (&merged["unet.conv_in.weight"], &unet()["conv_in.weight"]);
    let diff = Made::new(&[4, 4, 3, 3], 56);
    for (place, (found, weight)) in found.iter().zip(&weight.values).enumerate() {
        let (row, column) = (place / 81, place % 81);
        let change = if column < 36 {
            diff.values[row * 36 + column]
        } else {
            0.0
        };
        assert!((found - (weight + change)).abs() < 1e-6, "{place}");
    }
}

#[test]
fn merged_weights_replace_the_stored_ones() {
    let mut case = Case::new();
    case.write(&[(&format!("{TO_Q}.diff"), Made::new(&[8, 4], 57))]);
    let adapter = case.fit().unwrap();
    let used = [Use {
        adapter: &adapter,
        multiplier: &|_| 0.5,
        rank: None,
    }];
    let expected = case.changed(&used).unwrap();
    let (network, weights) = &mut case.networks[0];
    let done: Merged = merge(network, weights, &used).unwrap();
    assert_eq!((done.tensors, done.bytes), (1, 8 * 4 * 4));
    let name = adapter.weights_of("unet").next().unwrap();
    let found = weights
        .tensor(name, &[8, 4])
        .unwrap()
        .source()
        .values()
        .unwrap();
    assert_eq!(found, expected[&format!("unet.{name}")]);
}

#[test]
fn modules_under_two_names() {
    let case = Case::new();
    let ldm = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q";
    let diff = Made::new(&[8, 4], 58);
    let other = Made::new(&[8, 4], 59);
    case.write(&[
        (&format!("{ldm}.diff"), other),
        (&format!("{TO_Q}.diff"), diff.clone()),
    ]);
    // Like diffusers, which takes the file to have every module twice.
    let fitted = case.fit().unwrap();
    assert_eq!(fitted.unfit, [format!("{ldm}.diff")]);
    let warning = fitted.warning().unwrap();
    assert!(
        warning.starts_with("1 of the adapter's tensors fit nothing"),
        "{warning}"
    );
    let merged = case.merged().unwrap();
    let name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    let found = merged[&format!("unet.{name}")][0];
    assert!((found - unet()[name].values[0] - diff.values[0]).abs() < 1e-6);

    let dotted = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.diff";
    case.write(&[(&format!("{TO_Q}.diff"), diff.clone()), (dotted, diff)]);
    let error = case.fit().unwrap_err().to_string();
    assert!(error.contains("is there twice, also as"), "{error}");
}

#[test]
fn an_adapter_that_was_fitted_to_other_weights_is_refused() {
    let case = Case::new();
    case.write(&[(&format!("{TO_Q}.diff"), Made::new(&[8, 4], 65))]);
    let adapter = case.fit().unwrap();
    let mut other = unet();
    let name = adapter.weights_of("unet").next().unwrap();
    other.insert(name.to_owned(), Made::new(&[8, 5], 66));
    let path = case.path().with_file_name("other.safetensors");
    write(&path, &other);
    let weights = Weights::open(&path).unwrap();
    let used = Use {
        adapter: &adapter,
        multiplier: &|_| 1.0,
        rank: None,
    };
    let error = changed("unet", &weights, &[used]).unwrap_err().to_string();
    assert!(
        error.contains("has shape [8, 5], expected [8, 4]"),
        "{error}"
    );
}

/// peft's own files do not say which text encoder they are for.
#[test]
fn shapes_decide_between_two_text_encoders() {
    let mut case = Case::new();
    let name = "encoder.layers.0.mlp.fc1.weight";
    let path = case.path().with_file_name("second.safetensors");
    write(&path, &[(name.to_owned(), Made::new(&[10, 5], 67))].into());
    case.networks
        .push(("text_encoder_2", Weights::open(&path).unwrap()));
    let module = "base_model.model.text_model.encoder.layers.0.mlp.fc1";
    for (network, [rows, columns]) in [("text_encoder", [8, 4]), ("text_encoder_2", [10, 5])] {
        case.write(&[
            (
                &format!("{module}.lora_A.weight"),
                Made::new(&[1, columns], 68),
            ),
            (
                &format!("{module}.lora_B.weight"),
                Made::new(&[rows, 1], 69),
            ),
        ]);
        let merged = case.merged().unwrap();
        assert_eq!(
            merged.keys().collect::<Vec<_>>(),
            [&format!("{network}.{name}")]
        );
    }
    case.write(&[
        (&format!("{module}.lora_A.weight"), Made::new(&[1, 3], 68)),
        (&format!("{module}.lora_B.weight"), Made::new(&[8, 1], 69)),
    ]);
    let error = case.merged().unwrap_err().to_string();
    assert!(
        error.contains("has shape [1, 3], expected [1, 4]"),
        "{error}"
    );
}

#[test]
fn facts_of_a_file() {
    let case = Case::new();
    case.write(&[
        (&format!("{TO_Q}.lora_up.weight"), Made::new(&[8, 2], 62)),
        (&format!("{TO_Q}.lora_down.weight"), Made::new(&[2, 4], 63)),
        ("lora_unet_conv_in.diff", Made::new(&[4, 9, 3, 3], 64)),
    ]);
    let lora = Lora::open(&case.path()).unwrap();
    assert_eq!(lora.rank(), Some(2));
    assert_eq!(lora.formats(), ["LoRA", "full difference"]);
    assert_eq!(
        lora.modules().collect::<Vec<_>>(),
        ["lora_unet_conv_in", TO_Q]
    );
    // WebUI's hash is the SHA-256 of the bytes behind the header.
    let bytes = std::fs::read(case.path()).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let data = case.path().with_file_name("data");
    std::fs::write(&data, &bytes[8 + header..]).unwrap();
    assert_eq!(lora.hash().unwrap(), crate::hash::sha256(&[data]).unwrap());
}

#[test]
fn blocks_can_have_their_own_multipliers() {
    let case = Case::new();
    case.write(&[
        (&format!("{TO_Q}.diff"), Made::new(&[8, 4], 60)),
        (
            "lora_unet_down_blocks_0_resnets_0_conv1.diff",
            Made::new(&[6, 4, 3, 3], 61),
        ),
    ]);
    let adapter = case.fit().unwrap();
    let used = Use {
        adapter: &adapter,
        multiplier: &|name| {
            if name.contains("attentions") {
                1.0
            } else {
                0.0
            }
        },
        rank: None,
    };
    let merged = case.changed(&[used]).unwrap();
    assert_eq!(merged.len(), 1);
    assert!(merged.keys().all(|name| name.ends_with("to_q.weight")));
}
