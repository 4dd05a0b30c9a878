//! Noise against numpy, torchsde, WebUI and torch's CUDA kernel, with the values of
//! `tests/golden/noise.py`.

#![allow(clippy::unwrap_used)] // Clippy exempts only functions with #[test].

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use sd_schedulers::{
    NoiseSource,
    noise::{
        BrownianTree, CARDS, NoiseError, NoiseKind, NumpyRng, Philox, Seeds, Slerp, TorchRng,
        Variation, cuda_threads,
    },
};
use serde_json::Value;

#[test]
fn philox_equals_webui_bit_for_bit() {
    for row in rows("philox_webui") {
        let mut source = Philox::webui(whole(&row["seed"]));
        for draw in row["draws"].as_array().unwrap() {
            let expected = floats(draw);
            assert_same(&drawn(&mut source, expected.len()), &expected, &row["seed"]);
        }
    }
}

/// The published values belong to a constant with a relative difference of 1.1e-8 from the one in
/// WebUI's code. That is 2.1e-7 here.
#[test]
fn philox_is_near_the_published_values() {
    let golden = &golden()["philox_published"];
    let found = drawn(&mut Philox::webui(whole(&golden["seed"])), 12);
    let published = golden["decimal"].as_array().unwrap();
    for (found, published) in found.iter().zip(published) {
        let off = f64::from(*found) - published.as_f64().unwrap();
        assert!(off.abs() < 1e-6, "{found} != {published}");
    }
}

/// Both sides use float32 logarithms and sines, correct to about 2 units in the last place. The
/// values are at most 6.7.
#[test]
fn philox_follows_the_order_of_cuda() {
    for row in rows("philox_cuda") {
        let mut source = Philox::cuda(whole(&row["seed"]), whole(&row["threads"]) as u32);
        for (draw, count) in row["counts"].as_array().unwrap().iter().enumerate() {
            let found = drawn(&mut source, whole(count) as usize);
            let indices = row["indices"][draw].as_array().unwrap();
            for (index, expected) in indices.iter().zip(floats(&row["values"][draw])) {
                let found = found[whole(index) as usize];
                assert!(
                    (found - expected).abs() < 3e-6,
                    "{count} values of seed {}, value {index}: {found} != {expected}",
                    row["seed"]
                );
            }
        }
    }
}

/// With a thread for each value, cards draw the values of WebUI's code up to float32 roundings. The
/// roundings are largest where a uniform value is near 1: 1e-5, as documented.
#[test]
fn a_card_of_enough_threads_draws_as_webui() {
    let threads = cuda_threads("RTX 3090").unwrap();
    for seed in [0, 1 << 40] {
        let mut card = Philox::cuda(seed, threads);
        let mut webui = Philox::webui(seed);
        for len in [4, 65_536] {
            let (card, webui) = (drawn(&mut card, len), drawn(&mut webui, len));
            let worst = card.iter().zip(&webui).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(0.0, f32::max);
            assert!(worst < 1e-5, "{worst}");
        }
    }
    let small = drawn(&mut Philox::cuda(0, 1024), 2048);
    let webui = drawn(&mut Philox::webui(0), 2048);
    assert!((small[1023] - webui[1023]).abs() < 1e-5);
    assert_ne!(small[1024], webui[1024]);
    // Fewer threads than a block has count as one block.
    assert_eq!(
        drawn(&mut Philox::cuda(0, 0), 700),
        drawn(&mut Philox::cuda(0, 256), 700)
    );
}

#[test]
fn cards_are_found_by_name() {
    assert_eq!(cuda_threads("NVIDIA GeForce RTX 4090"), Some(196_608));
    assert_eq!(cuda_threads("tesla t4"), Some(40_960));
    assert_eq!(cuda_threads("RTX"), None);
    for (card, threads) in CARDS {
        assert_eq!(cuda_threads(card), Some(*threads), "named twice: {card}");
    }
}

#[test]
fn random_state_equals_numpy_bit_for_bit() {
    for row in rows("random_state") {
        let mut source = NumpyRng::new(whole(&row["seed"]) as u32);
        for (draw, count) in [5, 4, 700].into_iter().enumerate() {
            let expected = floats(&row["draws"][draw]);
            let found = drawn(&mut source, count);
            assert_same(&found[..expected.len()], &expected, &row["seed"]);
        }
    }
}

#[test]
fn trees_equal_torchsde_bit_for_bit() {
    check_tree("brownian_tree_torch", TorchRng::new, NoiseKind::Torch);
    check_tree("brownian_tree_philox", Philox::webui, NoiseKind::Philox);
}

fn check_tree<S: NoiseSource>(name: &str, source: fn(u64) -> S, kind: NoiseKind) {
    for row in rows(name) {
        let (seed, len) = (whole(&row["seed"]), whole(&row["count"]) as usize);
        let range = [float(&row["start"]), float(&row["end"])];
        let mut tree = BrownianTree::new(range, len, seed, source).unwrap();
        let ladder = [range[1], 1.0, range[0], 0.0];
        let mut of_kind = kind.tree(seed, &ladder, len).unwrap();
        for asked in row["asked"].as_array().unwrap() {
            let (from, to) = (float(&asked["sigma"]), float(&asked["sigma_next"]));
            let expected = floats(&asked["noise"]);
            for found in [
                between(&mut tree, from, to, len),
                between(&mut of_kind, from, to, len),
            ] {
                assert_same(&found[..expected.len()], &expected, asked);
            }
        }
    }
}

/// Every kind of noise makes one path: the sum of the parts of an interval does not depend on where
/// it is cut. Values are up to 15, and each of the three has a few roundings of 1e-6.
#[test]
fn increments_of_a_tree_add_up() {
    let ladder = [14.614642_f32, 3.0, 0.0291675, 0.0];
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
    for kind in kinds() {
        let mut tree = kind.tree(3, &ladder, 200).unwrap();
        for _ in 0..20 {
            let mut sigmas = [0; 3].map(|_| rng.random_range(0.03..14.6_f32));
            sigmas.sort_by(f32::total_cmp);
            let [a, b, c] = sigmas;
            let mut ways = [(c, b), (b, a), (c, a)];
            // The order of the three queries must not matter.
            let first = rng.random_range(0..3);
            ways.rotate_left(first);
            let mut paths = ways.map(|(from, to)| {
                let scale = f64::from(from - to).sqrt();
                let noise = between(&mut tree, from, to, 200);
                let path = noise.into_iter().map(|v| f64::from(v) * scale);
                path.collect::<Vec<f64>>()
            });
            paths.rotate_right(first);
            let [upper, lower, whole] = paths;
            for ((upper, lower), whole) in upper.iter().zip(&lower).zip(&whole) {
                let off = (upper + lower - whole).abs();
                assert!(off < 1e-5, "{kind:?} {a} {b} {c}: {off}");
            }
        }
    }
}

/// A tree after many queries must answer as a fresh one does, in any order and in both directions.
#[test]
fn a_tree_does_not_remember() {
    let tree = || BrownianTree::new([0.03, 14.6], 17, 9, Philox::webui).unwrap();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    // There are few points, so that intervals share ends. They include the ends of the range and
    // points at which the tree is cut.
    let mut points: Vec<f32> = vec![0.03, 14.6, 7.315, 3.6725, 0.030_001];
    points.extend((0..8).map(|_| rng.random_range(0.03..14.6_f32)));
    let mut used = tree();
    for _ in 0..120 {
        let [from, to] = [0; 2].map(|_| points[rng.random_range(0..points.len())]);
        let found = between(&mut used, from, to, 17);
        assert_eq!(found, between(&mut tree(), from, to, 17), "{from} {to}");
        let back = between(&mut used, to, from, 17);
        assert!(found.iter().zip(back).all(|(v, back)| *v == -back));
        // Another number of values makes another tree, and then the first one again.
        if rng.random_range(0..20) == 0 {
            assert_eq!(between(&mut used, 3.0, 2.0, 5).len(), 5);
        }
    }
}

/// For 5,000 values, the mean has a standard deviation of 0.014, the variance one of 0.02 and the
/// correlation one of 0.014. The bounds are five standard deviations.
#[test]
fn a_tree_has_unit_variance_per_unit_of_time() {
    const LEN: usize = 5000;
    for kind in kinds() {
        let mut tree = kind.tree(3, &[14.614642, 0.0291675], LEN).unwrap();
        let ways = [(14.0, 0.03), (1.5, 1.0), (1.0, 0.7), (0.0508, 0.05)];
        let noises = ways.map(|(from, to)| between(&mut tree, from, to, LEN));
        let mean =
            |values: &mut dyn Iterator<Item = f32>| values.map(f64::from).sum::<f64>() / LEN as f64;
        for noise in &noises {
            let variance = mean(&mut noise.iter().map(|v| v * v));
            let mean = mean(&mut noise.iter().copied());
            assert!(mean.abs() < 0.07, "{kind:?}: mean {mean}");
            assert!(
                (variance - 1.0).abs() < 0.1,
                "{kind:?}: variance {variance}"
            );
        }
        // Neighbouring intervals must be uncorrelated.
        let mut products = noises[1].iter().zip(&noises[2]).map(|(a, b)| a * b);
        let correlation = mean(&mut products);
        assert!(correlation.abs() < 0.07, "{kind:?}: {correlation}");
        // Outside of the path, it is plain noise.
        let mut plain = vec![0.0; LEN];
        tree.fill(&mut plain);
        assert_eq!(plain, drawn(&mut kind.source(3).unwrap(), LEN));
    }
}

#[test]
fn a_tree_takes_anything() {
    let over = |sigmas: &[f32]| BrownianTree::over(sigmas, 3, 0, TorchRng::new).err();
    for wrong in [
        &[][..],
        &[0.0],
        &[f32::NAN],
        &[-1.0],
        &[f32::INFINITY],
        &[2e7],
    ] {
        let error = over(wrong).unwrap();
        assert!(matches!(error, NoiseError::Range { .. }), "{error}");
    }
    assert_eq!(over(&[1e7, 1e-30]), None);
    // A run of one step has no way to go, and needs no noise.
    let mut point = BrownianTree::over(&[14.6, 0.0], 3, 0, TorchRng::new).unwrap();
    assert_eq!(between(&mut point, 14.6, 0.0, 3), [0.0_f32; 3]);

    let mut tree = BrownianTree::over(&[14.6, 0.03, 0.0], 3, 0, TorchRng::new).unwrap();
    let odd = [
        f32::NAN,
        f32::INFINITY,
        -f32::INFINITY,
        -1.0,
        0.0,
        1.0,
        1e-40,
        99.0,
    ];
    for from in odd {
        for to in odd {
            assert!(between(&mut tree, from, to, 3).iter().all(|v| !v.is_nan()));
        }
    }
    assert_eq!(between(&mut tree, 2.0, 2.0, 3), [0.0_f32; 3]);
    assert_eq!(between(&mut tree, 2.0, 1.0, 0).len(), 0);
}

/// The weights are in float64 here and in float32 there, for values up to 4. The largest difference
/// found is 2e-7.
#[test]
fn variations_equal_webuis() {
    let golden = golden();
    let [far, near] = ["variation", "variation_close"].map(|name| &golden[name]);
    let shape = [2, 4, 4];
    let seeds = Seeds {
        seed: whole(&far["seeds"][0]),
        kind: NoiseKind::Philox,
        variation: Some(Variation {
            seed: whole(&far["seeds"][1]),
            strength: far["strength"].as_f64().unwrap() as f32,
            ..Variation::default()
        }),
        ..Seeds::default()
    };
    let (noise, _) = begun(&seeds, shape);
    assert_near(&noise, &floats(&far["noise"]), 1e-6);

    let seed = |i: usize| whole(&near["seeds"][i]);
    let mut one = drawn(&mut Philox::webui(seed(0)), 32);
    let other = drawn(&mut Philox::webui(seed(1)), 32);
    let share = near["share"].as_f64().unwrap() as f32;
    let close: Vec<f32> = one.iter().zip(&other).map(|(a, b)| a + share * b).collect();
    Slerp::Columns.mix(&mut one, &close, shape, 0.25).unwrap();
    assert_near(&one, &floats(&near["noise"]), 1e-6);
}

#[test]
fn the_whole_is_mixed_along_one_arc() {
    let mix = |one: [f32; 2], other: [f32; 2], strength, slerp: Slerp| {
        let mut noise = one;
        slerp.mix(&mut noise, &other, [1, 1, 2], strength).unwrap();
        noise
    };
    // A third of the right angle.
    let third = mix([1.0, 0.0], [0.0, 2.0], 1.0 / 3.0, Slerp::Whole);
    assert_near(&third, &[0.75_f32.sqrt(), 1.0], 1e-6);
    // There is no unique arc, so the line is used.
    for (other, middle) in [
        ([3.0, -6.0], [2.0, -4.0]),
        ([-1.0, 2.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.5, -1.0]),
    ] {
        assert_eq!(mix([1.0, -2.0], other, 0.5, Slerp::Whole), middle);
    }
    // Columns of height 1 point in the same or the opposite direction.
    let columns = mix([1.0, -2.0], [3.0, 6.0], 0.5, Slerp::Columns);
    assert_near(&columns, &[2.0, 2.0], 1e-6);
    let ends = [0.0, 1.0].map(|strength| mix([1.0, 0.5], [-2.0, 2.0], strength, Slerp::Whole));
    assert_near(&ends[0], &[1.0, 0.5], 1e-6);
    assert_near(&ends[1], &[-2.0, 2.0], 1e-6);
    assert_eq!(
        Slerp::Whole.mix(&mut [1.0], &[1.0, 2.0], [1, 1, 1], 0.5),
        Err(NoiseError::Length {
            shape: [1, 1, 1],
            found: 2
        })
    );
}

#[test]
fn resized_seeds_equal_webuis() {
    for row in rows("seed_resize") {
        let [from, to] =
            ["from", "to"].map(|key| [0_usize, 1, 2].map(|i| whole(&row[key][i]) as usize));
        let seeds = Seeds {
            seed: whole(&row["seed"]),
            kind: NoiseKind::Philox,
            resize_from: Some([from[1], from[2]]),
            ..Seeds::default()
        };
        assert_same(&begun(&seeds, to).0, &floats(&row["noise"]), &row);
        // At its own size, it is the plain noise.
        let plain = Seeds {
            resize_from: None,
            ..seeds
        };
        assert_eq!(begun(&seeds, from), begun(&plain, from));
    }
}

/// Each setting changes the first noise, the noise that a sampler draws after it, or both.
#[test]
fn a_sampler_draws_from_its_own_generator() {
    let shape = [4, 6, 5];
    for kind in kinds() {
        let plain = Seeds {
            seed: 11,
            kind,
            ..Seeds::default()
        };
        let mut source = kind.source(11).unwrap();
        let (noise, next) = begun(&plain, shape);
        assert_eq!(noise, drawn(&mut source, 120));
        assert_eq!(next, drawn(&mut source, 120));

        let variation = Variation {
            seed: 12,
            strength: 0.3,
            slerp: Slerp::Columns,
        };
        let varied = Seeds {
            variation: Some(variation),
            ..plain
        };
        let whole = Seeds {
            variation: Some(Variation {
                slerp: Slerp::Whole,
                ..variation
            }),
            ..plain
        };
        let resized = Seeds {
            resize_from: Some([4, 5]),
            ..plain
        };
        let both = Seeds {
            resize_from: Some([4, 5]),
            ..varied
        };
        let mut different = vec![noise.clone()];
        for seeds in [varied, whole, resized, both] {
            let (first, after) = begun(&seeds, shape);
            assert!(!different.contains(&first), "{seeds:?}");
            assert_eq!(after, next, "{seeds:?}");
            different.push(first);
            // The picture's tree does not change either.
            let [a, b] = [seeds, plain].map(|seeds| {
                let mut tree = seeds.tree(&[9.0, 0.1, 0.0], 120).unwrap();
                between(&mut tree, 9.0, 1.0, 120)
            });
            assert_eq!(a, b);
        }
        let offset = Seeds {
            sampler_offset: 31337,
            ..varied
        };
        let (first, next) = begun(&offset, shape);
        assert_eq!(first, begun(&varied, shape).0);
        assert_eq!(next, drawn(&mut kind.source(11 + 31337).unwrap(), 120));
        // A strength of 0 makes no variation.
        let none = Seeds {
            variation: Some(Variation {
                strength: 0.0,
                ..variation
            }),
            ..plain
        };
        assert_eq!(begun(&none, shape), begun(&plain, shape));
    }
}

#[test]
fn kinds_of_noise_differ() {
    let noises: Vec<_> = kinds()
        .into_iter()
        .map(|kind| drawn(&mut kind.source(5).unwrap(), 5000))
        .collect();
    for (i, noise) in noises.iter().enumerate() {
        assert!(!noises[..i].contains(noise));
    }
}

#[test]
fn several_pictures_count_on() {
    let seeds = Seeds {
        seed: u64::MAX,
        ..Seeds::default()
    };
    assert_eq!(seeds.image(3).seed, 2);
    let variation = |strength| Variation {
        seed: 7,
        strength,
        ..Variation::default()
    };
    let varied = Seeds {
        variation: Some(variation(0.5)),
        ..seeds
    };
    let third = varied.image(3);
    assert_eq!((third.seed, third.variation.unwrap().seed), (u64::MAX, 10));
    let unvaried = Seeds {
        variation: Some(variation(0.0)),
        ..seeds
    };
    assert_eq!(unvaried.image(3).seed, 2);
}

#[test]
fn what_can_not_be_is_refused() {
    let refused = |seeds: Seeds| {
        let error = seeds.first([1, 2, 3], &mut [0.0; 6]).err().unwrap();
        assert_eq!(seeds.check(), Err(error.clone()));
        error
    };
    let plain = Seeds::default();
    for strength in [-0.1, 1.1, f32::NAN] {
        let variation = Some(Variation {
            strength,
            ..Variation::default()
        });
        // Compare the texts, because an error with a NaN does not equal itself.
        let seeds = Seeds { variation, ..plain };
        let error = seeds.check().unwrap_err().to_string();
        assert!(error.starts_with("strength of the variation: expected 0 to 1"));
    }
    for side in [[0, 4], [4, 0], [4097, 4], [usize::MAX, usize::MAX]] {
        let error = refused(Seeds {
            resize_from: Some(side),
            ..plain
        });
        assert!(matches!(error, NoiseError::ResizeFrom { .. }), "{error}");
    }
    let most = u64::from(u32::MAX);
    let numpy = Seeds {
        seed: most,
        kind: NoiseKind::Numpy,
        ..plain
    };
    assert_eq!(numpy.check(), Ok(()));
    let variation = Some(Variation {
        seed: most + 2,
        ..Variation::default()
    });
    for (seeds, seed) in [
        (numpy.image(1), most + 1),
        (Seeds { variation, ..numpy }, most + 2),
        (
            Seeds {
                sampler_offset: 3,
                ..numpy
            },
            most + 3,
        ),
    ] {
        assert_eq!(refused(seeds), NoiseError::NumpySeed(seed));
    }
    let (seed, kind) = (most + 1, NoiseKind::Numpy);
    let error = Some(NoiseError::NumpySeed(seed));
    assert_eq!(kind.source(seed).err(), error);
    assert_eq!(kind.tree(seed, &[1.0], 1).err(), error);

    for shape in [[1, 2, 4], [usize::MAX, 2, 3], [0, 2, 3]] {
        let error = plain.first(shape, &mut [0.0; 6]).err();
        assert_eq!(error, Some(NoiseError::Length { shape, found: 6 }));
    }
    let resized = Seeds {
        resize_from: Some([9, 9]),
        ..plain
    };
    assert!(resized.first([usize::MAX, 0, 4], &mut []).is_ok());
}

#[test]
fn variations_are_read_by_serde() {
    let read = |json| serde_json::from_str::<Variation>(json);
    let variation = Variation {
        seed: 7,
        strength: 0.5,
        slerp: Slerp::Whole,
    };
    let json = r#"{"seed":7,"strength":0.5,"slerp":"whole"}"#;
    assert_eq!(serde_json::to_string(&variation).unwrap(), json);
    assert_eq!(read(json).unwrap(), variation);
    let short = read(r#"{"strength": 0.5}"#).unwrap();
    assert_eq!((short.seed, short.slerp), (0, Slerp::Columns));
    assert!(read("{}").is_err() && read(r#"{"strength": 0.5, "x": 1}"#).is_err());
}

fn kinds() -> [NoiseKind; 5] {
    let [a, b, c, d] = NoiseKind::NAMED.map(|(_, kind)| kind);
    [a, b, c, d, NoiseKind::Cuda { threads: 1024 }]
}

/// Returns the first noise, and the noise that a sampler draws next.
fn begun(seeds: &Seeds, shape: [usize; 3]) -> (Vec<f32>, Vec<f32>) {
    let mut noise = vec![0.0; shape.iter().product()];
    let mut source = seeds.first(shape, &mut noise).unwrap();
    let next = drawn(&mut source, noise.len());
    (noise, next)
}

fn drawn(source: &mut impl NoiseSource, len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    source.fill(&mut out);
    out
}

fn between(source: &mut impl NoiseSource, from: f32, to: f32, len: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; len];
    source.between(from, to, &mut out);
    out
}

#[track_caller]
fn assert_same(found: &[f32], expected: &[f32], what: &Value) {
    let [found, expected] =
        [found, expected].map(|all| all.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    assert_eq!(found, expected, "{what}");
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < bound, "{found} != {expected}");
    }
}

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/noise.json")).unwrap()
}

fn rows(name: &str) -> Vec<Value> {
    let rows = golden()[name].as_array().unwrap().clone();
    assert!(!rows.is_empty());
    rows
}

fn whole(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// Reads a float from its bit pattern.
fn float(value: &Value) -> f32 {
    f32::from_bits(whole(value) as u32)
}

fn floats(values: &Value) -> Vec<f32> {
    values.as_array().unwrap().iter().map(float).collect()
}
