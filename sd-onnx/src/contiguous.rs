//! Arrays in row-major order, which ONNX Runtime expects.

use ndarray::{Array2, CowArray, Dimension, Ix2, IxDyn};

use crate::session::Input;

/// Arranges numbers in rows of equal length.
pub(crate) fn rows_of<'a>(rows: usize, numbers: Vec<f32>) -> Contiguous<'a, Ix2> {
    let width = numbers.len() / rows.max(1);
    let rows = Array2::from_shape_vec((rows, width), numbers).expect("whole rows");
    Contiguous(rows.into())
}

/// An array in row-major order, which ONNX Runtime expects. It is copied only if it is in another
/// order.
pub(crate) struct Contiguous<'a, D: Dimension>(pub CowArray<'a, f32, D>);

impl<'a, D: Dimension> Contiguous<'a, D> {
    pub fn new(array: ndarray::ArrayView<'a, f32, D>) -> Self {
        Self(match array.is_standard_layout() {
            true => array.into(),
            false => array.as_standard_layout().into_owned().into(),
        })
    }

    pub fn input(&self) -> Input<'_> {
        Input::F32(self.0.shape(), self.0.as_slice().expect("standard layout"))
    }
}

impl<'a, D: Dimension> Contiguous<'a, D> {
    pub fn into_dyn(self) -> Contiguous<'a, IxDyn> {
        Contiguous(self.0.into_dyn())
    }
}
