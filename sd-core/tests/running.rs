//! Observing, stopping and streaming runs, and custom samplers, tested on fakes.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    ops::ControlFlow::{self, Break, Continue},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::Duration,
};

use common::{Fakes, Model, base, latents};
use futures_core::Stream;
use ndarray::{Array4, ArrayView4};
use sd_core::{
    ClassifierFree, Event, GenerateError, ImageSize, Infotext, LatentCodec, LatentDistribution,
    Pipeline, Request, StopToken, Stopped, Update, files,
    schedulers::{
        Ladder, NoiseSource, Run, Rung, Rungs, Sampler, Step,
        noise::TorchRng,
        sample,
        samplers::{Calls, Heun, Needs},
    },
    slerp,
    text::{BoxError, ClipSkip},
};
use sd_text::outside::chain;

fn stopped(result: Result<(), GenerateError>) -> Stopped {
    match result.unwrap_err() {
        GenerateError::Stopped(stopped) => *stopped,
        error => panic!("{error}"),
    }
}

#[test]
fn a_pipeline_goes_to_other_threads() {
    fn shared<T: Send + Sync + Clone + 'static>() {}
    shared::<Pipeline>();
    shared::<StopToken>();
    shared::<Request>();
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let model = Arc::downgrade(&fakes.model);
    drop((pipeline.clone(), pipeline, fakes));
    assert!(
        model.upgrade().is_none(),
        "dropping the last pipeline frees the model"
    );
}

#[test]
fn an_observer_sees_every_step_and_every_picture() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let mut seen = Vec::new();
    let mut pictures = Vec::new();
    let requests = [base().count(2), base().seed(1).steps(2)];
    pipeline
        .run(&requests, &StopToken::new(), |event| {
            match event {
                Event::Step(p) => {
                    assert_eq!((p.latents.dim(), p.denoised.dim()), ((4, 6, 8), (4, 6, 8)));
                    let step = p.step;
                    assert!(step.elapsed >= step.took && !step.took.is_zero());
                    let now = (
                        step.request,
                        step.picture,
                        step.seed,
                        step.index,
                        step.total,
                    );
                    seen.push((now, step.sigma, p.latents.to_owned()));
                }
                Event::Picture(picture) => pictures.push((seen.len(), picture)),
                _ => unreachable!("no other events"),
            }
            Continue(())
        })
        .unwrap();
    let steps: Vec<_> = seen.iter().map(|(now, ..)| *now).collect();
    let expected = [
        (0, 0, 7, 0, 4),
        (0, 0, 7, 1, 4),
        (0, 0, 7, 2, 4),
        (0, 0, 7, 3, 4),
        (0, 1, 8, 0, 4),
        (0, 1, 8, 1, 4),
        (0, 1, 8, 2, 4),
        (0, 1, 8, 3, 4),
        (1, 0, 1, 0, 2),
        (1, 0, 1, 1, 2),
    ];
    assert_eq!(steps, expected);
    assert!(seen[..4].is_sorted_by(|a, b| a.1 > b.1), "sigmas fall");
    let came: Vec<_> = pictures.iter().map(|(after, _)| *after).collect();
    assert_eq!(came, [4, 8, 10], "each picture comes when it is finished");
    assert_eq!(
        seen[3].2,
        pictures[0].1.latents.index_axis(ndarray::Axis(0), 0)
    );
}

#[test]
fn a_look_at_a_step_is_small_or_full() {
    let fakes = Fakes::new();
    let mut last = None;
    fakes
        .pipeline()
        .run(&[base()], &StopToken::new(), |event| {
            match event {
                Event::Step(p) => {
                    assert_eq!(p.preview().dimensions(), (8, 6));
                    last = Some(p.decode().unwrap());
                }
                Event::Picture(picture) => assert_eq!(last.as_ref(), Some(&picture.image)),
                _ => {}
            }
            Continue(())
        })
        .unwrap();
    assert_eq!(fakes.decodes(), 4 + 1, "four steps and the picture");
}

#[test]
fn a_preview_codec_decodes_previews_in_full_size() {
    /// Decodes previews to grey, or fails always.
    struct Grey(bool);
    impl LatentCodec for Grey {
        fn latent_channels(&self) -> usize {
            4
        }
        fn factor(&self) -> usize {
            2
        }
        fn decode(
            &self,
            latents: ArrayView4<'_, f32>,
            _: &StopToken,
        ) -> Result<Array4<f32>, BoxError> {
            let (_, _, height, width) = latents.dim();
            match self.0 {
                true => Err("no preview".into()),
                false => Ok(Array4::zeros((1, 3, 2 * height, 2 * width))),
            }
        }
        fn encode(
            &self,
            _: ArrayView4<'_, f32>,
            _: &StopToken,
        ) -> Result<LatentDistribution, BoxError> {
            Err("previews are not encoded".into())
        }
    }
    let fakes = Fakes::new();
    // A codec that fails leaves the small previews.
    for (fails, size) in [(false, (16, 12)), (true, (8, 6))] {
        let builder = fakes.builder().preview_codec(Arc::new(Grey(fails)));
        let pipeline = fakes.build(builder);
        let mut steps = 0;
        let run = pipeline.run(&[base()], &StopToken::new(), |event| {
            if let Event::Step(progress) = event {
                assert_eq!(progress.preview().dimensions(), size);
                steps += 1;
            }
            Continue(())
        });
        run.unwrap();
        assert_eq!((steps, fakes.decodes()), (4, 1));
    }
}

#[test]
fn an_observer_stops_after_any_step() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let whole = latents(&pipeline, &base());
    fakes.decodes();
    for stop_after in 1..=4 {
        let mut seen = Vec::new();
        let stopped = stopped(pipeline.run(&[base()], &StopToken::new(), |event| {
            let Event::Step(p) = event else {
                panic!("a picture")
            };
            seen.push((p.latents.to_owned(), p.denoised.to_owned()));
            if seen.len() == stop_after {
                Break(())
            } else {
                Continue(())
            }
        }));
        let (latents_then, denoised) = seen.pop().unwrap();
        assert_eq!(stopped.steps, stop_after);
        let [unfinished] = &stopped.pictures[..] else {
            panic!("one picture")
        };
        assert_eq!(
            (unfinished.request, unfinished.picture, unfinished.seed),
            (0, 0, 7)
        );
        let row = |all: &Array4<f32>| all.index_axis(ndarray::Axis(0), 0).to_owned();
        assert_eq!(row(&unfinished.latents), latents_then);
        assert_eq!(row(unfinished.denoised.as_ref().unwrap()), denoised);
        assert_eq!(fakes.decodes(), 0);
        assert!(
            pipeline
                .decode(unfinished.denoised.as_ref().unwrap().view())
                .is_ok()
        );
        assert_eq!(
            latents(&pipeline, &base()),
            whole,
            "the pipeline works afterwards"
        );
        fakes.decodes();
    }
}

#[test]
fn a_token_stops_before_between_and_within_calls() {
    // Before the first call: no network runs.
    let fakes = Fakes::new();
    let token = StopToken::new();
    token.stop();
    let before = stopped(fakes.pipeline().run(&[base()], &token, |_| Continue(())));
    assert_eq!(
        (before.steps, before.pictures.len(), fakes.calls()),
        (0, 0, 0)
    );

    // Between two calls: the observer stops the token, but continues the run.
    let token = StopToken::new();
    let between = stopped(fakes.pipeline().run(&[base()], &token, |_| {
        token.stop();
        Continue(())
    }));
    assert_eq!(
        (between.steps, between.pictures.len(), fakes.calls()),
        (1, 1, 2)
    );

    // Within a call: the call waits until it is interrupted. Heun calls the model twice per step,
    // and has moved x between the calls.
    let scheduler = Heun::default();
    for (waits_at, steps) in [(1, 0), (2, 0), (5, 1), (7, 1), (9, 2)] {
        let fakes = Fakes::with(Model {
            waits_at,
            ..Model::default()
        });
        let pipeline = fakes.pipeline();
        let token = StopToken::new();
        let mut last = None;
        let within = std::thread::scope(|scope| {
            scope.spawn(|| {
                while fakes.model.calls.load(Relaxed) < waits_at {
                    std::thread::sleep(Duration::from_millis(1));
                }
                token.stop();
            });
            stopped(
                pipeline.run(&[base().scheduler(scheduler)], &token, |event| {
                    if let Event::Step(p) = event {
                        last = Some(p.latents.to_owned());
                    }
                    Continue(())
                }),
            )
        });
        // The counter is not reset to 0, so that no call of the next run waits.
        let calls = fakes.model.calls.load(Relaxed);
        assert_eq!((within.steps, calls), (steps, waits_at));
        let unfinished = &within.pictures[0];
        let found = unfinished.latents.index_axis(ndarray::Axis(0), 0);
        match last {
            Some(last) => assert_eq!(found, last, "the last finished step"),
            None => assert!(unfinished.denoised.is_none()),
        }
        assert_eq!(fakes.decodes(), 0);
        assert!(pipeline.generate(&base()).is_ok());
    }
}

#[test]
fn a_stop_after_the_last_step_pays_no_decode() {
    let fakes = Fakes::new();
    let pipeline = fakes.build(fakes.builder().max_batch(3));
    let token = StopToken::new();
    let mut pictures = 0;
    let request = base().count(3);
    let stopped = stopped(pipeline.run(&[request], &token, |event| {
        if let Event::Picture(_) = event {
            pictures += 1;
            token.stop();
        }
        Continue(())
    }));
    assert_eq!((pictures, fakes.decodes()), (1, 1));
    assert_eq!(stopped.steps, 4);
    let left: Vec<_> = stopped
        .pictures
        .iter()
        .map(|u| (u.picture, u.seed))
        .collect();
    assert_eq!(left, [(1, 8), (2, 9)], "the first picture was finished");
    assert_eq!(
        stopped.pictures[1].latents,
        latents(&pipeline, &base().seed(9))
    );
}

#[test]
fn an_observer_that_panics_does_no_harm() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let whole = latents(&pipeline, &base());
    for at in 0..5 {
        let mut events = 0;
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            pipeline.run(&[base()], &StopToken::new(), |_| {
                events += 1;
                assert!(events <= at, "the observer's own");
                Continue(())
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(latents(&pipeline, &base()), whole);
    }
}

#[test]
fn a_stream_tells_what_an_observer_is_told() {
    let pipeline = Fakes::new().pipeline();
    let mut told = Vec::new();
    for event in pipeline.events(vec![base().count(2)], &StopToken::new()) {
        match event.unwrap() {
            Update::Step { step, preview } => {
                assert_eq!(preview.dimensions(), (8, 6));
                told.push(format!("step {} of {}", step.index, step.picture));
            }
            Update::Picture(picture) => {
                assert_eq!(
                    picture.latents,
                    latents(&pipeline, &base().seed(picture.seed))
                );
                told.push(format!("picture {}", picture.index));
            }
            _ => {}
        }
    }
    let steps = |picture| (0..4).map(move |step| format!("step {step} of {picture}"));
    let expected = steps(0)
        .chain(["picture 0".into()])
        .chain(steps(1))
        .chain(["picture 1".into()]);
    assert_eq!(told, expected.collect::<Vec<_>>());

    let mut wrong = pipeline.events(vec![base().steps(0)], &StopToken::new());
    assert!(matches!(wrong.next(), Some(Err(GenerateError::Request(_)))));
    assert!(wrong.next().is_none() && wrong.next().is_none());
}

#[test]
fn a_stream_is_stopped_by_its_token_and_by_dropping_it() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let long = base().steps(1000);
    let stop = StopToken::new();
    let mut events = pipeline.events(vec![long.clone()], &stop);
    assert!(matches!(events.next(), Some(Ok(Update::Step { .. }))));
    stop.stop();
    let last = events.by_ref().find_map(Result::err).unwrap();
    assert!(last.is_stopped() && events.next().is_none());
    assert!(
        fakes.calls() < 20,
        "the run is never far ahead of its reader"
    );

    let model = Arc::downgrade(&fakes.model);
    // The token may be shared with other runs, which must continue.
    let shared = StopToken::new();
    let mut events = pipeline.events(vec![long], &shared);
    assert!(events.next().is_some());
    drop((pipeline, fakes, events));
    assert!(!shared.is_stopped());
    for _ in 0..1000 {
        if model.upgrade().is_none() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the run continues without its reader");
}

/// A minimal executor: it polls again when it is woken.
#[test]
fn a_stream_wakes_its_executor() {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut events = Fakes::new()
        .pipeline()
        .events(vec![base()], &StopToken::new())
        .into_stream();
    let mut count = 0;
    loop {
        match Pin::new(&mut events).poll_next(&mut context) {
            Poll::Ready(Some(event)) => {
                event.unwrap();
                count += 1;
            }
            Poll::Ready(None) => break,
            Poll::Pending => std::thread::park(),
        }
    }
    assert_eq!(count, 5);
}

#[test]
fn a_sampler_of_ones_own_makes_the_picture_of_the_pipeline() {
    let pipeline = Fakes::new().pipeline();
    let encode = |text| {
        let encoded = pipeline.prompt_encoder().encode(text, ClipSkip::LAST);
        encoded.unwrap()
    };
    let (prompt, negative) = (encode("a fox"), encode("blurry"));
    let size = ImageSize::new(64, 48).unwrap();
    let mut guided = pipeline
        .guided(size, &prompt, Some(&negative), 7.5)
        .unwrap();
    let sampler = Heun::default();
    let rungs = Ladder::karras()
        .rungs(pipeline.schedule(), 4, &sampler.conventions())
        .unwrap();
    let mut noise = TorchRng::new(7);
    let mut x = Array4::zeros(guided.shape());
    noise.fill(x.as_slice_mut().unwrap());
    x *= rungs.initial_scale();
    let values = x.as_slice_mut().unwrap();
    sample(&sampler, values, &rungs, &mut noise, |x, at, denoised| {
        guided.denoise(x, at, denoised).unwrap();
    });
    assert_eq!(x, latents(&pipeline, &base().scheduler(sampler)));
}

#[test]
fn pictures_between_two_seeds() {
    let pipeline = Fakes::new().pipeline();
    let noise = |seed| {
        let picture = pipeline
            .generate(&base().seed(seed))
            .unwrap()
            .pictures
            .remove(0);
        picture.initial_noise
    };
    let at = |t| {
        let between = slerp(noise(1).view(), noise(2).view(), t).unwrap();
        latents(&pipeline, &base().initial_noise(between))
    };
    assert_eq!(at(0.0), latents(&pipeline, &base().seed(1)));
    let (first, second) = (at(0.0), at(1.0));
    let distance = |a: &Array4<f32>, b: &Array4<f32>| (a - b).mapv(|v| v * v).sum();
    let middle = at(0.5);
    assert!(distance(&middle, &first) > 0.0 && distance(&middle, &second) > 0.0);
    assert!(distance(&at(0.001), &first) < 0.01 * distance(&second, &first));
}

/// A sampler that breaks the rules of a run.
#[derive(Debug, PartialEq)]
enum Wrong {
    ShortNoise,
    ShortStep,
    GoesOn,
    GivesUp,
}

impl Sampler for Wrong {
    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let mut denoised = vec![0.0; x.len()];
        for at in rungs.iter() {
            let broken = run.denoise(x, at, &mut denoised);
            match self {
                Self::ShortNoise => run.noise(at.sigma, 0.0, &mut x[..1]),
                Self::ShortStep => {
                    run.step(Step::new(rungs, at.index, x, &denoised[1..]))?;
                }
                // Continues even if the run says to stop.
                Self::GoesOn => assert!(broken.is_break() == (at.index > 0)),
                Self::GivesUp => return Break(()),
            }
        }
        Continue(())
    }
}

#[test]
fn a_sampler_of_ones_own_may_be_wrong() {
    let fakes = Fakes::with(Model {
        fails_at: 3,
        ..Model::default()
    });
    let pipeline = fakes.pipeline();
    for (sampler, expected) in [
        (
            Wrong::GoesOn,
            "the denoiser at step 1, timestep 749 failed: out of memory",
        ),
        (
            Wrong::ShortNoise,
            "the sampler failed: out has 1 values, expected 192",
        ),
        (
            Wrong::GivesUp,
            "the sampler failed: the run ended although nothing had stopped it",
        ),
        (
            Wrong::ShortStep,
            "the sampler failed: denoised has 191 values, expected 192",
        ),
    ] {
        let request = base().scheduler(sampler).ladder(Ladder::trailing());
        let error = pipeline.generate(&request).unwrap_err();
        assert_eq!(chain(&error), expected);
    }
    assert!(pipeline.generate(&base()).is_ok());
}

/// A sampler that makes more steps than there are rungs, and passes meaningless rungs.
#[derive(Debug)]
struct Wild(fn(&Rungs, usize) -> Rung);

impl PartialEq for Wild {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::fn_addr_eq(self.0, other.0)
    }
}

const WILD: [fn(&Rungs, usize) -> Rung; 5] = [
    |rungs, i| rungs.at(i, rungs.sigmas()[0]),
    |rungs, _| rungs.at(usize::MAX, 0.5),
    |rungs, _| rungs.at(usize::MAX, f32::NAN),
    |rungs, _| rungs.at(0, f32::INFINITY),
    |rungs, i| Rung {
        index: usize::MAX,
        sigma: -1.0,
        timestep: f32::NAN,
        ..rungs.at(i, 0.0)
    },
];

impl Sampler for Wild {
    fn calls(&self, _: &Rungs) -> Calls {
        Calls::Exactly(usize::MAX)
    }

    fn needs(&self) -> Needs {
        Needs {
            brownian: true,
            ..Needs::default()
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for i in [0, rungs.steps(), rungs.steps() + 1, usize::MAX] {
            let at = (self.0)(rungs, i);
            run.denoise(x, at, &mut denoised)?;
            run.noise(at.sigma, f32::NAN, &mut noise);
            run.noise(at.sigma, -at.sigma, &mut noise);
            run.step(Step::new(rungs, i, x, &denoised))?;
        }
        x.fill(0.5);
        Continue(())
    }
}

#[test]
fn a_wild_sampler_of_ones_own_does_not_panic() {
    let pipeline = Fakes::new().pipeline();
    for at in WILD {
        let guidance = ClassifierFree {
            interval: [0.0, 0.5],
            ..ClassifierFree::from(7.0)
        };
        let request = base()
            .prompt("a [red|blue] fox, [a:b:0.5]")
            .guidance(guidance)
            .scheduler(Wild(at));
        let mut steps = Vec::new();
        let result = pipeline.run(&[request], &StopToken::new(), |event| {
            if let Event::Step(progress) = event {
                steps.push((progress.step.index, progress.step.total));
            }
            Continue(())
        });
        result.unwrap();
        let last = (usize::MAX, usize::MAX);
        assert_eq!(steps, [(0, 4), (4, 5), (5, 6), last]);
    }
}

#[test]
fn an_observers_time_is_not_the_steps() {
    let fakes = Fakes::new();
    let slow = Duration::from_millis(50);
    let mut timings = None;
    let mut elapsed = Duration::ZERO;
    fakes
        .pipeline()
        .run(&[base()], &StopToken::new(), |event| {
            match event {
                Event::Step(progress) => {
                    elapsed = progress.step.elapsed;
                    std::thread::sleep(slow);
                }
                Event::Picture(picture) => timings = Some(picture.timings),
                _ => {}
            }
            Continue(())
        })
        .unwrap();
    let steps: Duration = timings.unwrap().steps.iter().sum();
    // Three of the four sleeps are over before the last step ends.
    assert!(elapsed >= 3 * slow && elapsed - steps >= 3 * slow);
}

/// Records spans with their fields, and events.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn note(&self, metadata: &'static tracing::Metadata<'static>) -> usize {
        let fields: Vec<_> = metadata.fields().iter().map(|field| field.name()).collect();
        let mut notes = self.0.lock().unwrap();
        notes.push(format!("{}({})", metadata.name(), fields.join(" ")));
        notes.len()
    }
}

struct Subscriber(Arc<Notes>);

impl tracing::Subscriber for Subscriber {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(self.0.note(span.metadata()) as u64)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        if event.metadata().target().starts_with("sd_core") {
            self.0.0.lock().unwrap().push("step".into());
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn spans_have_the_fields_names() {
    let notes = Arc::new(Notes::default());
    let pipeline = Fakes::new().pipeline();
    tracing::subscriber::with_default(Subscriber(notes.clone()), || {
        pipeline.generate(&base().steps(1)).unwrap();
    });
    let denoise = "denoise(seed steps width height scheduler ladder batch)";
    let unet = "unet(timestep sigma)";
    let expected = ["encode(clip_skip)", denoise, unet, unet, "step", "decode()"];
    assert_eq!(*notes.0.lock().unwrap(), expected);
}

#[test]
fn steps_and_times_are_json() {
    let pipeline = Fakes::new().pipeline();
    let mut steps = Vec::new();
    let mut timings = None;
    let observe = |event: Event<'_>| {
        match event {
            Event::Step(progress) => steps.push(serde_json::to_value(progress.step).unwrap()),
            Event::Picture(picture) => timings = Some(picture.timings),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let requests = [base().seed(7)];
    pipeline.run(&requests, &StopToken::new(), observe).unwrap();
    let step = &steps[0];
    let numbers = ["request", "picture", "seed", "index", "total"].map(|key| step[key].as_u64());
    assert_eq!(numbers, [0, 0, 7, 0, 4].map(Some));
    for key in ["sigma", "next", "took", "elapsed"] {
        assert!(step[key].is_f64(), "{key}: {step}");
    }
    assert_eq!(step["second_pass"], false);
    let calls = serde_json::json!({"full": 2, "shallow": 0, "forecast": 0, "left_out": 0});
    assert_eq!(step["calls"], calls);
    assert_eq!(step.as_object().unwrap().len(), 11);
    let timings = timings.unwrap();
    let json = serde_json::to_value(&timings).unwrap();
    assert_eq!(json["decode"], timings.decode.as_secs_f64());
    assert_eq!(json["between"], 0.0);
    assert_eq!(json["calls"]["full"], 8);
    let seconds: Vec<_> = timings.steps.iter().map(Duration::as_secs_f64).collect();
    assert_eq!(json["steps"], serde_json::json!(seconds));
    assert_eq!(json["encode"], timings.encode.as_secs_f64());
}

#[test]
fn a_preview_is_a_png_like_a_picture() {
    let pipeline = Fakes::new().pipeline();
    let stop = StopToken::new();
    for event in pipeline.events(vec![base()], &stop) {
        let (image, bytes) = match event.unwrap() {
            Update::Step { preview, .. } => {
                let bytes = files::png(&preview, None).unwrap();
                assert_eq!(Infotext::from_bytes(&bytes).unwrap(), None);
                (preview, bytes)
            }
            Update::Picture(picture) => {
                let bytes = files::png(&picture.image, Some(&picture.infotext())).unwrap();
                assert_eq!(bytes, picture.png().unwrap());
                (picture.image, bytes)
            }
            _ => continue,
        };
        let read: sd_core::image::RgbImage = image::load_from_memory(&bytes).unwrap().to_rgb8();
        assert_eq!(read, image);
    }
}
