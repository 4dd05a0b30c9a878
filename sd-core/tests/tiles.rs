//! Pictures in overlapping windows, with fakes.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Mutex, atomic::Ordering::Relaxed};

use common::{Fakes, Model, base, latents};
use ndarray::{Array4, ArrayViewMut4, Axis, s};
use sd_core::{
    BoxError, Call, Control, ControlInput, ControlInputs, ControlKind, ControlPicture, Denoiser,
    Hint, Hires, Inputs, MAX_TILES, Pipeline, Request, SchedulerConfig, Seamless, SizeIds,
    StopToken, TileWeights, Tiles,
};
use std::sync::Arc;

/// A request for 96×64 pixels, which are 12×8 latents.
fn wide() -> Request {
    base().size(96, 64)
}

#[test]
fn one_window_changes_nothing() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let plain = latents(&pipeline, &wide());
    let calls = fakes.calls();
    for tiles in [
        Tiles::new(96, 64),
        Tiles::new(512, 512).overlap(504),
        Tiles::new(128, 64).weights(TileWeights::Gaussian),
    ] {
        assert_eq!(latents(&pipeline, &wide().tiles(tiles)), plain);
        assert_eq!(fakes.calls(), calls);
    }
}

#[test]
fn windows_of_a_denoiser_without_context_average_to_the_whole() {
    // The fake predicts each latent by itself, so that every window agrees.
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let plain = latents(&pipeline, &wide());
    let calls = fakes.calls();
    for (tiles, windows) in [
        (Tiles::new(48, 64), 3),
        (Tiles::new(48, 64).overlap(0), 2),
        (Tiles::new(64, 32).overlap(24), 2 * 5),
        (Tiles::new(48, 64).weights(TileWeights::Gaussian), 3),
    ] {
        let tiled = latents(&pipeline, &wide().tiles(tiles));
        assert_eq!(fakes.calls(), calls * windows, "{tiles:?}");
        // Rounding of the averages.
        let far = (&tiled - &plain)
            .mapv(f32::abs)
            .fold(0.0, |a: f32, &b| a.max(b));
        assert!(far < 1e-4, "{tiles:?}: {far}");
    }
}

#[test]
fn windows_share_calls() {
    let run = |batch: usize, count: usize| {
        let fakes = Fakes::new();
        let pipeline = fakes.build(fakes.builder().max_batch(batch));
        let tiles = Tiles::new(48, 64).overlap(0).weights(TileWeights::Gaussian);
        let request = wide().tiles(tiles).guidance(1.0).count(count);
        let pictures = pipeline.generate(&request).unwrap().pictures;
        let latents: Vec<_> = pictures.into_iter().map(|it| it.latents).collect();
        (latents, fakes.calls(), fakes.model.batch.load(Relaxed))
    };
    let (alone, calls, batch) = run(1, 2);
    assert_eq!((calls, batch), (2 * 4 * 2, 1));
    // Both windows, both pictures, and both windows of both pictures.
    for (most, count, expected) in [(2, 1, (4, 2)), (3, 2, (4 * 2, 2)), (4, 2, (4, 4))] {
        let (together, calls, batch) = run(most, count);
        assert_eq!((calls, batch), expected);
        assert_eq!(together[..], alone[..count]);
    }
}

/// Predicts the mean of the latents that it sees, and records its inputs.
struct Mean {
    inputs: Inputs,
    seen: Mutex<Vec<Seen>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    latents: Array4<f32>,
    beside: Option<Array4<f32>>,
    sizes: Option<Vec<f32>>,
    hints: Vec<Vec<f32>>,
}

impl Mean {
    fn new(inputs: Inputs) -> Arc<Self> {
        let seen = Mutex::default();
        Arc::new(Self { inputs, seen })
    }

    fn pipeline(self: &Arc<Self>) -> Pipeline {
        let fakes = Fakes::new();
        let prompts = common::prompts(&fakes.text);
        let denoiser = self.clone();
        Pipeline::builder(prompts, denoiser, fakes.codec, SchedulerConfig::default())
            .size(96, 64)
            .build()
            .unwrap()
    }
}

impl Denoiser for Mean {
    fn inputs(&self) -> &Inputs {
        &self.inputs
    }
    fn predict(&self, call: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        let hints = call.controls.iter().flat_map(|control| control.hint);
        self.seen.lock().unwrap().push(Seen {
            latents: call.latents.to_owned(),
            beside: call.beside.map(|beside| beside.to_owned()),
            sizes: call.sizes.map(|sizes| sizes.iter().copied().collect()),
            hints: hints.map(|hint| hint.iter().copied().collect()).collect(),
        });
        output.fill(call.latents.mean().unwrap());
        Ok(())
    }
    fn read_control(
        &self,
        _: usize,
        picture: ControlInput<'_>,
        _: &StopToken,
    ) -> Result<Hint, BoxError> {
        // The pixels, a feature of each latent and of each fourth one, and a token.
        let ControlInput::Values(values) = picture else {
            return Ok(Hint::new(vec![Array4::ones((1, 1, 1, 1)).into_dyn()]));
        };
        let each = |step| {
            values
                .slice(s![.., ..1, ..;step, ..;step])
                .to_owned()
                .into_dyn()
        };
        let token = Array4::ones((1, 1, 1, 1)).remove_axis(Axis(3)).into_dyn();
        Ok(Hint::new(vec![each(1), each(8), each(32), token]))
    }
}

/// One step of Euler subtracts sigma times the prediction, so that the average of the windows shows
/// in the result.
#[test]
fn predictions_are_averaged_by_their_weights() {
    for weights in [TileWeights::Equal, TileWeights::Gaussian] {
        let mean = Mean::new(Inputs::new(4, 4));
        let pipeline = mean.pipeline();
        let tiles = Tiles::new(64, 64).overlap(32).weights(weights);
        let request = wide().steps(1).guidance(1.0).tiles(tiles);
        let request = request.scheduler(sd_core::schedulers::by_name("euler").unwrap());
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        let seen = mean.seen.lock().unwrap();
        let means: Vec<f32> = seen.iter().map(|it| it.latents.mean().unwrap()).collect();
        assert_eq!(means.len(), 2);
        let x = &picture.initial_noise;
        let moved = x - &seen_whole(&seen);
        assert!(
            moved.iter().all(|far| far.abs() < 0.1),
            "the network sees the noise"
        );
        let curve = |place: usize, middle: f64| {
            let distance = (place as f64 - middle) / 8.0;
            match weights {
                TileWeights::Gaussian => (-distance * distance / 0.02).exp(),
                _ => 1.0,
            }
        };
        // The windows start at latent 0 and 4. The curve along y is the same in both.
        let average = |x: usize| {
            let first = if x < 8 { curve(x, 3.5) } else { 0.0 };
            let second = if x >= 4 { curve(x - 4, 3.5) } else { 0.0 };
            let sum = first * f64::from(means[0]) + second * f64::from(means[1]);
            sum / (first + second)
        };
        // Ratios of differences between places do not depend on sigma.
        let latents = &picture.latents;
        let at = |place: usize| {
            let all = latents.index_axis(Axis(3), place);
            let noise = x.index_axis(Axis(3), place);
            (&all - &noise * scale(latents, x)).mean().unwrap()
        };
        let whole = f64::from(at(0) - at(11)) / (average(0) - average(11));
        for place in 0..12 {
            let found = f64::from(at(place) - at(11));
            let expected = whole * (average(place) - average(11));
            assert!(
                (found - expected).abs() < 1e-3 * whole.abs(),
                "{weights:?} {place}"
            );
        }
    }
}

/// Returns the latents of both windows together.
fn seen_whole(seen: &[Seen]) -> Array4<f32> {
    let mut whole = Array4::zeros((1, 4, 8, 12));
    whole
        .slice_mut(s![.., .., .., ..8])
        .assign(&seen[0].latents);
    whole
        .slice_mut(s![.., .., .., 4..])
        .assign(&seen[1].latents);
    whole
}

/// Returns the factor of the noise in the latents: the slope within a column, where the prediction
/// is constant.
fn scale(latents: &Array4<f32>, noise: &Array4<f32>) -> f32 {
    let at = |array: &Array4<f32>, y| array[[0, 0, y, 0]];
    (at(latents, 0) - at(latents, 1)) / (at(noise, 0) - at(noise, 1))
}

#[test]
fn inputs_of_places_are_cut_and_sizes_are_not() {
    let canny = ControlInputs::new("canny", ControlKind::ControlNet);
    let face = ControlInputs::new("face", ControlKind::ImagePrompt);
    let inputs = Inputs::new(4, 4).sizes(SizeIds::Target).extra_channels(1);
    let mean = Mean::new(inputs.control(canny).control(face));
    let pipeline = mean.pipeline();
    let pixels = ndarray::Array3::from_shape_fn((3, 64, 96), |(_, y, x)| (y * 96 + x) as f32);
    let beside = Array4::from_shape_fn((1, 1, 8, 12), |(_, _, y, x)| (y * 12 + x) as f32);
    let mut request = wide().steps(1).guidance(1.0);
    request.beside = Some(beside.clone().into());
    let request = request
        .control(Control::new("canny", pixels.clone()))
        .control(Control::new("face", sd_core::image::RgbImage::new(9, 9)))
        .tiles(Tiles::new(64, 32).overlap(0));
    pipeline.generate(&request).unwrap();
    let seen = mean.seen.lock().unwrap();
    let places = [(0, 0), (0, 4), (4, 0), (4, 4)];
    assert_eq!(seen.len(), places.len());
    for (seen, (y, x)) in seen.iter().zip(places) {
        assert_eq!(seen.latents.dim(), (1, 4, 4, 8));
        let part = beside.slice(s![.., .., y..y + 4, x..x + 8]);
        assert_eq!(seen.beside.as_ref().unwrap(), &part);
        assert_eq!(seen.sizes.as_ref().unwrap()[..2], [64.0, 96.0]);
        let part = |step: usize| -> Vec<f32> {
            let (y, x) = (8 * y, 8 * x);
            let part = pixels.slice(s![0, y..y + 32, x..x + 64]);
            part.slice(s![..;step, ..;step]).iter().copied().collect()
        };
        let expected = [part(1), part(8), part(32), vec![1.0], vec![1.0]];
        assert_eq!(seen.hints, expected);
    }
}

#[test]
fn what_is_wrong_is_reported() {
    let adapter = ControlInputs::new("depth", ControlKind::Adapter).multiple(64);
    let inputs = Inputs::new(4, 4).seamless(Seamless::X).control(adapter);
    let fakes = Fakes::with(Model {
        inputs,
        ..Model::default()
    });
    let pipeline = fakes.pipeline();
    let problem = |request: Request| {
        let error = pipeline.generate(&request).unwrap_err().to_string();
        assert!(error.contains("tiles"), "{error}");
        error
    };
    let tall = || base().size(64, 128);
    for (tiles, expected) in [
        (
            Tiles::new(0, 64),
            "tiles.size is 0, expected sides that are positive multiples of 8",
        ),
        (Tiles::new(64, 60), "tiles.size is 60,"),
        (Tiles::new(64, u32::MAX), "tiles.size is 4294967295,"),
        (
            Tiles::new(64, 32).overlap(32),
            "tiles.overlap is 32, expected a multiple of 8 below 32",
        ),
        (Tiles::new(64, 32).overlap(4), "tiles.overlap is 4,"),
        (
            Tiles::new(64, 32).overlap(u32::MAX),
            "tiles.overlap is 4294967295,",
        ),
        (Tiles::new(32, 128), "along which the model is seamless"),
    ] {
        let error = problem(tall().tiles(tiles));
        assert!(error.contains(expected), "{error}");
    }
    let pixels = ndarray::Array3::<f32>::zeros((3, 128, 64));
    let control = Control::new("depth", ControlPicture::from(pixels));
    let request = tall().control(control).tiles(Tiles::new(64, 96));
    let error = pipeline.generate(&request).unwrap_err().to_string();
    assert!(
        error.contains("because T2I-Adapters see the whole picture"),
        "{error}"
    );
    let many = base().size(64, 8 * (MAX_TILES as u32 + 1));
    assert!(problem(many.clone().tiles(Tiles::new(64, 8))).contains("4097"));
    // The second pass alone is too large.
    let second = tall().tiles(Tiles::new(64, 64)).hires(Hires::scale(2.0));
    assert!(problem(second).contains("hires.tiles"));
}

#[test]
fn both_passes_are_drawn_in_windows() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let request = wide().guidance(1.0).hires(Hires::scale(2.0));
    pipeline.generate(&request).unwrap();
    let calls = fakes.calls();
    // One window in the first pass, and three times three in the second.
    pipeline
        .generate(&request.tiles(Tiles::new(96, 64)))
        .unwrap();
    assert_eq!((calls, fakes.calls()), (8, 4 + 4 * 9));
}

#[test]
fn tiles_are_json_and_part_of_the_infotext() {
    let tiles = Tiles::new(48, 64)
        .overlap(16)
        .weights(TileWeights::Gaussian);
    let json = r#"{"size":[48,64],"overlap":16,"weights":"gaussian"}"#;
    assert_eq!(serde_json::to_string(&tiles).unwrap(), json);
    assert_eq!(serde_json::from_str::<Tiles>(json).unwrap(), tiles);
    let short: Tiles = serde_json::from_str(r#"{"size":[48,64]}"#).unwrap();
    assert_eq!(short, Tiles::new(48, 64));

    let pipeline = Fakes::new().pipeline();
    let infotext = |request: &Request| pipeline.generate(request).unwrap().pictures[0].infotext();
    let written = infotext(&wide().tiles(tiles));
    let found = written.get("SD tiles").unwrap();
    assert_eq!(serde_json::from_str::<Tiles>(found).unwrap(), tiles);
    let again = written.request();
    assert_eq!(again.request.tiles, Some(tiles));
    assert_eq!(again.differences, [""; 0]);
    // The default overlap is written, too.
    let written = infotext(&wide().tiles(short));
    assert_eq!(written.request().request.tiles, Some(short.overlap(24)));
    assert_eq!(infotext(&wide()).get("SD tiles"), None);
}
