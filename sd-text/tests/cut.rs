//! Checks where a prompt is cut, in bytes of the original text.

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use sd_text::{ClipTokenizer, Cut};
use serde_json::json;

use common::{emoji, full, load};

/// Checks that `rest` is cut off from `kept + rest`. 75 tokens fit.
#[track_caller]
fn cut(kept: &str, rest: &str, tokens: usize) {
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let encoded = tokenizer.encode(&format!("{kept}{rest}"));
    assert_eq!(
        encoded.cut,
        Some(Cut {
            tokens,
            text: rest.to_owned(),
            offset: kept.len()
        })
    );
    assert_eq!(
        (encoded.used, encoded.ids.len(), encoded.ids[76]),
        (77, 77, tokenizer.eos())
    );
}

#[test]
fn none_up_to_75_tokens() {
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    for count in [0, 1, 74, 75] {
        let tokens = tokenizer.encode(&"cat ".repeat(count));
        assert_eq!((tokens.used, tokens.cut), (count + 2, None));
        assert_eq!(tokens.ids[count + 1], tokenizer.eos());
    }
}

#[test]
fn from_the_76th_on() {
    cut(&"cat ".repeat(75), "cat", 1);
    cut(&"cat ".repeat(75), "cat and dog ", 3);
    cut(&"cat  \n".repeat(75), "Cat!", 2);
}

#[test]
fn inside_a_word() {
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let text = format!("{}supercalifragilistic", "cat ".repeat(74));
    let cut = tokenizer.encode(&text).cut.unwrap();
    assert!(cut.offset > 296 && cut.offset < text.len(), "{cut:?}");
    assert_eq!(cut.text, text[cut.offset..]);
}

#[test]
fn behind_characters_of_several_bytes() {
    cut(&"é ".repeat(75), "é", 1);
    // Each character has two tokens, and only the first token of the 38th was kept.
    cut(&"世".repeat(37), &"世".repeat(13), 25);
}

#[test]
fn behind_what_normalization_shortens_or_lengthens() {
    // NFC shortens the decomposed é from three bytes to two.
    cut(&"e\u{301} ".repeat(75), "e\u{301}", 1);
    cut(&"cafe\u{301} ".repeat(75), "CAFE\u{301} ", 1);
    // NFC turns U+0344 into two characters. Lower-casing turns U+0130 into two characters and
    // U+212A into one of a single byte.
    cut(&"\u{212a} ".repeat(75), "\u{212a}at", 1);
    cut(&"cat\u{3000}\u{2028} ".repeat(75), "dog", 1);
}

#[test]
fn a_character_of_which_a_part_was_kept() {
    // Each dotted I becomes "i" and a mark. The 75th token is the "i" and the 76th the mark of one
    // original character.
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let each = tokenizer.encode("\u{130}").used - 2;
    assert_eq!(each, 2);
    cut(&"\u{130} ".repeat(37), "\u{130} \u{130}", 3);
}

#[test]
fn special_tokens_in_the_text() {
    cut(&"<|endoftext|>".repeat(75), "<|startoftext|>a", 2);
    cut(&"<|endoftext|> ".repeat(75), "é<|endoftext|>", 2);
}

/// Words between spaces are tokenized separately, so their token counts determine the word in which
/// every window ends.
#[test]
fn in_the_word_that_the_counts_say() {
    let units = [
        "cat",
        "CAF\u{c9}",
        "cafe\u{301}",
        "\u{130}stanbul",
        "\u{212a}",
        "\u{fb01}",
        "\u{344}a",
        "\u{1f98a}",
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
        "1\u{fe0f}\u{20e3}",
        "it's",
        "<|endoftext|>",
        "\u{4f60}\u{597d}",
        "\u{1100}\u{1161}\u{11a8}",
        "\u{ac00}\u{11a8}",
        "\u{939}\u{93f}\u{928}\u{94d}",
        "q\u{307}\u{323}",
        "\u{1e9e}",
        "\u{10400}",
        "1234",
        "!?",
        "\u{0}",
        "\u{2f800}",
        "\u{e000}",
    ];
    let uncut = load(&full(&json!({"model_max_length": 10_000})));
    let text = units.join(" \u{3000}\n");
    let mut ends = Vec::new();
    for unit in units {
        let start = ends
            .last()
            .map_or(0, |&(_, _, end): &(usize, usize, usize)| {
                end + " \u{3000}\n".len()
            });
        let before = ends.last().map_or(0, |&(tokens, ..)| tokens);
        ends.push((
            before + uncut.encode(unit).used - 2,
            start,
            start + unit.len(),
        ));
    }
    let (all, ..) = *ends.last().unwrap();
    assert_eq!(uncut.encode(&text).used, all + 2);

    assert!((50..76).contains(&all));
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let mut last = 0;
    for kept in 0..all {
        // The words in front leave room for `kept` tokens.
        let front = "cat ".repeat(75 - kept);
        let mut cut = tokenizer.encode(&format!("{front}{text}")).cut.unwrap();
        cut.offset -= front.len();
        let index = ends.iter().position(|&(tokens, ..)| tokens > kept).unwrap();
        let before = index.checked_sub(1).map_or(0, |index| ends[index].0);
        let (_, start, end) = ends[index];
        if kept == before {
            assert_eq!(cut.offset, start, "{kept} kept");
        }
        assert!(
            (start..end).contains(&cut.offset) && cut.offset >= last,
            "{kept} kept: {cut:?} should be in {start}..{end}"
        );
        assert_eq!(
            (cut.tokens, cut.text.as_str()),
            (all - kept, &text[cut.offset..])
        );
        last = cut.offset;
    }
}

#[test]
fn in_a_window_of_another_size() {
    let tokenizer = load(&full(&json!({"model_max_length": 4})));
    let tokens = tokenizer.encode("a café and é");
    assert_eq!(
        tokens.cut,
        Some(Cut {
            tokens: 2,
            text: "and é".into(),
            offset: 8
        })
    );
    assert_eq!(tokens.ids.len(), 4);

    let tokenizer = load(&full(&json!({"model_max_length": 2})));
    let tokens = tokenizer.encode("a");
    assert_eq!(tokens.ids, [tokenizer.bos(), tokenizer.eos()]);
    assert_eq!(
        tokens.cut,
        Some(Cut {
            tokens: 1,
            text: "a".into(),
            offset: 0
        })
    );
}
