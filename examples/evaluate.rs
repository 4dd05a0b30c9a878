//! Measures how well the small model follows prompts.
//!
//! The results are figures, which go into the model's README, and a sheet of pictures.
//!
//! ```sh
//! cargo run --release --example evaluate
//! ```
//!
//! Every prompt in `train/prompts.txt` names a thing, a background and a position. To find the
//! thing that a picture shows, the picture is compared with renders of all things on all
//! backgrounds at the prompt's position, and the nearest render decides. The distance is between
//! the means of the VAE's latents. Where the position is the middle, the training moved things by
//! up to one cell, so a picture may be off by one cell too.
//!
//! The background is the named colour that is nearest to the mean of the picture's border.
//!
//! With `--shortcuts`, it measures instead how far shortcuts change the pictures, and what they
//! save:
//!
//! ```sh
//! cargo run --release --example evaluate -- --shortcuts fast --shortcuts faster --steps 50
//! ```

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use image::{ImageFormat, RgbImage, imageops};
use indicatif::ProgressBar;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sd_examples::{
    Failure,
    options::{Machine, positive, shortcuts},
    progress_bar,
    scenes::{MAX_TEXT, Scene, Scenes, Variety, lines, nearest},
    shipped_model, stopped_by_ctrl_c, tell,
};
use sd_onnx::{
    Event, NetworkCalls, Picture, Pipeline, Request, Shortcuts, StopToken, files,
    schedulers::Scheduler,
};
use sd_text::outside;

/// Measures how well a model follows the evaluation's prompts. Replaces the figures in the model's
/// README.md, and evaluation.png beside it.
#[derive(Parser)]
#[command(name = "evaluate", version)]
struct Arguments {
    /// Model folder; its README.md must have the two marks between which the figures go [default:
    /// the small model that ships with the examples]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Use only the first N prompts [default: all]
    #[arg(long, value_name = "N", value_parser = positive)]
    prompts: Option<usize>,
    /// Print the figures without writing any file
    #[arg(long)]
    dry_run: bool,
    /// Compare pictures with these shortcuts, by name or as JSON, with the pictures without
    /// shortcuts, and print a table instead of the figures; may be repeated
    #[arg(long, value_name = "NAME|JSON", value_parser = shortcuts)]
    shortcuts: Vec<Shortcuts>,
    /// Compare pictures of fewer steps, too: this share of the steps, such as 0.6; may be repeated
    #[arg(long, value_name = "F", requires = "shortcuts")]
    fewer: Vec<f32>,
    /// Steps of the comparison; may be repeated [default: 20]
    #[arg(long, value_name = "N", value_parser = positive, requires = "shortcuts")]
    steps: Vec<usize>,
    /// Sampler of the comparison, by any name that `schedulers --list` shows [default: the model's
    /// own]
    #[arg(long, value_name = "NAME", requires = "shortcuts")]
    scheduler: Option<Scheduler>,
    #[command(flatten)]
    machine: Machine,
}

/// A prompt of the evaluation: one line of `prompts.txt`.
struct Case {
    /// Whether no caption of the training names this thing on this background at this position.
    new: bool,
    scene: Scene,
    prompt: String,
}

/// The marks before and after the figures in the README.
const MARKS: [&str; 2] = ["<!-- figures -->\n", "<!-- end of figures -->\n"];
/// The size that the model was trained on most, width and height in pixels.
const SQUARE: [u32; 2] = [96, 96];

fn main() -> ExitCode {
    sd_examples::main(run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let folder = arguments.model.clone().unwrap_or_else(shipped_model);
    let train = shipped_model().join("../../train");
    let scenes = Scenes::load(&train)?;
    let mut cases = read_cases(&train.join("prompts.txt"), &scenes)?;
    cases.truncate(arguments.prompts.unwrap_or(usize::MAX));
    let readme = folder.join("README.md");
    if !arguments.dry_run && arguments.shortcuts.is_empty() {
        with_figures(&readme, "")?;
    }

    let pipeline = arguments
        .machine
        .apply(sd_onnx::builder())
        .load(&folder)
        .map_err(Failure::work)?;
    let runs = Run::all();
    let pictures = match arguments.shortcuts.len() {
        0 => cases.len() * (runs.len() + 3),
        shortcuts => {
            let ways = 1 + shortcuts + arguments.fewer.len();
            cases.len() * ways * arguments.steps.len().max(1)
        }
    };
    let mut judge = Judge {
        pipeline: &pipeline,
        scenes: &scenes,
        references: HashMap::new(),
        stop: stopped_by_ctrl_c(),
        bar: progress_bar(pictures as u64, "pictures"),
    };
    if !arguments.shortcuts.is_empty() {
        let table = judge.comparison(&cases, arguments);
        judge.bar.finish_and_clear();
        for line in table?.lines() {
            tell(format_args!("{line}"));
        }
        return Ok(());
    }
    let figures = judge.figures(&cases, &runs);
    judge.bar.finish_and_clear();
    let (figures, sheet) = figures?;
    for line in figures.lines() {
        tell(format_args!("{line}"));
    }
    if arguments.dry_run {
        return Ok(());
    }
    write_png(&folder.join("evaluation.png"), &sheet)?;
    let text = with_figures(&readme, &figures)?;
    files::write(&readme, text.as_bytes()).map_err(Failure::at(&readme))
}

/// Reads a README and returns its text with other figures. Fails if the README has no place for
/// them.
fn with_figures(readme: &Path, figures: &str) -> Result<String, Failure> {
    let text = outside::read_to_string(readme, MAX_TEXT).map_err(Failure::at(readme))?;
    let [begin, end] = MARKS;
    let (before, after) = around_figures(&text).ok_or_else(|| {
        let (readme, begin, end) = (readme.display(), begin.trim(), end.trim());
        Failure::Work(format!(
            "{readme}: no place for the figures, expected the marks {begin} and {end}"
        ))
    })?;
    Ok(format!("{before}{begin}\n{figures}\n{end}{after}"))
}

fn write_png(path: &Path, image: &RgbImage) -> Result<(), Failure> {
    let mut png = io::Cursor::new(Vec::new());
    let encoded = image.write_to(&mut png, ImageFormat::Png);
    encoded.map_err(|error| Failure::at(path)(io::Error::other(error)))?;
    files::write(path, &png.into_inner()).map_err(Failure::at(path))
}

/// Returns the texts before and after the figures of a README, without the marks. `None` if a mark
/// is missing.
fn around_figures(text: &str) -> Option<(&str, &str)> {
    let (before, rest) = text.split_once(MARKS[0])?;
    let (_, after) = rest.split_once(MARKS[1])?;
    Some((before, after))
}

/// Reads `prompts.txt`.
fn read_cases(path: &Path, scenes: &Scenes) -> Result<Vec<Case>, Failure> {
    let text = outside::read_to_string(path, MAX_TEXT).map_err(Failure::at(path))?;
    let case = |line: &str| {
        let [kind, concept, background, position, prompt] =
            line.split('\t').collect::<Vec<_>>().try_into().ok()?;
        Some(Case {
            new: match kind {
                "new" => true,
                "seen" => false,
                _ => return None,
            },
            scene: Scene {
                concept: scenes.concepts.iter().position(|name| name == concept)?,
                background: scenes.backgrounds().position(|name| name == background)?,
                position: scenes.positions().position(|name| name == position)?,
                size: SQUARE,
            },
            prompt: prompt.to_owned(),
        })
    };
    lines(&text)
        .map(|line| {
            case(line)
                .ok_or_else(|| Failure::Work(format!("{}: invalid line {line:?}", path.display())))
        })
        .collect()
}

/// One way to draw all prompts, which becomes a line of the figures.
struct Run {
    name: &'static str,
    size: [u32; 2],
    change: fn(Request) -> Request,
}

impl Run {
    /// Returns all runs. The first one has `txt2img`'s defaults, for comparison with the others.
    fn all() -> Vec<Self> {
        let run = |name, size, change| Self { name, size, change };
        vec![
            run("defaults: 20 steps, guidance 7.5", SQUARE, |r| r),
            run("guidance 1", SQUARE, |r| r.guidance(1.0)),
            run("4 steps", SQUARE, |r| r.steps(4)),
            run("clip skip 2", SQUARE, |r| r.clip_skip(2)),
            run("clip skip 3", SQUARE, |r| r.clip_skip(3)),
            run("wider: 128×96", [128, 96], |r| r),
            run("taller: 96×128", [96, 128], |r| r),
        ]
    }
}

/// The number of cases, and how often the thing and the background were right.
#[derive(Default, Clone, Copy)]
struct Score {
    cases: usize,
    thing: usize,
    background: usize,
}

impl Score {
    fn thing(self) -> f64 {
        percent(self.thing, self.cases)
    }

    fn background(self) -> f64 {
        percent(self.background, self.cases)
    }
}

fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// Returns a row of the table of figures, for the scores of all cases, of the seen and of the new
/// ones.
fn table_row(name: &str, [all, seen, new]: [Score; 3]) -> String {
    format!(
        "| {name} | {:.1} % | {:.1} % | {:.1} % | {:.1} % |\n",
        all.thing(),
        seen.thing(),
        new.thing(),
        all.background(),
    )
}

/// How much the pictures of a prompt change with the seed.
struct Seeds {
    /// The median of the RMS differences between two pictures, as a share of the full range.
    median: f64,
    /// The least of these differences.
    least: f64,
    /// The pairs of pictures that differ by 0.05 or more, in percent.
    clear: f64,
}

/// The backgrounds of prompts that name none.
struct Backgrounds {
    /// The number of different backgrounds that occurred.
    occurred: usize,
    /// The pictures whose background changes if a negative prompt names it, in percent.
    changed: f64,
}

/// Draws the pictures of the evaluation, and finds out what they show.
struct Judge<'a> {
    pipeline: &'a Pipeline,
    scenes: &'a Scenes,
    /// The latents of every thing on every background, by position and size.
    references: HashMap<(usize, [u32; 2]), Vec<Vec<f32>>>,
    stop: StopToken,
    bar: ProgressBar,
}

impl Judge<'_> {
    /// Returns the text of the figures, and a sheet with the pictures of the first run.
    fn figures(&mut self, cases: &[Case], runs: &[Run]) -> Result<(String, RgbImage), Failure> {
        let truth = self.reconstructions(cases)?;
        let mut text = String::from(
            "| | thing | thing, seen prompts | thing, new prompts | background |\n|---|---|---|---|---|\n",
        );
        let name = "ceiling: true renders through the autoencoder";
        text += &table_row(name, self.scores(cases, &truth, SQUARE)?);
        let mut first = Vec::new();
        for run in runs {
            let pictures = self.draw(cases, |case, i| {
                let [width, height] = run.size;
                let request = Request::new(&case.prompt).seed(i as u64);
                (run.change)(request.size(width, height))
            })?;
            text += &table_row(run.name, self.scores(cases, &pictures, run.size)?);
            if first.is_empty() {
                first = pictures;
            }
        }
        let seeds = self.seeds(cases, &first)?;
        let backgrounds = self.backgrounds(cases)?;
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n{} prompts, each with its own seed. Between two seeds of a prompt, the pictures differ by\n\
             {:.1} % of the full range (the median of the RMS differences; the least is {:.1} %), and\n\
             {:.1} % of the pairs differ by 5 % or more. If a prompt names no background, the seed\n\
             chooses one ({} of {} occurred). A negative prompt that names this background changes\n\
             it in {:.1} % of the cases.\n",
            cases.len(),
            100.0 * seeds.median,
            100.0 * seeds.least,
            seeds.clear,
            backgrounds.occurred,
            self.scenes.backgrounds().len(),
            backgrounds.changed,
        );
        Ok((text, mosaic(&first)))
    }

    /// Returns a table that compares pictures with shortcuts, and pictures of fewer steps, with
    /// plain pictures.
    ///
    /// The ways take turns for each prompt, so that the ratios of their times mean something on a
    /// busy machine.
    fn comparison(&mut self, cases: &[Case], arguments: &Arguments) -> Result<String, Failure> {
        let mut text = String::from(
            "| steps | shortcuts | network calls | time | PSNR, mean | PSNR, worst | thing | background |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        let all_steps = match &arguments.steps[..] {
            [] => &[20],
            steps => steps,
        };
        for &steps in all_steps {
            let mut ways = vec![Way::new("none".to_owned(), steps, Shortcuts::NONE)];
            for &shortcuts in &arguments.shortcuts {
                let name = serde_json::to_string(&shortcuts).map_err(Failure::work)?;
                let mut presets = Shortcuts::PRESETS.into_iter();
                let preset = presets.find(|(_, preset)| *preset == shortcuts);
                let name = preset.map_or(name, |(name, _)| name.to_owned());
                ways.push(Way::new(name, steps, shortcuts));
            }
            for share in &arguments.fewer {
                let fewer = ((steps as f32 * share).round() as usize).max(1);
                let name = format!("none, {fewer} steps");
                ways.push(Way::new(name, fewer, Shortcuts::NONE));
            }
            for (i, case) in cases.iter().enumerate() {
                for way in &mut ways {
                    let [width, height] = SQUARE;
                    let mut request = Request::new(&case.prompt)
                        .seed(i as u64)
                        .size(width, height)
                        .steps(way.steps)
                        .shortcuts(way.shortcuts);
                    request.scheduler.clone_from(&arguments.scheduler);
                    self.pipeline.run(&[request], &self.stop, |event| {
                        if let Event::Picture(picture) = event {
                            way.add(*picture);
                            self.bar.inc(1);
                        }
                        ControlFlow::Continue(())
                    })?;
                }
            }
            let scores: Vec<_> = ways
                .iter()
                .map(|way| Ok(self.scores(cases, &way.pictures, SQUARE)?[0]))
                .collect::<Result<_, Failure>>()?;
            for (way, score) in ways.iter().zip(scores) {
                text += &way.row(steps, &ways[0], score);
            }
        }
        Ok(text)
    }

    /// Draws the cases with other seeds, and compares the pictures with the first run's pictures.
    fn seeds(&self, cases: &[Case], first: &[RgbImage]) -> Result<Seeds, Failure> {
        let others = self.draw(cases, |case, i| {
            let [width, height] = SQUARE;
            Request::new(&case.prompt)
                .seed((i + cases.len()) as u64)
                .size(width, height)
        })?;
        let mut differences: Vec<_> = first.iter().zip(&others).map(|(a, b)| rms(a, b)).collect();
        differences.sort_by(f64::total_cmp);
        let median = differences.get(differences.len() / 2);
        let clear = differences.iter().filter(|&&rms| rms >= 0.05).count();
        Ok(Seeds {
            median: median.copied().unwrap_or_default(),
            least: differences.first().copied().unwrap_or_default(),
            clear: percent(clear, cases.len()),
        })
    }

    /// Draws the prompts without their backgrounds, and then also with a negative prompt that names
    /// the background that came.
    fn backgrounds(&self, cases: &[Case]) -> Result<Backgrounds, Failure> {
        let bare = |case: &Case, i: usize| {
            let [width, height] = SQUARE;
            Request::new(without_background(&case.prompt))
                .seed(i as u64)
                .size(width, height)
        };
        let free = self.draw(cases, bare)?;
        let names: Vec<_> = self.scenes.backgrounds().collect();
        let found: Vec<_> = free
            .iter()
            .map(|picture| self.scenes.background(picture))
            .collect();
        let pushed = self.draw(cases, |case, i| {
            bare(case, i).negative(format!("{} background", names[found[i]]))
        })?;
        let away = pushed.iter().zip(&found);
        let changed = away
            .filter(|(picture, before)| self.scenes.background(picture) != **before)
            .count();
        Ok(Backgrounds {
            occurred: found.iter().collect::<HashSet<_>>().len(),
            changed: percent(changed, cases.len()),
        })
    }

    /// Returns renders of the cases, encoded and decoded by the autoencoder. They vary as in the
    /// training.
    fn reconstructions(&self, cases: &[Case]) -> Result<Vec<RgbImage>, Failure> {
        let reconstructed = |(i, case): (usize, &Case)| {
            let mut rng = StdRng::seed_from_u64(i as u64);
            let variety = Variety {
                place: [0, 1].map(|_| rng.random_range(-1..=1)),
                shade: [0, 1, 2].map(|_| rng.random_range(-1.0..=1.0)),
            };
            let render = self.scenes.draw(case.scene, variety);
            let encoded = self.pipeline.encode_image(&render)?;
            Ok(self.pipeline.decode(encoded.mode().view())?)
        };
        cases.iter().enumerate().map(reconstructed).collect()
    }

    /// Draws one picture per case. `request` makes the request of a case from its index.
    fn draw(
        &self,
        cases: &[Case],
        request: impl Fn(&Case, usize) -> Request,
    ) -> Result<Vec<RgbImage>, Failure> {
        let requests: Vec<_> = cases
            .iter()
            .enumerate()
            .map(|(i, case)| request(case, i))
            .collect();
        let mut pictures = vec![RgbImage::new(0, 0); cases.len()];
        self.pipeline.run(&requests, &self.stop, |event| {
            if let Event::Picture(picture) = event {
                pictures[picture.request] = picture.image;
                self.bar.inc(1);
            }
            ControlFlow::Continue(())
        })?;
        Ok(pictures)
    }

    /// Returns the scores of all cases, of the cases that the training saw, and of the new ones.
    fn scores(
        &mut self,
        cases: &[Case],
        pictures: &[RgbImage],
        size: [u32; 2],
    ) -> Result<[Score; 3], Failure> {
        let mut scores = [Score::default(); 3];
        for (case, picture) in cases.iter().zip(pictures) {
            let thing = self.thing(picture, case.scene.position, size)?;
            let background = self.scenes.background(picture);
            for score in [0, if case.new { 2 } else { 1 }] {
                scores[score].cases += 1;
                scores[score].thing += usize::from(thing == case.scene.concept);
                scores[score].background += usize::from(background == case.scene.background);
            }
        }
        Ok(scores)
    }

    /// Returns the index of the thing that a picture shows.
    ///
    /// It is the thing of the nearest render, among all things on all backgrounds. The distance to
    /// a render is the smallest one over all moves of the picture ([`Scenes::centered`]).
    fn thing(
        &mut self,
        picture: &RgbImage,
        position: usize,
        size: [u32; 2],
    ) -> Result<usize, Failure> {
        let backgrounds = self.scenes.backgrounds().len();
        if !self.references.contains_key(&(position, size)) {
            let mut all = Vec::with_capacity(self.scenes.concepts.len() * backgrounds);
            for concept in 0..self.scenes.concepts.len() {
                for background in 0..backgrounds {
                    if self.stop.is_stopped() {
                        let reason = "stopped while the pictures were compared";
                        return Err(Failure::Stopped(reason.to_owned()));
                    }
                    let scene = Scene {
                        concept,
                        background,
                        position,
                        size,
                    };
                    all.push(self.latents(&self.scenes.draw(scene, Variety::default()))?);
                }
            }
            self.references.insert((position, size), all);
        }
        let moved = self.scenes.centered(picture, position);
        let moved: Vec<_> = moved
            .iter()
            .map(|picture| self.latents(picture))
            .collect::<Result<_, _>>()?;
        let distances = self.references[&(position, size)].iter().map(|render| {
            let distance = |latents: &Vec<f32>| -> f64 {
                let differences = render.iter().zip(latents);
                differences.map(|(a, b)| f64::from(a - b).powi(2)).sum()
            };
            moved.iter().map(distance).fold(f64::INFINITY, f64::min)
        });
        Ok(nearest(distances) / backgrounds)
    }

    /// Returns the means of a picture's latents.
    fn latents(&self, picture: &RgbImage) -> Result<Vec<f32>, Failure> {
        Ok(self
            .pipeline
            .encode_image(picture)?
            .mean
            .into_iter()
            .collect())
    }
}

/// One way to draw the pictures of a comparison.
struct Way {
    name: String,
    steps: usize,
    shortcuts: Shortcuts,
    pictures: Vec<RgbImage>,
    calls: NetworkCalls,
    /// The time of all steps.
    took: Duration,
}

impl Way {
    fn new(name: String, steps: usize, shortcuts: Shortcuts) -> Self {
        Self {
            name,
            steps,
            shortcuts,
            pictures: Vec::new(),
            calls: NetworkCalls::default(),
            took: Duration::ZERO,
        }
    }

    /// Adds the picture of the next prompt.
    fn add(&mut self, picture: Picture) {
        self.calls = self.calls + picture.timings.calls;
        self.took += picture.timings.steps.iter().sum::<Duration>();
        self.pictures.push(picture.image);
    }

    /// Returns the row of the table, in comparison with the pictures of `plain`.
    fn row(&self, steps: usize, plain: &Self, score: Score) -> String {
        let pairs = self.pictures.iter().zip(&plain.pictures);
        let psnr: Vec<_> = pairs.map(|(own, plain)| psnr(own, plain)).collect();
        let mean = psnr.iter().sum::<f64>() / psnr.len().max(1) as f64;
        let worst = psnr.iter().copied().fold(f64::INFINITY, f64::min);
        let per_picture = |calls: usize| calls as f64 / self.pictures.len().max(1) as f64;
        let NetworkCalls { full, shallow, .. } = self.calls;
        let mut calls = format!("{:.1}", per_picture(full));
        if shallow > 0 {
            // Writing to a string cannot fail.
            let _ = write!(calls, " + {:.1} shallow", per_picture(shallow));
        }
        let [mean, worst] = match std::ptr::eq(self, plain) {
            true => ["–".to_owned(), "–".to_owned()],
            false => [mean, worst].map(|psnr| format!("{psnr:.1} dB")),
        };
        format!(
            "| {steps} | {} | {calls} | {:.2} | {mean} | {worst} | {:.1} % | {:.1} % |\n",
            self.name,
            self.took.as_secs_f64() / plain.took.as_secs_f64().max(f64::EPSILON),
            score.thing(),
            score.background(),
        )
    }
}

/// Returns the peak signal-to-noise ratio of two pictures in dB, 100 if they are equal.
fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    (-20.0 * rms(a, b).log10()).min(100.0)
}

/// Returns a prompt without the end that names its background.
fn without_background(prompt: &str) -> &str {
    // The end is one of "on red", "on a red background", "with a red background", "red background".
    let end = prompt.strip_suffix(" background").unwrap_or(prompt);
    let words = end.rsplit_once(' ').map_or("", |(before, _)| before);
    let words = words
        .strip_suffix(" a")
        .or_else(|| words.strip_suffix(" an"))
        .unwrap_or(words);
    words
        .strip_suffix(" on")
        .or_else(|| words.strip_suffix(" with"))
        .unwrap_or(words)
}

/// Returns the root mean square of the differences between two pictures, as a share of the full
/// range.
fn rms(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares = a
        .iter()
        .zip(b.iter())
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    (squares.sum::<f64>() / a.len().max(1) as f64).sqrt() / 255.0
}

/// Returns a sheet of all pictures at three eighths of their size, 16 in a row.
fn mosaic(pictures: &[RgbImage]) -> RgbImage {
    let side = SQUARE[0] * 3 / 8;
    let mut canvas = RgbImage::new(16 * side, pictures.len().div_ceil(16) as u32 * side);
    for (i, picture) in pictures.iter().enumerate() {
        let small = imageops::resize(picture, side, side, imageops::FilterType::Triangle);
        let (x, y) = (i as u32 % 16 * side, i as u32 / 16 * side);
        imageops::replace(&mut canvas, &small, x.into(), y.into());
    }
    canvas
}

#[cfg(test)]
mod tests {
    // In a test, a panic is the failure.
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn backgrounds_are_cut_off() {
        for prompt in [
            "a fox on red",
            "a fox on a red background",
            "a fox with an orange background",
            "a fox red background",
        ] {
            assert_eq!(without_background(prompt), "a fox");
        }
        assert_eq!(
            without_background("a cat on the left on red"),
            "a cat on the left"
        );
    }

    #[test]
    fn half_of_the_prompts_are_new_and_none_is_there_twice() {
        let train = shipped_model().join("../../train");
        let scenes = Scenes::load(&train).unwrap();
        let cases = read_cases(&train.join("prompts.txt"), &scenes).unwrap();
        assert_eq!(cases.len(), 256);
        assert_eq!(cases.iter().filter(|case| case.new).count(), 128);
        let different: HashSet<_> = cases.iter().map(|case| case.scene).collect();
        assert_eq!(different.len(), 256);
        let concepts: HashSet<_> = cases.iter().map(|case| case.scene.concept).collect();
        assert_eq!(concepts.len(), scenes.concepts.len());
    }

    #[test]
    fn figures_have_their_place() {
        let text = format!("a\n{}old{}b\n", MARKS[0], MARKS[1]);
        assert_eq!(around_figures(&text), Some(("a\n", "b\n")));
        assert_eq!(around_figures("a"), None);
    }
}
