//! Builds the program in the README outside of the workspace, exactly as it is printed, and runs
//! it.

// In a test, a panic is the failure.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command};

/// Returns the README's code block in a language. There must be exactly one.
fn block<'a>(readme: &'a str, language: &str) -> &'a str {
    let fence = format!("\n```{language}\n");
    let mut blocks = readme.split(&fence).skip(1);
    let block = blocks.next().unwrap().split("\n```").next().unwrap();
    assert!(blocks.next().is_none(), "several blocks of {language}");
    block
}

#[test]
fn the_program_in_the_readme_builds_and_draws() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let (dependencies, program) = (block(&readme, "toml"), block(&readme, "rust"));
    assert!(program.lines().count() <= 12, "{program}");

    // The program has its own build folder, because its compiler settings differ. The folder is
    // kept for the next test run.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    fs::create_dir_all(folder.join("src")).unwrap();
    let path_here = root.join("sd-onnx").to_str().unwrap().replace('\\', "/");
    let dependencies_here = dependencies.replace("path/to/sd-onnx", &path_here);
    assert_ne!(dependencies_here, dependencies);
    let manifest = format!(
        "[package]\nname = \"readme\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n{dependencies_here}\n\n[workspace]\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.join("src/main.rs"), program).unwrap();
    // Uses the tested versions, all of which the workspace has already downloaded.
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let model = folder.join("stable-diffusion-v1-5");
    if !model.exists() {
        // A link of an earlier run may lead to a checkout that is gone.
        let _ = fs::remove_file(&model);
        #[cfg(unix)]
        std::os::unix::fs::symlink(root.join("examples/models/emoji"), &model).unwrap();
        #[cfg(windows)]
        std::os::windows::fs::symlink_dir(root.join("examples/models/emoji"), &model).unwrap();
    }
    let picture = folder.join("fox.png");
    let _ = fs::remove_file(&picture);

    let output = Command::new(env!("CARGO"))
        .args(["run", "--offline", "--quiet"])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        // Without debug information the build takes 0.5 GB instead of 1.2 GB.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0")
        // A user builds without the flags of this test.
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    // A missing model is reported in words.
    let empty = tempfile::tempdir().unwrap();
    let name = format!("readme{}", std::env::consts::EXE_SUFFIX);
    let failed = Command::new(folder.join("target/debug").join(name))
        .current_dir(&empty)
        .output()
        .unwrap();
    let said = String::from_utf8(failed.stderr).unwrap();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    let expected = "Error: stable-diffusion-v1-5: model not found";
    assert!(said.starts_with(expected), "{said}");

    let pipeline = sd_onnx::builder().load(&model).unwrap();
    let infotext = sd_onnx::Infotext::read(&picture).unwrap().unwrap();
    let again = pipeline.generate(&infotext.request().request).unwrap();
    let drawn = fs::read(&picture).unwrap();
    assert_eq!(drawn, again.pictures[0].png().unwrap());
    assert!(program.contains(&infotext.prompt));
}
