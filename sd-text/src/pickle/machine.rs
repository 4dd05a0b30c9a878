//! The machine that runs a pickle: a stack, a memo, and about seventy opcodes (Python's
//! `Lib/pickletools.py`, protocols 0 to 5).
//!
//! Values are kept in one list and refer to each other by index. So a value that the memo shares is
//! not copied, a value may contain itself, and no code follows values by recursion.

use std::collections::HashMap;
use std::sync::Arc;

use super::error::Problem;
use super::globals::{self, Kind};
use super::reader::{Reader, text_or_bytes};
use super::stack::pairs;
use super::storage::{Raw, StorageRef};
use super::value::{Id, Value};

/// The most steps. A step is an opcode, or a value that an opcode copies from one container to
/// another. An SDXL training checkpoint with its optimizer takes about half a million.
const MOST_STEPS: usize = 1 << 21;
/// The newest protocol that exists.
const NEWEST: u8 = 5;

/// Why a pickle is not read, and the opcode that caused it.
#[derive(Debug)]
pub(super) struct Fault {
    pub byte: usize,
    pub problem: String,
    /// The global that was asked for, if it is the cause.
    pub global: Option<String>,
}

impl Fault {
    /// Converts the fault to a problem, adding the name of the pickle.
    pub fn into_problem(self, pickle: &str) -> Problem {
        let (pickle, byte) = (pickle.to_owned(), self.byte as u64);
        match self.global {
            Some(global) => Problem::Global {
                pickle,
                byte,
                global,
            },
            None => Problem::Pickle {
                pickle,
                byte,
                problem: self.problem,
            },
        }
    }
}

/// An element of the list of values while the machine runs.
pub(super) enum Cell {
    Value(Value),
    Global {
        kind: Kind,
        name: Arc<str>,
    },
    /// What a call of an inert global would have made.
    Object {
        name: Arc<str>,
    },
    /// A storage, as an index in the list of storages.
    Storage(usize),
    Tensor(Box<Raw>),
}

/// The result of a run.
pub(super) struct Run {
    pub cells: Vec<Cell>,
    pub root: Id,
    pub storages: Vec<StorageRef>,
    /// The byte after the pickle.
    pub end: usize,
}

impl Run {
    /// Returns the text of a storage's name, or an empty string if the value is not a text.
    pub fn text(&self, id: Id) -> &str {
        match &self.cells[id.index()] {
            Cell::Value(Value::Text(text)) => text,
            _ => "",
        }
    }
}

pub(super) struct Machine<'b> {
    pub reader: Reader<'b>,
    pub cells: Vec<Cell>,
    pub stack: Vec<Id>,
    /// The heights of the stack at the open marks.
    pub marks: Vec<usize>,
    pub memo: HashMap<u32, Id>,
    pub storages: Vec<StorageRef>,
    steps: usize,
    /// The byte of the current opcode.
    pub opcode: usize,
}

impl<'b> Machine<'b> {
    /// Creates a machine for the pickle that begins at byte `start` of `bytes`.
    pub fn new(bytes: &'b [u8], start: usize) -> Self {
        Self {
            reader: Reader::new(bytes, start),
            cells: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            storages: Vec::new(),
            steps: 0,
            opcode: start,
        }
    }

    /// Runs until the opcode STOP.
    pub fn run(mut self) -> Result<Run, Fault> {
        loop {
            let byte = self.reader.at();
            let fault = |problem| Fault {
                byte,
                problem,
                global: None,
            };
            self.opcode = byte;
            let opcode = self.reader.byte().map_err(fault)?;
            let done = self.spend(1).and_then(|()| self.step(opcode));
            match done {
                Ok(None) => {}
                Ok(Some(root)) => {
                    return Ok(Run {
                        cells: self.cells,
                        root,
                        storages: self.storages,
                        end: self.reader.at(),
                    });
                }
                Err(Stop::Problem(problem)) => return Err(fault(problem)),
                Err(Stop::Global(global)) => {
                    let problem = String::new();
                    return Err(Fault {
                        byte,
                        problem,
                        global: Some(global),
                    });
                }
            }
        }
    }

    /// Counts the work of a step, so that a small pickle cannot cause much of it.
    pub fn spend(&mut self, steps: usize) -> Result<(), Stop> {
        self.steps = self.steps.saturating_add(steps);
        match self.steps > MOST_STEPS {
            true => Err(format!("the pickle takes more than {MOST_STEPS} steps").into()),
            false => Ok(()),
        }
    }

    /// Executes one opcode. Returns the pickle's value if it is the last one.
    fn step(&mut self, opcode: u8) -> Result<Option<Id>, Stop> {
        match opcode {
            b'.' => return self.stop().map(Some),
            0x80 => self.protocol()?,
            // The length of the next frame, which only helps to read ahead.
            0x95 => {
                let length = self.reader.u64()?;
                self.reader.check(length)?;
            }

            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'I' => self.read(Reader::int_line)?,
            b'L' => self.read(Reader::long_line)?,
            b'F' => self.read(Reader::float_line)?,
            b'J' => self.read(|r| Ok(Value::Int(i32::from_le_bytes(r.array()?).into())))?,
            b'K' => self.read(|r| Ok(Value::Int(r.byte()?.into())))?,
            b'M' => self.read(|r| Ok(Value::Int(r.u16()?.into())))?,
            b'G' => self.read(|r| Ok(Value::Float(f64::from_be_bytes(r.array()?))))?,
            0x8a => self.read(|r| r.byte().map(u64::from).and_then(|length| r.long(length)))?,
            0x8b => self.read(|r| r.u32().map(u64::from).and_then(|length| r.long(length)))?,

            b'S' => self.read(Reader::string_line)?,
            b'V' => self.read(Reader::unicode_line)?,
            // Strings of Python 2 and Python 3.
            b'U' | 0x8c => self.read(|r| r.short_bytes().map(text_or_bytes))?,
            b'T' | b'X' => self.read(|r| r.medium_bytes().map(text_or_bytes))?,
            0x8d => self.read(|r| r.long_bytes().map(text_or_bytes))?,
            b'C' => self.read(|r| Ok(Value::Bytes(r.short_bytes()?.to_vec())))?,
            b'B' => self.read(|r| Ok(Value::Bytes(r.medium_bytes()?.to_vec())))?,
            0x8e | 0x96 => self.read(|r| Ok(Value::Bytes(r.long_bytes()?.to_vec())))?,

            b')' => self.push(Value::Tuple(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            0x8f => self.push(Value::Set(Vec::new())),
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => self.collect(Value::Tuple)?,
            b'l' => self.collect(Value::List)?,
            0x91 => self.collect(Value::Set)?,
            b'd' => {
                let items = self.pop_mark()?;
                let pairs = pairs(&items)?;
                self.push(Value::Dict(pairs));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item], "APPEND")?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend(items, "APPENDS")?;
            }
            0x90 => {
                let items = self.pop_mark()?;
                self.extend(items, "ADDITEMS")?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }

            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.drop_top()?,
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }

            b'p' => {
                let index = self.reader.index_line()?;
                self.remember(index)?;
            }
            b'q' => {
                let index = self.reader.byte()?;
                self.remember(index.into())?;
            }
            b'r' => {
                let index = self.reader.u32()?;
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'g' => {
                let index = self.reader.index_line()?;
                self.recall(index)?;
            }
            b'h' => {
                let index = self.reader.byte()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = self.reader.u32()?;
                self.recall(index)?;
            }

            b'c' => {
                let (module, name) = self.reader.global_lines()?;
                let id = self.global(&module, &name)?;
                self.stack.push(id);
            }
            0x93 => {
                let id = self.stack_global()?;
                self.stack.push(id);
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let arguments = self.arguments(arguments)?;
                let made = self.call(callable, &arguments)?;
                self.stack.push(made);
            }
            0x92 => {
                let (named, arguments, callable) = (self.pop()?, self.pop()?, self.pop()?);
                let arguments = self.arguments(arguments)?;
                self.check_no_named(callable, named)?;
                let made = self.call(callable, &arguments)?;
                self.stack.push(made);
            }
            b'i' => {
                let (module, name) = self.reader.global_lines()?;
                let arguments = self.pop_mark()?;
                let callable = self.global(&module, &name)?;
                let made = self.call(callable, &arguments)?;
                self.stack.push(made);
            }
            b'o' => {
                let items = self.pop_mark()?;
                let (&callable, arguments) = items
                    .split_first()
                    .ok_or("OBJ without a class".to_owned())?;
                let made = self.call(callable, arguments)?;
                self.stack.push(made);
            }
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                let id = self.persistent(id)?;
                self.stack.push(id);
            }
            other => return Err(unknown(other).into()),
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Result<(), Stop> {
        match self.reader.byte()? {
            0..=NEWEST => Ok(()),
            other => Err(format!("protocol {other}, expected at most {NEWEST}").into()),
        }
    }

    fn stop(&mut self) -> Result<Id, Stop> {
        let root = self.pop()?;
        match self.stack.len() + self.marks.len() {
            0 => Ok(root),
            left => Err(format!("the pickle ends with {left} values too many").into()),
        }
    }

    fn stack_global(&mut self) -> Result<Id, Stop> {
        let (name, module) = (self.pop()?, self.pop()?);
        let text = |id| match self.cell(id) {
            Cell::Value(Value::Text(text)) => Ok(text.clone()),
            other => Err(format!(
                "a global named by {}, expected a text",
                other.what()
            )),
        };
        let (module, name) = (text(module)?, text(name)?);
        // Counts the copied texts, which the memo may provide many times.
        self.spend((module.len() + name.len()) / 16)?;
        self.global(&module, &name)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<Id, Stop> {
        let full = format!("{module}.{name}");
        match globals::lookup(module, name) {
            Some(kind) => {
                let name = full.into();
                Ok(self.add_cell(Cell::Global { kind, name }))
            }
            None => Err(Stop::Global(full)),
        }
    }

    /// Returns the items of a call's tuple of arguments.
    pub fn arguments(&mut self, id: Id) -> Result<Vec<Id>, Stop> {
        match self.cell(id) {
            Cell::Value(Value::Tuple(items)) => {
                let items = items.clone();
                self.spend(items.len())?;
                Ok(items)
            }
            other => {
                let found = other.what();
                Err(format!("a call with {found}, expected a tuple").into())
            }
        }
    }

    fn check_no_named(&self, callable: Id, named: Id) -> Result<(), Stop> {
        let is_inert = matches!(
            self.cell(callable),
            Cell::Global {
                kind: Kind::Inert,
                ..
            }
        );
        match self.cell(named) {
            Cell::Value(Value::Dict(entries)) if is_inert || entries.is_empty() => Ok(()),
            _ => Err("NEWOBJ_EX with keyword arguments, expected none"
                .to_owned()
                .into()),
        }
    }
}

/// Why a step fails.
pub(super) enum Stop {
    Problem(String),
    /// A global that is not in the table.
    Global(String),
}

impl From<String> for Stop {
    fn from(problem: String) -> Self {
        Self::Problem(problem)
    }
}

impl Cell {
    /// Describes the value for a message.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Global { .. } => "a class or a function",
            Self::Object { .. } => "an inert value",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Value(value) => match value {
                Value::None => "None",
                Value::Bool(_) => "a truth value",
                Value::Int(_) | Value::Long(_) | Value::Float(_) => "a number",
                Value::Text(_) => "a text",
                Value::Bytes(_) => "bytes",
                Value::List(_) => "a list",
                Value::Tuple(_) => "a tuple",
                Value::Dict(_) => "a dictionary",
                Value::Set(_) => "a set",
                Value::Tensor(_) => "a tensor",
                Value::Inert(_) => "an inert value",
            },
        }
    }
}

/// Describes an opcode that is not supported, and why.
fn unknown(opcode: u8) -> String {
    let what = match opcode {
        0x82 => "EXT1, a global with a number that only the writing program knows",
        0x83 => "EXT2, a global with a number that only the writing program knows",
        0x84 => "EXT4, a global with a number that only the writing program knows",
        b'P' => "PERSID, a storage named by a line of text, which torch does not write",
        0x97 => "NEXT_BUFFER, bytes outside the pickle",
        0x98 => "READONLY_BUFFER, bytes outside the pickle",
        _ => return format!("opcode 0x{opcode:02x}, which no protocol has"),
    };
    format!("opcode 0x{opcode:02x} ({what}) is not supported")
}
