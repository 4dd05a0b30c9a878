//! The seeds of a request, and what is wrong with them.

use sd_schedulers::noise::{NoiseError, NoiseKind, Seeds};

use crate::{Problem, Request, parts::Parts};

/// Returns the seeds of the first picture.
pub(super) fn seeds(parts: &Parts, request: &Request) -> Seeds {
    let random = || {
        let random: u32 = rand::random();
        // numpy refuses seeds of more than 32 bits, and the seeds of further pictures count up from
        // this one.
        let room = u32::from(request.noise == NoiseKind::Numpy);
        u64::from(random >> room)
    };
    let factor = parts.codec.factor();
    Seeds {
        seed: request.seed.unwrap_or_else(random),
        kind: request.noise,
        variation: request.variation,
        resize_from: request
            .seed_resize
            .map(|[width, height]| [height as usize / factor, width as usize / factor]),
        sampler_offset: request.ensd,
    }
}

/// Returns the problems with the seeds of any of `count` pictures.
pub(super) fn seeds_problems(seeds: Seeds, count: usize) -> Vec<Problem> {
    type Part = fn(Seeds) -> Seeds;
    let parts: [(&'static str, Part); 4] = [
        ("seed", |seeds| Seeds {
            seed: seeds.seed,
            kind: seeds.kind,
            ..Seeds::default()
        }),
        ("ensd", |seeds| match seeds.sampler_offset {
            // This is the seed itself, which is checked above.
            0 => Seeds::default(),
            offset => Seeds {
                seed: seeds.seed.wrapping_add(offset),
                kind: seeds.kind,
                ..Seeds::default()
            },
        }),
        ("variation", |seeds| Seeds {
            kind: seeds.kind,
            variation: seeds.variation,
            ..Seeds::default()
        }),
        ("seed_resize", |seeds| Seeds {
            resize_from: seeds.resize_from,
            ..Seeds::default()
        }),
    ];
    // If the first and the last picture have usable seeds, so have the pictures between them.
    let last = seeds.image(count.saturating_sub(1) as u64);
    let mut problems = Vec::new();
    for (what, part) in parts {
        let checked = [seeds, last].map(part).map(|part| part.check());
        let ([Err(error), _] | [_, Err(error)]) = checked else {
            continue;
        };
        problems.push(seed_problem(what, seeds, error));
    }
    problems
}

/// Returns the problem with the option `what` of these seeds.
fn seed_problem(what: &'static str, seeds: Seeds, error: NoiseError) -> Problem {
    match error {
        NoiseError::NumpySeed(_) if what == "ensd" => Problem::new(
            what,
            "a number with which seed + ensd is at most 4294967295, numpy's last seed",
            seeds.sampler_offset,
        ),
        NoiseError::NumpySeed(seed) => {
            let expected = "0 to 4294967295 for every picture, numpy's seeds";
            Problem::new(what, expected, seed)
        }
        NoiseError::Strength(strength) => Problem::new("variation.strength", "0 to 1", strength),
        NoiseError::ResizeFrom { height, width, max } => Problem::new(
            what,
            format!("1 to {max} latents each way"),
            format!("{width}×{height} latents"),
        ),
        other => Problem::new(
            what,
            "a value that can be drawn",
            format!("refused ({other})"),
        ),
    }
}
