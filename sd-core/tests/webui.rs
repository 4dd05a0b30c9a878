//! What is read of WebUI's infotexts, and what is said of them.

// In a test it is the failure.
#![allow(clippy::unwrap_used)]

use sd_core::{
    Infotext, Request,
    schedulers::{Ladder, Scheduler, TABLE},
};

fn scheduler(request: &Request) -> &'static str {
    match &request.scheduler {
        Scheduler::Named(row) => row.name,
        Scheduler::Own(sampler) => panic!("{sampler:?}"),
    }
}

/// The ladder and the differences that stem from `sampler` (with what follows it) in an otherwise plain file of WebUI.
fn read(sampler: &str) -> (&'static str, Ladder, Vec<String>) {
    let text = format!(
        "a fox\nSteps: 20, Sampler: {sampler}, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
    );
    let again = Infotext::parse(&text).request();
    let ladder = again.request.ladder.unwrap();
    (scheduler(&again.request), ladder, again.differences)
}

const LOG_SIGMA: &str = "sigmas between training timesteps were interpolated in their logarithm, here they are linearly";
const FIRST_X: &str = "x began as noise times sigma, with DPM++ 2M on this ladder it is noise times sqrt(sigma² + 1) here";
const ROUNDED: &str =
    "the network was told the timesteps as they are, with DPM++ 2M here they are rounded";
const ENDS: &str =
    "the ladder went down to timestep 0, with DPM++ 2M here it ends a step above and is rounded";

#[test]
fn samplers_and_schedule_types_of_webui() {
    let (karras, linspace) = (Ladder::karras(), Ladder::linspace());
    let cases: [(&str, &str, Ladder, &[&str]); 21] = [
        ("Euler a, Schedule type: Karras", "euler-a", karras, &[]),
        ("Euler Karras", "euler", karras, &[]),
        ("Heun, Schedule type: karras", "heun", karras, &[]),
        ("k_euler_ancestral", "euler-a", linspace, &[LOG_SIGMA]),
        ("Euler", "euler", linspace, &[LOG_SIGMA]),
        (
            "Euler, Schedule type: Automatic",
            "euler",
            linspace,
            &[LOG_SIGMA],
        ),
        (
            "Euler, Schedule type: Normal",
            "euler",
            linspace,
            &[LOG_SIGMA],
        ),
        ("DPM++ 2M Karras", "dpmpp-2m", karras, &[FIRST_X, ROUNDED]),
        ("k_dpmpp_2m_ka", "dpmpp-2m", karras, &[FIRST_X, ROUNDED]),
        (
            "DPM++ 2M, Schedule type: Automatic",
            "dpmpp-2m",
            karras,
            &[FIRST_X, ROUNDED],
        ),
        (
            "DPM++ 2M, Schedule type: Karras, SGM noise multiplier: True",
            "dpmpp-2m",
            karras,
            &[ROUNDED],
        ),
        ("DPM++ 2M", "dpmpp-2m", linspace, &[FIRST_X, ENDS]),
        (
            "Euler, Schedule type: Karras, SGM noise multiplier: True",
            "euler",
            karras,
            &[
                "x began as noise times sqrt(sigma² + 1), with Euler on this ladder it is noise times sigma here",
            ],
        ),
        ("DDIM", "ddim", Ladder::leading(), &[]),
        (
            "DDIM, Schedule type: Karras, Version: v1.10.1",
            "ddim",
            Ladder::leading(),
            &["DDIM of WebUI 1.6 and later leaves out its last step, here it is taken"],
        ),
        ("DDIM, Version: v1.5.2", "ddim", Ladder::leading(), &[]),
        (
            "Euler, Schedule type: Align Your Steps",
            "euler",
            karras,
            &["there is no schedule type `Align Your Steps`: karras stands in"],
        ),
        (
            "Euler, Schedule type: SGM Uniform",
            "euler",
            Ladder::trailing(),
            &["there is no schedule type `SGM Uniform`: trailing stands in"],
        ),
        (
            "DPM++ 2M SDE Exponential",
            "euler-a",
            karras,
            &[
                "there is no sampler `DPM++ 2M SDE`: Euler a stands in",
                "there is no schedule type `Exponential`: karras stands in",
            ],
        ),
        (
            "DPM2 Karras",
            "heun",
            karras,
            &["there is no sampler `DPM2`: Heun stands in"],
        ),
        (
            "Euler, Schedule type: Sideways",
            "euler",
            karras,
            &["there is no schedule type `Sideways`: the default stands in"],
        ),
    ];
    for (text, row, ladder, differences) in cases {
        let read = read(text);
        assert_eq!((read.0, read.1), (row, ladder), "{text}");
        assert_eq!(read.2, differences, "{text}");
    }
    for row in &TABLE {
        assert_eq!(read(row.title).0, row.name);
    }
}

#[test]
fn what_webui_does_otherwise_depends_on_the_steps() {
    let differences = |sampler: &str, steps: usize| {
        let text = format!(
            "a\nSteps: {steps}, Sampler: {sampler}, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
        );
        Infotext::parse(&text).request().differences
    };
    // 999 / 27 is whole: every point is a training timestep.
    assert_eq!(differences("Euler", 28), [""; 0]);
    assert_eq!(differences("Euler", 1), [""; 0]);
    assert_eq!(differences("Euler", 29), [LOG_SIGMA]);
    assert_eq!(differences("DDIM", 50), [""; 0]);
    assert_eq!(
        differences("DDIM", 30),
        ["DDIM visited 31 timesteps for 30 steps in WebUI, here as many as steps"]
    );
    assert_eq!(differences("DDIM", 5000).len(), 1);
}

/// A plain file of WebUI's, with changes to it.
fn differences(prompt: &str, entries: &str) -> Vec<String> {
    let text = format!(
        "{prompt}\nSteps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU{entries}"
    );
    Infotext::parse(&text).request().differences
}

#[test]
fn each_key_that_is_not_followed_is_named_once() {
    assert_eq!(differences("a fox", ""), [""; 0]);
    assert_eq!(
        differences(
            "a fox",
            ", Model: a, Model hash: 1, Version: v1.10.1, Batch size: 1"
        ),
        [""; 0]
    );
    for entry in [
        "Denoising strength: 0.7",
        "Hires upscale: 2",
        "Variation seed: 3",
        "Eta: 0.5",
        "Refiner: b",
        "Tiling: True",
        "ControlNet 0: x",
        "VAE: c",
        "Face restoration: GFPGAN",
        "Schedule rho: 5",
        "SD from the future: 1",
    ] {
        assert_eq!(
            differences("a fox", &format!(", {entry}, {entry}")),
            [format!("`{entry}` is not followed")]
        );
    }
    assert_eq!(
        differences("a fox", ", RNG: NV"),
        ["the noise was drawn by `RNG: NV`, here it is that of torch's CPU generator"]
    );
    assert_eq!(
        differences("a fox", ", ENSD: 31337"),
        ["the noise of the steps had a seed of its own (`ENSD: 31337`)"]
    );
    // Where nothing is drawn on the way it is nothing.
    assert_eq!(
        differences("a fox", ", ENSD: 31337, Eta: 0.5, Sampler: Euler"),
        [""; 0]
    );
    assert_eq!(
        differences("a fox", ", CFG scale: 0.5"),
        ["at a CFG scale below 1 the negative prompt was mixed in, here it is not"]
    );
}

#[test]
fn prompt_syntax_is_named_where_webui_reads_it() {
    let syntax = |what: &str, found: &str| {
        vec![format!(
            "the {what} has syntax that is taken for plain text here: {found}"
        )]
    };
    for (prompt, found) in [
        ("a (red:1.2) fox", "attention brackets"),
        ("[a] fox", "attention brackets"),
        (r"fox \(animal\)", r"escaped brackets (`\(`)"),
        ("a AND b", "`AND`"),
        ("a BREAK b", "`BREAK`"),
        ("a <lora:b:1>", "extra networks (`<lora:…>`)"),
        ("[a|b]", "attention brackets, alternation (`[a|b]`)"),
        (
            "[a:b:0.5]",
            "attention brackets, prompt editing (`[a:b:0.5]`)",
        ),
    ] {
        assert_eq!(differences(prompt, ""), syntax("prompt", found), "{prompt}");
        let negative = format!("a\nNegative prompt: {prompt}");
        assert_eq!(
            differences(&negative, ""),
            syntax("negative prompt", found),
            "{prompt}"
        );
        // Neither where the negative prompt is not looked at, nor in a file of ours.
        assert_eq!(differences(&negative, ", CFG scale: 1"), [""; 0]);
        assert_eq!(differences(prompt, ", Version: sd-onnx 0.1.0"), [""; 0]);
    }
    for plain in ["a fox, 2 > 1", "LAND BREAKFAST", "a < b", "C:\\fox"] {
        assert_eq!(differences(plain, ""), [""; 0]);
    }
    assert_eq!(differences(&"fox ".repeat(75), ""), [""; 0]);
    assert_eq!(
        differences(&"fox ".repeat(76), ""),
        ["the prompt is longer than the 75 tokens that are read here"]
    );
}

#[test]
fn values_that_cannot_be_used_and_values_that_are_not_there() {
    let again = Infotext::parse(
        "a\nSteps: x, Sampler: Euler, Schedule type: Karras, CFG scale: inf, Seed: -1, Size: 1, Clip skip: 0, RNG: CPU, \
         SD ladder: nonsense",
    )
    .request();
    let unusable = |entry: &str| format!("`{entry}` cannot be used, the default stands in");
    let expected = [
        "Steps: x",
        "SD ladder: nonsense",
        "CFG scale: inf",
        "Seed: -1",
        "Size: 1",
        "Clip skip: 0",
    ];
    assert_eq!(again.differences, expected.map(unusable));
    let Request {
        steps,
        seed,
        size,
        clip_skip,
        ..
    } = again.request;
    assert_eq!((steps, seed, size, clip_skip), (20, None, None, Some(1)));

    let again = Infotext::parse("").request();
    let missing = |key| format!("`{key}` is missing, the default stands in");
    let mut expected = ["Steps", "Sampler", "CFG scale", "Seed", "Size"]
        .map(missing)
        .to_vec();
    expected.push(
        "the noise was drawn on a GPU (no `RNG: CPU`), here it is that of torch's CPU generator"
            .to_owned(),
    );
    let found: Vec<_> = again
        .differences
        .into_iter()
        // Of the ladder that is taken for want of a sampler.
        .filter(|found| ![FIRST_X, ENDS].contains(&&**found))
        .collect();
    assert_eq!(found, expected);
    for size in ["0x0", "7x8", "8x", "x8", "8x8x8", "4294967296x8", "-8x8"] {
        let entries = format!(", Size: {size}");
        assert_eq!(
            differences("a", &entries),
            [unusable(&format!("Size: {size}"))],
            "{size}"
        );
    }
}
