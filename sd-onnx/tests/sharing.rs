//! Tests one pipeline that is used from many places: threads, stops, batches, shared parts, and
//! requests that cannot be drawn.
//!
//! The tests use the small trained model and run one at a time, because some of them measure the
//! memory of the process and the time.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    ops::ControlFlow,
    process::Command,
    sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use common::{emoji, load, relative_error};
use ndarray::{Array3, Array4};
use sd_onnx::{
    Call, Event, GenerateError, Picture, Pipeline, Request, StopToken,
    schedulers::{self, NoiseSource, noise::TorchRng},
};
use sd_text::outside::chain;

fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the bits of the latents and the pixels.
fn bits(picture: &Picture) -> Vec<u32> {
    let values = picture.latents.iter().chain(&picture.pixels);
    values.map(|value| value.to_bits()).collect()
}

fn draw(pipeline: &Pipeline, request: &Request) -> Picture {
    pipeline.generate(request).unwrap().pictures.remove(0)
}

/// Runs an ignored test of this file in a separate process. `limit` limits its address space, in
/// KiB.
fn in_a_process_of_its_own(test: &str, limit: Option<u32>) {
    let program = std::env::current_exe().unwrap();
    let mut command = match limit {
        Some(limit) => {
            let mut shell = Command::new("sh");
            let limited = format!("ulimit -v {limit} && exec \"$0\" \"$@\"");
            shell.args(["-c", &limited]).arg(program);
            shell
        }
        None => Command::new(program),
    };
    let output = command
        .args(["--ignored", "--exact", test, "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    print!("{said}");
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}: {complained}",
        output.status
    );
}

/// Returns the resident memory of the process in MiB, or `None` on other systems than Linux.
fn resident() -> Option<f64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    // Pages have 4096 bytes on every Linux that ONNX Runtime has a library for, except ARM with
    // large pages.
    Some(pages * 4096.0 / (1 << 20) as f64)
}

/// Returns the largest resident memory that the process has had so far, in MiB. Works only on
/// Linux.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = kib.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<f64>().unwrap() / 1024.0
}

/// Returns fifty requests, all different.
fn requests() -> Vec<Request> {
    let things = [
        "a fox",
        "a banana",
        "a rocket on a blue background",
        "a cat",
        "a strawberry on white",
    ];
    let sizes = [(32, 32), (48, 32), (40, 40), (32, 64), (48, 48), (64, 40)];
    let samplers = ["dpmpp-2m", "euler-a", "ddim", "heun"];
    (0..50)
        .map(|i| {
            let (width, height) = sizes[i % sizes.len()];
            Request::new(things[i % things.len()])
                .negative(["", "blurry", "red"][i % 3])
                .size(width, height)
                .steps(1 + i % 4)
                .guidance([1.0, 3.0, 7.5][i % 3])
                .seed(i as u64)
                .clip_skip(1 + i % 2)
                .scheduler(schedulers::by_name(samplers[i / 4 % 4]).unwrap())
        })
        .collect()
}

#[test]
fn threads_draw_what_each_would_alone() {
    let _alone = alone();
    in_a_process_of_its_own("child_eight_threads", None);
}

/// Eight threads draw with clones of one pipeline. Each draws all fifty requests, in a different
/// order.
#[test]
#[ignore = "runs in a separate process, whose memory it measures, started by the test above"]
fn child_eight_threads() {
    const THREADS: usize = 8;
    let (pipeline, requests) = (load(&emoji()), requests());
    let started = Instant::now();
    let expected: Vec<_> = requests
        .iter()
        .map(|request| bits(&draw(&pipeline, request)))
        .collect();
    let single = started.elapsed();
    for (i, one) in expected.iter().enumerate() {
        assert!(
            expected[..i].iter().all(|other| other != one),
            "request {i} draws the bits of another request"
        );
    }

    let started = Instant::now();
    let (tenth, after_ten) = (Barrier::new(THREADS), Mutex::new(None));
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for t in 0..THREADS {
            let (pipeline, requests, expected) = (pipeline.clone(), &requests, &expected);
            let (tenth, after_ten, wrong) = (&tenth, &after_ten, &wrong);
            scope.spawn(move || {
                for i in 0..requests.len() {
                    // Two threads never draw the same request at the same time.
                    let at = (i + t * 6) % requests.len();
                    let found = bits(&draw(&pipeline, &requests[at]));
                    // The failure is not asserted here. If this thread ended, the others would wait
                    // at the barrier for ever.
                    if found != expected[at] {
                        wrong.lock().unwrap().push((t, at));
                    }
                    if i == 9 && tenth.wait().is_leader() {
                        *after_ten.lock().unwrap() = resident();
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "the bits differ for these (thread, request): {wrong:?}"
    );
    let runs = THREADS * requests.len();
    println!(
        "{} requests alone: {single:.1?}; {runs} in {THREADS} threads: {:.1?}",
        requests.len(),
        started.elapsed()
    );
    let (Some(after_ten), Some(end)) = (after_ten.into_inner().unwrap(), resident()) else {
        println!("NOT CHECKED: this system does not report the memory of a process");
        return;
    };
    println!(
        "memory after ten requests of each thread: {after_ten:.1} MiB, at the end: {end:.1} MiB"
    );
    // The memory must not grow. The results of a request have 50 to 80 KiB, so a leak of them alone
    // would be 320 × 50 KiB = 16 MiB.
    assert!(end - after_ten < 8.0, "{after_ten:.1} MiB became {end:.1}");
}

/// Stops a pipeline 500 times, at each step and at random times within calls. The run after each
/// stop must be right.
#[test]
fn a_stopped_pipeline_works_on() {
    const STOPS: usize = 500;
    const STEPS: usize = 3;
    let _alone = alone();
    // In calls this small, a second thread only costs time.
    let pipeline = sd_onnx::builder().threads(1).load(emoji()).unwrap();
    let request = Request::new("a fox")
        .size(32, 32)
        .steps(STEPS)
        .seed(3)
        .guidance(5.0);
    let expected = bits(&draw(&pipeline, &request));
    let again = || {
        assert!(
            bits(&draw(&pipeline, &request)) == expected,
            "the bits differ after a stop"
        );
    };
    let mut stops = 0;

    // Stops after each step, by the observer and by the token.
    for at in 0..STEPS {
        for by_token in [false, true] {
            let stop = StopToken::new();
            let result = pipeline.run(std::slice::from_ref(&request), &stop, |event| match event {
                Event::Step(progress) if progress.step.index == at => {
                    if by_token {
                        stop.stop();
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                }
                Event::Step(_) => ControlFlow::Continue(()),
                _ => panic!("no picture is made after a stop"),
            });
            let stopped = stopped(result);
            assert_eq!(stopped.steps, at + 1, "by token: {by_token}");
            stops += 1;
            again();
        }
    }

    // Stops at random times from a fixed seed. A stop after the end of the run changes nothing and
    // is not counted.
    let full = time(|| (0..5).for_each(|_| again())).1 / 5;
    let mut random = vec![0.0; 64];
    let mut noise = TorchRng::new(1);
    let mut late = 0;
    let mut at_steps = [0; STEPS + 1];
    while stops < STOPS {
        noise.fill(&mut random);
        for normal in &random {
            // The last digits of a normal number are a uniform number from 0 to 1.
            let share = (normal.abs() * 1000.0).fract();
            let stop = StopToken::new();
            let button = stop.clone();
            let result = thread::scope(|scope| {
                scope.spawn(move || {
                    thread::sleep(full.mul_f32(1.2 * share));
                    button.stop();
                });
                let mut picture = None;
                let result = pipeline.run(std::slice::from_ref(&request), &stop, |event| {
                    if let Event::Picture(made) = event {
                        picture = Some(made);
                    }
                    ControlFlow::Continue(())
                });
                if let Some(picture) = picture {
                    assert!(result.is_ok() && bits(&picture) == expected);
                }
                result
            });
            match result {
                Ok(()) => late += 1,
                Err(_) => {
                    at_steps[stopped(result).steps] += 1;
                    stops += 1;
                }
            }
            again();
            if stops == STOPS {
                break;
            }
        }
        assert!(late < STOPS, "nearly all stops come too late");
    }
    println!(
        "{STOPS} stops, after 0, 1 … steps: {at_steps:?}; too late: {late}; a whole run: {full:.1?}"
    );
    assert!(at_steps.iter().all(|&stops| stops > 0), "{at_steps:?}");
}

fn stopped(result: Result<(), GenerateError>) -> sd_onnx::Stopped {
    match result {
        Err(GenerateError::Stopped(stopped)) => *stopped,
        other => panic!("expected a stop: {other:?}"),
    }
}

fn time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

/// Stops `token` after `time`. The thread returns the moment of the stop.
fn stop_after(token: &StopToken, time: Duration) -> thread::JoinHandle<Instant> {
    let token = token.clone();
    thread::spawn(move || {
        thread::sleep(time);
        token.stop();
        Instant::now()
    })
}

/// Returns a request that takes about a second, most of it in one UNet call and one decode.
fn long() -> Request {
    Request::new("a fox")
        .size(512, 512)
        .steps(1)
        .seed(1)
        .guidance(1.0)
}

/// Stops calls that take `full` after a fifth of that time. Of five calls, the one that ends first
/// must end within half of the remaining time. A call that ran to its end would never do so,
/// however busy the machine is.
fn ends_early(what: &str, full: Duration, stop: impl Fn(Duration) -> Duration) {
    let after = full / 5;
    let delays: Vec<_> = (0..5).map(|_| stop(after)).collect();
    println!(
        "{what}: a whole call takes {full:.0?}; calls that are stopped at {after:.0?} end this much later: {delays:.0?}"
    );
    let best = delays.iter().min().unwrap();
    assert!(*best < (full - after) / 2, "{what}: {best:?} of {full:?}");
}

#[test]
fn a_stop_does_not_wait_for_the_unet() {
    let _alone = alone();
    let pipeline = load(&emoji());
    let [expected, again] = [(); 2].map(|()| draw(&pipeline, &long()));
    let full = expected.timings.steps[0].min(again.timings.steps[0]);
    ends_early("UNet", full, |after| {
        let stop = StopToken::new();
        let stopper = stop_after(&stop, after);
        let stopped = stopped(pipeline.run(&[long()], &stop, |_| panic!("no step ends")));
        let ended = Instant::now();
        let [picture] = &stopped.pictures[..] else {
            panic!("{stopped:?}")
        };
        assert_eq!((stopped.steps, picture.seed), (0, 1));
        assert!(picture.denoised.is_none());
        ended.duration_since(stopper.join().unwrap())
    });
    assert!(bits(&draw(&pipeline, &long())) == bits(&expected));
}

#[test]
fn a_stop_does_not_wait_for_the_decoder() {
    let _alone = alone();
    let pipeline = load(&emoji());
    let [expected, again] = [(); 2].map(|()| draw(&pipeline, &long()));
    let full = expected.timings.decode.min(again.timings.decode);
    ends_early("decoder", full, |after| {
        let stop = StopToken::new();
        let mut stopper = None;
        let result = pipeline.run(&[long()], &stop, |event| {
            let Event::Step(_) = event else {
                panic!("no picture is made")
            };
            stopper = Some(stop_after(&stop, after));
            ControlFlow::Continue(())
        });
        let ended = Instant::now();
        let stopped = stopped(result);
        assert_eq!(stopped.steps, 1);
        // The only step was also the last, so these are the finished latents.
        let latents = &stopped.pictures[0].latents;
        assert!(latents.iter().eq(&expected.latents));
        ended.duration_since(stopper.unwrap().join().unwrap())
    });
    assert!(bits(&draw(&pipeline, &long())) == bits(&expected));
}

#[test]
fn a_stop_does_not_wait_for_anothers_call() {
    let _alone = alone();
    let pipeline = load(&emoji());
    let x = Array4::from_elem((1, 4, 128, 128), 0.5);
    let context = Array3::from_elem((1, 77, pipeline.denoiser().inputs().context), 0.1);
    let call = |stop: &StopToken| {
        let mut output = Array4::zeros(x.dim());
        let denoiser = pipeline.denoiser();
        let call = Call::new(x.view(), 500.0, context.view(), stop);
        denoiser.predict(&call, output.view_mut()).map(|()| output)
    };
    let [first, (expected, second)] = [(); 2].map(|()| time(|| call(&StopToken::new()).unwrap()));
    let full = first.1.min(second);
    thread::scope(|scope| {
        let other = scope.spawn(|| (call(&StopToken::new()).unwrap(), Instant::now()));
        // The first call is running now. Two more callers wait behind it: one is stopped, the other
        // is not.
        thread::sleep(full / 10);
        let patient = scope.spawn(|| call(&StopToken::new()).unwrap());
        let stop = StopToken::new();
        let stopper = stop_after(&stop, full / 5);
        let error = call(&stop).unwrap_err();
        let returned = Instant::now();
        assert_eq!(chain(&*error), "stopped");
        let stopped = stopper.join().unwrap();
        let (output, ended) = other.join().unwrap();
        let (delay, left) = (returned - stopped, ended - stopped);
        println!(
            "waiting: a whole call takes {full:.0?}; a waiting call that is stopped ends after {delay:.1?}, while the running call takes another {left:.0?}"
        );
        assert!(delay < left / 2, "it waited for the other call");
        // The stop affects neither the running call nor the call that keeps waiting.
        assert!(output == expected);
        assert!(patient.join().unwrap() == expected);
    });
    // A call whose token was stopped before does not even wait.
    let stop = StopToken::new();
    stop.stop();
    assert!(call(&stop).is_err());
}

#[test]
fn two_models_share_an_autoencoder_and_a_dropped_one_is_gone() {
    let _alone = alone();
    let request = Request::new("a fox").size(64, 64).steps(1).seed(1);
    let one = load(&emoji());
    let expected = bits(&draw(&one, &request));
    let other = sd_onnx::builder()
        .codec(one.codec().clone())
        .load(emoji())
        .unwrap();
    assert!(Arc::ptr_eq(one.codec(), other.codec()));
    assert!(bits(&draw(&other, &request)) == expected);
    let (denoiser, codec) = (Arc::downgrade(one.denoiser()), Arc::downgrade(one.codec()));
    drop(one);
    assert!(
        denoiser.upgrade().is_none(),
        "the UNet of the dropped model is freed"
    );
    assert!(
        codec.upgrade().is_some(),
        "the shared autoencoder is not freed"
    );
    assert!(bits(&draw(&other, &request)) == expected);
    drop(other);
    assert!(codec.upgrade().is_none());
}

#[test]
#[cfg_attr(
    not(target_os = "linux"),
    ignore = "only Linux reports the memory of a process"
)]
fn a_dropped_model_gives_its_memory_back() {
    let _alone = alone();
    in_a_process_of_its_own("child_loading_and_dropping", None);
}

#[test]
#[ignore = "runs in a separate process, whose memory it measures, started by the test above"]
fn child_loading_and_dropping() {
    let request = Request::new("a fox").size(64, 64).steps(1).seed(1);
    let before = resident().unwrap();
    let mut figures = Vec::new();
    for _ in 0..8 {
        let pipeline = load(&emoji());
        draw(&pipeline, &request);
        let loaded = resident().unwrap();
        drop(pipeline);
        figures.push((loaded, resident().unwrap()));
    }
    println!("memory before: {before:.1} MiB, loaded and dropped: {figures:.1?}");
    for (loaded, dropped) in figures {
        // The weights are 25 MiB of f16, computed with in f32. The memory that stays is mostly ONNX
        // Runtime's library. Seen: 43 MiB with it, whatever the size of the model.
        assert!(
            loaded - dropped > 40.0 && dropped - before < 60.0,
            "{loaded:.1} MiB loaded, {dropped:.1} after"
        );
    }
}

#[test]
#[cfg_attr(
    not(target_os = "linux"),
    ignore = "only Linux reports the memory of a process"
)]
fn later_calls_hold_no_more_than_the_first() {
    let _alone = alone();
    in_a_process_of_its_own("child_decoding_again", None);
}

#[test]
#[ignore = "runs in a separate process, whose memory it measures, started by the test above"]
fn child_decoding_again() {
    let pipeline = load(&emoji());
    let latents = Array4::from_shape_fn((1, 4, 64, 64), |(_, c, y, x)| {
        ((c * 4096 + y * 64 + x) as f32).sin()
    });
    let decode = || {
        pipeline
            .codec()
            .decode(latents.view(), &StopToken::new())
            .unwrap()
    };
    let loaded = resident().unwrap();
    let expected = decode();
    let first = peak() - loaded;
    for _ in 0..2 {
        assert!(decode() == expected);
    }
    let all = peak() - loaded;
    println!("memory of the first call: {first:.1} MiB, of three calls: {all:.1} MiB");
    // A tensor of the last level has 16 MiB. ONNX Runtime plans the memory of later calls
    // in another way and, unless this is prevented, keeps the memory of the first call as well.
    assert!(first > 32.0 && all < 1.1 * first);
}

#[test]
#[cfg_attr(
    not(target_os = "linux"),
    ignore = "only Linux can limit the memory of a process with `ulimit -v`"
)]
fn too_little_memory_is_an_error() {
    let _alone = alone();
    in_a_process_of_its_own("child_with_little_memory", Some(400_000));
}

/// Draws a picture that needs more memory than there is.
#[test]
#[ignore = "runs in a separate process, started by the test above"]
fn child_with_little_memory() {
    // Each thread of a pool takes address space, too.
    let pipeline = sd_onnx::builder().threads(1).load(emoji()).unwrap();
    let small = Request::new("a fox").size(64, 64).steps(1).seed(1);
    let expected = bits(&draw(&pipeline, &small));
    for _ in 0..2 {
        let large = small.clone().size(1024, 1024);
        let error = chain(&pipeline.generate(&large).unwrap_err());
        println!("{error}");
        assert!(
            error.contains("ONNX Runtime, running the ") && error.contains("alloc"),
            "{error}"
        );
        assert!(bits(&draw(&pipeline, &small)) == expected);
    }
}

/// Draws requests of all kinds in batches of four. Each picture must equal the picture of its
/// request alone.
#[test]
fn a_batch_changes_nothing() {
    let _alone = alone();
    let (single, batched) = (
        load(&emoji()),
        sd_onnx::builder().max_batch(4).load(emoji()).unwrap(),
    );
    let base = |i: usize| {
        Request::new(["a fox", "a banana", "a cat"][i % 3])
            .seed(i as u64)
            .size(64, 64)
            .steps(4)
    };
    let euler_a = schedulers::by_name("euler-a").unwrap();
    let requests: Vec<_> = (0..12)
        .map(|i| match i % 6 {
            // Requests of other sizes and steps, with noise during the run, and with several
            // pictures. These must not share a batch with the others.
            1 => base(i).size(32, 64),
            2 => base(i).steps(3),
            4 => base(i).scheduler(euler_a).count(2),
            5 => base(i).guidance(2.0).negative("red"),
            _ => base(i),
        })
        .collect();
    let mut seen = Vec::new();
    let observer = |event: Event<'_>| {
        if let Event::Step(progress) = event {
            seen.push((progress.step.request, progress.step.index));
        }
        ControlFlow::Continue(())
    };
    batched.run(&requests, &StopToken::new(), observer).unwrap();
    // The first four requests that fit together share a batch, even though others lie between them.
    assert_eq!(seen[..4], [(0, 0), (3, 0), (5, 0), (6, 0)]);

    let [single, batched] =
        [&single, &batched].map(|pipeline| pipeline.generate_all(&requests).unwrap().pictures);
    assert_eq!((single.len(), batched.len()), (14, 14));
    let mut worst: f64 = 0.0;
    for (single, batched) in single.iter().zip(&batched) {
        assert_eq!(
            (single.request, single.index, single.seed),
            (batched.request, batched.index, batched.seed)
        );
        assert!(single.initial_noise == batched.initial_noise);
        let error = relative_error(&batched.latents, single.latents.as_slice().unwrap());
        worst = worst.max(error);
        // 1e-4 is the limit that the pipeline promises. The other order of sums causes less.
        assert!(error <= 1e-4, "request {}: {error:.1e}", single.request);
    }
    println!(
        "latents from a batch against single latents: a relative error of at most {worst:.1e}"
    );
}

#[test]
fn what_cannot_be_drawn_is_named() {
    let _alone = alone();
    let pipeline = load(&emoji());
    let base = || Request::new("a fox").size(64, 64).steps(1).seed(1);
    for (request, expected) in [
        (
            base().prompt("a".repeat(1 << 30)),
            "prompt is 1073741824 bytes long, expected at most 65536 bytes",
        ),
        (
            base().size(4104, 4096),
            "size is 4104×4096, expected at most 16777216 pixels",
        ),
        (
            base().size(u32::MAX - 7, u32::MAX - 7),
            "size is 4294967288×4294967288, expected at most 16777216 pixels",
        ),
        (
            base().steps(100_000),
            "steps is 100000, expected 1 to 1000, the model's training timesteps",
        ),
        (
            base().clip_skip(5),
            "clip_skip is 5, expected 1 to 4, the model's text layers, or 0 for the model's own",
        ),
        (
            base().guidance(f32::NAN),
            "guidance is NaN, expected a finite number",
        ),
    ] {
        let error = chain(&pipeline.generate(&request).unwrap_err());
        assert_eq!(error, expected);
    }
    // All problems are reported together.
    let error = pipeline
        .generate(&base().steps(0).size(63, 64).count(0))
        .unwrap_err()
        .to_string();
    for what in ["steps", "width", "count"] {
        assert!(error.contains(&format!("{what} is ")), "{error}");
    }
    // NUL is a character of CLIP's vocabulary and does not end the text.
    let [plain, nul] =
        ["a fox", "a fox\0 on white"].map(|prompt| draw(&pipeline, &base().prompt(prompt)));
    assert_ne!(bits(&plain), bits(&nul));
}
