//! Runs `grid` as a user does, on the small model.

// In a test, a panic is the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Example, files, picture, place_of};

const GRID: Example = Example("grid");
const TXT2IMG: Example = Example("txt2img");

/// Returns the places on a sheet of the pictures that txt2img draws, one for each of `arguments`.
fn places(folder: &Path, sheet: &str, arguments: &[&[&str]]) -> Vec<(u32, u32)> {
    let sheet = picture(folder, sheet);
    let place = |arguments: &&[&str]| {
        TXT2IMG.succeed(folder, &[arguments, &["--output", "one.png"][..]].concat());
        place_of(&picture(folder, "one.png"), &sheet).unwrap()
    };
    arguments.iter().map(place).collect()
}

#[test]
fn each_cell_is_the_picture_that_txt2img_draws() {
    let folder = tempfile::tempdir().unwrap();
    let common = ["a fox on blue", "--seed", "7", "--scheduler", "euler"];
    let axes = [
        "--x",
        "steps=2, 3,5",
        "--y",
        "guidance=1,7.5",
        "--output",
        "g.png",
    ];
    let (stdout, stderr) = GRID.succeed(folder.path(), &[&common[..], &axes].concat());
    assert_eq!(stdout, "g.png\n");
    assert!(
        stderr.contains("6 pictures: Euler on karras, 96×96, seed 7\n20 steps in "),
        "{stderr}"
    );

    let mut arguments = Vec::new();
    for guidance in ["1", "7.5"] {
        for steps in ["2", "3", "5"] {
            arguments.push([&common[..], &["--steps", steps, "--guidance", guidance]].concat());
        }
    }
    let arguments: Vec<_> = arguments.iter().map(|arguments| &arguments[..]).collect();
    let places = places(folder.path(), "g.png", &arguments);
    let (left, top) = places[0];
    let expected: Vec<_> = (0..6)
        .map(|i| (left + i % 3 * 100, top + i / 3 * 100))
        .collect();
    assert_eq!(places, expected);
    assert!(left > 16 + 7 * 8, "to the right of `guidance`");
    assert!(
        top > 16 + 16 * 4,
        "below two lines of title, `steps` and the numbers"
    );
    let size = picture(folder.path(), "g.png").dimensions();
    assert_eq!(
        size,
        (
            (left + 3 * 100 - 4 + 16).max(16 + 7 * 34 + 16),
            top + 2 * 100 - 4 + 16
        )
    );
}

#[test]
fn every_parameter_can_be_an_axis() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, [&[&str]; 2]); 8] = [
        (
            "steps=1,2",
            [&["fox", "--steps", "1"], &["fox", "--steps", "2"]],
        ),
        (
            "guidance=-1,1.5",
            [&["fox", "--guidance", "1"], &["fox", "--guidance", "1.5"]],
        ),
        ("clip-skip=1,4", [&["fox"], &["fox", "--clip-skip", "4"]]),
        (
            "seed=0,18446744073709551615",
            [
                &["fox", "--seed", "0"],
                &["fox", "--seed", "18446744073709551615"],
            ],
        ),
        (
            "scheduler=ddim,euler-a",
            [
                &["fox", "--scheduler", "ddim"],
                &["fox", "--scheduler", "euler-a"],
            ],
        ),
        (
            "ladder=trailing,karras",
            [&["fox", "--ladder", "trailing"], &["fox"]],
        ),
        (
            "size=96x96,128x72",
            [&["fox"], &["fox", "--width", "128", "--height", "72"]],
        ),
        (
            "negative=|blue, white",
            [&["fox"], &["fox", "--negative", "blue, white"]],
        ),
    ];
    for (axis, [a, b]) in cases {
        let with_defaults = |arguments: &[&'static str]| {
            let mut all = arguments.to_vec();
            if axis != "steps=1,2" {
                all.extend(["--steps", "2"]);
            }
            if !axis.starts_with("seed") {
                all.extend(["--seed", "3"]);
            }
            all
        };
        let draw = with_defaults(&["fox"]);
        let (a, b) = (with_defaults(a), with_defaults(b));
        for (option, right) in [("--x", true), ("--y", false)] {
            // There must be columns, so another parameter takes them if this one has the rows.
            let mut arguments = [&draw[..], &[option, axis, "--output", "g.png"]].concat();
            let prompts = ["--x", "prompt=fox"];
            if !right {
                arguments.remove(0);
                arguments.extend(prompts);
            }
            GRID.succeed(folder.path(), &arguments);
            let places = places(folder.path(), "g.png", &[&a, &b]);
            let apart = (places[1].0 > places[0].0, places[1].1 > places[0].1);
            assert_eq!(apart, (right, !right), "{axis}: {places:?}");
        }
    }
    let prompts = [
        "--x",
        "prompt= fox, on blue |[cat|dog] \\[on",
        "--seed",
        "3",
        "--steps",
        "2",
        "--output",
        "g.png",
    ];
    GRID.succeed(folder.path(), &prompts);
    let one = |prompt| [prompt, "--seed", "3", "--steps", "2"];
    let places = places(
        folder.path(),
        "g.png",
        &[&one("fox, on blue"), &one("[cat|dog] \\[on")],
    );
    assert!(places[1].0 > places[0].0 && places[1].1 == places[0].1);
}

#[test]
fn a_scheduler_may_bring_its_ladder_and_a_seed_be_random() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "fox",
        "--steps",
        "2",
        "--x",
        "scheduler=Euler Karras,Euler SGM Uniform",
        "--y",
        "seed=-1,5,-1",
        "--output",
        "g.png",
    ];
    GRID.succeed(folder.path(), &arguments);
    let one = |ladder| {
        let base = ["fox", "--steps", "2", "--seed", "5", "--scheduler", "euler"];
        [&base[..], &["--ladder", ladder]].concat()
    };
    let places = places(
        folder.path(),
        "g.png",
        &[&one("karras"), &one("sgm-uniform")],
    );
    assert!(places[1].0 > places[0].0 && places[1].1 == places[0].1);
}

#[test]
fn loras_are_added_to_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let loras = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji/loras");
    let loras = loras.to_str().unwrap();
    let common = ["--steps", "2", "--seed", "3", "--loras", loras];
    let drawn = |axes: &[&str], prompts: &[&str]| {
        GRID.succeed(
            folder.path(),
            &[&common[..], &["--output", "g.png"], axes].concat(),
        );
        let one = |&prompt| [&[prompt], &common[..]].concat();
        let arguments: Vec<_> = prompts.iter().map(one).collect();
        let arguments: Vec<_> = arguments.iter().map(|arguments| &arguments[..]).collect();
        places(folder.path(), "g.png", &arguments)
    };
    let square = |places: &[(u32, u32)]| {
        let (left, top) = places[0];
        let apart = |&(x, y): &(u32, u32)| (x - left, y - top);
        let apart: Vec<_> = places.iter().map(apart).collect();
        assert_eq!(apart, [(0, 0), (100, 0), (0, 100), (100, 100)]);
    };
    // Two LoRAs at once. The prompt may end in a comment.
    let axes = [
        "fox # red",
        "--x",
        "lora=ink:0,ink:1",
        "--y",
        "lora=sepia:0, sepia:0.5:1",
    ];
    let prompts = [
        "fox",
        "fox <lora:ink:1>",
        "fox <lora:sepia:0.5:1>",
        "fox <lora:sepia:0.5:1> <lora:ink:1>",
    ];
    square(&drawn(&axes, &prompts));
    // A value may be a list of weights.
    let list = ["fox", "--x", "lora=ink:0@0;1@0.5,ink:1"];
    let places = drawn(&list, &["fox <lora:ink:0@0,1@0.5>", "fox <lora:ink:1>"]);
    assert_eq!(places[1], (places[0].0 + 100, places[0].1));
    // The prompt may be the other axis, whichever it is.
    let (prompt, lora) = ("prompt=fox|owl", "lora=ink:1,ink:0.5");
    let [fox, owl] = ["fox <lora:ink:1>", "owl <lora:ink:1>"];
    let [half_fox, half_owl] = ["fox <lora:ink:0.5>", "owl <lora:ink:0.5>"];
    square(&drawn(
        &["--x", prompt, "--y", lora],
        &[fox, owl, half_fox, half_owl],
    ));
    square(&drawn(
        &["--x", lora, "--y", prompt],
        &[fox, half_fox, owl, half_owl],
    ));

    let (_, stderr) = GRID.succeed(
        folder.path(),
        &[&["a|b", "--x", "lora=ink:1,ink:0"], &common[..]].concat(),
    );
    assert_eq!(stderr.matches("warning: ").count(), 1, "{stderr}");
    for (lora, more, part) in [
        (
            "lora=ink:1,imk:1",
            &["--loras", loras][..],
            "request 1: prompt is a text with `<lora:imk:1>`, expected the name of a LoRA, such as ink",
        ),
        (
            "lora=ink:1",
            &["--loras", loras, "--y", "lora=ink:0.5"],
            "expected each LoRA once",
        ),
        (
            "lora=ink:1",
            &[],
            "prompt is a text with `<lora:ink:1>`, expected --loras with the folder of the LoRA",
        ),
    ] {
        let arguments = [&["fox", "--x", lora, "--steps", "1"], more].concat();
        GRID.fail(folder.path(), &arguments, 2, part);
    }
}

#[test]
fn the_default_name_is_the_prompt_and_the_seed_and_overwrites_nothing() {
    GRID.names_its_sheet(&["A fox!", "--x", "steps=1", "--seed", "3"], "a-fox-3-grid");
}

#[test]
fn bad_arguments_end_with_2_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let many: String = (1..=101).map(|n| format!("{n},")).collect();
    let many = [
        format!("steps={}", many.trim_end_matches(',')),
        format!("seed={}", many.trim_end_matches(',')),
    ];
    let cases: [(&[&str], &str); 39] = [
        (&["a", "fox", "--x", "steps=1"], "quote a prompt"),
        (
            &["fox", "--x", "steps=1", "--output", "g.webp"],
            "--output is g.webp, expected a name that ends in .png",
        ),
        (
            &["fox", "--x", "scheduler=DPM++ 2M,DPM++ 2M Karras"],
            "\"DPM++ 2M Karras\" draws the same as \"DPM++ 2M\" before it",
        ),
        (
            &["fox", "--x", "scheduler=Euler Karras", "--y", "ladder=beta"],
            "--x and --y both set ladder; give only one of them",
        ),
        (
            &["fox", "--x", "scheduler=Euler Karras", "--ladder", "karras"],
            "--x and --ladder both set ladder",
        ),
        (
            &["--x", "prompt=a fox|an [owl|a cat"],
            "a [ with a | after it is not closed",
        ),
        (&["fox"], "required arguments were not provided: --x"),
        (&["--x", "steps=1,2"], "there is no prompt"),
        (&["fox", "--x", "steps"], "expected a name, = and values"),
        (
            &["fox", "--x", "snakes=1"],
            "expected one of steps, guidance",
        ),
        (&["fox", "--x", "steps="], "there are no values"),
        (
            &["fox", "--x", "lora=<lora:ink:1>"],
            "\"<lora:ink:1>\": expected a name and its weights, such as ink:0.8",
        ),
        (&["--x", "lora=ink:1,ink:0"], "there is no prompt"),
        (&["fox", "--x", "steps=1,,2"], "a value is empty"),
        (
            &["fox", "--x", "steps=1,2,01"],
            "\"01\" draws the same as \"1\" before it",
        ),
        (
            &["fox", "--x", "guidance=0,1"],
            "\"1\" draws the same as \"0\"",
        ),
        (
            &["fox", "--x", "seed=1,4294967297"],
            "\"4294967297\" draws the same as \"1\"",
        ),
        (&["fox", "--x", "steps=0,1"], "\"0\": expected at least 1"),
        (
            &["fox", "--x", "steps=1,1001"],
            "request 1: steps is 1001, expected 1 to 1000",
        ),
        (
            &["fox", "--x", "guidance=1,inf"],
            "\"inf\": expected a finite number",
        ),
        (
            &["fox", "--x", "guidance=1,x"],
            "\"x\": invalid float literal",
        ),
        (
            &["fox", "--x", "clip-skip=1,5"],
            "request 1: clip_skip is 5, expected 1 to 4",
        ),
        (&["fox", "--x", "seed=-2"], "\"-2\": invalid digit"),
        (
            &["fox", "--x", "scheduler=euler,snake"],
            "\"snake\" is no scheduler",
        ),
        (
            &["fox", "--x", "scheduler=euler,EULER"],
            "\"EULER\" draws the same as \"Euler\"",
        ),
        (&["fox", "--x", "ladder=snake"], "\"snake\" is no ladder"),
        (&["fox", "--x", "size=64"], "expected width x height"),
        (
            &["fox", "--x", "size=64x60"],
            "height is 60, expected a positive multiple of 8",
        ),
        (&["fox", "--x", "size=65536x65536"], "the sheet would be"),
        (&["--x", "prompt=fox||cat"], "a value is empty"),
        (
            &["fox", "--x", "prompt=fox|cat"],
            "the prompt as an argument and --x both set prompt; give only one of them",
        ),
        (
            &["fox", "--steps", "3", "--x", "seed=1,2", "--y", "steps=1,2"],
            "--steps and --y both set steps; give only one of them",
        ),
        (
            &["fox", "--width", "64", "--x", "size=64x64,72x72"],
            "--width or --height and --x both set size",
        ),
        (
            &["fox", "--x", "steps=1,2", "--y", "steps=3,4"],
            "--x and --y are both steps",
        ),
        (
            &["fox", "--x", "negative=a|b", "--guidance", "1"],
            "the negative prompt is not used",
        ),
        (
            &["fox", "--x", "negative=a|b", "--y", "guidance=1"],
            "the negative prompt is not used",
        ),
        (
            &["fox", "--x", "ladder=leading,karras", "--scheduler", "ddim"],
            "the ladder karras does not fit the scheduler ddim",
        ),
        (
            &["fox", "--x", "scheduler=euler,ddim", "--y", "ladder=karras"],
            "the ladder karras does not fit the scheduler ddim",
        ),
        (
            &["fox", "--x", &many[0], "--y", &many[1]],
            "the sheet would have 10201 pictures",
        ),
    ];
    for (arguments, part) in cases {
        GRID.fail(folder.path(), arguments, 2, part);
    }
    assert!(
        files(folder.path()).is_empty(),
        "{:?}",
        files(folder.path())
    );
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_written_is_not_there() {
    GRID.fails_to_write(&["fox", "--x", "steps=1,2"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_it() {
    GRID.stops(&["fox", "--x", "steps=999,1000", "--output", "g.png"]);
}

#[test]
fn help_says_how_values_are_split() {
    let (stdout, _) = GRID.succeed(Path::new("."), &["--help"]);
    for part in [
        "split at commas",
        "--loras <DIR>",
        "--x <NAME=VALUES>",
        "--y <NAME=VALUES>",
        "--negative",
        "--output",
    ] {
        assert!(stdout.contains(part), "{part}");
    }
}
