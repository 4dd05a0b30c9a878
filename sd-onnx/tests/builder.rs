//! Tests the effect of each setting of the builder, and the name and hash of a loaded model.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, ops::ControlFlow, sync::Arc};

use common::{Model, emoji, load};
use sd_onnx::{Event, Pipeline, Request, StopToken};
use sd_text::outside::chain;

#[test]
fn max_pixels_is_the_largest_picture() {
    let pipeline = sd_onnx::builder()
        .max_pixels(96 * 96)
        .load(emoji())
        .unwrap();
    let request = Request::new("a fox").steps(1).size(96, 104);
    let error = chain(&pipeline.generate(&request).unwrap_err());
    assert_eq!(error, "size is 96×104, expected at most 9216 pixels");
    assert!(load(&emoji()).generate(&request).is_ok());
    // The model's own size is checked when the model is loaded.
    let error = sd_onnx::builder().max_pixels(64).load(emoji()).unwrap_err();
    assert!(
        chain(&error).contains("size is 96×96, expected at most 64 pixels"),
        "{error}"
    );
}

#[test]
fn threads_are_at_most_as_many_as_the_machine_runs() {
    let most = std::thread::available_parallelism().unwrap();
    let threads = |asked| format!("{:?}", sd_onnx::builder().threads(asked));
    for (asked, used) in [(0, 0), (1, 1), (u16::MAX, most.get())] {
        let expected = format!(" threads: {used},");
        assert!(threads(asked).contains(&expected), "{}", threads(asked));
    }
}

/// Returns the picture that each step belongs to.
fn order(pipeline: &Pipeline) -> Vec<usize> {
    let request = Request::new("a fox").steps(2).count(3);
    let mut order = Vec::new();
    let observer = |event: Event<'_>| {
        if let Event::Step(progress) = event {
            order.push(progress.step.picture);
        }
        ControlFlow::Continue(())
    };
    pipeline
        .run(&[request], &StopToken::new(), observer)
        .unwrap();
    order
}

#[test]
fn batch_is_how_many_go_through_the_loop_together() {
    assert_eq!(order(&load(&emoji())), [0, 0, 1, 1, 2, 2]);
    let two = sd_onnx::builder().max_batch(2).load(emoji()).unwrap();
    assert_eq!(order(&two), [0, 1, 0, 1, 2, 2]);
    let none = sd_onnx::builder().max_batch(0).load(emoji()).unwrap_err();
    assert!(
        chain(&none).contains("max_batch is 0, expected 1 to 1024"),
        "{none}"
    );
}

#[test]
fn a_codec_takes_the_place_of_the_folders() {
    let folder = tempfile::tempdir().unwrap();
    Model::of_shape("four-last").write(folder.path());
    let (codec, own) = (load(&emoji()).codec().clone(), load(folder.path()));
    assert_ne!(codec.factor(), own.codec().factor());
    // With a given codec, the folder's own codec is not read.
    fs::remove_dir_all(folder.path().join("vae")).unwrap();
    assert!(sd_onnx::builder().load(folder.path()).is_err());
    assert!(sd_onnx::builder().load_denoiser(folder.path()).is_ok());
    let other = sd_onnx::builder().codec(codec.clone()).load(folder.path());
    let other = other.unwrap();
    assert!(Arc::ptr_eq(other.codec(), &codec));
    let request = Request::new("a").steps(1).size(64, 64).seed(1);
    let latents = |pipeline: &Pipeline| {
        pipeline.generate(&request).unwrap().pictures[0]
            .latents
            .dim()
    };
    assert_eq!(
        (latents(&own), latents(&other)),
        ((1, 4, 32, 32), (1, 4, 8, 8))
    );
}

#[test]
fn a_model_knows_its_name_and_hash() {
    let pipeline = load(&emoji());
    // The output of `sha256sum`.
    let unet = "00ddcaea42807e7e99e10b1337ad6e4e02e4468b5d6734abe70986509e688fbf";
    assert_eq!(pipeline.model(), Some(("emoji", Some(unet))));
    assert_eq!(pipeline.clone().model(), pipeline.model());
}
