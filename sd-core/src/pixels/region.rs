//! The part of a picture that inpainting "only masked" redraws.
//!
//! Source: WebUI 1.10, `modules/masking.py`, `get_crop_region_v2` and `expand_crop_region`.

use image::{GrayImage, Luma};

/// Returns the region around a mask: x, y, width and height in pixels of the mask. `None` if the
/// mask is 0 everywhere.
///
/// The region holds every pixel above 0, and `padding` pixels on each side as far as the picture
/// goes. It is then widened or heightened to the shape of `drawn`, the width and the height in
/// which it will be drawn. At a border of the picture it is moved inwards, and if it is then too
/// large for the picture, it keeps another shape. If a side of `drawn` is 0, the region keeps its
/// shape.
///
/// diffusers 0.42.1 (`VaeImageProcessor.get_crop_region`) computes the same region. It differs only
/// for an empty mask: it divides by zero, or returns a region without meaning, whose right side may
/// be left of its left side.
pub(crate) fn region(mask: &GrayImage, padding: u32, drawn: [u32; 2]) -> Option<[u32; 4]> {
    let size = [mask.width(), mask.height()].map(i64::from);
    let padding = i64::from(padding);
    let [across, down] = bounds(mask)?;
    let padded = |[start, end]: [u32; 2], side: i64| {
        [
            (i64::from(start) - padding).max(0),
            (i64::from(end) + padding).min(side),
        ]
    };
    let (mut across, mut down) = (padded(across, size[0]), padded(down, size[1]));
    let [width, height] = [across, down].map(|[start, end]| end - start);
    if !drawn.contains(&0) {
        let shape = f64::from(drawn[0]) / f64::from(drawn[1]);
        if width as f64 / height as f64 > shape {
            down = grown(down, (width as f64 / shape - height as f64) as i64, size[1]);
        } else {
            across = grown(
                across,
                (height as f64 * shape - width as f64) as i64,
                size[0],
            );
        }
    }
    let region = [across[0], down[0], across[1] - across[0], down[1] - down[0]];
    Some(region.map(|value| u32::try_from(value).expect("the region lies in the picture")))
}

/// Returns the ranges of x and y that hold every pixel above 0: the first and the one after the
/// last.
fn bounds(mask: &GrayImage) -> Option<[[u32; 2]; 2]> {
    let masked = mask
        .enumerate_pixels()
        .filter(|(.., Luma([value]))| *value > 0);
    masked.fold(None, |bounds, (x, y, _)| {
        let [across, down] = bounds.unwrap_or([[x, x + 1], [y, y + 1]]);
        let with = |[start, end]: [u32; 2], place: u32| [start.min(place), end.max(place + 1)];
        Some([with(across, x), with(down, y)])
    })
}

/// Adds `more` pixels to a range, half of them before it, and moves it into `0..side`.
fn grown([start, end]: [i64; 2], more: i64, side: i64) -> [i64; 2] {
    let start = start - more / 2;
    let end = end + more - more / 2;
    let beyond = (end - side).max(0);
    let start = start - beyond;
    let end = end - beyond;
    let before = (-start).max(0);
    [start + before, (end + before).min(side)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pixels::golden::{cases, number, pair};

    #[test]
    fn every_region_is_webuis() {
        for case in cases("region") {
            let [width, height] = pair(&case["size"]);
            let corners: Option<[u32; 4]> =
                serde_json::from_value(case["rectangle"].clone()).expect("four numbers");
            let mask = GrayImage::from_fn(width, height, |x, y| {
                let is_inside = corners.is_some_and(|[left, top, right, bottom]| {
                    (left..right).contains(&x) && (top..bottom).contains(&y)
                });
                Luma([u8::from(is_inside)])
            });
            let region = region(&mask, number(&case["padding"]), pair(&case["drawn"]));
            assert_eq!(case["region"], json!(region), "{case}");
        }
    }

    #[test]
    fn extremes_give_a_region_inside_the_picture() {
        let full = GrayImage::from_pixel(3, 2, Luma([255]));
        let most = u32::MAX;
        for drawn in [[0, 0], [0, 9], [9, 0], [1, most], [most, 1], [most, most]] {
            assert_eq!(region(&full, most, drawn), Some([0, 0, 3, 2]), "{drawn:?}");
        }
        assert_eq!(region(&GrayImage::new(0, 0), 3, [8, 8]), None);
    }
}
