//! The samplers, one a file, and the table of them.

mod choice;
mod ddim;
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
mod heun;

pub use choice::{Scheduler, UnknownName};
pub use ddim::{Ddim, DdimTarget};
pub use dpmpp_2m::DpmPlusPlus2M;
pub use euler::Euler;
pub use euler_ancestral::EulerAncestral;
pub use heun::Heun;

use std::any::Any;

use crate::{Ladder, Sampler, SchedulerConfig};

/// What there is to know about a sampler without running it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Row {
    /// Short name for a command line: `dpmpp-2m`.
    pub name: &'static str,
    /// The name people know it by: `DPM++ 2M`.
    pub title: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// The class of diffusers that does the same.
    pub diffusers: &'static str,
    /// Order of accuracy: halving the steps' length divides the error by 2 to this power.
    pub order: usize,
    /// The ladder it is mostly run on.
    pub default_ladder: Ladder,
    /// The sampler as the diffusers class makes it from the model's configuration.
    pub build: fn(&SchedulerConfig) -> Box<dyn Sampler>,
}

impl Row {
    /// Whether the sampler can run on a ladder: DDIM can't leave the training timesteps, as Karras does.
    pub fn fits(&self, ladder: &Ladder) -> bool {
        let on_grid_only = (self.build)(&SchedulerConfig::default())
            .conventions()
            .on_grid_only;
        matches!(ladder, Ladder::Spaced(_)) || !on_grid_only
    }
}

/// Every sampler of this crate.
pub static TABLE: [Row; 5] = [
    Row {
        name: "euler",
        title: "Euler",
        paper: "https://arxiv.org/abs/2206.00364",
        diffusers: "EulerDiscreteScheduler",
        order: 1,
        default_ladder: Ladder::karras(),
        build: |_| Box::new(Euler),
    },
    Row {
        name: "euler-a",
        title: "Euler a",
        paper: "https://arxiv.org/abs/2006.11239",
        diffusers: "EulerAncestralDiscreteScheduler",
        order: 1,
        default_ladder: Ladder::karras(),
        build: |_| Box::new(EulerAncestral::default()),
    },
    Row {
        name: "heun",
        title: "Heun",
        paper: "https://arxiv.org/abs/2206.00364",
        diffusers: "HeunDiscreteScheduler",
        order: 2,
        default_ladder: Ladder::karras(),
        build: |config| {
            Box::new(Heun {
                clip: config.clip_sample,
            })
        },
    },
    Row {
        name: "ddim",
        title: "DDIM",
        paper: "https://arxiv.org/abs/2010.02502",
        diffusers: "DDIMScheduler",
        order: 1,
        default_ladder: Ladder::leading(),
        build: |config| Box::new(Ddim::from_config(config)),
    },
    Row {
        name: "dpmpp-2m",
        title: "DPM++ 2M",
        paper: "https://arxiv.org/abs/2211.01095",
        diffusers: "DPMSolverMultistepScheduler",
        order: 2,
        default_ladder: Ladder::karras(),
        build: |_| Box::new(DpmPlusPlus2M),
    },
];

/// The row of a [`name`](Row::name), upper or lower case.
pub fn by_name(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name))
}

/// The row that builds this very sampler, with these options, from a model's configuration; none for a sampler of one's
/// own or with other options.
pub fn row_of(sampler: &dyn Sampler, config: &SchedulerConfig) -> Option<&'static Row> {
    TABLE
        .iter()
        .find(|row| same(sampler, &*(row.build)(config)))
}

/// Whether two samplers are of one type with the same options, as far as their `Debug` tells options apart.
pub fn same(a: &dyn Sampler, b: &dyn Sampler) -> bool {
    let type_id = |sampler: &dyn Sampler| (sampler as &dyn Any).type_id();
    type_id(a) == type_id(b) && format!("{a:?}") == format!("{b:?}")
}

/// Clips to plus or minus `limit`. Unlike `f32::clamp`, no limit makes it panic.
fn clip(values: &mut [f32], limit: Option<f32>) {
    if let Some(limit) = limit {
        for value in values {
            *value = value.max(-limit).min(limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_name_and_fit_their_default_ladder() {
        for row in &TABLE {
            assert_eq!(
                by_name(&row.name.to_uppercase()).map(|found| found.title),
                Some(row.title)
            );
            assert!(row.fits(&row.default_ladder), "{}", row.name);
            assert_eq!(
                row.fits(&Ladder::karras()),
                row.name != "ddim",
                "{}",
                row.name
            );
        }
        assert!(by_name("").is_none() && by_name("dpm").is_none());
    }

    #[test]
    fn a_sampler_is_known_by_its_type_and_options() {
        let config = SchedulerConfig::default();
        for row in &TABLE {
            assert_eq!(
                row_of(&*(row.build)(&config), &config).map(|found| found.name),
                Some(row.name)
            );
        }
        assert!(row_of(&EulerAncestral { eta: 0.5 }, &config).is_none());
        /// Prints as another does.
        struct Own;
        impl std::fmt::Debug for Own {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("Euler")
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

    #[test]
    fn the_table_of_the_crate_documentation_is_this_one() {
        let documentation = include_str!("../lib.rs");
        for row in &TABLE {
            let ladder = match row.default_ladder {
                Ladder::Karras { .. } => "Karras",
                Ladder::Spaced(_) => "leading",
            };
            let Row {
                name,
                title,
                diffusers,
                order,
                paper,
                ..
            } = row;
            let line = format!(
                "//! | `{name}` | {title} | {order} | {ladder} | `{diffusers}` | <{paper}> |\n"
            );
            assert!(documentation.contains(&line), "missing in lib.rs: {line}");
        }
        assert_eq!(documentation.matches("//! | `").count(), TABLE.len());
    }
}
