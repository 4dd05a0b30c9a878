//! Inputs that stay on a device between calls.
//!
//! A UNet runs once or twice per step, and most of its inputs are the same in all of these calls:
//! the embeddings of the prompts, the sizes and pooled embeddings of SDXL, the factors of LoRAs,
//! and the features of a control picture. A session on CUDA copies an input to the graphics card
//! when it differs from the input of the last call. The latents and the timestep differ in every
//! call, and the output comes back in every call, because samplers run on the host. For a picture
//! of 512 × 512 pixels these are 65,536 bytes in each direction.

use std::{collections::HashMap, sync::Arc};

use ort::{
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, NoSelectedOutputs, RunOptions, Session, SessionOutputs},
    value::Tensor,
};

use crate::session::Input;

/// The inputs of the last call of a session.
#[derive(Debug)]
pub(crate) struct Binding {
    binding: IoBinding,
    /// What the bound inputs contain, by their names.
    bound: HashMap<String, Bound>,
    /// The number of inputs that were bound, for tests.
    #[cfg(test)]
    pub copies: usize,
}

/// A bound input, to compare the next one with.
///
/// The address of borrowed values would not be enough: other values may come to lie there.
#[derive(Debug)]
enum Bound {
    F32(Tensor<f32>),
    I64(Tensor<i64>),
    /// Values that cannot change as long as they are kept here, so that the address is enough.
    Shared(Vec<usize>, Arc<[f32]>),
}

impl Binding {
    pub fn new(session: &Session) -> ort::Result<Self> {
        Ok(Self {
            binding: session.create_binding()?,
            bound: HashMap::new(),
            #[cfg(test)]
            copies: 0,
        })
    }

    /// Runs `session`, which this binding was created for, and returns the outputs `names`, which
    /// are in the memory of the host.
    pub fn run<'a>(
        &'a mut self,
        session: &'a mut Session,
        inputs: &[(&str, Input<'_>)],
        names: &[&str],
        options: &RunOptions<NoSelectedOutputs>,
    ) -> ort::Result<SessionOutputs<'a>> {
        for &(name, input) in inputs {
            self.bind(name, input)?;
        }
        // Without this, a call with other sizes would be given the output of the last call to write
        // to.
        self.binding.clear_outputs();
        let host = MemoryInfo::new(
            AllocationDevice::CPU,
            0,
            AllocatorType::Device,
            MemoryType::CPUOutput,
        )?;
        for name in names {
            self.binding.bind_output_to_device(*name, &host)?;
        }
        self.binding.synchronize_inputs()?;
        session.run_binding_with_options(&self.binding, options)
    }

    /// Copies an input to the device, unless it has the values of the last call.
    fn bind(&mut self, name: &str, input: Input<'_>) -> ort::Result<()> {
        if self.bound.get(name).is_some_and(|bound| bound.is(input)) {
            return Ok(());
        }
        // If binding fails, nothing is known about the input.
        self.bound.remove(name);
        // The binding keeps these copies. `ort` can also bind borrowed values, but then copies them
        // with a session for copies, whose creation waits for itself.
        let bound = match input {
            Input::F32(shape, values) => {
                let tensor = Tensor::from_array((shape, values.to_vec()))?;
                self.binding.bind_input(name, &tensor)?;
                Bound::F32(tensor)
            }
            Input::I64(shape, values) => {
                let tensor = Tensor::from_array((shape, values.to_vec()))?;
                self.binding.bind_input(name, &tensor)?;
                Bound::I64(tensor)
            }
            Input::Shared(shape, values) => {
                let tensor = Tensor::from_array((shape, values.to_vec()))?;
                self.binding.bind_input(name, &tensor)?;
                Bound::Shared(shape.to_vec(), values.clone())
            }
        };
        #[cfg(test)]
        {
            self.copies += 1;
        }
        self.bound.insert(name.to_owned(), bound);
        Ok(())
    }
}

impl Bound {
    /// Returns whether an input has this shape and these bits.
    fn is(&self, input: Input<'_>) -> bool {
        match (self, input) {
            (Self::F32(tensor), Input::F32(shape, values)) => {
                let (known_shape, known) = tensor.extract_tensor();
                same_shape(known_shape, shape) && same_bits(known, values)
            }
            (Self::I64(tensor), Input::I64(shape, values)) => {
                let (known_shape, known) = tensor.extract_tensor();
                same_shape(known_shape, shape) && known == values
            }
            (Self::Shared(known_shape, known), Input::Shared(shape, values)) => {
                known_shape == shape && Arc::ptr_eq(known, values)
            }
            _ => false,
        }
    }
}

fn same_shape(known: &[i64], shape: &[usize]) -> bool {
    known.len() == shape.len() && known.iter().zip(shape).all(|(&a, &b)| a == b as i64)
}

/// Compares bits, because 0 and −0 are equal and NaN is not equal to itself.
fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
