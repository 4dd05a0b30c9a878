//! Checks the written names against the golden tables and against the names that are read.

use super::*;
use crate::checkpoint::stored::stored;

/// Returns the shapes of each component's weights, by their current names.
fn shapes(rows: &[Row]) -> BTreeMap<&str, BTreeMap<&str, &[usize]>> {
    let mut shapes: BTreeMap<&str, BTreeMap<&str, &[usize]>> = BTreeMap::new();
    for row in rows {
        let component = shapes.entry(&row.component).or_default();
        component.insert(&row.today, &row.shape);
    }
    shapes
}

/// The tables of complete models, with their names.
fn models() -> Vec<(String, &'static Value)> {
    let tables = ["families", "full"].into_iter().flat_map(|kind| {
        let tables = TABLES[kind].as_object().unwrap().iter();
        tables.map(|(name, table)| (name.clone(), table))
    });
    let whole: Vec<_> = tables
        .filter(|(_, table)| !table["configs"]["unet"].is_null())
        .collect();
    assert!(whole.len() >= 27, "{}", whole.len());
    whole
}

#[test]
fn names_are_those_of_published_files() {
    for (name, table) in models() {
        let family = Made::of_table(table).read().unwrap().family.unwrap();
        let rows = rows(table);
        for (component, shapes) in shapes(&rows) {
            // Latent diffusion's files never contain TAESD.
            if (name.as_str(), component) == ("sdxs", "vae") {
                continue;
            }
            let of_component = rows.iter().filter(|row| row.component == component);
            // The weights of each stored tensor, in their order in it.
            let mut expected: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
            for row in of_component.clone() {
                let weights = expected.entry(&row.stored).or_default();
                weights.push((&row.view, &row.today));
            }
            let found = stored(family, component, &shapes).unwrap();
            assert_eq!(found.len(), expected.len(), "{name} {component}");
            for tensor in found {
                let weights = expected.get_mut(tensor.name.as_str());
                let weights = weights.unwrap_or_else(|| panic!("{name}: {}", tensor.name));
                // Sorting by name would put `q` last.
                weights.sort_by_key(|(view, _)| ["q", "k", "v"].iter().position(|it| it == view));
                let names: Vec<_> = weights.iter().map(|(_, today)| *today).collect();
                assert_eq!(tensor.weights, names, "{name} {}", tensor.name);
                let row = of_component
                    .clone()
                    .find(|row| row.stored == tensor.name)
                    .unwrap();
                assert_eq!(tensor.shape, row.stored_shape(), "{name} {}", tensor.name);
                assert_eq!(
                    tensor.transposed,
                    row.view == "transposed",
                    "{name} {}",
                    tensor.name
                );
            }
        }
    }
}

#[test]
fn written_names_are_read_as_the_same_weights() {
    for (name, table) in models() {
        let old = Made::of_table(table);
        let family = old.read().unwrap().family.unwrap();
        let rows = rows(table);
        let mut new = Made::default();
        new.mark(table);
        let shapes = shapes(&rows);
        for (component, shapes) in &shapes {
            for tensor in stored(family, component, shapes).unwrap() {
                new.shapes.insert(tensor.name, tensor.shape);
            }
        }
        let read = new.read().unwrap();
        assert_eq!(read.warnings, [""; 0], "{name}");
        let names = |checkpoint: &Checkpoint| {
            let components = checkpoint.components.iter().map(|(&component, found)| {
                assert!(found.unused.is_empty(), "{name}: {:?}", found.unused);
                let names = found.tensors.iter().map(|mapped| mapped.name.clone());
                (component, names.collect::<Vec<_>>())
            });
            components.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(names(&read), names(&old.read().unwrap()), "{name}");
    }
}

#[test]
fn what_has_no_name_is_named() {
    let shape: &[usize] = &[1];
    for (component, name) in [
        ("unet", "down_blocks.0.motion_modules.0.weight"),
        ("unet", "weight"),
        ("vae", "encoder.more.weight"),
        ("vae", "decoder.mid_block.attentions.0.more.weight"),
        ("text_encoder_2", "encoder.layers.0.self_attn.q_proj.weight"),
        ("text_encoder_2", "more.weight"),
    ] {
        let shapes = [(name, shape)].into();
        assert_eq!(stored(Family::Xl, component, &shapes).unwrap_err(), name);
    }
}
