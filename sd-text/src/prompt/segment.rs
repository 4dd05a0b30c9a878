//! What the weights of a prompt make of its text.

/// A stretch of text of one weight, or a `BREAK` between two.
#[derive(Debug, Clone, PartialEq)]
pub enum Segment {
    /// Text.
    Text {
        /// The text, without brackets and escapes.
        text: String,
        /// The weight: 1 outside of brackets. It may be 0, negative or infinite.
        weight: f64,
    },
    /// What follows begins a new chunk.
    Break,
}

impl Segment {
    /// A text of weight 1.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::weighted(text, 1.0)
    }

    /// A text.
    pub fn weighted(text: impl Into<String>, weight: f64) -> Self {
        Self::Text {
            text: text.into(),
            weight,
        }
    }
}
