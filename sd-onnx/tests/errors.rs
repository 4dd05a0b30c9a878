//! Errors do not repeat their causes, and public types have the usual traits.

use std::{error::Error as StdError, fmt::Debug, io, path::PathBuf};

use sd_onnx::{
    BuildError, Builder, Conversion, ConversionProgress, ConversionReport, ConvertError, Device,
    Error, GenerateError, Hashes, Inspection, ModelForm, ParseDeviceError, ParsePrecisionError,
    Part, PooledEmbeddings, Precision, RunError, RuntimeError, Stage, TextEmbeddings, TextEncoder,
    WeightType,
    schedulers::SchedulerConfig,
    text::{InversionError, TextualInversion, TokenizerError, TowerError},
};
use sd_text::{
    outside::chain,
    pickle::{self, PickleError},
};
use serde::{Serialize, de::DeserializeOwned};

/// Checks that no error of the chain prints its cause, and that `chain` prints all of them.
#[track_caller]
fn tells_once(error: &(dyn StdError + 'static), expected: &str) {
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

fn gone() -> io::Error {
    io::Error::other("gone")
}

fn path() -> PathBuf {
    "a/b".into()
}

fn unreadable() -> Error {
    Error::Io {
        path: path(),
        source: gone(),
    }
}

#[test]
fn errors_do_not_repeat_their_causes() {
    const UNREADABLE: &str = "a/b: cannot be read or written: gone";
    tells_once(&unreadable(), UNREADABLE);
    tells_once(&ConvertError::from(unreadable()), UNREADABLE);
    tells_once(&RunError::from(unreadable()), UNREADABLE);
    tells_once(
        &GenerateError::Backend {
            stage: Stage::Decoder,
            source: RunError::from(unreadable()).into(),
        },
        &format!("decoding the latents failed: {UNREADABLE}"),
    );

    let wrong = SchedulerConfig::from_json(r#"{"beta_start": -1}"#).unwrap_err();
    let reason = format!("the scheduler's configuration cannot be used: {wrong}");
    tells_once(
        &Error::Scheduler {
            path: path(),
            source: wrong.clone(),
        },
        &format!("a/b: {reason}"),
    );
    tells_once(
        &Error::Pipeline {
            path: path(),
            source: BuildError::from(wrong),
        },
        &format!("a/b: no pipeline can be built: {reason}"),
    );
    tells_once(
        &Error::TextEncoders {
            path: path(),
            source: TowerError::UnequalTokens {
                found: vec![77, 75],
            },
        },
        "a/b: the text encoders and tokenizers do not fit: the tokenizers of the towers return \
         [77, 75] tokens, expected equal numbers",
    );
    tells_once(
        &Error::from(TokenizerError::Read {
            path: path(),
            source: gone(),
        }),
        "a/b: cannot be read: gone",
    );
    tells_once(
        &Error::from(InversionError::Read {
            path: path(),
            source: gone(),
        }),
        "a/b: cannot be read: gone",
    );
    tells_once(
        &Error::from(PickleError {
            path: path(),
            problem: pickle::Problem::Read(gone()),
        }),
        "a/b: gone",
    );
    tells_once(
        &Error::from(RuntimeError::NotOnnxRuntime {
            path: path(),
            problem: "it is a text".into(),
        }),
        "a/b: not an ONNX Runtime library: it is a text",
    );
}

/// The path and the system's reason both reach the user, but only once.
#[test]
fn a_missing_file_is_named_with_the_reason() {
    let error = TextualInversion::load("no/such.safetensors").unwrap_err();
    let reason = error.source().expect("the system's reason").to_string();
    tells_once(
        &Error::from(error),
        &format!("no/such.safetensors: cannot be read: {reason}"),
    );
}

#[test]
fn traits_of_public_types() {
    fn cloned<T: Debug + Clone + Send + Sync>() {}
    fn data<T: Debug + Clone + PartialEq + Send + Sync>() {}
    fn written<T: Debug + Clone + PartialEq + Send + Sync + Serialize>() {}
    fn read<T: Debug + Clone + PartialEq + Send + Sync + Serialize + DeserializeOwned>() {}
    fn error<T: StdError + Send + Sync + 'static>() {}
    fn data_error<T: StdError + Clone + PartialEq + Send + Sync + 'static>() {}

    cloned::<Builder>();
    cloned::<Conversion>();
    cloned::<TextEncoder>();
    data::<PooledEmbeddings>();
    data::<TextEmbeddings>();
    written::<ConversionProgress>();
    written::<ConversionReport>();
    written::<Hashes>();
    written::<Inspection>();
    written::<Part>();
    read::<Device>();
    read::<ModelForm>();
    read::<Precision>();
    read::<WeightType>();
    error::<ConvertError>();
    error::<Error>();
    error::<RunError>();
    error::<RuntimeError>();
    data_error::<ParseDeviceError>();
    data_error::<ParsePrecisionError>();
}
