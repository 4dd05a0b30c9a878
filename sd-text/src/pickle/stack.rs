//! The machine's values, stack, marks and memo.

use super::machine::{Cell, Machine, Stop};
use super::reader::Reader;
use super::value::{Id, Value};

impl<'b> Machine<'b> {
    pub fn read(
        &mut self,
        read: impl FnOnce(&mut Reader<'b>) -> Result<Value, String>,
    ) -> Result<(), Stop> {
        let value = read(&mut self.reader)?;
        self.push(value);
        Ok(())
    }

    pub fn push(&mut self, value: Value) {
        let id = self.add(value);
        self.stack.push(id);
    }

    /// Adds a value to the list, but not to the stack.
    pub fn add(&mut self, value: Value) -> Id {
        self.add_cell(Cell::Value(value))
    }

    pub fn add_cell(&mut self, cell: Cell) -> Id {
        // There are fewer values than steps, so the index fits an `Id`.
        let id = Id(self.cells.len() as u32);
        self.cells.push(cell);
        id
    }

    pub fn cell(&self, id: Id) -> &Cell {
        &self.cells[id.index()]
    }

    /// Whether the stack is empty down to the last mark.
    fn is_bare(&self) -> bool {
        self.stack.len() <= self.marks.last().copied().unwrap_or(0)
    }

    pub fn pop(&mut self) -> Result<Id, Stop> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    pub fn top(&self) -> Result<Id, Stop> {
        let top = self.stack.last().filter(|_| !self.is_bare());
        Ok(*top.ok_or("it needs a value, and the stack is empty".to_owned())?)
    }

    /// Removes the top value, or the last mark if it is on top, as POP does.
    pub fn drop_top(&mut self) -> Result<(), Stop> {
        if self.is_bare() && self.marks.pop().is_some() {
            return Ok(());
        }
        self.pop().map(drop)
    }

    pub fn pop_mark(&mut self) -> Result<Vec<Id>, Stop> {
        let mark = self
            .marks
            .pop()
            .ok_or("it needs a mark, and there is none".to_owned())?;
        Ok(self.stack.split_off(mark))
    }

    pub fn tuple(&mut self, count: usize) -> Result<(), Stop> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    pub fn collect(&mut self, make: fn(Vec<Id>) -> Value) -> Result<(), Stop> {
        let items = self.pop_mark()?;
        self.push(make(items));
        Ok(())
    }

    pub fn extend(&mut self, items: Vec<Id>, opcode: &str) -> Result<(), Stop> {
        let target = self.top()?;
        match &mut self.cells[target.index()] {
            Cell::Value(Value::List(list)) if opcode != "ADDITEMS" => list.extend(items),
            Cell::Value(Value::Set(set)) if opcode == "ADDITEMS" => set.extend(items),
            // The content of an inert value has no effect.
            Cell::Object { .. } => {}
            other => {
                let expected = if opcode == "ADDITEMS" {
                    "a set"
                } else {
                    "a list"
                };
                let found = other.what();
                return Err(format!("{opcode} to {found}, expected {expected}").into());
            }
        }
        Ok(())
    }

    pub fn set_items(&mut self, items: &[Id]) -> Result<(), Stop> {
        let pairs = pairs(items)?;
        let target = self.top()?;
        match &mut self.cells[target.index()] {
            Cell::Value(Value::Dict(entries)) => entries.extend(pairs),
            Cell::Object { .. } => {}
            other => {
                let found = other.what();
                return Err(format!("entries for {found}, expected a dictionary").into());
            }
        }
        Ok(())
    }

    pub fn remember(&mut self, index: u32) -> Result<(), Stop> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    pub fn recall(&mut self, index: u32) -> Result<(), Stop> {
        let id = self.memo.get(&index);
        let id = *id.ok_or_else(|| format!("the memo has no entry {index}"))?;
        self.stack.push(id);
        Ok(())
    }
}

pub(super) fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, Stop> {
    let (pairs, rest) = items.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("a key without a value".to_owned().into()),
    }
}
