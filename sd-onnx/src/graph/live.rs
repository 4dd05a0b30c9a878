//! LoRAs whose factors are inputs of a graph.
//!
//! A LoRA adds the product of two small matrices to a weight: `W + up · down`. Instead of changing
//! the weight, a graph can add `up · (down · x)` to the layer's output. The factors are then
//! inputs, so that each call can have other LoRAs, and any number of them: their factors are
//! concatenated.

use super::{Conv, Dim, Graph, Value};

/// Returns the names of the inputs with the factors for a weight, `down` and `up`.
///
/// For a linear layer they are `[rank, input]` and `[output, rank]`, and for a convolution
/// `[rank, input, kernel, kernel]` and `[output, rank, 1, 1]`. The rank may be 0.
pub(crate) fn input_names(weight: &str) -> [String; 2] {
    [format!("{weight}.down"), format!("{weight}.up")]
}

impl Graph<'_> {
    /// Adds the LoRAs of the linear layer `name` to its product with `x`.
    pub(super) fn with_live_linear(
        &mut self,
        x: Value,
        product: Value,
        name: &str,
        [input, output]: [usize; 2],
    ) -> Value {
        let weight = format!("{name}.weight");
        if !self.dialect.live || !self.weights.is_live(&weight) {
            return product;
        }
        let [down, up] = input_names(&weight);
        let down = self.input(&down, &[Dim::Free, Dim::Fixed(input)]);
        let up = self.input(&up, &[Dim::Fixed(output), Dim::Free]);
        let inner = self.matmul_transposed(x, down);
        let added = self.matmul_transposed(inner, up);
        self.add(product, added)
    }

    /// Adds the LoRAs of the convolution `name` to its result for `x`.
    pub(super) fn with_live_conv(
        &mut self,
        x: Value,
        convolved: Value,
        name: &str,
        [input, output]: [usize; 2],
        conv: Conv,
    ) -> Value {
        let weight = format!("{name}.weight");
        if !self.dialect.live || !self.weights.is_live(&weight) {
            return convolved;
        }
        let [down, up] = input_names(&weight);
        let side = Dim::Fixed(conv.kernel);
        let one = Dim::Fixed(1);
        let down = self.input(&down, &[Dim::Free, Dim::Fixed(input), side, side]);
        let up = self.input(&up, &[Dim::Fixed(output), Dim::Free, one, one]);
        let inner = self.conv(x, down, None, conv);
        let added = self.conv(inner, up, None, Conv::POINT);
        self.add(convolved, added)
    }
}
