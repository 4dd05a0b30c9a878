//! The problems in the JSON of a request.

use sd_text::outside::{list, printable};
use serde_json::{Error, Map, Value};
use serde_path_to_error::{Path, Segment};

use crate::{Problem, Problems, Request};

/// Returns the problems of a text that serde refused with `error`.
pub(crate) fn problems(text: &str, error: &Error) -> Problems {
    let whole = |expected, found| Problems(vec![Problem::new("request", expected, found)]);
    let fields = match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => fields,
        Ok(other) => {
            return whole(
                r#"an object, such as {"prompt": "a fox"}"#,
                other.to_string(),
            );
        }
        Err(error) => return whole("a JSON object", format!("not JSON ({error})")),
    };
    let mut problems = Vec::new();
    if !fields.contains_key("prompt") {
        problems.push(Problem::new("prompt", "a text", "missing"));
    }
    let mut unknown = Vec::new();
    let mut known = String::new();
    for (name, value) in fields {
        // Each field is read in a request without the others, to find the problems of all fields.
        // Only the prompt has no default.
        let mut alone = Map::from_iter([("prompt".to_owned(), "".into())]);
        alone.insert(name.clone(), value);
        let mut alone = Value::Object(alone);
        let Some((path, message)) = refused(&alone) else {
            continue;
        };
        match message.rsplit_once(", expected ") {
            Some((_, fields)) if path.iter().count() == 1 && is_unknown_field(&message) => {
                unknown.push(name);
                known = fields.to_owned();
            }
            _ => problems.push(problem(&mut alone, &path, &message)),
        }
    }
    if !unknown.is_empty() {
        problems.push(Problem::new(list(unknown), known, "unknown"));
    }
    if problems.is_empty() {
        // The cause is invisible in a `Value`, such as a field that occurs twice.
        return whole(
            "an object whose fields can be read",
            format!("refused ({error})"),
        );
    }
    Problems(problems)
}

/// Returns the path and the message of the error with which a request is refused.
fn refused(value: &Value) -> Option<(Path, String)> {
    if let Err(error) = serde_path_to_error::deserialize::<_, Request>(value) {
        return Some((error.path().clone(), error.into_inner().to_string()));
    }
    // A number beyond the range of its type becomes infinity in a `Value`, but is refused in a
    // text.
    let text = value.to_string();
    let mut text = serde_json::Deserializer::from_str(&text);
    let error = serde_path_to_error::deserialize::<_, Request>(&mut text).err()?;
    let (path, message) = (error.path().clone(), error.into_inner().to_string());
    let message = message.split(" at line ").next().unwrap_or_default();
    Some((path, message.to_owned()))
}

fn is_unknown_field(message: &str) -> bool {
    message.starts_with("unknown field")
}

/// Returns the problem with a value within `request`. serde's message is split up and reworded for
/// people who do not know Rust.
fn problem(request: &mut Value, path: &Path, message: &str) -> Problem {
    let what = printable(path);
    let missing = message.strip_prefix("missing field `");
    if let Some(field) = missing.and_then(|rest| rest.strip_suffix('`')) {
        return Problem::new(format!("{what}.{field}"), "a value", "missing");
    }
    let expected = match message.rsplit_once(", expected ") {
        Some((_, expected)) => expected,
        None => message.strip_prefix("expected ").unwrap_or(message),
    };
    if is_unknown_field(message) || message.starts_with("unknown option") {
        return Problem::new(what, expected, "unknown");
    }
    if expected == "newtype variant" || expected == "struct variant" {
        // The path ends with the variant's name, which was found in place of an object.
        let (what, name) = what.rsplit_once('.').unwrap_or(("request", &what));
        let expected = format!("an object, {{\"{name}\": …}}");
        return Problem::new(what.to_owned(), expected, format!("\"{name}\" alone"));
    }
    let found = at(request, path).map(|value| value.to_string());
    let expected = match expected {
        "usize" | "u64" => "a whole number, 0 or more".to_owned(),
        "u32" => format!("a whole number, 0 to {}", u32::MAX),
        "a nonzero usize" => "a whole number, 1 or more".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array".to_owned(),
        "number out of range" => format!("a number of at most {:e} in size", f32::MAX),
        "unit" => "the name alone, as a string".to_owned(),
        "string or map" => one_of(request, path),
        structure if structure.starts_with("struct ") => "an object".to_owned(),
        other => other.to_owned(),
    };
    Problem::new(what, expected, found.unwrap_or_else(|| message.to_owned()))
}

/// Returns the names of an enum, for a value that is not a name. serde lists the names only for an
/// unknown name.
fn one_of(request: &mut Value, path: &Path) -> String {
    if let Some(value) = at(request, path) {
        *value = "?".into();
    }
    let names = refused(request).and_then(|(_, message)| {
        let (_, names) = message.rsplit_once(", expected ")?;
        Some(names.to_owned())
    });
    let names = names.unwrap_or_else(|| "a name".to_owned());
    format!("{names}, as a string or as the key of an object")
}

/// Returns the value at a path.
fn at<'a>(value: &'a mut Value, path: &Path) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, segment| match segment {
        Segment::Map { key } | Segment::Enum { variant: key } => value.get_mut(key),
        Segment::Seq { index } => value.get_mut(index),
        Segment::Unknown => None,
    })
}
