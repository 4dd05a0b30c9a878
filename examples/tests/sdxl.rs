//! Runs `txt2img` as a user does, on small SDXL models with random weights.

// In a test, a panic is the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../sd-onnx/tests/common/mod.rs"]
mod models;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use common::Example;
use safetensors::SafeTensors;
use tempfile::TempDir;

const TXT2IMG: Example = Example("txt2img");

/// A folder with one model of each given family.
struct Models(TempDir);

impl Models {
    fn new(families: &[&str]) -> Self {
        let models = Self(tempfile::tempdir().unwrap());
        for family in families {
            models::write_family(family, &models.folder(family));
        }
        models
    }

    fn folder(&self, family: &str) -> PathBuf {
        self.path().join(family)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Draws 56 × 32 pixels with the model of a family, and returns the dump and stderr.
    fn draw(&self, family: &str, arguments: &[&str]) -> (Dump, String) {
        let common = [
            "--model", family, "--seed", "7", "--width", "56", "--height", "32", "--output",
            "f.png", "--dump", "f.st",
        ];
        let (_, stderr) = TXT2IMG.succeed(self.path(), &[&common[..], arguments].concat());
        (dump(&self.path().join("f.st")), stderr)
    }

    fn latents(&self, arguments: &[&str]) -> Vec<u8> {
        let (dump, _) = self.draw("sdxl-base", arguments);
        dump["latents"].1.clone()
    }
}

/// The shape and the bytes of each tensor, by name.
type Dump = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn dump(path: &Path) -> Dump {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, view)| {
        let tensor = (view.shape().to_vec(), view.data().to_vec());
        (name.to_owned(), tensor)
    });
    tensors.collect()
}

#[test]
fn models_have_their_defaults() {
    let models = Models::new(&["sdxl-base", "sdxl-turbo", "lcm"]);
    for (family, begins) in [
        ("sdxl-base", "Euler on leading, 20 steps, guidance 5, 56×32"),
        (
            "sdxl-turbo",
            "Euler a on trailing, 1 step, guidance 1, 56×32",
        ),
        ("lcm", "LCM on lcm, 4 steps, guidance 8.5, 56×32"),
    ] {
        let (_, stderr) = models.draw(family, &["a fox"]);
        assert!(stderr.starts_with(begins), "{family}: {stderr}");
    }
    // Another sampler runs on its own usual ladder.
    let (_, stderr) = models.draw("sdxl-base", &["a fox", "--scheduler", "dpmpp-2m"]);
    assert!(
        stderr.starts_with("DPM++ 2M on karras, 20 steps"),
        "{stderr}"
    );
}

#[test]
fn dumps_have_pooled_embeddings() {
    let models = Models::new(&["sdxl-base"]);
    let (dump, _) = models.draw("sdxl-base", &["a fox", "--steps", "2"]);
    let shapes: Vec<_> = dump
        .iter()
        .filter(|(name, _)| name.contains("prompt"))
        .map(|(name, (shape, _))| (name.as_str(), shape.len(), shape[0]))
        .collect();
    assert_eq!(
        shapes,
        [
            ("negative_pooled_prompt_embeds", 2, 1),
            ("negative_prompt_embeds", 3, 1),
            ("pooled_prompt_embeds", 2, 1),
            ("prompt_embeds", 3, 1),
        ]
    );
    // The embeddings of an empty negative prompt are zeros, unless an option asks to encode it.
    let zeros = |dump: &Dump| {
        ["negative_prompt_embeds", "negative_pooled_prompt_embeds"]
            .map(|name| dump[name].1.iter().all(|&byte| byte == 0))
    };
    assert_eq!(zeros(&dump), [true; 2]);
    let encoded = ["a fox", "--steps", "2", "--encode-empty"];
    let (encoded, _) = models.draw("sdxl-base", &encoded);
    assert_eq!(zeros(&encoded), [false; 2]);
    let alone = ["a fox", "--steps", "2", "--guidance", "1"];
    let (alone, _) = models.draw("sdxl-base", &alone);
    assert!(!alone.contains_key("negative_pooled_prompt_embeds"));
    assert_eq!(alone["pooled_prompt_embeds"], dump["pooled_prompt_embeds"]);
}

#[test]
fn each_option_changes_the_picture() {
    let models = Models::new(&["sdxl-base", "refiner"]);
    let base = ["a fox", "--steps", "4"];
    let with = |options: &[&str]| models.latents(&[&base[..], options].concat());
    let plain = with(&[]);
    assert_eq!(with(&["--clip-skip", "0"]), plain);
    assert_eq!(with(&["--clip-skip", "2"]), plain, "the model's own");
    let mut seen = vec![plain];
    for options in [
        &["--original-size", "40x48"][..],
        &["--crop", "0,8"],
        &["--crop", "8,0"],
        &["--target-size", "40x48"],
        &[
            "--negative-original-size",
            "40x48",
            "--negative-target-size",
            "56x32",
        ],
        &[
            "--negative-original-size",
            "56x32",
            "--negative-target-size",
            "40x48",
        ],
        &[
            "--negative-original-size",
            "56x32",
            "--negative-target-size",
            "56x32",
            "--negative-crop",
            "8,0",
        ],
        &["--prompt-2", "an owl"],
        &["--negative-2", "red"],
        &["--encode-empty"],
        &["--clip-skip", "1"],
        &["--refiner", "refiner"],
        &["--refiner", "refiner", "--refiner-at", "0.5"],
        &[
            "--refiner",
            "refiner",
            "--refiner-at",
            "0.1",
            "--refiner-by",
            "steps",
        ],
        &[
            "--refiner",
            "refiner",
            "--refiner-at",
            "0",
            "--aesthetic-score",
            "9",
        ],
        &[
            "--refiner",
            "refiner",
            "--refiner-at",
            "0",
            "--negative-aesthetic-score",
            "9",
        ],
    ] {
        let found = with(options);
        assert!(!seen.contains(&found), "{options:?}");
        seen.push(found);
    }
}

#[test]
fn a_picture_of_two_models_is_drawn_again() {
    let models = Models::new(&["sdxl-base", "refiner"]);
    let refined = ["--refiner", "refiner", "--refiner-at", "0.5"];
    let sizes = ["--crop", "8,4", "--prompt-2", "an owl", "--steps", "4"];
    let first = models.latents(&[&["a fox"], &refined[..], &sizes].concat());
    fs::rename(models.path().join("f.png"), models.path().join("like.png")).unwrap();
    let again = ["--like", "like.png", "--refiner", "refiner"];
    assert_eq!(models.latents(&again), first);
    let (dump, stderr) = models.draw("sdxl-base", &["--like", "like.png"]);
    assert_ne!(dump["latents"].1, first);
    let expected =
        "warning: like.png: the refiner refiner made the last steps, and this pipeline has none\n";
    assert!(stderr.contains(expected), "{stderr}");
}

#[test]
fn what_cannot_be_used_is_said() {
    let models = Models::new(&["sdxl-base"]);
    let negative = "sizes for the negative prompt need both";
    let cases: [(&[&str], &str); 9] = [
        (&["--crop", "8"], "expected x,y in pixels, such as 0,64"),
        (
            &["--original-size", "8,8"],
            "expected width x height in pixels",
        ),
        (
            &["--target-size", "0x8"],
            "expected width x height in pixels",
        ),
        (&["--negative-crop", "0,8"], negative),
        (&["--negative-original-size", "8x8"], negative),
        (&["--refiner-at", "0.5"], "--refiner <PATH>"),
        (
            &["--refiner", "r", "--refiner-at", "1.5"],
            "expected a number from 0 to 1",
        ),
        (
            &["--refiner", "r", "--refiner-by", "time"],
            "timesteps, steps",
        ),
        (&["--aesthetic-score", "nan"], "expected a finite number"),
    ];
    for (options, part) in cases {
        TXT2IMG.fail(models.path(), &[&["a fox"], options].concat(), 2, part);
    }
    let none = "sizes is given, expected nothing, as this model does not take sizes";
    TXT2IMG.fail(models.path(), &["a fox", "--crop", "0,8"], 2, none);
    let one = "prompt_2 is given, expected nothing, as this model has one text encoder";
    TXT2IMG.fail(models.path(), &["a fox", "--prompt-2", "owl"], 2, one);
    let missing = ["a fox", "--model", "sdxl-base", "--refiner", "no-refiner"];
    TXT2IMG.fail(models.path(), &missing, 1, "no-refiner: model not found");
}
