//! The factors of a module, and checks of their shapes.

use std::collections::BTreeMap;

use ndarray::ArrayView2;
use sd_text::outside::printable;

use crate::weights;

/// The role of a tensor in a module of an adapter file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    /// The number that, divided by the rank, scales the module's difference.
    Alpha,
    /// The scale itself, which replaces alpha divided by the rank.
    Scale,
    /// DoRA's magnitudes as LyCORIS stores them. Their direction follows from their shape.
    DoraScale,
    /// DoRA's magnitudes as peft stores them, one for each output.
    Magnitude,
    /// Numbers that are added to the module's difference. They are not a layer's bias.
    Bias,
    /// The factor `[out, rank]`, peft's `lora_B`.
    Up,
    /// The factor `[rank, in]`, peft's `lora_A`.
    Down,
    /// The factor `[rank, rank, height, width]` between the two others.
    Mid,
    HadaW1A,
    HadaW1B,
    HadaT1,
    HadaW2A,
    HadaW2B,
    HadaT2,
    /// IA³'s factors.
    Ia3,
    /// Whether IA³'s factors belong to the inputs.
    OnInput,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    Diff,
    /// The difference of the layer's bias.
    DiffB,
    WNorm,
    /// The difference of the norm's bias.
    BNorm,
    GloraA1,
    GloraA2,
    GloraB1,
    GloraB2,
    GloraBm,
    /// Matrices whose antisymmetric parts are mapped to rotations.
    OftBlocks,
    /// The rotations themselves, as the first versions of LyCORIS stored them.
    OftDiag,
    /// The factors of the outputs after a rotation.
    Rescale,
}

/// Something with a shape: a tensor in a file, or a decoded factor.
pub(crate) trait Shaped {
    fn shape(&self) -> &[usize];
}

impl Shaped for weights::Stored {
    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// A tensor of an adapter, decoded to f32, in row-major order.
#[derive(Debug, Clone)]
pub(crate) struct Factor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Shaped for Factor {
    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

impl Factor {
    /// Returns the factor as a matrix. The caller has checked that it has as many numbers.
    pub fn matrix(&self, [rows, columns]: [usize; 2]) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape((rows, columns), &self.values)
            .expect("the shape of the factor was checked")
    }
}

/// The tensors of a module, by their roles.
#[derive(Debug, Clone)]
pub(crate) struct Parts<T>(BTreeMap<Part, T>);

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Parts<T> {
    /// Adds a tensor. Returns the tensor that had the same role, if there was one.
    pub fn insert(&mut self, part: Part, tensor: T) -> Option<T> {
        self.0.insert(part, tensor)
    }

    pub fn get(&self, part: Part) -> Option<&T> {
        self.0.get(&part)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Part, &T)> {
        self.0.iter().map(|(&part, tensor)| (part, tensor))
    }

    /// Returns a tensor that the format cannot do without.
    pub fn need(&self, part: Part) -> Result<&T, Misfit> {
        self.get(part).ok_or(Misfit {
            part,
            problem: None,
        })
    }
}

impl<T: Shaped> Parts<T> {
    /// Returns the sides of a tensor as a matrix: its first axis, and all other axes together.
    ///
    /// # Errors
    /// A [`Misfit`] when the tensor is missing, is a single number, or has no numbers.
    pub fn sides(&self, part: Part) -> Result<[usize; 2], Misfit> {
        let shape = self.need(part)?.shape();
        let mut rest = shape.iter().skip(1);
        let rest = rest.try_fold(1usize, |count, &side| count.checked_mul(side));
        match (shape.first(), rest) {
            (Some(&first), Some(rest)) if first > 0 && rest > 0 => Ok([first, rest]),
            _ => Err(Misfit::shape(part, shape, "a matrix with numbers")),
        }
    }

    /// Checks the sides of a tensor as a matrix.
    pub fn expect(&self, part: Part, expected: [usize; 2]) -> Result<(), Misfit> {
        match self.sides(part)? {
            found if found == expected => Ok(()),
            _ => Err(Misfit::shape(
                part,
                self.need(part)?.shape(),
                format_args!("{expected:?}"),
            )),
        }
    }
}

/// The reason why a module cannot change a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// The tensor that is missing or wrong.
    pub part: Part,
    /// What was found and expected, to follow the tensor's name. `None` if the tensor is missing.
    pub problem: Option<String>,
}

impl Misfit {
    /// Reports a wrong shape.
    pub fn shape(part: Part, found: &[usize], expected: impl std::fmt::Display) -> Self {
        let found = printable(format_args!("{found:?}"));
        Self {
            part,
            problem: Some(format!("has shape {found}, expected {expected}")),
        }
    }

    /// Reports another problem.
    pub fn other(part: Part, problem: impl Into<String>) -> Self {
        Self {
            part,
            problem: Some(problem.into()),
        }
    }
}

/// The shape of a weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims<'a>(pub &'a [usize]);

impl Dims<'_> {
    /// Returns the number of outputs: the first side.
    pub fn outputs(self) -> usize {
        self.0.first().copied().unwrap_or(1)
    }

    /// Returns the number of inputs: the second side, or 1 for a norm.
    pub fn inputs(self) -> usize {
        self.0.get(1).copied().unwrap_or(1)
    }

    /// Returns the number of positions of a convolution's kernel, or 1 for another layer.
    pub fn positions(self) -> usize {
        self.0.iter().skip(2).product()
    }

    /// Returns the length of a row: inputs times positions.
    pub fn columns(self) -> usize {
        self.0.iter().skip(1).product()
    }

    /// Returns the number of all numbers.
    pub fn count(self) -> usize {
        self.0.iter().product()
    }

    /// Checks that a factor with as many axes as a convolution has the convolution's inputs and
    /// kernel, behind its first axis. A factor with fewer axes is flat and is not checked.
    pub fn check_kernel(self, part: Part, shape: &[usize], first: usize) -> Result<(), Misfit> {
        let same = shape.len() != self.0.len() || shape.get(1..) == self.0.get(1..);
        let mut expected = self.0.to_vec();
        if let Some(side) = expected.first_mut() {
            *side = first;
        }
        let ones = |shape: &[usize]| shape.iter().skip(2).all(|&side| side == 1);
        // A 1 × 1 convolution and a linear layer are the same matrix.
        let flat = ones(shape) && ones(self.0) && shape.get(1) == self.0.get(1);
        match same || flat {
            true => Ok(()),
            false => Err(Misfit::shape(part, shape, format_args!("{expected:?}"))),
        }
    }

    /// Asserts that a weight has as many numbers as the shape. The merging code reads both from the
    /// same tensor.
    pub(super) fn fits(self, weight: &[f32]) {
        assert_eq!(
            weight.len(),
            self.count(),
            "a weight has its shape's numbers"
        );
    }
}
