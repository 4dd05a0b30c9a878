//! What a control network for inpainting is shown.

use image::{GrayImage, RgbImage};
use ndarray::Array3;

/// Returns a picture as numbers from 0 to 1, with -1 wherever the mask is 128 or more: the input of
/// a control network for inpainting, such as `control_v11p_sd15_inpaint`.
///
/// The result is `[3, height, width]`. It equals `make_inpaint_condition` of diffusers'
/// documentation of ControlNet, and the hint of sd-webui-controlnet's
/// "inpaint_global_harmonious".
///
/// # Errors
/// [`MaskSizeError`] if the mask has another size than the picture.
///
/// ```
/// use sd_core::{image::{GrayImage, RgbImage}, pixels::inpaint_condition};
///
/// let picture = RgbImage::from_raw(2, 1, vec![0, 51, 255, 9, 9, 9]).expect("two pixels");
/// let mask = GrayImage::from_raw(2, 1, vec![127, 128]).expect("two pixels");
/// let condition = inpaint_condition(&picture, &mask)?;
/// assert_eq!(condition.into_raw_vec_and_offset().0, [0.0, -1.0, 0.2, -1.0, 1.0, -1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn inpaint_condition(
    picture: &RgbImage,
    mask: &GrayImage,
) -> Result<Array3<f32>, MaskSizeError> {
    if picture.dimensions() != mask.dimensions() {
        return Err(MaskSizeError {
            mask: mask.dimensions(),
            picture: picture.dimensions(),
        });
    }
    let (width, height) = picture.dimensions();
    let shape = (3, height as usize, width as usize);
    Ok(Array3::from_shape_fn(shape, |(channel, y, x)| {
        let (x, y) = (x as u32, y as u32);
        if mask.get_pixel(x, y).0[0] < 128 {
            f32::from(picture.get_pixel(x, y).0[channel]) / 255.0
        } else {
            -1.0
        }
    }))
}

/// A mask has another size than its picture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the mask has {}x{} pixels, and the picture {}x{}: they must be equal",
    mask.0, mask.1, picture.0, picture.1
)]
#[non_exhaustive]
pub struct MaskSizeError {
    /// The width and the height of the mask in pixels.
    pub mask: (u32, u32),
    /// The width and the height of the picture in pixels.
    pub picture: (u32, u32),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::golden::{self, Checksum};

    #[test]
    fn every_number_is_diffusers() {
        for case in golden::preprocessors("inpaint") {
            let mask = golden::disc(golden::number(&case["disc"]), &case["size"]);
            let condition = inpaint_condition(&golden::control(&case), &mask).expect("one size");
            let mut checksum = Checksum::new();
            for value in &condition {
                checksum.update(&value.to_le_bytes());
            }
            assert_eq!(case["crc"], checksum.sum(), "{case}");
        }
    }

    #[test]
    fn a_mask_of_another_size_is_an_error() {
        let error = inpaint_condition(&RgbImage::new(3, 2), &GrayImage::new(2, 3));
        assert_eq!(
            error.expect_err("two sizes").to_string(),
            "the mask has 2x3 pixels, and the picture 3x2: they must be equal"
        );
        let empty = inpaint_condition(&RgbImage::new(0, 2), &GrayImage::new(0, 2));
        assert_eq!(empty.expect("one size").dim(), (3, 2, 0));
    }
}
