//! Decodes and encodes large pictures in tiles and untiled, and measures time, memory and
//! differences.
//!
//! Each way runs in its own process: give one `--tiling` a call, and the file that another call
//! wrote as `--compare`. The program prints JSON. Times are in seconds and memory is in MiB:
//! `rss_anon_mb` is the largest sample of anonymous memory. `most` is the largest difference from
//! the compared file, where 1/255 = 0.0039 is one level of a colour.
//!
//! ```text
//! vae MODEL decode --size 2048 --tiling never --dump never.f32
//! vae MODEL decode --size 2048 --tiling exact --compare never.f32
//! vae MODEL decode --size 2048 --tiling fast --compare never.f32 --difference fast.png
//! ```

use std::{fs, path::PathBuf, time::Instant};

use clap::{Parser, ValueEnum};
use ndarray::{Array4, ArrayView4, Axis};
use sd_benches::memory::{AnonymousPeak, anonymous_mib};
use sd_onnx::{
    LatentCodec, StopToken, VaeTiling, files,
    image::{self, Rgb, RgbImage},
    pixels,
    text::BoxError,
};

#[derive(Parser)]
struct Arguments {
    /// Model folder or file
    model: PathBuf,
    half: Half,
    /// Height and width of the picture, in pixels
    #[arg(long, default_value_t = 2048)]
    size: usize,
    /// never, exact, fast, auto or auto:BYTES
    #[arg(long, default_value_t = VaeTiling::Never)]
    tiling: VaeTiling,
    /// Picture that is encoded, or whose latents are decoded, scaled to the size. Without one,
    /// the input is made of sines
    #[arg(long)]
    picture: Option<PathBuf>,
    /// Calls; the fastest one counts
    #[arg(long, default_value_t = 1)]
    calls: usize,
    /// Threads; 0 means one for each physical core
    #[arg(long, default_value_t = 0)]
    threads: u16,
    /// File to write the output to, as little-endian f32
    #[arg(long)]
    dump: Option<PathBuf>,
    /// File that an earlier call wrote, to compare the output with
    #[arg(long)]
    compare: Option<PathBuf>,
    /// PNG file for the difference between the two pictures, 64 times as strong, around grey
    #[arg(long)]
    difference: Option<PathBuf>,
    /// PNG file for the decoded picture
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Half {
    Decode,
    Encode,
}

fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    let builder = sd_onnx::builder()
        .threads(arguments.threads)
        .vae_tiling(arguments.tiling)
        .size(8, 8);
    let codec = builder.load_codec(&arguments.model)?;
    let input = input(&arguments, &*codec)?;
    let bare = anonymous_mib()?;
    let anonymous = AnonymousPeak::start()?;
    let mut seconds = f64::INFINITY;
    let mut output = Array4::zeros((0, 0, 0, 0));
    for _ in 0..arguments.calls.max(1) {
        let started = Instant::now();
        output = run(&arguments, &*codec, input.view())?;
        seconds = seconds.min(started.elapsed().as_secs_f64());
    }
    let mut figures = serde_json::json!({
        "tiling": arguments.tiling.to_string(),
        "size": arguments.size,
        "seconds": seconds,
        "bare_anon_mb": bare,
        "rss_anon_mb": anonymous.mib(),
    });
    if let Some(file) = &arguments.dump {
        let bytes: Vec<u8> = output.iter().flat_map(|x| x.to_le_bytes()).collect();
        fs::write(file, bytes).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    if let Some(file) = &arguments.output {
        picture(&output, |value| value).save(file)?;
    }
    if let Some(file) = &arguments.compare {
        let bytes = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let (values, _) = bytes.as_chunks::<4>();
        let values = values
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect();
        let expected = Array4::from_shape_vec(output.dim(), values)?;
        let difference = &output - &expected;
        // Pictures have the range -1 to 1, of which a colour is half.
        let most = difference
            .iter()
            .fold(0.0, |most: f32, v| most.max(v.abs()));
        let clamped = |v: &f32| f64::from(v.clamp(-1.0, 1.0));
        let squares = output.iter().zip(&expected);
        let squares = squares.map(|(a, b)| (clamped(a) - clamped(b)).powi(2));
        let mean = squares.sum::<f64>() / output.len() as f64;
        figures["most"] = (most / 2.0).into();
        figures["psnr_db"] = (10.0 * (4.0 / mean).log10()).into();
        if let Some(file) = &arguments.difference {
            picture(&difference, |value| value * 64.0).save(file)?;
        }
    }
    println!("{figures}");
    Ok(())
}

fn run(
    arguments: &Arguments,
    codec: &dyn LatentCodec,
    input: ArrayView4<'_, f32>,
) -> Result<Array4<f32>, BoxError> {
    let stop = StopToken::new();
    match arguments.half {
        Half::Decode => codec.decode(input, &stop),
        Half::Encode => Ok(codec.encode(input, &stop)?.mean),
    }
}

/// Returns the picture to encode, or the latents to decode.
fn input(arguments: &Arguments, codec: &dyn LatentCodec) -> Result<Array4<f32>, BoxError> {
    let (side, factor) = (arguments.size, codec.factor());
    let channels = codec.latent_channels();
    let Some(path) = &arguments.picture else {
        let shape = match arguments.half {
            Half::Decode => (1, channels, side / factor, side / factor),
            Half::Encode => (1, 3, side, side),
        };
        return Ok(Array4::from_shape_fn(shape, |(_, c, y, x)| {
            1.4 * ((c * 4099 + y * 67 + x * 3) as f32 * 0.37).sin()
        }));
    };
    let picture = files::read_picture(path)?.rgb;
    let picture = pixels::resize(&picture, side as u32, side as u32, pixels::Filter::Lanczos);
    let values = Array4::from_shape_fn((1, 3, side, side), |(_, c, y, x)| {
        f32::from(picture.get_pixel(x as u32, y as u32).0[c]) / 127.5 - 1.0
    });
    match arguments.half {
        Half::Encode => Ok(values),
        Half::Decode => {
            let tiled = sd_onnx::builder().vae_tiling(VaeTiling::Exact);
            let codec = tiled.load_codec(&arguments.model)?;
            Ok(codec.encode(values.view(), &StopToken::new())?.mode())
        }
    }
}

/// Returns the first three channels as a picture, with `shown` applied to each value.
fn picture(values: &Array4<f32>, shown: impl Fn(f32) -> f32) -> RgbImage {
    let values = values.index_axis(Axis(0), 0);
    let (_, height, width) = values.dim();
    image::RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let at = |c| {
            let value: f32 = values[[c, y as usize, x as usize]];
            ((shown(value) / 2.0 + 0.5) * 255.0).round() as u8
        };
        Rgb([at(0), at(1), at(2)])
    })
}
