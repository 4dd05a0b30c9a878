//! Draws a picture of a prompt and writes it as a PNG, JPEG or WebP.
//!
//! ```sh
//! cargo run --release --example txt2img -- "a fox" --seed 7 --steps 20 --output fox.png
//! cargo run --release --example txt2img -- "an owl" --image fox.png --strength 0.6
//! ```

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use safetensors::{Dtype, tensor::TensorView};
use sd_examples::{
    Failure, PICTURES, SAFETENSORS, check_output, encode, numbered,
    options::{Options, positive, prompt_warnings, summary, tell_warnings},
    print, progress_bar, save_new, slug,
    start::{HiresOptions, StartOptions},
    stopped_by_ctrl_c, tell,
};
use sd_onnx::{
    Conditioning, Event, Infotext, NetworkCalls, Picture, Pipeline, Prompt, Request, StepInfo,
    StopToken, Timings, files,
    image::RgbImage,
    infotext::{CONTROL_NOTE, MASK_NOTE, PICTURE_NOTE},
};
use sd_text::outside::printable;

/// Draws a picture of a prompt with Stable Diffusion on ONNX Runtime.
#[derive(Parser)]
#[command(name = "txt2img", version, allow_negative_numbers = true)]
struct Arguments {
    /// What to draw
    #[arg(required_unless_present = "like")]
    prompt: Option<String>,
    /// PNG, JPEG or WebP that says how it was made, written by this program, WebUI, ComfyUI,
    /// InvokeAI or NovelAI: draws the same picture again, with the changes that other options make,
    /// and warns about everything that differs
    #[arg(long, value_name = "FILE")]
    like: Option<PathBuf>,
    #[command(flatten)]
    start: StartOptions,
    #[command(flatten)]
    hires: HiresOptions,
    #[command(flatten)]
    options: Options,
    /// Number of pictures; picture i, counted from 0, uses the seed plus i
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    count: usize,
    /// Pictures per model call; more than 1 is slower on a CPU and changes the pictures a little
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive)]
    batch: usize,
    /// File to write, replacing a file of that name; with --count, name-1.png, name-2.png … The
    /// extension chooses the format: .png, .jpg (quality 95) or .webp (lossless) [default: a new
    /// PNG in this folder, named after the prompt and the seed]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// safetensors file to write as well, replacing a file of that name: the embeddings (and pooled
    /// ones if the model has them), the noise, the latents and the pixels before rounding
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
}

fn main() -> ExitCode {
    sd_examples::main(run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let like = arguments.like.as_deref().map(Like::read).transpose()?;
    let infotext = like.as_ref().map(|like| &like.infotext);
    let mut options = arguments.options.clone();
    options.seamless = options.seamless.or(infotext.map(Infotext::seamless));
    let start = arguments.start.start(infotext)?;
    let controls = options.control.controls(infotext)?;
    let with_options = |mut request: Request| {
        if let Some(prompt) = &arguments.prompt {
            request = request.prompt(prompt);
        }
        request.start = start.clone();
        request.controls.clone_from(&controls);
        if request.start.is_some() && arguments.hires.hires.is_none() {
            request.hires = None;
        }
        if arguments.start.has_own_size() {
            request.size = None;
        }
        let request = arguments.hires.apply(request)?;
        Ok::<_, Failure>(options.request(request)?.count(arguments.count))
    };
    // Wrong arguments are reported before the model is loaded.
    let of_file = match &like {
        Some(like) => like.infotext.request().request,
        None => Request::new(""),
    };
    let has_lost_pass = of_file.hires.is_some() && start.is_some();
    let request = with_options(of_file)?;
    check_outputs(arguments)?;

    let started = Instant::now();
    let loaded = options.load_with(arguments.batch, |builder| {
        arguments.hires.with_upscalers(builder)
    });
    let is_seamless_as_file = arguments.options.seamless.is_none();
    let pipeline = match loaded {
        Err(Failure::Work(reason)) if is_seamless_as_file && reason.contains(NOT_SEAMLESS) => {
            let hint = "the picture of --like is seamless; --seamless none draws without that";
            return Err(Failure::Work(format!("{reason}; {hint}")));
        }
        loaded => loaded?,
    };
    let loaded = started.elapsed();
    // Only a loaded pipeline knows which settings of an infotext it cannot reproduce.
    let (request, differences) = match &like {
        Some(like) => {
            let again = pipeline.reproduction(&like.infotext);
            (with_options(again.request)?, again.differences)
        }
        None => (request, Vec::new()),
    };
    let is_supplied = |difference: &String| match difference.as_str() {
        PICTURE_NOTE => arguments.start.image.is_some(),
        MASK_NOTE => arguments.start.has_mask(),
        CONTROL_NOTE => {
            let needed = infotext.map_or(0, Infotext::control_count);
            controls.len() >= needed
        }
        _ => false,
    };
    let of_file = differences.into_iter().filter(|it| !is_supplied(it));
    let of_file = of_file.map(|difference| match (&*difference, infotext) {
        (CONTROL_NOTE, Some(infotext)) => control_note(infotext, controls.len()),
        _ => difference,
    });
    let of_file = of_file.map(|difference| (arguments.like.as_deref(), difference));
    let lost_pass = has_lost_pass.then(|| LOST_PASS.to_owned());
    let lost_pass = lost_pass.filter(|_| arguments.hires.hires.is_none());
    let of_file = of_file.chain(lost_pass.map(|text| (arguments.like.as_deref(), text)));
    let of_prompts = prompt_warnings([&request]).into_iter();
    tell_warnings(of_file.chain(of_prompts.map(|warning| (None, warning))));
    let stop = stopped_by_ctrl_c();
    let request = pipeline.with_defaults(options.sized(request, &pipeline));
    tell(format_args!(
        "{} (loaded in {:.1} s)",
        summary(&request, &pipeline, &[]),
        loaded.as_secs_f32(),
    ));
    if let Some(like) = &like {
        like.tell_another_model(&pipeline);
    }
    generate(&pipeline, &request, &stop, arguments)
}

/// Returns the warning about control pictures of a file, of which only the first ones are given.
fn control_note(infotext: &Infotext, given: usize) -> String {
    let any = RgbImage::new(1, 1);
    let networks = (given..infotext.control_count()).map_while(|i| {
        let control = infotext.control(i, any.clone())?;
        Some(format!("--control {}:PICTURE", printable(&control.network)))
    });
    let networks: Vec<_> = networks.collect();
    format!("{CONTROL_NOTE}, as by {}", networks.join(" "))
}

/// The warning about a second pass that is left out.
const LOST_PASS: &str = "the second pass is left out, because the run starts from --image";
/// A part of the error about a model that cannot make seamless pictures.
const NOT_SEAMLESS: &str = "cannot make seamless pictures";

/// The picture that `--like` names, and how it was made.
struct Like<'a> {
    path: &'a Path,
    infotext: Infotext,
}

impl<'a> Like<'a> {
    fn read(path: &'a Path) -> Result<Self, Failure> {
        match Infotext::read(path).map_err(Failure::at(path))? {
            Some(infotext) => Ok(Self { path, infotext }),
            None => Err(Failure::Work(format!(
                "{}: the file does not say how it was made",
                path.display()
            ))),
        }
    }

    /// Warns if the picture was made with a model whose hash differs.
    fn tell_another_model(&self, pipeline: &Pipeline) {
        let (Some(made_with), Some((name, Some(hash)))) =
            (self.infotext.get("Model hash"), pipeline.model())
        else {
            return;
        };
        let short = hash.get(..10).unwrap_or(hash);
        // Hashes of 8 digits, which WebUI wrote until 2023, are not SHA-256 and can't be compared.
        if made_with.len() >= 10 && !hash.starts_with(&made_with.to_ascii_lowercase()) {
            tell(format_args!(
                "warning: {}: made with the model {} ({}), but this model is {} ({short})",
                self.path.display(),
                printable(self.infotext.get("Model").unwrap_or("without a name")),
                printable(made_with),
                printable(name),
            ));
        }
    }
}

/// Checks the output files before anything is drawn.
fn check_outputs(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(path) = &arguments.output {
        check_output("output", path, PICTURES)?;
    }
    if let Some(path) = &arguments.dump {
        check_output("dump", path, SAFETENSORS)?;
    }
    match (&arguments.output, &arguments.dump) {
        (Some(output), Some(dump)) if same_place(output, dump) => Err(Failure::Arguments(format!(
            "--output and --dump are both {}, expected two files",
            dump.display()
        ))),
        _ => Ok(()),
    }
}

/// Returns whether two paths name the same file. The files need not exist, but their folders must.
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

/// Draws the pictures under a progress bar, and saves each one as soon as it is finished.
fn generate(
    pipeline: &Pipeline,
    request: &Request,
    stop: &StopToken,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let mut steps = Steps::of(request);
    let bar = progress_bar(steps.all(request.count), "steps");
    let (mut timings, mut failure, mut skipped) = (Vec::new(), None, 0);
    let result = pipeline.run(std::slice::from_ref(request), stop, |event| {
        match event {
            Event::Picture(picture) => {
                let saved = bar.suspend(|| save(&picture, request, arguments));
                timings.push(picture.timings);
                if let Err(error) = saved {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            Event::Step(progress) => {
                steps.see(&progress.step);
                if progress.step.calls.full == 0 {
                    skipped += 1;
                    bar.set_message(format!("steps, {skipped} of them shortened"));
                }
                bar.set_length(steps.all(request.count));
                bar.inc(1);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    let took = bar.elapsed().as_secs_f32();
    bar.finish_and_clear();
    if let Some(failure) = failure {
        return Err(failure);
    }
    result?;

    tell_timings(took, &timings, arguments.batch.min(request.count));
    Ok(())
}

/// The number of steps of a picture in each of its two passes, as far as it is known.
struct Steps {
    first: usize,
    second: usize,
}

impl Steps {
    fn of(request: &Request) -> Self {
        let first = request.step_count();
        let second = request.hires.as_ref();
        let second = second.map_or(0, |hires| hires.steps.unwrap_or(first));
        Self { first, second }
    }

    /// Takes over the number of steps that a step reports for its pass.
    fn see(&mut self, step: &StepInfo) {
        match step.second_pass {
            false => self.first = step.total,
            true => self.second = step.total,
        }
    }

    /// Returns the number of steps of `count` pictures.
    fn all(&self, count: usize) -> u64 {
        self.first.saturating_add(self.second).saturating_mul(count) as u64
    }
}

/// Prints how long everything took, and the means of the stages. `took` is the whole time in
/// seconds. `batch` is the number of pictures in a model call.
fn tell_timings(took: f32, timings: &[Timings], batch: usize) {
    let mean = |sum: Duration, count: usize| sum.as_secs_f32() / count.max(1) as f32;
    let steps = timings.iter().flat_map(|timings| &timings.steps);
    let step = mean(steps.clone().sum(), steps.count());
    let together = match batch {
        1 => String::new(),
        batch => format!(" of {batch} pictures"),
    };
    let calls = timings.iter().map(|timings| timings.calls);
    let calls = calls.fold(NetworkCalls::default(), |sum, calls| sum + calls);
    let computed = calls.full + calls.shallow;
    let saved = match calls.total() - calls.full {
        0 => String::new(),
        _ => format!(", {computed} of {} network calls", calls.total()),
    };
    tell(format_args!(
        "{took:.2} s: encoding {:.3} s, a step{together} {step:.3} s ({:.2} it/s){saved}, decoding a picture {:.3} s",
        mean(timings.iter().map(|timings| timings.encode).sum(), 1),
        1.0 / step,
        mean(
            timings.iter().map(|timings| timings.decode).sum(),
            timings.len()
        ),
    ));
}

/// Saves a picture, prints its path and seed, and writes its dump if there is to be one.
fn save(picture: &Picture, request: &Request, arguments: &Arguments) -> Result<(), Failure> {
    let of_many = |path: &Path| {
        if request.count > 1 {
            numbered(path, picture.index + 1)
        } else {
            path.to_path_buf()
        }
    };
    let saved = match &arguments.output {
        Some(path) => {
            let path = of_many(path);
            let encoded = encode(&path, &picture.image, &picture.infotext());
            let bytes = encoded.map_err(Failure::at(&path))?;
            files::write(&path, &bytes).map_err(Failure::at(&path))?;
            path
        }
        None => {
            let prompt = match &request.prompt {
                Prompt::Text(text) => slug(text),
                Prompt::Embedding { .. } => slug(""),
            };
            let first = request.seed.unwrap_or(picture.seed);
            let path = of_many(Path::new(&format!("{prompt}-{first}.png")));
            let png = picture.png().map_err(Failure::at(&path))?;
            save_new(&path, &png)?
        }
    };
    print(format_args!("{} (seed {})", saved.display(), picture.seed))?;
    if let Some(path) = &arguments.dump {
        let path = of_many(path);
        dump(&path, picture).map_err(Failure::at(&path))?;
    }
    Ok(())
}

/// Writes the tensors of a picture as safetensors, all in f32 and with a batch dimension of 1.
fn dump(path: &Path, picture: &Picture) -> io::Result<()> {
    let embedding = |prompt: &Conditioning| {
        (
            prompt.embedding.shape().to_vec(),
            bytes(prompt.embedding.iter()),
        )
    };
    let pooled = |prompt: &Conditioning| {
        let pooled = prompt.pooled.as_ref()?;
        Some((pooled.shape().to_vec(), bytes(pooled.iter())))
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
    let negative = picture.negative.as_ref();
    for (name, found) in [
        ("pooled_prompt_embeds", pooled(&picture.prompt)),
        ("negative_pooled_prompt_embeds", negative.and_then(pooled)),
    ] {
        tensors.extend(found.map(|pooled| (name, pooled)));
    }
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
