//! What the tests of the examples share.

// Not every test uses all of it.
#![allow(dead_code)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use image::RgbImage;

/// An example by its name, as a user runs it: the one that `cargo test` has built next to this test.
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

    /// What it says on stdout and stderr.
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

    /// Fails with this exit code and one line on stderr that has `part`.
    pub fn fail(&self, folder: &Path, arguments: &[&str], code: i32, part: &str) {
        let output = self.command(folder).args(arguments).output().unwrap();
        failed(&output, arguments, code, part);
    }

    /// Calls its sheet `stem`.png, and the next one otherwise.
    pub fn names_its_sheet(&self, arguments: &[&str], stem: &str) {
        let folder = tempfile::tempdir().unwrap();
        let names = ["", "_2"].map(|suffix| format!("{stem}{suffix}.png"));
        for name in &names {
            let (stdout, _) = self.succeed(folder.path(), arguments);
            assert_eq!(stdout, format!("{name}\n"));
        }
        assert_eq!(files(folder.path()), names);
    }

    /// Fails to write its output, given as `--output`, in each way that a disk can refuse it, and leaves nothing there.
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

        // Files of 512 bytes or 1 KiB, whichever the shell means by 1; no PNG of these tests is that small.
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

    /// All that it prints on a terminal that has nothing typed in; none where there is no `script`
    /// to make one.
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
                // Past the harness, which keeps what is printed to itself where a test passes.
                let _ = writeln!(
                    std::io::stderr(),
                    "SKIPPED: what {} prints on a terminal, as there is no `script`",
                    self.0
                );
                None
            }
        }
    }

    /// Ends with 130 at an interrupt while it draws, which `arguments` make it do for a while, and leaves no file.
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
        // The first line says what is drawn, but where ONNX Runtime has to be fetched before.
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
        "{arguments:?}: {stderr:?} does not end in a line that says {part:?}"
    );
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// The names in a folder, sorted.
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

/// Where on a sheet a picture is, pixel for pixel: the first place, line by line.
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
