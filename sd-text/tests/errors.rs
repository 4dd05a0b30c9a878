//! Errors do not repeat their causes, and public types have the usual traits.

use std::{error::Error, fmt::Debug, hash::Hash, io};

use sd_text::{
    Branch, Chunk, Chunking, Chunks, Cleanup, ClipSkip, ClipSkipError, ClipTokenizer, Cut,
    Emphasis, EncodeOptions, EncodedBranch, EncodedEntry, InversionError, Layer, NamedInversion,
    Network, NetworkReport, PromptEmbedding, PromptEncoder, PromptText, Schedule, Segment, Side,
    Syntax, TextError, TextShape, TextStates, TextualInversion, TokenizerError, Tokens, Tower,
    TowerError, Warning, outside::chain, pickle::PickleError, prompt,
};
use serde::{Serialize, de::DeserializeOwned};

/// Checks that no error of the chain prints its cause, and that `chain` prints every one.
#[track_caller]
fn tells_once(error: &(dyn Error + 'static), causes: &[&str]) {
    let all = chain(error);
    let mut left = causes.iter();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        if let Some(source) = next {
            assert_eq!(left.next(), Some(&&*source.to_string()), "{all}");
            let (said, cause) = (error.to_string(), source.to_string());
            assert!(!said.contains(&cause), "\"{said}\" repeats \"{cause}\"");
            assert!(all.contains(&cause), "\"{all}\" lacks \"{cause}\"");
        }
    }
    assert_eq!(left.next(), None, "{all}");
}

#[test]
fn errors_do_not_repeat_their_causes() {
    let gone = || io::Error::other("gone");
    let path = || "a/b".into();
    tells_once(
        &TextError::Model {
            tower: 1,
            source: "out of memory".into(),
        },
        &["out of memory"],
    );
    tells_once(
        &TokenizerError::Read {
            path: path(),
            source: gone(),
        },
        &["gone"],
    );
    tells_once(
        &InversionError::Read {
            path: path(),
            source: gone(),
        },
        &["gone"],
    );
    // These print the cause themselves.
    let problem = TokenizerError::Json {
        path: path(),
        key: None,
        problem: "expected a comma".into(),
    };
    tells_once(&problem, &[]);
    assert_eq!(problem.to_string(), "a/b: expected a comma");
    let pickle = PickleError {
        path: path(),
        problem: gone().into(),
    };
    tells_once(&pickle, &[]);
    assert_eq!(pickle.to_string(), "a/b: gone");
}

#[test]
fn a_chain_is_safe_to_print() {
    let error = TextError::Model {
        tower: 0,
        source: "\u{1b}[2J\n".into(),
    };
    assert_eq!(chain(&error), "the text model failed: \\u{1b}[2J\\n");
}

#[test]
fn traits_of_public_types() {
    fn shared<T: Debug + Send + Sync>() {}
    fn cloned<T: Debug + Clone + Send + Sync>() {}
    fn data<T: Debug + Clone + PartialEq + Send + Sync>() {}
    fn written<T: Debug + Clone + PartialEq + Send + Sync + Serialize>() {}
    fn plain<T: Copy + Debug + Eq + Hash + Send + Sync + Serialize + DeserializeOwned>() {}
    fn error<T: Error + Send + Sync + 'static>() {}
    fn data_error<T: Error + Clone + PartialEq + Send + Sync + 'static>() {}

    shared::<ClipTokenizer>();
    cloned::<Tower>();
    cloned::<PromptEncoder>();
    cloned::<Branch<'_>>();
    cloned::<prompt::Node<'_>>();
    data::<Chunk>();
    data::<Chunks>();
    data::<EncodeOptions>();
    data::<EncodedBranch>();
    data::<EncodedEntry>();
    data::<Layer>();
    data::<NamedInversion>();
    data::<PromptEmbedding>();
    data::<PromptText>();
    data::<Schedule>();
    data::<Segment>();
    data::<TextShape>();
    data::<TextStates>();
    data::<TextualInversion>();
    data::<prompt::NodeKind>();
    data::<prompt::Tree>();
    written::<Cut>();
    written::<Network>();
    written::<NetworkReport>();
    written::<Tokens>();
    written::<Warning>();
    plain::<Chunking>();
    plain::<Cleanup>();
    plain::<ClipSkip>();
    plain::<Emphasis>();
    plain::<Side>();
    plain::<Syntax>();
    error::<InversionError>();
    error::<PickleError>();
    error::<TextError>();
    error::<TokenizerError>();
    data_error::<ClipSkipError>();
    data_error::<TowerError>();
}

#[test]
fn data_is_json() {
    fn json(value: &impl Serialize) -> String {
        serde_json::to_string(value).expect("the value can be written")
    }
    assert_eq!(json(&ClipSkip::PENULTIMATE), "2");
    assert!(serde_json::from_str::<ClipSkip>("0").is_err());
    assert_eq!(json(&Side::Negative), r#""negative""#);
    let prompt = PromptText::parse("<lora:a:1> | b", Side::Positive, Syntax::WebUi);
    assert_eq!(
        json(&prompt.networks()[0]),
        r#"{"name":"lora","arguments":["a","1"],"span":{"start":0,"end":10}}"#
    );
    let report = NetworkReport::new("UNet", vec![("CPUExecutionProvider".into(), 3)]);
    assert_eq!(
        json(&report),
        r#"{"network":"UNet","providers":[["CPUExecutionProvider",3]]}"#
    );
}
