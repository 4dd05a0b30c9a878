//! Shows what one or two parameters do, with pictures side by side on a labelled sheet.
//!
//! ```sh
//! cargo run --release --example grid -- "a fox" --x steps=1,5,20,50 --y guidance=1,3,7.5,15
//! ```

use std::{ops::ControlFlow, path::PathBuf, process::ExitCode};

use clap::Parser;
use sd_examples::{
    Failure, PNG, check_output,
    options::{
        Named, Options, check_ladder, finite, ladder, ladder_name, positive, prompt_warnings,
        scheduler, seed, summary, tell_warnings,
    },
    progress_bar, save_sheet,
    sheet::{self, Sheet},
    stopped_by_ctrl_c, tell,
};
use sd_onnx::{
    Event, ImageSize, Pipeline, Prompt, Request, Shortcuts, StopToken, schedulers::Ladder,
};

/// The largest number of pictures on a sheet, which is more than anybody looks at.
const MAX_PICTURES: usize = 10_000;

/// Draws pictures that differ in one or two parameters, side by side on one labelled sheet.
///
/// An axis is a parameter and its values: --x steps=5,10,20. The parameters are steps, guidance,
/// clip-skip, seed, scheduler, ladder, shortcuts (none,fast,faster), size (64x64,128x64), prompt,
/// negative and lora.
///
/// Values are split at commas. Values of prompt and negative are split at each | outside of square
/// brackets: --y "prompt=a fox|a [red|blue] cat". Only a value of negative may be empty.
///
/// Values of lora are added to the prompt: --x lora=ink:0,ink:0.8 --loras DIR adds <lora:ink:0> in
/// the first column and <lora:ink:0.8> in the second. Both axes may be lora. Semicolons separate
/// weights that change over the steps: ink:0@0;1@0.5.
///
/// All other options are the same as in txt2img.
#[derive(Parser)]
#[command(
    name = "grid",
    version,
    allow_negative_numbers = true,
    verbatim_doc_comment
)]
struct Arguments {
    /// What to draw; left out if prompt is an axis
    prompt: Option<String>,
    /// Parameter that differs from column to column
    #[arg(long, value_name = "NAME=VALUES", value_parser = Axis::parse)]
    x: Axis,
    /// Parameter that differs from row to row [default: one row]
    #[arg(long, value_name = "NAME=VALUES", value_parser = Axis::parse)]
    y: Option<Axis>,
    #[command(flatten)]
    options: Options,
    /// PNG to write, replacing a file of that name [default: a new file in this folder, named after
    /// the prompt and the seed]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    sd_examples::main(run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let options = &arguments.options;
    let grid = Grid::new(arguments)?;
    if let Some(path) = &arguments.output {
        check_output("output", path, PNG)?;
    }
    let warnings = prompt_warnings(&grid.requests(&grid.base).collect::<Vec<_>>());
    tell_warnings(warnings.into_iter().map(|warning| (None, warning)));
    let pipeline = options.load(1)?;
    let stop = stopped_by_ctrl_c();
    let base = options.sized(grid.base.clone(), &pipeline);
    let (columns, rows) = grid.sides(base.size.unwrap_or_default());
    let title = grid.prompt_of_all().unwrap_or_default();
    let varies: Vec<_> = grid.axes().map(|axis| axis.name).collect();
    let note = summary(&base, &pipeline, &varies);
    let mut sheet = Sheet::new(&title, &note, &columns, &rows).map_err(Failure::arguments)?;
    tell(format_args!(
        "{} pictures: {note}",
        grid.x.values.len() * grid.rows()
    ));

    let requests = grid.requests(&base);
    let requests: Vec<_> = requests
        .map(|request| pipeline.with_defaults(request))
        .collect();
    draw(&pipeline, &requests, &stop, &mut sheet, grid.x.values.len())?;

    let output = arguments.output.as_deref();
    save_sheet(sheet.image(), output, &title, grid.seed(), "grid")
}

/// Draws the pictures under a progress bar, places them on the sheet, and prints the time.
/// `columns` is the number of pictures in a row.
fn draw(
    pipeline: &Pipeline,
    requests: &[Request],
    stop: &StopToken,
    sheet: &mut Sheet,
    columns: usize,
) -> Result<(), Failure> {
    let steps = requests.iter().fold(0, |sum: u64, request| {
        sum.saturating_add(request.step_count() as u64)
    });
    let bar = progress_bar(steps, "steps");
    let result = pipeline.run(requests, stop, |event| {
        match event {
            Event::Picture(picture) => {
                let (row, column) = (picture.request / columns, picture.request % columns);
                sheet.place(column, row, &picture.image);
            }
            _ => bar.inc(1),
        }
        ControlFlow::Continue(())
    });
    let (steps, took) = (bar.position(), bar.elapsed().as_secs_f32());
    bar.finish_and_clear();
    result?;
    tell(format_args!("{steps} steps in {took:.2} s"));
    Ok(())
}

/// The pictures to draw.
struct Grid {
    base: Request,
    x: Axis,
    y: Option<Axis>,
}

impl Grid {
    /// Checks the arguments as far as that is possible without a model.
    fn new(arguments: &Arguments) -> Result<Self, Failure> {
        let wrong = |reason: String| Err(Failure::Arguments(reason));
        let options = &arguments.options;
        let axes: Vec<_> = [("--x", Some(&arguments.x)), ("--y", arguments.y.as_ref())]
            .into_iter()
            .filter_map(|(option, axis)| Some((option, axis?)))
            .collect();
        check_set_once(&axes, arguments)?;
        let has = |name: &str| axes.iter().any(|(_, axis)| axis.name == name);
        if arguments.prompt.is_none() && !has("prompt") {
            return wrong(
                "there is no prompt, expected it as an argument or as an axis".to_owned(),
            );
        }
        let pictures: usize = axes.iter().map(|(_, axis)| axis.values.len()).product();
        if pictures > MAX_PICTURES {
            return wrong(format!(
                "the sheet would have {pictures} pictures, expected at most {MAX_PICTURES}"
            ));
        }
        let prompt = arguments.prompt.as_deref().unwrap_or_default();
        let grid = Self {
            base: {
                let mut base = options.request(Request::new(prompt))?;
                base.controls = options.control.controls(None)?;
                base
            },
            x: arguments.x.clone(),
            y: arguments.y.clone(),
        };
        let uses_negative = |request: Request| request.uses_negative();
        if has("negative") && !grid.requests(&grid.base).any(uses_negative) {
            return wrong(
                "the negative prompt is not used: expected a guidance above 1".to_owned(),
            );
        }
        grid.check_guidance()?;
        for request in grid.requests(&grid.base) {
            check_ladder(&request)?;
        }
        Ok(grid)
    }

    /// Checks that no axis has two values that draw the same picture because neither guides.
    ///
    /// At a scale of 1 and below there is no guidance. This does not hold for samplers and prompts
    /// that need both predictions.
    fn check_guidance(&self) -> Result<(), Failure> {
        let needs_both = |request: Request| request.guidance(1.0).uses_negative();
        if self.requests(&self.base).any(needs_both) {
            return Ok(());
        }
        for axis in self.axes() {
            let off = |value: &&Value| matches!(value, Value::Guidance(scale) if *scale <= 1.0);
            let mut off = axis.values.iter().filter(off);
            if let (Some(one), Some(other)) = (off.next(), off.next()) {
                let (one, other) = (one.label(), other.label());
                let reason = format!("{other:?} draws the same as {one:?} before it");
                return Err(Failure::Arguments(reason));
            }
        }
        Ok(())
    }

    fn axes(&self) -> impl Iterator<Item = &Axis> {
        std::iter::once(&self.x).chain(&self.y)
    }

    fn rows(&self) -> usize {
        self.y.as_ref().map_or(1, |axis| axis.values.len())
    }

    /// Returns the requests of all pictures, row by row.
    fn requests(&self, base: &Request) -> impl Iterator<Item = Request> {
        (0..self.rows()).flat_map(move |row| {
            self.x.values.iter().map(move |value| {
                let of_row = self.y.as_ref().map(|axis| &axis.values[row]);
                let mut values: Vec<_> = of_row.into_iter().chain([value]).collect();
                // A LoRA is added to the prompt, so the prompt is set first.
                values.sort_by_key(|value| matches!(value, Value::Lora(_)));
                let apply = |request, value: &Value| value.apply(request);
                values.into_iter().fold(base.clone(), apply)
            })
        })
    }

    /// Returns the columns and the rows of the sheet. `size` is the size of the pictures if size is
    /// not an axis.
    fn sides(&self, size: [u32; 2]) -> (sheet::Axis, sheet::Axis) {
        let sides = |axis: &Axis, side: usize| {
            let all = self.axes().flat_map(|axis| &axis.values);
            let largest = all
                .filter_map(|value| value.size())
                .map(|size| size[side])
                .max();
            let of = |value: &Value| {
                value
                    .size()
                    .map(|size| size[side])
                    .or(largest)
                    .unwrap_or(size[side])
            };
            let labels = axis.values.iter().map(|value| (value.label(), of(value)));
            sheet::Axis {
                name: axis.name.to_owned(),
                labels: labels.collect(),
            }
        };
        let none = Axis {
            name: "",
            values: vec![Value::Prompt(String::new())],
        };
        (
            sides(&self.x, 0),
            sides(self.y.as_ref().unwrap_or(&none), 1),
        )
    }

    /// Returns the prompt if it is the same for all pictures.
    fn prompt_of_all(&self) -> Option<String> {
        match &self.base.prompt {
            Prompt::Text(text) if self.axes().all(|axis| axis.name != "prompt") => {
                Some(text.clone())
            }
            _ => None,
        }
    }

    /// Returns the seed of the first picture, which becomes a part of the file's name.
    fn seed(&self) -> u64 {
        let first = self.requests(&self.base).next();
        first.and_then(|request| request.seed).unwrap_or_default()
    }
}

/// Checks that no parameter is set in two ways: by both axes, or by an axis and another argument.
/// Both axes can be `lora`, because a prompt can call two LoRAs. `axes` are the axes and their
/// options.
fn check_set_once(axes: &[(&str, &Axis)], arguments: &Arguments) -> Result<(), Failure> {
    let wrong = |reason: String| Err(Failure::Arguments(reason));
    if let [(_, x), (_, y)] = axes[..]
        && x.name == y.name
        && x.name != "lora"
    {
        return wrong(format!(
            "--x and --y are both {}, expected two parameters",
            x.name
        ));
    }
    for &(option, axis) in axes {
        if is_given(axis.name, arguments) {
            let other = match axis.name {
                "prompt" => "the prompt as an argument".to_owned(),
                "size" => "--width or --height".to_owned(),
                name => format!("--{name}"),
            };
            return wrong(twice(&other, option, axis.name));
        }
    }
    // A scheduler's name may include a ladder.
    let options = &arguments.options;
    let named = options
        .scheduler
        .as_ref()
        .map(|named| ("--scheduler", named));
    let values = axes.iter().flat_map(|&(option, axis)| {
        let values = axis.values.iter();
        values.filter_map(move |value| Some((option, value.scheduler()?)))
    });
    let mut named = named.into_iter().chain(values);
    let of_axis = axes.iter().find(|(_, axis)| axis.name == "ladder");
    let of_axis = of_axis.map(|&(option, _)| option);
    if let Some(ladder) = options.ladder.as_ref().map(|_| "--ladder").or(of_axis)
        && let Some((option, _)) = named.find(|(_, named)| named.ladder.is_some())
    {
        return wrong(twice(option, ladder, "ladder"));
    }
    Ok(())
}

/// Returns whether a parameter, which is one of [`NAMES`], has a value for all pictures.
fn is_given(name: &str, arguments: &Arguments) -> bool {
    let options = &arguments.options;
    match name {
        "prompt" => arguments.prompt.is_some(),
        "negative" => options.negative.is_some(),
        "steps" => options.steps.is_some(),
        "guidance" => options.guidance.is_some(),
        "clip-skip" => options.clip_skip.is_some(),
        "seed" => options.seed.is_some(),
        "scheduler" => options.scheduler.is_some(),
        "ladder" => options.ladder.is_some(),
        "shortcuts" => options.shortcuts.is_some(),
        // A LoRA is added to what the prompt calls and to what is merged.
        "lora" => false,
        _ => options.width.is_some() || options.height.is_some(),
    }
}

/// Returns the error text for a parameter that is set in two ways.
fn twice(one: &str, other: &str, what: &str) -> String {
    format!("{one} and {other} both set {what}; give only one of them")
}

/// A parameter and its values. There is at least one value, and no two are known to draw the same
/// picture.
#[derive(Clone)]
struct Axis {
    /// The parameter's name on the command line.
    name: &'static str,
    values: Vec<Value>,
}

#[derive(Clone)]
enum Value {
    Steps(usize),
    Guidance(f32),
    ClipSkip(usize),
    Seed(u64),
    Scheduler(Named),
    Ladder(Ladder),
    /// A preset, with its name.
    Shortcuts(&'static str, Shortcuts),
    Size([u32; 2]),
    Prompt(String),
    Negative(String),
    /// The text between `<lora:` and `>`.
    Lora(String),
}

const NAMES: [&str; 11] = [
    "steps",
    "guidance",
    "clip-skip",
    "seed",
    "scheduler",
    "ladder",
    "shortcuts",
    "size",
    "prompt",
    "negative",
    "lora",
];

impl Axis {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, values) = text
            .split_once('=')
            .ok_or("expected a name, = and values, such as steps=5,10,20")?;
        let name = NAMES
            .into_iter()
            .find(|known| *known == name.trim())
            .ok_or_else(|| format!("expected one of {}", NAMES.join(", ")))?;
        if values.trim().is_empty() {
            return Err("there are no values".to_owned());
        }
        let separator = if matches!(name, "prompt" | "negative") {
            '|'
        } else {
            ','
        };
        let mut axis = Self {
            name,
            values: Vec::new(),
        };
        let texts = split(values, separator)?;
        for text in texts {
            if text.is_empty() && name != "negative" {
                return Err("a value is empty".to_owned());
            }
            let value = Value::parse(name, text).map_err(|reason| format!("{text:?}: {reason}"))?;
            if let Some(same) = axis.values.iter().find(|other| other.draws_as(&value)) {
                let same = same.label();
                return Err(format!("{text:?} draws the same as {same:?} before it"));
            }
            axis.values.push(value);
        }
        Ok(axis)
    }
}

/// Splits `values` at the separators.
///
/// A `|` in square brackets, as in `[a|b]`, does not split: it belongs to the prompt language.
fn split(values: &str, separator: char) -> Result<Vec<&str>, String> {
    let (mut depth, mut escaped, mut inside) = (0_usize, false, false);
    let between = |letter: char| {
        match letter {
            _ if escaped || separator != '|' => {}
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        escaped = letter == '\\' && !escaped;
        inside = depth > 0 && (inside || letter == separator);
        letter == separator && depth == 0
    };
    let texts = values.split(between).map(str::trim).collect();
    if inside {
        return Err(
            r"a [ with a | after it is not closed; write \[ for a plain bracket".to_owned(),
        );
    }
    Ok(texts)
}

impl Value {
    /// Parses a value of the parameter `name`, which is one of [`NAMES`].
    fn parse(name: &str, text: &str) -> Result<Self, String> {
        Ok(match name {
            "steps" => Self::Steps(positive(text)?),
            "guidance" => Self::Guidance(finite(text)?),
            "clip-skip" => Self::ClipSkip(positive(text)?),
            "seed" => Self::Seed(seed(text)?),
            "scheduler" => Self::Scheduler(scheduler(text)?),
            "ladder" => Self::Ladder(ladder(text)?),
            "shortcuts" => {
                let mut presets = Shortcuts::PRESETS.into_iter();
                let preset = presets.find(|(name, _)| *name == text);
                let names = Shortcuts::PRESETS.map(|(name, _)| name).join(", ");
                let (name, shortcuts) = preset.ok_or(format!("expected one of {names}"))?;
                Self::Shortcuts(name, shortcuts)
            }
            "size" => {
                let sides = text
                    .split_once('x')
                    .map(|(width, height)| (width.parse(), height.parse()));
                let Some((Ok(width), Ok(height))) = sides else {
                    return Err("expected width x height, such as 512x768".to_owned());
                };
                ImageSize::new(width, height).map_err(|problem| problem.to_string())?;
                Self::Size([width, height])
            }
            "prompt" => Self::Prompt(text.to_owned()),
            "lora" if text.contains(['<', '>', '#']) => {
                return Err("expected a name and its weights, such as ink:0.8".to_owned());
            }
            "lora" => Self::Lora(text.to_owned()),
            _ => Self::Negative(text.to_owned()),
        })
    }

    /// Returns whether two values of one axis draw the same picture.
    fn draws_as(&self, other: &Self) -> bool {
        match (self, other) {
            // The noise generator uses only the low 32 bits of a seed.
            (Self::Seed(a), Self::Seed(b)) => *a as u32 == *b as u32,
            // A sampler runs on its usual ladder unless its name includes another one.
            (Self::Scheduler(a), Self::Scheduler(b)) => {
                let ladder = |named: &Named| {
                    named
                        .ladder
                        .clone()
                        .unwrap_or(named.row.default_ladder.clone())
                };
                a.row.name == b.row.name && ladder(a) == ladder(b)
            }
            _ => self.label() == other.label(),
        }
    }

    fn apply(&self, request: Request) -> Request {
        match self {
            Self::Steps(steps) => request.steps(*steps),
            Self::Guidance(scale) => request.guidance(*scale),
            Self::ClipSkip(layer) => request.clip_skip(*layer),
            Self::Seed(seed) => request.seed(*seed),
            Self::Scheduler(Named { row, ladder }) => {
                let request = request.scheduler(*row);
                match ladder {
                    Some(ladder) => request.ladder(ladder.clone()),
                    None => request,
                }
            }
            Self::Ladder(ladder) => request.ladder(ladder.clone()),
            Self::Shortcuts(_, shortcuts) => request.shortcuts(*shortcuts),
            Self::Size([width, height]) => request.size(*width, *height),
            Self::Prompt(prompt) => request.prompt(prompt),
            Self::Negative(negative) => request.negative(negative),
            Self::Lora(call) => match &request.prompt {
                // On a separate line, because the last line may end in a comment.
                Prompt::Text(text) => {
                    let prompt = format!("{text}\n<lora:{call}>");
                    request.prompt(prompt)
                }
                Prompt::Embedding { .. } => request,
            },
        }
    }

    fn label(&self) -> String {
        match self {
            Self::Steps(number) | Self::ClipSkip(number) => number.to_string(),
            Self::Guidance(scale) => scale.to_string(),
            Self::Seed(seed) => seed.to_string(),
            Self::Scheduler(Named { row, ladder: None }) => row.title.to_owned(),
            Self::Scheduler(Named {
                row,
                ladder: Some(ladder),
            }) => {
                format!("{} on {}", row.title, ladder_name(ladder))
            }
            Self::Ladder(ladder) => ladder_name(ladder),
            Self::Shortcuts(name, _) => (*name).to_owned(),
            Self::Size([width, height]) => format!("{width}×{height}"),
            Self::Negative(text) if text.is_empty() => "(none)".to_owned(),
            Self::Prompt(text) | Self::Negative(text) | Self::Lora(text) => text.clone(),
        }
    }

    fn scheduler(&self) -> Option<&Named> {
        match self {
            Self::Scheduler(named) => Some(named),
            _ => None,
        }
    }

    fn size(&self) -> Option<[u32; 2]> {
        match self {
            Self::Size(size) => Some(*size),
            _ => None,
        }
    }
}
