//! Typed access to the keys of a component's `config.json`. A missing or null key gives the
//! reference implementation's default.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use sd_schedulers::config::without_infinities;
use sd_text::outside::{self, printable};
use serde_json::{Map, Value};

use crate::Error;

/// The largest configuration file that is read, in bytes. Published files have a few thousand
/// bytes; a scheduler's file may list a beta for each of at most 100,000 training timesteps.
pub(crate) const MOST_CONFIG: u64 = 4 << 20;
/// The longest list that is read. A network has at most 16 levels.
const MOST_ITEMS: usize = 64;

/// The accepted sizes. Real models stay far below the limit. Beyond it, arithmetic could overflow
/// or memory run out.
pub(crate) const SIZE: RangeInclusive<usize> = 1..=1 << 20;

/// A JSON object and the file that it was read from.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Config {
    /// Reads `path`, which must contain a JSON object in at most `most` bytes. The infinities that
    /// Python writes are read as null.
    pub fn open(path: &Path, most: u64) -> Result<Self, Error> {
        Self::parse(path, &read_text(path, most)?)
    }

    /// Like [`open`](Self::open), with the text of `path` already read.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let value = serde_json::from_str(&without_infinities(text));
        match value.map_err(Error::json(path))? {
            Value::Object(map) => Ok(Self {
                path: path.to_path_buf(),
                map,
            }),
            other => Err(Error::Config {
                path: path.to_path_buf(),
                key: "(the whole file)".into(),
                expected: "a JSON object".into(),
                found: short(&other),
            }),
        }
    }

    /// Creates the configuration that a file would have. Errors name `path`.
    pub fn of(path: &Path, map: Map<String, Value>) -> Self {
        Self {
            path: path.to_path_buf(),
            map,
        }
    }

    /// Replaces the value of a key.
    pub fn set(&mut self, key: &str, value: Value) {
        self.map.insert(key.to_owned(), value);
    }

    /// Returns the path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the whole object.
    pub fn map(&self) -> &Map<String, Value> {
        &self.map
    }

    /// Returns the whole object by value.
    pub fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// Formats the whole object as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.map).expect("an object with text keys")
    }

    /// Returns whether the file has the key, even with the value null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Returns the value of a key, or `None` if it is missing or null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Returns the object under `key`, if there is one.
    pub fn object(&self, key: &str) -> Option<&Map<String, Value>> {
        self.map.get(key).and_then(Value::as_object)
    }

    /// Returns the object under `key`, or this one if the key has no object.
    pub fn section(mut self, key: &str) -> Self {
        if let Some(Value::Object(section)) = self.map.get_mut(key) {
            self.map = std::mem::take(section);
        }
        self
    }

    /// Formats the value of `key` for a message.
    pub fn found(&self, key: &str) -> String {
        self.map.get(key).map_or("missing".into(), short)
    }

    /// Creates an error about the value of `key`.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.clone(),
            key: key.to_owned(),
            expected: expected.into(),
            found: self.found(key),
        }
    }

    /// Returns whether the key has a value that is not null.
    pub fn is_set(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Returns whether the key has the value null.
    pub fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// Returns a whole number in `range`, or `default` if the key is missing or null.
    pub fn usize(
        &self,
        key: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, Error> {
        let Some(value) = self.value(key) else {
            return Ok(default);
        };
        whole(value, &range).ok_or_else(|| {
            self.wrong(
                key,
                format!("a whole number from {} to {}", range.start(), range.end()),
            )
        })
    }

    /// Returns a positive, finite number, or `None` if the key is missing or null.
    pub fn positive(&self, key: &str) -> Result<Option<f32>, Error> {
        match self.finite(key)? {
            Some(value) if value <= 0.0 => Err(self.wrong(key, "a positive number")),
            value => Ok(value),
        }
    }

    /// Returns a finite number, or `None` if the key is missing or null.
    pub fn finite(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        finite(value)
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a finite number"))
    }

    /// Returns a boolean, or `default` if the key is missing or null.
    pub fn bool(&self, key: &str, default: bool) -> Result<bool, Error> {
        let Some(value) = self.value(key) else {
            return Ok(default);
        };
        value
            .as_bool()
            .ok_or_else(|| self.wrong(key, "true or false"))
    }

    /// Returns a string, or `default` if the key is missing or null.
    pub fn text<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, Error> {
        let Some(value) = self.value(key) else {
            return Ok(default);
        };
        value.as_str().ok_or_else(|| self.wrong(key, "a string"))
    }

    /// Returns a list of `count` finite numbers, or `None` if the key is missing or null.
    pub fn numbers(&self, key: &str, count: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let list = value.as_array().filter(|list| list.len() == count);
        let list = list.and_then(|list| list.iter().map(finite).collect());
        list.map(Some)
            .ok_or_else(|| self.wrong(key, format!("a list of {count} finite numbers")))
    }

    /// Returns a list of at most [`MOST_ITEMS`] strings, or `default` if the key is missing or
    /// null.
    pub fn texts<'a>(&'a self, key: &str, default: &[&'a str]) -> Result<Vec<&'a str>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(default.to_vec());
        };
        let list = value.as_array().filter(|list| list.len() <= MOST_ITEMS);
        let list = list.and_then(|list| list.iter().map(Value::as_str).collect());
        list.ok_or_else(|| self.wrong(key, format!("a list of at most {MOST_ITEMS} strings")))
    }

    /// Returns a list of at most [`MOST_ITEMS`] sizes, or `default` if the key is missing or null.
    pub fn sizes(&self, key: &str, default: &[usize]) -> Result<Vec<usize>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(default.to_vec());
        };
        let list = value.as_array().filter(|list| list.len() <= MOST_ITEMS);
        let list = list.and_then(|list| list.iter().map(|v| whole(v, &SIZE)).collect());
        list.ok_or_else(|| {
            let most = SIZE.end();
            self.wrong(
                key,
                format!("a list of at most {MOST_ITEMS} whole numbers from 1 to {most}"),
            )
        })
    }

    /// Returns one size for each of `count` levels. A single number applies to all levels.
    pub fn per_level(&self, key: &str, default: usize, count: usize) -> Result<Vec<usize>, Error> {
        match self.value(key) {
            Some(Value::Array(_)) => {
                let list = self.sizes(key, &[])?;
                if list.len() == count {
                    Ok(list)
                } else {
                    Err(self.wrong(
                        key,
                        format!("a number or a list of {count}, one for each block"),
                    ))
                }
            }
            _ => Ok(vec![self.usize(key, default, SIZE)?; count]),
        }
    }

    /// Returns a boolean for each of `count` levels. A single value applies to all levels. Default:
    /// false.
    pub fn flag_per_level(&self, key: &str, count: usize) -> Result<Vec<bool>, Error> {
        let wrong = || self.wrong(key, format!("true, false or a list of {count} of them"));
        match self.value(key) {
            Some(Value::Array(flags)) if flags.len() == count => {
                let flags = flags.iter().map(Value::as_bool).collect::<Option<_>>();
                flags.ok_or_else(wrong)
            }
            Some(Value::Array(_)) => Err(wrong()),
            _ => Ok(vec![self.bool(key, false)?; count]),
        }
    }

    /// Returns, for each of `count` levels, a number `0..=64` or a list of numbers, one for each
    /// layer. A single number applies to all levels. Default: 1.
    pub fn per_level_or_layer(&self, key: &str, count: usize) -> Result<Vec<PerLevel>, Error> {
        const LAYERS: RangeInclusive<usize> = 0..=64;
        let wrong = || {
            let expected = format!(
                "a number from {} to {} or a list of {count}, each a number or a list of numbers",
                LAYERS.start(),
                LAYERS.end()
            );
            self.wrong(key, expected)
        };
        let level = |value: &Value| match value {
            Value::Array(layers) if !layers.is_empty() && layers.len() <= *LAYERS.end() => {
                let layers = layers.iter().map(|value| whole(value, &LAYERS));
                layers.collect::<Option<_>>().map(PerLevel::Each)
            }
            value => whole(value, &LAYERS).map(PerLevel::Same),
        };
        match self.value(key) {
            None => Ok(vec![PerLevel::Same(1); count]),
            Some(Value::Array(levels)) if levels.len() == count => {
                let levels = levels.iter().map(level).collect::<Option<_>>();
                levels.ok_or_else(wrong)
            }
            Some(value) => {
                let layers = whole(value, &LAYERS).ok_or_else(wrong)?;
                Ok(vec![PerLevel::Same(layers); count])
            }
        }
    }

    /// Refuses a value that is not one of `allowed`, because the graphs do not support it. A
    /// missing or null key is always allowed.
    pub fn only(&self, key: &str, allowed: &[Value]) -> Result<(), Error> {
        match self.map.get(key) {
            Some(value) if !value.is_null() && !allowed.contains(value) => {
                let allowed: Vec<_> = allowed.iter().map(Value::to_string).collect();
                let expected = if allowed.is_empty() {
                    "null".to_owned()
                } else {
                    allowed.join(" or ")
                };
                Err(self.wrong(key, format!("{expected} (anything else is not supported)")))
            }
            _ => Ok(()),
        }
    }
}

/// Reads the text of a JSON file of at most `most` bytes.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String, Error> {
    outside::read_to_string(path, most).map_err(Error::io(path))
}

/// One number for all layers of a level, or one number for each layer.
#[derive(Debug, Clone)]
pub(crate) enum PerLevel {
    Same(usize),
    Each(Vec<usize>),
}

fn finite(value: &Value) -> Option<f32> {
    let number = value.as_f64()? as f32;
    number.is_finite().then_some(number)
}

fn whole(value: &Value, range: &RangeInclusive<usize>) -> Option<usize> {
    value
        .as_u64()
        .and_then(|v| usize::try_from(v).ok())
        .filter(|v| range.contains(v))
}

/// Formats a value for an error message, as at most one short line.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => printable(format_args!("{}…", &text[..end])),
        None => printable(text),
    }
}
