//! Why a pickle is not read.

use std::{io, path::PathBuf};

use crate::outside::printable;

/// Why a pickle is not read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", printable(.path.display()))]
pub struct PickleError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a pickle, in printable characters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file can't be read: it is missing, no regular file, or stands in the place of another.
    #[error("{}", printable(.0))]
    Read(#[from] io::Error),
    /// The file around the pickle is damaged, or of another kind.
    #[error("{0}")]
    File(String),
    /// The pickle is damaged, beyond a limit, or holds what no file of weights has.
    #[error("byte {byte} of {pickle}: {problem}")]
    Pickle {
        /// Which pickle: the name of a ZIP file's entry, or `the file`.
        pickle: String,
        /// The byte in it where the opcode begins.
        byte: u64,
        /// What was expected, and what was found.
        problem: String,
    },
    /// The pickle asks for a class or a function that no harmless file of weights needs.
    #[error(
        "byte {byte} of {pickle}: it asks for `{}`, which files of weights have no use for; \
         loaded in Python it could run any program, so it is not read",
        printable(.global)
    )]
    Global {
        /// Which pickle, as above.
        pickle: String,
        /// The byte in it where the opcode begins.
        byte: u64,
        /// The global's full name.
        global: String,
    },
}
