// A failed `unwrap` fails the test.
#![allow(clippy::unwrap_used)]

//! Checks names and configurations against `tests/golden/single_files.json.gz`, whose names were
//! verified with diffusers' own conversions.

mod control;
mod families;
mod layouts;
mod prediction;
mod refused;
mod stored;

use std::{
    collections::BTreeMap,
    io::Read,
    path::Path,
    sync::{LazyLock, Mutex},
};

use serde_json::Value;

use super::*;

/// The golden tables.
static TABLES: LazyLock<Value> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/single_files.json.gz");
    let mut text = String::new();
    let mut file = flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap());
    file.read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
});

/// A made-up file for a test.
#[derive(Debug, Clone, Default)]
struct Made {
    name: String,
    shapes: BTreeMap<String, Vec<usize>>,
    values: BTreeMap<String, Vec<f32>>,
    metadata: BTreeMap<String, String>,
    yaml: Option<String>,
    predicts: Option<Predicts>,
}

impl Made {
    fn of(names: &[(&str, &[usize])]) -> Self {
        let shapes = names
            .iter()
            .map(|(name, shape)| (name.to_string(), shape.to_vec()));
        Self {
            shapes: shapes.collect(),
            ..Self::default()
        }
    }

    /// Returns the file that a table describes.
    fn of_table(table: &Value) -> Self {
        let mut made = Self::default();
        for row in rows(table) {
            made.shapes.insert(row.stored.clone(), row.stored_shape());
        }
        for (name, shape) in table["extra"].as_object().unwrap() {
            made.shapes.insert(name.clone(), sizes(shape));
        }
        made.mark(table);
        made
    }

    /// Returns a family's file with small shapes.
    fn family(name: &str) -> Self {
        Self::of_table(&TABLES["families"][name])
    }

    /// Returns a published model with its full shapes.
    fn published(name: &str) -> Self {
        let published = &TABLES["published"][name];
        let like = published["like"].as_str().unwrap();
        let mut made = Self::of_table(&TABLES["full"][like]);
        for (name, shape) in published["shapes"].as_object().into_iter().flatten() {
            made.shapes.insert(name.clone(), sizes(shape));
        }
        for (name, deviation) in published["deviation"].as_object().into_iter().flatten() {
            let deviation = deviation.as_f64().unwrap() as f32;
            let values =
                (0..made.shapes[name][0]).map(|i| if i % 2 == 0 { -deviation } else { deviation });
            made.values.insert(name.clone(), values.collect());
        }
        made.mark(published);
        made
    }

    fn mark(&mut self, table: &Value) {
        for (name, values) in table["marks"].as_object().into_iter().flatten() {
            let values: Vec<f32> = serde_json::from_value(values.clone()).unwrap();
            self.tensor(name, &values);
        }
        for (key, value) in table["metadata"].as_object().into_iter().flatten() {
            self.say(key, value.as_str().unwrap());
        }
    }

    fn tensor(&mut self, name: &str, values: &[f32]) -> &mut Self {
        self.shapes.insert(name.to_owned(), vec![values.len()]);
        self.values.insert(name.to_owned(), values.to_vec());
        self
    }

    fn say(&mut self, key: &str, value: &str) -> &mut Self {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Renames the tensors, and drops those without a new name.
    fn renamed(mut self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let shapes = std::mem::take(&mut self.shapes).into_iter();
        self.shapes = shapes
            .filter_map(|(name, shape)| Some((rename(&name)?, shape)))
            .collect();
        self
    }

    fn with<T>(&self, read: impl Fn(&File<'_>) -> T) -> T {
        let asked = Mutex::new(Vec::new());
        let values = |name: &str| {
            asked.lock().unwrap().push(name.to_owned());
            let len = self.shapes[name].iter().product();
            let known = self.values.get(name).cloned();
            Ok(known.unwrap_or_else(|| vec![0.0; len]))
        };
        let result = read(&File {
            name: &self.name,
            shapes: self
                .shapes
                .iter()
                .map(|(name, shape)| (name.as_str(), shape.as_slice()))
                .collect(),
            metadata: &self.metadata,
            yaml: self.yaml.as_deref(),
            predicts: self.predicts,
            values: &values,
        });
        // Only small tensors are read.
        for name in asked.into_inner().unwrap() {
            assert!(
                self.shapes[&name].iter().product::<usize>() < 2000,
                "{name}"
            );
        }
        result
    }

    fn read(&self) -> Result<Checkpoint, Problem> {
        self.with(read)
    }

    fn kind(&self) -> Kind {
        self.with(kind)
    }
}

/// A tensor of a golden table.
struct Row {
    component: String,
    today: String,
    shape: Vec<usize>,
    stored: String,
    view: String,
}

impl Row {
    fn stored_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        match self.view.as_str() {
            "whole" => {}
            "q" | "k" | "v" => shape[0] *= 3,
            "transposed" => shape.reverse(),
            "point" => shape.extend([1, 1]),
            other => panic!("{other}"),
        }
        shape
    }

    fn mapped(&self) -> Mapped {
        let rows = |part: usize| View::Rows {
            from: part * self.shape[0],
            count: self.shape[0],
        };
        Mapped {
            name: self.today.clone(),
            stored: self.stored.clone(),
            view: match self.view.as_str() {
                "whole" => View::Whole,
                "q" => rows(0),
                "k" => rows(1),
                "v" => rows(2),
                "transposed" => View::Transposed,
                _ => View::Reshaped(self.shape.clone()),
            },
        }
    }
}

fn rows(table: &Value) -> Vec<Row> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |row: &Value| Row {
        component: text(&row[0]),
        today: text(&row[1]),
        shape: sizes(&row[2]),
        stored: text(&row[3]),
        view: text(&row[4]),
    };
    table["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(row)
        .collect()
}

fn sizes(value: &Value) -> Vec<usize> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Returns the mapping of each component, from a golden table.
fn expected(table: &Value) -> BTreeMap<String, Vec<Mapped>> {
    let mut expected: BTreeMap<String, Vec<Mapped>> = BTreeMap::new();
    for row in rows(table) {
        expected
            .entry(row.component.clone())
            .or_default()
            .push(row.mapped());
    }
    for tensors in expected.values_mut() {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
    }
    expected
}

fn tensors(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<Mapped>> {
    let components = checkpoint.components.iter();
    components
        .map(|(&name, component)| (name.to_owned(), component.tensors.clone()))
        .collect()
}
