//! Every family with small shapes: the names, and the networks of the family's folder.

use sd_core::{SizeIds, schedulers::SchedulerConfig};

use super::*;
use crate::{
    config::Config,
    models::{clip_text::ClipTextConfig, unet::UnetConfig, vae::VaeConfig},
};

fn families() -> impl Iterator<Item = (&'static String, &'static Value)> {
    TABLES["families"].as_object().unwrap().iter()
}

fn config(map: &Map<String, Value>) -> Config {
    let text = serde_json::to_string(map).unwrap();
    Config::parse(Path::new("config.json"), &text).unwrap()
}

/// Formats the network of a configuration, for comparison.
fn network(component: &str, map: &Map<String, Value>, sizes: SizeIds) -> String {
    match component {
        "unet" => format!("{:?}", UnetConfig::new(&config(map), sizes).unwrap()),
        "vae" => format!("{:?}", VaeConfig::new(&config(map)).unwrap()),
        _ => format!("{:?}", ClipTextConfig::new(config(map)).unwrap()),
    }
}

#[test]
fn names_are_those_that_diffusers_converts() {
    let mut count = 0;
    for (name, table) in families() {
        let checkpoint = Made::family(name)
            .read()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let (found, expected) = (tensors(&checkpoint), expected(table));
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (component, expected) in expected {
            let found = &found[&component];
            let names = |of: &[Mapped]| of.iter().map(|m| m.name.clone()).collect::<Vec<_>>();
            assert_eq!(names(found), names(&expected), "{name}, {component}");
            assert_eq!(*found, expected, "{name}, {component}");
            count += found.len();
        }
        for component in checkpoint.components.values() {
            assert_eq!(component.unused, [""; 0], "{name}");
        }
        assert_eq!(checkpoint.warnings, [""; 0], "{name}");
        assert_eq!(checkpoint.missing, [""; 0], "{name}");
    }
    assert!(count > 13_000, "{count}");
}

#[test]
fn shapes_make_the_networks_of_the_folder() {
    for (name, table) in families() {
        let checkpoint = Made::family(name).read().unwrap();
        let sizes = match checkpoint.aesthetics_score {
            Some(true) => SizeIds::Score,
            _ => SizeIds::Target,
        };
        for (component, expected) in table["configs"].as_object().unwrap() {
            let mut found = checkpoint.components[component.as_str()].config.clone();
            let mut expected = expected.as_object().unwrap().clone();
            if component == "unet" {
                // The small models draw small pictures.
                found.insert("sample_size".into(), expected["sample_size"].clone());
            }
            if expected.get("eos_token_id") == Some(&2.into()) {
                // An older notation, in which the largest id ends a text.
                expected.insert("eos_token_id".into(), found["eos_token_id"].clone());
            }
            if component == "vae" && checkpoint.family.is_none() {
                // An autoencoder alone can belong to any family.
                found.remove("scaling_factor");
                expected.remove("scaling_factor");
            }
            if component == "vae" {
                // No tensor shows it.
                expected.remove("force_upcast");
            }
            assert_eq!(
                network(component, &found, sizes),
                network(component, &expected, sizes),
                "{name}, {component}"
            );
        }
    }
}

#[test]
fn the_model_index_and_the_schedule_are_the_folders() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let mut count = 0;
    for (name, _) in families() {
        let folder = golden.join(name);
        let Ok(index) = std::fs::read_to_string(folder.join("model_index.json")) else {
            continue;
        };
        count += 1;
        let index: Value = serde_json::from_str(&index).unwrap();
        let checkpoint = Made::family(name).read().unwrap();
        assert_eq!(checkpoint.class, index["_class_name"], "{name}");
        // The publishers of SSD-1B and Kolors chose another value, which no tensor shows.
        if name != "sdxl-ssd" && name != "kolors" {
            let expected = index["force_zeros_for_empty_prompt"].as_bool();
            assert_eq!(checkpoint.zeros_for_empty, expected, "{name}");
        }
        let expected = index["requires_aesthetics_score"]
            .as_bool()
            .unwrap_or(false);
        assert_eq!(
            checkpoint.aesthetics_score.unwrap_or(false),
            expected,
            "{name}"
        );

        let scheduler = std::fs::read_to_string(folder.join("scheduler.json")).unwrap();
        let expected = SchedulerConfig::from_json(&scheduler).unwrap();
        let text = serde_json::to_string(&checkpoint.scheduler).unwrap();
        let found = SchedulerConfig::from_json(&text).unwrap();
        assert_eq!(found.ignored, [""; 0], "{name}");
        let facts = |config: &SchedulerConfig| {
            let train = config.num_train_timesteps;
            (
                config.prediction,
                config.sigma_range,
                config.rescale_betas_zero_snr,
                train,
            )
        };
        assert_eq!(facts(&found), facts(&expected), "{name}");
        if name != "kolors" && !matches!(name.as_str(), "playground" | "cosxl") {
            assert_eq!(
                (found.beta_start, found.beta_end),
                (0.00085, 0.012),
                "{name}"
            );
        }
        sd_core::schedulers::from_config(&text).unwrap();
    }
    assert!(count >= 22, "{count}");
}
