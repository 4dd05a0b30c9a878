//! Runs `tokens` as a user does.

// In a test, a panic is the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path};

use common::Example;
use sd_examples::shipped_model;
use serde_json::{Value, json};

const TOKENS: Example = Example("tokens");

fn run(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (stdout, stderr) = TOKENS.succeed(folder.path(), arguments);
    assert_eq!(stderr, "");
    stdout
}

fn report(arguments: &[&str]) -> Value {
    serde_json::from_str(&run(&[arguments, &["--json"]].concat())).unwrap()
}

/// Returns the JSON of a chunk of 77 tokens: the given ids and weights, filled up with end tokens
/// of weight 1.
fn chunk(ids: &[u32], weights: &[f32]) -> Value {
    let (mut ids, mut weights) = (ids.to_vec(), weights.to_vec());
    ids.resize(77, 49_407);
    weights.resize(77, 1.0);
    json!({"ids": ids, "weights": weights})
}

#[test]
fn json() {
    let line = run(&["a (fox:1.5) AND red :0.5 | x", "--json"]);
    // The keys come in this order, in one line.
    let begin = r#"{"branches":[{"weight":1.0,"text":"a (fox:1.5)","chunks":[{"ids":[49406,320,3240,49407,"#;
    assert!(line.starts_with(begin), "{line}");
    assert_eq!(line.lines().count(), 1);
    assert_eq!(
        report(&["a (fox:1.5) AND red :0.5 | x"]),
        json!({
            "branches": [
                {
                    "weight": 1.0,
                    "text": "a (fox:1.5)",
                    "chunks": [chunk(&[49_406, 320, 3240], &[1.0, 1.0, 1.5])],
                },
                {
                    "weight": 1.0,
                    "text": " red :0.5 | x",
                    "chunks": [chunk(&[49_406, 736, 281, 271, 269, 276, 347, 343], &[])],
                },
            ],
            "warnings": [{
                "span": [25, 26],
                "text": "`|` outside of an alternation `[a|b]`: the whole part is taken literally, nothing in it is scheduled",
            }],
        })
    );
    assert_eq!(
        report(&["red AND fox :0.5"])["branches"][1]["weight"],
        json!(0.5)
    );
    let two = report(&["red BREAK fox"]);
    assert_eq!(
        two["branches"][0]["chunks"],
        json!([chunk(&[49_406, 736], &[]), chunk(&[49_406, 3240], &[])])
    );
}

#[test]
fn the_text_in_force_at_a_call() {
    let text = |arguments: &[&str]| {
        let report = report(&[&["[fox:owl:3] [a|b]"][..], arguments].concat());
        report["branches"][0]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(text(&[]), "fox a");
    for (step, expected) in ["fox a", "fox a", "fox b", "fox a", "owl b", "owl a"]
        .into_iter()
        .enumerate()
    {
        assert_eq!(text(&["--step", &step.to_string()]), expected, "{step}");
    }
    let half = |steps: &str| report(&["[fox:owl:0.5]", "--step", "4", "--steps", steps]);
    assert_eq!(half("6")["branches"][0]["text"], "owl");
    assert_eq!(half("8")["branches"][0]["text"], "fox");
}

#[test]
fn a_negative_prompt_is_one_part() {
    let parts = |arguments: &[&str]| {
        let report = report(&[&["red AND fox"][..], arguments].concat());
        report["branches"].as_array().unwrap().len()
    };
    assert_eq!(parts(&[]), 2);
    assert_eq!(parts(&["--negative"]), 1);
}

#[test]
fn a_models_own_tokenizer() {
    let model = shipped_model();
    let within = model.join("tokenizer");
    for folder in [&model, &within] {
        let arguments = ["a fox", "--model", folder.to_str().unwrap()];
        assert_eq!(report(&arguments), report(&["a fox"]));
    }
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["a fox", "--model", "no-such-model"];
    TOKENS.fail(
        folder.path(),
        &arguments,
        1,
        "no tokenizer in no-such-model",
    );
}

/// Copies the folder of a tokenizer, with changes to its configuration.
fn copied(from: &Path, to: &Path, changes: &[(&str, &str)]) {
    fs::create_dir_all(to).unwrap();
    for file in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let config = to.join("tokenizer_config.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    for (key, value) in changes {
        json[key] = json!(value);
    }
    fs::write(config, json.to_string()).unwrap();
}

#[test]
fn the_second_text_encoder_where_it_differs() {
    let clip = shipped_model().join("tokenizer");
    let folder = tempfile::tempdir().unwrap();
    copied(&clip, &folder.path().join("tokenizer"), &[]);
    let second = folder.path().join("tokenizer_2");
    let model = folder.path().to_str().unwrap();
    let arguments = ["a fox", "--model", model];

    // As in SDXL, only the padding differs, which the page does not show.
    copied(&clip, &second, &[("pad_token", "!")]);
    assert!(!run(&arguments).contains("second text encoder"));
    let branch = &report(&arguments)["branches"][0];
    assert_eq!(branch["chunks"][0]["ids"][76], 49_407);
    assert_eq!(branch["chunks_2"][0]["ids"][76], 0);
    assert_eq!(
        branch["chunks_2"][0]["weights"],
        branch["chunks"][0]["weights"]
    );

    copied(&clip, &second, &[]);
    let branch = &report(&arguments)["branches"][0];
    assert_eq!(branch.get("chunks_2"), None);

    // This tokenizer gives other ids for every text.
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sd-onnx/tests/golden/tokenizer");
    copied(&tiny, &second, &[]);
    let page = run(&arguments);
    assert_eq!(page.matches("chunk 1 of 1").count(), 2, "{page}");
    assert!(page.contains("second text encoder\nchunk 1 of 1"), "{page}");

    // SDXL's refiner has only the second tokenizer.
    fs::remove_dir_all(folder.path().join("tokenizer")).unwrap();
    let alone = ["a fox", "--model", second.to_str().unwrap()];
    assert_eq!(report(&arguments), report(&alone));
    assert_ne!(report(&arguments), report(&["a fox"]));
}

#[test]
fn a_page_to_read() {
    let prompt = "a (cute:1.2) [fox:owl:0.5] <lora:x:1>, easynegative AND \\( [snow] \
                  <hypernet:y:1>:0.5";
    let page = run(&[prompt, "--steps", "10", "--step", "7"]);
    assert!(page.starts_with(&format!("{prompt}\n")), "{page}");
    for part in [
        "lora x:1: applied if the pipeline has this LoRA\n",
        "hypernet y:1: not applied\n",
        "part 1 of 2, weight 1\n",
        "  calls 0 to 5   a (cute:1.2) fox , easynegative\n",
        "> calls 6 to 9   a (cute:1.2) owl , easynegative\n",
        "chunk 1 of 1: 6 of 75 tokens\n",
        "  cute 2242 ×1.2  owl 9899  , 267  easy+ 18308  negative 8869\n",
        "part 2 of 2, weight 0.5\n",
        "×0.9090909",
    ] {
        assert!(page.contains(part), "{page}\nhas no {part:?}");
    }
    assert!(!page.contains('\u{1b}'), "no colours outside of a terminal");
    let late = |step| run(&["[a:b:3]", "--steps", "10", "--step", step]);
    assert!(
        late("10").contains("> calls 4 to 9   b\n"),
        "{}",
        late("10")
    );
    let past = "call 11 is past the end of 10 steps";
    assert!(late("11").contains(past) && late("11").contains("> calls 0 to 3   a\n"));
    let page = run(&["a | b\u{1b}[2J"]);
    assert!(page.contains("warning at byte 2: `|` outside"), "{page}");
    assert!(page.starts_with("a | b\\u{1b}[2J\n"), "{page}");
    let escape = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}";
    let prompt =
        format!("({escape}:1.2) <lora:{escape}:1> [{escape}|b] AND {escape} | [a:{escape}");
    for prompt in [
        prompt,
        escape.to_owned(),
        format!("(a:{escape}) [b:{escape}:{escape}]"),
    ] {
        let page = run(&[&prompt]);
        let raw = |c: char| c == '\u{202e}' || c.is_control() && c != '\n';
        assert!(!page.contains(raw), "{page:?}");
    }
}

#[test]
fn an_infinite_weight_is_shown_but_not_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let zeros = "0".repeat(400);
    for prompt in [format!("(a:1{zeros})"), format!("a :1{zeros}")] {
        TOKENS.fail(folder.path(), &[&prompt, "--json"], 1, "an infinite weight");
        run(&[&prompt]);
    }
}

#[test]
fn colours_where_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let coloured = |prompt: &str| {
        let mut command = TOKENS.command(folder.path());
        command.env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR");
        let output = command.arg(prompt).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    // Marks are cyan and numbers are yellow.
    let page = coloured("(fox:1.2)");
    assert!(
        page.contains("\u{1b}[36m(\u{1b}[0mfox\u{1b}[36m:\u{1b}[0m\u{1b}[33m1.2\u{1b}[0m"),
        "{page:?}"
    );
    // Only the byte that a warning is about is red and bold.
    let page = coloured("a | b");
    assert!(
        page.starts_with("a \u{1b}[1m\u{1b}[31m|\u{1b}[0m b\n"),
        "{page:?}"
    );
}

#[test]
fn bad_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["a", "fox"], "quote a prompt of several words"),
        (&[], "required arguments were not provided: <PROMPT>"),
        (&["fox", "--step=-1"], "--step"),
        (&["fox", "--steps", "0"], "1..=10000"),
        (&["[a|b]", "--steps", "10000000000"], "1..=10000"),
    ];
    for (arguments, part) in cases {
        TOKENS.fail(folder.path(), arguments, 2, part);
    }
}
