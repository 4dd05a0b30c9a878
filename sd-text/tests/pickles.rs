//! Compares the reader of torch's pickles with `torch.load`, exactly, on harmless files of every
//! form. The expected tensors are in `golden/pickles.json` (see `golden/pickles.py`).

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use sd_text::pickle::{self, Data, Format, Pickle, PickledTensor, Value};

use common::golden;
use common::pickles::{dict, file, legacy, storage, tensor, tensor_of};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickles")
}

fn load(name: &str) -> Pickle {
    pickle::open(folder().join(name)).unwrap()
}

fn parse(bytes: Vec<u8>) -> Pickle {
    pickle::from_bytes("a.pt", bytes).unwrap()
}

/// Compares tensors with rows of names, types, shapes and hexadecimal bytes. Returns how many
/// tensors are in the file as they are.
fn compare<'a>(
    pickle: &Pickle,
    tensors: impl ExactSizeIterator<Item = (&'a str, &'a PickledTensor)>,
    rows: &serde_json::Value,
    bytes: &[u8],
) -> usize {
    let rows = rows.as_array().unwrap();
    assert_eq!(tensors.len(), rows.len());
    let mut in_place = 0;
    for ((name, tensor), row) in tensors.zip(rows) {
        assert_eq!(name, row[0]);
        assert_eq!(tensor.dtype.to_string(), row[1], "{name}");
        assert_eq!(serde_json::json!(tensor.shape), row[2], "{name}");
        let found = pickle.bytes(tensor).unwrap();
        let hex: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, row[3], "{name}");
        assert_eq!(tensor.length(), found.len() as u64, "{name}");
        if let Data::File { offset, length } = tensor.data {
            let place = offset as usize..(offset + length) as usize;
            assert_eq!(bytes[place], found, "{name}");
            in_place += 1;
        }
    }
    in_place
}

#[test]
fn files_of_every_form() {
    let golden = golden("pickles.json");
    let files = golden["files"].as_object().unwrap();
    assert!(files.len() >= 24, "{}", files.len());
    for (name, parts) in files {
        println!("{name}");
        let path = folder().join(name);
        let bytes = fs::read(&path).unwrap();
        assert!(pickle::is_pickle(&bytes[..262]));
        let pickle = pickle::open(&path).unwrap();
        let is_legacy = name.contains("legacy") || name == "webui-parameter.pt";
        let format = if is_legacy {
            Format::Legacy
        } else {
            Format::Zip
        };
        assert_eq!((pickle.format(), pickle.path()), (format, &*path));
        let rows = |part: usize| &golden["values"][parts[part].as_u64().unwrap() as usize];
        let in_place = compare(&pickle, pickle.tensors(), rows(0), &bytes);
        let count = pickle.tensors().len();
        match name.as_str() {
            "deflated.pt" | "deflated-behind.pt" => assert_eq!(in_place, 1, "the empty one"),
            "big-endian.pt" => assert!(in_place > 0 && in_place < count / 4, "{in_place}"),
            // The five others are a column, a corner, and transposed, expanded and channels-last
            // tensors.
            _ => assert!(
                in_place == count || in_place == count - 5,
                "{in_place} of {count}"
            ),
        }
        assert_eq!(pickle.is_unwrapped(), parts.as_array().unwrap().len() == 2);
        match pickle.is_unwrapped() {
            true => drop(compare(&pickle, pickle.beside(), rows(1), &bytes)),
            false => assert_eq!(pickle.beside().len(), 0),
        }
        let again = pickle::from_bytes("again", bytes.clone()).unwrap();
        compare(&again, again.tensors(), rows(0), &bytes);
    }
}

#[test]
fn values_are_kept() {
    for name in ["zip-2.pt", "zip-5.pt", "legacy-1.pt", "legacy-4.pt"] {
        let pickle = load(name);
        let value = |key: &str| pickle.value(pickle.entry(pickle.root(), key).unwrap());
        assert!(matches!(value("text"), Value::Text(text) if text == "é狐"));
        assert!(
            matches!(value("bytes"), Value::Bytes(bytes) if bytes == b"\0\xff"),
            "{name}"
        );
        let large = "0x0100000000000000000000";
        let is_large = |number: &str| number == large || number == "1208925819614629174706176";
        assert!(
            matches!(value("large"), Value::Long(number) if is_large(number)),
            "{name}"
        );
        assert!(matches!(value("negative"), Value::Int(number) if *number == -(1 << 40)));
        assert!(matches!(value("float"), Value::Float(0.1)));
        assert!(matches!(value("none"), Value::None));
        assert!(matches!(value("yes"), Value::Bool(true)));
        assert!(pickle.entry(pickle.root(), "no such key").is_none());
    }
}

#[test]
fn training_states_are_inert() {
    for name in [
        "lightning.ckpt",
        "lightning-numpy1.ckpt",
        "lightning-legacy.ckpt",
    ] {
        let pickle = load(name);
        let value = |keys: &[&str]| {
            let entry = |id, key: &&str| pickle.entry(id, key).unwrap();
            pickle.value(keys.iter().fold(pickle.root(), entry))
        };
        let is_inert = |keys: &[&str], global: &str| match value(keys) {
            Value::Inert(found) => assert_eq!(&**found, global),
            other => panic!("{other:?}"),
        };
        assert!(matches!(value(&["epoch"]), Value::Int(3)));
        let numpy = if name == "lightning-numpy1.ckpt" {
            "numpy.core"
        } else {
            "numpy._core"
        };
        is_inert(&["global_step"], &format!("{numpy}.multiarray.scalar"));
        is_inert(&["array"], &format!("{numpy}.multiarray._reconstruct"));
        is_inert(
            &["hyper_parameters", "config"],
            "omegaconf.dictconfig.DictConfig",
        );
        is_inert(&["args"], "argparse.Namespace");
        is_inert(&["dtype"], "torch.bfloat16");
        is_inert(&["device"], "torch.device");
        assert!(matches!(value(&["hyper_parameters", "seen"]), Value::Set(set) if set.len() == 2));
        assert!(matches!(value(&["hyper_parameters", "raw"]), Value::Bytes(b) if b == b"\0\xe9"));
        assert!(matches!(value(&["hyper_parameters", "size"]), Value::Tuple(s) if s.len() == 2));
        assert!(matches!(value(&["factories", "lists"]), Value::List(list) if list.len() == 1));
        assert!(matches!(value(&["counter", "a"]), Value::Int(2)));
        let callbacks: Vec<_> = pickle
            .beside()
            .filter(|(name, _)| name.contains("best"))
            .collect();
        let best = "callbacks.pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint.best";
        assert_eq!(
            callbacks.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            [best]
        );
    }
}

/// Opcodes that Python writes but `torch.save` does not, or did only long ago.
#[test]
fn other_ways_to_write() {
    let plain = tensor("0", "2 3", "3 1");
    let numbers: Vec<u8> = (0..24).collect();
    for (what, value) in [
        ("as it is", plain.clone()),
        ("a name without a meaning", format!("{plain}p3\n0g3\n")),
        ("under another stack", format!("(N{plain}p3\n1g3\n")),
        (
            "OBJ",
            plain
                .replacen(
                    "ctorch._utils\n_rebuild_tensor_v2\n(",
                    "(ctorch._utils\n_rebuild_tensor_v2\n",
                    1,
                )
                .replace("tR", "o"),
        ),
        (
            "INST",
            plain
                .replacen("ctorch._utils\n_rebuild_tensor_v2\n(", "(", 1)
                .replace("(dtR", "(ditorch._utils\n_rebuild_tensor_v2\n"),
        ),
        (
            "a parameter",
            format!("ctorch._utils\n_rebuild_parameter\n({plain}I01\n(dtR"),
        ),
        (
            "a parameter's class",
            format!("ctorch.nn.parameter\nParameter\n({plain}I01\ntR"),
        ),
        (
            "sizes",
            plain.replace("(I2\nI3\nt", "ctorch\nSize\n((I2\nI3\nttR"),
        ),
        ("lists", plain.replace("(I2\nI3\nt", "(I2\nI3\nl")),
        (
            "texts of Python 2",
            plain
                .replace("Vstorage\n", "S'storage'\n")
                .replace("V0\n", "S'0'\n"),
        ),
        (
            "the first rebuild",
            plain.replace("_v2", "").replace("I00\n(d", ""),
        ),
        (
            "no metadata",
            tensor_of(&storage("FloatStorage", "6"), "0", "2 3", "3 1", "(d"),
        ),
        (
            "metadata of false",
            tensor_of(
                &storage("FloatStorage", "6"),
                "0",
                "2 3",
                "3 1",
                "(dVconj\nI00\ns",
            ),
        ),
        (
            "a view",
            tensor_of(
                &storage("FloatStorage", "6").replace("tQ", "(V1\nI0\nI6\nttQ"),
                "0",
                "2 3",
                "3 1",
                "",
            ),
        ),
    ] {
        let pickle = parse(file(&dict(&value)));
        let tensors: Vec<_> = pickle.tensors().collect();
        let [("a", tensor)] = tensors[..] else {
            panic!("{what}: {tensors:?}")
        };
        assert_eq!(
            (tensor.dtype, &tensor.shape[..]),
            (Dtype::F32, &[2, 3][..]),
            "{what}"
        );
        assert_eq!(pickle.bytes(tensor).unwrap(), numbers, "{what}");
        assert!(
            matches!(tensor.data, Data::File { length: 24, .. }),
            "{what}"
        );
    }
    // An OrderedDict made of pairs, as Python 2 writes it.
    let pairs = format!("ccollections\nOrderedDict\n((l(lVa\na{plain}aatR.");
    let pickle = parse(file(pairs.as_bytes()));
    assert_eq!(pickle.tensors().next().unwrap().0, "a");
}

#[test]
fn views_of_old_files() {
    let view = |start: &str, count: &str| {
        let view = format!("(V1\nI{start}\nI{count}\nttQ");
        storage("FloatStorage", "6").replace("tQ", &view)
    };
    let numbers: Vec<u8> = (0..24).collect();
    let pickle = dict(&tensor_of(&view("2", "3"), "1", "2", "1", ""));
    let pickle = parse(legacy(&pickle, "0", 6, &numbers));
    let (_, tensor) = pickle.tensors().next().unwrap();
    assert_eq!(pickle.bytes(tensor).unwrap(), numbers[12..20]);
    for (start, count) in [
        ("2", "2"),
        ("4", "3"),
        ("6", "1"),
        ("-1", "3"),
        ("4611686018427387904", "1"),
    ] {
        let pickle = dict(&tensor_of(&view(start, count), "1", "2", "1", ""));
        let error = pickle::from_bytes("a.pt", legacy(&pickle, "0", 6, &numbers)).unwrap_err();
        assert!(error.to_string().contains("byte"), "{error}");
    }
}

#[test]
fn names_of_tensors() {
    let one = tensor("0", "1", "1");
    let names = |pickle: String| {
        let pickle = parse(file(pickle.as_bytes()));
        let names: Vec<_> = pickle.tensors().map(|(name, _)| name.to_owned()).collect();
        (
            names.join(" "),
            pickle.is_unwrapped(),
            pickle.beside().len(),
        )
    };
    let of = |text: &str, unwrapped, beside| (text.to_owned(), unwrapped, beside);
    assert_eq!(names(format!("{one}.")), of("", false, 0));
    assert_eq!(names(format!("({one}I1\n{one}l.")), of("0 2", false, 0));
    let inner = format!("(dVx.y\n{one}sI7\n{one}sN{one}s");
    assert_eq!(names(format!("{inner}.")), of("x.y 7 #2", false, 0));
    assert_eq!(
        names(format!("(dVstate_dict\n{inner}sVema\n{one}s.")),
        of("x.y 7 #2", true, 1)
    );
    assert_eq!(
        names(format!("(dVstate_dict\n{one}s.")),
        of("state_dict", false, 0)
    );
    // The same dictionary under another name is not listed again.
    assert_eq!(
        names(format!("(dVstate_dict\n{inner}p9\nsVmodel\ng9\ns.")),
        of("x.y 7 #2", true, 0)
    );
}
