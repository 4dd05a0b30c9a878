//! The serde form of ladders: a name, or an object with one name and its options. Missing options
//! have the values of the named ladder.

use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess,
    Visitor,
};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Flow, Ladder, Shape, Timing};
use crate::printable::printable;

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
            _ => map.serialize_entry(self.kind(), &OptionsOf(self))?,
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
        f.write_str(
            r#"a ladder: its name, such as "karras", or an object, such as {"karras": {"rho": 5.0}} or {"sigmas": [14.6, 2.0, 0.0]}"#,
        )
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
            // `lu` is not a named ladder, because its sigmas equal the ones of `exponential`.
            "lu" => map.next_value_seed(Onto(Ladder::shaped(Shape::Lu)))?,
            name => {
                let ladder = name.parse().map_err(A::Error::custom)?;
                map.next_value_seed(Onto(ladder))?
            }
        };
        match map.next_key::<String>()? {
            None => Ok(ladder),
            Some(second) => Err(de::Error::custom(format!(
                "two ladders `{}` and `{}`, expected one ladder",
                printable(name),
                printable(second)
            ))),
        }
    }
}

/// Reads an object of options into a ladder.
struct Onto(Ladder);

impl<'de> DeserializeSeed<'de> for Onto {
    type Value = Ladder;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Ladder, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Onto {
    type Value = Ladder;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of options: {}", Names::of(&self.0))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ladder, A::Error> {
        let Self(mut ladder) = self;
        let names = Names::of(&ladder);
        let mut seen = Vec::new();
        while let Some(name) = map.next_key_seed(&names)? {
            if seen.contains(&name) {
                return Err(de::Error::duplicate_field(name));
            }
            seen.push(name);
            let mut read = Read {
                name,
                map: &mut map,
                result: Ok(()),
            };
            visit(&mut ladder, &mut read);
            read.result?;
        }
        Ok(ladder)
    }
}

/// The names of a ladder's options.
struct Names {
    ladder: &'static str,
    options: Vec<&'static str>,
}

impl Names {
    fn of(ladder: &Ladder) -> Self {
        let mut names = Self {
            ladder: ladder.kind(),
            options: Vec::new(),
        };
        visit(&mut ladder.clone(), &mut names);
        names
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.options[..] {
            [] => write!(f, "`{}` has none", self.ladder),
            options => write!(f, "`{}` has {}", self.ladder, options.join(", ")),
        }
    }
}

/// Reads one of the names.
impl<'de> DeserializeSeed<'de> for &Names {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        let found = String::deserialize(deserializer)?;
        let known = self.options.iter().find(|option| **option == found);
        known.copied().ok_or_else(|| {
            let found = printable(found);
            D::Error::custom(format!(
                "unknown option `{found}`, expected an option of the ladder: {self}"
            ))
        })
    }
}

/// A ladder whose options are written as an object.
struct OptionsOf<'a>(&'a Ladder);

impl Serialize for OptionsOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut write = Write {
            map: serializer.serialize_map(None)?,
            result: Ok(()),
        };
        visit(&mut self.0.clone(), &mut write);
        write.result?;
        write.map.end()
    }
}

/// What to do with each option of a ladder.
trait Visit {
    fn one<T: Serialize + DeserializeOwned>(&mut self, name: &'static str, option: &mut T);

    /// Visits an option that may be missing.
    fn maybe<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &'static str,
        option: &mut Option<T>,
    );
}

impl Visit for Names {
    fn one<T: Serialize + DeserializeOwned>(&mut self, name: &'static str, _: &mut T) {
        self.options.push(name);
    }

    fn maybe<T: Serialize + DeserializeOwned>(&mut self, name: &'static str, _: &mut Option<T>) {
        self.options.push(name);
    }
}

struct Write<M: SerializeMap> {
    map: M,
    result: Result<(), M::Error>,
}

impl<M: SerializeMap> Visit for Write<M> {
    fn one<T: Serialize + DeserializeOwned>(&mut self, name: &'static str, option: &mut T) {
        if self.result.is_ok() {
            self.result = self.map.serialize_entry(name, option);
        }
    }

    fn maybe<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &'static str,
        option: &mut Option<T>,
    ) {
        if let Some(option) = option {
            self.one(name, option);
        }
    }
}

/// Reads the value of the option with this name. A null value counts as missing.
struct Read<'a, 'de, A: MapAccess<'de>> {
    name: &'static str,
    map: &'a mut A,
    result: Result<(), A::Error>,
}

impl<'de, A: MapAccess<'de>> Read<'_, 'de, A> {
    fn value<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        if name != self.name {
            return None;
        }
        let value = self.map.next_value();
        value.unwrap_or_else(|error| {
            self.result = Err(error);
            None
        })
    }
}

impl<'de, A: MapAccess<'de>> Visit for Read<'_, 'de, A> {
    fn one<T: Serialize + DeserializeOwned>(&mut self, name: &'static str, option: &mut T) {
        if let Some(value) = self.value(name) {
            *option = value;
        }
    }

    fn maybe<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &'static str,
        option: &mut Option<T>,
    ) {
        if let Some(value) = self.value(name) {
            *option = Some(value);
        }
    }
}

/// Visits every option that a ladder has.
fn visit(ladder: &mut Ladder, walk: &mut impl Visit) {
    match ladder {
        Ladder::Timed(Timing::BetaTimesteps { alpha, beta }) => {
            walk.one("alpha", alpha);
            walk.one("beta", beta);
        }
        Ladder::Timed(Timing::Lcm {
            original_steps,
            strength,
        }) => {
            walk.one("original_steps", original_steps);
            walk.one("strength", strength);
        }
        Ladder::Timed(Timing::LcmEven { original_steps }) => {
            walk.one("original_steps", original_steps);
        }
        Ladder::Shaped { shape, over } => {
            visit_shape(shape, walk);
            walk.maybe("over", &mut over.spacing);
            walk.maybe("sigma_min", &mut over.sigma_min);
            walk.maybe("sigma_max", &mut over.sigma_max);
        }
        Ladder::Vp(vp) => {
            walk.one("beta_d", &mut vp.beta_d);
            walk.one("beta_min", &mut vp.beta_min);
            walk.one("epsilon", &mut vp.epsilon);
        }
        Ladder::LinearQuadratic(curve) => {
            walk.one("threshold", &mut curve.threshold);
            walk.maybe("linear_steps", &mut curve.linear_steps);
        }
        Ladder::AlignYourSteps(table) => {
            walk.one("three_digits", &mut table.three_digits);
            walk.one("keep_last", &mut table.keep_last);
        }
        Ladder::Gits { coefficient } => walk.one("coefficient", coefficient),
        Ladder::Flow(Flow {
            levels,
            shift,
            terminal,
        }) => {
            walk.one("levels", levels);
            walk.one("shift", shift);
            walk.maybe("terminal", terminal);
        }
        Ladder::Spaced(_) | Ladder::Timed(_) | Ladder::Sigmas(_) | Ladder::Timesteps(_) => {}
    }
}

fn visit_shape(shape: &mut Shape, walk: &mut impl Visit) {
    match shape {
        Shape::Karras { rho } | Shape::Polyexponential { rho } => walk.one("rho", rho),
        Shape::Beta { alpha, beta } => {
            walk.one("alpha", alpha);
            walk.one("beta", beta);
        }
        Shape::KlOptimal { ends_at_lowest } => walk.one("ends_at_lowest", ends_at_lowest),
        Shape::Laplace { mu, beta } => {
            walk.one("beta", beta);
            walk.one("mu", mu);
        }
        Shape::Exponential | Shape::Lu => {}
    }
}
