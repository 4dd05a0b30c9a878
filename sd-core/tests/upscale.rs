//! Enlarging pictures with networks, with filters and in tiles.
//!
//! `golden/tiles.py` runs WebUI's own functions, and writes the values that are compared.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use common::{Fakes, base};
use flate2::Crc;
use ndarray::{Array4, ArrayView4};
use sd_core::{
    BoxError, BuildError, Event, GenerateError, Hires, Infotext, Mask, PictureUpscaler, Pipeline,
    Request, Start, StopToken, Upscaler,
    image::{GrayImage, Rgb, RgbImage},
    pixels::{Filter, LatentFilter, resize},
    upscale::{Enlarger, Grid, TiledRedraw, Tiling, enlarged},
};
use serde_json::{Value, from_value, json};

/// Returns the cases of one kind.
fn cases(kind: &str) -> Vec<Value> {
    let golden: Value = serde_json::from_str(include_str!("golden/tiles.json")).unwrap();
    let cases = golden[kind].as_array().unwrap().clone();
    assert!(!cases.is_empty(), "{kind}");
    cases
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

fn pair(value: &Value) -> [u32; 2] {
    [number(&value[0]), number(&value[1])]
}

/// Returns the picture of a case, which the script makes by the same formula.
fn waves(case: &Value) -> RgbImage {
    let (seed, [width, height]) = (number(&case["seed"]), pair(&case["size"]));
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([0, 1, 2].map(|c| {
            let value = (x * (3 + c) + y * (5 + 2 * c) + seed * (17 + c)) % 510;
            value.min(510 - value) as u8
        }))
    })
}

/// Compares a picture with the checksum of a case.
fn check(case: &Value, picture: &RgbImage) {
    let mut crc = Crc::new();
    crc.update(picture.as_raw());
    assert_eq!(case["crc"], crc.sum(), "{case}");
}

/// Returns a tile as if it had been redrawn: each one has another brightness.
fn redrawn(mut tile: RgbImage, index: usize) -> RgbImage {
    let add = (31 * index % 128) as u8;
    tile.iter_mut().for_each(|byte| *byte = *byte / 2 + add);
    tile
}

#[test]
fn tiles_are_cut_and_joined_as_in_webui() {
    for case in cases("grids") {
        let picture = waves(&case);
        let size = picture.dimensions().into();
        let grid = Grid::new(size, pair(&case["tile"]), number(&case["overlap"])).unwrap();
        let places: Vec<[i64; 2]> = from_value(case["places"].clone()).unwrap();
        assert_eq!(grid.places().collect::<Vec<_>>(), places, "{case}");
        assert_eq!(grid.len(), places.len() as u64);
        let mut index = 0..;
        let tile = |place| {
            let tile = grid.tile(&picture, place);
            Ok::<_, ()>(redrawn(tile, index.next().unwrap()))
        };
        check(&case, &grid.joined(1, tile).unwrap());
    }
}

#[test]
fn tiles_without_overlap_are_laid_side_by_side() {
    let picture = waves(&json!({"seed": 3, "size": [70, 30]}));
    let grid = Grid::new([70, 30], [32, 30], 0).unwrap();
    assert_eq!(grid.counts(), [3, 1]);
    let joined = grid.joined(1, |place| Ok::<_, ()>(grid.tile(&picture, place)));
    assert_eq!(joined.unwrap(), picture);
    let problem = |size, tile, overlap| Grid::new(size, tile, overlap).unwrap_err().to_string();
    assert_eq!(
        problem([70, 30], [32, 16], 16),
        "overlap is 16, expected at most 15, less than a side of a tile"
    );
    assert!(problem([0, 30], [32, 16], 1).starts_with("picture is 0×30"));
    assert!(problem([1, 30], [32, 0], 1).starts_with("tile is 32×0"));
    assert!(problem([1, u32::MAX], [8, 8], 1).starts_with("picture is 1×4294967295"));
}

/// A network whose pixels depend on their place in the tile, so that seams show.
struct Network {
    scale: usize,
    calls: AtomicUsize,
    /// The call, from 1, that returns NaN.
    breaks_at: usize,
}

impl Network {
    fn new(scale: usize) -> Self {
        Self {
            scale,
            calls: AtomicUsize::new(0),
            breaks_at: 0,
        }
    }
}

impl PictureUpscaler for Network {
    fn scale(&self) -> usize {
        self.scale
    }

    fn upscale(
        &self,
        picture: ArrayView4<'_, f32>,
        _: &StopToken,
    ) -> Result<Array4<f32>, BoxError> {
        if self.calls.fetch_add(1, Relaxed) + 1 == self.breaks_at {
            return Ok(Array4::from_elem(picture.dim(), f32::NAN));
        }
        let (_, _, height, width) = picture.dim();
        let scale = self.scale;
        let large = (1, 3, height * scale, width * scale);
        Ok(Array4::from_shape_fn(large, |(_, c, y, x)| {
            let byte = (picture[[0, c, y / scale, x / scale]] * 255.0).round() as usize;
            (byte * 3 / 4 + (3 * y + 5 * x) % 60) as f32 / 255.0
        }))
    }
}

#[test]
fn pictures_are_enlarged_as_in_webui() {
    for case in cases("enlarged") {
        let network = Network::new(number(&case["scale"]) as usize);
        let factor = case["factor"].as_f64().unwrap();
        let enlarger = Enlarger::new(&network);
        let mut seen = Vec::new();
        let tile = |progress| seen.push(progress);
        let large = enlarger.enlarge(&waves(&case), factor, &StopToken::new(), tile);
        let large = large.unwrap();
        assert_eq!(
            <[u32; 2]>::from(large.dimensions()),
            pair(&case["to"]),
            "{case}"
        );
        check(&case, &large);
        assert_eq!(seen.len(), network.calls.load(Relaxed), "{case}");
        for (progress, done) in seen.iter().zip(1..) {
            assert_eq!(
                (progress.done, progress.total),
                (done, seen.len() as u64),
                "{case}"
            );
        }
    }
}

#[test]
fn filters_enlarge_as_in_webui() {
    for case in cases("filtered") {
        let filter = from_value(case["filter"].clone()).unwrap();
        let factor = case["factor"].as_f64().unwrap();
        let large = enlarged(&waves(&case), factor, filter).unwrap();
        assert_eq!(
            <[u32; 2]>::from(large.dimensions()),
            pair(&case["to"]),
            "{case}"
        );
        check(&case, &large);
    }
}

#[test]
fn other_tiles_change_the_picture() {
    let picture = waves(&json!({"seed": 1, "size": [100, 100]}));
    let network = Network::new(2);
    let with = |tile, overlap| {
        let enlarger = Enlarger::new(&network).tiling(Tiling { tile, overlap });
        let large = enlarger.enlarge(&picture, 2.0, &StopToken::new(), |_| {});
        (large.unwrap(), network.calls.swap(0, Relaxed))
    };
    let whole = with(0, 0);
    assert_eq!(whole.1, 1);
    assert_eq!(whole, with(192, 8));
    assert_eq!(whole, with(100, 99));
    let tiles = with(64, 8);
    assert_eq!(tiles.1, 4);
    assert!(tiles.0 != whole.0);
    assert!(with(64, 20).0 != tiles.0);
}

#[test]
fn what_cannot_be_enlarged_is_an_error() {
    let picture = RgbImage::new(64, 64);
    let network = Network::new(4);
    let of = |picture: &RgbImage, factor| {
        let large = Enlarger::new(&network).enlarge(picture, factor, &StopToken::new(), |_| {});
        large.unwrap_err().to_string()
    };
    for factor in [f64::NAN, f64::INFINITY, 0.0, -1.0, 0.1, 1e9, f64::MAX] {
        let error = of(&picture, factor);
        assert!(error.starts_with("factor is "), "{factor}: {error}");
    }
    assert!(of(&RgbImage::new(0, 9), 2.0).starts_with("picture is 0×9"));
    // The second run would return more than 2²⁸ pixels.
    let error = of(&RgbImage::new(1100, 1100), 12.0);
    assert!(
        error.starts_with("upscaler is 17600×17600, expected a network that"),
        "{error}"
    );
    assert_eq!(network.calls.load(Relaxed), 0);
}

#[test]
fn a_run_is_stopped_between_tiles_and_nan_is_an_error() {
    let picture = RgbImage::new(400, 200);
    let stop = StopToken::new();
    let network = Network::new(2);
    let stopped = Enlarger::new(&network).enlarge(&picture, 2.0, &stop, |progress| {
        if progress.done == 2 {
            stop.stop();
        }
    });
    assert!(stopped.unwrap_err().is_stopped());
    assert_eq!(network.calls.load(Relaxed), 2);
    let network = Network {
        breaks_at: 2,
        ..Network::new(1)
    };
    let error = Enlarger::new(&network).enlarge(&picture, 1.0, &StopToken::new(), |_| {});
    let GenerateError::Backend { source, .. } = error.unwrap_err() else {
        panic!("another error")
    };
    assert!(source.to_string().contains("NaN"), "{source}");
}

/// A pipeline with two networks that enlarge pictures.
fn pipeline(fakes: &Fakes) -> Pipeline {
    let builder = fakes.builder();
    let builder = builder.upscaler("4x-sharp", Arc::new(Network::new(4)));
    fakes.build(builder.upscaler("2x soft", Arc::new(Network::new(2))))
}

fn network(name: &str) -> Upscaler {
    Upscaler::Network(name.to_owned())
}

#[test]
fn a_second_pass_starts_from_what_the_network_made() {
    let fakes = Fakes::new();
    let pipeline = pipeline(&fakes);
    let drawn = |request: &Request| pipeline.generate(request).unwrap().pictures.remove(0);
    for (name, scale, hires) in [
        ("4x-sharp", 4, Hires::scale(2.0)),
        ("2x soft", 2, Hires::scale(2.0)),
        ("2x soft", 2, Hires::scale(3.0)),
        // The picture covers 128×96, and is cut.
        ("4x-sharp", 4, Hires::pixels(128, 80)),
    ] {
        let first = drawn(&base());
        // The second pass rounds towards zero, and other pictures to nearest.
        let bytes = first
            .pixels
            .mapv(|value| (((value + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0) as u8);
        let small = RgbImage::from_fn(64, 48, |x, y| {
            Rgb([0, 1, 2].map(|c| bytes[[0, c, y as usize, x as usize]]))
        });
        let both = drawn(&base().hires(hires.clone().upscaler(network(name))));
        let (width, height) = both.image.dimensions();
        let network = Network::new(scale);
        let factor = (f64::from(width) / 64.0).max(f64::from(height) / 48.0);
        let stop = StopToken::new();
        let large = Enlarger::new(&network)
            .enlarge(&small, factor, &stop, |_| {})
            .unwrap();
        let covering = [(64.0 * factor) as u32, (48.0 * factor) as u32];
        let large = resize(&large, covering[0], covering[1], Filter::Lanczos);
        let (x, y) = (
            (covering[0] - width) / 2 / 8 * 8,
            (covering[1] - height) / 2 / 8 * 8,
        );
        let middle = sd_core::image::imageops::crop_imm(&large, x, y, width, height).to_image();
        let start = Start::picture(middle)
            .strength(0.7)
            .rule(sd_core::schedulers::ladders::StrengthRule::WebUiExact)
            .posterior(sd_core::Posterior::Mode);
        let alone = drawn(&base().start(start));
        assert_eq!(both.latents, alone.latents, "{hires:?}");
    }
}

#[test]
fn a_network_is_found_by_its_name() {
    let fakes = Fakes::new();
    let pipeline = pipeline(&fakes);
    let names: Vec<_> = pipeline
        .upscalers()
        .map(|(name, it)| (name, it.scale()))
        .collect();
    assert_eq!(names, [("4x-sharp", 4), ("2x soft", 2)]);
    assert_eq!(pipeline.upscaler("2x soft").unwrap().scale(), 2);
    assert!(pipeline.upscaler("Lanczos").is_none());
    let refused = |pipeline: &Pipeline, name| {
        let request = base().hires(Hires::scale(2.0).upscaler(network(name)));
        pipeline.generate(&request).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&pipeline, "4x-shrap"),
        "hires.upscaler is `4x-shrap`, expected the name of an upscaler, such as 4x-sharp, 2x soft"
    );
    assert_eq!(
        refused(&fakes.pipeline(), "4x-sharp"),
        "hires.upscaler is `4x-sharp`, expected a pipeline with upscalers (`Builder::upscaler`, \
         `PipelineBuilder::upscaler`)"
    );
    assert_eq!(fakes.calls(), 0);
    for (name, scale, part) in [
        (
            "4x-sharp",
            2,
            "the name `4x-sharp` stands for two upscalers",
        ),
        ("Lanczos", 2, "the name `Lanczos` stands for two upscalers"),
        (
            "zero",
            0,
            "the upscaler `zero` has the scale 0, expected 1 to 64",
        ),
        (
            "huge",
            65,
            "the upscaler `huge` has the scale 65, expected 1 to 64",
        ),
    ] {
        let builder = fakes
            .builder()
            .upscaler("4x-sharp", Arc::new(Network::new(4)));
        let error = builder
            .upscaler(name, Arc::new(Network::new(scale)))
            .build();
        let Err(BuildError::Parts(problem)) = error else {
            panic!("{name} was accepted");
        };
        assert_eq!(problem, part);
    }
}

#[test]
fn an_infotext_names_the_network() {
    let fakes = Fakes::new();
    let pipeline = pipeline(&fakes);
    let request = base().hires(Hires::scale(2.0).upscaler(network("2x soft")));
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    let infotext = picture.infotext();
    assert_eq!(infotext.get("Hires upscaler"), Some("2x soft"));
    let again = pipeline.reproduction(&infotext);
    assert_eq!(again.differences, [""; 0]);
    let drawn = pipeline.generate(&again.request).unwrap();
    assert_eq!(drawn.image(), &picture.image);
    // Without the network, Lanczos is used.
    let again = fakes.pipeline().reproduction(&infotext);
    let missing = "the picture was enlarged by `2x soft`, which this pipeline does not have, so \
                   Lanczos is used";
    assert_eq!(again.differences, [missing]);
    assert_eq!(
        again.request.hires.unwrap().upscaler,
        Upscaler::Pixels(Filter::Lanczos)
    );
    let again = infotext.request();
    let needed = "the picture was enlarged by `2x soft`, which the pipeline must have";
    assert_eq!(again.differences, [needed]);
    assert_eq!(again.request.hires.unwrap().upscaler, network("2x soft"));

    let text = "a fox\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 7, Size: 64x48, RNG: CPU, \
                Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: 4x-sharp";
    let of_webui = Infotext::parse(text).unwrap();
    let again = pipeline.reproduction(&of_webui);
    let order = "WebUI gives `4x-sharp` blue, green and red instead of red, green and blue, so \
                 details differ";
    assert_eq!(again.differences, [order]);
    assert_eq!(again.request.hires.unwrap().upscaler, network("4x-sharp"));
}

#[test]
fn an_upscaler_is_json() {
    let upscaler = network("4x-sharp");
    let json = serde_json::to_string(&upscaler).unwrap();
    assert_eq!(json, r#"{"network":"4x-sharp"}"#);
    assert_eq!(serde_json::from_str::<Upscaler>(&json).unwrap(), upscaler);
    assert_eq!(upscaler.webui(), Some("4x-sharp"));
}

#[test]
fn an_infotext_says_that_the_picture_was_enlarged() {
    let mut infotext = Infotext::parse("a fox\nSteps: 4, Seed: 7, Version: sd-onnx 1").unwrap();
    infotext.enlarged(1.5, "4x, sharp");
    let expected = "a fox\nSteps: 4, Seed: 7, Postprocess upscale by: 1.5, Postprocess upscaler: \
                    \"4x, sharp\", Version: sd-onnx 1";
    assert_eq!(infotext.to_string(), expected);
    let differences = Infotext::parse(expected).unwrap().request().differences;
    let last = differences.last().map(String::as_str);
    assert_eq!(
        last,
        Some("the finished picture was enlarged 1.5 times by `4x, sharp`")
    );
}

/// A second enlargement replaces the entries of the first one.
#[test]
fn factors_of_enlargements_are_multiplied() {
    let mut infotext = Infotext::parse("a fox\nSteps: 4, Seed: 7, Version: sd-onnx 1").unwrap();
    infotext.enlarged(1.5, "Lanczos");
    infotext.enlarged(4.0, "4x-sharp");
    let expected = "a fox\nSteps: 4, Seed: 7, Postprocess upscale by: 6, Postprocess upscaler: \
                    4x-sharp, Version: sd-onnx 1";
    assert_eq!(infotext.to_string(), expected);
    // A factor that is no number is replaced.
    let text = "a fox\nSteps: 4, Seed: 7, Postprocess upscale by: much";
    let mut infotext = Infotext::parse(text).unwrap();
    infotext.enlarged(2.0, "Lanczos");
    assert_eq!(infotext.get("Postprocess upscale by"), Some("2"));
}

/// A picture without an infotext gets one without a prompt.
#[test]
fn a_line_about_an_enlarged_picture_is_read() {
    let mut infotext = Infotext {
        entries: vec![("Size".to_owned(), "80x48".to_owned())],
        ..Infotext::default()
    };
    infotext.enlarged(2.0, "4x-sharp");
    assert_eq!(Infotext::parse(&infotext.to_string()), Ok(infotext));
}

fn small() -> RgbImage {
    waves(&json!({"seed": 5, "size": [48, 40]}))
}

fn redrawn_in_tiles(
    pipeline: &Pipeline,
    request: &Request,
    redraw: &TiledRedraw,
) -> Result<Vec<RgbImage>, GenerateError> {
    let pictures = pipeline.upscale_by_tiles(request, redraw, &StopToken::new(), |_| {
        ControlFlow::Continue(())
    })?;
    Ok(pictures.into_iter().map(|picture| picture.image).collect())
}

/// Each tile is an image to image run of its own, with the next seed.
#[test]
fn a_picture_is_redrawn_in_tiles() {
    let fakes = Fakes::new();
    let pipeline = pipeline(&fakes);
    let request = base().start(Start::picture(small()).strength(0.5)).count(2);
    let redraw = TiledRedraw::new(2.0)
        .upscaler(network("2x soft"))
        .overlap(16);
    let mut seen = Vec::new();
    let stop = StopToken::new();
    let found = pipeline.upscale_by_tiles(&request, &redraw, &stop, |event| {
        if let Event::Picture(tile) = event {
            seen.push((tile.request, tile.seed));
        }
        ControlFlow::Continue(())
    });
    let found = found.unwrap();
    // 96×80 pixels in tiles of 64×48.
    let numbers: Vec<_> = (0..8)
        .map(|tile| (tile, 7 + tile as u64 % 4 + tile as u64 / 4))
        .collect();
    assert_eq!(seen, numbers);
    let large = Enlarger::new(&Network::new(2))
        .enlarge(&small(), 2.0, &stop, |_| {})
        .unwrap();
    let grid = Grid::new([96, 80], [64, 48], 16).unwrap();
    for (picture, first) in found.iter().zip(7..) {
        let mut seed = first..;
        let joined = grid.joined(1, |place| {
            let start = Start::picture(grid.tile(&large, place)).strength(0.5);
            let tile = base().start(start).size(64, 48).seed(seed.next().unwrap());
            Ok::<_, GenerateError>(pipeline.generate(&tile)?.pictures.remove(0).image)
        });
        assert!(joined.unwrap() == picture.image);
        assert_eq!(picture.seed, first);
        let infotext = picture.infotext();
        for (key, value) in [
            ("Seed", &*first.to_string()),
            ("Size", "64x48"),
            ("SD upscale overlap", "16"),
            ("SD upscale upscaler", "2x soft"),
        ] {
            assert_eq!(infotext.get(key), Some(value), "{key}");
        }
        let notes = infotext.request().differences;
        assert!(notes.contains(&"the picture was enlarged and redrawn in tiles".to_owned()));
    }
}

/// A tile is no larger than the picture, so nothing fades in from black.
#[test]
fn a_picture_smaller_than_a_tile_is_one_tile() {
    let pipeline = pipeline(&Fakes::new());
    let start = || Start::picture(small()).strength(0.5);
    let request = base().start(start()).size(64, 64);
    // The overlap counts as one less than the smaller side of the picture, which is 40.
    let redraw = TiledRedraw::new(2.0).overlap(63);
    let found = redrawn_in_tiles(&pipeline, &request, &redraw).unwrap();
    let alone = base().start(start()).size(48, 40);
    let alone = pipeline.generate(&alone).unwrap().pictures.remove(0);
    assert!(found[0] == alone.image);
}

#[test]
fn each_option_of_tiles_changes_the_picture() {
    let pipeline = pipeline(&Fakes::new());
    let request = base().start(Start::picture(small()).strength(0.5));
    let of = |request: &Request, redraw: TiledRedraw| {
        redrawn_in_tiles(&pipeline, request, &redraw)
            .unwrap()
            .remove(0)
    };
    let plain = TiledRedraw::new(2.0).overlap(16);
    let lanczos = plain.clone().upscaler(Upscaler::Pixels(Filter::Lanczos));
    let nearest = plain.clone().upscaler(Upscaler::Pixels(Filter::Nearest));
    let sharp = plain.clone().upscaler(network("4x-sharp"));
    let all = [
        of(&request, plain),
        of(&request, lanczos.clone()),
        of(&request, nearest),
        of(&request, sharp),
        of(&request, lanczos.clone().overlap(24)),
        of(&request.clone().seed(8), lanczos.clone()),
        of(&request.clone().size(48, 48), lanczos.clone()),
        of(&request.clone().prompt("an owl"), lanczos.clone()),
    ];
    for (i, one) in all.iter().enumerate() {
        for other in &all[..i] {
            assert!(one != other, "case {i}");
        }
    }
    let mut larger = lanczos;
    larger.factor = 3.0;
    assert_eq!(of(&request, larger).dimensions(), (144, 120));
}

#[test]
fn what_cannot_be_redrawn_in_tiles_is_refused() {
    let fakes = Fakes::new();
    let pipeline = pipeline(&fakes);
    let request = base().start(Start::picture(small()).strength(0.5));
    let redraw = TiledRedraw::new(2.0).upscaler(Upscaler::Pixels(Filter::Lanczos));
    let refused = |request: Request, redraw: &TiledRedraw| {
        let error = redrawn_in_tiles(&pipeline, &request, redraw).unwrap_err();
        assert!(matches!(error, GenerateError::Request(_)), "{error}");
        error.to_string()
    };
    let with = |change: fn(&mut TiledRedraw)| {
        let mut redraw = redraw.clone().overlap(16);
        change(&mut redraw);
        redraw
    };
    let usual = with(|_| {});
    let start = || Start::picture(small()).strength(0.5);
    for (request, redraw, part) in [
        (base(), &usual, "start is none, expected a picture"),
        (
            base().start(start().mask(Mask::new(GrayImage::new(48, 40)))),
            &usual,
            "start.mask is given",
        ),
        (
            base().start(Start::latents(Array4::zeros((1, 4, 6, 8)))),
            &usual,
            "start.from is latents, expected a picture",
        ),
        (
            request.clone().hires(Hires::scale(2.0)),
            &usual,
            "hires is given",
        ),
        (request.clone().steps(0), &usual, "steps is 0"),
        (request.clone().size(60, 60), &usual, "width is 60"),
        (request.clone().count(0), &usual, "count is 0"),
        (
            request.clone().initial_noise(Array4::zeros((1, 4, 6, 8))),
            &usual,
            "initial_noise is (1, 4, 6, 8)",
        ),
        (
            request.clone(),
            &with(|it| it.overlap = 48),
            "overlap is 48, expected at most 47",
        ),
        (
            request.clone(),
            &with(|it| it.factor = f64::NAN),
            "factor is NaN",
        ),
        (
            request.clone(),
            &with(|it| it.upscaler = Some(Upscaler::Latent(LatentFilter::Bilinear))),
            "upscaler is one of latents, expected a filter of pixels or a network",
        ),
        (
            request.clone(),
            &with(|it| it.upscaler = Some(Upscaler::Network("3x".to_owned()))),
            "upscaler is `3x`, expected the name of an upscaler, such as",
        ),
        (
            request.clone().size(8, 8).count(800),
            &with(|it| it.overlap = 1),
            "expected at most 10000 tiles",
        ),
        (
            request.clone().size(256, 256),
            &with(|it| it.factor = 350.0),
            "pixels in all tiles",
        ),
        (
            request.clone(),
            &with(|it| {
                it.factor = 1e6;
                it.upscaler = Some(Upscaler::Network("2x soft".to_owned()));
            }),
            "factor is 1000000",
        ),
    ] {
        let error = refused(request, redraw);
        assert!(error.contains(part), "{error:?} has no {part:?}");
    }
    assert_eq!(fakes.calls(), 0);
    let stop = StopToken::new();
    let stopped = pipeline.upscale_by_tiles(&request, &usual, &stop, |_| ControlFlow::Break(()));
    assert!(stopped.unwrap_err().is_stopped());
}
