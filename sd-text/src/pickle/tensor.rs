//! How the machine builds storages and tensors.

use safetensors::Dtype;

use super::globals::{Kind, Rebuild};
use super::machine::{Cell, Machine, Stop};
use super::storage::{Raw, StorageRef};
use super::value::{Id, Value};
use crate::outside::printable;

/// The most dimensions. torch has no such limit, but no weights have as many.
const MOST_DIMENSIONS: usize = 32;
/// The longest name of a storage in bytes. torch names storages by numbers.
const LONGEST_KEY: usize = 64;

impl Machine<'_> {
    /// Returns what a persistent id names: a storage, or the class of a module. The legacy format
    /// stores such a class with its source code, so that a reader can compare it.
    pub fn persistent(&mut self, id: Id) -> Result<Id, Stop> {
        let Cell::Value(Value::Tuple(items)) = self.cell(id) else {
            let found = self.cell(id).what();
            return Err(format!("a storage named by {found}, expected a tuple").into());
        };
        let is_module =
            |tag| matches!(self.cell(tag), Cell::Value(Value::Text(text)) if text == "module");
        if let &[tag, class, _, _] = &items[..]
            && is_module(tag)
        {
            return match self.cell(class) {
                Cell::Global { .. } => Ok(class),
                other => Err(format!("a module that is {}, expected a class", other.what()).into()),
            };
        }
        let storage = self.storage(id)?;
        let place = self.storages.len();
        self.storages.push(storage);
        Ok(self.add_cell(Cell::Storage(place)))
    }

    fn storage(&mut self, id: Id) -> Result<StorageRef, Stop> {
        let items = self.arguments(id)?;
        let [tag, class, key, location, count, view @ ..] = &items[..] else {
            let problem = format!("a storage of {} values, expected 5 or 6", items.len());
            return Err(problem.into());
        };
        if !matches!(self.cell(*tag), Cell::Value(Value::Text(text)) if text == "storage") {
            let problem = "a persistent value that is not a storage, expected a storage";
            return Err(problem.to_owned().into());
        }
        let dtype = self.storage_type(*class)?;
        let size = dtype.map_or(1, bytes_of);
        if !matches!(self.cell(*key), Cell::Value(Value::Text(text)) if text.len() <= LONGEST_KEY) {
            let found = self.cell(*key).shown();
            return Err(format!("a storage named by {found}, expected a short text").into());
        }
        if matches!(self.cell(*location), Cell::Value(Value::Text(text)) if text == "meta") {
            return Err("a storage without data (of torch's device `meta`)"
                .to_owned()
                .into());
        }
        let too_long = || format!("a storage of {} numbers", self.cell(*count).shown());
        let of = |count: u64| count.checked_mul(size).ok_or_else(too_long);
        let length = of(self.natural(*count, "a storage's length")?)?;
        let view = match view {
            [] => None,
            [view] => match self.cell(*view) {
                Cell::Value(Value::None) => None,
                Cell::Value(Value::Tuple(view)) if view.len() == 3 => {
                    let start = of(self.natural(view[1], "a view's start")?)?;
                    let length = of(self.natural(view[2], "a view's length")?)?;
                    Some((start, length))
                }
                other => return Err(format!("a view that is {}", other.what()).into()),
            },
            _ => return Err("a storage of more than 6 values".to_owned().into()),
        };
        let (start, end) = match view {
            None => (0, length),
            Some((start, part)) => {
                let end = start.checked_add(part).filter(|&end| end <= length);
                let problem = || format!("a view of {part} bytes from byte {start} of {length}");
                (start, end.ok_or_else(problem)?)
            }
        };
        Ok(StorageRef {
            key: *key,
            dtype,
            length,
            part: start..end,
            at: self.opcode,
        })
    }

    /// Returns the type of the numbers in a storage of this class, or `None` for the class of
    /// storages without a type.
    fn storage_type(&self, class: Id) -> Result<Option<Dtype>, Stop> {
        match self.cell(class) {
            Cell::Global {
                kind: Kind::Storage(Some(dtype)),
                ..
            } => Ok(Some(*dtype)),
            Cell::Global {
                kind: Kind::UntypedStorage,
                ..
            } => Ok(None),
            Cell::Global { name, .. } => {
                Err(format!("a storage of class `{name}`, which no weights have").into())
            }
            other => Err(format!("a storage of class {}", other.what()).into()),
        }
    }

    /// Builds a tensor from a storage.
    pub fn rebuild(&mut self, rebuild: Rebuild, arguments: &[Id], name: &str) -> Result<Id, Stop> {
        let count = arguments.len();
        // The dtype and the metadata, which follow `requires_grad` and the hooks.
        let (dtype, metadata) = match (rebuild, arguments) {
            (Rebuild::V1, [_, _, _, _]) => (None, None),
            (Rebuild::V2, [_, _, _, _, _, _, metadata @ ..]) if count <= 7 => {
                (None, metadata.first())
            }
            (Rebuild::V3, [_, _, _, _, _, _, dtype, metadata @ ..]) if count <= 8 => {
                (Some(dtype), metadata.first())
            }
            _ => return Err(format!("`{name}` of {count} values").into()),
        };
        let &Cell::Storage(storage) = self.cell(arguments[0]) else {
            let found = self.cell(arguments[0]).what();
            return Err(format!("a tensor of {found}, expected a storage").into());
        };
        let dtype = match dtype.map(|&id| self.cell(id)) {
            Some(Cell::Global {
                kind: Kind::Type(dtype),
                ..
            }) => *dtype,
            Some(other) => {
                return Err(format!("a tensor whose type is {}", other.what()).into());
            }
            None => {
                let problem = "a tensor of a storage without a type";
                self.storages[storage].dtype.ok_or(problem.to_owned())?
            }
        };
        if let Some(&metadata) = metadata {
            self.check_metadata(metadata)?;
        }
        let offset = self.natural(arguments[1], "a tensor's offset")?;
        let shape = self.naturals(arguments[2], "a tensor's shape")?;
        let strides = self.naturals(arguments[3], "a tensor's strides")?;
        if shape.len() != strides.len() {
            let (shape, strides) = (shape.len(), strides.len());
            let problem = format!("a tensor of {shape} dimensions with {strides} strides");
            return Err(problem.into());
        }
        self.spend(16 + 2 * shape.len())?;
        let raw = Raw {
            storage,
            dtype,
            offset,
            shape,
            strides,
            at: self.opcode,
        };
        Ok(self.add_cell(Cell::Tensor(Box::new(raw))))
    }

    /// Rejects a tensor whose values stand for their conjugate or their negative.
    fn check_metadata(&mut self, metadata: Id) -> Result<(), Stop> {
        let entries = match self.cell(metadata) {
            Cell::Value(Value::None) => return Ok(()),
            Cell::Value(Value::Dict(entries)) => entries,
            other => return Err(format!("a tensor whose metadata is {}", other.what()).into()),
        };
        let is_off = |value| matches!(self.cell(value), Cell::Value(Value::Bool(false)));
        if let Some(&(key, _)) = entries.iter().find(|(_, value)| !is_off(*value)) {
            let key = self.cell(key).shown();
            return Err(format!("a tensor marked as {key}, which is not supported").into());
        }
        self.spend(entries.len())
    }

    fn natural(&self, id: Id, what: &str) -> Result<u64, Stop> {
        let number = match self.cell(id) {
            Cell::Value(Value::Int(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let found = || format!("{what} is {}, expected 0 or more", self.cell(id).shown());
        Ok(number.ok_or_else(found)?)
    }

    fn naturals(&self, id: Id, what: &str) -> Result<Vec<usize>, Stop> {
        let items = self.items(id, what)?;
        if items.len() > MOST_DIMENSIONS {
            let count = items.len();
            let problem =
                format!("{what} has {count} dimensions, expected at most {MOST_DIMENSIONS}");
            return Err(problem.into());
        }
        let number = |&item| {
            let number = self.natural(item, what)?;
            let too_large = |_| format!("{what} has {number} in it");
            Ok(usize::try_from(number).map_err(too_large)?)
        };
        items.iter().map(number).collect()
    }
}

impl Cell {
    /// Returns a number or a text itself, and a description of any other value.
    fn shown(&self) -> String {
        match self {
            Self::Value(Value::Int(number)) => number.to_string(),
            Self::Value(Value::Long(number)) => printable(number),
            Self::Value(Value::Text(text)) => format!("`{}`", printable(text)),
            other => other.what().to_owned(),
        }
    }
}

pub(super) fn bytes_of(dtype: Dtype) -> u64 {
    (dtype.bitsize() / 8) as u64
}
