//! Tests of whole adapter files.

// A failed `unwrap` fails the test.
#![allow(clippy::unwrap_used)]

mod fuzz;
mod golden;
mod made;
mod spoiled;
