//! OpenCV's Canny edge detector, with the same result in every byte.
//!
//! Source: OpenCV 5.0.0 (4.14 has the same bytes), `modules/imgproc/src/canny.cpp`, for an aperture
//! of 3 and `L2gradient` false. The method is that of Canny, "A Computational Approach to Edge
//! Detection", 1986.

use std::cmp::Reverse;

use image::{Rgb, RgbImage};

/// Draws the edges of a picture in white on black, as OpenCV's
/// `cv2.Canny(picture, low, high)`. The lines are one pixel wide.
///
/// The gradient of a pixel is the sum of the absolute values of its two 3 × 3 Sobel derivatives,
/// `0..=2040`, in the color channel where this sum is largest. Edges start at pixels whose gradient
/// is above `high`, and continue through pixels above `low`. sd-webui-controlnet uses 100 and 200.
///
/// Thresholds are rounded down, and exchanged if `low` is above `high`. NaN counts as 0. The result
/// has the size of the picture, and three equal channels.
///
/// ```
/// use sd_core::{image::{Rgb, RgbImage}, pixels::canny};
///
/// let half = RgbImage::from_fn(6, 6, |x, _| Rgb([if x < 3 { 0 } else { 255 }; 3]));
/// let edges = canny(&half, 100.0, 200.0);
/// let white: Vec<u32> = (0..6).filter(|&x| edges.get_pixel(x, 2).0 == [255; 3]).collect();
/// assert_eq!(white, [2]);
/// ```
pub fn canny(picture: &RgbImage, low: f32, high: f32) -> RgbImage {
    let [low, high] = [low, high].map(|threshold| threshold.floor() as i32);
    let (width, height) = picture.dimensions();
    let gradients = Gradients::new(picture);
    let mut edges = gradients.candidates(low.min(high), low.max(high));
    connect(&mut edges, gradients.stride);
    RgbImage::from_fn(width, height, |x, y| {
        let place = (y as usize + 1) * gradients.stride + x as usize + 1;
        let white = edges.get(place) == Some(&Edge::Certain);
        Rgb([if white { 255 } else { 0 }; 3])
    })
}

/// What is known of a pixel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    No,
    /// An edge if it touches another one.
    Possible,
    Certain,
}

/// The gradient of each pixel, surrounded by zeros.
struct Gradients {
    /// The length of a row: the width of the picture and 2.
    stride: usize,
    /// The derivatives along x and y.
    derivatives: Vec<[i16; 2]>,
}

impl Gradients {
    fn new(picture: &RgbImage) -> Self {
        let (width, height) = picture.dimensions();
        let stride = width as usize + 2;
        let mut derivatives = vec![[0; 2]; stride * (height as usize + 2)];
        if !picture.is_empty() {
            let rows = derivatives.chunks_exact_mut(stride).skip(1);
            for (y, row) in (0..height).zip(rows) {
                for (x, derivative) in (0..width).zip(&mut row[1..]) {
                    *derivative = derivatives_at(picture, x, y);
                }
            }
        }
        Self {
            stride,
            derivatives,
        }
    }

    fn norm(&self, place: usize) -> i32 {
        norm(self.derivatives[place])
    }

    /// Returns the pixels whose gradient is above `low`, and is the largest along its direction.
    fn candidates(&self, low: i32, high: i32) -> Vec<Edge> {
        let mut edges = vec![Edge::No; self.derivatives.len()];
        let inside = self.stride..self.derivatives.len().saturating_sub(self.stride);
        for place in inside {
            let column = place % self.stride;
            let is_border = column == 0 || column == self.stride - 1;
            let norm = self.norm(place);
            if !is_border && norm > low && self.is_maximum(place) {
                edges[place] = if norm > high {
                    Edge::Certain
                } else {
                    Edge::Possible
                };
            }
        }
        edges
    }

    /// Returns whether the gradient exceeds both neighbors in its direction. The neighbor at the
    /// right or below may be equal. Diagonal neighbors must be smaller.
    fn is_maximum(&self, place: usize) -> bool {
        /// The tangent of 22.5° in units of 2⁻¹⁵.
        const TANGENT: i64 = 13_573;
        let [dx, dy] = self.derivatives[place];
        let (x, y) = (i64::from(dx.abs()), i64::from(dy.abs()) << 15);
        let shallow = x * TANGENT;
        // The tangent of 67.5° is larger by 2.
        let steep = shallow + (x << 16);
        let norm = self.norm(place);
        let (before, after) = (place - self.stride, place + self.stride);
        if y < shallow {
            norm > self.norm(place - 1) && norm >= self.norm(place + 1)
        } else if y > steep {
            norm > self.norm(before) && norm >= self.norm(after)
        } else if (dx < 0) != (dy < 0) {
            norm > self.norm(before + 1) && norm > self.norm(after - 1)
        } else {
            norm > self.norm(before - 1) && norm > self.norm(after + 1)
        }
    }
}

fn norm([dx, dy]: [i16; 2]) -> i32 {
    i32::from(dx.abs()) + i32::from(dy.abs())
}

/// Returns the Sobel derivatives of the color with the largest gradient, the first of several. The
/// outermost pixel continues beyond the border.
fn derivatives_at(picture: &RgbImage, x: u32, y: u32) -> [i16; 2] {
    let (width, height) = picture.dimensions();
    let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
    let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)];
    let pixels = rows.map(|y| columns.map(|x| picture.get_pixel(x, y).0));
    let of = |channel: usize| {
        let at = |row: usize, column: usize| i16::from(pixels[row][column][channel]);
        let sum_of_row = |row| at(row, 0) + 2 * at(row, 1) + at(row, 2);
        let sum_of_column = |column| at(0, column) + 2 * at(1, column) + at(2, column);
        [
            sum_of_column(2) - sum_of_column(0),
            sum_of_row(2) - sum_of_row(0),
        ]
    };
    let channels = [0, 1, 2].map(of);
    let largest = channels.into_iter().min_by_key(|&d| Reverse(norm(d)));
    largest.unwrap_or_default()
}

/// Turns possible edges that touch a certain one, also at a corner, into certain ones.
fn connect(edges: &mut [Edge], stride: usize) {
    let certain = edges.iter().enumerate();
    let certain = certain.filter(|&(_, &edge)| edge == Edge::Certain);
    let mut open: Vec<usize> = certain.map(|(place, _)| place).collect();
    while let Some(place) = open.pop() {
        for row in [place - stride, place, place + stride] {
            for neighbor in row - 1..=row + 1 {
                if edges[neighbor] == Edge::Possible {
                    edges[neighbor] = Edge::Certain;
                    open.push(neighbor);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::golden;

    #[test]
    fn every_byte_is_opencvs() {
        for case in golden::preprocessors("canny") {
            let [low, high] = [&case["low"], &case["high"]].map(golden::float);
            golden::check(&case, &canny(&golden::control(&case), low, high));
        }
    }

    #[test]
    fn the_largest_gradient_is_2040() {
        let corner = RgbImage::from_fn(8, 8, |x, y| Rgb([if x < y { 0 } else { 255 }; 3]));
        let white = |edges: RgbImage| edges.pixels().filter(|pixel| pixel.0[0] > 0).count();
        assert!(white(canny(&corner, 0.0, 1529.0)) > 0);
        assert_eq!(white(canny(&corner, 2040.0, 2040.0)), 0);
    }

    #[test]
    fn pictures_without_pixels_and_odd_thresholds() {
        for size in [(0, 0), (0, 3), (3, 0)] {
            let empty = RgbImage::new(size.0, size.1);
            assert_eq!(canny(&empty, 1.0, 2.0), empty);
        }
        let picture = RgbImage::from_fn(9, 5, |x, y| Rgb([(x * y * 7) as u8; 3]));
        assert_eq!(
            canny(&picture, f32::NAN, f32::NAN),
            canny(&picture, 0.0, 0.0)
        );
        let extremes = [f32::NEG_INFINITY, f32::INFINITY, f32::MIN, f32::MAX];
        for (low, high) in extremes.iter().zip(extremes.iter().rev()) {
            assert_eq!(canny(&picture, *low, *high).dimensions(), (9, 5));
        }
    }
}
