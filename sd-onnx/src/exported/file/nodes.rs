//! Reads the nodes of an ONNX file, including the graphs within them.

use std::io::Cursor;

use super::{
    Node,
    reader::Problem,
    tensors::{inline, tensor},
};
use crate::exported::wire::{Value, Wire};

/// The largest depth of subgraphs within subgraphs.
const MOST_DEPTH: usize = 16;
/// The largest number of names that a node reads and writes, including its subgraphs.
const MOST_NAMES: usize = 1 << 16;

impl Node {
    /// Returns the number of names in the node.
    pub(super) fn names(&self) -> usize {
        self.inputs.len() + self.outputs.len() + self.captured.len()
    }
}

/// Reads a node, and the names that its subgraphs read.
pub(super) fn node(bytes: Vec<u8>, depth: usize) -> Result<Node, Problem> {
    let end = bytes.len() as u64;
    let mut wire = Wire::new(Cursor::new(&bytes[..]), 0);
    let (mut op, mut domain) = (String::new(), String::new());
    let (mut inputs, mut outputs, mut captured) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(field) = wire.field(end)? {
        match (field.number, field.value) {
            (1, Value::Bytes(length)) => inputs.push(wire.text(length)?),
            (2, Value::Bytes(length)) => outputs.push(wire.text(length)?),
            (4, Value::Bytes(length)) => op = wire.text(length)?,
            (7, Value::Bytes(length)) => domain = wire.text(length)?,
            (5, Value::Bytes(length)) => attribute(&wire.bytes(length)?, depth, &mut captured)?,
            (_, Value::Bytes(length)) => wire.skip(length)?,
            _ => {}
        }
        if inputs.len() + outputs.len() + captured.len() > MOST_NAMES {
            return Err(wire
                .wrong("more names in a node than any operator has")
                .into());
        }
    }
    if domain == "ai.onnx" {
        domain.clear();
    }
    Ok(Node {
        bytes,
        op,
        domain,
        inputs,
        outputs,
        captured,
    })
}

/// Checks an attribute. Its tensors must hold their values inline, and its graphs are checked too.
fn attribute(bytes: &[u8], depth: usize, captured: &mut Vec<String>) -> Result<(), Problem> {
    let end = bytes.len() as u64;
    let mut wire = Wire::new(Cursor::new(bytes), 0);
    while let Some(field) = wire.field(end)? {
        match (field.number, field.value) {
            (5 | 10, Value::Bytes(length)) => {
                let end = wire.at() + length;
                inline(tensor(&mut wire, end)?)?;
            }
            (6 | 11, Value::Bytes(length)) => {
                subgraph(&wire.bytes(length)?, depth + 1, captured)?;
            }
            (22 | 23, _) => return Err(wire.wrong("a sparse tensor in an attribute").into()),
            (_, Value::Bytes(length)) => wire.skip(length)?,
            _ => {}
        }
    }
    Ok(())
}

/// Checks the graph of an attribute, and collects the names that it reads.
fn subgraph(bytes: &[u8], depth: usize, captured: &mut Vec<String>) -> Result<(), Problem> {
    let end = bytes.len() as u64;
    let mut wire = Wire::new(Cursor::new(bytes), 0);
    if depth > MOST_DEPTH {
        return Err(wire.wrong("graphs are nested too deeply").into());
    }
    while let Some(field) = wire.field(end)? {
        match (field.number, field.value) {
            (1, Value::Bytes(length)) => {
                let inner = node(wire.bytes(length)?, depth)?;
                captured.extend(inner.inputs);
                captured.extend(inner.captured);
                if captured.len() > MOST_NAMES {
                    return Err(wire
                        .wrong("more names in an inner graph than any graph has")
                        .into());
                }
            }
            (5, Value::Bytes(length)) => {
                let end = wire.at() + length;
                inline(tensor(&mut wire, end)?)?;
            }
            (15, _) => return Err(wire.wrong("a sparse tensor in an inner graph").into()),
            (_, Value::Bytes(length)) => wire.skip(length)?,
            _ => {}
        }
    }
    Ok(())
}

/// Returns the domain and the name of a model's function, whose nodes are checked too.
pub(super) fn function(bytes: &[u8]) -> Result<(String, String), Problem> {
    let end = bytes.len() as u64;
    let mut wire = Wire::new(Cursor::new(bytes), 0);
    let (mut name, mut domain) = (String::new(), String::new());
    while let Some(field) = wire.field(end)? {
        match (field.number, field.value) {
            (1, Value::Bytes(length)) => name = wire.text(length)?,
            (7, Value::Bytes(length)) => drop(node(wire.bytes(length)?, 1)?),
            (10, Value::Bytes(length)) => domain = wire.text(length)?,
            (_, Value::Bytes(length)) => wire.skip(length)?,
            _ => {}
        }
    }
    Ok((domain, name))
}
