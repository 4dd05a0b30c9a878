//! The names of a pickle's tensors: the keys that lead to them, separated by dots.

use std::collections::HashSet;
use std::rc::Rc;

use super::value::{Id, Value};
use crate::outside::printable;

/// The deepest nesting of a tensor. A container that contains itself exceeds it.
const DEEPEST: usize = 64;
/// The most entries that are visited. If containers share containers, there can be many times more
/// entries than values.
const MOST_ENTRIES: usize = 1 << 22;
/// The most bytes of all names together.
const MOST_BYTES: usize = 64 << 20;

/// Returns the tensors in a value, in the order of the file, except those below the entry `except`.
pub(super) fn tensors(
    values: &[Value],
    root: Id,
    except: Option<Id>,
) -> Result<Vec<(String, Id)>, String> {
    let mut found = Vec::new();
    let (mut entries, mut bytes) = (0, 0);
    let mut open = vec![Open {
        id: root,
        within: "".into(),
        key: Key::Root,
        depth: 0,
    }];
    while let Some(next) = open.pop() {
        let name = next.name(values);
        bytes += name.len();
        if bytes > MOST_BYTES {
            return Err(format!(
                "the names of its tensors have more than {MOST_BYTES} bytes"
            ));
        }
        let value = &values[next.id.index()];
        if let Value::Tensor(_) = value {
            found.push((name, next.id));
            continue;
        }
        let Some(children) = children(value) else {
            continue;
        };
        entries += children.len();
        if entries > MOST_ENTRIES || next.depth == DEEPEST {
            return Err("its values contain each other too often or too deeply".to_owned());
        }
        let within: Rc<str> = name.into();
        for (id, key) in children.into_iter().rev() {
            let is_left_out = next.depth == 0 && Some(id) == except;
            let is_looked_at = matches!(
                values[id.index()],
                Value::Tensor(_) | Value::Dict(_) | Value::List(_) | Value::Tuple(_)
            );
            if is_looked_at && !is_left_out {
                open.push(Open {
                    id,
                    within: within.clone(),
                    key,
                    depth: next.depth + 1,
                });
            }
        }
    }
    let mut known = HashSet::new();
    match found.iter().find(|(name, _)| !known.insert(name.as_str())) {
        Some((name, _)) => Err(format!("it has two tensors named `{}`", printable(name))),
        None => Ok(found),
    }
}

/// Returns the values in a container, each with its key, or `None` for any other value.
fn children(value: &Value) -> Option<Vec<(Id, Key)>> {
    match value {
        Value::Dict(pairs) => {
            let pairs = pairs.iter().enumerate();
            Some(
                pairs
                    .map(|(place, &(key, value))| (value, Key::Of(key, place)))
                    .collect(),
            )
        }
        Value::List(items) | Value::Tuple(items) => {
            let items = items.iter().enumerate();
            Some(
                items
                    .map(|(place, &item)| (item, Key::Place(place)))
                    .collect(),
            )
        }
        _ => None,
    }
}

/// A value that still has to be visited.
struct Open {
    id: Id,
    within: Rc<str>,
    key: Key,
    depth: usize,
}

enum Key {
    Root,
    /// A key of a dictionary, and its position.
    Of(Id, usize),
    Place(usize),
}

impl Open {
    fn name(&self, values: &[Value]) -> String {
        let key = match self.key {
            Key::Root => return String::new(),
            Key::Place(place) => place.to_string(),
            Key::Of(key, place) => match &values[key.index()] {
                Value::Text(text) => text.clone(),
                Value::Int(number) => number.to_string(),
                Value::Inert(global) => global.to_string(),
                // This key cannot be part of a name.
                _ => format!("#{place}"),
            },
        };
        match self.within.is_empty() {
            true => key,
            false => format!("{}.{key}", self.within),
        }
    }
}
