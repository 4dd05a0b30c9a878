//! A component's `config.json`: typed access by key, with the reference's default where a key is missing or null.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::Error;

/// The sizes that any real model stays far within; beyond them arithmetic or memory would end the program.
pub(crate) const SIZE: RangeInclusive<usize> = 1..=1 << 20;

/// A JSON object and the file it is from.
#[derive(Debug)]
pub(crate) struct Config {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Config {
    /// Reads `path`, which must hold a JSON object.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let value: Value = serde_json::from_str(&text).map_err(|source| Error::Json {
            path: path.to_path_buf(),
            source,
        })?;
        match value {
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

    /// The object under `key`, or this one where there is none.
    pub fn section(mut self, key: &str) -> Self {
        if let Some(Value::Object(section)) = self.map.get_mut(key) {
            self.map = std::mem::take(section);
        }
        self
    }

    /// An error about `key`.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = self.map.get(key).map_or("missing".into(), short);
        Error::Config {
            path: self.path.clone(),
            key: key.to_owned(),
            expected: expected.into(),
            found,
        }
    }

    /// Whether the key has a value that is not null.
    pub fn is_set(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Whether the key is there with the value null.
    pub fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

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

    /// A positive, finite number; none where the key is missing or null.
    pub fn positive(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.finite(key)? else {
            return Ok(None);
        };
        if value > 0.0 {
            Ok(Some(value))
        } else {
            Err(self.wrong(key, "a positive number"))
        }
    }

    /// A finite number; none where the key is missing or null.
    pub fn finite(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let number = value.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
        number
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a finite number"))
    }

    pub fn bool(&self, key: &str, default: bool) -> Result<bool, Error> {
        let Some(value) = self.value(key) else {
            return Ok(default);
        };
        value
            .as_bool()
            .ok_or_else(|| self.wrong(key, "true or false"))
    }

    pub fn text<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, Error> {
        let Some(value) = self.value(key) else {
            return Ok(default);
        };
        value.as_str().ok_or_else(|| self.wrong(key, "a string"))
    }

    /// What the file says its class is.
    pub fn class(&self) -> Option<&str> {
        self.value("_class_name").and_then(Value::as_str)
    }

    /// A list of so many finite numbers; none where the key is missing or null.
    pub fn numbers(&self, key: &str, count: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let number = |value: &Value| value.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
        let list = value.as_array().filter(|list| list.len() == count);
        let list = list.and_then(|list| list.iter().map(number).collect());
        list.map(Some)
            .ok_or_else(|| self.wrong(key, format!("a list of {count} finite numbers")))
    }

    /// A list of strings.
    pub fn texts<'a>(&'a self, key: &str, default: &[&'a str]) -> Result<Vec<&'a str>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(default.to_vec());
        };
        let list = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_str).collect());
        list.ok_or_else(|| self.wrong(key, "a list of strings"))
    }

    /// A list of sizes.
    pub fn sizes(&self, key: &str, default: &[usize]) -> Result<Vec<usize>, Error> {
        let Some(value) = self.value(key) else {
            return Ok(default.to_vec());
        };
        let list = value
            .as_array()
            .and_then(|list| list.iter().map(|v| whole(v, &SIZE)).collect());
        list.ok_or_else(|| {
            self.wrong(
                key,
                format!("a list of whole numbers from 1 to {}", SIZE.end()),
            )
        })
    }

    /// One size for each of `count` levels: a number stands for all of them, a list gives each its own.
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

    /// A number, 1 to 64 and by default 1, for each of `count` levels, or a list of numbers for the layers of a level. A
    /// number in the place of the list stands for all levels.
    pub fn per_level_or_layer(&self, key: &str, count: usize) -> Result<Vec<PerLevel>, Error> {
        const LAYERS: RangeInclusive<usize> = 1..=64;
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

    /// Refuses a key whose value is not one of `allowed`; missing counts as allowed. For what the graphs do not have.
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

    fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }
}

/// A number for all layers of a level, or one for each.
#[derive(Debug, Clone)]
pub(crate) enum PerLevel {
    Same(usize),
    Each(Vec<usize>),
}

fn whole(value: &Value, range: &RangeInclusive<usize>) -> Option<usize> {
    value
        .as_u64()
        .and_then(|v| usize::try_from(v).ok())
        .filter(|v| range.contains(v))
}

/// A value for an error message: at most one short line.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
