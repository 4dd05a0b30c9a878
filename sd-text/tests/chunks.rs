//! Compares chunks with the chunks of WebUI's `tokenize_line` over the same ids, exactly. The
//! expected chunks are in `golden/chunks.json` (see `golden/chunks.py`).

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::num::NonZeroUsize;

use sd_text::{Chunking, Cleanup, ClipTokenizer, Cut, Segment, Syntax, attention};
use serde_json::json;

use common::{chunk_rows, emoji, full, golden, load};

#[test]
fn as_webui() {
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let rows = chunk_rows(&golden("chunks.json"));
    assert_eq!(rows.len(), 200);
    let mut count = 0;
    for (text, expected) in rows {
        let segments = attention(&text, Syntax::WebUi);
        let parted = tokenizer.chunks(&segments, &Chunking::default(), Cleanup::Transformers);
        assert_eq!(
            (parted.chunks.len(), parted.cut),
            (expected.len(), None),
            "{text:?}"
        );
        count += parted.chunks.len();
        for (chunk, (mut ids, mut weights)) in parted.chunks.iter().zip(expected) {
            ids.resize(77, tokenizer.pad());
            weights.resize(77, 1.0);
            assert_eq!(chunk.ids, ids, "{text:?}");
            assert_eq!(chunk.weights, weights, "{text:?}");
            assert_eq!(chunk.ids[chunk.used - 1], tokenizer.eos());
            assert!(
                chunk.ids[chunk.used..]
                    .iter()
                    .all(|&id| id == tokenizer.pad())
            );
        }
    }
    assert!(count > 600);
}

fn cut(text: &str, chunking: Chunking) -> (usize, Option<Cut>) {
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let chunks = tokenizer.chunks(
        &attention(text, Syntax::WebUi),
        &chunking,
        Cleanup::Transformers,
    );
    (chunks.chunks.len(), chunks.cut)
}

#[test]
fn cuts_only_when_asked() {
    let long = "cat dog ".repeat(100);
    assert_eq!(cut(&long, Chunking::default()), (3, None));
    let (one, two, three) = (
        NonZeroUsize::MIN,
        NonZeroUsize::new(2).unwrap(),
        NonZeroUsize::new(3).unwrap(),
    );
    assert_eq!(cut(&long, Chunking::default().max_chunks(three)), (3, None));
    let expected = |tokens, offset: usize, text: &str| {
        Some(Cut {
            tokens,
            text: text[offset..].to_owned(),
            offset,
        })
    };
    assert_eq!(
        cut(&long, Chunking::default().max_chunks(two)),
        (2, expected(50, 600, &long))
    );
    assert_eq!(
        cut(&long, Chunking::default().max_chunks(one)),
        (1, expected(125, 300, &long))
    );
    // The last chunk is filled to its end whether or not there are commas. Brackets do not count in
    // the text and the offset.
    let commas = format!("({}, (dog:1.2)) {}", "cat ".repeat(60), "fox ".repeat(30));
    let text = format!("{}, dog {}", "cat ".repeat(60), "fox ".repeat(30));
    assert_eq!(
        cut(&commas, Chunking::default().max_chunks(one)),
        (1, expected(17, 298, &text))
    );
    assert_eq!(
        cut(
            "cat BREAK dog fox BREAK",
            Chunking::default().max_chunks(one)
        ),
        (1, expected(2, 3, "catdog fox"))
    );
    assert_eq!(
        cut("cat BREAK", Chunking::default().max_chunks(one)),
        (1, None)
    );
}

#[test]
fn comma_reach() {
    let text = format!("{}, {}", "cat ".repeat(70), "dog ".repeat(20));
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let used = |reach| {
        let chunks = tokenizer.chunks(
            &[Segment::plain(&*text)],
            &Chunking::default().comma_reach(reach),
            Cleanup::Transformers,
        );
        chunks
            .chunks
            .iter()
            .map(|chunk| chunk.used - 2)
            .collect::<Vec<_>>()
    };
    assert_eq!(used(20), [71, 20]);
    assert_eq!(used(4), [75, 16]);
    assert_eq!(used(5), [71, 20]);
    assert_eq!(used(0), [75, 16]);
}

#[test]
fn windows_of_other_sizes() {
    for length in 2..8 {
        let tokenizer = load(&full(
            &json!({"model_max_length": length, "pad_token": "!"}),
        ));
        let chunks = tokenizer.chunks(
            &attention("(a, cat, a:2) dog BREAK fox,", Syntax::WebUi),
            &Chunking::default(),
            Cleanup::Transformers,
        );
        for chunk in &chunks.chunks {
            assert_eq!((chunk.ids.len(), chunk.weights.len()), (length, length));
            assert_eq!(
                (chunk.ids[0], chunk.ids[chunk.used - 1]),
                (tokenizer.bos(), tokenizer.eos())
            );
            assert!(chunk.ids[chunk.used..].iter().all(|&id| id == 0));
        }
        let tokens: usize = chunks.chunks.iter().map(|chunk| chunk.used - 2).sum();
        assert_eq!(
            tokens + chunks.cut.as_ref().map_or(0, |cut| cut.tokens),
            8,
            "{length}"
        );
        assert_eq!(chunks.cut.is_some(), length == 2);
    }
}
