//! Enlarges a picture with a network or a filter, or redraws it larger with Stable Diffusion.
//!
//! ```sh
//! cargo run --release --example upscale -- examples/pictures/fox.png \
//!     --upscaler RealESRGAN_x4plus.pth
//! cargo run --release --example upscale -- examples/pictures/fox.png \
//!     --upscaler Lanczos --scale 2 --prompt "a fox, fine fur" --strength 0.3
//! ```

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use image::RgbImage;
use indicatif::ProgressBar;
use sd_examples::{
    Failure, PICTURES, check_output, encode,
    options::Options,
    print, progress_bar, save_new,
    start::{share, upscaler_name},
    stopped_by_ctrl_c, tell,
};
use sd_onnx::{
    Event, GenerateError, Infotext, Request, Start, StopToken, Upscaler, files,
    upscale::{Enlarger, TileProgress, TiledRedraw, Tiling, enlarged},
};
use sd_text::outside::{chain, printable};

/// Enlarges a picture.
///
/// With --prompt, the enlarged picture is redrawn in tiles by image to image, like WebUI's script
/// "SD upscale". The tiles have the size of --width and --height, and --steps, --negative, --model
/// and other options apply to each of them.
#[derive(Parser)]
#[command(name = "upscale", version, allow_negative_numbers = true)]
struct Arguments {
    /// Picture to enlarge: PNG, JPEG or WebP
    picture: PathBuf,
    /// What enlarges it: a network, such as RealESRGAN_x4plus.pth, or Lanczos or Nearest
    #[arg(long, value_name = "FILE|NAME")]
    upscaler: PathBuf,
    /// Factor of both sides, which are rounded down to multiples of 8 [default: the network's own
    /// factor, 2 with Lanczos and Nearest]
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    scale: Option<f64>,
    /// Side of the tiles in which the picture goes through the network, in pixels; 0 for the whole
    /// picture at once, which needs more memory [default: 192]
    #[arg(long, value_name = "PIXELS")]
    tile: Option<u32>,
    /// Pixels by which these tiles overlap; a small overlap may show seams [default: 8]
    #[arg(long, value_name = "PIXELS")]
    overlap: Option<u32>,
    /// Redraw the enlarged picture in tiles, with this prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// How much is redrawn, 0 to 1 [default: 0.3]
    #[arg(long, value_name = "SHARE", requires = "prompt", value_parser = share)]
    strength: Option<f32>,
    /// Pixels by which the redrawn tiles overlap [default: 64]
    #[arg(long, value_name = "PIXELS", requires = "prompt")]
    redraw_overlap: Option<u32>,
    #[command(flatten)]
    options: Options,
    /// File to write, replacing a file of that name. The extension chooses the format: .png, .jpg
    /// (quality 95) or .webp (lossless) [default: a new PNG in this folder, named after the
    /// picture]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    sd_examples::main(run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    arguments.check()?;
    if let Some(path) = &arguments.output {
        check_output("output", path, PICTURES)?;
    }
    let path = &arguments.picture;
    let read = files::read_picture(path).map_err(Failure::at(path))?;
    if read
        .alpha
        .is_some_and(|alpha| alpha.iter().any(|&opacity| opacity < 255))
    {
        let path = printable(path.display());
        tell(format_args!("warning: {path}: the transparency is ignored"));
    }
    let stop = stopped_by_ctrl_c();
    let (picture, infotext) = match &arguments.prompt {
        Some(prompt) => arguments.redrawn(read.rgb, prompt, &stop)?,
        None => arguments.enlarged(&read.rgb, &stop)?,
    };
    save(arguments, &picture, &infotext)
}

/// What enlarges a picture.
enum By {
    Filter(Upscaler),
    Network(String),
}

/// Parses the factor of both sides.
fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok();
    let factor = factor.filter(|&factor: &f64| factor > 0.0 && factor.is_finite());
    factor.ok_or_else(|| "expected a positive number".to_owned())
}

impl Arguments {
    /// Checks that each option has an effect.
    fn check(&self) -> Result<(), Failure> {
        if self.prompt.is_none()
            && let Some(option) = self.options.of_drawing()
        {
            return Err(Failure::Arguments(format!(
                "{option} needs --prompt, which redraws the enlarged picture"
            )));
        }
        let tiling = [
            (self.tile.is_some(), "--tile"),
            (self.overlap.is_some(), "--overlap"),
        ];
        let given = tiling.into_iter().find(|(given, _)| *given);
        match (self.by(), given) {
            (By::Filter(_), Some((_, option))) => Err(Failure::Arguments(format!(
                "{option} needs an --upscaler that is a network"
            ))),
            _ => Ok(()),
        }
    }

    /// Returns what enlarges the picture: a filter if the option is its name, and else a file.
    fn by(&self) -> By {
        let name = self.upscaler.to_str();
        match name.and_then(Upscaler::from_webui) {
            Some(filter @ Upscaler::Pixels(_)) => By::Filter(filter),
            _ => By::Network(upscaler_name(&self.upscaler)),
        }
    }

    fn tiling(&self) -> Tiling {
        let usual = Tiling::default();
        Tiling {
            tile: self.tile.unwrap_or(usual.tile),
            overlap: self.overlap.unwrap_or(usual.overlap),
        }
    }

    /// Enlarges the picture, and adds that to its infotext.
    fn enlarged(
        &self,
        picture: &RgbImage,
        stop: &StopToken,
    ) -> Result<(RgbImage, Infotext), Failure> {
        let mut infotext = self.own_infotext();
        let (large, factor, name) = match self.by() {
            By::Filter(Upscaler::Pixels(filter)) => {
                let factor = self.scale.unwrap_or(2.0);
                self.tell_work(picture, factor);
                let large = enlarged(picture, factor, filter).map_err(Failure::arguments)?;
                (large, factor, self.upscaler.display().to_string())
            }
            By::Filter(_) => unreachable!("only filters of pixels are taken"),
            By::Network(name) => {
                let builder = self.options.machine.apply(sd_onnx::builder());
                let network = builder
                    .load_upscaler(&self.upscaler)
                    .map_err(Failure::work)?;
                let factor = self.scale.unwrap_or(network.scale() as f64);
                self.tell_work(picture, factor);
                let enlarger = Enlarger::new(&*network).tiling(self.tiling());
                (
                    self.by_network(enlarger, picture, factor, stop)?,
                    factor,
                    name,
                )
            }
        };
        if infotext.entries.is_empty() {
            // WebUI reads a last line with fewer than three entries as a part of the prompt.
            let size = format!("{}x{}", large.width(), large.height());
            infotext.entries.push(("Size".to_owned(), size));
        }
        infotext.enlarged(factor, &name);
        Ok((large, infotext))
    }

    /// Runs the network under a progress bar.
    fn by_network(
        &self,
        enlarger: Enlarger<'_>,
        picture: &RgbImage,
        factor: f64,
        stop: &StopToken,
    ) -> Result<RgbImage, Failure> {
        let mut bar: Option<ProgressBar> = None;
        let mut last = None;
        let large = enlarger.enlarge(picture, factor, stop, |progress: TileProgress| {
            let bar = bar.get_or_insert_with(|| progress_bar(progress.total, "tiles"));
            bar.set_position(progress.done);
            last = Some(progress);
        });
        if let Some(bar) = &bar {
            let took = bar.elapsed().as_secs_f32();
            bar.finish_and_clear();
            if large.is_ok() {
                tell(format_args!("{took:.1} s"));
            }
        }
        large.map_err(|error| match error {
            GenerateError::Stopped(_) => {
                let (done, total) = last.map_or((0, 0), |it| (it.done, it.total));
                Failure::Stopped(match total {
                    0 => "stopped after 0 tiles".to_owned(),
                    total => format!("stopped after {done} of {total} tiles"),
                })
            }
            error => error.into(),
        })
    }

    /// Enlarges the picture, and redraws it in tiles.
    fn redrawn(
        &self,
        picture: RgbImage,
        prompt: &str,
        stop: &StopToken,
    ) -> Result<(RgbImage, Infotext), Failure> {
        let (upscaler, is_file) = match self.by() {
            By::Filter(filter) => (filter, false),
            By::Network(name) => (Upscaler::Network(name), true),
        };
        // Wrong arguments are reported before the model is loaded.
        let request = self.options.request(Request::new(prompt))?;
        let pipeline = self.options.load_with(1, |builder| match is_file {
            true => builder
                .upscaler(&self.upscaler)
                .upscaler_tiling(self.tiling()),
            false => builder,
        })?;
        let scale = match &upscaler {
            Upscaler::Network(name) => pipeline.upscaler(name).map_or(2, |it| it.scale()),
            _ => 2,
        };
        let factor = self.scale.unwrap_or(scale as f64);
        self.tell_work(&picture, factor);
        let mut redraw = TiledRedraw::new(factor).upscaler(upscaler);
        redraw.overlap = self.redraw_overlap.unwrap_or(redraw.overlap);
        let size = pipeline.default_size();
        let [width, height] = [
            self.options.width.unwrap_or(size.width()),
            self.options.height.unwrap_or(size.height()),
        ];
        let start = Start::picture(picture).strength(self.strength.unwrap_or(STRENGTH));
        let request = request.start(start).size(width, height);
        let (mut bar, mut tiles) = (None, 0);
        let found = pipeline.upscale_by_tiles(&request, &redraw, stop, |event| {
            if let Event::Picture(_) = event {
                let bar = bar.get_or_insert_with(ProgressBar::new_spinner);
                tiles += 1;
                bar.set_message(format!("{tiles} tiles"));
                bar.tick();
            }
            ControlFlow::Continue(())
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let found = found.map_err(|error| match error {
            GenerateError::Stopped(_) => Failure::Stopped(format!("stopped after {tiles} tiles")),
            error => error.into(),
        })?;
        let found = found
            .into_iter()
            .next()
            .expect("a request draws one picture");
        let infotext = found.infotext();
        Ok((found.image, infotext))
    }

    /// Returns how the picture was made, if its file says so.
    fn own_infotext(&self) -> Infotext {
        let path = printable(self.picture.display());
        match Infotext::read(&self.picture) {
            Ok(infotext) => infotext.unwrap_or_default(),
            Err(error) => {
                let reason = chain(&error);
                tell(format_args!(
                    "warning: {path}: what it says about its making is left out: {reason}"
                ));
                Infotext::default()
            }
        }
    }

    fn tell_work(&self, picture: &RgbImage, factor: f64) {
        let (width, height) = picture.dimensions();
        let name = printable(self.upscaler.display());
        tell(format_args!(
            "{width}×{height}, {factor} times larger with {name}"
        ));
    }
}

/// The default of `--strength`.
const STRENGTH: f32 = 0.3;

/// Writes the picture, and prints its path.
fn save(arguments: &Arguments, picture: &RgbImage, infotext: &Infotext) -> Result<(), Failure> {
    let bytes = |path: &Path| encode(path, picture, infotext).map_err(Failure::at(path));
    let saved = match &arguments.output {
        Some(path) => {
            files::write(path, &bytes(path)?).map_err(Failure::at(path))?;
            path.clone()
        }
        None => {
            let stem = arguments.picture.file_stem().unwrap_or_default();
            let mut name = stem.to_os_string();
            name.push("-large.png");
            let path = PathBuf::from(name);
            save_new(&path, &bytes(&path)?)?
        }
    };
    print(format_args!("{}", saved.display()))
}
