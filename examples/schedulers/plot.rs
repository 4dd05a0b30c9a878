//! Draws a ladder and the path of x on it.

use std::io::{self, Cursor};

use image::{ImageFormat, Pixel, Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use sd_examples::{
    Failure,
    sheet::{Axis, Sheet},
};
use sd_onnx::schedulers::{Ladder, Prediction, Rungs, ladders::NoisePath};

use crate::{Chosen, Record};

const WIDTH: u32 = 720;
const HEIGHT: u32 = 360;
const LETTERS: RasterHeight = RasterHeight::Size16;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([24, 24, 24]);
const GRID: Rgb<u8> = Rgb([232, 232, 232]);
const OTHERS: Rgb<u8> = Rgb([200, 200, 200]);
const COLOURS: [Rgb<u8>; 8] = [
    Rgb([31, 119, 180]),
    Rgb([255, 127, 14]),
    Rgb([44, 160, 44]),
    Rgb([214, 39, 40]),
    Rgb([148, 103, 189]),
    Rgb([140, 86, 75]),
    Rgb([227, 119, 194]),
    Rgb([23, 150, 170]),
];

/// Draws a run and returns the picture as a PNG.
pub fn draw(chosen: &Chosen, record: &Record) -> Result<Vec<u8>, Failure> {
    let columns = Axis {
        name: String::new(),
        labels: vec![(format!("rung, 0 to {}", record.x.len() - 1), WIDTH)],
    };
    let rows = Axis {
        name: String::new(),
        labels: ["sigma, all ladders", "x at unit variance"]
            .map(|label| (label.to_owned(), HEIGHT))
            .into(),
    };
    let note = format!("{} calls, {} draws of noise", record.calls, record.draws);
    let mut sheet = Sheet::new(&chosen.title(), &note, &columns, &rows).map_err(Failure::work)?;
    sheet.place(0, 0, &ladders(chosen, record));
    sheet.place(0, 1, &path(chosen, record));
    let mut png = Cursor::new(Vec::new());
    let written = sheet.image().write_to(&mut png, ImageFormat::Png);
    written.map_err(io::Error::other).map_err(Failure::work)?;
    Ok(png.into_inner())
}

/// Draws the logarithm of sigma over the rungs, for all ladders.
///
/// The ladder of the run is dark. The step to sigma 0 is not shown, because it has no logarithm.
fn ladders(chosen: &Chosen, record: &Record) -> RgbImage {
    let logarithms = |sigmas: &[f64]| -> Vec<f64> {
        let above_zero = sigmas.iter().filter(|&&sigma| sigma > 0.0);
        above_zero.map(|sigma| sigma.log10()).collect()
    };
    let conventions = chosen.sampler.conventions();
    let steps = chosen.rungs.steps();
    let others: Vec<_> = Ladder::NAMED
        .iter()
        .filter_map(|(_, ladder)| ladder.rungs(&chosen.schedule, steps, &conventions).ok())
        .map(|rungs| logarithms(&sigmas(chosen, &rungs)))
        .collect();
    let own = logarithms(&record.sigmas);
    let all = others.iter().flatten().chain(&own).copied();
    let (low, high) = all.fold((0.0_f64, 0.0_f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
    let powers = (low as i32..=high as i32).map(|power| {
        let label = match power {
            0.. => format!("1{}", "0".repeat(power as usize)),
            _ => format!("0.{}1", "0".repeat((-power - 1) as usize)),
        };
        (f64::from(power), label)
    });
    // Some samplers take more steps than the ladder has.
    let most = steps.max(record.sigmas.len() - 1);
    let mut panel = Panel::new(most, [low, high], powers);
    for other in &others {
        panel.line(other, OTHERS);
    }
    panel.line(&own, INK);
    panel.dots(&own, INK);
    panel.canvas
}

/// Returns the sigmas of a ladder. For a flow model they are in its own scaling.
fn sigmas(chosen: &Chosen, rungs: &Rungs) -> Vec<f64> {
    let exploded =
        chosen.config.prediction == Prediction::Flow && rungs.path() == NoisePath::Exploding;
    let own = |&sigma: &f32| {
        let sigma = f64::from(sigma);
        if exploded {
            sigma / (1.0 + sigma)
        } else {
            sigma
        }
    };
    rungs.sigmas().iter().map(own).collect()
}

/// Draws the elements of x over the rungs, scaled to the variance that the model sees.
fn path(chosen: &Chosen, record: &Record) -> RgbImage {
    let flow = chosen.config.prediction == Prediction::Flow;
    let scale = |sigma: f64| if flow { 1.0 } else { sigma.hypot(1.0) };
    let element = |i: usize| -> Vec<f64> {
        let states = record.x.iter().zip(&record.sigmas);
        states.map(|(x, &sigma)| x[i] / scale(sigma)).collect()
    };
    let elements: Vec<_> = (0..COLOURS.len()).map(element).collect();
    let largest = elements
        .iter()
        .flatten()
        .fold(0.5_f64, |largest, x| largest.max(x.abs()));
    // A multiple of 0.5, so that the labels are short.
    let bound = (largest * 2.0).ceil() / 2.0;
    let ticks = [-bound, -bound / 2.0, 0.0, bound / 2.0, bound];
    let ticks = ticks.map(|tick| (tick, format!("{tick}")));
    let mut panel = Panel::new(record.x.len() - 1, [-bound, bound], ticks);
    for (element, colour) in elements.iter().zip(COLOURS) {
        panel.line(element, colour);
        panel.dots(element, colour);
    }
    panel.canvas
}

/// A chart: a field with lines from rung to rung, and with labels on its left and below.
struct Panel {
    canvas: RgbImage,
    /// The left, top, right and bottom edges of the field, in pixels.
    field: [f64; 4],
    steps: usize,
    range: [f64; 2],
}

impl Panel {
    fn new(steps: usize, range: [f64; 2], ticks: impl IntoIterator<Item = (f64, String)>) -> Self {
        let ticks: Vec<_> = ticks.into_iter().collect();
        let letter = get_raster_width(FontWeight::Regular, LETTERS) as u32;
        let line = LETTERS.val() as u32;
        let widest = ticks.iter().map(|(_, label)| label.len() as u32).max();
        let left = (widest.unwrap_or(0) + 1) * letter;
        let field = [
            left + 4,
            line / 2 + 2,
            WIDTH - 2 * letter,
            HEIGHT - 2 * line,
        ];
        let mut panel = Self {
            canvas: RgbImage::from_pixel(WIDTH, HEIGHT, PAPER),
            field: field.map(f64::from),
            steps,
            range,
        };
        for (value, label) in &ticks {
            let y = panel.y(*value);
            panel.segment([panel.field[0], y], [panel.field[2], y], GRID, 0);
            let x = left - label.len() as u32 * letter;
            panel.write(x, (y as u32).saturating_sub(line / 2), label);
        }
        // There is room for about ten labels.
        let stride = steps.div_ceil(10).max(1);
        for rung in (0..=steps).step_by(stride) {
            let x = panel.x(rung);
            panel.segment([x, panel.field[1]], [x, panel.field[3]], GRID, 0);
            let label = rung.to_string();
            let half = label.len() as u32 * letter / 2;
            panel.write((x as u32).saturating_sub(half), HEIGHT - line - 4, &label);
        }
        panel
    }

    fn x(&self, rung: usize) -> f64 {
        let [left, _, right, _] = self.field;
        left + (right - left) * rung as f64 / self.steps.max(1) as f64
    }

    fn y(&self, value: f64) -> f64 {
        let ([low, high], [_, top, _, bottom]) = (self.range, self.field);
        bottom + (top - bottom) * (value - low) / (high - low)
    }

    /// Draws a line through values at the rungs 0, 1, …
    fn line(&mut self, values: &[f64], colour: Rgb<u8>) {
        for (rung, pair) in values.windows(2).enumerate() {
            let from = [self.x(rung), self.y(pair[0])];
            let to = [self.x(rung + 1), self.y(pair[1])];
            self.segment(from, to, colour, 1);
        }
    }

    fn dots(&mut self, values: &[f64], colour: Rgb<u8>) {
        for (rung, &value) in values.iter().enumerate() {
            let at = [self.x(rung), self.y(value)];
            self.segment(at, at, colour, 2);
        }
    }

    /// Draws a straight line. It is a row of squares that extend `reach` pixels from their centres.
    fn segment(&mut self, from: [f64; 2], to: [f64; 2], colour: Rgb<u8>, reach: i64) {
        let way = [to[0] - from[0], to[1] - from[1]];
        let pixels = way[0].abs().max(way[1].abs()).ceil().max(1.0) as usize;
        for pixel in 0..=pixels {
            let part = pixel as f64 / pixels as f64;
            let [x, y] = [0, 1].map(|axis| (from[axis] + part * way[axis]).round() as i64);
            for (dx, dy) in (-reach..=reach).flat_map(|dx| (-reach..=reach).map(move |dy| (dx, dy)))
            {
                // At a reach of 1, the line is two pixels wide instead of three.
                if reach == 1 && (dx < 0 || dy < 0) {
                    continue;
                }
                let (Ok(x), Ok(y)) = (u32::try_from(x + dx), u32::try_from(y + dy)) else {
                    continue;
                };
                if x < WIDTH && y < HEIGHT {
                    self.canvas.put_pixel(x, y, colour);
                }
            }
        }
    }

    fn write(&mut self, left: u32, top: u32, text: &str) {
        let letter = get_raster_width(FontWeight::Regular, LETTERS) as u32;
        for (i, character) in text.chars().enumerate() {
            let Some(glyph) = get_raster(character, FontWeight::Regular, LETTERS) else {
                continue;
            };
            for (dy, row) in glyph.rows().enumerate() {
                for (dx, &ink) in row.iter().enumerate() {
                    let (x, y) = (left + i as u32 * letter + dx as u32, top + dy as u32);
                    if ink > 0 && x < WIDTH && y < HEIGHT {
                        let mut pixel = PAPER;
                        pixel.apply2(&INK, |paper, dark| {
                            let mixed = u32::from(paper) * (255 - u32::from(ink))
                                + u32::from(dark) * u32::from(ink);
                            (mixed / 255) as u8
                        });
                        self.canvas.put_pixel(x, y, pixel);
                    }
                }
            }
        }
    }
}
