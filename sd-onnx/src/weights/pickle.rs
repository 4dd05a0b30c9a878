//! Reads the tensors of torch's pickle files.

use std::{path::Path, sync::Arc};

use sd_text::pickle::{self, Data, PickledTensor};

use super::{Place, Stored, types::Type};
use crate::Error;

/// The contents of a pickle.
pub(super) struct Contents {
    pub tensors: Vec<Stored>,
    /// A warning about tensors that are not used, for the user.
    pub warning: Option<String>,
}

/// Reads the tensors of a pickle. Numbers that lie in the file in the right order stay there. A
/// tensor that is compressed, strided or big-endian is read into memory.
pub(super) fn read(file: &Arc<Path>, real: &Arc<Path>) -> Result<Contents, Error> {
    let pickle = pickle::open(file)?;
    let stored = |(name, tensor): (&str, &PickledTensor)| {
        let dtype = Type::of_safetensors(tensor.dtype).ok_or_else(|| Error::TensorType {
            path: file.to_path_buf(),
            tensor: name.to_owned(),
            found: format!("{:?}", tensor.dtype),
        })?;
        Ok(Stored {
            name: name.to_owned(),
            dtype,
            shape: tensor.shape.clone(),
            place: match tensor.data {
                Data::File { offset, length } => Place::File {
                    path: real.clone(),
                    offset,
                    length,
                },
                Data::Gathered(_) => Place::Memory(pickle.bytes(tensor)?.into()),
            },
            scale: None,
            file: file.clone(),
        })
    };
    let tensors = pickle.tensors().map(stored).collect::<Result<_, Error>>()?;
    let beside = pickle.beside().len();
    Ok(Contents {
        tensors,
        warning: (beside > 0).then(|| {
            format!("{beside} tensors outside `state_dict`, left over from training, are ignored")
        }),
    })
}
