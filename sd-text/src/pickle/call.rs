//! Calls in a pickle: the machine builds containers and tensors itself, and replaces everything
//! else with an inert value.

use std::sync::Arc;

use super::globals::Kind;
use super::machine::{Cell, Machine, Stop};
use super::value::{Id, Value};

const PARAMETER_DICT: &str = "torch.nn.modules.container.ParameterDict";

impl Machine<'_> {
    /// Returns the value that a call stands for.
    pub fn call(&mut self, callable: Id, arguments: &[Id]) -> Result<Id, Stop> {
        let (kind, name) = self.callable(callable)?;
        match kind {
            Kind::Dict => self.new_dict(arguments, &name),
            // The first argument is the function for missing keys. No key is ever missing here.
            Kind::DefaultDict => self.new_dict(arguments.get(1..).unwrap_or(&[]), &name),
            Kind::List => self.container(arguments, &name, Value::List),
            Kind::Tuple => self.container(arguments, &name, Value::Tuple),
            Kind::Set => self.container(arguments, &name, Value::Set),
            Kind::Bytes => self.new_bytes(arguments, name),
            Kind::Encode => self.encode(arguments, name),
            Kind::Rebuild(rebuild) => self.rebuild(rebuild, arguments, &name),
            Kind::Parameter => self.parameter(arguments, &name),
            Kind::FromType => self.typed(arguments, &name),
            Kind::Inert => Ok(self.add_cell(Cell::Object { name })),
            Kind::Storage(_) | Kind::UntypedStorage | Kind::Type(_) | Kind::Class => {
                Err(format!("a call of `{name}`, which is not supported").into())
            }
        }
    }

    /// Applies a state to the value on the stack, as BUILD does.
    pub fn build(&mut self) -> Result<(), Stop> {
        let state = self.pop()?;
        let target = self.top()?;
        match self.cell(target) {
            // An OrderedDict's attributes, such as `_metadata` in a model's state.
            Cell::Value(Value::Dict(_)) => Ok(()),
            Cell::Object { name } if **name == *PARAMETER_DICT => {
                let entries = self.parameters(state)?;
                self.cells[target.index()] = Cell::Value(Value::Dict(entries));
                Ok(())
            }
            Cell::Object { .. } => Ok(()),
            other => Err(format!("a state for {}", other.what()).into()),
        }
    }

    fn callable(&self, callable: Id) -> Result<(Kind, Arc<str>), Stop> {
        match self.cell(callable) {
            Cell::Global { kind, name } => Ok((*kind, name.clone())),
            other => Err(format!("a call of {}, expected a function", other.what()).into()),
        }
    }

    fn new_dict(&mut self, arguments: &[Id], name: &str) -> Result<Id, Stop> {
        let entries = match arguments {
            [] => Vec::new(),
            [source] => match self.cell(*source) {
                Cell::Value(Value::Dict(entries)) => entries.clone(),
                // A list of pairs, as Python 2 writes an OrderedDict.
                Cell::Value(Value::List(items) | Value::Tuple(items)) => {
                    let pair = |&item| match self.cell(item) {
                        Cell::Value(Value::List(pair) | Value::Tuple(pair)) => match pair[..] {
                            [key, value] => Some((key, value)),
                            _ => None,
                        },
                        _ => None,
                    };
                    let pairs: Option<Vec<_>> = items.iter().map(pair).collect();
                    pairs.ok_or_else(|| format!("`{name}` of a list, expected pairs in it"))?
                }
                other => {
                    let found = other.what();
                    return Err(format!("`{name}` of {found}, expected pairs").into());
                }
            },
            more => return Err(format!("`{name}` of {} values", more.len()).into()),
        };
        self.spend(entries.len())?;
        Ok(self.add(Value::Dict(entries)))
    }

    fn container(
        &mut self,
        arguments: &[Id],
        name: &str,
        make: fn(Vec<Id>) -> Value,
    ) -> Result<Id, Stop> {
        let items = match arguments {
            [] => Vec::new(),
            [source] => self.items(*source, name)?.to_vec(),
            more => return Err(format!("`{name}` of {} values", more.len()).into()),
        };
        self.spend(items.len())?;
        Ok(self.add(make(items)))
    }

    fn new_bytes(&mut self, arguments: &[Id], name: Arc<str>) -> Result<Id, Stop> {
        match arguments {
            [] => Ok(self.add(Value::Bytes(Vec::new()))),
            [same] if matches!(self.cell(*same), Cell::Value(Value::Bytes(_))) => Ok(*same),
            _ => self.encode(arguments, name),
        }
    }

    /// Returns bytes if the text is Latin-1, and an inert value otherwise.
    fn encode(&mut self, arguments: &[Id], name: Arc<str>) -> Result<Id, Stop> {
        let text = |id| match self.cell(id) {
            Cell::Value(Value::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let content = match arguments {
            [content, encoding] if matches!(text(*encoding), Some("latin1" | "latin-1")) => {
                text(*content)
            }
            _ => None,
        };
        let Some(content) = content else {
            return Ok(self.add_cell(Cell::Object { name }));
        };
        let length = content.len();
        let bytes: Option<Vec<u8>> = content.chars().map(|c| u8::try_from(c).ok()).collect();
        // The memo may provide the same text for many calls.
        self.spend(length / 16)?;
        Ok(match bytes {
            Some(bytes) => self.add(Value::Bytes(bytes)),
            None => self.add_cell(Cell::Object { name }),
        })
    }

    fn parameter(&mut self, arguments: &[Id], name: &str) -> Result<Id, Stop> {
        let first = arguments.first().copied();
        match first.filter(|&id| matches!(self.cell(id), Cell::Tensor(_))) {
            Some(tensor) => Ok(tensor),
            None => {
                let found = first.map_or("nothing", |id| self.cell(id).what());
                Err(format!("`{name}` of {found}, expected a tensor").into())
            }
        }
    }

    /// Builds a tensor with attributes. The attributes have no effect.
    fn typed(&mut self, arguments: &[Id], name: &str) -> Result<Id, Stop> {
        let &[function, _, inner, _] = arguments else {
            return Err(format!("`{name}` of {} values, expected 4", arguments.len()).into());
        };
        let (kind, function) = self.callable(function)?;
        let inner = self.arguments(inner)?;
        match kind {
            Kind::Rebuild(rebuild) => self.rebuild(rebuild, &inner, &function),
            Kind::Parameter => self.parameter(&inner, &function),
            _ => Err(format!("`{name}` of `{function}`, expected a function of tensors").into()),
        }
    }

    /// Returns the entries of `_parameters` in the state of a `ParameterDict`.
    fn parameters(&mut self, state: Id) -> Result<Vec<(Id, Id)>, Stop> {
        let entries = |id| match self.cell(id) {
            Cell::Value(Value::Dict(entries)) => &entries[..],
            _ => &[],
        };
        let is_ours =
            |key| matches!(self.cell(key), Cell::Value(Value::Text(t)) if t == "_parameters");
        let state = entries(state);
        let found = state.iter().rev().find(|(key, _)| is_ours(*key));
        let &(_, found) = found.ok_or("a ParameterDict without `_parameters`".to_owned())?;
        let (looked_at, found) = (state.len(), entries(found).to_vec());
        self.spend(looked_at + found.len())?;
        Ok(found)
    }

    pub fn items(&self, id: Id, what: &str) -> Result<&[Id], Stop> {
        match self.cell(id) {
            Cell::Value(Value::List(items) | Value::Tuple(items) | Value::Set(items)) => Ok(items),
            other => Err(format!("{what} is {}, expected a list", other.what()).into()),
        }
    }
}
