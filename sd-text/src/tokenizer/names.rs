//! Names of textual inversions, found as in WebUI (`find_embedding_at_position` of
//! `modules/textual_inversion/textual_inversion.py`): by their tokens, the longest name first.

use std::collections::HashMap;
use std::ops::Range;

use crate::NamedInversion;

/// A token of a text, or a name in the text with all ids of its vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The ids, at least one, consecutive.
    pub ids: Range<u32>,
    /// The byte of the text at which the piece begins.
    pub start: usize,
}

/// Returns the number of ids in the pieces.
pub(crate) fn count(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.ids.len()).sum()
}

#[derive(Debug, Default)]
pub(super) struct Names {
    /// The inversions by ascending ids.
    inversions: Vec<(Range<u32>, NamedInversion)>,
    /// The index of the inversion that the tokens of a name stand for.
    by_tokens: HashMap<Vec<u32>, usize>,
    /// For each token, the lengths of the names that begin with it, in tokens. Each length is
    /// listed once, the largest first.
    lengths: HashMap<u32, Vec<usize>>,
}

impl Names {
    /// Maps each of `spellings` to `ids`. A spelling must have at least one token and must not be
    /// in use. There must be at least one id, above the ids of all other names.
    pub fn add(
        &mut self,
        inversion: NamedInversion,
        spellings: impl IntoIterator<Item = Vec<u32>>,
        ids: Range<u32>,
    ) {
        for tokens in spellings {
            let lengths = self.lengths.entry(tokens[0]).or_default();
            if let Err(at) = lengths.binary_search_by(|length| tokens.len().cmp(length)) {
                lengths.insert(at, tokens.len());
            }
            self.by_tokens.insert(tokens, self.inversions.len());
        }
        self.inversions.push((ids, inversion));
    }

    /// Returns the name that these tokens stand for.
    pub fn named(&self, tokens: &[u32]) -> Option<&str> {
        let &index = self.by_tokens.get(tokens)?;
        Some(&self.inversions[index].1.name)
    }

    /// Returns the inversion that an id belongs to.
    pub fn of(&self, id: u32) -> Option<&NamedInversion> {
        let after = self.inversions.partition_point(|(ids, _)| ids.start <= id);
        let (ids, inversion) = &self.inversions[after.checked_sub(1)?];
        ids.contains(&id).then_some(inversion)
    }

    /// Splits tokens, which have these byte offsets, into pieces.
    pub fn pieces(&self, tokens: &[u32], offsets: &[(usize, usize)]) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(tokens.len());
        let mut at = 0;
        while let (Some(&token), Some(&(start, _))) = (tokens.get(at), offsets.get(at)) {
            let rest = &tokens[at..];
            let name = self.lengths.get(&token).and_then(|lengths| {
                lengths.iter().find_map(|&length| {
                    let &index = self.by_tokens.get(rest.get(..length)?)?;
                    Some((self.inversions[index].0.clone(), length))
                })
            });
            let (ids, length) = name.unwrap_or((token..token + 1, 1));
            pieces.push(Piece { ids, start });
            at += length;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_wins() {
        let mut names = Names::default();
        let named = |name: &str| NamedInversion {
            name: name.to_owned(),
            sha256: format!("of {name}"),
        };
        names.add(named("a b"), vec![vec![1, 2]], 100..102);
        names.add(named("a b c"), vec![vec![1, 2, 3], vec![3, 5, 3]], 102..103);
        names.add(named("a d"), vec![vec![1, 4]], 103..104);
        names.add(named("b a"), vec![vec![2, 1]], 110..111);
        names.add(named("e"), vec![vec![6]], 111..113);
        let found = |tokens: &[u32]| {
            let offsets: Vec<_> = (0..tokens.len()).map(|at| (10 * at, 0)).collect();
            let pieces = names.pieces(tokens, &offsets);
            assert!(pieces.windows(2).all(|pair| pair[0].start < pair[1].start));
            pieces
                .into_iter()
                .map(|piece| (piece.ids.start, piece.ids.len(), piece.start))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(&[]), []);
        assert_eq!(found(&[1, 2, 3]), [(102, 1, 0)]);
        assert_eq!(found(&[1, 2, 4]), [(100, 2, 0), (4, 1, 20)]);
        assert_eq!(found(&[1, 2, 1, 4]), [(100, 2, 0), (103, 1, 20)]);
        assert_eq!(found(&[2, 1, 2]), [(110, 1, 0), (2, 1, 20)]);
        assert_eq!(found(&[3, 5, 3]), [(102, 1, 0)]);
        assert_eq!(found(&[6, 1, 6]), [(111, 2, 0), (1, 1, 10), (111, 2, 20)]);
        assert_eq!(found(&[1, 1]), [(1, 1, 0), (1, 1, 10)]);
        assert_eq!(names.of(101), Some(&named("a b")));
        assert_eq!(names.of(102), Some(&named("a b c")));
        assert_eq!(names.of(110), Some(&named("b a")));
        assert_eq!([1, 99, 104, 109, 113].map(|id| names.of(id)), [None; 5]);
        assert_eq!(names.named(&[1, 4]), Some("a d"));
        assert_eq!(names.named(&[1]), None);
    }
}
