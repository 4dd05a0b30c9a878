//! Compares second passes, image to image and inpainting with WebUI 1.10.1, on random-weight
//! models.
//!
//! `tests/golden/webui_pictures.py` ran WebUI. The README beside it describes the values.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/starts.rs"]
mod starts;

use std::fs;

use common::{Golden, golden, relative_error};
use image::{GrayImage, RgbImage};
use sd_onnx::{
    Hires, Mask, MaskRule, MaskedContent, Posterior, PromptOptions, Request, Resize, Start,
    Upscaler, image,
    ndarray::Axis,
    schedulers::{
        from_webui,
        ladders::StrengthRule,
        names::Preset,
        noise::{Slerp, Variation},
    },
    text::Cleanup,
};
use serde_json::Value;
use starts::{bytes, pipelines};

/// The largest error of a run. Guidance and the model itself amplify differences.
const WHOLE_RUN: f64 = 1e-4;
/// The same for DPM++ and for runs that round pixels to bytes between the passes: rounding alone
/// moves WebUI's own runs by up to 7e-5.
const ROUNDED: f64 = 3e-4;
/// The same for DPM++ SDE. WebUI asks its Brownian tree for times that rounding in `f32` has moved,
/// which moves the results by up to 1.7e-3.
const TREE: f64 = 3e-3;
/// The largest difference of a byte. WebUI cuts the fractions off, which are rounded here: 1.
const BYTES: f32 = 1.0;
/// The same with a mask. WebUI's overlay has colors that were multiplied by the opacity as bytes,
/// which loses more: 3.
const OVERLAID: f32 = 3.0;
/// The largest mean difference of bytes. Cutting fractions off loses half a byte on average.
const MEAN: f32 = 0.6;

/// The fields of WebUI's request. A missing field has WebUI's default, which is 0 for all of these.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.0[key].as_str()
    }
    fn number(&self, key: &str) -> f32 {
        self.0[key].as_f64().unwrap_or_default() as f32
    }
    fn whole(&self, key: &str) -> u32 {
        self.0[key].as_u64().unwrap_or_default() as u32
    }
    fn is(&self, key: &str) -> bool {
        self.0[key].as_bool().unwrap_or_default() || self.whole(key) == 1
    }
}

fn preset(sampler: &str, scheduler: Option<&str>) -> Preset {
    from_webui(sampler, scheduler.filter(|&name| name != "Automatic")).unwrap()
}

/// Returns the request of a case.
fn request(case: &Value, values: &Golden) -> Request {
    let fields = Fields(&case["fields"]);
    let sampler = preset(
        fields.text("sampler_name").unwrap(),
        fields.text("scheduler"),
    );
    let options = PromptOptions::default().cleanup(Cleanup::Ftfy);
    let mut request = Request::new(fields.text("prompt").unwrap())
        .negative(fields.text("negative_prompt").unwrap())
        .size(fields.whole("width"), fields.whole("height"))
        .steps(fields.whole("steps") as usize)
        .guidance(fields.number("cfg_scale"))
        .seed(fields.whole("seed").into())
        .count(fields.whole("batch_size").max(1) as usize)
        .scheduler(sampler.sampler)
        .ladder(sampler.ladder)
        .prompt_options(options);
    request.prompt_options.encode_empty = true;
    request.ensd = case["options"]["eta_noise_seed_delta"]
        .as_u64()
        .unwrap_or(0);
    if fields.number("subseed_strength") > 0.0 {
        request = request.variation(Variation {
            seed: fields.whole("subseed").into(),
            strength: fields.number("subseed_strength"),
            slerp: Slerp::default(),
        });
    }
    if fields.whole("seed_resize_from_w") > 0 {
        let [width, height] = ["seed_resize_from_w", "seed_resize_from_h"];
        request = request.seed_resize(fields.whole(width), fields.whole(height));
    }
    if fields.is("enable_hr") {
        request.hires = Some(hires(&fields));
    } else {
        request.start = Some(start(case, &fields, values));
    }
    request
}

fn hires(fields: &Fields<'_>) -> Hires {
    let [width, height] = ["width", "height"].map(|side| fields.whole(side));
    let mut hires = match ["hr_resize_x", "hr_resize_y"].map(|side| fields.whole(side)) {
        [0, 0] => Hires::scale(fields.number("hr_scale")),
        // WebUI rounds the other side's latents down.
        [x, 0] => Hires::pixels(x, x * height / width / 8 * 8),
        [0, y] => Hires::pixels(y * width / height / 8 * 8, y),
        [x, y] => Hires::pixels(x, y),
    };
    hires = hires.strength(fields.number("denoising_strength"));
    hires = hires.upscaler(Upscaler::from_webui(fields.text("hr_upscaler").unwrap()).unwrap());
    if fields.whole("hr_second_pass_steps") > 0 {
        hires = hires.steps(fields.whole("hr_second_pass_steps") as usize);
    }
    // WebUI uses the first pass's schedule type for another sampler, too.
    let schedule_type = fields
        .text("hr_scheduler")
        .or_else(|| fields.text("scheduler"));
    if let Some(name) = fields.text("hr_sampler_name") {
        let sampler = preset(name, schedule_type);
        hires = hires.scheduler(sampler.sampler).ladder(sampler.ladder);
    } else if let Some(label) = fields.text("hr_scheduler") {
        hires = hires.ladder(preset("Euler", Some(label)).ladder);
    }
    if let Some(prompt) = fields.text("hr_prompt") {
        hires = hires.prompt(prompt);
    }
    if let Some(negative) = fields.text("hr_negative_prompt") {
        hires = hires.negative(negative);
    }
    hires
}

fn start(case: &Value, fields: &Fields<'_>, values: &Golden) -> Start {
    let (width, height, pixels) = bytes(values.tensor(case["picture"].as_str().unwrap()));
    let picture = RgbImage::from_raw(width, height, pixels).unwrap();
    let is_fixed = case["options"]["img2img_fix_steps"] == true;
    let mut start = Start::picture(picture)
        .strength(fields.number("denoising_strength"))
        .posterior(Posterior::Mode)
        .rule(match is_fixed {
            true => StrengthRule::WebUiExact,
            false => StrengthRule::WebUi,
        })
        .resize(match fields.whole("resize_mode") {
            0 => Resize::Stretch,
            1 => Resize::Crop,
            2 => Resize::Fill,
            _ => Resize::Latent,
        });
    if fields.number("initial_noise_multiplier") > 0.0 {
        start = start.noise_multiplier(fields.number("initial_noise_multiplier"));
    }
    if let Some(mask) = case["mask"].as_str() {
        let (width, height, mut mask) = bytes(values.tensor(mask));
        if fields.is("inpainting_mask_invert") {
            mask.iter_mut().for_each(|value| *value = 255 - *value);
        }
        let mut mask = Mask::new(GrayImage::from_raw(width, height, mask).unwrap())
            .rule(MaskRule::WebUi)
            .blur(fields.number("mask_blur"))
            .content(match fields.whole("inpainting_fill") {
                0 => MaskedContent::Fill,
                1 => MaskedContent::Original,
                2 => MaskedContent::Noise,
                _ => MaskedContent::Nothing,
            });
        if fields.is("inpaint_full_res") {
            mask = mask.only_masked(fields.whole("inpaint_full_res_padding"));
        }
        start = start.mask(mask);
    }
    start
}

/// Returns why a case is not compared.
fn left_out(case: &Value) -> Option<&'static str> {
    let fields = Fields(&case["fields"]);
    let name = case["name"].as_str().unwrap();
    match name {
        _ if fields.is("enable_hr") && fields.number("hr_scale") < 1.0 => {
            Some("a second pass does not make pictures smaller")
        }
        "hires.size-without-multiple" | "img2img.latent-odd" => Some("sizes are multiples of 8"),
        _ if !case["fields"]["eta"].is_null() => Some("eta is an option of the sampler"),
        _ if !case["options"]["img2img_extra_noise"].is_null() => Some("there is no extra noise"),
        _ if case["fields"]["mask_round"] == false => Some("latent masks are rounded"),
        "inpaint.blur-x" => Some("a blur is the same in both directions"),
        "inpaint.nothing-only-masked" => Some("an empty mask returns the picture"),
        _ => None,
    }
}

/// Returns the largest error of a case.
fn bound(case: &Value) -> f64 {
    let fields = Fields(&case["fields"]);
    let samplers = [fields.text("sampler_name"), fields.text("hr_sampler_name")];
    let mut samplers = samplers.into_iter().flatten();
    let upscaler = fields.text("hr_upscaler").unwrap_or("Latent");
    if samplers.clone().any(|name| name == "DPM++ SDE") {
        TREE
    } else if samplers.any(|name| name.starts_with("DPM++")) || !upscaler.starts_with("Latent") {
        ROUNDED
    } else {
        WHOLE_RUN
    }
}

#[test]
fn runs_are_those_of_webui() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(golden("webui_pictures").join("cases.json")).unwrap();
    let text: Value = serde_json::from_str(&text).unwrap();
    let cases = text["cases"].as_array().unwrap();
    let file = golden("webui_pictures").join("webui_pictures.safetensors");
    let values = Golden::of_file(&file);
    let pipelines = pipelines(cases, folder.path());
    let (mut seen, mut pictures, mut wrong) = (0, 0, Vec::new());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        if let Some(reason) = left_out(case) {
            println!("{name} is not compared: {reason}");
            continue;
        }
        let pipeline = &pipelines[case["model"].as_str().unwrap()];
        let drawn = match pipeline.generate(&request(case, &values)) {
            Ok(drawn) => drawn.pictures,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (shape, expected) = values.tensor(&format!("{name}.latents"));
        assert_eq!(shape[0], drawn.len(), "{name}");
        let latents: Vec<_> = drawn.iter().map(|picture| picture.latents.view()).collect();
        let latents = sd_onnx::ndarray::concatenate(Axis(0), &latents).unwrap();
        if latents.shape() != shape {
            wrong.push(format!("{name}: {:?}, expected {shape:?}", latents.shape()));
            continue;
        }
        let error = relative_error(&latents, &expected);
        let mut line = format!("{name}: {error:.1e}");
        if error > bound(case) {
            wrong.push(format!(
                "{name}: {error:.2e}, expected at most {:.0e}",
                bound(case)
            ));
        }
        if let Some(bytes) = values.find(&format!("{name}.image")) {
            let (shape, expected) = bytes;
            let own: Vec<u8> = drawn
                .iter()
                .flat_map(|picture| picture.image.iter())
                .copied()
                .collect();
            assert_eq!(own.len(), expected.len(), "{name}: {shape:?}");
            let distances = own
                .iter()
                .zip(&expected)
                .map(|(&own, &other)| (f32::from(own) - other).abs());
            let most = distances.clone().fold(0.0, f32::max);
            let mean = distances.sum::<f32>() / own.len() as f32;
            line += &format!(", bytes differ by {mean:.2}, at most {most}");
            let bound = match case["mask"].is_string() {
                true => OVERLAID,
                false => BYTES,
            };
            if most > bound || mean > MEAN {
                wrong.push(format!("{name}: bytes differ by {mean:.2}, at most {most}"));
            }
            pictures += 1;
        }
        println!("{line}");
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((seen, pictures), (111, 23));
}
