//! Pictures that steer a run, with fake networks.
//!
//! `sd-onnx/tests/control.rs` compares whole runs with diffusers.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Mutex};

use common::{Codec, Model, Text, base, prompts};
use ndarray::{Array3, ArrayD, ArrayViewMut4, IxDyn};
use sd_core::{
    BoxError, Call, Control, ControlInput, ControlInputs, ControlKind, ControlMode, ControlPicture,
    Denoiser, GenerateError, Hint, Hires, Infotext, Inputs, Mask, NetworkReport, Picture, Pipeline,
    Preprocessor, Request, Resize, SchedulerConfig, Start, StopToken,
    image::{GrayImage, Luma, Rgb, RgbImage},
    infotext,
};

/// An active control in a call: the network, the value of its hint, the weight and the factor of
/// its first layer out of thirteen.
type Seen = (usize, f32, f32, f32);

/// A denoiser with control networks. The hint of a picture is the sum of its values. For the
/// negative prompt it is the sum plus 1000.
struct Steered {
    model: Model,
    seen: Mutex<Vec<(usize, Vec<Seen>)>>,
    read: Mutex<Vec<(usize, Vec<usize>, f32)>>,
    fails: bool,
}

impl Steered {
    fn new() -> Arc<Self> {
        let kinds = [
            ("lines", ControlKind::ControlNet),
            ("depth", ControlKind::Adapter),
            ("style", ControlKind::ImagePrompt),
        ];
        let mut inputs = Inputs::new(4, 4);
        for (name, kind) in kinds {
            inputs = inputs.control(ControlInputs::new(name, kind));
        }
        let gray = ControlInputs::new("gray", ControlKind::ControlNet).channels(1);
        let pooled = ControlInputs::new("pooled", ControlKind::ControlNet).prompt_only(true);
        let coarse = ControlInputs::new("coarse", ControlKind::Adapter).multiple(64);
        let inputs = inputs.control(gray).control(pooled).control(coarse);
        Arc::new(Self {
            model: Model {
                inputs,
                ..Model::default()
            },
            seen: Mutex::default(),
            read: Mutex::default(),
            fails: false,
        })
    }

    /// Returns the controls of each call since the last time, with the call's step.
    fn seen(&self) -> Vec<(usize, Vec<Seen>)> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// Returns the network, the shape and the sum of each picture that was read since the last
    /// time.
    fn read(&self) -> Vec<(usize, Vec<usize>, f32)> {
        std::mem::take(&mut self.read.lock().unwrap())
    }
}

impl Denoiser for Steered {
    fn inputs(&self) -> &Inputs {
        &self.model.inputs
    }

    fn predict(&self, call: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        let seen: Vec<Seen> = call
            .controls
            .iter()
            .map(|control| {
                let kind = self.model.inputs.controls[control.network].kind;
                let first = control.factors(kind, 13)[0];
                let hint = control.hint[0].iter().next().unwrap();
                (control.network, *hint, control.weight, first)
            })
            .collect();
        self.model.predict(call, output.view_mut())?;
        for (_, hint, _, factor) in &seen {
            output.mapv_inplace(|value| value + factor * (hint / 100.0).sin());
        }
        self.seen.lock().unwrap().push((call.step, seen));
        Ok(())
    }

    fn read_control(
        &self,
        network: usize,
        picture: ControlInput<'_>,
        _: &StopToken,
    ) -> Result<Hint, BoxError> {
        if self.fails {
            return Err("out of memory".into());
        }
        let (shape, sum) = match picture {
            ControlInput::Values(values) => (values.shape().to_vec(), values.sum()),
            ControlInput::Pixels(picture) => {
                let (width, height) = picture.dimensions();
                let sum = picture.as_raw().iter().map(|&value| f32::from(value)).sum();
                (vec![height as usize, width as usize], sum)
            }
            _ => unreachable!("there is no other form"),
        };
        self.read.lock().unwrap().push((network, shape, sum));
        let hint = |sum| vec![ArrayD::from_elem(IxDyn(&[1]), sum)];
        Ok(Hint::new(hint(sum)).negative(hint(sum + 1000.0)))
    }

    fn report(&self) -> Vec<NetworkReport> {
        Vec::new()
    }
}

fn pipeline_of(model: &Arc<Steered>) -> Pipeline {
    pipeline_with(model, 1)
}

fn pipeline_with(model: &Arc<Steered>, max_batch: usize) -> Pipeline {
    let text: Arc<Text> = Arc::default();
    let config = SchedulerConfig::default();
    Pipeline::builder(
        prompts(&text),
        model.clone(),
        Arc::new(Codec::new(4)),
        config,
    )
    .size(64, 48)
    .max_batch(max_batch)
    .build()
    .unwrap()
}

/// A picture whose values have the sum `sum` if it is not resized.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 255]))
}

fn lines() -> Control {
    Control::new("lines", picture(64, 48))
}

fn drawn(pipeline: &Pipeline, request: &Request) -> Picture {
    pipeline.generate(request).unwrap().pictures.remove(0)
}

#[test]
fn a_weight_of_nothing_equals_no_control() {
    let model = Steered::new();
    let pipeline = pipeline_of(&model);
    let plain = drawn(&pipeline, &base());
    let nothing = drawn(&pipeline, &base().control(lines().weight(0.0)));
    assert_eq!(plain.latents, nothing.latents);
    assert_eq!(model.read(), [], "the picture is not read");
    let steered = drawn(&pipeline, &base().control(lines()));
    assert_ne!(plain.latents, steered.latents);
    assert_eq!(steered.initial_noise, plain.initial_noise);
}

#[test]
fn modes_decide_which_half_and_which_layers() {
    let model = Steered::new();
    let pipeline = pipeline_of(&model);
    // Whether it acts on the negative prompt, and the factor of the first layer.
    let soft = 0.825_f32.powi(12);
    for (control, negative, factor) in [
        (lines(), true, 1.0),
        (lines().weight(0.5), true, 0.5),
        (lines().mode(ControlMode::Prompt), true, soft),
        (lines().mode(ControlMode::Control), false, soft),
        (lines().mode(ControlMode::Guess), false, 0.1),
        (Control::new("pooled", picture(8, 8)), false, 1.0),
        (
            Control::new("pooled", picture(8, 8)).mode(ControlMode::Guess),
            false,
            1.0,
        ),
        (
            Control::new("depth", picture(8, 8)).mode(ControlMode::Prompt),
            true,
            0.25,
        ),
        (Control::new("style", picture(8, 8)), true, 1.0),
    ] {
        let _ = drawn(&pipeline, &base().control(control.clone()));
        let seen = model.seen();
        assert_eq!(seen.len(), 8, "four steps with two calls each");
        for calls in seen.chunks_exact(2) {
            let [(_, of_prompt), (_, of_negative)] = calls else {
                unreachable!()
            };
            let of_prompt = of_prompt[0];
            assert!((of_prompt.3 - factor).abs() < 1e-6, "{control:?} {seen:?}");
            assert_eq!(of_negative.len(), usize::from(negative), "{control:?}");
            for of_negative in of_negative {
                assert_eq!(of_negative.1, of_prompt.1 + 1000.0, "its own hint");
            }
        }
    }
}

#[test]
fn pictures_act_between_start_and_end() {
    let model = Steered::new();
    let pipeline = pipeline_of(&model);
    let steps = |control: Control, request: Request| {
        let _ = drawn(&pipeline, &request.guidance(1.0).control(control));
        let seen = model.seen().into_iter();
        let acting = seen.filter(|(_, controls)| !controls.is_empty());
        acting.map(|(step, _)| step).collect::<Vec<_>>()
    };
    let ten = || base().steps(10);
    assert_eq!(steps(lines(), ten()), Vec::from_iter(0..10));
    // Computed with diffusers' rule in Python.
    assert_eq!(steps(lines().during(0.0, 0.5), ten()), [0, 1, 2, 3, 4]);
    assert_eq!(
        steps(lines().during(0.25, 1.0), ten()),
        [3, 4, 5, 6, 7, 8, 9]
    );
    assert_eq!(steps(lines().during(0.2, 0.65), ten()), [2, 3, 4, 5]);
    assert_eq!(steps(lines().during(0.5, 0.5), ten()), [0; 0]);
    // A part of a run counts its own steps.
    let start = Start::picture(picture(64, 48)).strength(0.4);
    assert_eq!(steps(lines().during(0.0, 0.5), ten().start(start)), [0, 1]);
}

#[test]
fn pictures_are_fitted_to_the_size() {
    let model = Steered::new();
    let pipeline = pipeline_of(&model);
    let read = |control: Control| {
        let _ = drawn(&pipeline, &base().control(control));
        model.read().remove(0)
    };
    let sum = |picture: &RgbImage| {
        let values = picture.as_raw().iter();
        values.map(|&value| f32::from(value) / 255.0).sum::<f32>()
    };
    let same = |found: f32, expected: f32| (found - expected).abs() < 1e-3 * expected.abs();
    let (network, shape, found) = read(lines());
    assert_eq!((network, shape), (0, vec![1, 3, 48, 64]));
    assert!(same(found, sum(&picture(64, 48))), "{found}");
    let other = Control::new("lines", picture(100, 100));
    let stretched = read(other.clone());
    let cropped = read(other.clone().resize(Resize::Crop));
    let filled = read(other.resize(Resize::Fill));
    for (_, shape, _) in [&stretched, &cropped, &filled] {
        assert_eq!(*shape, [1, 3, 48, 64]);
    }
    assert!(stretched.2 != cropped.2 && cropped.2 != filled.2);
    let (network, shape, found) = read(Control::new("gray", picture(64, 48)));
    assert_eq!((network, shape), (3, vec![1, 1, 48, 64]));
    // Pillow's `convert("L")`.
    let pixels = picture(64, 48);
    let luminance = pixels.pixels().map(|Rgb([r, g, b])| {
        let [r, g, b] = [r, g, b].map(|&value| u32::from(value));
        (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
    });
    assert!(same(found, luminance.sum::<u32>() as f32 / 255.0));
    let (network, shape, _) = read(Control::new("style", picture(100, 20)));
    assert_eq!((network, shape), (2, vec![20, 100]), "in its own size");
    let values = Array3::from_elem((3, 48, 64), -0.5);
    let (_, _, found) = read(Control::new("lines", values));
    assert!(same(found, -0.5 * 3.0 * 48.0 * 64.0));
}

#[test]
fn the_start_is_a_control_picture_with_a_hole() {
    let model = Steered::new();
    let pipeline = pipeline_of(&model);
    let white = RgbImage::from_pixel(64, 48, Rgb([255; 3]));
    let mask = GrayImage::from_fn(64, 48, |x, _| Luma([if x < 16 { 255 } else { 0 }]));
    let start = Start::picture(white);
    let control = || Control::new("lines", ControlPicture::Start);
    let whole = base().start(start.clone()).control(control());
    let _ = drawn(&pipeline, &whole);
    assert_eq!(model.read()[0].2, 3.0 * 48.0 * 64.0);
    let masked = base().start(start.mask(Mask::new(mask))).control(control());
    let _ = drawn(&pipeline, &masked);
    assert_eq!(model.read()[0].2, 3.0 * 48.0 * (48.0 - 16.0));
}

#[test]
fn a_second_pass_reads_the_picture_in_its_size() {
    let model = Steered::new();
    let pipeline = pipeline_of(&model);
    let request = base().control(lines()).hires(Hires::scale(2.0));
    let _ = drawn(&pipeline, &request);
    let shapes: Vec<_> = model
        .read()
        .into_iter()
        .map(|(_, shape, _)| shape)
        .collect();
    assert_eq!(shapes, [[1, 3, 48, 64], [1, 3, 96, 128]]);
    assert!(model.seen().iter().all(|(_, controls)| controls.len() == 1));
}

#[test]
fn only_equal_controls_share_a_batch() {
    let model = Steered::new();
    let pipeline = pipeline_with(&model, 4);
    let with = |weight| base().control(lines().weight(weight));
    let requests = [with(1.0), with(0.5), with(1.0), base()];
    let together = pipeline.generate_all(&requests).unwrap().pictures;
    assert_eq!(
        model.model.batch.load(std::sync::atomic::Ordering::Relaxed),
        2
    );
    let alone = pipeline_of(&Steered::new());
    for (request, found) in requests.iter().zip(&together) {
        let request = request.clone().seed(found.seed);
        assert_eq!(drawn(&alone, &request).latents, found.latents);
    }
    // Several pictures of a request read the picture once.
    let _ = model.read();
    let _ = pipeline.generate(&with(1.0).count(3)).unwrap();
    assert_eq!(model.read().len(), 1);
}

#[test]
fn problems_name_the_control() {
    let pipeline = pipeline_of(&Steered::new());
    let start = Control::new("lines", ControlPicture::Start);
    let values = |shape| Control::new("lines", Array3::from_elem(shape, 1.0));
    for (control, expected) in [
        (
            Control::new("line", picture(8, 8)),
            "controls[0].network is \"line\", expected the name of a control network, such as lines",
        ),
        (
            lines().weight(f32::NAN),
            "controls[0].weight is NaN, expected a finite number",
        ),
        (
            lines().during(-0.1, 1.0),
            "controls[0].start is -0.1, expected 0 to 1",
        ),
        (
            lines().during(0.5, 0.4),
            "controls[0].end is 0.4, expected 0.5, the start, to 1",
        ),
        (lines().during(f32::NAN, 1.0), "controls[0].start"),
        (
            lines().resize(Resize::Latent),
            "controls[0].resize is latent, expected stretch",
        ),
        (Control::new("lines", RgbImage::new(0, 3)), "at least 1×1"),
        (start, "as the request does not start from one"),
        (values((3, 48, 63)), "expected values of shape (3, 48, 64)"),
        (
            Control::new("lines", Array3::from_elem((3, 48, 64), f32::INFINITY)),
            "expected finite numbers",
        ),
        (
            Control::new("style", picture(8, 8)).mode(ControlMode::Prompt),
            "controls[0].mode is prompt, expected balanced, as this is an IP-Adapter",
        ),
        (
            Control::new("depth", picture(8, 8)).mode(ControlMode::Guess),
            "expected balanced, prompt or control, as this is a T2I-Adapter",
        ),
        (
            Control::new("style", ControlPicture::Start),
            "expected a picture in pixels",
        ),
        (
            Control::new("coarse", picture(8, 8)),
            "the size of the request, expected a size in multiples of 64 pixels",
        ),
    ] {
        let request = base().control(control);
        let Err(GenerateError::Request(problems)) = pipeline.generate(&request) else {
            panic!("{request:?} is drawn");
        };
        assert!(problems.to_string().contains(expected), "{problems}");
    }
    let many = (0..17).fold(base(), |request, _| request.control(lines()));
    let error = pipeline.generate(&many).unwrap_err().to_string();
    assert!(
        error.contains("controls is 17, expected at most 16"),
        "{error}"
    );
    let style = || Control::new("style", picture(8, 8));
    let twice = base().control(style()).control(style());
    let error = pipeline.generate(&twice).unwrap_err().to_string();
    assert!(error.contains("expected another network"), "{error}");
    // Other networks may be used several times.
    let _ = drawn(
        &pipeline,
        &base().control(lines()).control(lines().weight(0.3)),
    );
    let none = common::Fakes::new().pipeline();
    let error = none
        .generate(&base().control(lines()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the pipeline has no control networks"),
        "{error}"
    );
}

#[test]
fn an_error_names_the_network() {
    let mut model = Steered::new();
    Arc::get_mut(&mut model).unwrap().fails = true;
    let error = pipeline_of(&model).generate(&base().control(lines()));
    let error = error.unwrap_err();
    assert_eq!(error.to_string(), "reading the picture for lines failed");
}

#[test]
fn controls_are_json() {
    let control = Control::new("lines", picture(2, 1))
        .weight(0.5)
        .during(0.25, 0.75)
        .mode(ControlMode::Control)
        .resize(Resize::Crop);
    let json = serde_json::to_string(&control).unwrap();
    assert_eq!(serde_json::from_str::<Control>(&json).unwrap(), control);
    let short = r#"{"prompt": "a fox", "controls": [{"network": "lines", "picture": "start"}]}"#;
    let request = Request::from_json(short).unwrap();
    let expected = Control::new("lines", ControlPicture::Start);
    assert_eq!(request.controls, [expected]);
}

#[test]
fn batches_do_not_mix_starts() {
    let model = Steered::new();
    let pipeline = pipeline_with(&model, 4);
    let start = |value| Start::picture(RgbImage::from_pixel(64, 48, Rgb([value; 3])));
    let request = |value| {
        let control = Control::new("lines", ControlPicture::Start);
        base().start(start(value)).control(control)
    };
    let requests = [request(0), request(255)];
    let together = pipeline.generate_all(&requests).unwrap().pictures;
    let alone = pipeline_of(&model);
    for (request, found) in requests.iter().zip(&together) {
        assert_eq!(drawn(&alone, request).latents, found.latents);
    }
}

/// The picture belongs to the whole start, as in sd-webui-controlnet.
#[test]
fn a_region_is_cut_out_of_control_pictures() {
    let model = Steered::new();
    let pipeline = pipeline_of(&model);
    // White on the left half, and the mask is in the right half.
    let halves = RgbImage::from_fn(128, 96, |x, _| Rgb([if x < 64 { 255 } else { 0 }; 3]));
    let mask = GrayImage::from_fn(128, 96, |x, y| {
        Luma([if (90..110).contains(&x) && (40..55).contains(&y) {
            255
        } else {
            0
        }])
    });
    let whole = Start::picture(RgbImage::new(128, 96));
    let part = whole.clone().mask(Mask::new(mask).only_masked(0));
    for (start, expected) in [(whole, 0.5), (part, 0.0)] {
        // Half the size, so that the picture is scaled to the size of the start first.
        let small = halves.clone();
        let request = base()
            .size(64, 48)
            .start(start)
            .control(Control::new("lines", small));
        let _ = drawn(&pipeline, &request);
        let (_, shape, sum) = model.read().remove(0);
        assert_eq!(shape, [1, 3, 48, 64]);
        let mean = sum / (3.0 * 48.0 * 64.0);
        assert!((mean - expected).abs() < 0.01, "{mean}");
    }
}

#[test]
fn networks_of_other_channels_take_values_only() {
    let mut model = Steered::new();
    let inputs = &mut Arc::get_mut(&mut model).unwrap().model.inputs;
    *inputs = inputs
        .clone()
        .control(ControlInputs::new("four", ControlKind::ControlNet).channels(4));
    let pipeline = pipeline_of(&model);
    let error = pipeline.generate(&base().control(Control::new("four", picture(8, 8))));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("expected values of 4 channels"), "{error}");
    let values = Array3::from_elem((4, 48, 64), 0.5);
    let _ = drawn(&pipeline, &base().control(Control::new("four", values)));
    assert_eq!(model.read()[0].1, [1, 4, 48, 64]);
}

#[test]
fn what_no_denoiser_may_have_is_refused() {
    let net = || ControlInputs::new("lines", ControlKind::ControlNet);
    for (networks, expected) in [
        (
            vec![net(), net()],
            "two control networks of the denoiser are called `lines`",
        ),
        (
            vec![net().multiple(0)],
            "has 3 channels and sides in multiples of 0",
        ),
        (
            vec![net().channels(0)],
            "has 0 channels and sides in multiples of 8",
        ),
    ] {
        let inputs = networks
            .into_iter()
            .fold(Inputs::new(4, 4), Inputs::control);
        let model = Model {
            inputs,
            ..Model::default()
        };
        let error = common::Fakes::with(model)
            .builder()
            .build()
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// What an infotext of a picture with controls gives back.
#[test]
fn infotexts_return_controls() {
    let mut model = Steered::new();
    let hostile = "a, \"b\": ü\n<c>";
    let inputs = &mut Arc::get_mut(&mut model).unwrap().model.inputs;
    *inputs = inputs
        .clone()
        .control(ControlInputs::new(hostile, ControlKind::ControlNet));
    let pipeline = pipeline_of(&model);
    let controls = [
        lines()
            .weight(0.7)
            .during(0.1, 0.9)
            .mode(ControlMode::Guess),
        Control::new(hostile, picture(64, 48))
            .resize(Resize::Crop)
            .preprocessor(Preprocessor::Canny { low: 50, high: 150 }),
    ];
    let request = controls
        .iter()
        .fold(base(), |request, control| request.control(control.clone()));
    let made = drawn(&pipeline, &request);
    let infotext = Infotext::parse(&made.infotext().to_string()).unwrap();
    assert_eq!(infotext.control_count(), 2);
    for (i, control) in controls.iter().enumerate() {
        assert_eq!(infotext.control(i, picture(64, 48)).as_ref(), Some(control));
    }
    assert_eq!(infotext.control(2, picture(64, 48)), None);
    assert_eq!(infotext.control(usize::MAX, picture(64, 48)), None);
    let again = pipeline.reproduction(&infotext);
    assert_eq!(again.differences, [infotext::CONTROL_NOTE]);
    let mut request = again.request;
    request.controls = controls.to_vec();
    assert_eq!(drawn(&pipeline, &request).latents, made.latents);
}

#[test]
fn infotexts_of_webui_return_units() {
    let text = |units: &str| {
        let text =
            format!("a fox\nSteps: 20, Sampler: Euler, Size: 64x64, {units}, Version: v1.10.1");
        Infotext::parse(&text).unwrap()
    };
    let full = text(
        "ControlNet 0: \"Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 0.85, \
         Resize Mode: Crop and Resize, Processor Res: 512, Threshold A: 80, Threshold B: 160, \
         Guidance Start: 0.1, Guidance End: 0.8, Pixel Perfect: True, Control Mode: My prompt is \
         more important\"",
    );
    let expected = Control::new("control_v11p_sd15_canny", picture(8, 8))
        .weight(0.85)
        .during(0.1, 0.8)
        .mode(ControlMode::Prompt)
        .resize(Resize::Crop)
        .preprocessor(Preprocessor::Canny { low: 80, high: 160 });
    assert_eq!(full.control(0, picture(8, 8)), Some(expected));
    let notes = |infotext: &Infotext| -> Vec<_> {
        let differences = infotext.request().differences.into_iter();
        let of_controls =
            differences.filter(|it| it.contains("ControlNet") || it.contains("pictures"));
        of_controls.collect()
    };
    // The preprocessor worked at the size of the picture there, too.
    assert_eq!(notes(&full), [infotext::CONTROL_NOTE]);
    let depth = text("ControlNet 1: \"Module: depth_midas, Model: depth, Guidance Start: 7\"");
    assert_eq!(depth.control_count(), 1, "units may have gaps");
    let control = depth.control(0, picture(8, 8)).unwrap();
    assert_eq!((&*control.network, control.start), ("depth", 0.0));
    let notes = notes(&depth);
    assert!(
        notes[1].contains("`Guidance Start: 7` cannot be used"),
        "{notes:?}"
    );
    assert!(
        notes[2].contains("`depth_midas` is not a part"),
        "{notes:?}"
    );
    // Damaged records of this crate.
    for damaged in ["{}", "null", "[5]", "[{}]", "no JSON", "[{\"network\":5}]"] {
        let mut infotext = Infotext::default();
        for (key, value) in [("SD controls", damaged), ("Version", "sd-onnx 0.1.0")] {
            infotext.entries.push((key.to_owned(), value.to_owned()));
        }
        let differences = infotext.request().differences;
        let is_told = |text: &String| text.contains("`SD controls` cannot be read");
        assert!(
            differences.iter().any(is_told),
            "{damaged}: {differences:?}"
        );
    }
}
