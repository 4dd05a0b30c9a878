//! The model's name and hash, for infotexts.

use std::{fmt, io, sync::OnceLock};

/// The name of a model and the hash of its file, which is computed on demand.
pub(crate) struct ModelId {
    pub name: String,
    hash: Box<dyn Fn() -> io::Result<String> + Send + Sync>,
    known: OnceLock<Option<String>>,
}

impl ModelId {
    pub fn new(
        name: String,
        hash: impl Fn() -> io::Result<String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            hash: Box::new(hash),
            known: OnceLock::new(),
        }
    }

    /// Returns the hash in hexadecimal digits. If the file can no longer be read, this is logged,
    /// and the result is `None`: a picture can still be saved.
    pub fn hash(&self) -> Option<&str> {
        let known = self.known.get_or_init(|| {
            let hash = (self.hash)();
            hash.inspect_err(|error| tracing::warn!(model = self.name, %error, "no model hash"))
                .ok()
        });
        known.as_deref()
    }
}

impl fmt::Debug for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModelId").field(&self.name).finish()
    }
}
