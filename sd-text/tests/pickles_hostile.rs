//! Tests pickles that would run a program in Python, that lie, or that request much time or memory.
//! Each is refused with an error that names what it asks for and the byte.

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::fs;
use std::path::Path;
use std::time::Instant;

use sd_text::pickle::{self, PickleError, Problem};

use common::pickles::{
    PICKLE, dict, end, file, legacy, patched, storage, tensor, tensor_of, zip, zip_with,
};

fn read(bytes: Vec<u8>) -> Result<pickle::Pickle, PickleError> {
    let start = Instant::now();
    let read = pickle::from_bytes("a.pt", bytes);
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    read
}

fn refused(bytes: Vec<u8>) -> String {
    let said = read(bytes).unwrap_err().to_string();
    assert!(said.starts_with("a.pt: ") && said.len() < 2000, "{said}");
    assert!(!said.contains(|c: char| c.is_control()), "{said:?}");
    said
}

/// The same ZIP file in the form for files of more than 4 GB, whose last record refers to a longer
/// one.
fn large(file: &[u8]) -> Vec<u8> {
    let (rest, last) = file.split_at(file.len() - 22);
    let number = |at: usize, length: usize| {
        let mut long = [0; 8];
        long[..length].copy_from_slice(&last[at..at + length]);
        long
    };
    let count = number(10, 2);
    let mut large = rest.to_vec();
    large.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
    large.extend([count, count, number(12, 4), number(16, 4)].concat());
    large.extend(b"PK\x06\x07\0\0\0\0");
    large.extend((rest.len() as u64).to_le_bytes());
    large.extend(b"\x01\0\0\0PK\x05\x06\0\0\0\0");
    large.extend([0xff; 12]);
    large.extend([0; 2]);
    large
}

/// A text in protocol 4.
fn text(text: &str) -> Vec<u8> {
    [&[0x8c, text.len() as u8], text.as_bytes()].concat()
}

fn stack_global(module: &str, name: &str) -> Vec<u8> {
    [&text(module)[..], &text(name), b"\x93"].concat()
}

#[test]
fn globals_are_named_with_their_byte() {
    let mut cases: Vec<(String, usize, Vec<u8>)> = Vec::new();
    // Each is `module name`, and is called with an argument.
    for global in [
        "os system",
        "posix system",
        "nt system",
        "subprocess Popen",
        "subprocess check_output",
        "builtins eval",
        "builtins exec",
        "builtins compile",
        "builtins __import__",
        "builtins getattr",
        "builtins open",
        "builtins globals",
        "__builtin__ eval",
        "__builtin__ apply",
        "sys exit",
        "runpy _run_code",
        "importlib import_module",
        "webbrowser open",
        "operator attrgetter",
        "operator methodcaller",
        "functools partial",
        "pickle loads",
        "_pickle Unpickler",
        "marshal loads",
        "types FunctionType",
        "types CodeType",
        "codecs encode",
        "_codecs decode",
        "shutil rmtree",
        "socket create_connection",
        "urllib.request urlopen",
        "pip main",
        "asyncio.unix_events _UnixSubprocessTransport._start",
        "numpy load",
        "numpy.testing._private.utils runstring",
        "numpy.core.multiarray fromfile",
        "torch load",
        "torch.hub load",
        "torch.jit load",
        "torch.serialization load",
        "torch.storage _load_from_bytes",
        "torch._utils _rebuild_device_tensor_from_numpy",
        "torch._utils _rebuild_qtensor",
        "torch._utils _rebuild_sparse_tensor",
        "torch.nn.modules.linear Linear",
        "pytorch_lightning.trainer.trainer Trainer",
        "pytorch_lightning.callbacks os",
        "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint.to_yaml",
        "collections OrderedDict.__class__",
        "collections _sys",
        "omegaconf.nodes copy",
        "argparse _os.system",
        "__main__ Model",
    ] {
        let (module, name) = global.split_once(' ').unwrap();
        let lines = format!("{module}\n{name}\n");
        let lines = lines.as_bytes();
        let argument = b"X\x04\0\0\0true";
        let full = format!("{module}.{name}");
        for (at, pickle) in [
            // GLOBAL, called by REDUCE, NEWOBJ and NEWOBJ_EX.
            (2, [b"\x80\x02c", lines, argument, b"\x85R."].concat()),
            (2, [b"\x80\x02c", lines, argument, b"\x85\x81."].concat()),
            (2, [b"\x80\x04c", lines, argument, b"\x85}\x92."].concat()),
            // Not called, and dropped.
            (3, [b"\x80\x02(c", lines, b"1}."].concat()),
            (2, [b"\x80\x02c", lines, b"0}."].concat()),
            // INST and OBJ.
            (10, [b"(", &argument[..], b"i", lines, b"."].concat()),
            (1, [b"(c", lines, argument, b"o."].concat()),
            // As the key of a dictionary, and in the state of a harmless value.
            (1, [b"}c", lines, b"Ns."].concat()),
            (23, [b"(cargparse\nNamespace\no}c", lines, b"Nsb."].concat()),
        ] {
            cases.push((full.clone(), at, pickle));
        }
        let pickle = [
            b"\x80\x04",
            &stack_global(module, name)[..],
            argument,
            b"\x85R.",
        ]
        .concat();
        cases.push((full, 6 + module.len() + name.len(), pickle));
    }
    for (global, at, pickle) in cases {
        let old = legacy(&pickle, "0", 0, &[]);
        let before = old
            .windows(pickle.len())
            .position(|window| window == pickle)
            .unwrap();
        for (bytes, label, at) in [(file(&pickle), PICKLE, at), (old, "the file", before + at)] {
            let problem = read(bytes).unwrap_err().problem;
            let said = problem.to_string();
            match problem {
                Problem::Global {
                    pickle: name,
                    byte,
                    global: found,
                } => {
                    assert_eq!(found, global);
                    assert_eq!((&*name, byte), (label, at as u64), "{global}");
                }
                other => panic!("{other} for {}", pickle.escape_ascii()),
            }
            let expected = format!("byte {at} of {label}: it asks for `{global}`");
            assert!(said.starts_with(&expected), "{said}");
        }
    }
}

#[test]
fn names_that_are_computed() {
    let encoded = |text: &str| format!("c_codecs\nencode\n(V{text}\nVlatin1\ntR");
    for (pickle, says) in [
        // `_codecs.encode` returns bytes, which cannot name a global.
        (
            format!("{}{}\u{93}.", encoded("os"), encoded("system")),
            "a global named by bytes",
        ),
        (
            format!("Vos\n{}\u{93}.", encoded("system")),
            "a global named by bytes",
        ),
        (
            format!("{}Vsystem\n\u{93}.", encoded("os")),
            "a global named by bytes",
        ),
        ("I1\nI2\n\u{93}.".to_owned(), "a global named by a number"),
        (
            "Vos\n(Vsystem\nt\u{93}.".to_owned(),
            "a global named by a tuple",
        ),
        // A called value must itself be in the table.
        (
            "VX\n(I1\ntR.".to_owned(),
            "a call of a text, expected a function",
        ),
        (
            "ccollections\nOrderedDict\n(tR(tR.".to_owned(),
            "a call of a dictionary",
        ),
        (
            "cargparse\nNamespace\n(tR(tR.".to_owned(),
            "a call of an inert value",
        ),
        (
            "ctorch\nFloatStorage\n(tR.".to_owned(),
            "a call of `torch.FloatStorage`",
        ),
        (
            "ctorch\nfloat32\n(tR.".to_owned(),
            "a call of `torch.float32`",
        ),
        (
            "ctorch\nSize\n}R.".to_owned(),
            "a call with a dictionary, expected a tuple",
        ),
        // A class or a tensor cannot be given a state.
        (
            "ctorch.nn.modules.container\nParameterDict\n}b.".to_owned(),
            "a state for a class",
        ),
        (
            "cargparse\nNamespace\n}b.".to_owned(),
            "a state for a class",
        ),
        (
            format!("{}(tb.", tensor("0", "1", "1")),
            "a state for a tensor",
        ),
        ("(l}b.".to_owned(), "a state for a list"),
        // Nor can entries or items be added to a wrong value.
        (
            "cargparse\nNamespace\nVa\nVb\ns.".to_owned(),
            "entries for a class",
        ),
        ("(lVa\nVb\ns.".to_owned(), "entries for a list"),
        ("cbuiltins\nset\nI1\na.".to_owned(), "APPEND to a class"),
        (
            "}I1\na.".to_owned(),
            "APPEND to a dictionary, expected a list",
        ),
        (
            "(I1\nt(I1\ne.".to_owned(),
            "APPENDS to a tuple, expected a list",
        ),
        (
            "(l(I1\n\u{90}.".to_owned(),
            "ADDITEMS to a list, expected a set",
        ),
        ("(d(I1\nu.".to_owned(), "a key without a value"),
        ("(I1\nd.".to_owned(), "a key without a value"),
    ] {
        let pickle: Vec<u8> = pickle.chars().map(|c| c as u8).collect();
        let said = refused(file(&pickle));
        assert!(
            said.contains(says) && said.contains("byte "),
            "{said}, expected {says}"
        );
    }
}

#[test]
fn opcodes_that_nobody_writes() {
    for (pickle, says) in [
        (
            &b"\x82\x01."[..],
            "byte 0 of archive/data.pkl: opcode 0x82 (EXT1",
        ),
        (
            b"\x80\x02\x83\x01\0.",
            "byte 2 of archive/data.pkl: opcode 0x83 (EXT2",
        ),
        (b"\x84\x01\0\0\0.", "opcode 0x84 (EXT4"),
        (b"Pstorage\n.", "opcode 0x50 (PERSID"),
        (b"\x97.", "opcode 0x97 (NEXT_BUFFER"),
        (b"C\x00\x98.", "opcode 0x98 (READONLY_BUFFER"),
        (b"N\xff.", "byte 1 of archive/data.pkl: opcode 0xff"),
        (b"\x80\x06.", "protocol 6, expected at most 5"),
        (b"Nz.", "opcode 0x7a"),
        (
            b"",
            "byte 0 of archive/data.pkl: it needs 1 bytes, and 0 are left",
        ),
        (b"N", "byte 1"),
        (b"NN.", "ends with 1 values too many"),
        (b"(N.", "ends with 1 values too many"),
        (b"N(.", "the stack is empty"),
        (
            b"N.N.",
            "byte 2 of archive/data.pkl: the pickle ends before its entry",
        ),
        (b".", "the stack is empty"),
        (b"a.", "the stack is empty"),
        (b"]t.", "it needs a mark"),
        (b"N(0000.", "the stack is empty"),
        (b"N(2.", "the stack is empty"),
        (b"N(\x85.", "the stack is empty"),
        (b"N(q\0.", "the stack is empty"),
        (b"h\x07.", "the memo has no entry 7"),
        (b"j\xff\xff\xff\xff.", "the memo has no entry 4294967295"),
        (b"g-1\n.", "not an index of the memo"),
        (b"I1.", "a line without an end"),
        (b"Ix\n.", "not a whole number"),
        (
            b"L99999999999999999999999999999999999x\n.",
            "not a whole number",
        ),
        (b"Fx\n.", "not a number"),
        (b"S'\n.", "without quotes"),
        (b"S'\\q'\n.", "an escape"),
        (b"V\\ud800\n.", "the character"),
        (b"c\xff\nx\n.", "not UTF-8"),
        (
            b"X\xff\xff\xff\xffabc.",
            "it needs 4294967295 bytes, and 4 are left",
        ),
        (
            b"\x8d\0\0\0\0\0\0\0\x80.",
            "it needs 9223372036854775808 bytes",
        ),
        (
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
            "it needs 18446744073709551615 bytes",
        ),
        (
            b"\x95\xff\xff\xff\xff\xff\xff\xff\xff.",
            "it needs 18446744073709551615 bytes",
        ),
        (
            b"\x8b\0\0\0\x80.",
            "a whole number of 2147483648 bytes, expected at most 256",
        ),
        (b"(o.", "OBJ without a class"),
    ] {
        let said = refused(file(pickle));
        assert!(said.contains(says), "{said}, expected {says}");
    }
}

#[test]
fn tensors_that_lie() {
    let six = storage("FloatStorage", "6");
    let of = |storage: &str| tensor_of(storage, "0", "1", "1", "");
    let last = i64::MAX.to_string();
    for (value, says) in [
        (
            tensor("0", "7", "1"),
            "a tensor of shape [7] and type F32 with strides [1] from number 0 on, in a storage of 24 bytes",
        ),
        (tensor("6", "1", "1"), "from number 6 on"),
        (tensor("1", "2 3", "3 1"), "from number 1 on"),
        (tensor("0", "2 2", "5 1"), "strides [5, 1]"),
        (
            tensor(&last, "1", "1"),
            "from number 9223372036854775807 on",
        ),
        (
            tensor("0", &format!("{last} {last} {last}"), "0 0 0"),
            "a tensor of shape",
        ),
        (tensor("0", "3 3", &format!("{last} {last}")), "strides"),
        (tensor("0", &last, "0"), "a tensor of shape"),
        (
            tensor("0", "1099511627776", "0"),
            "repeat or share the numbers of the file too often",
        ),
        (
            tensor("-1", "1", "1"),
            "a tensor's offset is -1, expected 0 or more",
        ),
        (tensor("0", "-1", "1"), "a tensor's shape is -1"),
        (tensor("0", "1", "-1"), "a tensor's strides is -1"),
        (
            tensor("99999999999999999999", "1", "1"),
            "offset is 99999999999999999999",
        ),
        (
            tensor("0", "2 3", "1"),
            "a tensor of 2 dimensions with 1 strides",
        ),
        (
            tensor("0", &"1 ".repeat(33), &"1 ".repeat(33)),
            "33 dimensions, expected at most 32",
        ),
        (
            tensor("0", "1", "1").replace("I0\n", "Va\n"),
            "a tensor's offset is `a`",
        ),
        (
            tensor("0", "1", "1").replace("(I1\nt", "N"),
            "a tensor's shape is None, expected a list",
        ),
        (
            tensor("0", "1", "1").replace("I00\n", "I00\nI00\nI00\n"),
            "`torch._utils._rebuild_tensor_v2` of 8 values",
        ),
        (tensor("0", "1", "1").replace("I00\n(d", ""), "of 4 values"),
        (
            tensor_of(&six, "0", "1", "1", "(dVconj\nI01\ns"),
            "a tensor marked as `conj`",
        ),
        (
            tensor_of(&six, "0", "1", "1", "(dVneg\nI1\ns"),
            "a tensor marked as `neg`",
        ),
        (tensor_of(&six, "0", "1", "1", "(l"), "metadata is a list"),
        (of("N"), "a tensor of None, expected a storage"),
        (
            of(&storage("FloatStorage", "7")),
            "storage `0` has 28 bytes in the pickle, but 24 in the file",
        ),
        (
            of(&storage("FloatStorage", "5")),
            "storage `0` has 20 bytes in the pickle, but 24 in the file",
        ),
        (
            of(&storage("DoubleStorage", "6")),
            "storage `0` has 48 bytes in the pickle, but 24 in the file",
        ),
        (
            of(&storage("FloatStorage", &last)),
            "a storage of 9223372036854775807 numbers",
        ),
        (
            of(&storage("FloatStorage", "-6")),
            "a storage's length is -6",
        ),
        (
            of(&storage("ComplexDoubleStorage", "6")),
            "class `torch.ComplexDoubleStorage`, which no weights have",
        ),
        (
            of(&storage("QInt8Storage", "6")),
            "class `torch.QInt8Storage`",
        ),
        (
            of(&storage("UntypedStorage", "24")),
            "a storage without a type",
        ),
        (of(&storage("Size", "6")), "class `torch.Size`"),
        (
            of(&six.replace("V0\n", "V1\n")),
            "storage `1` is not in the file",
        ),
        (
            of(&six.replace("V0\n", "V../version\n")),
            "storage `../version` is not in the file",
        ),
        (
            of(&six.replace("V0\n", &format!("V{}\n", "0".repeat(65)))),
            "expected a short text",
        ),
        (of(&six.replace("V0\n", "I0\n")), "a storage named by 0"),
        (
            of(&six.replace("Vcpu\n", "Vmeta\n")),
            "a storage without data",
        ),
        (
            of(&six.replace("Vstorage\n", "Vmodule\n")),
            "not a storage, expected a storage",
        ),
        (of(&six.replace("tQ", "NNtQ")), "more than 6 values"),
        (of("(tQ"), "a storage of 0 values"),
        (
            of("(Vmodule\nVos\nNNtQ"),
            "a module that is a text, expected a class",
        ),
        (
            of("(Vmodule\ncbuiltins\nset\nNNtQ"),
            "a tensor of a class or a function",
        ),
        (of("NQ"), "a storage named by None, expected a tuple"),
        (
            of("Vstorage\nQ"),
            "a storage named by a text, expected a tuple",
        ),
        (
            "ctorch._utils\n_rebuild_parameter\n(NI01\n(dtR".to_owned(),
            "of None, expected a tensor",
        ),
        (
            "ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nset\nN(tNtR".to_owned(),
            "expected a function of tensors",
        ),
        (
            "ctorch._tensor\n_rebuild_from_type_v2\n(tR".to_owned(),
            "of 0 values, expected 4",
        ),
        (
            "ctorch.nn.modules.container\nParameterDict\n(tR}b".to_owned(),
            "without `_parameters`",
        ),
    ] {
        let said = refused(file(&dict(&value)));
        assert!(
            said.contains(says) && said.contains("byte "),
            "{said}, expected {says}"
        );
    }
    let two = [tensor("0", "1", "1"), tensor("0", "1", "1")];
    let said = refused(file(
        format!("(dVa\n{}sVa\n{}s.", two[0], two[1]).as_bytes(),
    ));
    assert!(said.contains("two tensors named `a`"), "{said}");
}

/// Short programs that request much.
#[test]
fn bombs() {
    let mut laughs = format!("({}lp0\n0", tensor("0", "1", "1")).into_bytes();
    for level in 0..60 {
        laughs.extend(format!("(g{level}\ng{level}\nlp{}\n0", level + 1).bytes());
    }
    laughs.extend(b"g60\n.");
    let mut copies = b"(l".to_vec();
    copies.extend(b"(lNaNaa".repeat(100_000));
    copies.extend(b"p0\n0");
    copies.extend(b"ccollections\nOrderedDict\n(g0\ntR0".repeat(10_000));
    copies.extend(b"N.");
    let many = b"N0".repeat(3 << 20);
    for (what, pickle, says) in [
        ("laughs", laughs, "have more than 67108864 bytes"),
        ("a list in itself", b"(lp0\ng0\na.".to_vec(), "too deep"),
        (
            "a dictionary in itself",
            b"(dp0\nVa\ng0\ns.".to_vec(),
            "too deep",
        ),
        (
            "depth",
            [&b"]".repeat(500_000)[..], &b"a".repeat(499_999), b"."].concat(),
            "too deep",
        ),
        (
            "tuples",
            [&b")"[..], &b"\x85".repeat(500_000), b"."].concat(),
            "too deep",
        ),
        ("marks", b"(".repeat(8 << 20), "more than 2097152 steps"),
        (
            "doubles",
            [&b"N"[..], &b"2".repeat(8 << 20)].concat(),
            "more than 2097152 steps",
        ),
        (
            "memo",
            [&b"N"[..], &b"\x94".repeat(8 << 20)].concat(),
            "more than 2097152 steps",
        ),
        ("lists", b"]".repeat(8 << 20), "more than 2097152 steps"),
        ("values", many, "more than 2097152 steps"),
        ("copies", copies, "more than 2097152 steps"),
        (
            "length",
            vec![b'N'; (32 << 20) + 1],
            "33554433 bytes, expected at most 33554432",
        ),
    ] {
        let start = Instant::now();
        let said = refused(file(&pickle));
        println!("{what}: {:?}", start.elapsed());
        assert!(said.contains(says), "{what}: {said}");
    }
    // Work that is repeated on a long value from the memo: a state, metadata, a text.
    let entries = [b"(", &b"NI00\n".repeat(100_000)[..], b"dp0\n0"].concat();
    let state = b"ctorch.nn.modules.container\nParameterDict\n(tRg0\nV_parameters\n(dsb0";
    let state = state.repeat(50_000);
    let last = tensor_of(&storage("FloatStorage", "6"), "0", "1", "1", "g0\n");
    let metadata = format!("{last}0").repeat(20_000);
    let text = format!("V{}\\ufffd\n", "z".repeat(1 << 20)).into_bytes();
    let text = [&text[..], b"p1\n0"].concat();
    let encode = b"c_codecs\nencode\n(g1\nVlatin1\ntR0".repeat(100_000);
    let global = b"g1\ng1\n\x93".repeat(100_000);
    for (what, pickle, says) in [
        ("states", [&entries[..], &state, b"N."].concat(), "steps"),
        (
            "metadata",
            [&entries[..], metadata.as_bytes(), b"N."].concat(),
            "steps",
        ),
        ("encode", [&text[..], &encode, b"N."].concat(), "steps"),
        (
            "global",
            [&text[..], &global, b"N."].concat(),
            "it asks for `zzz",
        ),
    ] {
        let start = Instant::now();
        let said = refused(file(&pickle));
        println!("{what}: {:?}", start.elapsed());
        assert!(said.contains(says), "{what}: {said}");
    }
    // Deep nesting where no tensor can be is read, and dropped without recursion.
    let inert = [
        b"cargparse\nNamespace\n)R",
        &b"]".repeat(500_000)[..],
        &b"a".repeat(499_999),
        b"b.",
    ];
    assert_eq!(read(file(&inert.concat())).unwrap().tensors().len(), 0);
    // A compressed storage that claims to be long.
    let pickle = dict(&tensor_of(
        &storage("FloatStorage", "262144000"),
        "0",
        "1",
        "1",
        "",
    ));
    let said = refused(zip_with(&[
        (PICKLE, &pickle, pickle.len(), 0),
        ("archive/data/0", b"\x03\x00", 262_144_000 * 4, 8),
    ]));
    assert!(
        said.contains("has 1048576000 bytes, expected at most"),
        "{said}"
    );
    // One tensor of all values, many times in another order.
    let mut many = b"(".to_vec();
    many.extend(tensor("0", "3 2", "1 3").repeat(10_000).bytes());
    many.extend(b"l.");
    assert_eq!(read(file(&many)).unwrap().tensors().len(), 10_000);
    let mut wide = b"(".to_vec();
    wide.extend(tensor("0", "1000 1000", "0 0").repeat(10).bytes());
    wide.extend(b"l.");
    assert!(refused(file(&wide)).contains("too often"));
}

#[test]
fn zip_files_that_lie() {
    let pickle = dict(&tensor("0", "2 3", "3 1"));
    let good = file(&pickle);
    assert!(read(good.clone()).is_ok());
    let (local, central, last) = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06");
    let patch =
        |tag: &[u8], nth, distance, new: &[u8]| patched(good.clone(), tag, nth, distance, new);
    let both = |distance: usize, new: &[u8]| {
        patched(
            patch(local, 1, distance, new),
            central,
            1,
            distance + 2,
            new,
        )
    };
    let data = [7; 24];
    let numbers = ("archive/data/0", &data[..]);
    for (what, bytes, says) in [
        (
            "no end",
            good[..good.len() - 1].to_vec(),
            "no directory at its end",
        ),
        (
            "more behind",
            [&good[..], b"x"].concat(),
            "no directory at its end",
        ),
        (
            "more before",
            [b"PK\x03\x04", &good[..]].concat(),
            "to end at byte",
        ),
        (
            "a comment",
            patch(last, 0, 20, b"\x01"),
            "no directory at its end",
        ),
        (
            "several disks",
            patch(last, 0, 4, b"\x01"),
            "last record is damaged",
        ),
        (
            "other counts",
            patch(last, 0, 8, b"\x02"),
            "last record is damaged",
        ),
        (
            "fewer entries",
            patched(patch(last, 0, 8, b"\x02"), last, 0, 10, b"\x02"),
            "after its 2 entries",
        ),
        (
            "more entries",
            patched(patch(last, 0, 8, b"\x04"), last, 0, 10, b"\x04"),
            "directory is damaged",
        ),
        (
            "another directory",
            patch(last, 0, 16, b"\0"),
            "to end at byte",
        ),
        (
            "another length",
            patch(last, 0, 12, b"\0"),
            "to end at byte",
        ),
        (
            "encrypted",
            both(6, b"\x01"),
            "entry `archive/data/0` is encrypted",
        ),
        (
            "encrypted, in one header",
            patch(central, 1, 8, b"\x01"),
            "encrypted",
        ),
        (
            "encrypted, in the other",
            patch(local, 1, 6, b"\x01"),
            "a different header before its data",
        ),
        ("strong encryption", both(6, b"\x40"), "encrypted"),
        ("a hidden header", both(7, b"\x20"), "encrypted"),
        (
            "bzip2",
            both(8, b"\x0c"),
            "method 12, expected 0 (stored) or 8 (deflate)",
        ),
        (
            "two methods",
            patch(local, 1, 8, b"\x08"),
            "a different header before its data",
        ),
        (
            "two lengths",
            patch(local, 1, 22, b"\x10"),
            "a different header before its data",
        ),
        (
            "stored shorter",
            patch(central, 1, 20, b"\x10"),
            "is stored in 16 bytes, but has 24",
        ),
        (
            "two checksums",
            patch(local, 1, 14, b"\xee\xee"),
            "a different header before its data",
        ),
        (
            "two names",
            patch(b"archive/data/0", 0, 13, b"1"),
            "a different header before its data",
        ),
        (
            "no header",
            patch(local, 1, 0, b"XK"),
            "a different header before its data",
        ),
        (
            "another header",
            patch(central, 1, 42, b"\0\0\0\0"),
            "begins inside another entry",
        ),
        (
            "behind the end",
            patch(central, 1, 42, b"\xff\xff\xff\x7f"),
            "a different header before its data",
        ),
        (
            "numbers that are nowhere",
            patch(central, 1, 42, b"\xff\xff\xff\xff"),
            "directory is damaged",
        ),
        (
            "another disk",
            patch(central, 1, 34, b"\x01"),
            "directory is damaged",
        ),
        (
            "no text",
            patched(
                patch(b"archive/data/0", 1, 0, b"\xff"),
                b"archive/data/0",
                0,
                0,
                b"\xff",
            ),
            "directory is damaged",
        ),
        (
            "a damaged pickle",
            patched(good.clone(), b"_rebuild", 0, 0, b"-"),
            "checksum",
        ),
        (
            "an entry twice",
            zip(&[(PICKLE, &pickle), numbers, numbers]),
            "two entries named `archive/data/0`",
        ),
        ("no pickle", zip(&[numbers]), "without `data.pkl`"),
        (
            "no folder",
            zip(&[("data.pkl", &pickle)]),
            "without `data.pkl` in a folder",
        ),
        (
            "deeper",
            zip(&[("a/b/data.pkl", &pickle)]),
            "without `data.pkl` in a folder",
        ),
        (
            "two pickles",
            zip(&[(PICKLE, &pickle), ("b/data.pkl", &pickle)]),
            "several `data.pkl`",
        ),
        (
            "TorchScript",
            zip(&[(PICKLE, &pickle), ("archive/constants.pkl", b"")]),
            "TorchScript",
        ),
        (
            "an order",
            zip(&[(PICKLE, &pickle), numbers, ("archive/byteorder", b"middle")]),
            "neither `little` nor `big`",
        ),
        (
            "a long order",
            zip(&[
                (PICKLE, &pickle),
                numbers,
                ("archive/byteorder", &[b'x'; 99]),
            ]),
            "99 bytes, expected at most 16",
        ),
        ("no entry", end(Vec::new(), &[], 0), "without `data.pkl`"),
        (
            "damaged data",
            zip_with(&[(PICKLE, b"\xff\xff", 40, 8)]),
            "is damaged",
        ),
        (
            "data that is longer",
            zip_with(&[(PICKLE, b"\x4b\x04\x00", 0, 8)]),
            "does not have the 0 bytes",
        ),
        (
            "data that is shorter",
            zip_with(&[(PICKLE, b"\x4b\x04\x00", 2, 8)]),
            "does not have the 2 bytes",
        ),
    ] {
        let said = refused(bytes);
        assert!(said.contains(says), "{what}: {said}, expected {says}");
    }
    // The record for larger files, at a right or wrong position and with right or wrong contents.
    let large = large(&good);
    assert!(read(large.clone()).is_ok());
    let (record, locator) = (b"PK\x06\x06", b"PK\x06\x07");
    for (what, tag, distance, new, says) in [
        (
            "another place",
            &locator[..],
            8,
            b"\0",
            "last record is damaged",
        ),
        ("no record", record, 0, b"X", "last record is damaged"),
        ("another length", record, 4, b"\0", "last record is damaged"),
        (
            "several disks",
            record,
            16,
            b"\x01",
            "last record is damaged",
        ),
        (
            "other counts",
            record,
            24,
            b"\x01",
            "last record is damaged",
        ),
        ("another directory", record, 48, b"\0", "to end at byte"),
        ("contradicting", last, 16, b"\0", "contradict each other"),
    ] {
        let said = refused(patched(large.clone(), tag, 0, distance, new));
        assert!(said.contains(says), "{what}: {said}, expected {says}");
    }
}

#[test]
fn legacy_files_that_lie() {
    let pickle = dict(&tensor("0", "2 3", "3 1"));
    let data = [7; 24];
    assert!(read(legacy(&pickle, "0", 6, &data)).is_ok());
    let good = legacy(&pickle, "0", 6, &data);
    for (what, bytes, says) in [
        (
            "short data",
            legacy(&pickle, "0", 6, &data[..23]),
            "cut off",
        ),
        (
            "long data",
            legacy(&pickle, "0", 6, &[7; 25]),
            "1 bytes after the last storage",
        ),
        (
            "another length",
            legacy(&pickle, "0", 5, &data),
            "has 5 numbers, expected 6",
        ),
        (
            "a large length",
            legacy(&pickle, "0", u64::MAX, &data),
            "expected 6",
        ),
        (
            "another storage",
            legacy(&pickle, "1", 6, &data),
            "one that no tensor uses",
        ),
        (
            "a storage twice",
            legacy(
                &pickle,
                "0\nV0",
                6,
                &[&data[..], &6_u64.to_le_bytes(), &data].concat(),
            ),
            "names one twice",
        ),
        (
            "a version",
            patched(good.clone(), b"\xe9\x03", 0, 0, b"\xea"),
            "version",
        ),
        (
            "a machine",
            patched(good.clone(), b"\x88s.", 0, 0, b"\x89"),
            "little_endian",
        ),
        (
            "a length that is none",
            patched(good.clone(), b"(V0\nl.", 0, 1, b"I"),
            "one that no tensor uses",
        ),
        (
            "no list",
            patched(good.clone(), b"(V0\nl.", 0, 4, b"t"),
            "expected the list",
        ),
    ] {
        let said = refused(bytes);
        assert!(said.contains(says), "{what}: {said}, expected {says}");
    }
    let other = refused(b"\x80\x04N.".to_vec());
    assert!(other.contains("not from `torch.save`"), "{other}");
    let mut tar = vec![0; 1024];
    tar[..8].copy_from_slice(b"sys_info");
    tar[257..262].copy_from_slice(b"ustar");
    assert!(pickle::is_pickle(&tar));
    assert!(refused(tar).contains("before 2017 (a tar file)"));
    assert!(refused(b"<!DOCTYPE html>".to_vec()).contains("web page"));
    assert!(!pickle::is_pickle(b"\x80\x04N.") && !pickle::is_pickle(b""));
}

/// Every file that is cut off anywhere is refused.
#[test]
fn cut_off_at_every_byte() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickles");
    for name in [
        "webui.pt",
        "webui-parameter.pt",
        "sdxl.pt",
        "lightning-legacy.ckpt",
    ] {
        let bytes = fs::read(golden.join(name)).unwrap();
        for length in 0..bytes.len() {
            refused(bytes[..length].to_vec());
        }
    }
    // A pickle that is cut off inside an intact file is refused too.
    let pickle = dict(&tensor("0", "2 3", "3 1"));
    for length in 0..pickle.len() {
        let said = refused(file(&pickle[..length]));
        assert!(said.contains("byte "), "{said}");
    }
}

#[test]
fn files_that_cannot_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pt");
    let said = || pickle::open(&path).unwrap_err().to_string();
    assert!(said().contains("a.pt: "), "{}", said());
    for (content, says) in [
        ("", "the file is empty"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("x", "opcode 0x78"),
    ] {
        fs::write(&path, content).unwrap();
        assert!(said().contains(says), "{}", said());
    }
    // A file that was read once may be gone later.
    fs::write(&path, file(&dict(&tensor("0", "2 3", "3 1")))).unwrap();
    let pickle = pickle::open(&path).unwrap();
    fs::File::create(&path).unwrap();
    let (_, tensor) = pickle.tensors().next().unwrap();
    assert!(pickle.bytes(tensor).is_err());
}

const _: fn() = || {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<pickle::Pickle>();
};
