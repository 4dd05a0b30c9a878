//! Runs `upscale` as a user does, with a small network and on the small model.

// In a test, a panic is the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path};

use common::{Example, files, picture};
use image::{Rgb, RgbImage, RgbaImage, imageops};
use safetensors::{Dtype, tensor::TensorView};
use sd_onnx::Infotext;

const UPSCALE: Example = Example("upscale");
const TXT2IMG: Example = Example("txt2img");

/// Writes a network that doubles pictures: each pixel becomes four, all a little brighter.
fn write_network(path: &Path) {
    let zeros = |count: usize| vec![0.0_f32; count];
    let tensors = [
        ("body.0.weight", vec![4, 3, 3, 3], zeros(108)),
        ("body.0.bias", vec![4], zeros(4)),
        ("body.1.weight", vec![4], zeros(4)),
        ("body.2.weight", vec![12, 4, 3, 3], zeros(432)),
        ("body.2.bias", vec![12], vec![10.0 / 255.0; 12]),
    ];
    let bytes = tensors.map(|(name, shape, values)| {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        (name, shape, bytes)
    });
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (
            *name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn small() -> RgbImage {
    RgbImage::from_fn(40, 24, |x, y| {
        Rgb([4 * x as u8, 8 * y as u8, (x * y % 200) as u8])
    })
}

/// Returns a folder with the picture `small.png` and the network `2x-bright.safetensors`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    small().save(folder.path().join("small.png")).unwrap();
    write_network(&folder.path().join("2x-bright.safetensors"));
    folder
}

const PLAIN: [&str; 3] = ["small.png", "--upscaler", "2x-bright.safetensors"];

/// Returns the picture that the network makes.
fn doubled() -> RgbImage {
    let mut large = imageops::resize(&small(), 80, 48, imageops::FilterType::Nearest);
    large
        .iter_mut()
        .for_each(|byte| *byte = byte.saturating_add(10));
    large
}

fn infotext(folder: &Path, name: &str) -> Infotext {
    Infotext::read(folder.join(name)).unwrap().unwrap()
}

#[test]
fn a_network_enlarges_a_picture() {
    let folder = folder();
    let folder = folder.path();
    for (name, expected) in [
        ("small-large.png", "small-large.png\n"),
        ("small-large_2.png", "small-large_2.png\n"),
    ] {
        let (stdout, stderr) = UPSCALE.succeed(folder, &PLAIN);
        assert_eq!(stdout, expected);
        assert!(
            stderr.contains("40×24, 2 times larger with 2x-bright.safetensors"),
            "{stderr}"
        );
        assert!(picture(folder, name) == doubled());
    }
    let infotext = infotext(folder, "small-large.png");
    for (key, value) in [
        ("Size", "80x48"),
        ("Postprocess upscale by", "2"),
        ("Postprocess upscaler", "2x-bright"),
    ] {
        assert_eq!(infotext.get(key), Some(value), "{key}");
    }
}

#[test]
fn each_option_has_an_effect() {
    let folder = folder();
    let folder = folder.path();
    let with = |options: &[&str], name: &str| {
        let all = [&PLAIN[..], options, &["--output", name]].concat();
        let (stdout, _) = UPSCALE.succeed(folder, &all);
        assert_eq!(stdout, format!("{name}\n"));
        picture(folder, name)
    };
    assert_eq!(with(&["--scale", "3.7"], "a.png").dimensions(), (144, 88));
    assert_eq!(with(&["--scale", "0.5"], "b.png").dimensions(), (16, 8));
    // Each pixel is made of one pixel, so tiles make no difference. The format does.
    assert!(with(&["--tile", "16", "--overlap", "4"], "c.webp") == doubled());
    assert!(with(&["--tile", "0"], "d.jpg") != doubled());
    let filter = |name: &str| {
        let arguments = ["small.png", "--upscaler", name, "--output", "e.png"];
        UPSCALE.succeed(folder, &arguments);
        picture(folder, "e.png")
    };
    let nearest = imageops::resize(&small(), 80, 48, imageops::FilterType::Nearest);
    assert!(filter("Nearest") == nearest);
    let lanczos = filter("Lanczos");
    assert!(lanczos != nearest && lanczos.dimensions() == (80, 48));
    assert_eq!(
        infotext(folder, "e.png").get("Postprocess upscaler"),
        Some("Lanczos")
    );
    let mut clear = RgbaImage::new(16, 16);
    clear.get_pixel_mut(3, 3).0[3] = 255;
    clear.save(folder.join("clear.png")).unwrap();
    let arguments = ["clear.png", "--upscaler", "Nearest"];
    let (_, stderr) = UPSCALE.succeed(folder, &arguments);
    assert!(
        stderr.contains("warning: clear.png: the transparency is ignored"),
        "{stderr}"
    );
}

/// The infotext of the picture is kept.
#[test]
fn a_drawing_keeps_its_infotext() {
    let folder = folder();
    let folder = folder.path();
    let draw = [
        "a fox", "--steps", "2", "--seed", "1", "--output", "fox.png",
    ];
    TXT2IMG.succeed(folder, &draw);
    for output in ["large.png", "large.jpg", "large.webp"] {
        let arguments = [
            "fox.png",
            "--upscaler",
            "2x-bright.safetensors",
            "--output",
            output,
        ];
        UPSCALE.succeed(folder, &arguments);
        assert_eq!(picture(folder, output).dimensions(), (192, 192));
        let (before, after) = (infotext(folder, "fox.png"), infotext(folder, output));
        assert_eq!(after.prompt, "a fox");
        let added: Vec<_> = after
            .entries
            .iter()
            .filter(|entry| !before.entries.contains(entry))
            .map(|(key, value)| (&**key, &**value))
            .collect();
        let expected = [
            ("Postprocess upscale by", "2"),
            ("Postprocess upscaler", "2x-bright"),
        ];
        assert_eq!(added, expected);
        assert_eq!(after.entries.len(), before.entries.len() + 2);
    }
    // txt2img draws the picture again, and says that it was enlarged.
    let like = ["--like", "large.png", "--output", "again.png"];
    let (_, stderr) = TXT2IMG.succeed(folder, &like);
    let warning = "the finished picture was enlarged 2 times by `2x-bright`";
    assert!(stderr.contains(warning), "{stderr}");
    assert!(picture(folder, "again.png") == picture(folder, "fox.png"));
}

#[test]
fn a_picture_is_redrawn_in_tiles() {
    let folder = folder();
    let folder = folder.path();
    let redraw = ["--prompt", "a fox", "--steps", "4", "--seed", "3"];
    let with = |options: &[&str], name: &str| {
        let all = [&PLAIN[..], &redraw, options, &["--output", name]].concat();
        UPSCALE.succeed(folder, &all);
        picture(folder, name)
    };
    let tiles = ["--width", "48", "--height", "32", "--redraw-overlap", "16"];
    let first = with(&tiles, "a.png");
    assert_eq!(first.dimensions(), (80, 48));
    assert!(first != doubled());
    let more = |option: [&'static str; 2]| with(&[&tiles[..], &option].concat(), "b.png");
    assert!(more(["--strength", "0.9"]) != first);
    assert!(more(["--guidance", "3"]) != first);
    assert!(more(["--strength", "0.3"]) == first);
    assert_eq!(more(["--scale", "3"]).dimensions(), (120, 72));
    let other = ["--width", "48", "--height", "32", "--redraw-overlap", "8"];
    assert!(with(&other, "c.png") != first);
    let infotext = infotext(folder, "a.png");
    assert_eq!(infotext.prompt, "a fox");
    for (key, value) in [
        ("Seed", "3"),
        ("Size", "48x32"),
        ("Denoising strength", "0.3"),
        ("SD upscale overlap", "16"),
        ("SD upscale upscaler", "2x-bright"),
    ] {
        assert_eq!(infotext.get(key), Some(value), "{key}");
    }
}

/// `txt2img` enlarges with the network of a file in its second pass.
#[test]
fn a_second_pass_enlarges_with_a_network() {
    let folder = folder();
    let folder = folder.path();
    let draw = |options: &[&str], name: &str| {
        let plain = ["a fox", "--steps", "2", "--seed", "1", "--output", name];
        TXT2IMG.succeed(folder, &[&plain[..], options].concat());
        picture(folder, name)
    };
    let hires = [
        "--hires",
        "1.5",
        "--hires-strength",
        "0.5",
        "--hires-upscaler",
    ];
    let file = ["--upscaler", "2x-bright.safetensors"];
    let lanczos = draw(&[&hires[..], &["Lanczos"], &file].concat(), "a.png");
    let network = draw(&[&hires[..], &["2x-bright"], &file].concat(), "b.png");
    assert_eq!(network.dimensions(), (144, 144));
    assert!(network != lanczos);
    assert_eq!(
        infotext(folder, "b.png").get("Hires upscaler"),
        Some("2x-bright")
    );
    let like = ["--like", "b.png", "--output", "c.png"];
    let (_, stderr) = TXT2IMG.succeed(folder, &[&like[..], &file].concat());
    assert!(!stderr.contains("warning"), "{stderr}");
    assert!(picture(folder, "c.png") == network);
    let (_, stderr) = TXT2IMG.succeed(folder, &like);
    let warning = "`2x-bright`, which this pipeline does not have, so Lanczos is used";
    assert!(stderr.contains(warning), "{stderr}");
    let unknown = [&["a fox"][..], &hires, &["3x"]].concat();
    let reason = "--hires-upscaler is 3x, expected one of: Latent, ";
    TXT2IMG.fail(folder, &unknown, 2, reason);
}

#[test]
fn wrong_arguments_are_reported() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("text.png"), "no picture").unwrap();
    let with = |options: &[&'static str]| [&PLAIN[..], options].concat();
    for (arguments, code, part) in [
        (vec!["small.png"], 2, "--upscaler <FILE|NAME>"),
        (with(&["--scale", "nan"]), 2, "expected a positive number"),
        (with(&["--scale", "0"]), 2, "expected a positive number"),
        (with(&["--scale", "0.01"]), 2, "factor is 0.01"),
        (with(&["--scale", "1e6"]), 2, "factor is 1000000"),
        (with(&["--strength", "0.3"]), 2, "--prompt <TEXT>"),
        (with(&["--model", "m"]), 2, "--model needs --prompt"),
        (with(&["--width", "64"]), 2, "--width needs --prompt"),
        (with(&["--height", "64"]), 2, "--height needs --prompt"),
        (with(&["--steps", "4"]), 2, "--steps needs --prompt"),
        (with(&["--negative", "dog"]), 2, "--negative needs --prompt"),
        (with(&["--seed", "4"]), 2, "--seed needs --prompt"),
        (with(&["--lora", "a.pt"]), 2, "--lora needs --prompt"),
        (with(&["--loras", "folder"]), 2, "--loras needs --prompt"),
        (
            with(&["--control", "a.pt:b.png"]),
            2,
            "--control needs --prompt",
        ),
        (
            vec!["small.png", "--upscaler", "Lanczos", "--tile", "64"],
            2,
            "--tile needs an --upscaler that is a network",
        ),
        (
            vec!["small.png", "--upscaler", "Nearest", "--overlap", "8"],
            2,
            "--overlap needs an --upscaler that is a network",
        ),
        (
            with(&["--prompt", "a fox", "--strength", "2"]),
            2,
            "expected 0 to 1",
        ),
        (
            with(&["--prompt", "a fox", "--width", "60"]),
            2,
            "width is 60",
        ),
        (
            with(&["--prompt", "a fox", "--redraw-overlap", "96"]),
            2,
            "overlap is 96, expected at most 95",
        ),
        (
            with(&["--output", "a.gif"]),
            2,
            "expected a name that ends in",
        ),
        (vec!["no.png", "--upscaler", "Lanczos"], 1, "no.png: "),
        (vec!["text.png", "--upscaler", "Lanczos"], 1, "text.png: "),
        (vec!["small.png", "--upscaler", "no.pth"], 1, "no.pth: "),
        (vec!["small.png", "--upscaler", "Latent"], 1, "Latent: "),
        (
            vec!["small.png", "--upscaler", "small.png"],
            1,
            "small.png: not a model file",
        ),
    ] {
        UPSCALE.fail(folder, &arguments, code, part);
    }
    assert_eq!(
        files(folder),
        ["2x-bright.safetensors", "small.png", "text.png"]
    );
    #[cfg(target_os = "linux")]
    {
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let (picture, network) = (path("small.png"), path("2x-bright.safetensors"));
        UPSCALE.fails_to_write(&[&picture, "--upscaler", &network]);
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_work() {
    let folder = folder();
    let large = imageops::resize(&small(), 1600, 1200, imageops::FilterType::Nearest);
    let picture = folder.path().join("wide.png");
    large.save(&picture).unwrap();
    let network = folder.path().join("2x-bright.safetensors");
    let [picture, network] = [&picture, &network].map(|path| path.to_str().unwrap());
    // Hundreds of thousands of tiles.
    let tiles = ["--tile", "16", "--overlap", "14"];
    UPSCALE.stops(&[&[picture, "--upscaler", network][..], &tiles].concat());
}
