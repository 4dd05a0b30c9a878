//! OpenCV's conversion of 8-bit sRGB to CIELAB and back, in whole numbers.

/// The tables of the conversions.
///
/// L is `0..=255` for 0 to 100. a and b have 128 added.
pub(in crate::pixels) struct Lab {
    /// The linear value of each byte, where 2040 is white.
    linear: [i32; 256],
    /// CIELAB's f(t) in units of 2⁻¹⁵, for t in units of 1/2040.
    cube_roots: Vec<i32>,
    /// For each L: Y and f(Y) in units of 2⁻¹⁴.
    of_lightness: Vec<[i32; 2]>,
    /// The byte of each linear value, where 4095 is nearly white.
    bytes: Vec<u8>,
    /// From red, green and blue to X, Y and Z, in units of 2⁻¹².
    to_xyz: [[i32; 3]; 3],
    /// From X, Y and Z to red, green and blue, in units of 2⁻¹².
    from_xyz: [[i32; 3]; 3],
}

/// The matrix from linear sRGB to XYZ, and its inverse as OpenCV has it.
const TO_XYZ: [[f64; 3]; 3] = [
    [0.412453, 0.357580, 0.180423],
    [0.212671, 0.715160, 0.072169],
    [0.019334, 0.119193, 0.950227],
];
const FROM_XYZ: [[f64; 3]; 3] = [
    [3.240479, -1.53715, -0.498535],
    [-0.969256, 1.875991, 0.041556],
    [0.055648, -0.204043, 1.057311],
];

/// D65's white in XYZ.
const WHITE: [f64; 3] = [0.950456, 1.0, 1.088754];

/// The binary places of the matrices, of `cube_roots`, and of `of_lightness`.
const MATRIX: u32 = 12;
const ROOT: u32 = 15;
const BASE: u32 = 14;

impl Lab {
    pub fn new() -> Self {
        let rounded = |value: f64| (value * f64::from(1 << MATRIX)).round_ties_even() as i32;
        let indices = [0, 1, 2];
        let to_xyz = indices.map(|to| indices.map(|from| rounded(TO_XYZ[to][from] / WHITE[to])));
        let from_xyz =
            indices.map(|to| indices.map(|from| rounded(FROM_XYZ[to][from] * WHITE[from])));
        Self {
            linear: std::array::from_fn(linear),
            // Up to 1.5 times white.
            cube_roots: (0..256 * 8 * 3 / 2).map(cube_root).collect(),
            of_lightness: (0..256).map(of_lightness).collect(),
            bytes: (0..4096).map(encoded).collect(),
            to_xyz,
            from_xyz,
        }
    }

    /// Returns L, a and b.
    pub fn lab(&self, pixel: [u8; 3]) -> [u8; 3] {
        let colors = pixel.map(|byte| self.linear[usize::from(byte)]);
        let [x, y, z] = self.to_xyz.map(|row| {
            let value = descaled(product(row, colors), MATRIX);
            self.cube_roots[value as usize]
        });
        let middle = 128 << ROOT;
        // L = 116 · f(Y) − 16 in percent of 255.
        let lightness = (116 * 255 + 50) / 100 * y - (((16 * 255) << ROOT) + 50) / 100;
        [lightness, 500 * (x - y) + middle, 200 * (y - z) + middle]
            .map(|value| descaled(value, ROOT).clamp(0, 255) as u8)
    }

    /// Returns red, green and blue.
    pub fn rgb(&self, [lightness, a, b]: [u8; 3]) -> [u8; 3] {
        let [y, root] = self.of_lightness[usize::from(lightness)];
        let one = 1 << BASE;
        // (a − 128) / 500 and (b − 128) / 200, as OpenCV approximates them.
        let a = ((5 * i32::from(a) * 53_687 + (1 << 7)) >> 13) - 128 * one / 500;
        let b = ((i32::from(b) * 41_943 + (1 << 4)) >> 9) - 128 * one / 200 + 1;
        let xyz = [cubed(root + a), y, cubed(root - b)];
        // The table of bytes has 12 binary places.
        self.from_xyz.map(|row| {
            let value = descaled(product(row, xyz), MATRIX + BASE - 12);
            self.bytes[value.clamp(0, 4095) as usize]
        })
    }
}

fn product(row: [i32; 3], values: [i32; 3]) -> i32 {
    row[0] * values[0] + row[1] * values[1] + row[2] * values[2]
}

/// Divides by 2 to the power of `places`, and rounds.
fn descaled(value: i32, places: u32) -> i32 {
    (value + (1 << (places - 1))) >> places
}

/// Returns the linear value of a byte, up to 2040.
fn linear(byte: usize) -> i32 {
    let x = f64::from(byte as f32 / 255.0);
    let value = if x <= 0.04045 {
        x / 12.92
    } else {
        ((x + 0.055) / 1.055).powf(2.4)
    };
    (255.0 * 8.0 * value as f32).round_ties_even() as i32
}

/// Returns the byte of a linear value, a number below 4096.
fn encoded(linear: i32) -> u8 {
    let x = f64::from(linear as f32 / 4096.0);
    let value = if x <= 0.003_130_8 {
        x * 12.92
    } else {
        x.powf(1.0 / 2.4) * 1.055 - 0.055
    };
    (255.0 * value as f32).round_ties_even() as u8
}

/// Returns CIELAB's f(t): the cube root, and a line near 0.
fn cube_root(t: i32) -> i32 {
    // OpenCV approximates the root, and comes out just below a half here.
    if t == 324 {
        return 17_745;
    }
    let x = 1.0 / (255.0 * 8.0) * t as f32;
    let value = if x < 216.0 / 24389.0 {
        x.mul_add(841.0 / 108.0, 16.0 / 116.0)
    } else {
        f64::from(x).cbrt() as f32
    };
    ((1 << ROOT) as f32 * value).round_ties_even() as i32
}

/// Returns Y and f(Y) of a lightness.
fn of_lightness(lightness: i32) -> [i32; 2] {
    let one = 1 << BASE;
    let rounded = |value: f32| value.round_ties_even() as i32;
    // 8 percent. Darker than this, f is a line.
    if lightness <= 20 {
        let y = (lightness * one * 20 * 9) as f32 / (17 * 29 * 29 * 29) as f32;
        let root = 16.0 / 116.0 + (lightness * 5) as f32 / (3 * 17 * 29) as f32;
        return [rounded(y), rounded(one as f32 * root)];
    }
    let scaled = (lightness * 100 * one) as f32 / (255 * 116) as f32;
    let root = scaled + (16 * one) as f32 / 116.0;
    let y = root * root * root / (one as f32 * one as f32);
    [rounded(y), rounded(root)]
}

/// Returns t of f(t), both in units of 2⁻¹⁴. All divisions drop the fraction.
fn cubed(root: i32) -> i32 {
    let one = 1 << BASE;
    // 6/29
    if root <= 3390 {
        root * 108 / 841 - one * 16 / 116 * 108 / 841
    } else {
        root * root / one * root / one
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::golden::{Checksum, cases};

    /// All 16.7 million colors and all 16.7 million values of L, a and b.
    #[test]
    fn every_value_is_opencvs() {
        let lab = Lab::new();
        let (mut to, mut from) = (Checksum::new(), Checksum::new());
        for value in 0..1 << 24 {
            let [_, first, second, third] = u32::to_be_bytes(value);
            to.update(&lab.lab([first, second, third]));
            from.update(&lab.rgb([first, second, third]));
        }
        for case in cases("lab") {
            assert_eq!(case["rgb_to_lab"], to.sum(), "to CIELAB");
            assert_eq!(case["lab_to_rgb"], from.sum(), "from CIELAB");
        }
    }
}
