//! The error of reading a pickle.

use std::{io, path::PathBuf};

use crate::outside::printable;

/// The error of reading a pickle.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", printable(.path.display()))]
pub struct PickleError {
    /// The path of the file.
    pub path: PathBuf,
    /// What is wrong with the file.
    pub problem: Problem,
}

/// A problem of a pickle, in printable characters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file cannot be read: it is missing, not a regular file, or a stand-in for the real file.
    #[error("{}", printable(.0))]
    Read(io::Error),
    /// The file around the pickle is damaged or of another kind.
    #[error("{0}")]
    File(String),
    /// The pickle is damaged, exceeds a limit, or contains something that no file of weights has.
    #[error("byte {byte} of {pickle}: {problem}")]
    Pickle {
        /// The name of the pickle: a ZIP entry, or `the file`.
        pickle: String,
        /// The byte in the pickle at which the opcode begins.
        byte: u64,
        /// What was expected and what was found.
        problem: String,
    },
    /// The pickle asks for a class or function that no harmless file of weights needs.
    #[error(
        "byte {byte} of {pickle}: it asks for `{}`, which no file of weights needs; in Python it \
         could run any program, so the file is not read",
        printable(.global)
    )]
    Global {
        /// The name of the pickle: a ZIP entry, or `the file`.
        pickle: String,
        /// The byte in the pickle at which the opcode begins.
        byte: u64,
        /// The full name of the class or function.
        global: String,
    },
}

// The message already contains the message of the I/O error, which is therefore not a source.
impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}
