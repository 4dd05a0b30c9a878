//! The cases of `tests/golden/pixels.json` and `preprocessors.json`, and the pictures that they
//! start from.
//!
//! `tests/golden/pixels.py` and `preprocessors.py` make the same pictures.

use flate2::Crc;
use image::{GrayImage, ImageBuffer, Luma, Pixel, Rgb, RgbImage};
use serde_json::Value;

/// Returns the cases of one kind, such as `"resize"`.
pub(crate) fn cases(kind: &str) -> Vec<Value> {
    cases_of("pixels.json", kind)
}

/// Returns the cases of one kind of preprocessor, such as `"canny"`.
pub(crate) fn preprocessors(kind: &str) -> Vec<Value> {
    cases_of("preprocessors.json", kind)
}

fn cases_of(file: &str, kind: &str) -> Vec<Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/");
    let text = std::fs::read_to_string(folder.to_owned() + file);
    let text = text.expect("the file is part of the repository");
    let mut golden: Value = serde_json::from_str(&text).expect("the script writes JSON");
    let Value::Array(cases) = golden[kind].take() else {
        panic!("no cases of {kind}");
    };
    assert!(!cases.is_empty(), "no cases of {kind}");
    cases
}

/// Returns a whole number of a case.
pub(crate) fn number(value: &Value) -> u32 {
    let number = value.as_u64().expect("a whole number");
    number.try_into().expect("a small number")
}

/// Returns two whole numbers of a case, such as a width and a height.
pub(crate) fn pair(value: &Value) -> [u32; 2] {
    [number(&value[0]), number(&value[1])]
}

/// Returns a number of a case.
pub(crate) fn float(value: &Value) -> f32 {
    value.as_f64().expect("a number") as f32
}

/// Returns the picture of a case of `preprocessors.json`: as [`picture`], `"soft"` noise without
/// fine grain, or `"flat"`.
pub(crate) fn control(case: &Value) -> RgbImage {
    let [width, height] = pair(&case["size"]);
    let seed = number(&case["seed"]);
    let soft = |x: u32, y: u32, channel: u32| {
        let corner = |x: u32, y: u32| {
            let index = ((y / 8) * 64 + x / 8) * 3 + channel;
            u32::from(noise(seed, index))
        };
        let (right, down) = (x % 8, y % 8);
        let above = corner(x, y) * (8 - right) + corner(x + 8, y) * right;
        let below = corner(x, y + 8) * (8 - right) + corner(x + 8, y + 8) * right;
        ((above * (8 - down) + below * down) / 64) as u8
    };
    match case["kind"].as_str() {
        Some("soft") => {
            RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|c| soft(x, y, c))))
        }
        Some("flat") => RgbImage::from_pixel(width, height, Rgb([0, 1, 2].map(|c| noise(seed, c)))),
        _ => picture(&case["kind"], &case["seed"], &case["size"]),
    }
}

/// Returns a picture: `"noise"` or `"waves"`.
pub(crate) fn picture<P>(kind: &Value, seed: &Value, size: &Value) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8>,
{
    let (seed, [width, height]) = (number(seed), pair(size));
    let channels = u32::from(P::CHANNEL_COUNT);
    let bytes = (0..width * height * channels).map(|index| match kind.as_str() {
        Some("noise") => noise(seed, index),
        Some("waves") => {
            let (c, x) = (index % channels, index / channels % width);
            let y = index / channels / width;
            let value = (x * (3 + c) + y * (5 + 2 * c) + seed * (17 + c)) % 510;
            value.min(510 - value) as u8
        }
        _ => panic!("{kind} is no picture"),
    });
    ImageBuffer::from_raw(width, height, bytes.collect()).expect("a byte for each channel")
}

/// Returns a mask with a disc and a soft bar.
pub(crate) fn disc(seed: u32, size: &Value) -> GrayImage {
    let [width, height] = pair(size);
    GrayImage::from_fn(width, height, |x, y| {
        let bar = height * 3 / 4;
        if (bar..bar + 2).contains(&y) {
            return Luma([(40 * (seed % 7)) as u8]);
        }
        let across = 3 * i64::from(x) - i64::from(width);
        let down = 2 * i64::from(y) - i64::from(height);
        let is_inside = across.pow(2) + down.pow(2) < i64::from(2 * seed).pow(2);
        Luma([if is_inside { 255 } else { 0 }])
    })
}

/// Returns a random byte.
pub(crate) fn noise(seed: u32, index: u32) -> u8 {
    let mut x = index
        .wrapping_mul(2_654_435_761)
        .wrapping_add(seed * 40_503 + 12_345);
    x ^= x >> 15;
    x = x.wrapping_mul(2_246_822_519);
    x ^= x >> 13;
    x as u8
}

/// A CRC-32 of bytes.
pub(crate) struct Checksum(Crc);

impl Checksum {
    pub fn new() -> Self {
        Self(Crc::new())
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn sum(&self) -> u32 {
        self.0.sum()
    }
}

/// Compares a picture with the checksum of a case.
pub(crate) fn check<P>(case: &Value, picture: &ImageBuffer<P, Vec<u8>>)
where
    P: Pixel<Subpixel = u8>,
{
    let mut checksum = Checksum::new();
    checksum.update(picture.as_raw());
    assert_eq!(case["crc"], checksum.sum(), "{case}");
}
