//! A cache of embeddings by text and options.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{EncodeOptions, PromptEmbedding};

/// The most bytes of embeddings that a cache holds: about 270 chunks of Stable Diffusion 1.x.
const MOST_BYTES: usize = 64 << 20;

/// What an embedding depends on, besides the tokenizer and the model.
type Key = (Arc<str>, EncodeOptions);

/// The embeddings that were requested most recently.
#[derive(Default)]
pub(super) struct Cache(Mutex<Held>);

#[derive(Default)]
struct Held {
    /// Each embedding with the value of `now` at its last use.
    texts: HashMap<Key, (Arc<PromptEmbedding>, u64)>,
    bytes: usize,
    now: u64,
}

impl Cache {
    pub fn get(&self, key: &Key) -> Option<Arc<PromptEmbedding>> {
        let mut held = self.lock();
        held.now += 1;
        let now = held.now;
        let (embedding, asked) = held.texts.get_mut(key)?;
        *asked = now;
        Some(embedding.clone())
    }

    /// Stores an embedding, and drops the least recently requested ones if there is no room. An
    /// embedding that is larger than the whole cache is not stored.
    pub fn put(&self, key: Key, embedding: Arc<PromptEmbedding>) {
        let mut held = self.lock();
        let new = bytes(&key, &embedding);
        if new > MOST_BYTES {
            return;
        }
        held.now += 1;
        let now = held.now;
        if let Some((old, _)) = held.texts.insert(key.clone(), (embedding, now)) {
            held.bytes -= bytes(&key, &old);
        }
        held.bytes += new;
        while held.bytes > MOST_BYTES {
            let oldest = held.texts.iter().min_by_key(|(_, (_, asked))| *asked);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            if let Some((old, _)) = held.texts.remove(&oldest) {
                held.bytes -= bytes(&oldest, &old);
            }
        }
    }

    /// Ignores poisoning: no operation that can panic leaves the cache half changed.
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes((text, _): &Key, embedding: &PromptEmbedding) -> usize {
    let cut = embedding.tokens.cut.as_ref();
    let texts = text.len() + cut.map_or(0, |cut| cut.text.len());
    texts + size_of::<f32>() * (embedding.embedding.len() + 2 * embedding.weights.len())
}

#[cfg(test)]
mod tests {
    use ndarray::{ArcArray, Ix3};

    use super::*;

    fn key(text: &str) -> Key {
        (text.into(), EncodeOptions::default())
    }

    /// Returns an embedding of this many MiB.
    fn embedding(mebibytes: usize) -> Arc<PromptEmbedding> {
        let zeros: ArcArray<f32, Ix3> = ArcArray::zeros((1, 1024 * mebibytes, 256));
        Arc::new(zeros.into())
    }

    #[test]
    fn what_was_not_asked_for_the_longest_goes() {
        let cache = Cache::default();
        for text in ["a", "b", "c"] {
            cache.put(key(text), embedding(20));
        }
        assert!(cache.get(&key("a")).is_some());
        cache.put(key("d"), embedding(20));
        assert!(cache.get(&key("b")).is_none());
        assert!(
            ["a", "c", "d"]
                .iter()
                .all(|text| cache.get(&key(text)).is_some())
        );
        // This replaces the entry that is already there.
        cache.put(key("d"), embedding(20));
        assert!(cache.get(&key("a")).is_some());
        cache.put(key("e"), embedding(65));
        assert!(cache.get(&key("e")).is_none() && cache.get(&key("a")).is_some());
        assert_eq!(cache.lock().bytes / (1 << 20), 60);
    }

    #[test]
    fn options_are_part_of_the_key() {
        let cache = Cache::default();
        cache.put(key("a"), embedding(1));
        let other = EncodeOptions::default().min_chunks(2);
        assert!(cache.get(&("a".into(), other)).is_none());
    }
}
