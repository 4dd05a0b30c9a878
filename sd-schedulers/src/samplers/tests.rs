use std::sync::Arc;

use super::*;
use crate::{
    Ladder, NoiseSchedule, NoiseSource, Rungs,
    ladders::{Conventions, FinalSigma, LadderError},
    sample,
    samplers::EndPoint,
    schedule::ClipSample,
};

#[test]
fn rows_are_found_by_name_and_fit_their_default_ladder() {
    for row in TABLE {
        let found = |name: &str| by_name(name).map(|found| found.name);
        assert_eq!(found(&row.name.to_uppercase()), Some(row.name));
        for alias in row.aliases() {
            // `deis` is this crate's own sampler first.
            let ours = if alias == "deis" { "deis" } else { row.name };
            assert_eq!(found(alias), Some(ours), "{alias}");
        }
        assert!(row.fits(&row.default_ladder), "{}", row.name);
        assert_eq!(
            row.fits(&Ladder::karras()),
            row.needs != "integer timesteps",
            "{}",
            row.name
        );
    }
    assert!(by_name("").is_none() && by_name("dpm").is_none());
    assert_eq!(by_name("dpmpp_2m_sde").unwrap().name, "dpmpp-2m-sde");
}

#[test]
fn a_sampler_is_known_by_its_type_and_options() {
    let config = SchedulerConfig::default();
    for row in TABLE {
        assert_eq!(
            row_of(&*(row.build)(&config), &config).map(|found| found.name),
            Some(row.name)
        );
    }
    let half = EulerAncestral {
        eta: 0.5,
        ..EulerAncestral::default()
    };
    assert!(row_of(&half, &config).is_none());
    /// A sampler that prints as another type does.
    #[derive(PartialEq)]
    struct Own;
    impl std::fmt::Debug for Own {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("ResMultistep")
        }
    }
    impl Sampler for Own {
        fn sample(
            &self,
            _: &mut [f32],
            _: &crate::Rungs,
            _: &mut dyn crate::Run,
        ) -> std::ops::ControlFlow<()> {
            std::ops::ControlFlow::Continue(())
        }
    }
    assert!(row_of(&Own, &config).is_none());
}

fn rungs(row: &SamplerRow, steps: usize) -> Result<Rungs, LadderError> {
    let config = SchedulerConfig::default();
    let schedule = Arc::new(NoiseSchedule::new(&config).unwrap());
    let conventions = (row.build)(&config).conventions();
    row.default_ladder.rungs(&schedule, steps, &conventions)
}

#[test]
fn calls_are_as_the_formula_says() {
    for row in TABLE {
        let sampler = (row.build)(&SchedulerConfig::default());
        for steps in 1..=50 {
            if steps < sampler.conventions().min_steps {
                assert!(rungs(row, steps).is_err(), "{} {steps}", row.name);
                continue;
            }
            let calls = sampler.calls(&rungs(row, steps).unwrap());
            assert_eq!(row.calls.at(steps), calls, "{} {steps}", row.name);
        }
    }
}

#[test]
fn ends_and_needs_are_as_the_sampler_says() {
    for row in TABLE {
        let sampler = (row.build)(&SchedulerConfig::default());
        let conventions = sampler.conventions();
        let ends: &[&str] = match (conventions.end, sampler.ends()) {
            (FinalSigma::SigmaMin, _) => &["sigma_min"],
            (FinalSigma::Zero, EndPoint::Last) => &["denoised"],
            (FinalSigma::Zero, EndPoint::Cleanest) => &["alpha-bar 0"],
            (FinalSigma::Zero, EndPoint::Formula) => &["own formula", "sigma_min"],
        };
        assert!(ends.contains(&row.ends), "{}: {}", row.name, row.ends);
        let needs = match (conventions.on_grid_only, sampler.needs().unconditional) {
            (true, _) => "integer timesteps",
            (false, true) => "unconditional output",
            (false, false) => "nothing",
        };
        assert_eq!(row.needs, needs, "{}", row.name);
    }
}

#[test]
fn only_stochastic_samplers_draw_noise() {
    /// A source that counts its draws.
    struct Drawn(usize);
    impl NoiseSource for Drawn {
        fn fill(&mut self, out: &mut [f32]) {
            self.0 += 1;
            out.fill(0.5);
        }
    }
    for row in TABLE {
        let sampler = (row.build)(&SchedulerConfig::default());
        let mut drawn = Drawn(0);
        let mut x = [3.0, -2.0];
        let rungs = rungs(row, 20).unwrap();
        sample(&*sampler, &mut x, &rungs, &mut drawn, |x, at, denoised| {
            let part = 1.0 / (1.0 + at.sigma * at.sigma);
            denoised.iter_mut().zip(x).for_each(|(d, x)| *d = part * x);
        });
        assert_eq!(drawn.0 > 0, row.stochastic, "{}", row.name);
        assert_eq!(sampler.adds_noise(), row.stochastic, "{}", row.name);
        assert!(x.iter().all(|x| x.is_finite()), "{}", row.name);
    }
}

#[test]
fn clips_reach_the_samplers_whose_class_has_them() {
    let built = |name: &str, clip| {
        let config = SchedulerConfig {
            clip,
            ..SchedulerConfig::default()
        };
        format!("{:?}", (by_name(name).unwrap().build)(&config))
    };
    let dynamic = ClipSample::Dynamic {
        ratio: 0.995,
        max: 1.0,
    };
    // The kinds of clipping that the class has.
    for (name, range, thresholding) in [
        ("ddim", true, true),
        ("ddpm", true, true),
        ("lcm", true, true),
        ("heun", true, false),
        ("unipc", false, true),
        ("dpmpp-3s", false, true),
        ("euler", false, false),
        ("tcd", false, false),
    ] {
        let clips = |clip| built(name, clip) != built(name, ClipSample::None);
        assert_eq!(clips(ClipSample::Range(1.0)), range, "{name}");
        assert_eq!(clips(dynamic), thresholding, "{name}");
    }
}

#[test]
fn conventions_of_another_kind() {
    let own: Arc<dyn Sampler> = Arc::new(DpmPlusPlus2M);
    let plain = WithConventions::wrap(Arc::clone(&own), own.conventions());
    // An `Arc` has `equals` too, for another `Arc`.
    assert!(plain.as_ref().equals(&DpmPlusPlus2M));
    let wrapped = WithConventions::wrap(own, Conventions::default());
    assert_eq!(wrapped.conventions(), Conventions::default());
    assert!(!wrapped.as_ref().equals(&DpmPlusPlus2M));
    assert!(row_of(&*wrapped, &SchedulerConfig::default()).is_none());
    let unwrapped = WithConventions::wrap(wrapped, DpmPlusPlus2M.conventions());
    assert!(unwrapped.as_ref().equals(&DpmPlusPlus2M));
}

/// `table.md` is a part of the crate's documentation.
#[test]
fn the_markdown_table_has_every_row() {
    let mut expected = String::from(
        "| name | title | order | calls | ends at | needs | noise | default ladder \
         | WebUI | ComfyUI | diffusers | paper |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in TABLE {
        let comfyui = row.comfyui.map(|name| format!("`{name}`"));
        let number = row.paper.trim_start_matches("https://arxiv.org/abs/");
        let columns = [
            format!("`{}`", row.name),
            row.title.to_owned(),
            row.order.to_string(),
            row.calls.to_string(),
            row.ends.to_owned(),
            row.needs.to_owned(),
            (if row.stochastic { "yes" } else { "no" }).to_owned(),
            row.default_ladder.kind().to_owned(),
            row.webui.unwrap_or("–").to_owned(),
            comfyui.unwrap_or_else(|| "–".to_owned()),
            row.diffusers.unwrap_or("–").to_owned(),
            format!("[{number}]({})", row.paper),
        ];
        expected += &format!("| {} |\n", columns.join(" | "));
    }
    let written = include_str!("table.md");
    assert!(
        written == expected,
        "src/samplers/table.md is to be\n{expected}"
    );
}
