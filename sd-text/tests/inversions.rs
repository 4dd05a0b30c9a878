//! Tests the files of textual inversions and their names in prompts, and compares their positions
//! in chunks with WebUI's `tokenize_line`, exactly. The expected chunks are in
//! `golden/inversions.json` (see `golden/inversions.py`).

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use half::{bf16, f16};
use ndarray::{Array2, arr2};
use safetensors::{Dtype, tensor::TensorView};
use sd_text::outside::chain;
use sd_text::{
    Chunking, Cleanup, ClipTokenizer, Cut, InversionError, Syntax, TextualInversion, attention,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use common::pickles::{self as made, dict, tensor};
use common::{chunk_rows, emoji, golden, load, tiny};

fn vectors(count: usize) -> Array2<f32> {
    Array2::from_shape_fn((count, 4), |(row, column)| (4 * row + column) as f32 / 8.0)
}

fn inversion(name: &str, count: usize) -> TextualInversion {
    TextualInversion::new(name, vectors(count)).unwrap()
}

/// A tokenizer with these names, and their ids.
fn tokenizer(names: &[(&str, usize)]) -> (ClipTokenizer, Vec<Range<u32>>) {
    let mut tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let mut ids = Vec::new();
    for &(name, count) in names {
        let first = tokenizer.vocab_size() as u32;
        ids.push(
            tokenizer
                .add_inversion(&inversion(name, count), first)
                .unwrap(),
        );
    }
    (tokenizer, ids)
}

#[test]
fn places_as_webui() {
    let golden = golden("inversions.json");
    let count = compare(&golden, 200);
    assert!(count > 2000, "{count}");
    let count = compare(&golden["words"], 40);
    assert!(count > 500, "{count}");
}

/// Compares this number of prompts, and returns how many of their ids belong to vectors.
fn compare(golden: &Value, prompts: usize) -> usize {
    let names: Vec<(&str, usize)> = golden["names"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, count)| (name.as_str(), count.as_u64().unwrap() as usize))
        .collect();
    let (tokenizer, _) = tokenizer(&names);
    let mut count = 0;
    let rows = chunk_rows(golden);
    assert_eq!(rows.len(), prompts);
    for (text, expected) in rows {
        let segments = attention(&text, Syntax::WebUi);
        let parted = tokenizer.chunks(&segments, &Chunking::default(), Cleanup::Transformers);
        assert_eq!(parted.cut, None, "{text:?}");
        assert_eq!(parted.chunks.len(), expected.len(), "{text:?}");
        for (chunk, (mut ids, mut weights)) in parted.chunks.iter().zip(expected) {
            ids.resize(77, tokenizer.pad());
            weights.resize(77, 1.0);
            let found = chunk.ids.iter().map(|&id| if id < 49_408 { id } else { 0 });
            assert!(found.eq(ids), "{text:?}");
            assert_eq!(chunk.weights, weights, "{text:?}");
            count += chunk.ids.iter().filter(|&&id| id >= 49_408).count();
        }
    }
    count
}

#[test]
fn names_stand_for_their_ids() {
    let (tokenizer, ids) = tokenizer(&[("Wumpus", 2), ("wumpus plush", 1), ("<cat-toy>", 3)]);
    assert_eq!(ids, [49_408..49_410, 49_410..49_411, 49_411..49_414]);
    assert_eq!(tokenizer.vocab_size(), 49_414);
    let found = |text| tokenizer.tokenize(text, Cleanup::Transformers);
    let [fox] = found("fox")[..] else {
        panic!("one token")
    };
    assert_eq!(found("a wumpus")[1..], [49_408, 49_409]);
    assert_eq!(found("WUMPUS fox"), [49_408, 49_409, fox]);
    assert_eq!(found("Wumpus\n Plush fox"), [49_410, fox]);
    assert_eq!(found("<CAT-toy>"), [49_411, 49_412, 49_413]);
    assert!(found("<cat-toy>,").iter().all(|&id| id < 49_408));
    assert!(found("wumpuses").iter().all(|&id| id < 49_408));
    for (id, name) in [
        (49_408, "Wumpus"),
        (49_409, "Wumpus"),
        (49_413, "<cat-toy>"),
    ] {
        assert_eq!(tokenizer.token(id).as_deref(), Some(name));
    }
    assert_eq!(tokenizer.token(49_414), None);

    // `encode` returns a single window, and may cut inside an inversion.
    let tokens = tokenizer.encode(&format!("{}wumpus fox", "fox ".repeat(74)));
    assert_eq!(tokens.ids[74..77], [fox, 49_408, tokenizer.eos()]);
    let cut = Cut {
        tokens: 2,
        text: "wumpus fox".to_owned(),
        offset: 296,
    };
    assert_eq!(tokens.cut, Some(cut));
}

#[test]
fn a_name_of_one_token_takes_the_place_of_the_word() {
    let (tokenizer, ids) = tokenizer(&[("Tree", 2), ("!", 1), ("tree house", 1)]);
    assert_eq!(ids, [49_408..49_410, 49_410..49_411, 49_411..49_412]);
    let found = |text| tokenizer.tokenize(text, Cleanup::Transformers);
    assert_eq!(found("a TREE")[1..], [49_408, 49_409]);
    assert_eq!(found("tree house tree !"), [49_411, 49_408, 49_409, 49_410]);
    // These are other words with other tokens.
    for text in ["trees", "treehouse", "street"] {
        assert!(found(text).iter().all(|&id| id < 49_408), "{text}");
    }
}

/// An inversion has the names of its file and of its tensor, and one of them may be taken.
#[test]
fn two_names() {
    let one = |file: &str, tensor: &str| {
        let bytes = file_of(tensor, Dtype::F32, &[1, 4], bytes(&vectors(1)));
        TextualInversion::from_bytes(file, &bytes).unwrap()
    };
    let mut tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let mut add = |inversion: &TextualInversion| {
        let first = tokenizer.vocab_size() as u32;
        tokenizer
            .add_inversion(inversion, first)
            .map(|ids| ids.start)
    };
    assert_eq!(add(&one("zorgmuster", "<cat-toy>")).unwrap(), 49_408);
    // The tensor's name is taken, then the file's name, then both.
    assert_eq!(add(&one("qxy-1", "<cat-toy>")).unwrap(), 49_409);
    assert_eq!(add(&one("Zorgmuster", "<dog-toy>")).unwrap(), 49_410);
    let error = add(&one("zorgmuster", "<cat-toy>")).unwrap_err();
    assert!(matches!(error, InversionError::Name { name, .. } if name == "<cat-toy>"));
    // Two names with the same tokens, and a name without tokens.
    assert_eq!(add(&one("foxling", "FOXLING")).unwrap(), 49_411);
    assert_eq!(add(&one(" ", "owlling")).unwrap(), 49_412);
    for (text, id, name) in [
        ("zorgmuster", 49_408, "<cat-toy>"),
        ("<cat-toy>", 49_408, "<cat-toy>"),
        ("qxy-1", 49_409, "qxy-1"),
        ("<dog-toy>", 49_410, "<dog-toy>"),
        ("foxling", 49_411, "FOXLING"),
        ("owlling", 49_412, "owlling"),
    ] {
        assert_eq!(
            tokenizer.tokenize(text, Cleanup::Transformers),
            [id],
            "{text}"
        );
        assert_eq!(tokenizer.inversion(id).unwrap().name, name);
    }
    let named = one("zorgmuster", "<cat-toy>").named("wumpus");
    assert_eq!(named.names(), ["wumpus"]);
}

/// Twenty thousand names that begin with the same token take time linear in their number: a second
/// or two, where quadratic time would take an hour. The limit leaves room for a busy machine.
#[test]
fn many_names() {
    let start = Instant::now();
    let mut tokenizer = ClipTokenizer::load(emoji()).unwrap();
    for name in 0..20_000 {
        let first = tokenizer.vocab_size() as u32;
        let one = inversion(&format!("<{name:05} fox>"), 1);
        tokenizer.add_inversion(&one, first).unwrap();
    }
    let text = "<19999 fox> ".repeat(20_000);
    let ids = tokenizer.tokenize(&text, Cleanup::Transformers);
    assert_eq!(ids, [49_408 + 19_999; 20_000]);
    println!("{:.2?}", start.elapsed());
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

#[test]
fn names_are_found_as_ftfy_writes_them() {
    let (tokenizer, _) = tokenizer(&[
        ("karen\u{2019}s style", 2),
        ("badhand\u{ff08}v4\u{ff09}", 1),
    ]);
    for cleanup in [Cleanup::Transformers, Cleanup::Ftfy] {
        for (text, ids) in [
            ("a karen\u{2019}s style", vec![49_408, 49_409]),
            ("a karen's style", vec![49_408, 49_409]),
            ("a badhand\u{ff08}v4\u{ff09}", vec![49_410]),
            ("a badhand(v4)", vec![49_410]),
        ] {
            assert_eq!(
                tokenizer.tokenize(text, cleanup)[1..],
                ids,
                "{text} {cleanup:?}"
            );
        }
    }
    let (mut taken, _) = self::tokenizer(&[("karen's style", 1)]);
    let same = inversion("karen\u{2019}s style", 1);
    let error = taken.add_inversion(&same, 49_409).unwrap_err().to_string();
    assert!(
        error.ends_with("found the textual inversion \"karen's style\""),
        "{error}"
    );
}

#[test]
fn an_inversion_is_cut_whole() {
    let (tokenizer, _) = tokenizer(&[("Wumpus", 3)]);
    let one = Chunking::default().max_chunks(std::num::NonZeroUsize::MIN);
    for (before, used, cut) in [
        (72, 77, None),
        (73, 75, Some((3, "wumpus", 292))),
        (74, 76, Some((3, "wumpus", 296))),
        (75, 77, Some((3, "wumpus", 300))),
    ] {
        let text = format!("{}wumpus", "fox ".repeat(before));
        let segments = attention(&text, Syntax::WebUi);
        let parted = tokenizer.chunks(&segments, &one, Cleanup::Transformers);
        assert_eq!(parted.chunks.len(), 1);
        assert_eq!(parted.chunks[0].used, used, "{before}");
        let found = parted.cut.as_ref();
        let found = found.map(|cut| (cut.tokens, cut.text.as_str(), cut.offset));
        assert_eq!(found, cut, "{before}");
    }
}

/// The message of the error of adding an inversion to a tokenizer that already has `Wumpus`.
fn refused(inversion: &TextualInversion, first: u32) -> String {
    let (mut tokenizer, _) = tokenizer(&[("Wumpus", 2)]);
    let before = tokenizer.vocab_size();
    let error = tokenizer.add_inversion(inversion, first).unwrap_err();
    assert_eq!(tokenizer.vocab_size(), before);
    error.to_string()
}

#[test]
fn names_that_are_taken() {
    for (name, found) in [
        (" ", "nothing that is a token"),
        ("", "nothing that is a token"),
        ("wumpus", "the textual inversion \"Wumpus\""),
        (
            "a<|endoftext|>",
            "the vocabulary's token \"<|endoftext|>\" (49407) in it",
        ),
        (
            "<|endoftext|>",
            "the vocabulary's token \"<|endoftext|>\" (49407) in it",
        ),
    ] {
        assert_eq!(
            refused(&inversion(name, 1), 49_410),
            format!(
                "{name}: tensor `{name}` is called {name:?}, expected a unique name of 1 to 255 tokens, found {found}"
            )
        );
    }
    assert_eq!(
        refused(&inversion("zqvx", 76), 49_410),
        "zqvx: tensor `zqvx` is 76 vectors, expected at most 75, the room in a chunk"
    );
    assert_eq!(
        refused(&inversion("zqvx", 2), 49_409),
        "zqvx: its ids begin at 49409, expected free ids from 49410 to 2147483646"
    );
    assert!(refused(&inversion("zqvx", 2), u32::MAX).contains("its ids begin at 4294967295"));
    let long = inversion(&"a ".repeat(256), 1);
    let said = refused(&long, 49_410);
    assert!(said.ends_with("found 256 tokens, more than 255"), "{said}");
    // This vocabulary has no letters but a and b, and unknown text becomes the end token.
    let mut small = load(&tiny());
    let error = small.add_inversion(&inversion("axa", 1), 7).unwrap_err();
    assert!(error.to_string().contains("<|endoftext|>"), "{error}");
    assert!(small.add_inversion(&inversion("aab", 1), 7).is_ok());
}

/// A safetensors file with these tensors.
fn file(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.to_vec(), data).unwrap();
        (*name, view)
    });
    safetensors::serialize(views, None).unwrap()
}

fn file_of(name: &str, dtype: Dtype, shape: &[usize], data: Vec<u8>) -> Vec<u8> {
    file(&[(name, dtype, shape, data)])
}

fn bytes(vectors: &Array2<f32>) -> Vec<u8> {
    vectors.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn three_kinds_of_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("My Name.safetensors");
    let (two, one) = (vectors(2), vectors(1));
    let wide = Array2::from_elem((2, 6), 0.5);
    let read = |tensors: &[(&str, Dtype, &[usize], Vec<u8>)]| {
        fs::write(&path, file(tensors)).unwrap();
        let read = TextualInversion::load(&path).unwrap();
        assert_eq!(read.path(), path);
        let from_bytes = TextualInversion::from_bytes("My Name", &file(tensors)).unwrap();
        let digest = Sha256::digest(file(tensors));
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!([from_bytes.sha256(), read.sha256()], [&hex, &hex]);
        assert_eq!(from_bytes.vectors(4).ok(), read.vectors(4).ok());
        assert_eq!(from_bytes.name(), read.name());
        read
    };
    for (dtype, data) in [
        (
            Dtype::F64,
            two.iter()
                .flat_map(|&v| f64::from(v).to_le_bytes())
                .collect(),
        ),
        (Dtype::F32, bytes(&two)),
        (
            Dtype::F16,
            two.iter()
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
        ),
        (
            Dtype::BF16,
            two.iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
        ),
    ] {
        let webui = read(&[("emb_params", dtype, &[2, 4], data)]);
        assert_eq!((webui.name(), webui.count()), ("My Name", 2));
        assert_eq!(webui.vectors(4).unwrap(), two);
    }

    let diffusers = read(&[("<cat-toy>", Dtype::F32, &[4], bytes(&one))]);
    assert_eq!((diffusers.name(), diffusers.count()), ("<cat-toy>", 1));
    assert_eq!(diffusers.names(), ["<cat-toy>", "My Name"]);
    assert_eq!(diffusers.vectors(4).unwrap(), one);
    for (tensor, names) in [
        ("*", &["My Name"][..]),
        ("string_to_param.*", &["My Name"]),
        ("string_to_param.<cat-toy>", &["<cat-toy>", "My Name"]),
        ("My Name", &["My Name"]),
    ] {
        let read = read(&[(tensor, Dtype::F32, &[4], bytes(&one))]);
        assert_eq!(read.names(), names, "{tensor}");
    }
    assert_eq!(diffusers.named("cat-toy").name(), "cat-toy");

    let sdxl = read(&[
        ("clip_g", Dtype::F32, &[2, 6], bytes(&wide)),
        ("clip_l", Dtype::F32, &[2, 4], bytes(&two)),
    ]);
    assert_eq!((sdxl.name(), sdxl.count()), ("My Name", 2));
    assert_eq!(sdxl.vectors(4).unwrap(), two);
    assert_eq!(sdxl.vectors(6).unwrap(), wide);
    let shown = path.display();
    assert_eq!(
        sdxl.vectors(5).unwrap_err().to_string(),
        format!(
            "{shown}: tensor `clip_l, clip_g` has vectors of [4, 6] numbers, expected 5, the text model's width"
        )
    );
    let alone = read(&[("clip_l", Dtype::F32, &[1, 4], bytes(&one))]);
    assert_eq!(alone.name(), "My Name");
    assert!(matches!(
        alone.vectors(768),
        Err(InversionError::Width { expected: 768, found, .. }) if found == [4]
    ));
}

/// Compares the `torch.save` files of WebUI and diffusers with `golden/pickles.json`.
#[test]
fn pickles() {
    let golden = golden("pickles.json");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickles");
    let dir = tempfile::tempdir().unwrap();
    for (name, names, rows) in [
        ("webui.pt", &["webui"][..], 2),
        ("webui-parameter.pt", &["webui-parameter"], 2),
        ("first.pt", &["first"], 2),
        ("learned_embeds.bin", &["<cat-toy>", "learned_embeds"], 1),
        ("sdxl.pt", &["sdxl"], 2),
    ] {
        let bytes = fs::read(folder.join(name)).unwrap();
        let read = TextualInversion::load(folder.join(name)).unwrap();
        assert_eq!(read.names(), names, "{name}");
        assert_eq!(read.count(), rows, "{name}");
        let digest = Sha256::digest(&bytes);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(read.sha256(), hex);
        let values = &golden["values"][golden["files"][name][0].as_u64().unwrap() as usize];
        for row in values.as_array().unwrap() {
            let (tensor, dtype) = (row[0].as_str().unwrap(), row[1].as_str().unwrap());
            if tensor.starts_with("string_to_token") {
                continue;
            }
            let width = if tensor == "clip_g" { 80 } else { 64 };
            let found = read.vectors(width).unwrap();
            let hex = |value: &f32| match dtype {
                "F16" => format!("{:04x}", f16::from_f32(*value).to_bits().swap_bytes()),
                _ => format!("{:08x}", value.to_bits().swap_bytes()),
            };
            let found: String = found.iter().map(hex).collect();
            assert_eq!(row[3], found, "{name}, {tensor}");
        }
        // The format is detected from the content, whatever the name.
        for other in ["safetensors", "pt", "bin"] {
            let path = dir.path().join("x").with_extension(other);
            fs::write(&path, &bytes).unwrap();
            let again = TextualInversion::load(&path).unwrap();
            assert_eq!(again.names().last().unwrap(), "x");
            assert_eq!(again.vectors(64).unwrap(), read.vectors(64).unwrap());
        }
    }

    let said = |bytes: &[u8]| {
        let error = TextualInversion::from_bytes("x.pt", bytes)
            .unwrap_err()
            .to_string();
        let said = error
            .strip_prefix("x.pt: not a usable textual inversion: ")
            .unwrap();
        said.to_owned()
    };
    let one = tensor("0", "2 3", "3 1");
    let system = "cos\nsystem\n(Vtrue\ntR";
    for (pickle, says) in [
        (
            dict(system),
            "byte 5 of archive/data.pkl: it asks for `os.system`",
        ),
        (
            format!("(dVa\n{one}sVb\n{one}s.").into(),
            "it has 2 tensors (`a`, `b`), expected one, or",
        ),
        (b"(dVa\nI1\ns.".into(), "it has 0 tensors, expected one, or"),
        (
            format!("(dVstring_to_param\n(dsV*\n{one}s.").into(),
            "it has 0 tensors",
        ),
        (b"I1\n.".into(), "it has 0 tensors"),
    ] {
        let said = said(&made::file(&pickle));
        assert!(said.starts_with(says), "{said}");
    }
    let state = said(&fs::read(folder.join("zip-2.pt")).unwrap());
    assert!(
        state.contains("tensors (`") && state.contains("more), expected one"),
        "{state}"
    );
    // Many views of the same values, which are not read.
    let many = format!("({}l.", tensor("0", "6", "1").repeat(10_000));
    assert!(said(&made::file(many.as_bytes())).starts_with("it has 10000 tensors"));
    let mut long = made::file(&dict(&one));
    long.resize((16 << 20) + 1, 0);
    assert!(said(&long).contains("more than 16777216 bytes"));
}

#[test]
fn files_that_are_none() {
    let said = |bytes: &[u8]| {
        let error = TextualInversion::from_bytes("x.safetensors", bytes).unwrap_err();
        let said = error.to_string();
        said.strip_prefix("x.safetensors: ").unwrap().to_owned()
    };
    let none = |problem: &str| format!("not a usable textual inversion: {problem}");
    assert_eq!(said(b""), none("it has 0 bytes, expected at least 8"));
    assert!(said(b"PK\x03\x04and more").contains("the ZIP file has no directory"));
    assert_eq!(
        said(&[255; 20]),
        none(
            "bytes 0 to 7 say that the header has 18446744073709551615 bytes, expected at most 12"
        )
    );
    assert!(said(&vec![b' '; (16 << 20) + 1]).contains("more than 16777216 bytes"));

    let with_header = |header: &str, data: usize| {
        let length = (header.len() as u64).to_le_bytes();
        let all = [&length[..], header.as_bytes(), &vec![0; data][..]].concat();
        said(&all)
    };
    for header in [
        "",
        "{",
        "[]",
        "{\"a\":1}",
        "{\"a\":{}}",
        "[".repeat(100_000).as_str(),
        "{\"a\":".repeat(100_000).as_str(),
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"X","shape":[1],"data_offsets":[0,4]}}"#,
    ] {
        let said = with_header(header, 4);
        assert!(
            said.contains("the header, from byte 8 on, is not"),
            "{said}"
        );
    }
    let tensor = |shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let huge = "[18446744073709551615,18446744073709551615]";
    for (shape, offsets, expected) in [
        ("[1]", "[0,8]", "tensor `a` spans bytes 0 to 8 of 4"),
        ("[1]", "[4,0]", "tensor `a` spans bytes 4 to 0 of 4"),
        ("[1]", huge, "of 4"),
        ("[2]", "[0,4]", "of shape [2] with 4 bytes of data"),
        ("[1]", "[0,3]", "of shape [1] with 3 bytes of data"),
        (huge, "[0,4]", "with 4 bytes of data"),
        ("[]", "[0,4]", "of shape []"),
        ("[1,1,1]", "[0,4]", "of shape [1, 1, 1]"),
        ("[0,4]", "[0,0]", "of shape [0, 4]"),
        ("[4,0]", "[0,0]", "of shape [4, 0]"),
    ] {
        let said = with_header(&tensor(shape, offsets), 4);
        assert!(said.contains(expected), "{said:?}, expected {expected:?}");
    }
    assert_eq!(
        with_header("{\"__metadata__\":{\"a\":\"b\"}}", 0),
        none("it has 0 tensors, expected one, or `clip_l` and `clip_g`")
    );

    let one = bytes(&vectors(1));
    let said = |tensors: &[(&str, Dtype, &[usize], Vec<u8>)]| said(&file(tensors));
    assert_eq!(
        said(&[
            ("a", Dtype::F32, &[1, 4], one.clone()),
            ("b", Dtype::F32, &[1, 4], one.clone())
        ]),
        none("it has 2 tensors (`a`, `b`), expected one, or `clip_l` and `clip_g`")
    );
    assert_eq!(
        said(&[
            ("clip_g", Dtype::F32, &[1, 4], one.clone()),
            ("clip_l", Dtype::F32, &[2, 2], one.clone())
        ]),
        "tensor `clip_g` is 1 vectors, expected 2, as in the other tensor"
    );
    assert_eq!(
        said(&[("a", Dtype::I32, &[1, 4], one)]),
        "tensor `a` is of type I32, expected F64, F32, F16 or BF16"
    );
    let odd = bytes(&arr2(&[[0.0, 1.0], [f32::NAN, 2.0]]));
    assert_eq!(
        said(&[("a", Dtype::F32, &[2, 2], odd)]),
        "tensor `a` is NaN at (1, 0), expected finite"
    );
    // More than an f32 can hold.
    let large = f64::MAX.to_le_bytes().to_vec();
    assert_eq!(
        said(&[("a", Dtype::F64, &[1], large)]),
        "tensor `a` is inf at (0, 0), expected finite"
    );
    assert!(TextualInversion::new("x", Array2::zeros((0, 4))).is_err());
    assert!(TextualInversion::new("x", Array2::from_elem((1, 1), f32::INFINITY)).is_err());
    assert!(matches!(
        TextualInversion::load("no/such/file.safetensors"),
        Err(InversionError::Read { .. })
    ));
}

#[test]
fn files_in_the_place_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let said = || chain(&TextualInversion::load(&path).unwrap_err());
    for (content, says) in [
        ("", "the file is empty"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("<!DOCTYPE html><html>", "web page"),
    ] {
        fs::write(&path, content).unwrap();
        assert!(said().contains(says), "{}", said());
        if !content.is_empty() {
            let error = TextualInversion::from_bytes("a", content.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }
    // The file is never read: its length is enough for the error.
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(said().contains("bytes long, expected at most 16777216"));
    #[cfg(unix)]
    {
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(said().contains("expected a regular file"), "{}", said());
    }
}

#[test]
fn names_are_printable_and_short() {
    let name = format!("\u{1b}[2J\u{202e}\n{}", "x".repeat(100_000));
    let one = || bytes(&vectors(1));
    let (f32, shape) = (Dtype::F32, &[1, 4][..]);
    let read = |tensors: &[_]| TextualInversion::from_bytes(&name, &file(tensors));
    let many: Vec<String> = (0..10_000)
        .map(|n| format!("{n}\u{1b}{}", &name[..900]))
        .collect();
    let many: Vec<_> = many
        .iter()
        .map(|name| (name.as_str(), f32, shape, one()))
        .collect();
    let mut tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let long = read(&[(&name, f32, shape, one())]).unwrap();
    for error in [
        read(&[(&name, Dtype::I32, shape, one())]).unwrap_err(),
        read(&[(&name, f32, &[1; 100_000], one()[..4].to_vec())]).unwrap_err(),
        read(&many[..500]).unwrap_err(),
        long.vectors(8).unwrap_err(),
        tokenizer.add_inversion(&long, 0).unwrap_err(),
        tokenizer.add_inversion(&long, 49_408).unwrap_err(),
        TextualInversion::load(&name[..200]).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.len() < 5000, "{} bytes", text.len());
        assert!(!text.contains(['\u{1b}', '\n', '\u{202e}']), "{text:?}");
        assert!(text.contains("\\u{1b}[2J\\u{202e}\\n"), "{text}");
    }
}
