//! What is done to a text before it is tokenized.

mod ftfy;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Which tokenizer's clean-up of a text is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Cleanup {
    /// transformers 5: NFC, runs of white space to one space, lower case. The default.
    #[default]
    Transformers,
    /// CLIP's own and WebUI's: `fix_text` of the library ftfy 6.3 before that, which decodes HTML entities (where the text has
    /// no `<`), takes ligatures apart, and makes full-width characters, curly quotes and odd line breaks plain. It matters
    /// for `it’s`, `“fox”` and text copied from the web.
    ///
    /// ftfy also decodes mojibake, UTF-8 that was read as something else (`schÃ¶n`). We don't.
    Ftfy,
}

impl Cleanup {
    /// The text as it goes into the tokenizer, whose own first step is [`Transformers`](Self::Transformers): that leaves it as it is.
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
