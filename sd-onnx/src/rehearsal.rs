//! Compares the networks as CUDA runs them with diffusers 0.42.1, on the CPU.
//!
//! No machine of this project has an NVIDIA GPU. These tests show that the graphs of
//! [`Device::Cuda`](crate::Device::Cuda) are right, and that calls keep their inputs rightly. They
//! do not show that the kernels of CUDA are.

// A failed `unwrap` fails the test.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/controls.rs"]
mod controls;

use std::path::Path;

use common::{Golden, Model, family, golden_json, load, relative_error, write_family};
use ndarray::{Array2, Array3, Array4};
use sd_core::{Call, LatentDistribution, Pipeline, StopToken};
use sd_text::ClipSkip;
use serde_json::Value;

use crate::{Precision, engine::rehearse_cuda};

fn array4((dims, values): (Vec<usize>, Vec<f32>)) -> Array4<f32> {
    Array4::from_shape_vec([dims[0], dims[1], dims[2], dims[3]], values).unwrap()
}

#[test]
fn explore() {
    for precision in [Precision::F32, Precision::F16] {
        for shape in common::SHAPES {
            let folder = tempfile::tempdir().unwrap();
            Model::of_shape(shape).write(folder.path());
            let pipeline = rehearse_cuda(precision, || load(folder.path()));
            let (golden, cases) = (Golden::of_shape(shape), golden_json(shape, "cases.json"));
            for case in cases["text"].as_array().unwrap() {
                let name = case["name"].as_str().unwrap();
                let clip_skip =
                    ClipSkip::new(case["clip_skip"].as_u64().unwrap() as usize).unwrap();
                let encoded = pipeline
                    .prompt_encoder()
                    .encode(case["text"].as_str().unwrap(), clip_skip)
                    .unwrap();
                let (_, expected) = golden.tensor(name);
                println!(
                    "{precision} {shape} {name} {:.1e}",
                    relative_error(&encoded.embedding, &expected)
                );
            }
            let (dims, values) = golden.tensor("unet.context");
            let context = Array3::from_shape_vec([dims[0], dims[1], dims[2]], values).unwrap();
            for case in cases["unet"].as_array().unwrap() {
                let name = case["name"].as_str().unwrap();
                let timestep = case["timestep"].as_f64().unwrap() as f32;
                let sample = array4(golden.tensor(&format!("{name}.sample")));
                let mut output = Array4::zeros(sample.dim());
                let stop = StopToken::new();
                let call = Call::new(sample.view(), timestep, context.view(), &stop);
                pipeline
                    .denoiser()
                    .predict(&call, output.view_mut())
                    .unwrap();
                let (_, expected) = golden.tensor(&format!("{name}.output"));
                println!(
                    "{precision} {shape} {name} {:.1e}",
                    relative_error(&output, &expected)
                );
            }
            for case in cases["vae_decode"].as_array().unwrap() {
                let name = case["name"].as_str().unwrap();
                let latents = array4(golden.tensor(&format!("{name}.latents")));
                let scaling = pipeline
                    .codec()
                    .encode(Array4::zeros((1, 3, 64, 64)).view(), &StopToken::new())
                    .unwrap();
                let scaled = LatentDistribution {
                    mean: latents,
                    ..scaling
                };
                let image = pipeline
                    .codec()
                    .decode(scaled.mode().view(), &StopToken::new())
                    .unwrap();
                let (_, expected) = golden.tensor(&format!("{name}.image"));
                println!(
                    "{precision} {shape} {name} {:.1e}",
                    relative_error(&image, &expected)
                );
            }
        }
    }
}
