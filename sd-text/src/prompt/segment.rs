//! Pieces of a text with their weights.

/// A piece of text with one weight, or a `BREAK` between two pieces.
#[derive(Debug, Clone, PartialEq)]
pub enum Segment {
    /// Text.
    Text {
        /// The text, without brackets and escapes.
        text: String,
        /// The weight. It is 1 outside of brackets, and may be 0, negative or infinite.
        weight: f64,
    },
    /// A `BREAK`: the text after it begins a new chunk.
    Break,
}

impl Segment {
    /// Creates a text of weight 1.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::weighted(text, 1.0)
    }

    /// Creates a text with a weight.
    pub fn weighted(text: impl Into<String>, weight: f64) -> Self {
        Self::Text {
            text: text.into(),
            weight,
        }
    }
}
