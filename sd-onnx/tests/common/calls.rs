//! The single calls of networks in `tests/golden/families`.

#![allow(dead_code, clippy::unwrap_used)]

use ndarray::{Array1, Array2, Array3, Array4, Axis, Slice};
use sd_onnx::{
    Call, Pipeline, StopToken,
    text::{EncodeOptions, PromptText, Side, Syntax},
};
use serde_json::Value;

use super::common::{Golden, relative_error};

pub fn list<'a>(cases: &'a Value, key: &str) -> &'a [Value] {
    cases[key].as_array().map_or(&[], Vec::as_slice)
}

pub fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_default()
}

pub fn number(case: &Value, key: &str) -> Option<f64> {
    case[key].as_f64()
}

/// Returns the relative error of the embedding of each prompt, and of its pooled embedding if it
/// has one.
pub fn text_errors(pipeline: &Pipeline, golden: &Golden, cases: &Value) -> Vec<(String, f64)> {
    let mut errors = Vec::new();
    for case in list(cases, "text") {
        let name = text(case, "name");
        let read = |text: &str| PromptText::parse(text, Side::Positive, Syntax::Plain);
        let mut prompts = vec![read(text(case, "prompt"))];
        prompts.extend(case["prompt_2"].as_str().map(read));
        let clip_skip = case["clip_skip"]
            .as_u64()
            .map(|n| (n as usize).try_into().unwrap());
        let options = EncodeOptions::default()
            .clip_skip(clip_skip)
            .min_chunks(case["windows"].as_u64().unwrap() as usize);
        let found = pipeline
            .prompt_encoder()
            .encode_prompt_while(&prompts.iter().collect::<Vec<_>>(), 1, &options, &|| true)
            .unwrap();
        let found = found[0].at(0);
        let (dims, expected) = golden.tensor(&format!("{name}.tokens"));
        assert_eq!(found.embedding.shape(), dims);
        let error = relative_error(&found.embedding, &expected);
        errors.push((name.to_owned(), error));
        if let Some((dims, expected)) = golden.find(&format!("{name}.pooled")) {
            let pooled = found.pooled.as_ref().unwrap();
            assert_eq!(pooled.shape(), dims);
            errors.push((format!("{name} pooled"), relative_error(pooled, &expected)));
        } else {
            assert!(found.pooled.is_none(), "{name}");
        }
    }
    errors
}

/// Returns the stored texts of a call, one for each row: tokens and pooled outputs. A null text
/// becomes zeros.
fn context(golden: &Golden, case: &Value) -> (Array3<f32>, Option<Array2<f32>>) {
    let names: Vec<Option<&str>> = list(case, "context").iter().map(Value::as_str).collect();
    let known = names.iter().flatten().next().unwrap();
    let stacked = |part: &str| {
        let (dims, _) = golden.find(&format!("{known}.{part}"))?;
        let row: usize = dims.iter().product();
        let values: Vec<f32> = names
            .iter()
            .flat_map(|name| match name {
                Some(name) => golden.tensor(&format!("{name}.{part}")).1,
                None => vec![0.0; row],
            })
            .collect();
        Some((dims, values))
    };
    let (dims, values) = stacked("tokens").unwrap();
    let tokens = Array3::from_shape_vec((names.len(), dims[1], dims[2]), values).unwrap();
    let pooled = stacked("pooled")
        .map(|(dims, values)| Array2::from_shape_vec((names.len(), dims[1]), values).unwrap());
    (tokens, pooled)
}

/// Returns the relative error of each call of the UNet.
pub fn unet_errors(pipeline: &Pipeline, golden: &Golden, cases: &Value) -> Vec<(String, f64)> {
    let inputs = pipeline.denoiser().inputs();
    let mut errors = Vec::new();
    for case in list(cases, "unet") {
        let name = text(case, "name");
        let (dims, sample) = golden.tensor(&format!("{name}.sample"));
        let sample = Array4::from_shape_vec([dims[0], dims[1], dims[2], dims[3]], sample);
        let sample = sample.unwrap();
        let split = inputs.channels as isize;
        let latents = sample.slice_axis(Axis(1), Slice::new(0, Some(split), 1));
        let beside = sample.slice_axis(Axis(1), Slice::new(split, None, 1));
        assert_eq!(beside.dim().1, inputs.extra_channels);
        let (tokens, pooled) = context(golden, case);
        let sizes = golden
            .find(&format!("{name}.time_ids"))
            .map(|(dims, values)| Array2::from_shape_vec((dims[0], dims[1]), values).unwrap());
        let scales = number(case, "guidance").filter(|_| inputs.guidance);
        let scales = scales.map(|scale| Array1::from_elem(dims[0], scale as f32));
        let stop = StopToken::new();
        let timestep = number(case, "timestep").unwrap() as f32;
        let mut call = Call::new(latents, timestep, tokens.view(), &stop);
        call.pooled = pooled.as_ref().map(|pooled| pooled.view());
        call.sizes = sizes.as_ref().map(|sizes| sizes.view());
        call.guidance = scales.as_ref().map(|scales| scales.view());
        call.beside = (inputs.extra_channels > 0).then_some(beside);
        let mut output = Array4::zeros(latents.dim());
        pipeline
            .denoiser()
            .predict(&call, output.view_mut())
            .unwrap();
        let (_, expected) = golden.tensor(&format!("{name}.output"));
        errors.push((name.to_owned(), relative_error(&output, &expected)));
    }
    errors
}
