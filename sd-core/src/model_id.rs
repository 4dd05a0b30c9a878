//! Which model a picture is made with.

use std::{fmt, io, sync::OnceLock};

/// A model's name and the hash of its file, for the infotext of pictures.
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

    /// The hash in hexadecimal digits; none if the file can't be read any more, which is logged: a picture is saved all the
    /// same.
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
