//! Compares the readers of ComfyUI's and compel's weights with the originals. The expected weights
//! are in `golden/weights.json` (see `golden/weights.py`).

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

use std::fs;
use std::path::Path;

use sd_text::{Segment, Syntax, attention};
use serde_json::Value;

fn compare(column: usize, syntax: Syntax, least: usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights.json");
    let rows: Vec<Vec<Value>> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let (mut compared, mut wrong) = (0, Vec::new());
    for row in &rows {
        let Value::Array(flat) = &row[column] else {
            continue;
        };
        let mut expected: Vec<Segment> = flat
            .chunks(2)
            .map(|pair| {
                Segment::weighted(
                    pair[0].as_str().unwrap(),
                    pair[1].as_str().unwrap().parse().unwrap(),
                )
            })
            .collect();
        if expected.is_empty() {
            expected.push(Segment::plain(""));
        }
        let found = attention(row[0].as_str().unwrap(), syntax);
        compared += 1;
        if !same(&found, &expected) {
            wrong.push(format!("{}: {found:?}, expected {expected:?}", row[0]));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared} wrong: {}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared >= least, "{compared}");
}

/// Compares segments. The factors of nested brackets may be multiplied in another order.
fn same(found: &[Segment], expected: &[Segment]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|pair| match pair {
            (
                Segment::Text { text, weight },
                Segment::Text {
                    text: other,
                    weight: expected,
                },
            ) => text == other && (weight - expected).abs() <= 1e-12 * expected.abs(),
            _ => false,
        })
}

#[test]
fn as_comfyui() {
    compare(1, Syntax::ComfyUi, 400);
}

#[test]
fn as_compel() {
    compare(2, Syntax::Compel, 390);
}
