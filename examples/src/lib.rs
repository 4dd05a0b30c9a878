//! Shared code of the examples: options, errors, progress bars, output files and contact sheets.

pub mod control;
pub mod options;
pub mod scenes;
pub mod sheet;
pub mod start;
mod warnings;

use std::{
    error::Error,
    ffi::OsString,
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use image::{ImageFormat, RgbImage};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use sd_onnx::{Infotext, StopToken, files};
use sd_text::outside::{chain, escaped};
use serde::Serialize;

/// Returns the folder of the small model that ships with the project.
pub fn shipped_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")
}

/// The reason why an example ends without a result.
#[derive(Debug)]
pub enum Failure {
    /// The arguments cannot be used. The exit code is 2.
    Arguments(String),
    /// The work failed. The exit code is 1.
    Work(String),
    /// Ctrl-C stopped the work; the text says how far it was. The exit code is 130, as in shells.
    Stopped(String),
}

impl Failure {
    /// Returns [`Failure::Arguments`] with the messages of an error and its causes.
    pub fn arguments(error: impl Error + 'static) -> Self {
        Self::Arguments(chain(&error))
    }

    /// Returns [`Failure::Work`] with the messages of an error and its causes.
    pub fn work(error: impl Error + 'static) -> Self {
        Self::Work(chain(&error))
    }

    /// Returns a function that turns an error into [`Failure::Work`] with the path in front.
    pub fn at<E: Error + 'static>(path: &Path) -> impl FnOnce(E) -> Self {
        move |error| Self::Work(format!("{}: {}", path.display(), chain(&error)))
    }

    /// Prints the reason on stderr in one line, and returns the exit code.
    pub fn report(self) -> ExitCode {
        let (code, reason) = match self {
            Self::Arguments(reason) => (2, reason),
            Self::Work(reason) => (1, reason),
            Self::Stopped(reason) => (130, reason),
        };
        let line: Vec<_> = reason.split_whitespace().collect();
        tell(format_args!("error: {}", line.join(" ")));
        ExitCode::from(code)
    }
}

/// Reads the command line, calls `run` with it, and reports a failure.
///
/// This is the whole `main` function of every example. Warnings of the libraries are printed on
/// stderr.
pub fn main<A: clap::Parser>(run: impl FnOnce(&A) -> Result<(), Failure>) -> ExitCode {
    let arguments = match arguments::<A>() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    // Fails only if a subscriber is already set. Then that one prints the warnings.
    let _ = tracing::subscriber::set_global_default(warnings::Warnings);
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Returns the parsed command line.
///
/// Prints a help text that was asked for, or what is wrong with the arguments, and then returns the
/// exit code as an error.
fn arguments<A: clap::Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        if !error.use_stderr() {
            return match write!(io::stdout(), "{error}") {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => Failure::at(Path::new("standard output"))(error).report(),
            };
        }
        // clap's text is the reason, then a blank line and usage hints.
        let text = error.to_string();
        let reason = text.split("\n\n").next().unwrap_or(&text);
        let mut reason = reason.trim_start_matches("error: ").to_owned();
        if is_second_word::<A>(&error) {
            reason += "; quote a prompt of several words: \"a fox\"";
        }
        Failure::Arguments(reason).report()
    })
}

/// Returns whether the error is about a word after the prompt.
///
/// Such a word most probably belongs to the prompt, which was not quoted.
fn is_second_word<A: clap::Parser>(error: &clap::Error) -> bool {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else {
        return false;
    };
    let command = A::command();
    let takes_prompt = command.get_positionals().any(|it| it.get_id() == "prompt");
    error.kind() == ErrorKind::UnknownArgument && takes_prompt && !word.starts_with('-')
}

/// Returns a token that the first Ctrl-C stops. A second Ctrl-C ends the program at once.
pub fn stopped_by_ctrl_c() -> StopToken {
    let stop = StopToken::new();
    let token = stop.clone();
    // If no handler can be set, Ctrl-C ends the program. No half-written file is left then either.
    let _ = ctrlc::set_handler(move || {
        if token.is_stopped() {
            std::process::exit(130);
        }
        token.stop();
    });
    stop
}

/// Returns a progress bar over `count` items, which `what` names, such as "steps".
///
/// It shows how many items are done, the number per second and the remaining time.
pub fn progress_bar(count: u64, what: &'static str) -> ProgressBar {
    let speed = |state: &ProgressState, out: &mut dyn fmt::Write| {
        // An error means that the bar cannot be shown, which is no reason to fail.
        let _ = write!(out, "{:.2} it/s", state.per_sec());
    };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}, {speed}, ETA {eta}")
        .expect("the template is a constant")
        .with_key("speed", speed);
    let bar = ProgressBar::new(count).with_style(style).with_message(what);
    bar.tick();
    bar
}

/// The extension of sheets.
pub const PNG: &[&str] = &["png"];

/// The extensions of pictures, which [`encode`] knows.
pub const PICTURES: &[&str] = &["png", "jpg", "jpeg", "webp"];

/// The extensions of tensor files.
pub const SAFETENSORS: &[&str] = &["safetensors", "st"];

/// Checks that a file can be written to `path`, before any work is done.
///
/// The path must name a file in an existing folder. Its extension, if it has one, must be in
/// `extensions`. `name` is the option that the path comes from, without dashes.
///
/// # Errors
/// - [`Failure::Arguments`] if the path names a folder or has another extension. The text says what
///   is expected.
/// - [`Failure::Work`] if the folder does not exist.
pub fn check_output(name: &str, path: &Path, extensions: &[&str]) -> Result<(), Failure> {
    let ends_as_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    if path.file_name().is_none() || path.is_dir() || ends_as_folder {
        let path = path.display();
        return Err(Failure::Arguments(format!(
            "--{name} is {path}, expected a file"
        )));
    }
    if let Some(extension) = path.extension()
        && !extensions
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    {
        let expected: Vec<_> = extensions.iter().map(|known| format!(".{known}")).collect();
        let expected = match expected.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => expected.concat(),
        };
        return Err(Failure::Arguments(format!(
            "--{name} is {}, expected a name that ends in {}: no other format can be written",
            path.display(),
            expected
        )));
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        let folder = folder.display();
        return Err(Failure::Work(format!(
            "{folder}: no such folder, for --{name}"
        )));
    }
    Ok(())
}

/// The quality of the JPEG files that [`encode`] makes.
const JPEG_QUALITY: u8 = 95;

/// Encodes a picture with its infotext, in the format that the path's extension names: `jpg`,
/// `jpeg` or `webp`, which is lossless. Any other path is a PNG.
///
/// # Errors
/// Returns an error if the picture is too large for the format, or the infotext is too long for a
/// JPEG.
pub fn encode(path: &Path, image: &RgbImage, infotext: &Infotext) -> io::Result<Vec<u8>> {
    let extension = path.extension().unwrap_or_default();
    let is = |known: &str| extension.eq_ignore_ascii_case(known);
    if is("jpg") || is("jpeg") {
        files::jpeg(image, JPEG_QUALITY, Some(infotext))
    } else if is("webp") {
        files::webp(image, Some(infotext))
    } else {
        files::png(image, Some(infotext))
    }
}

/// Writes a sheet as a PNG without infotext, and prints its path.
///
/// Without `output`, the name is made from the prompt, the seed and the kind of sheet, and nothing
/// is overwritten, as in [`save_new`].
///
/// # Errors
/// [`Failure::Work`] if the PNG cannot be encoded or written, or if stdout cannot be written.
pub fn save_sheet(
    image: &RgbImage,
    output: Option<&Path>,
    prompt: &str,
    seed: u64,
    kind: &str,
) -> Result<(), Failure> {
    let default = PathBuf::from(format!("{}-{seed}-{kind}.png", slug(prompt)));
    let mut png = io::Cursor::new(Vec::new());
    let encoded = image
        .write_to(&mut png, ImageFormat::Png)
        .map_err(io::Error::other);
    encoded.map_err(Failure::at(output.unwrap_or(&default)))?;
    let png = png.into_inner();
    let saved = match output {
        Some(path) => {
            files::write(path, &png).map_err(Failure::at(path))?;
            path.to_path_buf()
        }
        None => save_new(&default, &png)?,
    };
    print(format_args!("{}", saved.display()))
}

/// Writes a new file and returns its path.
///
/// If `path` exists, `_2`, `_3` … is put before its extension until the name is free.
///
/// # Errors
/// [`Failure::Work`] if the file cannot be written.
pub fn save_new(path: &Path, bytes: &[u8]) -> Result<PathBuf, Failure> {
    let names = std::iter::once(path.to_path_buf())
        .chain((2..).map(|n| with_suffix(path, &format!("_{n}"))));
    for name in names {
        match files::write_new(&name, bytes) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            saved => return saved.map(|()| name.clone()).map_err(Failure::at(&name)),
        }
    }
    unreachable!("the names do not end")
}

/// Prints one line on stderr.
///
/// Characters that a terminal would act on are escaped, because names and values may come from
/// files. A closed stderr is ignored.
pub fn tell(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{}", escaped(line));
}

/// Prints one line on stdout, escaped as in [`tell`].
///
/// # Errors
/// [`Failure::Work`] if stdout cannot be written.
pub fn print(line: fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(io::stdout(), "{}", escaped(line)).map_err(Failure::at(Path::new("standard output")))
}

/// Prints a value on stdout as one line of JSON, for other programs to read.
///
/// # Errors
/// [`Failure::Work`] if the value cannot be serialised or stdout cannot be written.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string(value).map_err(Failure::work)?;
    writeln!(io::stdout(), "{json}").map_err(Failure::at(Path::new("standard output")))
}

/// Returns `text` as a part of a file name: letters and digits in lower case, joined by hyphens.
///
/// The result is never empty: a text without letters and digits becomes "image". It has at most 60
/// characters and 120 bytes, because most file systems limit a name to 255 bytes.
pub fn slug(text: &str) -> String {
    let words = text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty());
    let joined = words.collect::<Vec<_>>().join("-").to_lowercase();
    let ends = joined.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take(60).take_while(|&end| end <= 120).last();
    let short = &joined[..end.unwrap_or(0)];
    match short.trim_matches('-') {
        "" => "image".to_owned(),
        short => short.to_owned(),
    }
}

/// Returns `path` with `-number` before its extension.
pub fn numbered(path: &Path, number: usize) -> PathBuf {
    with_suffix(path, &format!("-{number}"))
}

/// Returns `path` with `suffix` before its extension.
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
        assert_eq!(slug(&"𝐚".repeat(60)).len(), 120);
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
