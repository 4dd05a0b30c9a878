//! Shows what a sampler does on a ladder, step by step.
//!
//! The model is so simple that any other implementation can be compared.
//!
//! ```sh
//! cargo run --release --example schedulers -- --list
//! cargo run --release --example schedulers -- --scheduler dpmpp-2m --ladder karras --json
//! ```

use std::{ops::ControlFlow, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Parser;
use sd_examples::{
    Failure, PNG, check_output,
    options::{Named, chosen_ladder, finite, ladder, positive, scheduler},
    print, print_json, tell,
};
use sd_onnx::{
    SchedulerConfig, files,
    schedulers::{
        Ladder, NoiseSchedule, Prediction, Run, Rung, Rungs, Sampler, Scheduler, Step, by_name,
        config::Configured,
        from_config,
        ladders::NoisePath,
        samplers::{SamplerRow, TABLE, row_of},
    },
};
use sd_text::outside;
use serde::Serialize;
use serde_json::{Value, json};

#[path = "schedulers/plot.rs"]
mod plot;

/// Runs a sampler on a toy model and prints every step.
///
/// x has eight elements, i = 0 to 7, and starts as sigma sin(i + 1) at the sigma of the first rung.
/// The model receives m = x / sqrt(1 + sigma²) (a flow model receives x) and the timestep t, which
/// may be fractional. It returns 0.4 m + 0.1 cos(t / 100 + i), which is read as the prediction type
/// says. Draw k of the noise, counted from 0, is cos(7 k + i).
///
/// Without --config the noise levels are the ones of Stable Diffusion: scaled-linear betas from
/// 0.00085 to 0.012, 1000 timesteps, steps_offset 1, set_alpha_to_one false and clip_sample false.
///
/// The printed x and sigmas are in the variance-exploding scaling: a sample plus sigma times noise.
/// For a flow model they are in the scaling of the straight path.
///
/// With --json the output is one object. timesteps has one number per call of the model. sigmas and
/// x have one entry for the start and one per step, with nine significant digits. DPM fast, DPM
/// adaptive and Restart choose their own steps, and sigmas and x have an entry for each of these.
#[derive(Parser)]
#[command(
    name = "schedulers",
    version,
    allow_negative_numbers = true,
    verbatim_doc_comment
)]
struct Arguments {
    /// Print the samplers, with their names in other programs, their orders and the number of model
    /// calls for N steps
    #[arg(long, conflicts_with_all = ["scheduler", "ladder", "steps", "prediction", "config", "eta", "plot"])]
    list: bool,
    /// Sampler, by any of its names; WebUI's schedule type may follow the name, as in "DPM++ 2M
    /// Karras" [default: the configuration's]
    #[arg(long, value_name = "NAME", value_parser = scheduler, verbatim_doc_comment)]
    scheduler: Option<Named>,
    /// Ladder: the noise levels, as a name or an object such as {"karras": {"rho": 5}} [default:
    /// the configuration's, else the sampler's usual ladder]
    #[arg(long, value_name = "NAME", value_parser = ladder, verbatim_doc_comment)]
    ladder: Option<Ladder>,
    /// Steps from noise to sample
    #[arg(long, value_name = "N", default_value = "20", value_parser = positive)]
    steps: usize,
    /// Prediction type of the model: epsilon, v, sample or flow [default: the configuration's, else
    /// epsilon]
    #[arg(long, value_name = "TYPE", value_parser = prediction)]
    prediction: Option<Prediction>,
    /// Configuration to read: a scheduler_config.json of diffusers
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Amount of noise that the sampler adds, if it has such an option: eta, TCD's gamma or
    /// SA-Solver's tau [default: the sampler's own]
    #[arg(long, value_name = "F", value_parser = finite, allow_negative_numbers = true)]
    eta: Option<f32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// PNG to write, replacing a file of that name: the ladder, among all other ladders, and the
    /// path of x
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn main() -> ExitCode {
    sd_examples::main(run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.list {
        return list(arguments.json);
    }
    if let Some(path) = &arguments.plot {
        check_output("plot", path, PNG)?;
    }
    let chosen = Chosen::new(arguments)?;
    let record = chosen.run()?;
    if let Some(path) = &arguments.plot {
        let png = plot::draw(&chosen, &record)?;
        files::write(path, &png).map_err(Failure::at(path))?;
        tell(format_args!("{}", path.display()));
    }
    if arguments.json {
        return print_json(&record);
    }
    print_record(&chosen.title(), &record)
}

/// Prints the number of calls and draws, and then each sigma with x.
fn print_record(title: &str, record: &Record) -> Result<(), Failure> {
    let Record { calls, draws, .. } = record;
    print(format_args!("{title}: {calls} calls, {draws} draws"))?;
    for (sigma, x) in record.sigmas.iter().zip(&record.x) {
        let x: Vec<_> = x.iter().map(|x| format!("{x:>10.5}")).collect();
        print(format_args!("{sigma:>12.6} {}", x.join("")))?;
    }
    Ok(())
}

/// Prints the table of samplers.
fn list(as_json: bool) -> Result<(), Failure> {
    if as_json {
        let row = |row: &SamplerRow| {
            json!({
                "name": row.name,
                "title": row.title,
                "aliases": row.aliases().collect::<Vec<_>>(),
                "order": row.order,
                "calls": row.calls.to_string(),
            })
        };
        let rows: Vec<_> = TABLE.iter().map(row).collect();
        return print_json(&rows);
    }
    for row in TABLE.iter() {
        let aliases: Vec<_> = row.aliases().collect();
        print(format_args!(
            "{:20} order {}  {:20} {}",
            row.name,
            row.order,
            row.calls.to_string(),
            aliases.join(", ")
        ))?;
    }
    let names: Vec<_> = Ladder::NAMED.iter().map(|(name, _)| *name).collect();
    print(format_args!("ladders: {}", names.join(", ")))
}

/// The prediction types, each with the name used here and the name in diffusers.
const PREDICTIONS: [(&str, &str, Prediction); 4] = [
    ("epsilon", "epsilon", Prediction::Epsilon),
    ("v", "v_prediction", Prediction::V),
    ("sample", "sample", Prediction::Sample),
    ("flow", "flow_prediction", Prediction::Flow),
];

fn prediction(name: &str) -> Result<Prediction, String> {
    let found = PREDICTIONS.iter().find(|(known, ..)| *known == name);
    let (.., prediction) = found.ok_or("expected epsilon, v, sample or flow")?;
    Ok(*prediction)
}

/// Returns a configuration with another prediction type.
///
/// The type is appended as a second entry, and of two entries with one key the last one counts. The
/// text is not parsed here, because it may contain Python's infinities, which are not valid JSON.
fn with_prediction(config: &str, prediction: Prediction) -> String {
    let known = PREDICTIONS.iter().find(|(.., known)| *known == prediction);
    match (known, config.trim_end().strip_suffix('}')) {
        (Some((_, name, _)), Some(open)) => format!("{open}, \"prediction_type\": \"{name}\"}}"),
        _ => config.to_owned(),
    }
}

/// The longest configuration that is read, in bytes. Published ones have less than 2 KiB, but a
/// configuration may list every beta.
const MAX_CONFIG: u64 = 1 << 20;

/// The sampler, ladder and model of a run.
struct Chosen {
    /// The sampler's name in the table, or the name of its class in diffusers.
    name: String,
    sampler: Arc<dyn Sampler>,
    ladder: Ladder,
    config: SchedulerConfig,
    schedule: Arc<NoiseSchedule>,
    rungs: Rungs,
}

impl Chosen {
    fn new(arguments: &Arguments) -> Result<Self, Failure> {
        let configured = configured(arguments)?;
        let config = config(configured.as_ref(), arguments)?;
        let scheduler = arguments.scheduler.as_ref();
        let (name, sampler): (_, Arc<dyn Sampler>) = match (scheduler, &configured) {
            (Some(Named { row, .. }), _) => (row.name, Arc::from((row.build)(&config))),
            (None, Some(configured)) => {
                let row = row_of(&*configured.sampler, &configured.config);
                let name = row.map_or(configured.class, |row| row.name);
                (name, Arc::clone(&configured.sampler))
            }
            (None, None) => {
                let reason = "there is no sampler; expected --scheduler, --config or --list";
                return Err(Failure::Arguments(reason.to_owned()));
            }
        };
        let sampler = match arguments.eta {
            None => sampler,
            Some(eta) => with_eta(sampler, eta)
                .ok_or_else(|| Failure::Arguments(format!("--eta: {name} has no eta")))?,
        };
        let of_row = scheduler.map(|named| named.row.default_ladder.clone());
        let ladder = chosen_ladder(scheduler, arguments.ladder.as_ref())?;
        let ladder = ladder.or_else(|| configured.map(|configured| configured.ladder));
        let ladder = ladder.or(of_row).unwrap_or_else(Ladder::karras);
        let schedule = NoiseSchedule::new(&config).map_err(Failure::arguments)?;
        let schedule = Arc::new(schedule);
        let rungs = ladder
            .rungs(&schedule, arguments.steps, &sampler.conventions())
            .map_err(Failure::arguments)?;
        Ok(Self {
            name: name.to_owned(),
            sampler,
            ladder,
            config,
            schedule,
            rungs,
        })
    }

    /// Returns the line that describes the run.
    fn title(&self) -> String {
        let s = if self.rungs.steps() == 1 { "" } else { "s" };
        format!(
            "{} on {}, {}, {} step{s}",
            self.name,
            self.ladder.kind(),
            self.prediction(),
            self.rungs.steps()
        )
    }

    fn prediction(&self) -> &'static str {
        let known = PREDICTIONS
            .iter()
            .find(|(.., known)| *known == self.config.prediction);
        known.map_or("edm", |(name, ..)| name)
    }

    fn run(&self) -> Result<Record, Failure> {
        let first = self.rungs.sigmas()[0];
        let mut x = std::array::from_fn(|i| (f64::from(first) * (i as f64 + 1.0).sin()) as f32);
        let mut toy = Toy {
            prediction: self.config.prediction,
            timesteps: Vec::new(),
            draws: 0,
            reached: vec![(first, x)],
        };
        // The toy model does not stop a run.
        let _ = self.sampler.sample(&mut x, &self.rungs, &mut toy);
        // The results of a flow model are shown in its own scaling.
        let exploded =
            self.config.prediction == Prediction::Flow && self.rungs.path() == NoisePath::Exploding;
        let scale = |sigma: f32| if exploded { 1.0 + sigma } else { 1.0 };
        let ladder = serde_json::to_value(&self.ladder);
        Ok(Record {
            scheduler: self.name.clone(),
            ladder: ladder.map_err(Failure::work)?,
            prediction: self.prediction(),
            steps: self.rungs.steps(),
            timesteps: toy.timesteps.iter().map(|&t| nine_digits(t)).collect(),
            sigmas: toy
                .reached
                .iter()
                .map(|&(sigma, _)| nine_digits(sigma / scale(sigma)))
                .collect(),
            calls: toy.timesteps.len(),
            draws: toy.draws,
            x: toy
                .reached
                .iter()
                .map(|&(sigma, x)| x.map(|x| nine_digits(x / scale(sigma))))
                .collect(),
        })
    }
}

/// Reads the file of `--config`, if there is one.
fn configured(arguments: &Arguments) -> Result<Option<Configured>, Failure> {
    let Some(path) = &arguments.config else {
        return Ok(None);
    };
    let text = outside::read_to_string(path, MAX_CONFIG);
    let mut text = text.map_err(Failure::at(path))?;
    if let (Some(prediction), None) = (arguments.prediction, &arguments.scheduler) {
        // The prediction type of some classes also chooses the sampler.
        text = with_prediction(&text, prediction);
    }
    let configured = from_config(&text).map_err(Failure::at(path))?;
    Ok(Some(configured))
}

/// Returns the model's configuration, with the prediction type of `--prediction`.
fn config(
    configured: Option<&Configured>,
    arguments: &Arguments,
) -> Result<SchedulerConfig, Failure> {
    let mut config = match configured {
        Some(configured) => configured.config.clone(),
        None => SchedulerConfig::default(),
    };
    if let Some(prediction) = arguments.prediction {
        let of_class = configured.is_some() && arguments.scheduler.is_none();
        match config.prediction {
            // The class has already read the type from the changed configuration.
            Prediction::Edm { .. } if of_class => {}
            found if of_class && found != prediction => {
                let reason = "--prediction: the class of --config is for flow models only";
                return Err(Failure::Arguments(reason.to_owned()));
            }
            _ => config.prediction = prediction,
        }
    }
    Ok(config)
}

/// Returns the sampler with another eta, or `None` if it has none.
///
/// diffusers calls TCD's gamma eta, and ComfyUI calls SA-Solver's tau eta.
fn with_eta(sampler: Arc<dyn Sampler>, eta: f32) -> Option<Arc<dyn Sampler>> {
    let mut written = serde_json::to_value(Scheduler::Custom(sampler)).ok()?;
    // The key of the conventions is not the name of a row.
    let mut entries = written.as_object_mut()?.iter_mut();
    let (name, options) = entries.find(|(name, _)| by_name(name).is_some())?;
    let key = match name.as_str() {
        "tcd" => "gamma",
        "sa-solver" | "sa-solver-pece" => "tau",
        _ => "eta",
    };
    options.as_object_mut()?.insert(key.to_owned(), eta.into());
    let scheduler: Scheduler = serde_json::from_value(written).ok()?;
    Some(scheduler.sampler(&SchedulerConfig::default()))
}

/// The results of a run, as `--json` prints them.
#[derive(Serialize)]
struct Record {
    scheduler: String,
    ladder: Value,
    prediction: &'static str,
    steps: usize,
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    calls: usize,
    draws: usize,
    x: Vec<[f64; 8]>,
}

/// Rounds a number to nine significant digits, which are enough to tell any two f32 values apart.
fn nine_digits(number: f32) -> f64 {
    format!("{number:.8e}").parse().unwrap_or(f64::NAN)
}

/// The toy model, and a record of its run.
struct Toy {
    prediction: Prediction,
    /// The timestep of each call.
    timesteps: Vec<f32>,
    draws: usize,
    /// Each sigma that was reached, with x at that sigma.
    reached: Vec<(f32, [f32; 8])>,
}

impl Run for Toy {
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        self.timesteps.push(at.timestep);
        let scale = self.prediction.input_scale(at);
        let time = f64::from(at.timestep) / 100.0;
        for (i, (output, x)) in denoised.iter_mut().zip(x).enumerate() {
            let m = f64::from(x * scale);
            *output = (0.4 * m + 0.1 * (time + i as f64).cos()) as f32;
        }
        self.prediction.denoised(denoised, x, at);
        ControlFlow::Continue(())
    }

    fn noise(&mut self, _: f32, _: f32, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = (7.0 * self.draws as f64 + i as f64).cos() as f32;
        }
        self.draws += 1;
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let x = std::array::from_fn(|i| step.x[i]);
        self.reached.push((step.next, x));
        ControlFlow::Continue(())
    }
}
