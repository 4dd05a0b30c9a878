//! Pillow's arithmetic with transparent pixels: bytes whose last channel is alpha.
//!
//! Source: Pillow 13.0.0, `src/libImaging/Convert.c`, `ImagingUtils.h` and `AlphaComposite.c`.

/// Returns `a · b / 255`, rounded, as `MULDIV255`.
pub(super) fn scaled(a: u8, b: u8) -> u8 {
    by_255(u32::from(a) * u32::from(b) + 128) as u8
}

/// Returns `above` laid over `below` with the opacity `share`, as `BLEND` of `Paste.c`.
pub(crate) fn mixed(below: u8, above: u8, share: u8) -> u8 {
    let share = u32::from(share);
    by_255(u32::from(below) * (255 - share) + u32::from(above) * share + 128) as u8
}

/// Multiplies colors by their alpha: the modes `RGBA` and `LA` become `RGBa` and `La`.
pub(super) fn premultiply(bytes: &mut [u8], channels: usize) {
    for pixel in bytes.chunks_exact_mut(channels) {
        if let Some((&mut alpha, colors)) = pixel.split_last_mut() {
            for color in colors {
                *color = scaled(*color, alpha);
            }
        }
    }
}

/// Divides colors by their alpha: the modes `RGBa` and `La` become `RGBA` and `LA`.
pub(super) fn straighten(bytes: &mut [u8], channels: usize) {
    for pixel in bytes.chunks_exact_mut(channels) {
        if let Some((&mut alpha, colors)) = pixel.split_last_mut()
            && alpha > 0
        {
            for color in colors {
                *color = (255 * u32::from(*color) / u32::from(alpha)).min(255) as u8;
            }
        }
    }
}

/// Lays a pixel over another one, `[red, green, blue, alpha]`, as `alpha_composite`.
pub(super) fn over(above: [u8; 4], below: [u8; 4]) -> [u8; 4] {
    /// The binary places of a share.
    const PLACES: u32 = 7;
    let alpha = u32::from(above[3]);
    if alpha == 0 {
        return below;
    }
    let rest = u32::from(below[3]) * (255 - alpha);
    // The alpha of the result, times 255.
    let whole = alpha * 255 + rest;
    let share = ((alpha * 255 * 255) << PLACES) / whole;
    let other = (255 << PLACES) - share;
    let mut mixed = [0; 4];
    for channel in 0..3 {
        let sum = u32::from(above[channel]) * share + u32::from(below[channel]) * other;
        mixed[channel] = (by_255(sum + (128 << PLACES)) >> PLACES) as u8;
    }
    mixed[3] = by_255(whole + 128) as u8;
    mixed
}

/// Returns nearly `value / 255`, as `SHIFTFORDIV255`. Callers add 128 to round.
fn by_255(value: u32) -> u32 {
    ((value >> 8) + value) >> 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opaque_pixels_keep_their_colors_and_clear_ones_show_what_lies_below() {
        let mut bytes = [1, 130, 254, 255, 9, 9, 9, 0];
        premultiply(&mut bytes, 4);
        assert_eq!(bytes, [1, 130, 254, 255, 0, 0, 0, 0]);
        straighten(&mut bytes, 4);
        assert_eq!(bytes, [1, 130, 254, 255, 0, 0, 0, 0]);
        let below = [10, 20, 30, 40];
        assert_eq!(over([1, 2, 3, 0], below), below);
        assert_eq!(over([1, 2, 3, 255], below), [1, 2, 3, 255]);
    }
}
