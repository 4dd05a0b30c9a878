//! Cleans up a text before it is tokenized.

mod ftfy;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The clean-up of a text before tokenization.
///
/// Default: [`Transformers`](Self::Transformers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Cleanup {
    /// The clean-up of transformers 5: NFC, every run of white space replaced by one space, lower
    /// case.
    #[default]
    Transformers,
    /// The clean-up of CLIP's own tokenizer and WebUI: first `fix_text` of the ftfy 6.3 library,
    /// then the steps of [`Transformers`](Self::Transformers).
    ///
    /// `fix_text` decodes HTML entities (where the text has no `<`), splits ligatures, and replaces
    /// full-width characters, curly quotes and unusual line breaks with plain ones. This matters
    /// for `it’s`, `“fox”` and text copied from the web.
    ///
    /// ftfy also repairs mojibake, which is UTF-8 text decoded as something else (`schÃ¶n`). This
    /// crate does not.
    Ftfy,
}

impl Cleanup {
    /// Returns the text to pass to the tokenizer.
    ///
    /// [`Transformers`](Self::Transformers) returns the text unchanged, because the tokenizer
    /// performs that clean-up itself.
    ///
    /// ```
    /// use sd_text::Cleanup;
    ///
    /// assert_eq!(Cleanup::Ftfy.apply("a “fox” &amp; its den"), "a \"fox\" & its den");
    /// assert_eq!(Cleanup::Transformers.apply("a “fox”"), "a “fox”");
    /// ```
    pub fn apply<'t>(self, text: &'t str) -> Cow<'t, str> {
        match self {
            Self::Transformers => text.into(),
            Self::Ftfy => ftfy::clean(text).into(),
        }
    }
}
