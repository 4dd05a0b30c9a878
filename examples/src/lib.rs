//! What the examples share.

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Where the model that ships with the project is.
pub fn shipped_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")
}

/// Why an example ends without its result.
#[derive(Debug)]
pub enum Failure {
    /// The arguments cannot be used: exit code 2.
    Arguments(String),
    /// The work failed: exit code 1.
    Work(String),
}

impl Failure {
    /// Work that failed on a path.
    pub fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Work(format!("{}: {error}", path.display()))
    }

    /// Prints the reason on stderr, in one line.
    pub fn report(self) -> ExitCode {
        let (code, reason) = match self {
            Self::Arguments(reason) => (2, reason),
            Self::Work(reason) => (1, reason),
        };
        let line: Vec<_> = reason.split_whitespace().collect();
        tell(format_args!("error: {}", line.join(" ")));
        ExitCode::from(code)
    }
}

/// The parsed command line; what is wrong with it, or the help text that was asked for, as an exit code.
pub fn arguments<A: clap::Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        if !error.use_stderr() {
            return match write!(io::stdout(), "{error}") {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => Failure::at(Path::new("standard output"))(error).report(),
            };
        }
        // clap puts the reason first, then a blank line and usage hints.
        let text = error.to_string();
        let reason = text.split("\n\n").next().unwrap_or(&text);
        Failure::Arguments(reason.trim_start_matches("error: ").to_owned()).report()
    })
}

/// A line on stderr. That nobody can read it is no reason to end.
pub fn tell(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A line on stdout.
pub fn print(line: fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(io::stdout(), "{line}").map_err(Failure::at(Path::new("standard output")))
}

/// Text as a part of a file name: letters and digits in lower case with single hyphens between, at most 60 characters.
pub fn slug(text: &str) -> String {
    let words = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty());
    let joined = words.collect::<Vec<_>>().join("-").to_lowercase();
    let short: String = joined.chars().take(60).collect();
    match short.trim_matches('-') {
        "" => "image".to_owned(),
        short => short.to_owned(),
    }
}

/// `path` with `-number` before its extension.
pub fn numbered(path: &Path, number: usize) -> PathBuf {
    with_suffix(path, &format!("-{number}"))
}

/// `path` with `suffix` before its extension.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.file_stem().unwrap_or_default());
    name.push(suffix);
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_short_and_safe() {
        assert_eq!(
            slug("A fox, (red:1.2)  / on\tblue!"),
            "a-fox-red-1-2-on-blue"
        );
        assert_eq!(slug("../../etc"), "etc");
        assert_eq!(slug("狐 🦊"), "狐");
        assert_eq!(slug("🦊"), "image");
        assert_eq!(slug(&"ab ".repeat(100)).chars().count(), 59);
    }

    #[test]
    fn numbers_go_before_the_extension() {
        assert_eq!(
            numbered(Path::new("out/fox.png"), 3),
            Path::new("out/fox-3.png")
        );
        assert_eq!(numbered(Path::new("fox"), 1), Path::new("fox-1"));
        assert_eq!(numbered(Path::new("a.b.png"), 2), Path::new("a.b-2.png"));
    }
}
