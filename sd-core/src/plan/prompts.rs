//! The prompts of a request, and what is wrong with them.

use sd_text::{PromptEmbedding, Side};

use crate::{
    Inputs, LoraCall, MAX_BRANCHES, MAX_PROMPT_BYTES, Problem, Prompt, Request,
    lora::Called,
    parts::Parts,
    prompts::{Read, Reading},
};

/// Parses the prompt or the negative prompt. A prompt that is too long is not parsed.
pub(super) fn read(parts: &Parts, request: &Request, side: Side) -> Result<Read, Problem> {
    let (what, what_2, prompt, second) = match side {
        Side::Positive => ("prompt", "prompt_2", &request.prompt, &request.prompt_2),
        Side::Negative => (
            "negative",
            "negative_2",
            &request.negative,
            &request.negative_2,
        ),
    };
    let second = second.as_deref();
    let second_problem = second
        .and_then(|second| second_problem(what_2, prompt, second, parts.prompts.towers().len()));
    if let Some(problem) = prompt_problem(what, prompt, parts.denoiser.inputs()).or(second_problem)
    {
        return Err(problem);
    }
    let read = Read::new(prompt, second, side, &request.prompt_options);
    let expected = read.branches();
    match read.second_branches() {
        Some(found) if found != expected => {
            let expected = format!("as many parts between ANDs as `{what}`, {expected}");
            Err(Problem::new(what_2, expected, found))
        }
        _ => Ok(read),
    }
}

/// Returns the problem of a text that is too long, or of an embedding that does not fit the model.
fn prompt_problem(what: &'static str, prompt: &Prompt, inputs: &Inputs) -> Option<Problem> {
    match prompt {
        Prompt::Text(text) => length_problem(what, text),
        Prompt::Embedding { embedding, pooled } => {
            let mut given = PromptEmbedding::from(embedding.clone());
            given.pooled = pooled.clone();
            embedding_problem(what, &given, inputs)
        }
    }
}

pub(crate) fn embedding_problem(
    what: &'static str,
    given: &PromptEmbedding,
    inputs: &Inputs,
) -> Option<Problem> {
    let width = inputs.context;
    let (batch, tokens, found) = given.embedding.dim();
    if batch != 1 || tokens == 0 || found != width {
        let expected = format!("one of shape (1, tokens, {width})");
        let found = format!("an embedding of shape {:?}", given.embedding.dim());
        return Some(Problem::new(what, expected, found));
    }
    let found = given.pooled.as_ref().map(|pooled| pooled.dim());
    // An additional pooled output that the model does not take is ignored.
    if let Some(width) = inputs.pooled
        && found != Some((1, width))
    {
        let expected = format!("an embedding with a pooled output of shape (1, {width})");
        let found = match found {
            Some(shape) => format!("an embedding with a pooled output of shape {shape:?}"),
            None => "an embedding without a pooled output".into(),
        };
        return Some(Problem::new(what, expected, found));
    }
    let pooled = given.pooled.iter().flatten();
    let value = given.embedding.iter().chain(pooled);
    let value = value.into_iter().find(|value| !value.is_finite())?;
    Some(Problem::new(what, "an embedding of finite numbers", value))
}

/// Returns the calls of LoRAs in a run of `steps` steps. Adds the problems of LoRAs that cannot be
/// used in this way.
pub(super) fn lora_calls(
    parts: &Parts,
    called: &[Called],
    steps: usize,
    problems: &mut Vec<Problem>,
) -> Vec<LoraCall> {
    let calls = called.iter().map(|it| it.call(&parts.callable, steps));
    let calls: Vec<_> = calls
        .filter_map(|call| call.map_err(|problem| problems.push(problem)).ok())
        .collect();
    // One LoRA that must be merged makes the backend merge all of them.
    let is_live = |call: &LoraCall| parts.callable.infos()[call.index].live;
    if let Some(merged) = calls.iter().find(|call| !is_live(call)) {
        let merged = &parts.callable.infos()[merged.index].name;
        problems.extend(
            called
                .iter()
                .zip(&calls)
                .filter_map(|(of, call)| of.mixed(call, merged)),
        );
    }
    calls
}

/// Returns the problem with a text for the second tower.
fn second_problem(
    what: &'static str,
    prompt: &Prompt,
    second: &str,
    towers: usize,
) -> Option<Problem> {
    if towers < 2 {
        let expected = "nothing, as this model has one text encoder";
        return Some(Problem::new(what, expected, "given"));
    }
    match prompt {
        Prompt::Embedding { .. } => {
            let expected = "nothing beside an embedding";
            Some(Problem::new(what, expected, "given"))
        }
        Prompt::Text(_) => length_problem(what, second),
    }
}

fn length_problem(what: &'static str, text: &str) -> Option<Problem> {
    (text.len() > MAX_PROMPT_BYTES).then(|| {
        let expected = format!("at most {MAX_PROMPT_BYTES} bytes");
        Problem::new(what, expected, format!("{} bytes long", text.len()))
    })
}

/// Returns the problem of a prompt with too many parts between `AND`s.
pub(super) fn branches_problem(prompt: &Read) -> Option<Problem> {
    let branches = prompt.branches();
    (branches > MAX_BRANCHES).then(|| {
        let expected = format!("at most {MAX_BRANCHES}");
        let found = format!("{branches} parts between ANDs");
        Problem::new("prompt", expected, found)
    })
}

/// Adds the problems of prompts that could be parsed, unless the prompt has too many branches.
pub(super) fn check_reading(
    parts: &Parts,
    reading: &Reading,
    prompt: &Read,
    negative: &Read,
    problems: &mut Vec<Problem>,
) {
    if prompt.branches() > MAX_BRANCHES {
        return;
    }
    let prompts = [("prompt", prompt), ("negative", negative)];
    let alone = prompts.map(|(what, read)| reading.problem(&parts.prompts, what, read));
    match alone {
        [None, None] => problems.extend(reading.problem_together(&parts.prompts, prompts)),
        alone => problems.extend(alone.into_iter().flatten()),
    }
}
