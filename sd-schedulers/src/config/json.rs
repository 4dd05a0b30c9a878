use std::fmt::Display;

use serde_json::{Map, Value};

use super::ConfigError;
use crate::{Prediction, printable::printable};

/// The keys of a configuration. A key whose value is null counts as missing.
pub(super) struct Keys(Map<String, Value>);

impl Keys {
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let parsed = serde_json::from_str(&without_infinities(text));
        parsed
            .map(Self)
            .map_err(|error| ConfigError::Json(printable(error.to_string())))
    }

    /// Returns the names of all keys, including keys whose value is null.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns the value of a key, or `None` if it is missing or null. Returns an error if `read`
    /// rejects it.
    pub(super) fn get<'a, T>(
        &'a self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.refuse(key, expected)),
            },
        }
    }

    /// Whether a key has this boolean value. A value of another type counts as missing.
    pub(super) fn is(&self, key: &str, flag: bool) -> bool {
        self.0.get(key).and_then(Value::as_bool) == Some(flag)
    }

    pub(super) fn is_null(&self, key: &str) -> bool {
        self.0.get(key).is_none_or(Value::is_null)
    }

    /// Returns the prediction of an EDM model.
    pub(super) fn edm(&self) -> Result<Prediction, ConfigError> {
        let signs = [("epsilon", false), ("v_prediction", true)];
        Ok(Prediction::Edm {
            sigma_data: self.positive("sigma_data")?.unwrap_or(0.5) as f32,
            v: self.one_of("prediction_type", &signs)?.unwrap_or(false),
        })
    }

    pub(super) fn text(&self, key: &'static str) -> Result<Option<&str>, ConfigError> {
        self.get(key, "a string", Value::as_str)
    }

    pub(super) fn flag(&self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        let flag = self.get(key, "a boolean", Value::as_bool)?;
        Ok(flag.unwrap_or(default))
    }

    pub(super) fn number(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        self.get(key, "a number", Value::as_f64)
    }

    pub(super) fn positive(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        self.get(key, "a number above 0", |value| {
            value.as_f64().filter(|&number| number > 0.0)
        })
    }

    pub(super) fn integer(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        self.get(key, "a non-negative integer", |value| {
            usize::try_from(value.as_u64()?).ok()
        })
    }

    /// Returns the meaning of a key whose value is one of the known strings.
    pub(super) fn one_of<T: Copy>(
        &self,
        key: &'static str,
        known: &[(&str, T)],
    ) -> Result<Option<T>, ConfigError> {
        self.get(key, &listed(known), |value| {
            let text = value.as_str()?;
            let found = known.iter().find(|(name, _)| *name == text);
            found.map(|&(_, meaning)| meaning)
        })
    }

    /// Returns the error for a key whose value in the file is wrong.
    pub(super) fn refuse(&self, key: &'static str, expected: impl Into<String>) -> ConfigError {
        let found = self.0.get(key);
        let found = found.map_or("nothing".to_owned(), |value| printable(value.to_string()));
        wrong(key, expected, found)
    }
}

/// Returns the error for a key with a wrong value.
pub(super) fn wrong(
    key: &'static str,
    expected: impl Into<String>,
    found: impl Display,
) -> ConfigError {
    ConfigError::Value {
        key,
        expected: expected.into(),
        found: found.to_string(),
    }
}

/// Formats the names as in `a`, `b` or `c`.
fn listed<T>(known: &[(&str, T)]) -> String {
    let mut text = String::new();
    for (i, (name, _)) in known.iter().enumerate() {
        let joint = match known.len() - i {
            _ if i == 0 => "",
            1 => " or ",
            _ => ", ",
        };
        text.push_str(&format!("{joint}`{name}`"));
    }
    text
}

pub(super) fn numbers(value: &Value) -> Option<Vec<f32>> {
    let numbers = value.as_array()?.iter();
    numbers
        .map(|number| Some(number.as_f64()? as f32))
        .collect()
}

/// Replaces `NaN` and the infinities that Python writes into JSON by null, except inside strings.
pub fn without_infinities(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    let (mut quoted, mut escaped) = (false, false);
    while let Some(next) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"]
            .into_iter()
            .find(|word| !quoted && rest.starts_with(word));
        match word {
            Some(_) => out.push_str("null"),
            None => out.push(next),
        }
        quoted ^= next == '"' && !escaped;
        escaped = next == '\\' && quoted && !escaped;
        rest = &rest[word.map_or(next.len_utf8(), str::len)..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_outside_of_strings_are_null() {
        let text = r#"{"a": -Infinity, "é\"NaN": [NaN, Infinity], "b": "Infinity"}"#;
        let expected = r#"{"a": null, "é\"NaN": [null, null], "b": "Infinity"}"#;
        assert_eq!(without_infinities(text), expected);
    }

    #[test]
    fn choices_are_listed() {
        assert_eq!(listed(&[("a", 1)]), "`a`");
        assert_eq!(listed(&[("a", 1), ("b", 2)]), "`a` or `b`");
        assert_eq!(listed(&[("a", 1), ("b", 2), ("c", 3)]), "`a`, `b` or `c`");
    }
}
