//! Compares the text model alone with transformers 5.23 and diffusers 0.42.1: pooled outputs,
//! projections and textual inversions. The values are in `golden/text.safetensors`, made by
//! `golden/text.py`.
//!
//! Other tests check the settings of [`TextEncoder`].

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use common::{
    Golden, Model, Tensor, Tensors, emoji, golden, plain_file, relative_error, write_tensors,
};
use ndarray::{Array2, Axis, s};
use safetensors::{Dtype, SafeTensors};
use sd_onnx::{
    TextEncoder, similarity,
    text::{ClipSkip, ClipTokenizer, PromptEncoder, TextError, TextualInversion},
};
use sd_text::outside::chain;
use serde_json::{Value, json};
use tempfile::TempDir;

const SHAPE: &str = "four";
/// The largest error. f32 sums are computed in another order.
const LIMIT: f64 = 1e-5;

fn cases() -> Value {
    let text = fs::read_to_string(golden("text.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn expected() -> Golden {
    Golden::of_file(&golden("text.safetensors"))
}

fn strings(list: &Value) -> Vec<String> {
    serde_json::from_value(list.clone()).unwrap()
}

fn skips() -> [ClipSkip; 2] {
    [1, 3].map(|skip| ClipSkip::new(skip).unwrap())
}

/// Writes the model's folder with the weights in this type.
fn folder(dtype: Dtype) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::of_shape(SHAPE);
    model.write_without_weights(folder.path());
    let path = folder
        .path()
        .join("text_encoder")
        .join(plain_file("text_encoder"));
    write_tensors(&path, &model.weights["text_encoder"], dtype);
    folder
}

fn close<'a>(what: &str, found: impl IntoIterator<Item = &'a f32>, name: &str) {
    let (_, expected) = expected().tensor(name);
    let error = relative_error(found, &expected);
    println!("{what}, {name}: {error:.1e}");
    assert!(
        error <= LIMIT,
        "{what}, {name}: {error:.2e}, expected at most {LIMIT:.0e}"
    );
}

#[test]
fn hidden_and_pooled() {
    let cases = cases();
    assert_eq!(
        (&cases["shape"], &cases["skips"]),
        (&json!(SHAPE), &json!([1, 3]))
    );
    let folder = folder(Dtype::F32);
    let encoder = TextEncoder::load(folder.path()).unwrap().truncated(true);
    for skip in skips() {
        for batch in [1, 2, 16] {
            let encoder = encoder.clone().clip_skip(skip).batch(batch);
            let found = encoder.encode(strings(&cases["texts"])).unwrap();
            let what = format!("batches of {batch}");
            close(&what, &found.hidden, &format!("hidden.{skip}"));
            close(&what, &found.pooled, "pooled");
            assert_eq!(found.projected, None);
            // The order in which texts go through the model does not matter.
            let pooled = encoder.encode_pooled(strings(&cases["texts"])).unwrap();
            close(&what, &pooled.pooled, "pooled");
            assert_eq!((pooled.projected, pooled.tokens), (None, found.tokens));
        }
    }
}

/// The hidden states have as many tokens as the longest text. Each token is the same as in the
/// whole window.
#[test]
fn hidden_states_are_as_long_as_the_longest_text() {
    let encoder = TextEncoder::load(emoji()).unwrap();
    let prompts = sd_onnx::builder().load_prompt_encoder(emoji()).unwrap();
    let whole = |text| prompts.encode(text, ClipSkip::LAST).unwrap().embedding;
    let texts = ["a fox", "an old stone bridge in the rain", ""];
    let found = encoder.encode(texts).unwrap();
    assert_eq!(found.hidden.dim(), (3, 9, 64));
    for (text, hidden) in texts.iter().zip(found.hidden.outer_iter()) {
        let whole = whole(text);
        let expected = whole.slice(s![0, ..9, ..]);
        assert!(
            hidden
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-4)
        );
    }
    assert_eq!(encoder.encode([""]).unwrap().hidden.dim(), (1, 2, 64));
    let long = "fox ".repeat(75);
    assert_eq!(encoder.encode([long]).unwrap().hidden.dim(), (1, 77, 64));
    assert_eq!(encoder.encode([""; 0]).unwrap().hidden.dim(), (0, 0, 64));
}

/// A folder of a whole CLIP model, as OpenAI publishes it: nested configurations, an old
/// `eos_token_id`, and a projection.
#[test]
fn projected() {
    let from = folder(Dtype::F32);
    let folder = tempfile::tempdir().unwrap();
    let model = Model::of_shape(SHAPE);
    let tensors = model.weights["text_encoder"].iter();
    let mut tensors: Tensors = tensors
        .map(|(name, tensor)| {
            let name = name.trim_start_matches("text_model.");
            (format!("text_model.{name}"), copy(tensor))
        })
        .collect();
    let (shape, values) = expected().tensor("text_projection.weight");
    tensors.insert("text_projection.weight".into(), Tensor { shape, values });
    write_tensors(
        &folder.path().join("model.safetensors"),
        &tensors,
        Dtype::F32,
    );
    let mut config = model.configs["text_encoder"].clone();
    config["eos_token_id"] = json!(2);
    let config = json!({"model_type": "clip", "projection_dim": 24, "text_config": config});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    for file in fs::read_dir(from.path().join("tokenizer")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }

    let encoder = TextEncoder::load(folder.path()).unwrap().truncated(true);
    let found = encoder.encode(strings(&cases()["texts"])).unwrap();
    close("CLIP's folder", &found.hidden, "hidden.1");
    close("CLIP's folder", &found.pooled, "pooled");
    close(
        "CLIP's folder",
        found.projected.as_ref().unwrap(),
        "projected",
    );

    let pooled = encoder.encode_pooled(strings(&cases()["texts"])).unwrap();
    close("CLIP's folder", &pooled.pooled, "pooled");
    close("CLIP's folder", &pooled.projected.unwrap(), "projected");

    let skipped = encoder.clone().clip_skip(ClipSkip::new(3).unwrap());
    let skipped = skipped.encode(strings(&cases()["texts"])).unwrap();
    close("CLIP's folder", &skipped.hidden, "hidden.3");
    assert_eq!(skipped.projected, found.projected);

    let normal = encoder.normalised(true);
    let normal = normal.encode(strings(&cases()["texts"])).unwrap();
    assert_eq!(normal.hidden, found.hidden);
    for (rows, before) in [
        (&normal.pooled, &found.pooled),
        (
            normal.projected.as_ref().unwrap(),
            found.projected.as_ref().unwrap(),
        ),
    ] {
        for (row, before) in rows.rows().into_iter().zip(before.rows()) {
            assert!((row.dot(&row) - 1.0).abs() < 1e-5);
            assert!((similarity(row, before) - 1.0).abs() < 1e-5);
        }
    }
}

fn copy(tensor: &Tensor) -> Tensor {
    Tensor {
        shape: tensor.shape.clone(),
        values: tensor.values.clone(),
    }
}

/// Writes the golden vectors of `name` to a file, as a tensor called `tensor`.
fn inversion_file(folder: &Path, file: &str, tensor: &str, name: &str) {
    let (shape, values) = expected().tensor(&format!("inversion.{name}"));
    let path = folder.join(file);
    let tensors = Tensors::from([(tensor.to_owned(), Tensor { shape, values })]);
    write_tensors(&path, &tensors, Dtype::F32);
}

#[test]
fn a_tokenizer_with_more_ids_than_rows_is_told_before_inversions_are_read() {
    let folder = folder(Dtype::F32);
    let path = folder.path().join("text_encoder").join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["vocab_size"] = 1000.into();
    fs::write(&path, config.to_string()).unwrap();
    let inversion = TextualInversion::new("wumpus", Array2::zeros((1, 4))).unwrap();
    let builder = sd_onnx::builder().embedding(inversion);
    let error = builder.load_text_encoder(folder.path()).unwrap_err();
    let expected = "the tokenizer has ids up to 1013, the text model's embedding only 1000 rows";
    assert!(chain(&error).contains(expected), "{error}");
}

#[test]
fn textual_inversions_as_diffusers() {
    let cases = cases();
    let names = strings(&cases["inversions"]["names"]);
    let [low_poly, zorgmuster] = &names[..] else {
        panic!("two names")
    };
    let embeddings = tempfile::tempdir().unwrap();
    inversion_file(embeddings.path(), "1.safetensors", low_poly, low_poly);
    let file = format!("{zorgmuster}.safetensors");
    inversion_file(embeddings.path(), &file, "emb_params", zorgmuster);
    fs::write(embeddings.path().join("note.txt"), "not looked at").unwrap();
    fs::write(embeddings.path().join("old.pt"), "not usable").unwrap();
    fs::create_dir(embeddings.path().join("more.safetensors")).unwrap();
    // One of the types stays f16 in the file and is cast. The other needs no cast.
    for dtype in [Dtype::F32, Dtype::F16] {
        let folder = folder(dtype);
        let builder = sd_onnx::builder().embeddings(embeddings.path());
        let encoder = builder.load_text_encoder(folder.path()).unwrap();
        assert_eq!(encoder.tokenizer().vocab_size(), 1014 + 4);
        let prompts = strings(&cases["inversions"]["prompts"]);
        for (index, prompt) in prompts.iter().enumerate() {
            for skip in skips() {
                let encoder = encoder.clone().clip_skip(skip);
                let found = encoder.encode([prompt]).unwrap();
                let name = format!("inverted.{index}");
                // The golden states cover the whole window.
                let (length, width) = (found.tokens[0].used, found.hidden.dim().2);
                assert_eq!(found.hidden.dim(), (1, length, width));
                let (_, mut states) = expected().tensor(&format!("{name}.{skip}"));
                states.truncate(length * width);
                let error = relative_error(&found.hidden, &states);
                assert!(error <= LIMIT, "{prompt}, {name}.{skip}: {error:.2e}");
                close(prompt, &found.pooled, &format!("{name}.pooled"));
            }
        }
        // The prompt language gives the same states. A text without an inversion keeps its states.
        let prompts = builder.load_prompt_encoder(folder.path()).unwrap();
        let text = strings(&cases["inversions"]["prompts"])[1].clone();
        let found = prompts.encode(&text, ClipSkip::LAST).unwrap();
        close(&text, &found.embedding, "inverted.1.1");
        let plain = sd_onnx::builder()
            .load_prompt_encoder(folder.path())
            .unwrap();
        let encode = |prompts: &PromptEncoder| prompts.encode("a fox", ClipSkip::LAST).unwrap();
        assert_eq!(encode(&plain).embedding, encode(&prompts).embedding);
        assert_ne!(
            plain.encode(&text, ClipSkip::LAST).unwrap().embedding,
            found.embedding
        );
    }
}

/// An inversion with the vectors of a word gives the same bits as the word.
#[test]
fn an_inversion_of_a_word_is_the_word() {
    let bytes = fs::read(emoji().join("text_encoder/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let names = ["", "text_model."].map(|p| format!("{p}embeddings.token_embedding.weight"));
    let table = names
        .iter()
        .find_map(|name| tensors.tensor(name).ok())
        .unwrap();
    let (size, width) = (table.data().len() / table.shape()[0], table.shape()[1]);
    let tokenizer = ClipTokenizer::load(emoji().join("tokenizer")).unwrap();
    let tokens = tokenizer.encode("fox pizza");
    let row = |token: usize| {
        let id = tokens.ids[token] as usize;
        let data = &table.data()[id * size..][..size];
        let view = safetensors::tensor::TensorView::new(table.dtype(), vec![1, width], data);
        let bytes = safetensors::serialize([("emb_params", view.unwrap())], None).unwrap();
        let read = TextualInversion::from_bytes("row", &bytes).unwrap();
        read.vectors(width).unwrap().to_owned()
    };
    assert_eq!(tokens.used, 4);
    let both = ndarray::concatenate![Axis(0), row(1), row(2)];
    let builder = sd_onnx::builder()
        .embedding(TextualInversion::new("wumpus", row(1)).unwrap())
        .embedding(TextualInversion::new("foxes on pizza", both).unwrap());
    let encoder = builder.load_text_encoder(emoji()).unwrap();
    // With batches of one, not even rounding depends on the other texts.
    let found = encoder
        .batch(1)
        .encode(["a fox pizza", "a WUMPUS pizza", "a Foxes on  Pizza"])
        .unwrap();
    for other in 1..3 {
        assert_eq!(
            found.hidden.slice(s![other, .., ..]),
            found.hidden.slice(s![0, .., ..])
        );
        assert_eq!(found.pooled.row(other), found.pooled.row(0));
    }
    let pipeline = builder.load(emoji()).unwrap();
    let draw = |prompt: &str| {
        let request = sd_onnx::Request::new(prompt).steps(1).seed(1);
        pipeline.generate(&request).unwrap().image().clone()
    };
    assert_eq!(draw("a wumpus"), draw("a fox"));
    assert_ne!(draw("a pizza"), draw("a fox"));
}

/// Returns the error of loading the small model with an inversion.
fn refused(inversion: TextualInversion) -> String {
    let builder = sd_onnx::builder().embedding(inversion);
    let error = builder.load_prompt_encoder(emoji()).map(drop).unwrap_err();
    chain(&error)
}

#[test]
fn inversions_that_do_not_fit() {
    let width = sd_onnx::builder()
        .load_prompt_encoder(emoji())
        .unwrap()
        .width();
    let of = |name: &str, width| TextualInversion::new(name, Array2::zeros((1, width))).unwrap();
    assert_eq!(
        refused(of("wumpus", 768)),
        format!(
            "wumpus: tensor `wumpus` has vectors of [768] numbers, expected {width}, the text model's width"
        )
    );
    assert!(refused(of("", width)).contains("found nothing that is a token"));
    assert_eq!(of("cat", width).named("cat-toy").name(), "cat-toy");
    let builder = sd_onnx::builder().embedding(of("cat", width).named("cat-toy"));
    assert!(builder.load_prompt_encoder(emoji()).is_ok());
    let twice = builder.embedding(of("Cat-Toy", width));
    let error = twice.load_prompt_encoder(emoji()).map(drop).unwrap_err();
    assert!(
        chain(&error).contains("the textual inversion \"cat-toy\""),
        "{error}"
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    fs::write(&path, "not one").unwrap();
    for at in [path.as_path(), Path::new("no/such/x.safetensors")] {
        let builder = sd_onnx::builder().embeddings(at);
        let error = chain(&builder.load(emoji()).map(drop).unwrap_err());
        assert!(error.contains("x.safetensors"), "{error}");
    }
}

/// Collects the warnings of the code that runs on this thread.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 = format!("{value:?}");
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().unwrap().push(message.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Loads an encoder of the small model with the inversions of a folder. Returns the warnings of the
/// load, too.
fn with_folder(folder: &Path) -> (TextEncoder, Vec<String>) {
    let warnings = Warnings::default();
    let encoder = tracing::subscriber::with_default(warnings.clone(), || {
        let builder = sd_onnx::builder().embeddings(folder);
        builder.load_text_encoder(emoji()).unwrap()
    });
    let warnings = warnings.0.lock().unwrap().clone();
    (encoder, warnings)
}

#[test]
fn what_is_unusable_in_a_folder_is_left_out_and_reported() {
    const WIDTH: usize = 64;
    let folder = tempfile::tempdir().unwrap();
    let within = folder.path().join("more/and more");
    fs::create_dir_all(&within).unwrap();
    let write = |path: &str, tensors: &[(&str, usize, usize)]| {
        let tensors = tensors.iter().map(|&(name, rows, width)| {
            let tensor = Tensor {
                shape: vec![rows, width],
                values: vec![0.5; rows * width],
            };
            (name.to_owned(), tensor)
        });
        let path = folder.path().join(path);
        write_tensors(&path, &tensors.collect(), Dtype::F32);
    };
    write("good.safetensors", &[("*", 2, WIDTH)]);
    write(
        "more/and more/deep.safetensors",
        &[("<deep-down>", 1, WIDTH)],
    );
    write("more/x.safetensors", &[("<deep-down>", 1, WIDTH)]);
    write(
        "1-sdxl.safetensors",
        &[("clip_g", 1, 1280), ("clip_l", 1, 768)],
    );
    write("2-lora.safetensors", &[("lora_a", 4, 4), ("lora_b", 4, 4)]);
    write("3-many.safetensors", &[("emb_params", 76, WIDTH)]);
    write("more/GOOD.safetensors", &[("emb_params", 1, WIDTH)]);
    for (name, content) in [
        ("4-empty.safetensors", ""),
        ("5-corrupt.safetensors", "not one"),
        ("6-page.safetensors", "<!doctype html>"),
        ("more/8-old.BIN", "not a pickle"),
        ("note.txt", "not looked at"),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let legacy = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.I1001\n.(dVlittle_endian\nI01\ns.";
    let hostile = [&legacy[..], b"cos\nsystem\n(Vtrue\ntR."].concat();
    fs::write(folder.path().join("7-old.pt"), hostile).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sd-text/tests/golden/pickles");
    fs::copy(golden.join("webui.pt"), folder.path().join("zorg.pt")).unwrap();
    let mut expected = vec![
        ("1-sdxl.safetensors", "expected 64, the text model's width"),
        ("2-lora.safetensors", "2 tensors (`lora_a`, `lora_b`)"),
        ("3-many.safetensors", "76 vectors, expected at most 75"),
        ("GOOD.safetensors", "the textual inversion \"good\""),
        ("4-empty.safetensors", "the file is empty"),
        ("5-corrupt.safetensors", "it has 7 bytes"),
        ("6-page.safetensors", "web page"),
        ("7-old.pt", "it asks for `os.system`"),
        ("8-old.BIN", "expected at most"),
        ("x.safetensors", "cannot call it by \"<deep-down>\""),
    ];
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        // A link that leads back, a file that never ends, and a link to nothing.
        symlink(folder.path(), within.join("back")).unwrap();
        symlink("/dev/zero", within.join("9-zero.safetensors")).unwrap();
        symlink("nowhere", within.join("0-nowhere.safetensors")).unwrap();
        expected.push(("9-zero.safetensors", "expected a regular file"));
        expected.push(("0-nowhere.safetensors", "nowhere"));
    }

    let (encoder, warnings) = with_folder(folder.path());
    let tokenizer = encoder.tokenizer();
    assert_eq!(tokenizer.vocab_size(), 49_408 + 2 + 1 + 1 + 2);
    for (text, id) in [
        ("good", 49_408),
        ("deep", 49_410),
        ("<deep-down>", 49_410),
        ("x", 49_411),
        ("zorg", 49_412),
    ] {
        assert_eq!(tokenizer.encode(text).ids[1], id, "{text}");
    }
    assert_eq!(warnings.len(), expected.len(), "{warnings:#?}");
    for (file, reason) in expected {
        let found = warnings.iter().filter(|text| text.contains(file));
        let found: Vec<_> = found.collect();
        assert!(
            found.len() == 1 && found[0].contains(reason),
            "{file}: {found:?}"
        );
    }
    // Each of these files is an error if it is given by itself.
    for file in [
        "1-sdxl",
        "2-lora",
        "3-many",
        "4-empty",
        "5-corrupt",
        "6-page",
    ] {
        let path = folder.path().join(format!("{file}.safetensors"));
        let builder = sd_onnx::builder().embeddings(path);
        let error = chain(&builder.load_text_encoder(emoji()).unwrap_err());
        assert!(error.contains(file), "{error}");
    }
}

#[test]
fn many_unusable_files_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..100 {
        fs::write(folder.path().join(format!("{n}.safetensors")), "").unwrap();
    }
    let (_, warnings) = with_folder(folder.path());
    assert_eq!(warnings.len(), 17);
    assert_eq!(warnings[16], "84 more warnings about textual inversions");
    for n in 0..20_000 {
        fs::write(folder.path().join(format!("{n}")), "").unwrap();
    }
    let builder = sd_onnx::builder().embeddings(folder.path());
    let error = chain(&builder.load_text_encoder(emoji()).unwrap_err());
    assert!(
        error.contains("the folder has more than 20000 files and folders"),
        "{error}"
    );
}

#[test]
fn every_setting_counts() {
    let encoder = TextEncoder::load(emoji()).unwrap();
    let texts = ["a fox", "an owl", "a red fox"];
    let found = encoder.encode(texts).unwrap();
    assert_eq!(found.hidden.dim().0, 3);
    assert_eq!(found.tokens[2].used, 5);
    // The pooled state is the state at the end-of-text token.
    assert_eq!(found.pooled.row(2), found.hidden.slice(s![2, 4, ..]));
    let earlier = encoder.clone().clip_skip(ClipSkip::new(2).unwrap());
    let earlier = earlier.encode(texts).unwrap();
    assert_ne!(earlier.hidden, found.hidden);
    assert_eq!(earlier.pooled, found.pooled);
    let normal = encoder.clone().normalised(true).encode(texts).unwrap();
    assert_ne!(normal.pooled, found.pooled);
    assert_eq!(normal.hidden, found.hidden);
    let only = |encoder: &TextEncoder| encoder.encode_pooled(texts).unwrap().pooled;
    let normal = encoder.clone().normalised(true);
    assert_ne!(only(&normal), only(&encoder));
    assert_eq!(encoder.encode([] as [&str; 0]).unwrap().pooled.nrows(), 0);
    assert_eq!(encoder.encode_pooled([""; 0]).unwrap().pooled.nrows(), 0);
    assert_eq!(
        encoder.clone().batch(0).encode(texts).unwrap().tokens,
        found.tokens
    );

    let long = "fox ".repeat(80);
    let error = encoder.encode_pooled(["a", long.as_str()]).unwrap_err();
    assert!(matches!(error, TextError::TooLong { index: 1, .. }));
    let error = encoder.encode(["a", long.as_str()]).unwrap_err();
    assert!(matches!(error, TextError::TooLong { index: 1, .. }));
    assert_eq!(
        chain(&error),
        "text 1 is too long: 5 tokens from byte 300 on do not fit the text model"
    );
    let cut = encoder.clone().truncated(true).encode([&long]).unwrap();
    assert_eq!(cut.tokens[0].cut.as_ref().unwrap().tokens, 5);
    let layers = encoder.layers();
    let error = encoder
        .clip_skip(ClipSkip::new(layers + 1).unwrap())
        .encode(["a"])
        .unwrap_err();
    assert!(matches!(error, TextError::ClipSkip { .. }), "{error}");
}

#[test]
fn usable_from_threads() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    check::<TextEncoder>();
    let encoder = Arc::new(TextEncoder::load(emoji()).unwrap());
    let alone = encoder.encode(["a fox"]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(encoder.encode(["a fox"]).unwrap(), alone));
        }
    });
}
