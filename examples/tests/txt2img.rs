//! Runs `txt2img` as a user does, on the small model.

// In a test, a panic is the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{Example, files, picture};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sd_onnx::{Conversion, Infotext, ModelForm};

const TXT2IMG: Example = Example("txt2img");

#[test]
fn the_default_name_is_the_prompt_and_the_seed_and_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["A fox, on blue!", "--seed", "3", "--steps", "2"];
    let (stdout, _) = TXT2IMG.succeed(folder.path(), &arguments);
    assert_eq!(stdout, "a-fox-on-blue-3.png (seed 3)\n");
    let first = fs::read(folder.path().join("a-fox-on-blue-3.png")).unwrap();
    let (stdout, _) = TXT2IMG.succeed(folder.path(), &arguments);
    assert_eq!(stdout, "a-fox-on-blue-3_2.png (seed 3)\n");
    assert_eq!(
        fs::read(folder.path().join("a-fox-on-blue-3_2.png")).unwrap(),
        first,
        "the same seed, the same picture"
    );

    // Without a seed, a random one below 2^32 is used. It is printed, and draws the same picture.
    let (stdout, _) = TXT2IMG.succeed(folder.path(), &["cat", "--steps", "1"]);
    let seed: u64 = stdout
        .trim()
        .rsplit_once("(seed ")
        .unwrap()
        .1
        .trim_end_matches(')')
        .parse()
        .unwrap();
    assert!(seed < 1 << 32);
    TXT2IMG.succeed(
        folder.path(),
        &[
            "cat",
            "--steps",
            "1",
            "--seed",
            &seed.to_string(),
            "--output",
            "again.png",
        ],
    );
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert_eq!(read("again.png"), read(&format!("cat-{seed}.png")));
}

#[test]
fn dumps_have_the_documented_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "fox", "--seed", "1", "--steps", "2", "--width", "72", "--height", "64", "--output",
        "fox.png", "--dump", "fox.st",
    ];
    TXT2IMG.succeed(folder.path(), &arguments);
    let bytes = fs::read(folder.path().join("fox.st")).unwrap();
    let dump = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = dump
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec()))
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("image", vec![1, 3, 64, 72]),
        ("initial_noise", vec![1, 4, 8, 9]),
        ("latents", vec![1, 4, 8, 9]),
        ("negative_prompt_embeds", vec![1, 77, 64]),
        ("prompt_embeds", vec![1, 77, 64]),
    ];
    assert_eq!(
        tensors,
        expected.map(|(name, shape)| (name.to_owned(), Dtype::F32, shape))
    );
    let image = dump.tensor("image").unwrap();
    let pixels: Vec<f32> = image
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert!(pixels.iter().all(|p| (-1.0..=1.0).contains(p)));
    assert!(
        pixels.iter().any(|p| (p * 127.5).fract().abs() > 0.01),
        "not rounded to 8 bits"
    );

    TXT2IMG.succeed(
        folder.path(),
        &[&arguments[..], &["--guidance", "1"]].concat(),
    );
    let bytes = fs::read(folder.path().join("fox.st")).unwrap();
    assert!(
        SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensor("negative_prompt_embeds")
            .is_err()
    );
}

#[test]
fn many_pictures_are_numbered_and_are_what_they_are_alone() {
    let folder = tempfile::tempdir().unwrap();
    let common = ["fox", "--steps", "3", "--scheduler", "euler-a"];
    let many = [
        "--seed",
        "18446744073709551615",
        "--count",
        "2",
        "--output",
        "f.png",
        "--dump",
        "f.st",
    ];
    let (stdout, _) = TXT2IMG.succeed(folder.path(), &[&common[..], &many].concat());
    assert_eq!(
        stdout,
        "f-1.png (seed 18446744073709551615)\nf-2.png (seed 0)\n"
    );
    assert_eq!(
        files(folder.path()),
        ["f-1.png", "f-1.st", "f-2.png", "f-2.st"]
    );
    TXT2IMG.succeed(
        folder.path(),
        &[&common[..], &["--seed", "0", "--output", "alone.png"]].concat(),
    );
    assert_eq!(
        fs::read(folder.path().join("f-2.png")).unwrap(),
        fs::read(folder.path().join("alone.png")).unwrap()
    );
    let (stdout, _) = TXT2IMG.succeed(
        folder.path(),
        &[&common[..], &["--seed", "5", "--count", "2"]].concat(),
    );
    assert_eq!(stdout, "fox-5-1.png (seed 5)\nfox-5-2.png (seed 6)\n");
}

#[test]
fn every_sampler_on_every_ladder_that_fits_draws_something() {
    let folder = tempfile::tempdir().unwrap();
    let mut pictures = Vec::new();
    for scheduler in ["euler", "euler-a", "heun", "ddim", "dpmpp-2m"] {
        for ladder in ["leading", "linspace", "trailing", "karras"] {
            let arguments = [
                "fox",
                "--seed",
                "1",
                "--steps",
                "4",
                "--output",
                "f.png",
                "--scheduler",
                scheduler,
                "--ladder",
                ladder,
            ];
            if (scheduler, ladder) == ("ddim", "karras") {
                TXT2IMG.fail(
                    folder.path(),
                    &arguments,
                    2,
                    "the ladder karras does not fit the scheduler ddim",
                );
                continue;
            }
            let (_, stderr) = TXT2IMG.succeed(folder.path(), &arguments);
            assert!(stderr.contains(ladder), "{stderr}");
            pictures.push(picture(folder.path(), "f.png").into_raw());
        }
    }
    let count = pictures.len();
    pictures.sort();
    pictures.dedup();
    // The model's configuration has no `set_alpha_to_one`, which then counts as true. With it, DDIM
    // on leading equals Euler on leading.
    assert_eq!(
        pictures.len(),
        count - 1,
        "all pictures differ, except for one pair"
    );
    let (_, stderr) = TXT2IMG.succeed(
        folder.path(),
        &[
            "fox",
            "--steps",
            "2",
            "--scheduler",
            "ddim",
            "--output",
            "f.png",
        ],
    );
    assert!(stderr.contains("DDIM on leading"), "{stderr}");
}

#[test]
fn the_options_change_the_picture() {
    let folder = tempfile::tempdir().unwrap();
    let picture = |more: &[&str]| {
        TXT2IMG.succeed(
            folder.path(),
            &[
                &["fox", "--seed", "1", "--steps", "3", "--output", "f.png"],
                more,
            ]
            .concat(),
        );
        common::picture(folder.path(), "f.png")
    };
    let plain = picture(&[]);
    for more in [
        ["--negative", "white"],
        ["--clip-skip", "2"],
        ["--guidance", "3"],
        ["--width", "72"],
        ["--height", "56"],
    ] {
        assert_ne!(picture(&more), plain, "{more:?}");
    }
    assert_eq!(
        picture(&["--threads", "1"]),
        plain,
        "threads change only the time"
    );
}

#[test]
fn bad_arguments_end_with_2_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 29] = [
        (&[], "required arguments were not provided: <PROMPT>"),
        (
            &["a", "fox"],
            "unexpected argument 'fox' found; quote a prompt of several words",
        ),
        (
            &["fox", "--output", "x.gif"],
            "--output is x.gif, expected a name that ends in .png, .jpg, .jpeg or .webp",
        ),
        (
            &["fox", "--dump", "x.npz"],
            "--dump is x.npz, expected a name that ends in .safetensors or .st",
        ),
        (
            &["fox", "--scheduler", "DPM++ 2M Karas"],
            "\"DPM++ 2M Karas\" is no scheduler",
        ),
        (
            &[
                "fox",
                "--scheduler",
                "DPM++ 2M Karras",
                "--ladder",
                "linspace",
            ],
            "--scheduler and --ladder both set the ladder",
        ),
        (
            &["fox", "--steps", "0"],
            "for '--steps <N>': expected at least 1",
        ),
        (
            &["fox", "--steps", "1001"],
            "steps is 1001, expected 1 to 1000",
        ),
        (&["fox", "--steps", "many"], "--steps"),
        (
            &["fox", "--width", "63"],
            "width is 63, expected a positive multiple of 8",
        ),
        (&["fox", "--height", "0"], "height is 0"),
        (&["fox", "--width", "-8"], "--width"),
        (
            &["fox", "--width", "4294967288", "--height", "4294967288"],
            "size is",
        ),
        (&["fox", "--guidance", "NaN"], "expected a finite number"),
        (&["fox", "--guidance", "inf"], "expected a finite number"),
        (&["fox", "--seed", "-2"], "or -1 for a random seed"),
        (&["fox", "--seed", "18446744073709551616"], "--seed"),
        (&["fox", "--scheduler", "euler2"], "euler2"),
        (&["fox", "--ladder", "snakes"], "snakes"),
        (&["fox", "--ladder"], "--ladder"),
        (&["fox", "--clip-skip=-1"], "--clip-skip"),
        (
            &["fox", "--clip-skip", "5"],
            "clip_skip is 5, expected 1 to 4",
        ),
        (&["fox", "--count", "0"], "expected at least 1"),
        (&["fox", "--batch", "0"], "expected at least 1"),
        (&["fox", "--threads", "0"], "--threads"),
        (&["fox", "--threads", "4294967297"], "--threads"),
        (&["fox", "--output", "folder/"], "expected a file"),
        (
            &["fox", "--output", "a", "--dump", "./a"],
            "--output and --dump are both ./a",
        ),
        (&["fox", "--no-such-option"], "--no-such-option"),
    ];
    for (arguments, part) in cases {
        TXT2IMG.fail(folder.path(), arguments, 2, part);
    }
    assert!(
        files(folder.path()).is_empty(),
        "{:?}",
        files(folder.path())
    );
}

#[test]
fn failures_end_with_1() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    TXT2IMG.fail(
        folder.path(),
        &["fox", "--model", "nowhere"],
        1,
        "nowhere: model not found",
    );
    TXT2IMG.fail(
        folder.path(),
        &["fox", "--model", "empty"],
        1,
        "the folder `unet` not found",
    );
    TXT2IMG.fail(
        folder.path(),
        &["fox", "--variant", "fp8"],
        1,
        "the variant `fp8` not found",
    );
    TXT2IMG.fail(
        folder.path(),
        &["fox", "--output", "no/such/folder/f.png"],
        1,
        "no/such/folder: no such folder",
    );
    TXT2IMG.fail(
        folder.path(),
        &["fox", "--output", "f.png", "--dump", "no/such/f.st"],
        1,
        "no/such: no such folder",
    );
    assert_eq!(files(folder.path()), ["empty"]);
}

#[test]
fn what_is_odd_in_a_prompt_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let draw = |more: &[&str]| {
        let arguments = [&["--steps", "1", "--output", "f.png"], more].concat();
        TXT2IMG.succeed(folder.path(), &arguments).1
    };
    let stderr = draw(&[
        "a (fox|owl) <hypernet:moss:0.5> <hypernet:moss:0.5>",
        "--negative",
        "b|c",
    ]);
    for warning in [
        "warning: the prompt, at byte 6: `|` outside of an alternation",
        "warning: the negative prompt, at byte 1: `|` outside of an alternation",
        "warning: `<hypernet:moss:0.5>` is not applied",
    ] {
        assert_eq!(stderr.matches(warning).count(), 1, "{warning}: {stderr}");
    }
    // There is no warning about a long prompt, nor about a prompt that is not used.
    let long = "fox ".repeat(200);
    let stderr = draw(&[&long, "--negative", "b|c", "--guidance", "1"]);
    assert!(!stderr.contains("warning"), "{stderr}");
}

#[test]
fn the_warnings_of_a_load_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    let inversions = folder.path().join("inversions");
    fs::create_dir(&inversions).unwrap();
    fs::write(inversions.join("\u{1b}[31m.safetensors"), "junk").unwrap();
    let arguments = ["fox", "--steps", "1", "--embeddings", "inversions"];
    let (_, stderr) = TXT2IMG.succeed(folder.path(), &arguments);
    let warnings: Vec<_> = stderr
        .lines()
        .filter(|l| l.starts_with("warning: "))
        .collect();
    assert_eq!(warnings.len(), 1, "{stderr}");
    assert!(
        warnings[0].starts_with("warning: textual inversion left out: ")
            && warnings[0].contains("\\u{1b}[31m.safetensors")
            && !stderr.contains('\u{1b}'),
        "{stderr}"
    );
}

#[test]
fn a_flood_of_warnings_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let networks: String = (0..50).map(|i| format!("<hypernet:{i}:1>")).collect();
    let arguments = [&networks, "--steps", "1", "--output", "f.png"];
    let (_, stderr) = TXT2IMG.succeed(folder.path(), &arguments);
    assert_eq!(stderr.matches("is not applied").count(), 20, "{stderr}");
    assert!(stderr.contains("warning: 30 more warnings are not shown"));
}

#[test]
fn a_seed_of_minus_one_is_random() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let draw = ["fox", "--steps", "1", "--seed", "5", "--output", "f.png"];
    TXT2IMG.succeed(path, &draw);
    let seed = |more: &[&str]| -> u64 {
        let arguments = [more, &["--steps", "1", "--seed", "-1"]].concat();
        let (stdout, _) = TXT2IMG.succeed(path, &arguments);
        let (_, seed) = stdout.trim_end().rsplit_once("(seed ").unwrap();
        seed.trim_end_matches(')').parse().unwrap()
    };
    let seeds = [seed(&["fox"]), seed(&["fox"]), seed(&["--like", "f.png"])];
    assert!(seeds.iter().all(|&seed| seed < 1 << 32), "{seeds:?}");
    assert!(seeds[0] != seeds[1] && seeds[2] != 5, "{seeds:?}");
}

#[test]
fn the_ladder_may_be_in_the_name_of_the_scheduler() {
    let folder = tempfile::tempdir().unwrap();
    let draw = |more: &[&str]| {
        let base = ["fox", "--steps", "3", "--seed", "1", "--output", "f.png"];
        let (_, stderr) = TXT2IMG.succeed(folder.path(), &[&base[..], more].concat());
        (fs::read(folder.path().join("f.png")).unwrap(), stderr)
    };
    let (named, stderr) = draw(&["--scheduler", "Euler a SGM Uniform"]);
    assert!(stderr.contains("Euler a on sgm-uniform, "), "{stderr}");
    let apart = draw(&["--scheduler", "euler-a", "--ladder", "sgm-uniform"]);
    assert_eq!(named, apart.0);
    let (_, stderr) = draw(&["--ladder", r#"{"karras": {"rho": 5}}"#]);
    assert!(stderr.contains(r#"on {"karras":{"rho":5.0"#), "{stderr}");
}

#[test]
fn more_threads_than_the_machine_runs_are_lowered() {
    let folder = tempfile::tempdir().unwrap();
    let draw = |threads: &str| {
        let arguments = ["fox", "--steps", "1", "--threads", threads];
        TXT2IMG.succeed(folder.path(), &arguments).1
    };
    let most = std::thread::available_parallelism().unwrap().get();
    let warning = format!("warning: --threads is 1024, but this machine runs {most} at once");
    if most < 1024 {
        assert!(draw("1024").contains(&warning));
    }
    assert!(!draw("1").contains("warning"));
}

#[test]
fn textual_inversions_are_found_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<u8> = (0..2 * 64)
        .flat_map(|i| (0.02 * (i as f32).sin()).to_le_bytes())
        .collect();
    let tensor = TensorView::new(Dtype::F32, vec![2, 64], &values).unwrap();
    let file = safetensors::serialize([("emb_params", tensor)], None).unwrap();
    std::fs::write(folder.path().join("my-style.safetensors"), file).unwrap();
    let draw = |prompt: &str, more: &[&str], output: &str| {
        let arguments = [
            &[prompt, "--seed", "1", "--steps", "2", "--output", output],
            more,
        ];
        TXT2IMG.succeed(folder.path(), &arguments.concat());
        picture(folder.path(), output)
    };
    let with = ["--embeddings", "my-style.safetensors"];
    let prompt = "a fox, my-style";
    let (plain, styled) = (draw(prompt, &[], "a.png"), draw(prompt, &with, "b.png"));
    assert_ne!(plain, styled);
    assert_eq!(draw(prompt, &["--embeddings", "."], "c.png"), styled);
    assert_eq!(draw("a fox", &with, "d.png"), draw("a fox", &[], "e.png"));
    TXT2IMG.fail(
        folder.path(),
        &["fox", "--embeddings", "none.safetensors"],
        1,
        "none.safetensors",
    );
}

#[test]
fn a_picture_of_no_numbers_is_none() {
    let folder = tempfile::tempdir().unwrap();
    TXT2IMG.fail(
        folder.path(),
        &["fox", "--guidance", "3e38", "--seed", "4"],
        1,
        "picture 0 of request 0, seed 4, contains NaN or infinity",
    );
    assert!(files(folder.path()).is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn a_reader_that_is_gone_is_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let command = |arguments: &[&str]| {
        let mut command = TXT2IMG.command(folder.path());
        command.args(arguments);
        command
    };
    let draw = ["fox", "--steps", "1", "--output", "f.png"];
    assert_eq!(
        command(&draw).stdout(full()).status().unwrap().code(),
        Some(1)
    );
    assert_eq!(
        command(&["--help"]).stdout(full()).status().unwrap().code(),
        Some(1)
    );
    fs::remove_file(folder.path().join("f.png")).unwrap();
    assert_eq!(
        command(&draw).stderr(full()).status().unwrap().code(),
        Some(0)
    );
    assert_eq!(files(folder.path()), ["f.png"]);
    assert_eq!(
        command(&["fox", "--steps", "0"])
            .stderr(full())
            .status()
            .unwrap()
            .code(),
        Some(2)
    );
}

#[test]
fn the_extension_chooses_the_format_and_each_is_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let read = |name: &str| fs::read(path.join(name)).unwrap();
    let draw = ["a fox", "--steps", "2", "--seed", "7"];
    let starts: [(&str, &[u8]); 4] = [
        ("a.png", b"\x89PNG"),
        ("a.jpg", b"\xff\xd8\xff"),
        ("a.JPEG", b"\xff\xd8\xff"),
        ("a.webp", b"RIFF"),
    ];
    for (name, start) in starts {
        TXT2IMG.succeed(path, &[&draw[..], &["--output", name]].concat());
        assert!(read(name).starts_with(start), "{name}");
        let (_, stderr) = TXT2IMG.succeed(path, &["--like", name, "--output", "again.png"]);
        assert!(!stderr.contains("warning"), "{name}: {stderr}");
        assert!(read("again.png") == read("a.png"), "{name}");
    }
    assert_eq!(picture(path, "a.webp"), picture(path, "a.png"));
}

#[test]
fn like_a_picture_is_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let read = |name: &str| fs::read(path.join(name)).unwrap();
    let made = [
        "a fox, on (blue): \"really\"",
        "--negative",
        "white",
        "--steps",
        "3",
        "--guidance",
        "4.3",
        "--seed",
        "4294967303",
        "--width",
        "72",
        "--height",
        "64",
        "--clip-skip",
        "2",
        "--scheduler",
        "euler-a",
        "--ladder",
        "trailing",
        "--output",
        "first.png",
    ];
    TXT2IMG.succeed(path, &made);
    let (_, stderr) = TXT2IMG.succeed(path, &["--like", "first.png", "--output", "again.png"]);
    assert_eq!(read("again.png"), read("first.png"));
    assert!(!stderr.contains("warning"), "{stderr}");

    // The second picture of a request can be drawn again on its own.
    TXT2IMG.succeed(
        path,
        &[
            "fox", "--steps", "2", "--seed", "1", "--count", "2", "--output", "two.png",
        ],
    );
    TXT2IMG.succeed(path, &["--like", "two-2.png", "--output", "again.png"]);
    assert_eq!(read("again.png"), read("two-2.png"));

    // An option overrides the value in the file.
    let changes = [
        &["--steps", "4"][..],
        &["--guidance", "2"],
        &["--seed", "8"],
        &["--width", "64"],
        &["--height", "72"],
        &["--clip-skip", "1"],
        &["--scheduler", "heun"],
        &["--ladder", "karras"],
        &["--negative", "red"],
        &["a cat"],
    ];
    for change in changes {
        TXT2IMG.succeed(
            path,
            &[change, &["--like", "first.png", "--output", "changed.png"]].concat(),
        );
        let mut direct = made;
        match change {
            [option, value] => {
                let at = made.iter().position(|known| known == option).unwrap();
                direct[at + 1] = value;
            }
            _ => direct[0] = change[0],
        }
        direct[direct.len() - 1] = "direct.png";
        TXT2IMG.succeed(path, &direct);
        assert_eq!(read("changed.png"), read("direct.png"), "{change:?}");
        assert_ne!(
            picture(path, "changed.png"),
            picture(path, "first.png"),
            "{change:?}"
        );
    }
}

/// Returns the folder of the LoRAs of the small model.
fn shipped_loras() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji/loras")
}

#[test]
fn prompts_call_loras_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let draw = |prompt: &str, more: &[&str]| {
        let base = [prompt, "--steps", "3", "--seed", "1", "--output", "f.png"];
        let (_, stderr) = TXT2IMG.succeed(path, &[&base[..], more].concat());
        assert!(!stderr.contains("warning"), "{stderr}");
        picture(path, "f.png")
    };
    for name in ["ink", "sepia"] {
        let file = format!("{name}.safetensors");
        fs::create_dir(path.join(name)).unwrap();
        fs::copy(shipped_loras().join(&file), path.join(name).join(&file)).unwrap();
    }
    let (ink, both) = (["--loras", "ink"], ["--loras", "ink", "--loras", "sepia"]);
    let plain = draw("a fox", &ink);
    assert!(draw("a fox <lora:ink:0>", &ink) == plain);
    let half = draw("a fox <lora:ink:0.5>", &ink);
    let with_ink = draw("a fox <lyco:ink:1>", &ink);
    let with_both = draw("a fox <lora:ink:1> <lora:sepia:1>", &both);
    let mut pictures = [plain, half, with_ink, with_both].map(image::RgbImage::into_raw);
    pictures.sort();
    assert!(pictures.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn a_lora_that_is_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let loras = shipped_loras();
    let refused = |prompt: &str, more: &[&str], code: i32, part: &str| {
        let arguments = [&[prompt, "--steps", "1", "--output", "f.png"], more].concat();
        TXT2IMG.fail(folder.path(), &arguments, code, part);
    };
    let with = ["--loras", loras.to_str().unwrap()];
    refused(
        "a fox <lora:imk:1>",
        &with,
        2,
        "error: prompt is a text with `<lora:imk:1>`, expected the name of a LoRA, such as ink",
    );
    refused(
        "a fox <lora:ink:x>",
        &with,
        2,
        "error: prompt is a text with weight `x` in `<lora:ink:x>`, expected a finite number",
    );
    refused(
        "a fox <lora:ink:1>",
        &[],
        2,
        "error: prompt is a text with `<lora:ink:1>`, expected --loras with the folder of the LoRA",
    );
    refused("a fox", &["--loras", "nowhere"], 1, "nowhere");
    assert!(files(folder.path()).is_empty());
}

#[test]
fn like_a_seamless_picture_is_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let read = |name: &str| fs::read(path.join(name)).unwrap();
    let draw = |name: &str, options: &[&str]| {
        let (_, stderr) = TXT2IMG.succeed(path, &[options, &["--output", name]].concat());
        stderr
    };
    let fox = ["fox", "--steps", "2", "--seed", "1"];
    draw("plain.png", &fox);
    for axes in ["x", "xy"] {
        draw("first.png", &[&fox[..], &["--seamless", axes]].concat());
        assert_ne!(picture(path, "first.png"), picture(path, "plain.png"));
        let stderr = draw("again.png", &["--like", "first.png"]);
        assert_eq!(read("again.png"), read("first.png"));
        assert!(!stderr.contains("warning"), "{stderr}");
        let stderr = draw("other.png", &["--like", "first.png", "--seamless", "none"]);
        assert_eq!(picture(path, "other.png"), picture(path, "plain.png"));
        assert!(
            stderr.contains("the picture is seamless along x"),
            "{stderr}"
        );
    }
    // The padding of graphs is fixed. An option that was given is not explained.
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji");
    let conversion = Conversion::new(ModelForm::Onnx);
    let graphs = sd_onnx::builder().convert(model, path.join("graphs"), &conversion);
    graphs.unwrap();
    let of_file = [
        "--like",
        "first.png",
        "--model",
        "graphs",
        "--output",
        "graph.png",
    ];
    let hint = "the picture of --like is seamless; --seamless none draws without that";
    TXT2IMG.fail(path, &of_file, 1, hint);
    let given = [&of_file[..], &["--seamless", "xy"]].concat();
    let refused = TXT2IMG.command(path).args(&given).output().unwrap();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(!stderr.contains(hint), "{stderr}");
    TXT2IMG.succeed(path, &[&of_file[..], &["--seamless", "none"]].concat());
    let wrong = ["fox", "--seamless", "z"];
    TXT2IMG.fail(path, &wrong, 2, "expected x, y, xy or none");
}

#[test]
fn like_a_picture_with_loras_is_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let read = |name: &str| fs::read(path.join(name)).unwrap();
    let like = |more: &[&str]| {
        let base = ["--like", "first.png", "--output", "again.png"];
        TXT2IMG.succeed(path, &[&base[..], more].concat()).1
    };
    // A file without metadata is known only by its name and its hash.
    let pen = path.join("pen");
    fs::create_dir(&pen).unwrap();
    let ink = fs::read(shipped_loras().join("ink.safetensors")).unwrap();
    let ink = SafeTensors::deserialize(&ink).unwrap();
    let without = safetensors::serialize(ink.tensors(), None).unwrap();
    fs::write(pen.join("pen.safetensors"), without).unwrap();
    let sepia = path.join("sepia");
    fs::create_dir(&sepia).unwrap();
    let file = "sepia.safetensors";
    fs::copy(shipped_loras().join(file), sepia.join(file)).unwrap();
    let (with, both) = (["--loras", "pen"], ["--loras", "pen", "--loras", "sepia"]);

    let prompt = "a fox <lora:pen:0.7:1> on <lora:sepia:0@0,1@0.5> blue";
    let draw = [
        prompt,
        "--steps",
        "4",
        "--seed",
        "1",
        "--output",
        "first.png",
    ];
    TXT2IMG.succeed(path, &[&draw[..], &both].concat());
    let stderr = like(&both);
    assert!(read("again.png") == read("first.png"));
    assert!(!stderr.contains("warning"), "{stderr}");

    // A renamed file is found by its hash.
    fs::rename(pen.join("pen.safetensors"), pen.join("brush.safetensors")).unwrap();
    let stderr = like(&both);
    assert!(picture(path, "again.png") == picture(path, "first.png"));
    assert!(!stderr.contains("warning"), "{stderr}");
    let again = Infotext::read(path.join("again.png")).unwrap().unwrap();
    assert_eq!(again.prompt, prompt.replace("pen", "brush"));

    // What is missing is said, and left out.
    for (more, missing) in [
        (&with[..], &["<lora:sepia:0@0,1@0.5>"][..]),
        (&[], &["<lora:pen:0.7:1>", "<lora:sepia:0@0,1@0.5>"]),
    ] {
        let stderr = like(more);
        assert_eq!(
            stderr.matches("warning: ").count(),
            missing.len(),
            "{stderr}"
        );
        for call in missing {
            let name = call.split(':').nth(1).unwrap();
            let begin =
                format!("warning: first.png: the pipeline has no LoRA `{name}` with the hash `");
            let end = format!("`, so `{call}` is left out\n");
            assert!(stderr.contains(&begin) && stderr.contains(&end), "{stderr}");
        }
        assert!(picture(path, "again.png") != picture(path, "first.png"));
    }
}

#[test]
fn pictures_of_a_batch_are_nearly_those_of_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let draw = ["fox", "--steps", "5", "--seed", "1", "--count", "3"];
    TXT2IMG.succeed(path, &[&draw[..], &["--output", "one.png"]].concat());
    let (stdout, stderr) = TXT2IMG.succeed(
        path,
        &[&draw[..], &["--batch", "2", "--output", "two.png"]].concat(),
    );
    assert_eq!(stdout.lines().count(), 3);
    assert!(stderr.contains("a step of 2 pictures"), "{stderr}");
    let (_, stderr) = TXT2IMG.succeed(path, &["--like", "two-2.png", "--output", "again.png"]);
    assert!(stderr.contains("warning: two-2.png: "), "{stderr}");
    for (a, b) in [
        ("one-1.png", "two-1.png"),
        ("one-2.png", "two-2.png"),
        ("one-3.png", "two-3.png"),
        ("again.png", "two-2.png"),
    ] {
        let (a, b) = (picture(path, a), picture(path, b));
        let apart: Vec<_> = a
            .iter()
            .zip(b.iter())
            .map(|(a, b)| a.abs_diff(*b))
            .collect();
        let more_than_rounding = apart.iter().filter(|&&apart| apart > 1).count();
        // Rounding in the network changes a byte by 1, and rarely by more.
        assert!(
            more_than_rounding * 1000 <= apart.len(),
            "{more_than_rounding} of {}",
            apart.len()
        );
    }
}

#[test]
fn like_a_picture_of_another_program_says_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let with_text = |name: &str, text: &str| {
        let file = fs::File::create(folder.path().join(name)).unwrap();
        let mut png = png::Encoder::new(file, 1, 1);
        png.add_text_chunk("parameters".to_owned(), text.to_owned())
            .unwrap();
        png.write_header().unwrap().write_image_data(&[0]).unwrap();
    };
    let parameters =
        "Steps: 2, Sampler: Euler, Schedule type: Karras, CFG scale: 3, Seed: 5, Size: 64x64";
    with_text(
        "gpu.png",
        &format!("a fox\n{parameters}, Model hash: 0123456789, Model: other"),
    );
    let (_, stderr) = TXT2IMG.succeed(folder.path(), &["--like", "gpu.png", "--output", "f.png"]);
    let warnings: Vec<_> = stderr
        .lines()
        .filter(|line| line.starts_with("warning: gpu.png: "))
        .collect();
    assert_eq!(warnings.len(), 2, "{stderr}");
    assert!(warnings[0].contains("GPU"), "{stderr}");
    assert!(
        warnings[1].contains("made with the model other (0123456789), but this model is emoji ("),
        "{stderr}"
    );

    // WebUI's samplers use other conventions, but keep their names.
    let karras =
        "Steps: 2, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3, Seed: 5, Size: 64x64";
    with_text("karras.png", &format!("a fox <lora:x:1>\n{karras}"));
    let (_, stderr) = TXT2IMG.succeed(
        folder.path(),
        &["--like", "karras.png", "--output", "f.png"],
    );
    assert!(stderr.contains("\nDPM++ 2M on karras, 2 steps"), "{stderr}");
    let warning =
        "warning: karras.png: the pipeline has no LoRA `x`, so `<lora:x:1>` is left out\n";
    assert!(stderr.contains(warning), "{stderr}");
    assert_eq!(stderr.matches("<lora:x:1>").count(), 1, "{stderr}");

    // Control characters from a file are escaped before they reach the terminal.
    let escape = "\u{1b}]0;x\u{7}\u{9b}2J";
    with_text(
        "escape.png",
        &format!(
            "a|b <lora:{escape}:1>\nNegative prompt: {escape}\n{parameters}, Model hash: 0123456789{escape}, \
             Model: {escape}, Emphasis: {escape}, Unknown key: {escape}"
        ),
    );
    let (_, stderr) = TXT2IMG.succeed(
        folder.path(),
        &["--like", "escape.png", "--output", "f.png"],
    );
    assert!(
        stderr.contains("made with the model \\u{1b}]0;x"),
        "{stderr}"
    );
    assert!(stderr.contains("negative \"\\u{1b}]0;x"), "{stderr}");
    let raw = |c: char| c.is_control() && c != '\n';
    assert!(!stderr.contains(raw), "{stderr:?}");

    TXT2IMG.fail(
        folder.path(),
        &["--like", "none.png"],
        1,
        "none.png: No such file",
    );
    fs::write(folder.path().join("no.png"), "no PNG").unwrap();
    TXT2IMG.fail(folder.path(), &["--like", "no.png"], 1, "no.png: ");
    let image = image::RgbImage::new(8, 8);
    image.save(folder.path().join("plain.png")).unwrap();
    TXT2IMG.fail(
        folder.path(),
        &["--like", "plain.png"],
        1,
        "plain.png: the file does not say how it was made",
    );
    let ddim = ["--like", "gpu.png", "--scheduler", "ddim"];
    TXT2IMG.fail(
        folder.path(),
        &ddim,
        2,
        "the ladder karras does not fit the scheduler ddim",
    );
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_written_is_not_there() {
    TXT2IMG.fails_to_write(&["fox", "--steps", "1"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_it() {
    TXT2IMG.stops(&["fox", "--steps", "1000", "--output", "f.png"]);
}

#[test]
fn the_time_of_each_part_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (_, stderr) = TXT2IMG.succeed(folder.path(), &["fox", "--steps", "2"]);
    for part in [
        " s: encoding 0.",
        ", a step 0.",
        " it/s), decoding a picture 0.",
    ] {
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn help_is_no_failure() {
    let (stdout, _) = TXT2IMG.succeed(Path::new("."), &["--help"]);
    for option in [
        "--model",
        "--variant",
        "--negative",
        "--width",
        "--height",
        "--steps",
        "--guidance",
        "--seed",
        "--scheduler",
        "--ladder",
        "--clip-skip",
        "--count",
        "--threads",
        "--output",
        "--dump",
        "--like",
        "--lora <PATH[:WEIGHT]>",
        "--loras <DIR>",
        "--batch",
        "replacing a file of that name",
    ] {
        assert!(stdout.contains(option), "{option}");
    }
}

fn shipped_picture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("pictures")
        .join(name);
    path.to_str().unwrap().to_owned()
}

/// A picture is redrawn by its strength. With a mask, only the white part is.
#[test]
fn a_picture_is_redrawn() {
    let folder = tempfile::tempdir().unwrap();
    let (fox, mask) = (shipped_picture("fox.png"), shipped_picture("fox-mask.png"));
    let draw = |more: &[&str]| {
        let always = ["a cat", "--image", &fox, "--steps", "4", "--seed", "1"];
        let output = ["--output", "f.png"];
        TXT2IMG.succeed(folder.path(), &[&always, more, &output].concat());
        image::open(folder.path().join("f.png")).unwrap().to_rgb8()
    };
    let open = |path: &str| image::open(path).unwrap().to_rgb8();
    let distance = |drawn: &image::RgbImage| -> u64 {
        let original = open(&fox);
        let pairs = drawn.iter().zip(original.iter());
        pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum()
    };
    let [little, much] = ["0.3", "0.9"].map(|strength| distance(&draw(&["--strength", strength])));
    assert!(2 * little < much, "{little} and {much}");
    let drawn = draw(&["--mask", &mask, "--strength", "1"]);
    let (original, mask) = (open(&fox), open(&mask));
    let mut changed = 0;
    for ((pixel, before), masked) in drawn.pixels().zip(original.pixels()).zip(mask.pixels()) {
        assert!(pixel == before || masked.0[0] == 255);
        changed += usize::from(pixel != before);
    }
    assert!(changed > 1000, "{changed} pixels");
}

#[test]
fn like_a_redrawn_picture_is_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let (fox, mask) = (shipped_picture("fox.png"), shipped_picture("fox-mask.png"));
    let inputs = ["--image", &fox, "--mask", &mask];
    let options = [
        "a cat",
        "--strength",
        "0.6",
        "--mask-blur",
        "2",
        "--steps",
        "4",
        "--seed",
        "1",
    ];
    let first = [&options[..], &inputs, &["--output", "a.png"]].concat();
    TXT2IMG.succeed(folder.path(), &first);
    let again = [&["--like", "a.png", "--output", "b.png"][..], &inputs].concat();
    let (_, stderr) = TXT2IMG.succeed(folder.path(), &again);
    assert!(!stderr.contains("warning"), "{stderr}");
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert_eq!(read("a.png"), read("b.png"));
    // Without the picture, this is said.
    let alone = ["--like", "a.png", "--output", "c.png"];
    let (_, stderr) = TXT2IMG.succeed(folder.path(), &alone);
    assert!(
        stderr.contains("the run started from a picture"),
        "{stderr}"
    );
    assert_ne!(read("a.png"), read("c.png"));
}

#[test]
fn pictures_that_cannot_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fox = shipped_picture("fox.png");
    fs::write(folder.path().join("text.png"), "a fox").unwrap();
    let small = image::GrayImage::new(8, 8);
    small.save(folder.path().join("small.png")).unwrap();
    let refused = |more: &[&str], code: i32, part: &str| {
        TXT2IMG.fail(folder.path(), &[&["a cat"], more].concat(), code, part);
    };
    refused(&["--image", "no.png"], 1, "no.png");
    refused(
        &["--image", "text.png"],
        1,
        "text.png: no picture, expected PNG, JPEG or WebP",
    );
    refused(&["--strength", "1"], 2, "--image");
    // These are refused before the model is loaded.
    let early = |more: &[&str], part: &str| {
        let model = ["--image", &fox, "--model", "nowhere"];
        refused(&[&model[..], more].concat(), 2, part);
    };
    early(&["--strength", "2"], "expected 0 to 1");
    early(
        &["--mask", "small.png"],
        "--mask small.png is 8×8, expected the size of --image, 96×96",
    );
    early(&["--mask-blur", "257"], "expected 0 to 256");
    early(&["--mask-blur", "1"], "--mask-blur needs a mask");
    early(
        &["--only-masked", "1.5"],
        "expected a number of pixels, or none",
    );
    early(&["--outpaint", "0,0,0,0"], "expected at least one side");
    early(&["--outpaint", "0,8"], "expected four numbers of pixels");
    early(&["--hires", "2"], "--hires cannot be used with --image");
    for scale in ["0.9", "17", "NaN", "0x8"] {
        let expected = "expected a factor from 1 to 16 or a size";
        refused(&["--model", "nowhere", "--hires", scale], 2, expected);
    }
    let none = ["--hires", "none", "--hires-steps", "3"];
    refused(&none, 2, "--hires-steps needs --hires");
}

/// Saves a half-transparent fox.
fn write_clear(path: &Path) {
    let mut fox = image::open(shipped_picture("fox.png")).unwrap().to_rgba8();
    for (x, _, pixel) in fox.enumerate_pixels_mut() {
        pixel.0[3] = if x < 48 { 0 } else { 255 };
    }
    fox.save(path).unwrap();
}

/// Each option of a start and of a second pass changes the picture.
#[test]
fn the_options_of_pictures_change_the_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write_clear(&path.join("clear.png"));
    let (fox, mask) = (shipped_picture("fox.png"), shipped_picture("fox-mask.png"));
    let draw = |options: &[&str]| {
        let always = ["a cat", "--steps", "4", "--seed", "1", "--output", "f.png"];
        TXT2IMG.succeed(path, &[&always, options].concat());
        picture(path, "f.png")
    };
    let start = ["--image", &fox];
    let masked = [&start[..], &["--mask", &mask]].concat();
    let spot = image::GrayImage::from_fn(96, 96, |x, y| {
        let is_inside = [x, y].iter().all(|at| (36..60).contains(at));
        image::Luma([if is_inside { 255 } else { 0 }])
    });
    spot.save(path.join("spot.png")).unwrap();
    let with_spot = [&start[..], &["--mask", "spot.png"]].concat();
    let outpainted = [&start[..], &["--outpaint", "0,0,32,0"]].concat();
    let hires = ["--width", "64", "--height", "64", "--hires", "1.5"];
    let cases: [(&[&str], &[&str]); 13] = [
        (&start, &["--outpaint", "0,0,32,0"]),
        (&start, &["--color-correction"]),
        (
            &[&start[..], &["--width", "64"]].concat(),
            &["--resize", "crop"],
        ),
        (&["--image", "clear.png"], &["--mask-alpha"]),
        (&with_spot, &["--only-masked", "8"]),
        (&masked, &["--masked-content", "noise"]),
        (&masked, &["--mask-rule", "webui"]),
        (&masked, &["--mask-blur", "4"]),
        (&outpainted, &["--overlap", "16"]),
        (&hires[..4], &hires[4..]),
        (&hires, &["--hires-strength", "0.5"]),
        (&hires, &["--hires-upscaler", "Lanczos"]),
        (&hires, &["--hires-prompt", "a fox"]),
    ];
    for (without, option) in cases {
        let with = [without, option].concat();
        assert_ne!(draw(&with), draw(without), "{option:?}");
    }
    let steps = [&hires[..], &["--hires-steps", "2"]].concat();
    assert_ne!(draw(&steps), draw(&hires));
    assert_eq!(draw(&hires).dimensions(), (96, 96));
    assert_eq!(draw(&outpainted).dimensions(), (128, 96));
    // `none` is the default.
    let none = [&with_spot[..], &["--only-masked", "none"]].concat();
    assert_eq!(draw(&none), draw(&with_spot));
}

#[test]
fn ignored_transparency_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write_clear(&path.join("clear.png"));
    let mask = shipped_picture("fox-mask.png");
    let draw = |more: &[&str]| {
        let always = [
            "a cat",
            "--image",
            "clear.png",
            "--steps",
            "4",
            "--output",
            "f.png",
        ];
        TXT2IMG.succeed(path, &[&always, more].concat()).1
    };
    let warning = "warning: clear.png: the transparency is ignored";
    for more in [&[][..], &["--mask", &mask], &["--outpaint", "8,0,0,0"]] {
        assert!(draw(more).contains(warning), "{more:?}");
    }
    assert!(!draw(&["--mask-alpha"]).contains("warning"));
}

#[test]
fn like_an_outpainted_picture_is_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let fox = shipped_picture("fox.png");
    let sides = ["--image", &fox, "--outpaint", "0,0,32,0", "--overlap", "8"];
    let draw = |options: &[&str], output: &str| {
        let all = [options, &sides, &["--output", output]].concat();
        let (_, stderr) = TXT2IMG.succeed(path, &all);
        assert!(!stderr.contains("warning"), "{stderr}");
        picture(path, output)
    };
    let options = ["a cat", "--steps", "4", "--seed", "1", "--mask-blur", "2"];
    let first = draw(&[&options[..], &["--strength", "0.9"]].concat(), "a.png");
    assert_eq!(draw(&["--like", "a.png"], "b.png"), first);
    // The size of another file is not that of the new picture, and the masked area is filled.
    let plain = ["a cat", "--steps", "4", "--seed", "1", "--output", "c.png"];
    TXT2IMG.succeed(path, &plain);
    let new = draw(&["a cat", "--steps", "4", "--seed", "1"], "d.png");
    assert_eq!(draw(&["--like", "c.png"], "e.png"), new);
    let redrawn = [&plain[..], &["--image", &fox, "--strength", "0.3"]].concat();
    TXT2IMG.succeed(path, &redrawn);
    assert_eq!(draw(&["--like", "c.png"], "e.png"), new);
}

/// A mask of WebUI that says which part stays is not inverted where the mask does not come from
/// WebUI. A file without a mask leaves the mask's options alone.
#[test]
fn options_of_masks_come_from_files_with_masks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write_clear(&path.join("clear.png"));
    let (fox, mask) = (shipped_picture("fox.png"), shipped_picture("fox-mask.png"));
    let with_text = |name: &str, text: &str| {
        let parameters = "Steps: 4, Sampler: Euler, CFG scale: 3, Seed: 5, Size: 96x96, \
                          Denoising strength: 0.6";
        let file = fs::File::create(path.join(name)).unwrap();
        let mut png = png::Encoder::new(file, 1, 1);
        let text = format!("a cat\n{parameters}{text}");
        png.add_text_chunk("parameters".to_owned(), text).unwrap();
        png.write_header().unwrap().write_image_data(&[0]).unwrap();
    };
    with_text("plain.png", "");
    with_text("masked.png", ", Mask blur: 0, Mask mode: Inpaint masked");
    with_text(
        "inverted.png",
        ", Mask blur: 0, Mask mode: Inpaint not masked",
    );
    let draw = |like: &str, more: &[&str]| {
        let always = ["--like", like, "--output", "f.png"];
        TXT2IMG.succeed(path, &[&always, more].concat());
        picture(path, "f.png")
    };
    let with_mask = ["--image", &fox, "--mask", &mask];
    for (more, is_inverted) in [
        (&["--image", &fox, "--outpaint", "0,0,32,0"][..], false),
        (&["--image", "clear.png", "--mask-alpha"], false),
        (&with_mask, true),
    ] {
        let same = draw("inverted.png", more) == draw("masked.png", more);
        assert_eq!(same, !is_inverted, "{more:?}");
    }
    let plain = draw("plain.png", &with_mask);
    let rule = |name| {
        draw(
            "plain.png",
            &[&with_mask[..], &["--mask-rule", name]].concat(),
        )
    };
    assert_eq!(plain, rule("diffusers"));
    assert_ne!(plain, rule("webui"));
}

#[test]
fn like_a_picture_of_two_passes_is_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let draw = |options: &[&str], output: &str| {
        let (_, stderr) = TXT2IMG.succeed(path, &[options, &["--output", output]].concat());
        (picture(path, output), stderr)
    };
    let plain = [
        "a cat", "--steps", "4", "--seed", "1", "--width", "64", "--height", "64",
    ];
    let hires = [
        "--hires",
        "1.5",
        "--hires-strength",
        "0.6",
        "--hires-upscaler",
        "Lanczos",
    ];
    let prompt = ["--hires-prompt", "a (fox|owl) <hypernet:moss:1>"];
    let (first, stderr) = draw(&[&plain[..], &hires, &prompt].concat(), "a.png");
    for warning in [
        "the prompt of the second pass, at byte 6: `|` outside of an alternation",
        "`<hypernet:moss:1>` is not applied",
    ] {
        assert!(stderr.contains(warning), "{stderr}");
    }
    let like = ["--like", "a.png"];
    assert_eq!(draw(&like, "b.png").0, first);
    let (one, stderr) = draw(&[&like[..], &["--hires", "none"]].concat(), "c.png");
    assert_eq!(one, draw(&plain, "d.png").0);
    assert!(!stderr.contains("warning"), "{stderr}");

    let fox = shipped_picture("fox.png");
    let start = ["--image", &fox];
    let left_out =
        "warning: a.png: the second pass is left out, because the run starts from --image";
    let (redrawn, stderr) = draw(&[&like[..], &start].concat(), "e.png");
    assert!(stderr.contains(left_out), "{stderr}");
    assert_eq!(redrawn.dimensions(), (64, 64));
    let none = [&like[..], &start, &["--hires", "none"]].concat();
    let (again, stderr) = draw(&none, "f.png");
    assert!(!stderr.contains("warning"), "{stderr}");
    assert_eq!(again, redrawn);
}

/// Returns the argument of `--control` for the shipped ControlNet.
fn edges(rest: &str) -> String {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji");
    let net = model.join("controlnets/edges");
    format!("{}:{}{rest}", net.display(), shipped_picture("edges.png"))
}

#[test]
fn like_a_picture_with_controls_is_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let draw = |name: &str, more: &[&str]| {
        let always = ["--steps", "4", "--seed", "1", "--output", name];
        let (_, stderr) = TXT2IMG.succeed(path, &[&always, more].concat());
        (picture(path, name), stderr)
    };
    let (plain, _) = draw("plain.png", &["a cat"]);
    let (nothing, _) = draw("nothing.png", &["a cat", "--control", &edges(":0")]);
    assert_eq!(nothing, plain);
    let first = edges(":0.7:0-0.5");
    let (made, _) = draw(
        "made.png",
        &["a cat", "--control", &first, "--control-mode", "control"],
    );
    assert_ne!(made, plain);
    let (full, _) = draw("full.png", &["a cat", "--control", &edges("")]);
    assert_ne!(made, full);
    // What the option leaves out is in the file.
    let (again, stderr) = draw(
        "again.png",
        &["--like", "made.png", "--control", &edges("")],
    );
    assert_eq!(again, made);
    assert!(!stderr.contains("warning"), "{stderr}");
    let (without, stderr) = draw("without.png", &["--like", "made.png"]);
    assert_eq!(without, plain);
    assert!(stderr.contains("as by --control edges:PICTURE"), "{stderr}");
    let canny = edges("").replace(":/", ":canny(50,150)@/");
    let (other, _) = draw("canny.png", &["a cat", "--control", &canny]);
    assert_ne!(other, full);
}

#[test]
fn controls_that_cannot_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let net = edges("");
    let lora = shipped_loras()
        .join("ink.safetensors")
        .display()
        .to_string();
    let lora = format!("{lora}:{}", shipped_picture("edges.png"));
    for (arguments, code, part) in [
        (
            vec!["a cat", "--control", "net"],
            2,
            "expected a control network and a picture",
        ),
        (vec!["a cat", "--control", "none:none.png"], 1, "none.png"),
        (vec!["a cat", "--control", &lora], 1, "LoRA"),
        (
            vec!["a cat", "--control", &net, "--image-encoder", "clip"],
            1,
            "there are none",
        ),
        (vec!["a cat", "--control-mode", "guess"], 2, "--control"),
    ] {
        TXT2IMG.fail(folder.path(), &arguments, code, part);
    }
    assert_eq!(files(folder.path()), [""; 0]);
}
