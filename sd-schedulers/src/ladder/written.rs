//! Ladders in serde: a name, or an object of one name and its options, of which those that are missing are the named ladder's.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::{Flow, FlowLevels, Ladder, Shape, Shift, Spacing, Timing};

impl Serialize for Ladder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(name) = self.name() {
            return serializer.serialize_str(name);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::Sigmas(values) | Self::Timesteps(values) => {
                map.serialize_entry(self.kind(), &values[..])?;
            }
            _ => map.serialize_entry(self.kind(), &Options::of(self))?,
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Ladder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

struct Written;

impl<'de> Visitor<'de> for Written {
    type Value = Ladder;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a ladder's name or an object of one, {"karras": {"rho": …, "over": …}}"#)
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Ladder, E> {
        name.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ladder, A::Error> {
        let Some(name) = map.next_key::<String>()? else {
            return Err(de::Error::invalid_length(0, &self));
        };
        let ladder = match name.as_str() {
            "sigmas" => Ladder::sigmas(map.next_value::<Vec<f32>>()?),
            "timesteps" => Ladder::timesteps(map.next_value::<Vec<f32>>()?),
            name => {
                let ladder = match name {
                    // Not among the named ones: its sigmas are those of `exponential`.
                    "lu" => Ladder::shaped(Shape::Lu),
                    name => name.parse::<Ladder>().map_err(A::Error::custom)?,
                };
                let options = map.next_value::<Options>()?;
                options.onto(ladder).map_err(A::Error::custom)?
            }
        };
        match map.next_key::<String>()? {
            None => Ok(ladder),
            Some(second) => Err(de::Error::custom(format!(
                "expected a ladder's name or an object of one, found `{name}` and `{second}`"
            ))),
        }
    }
}

/// The options of all ladders.
#[derive(Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    rho: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beta: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mu: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_at_lowest: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    over: Option<Spacing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigma_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigma_max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_steps: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beta_d: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beta_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epsilon: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linear_steps: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    three_digits: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_last: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    coefficient: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    levels: Option<FlowLevels>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shift: Option<Shift>,
    #[serde(skip_serializing_if = "Option::is_none")]
    terminal: Option<f64>,
}

impl Options {
    /// All that a ladder has.
    fn of(ladder: &Ladder) -> Self {
        let mut options = Self::default();
        options.visit(&mut ladder.clone(), Walk::Write);
        options
    }

    /// The ladder with these options instead of its own.
    fn onto(mut self, mut ladder: Ladder) -> Result<Ladder, String> {
        self.visit(&mut ladder, Walk::Read);
        if self == Self::default() {
            return Ok(ladder);
        }
        let left = match serde_json::to_value(&self) {
            Ok(Value::Object(left)) => left.keys().cloned().collect::<Vec<_>>().join(", "),
            _ => String::new(),
        };
        Err(format!("`{}` has no option {left}", ladder.kind()))
    }

    /// Goes over the options that the ladder has.
    fn visit(&mut self, ladder: &mut Ladder, walk: Walk) {
        match ladder {
            Ladder::Timed(Timing::BetaTimesteps { alpha, beta }) => {
                walk.one(&mut self.alpha, alpha);
                walk.one(&mut self.beta, beta);
            }
            Ladder::Timed(Timing::Lcm {
                original_steps,
                strength,
            }) => {
                walk.one(&mut self.original_steps, original_steps);
                walk.one(&mut self.strength, strength);
            }
            Ladder::Timed(Timing::LcmEven { original_steps }) => {
                walk.one(&mut self.original_steps, original_steps);
            }
            Ladder::Shaped { shape, over } => {
                self.visit_shape(shape, walk);
                walk.maybe(&mut self.over, &mut over.spacing);
                walk.maybe(&mut self.sigma_min, &mut over.sigma_min);
                walk.maybe(&mut self.sigma_max, &mut over.sigma_max);
            }
            Ladder::Vp(vp) => {
                walk.one(&mut self.beta_d, &mut vp.beta_d);
                walk.one(&mut self.beta_min, &mut vp.beta_min);
                walk.one(&mut self.epsilon, &mut vp.epsilon);
            }
            Ladder::LinearQuadratic(curve) => {
                walk.one(&mut self.threshold, &mut curve.threshold);
                walk.maybe(&mut self.linear_steps, &mut curve.linear_steps);
            }
            Ladder::AlignYourSteps(table) => {
                walk.one(&mut self.three_digits, &mut table.three_digits);
                walk.one(&mut self.keep_last, &mut table.keep_last);
            }
            Ladder::Gits { coefficient } => walk.one(&mut self.coefficient, coefficient),
            Ladder::Flow(Flow {
                levels,
                shift,
                terminal,
            }) => {
                walk.one(&mut self.levels, levels);
                walk.one(&mut self.shift, shift);
                walk.maybe(&mut self.terminal, terminal);
            }
            Ladder::Spaced(_) | Ladder::Timed(_) | Ladder::Sigmas(_) | Ladder::Timesteps(_) => {}
        }
    }

    fn visit_shape(&mut self, shape: &mut Shape, walk: Walk) {
        match shape {
            Shape::Karras { rho } | Shape::Polyexponential { rho } => walk.one(&mut self.rho, rho),
            Shape::Beta { alpha, beta } => {
                walk.one(&mut self.alpha, alpha);
                walk.one(&mut self.beta, beta);
            }
            Shape::KlOptimal { ends_at_lowest } => {
                walk.one(&mut self.ends_at_lowest, ends_at_lowest);
            }
            Shape::Laplace { mu, beta } => {
                walk.one(&mut self.mu, mu);
                walk.one(&mut self.beta, beta);
            }
            Shape::Exponential | Shape::Lu => {}
        }
    }
}

/// Which way an option goes.
#[derive(Clone, Copy)]
enum Walk {
    /// Out of what was read, onto the ladder.
    Read,
    /// From the ladder to what is written.
    Write,
}

impl Walk {
    fn one<T: Clone>(self, option: &mut Option<T>, field: &mut T) {
        match self {
            Self::Write => *option = Some(field.clone()),
            Self::Read => *field = option.take().unwrap_or_else(|| field.clone()),
        }
    }

    fn maybe<T: Clone>(self, option: &mut Option<T>, field: &mut Option<T>) {
        match self {
            Self::Write => option.clone_from(field),
            Self::Read => *field = option.take().or_else(|| field.clone()),
        }
    }
}
