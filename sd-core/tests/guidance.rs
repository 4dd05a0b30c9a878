//! Guidance: its formulas compared with diffusers and the papers, and the effect of each option on
//! a picture.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;

use common::{Fakes, Model, base, latents};
use ndarray::{Array3, Array4};
use sd_core::{
    ClassifierFree, Guide, ImageSize, Inputs, Request, StopToken,
    guidance::{Apg, ApgForm, GuidanceStep, Memory, Method, ZeroStar},
    schedulers::{
        Ladder, Prediction, Run, Rung, Rungs, Sampler, Step,
        ladders::{Conventions, NoisePath},
        samplers::{EulerAncestral, EulerCfgPp, Needs},
        schedule::ClipSample,
    },
    text::PromptEmbedding,
};
use sd_text::outside::chain;

#[derive(serde::Deserialize)]
struct Golden {
    steps: Vec<Input>,
    cases: Vec<Case>,
    intervals: Vec<Interval>,
    sample: Vec<f32>,
    thresholds: Vec<Threshold>,
}

#[derive(serde::Deserialize)]
struct Input {
    sigma: f32,
    x: Vec<f32>,
    conditional: Vec<f32>,
    unconditional: Vec<f32>,
}

#[derive(serde::Deserialize)]
struct Case {
    prediction: String,
    guidance: ClassifierFree,
    /// The denoised sample after each step.
    expected: Vec<Vec<f32>>,
}

#[derive(serde::Deserialize)]
struct Interval {
    interval: [f64; 2],
    steps: usize,
    on: Vec<usize>,
}

#[derive(serde::Deserialize)]
struct Threshold {
    ratio: f32,
    max: f32,
    expected: Vec<f32>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/guidance.json")).unwrap()
}

fn rung(index: usize, sigma: f32) -> Rung {
    Rung {
        index,
        sigma,
        timestep: 500.0,
        path: NoisePath::Exploding,
    }
}

/// Merges and converts the predictions of a step, as the pipeline does.
fn denoised(
    guide: &ClassifierFree,
    input: &Input,
    at: &GuidanceStep<'_>,
    memory: &mut Memory,
) -> Vec<f32> {
    let mut denoised = input.conditional.clone();
    if guide.needs_unconditional(at) {
        guide.merge(&mut denoised, &input.unconditional, at, memory);
    }
    at.prediction.denoised(&mut denoised, &input.x, at.rung);
    guide.finish(&mut denoised, at, memory);
    denoised
}

/// Returns the length of the difference relative to the expected vector.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|value| f64::from(value).powi(2)).sum()
    };
    let difference = square(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    difference.sqrt() / square(&mut expected.iter().copied()).sqrt().max(1.0)
}

/// Both sides compute partly in float32: this allows a few roundings of values up to about 100.
const TOLERANCE: f64 = 1e-5;

#[test]
fn formulas_are_those_of_diffusers_and_the_papers() {
    let golden = golden();
    assert!(golden.cases.len() >= 20 && golden.steps.len() == 4);
    for case in &golden.cases {
        let prediction = match case.prediction.as_str() {
            "epsilon" => Prediction::Epsilon,
            "v" => Prediction::V,
            "sample" => Prediction::Sample,
            "flow" => Prediction::Flow,
            other => panic!("{other}"),
        };
        let mut memory = Memory::default();
        assert_eq!(case.expected.len(), golden.steps.len());
        for (i, (input, expected)) in golden.steps.iter().zip(&case.expected).enumerate() {
            let mut at = GuidanceStep::new(&input.x, rung(i, input.sigma), prediction);
            at.steps = Some(golden.steps.len());
            let found = denoised(&case.guidance, input, &at, &mut memory);
            let error = error(&found, expected);
            let guidance = &case.guidance;
            assert!(error <= TOLERANCE, "{guidance:?}, step {i}: {error:e}");
        }
    }
}

#[test]
fn intervals_are_those_of_diffusers() {
    let golden = golden();
    assert!(golden.intervals.len() >= 50);
    for Interval {
        interval,
        steps,
        on,
    } in golden.intervals
    {
        let guidance = ClassifierFree {
            interval,
            ..ClassifierFree::default()
        };
        let is_on = |&index: &usize| {
            let mut at = GuidanceStep::new(&[], rung(index, 1.0), Prediction::Epsilon);
            at.steps = Some(steps);
            guidance.needs_unconditional(&at)
        };
        let found: Vec<_> = (0..steps).filter(is_on).collect();
        assert_eq!(found, on, "{interval:?} of {steps}");
    }
}

#[test]
fn thresholds_are_those_of_diffusers() {
    let golden = golden();
    assert!(golden.thresholds.len() >= 5);
    for Threshold {
        ratio,
        max,
        expected,
    } in golden.thresholds
    {
        let guidance = ClassifierFree {
            threshold: ClipSample::Dynamic { ratio, max },
            ..ClassifierFree::default()
        };
        let mut found = golden.sample.clone();
        let at = GuidanceStep::new(&golden.sample, rung(0, 1.0), Prediction::Sample);
        guidance.finish(&mut found, &at, &mut Memory::default());
        let error = error(&found, &expected);
        assert!(error <= TOLERANCE, "{ratio} {max}: {error:e}");
    }
}

fn apg() -> Apg {
    Apg {
        norm_threshold: 0.05,
        ..Apg::default()
    }
}

fn with(method: Method) -> ClassifierFree {
    ClassifierFree {
        method,
        ..ClassifierFree::default()
    }
}

#[test]
fn each_option_changes_the_picture() {
    let pipeline = Fakes::new().pipeline();
    let draw = |guidance: ClassifierFree| latents(&pipeline, &base().guidance(guidance));
    let plain = ClassifierFree::default();
    assert_eq!(
        draw(plain),
        latents(&pipeline, &base()),
        "the default is 7.5"
    );
    let all = [
        plain,
        ClassifierFree::from(7.0),
        ClassifierFree {
            rescale: 0.5,
            ..plain
        },
        ClassifierFree {
            interval: [0.25, 1.0],
            ..plain
        },
        ClassifierFree {
            interval: [0.0, 0.75],
            ..plain
        },
        ClassifierFree {
            threshold: ClipSample::Range(0.5),
            ..plain
        },
        ClassifierFree {
            threshold: ClipSample::Dynamic {
                ratio: 0.9,
                max: 10.0,
            },
            ..plain
        },
        with(Method::Apg(apg())),
        with(Method::Apg(Apg { eta: 0.5, ..apg() })),
        with(Method::Apg(Apg {
            norm_threshold: 0.1,
            ..apg()
        })),
        with(Method::Apg(Apg {
            momentum: 0.0,
            ..apg()
        })),
        with(Method::Apg(Apg {
            form: ApgForm::Raw,
            ..apg()
        })),
        with(Method::ZeroStar(ZeroStar::default())),
        with(Method::ZeroStar(ZeroStar { zero_steps: 2 })),
        with(Method::ZeroStar(ZeroStar { zero_steps: 0 })),
    ];
    let pictures = all.map(draw);
    for (i, a) in pictures.iter().enumerate() {
        assert!(a.iter().all(|value| value.is_finite()), "{:?}", all[i]);
        for (j, b) in pictures.iter().enumerate().skip(i + 1) {
            assert_ne!(a, b, "{:?}, {:?}", all[i], all[j]);
        }
    }
    // With all three parts turned off, APG is classifier-free guidance, except for rounding.
    let none = Apg {
        eta: 1.0,
        norm_threshold: 0.0,
        momentum: 0.0,
        form: ApgForm::Denoised,
    };
    let same = draw(with(Method::Apg(none)));
    let apart = (&same - &pictures[0])
        .iter()
        .fold(0.0_f32, |a, b| a.max(b.abs()));
    assert!(apart < 1e-3, "{apart}");
}

#[test]
fn the_other_half_is_computed_only_where_it_is_needed() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let plain = ClassifierFree::default();
    let interval = |interval| ClassifierFree { interval, ..plain };
    for (guidance, calls) in [
        (plain, 8),
        (interval([0.0, 0.5]), 6),
        (interval([0.5, 0.75]), 5),
        (interval([0.0, 0.2]), 4),
        (interval([0.3, 0.3]), 4),
        (with(Method::ZeroStar(ZeroStar { zero_steps: 1 })), 7),
        (with(Method::ZeroStar(ZeroStar { zero_steps: 4 })), 4),
        (
            ClassifierFree {
                scale: 1.0,
                rescale: 0.7,
                ..plain
            },
            4,
        ),
    ] {
        let generation = pipeline.generate(&base().guidance(guidance)).unwrap();
        assert_eq!(fakes.calls(), calls, "{guidance:?}");
        let negative = &generation.pictures[0].negative;
        assert_eq!(negative.is_some(), calls > 4, "{guidance:?}");
    }
    assert_eq!(
        latents(&pipeline, &base().guidance(interval([0.3, 0.3]))),
        latents(&pipeline, &base().guidance(1.0)),
    );
    // The pictures of a batch keep their own guidance.
    let pipeline = fakes.build(fakes.builder().max_batch(4));
    fakes.calls();
    let requests = [
        base().guidance(interval([0.0, 0.5])),
        base().guidance(interval([0.25, 0.5])),
    ];
    pipeline.generate_all(&requests).unwrap();
    assert_eq!(fakes.calls(), 4 + 2);
}

#[test]
fn guidance_by_a_picture_ends_with_the_interval_in_a_batch_too() {
    let fakes = Fakes::with(Model {
        inputs: Inputs::new(4, 4).extra_channels(4),
        ..Model::default()
    });
    let request = |interval| {
        let guidance = ClassifierFree {
            interval,
            ..ClassifierFree::default()
        };
        base()
            .guidance(guidance)
            .beside(Array4::from_elem((1, 4, 6, 8), 0.5))
            .image_guidance(1.5)
    };
    let requests = [request([0.0, 0.75]), request([0.25, 0.5])];
    let alone = fakes.pipeline();
    let batched = fakes.build(fakes.builder().max_batch(2));
    let pictures = batched.generate_all(&requests).unwrap().pictures;
    for picture in pictures {
        let request = requests[picture.request].clone();
        assert_eq!(picture.latents, latents(&alone, &request));
        let other = latents(&alone, &request.image_guidance(2.0));
        assert_ne!(picture.latents, other);
    }
}

#[test]
fn what_is_remembered_of_a_picture_is_its_own() {
    let fakes = Fakes::new();
    let alone = fakes.pipeline();
    let request = base()
        .scheduler(EulerAncestral::default())
        .guidance(with(Method::Apg(apg())));
    let requests = [
        request.clone().count(2),
        request.clone().guidance(3.0),
        request.clone().prompt("a cat"),
    ];
    for batch in [1, 2, 8] {
        let pipeline = fakes.build(fakes.builder().max_batch(batch));
        for picture in pipeline.generate_all(&requests).unwrap().pictures {
            let request = requests[picture.request].clone().count(1);
            let twin = latents(&alone, &request.seed(picture.seed));
            assert_eq!(picture.latents, twin, "batch {batch}");
        }
    }
}

/// A guide that counts its calls, and checks what it is called with.
#[derive(Debug)]
struct Counted;

impl Guide for Counted {
    fn merge(
        &self,
        conditional: &mut [f32],
        unconditional: &[f32],
        at: &GuidanceStep<'_>,
        memory: &mut Memory,
    ) {
        assert_eq!(at.steps, Some(4));
        assert_eq!(at.x.len(), conditional.len());
        memory.kept.push(at.rung.sigma);
        let calls = memory.kept.len();
        assert_eq!(calls, at.rung.index + 1);
        sd_core::guide(conditional, unconditional, calls as f32);
    }

    fn finish(&self, denoised: &mut [f32], at: &GuidanceStep<'_>, memory: &mut Memory) {
        assert_eq!(memory.kept.last(), Some(&at.rung.sigma));
        denoised.iter_mut().for_each(|value| *value *= 0.5);
    }
}

#[test]
fn a_guide_of_ones_own_remembers() {
    let pipeline = Fakes::new().pipeline();
    let first = latents(&pipeline, &base().guidance(Counted));
    assert_eq!(first, latents(&pipeline, &base().guidance(Counted)));
    assert_ne!(first, latents(&pipeline, &base()));
}

/// A CFG++ sampler: it goes to the guided sample, and back up by the noise of the unconditional
/// sample. It checks whether the two samples are the same.
#[derive(Debug, PartialEq)]
struct Both {
    same: bool,
}

impl Sampler for Both {
    fn needs(&self) -> Needs {
        Needs {
            unconditional: true,
            ..Needs::default()
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut other) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for at in rungs.iter() {
            run.denoise_both(x, at, &mut denoised, &mut other)?;
            assert_eq!(denoised == other, self.same);
            let ratio = rungs.sigmas()[at.index + 1] / at.sigma;
            for ((x, d), u) in x.iter_mut().zip(&denoised).zip(&other) {
                *x = d + ratio * (*x - u);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn samplers_of_cfg_pp_have_both_halves_whatever_the_scale() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let draw = |scale: f32, same| {
        let request = base().scheduler(Both { same }).guidance(scale);
        assert!(request.uses_negative());
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        assert_eq!(fakes.calls(), 8, "{scale}");
        assert!(picture.negative.is_some());
        picture.latents
    };
    // At scale 0 the guided sample is the unconditional one.
    assert_ne!(draw(0.0, true), draw(0.6, false));
    assert_ne!(draw(0.6, false), draw(1.0, false));
    let negative = base().scheduler(Both { same: false }).guidance(0.6);
    assert_ne!(
        latents(&pipeline, &negative.clone().negative("sharp")),
        latents(&pipeline, &negative)
    );
    let unused = base().guidance(1.0);
    assert!(!unused.uses_negative() && base().uses_negative());
    fakes.calls();

    let cfg_pp = base()
        .scheduler(EulerCfgPp::default())
        .ladder(Ladder::karras())
        .guidance(0.6);
    assert_ne!(
        latents(&pipeline, &cfg_pp),
        latents(&pipeline, &cfg_pp.clone().guidance(0.8))
    );
    assert_eq!(fakes.calls(), 16);
    // Outside the interval the guided sample is the conditional one, but the unconditional one is
    // still computed.
    let off = ClassifierFree {
        interval: [0.0, 0.5],
        ..ClassifierFree::from(0.6)
    };
    assert_ne!(
        latents(&pipeline, &cfg_pp.clone().guidance(off)),
        latents(&pipeline, &cfg_pp)
    );
    assert_eq!(fakes.calls(), 16);
}

#[test]
fn a_token_interrupts_the_plain_function() {
    let waiting = Fakes::with(Model {
        waits_at: 1,
        ..Model::default()
    });
    let pipeline = waiting.pipeline();
    let prompt = PromptEmbedding::from(Array3::<f32>::ones((1, 7, 4)));
    let size = ImageSize::new(64, 48).unwrap();
    let guided = pipeline.guided(size, &prompt, None, ClassifierFree::from(1.0));
    let stop = StopToken::new();
    stop.stop();
    let mut guided = guided.unwrap().stopped_by(stop);
    let (x, mut denoised) = (vec![0.5; 192], vec![0.0; 192]);
    let error = guided.denoise(&x, rung(3, 1.0), &mut denoised).unwrap_err();
    assert!(chain(&error).contains("interrupted"), "{error}");
}

#[test]
fn the_plain_function_has_both_halves_too() {
    let pipeline = Fakes::new().pipeline();
    let (prompt, negative) = (
        PromptEmbedding::from(Array3::<f32>::ones((1, 7, 4))),
        PromptEmbedding::from(Array3::<f32>::from_elem((1, 7, 4), 0.5)),
    );
    let size = ImageSize::new(64, 48).unwrap();
    let guided = |negative, guidance: ClassifierFree| {
        pipeline.guided(size, &prompt, negative, guidance).unwrap()
    };
    let x = vec![0.5; 192];
    let at = rung(3, 1.0);
    let half = |scale| {
        let mut denoised = vec![0.0; 192];
        let mut guided = guided(Some(&negative), ClassifierFree::from(scale));
        guided.denoise(&x, at, &mut denoised).unwrap();
        denoised
    };
    let mut both = [vec![0.0; 192], vec![0.0; 192]];
    let [denoised, unconditional] = &mut both;
    guided(Some(&negative), ClassifierFree::from(7.5))
        .denoise_both(&x, at, denoised, unconditional)
        .unwrap();
    assert_eq!(both[0], half(7.5));
    assert_ne!(both[1], both[0]);
    assert_ne!(half(1.0), both[1]);

    let [denoised, unconditional] = &mut both;
    guided(None, ClassifierFree::from(7.5))
        .denoise_both(&x, at, denoised, unconditional)
        .unwrap();
    assert_eq!(both[0], both[1], "there is no negative prompt");
    assert_eq!(both[0], half(1.0));

    // An interval is placed by the rungs that were set.
    let late = ClassifierFree {
        interval: [0.5, 1.0],
        ..ClassifierFree::default()
    };
    let mut found = [vec![0.0; 192], vec![0.0; 192], vec![0.0; 192]];
    let steps = [None, Some(6), Some(8)];
    for (steps, denoised) in steps.into_iter().zip(&mut found) {
        let guided = guided(Some(&negative), late);
        let mut guided = match steps {
            Some(steps) => {
                let ladder = Ladder::karras();
                let schedule = pipeline.schedule();
                let rungs = ladder.rungs(schedule, steps, &Conventions::default());
                guided.rungs(&rungs.unwrap())
            }
            None => guided,
        };
        guided.denoise(&x, at, denoised).unwrap();
    }
    assert_eq!(found, [half(7.5), half(7.5), half(1.0)]);
}

#[test]
fn what_cannot_be_used_is_told() {
    let pipeline = Fakes::new().pipeline();
    let wrong = ClassifierFree {
        rescale: 2.0,
        interval: [0.5, 0.25],
        ..ClassifierFree::from(f32::NAN)
    };
    let error = pipeline
        .generate(&Request::new("a fox").guidance(wrong))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "guidance is NaN, expected a finite number; \
         guidance.rescale is 2, expected 0 to 1; \
         guidance.interval is [0.5, 0.25], expected [start, stop] with 0 <= start < 1 and start <= stop <= 1"
    );
}
