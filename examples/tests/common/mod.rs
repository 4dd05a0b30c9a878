//! Shared code of the examples' tests.

// Not every test program uses all of it.
#![allow(dead_code)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use image::RgbImage;

/// An example program, by its name. `cargo test` has built it next to this test.
pub struct Example(pub &'static str);

impl Example {
    fn path(&self) -> PathBuf {
        let this = std::env::current_exe().unwrap();
        let name = format!("{}{}", self.0, std::env::consts::EXE_SUFFIX);
        let path = this.ancestors().nth(2).unwrap().join("examples").join(name);
        assert!(
            path.exists(),
            "{} is not built: run `cargo test` without --test, or build the example",
            path.display()
        );
        path
    }

    pub fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(self.path());
        command.current_dir(folder);
        command
    }

    /// Runs the example, which must succeed, and returns its stdout and stderr.
    pub fn succeed(&self, folder: &Path, arguments: &[&str]) -> (String, String) {
        let output = self.command(folder).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        (text(&output.stdout), text(&output.stderr))
    }

    /// Runs the example, which must fail with an exit code and with one error line that contains
    /// `part`.
    pub fn fail(&self, folder: &Path, arguments: &[&str], code: i32, part: &str) {
        let output = self.command(folder).args(arguments).output().unwrap();
        failed(&output, arguments, code, part);
    }

    /// Runs the example twice. It must write `stem`.png first, and `stem`_2.png the second time.
    pub fn names_its_sheet(&self, arguments: &[&str], stem: &str) {
        let folder = tempfile::tempdir().unwrap();
        let names = ["", "_2"].map(|suffix| format!("{stem}{suffix}.png"));
        for name in &names {
            let (stdout, _) = self.succeed(folder.path(), arguments);
            assert_eq!(stdout, format!("{name}\n"));
        }
        assert_eq!(files(folder.path()), names);
    }

    /// Runs the example with values of `--output` that cannot be written.
    ///
    /// It must report each of them, and leave no file behind.
    #[cfg(target_os = "linux")]
    pub fn fails_to_write(&self, arguments: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let to = |output| [arguments, &["--output", output]].concat();
        self.fail(
            folder.path(),
            &to("no/such/f.png"),
            1,
            "no/such: no such folder",
        );
        self.fail(
            folder.path(),
            &to("/dev/full"),
            1,
            "/dev/full: No space left on device",
        );
        self.fail(
            folder.path(),
            &to("folder/"),
            2,
            "--output is folder/, expected a file",
        );

        // Limits files to 512 bytes or 1 KiB, depending on the shell. Every PNG of these tests is
        // larger.
        let limited = "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"";
        let output = Command::new("sh")
            .current_dir(folder.path())
            .args(["-c", limited])
            .arg(self.path())
            .args(to("f.png"))
            .output()
            .unwrap();
        failed(&output, arguments, 1, "f.png: File too large");
        assert!(
            files(folder.path()).is_empty(),
            "{:?}",
            files(folder.path())
        );
    }

    /// Runs the example on a terminal without any input, and returns everything it prints.
    ///
    /// Returns `None` if there is no program `script`, which makes the terminal.
    #[cfg(target_os = "linux")]
    pub fn on_a_terminal(&self, folder: &Path, arguments: &[&str]) -> Option<String> {
        let quoted = |argument: &&str| format!("'{argument}'");
        let arguments: Vec<_> = arguments.iter().map(quoted).collect();
        let command = format!("'{}' {}", self.path().display(), arguments.join(" "));
        let script = Command::new("script")
            .args(["--quiet", "--command", &command, "/dev/null"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .output();
        match script {
            Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
            Err(_) => {
                // Written to stderr directly, because the harness hides the output of passing
                // tests.
                let _ = writeln!(
                    std::io::stderr(),
                    "SKIPPED: the output of {} on a terminal, because there is no `script`",
                    self.0
                );
                None
            }
        }
    }

    /// Interrupts the example while it draws. It must end with exit code 130 and leave no file.
    ///
    /// With `arguments` it must draw for a while, so that the interrupt comes in time.
    #[cfg(unix)]
    pub fn stops(&self, arguments: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let mut command = self.command(folder.path());
        let mut child = command
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        // The first line says what is drawn. Lines about fetching ONNX Runtime may come before it.
        let mut lines = stderr.by_ref().map(Result::unwrap);
        let begun = lines.find(|line| !line.starts_with("Fetching ONNX Runtime"));
        let kill = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        let rest: Vec<_> = stderr.map(Result::unwrap).collect();
        assert_eq!(
            child.wait().unwrap().code(),
            Some(130),
            "{begun:?} {rest:?}"
        );
        let [reason] = &rest[..] else {
            panic!("{rest:?}")
        };
        assert!(
            reason.starts_with("error: stopped after "),
            "{begun:?} {reason}"
        );
        assert!(
            files(folder.path()).is_empty(),
            "{:?}",
            files(folder.path())
        );
    }
}

fn failed(output: &Output, arguments: &[&str], code: i32, part: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    let errors = stderr.lines().filter(|line| line.starts_with("error: "));
    let errors: Vec<_> = errors.collect();
    assert!(
        errors.len() == 1 && errors[0].contains(part) && stderr.lines().last() == Some(errors[0]),
        "{arguments:?}: {stderr:?} does not end with a line that contains {part:?}"
    );
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// Returns the names of the entries of a folder, sorted.
pub fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn picture(folder: &Path, name: &str) -> RgbImage {
    let bytes = fs::read(folder.join(name)).unwrap();
    image::load_from_memory(&bytes).unwrap().into_rgb8()
}

/// Returns where a sheet contains a picture, pixel for pixel.
///
/// If it is there more than once, the first place counts, line by line.
pub fn place_of(picture: &RgbImage, sheet: &RgbImage) -> Option<(u32, u32)> {
    let (width, height) = picture.dimensions();
    let lines = |image: &RgbImage, x: u32, y: u32| {
        let begin = 3 * (y * image.width() + x) as usize;
        image.as_raw()[begin..begin + 3 * width as usize].to_vec()
    };
    for y in 0..=sheet.height().checked_sub(height)? {
        for x in 0..=sheet.width().checked_sub(width)? {
            if (0..height).all(|dy| lines(sheet, x, y + dy) == lines(picture, 0, dy)) {
                return Some((x, y));
            }
        }
    }
    None
}
