//! Shows what happens in a run: the picture after each step, as a labelled strip.
//!
//! ```sh
//! cargo run --release --example steps -- "a fox" --steps 10 --output steps.png
//! ```

use std::{ops::ControlFlow, path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use image::{RgbImage, imageops};
use ndarray::{Array3, ArrayView3, Axis};
use sd_examples::{
    Failure, PNG, check_output,
    options::{Options, prompt_warnings, summary, tell_warnings},
    progress_bar, save_sheet,
    sheet::{self, Sheet},
    stopped_by_ctrl_c, tell,
};
use sd_onnx::{Event, Pipeline, Request, StopToken};

/// Draws the picture after each step of one run, as a labelled strip.
///
/// A column shows one step. Its label names the noise levels (sigma) at which the step began and
/// ended.
///
/// The upper row, denoised, shows the model's guess of the finished picture at the sigma where the
/// step began. The lower row, noisy, shows the latents after the step, scaled to unit variance, x /
/// sqrt(sigma² + 1), and decoded.
///
/// The lower row ends with the finished picture. So does the upper row, except for DDIM if the
/// model's configuration makes it stop above sigma 0.
///
/// All other options are the same as in txt2img.
#[derive(Parser)]
#[command(
    name = "steps",
    version,
    allow_negative_numbers = true,
    verbatim_doc_comment
)]
struct Arguments {
    /// What to draw
    prompt: String,
    #[command(flatten)]
    options: Options,
    /// Number of steps to show, evenly spaced, including the first and the last [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    columns: Option<u32>,
    /// Show linear previews, one block per latent, instead of decoding
    #[arg(long)]
    preview: bool,
    /// PNG to write, replacing a file of that name [default: a new file in this folder, named after
    /// the prompt and the seed]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The data of one column.
struct Seen {
    index: usize,
    /// The sigma at which the step began.
    sigma: f32,
    /// The model's guess of the finished latents, `[channels, height, width]`.
    denoised: Array3<f32>,
    /// The latents after the step, in the same shape, not yet scaled to unit variance.
    noisy: Array3<f32>,
    /// The sigma at which the step ended.
    next_sigma: f32,
}

fn main() -> ExitCode {
    sd_examples::main(run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let options = &arguments.options;
    let mut request = options.request(Request::new(&arguments.prompt))?;
    request.controls = options.control.controls(None)?;
    if let Some(path) = &arguments.output {
        check_output("output", path, PNG)?;
    }
    let warnings = prompt_warnings([&request]);
    tell_warnings(warnings.into_iter().map(|warning| (None, warning)));
    let pipeline = options.load(1)?;
    let stop = stopped_by_ctrl_c();
    let request = pipeline.with_defaults(options.sized(request, &pipeline));
    let [width, height] = request.size.unwrap_or_default();
    let note = summary(&request, &pipeline, &[]);
    tell(format_args!("{note}"));
    // If there are too many steps, the run reports it.
    let steps = request
        .step_count()
        .min(pipeline.schedule().num_train_timesteps());
    let shown = columns_of(steps, arguments.columns.map_or(steps, |n| n as usize));
    let sheet = |labels| sheet(&arguments.prompt, &note, labels, [width, height]);
    // The labels are not known yet, but all of them are short. A first sheet without labels detects
    // a sheet that is too large before any work is done.
    sheet(vec![String::new(); shown.len()])?;

    let started = Instant::now();
    let seen = follow(&pipeline, &request, &stop, steps, &shown)?;
    let mut sheet = sheet(seen.iter().map(Seen::label).collect())?;
    fill(&mut sheet, &seen, &pipeline, &stop, arguments.preview)?;
    tell(format_args!("{:.2} s", started.elapsed().as_secs_f32()));

    let output = arguments.output.as_deref();
    let seed = request.seed.unwrap_or_default();
    save_sheet(sheet.image(), output, &arguments.prompt, seed, "steps")
}

/// Returns an empty sheet with these labels of the columns, for pictures of width × height pixels.
fn sheet(
    prompt: &str,
    note: &str,
    labels: Vec<String>,
    [width, height]: [u32; 2],
) -> Result<Sheet, Failure> {
    let columns = sheet::Axis {
        name: "step, sigma".to_owned(),
        labels: labels.into_iter().map(|label| (label, width)).collect(),
    };
    let rows = sheet::Axis {
        name: String::new(),
        labels: ["denoised", "noisy"]
            .map(|row| (row.to_owned(), height))
            .into(),
    };
    Sheet::new(prompt, note, &columns, &rows).map_err(Failure::arguments)
}

/// Runs the request under a progress bar over `steps` steps. Returns the steps whose indices are in
/// `shown`, and the last step in any case.
fn follow(
    pipeline: &Pipeline,
    request: &Request,
    stop: &StopToken,
    steps: usize,
    shown: &[usize],
) -> Result<Vec<Seen>, Failure> {
    let bar = progress_bar(steps as u64, "steps");
    let mut seen: Vec<Seen> = Vec::with_capacity(shown.len());
    let picked = |index: usize| shown.binary_search(&index).is_ok();
    let result = pipeline.run(std::slice::from_ref(request), stop, |event| {
        if let Event::Step(progress) = event {
            let step = progress.step;
            // The last step is always shown, because some samplers make more or fewer steps than
            // the request says. So a step that is not picked stays only until the next one.
            if seen.len() == shown.len() || !seen.last().is_none_or(|seen| picked(seen.index)) {
                seen.pop();
            }
            seen.push(Seen {
                index: step.index,
                sigma: step.sigma,
                denoised: progress.denoised.to_owned(),
                noisy: progress.latents.to_owned(),
                next_sigma: step.next,
            });
            bar.inc(1);
        }
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    result?;
    Ok(seen)
}

/// Decodes the latents of all columns and places the pictures on the sheet. With `linear`, they
/// are previews, which need no decoder.
fn fill(
    sheet: &mut Sheet,
    seen: &[Seen],
    pipeline: &Pipeline,
    stop: &StopToken,
    linear: bool,
) -> Result<(), Failure> {
    let bar = progress_bar(2 * seen.len() as u64, "pictures");
    for (column, seen) in seen.iter().enumerate() {
        for (row, latents) in [&seen.denoised, &seen.variance_preserving()]
            .into_iter()
            .enumerate()
        {
            if stop.is_stopped() {
                bar.finish_and_clear();
                let reason = "stopped after the last step, while its pictures were decoded";
                return Err(Failure::Stopped(reason.to_owned()));
            }
            let picture = if linear {
                preview(pipeline, latents.view())
            } else {
                pipeline.decode(latents.view().insert_axis(Axis(0)))?
            };
            sheet.place(column, row, &picture);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

impl Seen {
    /// Returns the label of the column: the number of the step, and its sigmas.
    fn label(&self) -> String {
        format!(
            "{}\n{}→{}",
            self.index + 1,
            short(self.sigma),
            short(self.next_sigma)
        )
    }

    /// Returns the noisy latents at unit variance, which the decoder expects. Before, their
    /// variance is about sigma² + 1.
    fn variance_preserving(&self) -> Array3<f32> {
        &self.noisy / self.next_sigma.hypot(1.0)
    }
}

/// Returns a sigma with three digits, or with its whole part if that has more digits.
fn short(sigma: f32) -> String {
    match sigma {
        0.0 => "0".to_owned(),
        ..1.0 => format!("{sigma:.2}"),
        ..10.0 => format!("{sigma:.1}"),
        _ => format!("{sigma:.0}"),
    }
}

/// Returns the indices of the steps that the columns show, in ascending order.
///
/// `steps` is at least 1. `columns` is at least 2 unless there is only one step.
fn columns_of(steps: usize, columns: usize) -> Vec<usize> {
    if columns >= steps {
        return (0..steps).collect();
    }
    let last = columns - 1;
    (0..columns)
        .map(|i| (i * (steps - 1) + last / 2) / last)
        .collect()
}

/// Returns a linear preview of latents, as large as the picture.
fn preview(pipeline: &Pipeline, latents: ArrayView3<'_, f32>) -> RgbImage {
    let small = pipeline.latent_rgb().picture(latents);
    let factor = pipeline.codec().factor() as u32;
    let (width, height) = (small.width() * factor, small.height() * factor);
    imageops::resize(&small, width, height, imageops::FilterType::Nearest)
}
