//! Reading infotexts of WebUI and its relatives, and the differences that are reported.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

use sd_core::{
    HiresSize, Infotext, InfotextError, PromptOptions, Request,
    schedulers::{
        Ladder, Sampler, Scheduler, SchedulerConfig, from_webui,
        ladders::{AlignYourSteps, AlignedModel, FirstX, Shape},
        noise::{NoiseKind, Slerp, Variation},
        samplers::TABLE,
    },
    text::{Cleanup, Emphasis, Syntax},
};

fn parse(text: &str) -> Infotext {
    Infotext::parse(text).unwrap()
}

/// Returns the request and the differences for a WebUI infotext whose sampler, and anything after
/// it, is `sampler`.
fn read(sampler: &str) -> (Request, Vec<String>) {
    let text = format!(
        "a fox\nSteps: 20, Sampler: {sampler}, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
    );
    let again = parse(&text).request();
    (again.request, again.differences)
}

/// Returns whether the sampler of a request is WebUI's sampler of this name.
fn is(request: &Request, name: &str) -> bool {
    let sampler = request
        .scheduler
        .as_ref()
        .unwrap()
        .sampler(&SchedulerConfig::default());
    *sampler == *from_webui(name, None).unwrap().sampler
}

const GPU: &str = "the noise was drawn on a GPU that is not named, so the noise of `RNG: NV` is used: it is \
                   the same if the GPU has a thread for each value of the latents";

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
                "LCM's schedule type covered the sigmas of 50 timesteps, but here it covers the sigmas of all",
            ],
        ),
        (
            "Snake a Karras",
            "Euler a",
            karras(),
            &["sampler `Snake a` is unknown, so Euler a is used"],
        ),
        (
            "Snake",
            "DPM++ 2M",
            uniform(),
            &["sampler `Snake` is unknown, so DPM++ 2M is used"],
        ),
        (
            "Euler, Schedule type: Sideways",
            "Euler",
            uniform(),
            &["schedule type `Sideways` is unknown, so the usual one is used"],
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
        let sampler = request
            .scheduler
            .as_ref()
            .unwrap()
            .sampler(&SchedulerConfig::default());
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
        parse(&text).request().differences
    };
    assert_eq!(differences("DDIM", 50), [""; 0]);
    assert_eq!(
        differences("DDIM", 30),
        ["DDIM visited 31 timesteps for 30 steps, but here it visits 30"]
    );
    assert_eq!(differences("DDIM", 5000).len(), 1);
    assert_eq!(differences("DDIM, Version: v1.6.0", 30), [""; 0]);
    assert_eq!(differences("UniPC", 20), [""; 0]);
    assert_eq!(
        differences("UniPC", 30),
        ["UniPC visited 31 timesteps for 30 steps, but here it visits 30"]
    );
    for new in ["v1.10.1", "f2.0.1v1.10.1-previous-224", "2.1", "1a2b3c4"] {
        let (request, _) = read(&format!("DDIM, Version: {new}"));
        assert!(
            matches!(&request.scheduler, Some(Scheduler::Custom(_))),
            "{new}"
        );
    }
    for old in ["DDIM", "DDIM, Version: v1.5.2"] {
        let (request, _) = read(old);
        assert!(matches!(&request.scheduler, Some(Scheduler::Named(row)) if row.name == "ddim"));
        assert_eq!(request.ladder, Some(Ladder::leading()));
    }
}

#[test]
fn early_versions_read_prompts_otherwise() {
    let differences = |prompt: &str, negative: &str, way: &str| {
        let text = format!(
            "{prompt}\nNegative prompt: {negative}\nSteps: 20, Sampler: {way}, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
        );
        parse(&text).request().differences
    };
    let timeline = |schedule: &str| {
        format!(
            "in `{schedule}` WebUI took a number of 1 or more as a step, and a smaller one as a share of the steps, but here a \
             number with a decimal point is a share, and one without is a step"
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
            "{sampler} cut the negative prompt to the prompt's length or repeated its last vector, but here each prompt keeps its length"
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

/// WebUI's scale for CFG++ samplers is 0 to 12.5.
#[test]
fn the_scale_of_cfg_pp_is_divided() {
    let text = "a\nSteps: 20, Sampler: DDIM CFG++, CFG scale: 7.5, Seed: 1, Size: 64x64, RNG: CPU, Version: v1.10.1";
    let read = parse(text).request();
    assert_eq!(read.request.guidance.unwrap().scale(), Some(0.6));
    assert_eq!(read.differences, [""; 0]);
}

/// Returns the differences of a plain WebUI infotext with this prompt and these additional entries.
fn differences(prompt: &str, entries: &str) -> Vec<String> {
    let text = format!(
        "{prompt}\nSteps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU{entries}"
    );
    parse(&text).request().differences
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
    // A picture of image to image, and one with a second pass.
    let started = "the run started from a picture, which has to be supplied";
    assert_eq!(differences("a fox", ", Denoising strength: 0.7"), [started]);
    let second = ", Denoising strength: 0.7, Hires upscale: 2";
    assert_eq!(differences("a fox", second), [""; 0]);
    for entry in [
        "Hires checkpoint: other",
        "Eta: 0.5",
        "ControlNet 16: x",
        "VAE: c",
        "Face restoration: GFPGAN",
        "Schedule rho: 5",
        "SD from the future: 1",
    ] {
        assert_eq!(
            differences("a fox", &format!(", {entry}, {entry}")),
            [format!("`{entry}` is ignored")]
        );
    }
    let seamless = "the picture is seamless along x and y, for which the model has to be loaded";
    assert_eq!(differences("a fox", ", Tiling: True"), [seamless]);
    assert_eq!(
        differences("a fox", ", Tiling: 2"),
        ["`Tiling: 2` cannot be used, so the default is used"]
    );
    assert_eq!(
        differences("a fox", ", Eta: 0.5, Sampler: Euler"),
        [""; 0],
        "eta has no effect without noise between steps"
    );
    assert_eq!(
        differences("a fox", ", CFG scale: 0.5"),
        ["at a CFG scale below 1 the negative prompt was mixed in, but here it is ignored"]
    );
}

#[test]
fn noise_is_read_and_drawn_again() {
    let read = |entries: &str| {
        let text = format!(
            "a\nSteps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64{entries}"
        );
        let again = parse(&text).request();
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
            Some(
                "the noise was drawn by `RNG: XYZ`, which is unknown, so torch's CPU generator is used",
            ),
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
    let unusable = |entry: &str| format!("`{entry}` cannot be used, so the default is used");
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
        ["`Variation seed strength` is missing, so the default is used"]
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
            "`<hypernet:c>` is not applied",
            "`<lora:b:1>` calls a LoRA, which the pipeline must have",
        ]
    );
    assert_eq!(
        differences(networks, ", Version: sd-onnx 0.1.0"),
        ["`<lora:b:1>` calls a LoRA, which the pipeline must have"]
    );
    assert_eq!(
        differences("<lora:b:x>", ", Lora hashes: \"c: d\""),
        [
            "`<lora:b:x>` calls a LoRA, which the pipeline must have",
            "the LoRA `c: d` was used, but the prompt does not call it",
        ]
    );
    assert_eq!(
        differences(networks, ", Lora hashes: \"b: 123456789abc, d: e\""),
        [
            "`<hypernet:c>` is not applied",
            "`<lora:b:1>` calls a LoRA with the hash `123456789abc`, which the pipeline must have",
            "the LoRA `d: e` was used, but the prompt does not call it",
        ]
    );
    // In a negative prompt this is plain text.
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
        let expected = format!("`{entry}` is ignored");
        assert_eq!(differences("a", &format!(", {entry}")), [expected]);
    }
    assert_eq!(
        options(", Version: sd-onnx 0.1.0"),
        PromptOptions::default()
    );
}

#[test]
fn values_that_cannot_be_used_and_values_that_are_not_there() {
    let again = parse(
        "a\nSteps: x, Sampler: Euler, Schedule type: Karras, CFG scale: inf, Seed: -1, Size: 1, Clip skip: 0, RNG: CPU",
    )
    .request();
    let unusable = |entry: &str| format!("`{entry}` cannot be used, so the default is used");
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
    assert_eq!((steps, seed, size, clip_skip), (None, None, None, Some(0)));

    let again = parse("").request();
    let missing = |key| format!("`{key}` is missing, so the default is used");
    let mut expected = vec!["the infotext has no prompt, so an empty one is used".to_owned()];
    expected.extend(["Steps", "Sampler", "CFG scale", "Seed", "Size"].map(missing));
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

/// These files were published by people; the prompts are changed and the sizes are smaller.
#[test]
fn published_infotexts() {
    let adetailer = [
        "`ADetailer model: face.pt`",
        "`ADetailer prompt: photo, (film grain)`",
        "`UnrealisticDream: 1.3)\"`",
        "`ADetailer version: 23.6.1.post0`",
        "`ADetailer negative prompt: \"BadDream`",
        "`ADetailer dilate/erode 2nd: 4`",
        "`ADetailer negative prompt 2nd: \"BadDream`",
        "`ADetailer denoising strength 2nd: 0.3`",
    ]
    .map(|entry| format!("{entry} is ignored"));
    let enlarged = "the picture was enlarged by `8x_NMKD`, which the pipeline must have";
    let mut of_adetailer = vec![enlarged, GPU];
    of_adetailer.extend(adetailer.iter().map(String::as_str));
    type Case<'a> = (&'a str, [&'a str; 2], &'a str, Ladder, Vec<&'a str>);
    let cases: [Case<'_>; 11] = [
        (
            include_str!("data/infotexts/d01-hashes-json.txt"),
            [
                "a fox, movie poster, <lora:posters:0.8>, 1960s \\(style\\)",
                "blurry",
            ],
            "dpmpp-2m",
            Ladder::karras(),
            vec!["`<lora:posters:0.8>` calls a LoRA, which the pipeline must have"],
        ),
        (
            include_str!("data/infotexts/d02-template-lines.txt"),
            ["a red fox", "blurry"],
            "euler",
            Ladder::normal(),
            vec![],
        ),
        (
            include_str!("data/infotexts/d03-civitai-one-line.txt"),
            ["a fox on a blue background, FOG", ""],
            "dpmpp-2m",
            Ladder::normal(),
            vec!["sampler `Undefined` is unknown, so DPM++ 2M is used", GPU],
        ),
        (
            include_str!("data/infotexts/d04-civitai-resources.txt"),
            ["a fox,\nambient, vivid colors", "greyscale"],
            "dpmpp-2m",
            Ladder::karras(),
            vec![GPU],
        ),
        (
            include_str!("data/infotexts/d05-sdnext.txt"),
            ["a fox in rain", "batman, comic"],
            "dpmpp-sde",
            Ladder::karras(),
            vec![
                "`DPM SDE` is a sampler of diffusers, so DPM++ SDE with its usual options is used",
                GPU,
                "the picture was made by SD.Next, whose computations differ from WebUI's",
                "`CFG rescale: 0.8` is ignored",
                "`CFG end: 0.9` is ignored",
                "`Sampler beta schedule: linear` is ignored",
                "`FreeU: b1=1.1 b2=1.15 s1=0.7 s2=0.6` is ignored",
            ],
        ),
        (
            include_str!("data/infotexts/d07-forge-neo.txt"),
            ["<lora:detail:0.8>, fox", "bad"],
            "euler-a",
            Ladder::normal(),
            vec![
                "`<lora:detail:0.8>` calls a LoRA, which the pipeline must have",
                "`forge_couple: True` is ignored",
                r"`forge_couple_separator: \n` is ignored",
                "`forge_couple_common_parser: { }` is ignored",
                "`Module 1: vae` is ignored",
            ],
        ),
        (
            include_str!("data/infotexts/d08-size-540x960.txt"),
            ["a fox", ""],
            "euler",
            Ladder::normal(),
            vec![
                "the size was 140x100, and is rounded down to 136x96, as sides are multiples of 8",
            ],
        ),
        (
            include_str!("data/infotexts/d09-comfy-names.txt"),
            ["a red fox in the snow", "blurry"],
            "dpmpp-2m-sde",
            Ladder::karras(),
            vec!["dpmpp_2m_sde_gpu drew its noise on a GPU, but here it is drawn on the CPU"],
        ),
        (
            include_str!("data/infotexts/d10-adetailer-quotes.txt"),
            ["(masterpiece), a fox", "BadDream, (UnrealisticDream:1.3)"],
            "dpmpp-sde",
            Ladder::karras(),
            of_adetailer,
        ),
        (
            include_str!("data/infotexts/d11-regional.txt"),
            [
                "2foxes,outdoors,\nADDCOMM mint dress,\nADDCOL brown,(dark:1.2),",
                "verybadimagenegative_v1.3,",
            ],
            "dpmpp-2m",
            Ladder::karras(),
            vec![
                "the picture was enlarged by `4x`, which the pipeline must have",
                GPU,
                "the prompts name textual inversions, which have to be loaded: \
                 `verybadimagenegative_v1.3: d70463f87042`",
                "`RP Active: True` is ignored",
                "`RP Divide mode: Matrix` is ignored",
                "`RP Ratios: 1,1` is ignored",
                "`RP Base Ratios: 0.2` is ignored",
                "`RP Use Base: False` is ignored",
            ],
        ),
        (
            include_str!("data/infotexts/d22-ensd.txt"),
            ["a fox (crystal:1.3)", ""],
            "euler-a",
            Ladder::normal(),
            vec![GPU],
        ),
    ];
    for (text, [prompt, negative], row, ladder, differences) in cases {
        let infotext = parse(text);
        assert_eq!([&*infotext.prompt, &*infotext.negative], [prompt, negative]);
        let again = infotext.request();
        assert_eq!(row_of(&again.request), row, "{text}");
        assert_eq!(again.request.ladder, Some(ladder), "{text}");
        assert_eq!(again.differences, differences, "{text}");
    }
    let sdnext = parse(include_str!("data/infotexts/d05-sdnext.txt"));
    let variation = sdnext.request().request.variation.unwrap();
    assert_eq!((variation.seed, variation.strength), (999, 0.3));
    let templates = parse(include_str!("data/infotexts/d02-template-lines.txt"));
    assert_eq!(templates.get("Template"), Some("a {red|blue} fox"));
    assert_eq!(templates.get("Negative Template"), Some("{blurry|dark}"));
}

/// Returns the name of the row of a request's sampler: the row with the same options, or else a row
/// of the same type.
fn row_of(request: &Request) -> &'static str {
    let config = SchedulerConfig::default();
    let options = |sampler: &dyn Sampler| {
        let debug = format!("{sampler:?}");
        let inner = debug.strip_prefix("WithConventions { sampler: ");
        let inner = inner.unwrap_or(&debug);
        inner.split(", conventions: ").next().unwrap().to_owned()
    };
    let kind = |options: &str| options.split(' ').next().unwrap().to_owned();
    let found = options(&*request.scheduler.as_ref().unwrap().sampler(&config));
    let with = |same: &dyn Fn(&str) -> bool| {
        let mut rows = TABLE.iter();
        rows.find(|row| same(&options(&*(row.build)(&config))))
    };
    let row = with(&|built| built == found).or_else(|| with(&|built| kind(built) == kind(&found)));
    row.unwrap().name
}

#[test]
fn templates_stand_below_the_entries() {
    let keys = "Steps: 20, Sampler: Euler, Seed: 1";
    let of = |text: &str| {
        let infotext = parse(text);
        let value = |key| infotext.get(key).map(str::to_owned);
        let found = [
            value("Steps"),
            value("Template"),
            value("Negative Template"),
        ];
        (infotext.prompt.clone(), infotext.negative.clone(), found)
    };
    let some = |value: &str| Some(value.to_owned());
    let (prompt, negative, found) = of(&format!(
        "a\nNegative prompt: b\n{keys}\nTemplate: {{a|c}},\n(d:1.2), (e:1.3), (f:1.4)\nNegative Template: b"
    ));
    assert_eq!((&*prompt, &*negative), ("a", "b"));
    let template = some("{a|c},\n(d:1.2), (e:1.3), (f:1.4)");
    assert_eq!(found, [some("20"), template, some("b")]);
    let (prompt, _, found) = of(&format!("a\n{keys}\nNegative Template: b"));
    assert_eq!((&*prompt, found), ("a", [some("20"), None, some("b")]));
    // In a prompt these lines are text.
    let (prompt, _, found) = of(&format!("a\nTemplate: b\n{keys}"));
    assert_eq!(
        (&*prompt, found),
        ("a\nTemplate: b", [some("20"), None, None])
    );
    let (prompt, _, found) = of(&format!("a\n{keys}\nTemplate: b\n{keys}"));
    assert_eq!(prompt, format!("a\n{keys}\nTemplate: b"));
    assert_eq!(found, [some("20"), None, None]);
}

#[test]
fn prompts_on_the_line_of_the_entries() {
    let keys = "Steps: 20, Sampler: Euler, Seed: 1";
    let prompts = |text: &str| {
        let infotext = parse(text);
        assert_eq!(infotext.get("Steps"), Some("20"), "{text}");
        (infotext.prompt, infotext.negative)
    };
    for (text, prompt, negative) in [
        ("a fox Negative prompt: b, c: d ", "a fox", "b, c: d"),
        ("a fox, an owl, ", "a fox, an owl,", ""),
        ("a: b Negative prompt: ", "a: b", ""),
        ("Negative prompt: b ", "", "b"),
        ("", "", ""),
        ("Size: 64x64, ", "", ""),
    ] {
        let found = prompts(&format!("{text}{keys}"));
        assert_eq!(found, (prompt.to_owned(), negative.to_owned()), "{text}");
    }
    for text in [
        format!("a Steps: 3, b Negative prompt: c {keys}"),
        format!("a Negative prompt: b Negative prompt: c {keys}"),
        "a fox, Sampler: Euler, Seed: 1, Size: 64x64".to_owned(),
    ] {
        assert_eq!(
            Infotext::parse(&text),
            Err(InfotextError::PromptNotFound),
            "{text}"
        );
    }
    let text = format!("{keys}, CFG scale: 7, Size: 8x8, RNG: CPU");
    let differences = parse(&text).request().differences;
    let without = "the infotext has no prompt, so an empty one is used";
    assert_eq!(differences, [without]);
}

#[test]
fn names_of_comfyui_forge_and_sdnext() {
    let gone =
        |name: &str, instead: &str| format!("sampler `{name}` is unknown, so {instead} is used");
    let of_diffusers = |name: &str, title: &str| {
        format!("`{name}` is a sampler of diffusers, so {title} with its usual options is used")
    };
    let no_type =
        |name: &str| format!("schedule type `{name}` is unknown, so the usual one is used");
    let no_scheduler = |name: &str| format!("scheduler `{name}` is unknown, so `normal` is used");
    let (karras, normal) = (Ladder::karras, Ladder::normal);
    let cases = [
        // ComfyUI, as different nodes write it.
        ("euler, Scheduler: normal", "euler", normal(), vec![]),
        ("dpmpp_2m, Scheduler: karras", "dpmpp-2m", karras(), vec![]),
        (
            "dpmpp_2m_karras, Version: ComfyUI",
            "dpmpp-2m",
            karras(),
            vec![],
        ),
        (
            "dpmpp_2m sgm_uniform",
            "dpmpp-2m",
            Ladder::sgm_uniform(),
            vec![],
        ),
        (
            "euler_ancestral_ddim_uniform",
            "euler-a",
            Ladder::ddim_uniform(),
            vec![],
        ),
        (
            "DPM++ 2M Karras, Version: ComfyUI",
            "dpmpp-2m",
            karras(),
            vec![],
        ),
        (
            "res_multistep, Scheduler: Karras",
            "res-2m",
            karras(),
            vec![],
        ),
        (
            "dpmpp_2m, Scheduler: bong",
            "dpmpp-2m",
            normal(),
            vec![no_scheduler("bong")],
        ),
        (
            "euler_beta57",
            "euler",
            normal(),
            vec![gone("euler_beta57", "Euler")],
        ),
        // Fooocus writes WebUI's name and ComfyUI's.
        (
            "DPM++ 2M SDE Karras, Scheduler: karras",
            "dpmpp-2m-sde",
            karras(),
            vec![],
        ),
        (
            "DPM++ 2M, Scheduler: kl_optimal",
            "dpmpp-2m",
            kl_optimal(),
            vec![],
        ),
        // Forge and reForge.
        ("DDPM, Schedule type: Karras", "ddpm", karras(), vec![]),
        ("DDPM Karras", "ddpm", karras(), vec![]),
        ("IPNDM, Schedule type: Automatic", "ipndm", normal(), vec![]),
        ("IPNDM_V", "ipndm-v", normal(), vec![]),
        (
            "DEIS, Schedule type: Beta",
            "deis-tab",
            Ladder::beta(),
            vec![],
        ),
        ("Euler CFG++", "euler-cfg-pp", normal(), vec![]),
        ("Euler a CFG++", "euler-a-cfg-pp", normal(), vec![]),
        ("Euler Ancestral CFG++", "euler-a-cfg-pp", normal(), vec![]),
        ("RES Multistep", "res-2m", normal(), vec![]),
        ("SA-Solver", "sa-solver", normal(), vec![]),
        ("ER SDE", "er-sde", normal(), vec![]),
        (
            "Euler, Schedule type: Linear Quadratic",
            "euler",
            Ladder::linear_quadratic(),
            vec![],
        ),
        (
            "Euler a, Schedule type: Turbo",
            "euler-a",
            normal(),
            vec![no_type("Turbo")],
        ),
        (
            "DEIS, Schedule type: Phi",
            "deis-tab",
            normal(),
            vec![no_type("Phi")],
        ),
        (
            "Euler a Turbo",
            "euler-a",
            normal(),
            vec![gone("Euler a Turbo", "Euler a")],
        ),
        (
            "DPM++ 2M SDE Turbo",
            "dpmpp-2m-sde",
            normal(),
            vec![gone("DPM++ 2M SDE Turbo", "DPM++ 2M SDE")],
        ),
        (
            "UniPC, Schedule type: Phi",
            "unipc",
            Ladder::sgm_uniform(),
            vec![no_type("Phi")],
        ),
        // SD.Next, and names that only diffusers has.
        (
            "TCD",
            "tcd",
            Ladder::lcm(),
            vec![of_diffusers("TCD", "TCD")],
        ),
        (
            "TCD, Schedule type: Karras",
            "tcd",
            karras(),
            vec![of_diffusers("TCD", "TCD")],
        ),
        (
            "DPM SDE",
            "dpmpp-sde",
            Ladder::linspace(),
            vec![of_diffusers("DPM SDE", "DPM++ SDE")],
        ),
        (
            "DDIM, Scheduler: DDIMScheduler, Sampler spacing: leading",
            "ddim",
            Ladder::leading(),
            vec![of_diffusers("DDIM", "DDIM")],
        ),
        (
            "DPM++ 2M, Sampler sigma: karras",
            "dpmpp-2m",
            karras(),
            vec![],
        ),
    ];
    for (text, row, ladder, differences) in cases {
        let (request, found) = read(text);
        assert_eq!(row_of(&request), row, "{text}");
        assert_eq!(request.ladder, Some(ladder), "{text}");
        assert_eq!(found, differences, "{text}");
    }
    for (text, row) in [
        // This DEIS is not ComfyUI's.
        ("DEIS, Scheduler: DEISMultistepScheduler", "deis"),
        (
            "DPM++ 2M, Scheduler: DPMSolverMultistepScheduler",
            "dpmpp-2m",
        ),
        (
            "DPM++ 2M SDE, Scheduler: DPMSolverMultistepScheduler",
            "dpmpp-2m-sde",
        ),
        (
            "DPM++ 3M, Scheduler: DPMSolverMultistepScheduler",
            "dpmpp-3m",
        ),
        (
            "DPM++ 1S, Scheduler: DPMSolverSinglestepScheduler",
            "dpmpp-2s",
        ),
        (
            "KDPM2 a, Scheduler: KDPM2AncestralDiscreteScheduler",
            "dpm2-a",
        ),
        ("UniPC, Scheduler: UniPCMultistepScheduler", "unipc"),
    ] {
        let (request, _) = read(text);
        assert_eq!(row_of(&request), row, "{text}");
        assert_eq!(request.ladder, Some(Ladder::linspace()), "{text}");
    }

    // ComfyUI draws noise with torch on the CPU, and its weights have another meaning.
    let comfyui = "(a:1.2)\nSteps: 5, Sampler: euler, Scheduler: normal, CFG Scale: 6.5, Seed: 1, Size: 64x64";
    let again = parse(comfyui).request();
    assert_eq!(again.differences, [""; 0]);
    assert_eq!(again.request.noise, NoiseKind::Torch);
    assert_eq!(again.request.guidance.unwrap().scale(), Some(6.5));
    let options = PromptOptions::default().syntax(Syntax::ComfyUi);
    let options = options.emphasis(Emphasis::Interpolate);
    assert_eq!(again.request.prompt_options, options);
    let sampler = again
        .request
        .scheduler
        .unwrap()
        .sampler(&SchedulerConfig::default());
    assert_eq!(sampler.conventions().first_x, FirstX::VariancePreserving);
    // WebUI also has these names in lower case.
    for webui in ["Version: v1.6.0", "Schedule type: Normal"] {
        let (request, _) = read(&format!("euler, {webui}"));
        assert!(is(&request, "Euler"), "{webui}");
    }
    // Forge's samplers scale the initial noise as WebUI's do.
    let sampler = read("DDPM")
        .0
        .scheduler
        .unwrap()
        .sampler(&SchedulerConfig::default());
    assert_eq!(sampler.conventions().first_x, FirstX::BySpacing);
}

/// WebUI's variant of the ladder, which ends at the smallest sigma.
fn kl_optimal() -> Ladder {
    Ladder::shaped(Shape::KlOptimal {
        ends_at_lowest: true,
    })
}

#[test]
fn values_that_say_nothing_of_the_picture_are_not_named() {
    for entries in [
        "Denoise: 1",
        "Denoising strength: 1.0",
        "Hashes: {\"lora:a: b\": \"1\", \"embed:c\": \"2\"}",
        "Civitai resources: [{\"modelName\":\"Style: Double\"}, {\"a\": [1, 2]}], Civitai metadata: {}",
    ] {
        assert_eq!(
            differences("a fox", &format!(", {entries}, Model: m")),
            [""; 0]
        );
    }
    // A value that is not JSON ends at a comma, as in WebUI.
    let infotext = parse("a\nSteps: 1, Hashes: {b, Style: c, Seed: 2");
    assert_eq!(
        (infotext.get("Hashes"), infotext.get("Style")),
        (Some("{b"), Some("c"))
    );
}

/// Messages show values of the file, but shortened, and without characters that a terminal acts on.
#[test]
fn hostile_texts_are_read_fast_and_told_shortly() {
    let keys = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU";
    let long = "x".repeat(1_900_000);
    let escape = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}";
    let many = |piece: fn(usize) -> String| (0..80_000).map(piece).collect::<String>();
    let texts = [
        format!("a\n{keys}{}", many(|i| format!(", Key {i}: 1"))),
        format!("a\n{keys}, Long: {long}"),
        format!("a\n{keys}, Sampler: {long}"),
        format!("a\n{keys}, Sampler: {}", "a_".repeat(900_000)),
        format!("a\n{keys}, Schedule type: {long}"),
        format!("a\n{keys}, Size: {0}, Seed: {0}", &long[1_000_000..]),
        format!("a\n{keys}, RNG: {escape}, Sampler: {escape}, {escape}: 1, Emphasis: {escape}"),
        format!("a\n{keys}, SD ladder: {escape}, SD sampler: {escape}, Version: sd-onnx 0.1.0"),
        format!("{}\n{keys}", many(|i| format!("<lora:{i}:1>"))),
        format!("{}\n{keys}", many(|i| format!("[a:b:{}.5] ", i % 9))),
        format!(
            "{}a{}\n{keys}",
            "[".repeat(300_000),
            ":1.5]".repeat(300_000)
        ),
        format!(
            "{}a{}\n{keys}",
            "(".repeat(300_000),
            ":1.5)".repeat(300_000)
        ),
        format!("a\n{keys}, {}", "Key: [".repeat(300_000)),
        format!("a\n{keys}, Key: {}", "[".repeat(1_900_000)),
        format!("a\n{keys}, {}", "Key: \"x, ".repeat(200_000)),
        format!("a\n{keys}, {}", "Key: \"\\".repeat(200_000)),
        format!("a\n{keys}, {}", many(|i| format!("Key {i}: [\"Key: [\", "))),
        format!("a\n{}{keys}", " ".repeat(1_900_000)),
        format!("a\n{keys}{}", " a".repeat(900_000)),
        format!("{}\n{keys}", "Steps: 1, a: b\nTemplate: ".repeat(70_000)),
        format!("{} {keys}", "Negative prompt: ".repeat(100_000)),
        format!("{}{keys}", "Steps: 1, ".repeat(100_000)),
        "{\"".repeat(900_000) + "}",
    ];
    for text in &texts {
        let start = &text[..text.len().min(60)];
        assert!(text.len() <= 2 << 20, "{start}: {} bytes", text.len());
        let started = std::time::Instant::now();
        let Ok(infotext) = Infotext::parse(text) else {
            continue;
        };
        let differences = infotext.request().differences;
        let took = started.elapsed();
        // About 50 times the usual time, and less than any quadratic parser would take.
        assert!(took.as_secs() < 10, "{start}: {took:?}");
        assert!(differences.len() <= 51, "{start}: {}", differences.len());
        for difference in differences {
            assert!(
                difference.len() < 6000,
                "{start}: {} bytes",
                difference.len()
            );
            assert!(!difference.contains(char::is_control), "{difference:?}");
            assert!(!difference.contains('\u{202e}'), "{difference:?}");
        }
    }
    let last = |text| parse(text).request().differences.pop().unwrap();
    assert_eq!(last(&texts[0]), "and 79950 more differences");
    let nested = format!("{}a{}\n{keys}", "[".repeat(60), ":1.5]".repeat(60));
    let counted = "and 10 more differences";
    assert_eq!(last(&nested), counted);
}

/// Returns the request and the differences of a WebUI infotext with these entries behind `Steps`.
fn read_entries(entries: &str) -> (Request, Vec<String>) {
    let again = parse(&format!("a fox\nSteps: 20, {entries}, Seed: 1, RNG: CPU")).request();
    (again.request, again.differences)
}

#[test]
fn the_second_pass_has_the_ladder_of_webui() {
    let unknown = "schedule type `Wavy` is unknown, so the usual one is used";
    let no_sampler = "sampler `Foo 9` is unknown, so DPM++ 2M is used";
    let karras = "Sampler: Euler, Schedule type: Karras, Hires sampler";
    for (entries, name, ladder, expected) in [
        (
            format!("{karras}: Euler a"),
            Some("Euler a"),
            Some(Ladder::karras()),
            &[][..],
        ),
        (
            format!("{karras}: Euler a, Hires schedule type: Exponential"),
            Some("Euler a"),
            Some(Ladder::exponential()),
            &[],
        ),
        (
            format!("{karras}: Euler a, Hires schedule type: Use same scheduler"),
            Some("Euler a"),
            Some(Ladder::karras()),
            &[],
        ),
        (
            format!("{karras}: DDIM, Version: v1.10.1"),
            Some("DDIM"),
            Some(from_webui("DDIM", None).unwrap().ladder),
            &[],
        ),
        (
            format!("{karras}: Euler a, Hires schedule type: Wavy"),
            Some("Euler a"),
            Some(Ladder::normal()),
            &[unknown],
        ),
        (format!("{karras}: Use same sampler"), None, None, &[]),
        (
            format!("{karras}: Use same sampler, Hires schedule type: Beta"),
            None,
            Some(Ladder::beta()),
            &[],
        ),
        (
            format!("{karras}: Foo 9"),
            Some("DPM++ 2M"),
            Some(Ladder::karras()),
            &[no_sampler],
        ),
        // Before version 1.9, the names contained the ladders.
        (
            "Sampler: DPM++ 2M Karras, Hires sampler: Euler a".to_owned(),
            Some("Euler a"),
            Some(Ladder::normal()),
            &[],
        ),
    ] {
        let size = "CFG scale: 7, Size: 64x64, Denoising strength: 0.5, Hires upscale: 2";
        let (request, differences) = read_entries(&format!("{entries}, {size}"));
        assert_eq!(differences, expected, "{entries}");
        let hires = request.hires.unwrap();
        let sampler = |it: Scheduler| it.sampler(&SchedulerConfig::default());
        let of_webui = name.map(|name| from_webui(name, None).unwrap().sampler);
        assert_eq!(hires.scheduler.map(sampler), of_webui, "{entries}");
        assert_eq!(hires.ladder, ladder, "{entries}");
    }
    // A sampler that Forge took from ComfyUI.
    let (request, differences) = read_entries(
        "Sampler: Euler, Schedule type: Karras, CFG scale: 7, Size: 64x64, Denoising strength: 0.5, \
         Hires upscale: 2, Hires sampler: IPNDM",
    );
    assert_eq!(differences, [""; 0]);
    let hires = request.hires.unwrap();
    let sampler = hires
        .scheduler
        .unwrap()
        .sampler(&SchedulerConfig::default());
    assert!(format!("{sampler:?}").contains("Ipndm"), "{sampler:?}");
    assert_eq!(hires.ladder, Some(Ladder::karras()));
}

#[test]
fn the_scale_of_each_pass_is_that_of_its_sampler() {
    for (entries, first, second) in [
        ("Sampler: DDIM CFG++", 0.6, None),
        ("Sampler: DDIM CFG++, Hires sampler: Euler", 0.6, Some(7.5)),
        ("Sampler: Euler, Hires sampler: DDIM CFG++", 7.5, Some(0.6)),
        (
            "Sampler: Euler, Hires sampler: DDIM CFG++, Hires CFG Scale: 5",
            7.5,
            Some(0.4),
        ),
        ("Sampler: Euler, Hires sampler: Heun", 7.5, None),
    ] {
        let (request, _) = read_entries(&format!(
            "{entries}, CFG scale: 7.5, Size: 64x64, Denoising strength: 0.5, Hires upscale: 2, \
             Version: v1.10.1"
        ));
        assert_eq!(request.guidance.unwrap().scale(), Some(first), "{entries}");
        let guidance = request.hires.unwrap().guidance;
        assert_eq!(guidance.map(|it| it.scale().unwrap()), second, "{entries}");
    }
}

#[test]
fn sizes_of_second_passes() {
    let old = "the infotext does not say how the picture was enlarged, so its latents are scaled";
    let size = "the size was 540x960, and is rounded down to 536x960, as sides are multiples of 8";
    for (entries, first, second, expected) in [
        (
            "Size: 512x768, Hires resize: 1024x1536",
            [512, 768],
            [1024, 1536],
            vec![],
        ),
        (
            "Size: 512x512, Hires resize: 1001x1007",
            [512, 512],
            [1000, 1000],
            vec![
                "`Hires resize` was 1001x1007, and is rounded down to 1000x1000, as sides are \
                  multiples of 8",
            ],
        ),
        (
            "Size: 540x960, Hires resize: 1072x0",
            [536, 960],
            [1072, 1920],
            vec![size],
        ),
        (
            "Size: 1024x1024, First pass size: 512x512",
            [512, 512],
            [1024, 1024],
            vec![old],
        ),
        (
            "Size: 1024x768, First pass size: 0x0",
            [640, 448],
            [1024, 768],
            vec![old],
        ),
    ] {
        let (request, differences) = read_entries(&format!(
            "Sampler: Euler, Schedule type: Karras, CFG scale: 7, {entries}, \
             Denoising strength: 0.5"
        ));
        assert_eq!(differences, expected, "{entries}");
        assert_eq!(request.size, Some(first), "{entries}");
        let hires = request.hires.unwrap();
        assert_eq!(hires.size, HiresSize::Pixels(second), "{entries}");
    }
    // Sizes that cannot be used.
    for (entries, expected) in [
        (
            "Size: 0x64, Denoising strength: 1",
            "`Size: 0x64` cannot be used, so the default is used",
        ),
        (
            "Size: 64x64, First pass size: 4x64, Denoising strength: 0.5",
            "`First pass size: 4x64` cannot be used, so the default is used",
        ),
    ] {
        let (_, differences) = read_entries(&format!("Sampler: Euler, CFG scale: 7, {entries}"));
        assert_eq!(differences[0], expected);
    }
}

#[test]
fn prompts_of_the_second_pass_are_checked() {
    let entries = "Sampler: Euler, CFG scale: 7, Size: 64x64, Denoising strength: 0.5, \
                   Hires upscale: 2, Hires prompt: \"[a:b:1.0] <hypernet:x:1>\", \
                   Hires negative prompt: \"[c:d:2.0]\"";
    let (_, differences) = read_entries(entries);
    for expected in [
        "in `[a:b:1.0]`",
        "in `[c:d:2.0]`",
        "`<hypernet:x:1>` is not applied",
    ] {
        let found = differences.iter().any(|it| it.starts_with(expected));
        assert!(found, "{expected}: {differences:#?}");
    }
}

#[test]
fn values_of_a_start_that_cannot_be_used_are_named() {
    let (picture, mask) = (
        sd_core::infotext::PICTURE_NOTE,
        sd_core::infotext::MASK_NOTE,
    );
    for (entries, notes, unused) in [
        ("Denoising strength: 1", &[][..], &[][..]),
        ("Denoising strength: 1, Version: v1.10.1", &[picture], &[]),
        (
            "Denoising strength: 1, Mask blur: 4, Masked content: latent noise",
            &[picture, mask],
            &[],
        ),
        (
            "Denoising strength: 50%",
            &[picture],
            &["Denoising strength: 50%"],
        ),
        (
            "Denoising strength: nan",
            &[picture],
            &["Denoising strength: nan"],
        ),
        (
            "Denoising strength: 0.5, Mask blur: inf, Mask mode: Both, Masked content: cats, \
             Inpaint area: Moon, Masked area padding: -1, Noise multiplier: x",
            &[picture, mask],
            &[
                "Mask blur: inf",
                "Noise multiplier: x",
                "Masked area padding: -1",
                "Mask mode: Both",
                "Masked content: cats",
                "Inpaint area: Moon",
            ],
        ),
        (
            "Denoising strength: 0.5, Mask blur: 4, Mask mode: Inpaint masked, \
             Masked content: original, Inpaint area: Whole picture, Masked area padding: 32",
            &[picture, mask],
            &[],
        ),
        ("Image CFG scale: nan", &[], &["Image CFG scale: nan"]),
        (
            "Hires upscale: nan, Hires CFG Scale: inf, Denoising strength: half",
            &[],
            &[
                "Hires upscale: nan",
                "Denoising strength: half",
                "Hires CFG Scale: inf",
            ],
        ),
    ] {
        let unused = unused
            .iter()
            .map(|entry| format!("`{entry}` cannot be used, so the default is used"));
        let mut expected: Vec<_> = notes.iter().map(|&note| note.to_owned()).collect();
        expected.extend(unused);
        let all = format!(", {entries}");
        assert_eq!(differences("a fox", &all), expected, "{entries}");
    }
}

/// WebUI's UniPC makes its own noise levels in a part of a run.
#[test]
fn unipc_in_a_part_of_a_run_is_a_difference() {
    let note = "WebUI's UniPC has other noise levels in a run that starts from a picture";
    for (entries, differs) in [
        ("Sampler: UniPC", false),
        ("Sampler: UniPC, Denoising strength: 0.5", true),
        ("Sampler: UniPC, Hires upscale: 2", true),
        (
            "Sampler: Euler, Hires upscale: 2, Hires sampler: UniPC",
            true,
        ),
        (
            "Sampler: UniPC, Hires upscale: 2, Hires sampler: Euler",
            false,
        ),
    ] {
        let infotext = parse(&format!("a fox\nSteps: 20, {entries}, Seed: 1, RNG: CPU"));
        let found = infotext.request().differences;
        assert_eq!(
            found.iter().any(|it| it == note),
            differs,
            "{entries}: {found:?}"
        );
    }
}
