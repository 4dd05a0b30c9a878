//! Names that stand for ids of their own, found as WebUI finds textual inversions (`find_embedding_at_position` of
//! `modules/textual_inversion/textual_inversion.py`): by their tokens, the longest first.

use std::collections::HashMap;
use std::ops::Range;

use crate::NamedInversion;

/// A token of a text, or a name in it with all its ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// At least one, in a row.
    pub ids: Range<u32>,
    /// The byte of the text at which it begins.
    pub start: usize,
}

/// How many ids pieces have.
pub(crate) fn count(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.ids.len()).sum()
}

#[derive(Debug, Default)]
pub(super) struct Names {
    /// By the first token, those of the most tokens first.
    by_first: HashMap<u32, Vec<Name>>,
}

#[derive(Debug)]
struct Name {
    inversion: NamedInversion,
    tokens: Vec<u32>,
    ids: Range<u32>,
}

impl Names {
    /// `tokens`, at least one, that no other name has, stand for `ids`, at least one, that no other has either.
    pub fn add(&mut self, inversion: NamedInversion, tokens: &[u32], ids: Range<u32>) {
        let names = self.by_first.entry(tokens[0]).or_default();
        let at = names.partition_point(|other| other.tokens.len() >= tokens.len());
        let name = Name {
            inversion,
            tokens: tokens.to_vec(),
            ids,
        };
        names.insert(at, name);
    }

    /// The name that has these tokens.
    pub fn named(&self, tokens: &[u32]) -> Option<&str> {
        self.first_of(tokens)
            .find(|name| name.tokens == tokens)
            .map(|name| name.inversion.name.as_str())
    }

    /// The name that an id is of.
    pub fn of(&self, id: u32) -> Option<&NamedInversion> {
        let mut all = self.by_first.values().flatten();
        all.find(|name| name.ids.contains(&id))
            .map(|name| &name.inversion)
    }

    /// The pieces that tokens at these bytes are.
    pub fn pieces(&self, tokens: &[u32], offsets: &[(usize, usize)]) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(tokens.len());
        let mut at = 0;
        while let (Some(&token), Some(&(start, _))) = (tokens.get(at), offsets.get(at)) {
            let rest = &tokens[at..];
            let name = self
                .first_of(rest)
                .find(|name| rest.starts_with(&name.tokens));
            let (ids, length) = match name {
                Some(name) => (name.ids.clone(), name.tokens.len()),
                None => (token..token + 1, 1),
            };
            pieces.push(Piece { ids, start });
            at += length;
        }
        pieces
    }

    /// Names that begin as `tokens` do.
    fn first_of(&self, tokens: &[u32]) -> impl Iterator<Item = &Name> {
        let names = tokens.first().and_then(|first| self.by_first.get(first));
        names.into_iter().flatten()
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
        names.add(named("a b"), &[1, 2], 100..102);
        names.add(named("a b c"), &[1, 2, 3], 102..103);
        names.add(named("a d"), &[1, 4], 103..104);
        names.add(named("b a"), &[2, 1], 104..105);
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
        assert_eq!(found(&[2, 1, 2]), [(104, 1, 0), (2, 1, 20)]);
        assert_eq!(found(&[1, 1]), [(1, 1, 0), (1, 1, 10)]);
        assert_eq!(names.of(101), Some(&named("a b")));
        assert_eq!(names.of(1), None);
        assert_eq!(names.named(&[1, 4]), Some("a d"));
        assert_eq!(names.named(&[1]), None);
    }
}
