//! Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

/// Merges the two predictions: `unconditional + scale · (conditional − unconditional)`, written over `conditional`.
///
/// Scale 1 is the conditional prediction itself, 0 the unconditional one; more follows the prompt harder, and past
/// about 15 Stable Diffusion's colours burn out. Both slices have the same length.
pub fn guide(conditional: &mut [f32], unconditional: &[f32], scale: f32) {
    for (c, &u) in conditional.iter_mut().zip(unconditional) {
        *c = u + scale * (*c - u);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn scale_interpolates_and_extrapolates() {
        for (scale, expected) in [(0.0, 1.0), (1.0, 3.0), (7.5, 16.0)] {
            let mut conditional = [3.0];
            super::guide(&mut conditional, &[1.0], scale);
            assert_eq!(conditional, [expected]);
        }
    }
}
