//! Compares the prompt language with WebUI's own results, exactly. They are in
//! `golden/prompts.json` (see `golden/prompts.py`).

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

use std::fs;
use std::path::Path;

use sd_text::{Branch, PromptSteps, PromptText, Schedule, Segment, Side, Syntax, attention};
use serde_json::Value;

const STEPS: [usize; 3] = [1, 7, 20];

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/prompts.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn index(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The entries `[end, text, …]` for each number of steps.
fn written(branch: &Branch<'_>) -> Vec<Vec<(usize, String)>> {
    let entries = |schedule: Schedule| {
        schedule
            .entries()
            .iter()
            .map(|e| (e.end, e.text.to_string()))
            .collect()
    };
    STEPS.map(|steps| entries(branch.schedule(steps))).to_vec()
}

fn readings(golden: &Value, branch: &Value) -> Vec<Vec<Vec<(usize, String)>>> {
    let text = |text: &Value| string(&golden["texts"][index(text)][0]).to_owned();
    let schedule = |flat: &Value| {
        list(flat)
            .chunks(2)
            .map(|pair| (index(&pair[0]), text(&pair[1])))
            .collect()
    };
    let readings = &list(&golden["branches"][index(branch)])[1..];
    readings
        .iter()
        .map(|reading| list(reading).iter().map(schedule).collect())
        .collect()
}

#[test]
fn means_what_it_means_in_webui() {
    let golden = golden();
    let prompts = list(&golden["prompts"]);
    assert_eq!(prompts.len(), 2000);
    let (mut certain, mut varying, mut wrong) = (0, 0, Vec::new());
    for row in prompts {
        let text = string(&row[0]);
        let positive = PromptText::parse(text, Side::Positive, Syntax::WebUi);
        // WebUI groups the networks by kind.
        let mut found: Vec<_> = positive.networks().iter().collect();
        let first = |name: &str| {
            positive
                .networks()
                .iter()
                .position(|network| network.name == name)
        };
        found.sort_by_key(|network| first(&network.name));
        let networks: Vec<Value> = found
            .iter()
            .flat_map(|n| [n.name.clone().into(), n.arguments.clone().into()])
            .collect();
        assert_eq!(networks, list(&row[1]), "{text:?}");

        let expected: Vec<_> = list(&row[2]).chunks(2).collect();
        let branches: Vec<_> = positive.branches().collect();
        assert_eq!(branches.len(), expected.len(), "{text:?}");
        let negative = PromptText::parse(text, Side::Negative, Syntax::WebUi);
        let mut pairs: Vec<(Branch<'_>, f64, &Value)> = branches
            .into_iter()
            .zip(expected)
            .map(|(branch, pair)| (branch, string(&pair[0]).parse().unwrap(), &pair[1]))
            .collect();
        let [whole] = negative.branches().collect::<Vec<_>>()[..] else {
            panic!("{text:?}")
        };
        pairs.push((whole, 1.0, &row[3]));
        for (branch, weight, expected) in pairs {
            assert_eq!(branch.weight(), weight, "{text:?}");
            let readings = readings(&golden, expected);
            if readings.len() == 1 {
                certain += 1
            } else {
                varying += 1
            }
            if !readings.contains(&written(&branch)) {
                wrong.push(format!(
                    "{:?} of {text:?}: {:?}, expected one of {readings:?}",
                    branch.node(),
                    written(&branch)
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}: {}",
        wrong.len(),
        certain + varying,
        wrong[..wrong.len().min(5)].join("\n")
    );
    assert!(
        certain >= 4000 && varying < 60,
        "{certain} certain, {varying} varying"
    );
}

#[test]
fn attention_of_every_text() {
    let golden = golden();
    let texts = list(&golden["texts"]);
    assert!(texts.len() >= 3000);
    let mut failing = 0;
    for row in texts {
        let text = string(&row[0]);
        let expected: Vec<Segment> = match &row[1] {
            Value::Number(_) => vec![Segment::plain(text)],
            // A malformed weight, at which WebUI stops with an error.
            Value::String(_) => {
                failing += 1;
                continue;
            }
            flat => list(flat)
                .chunks(2)
                .map(|pair| match (string(&pair[0]), string(&pair[1])) {
                    ("BREAK", "-1" | "-1.0") => Segment::Break,
                    (text, weight) => Segment::weighted(text, weight.parse().unwrap()),
                })
                .collect(),
        };
        assert_eq!(attention(text, Syntax::WebUi), expected, "{text:?}");
    }
    assert!(failing < 5);
}

#[test]
fn text_of_every_model_call() {
    let golden = golden();
    let rows = list(&golden["calls"]);
    assert_eq!(rows.len(), 20);
    for row in rows {
        let prompt = PromptText::parse(string(&row[0]), Side::Positive, Syntax::WebUi);
        let branch = prompt.branches().next().unwrap();
        for (calls, steps, flat) in [(20, 20, &row[1]), (39, 40, &row[2])] {
            let schedule = branch.schedule(steps);
            let expected: Vec<&str> = list(flat)
                .chunks(2)
                .flat_map(|pair| {
                    vec![string(&golden["texts"][index(&pair[0])][0]); index(&pair[1])]
                })
                .collect();
            let shown: Vec<&str> = (0..calls).map(|call| &*schedule.at(call).text).collect();
            assert_eq!(shown, expected, "{}", row[0]);
        }
    }
}

/// However many causes there are, there are few warnings, and the last one counts the rest.
#[test]
fn warnings_are_counted() {
    for (parts, listed) in [(16, 16), (17, 17), (100_000, 17)] {
        let text = vec!["a|b"; parts].join(" AND ");
        let prompt = PromptText::parse(&text, Side::Positive, Syntax::WebUi);
        let warnings = prompt.warnings();
        assert_eq!(warnings.len(), listed);
        assert_eq!(warnings[15].span, 15 * 8 + 1..15 * 8 + 2);
        if parts > 16 {
            let more = format!("{} more parts are taken literally", parts - 16);
            assert!(warnings[16].text.contains(&more), "{}", warnings[16].text);
            assert_eq!(warnings[16].span, 16 * 8 + 1..(parts - 1) * 8 + 2);
        }
    }
}

#[test]
fn schedules_count_on_in_a_second_pass() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/second_pass.json");
    let golden: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let pairs = list(&golden["pairs"]);
    let mut compared = 0;
    for row in list(&golden["rows"]) {
        let prompt = PromptText::parse(string(&row[0]), Side::Positive, Syntax::WebUi);
        let branch = prompt.branches().next().unwrap();
        for (pair, expected) in pairs.iter().zip(&list(row)[1..]) {
            let over = PromptSteps::second_pass(index(&pair[0]), index(&pair[1]));
            let schedule = branch.schedule(over);
            let entries = schedule.entries().iter();
            let found: Vec<Value> = entries
                .flat_map(|entry| [entry.end.into(), entry.text.to_string().into()])
                .collect();
            assert_eq!(&found, list(expected), "{} {pair}", row[0]);
            compared += 1;
        }
    }
    assert_eq!(compared, 100);
}
