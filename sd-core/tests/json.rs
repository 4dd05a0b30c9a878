//! The problems that are reported for the JSON of a request.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use sd_core::{Request, schedulers::Ladder};

/// Returns the problems of a request with a prompt and these fields.
fn problems(fields: &str) -> Vec<String> {
    let json = format!(r#"{{"prompt": "a fox", {fields}}}"#);
    let problems = Request::from_json(&json).unwrap_err();
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn every_wrong_value_has_its_path() {
    let cases = [
        (
            r#""steps": "many""#,
            r#"steps is "many", expected a whole number, 0 or more"#,
        ),
        (
            r#""steps": -1"#,
            "steps is -1, expected a whole number, 0 or more",
        ),
        (
            r#""steps": 1e3"#,
            "steps is 1000.0, expected a whole number, 0 or more",
        ),
        (
            r#""seed": 18446744073709551616"#,
            "seed is 1.8446744073709552e+19, expected a whole number, 0 or more",
        ),
        (
            r#""size": 512"#,
            "size is 512, expected an array of length 2",
        ),
        (
            r#""size": [512]"#,
            "size is [512], expected an array of length 2",
        ),
        (
            r#""size": [512, -8]"#,
            "size[1] is -8, expected a whole number, 0 to 4294967295",
        ),
        (
            r#""prompt_options": 3"#,
            "prompt_options is 3, expected an object",
        ),
        (
            r#""prompt_options": {"syntax": 3}"#,
            "prompt_options.syntax is 3, expected one of `webui`, `comfyui`, `compel`, `plain`, as a string or as the key of an object",
        ),
        (
            r#""prompt_options": {"same_length": "yes"}"#,
            r#"prompt_options.same_length is "yes", expected true or false"#,
        ),
        (
            r#""prompt_options": {"emphasys": "none"}"#,
            "prompt_options.emphasys is unknown, expected one of `syntax`, `emphasis`, `chunking`, `cleanup`, `same_length`",
        ),
        (
            r#""guidance": "strong""#,
            r#"guidance is "strong", expected a guidance: its scale, such as 7.5, or an object, such as {"scale": 7.5}"#,
        ),
        (
            r#""guidance": {"scale": 7, "rescale": [1]}"#,
            "guidance.rescale is [1], expected a number",
        ),
        (
            r#""guidance": {"scales": 7}"#,
            "guidance.scales is unknown, expected one of `scale`, `rescale`, `interval`, `method`, `threshold`",
        ),
        (
            r#""guidance": {"method": 1}"#,
            "guidance.method is 1, expected one of `plain`, `apg`, `zero-star`, as a string or as the key of an object",
        ),
        (
            r#""guidance": {"method": "apg"}"#,
            r#"guidance.method is "apg" alone, expected an object, {"apg": …}"#,
        ),
        (
            r#""guidance": {"method": {"plain": 3}}"#,
            "guidance.method.plain is 3, expected the name alone, as a string",
        ),
        (
            r#""guidance": {"method": {"apg": {"eta": "x"}}}"#,
            r#"guidance.method.apg.eta is "x", expected a number"#,
        ),
        (
            r#""guidance": {"threshold": {"dynamic": {"ratio": 0.5}}}"#,
            "guidance.threshold.dynamic.max is missing, expected a value",
        ),
        (
            r#""variation": {"seed": 3}"#,
            "variation.strength is missing, expected a value",
        ),
        (
            r#""noise": 3"#,
            r#"noise is 3, expected a kind of noise: its name, such as "torch", or {"cuda": {"card": "RTX 4090"}} or {"cuda": {"threads": 196608}}"#,
        ),
        (
            r#""noise": "mt""#,
            r#"noise is "mt", expected torch, philox, numpy, rand"#,
        ),
        (
            r#""noise": "cuda""#,
            r#"noise is "cuda", expected {"cuda": {"card": "RTX 4090"}} or {"cuda": {"threads": 196608}}"#,
        ),
        (
            r#""noise": {"cuda": 5}"#,
            "noise.cuda is 5, expected `threads` or `card`, as a string or as the key of an object",
        ),
        (
            r#""noise": {"cuda": {"card": "RTX 4099"}}"#,
            r#"noise.cuda.card is "RTX 4099", expected RTX 4090, "#,
        ),
        (
            r#""scheduler": {"euler": 3}"#,
            r#"scheduler is {"euler":3}, expected an object of options"#,
        ),
        (
            r#""scheduler": 3"#,
            r#"scheduler is 3, expected a scheduler: its name, such as "dpmpp-2m", or an object, such as {"euler-a": {"eta": 0.5}}"#,
        ),
        (
            r#""scheduler": {"euler-a": {"eat": 0.5}}"#,
            r#"scheduler is {"euler-a":{"eat":0.5}}, expected one of `eta`, `s_noise`, `flow`"#,
        ),
        (
            r#""scheduler": {"euler-a": {"eta": "x"}}"#,
            r#"scheduler is {"euler-a":{"eta":"x"}}, expected a number"#,
        ),
        (
            r#""scheduler": {"euler": {}, "conventions": {"min_step": 3}}"#,
            "scheduler.conventions.min_step is unknown, expected one of `counting`, ",
        ),
        (
            r#""scheduler": "eulr""#,
            r#"scheduler is "eulr", expected euler, "#,
        ),
        (
            r#""ladder": 3"#,
            r#"ladder is 3, expected a ladder: its name, such as "karras", or an object, such as {"karras": {"rho": 5.0}} or {"sigmas": [14.6, 2.0, 0.0]}"#,
        ),
        (
            r#""ladder": "karas""#,
            r#"ladder is "karas", expected leading, linspace, trailing, karras, "#,
        ),
        (
            r#""ladder": {"karas": {}}"#,
            r#"ladder is {"karas":{}}, expected leading, linspace, trailing, karras, "#,
        ),
        (
            r#""ladder": {"karras": 3}"#,
            "ladder.karras is 3, expected an object of options: `karras` has rho, over, sigma_min, sigma_max",
        ),
        (
            r#""ladder": {"leading": [3]}"#,
            "ladder.leading is [3], expected an object of options: `leading` has none",
        ),
        (
            r#""ladder": {"karras": {"shift": 3}}"#,
            "ladder.karras.shift is unknown, expected an option of the ladder: `karras` has rho, over, sigma_min, sigma_max",
        ),
        (
            r#""ladder": {"karras": {"rho": "x"}}"#,
            r#"ladder.karras.rho is "x", expected a number"#,
        ),
        (
            r#""ladder": {"karras": {"over": 1}}"#,
            "ladder.karras.over is 1, expected one of `leading`, `linspace`, `trailing`, as a string or as the key of an object",
        ),
        (
            r#""ladder": {"flow": {"shift": 3}}"#,
            "ladder.flow.shift is 3, expected one of `by`, `mu`, `resolution`, as a string or as the key of an object",
        ),
        (
            r#""ladder": {"flow": {"shift": {"resolution": {"tokens": 0.5}}}}"#,
            "ladder.flow.shift.resolution.tokens is 0.5, expected a whole number, 0 or more",
        ),
        (
            r#""ladder": {"flow": {"levels": {"ladder": {"sigmas": [1, "x"]}}}}"#,
            r#"ladder.flow.levels.ladder.sigmas[1] is "x", expected a number"#,
        ),
        (
            r#""ladder": {"karras": {}, "beta": {}}"#,
            r#"ladder is {"beta":{},"karras":{}}, expected one ladder"#,
        ),
        (
            r#""initial_noise": [1, 2]"#,
            "initial_noise[1] is 2, expected an array of length 4",
        ),
        (
            r#""initial_noise": {"v": 1, "dim": [1, 1, 1, 9], "data": [1]}"#,
            "initial_noise",
        ),
        (
            r#""step": 3"#,
            "step is unknown, expected one of `prompt`, `negative`, ",
        ),
    ];
    for (fields, expected) in cases {
        let found = problems(fields);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(expected), "{fields}: {}", found[0]);
    }
}

#[test]
fn all_problems_are_named_at_once() {
    let json = r#"{"steps": "x", "ladder": {"karras": {"rho": null, "alpha": 1}}, "stpes": 3, "sed": 1, "seed": 7}"#;
    let problems = Request::from_json(json).unwrap_err();
    let mut fields: Vec<_> = problems.iter().map(|problem| &*problem.field).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        ["ladder.karras.alpha", "prompt", "sed, stpes", "steps"]
    );
    let text = problems.to_string();
    assert!(
        text.contains("prompt is missing, expected a text; "),
        "{text}"
    );
    assert!(
        text.contains("sed, stpes is unknown, expected one of `prompt`"),
        "{text}"
    );
}

#[test]
fn what_is_no_object_is_named() {
    for (json, expected) in [
        (
            "",
            "request is not JSON (EOF while parsing a value at line 1 column 0), expected a JSON object",
        ),
        ("fox", "request is not JSON (expected"),
        (
            r#"{"prompt": NaN}"#,
            "request is not JSON (expected value at line 1 column 12)",
        ),
        (
            r#"{"prompt": "a", "guidance": 1e999}"#,
            "request is not JSON (number out of range",
        ),
        (
            "3",
            r#"request is 3, expected an object, such as {"prompt": "a fox"}"#,
        ),
        (r#""a fox""#, r#"request is "a fox", expected an object"#),
        (
            r#"{"prompt": "a", "steps": 3, "steps": 4}"#,
            "request is refused (duplicate field `steps` at line 1 column 35), expected an object whose fields can be read",
        ),
        (
            r#"{"prompt": "a", "ladder": {"karras": {"rho": 3, "rho": 4}}}"#,
            "duplicate field `rho`",
        ),
        (
            r#"{"prompt": "a", "aesthetic_score": 1e39, "sizes": 3}"#,
            "aesthetic_score is 1e+39, expected a number of at most 3.4028235e38 in size; sizes is 3",
        ),
    ] {
        let error = Request::from_json(json).unwrap_err().to_string();
        assert!(error.contains(expected), "{json}: {error}");
    }
    assert!(Request::from_json(r#"{"prompt": "a", "ladder": {"karras": {"rho": 5}}}"#).is_ok());
}

/// Messages stay short, and the time grows only linearly with the text.
#[test]
fn hostile_text_is_bounded() {
    let escapes = "\\u001b[2J\u{9d}\u{202e}".repeat(1 << 16);
    let numbers = "1,".repeat(1 << 20);
    let nested =
        |open: &str, close: &str| format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
    let unknown: Vec<String> = (0..100_000).map(|i| format!(r#""k{i}": 0"#)).collect();
    let shallow = r#"{"flow":{"levels":{"ladder":"#.repeat(30);
    let texts = [
        format!(r#"{{"prompt": "a", "scheduler": "{escapes}"}}"#),
        format!(r#"{{"prompt": "a", "ladder": "{escapes}"}}"#),
        format!(r#"{{"prompt": "a", "ladder": {{"{escapes}": {{}}}}}}"#),
        format!(r#"{{"prompt": "a", "ladder": {{"karras": {{"{escapes}": 1}}}}}}"#),
        format!(r#"{{"prompt": "a", "noise": "{escapes}"}}"#),
        format!(r#"{{"prompt": "a", "noise": {{"cuda": {{"card": "{escapes}"}}}}}}"#),
        format!(r#"{{"prompt": "a", "steps": "{escapes}"}}"#),
        format!(r#"{{"prompt": "a", "{escapes}": 1}}"#),
        format!(r#"{{"prompt": "a", "guidance": {{"{escapes}": 1}}}}"#),
        format!(r#""{escapes}""#),
        format!(r#"{{"prompt": "a", "ladder": {{"sigmas": [{numbers}"x"]}}}}"#),
        format!(r#"{{"prompt": "a", "size": [{numbers}1]}}"#),
        format!(r#"{{"prompt": "a", "initial_noise": {{"v": 1, "dim": [1, 4, 8, 8], "data": [{numbers}1]}}}}"#),
        r#"{"prompt": "a", "initial_noise": {"v": 1, "dim": [4294967296, 4294967296, 4, 1], "data": []}}"#.to_owned(),
        format!(r#"{{"prompt": "a", "ladder": {}}}"#, nested("[", "]")),
        format!(r#"{{"prompt": "a", "ladder": {}}}"#, nested(r#"{"flow":{"levels":{"ladder":"#, "}}}")),
        format!(r#"{{"prompt": "a", "ladder": {shallow}3{}}}"#, "}}}".repeat(30)),
        format!(r#"{{"prompt": "a", {}}}"#, unknown.join(",")),
    ];
    for text in texts {
        let started = Instant::now();
        let message = Request::from_json(&text).unwrap_err().to_string();
        let start = &text[..60];
        assert!(message.len() < 5000, "{start}: {}", message.len());
        let shown = |c: char| !c.is_control() && c != '\u{202e}';
        assert!(message.chars().all(shown), "{start}: {message}");
        assert!(started.elapsed() < Duration::from_secs(20), "{start}");
    }
    let long = format!(r#"{{"prompt": "a", "ladder": {{"sigmas": [{numbers}0]}}}}"#);
    let request = Request::from_json(&long).unwrap();
    assert_eq!(
        request.ladder.as_ref().and_then(Ladder::given_steps),
        Some(1 << 20)
    );
}
