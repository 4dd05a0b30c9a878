use std::any::Any;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor},
    ser::{self, SerializeMap},
};
use serde_json::{Map, Value};

use super::{SamplerRow, TABLE, by_name, row_of};
use crate::names::unknown;
use crate::schedule::Kind;
use crate::{
    Ladder, Sampler, SchedulerConfig, ladders::Conventions, names::UnknownName,
    samplers::WithConventions,
};

/// A choice of sampler: a row of [`TABLE`], or a sampler with its options.
///
/// A row takes its options from the model's configuration, as the diffusers class does. A sampler
/// has its own options.
///
/// In serde, a row is its name, such as `"dpmpp-2m"`. A sampler is an object with the name of a row
/// and the options that differ from this row for the default configuration (Stable Diffusion 1.5),
/// such as `{"euler-a": {"eta": 0.5}}`. For a [`WithConventions`], the object also has the key
/// `conventions`. A sampler of a type that is not in [`TABLE`] cannot be written.
///
/// ```
/// use sd_schedulers::{Scheduler, samplers::EulerAncestral};
///
/// let scheduler = Scheduler::from(EulerAncestral { eta: 0.5, ..EulerAncestral::default() });
/// assert_eq!(serde_json::to_string(&scheduler)?, r#"{"euler-a":{"eta":0.5}}"#);
/// assert!(serde_json::from_str::<Scheduler>(r#"{"euler-a": {"eat": 0.5}}"#).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
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
/// use sd_schedulers::{Scheduler, samplers::Euler};
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
        let sampler = match self {
            Self::Named(row) => return serializer.serialize_str(row.name),
            Self::Custom(sampler) => sampler,
        };
        let written = Written::new(&**sampler).ok_or_else(|| {
            ser::Error::custom(format!(
                "the sampler {sampler:?} cannot be written: its type is not one of this crate's, or \
                 an option is not finite"
            ))
        })?;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(written.row.name, &written.options)?;
        if let Some(conventions) = &written.conventions {
            map.serialize_entry(CONVENTIONS, conventions)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Scheduler {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrOptions)
    }
}

/// The key of the conventions in the serde form of a scheduler. No row has this name.
const CONVENTIONS: &str = "conventions";

/// The serde form of a sampler.
struct Written {
    /// The row whose sampler has the same type and the fewest other options.
    row: &'static SamplerRow,
    /// The options that differ from the sampler of the row.
    options: Map<String, Value>,
    /// The conventions, if they are not the sampler's.
    conventions: Option<Conventions>,
}

impl Written {
    /// Returns `None` for a sampler that no row has the type of, and for options that JSON cannot
    /// represent.
    fn new(sampler: &dyn Sampler) -> Option<Self> {
        let wrapped = (sampler as &dyn Any).downcast_ref::<WithConventions>();
        let (sampler, conventions) = match wrapped {
            Some(wrapped) => (&*wrapped.sampler, Some(wrapped.conventions)),
            None => (sampler, None),
        };
        let in_row = |row: &'static SamplerRow| {
            let (mut options, usual) = (map((row.options)(sampler)?), usual_options(row));
            options.retain(|key, value| usual.get(key) != Some(value));
            Some(Self {
                row,
                options,
                conventions,
            })
        };
        let rows = TABLE.iter().filter_map(in_row);
        let written = rows.min_by_key(|written| written.options.len())?;
        // JSON has no infinities, for example.
        let read = sampler_of(written.row, written.options.clone()).ok()?;
        (*read == *sampler).then_some(written)
    }
}

fn usual_options(row: &SamplerRow) -> Map<String, Value> {
    let sampler = (row.build)(&SchedulerConfig::default());
    map((row.options)(&*sampler).unwrap_or_default())
}

/// Returns the options as a map. A sampler without options has `null`.
fn map(options: Value) -> Map<String, Value> {
    match options {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Returns the sampler of a row with other options.
fn sampler_of(
    row: &SamplerRow,
    options: Map<String, Value>,
) -> Result<Arc<dyn Sampler>, serde_json::Error> {
    let mut all = usual_options(row);
    if all.is_empty() && options.is_empty() {
        return (row.read)(Value::Null);
    }
    all.extend(options);
    (row.read)(Value::Object(all))
}

struct NameOrOptions;

impl<'de> Visitor<'de> for NameOrOptions {
    type Value = Scheduler;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(concat!(
            r#"a scheduler: its name, such as "dpmpp-2m", "#,
            r#"or an object, such as {"euler-a": {"eta": 0.5}}"#
        ))
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Scheduler, E> {
        name.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Scheduler, A::Error> {
        let mut sampler = None;
        let mut conventions = None;
        while let Some(key) = entries.next_key::<String>()? {
            if key == CONVENTIONS {
                conventions = Some(entries.next_value::<Conventions>()?);
                continue;
            }
            let names = TABLE.iter().map(|row| row.name);
            let row = by_name(&key).ok_or_else(|| unknown("scheduler", &key, names));
            let row = row.map_err(de::Error::custom)?;
            if sampler.is_some() {
                return Err(de::Error::custom("two schedulers, expected one"));
            }
            let Value::Object(options) = entries.next_value()? else {
                let found = de::Unexpected::Other("another value");
                return Err(de::Error::invalid_type(found, &"an object of options"));
            };
            let read = sampler_of(row, options);
            sampler = Some(read.map_err(|error| {
                de::Error::custom(format!("the options of {}: {error}", row.name))
            })?);
        }
        let sampler = sampler.ok_or_else(|| de::Error::invalid_length(0, &self))?;
        Ok(Scheduler::Custom(match conventions {
            Some(conventions) => WithConventions::wrap(sampler, conventions),
            None => sampler,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        NoiseSchedule, Prediction,
        ladders::NoisePath,
        samplers::{Churn, Ddim, DpmPlusPlus2M, Euler, EulerAncestral, UniPc},
    };

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
        let json = serde_json::to_string(&Scheduler::from(by_name("dpmpp-2m").unwrap())).unwrap();
        assert_eq!(json, "\"dpmpp-2m\"");
        assert!(
            matches!(serde_json::from_str(&json).unwrap(), Scheduler::Named(row) if row.name == "dpmpp-2m")
        );
        assert!(serde_json::from_str::<Scheduler>("\"x\"").is_err());
    }

    #[test]
    fn options_and_conventions_survive_serde() {
        let back = |sampler: Arc<dyn Sampler>| {
            let json = serde_json::to_string(&Scheduler::Custom(sampler)).unwrap();
            let read: Scheduler = serde_json::from_str(&json).unwrap();
            (json, read.sampler(&SchedulerConfig::default()))
        };
        let mut written = 0;
        for row in TABLE {
            let webui = row.of_webui.iter().map(|of_webui| (of_webui.build)());
            let comfyui = row.of_comfyui.iter().map(|known| (known.build)());
            for sampler in webui.chain(comfyui) {
                let (json, read) = back(Arc::clone(&sampler));
                assert!(*read == *sampler, "{json}");
                let conventions = Conventions {
                    drop_next_to_last: true,
                    min_steps: 3,
                    ..sampler.conventions()
                };
                let wrapped = WithConventions::wrap(sampler, conventions);
                let (json, read) = back(Arc::clone(&wrapped));
                assert!(*read == *wrapped, "{json}");
                written += 1;
            }
        }
        assert_eq!(written, 20 + 33);
        let (json, read) = back(Arc::new(DpmPlusPlus2M));
        assert_eq!(json, r#"{"dpmpp-2m":{}}"#);
        assert!(read.equals(&DpmPlusPlus2M));
        let bent = UniPc {
            uncorrected: UniPc::uncorrected_at([0, 3, 200]),
            ..UniPc::default()
        };
        let (json, read) = back(Arc::new(bent));
        assert_eq!(json, r#"{"unipc":{"uncorrected":[0,3,127]}}"#);
        assert!(read.equals(&bent));
        let churn = Churn {
            s_churn: 2.0,
            ..Churn::default()
        };
        let (json, read) = back(Arc::new(Euler { churn }));
        assert!(json.contains(r#""s_tmax":"inf""#), "{json}");
        assert!(read.equals(&Euler { churn }));
        let short: Scheduler =
            serde_json::from_str(r#"{"Euler": {"churn": {"s_churn": 2}}}"#).unwrap();
        assert!(
            short
                .sampler(&SchedulerConfig::default())
                .equals(&Euler { churn })
        );
    }

    #[test]
    fn what_json_cannot_represent_is_refused() {
        let infinite = EulerAncestral {
            eta: f32::INFINITY,
            ..HALF
        };
        assert!(serde_json::to_string(&Scheduler::from(infinite)).is_err());
        for (json, expected) in [
            ("{}", "expected a scheduler: its name"),
            (r#"{"conventions": {}}"#, "expected a scheduler: its name"),
            (
                r#"{"eulr": {}}"#,
                "\"eulr\" is no scheduler, expected euler",
            ),
            (
                r#"{"euler-a": {"eat": 1}}"#,
                "the options of euler-a: unknown field `eat`",
            ),
            (r#"{"dpmpp-2m": {"eta": 1}}"#, "the options of dpmpp-2m: "),
            (r#"{"euler": {}, "heun": {}}"#, "two schedulers"),
            (
                r#"{"unipc": {"uncorrected": [128]}}"#,
                "bit 128, expected 0 to 127",
            ),
            ("[]", "expected a scheduler"),
        ] {
            let error = serde_json::from_str::<Scheduler>(json)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
