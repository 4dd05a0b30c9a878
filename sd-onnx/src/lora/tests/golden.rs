//! Merges the adapters in `tests/golden/lora` and compares the weights with those that the
//! reference implementations made of them (`tests/golden/lora.py`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sd_schedulers::{NoiseSource, noise::TorchRng};
use serde_json::Value;

use super::{
    super::{
        Lora, Targets, Use,
        merge::{Changed, changed},
    },
    made::{Made, write},
};
use crate::{
    checkpoint::{Family, stored},
    weights::{Mapped, View, WeightFile, Weights},
};

/// The weights of a model's networks, by their folders in diffusers.
pub(super) type Networks = BTreeMap<&'static str, Weights>;

const NETWORKS: [&str; 3] = ["unet", "text_encoder", "text_encoder_2"];

pub(super) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Writes the networks of a base model, whose tensors are `offset + scale · randn(seed)` rounded to
/// f16, and opens them.
pub(super) fn base(name: &str, folder: &Path) -> Networks {
    let text = fs::read_to_string(golden().join(name).join("weights.json")).unwrap();
    let recipe: Value = serde_json::from_str(&text).unwrap();
    let mut networks = BTreeMap::new();
    for network in NETWORKS {
        let Some(tensors) = recipe[network].as_array() else {
            continue;
        };
        let made: Vec<(&str, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|tensor| {
                let shape: Vec<usize> = serde_json::from_value(tensor["shape"].clone()).unwrap();
                let number = |key: &str| tensor[key].as_f64().unwrap() as f32;
                let (scale, offset) = (number("scale"), number("offset"));
                let mut values = vec![0.0; shape.iter().product()];
                TorchRng::new(tensor["seed"].as_u64().unwrap()).fill(&mut values);
                let bytes = values
                    .iter()
                    .flat_map(|value| f16::from_f32(offset + scale * value).to_le_bytes());
                (tensor["name"].as_str().unwrap(), shape, bytes.collect())
            })
            .collect();
        let views = made.iter().map(|(name, shape, bytes)| {
            (
                *name,
                TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap(),
            )
        });
        let path = folder.join(format!("{network}.safetensors"));
        safetensors::serialize_to_file(views, None, &path).unwrap();
        networks.insert(network, Weights::open(&path).unwrap());
    }
    networks
}

/// Returns the current name of a tensor in the golden files, which name text encoders as
/// transformers did until version 5.
fn today(name: &str) -> (&str, String) {
    let (network, name) = name.split_once('.').unwrap();
    (
        network,
        name.strip_prefix("text_model.").unwrap_or(name).to_owned(),
    )
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect()
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values
        .into_iter()
        .map(|value| value * value)
        .sum::<f64>()
        .sqrt()
}

/// The entry `weights` of a case, merged.
fn merged(
    entry: &Value,
    networks: &Networks,
    targets: &Targets<'_>,
) -> BTreeMap<(String, String), Changed> {
    let mut fitted = Vec::new();
    for adapter in entry["adapters"].as_array().unwrap() {
        let path = golden()
            .join("lora")
            .join(adapter["file"].as_str().unwrap());
        let lora = Lora::open(&path).unwrap();
        let number = |key: &str| adapter[key].as_f64().unwrap() as f32;
        fitted.push((lora.fit(targets).unwrap(), number("unet"), number("te")));
    }
    let mut all = BTreeMap::new();
    for (&network, weights) in networks {
        let multipliers = fitted.iter().map(|&(_, unet, text)| {
            let multiplier = if network == "unet" { unet } else { text };
            move |_: &str| multiplier
        });
        let multipliers: Vec<_> = multipliers.collect();
        let uses = fitted
            .iter()
            .zip(&multipliers)
            .map(|((adapter, ..), multiplier)| Use {
                adapter,
                multiplier,
                rank: None,
            });
        let uses: Vec<_> = uses.collect();
        for tensor in changed(network, weights, &uses).unwrap() {
            all.insert((network.to_owned(), tensor.name.clone()), tensor);
        }
    }
    all
}

#[test]
fn lora_weights_are_those_of_the_references() {
    let folder = golden().join("lora");
    let text = fs::read_to_string(folder.join("cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let expected = fs::read(folder.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let mut bases: BTreeMap<&str, Networks> = BTreeMap::new();
    let mut problems = Vec::new();
    let mut compared = 0;
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let base_name = case["base"].as_str().unwrap();
        let networks = bases.entry(base_name).or_insert_with(|| {
            let folder = temporary.path().join(base_name);
            fs::create_dir_all(&folder).unwrap();
            base(base_name, &folder)
        });
        let of_model: Vec<_> = networks
            .iter()
            .map(|(&name, weights)| (name, weights))
            .collect();
        let targets = Targets::new(&of_model);
        let file = folder.join(case["file"].as_str().unwrap());
        let lora = Lora::open(&file).unwrap();
        if let (Some(alias), Some(hash)) = (case["alias"].as_str(), case["hash"].as_str()) {
            // WebUI's alias is the name in training, or else the file's name.
            let stem = file.file_stem().unwrap().to_str().unwrap();
            let of_lora = lora.facts.output_name.as_deref().unwrap_or(stem);
            assert_eq!(of_lora, alias, "{name}");
            assert_eq!(&lora.hash().unwrap()[..12], hash, "{name}");
        }
        let fitted = match lora.fit(&targets) {
            Ok(fitted) => fitted,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        let unmatched: BTreeSet<String> =
            serde_json::from_value(case["unmatched"].clone()).unwrap();
        let unfit: BTreeSet<String> = fitted.unfit.iter().cloned().collect();
        if unfit != unmatched {
            problems.push(format!(
                "{name}: {unfit:?} fit nothing, expected {unmatched:?}"
            ));
        }
        let tolerance = case["tolerance"].as_f64().unwrap();
        let values = case["values"].as_str().unwrap();
        for entry in case["weights"].as_array().unwrap() {
            let label = entry["label"].as_str().unwrap();
            let found = merged(entry, networks, &targets);
            let tensors = case["tensors"].as_array().unwrap();
            let names: BTreeSet<_> = tensors
                .iter()
                .map(|tensor| today(tensor["name"].as_str().unwrap()))
                .map(|(network, name)| (network.to_owned(), name))
                .collect();
            let changed: BTreeSet<_> = found.keys().cloned().collect();
            if names != changed {
                problems.push(format!(
                    "{name} {label}: missing {:?}, too many {:?}",
                    names.difference(&changed).collect::<Vec<_>>(),
                    changed.difference(&names).collect::<Vec<_>>()
                ));
            }
            for tensor in tensors {
                let full = tensor["name"].as_str().unwrap();
                let (network, today) = today(full);
                let Some(found) = found.get(&(network.to_owned(), today)) else {
                    continue;
                };
                let all = floats(&found.bytes);
                let columns: usize = found.shape.iter().skip(1).product();
                let rows: Vec<usize> = match &tensor["rows"] {
                    Value::Null => (0..found.shape[0]).collect(),
                    rows => serde_json::from_value(rows.clone()).unwrap(),
                };
                let kept = rows
                    .iter()
                    .flat_map(|&row| &all[row * columns..][..columns]);
                let stored = expected.tensor(&format!("{values}/{label}/{full}"));
                let stored = floats(stored.unwrap().data());
                let differences = kept.clone().zip(&stored);
                let difference = norm(differences.map(|(a, b)| f64::from(*a) - f64::from(*b)));
                let of = norm(stored.iter().map(|&value| f64::from(value)));
                let relative = difference / of;
                let whole = norm(all.iter().map(|&value| f64::from(value)));
                let expected = tensor["norms"][label].as_f64().unwrap();
                let of_norm = (whole - expected).abs() / expected;
                compared += 1;
                if kept.count() != stored.len()
                    || relative.is_nan()
                    || relative > tolerance
                    || of_norm > 1e-6
                {
                    problems.push(format!(
                        "{name} {label} {full}: {relative:e} away, norm {whole} of {expected}"
                    ));
                }
            }
        }
    }
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
    assert!(compared > 700, "{compared}");
}

/// Adapters change the weights of one file with latent diffusion's names in the same way. There,
/// query, key and value are rows of one tensor, and a matrix has its axes exchanged.
#[test]
fn lora_weights_of_single_files_are_the_same() {
    for (base_name, family, adapters) in [
        ("four", Family::Sd1, ["sd1-lora", "sd1-dora-rows"]),
        (
            "families/sd2-v",
            Family::Sd2,
            ["sd2-lora", "sd2-dora-columns"],
        ),
        (
            "families/sdxl-base",
            Family::Xl,
            ["sdxl-lora", "sdxl-norm-text-2"],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let networks = base(base_name, folder.path());
        let single: BTreeMap<_, _> = networks
            .iter()
            .map(|(&network, weights)| (network, single(family, network, weights, folder.path())))
            .collect();
        for adapter in adapters {
            let path = golden().join(format!("lora/{adapter}.safetensors"));
            let lora = Lora::open(&path).unwrap();
            let all = [&networks, &single].map(|networks| {
                let of_model: Vec<_> = networks.iter().map(|(&name, it)| (name, it)).collect();
                let fitted = lora.fit(&Targets::new(&of_model)).unwrap();
                let used = Use {
                    adapter: &fitted,
                    multiplier: &|_| 0.7,
                    rank: None,
                };
                let all = networks.iter().map(|(network, weights)| {
                    let changed = changed(network, weights, &[used]).unwrap();
                    let changed = changed.into_iter().map(|it| (it.name, it.shape, it.bytes));
                    changed.collect::<Vec<_>>()
                });
                all.collect::<Vec<_>>()
            });
            assert!(all[0].iter().flatten().count() > 1);
            assert_eq!(all[0], all[1], "{adapter}");
        }
    }
}

/// Writes a network under latent diffusion's names, and opens it by its current names.
fn single(family: Family, network: &str, weights: &Weights, folder: &Path) -> Weights {
    let names = weights
        .names()
        .map(|name| (name, weights.shape(name).unwrap()));
    let tensors = stored(family, network, &names.collect()).unwrap();
    let mut mapped = Vec::new();
    let mut files = BTreeMap::new();
    for tensor in &tensors {
        let mut values: Vec<f32> = Vec::new();
        for (index, name) in tensor.weights.iter().enumerate() {
            let source = weights.get(name).unwrap();
            values.extend(source.source().values().unwrap());
            let count = source.shape()[0];
            let view = match (tensor.transposed, tensor.weights.len()) {
                (true, _) => View::Transposed,
                (_, 1) => View::Whole,
                _ => View::Rows {
                    from: index * count,
                    count,
                },
            };
            let (name, stored) = (name.clone(), tensor.name.clone());
            mapped.push(Mapped { name, stored, view });
        }
        if tensor.transposed {
            let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
            let place = |place: usize| values[place % columns * rows + place / columns];
            values = (0..values.len()).map(place).collect();
        }
        let shape = tensor.shape.clone();
        files.insert(tensor.name.clone(), Made { shape, values });
    }
    let path = folder.join(format!("{network}-single.safetensors"));
    write(&path, &files);
    Weights::mapped(&WeightFile::open(&path).unwrap(), &mapped).unwrap()
}

/// The textual inversions in the adapters have the names and the vectors of the golden files.
#[test]
fn lora_inversions_are_read() {
    let folder = golden().join("lora");
    let expected = fs::read(folder.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    for (file, tensors) in [
        ("sd1-onetrainer", &["clip_l"][..]),
        ("sdxl-onetrainer", &["clip_l", "clip_g"]),
    ] {
        let lora = Lora::open(&folder.join(format!("{file}.safetensors"))).unwrap();
        let inversions = lora.inversions().unwrap();
        let [fox] = &inversions[..] else {
            panic!("{inversions:?}");
        };
        assert_eq!(fox.name(), "<fox>");
        for tensor in tensors {
            let expected = expected
                .tensor(&format!("{file}/bundle_emb.<fox>.{tensor}"))
                .unwrap();
            let found = fox.vectors(expected.shape()[1]).unwrap();
            let found: Vec<f32> = found.iter().copied().collect();
            assert_eq!(found, floats(expected.data()), "{file} {tensor}");
        }
    }
    let without = Lora::open(&folder.join("sd1-lora.safetensors")).unwrap();
    assert!(without.inversions().unwrap().is_empty());
}
