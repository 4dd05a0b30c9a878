//! Compares every network and whole runs with diffusers 0.42.1 and transformers 5.23, in f32 on
//! torch 2.15.
//!
//! The models have random weights and five shapes. `tests/golden/make.py` wrote the values. It also
//! documents how the weights are scaled so that a mistake anywhere shows.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Golden, Model, SHAPES, golden, golden_json, load, lora_runs, relative_error};
use ndarray::{Array3, Array4, Axis};
use sd_onnx::{
    Call, LatentDistribution, LoraWeight, Picture, Pipeline, Request, SchedulerConfig, StopToken,
    schedulers, schedulers::Ladder, text::ClipSkip,
};
use serde_json::Value;

/// The largest error of one network call. f32 sums are computed in another order. Seen: at most
/// 6e-6.
const ONE_CALL: f64 = 1e-5;
/// The largest error of a run of 20 steps. Guidance and the model itself amplify differences. Seen:
/// at most 2e-5.
const WHOLE_RUN: f64 = 1e-4;

fn with_each_shape(test: impl Fn(&str, &Pipeline, &Golden, &Value)) {
    for shape in SHAPES {
        let folder = tempfile::tempdir().unwrap();
        Model::of_shape(shape).write(folder.path());
        test(
            shape,
            &load(folder.path()),
            &Golden::of_shape(shape),
            &golden_json(shape, "cases.json"),
        );
    }
}

fn array3((shape, values): (Vec<usize>, Vec<f32>)) -> Array3<f32> {
    Array3::from_shape_vec([shape[0], shape[1], shape[2]], values).unwrap()
}

fn array4((shape, values): (Vec<usize>, Vec<f32>)) -> Array4<f32> {
    Array4::from_shape_vec([shape[0], shape[1], shape[2], shape[3]], values).unwrap()
}

/// Prints a relative L2 error and checks that it is at most `limit`.
fn within(limit: f64, what: &str, error: f64) {
    println!("{what}: {error:.1e}");
    assert!(
        error <= limit,
        "{what}: relative L2 error {error:.2e}, expected at most {limit:.0e}"
    );
}

#[test]
fn prompt_embeddings_for_each_clip_skip() {
    with_each_shape(|shape, pipeline, golden, cases| {
        let cases = cases["text"].as_array().unwrap();
        assert_eq!(cases.len(), 6);
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let clip_skip = ClipSkip::new(case["clip_skip"].as_u64().unwrap() as usize).unwrap();
            let encoded = pipeline
                .prompt_encoder()
                .encode(case["text"].as_str().unwrap(), clip_skip)
                .unwrap();
            let (dims, expected) = golden.tensor(name);
            assert_eq!(encoded.embedding.shape(), dims);
            within(
                ONE_CALL,
                &format!("{shape} {name}"),
                relative_error(&encoded.embedding, &expected),
            );
        }
    });
}

#[test]
fn one_unet_call() {
    with_each_shape(|shape, pipeline, golden, cases| {
        let context = array3(golden.tensor("unet.context"));
        for case in cases["unet"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let timestep = case["timestep"].as_f64().unwrap() as f32;
            let sample = array4(golden.tensor(&format!("{name}.sample")));
            let mut output = Array4::zeros(sample.dim());
            let stop = StopToken::new();
            let call = Call::new(sample.view(), timestep, context.view(), &stop);
            let denoiser = pipeline.denoiser();
            denoiser.predict(&call, output.view_mut()).unwrap();
            let (_, expected) = golden.tensor(&format!("{name}.output"));
            within(
                ONE_CALL,
                &format!("{shape} {name}"),
                relative_error(&output, &expected),
            );
        }
    });
}

#[test]
fn vae_decode_and_encode() {
    with_each_shape(|shape, pipeline, golden, cases| {
        for case in cases["vae_decode"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let latents = array4(golden.tensor(&format!("{name}.latents")));
            // The golden latents are the autoencoder's own input; the pipeline's latents are
            // scaled.
            let scaling = pipeline
                .codec()
                .encode(Array4::zeros((1, 3, 64, 64)).view(), &StopToken::new())
                .unwrap();
            let scaled = LatentDistribution {
                mean: latents,
                ..scaling
            };
            let latents = scaled.mode();
            let image = pipeline
                .codec()
                .decode(latents.view(), &StopToken::new())
                .unwrap();
            let (_, expected) = golden.tensor(&format!("{name}.image"));
            within(
                ONE_CALL,
                &format!("{shape} {name}"),
                relative_error(&image, &expected),
            );
        }
        for case in cases["vae_encode"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let image = array4(golden.tensor(&format!("{name}.image")));
            let found = pipeline
                .codec()
                .encode(image.view(), &StopToken::new())
                .unwrap();
            for (part, found) in [("mean", &found.mean), ("logvar", &found.log_variance)] {
                let (_, expected) = golden.tensor(&format!("{name}.{part}"));
                within(
                    ONE_CALL,
                    &format!("{shape} {name} {part}"),
                    relative_error(found, &expected),
                );
            }
        }
    });
}

#[test]
fn a_batch_is_its_members() {
    with_each_shape(|shape, pipeline, golden, _| {
        let latents = array4(golden.tensor("unet.1.sample"));
        assert_eq!(latents.shape()[0], 2);
        let both = pipeline
            .codec()
            .decode(latents.view(), &StopToken::new())
            .unwrap();
        for (i, one) in latents.axis_chunks_iter(Axis(0), 1).enumerate() {
            let alone = pipeline.codec().decode(one, &StopToken::new()).unwrap();
            let member = both.index_axis(Axis(0), i).to_owned();
            let error = relative_error(&member, &alone.into_raw_vec_and_offset().0);
            within(1e-5, &format!("{shape} picture {i} of a batch"), error);
        }
    });
}

#[test]
fn whole_runs() {
    with_each_shape(|shape, pipeline, golden, cases| {
        let runs = cases["runs"].as_array().unwrap();
        assert!(runs.len() >= 15, "{} runs", runs.len());
        for case in runs {
            let name = case["name"].as_str().unwrap();
            let rescaled = SchedulerConfig {
                rescale_betas_zero_snr: case["rescale_betas_zero_snr"].as_bool().unwrap(),
                // Restores the value of the file, which loading the folder as a Stable Diffusion
                // model has corrected.
                steps_offset: case["steps_offset"].as_u64().unwrap() as usize,
                ..pipeline.scheduler_config().clone()
            };
            let picture = run(&with_scheduler(pipeline, rescaled), cases, case);
            let (_, noise) = golden.tensor(case["noise"].as_str().unwrap());
            assert!(
                picture.initial_noise.iter().eq(&noise),
                "{shape} {name}: the initial noise differs"
            );
            let (_, latents) = golden.tensor(&format!("{name}.latents"));
            within(
                WHOLE_RUN,
                &format!("{shape} {name}"),
                relative_error(&picture.latents, &latents),
            );
            let (_, image) = golden.tensor(&format!("{name}.image"));
            let far = picture
                .pixels
                .iter()
                .zip(&image)
                .filter(|(found, expected)| (*found - *expected).abs() > 2.0 / 255.0);
            let far = far.count() as f64 / image.len() as f64;
            assert!(
                far <= 0.001,
                "{shape} {name}: {far} of the image's values are off by more than 2/255"
            );
        }
    });
}

/// WebUI's arithmetic merged the LoRAs, and diffusers ran the model. Here the builder merges them,
/// or the prompt calls them.
#[test]
fn runs_with_loras() {
    let folder = tempfile::tempdir().unwrap();
    Model::of_shape("four").write(folder.path());
    let cases = golden_json("four", "cases.json");
    let library = sd_onnx::builder().loras(golden("lora"));
    let library = library.load(folder.path()).unwrap();
    for expected in lora_runs("four") {
        let mut builder = sd_onnx::builder();
        let mut calling = cases.clone();
        let mut prompt = cases["prompt"].as_str().unwrap().to_owned();
        for (path, weight) in expected.loras {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let LoraWeight { text_encoder, unet } = weight;
            prompt += &format!("<lora:{name}:{text_encoder}:{unet}>");
            builder = builder.lora(path, weight);
        }
        calling["prompt"] = prompt.into();
        let merged = builder.load(folder.path()).unwrap();
        let mut runs = cases["runs"].as_array().unwrap().iter();
        let case = runs.find(|case| case["name"] == *expected.run).unwrap();
        for (way, pipeline, cases) in [("merged", &merged, &cases), ("called", &library, &calling)]
        {
            let picture = run(pipeline, cases, case);
            let error = relative_error(&picture.latents, &expected.latents);
            let what = format!("{} with a {way} LoRA", expected.run);
            within(WHOLE_RUN, &what, error);
        }
    }
}

/// Returns a pipeline of the same networks with another scheduler configuration.
fn with_scheduler(pipeline: &Pipeline, config: SchedulerConfig) -> Pipeline {
    let (prompts, denoiser, codec) = (
        pipeline.prompt_encoder().clone(),
        pipeline.denoiser().clone(),
        pipeline.codec().clone(),
    );
    Pipeline::builder(prompts, denoiser, codec, config)
        .build()
        .unwrap()
}

fn run(pipeline: &Pipeline, cases: &Value, case: &Value) -> Picture {
    let number = |key: &str| case[key].as_u64().unwrap();
    let sampler = match case["sampler"].as_str().unwrap() {
        "euler-ancestral" => "euler-a",
        name => name,
    };
    let row = schedulers::by_name(sampler).unwrap();
    let ladder = match case["timestep_spacing"].as_str().unwrap() {
        _ if case["use_karras_sigmas"].as_bool().unwrap() => Ladder::karras(),
        "leading" => Ladder::leading(),
        "linspace" => Ladder::linspace(),
        "trailing" => Ladder::trailing(),
        other => panic!("{other}"),
    };
    let request = Request::new(cases["prompt"].as_str().unwrap())
        .negative(cases["negative"].as_str().unwrap())
        .size(number("width") as u32, number("height") as u32)
        .steps(number("steps") as usize)
        .guidance(case["guidance"].as_f64().unwrap() as f32)
        .seed(number("seed"))
        .clip_skip(number("clip_skip") as usize)
        .scheduler(row)
        .ladder(ladder);
    pipeline.generate(&request).unwrap().pictures.remove(0)
}
