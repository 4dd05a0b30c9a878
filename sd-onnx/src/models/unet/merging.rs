//! Token merging (Bolya and Hoffman 2023, arXiv 2303.17604) before the self-attentions of the
//! largest resolution, as in tomesd 0.1.3 with `use_rand=False`.
//!
//! The tokens of an image form windows of 2 × 2. The first token of each window is a destination,
//! and all others are sources. The sources that are most similar to a destination are merged into
//! it. tomesd can also draw the destinations at random, but it never does in a batch of odd size,
//! such as a call with a single prompt.

use super::{UnetConfig, config::Level};
use crate::{graph::Places, network::Named, session::Input};

/// The sides of a window.
const WINDOW: usize = 2;

/// The tokens that a call merges, as the inputs of a graph.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenOrder {
    /// The tokens in the order of their numbers: first the destinations, then the sources.
    order: Vec<i64>,
    /// The place of each token in that order.
    places: Vec<i64>,
    destinations: i64,
    merged: i64,
}

impl TokenOrder {
    /// Merges a share of the tokens, at most 0.75, of an image of this height and width. Returns
    /// `None` if the share is less than one token.
    ///
    /// # Errors
    /// Returns a message if the image is smaller than a window.
    pub fn new([height, width]: [usize; 2], share: f32) -> Result<Option<Self>, String> {
        let count = height * width;
        // In f32, because 10 · 0.7 is less than 7 when an f32 of 0.7 is widened.
        let merged = (count as f32 * share) as usize;
        if merged == 0 {
            return Ok(None);
        }
        let windows = [height / WINDOW, width / WINDOW];
        let destinations = windows[0] * windows[1];
        if destinations == 0 {
            return Err(format!(
                "token merging needs at least {WINDOW} × {WINDOW} tokens, found {height} × {width}"
            ));
        }
        // A last row or column without a window has only sources.
        let is_destination = |&token: &usize| {
            let (y, x) = (token / width, token % width);
            y % WINDOW == 0 && x % WINDOW == 0 && y / WINDOW < windows[0] && x / WINDOW < windows[1]
        };
        let (first, last): (Vec<_>, Vec<_>) = (0..count).partition(is_destination);
        let mut places = vec![0; count];
        for (place, &token) in first.iter().chain(&last).enumerate() {
            places[token] = place as i64;
        }
        let order = first.into_iter().chain(last).map(|token| token as i64);
        Ok(Some(Self {
            order: order.collect(),
            places,
            destinations: destinations as i64,
            merged: merged as i64,
        }))
    }

    /// Calls `use_them` with the inputs of the graph.
    pub fn with_inputs<T>(&self, use_them: impl FnOnce(&[Named<'_>]) -> T) -> T {
        let shape = [self.order.len()];
        use_them(&[
            (Places::ORDER, Input::I64(&shape, &self.order)),
            (Places::PLACES, Input::I64(&shape, &self.places)),
            (
                Places::DESTINATIONS,
                Input::I64(&[1], std::slice::from_ref(&self.destinations)),
            ),
            (
                Places::MERGED,
                Input::I64(&[1], std::slice::from_ref(&self.merged)),
            ),
        ])
    }
}

/// Marks the level with the largest self-attentions.
pub(super) fn mark_level(levels: &mut [Level]) {
    let has = |level: &&mut Level| {
        (level.attention_down || level.attention_up) && !level.only_cross_attention
    };
    if let Some(level) = levels.iter_mut().find(has) {
        level.merges_tokens = true;
    }
}

impl UnetConfig {
    /// Returns the height and width, in tokens, of the largest self-attention, for latents of this
    /// height and width. Returns `None` if no level has self-attention.
    pub fn merging_size(&self, size: [usize; 2]) -> Option<[usize; 2]> {
        let level = self.levels.iter().position(|level| level.merges_tokens)?;
        let before = self.levels[..level].iter();
        let skip = before.map(|level| level.resnets + 1).sum::<usize>();
        let [_, height, width] = self.residual_shapes(size)[skip];
        Some([height, width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_of_each_window_is_a_destination() {
        let tokens = TokenOrder::new([3, 5], 0.3).unwrap().unwrap();
        // The last row and the last column have no windows.
        assert_eq!(tokens.order[..2], [0, 2]);
        assert_eq!(
            tokens.order[2..],
            [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
        );
        assert_eq!(tokens.places[..4], [0, 2, 1, 3]);
        assert_eq!((tokens.destinations, tokens.merged), (2, 4));
    }

    #[test]
    fn all_sources_can_be_merged() {
        let tokens = TokenOrder::new([4, 6], 0.75).unwrap().unwrap();
        assert_eq!(tokens.merged + tokens.destinations, 24);
    }

    #[test]
    fn shares_are_rounded_down_as_in_python() {
        for (share, expected) in [(0.1, 1), (0.3, 3), (0.6, 6), (0.7, 7), (0.65, 6)] {
            let tokens = TokenOrder::new([2, 5], share).unwrap().unwrap();
            assert_eq!(tokens.merged, expected, "{share}");
        }
    }

    #[test]
    fn less_than_a_token_is_none_and_less_than_a_window_an_error() {
        assert_eq!(TokenOrder::new([2, 2], 0.2), Ok(None));
        assert_eq!(TokenOrder::new([1, 8], 0.0), Ok(None));
        let error = TokenOrder::new([1, 8], 0.5).unwrap_err();
        assert!(error.contains("found 1 × 8"), "{error}");
    }
}
