//! Runs `steps` as a user does, on the small model.

// In a test, a panic is the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{ops::ControlFlow, path::Path};

use common::{Example, files, picture, place_of};
use image::{RgbImage, imageops};
use ndarray::{Array3, Axis};
use sd_examples::shipped_model;
use sd_onnx::{
    Event, Pipeline, Request, StopToken,
    schedulers::{Ladder, Sampler, SchedulerConfig, samplers::Heun},
};

const STEPS: Example = Example("steps");
const TXT2IMG: Example = Example("txt2img");

#[test]
fn the_last_column_is_the_picture_and_the_first_guess_that_of_one_step() {
    let folder = tempfile::tempdir().unwrap();
    let common = ["fox", "--seed", "7", "--guidance", "3"];
    let draw = |example: &Example, more: &[&str]| {
        example.succeed(
            folder.path(),
            &[&common[..], more, &["--output", "f.png"]].concat(),
        );
        picture(folder.path(), "f.png")
    };
    let strip = draw(&STEPS, &["--steps", "3"]);
    let last = draw(&TXT2IMG, &["--steps", "3"]);
    let (x, y) = place_of(&last, &strip).unwrap();
    // DPM++ 2M ends at exactly the model's last guess.
    let below = imageops::crop_imm(&strip, x, y + 100, 96, 96).to_image();
    assert_eq!(below, last, "denoised and noisy");
    // Every Karras ladder begins at the largest sigma.
    let first = draw(&TXT2IMG, &["--steps", "1"]);
    let at = place_of(&first, &strip).unwrap();
    assert!(at.0 + 2 * 100 <= x && at.1 == y, "{at:?}");
}

#[test]
fn prompts_call_loras() {
    let folder = tempfile::tempdir().unwrap();
    let loras = shipped_model().join("loras");
    let draw = |example: &Example, prompt: &str| {
        let common = ["--seed", "7", "--steps", "3", "--output", "f.png"];
        let loras = ["--loras", loras.to_str().unwrap()];
        example.succeed(folder.path(), &[&[prompt], &common[..], &loras].concat());
        picture(folder.path(), "f.png")
    };
    let strip = draw(&STEPS, "fox <lora:ink:0@0,1@0.5>");
    let (plain, with) = (
        draw(&TXT2IMG, "fox"),
        draw(&TXT2IMG, "fox <lora:ink:0@0,1@0.5>"),
    );
    assert!(place_of(&with, &strip).is_some());
    assert!(place_of(&plain, &strip).is_none());
}

/// Returns the denoised and the noisy latents after each step, computed without the example.
fn seen(pipeline: &Pipeline, steps: usize) -> Vec<[Array3<f32>; 2]> {
    let request = Request::new("fox")
        .seed(7)
        .steps(steps)
        .scheduler(Heun::default())
        .ladder(Ladder::karras());
    let rungs = Ladder::karras()
        .rungs(pipeline.schedule(), steps, &Heun::default().conventions())
        .unwrap();
    let mut seen = Vec::new();
    let observer = |event: Event<'_>| {
        if let Event::Step(progress) = event {
            let arrived = rungs.sigmas()[progress.step.index + 1];
            let noisy = progress.latents.mapv(|value| value / arrived.hypot(1.0));
            seen.push([progress.denoised.to_owned(), noisy]);
        }
        ControlFlow::Continue(())
    };
    pipeline
        .run(&[request], &StopToken::new(), observer)
        .unwrap();
    seen
}

/// Returns the strip that `steps` draws of the same run.
fn strip(folder: &Path, more: &[&str]) -> RgbImage {
    let arguments = [
        "fox",
        "--seed",
        "7",
        "--scheduler",
        "heun",
        "--output",
        "f.png",
    ];
    STEPS.succeed(folder, &[&arguments[..], more].concat());
    picture(folder, "f.png")
}

#[test]
fn each_step_is_seen_denoised_and_noisy() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = sd_onnx::builder().load(shipped_model()).unwrap();
    assert_eq!(
        pipeline.scheduler_config().clip,
        SchedulerConfig::default().clip
    );
    let seen = seen(&pipeline, 5);
    let decoded: Vec<_> = seen
        .iter()
        .map(|rows| {
            rows.each_ref().map(|latents| {
                pipeline
                    .decode(latents.view().insert_axis(Axis(0)))
                    .unwrap()
            })
        })
        .collect();
    let places = |strip: &RgbImage| -> Vec<_> {
        decoded
            .iter()
            .map(|rows| rows.each_ref().map(|picture| place_of(picture, strip)))
            .collect()
    };

    let all = places(&strip(folder.path(), &["--steps", "5"]));
    let all: Vec<_> = all
        .iter()
        .map(|places| places.map(Option::unwrap))
        .collect();
    for (column, [denoised, noisy]) in all.iter().enumerate() {
        if column < 4 {
            assert_eq!(
                *noisy,
                (denoised.0, denoised.1 + 100),
                "one above the other"
            );
        }
        assert!(
            column == 0 || denoised.0 >= all[column - 1][0].0 + 100,
            "{all:?}"
        );
    }

    let some = places(&strip(folder.path(), &["--steps", "5", "--columns", "3"]));
    let shown: Vec<_> = some.iter().map(|places| places[0].is_some()).collect();
    assert_eq!(shown, [true, false, true, false, true]);

    let preview = strip(folder.path(), &["--steps", "5", "--preview"]);
    let coefficients = pipeline.latent_rgb();
    for rows in &seen {
        for latents in rows {
            let small = coefficients.picture(latents.view());
            let blocks = RgbImage::from_fn(96, 96, |x, y| *small.get_pixel(x / 8, y / 8));
            assert!(place_of(&blocks, &preview).is_some());
        }
    }
}

#[test]
fn the_default_name_is_the_prompt_and_the_seed_and_overwrites_nothing() {
    STEPS.names_its_sheet(&["A fox!", "--steps", "1", "--seed", "3"], "a-fox-3-steps");
}

#[test]
fn bad_arguments_end_with_2_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 10] = [
        (&["a", "fox"], "quote a prompt of several words"),
        (
            &["fox", "--output", "f.gif"],
            "expected a name that ends in .png",
        ),
        (&[], "required arguments were not provided: <PROMPT>"),
        (&["fox", "--columns", "1"], "--columns"),
        (&["fox", "--columns", "many"], "--columns"),
        (&["fox", "--steps", "0"], "expected at least 1"),
        (
            &["fox", "--steps", "18446744073709551615"],
            "expected 1 to 1000",
        ),
        (&["fox", "--height", "9"], "height is 9"),
        (
            &["fox", "--width", "16384", "--height", "16384"],
            "the sheet would be",
        ),
        (
            &["fox", "--ladder", "karras", "--scheduler", "ddim"],
            "does not fit",
        ),
    ];
    for (arguments, part) in cases {
        STEPS.fail(folder.path(), arguments, 2, part);
    }
    assert!(
        files(folder.path()).is_empty(),
        "{:?}",
        files(folder.path())
    );
}

#[cfg(target_os = "linux")]
#[test]
fn progress_counts_steps_and_then_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["fox", "--steps", "4", "--columns", "3"];
    let Some(shown) = STEPS.on_a_terminal(folder.path(), &arguments) else {
        return;
    };
    assert!(shown.contains(" 0/4 steps, "), "{shown:?}");
    assert!(shown.contains(" 0/6 pictures, "), "{shown:?}");
    assert!(!shown.contains("/10"), "{shown:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_written_is_not_there() {
    STEPS.fails_to_write(&["fox", "--steps", "1"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_it() {
    STEPS.stops(&[
        "fox",
        "--steps",
        "1000",
        "--columns",
        "2",
        "--output",
        "f.png",
    ]);
}
