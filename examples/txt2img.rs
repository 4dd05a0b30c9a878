//! A prompt becomes a PNG.
//!
//! ```sh
//! cargo run --release --example txt2img -- "a fox" --seed 7 --steps 20 --output fox.png
//! ```

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::{Parser, builder::PossibleValuesParser};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use safetensors::{Dtype, tensor::TensorView};
use sd_examples::{Failure, arguments, numbered, print, shipped_model, slug, tell, with_suffix};
use sd_onnx::{
    Conditioning, Event, GenerateError, ImageSize, Picture, Pipeline, Request, StopToken, files,
    schedulers::{self, Ladder, Row},
};

/// Draws a prompt with Stable Diffusion on ONNX Runtime.
#[derive(Parser)]
#[command(name = "txt2img", version, allow_negative_numbers = true)]
struct Arguments {
    /// What to draw
    prompt: String,
    /// Model folder in the diffusers layout [default: the small model that ships with the examples]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Variant of the weights, such as fp16 [default: the plain file, else the only one there]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// What to push away from
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    negative: String,
    /// Pixels, a multiple of 8 [default: the model's own]
    #[arg(long, value_name = "N")]
    width: Option<u32>,
    /// Pixels, a multiple of 8 [default: the model's own]
    #[arg(long, value_name = "N")]
    height: Option<u32>,
    /// Steps from noise to picture, 1 to what the model was trained with (mostly 1000)
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: usize,
    /// Classifier-free guidance (CFG) scale; at 1 and below the negative prompt is left out and steps cost half
    #[arg(
        long,
        value_name = "F",
        default_value_t = 7.5,
        allow_negative_numbers = true
    )]
    guidance: f32,
    /// What decides the noise [default: random below 2^32]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The sampler
    #[arg(long, value_name = "NAME", default_value = "dpmpp-2m", value_parser = PossibleValuesParser::new(sampler_names()))]
    scheduler: String,
    /// The noise levels it steps through [default: karras; leading for ddim]
    #[arg(long, value_name = "NAME", value_parser = ["leading", "linspace", "trailing", "karras"])]
    ladder: Option<String>,
    /// Layer of CLIP that is read, counted from the last as WebUI does
    #[arg(long, value_name = "N", default_value_t = 1)]
    clip_skip: usize,
    /// Pictures; picture i has the seed + i
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: usize,
    /// Threads, 1 to 1024 [default: one for each physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// PNG to write [default: the prompt and the seed, in this folder, never overwriting]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also write embeddings, noise, latents and unrounded pixels, as safetensors
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
}

fn sampler_names() -> Vec<&'static str> {
    schedulers::TABLE.iter().map(|row| row.name).collect()
}

fn main() -> ExitCode {
    let arguments = match arguments::<Arguments>() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (row, ladder) = check(arguments)?;
    let seed = arguments
        .seed
        .unwrap_or_else(|| u64::from(rand::random::<u32>()));

    let started = Instant::now();
    let pipeline = load(arguments)?;
    let default = pipeline.default_size();
    let (width, height) = (
        arguments.width.unwrap_or(default.width()),
        arguments.height.unwrap_or(default.height()),
    );
    tell(format_args!(
        "{} on {}, {} step{}, guidance {}, {width}×{height}, seed {seed} (loaded in {:.1} s)",
        row.title,
        ladder_name(&ladder),
        arguments.steps,
        if arguments.steps == 1 { "" } else { "s" },
        arguments.guidance,
        started.elapsed().as_secs_f32(),
    ));

    let request = Request::new(&arguments.prompt)
        .negative(&arguments.negative)
        .size(width, height)
        .steps(arguments.steps)
        .guidance(arguments.guidance)
        .seed(seed)
        .count(arguments.count)
        .clip_skip(arguments.clip_skip)
        .scheduler(row)
        .ladder(ladder);
    let pictures = generate(&pipeline, &request, arguments.steps, arguments.count)?;
    tell_what_was_cut("prompt", Some(&pictures[0].prompt));
    tell_what_was_cut("negative prompt", pictures[0].negative.as_ref());

    for (i, picture) in pictures.iter().enumerate() {
        let of_many = |path: &Path| {
            if arguments.count > 1 {
                numbered(path, i + 1)
            } else {
                path.to_path_buf()
            }
        };
        let saved = match &arguments.output {
            Some(path) => {
                let path = of_many(path);
                picture.save_png(&path).map_err(Failure::at(&path))?;
                path
            }
            None => save_new(
                picture,
                &of_many(Path::new(&format!(
                    "{}-{seed}.png",
                    slug(&arguments.prompt)
                ))),
            )?,
        };
        print(format_args!("{} (seed {})", saved.display(), picture.seed))?;
        if let Some(path) = &arguments.dump {
            let path = of_many(path);
            dump(&path, picture).map_err(Failure::at(&path))?;
        }
    }
    Ok(())
}

/// What can be known to be wrong before a model is loaded.
fn check(arguments: &Arguments) -> Result<(&'static Row, Ladder), Failure> {
    let wrong = |reason: String| Err(Failure::Arguments(reason));
    // A side that is not given is the model's own; 8 stands for it here.
    if let Err(error) = ImageSize::new(arguments.width.unwrap_or(8), arguments.height.unwrap_or(8))
    {
        return wrong(error.to_string());
    }
    for (name, value) in [
        ("steps", arguments.steps),
        ("count", arguments.count),
        ("clip-skip", arguments.clip_skip),
    ] {
        if value == 0 {
            return wrong(format!("--{name} is 0, expected at least 1"));
        }
    }
    if !arguments.guidance.is_finite() {
        return wrong(format!(
            "--guidance is {}, expected a finite number",
            arguments.guidance
        ));
    }
    for (name, path) in [("output", &arguments.output), ("dump", &arguments.dump)] {
        let Some(path) = path else { continue };
        let ends_as_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        if path.file_name().is_none() || path.is_dir() || ends_as_folder {
            return wrong(format!("--{name} is {}, expected a file", path.display()));
        }
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            return Err(Failure::Work(format!(
                "{}: no such folder, for --{name}",
                folder.display()
            )));
        }
    }
    if let (Some(output), Some(dump)) = (&arguments.output, &arguments.dump)
        && same_place(output, dump)
    {
        return wrong(format!(
            "--output and --dump are both {}, expected two files",
            dump.display()
        ));
    }
    let row = schedulers::by_name(&arguments.scheduler)
        .expect("clap lets only names of the table through");
    let ladder = match arguments.ladder.as_deref() {
        Some("leading") => Ladder::leading(),
        Some("linspace") => Ladder::linspace(),
        Some("trailing") => Ladder::trailing(),
        Some(_) => Ladder::karras(),
        None => row.default_ladder,
    };
    if !row.fits(&ladder) {
        return wrong(format!(
            "--ladder {} does not fit --scheduler {}, which needs integer timesteps: leading, linspace or trailing",
            ladder_name(&ladder),
            row.name
        ));
    }
    Ok((row, ladder))
}

/// Whether two paths, of files that need not be there, name the same one.
fn same_place(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        Some((
            std::fs::canonicalize(folder).ok()?,
            path.file_name()?.to_owned(),
        ))
    };
    place(a).is_some_and(|a| Some(a) == place(b))
}

fn ladder_name(ladder: &Ladder) -> &'static str {
    match ladder {
        Ladder::Karras { .. } => "karras",
        ladder if *ladder == Ladder::leading() => "leading",
        ladder if *ladder == Ladder::linspace() => "linspace",
        _ => "trailing",
    }
}

fn load(arguments: &Arguments) -> Result<Pipeline, Failure> {
    let mut builder = sd_onnx::builder().threads(arguments.threads.unwrap_or(0));
    if let Some(variant) = &arguments.variant {
        builder = builder.variant(variant);
    }
    let model = arguments.model.clone().unwrap_or_else(shipped_model);
    builder
        .load(model)
        .map_err(|error| Failure::Work(error.to_string()))
}

/// Generates under a progress bar: steps, steps per second, time to go.
fn generate(
    pipeline: &Pipeline,
    request: &Request,
    steps: usize,
    count: usize,
) -> Result<Vec<Picture>, Failure> {
    let bar = ProgressBar::new(steps.saturating_mul(count) as u64);
    let speed = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A bar that is not shown has nobody to tell.
        let _ = write!(out, "{:.2} it/s", state.per_sec());
    };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}, {speed}, ETA {eta}")
        .expect("the template is a constant")
        .with_key("speed", speed);
    bar.set_style(style);
    bar.tick();
    let mut pictures = Vec::new();
    let requests = std::slice::from_ref(request);
    let result = pipeline.run(requests, &StopToken::new(), |event| {
        match event {
            Event::Picture(picture) => pictures.push(*picture),
            _ => bar.inc(1),
        }
        ControlFlow::Continue(())
    });
    let took = bar.elapsed().as_secs_f32();
    bar.finish_and_clear();
    if result.is_ok() {
        let speed = steps as f32 * count as f32 / took;
        tell(format_args!("{took:.1} s, {speed:.2} it/s with decoding"));
    }
    match result {
        Ok(()) => Ok(pictures),
        Err(error @ GenerateError::Request(_)) => Err(Failure::Arguments(error.to_string())),
        Err(error) => Err(Failure::Work(error.to_string())),
    }
}

fn tell_what_was_cut(what: &str, prompt: Option<&Conditioning>) {
    let tokens = prompt.and_then(|prompt| prompt.tokens.as_ref());
    if let Some(cut) = tokens.and_then(|tokens| tokens.cut.as_ref()) {
        tell(format_args!(
            "warning: the {what} is {} tokens too long; left out from byte {}: {:?}",
            cut.tokens, cut.offset, cut.text
        ));
    }
}

/// Saves under `path`, or, where a file has that name, under `path` with `_2`, `_3` …
fn save_new(picture: &Picture, path: &Path) -> Result<PathBuf, Failure> {
    let names = std::iter::once(path.to_path_buf())
        .chain((2..).map(|n| with_suffix(path, &format!("_{n}"))));
    for name in names {
        match picture.save_new_png(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            saved => return saved.map(|()| name.clone()).map_err(Failure::at(&name)),
        }
    }
    unreachable!("the names do not end")
}

/// All f32, with batch dimension 1.
fn dump(path: &Path, picture: &Picture) -> io::Result<()> {
    let embedding = |prompt: &Conditioning| {
        (
            prompt.embedding.shape().to_vec(),
            bytes(prompt.embedding.iter()),
        )
    };
    let mut tensors = vec![
        ("prompt_embeds", embedding(&picture.prompt)),
        (
            "initial_noise",
            (
                picture.initial_noise.shape().to_vec(),
                bytes(picture.initial_noise.iter()),
            ),
        ),
        (
            "latents",
            (
                picture.latents.shape().to_vec(),
                bytes(picture.latents.iter()),
            ),
        ),
        (
            "image",
            (
                picture.pixels.shape().to_vec(),
                bytes(picture.pixels.iter()),
            ),
        ),
    ];
    tensors.extend(
        picture
            .negative
            .as_ref()
            .map(|negative| ("negative_prompt_embeds", embedding(negative))),
    );
    let views = tensors.iter().map(|(name, (shape, data))| {
        (
            *name,
            TensorView::new(Dtype::F32, shape.clone(), data).expect("four bytes for each element"),
        )
    });
    let serialized = safetensors::serialize(views, None).map_err(io::Error::other)?;
    files::write(path, &serialized)
}

fn bytes<'a>(values: impl Iterator<Item = &'a f32>) -> Vec<u8> {
    values.flat_map(|value| value.to_le_bytes()).collect()
}
