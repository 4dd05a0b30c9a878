//! What is read of WebUI's infotexts, and what is said of them.

// In a test it is the failure.
#![allow(clippy::unwrap_used)]

use sd_core::{
    Infotext, PromptOptions, Request,
    schedulers::{
        AlignYourSteps, AlignedModel, FirstX, Ladder, NoiseKind, Scheduler, SchedulerConfig, Shape,
        Slerp, TABLE, Variation, from_webui, same,
    },
    text::{Cleanup, Emphasis},
};

/// The request and the differences that stem from `sampler` (with what follows it) in an otherwise plain file of WebUI.
fn read(sampler: &str) -> (Request, Vec<String>) {
    let text = format!(
        "a fox\nSteps: 20, Sampler: {sampler}, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
    );
    let again = Infotext::parse(&text).request();
    (again.request, again.differences)
}

/// Whether the sampler of a request is the one that WebUI has under this name.
fn is(request: &Request, name: &str) -> bool {
    let sampler = request.scheduler.sampler(&SchedulerConfig::default());
    same(&*sampler, &*from_webui(name, None).unwrap().sampler)
}

const GPU: &str = "the noise was drawn on a GPU that is not named, here it is that of `RNG: NV`: the same where the GPU has a thread for \
                   each of the latents' numbers";

#[test]
fn samplers_and_schedule_types_of_webui() {
    let (karras, uniform) = (Ladder::karras, Ladder::normal);
    let exponential = Ladder::exponential;
    let cases: [(&str, &str, Ladder, &[&str]); 24] = [
        ("Euler a, Schedule type: Karras", "Euler a", karras(), &[]),
        ("Euler Karras", "Euler", karras(), &[]),
        ("Heun, Schedule type: karras", "Heun", karras(), &[]),
        ("k_euler_ancestral", "Euler a", uniform(), &[]),
        ("Euler", "Euler", uniform(), &[]),
        ("Euler, Schedule type: Automatic", "Euler", uniform(), &[]),
        ("Euler, Schedule type: Normal", "Euler", uniform(), &[]),
        ("DPM++ 2M Karras", "DPM++ 2M", karras(), &[]),
        ("k_dpmpp_2m_ka", "DPM++ 2M", karras(), &[]),
        (
            "DPM++ 2M, Schedule type: Automatic",
            "DPM++ 2M",
            karras(),
            &[],
        ),
        ("DPM++ 2M", "DPM++ 2M", uniform(), &[]),
        (
            "DPM++ 2M SDE Exponential",
            "DPM++ 2M SDE",
            exponential(),
            &[],
        ),
        (
            "DPM++ 3M SDE, Schedule type: Automatic",
            "DPM++ 3M SDE",
            exponential(),
            &[],
        ),
        ("DPM2 Karras", "DPM2", karras(), &[]),
        (
            "DDIM, Schedule type: Karras, Version: v1.10.1",
            "DDIM",
            Ladder::ddim_uniform(),
            &[],
        ),
        (
            "Euler, Schedule type: Align Your Steps",
            "Euler",
            Ladder::AlignYourSteps(AlignYourSteps {
                model: AlignedModel::Sd15,
                three_digits: true,
                keep_last: true,
            }),
            &[],
        ),
        (
            "Euler, Schedule type: SGM Uniform",
            "Euler",
            Ladder::sgm_uniform(),
            &[],
        ),
        (
            "Euler, Schedule type: kl_optimal",
            "Euler",
            Ladder::shaped(Shape::KlOptimal {
                ends_at_lowest: true,
            }),
            &[],
        ),
        (
            "LCM, Schedule type: Automatic",
            "LCM",
            Ladder::lcm_even(),
            &[],
        ),
        ("LCM", "LCM", Ladder::lcm_even(), &[]),
        (
            "LCM, Schedule type: Karras",
            "LCM",
            karras(),
            &[
                "LCM's schedule type went over the sigmas of fifty timesteps, here over those of all",
            ],
        ),
        (
            "Snake a Karras",
            "Euler a",
            karras(),
            &["there is no sampler `Snake a`: Euler a stands in"],
        ),
        (
            "Snake",
            "DPM++ 2M",
            uniform(),
            &["there is no sampler `Snake`: DPM++ 2M stands in"],
        ),
        (
            "Euler, Schedule type: Sideways",
            "Euler",
            uniform(),
            &["there is no schedule type `Sideways`: the sampler's own stands in"],
        ),
    ];
    for (text, name, ladder, differences) in cases {
        let (request, found) = read(text);
        assert!(is(&request, name), "{text}: {:?}", request.scheduler);
        assert_eq!(request.ladder, Some(ladder), "{text}");
        assert_eq!(found, differences, "{text}");
    }
    for name in TABLE.iter().filter_map(|row| row.webui) {
        let (request, _) = read(&format!("{name}, Version: v1.10.1"));
        assert!(is(&request, name), "{name}");
    }
}

#[test]
fn the_first_x_is_that_of_the_file() {
    let first_x = |text: &str| {
        let (request, differences) = read(text);
        assert_eq!(differences, [""; 0]);
        let sampler = request.scheduler.sampler(&SchedulerConfig::default());
        sampler.conventions().first_x
    };
    let sgm = ", SGM noise multiplier: True";
    for name in ["Euler", "DPM++ 2M Karras"] {
        assert_eq!(first_x(name), FirstX::BySpacing);
        let preserving = first_x(&format!("{name}{sgm}"));
        assert_eq!(preserving, FirstX::VariancePreserving);
    }
}

#[test]
fn samplers_over_timesteps_depend_on_the_version_and_the_steps() {
    let differences = |sampler: &str, steps: usize| {
        let text = format!(
            "a\nSteps: {steps}, Sampler: {sampler}, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
        );
        Infotext::parse(&text).request().differences
    };
    assert_eq!(differences("DDIM", 50), [""; 0]);
    assert_eq!(
        differences("DDIM", 30),
        ["DDIM visited 31 timesteps for 30 steps, here as many as steps"]
    );
    assert_eq!(differences("DDIM", 5000).len(), 1);
    assert_eq!(differences("DDIM, Version: v1.6.0", 30), [""; 0]);
    assert_eq!(differences("UniPC", 20), [""; 0]);
    assert_eq!(
        differences("UniPC", 30),
        ["UniPC visited 31 timesteps for 30 steps, here as many as steps"]
    );
    for new in ["v1.10.1", "f2.0.1v1.10.1-previous-224", "2.1", "1a2b3c4"] {
        let (request, _) = read(&format!("DDIM, Version: {new}"));
        assert!(matches!(&request.scheduler, Scheduler::Own(_)), "{new}");
    }
    for old in ["DDIM", "DDIM, Version: v1.5.2"] {
        let (request, _) = read(old);
        assert!(matches!(&request.scheduler, Scheduler::Named(row) if row.name == "ddim"));
        assert_eq!(request.ladder, Some(Ladder::leading()));
    }
}

#[test]
fn early_versions_read_prompts_otherwise() {
    let differences = |prompt: &str, negative: &str, way: &str| {
        let text = format!(
            "{prompt}\nNegative prompt: {negative}\nSteps: 20, Sampler: {way}, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
        );
        Infotext::parse(&text).request().differences
    };
    let timeline = |schedule: &str| {
        format!(
            "in `{schedule}` WebUI took numbers of 1 and more for steps, also with a point, and those below for parts of them, also \
             without; here it is the point that says which"
        )
    };
    let old = "Euler, Version: v1.5.1";
    let told = differences(
        "a [fox:(owl:1.2):1.0], [b:3], [b:0.5], [b:0]",
        "[[c:5e-1]:2.5]",
        old,
    );
    let expected = ["[fox:(owl:1.2):1.0]", "[[c:5e-1]:2.5]", "[c:5e-1]"].map(timeline);
    assert_eq!(told, expected);
    let embedded = "a [b:1.0] AND [fox::2.] :0.5";
    assert_eq!(differences(embedded, "", old).len(), 2);
    for new in ["Euler, Version: v1.6.0", "Euler, Version: v1.10.1"] {
        assert_eq!(differences(embedded, "", new), [""; 0]);
    }

    let long = "fox, ".repeat(40);
    let padded = |sampler| {
        format!(
            "{sampler} cut a negative prompt to the prompt's length, or repeated its last vector, here each keeps its own"
        )
    };
    for sampler in ["DDIM", "PLMS"] {
        let old = format!("{sampler}, Version: v1.5.1");
        assert_eq!(differences(&long, "a", &old), [padded(sampler)]);
        assert_eq!(differences("a", "b BREAK c", &old), [padded(sampler)]);
        assert_eq!(differences("a", "b", &old), [""; 0]);
        let new = format!("{sampler}, Version: v1.6.0");
        assert_eq!(differences(&long, "a", &new), [""; 0]);
    }
    assert_eq!(differences(&long, "a", old), [""; 0]);
}

/// Of CFG++, whose scale WebUI has from 0 to 12.5.
#[test]
fn the_scale_of_cfg_pp_is_divided() {
    let text = "a\nSteps: 20, Sampler: DDIM CFG++, CFG scale: 7.5, Seed: 1, Size: 64x64, RNG: CPU, Version: v1.10.1";
    let read = Infotext::parse(text).request();
    assert_eq!(read.request.guidance.scale(), Some(0.6));
    assert_eq!(read.differences, [""; 0]);
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
        differences("a fox", ", Eta: 0.5, Sampler: Euler"),
        [""; 0],
        "where nothing is drawn on the way it is nothing"
    );
    assert_eq!(
        differences("a fox", ", CFG scale: 0.5"),
        ["at a CFG scale below 1 the negative prompt was mixed in, here it is not"]
    );
}

#[test]
fn noise_is_read_and_drawn_again() {
    let read = |entries: &str| {
        let text = format!(
            "a\nSteps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64{entries}"
        );
        let again = Infotext::parse(&text).request();
        (again.request, again.differences)
    };
    for (entries, noise, difference) in [
        (", RNG: CPU", NoiseKind::Torch, None),
        (", RNG: NV", NoiseKind::Philox, None),
        ("", NoiseKind::Philox, Some(GPU)),
        (", RNG: GPU", NoiseKind::Philox, Some(GPU)),
        (
            ", RNG: XYZ",
            NoiseKind::Torch,
            Some("the noise was drawn by `RNG: XYZ`, here it is that of torch's CPU generator"),
        ),
    ] {
        let (request, differences) = read(entries);
        assert_eq!(request.noise, noise, "{entries}");
        let difference: Vec<_> = difference.into_iter().collect();
        assert_eq!(differences, difference, "{entries}");
    }
    let (request, differences) = read(
        ", Variation seed: 3, Variation seed strength: 0.15, Seed resize from: 512x768, ENSD: 31337, RNG: CPU",
    );
    assert_eq!(differences, [""; 0]);
    let variation = Variation {
        seed: 3,
        strength: 0.15,
        slerp: Slerp::Columns,
    };
    assert_eq!(request.variation, Some(variation));
    assert_eq!(request.seed_resize, Some([512, 768]));
    assert_eq!(request.ensd, 31337);

    let (request, _) = read(", ENSD: -2, RNG: CPU");
    assert_eq!(request.ensd, u64::MAX - 1);
    let (request, differences) = read(
        ", Variation seed: x, Variation seed strength: 2, Seed resize from: 5, ENSD: y, RNG: CPU",
    );
    assert_eq!(
        (request.variation, request.seed_resize, request.ensd),
        (None, None, 0)
    );
    let unusable = |entry: &str| format!("`{entry}` cannot be used, the default stands in");
    let expected = [
        "Variation seed: x",
        "Variation seed strength: 2",
        "Seed resize from: 5",
        "ENSD: y",
    ];
    assert_eq!(differences, expected.map(unusable));
    let (request, differences) = read(", Variation seed: 3, RNG: CPU");
    assert_eq!(request.variation, None);
    assert_eq!(
        differences,
        ["`Variation seed strength` is missing, the default stands in"]
    );
}

#[test]
fn prompts_are_read_as_webui_reads_them() {
    for prompt in [
        "a (red:1.2) fox",
        r"fox \(animal\)",
        "a AND b BREAK c",
        "[a|b] and [a:b:0.5]",
        &"fox ".repeat(200),
    ] {
        assert_eq!(differences(prompt, ""), [""; 0], "{prompt}");
    }
    let networks = "a <lora:b:1> <hypernet:c>";
    assert_eq!(
        differences(networks, ""),
        [
            "`<lora:b:1>` is not applied",
            "`<hypernet:c>` is not applied"
        ]
    );
    assert_eq!(differences(networks, ", Version: sd-onnx 0.1.0"), [""; 0]);
    // There it is text.
    assert_eq!(differences("a\nNegative prompt: <lora:b:1>", ""), [""; 0]);
    let options = |entries: &str| read(&format!("Euler{entries}")).0.prompt_options;
    let webui = PromptOptions::default().cleanup(Cleanup::Ftfy);
    assert_eq!(options(""), webui);
    assert_eq!(options(", Emphasis: Original"), webui);
    for (name, emphasis) in [
        ("No norm", Emphasis::Multiply),
        ("Ignore", Emphasis::Ignore),
    ] {
        let expected = webui.emphasis(emphasis);
        assert_eq!(options(&format!(", Emphasis: {name}")), expected);
    }
    let padded = options(", Pad conds: True");
    assert!(padded.same_length);
    for entry in ["Emphasis: None", "Pad conds: v0"] {
        let expected = format!("`{entry}` is not followed");
        assert_eq!(differences("a", &format!(", {entry}")), [expected]);
    }
    assert_eq!(
        options(", Version: sd-onnx 0.1.0"),
        PromptOptions::default()
    );
}

#[test]
fn values_that_cannot_be_used_and_values_that_are_not_there() {
    let again = Infotext::parse(
        "a\nSteps: x, Sampler: Euler, Schedule type: Karras, CFG scale: inf, Seed: -1, Size: 1, Clip skip: 0, RNG: CPU",
    )
    .request();
    let unusable = |entry: &str| format!("`{entry}` cannot be used, the default stands in");
    let expected = [
        "Steps: x",
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
    assert_eq!((steps, seed, size, clip_skip), (None, None, None, Some(1)));

    let again = Infotext::parse("").request();
    let missing = |key| format!("`{key}` is missing, the default stands in");
    let mut expected = ["Steps", "Sampler", "CFG scale", "Seed", "Size"]
        .map(missing)
        .to_vec();
    expected.push(GPU.to_owned());
    assert_eq!(again.differences, expected);
    assert!(is(&again.request, "DPM++ 2M"));
    for size in ["0x0", "7x8", "8x", "x8", "8x8x8", "4294967296x8", "-8x8"] {
        let entries = format!(", Size: {size}");
        assert_eq!(
            differences("a", &entries),
            [unusable(&format!("Size: {size}"))],
            "{size}"
        );
    }
}
