//! Errors do not repeat their causes, and public types have the usual traits.

use std::{error::Error, fmt::Debug};

use sd_core::{
    BuildError, Call, ClassifierFree, Conditioning, Defaults, Event, EventStream, Events,
    GenerateError, Generation, Guidance, Guided, ImageSize, Infotext, InfotextError, Inputs,
    LatentDistribution, LatentRgb, LoraBlocks, LoraCall, LoraInfo, LoraNetworks, LoraWeight,
    OnStop, Picture, Pipeline, PipelineBuilder, Problem, Problems, Progress, Prompt, PromptOptions,
    RefinerShare, RefinerSwitch, Reproduction, Request, SchedulerConfig, SizeIds, Sizes, Stage,
    StepInfo, StopToken, Stopped, Timings, Unfinished, Update,
    guidance::{Apg, ApgForm, GuidanceStep, Memory, Method, ZeroStar},
};
use sd_text::{Side, TextError, outside::chain};
use serde::{Serialize, de::DeserializeOwned};

/// Checks that no error of the chain prints its cause, and that `chain` prints all of them.
#[track_caller]
fn tells_once(error: &(dyn Error + 'static), expected: &str) {
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        if let Some(source) = next {
            let (said, cause) = (error.to_string(), source.to_string());
            assert!(!said.contains(&cause), "\"{said}\" repeats \"{cause}\"");
        }
    }
    assert_eq!(chain(error), expected);
}

#[test]
fn errors_do_not_repeat_their_causes() {
    let wrong = SchedulerConfig::from_json(r#"{"beta_start": -1}"#).unwrap_err();
    let reason = wrong.to_string();
    tells_once(
        &BuildError::from(wrong),
        &format!("the scheduler's configuration cannot be used: {reason}"),
    );
    tells_once(
        &BuildError::Preview("out of memory".into()),
        "fitting the preview failed: out of memory",
    );
    let problems = ImageSize::new(63, 64).unwrap_err();
    let reason = "width is 63, expected a positive multiple of 8";
    tells_once(&BuildError::from(problems.clone()), reason);
    tells_once(&GenerateError::from(problems), reason);
    tells_once(
        &GenerateError::from(TextError::Model {
            tower: 0,
            source: "out of memory".into(),
        }),
        "the prompt cannot be encoded: the text model failed: out of memory",
    );
    tells_once(
        &GenerateError::Backend {
            stage: Stage::Decoder,
            source: "out of memory".into(),
        },
        "decoding the latents failed: out of memory",
    );
}

#[test]
fn stages_are_text_and_json() {
    let denoiser = |refiner, step| Stage::Denoiser {
        refiner,
        step,
        steps: step.map(|_| 20),
        timestep: 801.0,
    };
    let encoder = |side, tower| Stage::TextEncoder { side, tower };
    for (stage, text, json) in [
        (
            encoder(Side::Positive, 0),
            "encoding the prompt",
            r#"{"text_encoder":{"side":"positive","tower":0}}"#,
        ),
        (
            encoder(Side::Negative, 1),
            "encoding the negative prompt with text encoder 2",
            r#"{"text_encoder":{"side":"negative","tower":1}}"#,
        ),
        (
            denoiser(false, Some(3)),
            "the denoiser at step 3, timestep 801",
            r#"{"denoiser":{"refiner":false,"step":3,"steps":20,"timestep":801.0}}"#,
        ),
        (
            denoiser(true, None),
            "the refiner at timestep 801",
            r#"{"denoiser":{"refiner":true,"step":null,"steps":null,"timestep":801.0}}"#,
        ),
        (
            Stage::Noise { seed: 7 },
            "the noise of seed 7",
            r#"{"noise":{"seed":7}}"#,
        ),
        (Stage::Loras, "applying the LoRAs", r#""loras""#),
        (Stage::Sampler, "the sampler", r#""sampler""#),
        (Stage::Decoder, "decoding the latents", r#""decoder""#),
        (Stage::Encoder, "encoding the image", r#""encoder""#),
        (Stage::Thread, "starting a thread", r#""thread""#),
    ] {
        assert_eq!(stage.to_string(), text);
        assert_eq!(serde_json::to_string(&stage).unwrap(), json);
    }
}

#[test]
fn traits_of_public_types() {
    fn shared<T: Debug + Send + Sync>() {}
    fn sent<T: Debug + Send>() {}
    fn cloned<T: Debug + Clone + Send + Sync>() {}
    fn data<T: Debug + Clone + PartialEq + Send + Sync>() {}
    fn written<T: Debug + Clone + PartialEq + Send + Sync + Serialize>() {}
    fn read<T: Debug + Clone + PartialEq + Send + Sync + Serialize + DeserializeOwned>() {}
    fn error<T: Error + Send + Sync + 'static>() {}

    shared::<OnStop>();
    sent::<Events>();
    sent::<EventStream>();
    sent::<Guided<'_>>();
    cloned::<Call<'_>>();
    cloned::<Defaults>();
    cloned::<Event<'_>>();
    cloned::<Generation>();
    cloned::<Guidance>();
    cloned::<LoraNetworks>();
    cloned::<GuidanceStep<'_>>();
    cloned::<Picture>();
    cloned::<Pipeline>();
    cloned::<PipelineBuilder>();
    cloned::<Progress<'_>>();
    cloned::<Reproduction>();
    cloned::<Request>();
    cloned::<StopToken>();
    cloned::<Update>();
    data::<Conditioning>();
    data::<Infotext>();
    data::<Inputs>();
    data::<LatentDistribution>();
    data::<LoraBlocks>();
    data::<LoraCall>();
    data::<LoraInfo>();
    data::<LoraWeight>();
    data::<Memory>();
    data::<SizeIds>();
    data::<Stopped>();
    data::<Unfinished>();
    written::<Problem>();
    written::<Problems>();
    written::<Stage>();
    written::<StepInfo>();
    written::<Timings>();
    read::<Apg>();
    read::<ApgForm>();
    read::<ClassifierFree>();
    read::<ImageSize>();
    read::<LatentRgb>();
    read::<Method>();
    read::<Prompt>();
    read::<PromptOptions>();
    read::<RefinerShare>();
    read::<RefinerSwitch>();
    read::<Sizes>();
    read::<ZeroStar>();
    error::<BuildError>();
    error::<GenerateError>();
    error::<InfotextError>();
    error::<Problems>();
}
