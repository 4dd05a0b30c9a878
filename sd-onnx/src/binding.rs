//! Inputs that stay on a device between calls.
//!
//! A UNet runs once or twice per step, and most of its inputs are the same in all of these calls:
//! the embeddings of the prompts, the sizes and pooled embeddings of SDXL, the factors of LoRAs, and
//! the features of a control picture. A session on CUDA copies an input to the graphics card when it
//! differs from the input of the last call. The latents and the timestep differ in every call, and
//! the output comes back in every call, because samplers run on the host. For a picture of 512 × 512
//! pixels these are 65,536 bytes in each direction.

use std::{collections::HashMap, sync::Arc};

use ort::{
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, NoSelectedOutputs, RunOptions, Session, SessionOutputs},
    value::TensorRef,
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

/// The shape and the values of a bound input.
#[derive(Debug)]
struct Bound {
    shape: Vec<usize>,
    values: Values,
}

/// Values on the host, to compare the next ones with.
///
/// The address of borrowed values would not be enough: other values may come to lie there.
#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    I64(Vec<i64>),
    /// Values that cannot change as long as they are kept here, so that the address is enough.
    Shared(Arc<[f32]>),
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

    /// Runs `session`, which this binding was created for, and returns the outputs `names`, or all
    /// outputs if `names` is empty. They are in the memory of the host.
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
        let all = session.outputs().iter().map(|output| output.name());
        let all: Vec<_> = all.filter(|_| names.is_empty()).collect();
        for name in names.iter().copied().chain(all) {
            self.binding.bind_output_to_device(name, &host)?;
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
        match input {
            Input::F32(shape, values) => {
                let tensor = TensorRef::from_array_view((shape, values))?;
                self.binding.bind_input(name, &tensor)?;
            }
            Input::Shared(shape, values) => {
                let tensor = TensorRef::from_array_view((shape, &**values))?;
                self.binding.bind_input(name, &tensor)?;
            }
            Input::I64(shape, values) => {
                let tensor = TensorRef::from_array_view((shape, values))?;
                self.binding.bind_input(name, &tensor)?;
            }
        }
        #[cfg(test)]
        {
            self.copies += 1;
        }
        self.bound.insert(name.to_owned(), Bound::of(input));
        Ok(())
    }
}

impl Bound {
    fn of(input: Input<'_>) -> Self {
        Self {
            shape: input.shape().to_vec(),
            values: match input {
                Input::F32(_, values) => Values::F32(values.to_vec()),
                Input::I64(_, values) => Values::I64(values.to_vec()),
                Input::Shared(_, values) => Values::Shared(values.clone()),
            },
        }
    }

    /// Returns whether an input has this shape and these bits.
    fn is(&self, input: Input<'_>) -> bool {
        let same = match (&self.values, input) {
            (Values::F32(known), Input::F32(_, values)) => same_bits(known, values),
            (Values::I64(known), Input::I64(_, values)) => known == values,
            (Values::Shared(known), Input::Shared(_, values)) => Arc::ptr_eq(known, values),
            _ => false,
        };
        same && self.shape == input.shape()
    }
}

/// Compares bits, because 0 and −0 are equal and NaN is not equal to itself.
fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
