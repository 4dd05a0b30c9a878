//! Tests the prompt language, the loader of textual inversions and the reader of pickles with
//! randomly changed input, for one second each. For longer runs:
//!
//! ```sh
//! SD_FUZZ_SECONDS=600 SD_FUZZ_SEED=2 cargo test -p sd-text --test fuzz -- --nocapture
//! ```
//!
//! An input that fails is printed. The test profile also detects arithmetic overflows.

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::env;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use safetensors::{Dtype, tensor::TensorView};
use sd_text::{Cleanup, TextualInversion, pickle};

use common::pickles::{self as made, dict, legacy, storage, tensor, tensor_of, zip};
use common::random::{Random, exercise};
use common::{golden, load, tiny};

/// The longest input. Longer ones are truncated.
const LONGEST: usize = 4000;

fn fuzz<T: fmt::Debug>(
    what: &str,
    mut next: impl FnMut(&mut Random) -> T,
    mut check: impl FnMut(&T),
) {
    let setting = |name: &str| env::var(name).map_or(1, |value| value.parse::<u64>().unwrap());
    let (seconds, seed) = (setting("SD_FUZZ_SECONDS"), setting("SD_FUZZ_SEED"));
    let (mut random, started) = (Random(seed), Instant::now());
    let mut cases = 0_u64;
    while started.elapsed() < Duration::from_secs(seconds) {
        let input = next(&mut random);
        let begun = Instant::now();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&input))) {
            eprintln!("{what}, seed {seed}, case {cases}: {input:?}");
            resume_unwind(panic);
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?} for {input:?}");
        cases += 1;
    }
    println!("{what}: {cases} cases in {seconds} s, seed {seed}");
}

/// A random range in a list of `length` elements, usually short.
fn range(random: &mut Random, length: usize) -> Range<usize> {
    let start = random.below(length + 1);
    let most = if random.below(4) == 0 { length } else { 8 };
    start..length.min(start + random.below(most + 1))
}

/// Makes one change: removes, duplicates or replaces elements, or inserts others.
fn change<T: Clone>(random: &mut Random, list: &mut Vec<T>, other: &[T], piece: Vec<T>) {
    let place = range(random, list.len());
    match random.below(5) {
        0 => drop(list.drain(place)),
        1 => {
            let copy = list[place.clone()].to_vec();
            drop(list.splice(place.start..place.start, copy));
        }
        2 => drop(list.splice(place, piece)),
        3 => {
            let from = range(random, other.len());
            drop(list.splice(place, other[from].to_vec()));
        }
        _ => drop(list.splice(place.start..place.start, piece)),
    }
    list.truncate(LONGEST);
}

#[test]
fn prompts() {
    let golden = golden("prompts.json");
    let rows = golden["prompts"].as_array().unwrap().iter();
    let mut corpus: Vec<Vec<char>> = rows
        .map(|row| row[0].as_str().unwrap().chars().collect())
        .collect();
    assert!(corpus.len() >= 2000);
    let next = |random: &mut Random| {
        let which = random.below(corpus.len());
        let mut text = corpus[which].clone();
        for _ in 0..=random.below(6) {
            let piece = random.piece().chars().collect();
            let other = random.below(corpus.len());
            change(random, &mut text, &corpus[other], piece);
        }
        let input: String = text.iter().collect();
        // Some changed inputs replace the original, so that changes accumulate.
        if random.below(8) == 0 {
            corpus[which] = text;
        }
        (input, 1 + random.below(9))
    };
    fuzz("prompts", next, |(text, steps)| exercise(text, *steps));
}

struct Bytes(Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// One valid file of each kind.
fn files() -> Vec<Vec<u8>> {
    let data = [0x3c; 64];
    let tensor = |dtype, shape: &[usize], bytes: usize| {
        TensorView::new(dtype, shape.to_vec(), &data[..bytes]).unwrap()
    };
    let author = ("author".to_owned(), "nobody".to_owned());
    let two = [
        ("clip_l", tensor(Dtype::F32, &[2, 2], 16)),
        ("clip_g", tensor(Dtype::F32, &[2, 3], 24)),
    ];
    vec![
        serialize([("emb_params", tensor(Dtype::F32, &[2, 4], 32))], None),
        serialize([("emb_params", tensor(Dtype::F16, &[3, 4], 24))], None),
        serialize([("ab a", tensor(Dtype::BF16, &[8], 16))], Some(author)),
        serialize(two, None),
    ]
}

fn serialize<const N: usize>(
    tensors: [(&str, TensorView<'_>); N],
    metadata: Option<(String, String)>,
) -> Vec<u8> {
    let metadata = metadata.map(|entry| [entry].into());
    safetensors::serialize(tensors, metadata).unwrap()
}

/// A piece of a safetensors header.
fn word(random: &mut Random) -> Vec<u8> {
    const WORDS: [&str; 24] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "0",
        "-1",
        "1e9",
        "9223372036854775807",
        "18446744073709551615",
        "\"dtype\":\"F32\"",
        "\"F16\"",
        "\"BF16\"",
        "\"F4\"",
        "\"shape\":[]",
        "\"data_offsets\":[0,0]",
        "\"__metadata__\":{}",
        "\"clip_l\":",
        "\"clip_g\":",
        "\"emb_params\":",
        "null",
        "\\u0000",
    ];
    match random.below(3) {
        0 => vec![random.below(256) as u8],
        _ => WORDS[random.below(WORDS.len())].into(),
    }
}

#[test]
fn textual_inversions() {
    let mut corpus = files();
    for file in &corpus {
        TextualInversion::from_bytes("a b", file).unwrap();
    }
    let next = |random: &mut Random| {
        let which = random.below(corpus.len());
        let mut file = corpus[which].clone();
        for _ in 0..=random.below(4) {
            let other = &corpus[random.below(corpus.len())];
            let piece = word(random);
            // Most changes are inside the header, whose length is corrected.
            let length = file
                .first_chunk::<8>()
                .map(|length| u64::from_le_bytes(*length) as usize)
                .filter(|length| *length <= file.len() - 8);
            match length {
                Some(length) if random.below(4) > 0 => {
                    let data = file.split_off(8 + length);
                    let mut header = file.split_off(8);
                    change(random, &mut header, other, piece);
                    file = (header.len() as u64).to_le_bytes().to_vec();
                    file.extend(header);
                    file.extend(data);
                }
                _ => change(random, &mut file, other, piece),
            }
        }
        if random.below(8) == 0 {
            corpus[which] = file.clone();
        }
        // Most changes break a file for good, so the corpus is renewed.
        if random.below(64) == 0 {
            corpus = files();
        }
        Bytes(file)
    };
    let folder = tiny();
    let mut tokenizer = load(&folder);
    let (mut read, mut added) = (0, 0);
    let check = |Bytes(file): &Bytes| {
        let inversion = match TextualInversion::from_bytes("a b", file) {
            Ok(inversion) => inversion,
            Err(error) => return assert!(error.to_string().starts_with("a b: ")),
        };
        read += 1;
        let count = inversion.count();
        let widths = (1..=64).filter_map(|width| inversion.vectors(width).ok());
        for vectors in widths {
            assert!(vectors.nrows() == count && vectors.iter().all(|v| v.is_finite()));
        }
        if added == 100 {
            (tokenizer, added) = (load(&folder), 0);
        }
        let first = tokenizer.vocab_size() as u32;
        match tokenizer.add_inversion(&inversion, first) {
            Ok(ids) => {
                added += 1;
                let found = tokenizer.tokenize(inversion.name(), Cleanup::Transformers);
                assert!(found.into_iter().eq(ids));
            }
            Err(error) => assert!(error.to_string().starts_with("a b: ")),
        }
    };
    fuzz("textual inversions", next, check);
    assert!(read > 0);
}

/// A `torch.save` file: the entries of a ZIP file, the pickle first, or a whole legacy file with an
/// empty name.
type Parts = Vec<(String, Vec<u8>)>;

/// The committed files of ordinary length, and small files made here.
fn pickles() -> Vec<Parts> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickles");
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let mut all = Vec::new();
    for name in [
        "zip-2.pt",
        "zip-5.pt",
        "torch1.pt",
        "lightning.ckpt",
        "webui.pt",
        "first.pt",
    ] {
        let mut parts = made::entries(&read(name));
        parts.sort_by_key(|(name, _)| !name.ends_with("/data.pkl"));
        all.push(parts);
    }
    for name in [
        "legacy-1.pt",
        "legacy-4.pt",
        "lightning-legacy.ckpt",
        "webui-parameter.pt",
    ] {
        all.push(vec![(String::new(), read(name))]);
    }
    for name in ["deflated.pt", "behind.pt", "zip64.pt", "big-endian.pt"] {
        all.push(vec![(String::new(), read(name))]);
    }
    let small = dict(&tensor("0", "3 2", "1 3"));
    let view = storage("HalfStorage", "12").replace("tQ", "(V1\nI2\nI6\nttQ");
    let old = dict(&tensor_of(&view, "1", "5", "1", ""));
    all.push(made::entries(&made::file(&small)));
    all.push(vec![(String::new(), legacy(&old, "0", 12, &[7; 24]))]);
    all
}

/// A piece of a pickle.
fn opcode(random: &mut Random) -> Vec<u8> {
    const WORDS: [&[u8]; 40] = [
        b"(",
        b")",
        b"]",
        b"}",
        b"\x8f",
        b"t",
        b"l",
        b"d",
        b"s",
        b"u",
        b"a",
        b"e",
        b"\x90",
        b"0",
        b"1",
        b"2",
        b"R",
        b"\x81",
        b"\x92",
        b"o",
        b"b",
        b"Q",
        b".",
        b"N",
        b"\x88",
        b"\x85",
        b"\x86",
        b"\x87",
        b"\x94",
        b"\x93",
        b"K\x02",
        b"J\xff\xff\xff\x7f",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nHalfStorage\n",
        b"ctorch\nSize\n",
        b"ctorch.nn.modules.container\nParameterDict\n",
        b"X\x0b\0\0\0_parameters",
    ];
    match random.below(6) {
        0 => vec![random.below(256) as u8],
        1 => vec![b'h', random.below(64) as u8],
        2 => vec![b'q', random.below(64) as u8],
        _ => WORDS[random.below(WORDS.len())].into(),
    }
}

#[test]
fn pickles_of_torch() {
    let mut corpus = pickles();
    let next = |random: &mut Random| {
        let which = random.below(corpus.len());
        let mut parts = corpus[which].clone();
        let other = corpus[random.below(corpus.len())][0].1.clone();
        // Most changes are in the pickle, some in a storage.
        let part = if random.below(8) == 0 {
            random.below(parts.len())
        } else {
            0
        };
        for _ in 0..=random.below(3) {
            let piece = opcode(random);
            let length = parts[part].1.len();
            let mut bytes = std::mem::take(&mut parts[part].1);
            // Longer files are not truncated: only a part of the file is changed.
            let at = random.below(length.max(1)).saturating_sub(LONGEST / 2);
            let rest = bytes.split_off(length.min(at + LONGEST / 2));
            let mut middle = bytes.split_off(at);
            change(random, &mut middle, &other, piece);
            bytes.extend(middle);
            bytes.extend(rest);
            parts[part].1 = bytes;
        }
        if random.below(8) == 0 {
            corpus[which] = parts.clone();
        }
        // Most changes break a file for good, so the corpus is renewed.
        if random.below(64) == 0 {
            corpus = pickles();
        }
        let [(name, file)] = &parts[..] else {
            let parts: Vec<_> = parts
                .iter()
                .map(|(name, data)| (&**name, &**data))
                .collect();
            let mut file = zip(&parts);
            // Some changes are near the end of the ZIP file, outside its parts.
            if random.below(8) == 0 {
                let piece = vec![random.below(256) as u8; 1 + random.below(4)];
                let at = file.len() - random.below(file.len().min(200)) - 1;
                let end = file.len().min(at + piece.len());
                file.splice(at..end, piece);
            }
            return Bytes(file);
        };
        assert_eq!(name, "");
        Bytes(file.clone())
    };
    let (mut read, mut tensors, mut slowest) = (0_u64, 0_u64, Duration::ZERO);
    let check = |Bytes(file): &Bytes| {
        let begun = Instant::now();
        match pickle::from_bytes("a b", file.clone()) {
            Ok(pickle) => {
                read += 1;
                for (_, tensor) in pickle.tensors().chain(pickle.beside()) {
                    let bytes = pickle.bytes(tensor);
                    // Compressed values may turn out to be damaged only now.
                    let length = bytes.map_or(tensor.length(), |bytes| bytes.len() as u64);
                    assert_eq!(length, tensor.length());
                    let count: usize = tensor.shape.iter().product();
                    assert_eq!(length, (count * tensor.dtype.bitsize() / 8) as u64);
                    tensors += 1;
                }
            }
            Err(error) => {
                let said = error.to_string();
                assert!(said.starts_with("a b: ") && said.len() < 4000, "{said}");
            }
        }
        if let Ok(inversion) = TextualInversion::from_bytes("a b", file) {
            assert!(inversion.count() > 0);
        }
        slowest = slowest.max(begun.elapsed());
        assert!(slowest.as_secs() < 2, "{slowest:?}");
    };
    fuzz("pickles", next, check);
    println!(
        "{read} read, {tensors} tensors, {slowest:.2?} at most, {}",
        most_memory()
    );
    assert!(read > 0 && tensors > 0);
}

/// The peak memory of the process, if the system reports it.
fn most_memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.unwrap_or("no word of the memory").replace('\t', " ")
}
