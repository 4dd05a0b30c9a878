use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
    ser,
};

use super::{SamplerRow, TABLE, by_name, row_of};
use crate::names::unknown;
use crate::schedule::Kind;
use crate::{Ladder, Sampler, SchedulerConfig, UnknownName};

/// A choice of sampler: a row of [`TABLE`], or a sampler with its options.
///
/// A row takes its options from the model's configuration, as the diffusers class does. A sampler
/// has its own options.
///
/// In serde, it is the name of a row, such as `"dpmpp-2m"`. A sampler is written as the name of the
/// row that builds it from the default configuration (Stable Diffusion 1.5), and read back as that
/// row. A sampler that no row builds cannot be written.
#[derive(Clone, Debug)]
pub enum Scheduler {
    /// A row of [`TABLE`].
    Named(&'static SamplerRow),
    /// A sampler with its options.
    Custom(Arc<dyn Sampler>),
}

impl Scheduler {
    /// Returns the sampler for a model with this configuration.
    pub fn sampler(&self, config: &SchedulerConfig) -> Arc<dyn Sampler> {
        match self {
            Self::Named(row) => (row.build)(config).into(),
            Self::Custom(sampler) => Arc::clone(sampler),
        }
    }

    /// Returns the row that builds this sampler, with these options, from this configuration.
    pub fn row(&self, config: &SchedulerConfig) -> Option<&'static SamplerRow> {
        match self {
            Self::Named(row) => Some(row),
            Self::Custom(sampler) => row_of(&**sampler, config),
        }
    }

    /// Returns the ladder to use when no ladder is chosen.
    ///
    /// It is the default ladder of the row. For a sampler without a row, it is Karras, or leading
    /// if the sampler cannot leave the training timesteps. If that ladder does not support the kind
    /// of model, such as timesteps on an EDM model, it is Karras.
    pub fn default_ladder(&self, config: &SchedulerConfig) -> Ladder {
        let ladder = match (self.row(config), self) {
            (Some(row), _) => row.default_ladder.clone(),
            (None, Self::Custom(sampler)) if sampler.conventions().on_grid_only => {
                Ladder::leading()
            }
            _ => Ladder::karras(),
        };
        if ladder.is_for(Kind::of(config.prediction)) {
            ladder
        } else {
            Ladder::karras()
        }
    }
}

impl From<&'static SamplerRow> for Scheduler {
    fn from(row: &'static SamplerRow) -> Self {
        Self::Named(row)
    }
}

impl From<Arc<dyn Sampler>> for Scheduler {
    fn from(sampler: Arc<dyn Sampler>) -> Self {
        Self::Custom(sampler)
    }
}

impl<S: Sampler> From<S> for Scheduler {
    fn from(sampler: S) -> Self {
        Self::Custom(Arc::new(sampler))
    }
}

impl FromStr for Scheduler {
    type Err = UnknownName;

    /// Parses a name as [`by_name`] does.
    ///
    /// # Errors
    /// [`UnknownName`] if there is no such name. It lists known names.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let names = TABLE.iter().map(|row| row.name);
        let named = by_name(name).map(Self::Named);
        named.ok_or_else(|| unknown("scheduler", name, names))
    }
}

/// Writes the name of the row that builds the sampler from the default configuration. [`FromStr`]
/// reads it. A sampler that no row builds is written with its `Debug` output.
///
/// ```
/// use sd_schedulers::{Euler, Scheduler};
///
/// assert_eq!(Scheduler::from(Euler::default()).to_string(), "euler");
/// ```
impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.row(&SchedulerConfig::default()), self) {
            (Some(row), _) => f.pad(row.name),
            (None, Self::Custom(sampler)) => write!(f, "{sampler:?}"),
            (None, Self::Named(row)) => f.pad(row.name),
        }
    }
}

impl Serialize for Scheduler {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.row(&SchedulerConfig::default()) {
            Some(row) => serializer.serialize_str(row.name),
            None => Err(ser::Error::custom(format!(
                "the scheduler {self:?} has no name"
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for Scheduler {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Name)
    }
}

struct Name;

impl Visitor<'_> for Name {
    type Value = Scheduler;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"the name of a scheduler, such as "dpmpp-2m""#)
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Scheduler, E> {
        name.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ddim, DpmPlusPlus2M, EulerAncestral, NoisePath, NoiseSchedule, Prediction};

    const HALF: EulerAncestral = EulerAncestral {
        eta: 0.5,
        s_noise: 1.0,
        flow: NoisePath::Exploding,
    };

    #[test]
    fn names_and_values_are_told_apart() {
        let model = SchedulerConfig::from_json(r#"{"set_alpha_to_one": false}"#).unwrap();
        let named: Scheduler = "DDIM".parse().unwrap();
        assert!(format!("{:?}", named.sampler(&model)).contains("set_alpha_to_one: false"));
        let own = Scheduler::from(DpmPlusPlus2M);
        assert_eq!(own.row(&model).unwrap().name, "dpmpp-2m");
        assert!(Scheduler::from(HALF).row(&model).is_none());
        assert_eq!(named.default_ladder(&model), Ladder::leading());
        assert_eq!(
            Scheduler::from(Ddim {
                eta: 1.0,
                ..Ddim::from_config(&model)
            })
            .default_ladder(&model),
            Ladder::leading()
        );
        let ladder = Scheduler::from(HALF).default_ladder(&model);
        assert_eq!(ladder, Ladder::karras());
        let error = "dpm".parse::<Scheduler>().unwrap_err().to_string();
        assert_eq!(
            error,
            "\"dpm\" is no scheduler, expected dpm2, ddpm, ddim, lcm, dpm2-a"
        );
    }

    #[test]
    fn default_ladders_are_for_the_model() {
        let edm = |v| Prediction::Edm { sigma_data: 0.5, v };
        for prediction in [Prediction::Epsilon, Prediction::Flow, edm(false), edm(true)] {
            let config = SchedulerConfig {
                prediction,
                ..SchedulerConfig::default()
            };
            let schedule = Arc::new(NoiseSchedule::new(&config).unwrap());
            let is_edm = matches!(prediction, Prediction::Edm { .. });
            for row in TABLE {
                let scheduler = Scheduler::from(row);
                let conventions = scheduler.sampler(&config).conventions();
                let ladder = scheduler.default_ladder(&config);
                let rungs = ladder.rungs(&schedule, 8, &conventions);
                let refused = (prediction != Prediction::Epsilon && conventions.on_grid_only)
                    || (is_edm && conventions.training_timesteps);
                assert_eq!(rungs.is_err(), refused, "{} {prediction:?}", row.name);
                if !is_edm {
                    assert_eq!(ladder, row.default_ladder, "{} {prediction:?}", row.name);
                }
            }
        }
    }

    #[test]
    fn every_row_is_written_as_its_name() {
        for row in TABLE {
            let written = Scheduler::from(row).to_string();
            assert_eq!(written, row.name);
            let back = written.parse::<Scheduler>().unwrap();
            assert!(matches!(back, Scheduler::Named(found) if found.name == row.name));
        }
        assert_eq!(Scheduler::from(DpmPlusPlus2M).to_string(), "dpmpp-2m");
        assert!(Scheduler::from(HALF).to_string().contains("eta: 0.5"));
    }

    #[test]
    fn serde_takes_the_name() {
        let json = serde_json::to_string(&Scheduler::from(DpmPlusPlus2M)).unwrap();
        assert_eq!(json, "\"dpmpp-2m\"");
        assert!(
            matches!(serde_json::from_str(&json).unwrap(), Scheduler::Named(row) if row.name == "dpmpp-2m")
        );
        assert!(serde_json::to_string(&Scheduler::from(HALF)).is_err());
        assert!(serde_json::from_str::<Scheduler>("\"x\"").is_err());
    }
}
