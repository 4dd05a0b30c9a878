//! The result of a pickle's machine, with the tensors' values located in the file.

use super::archive::Stored;
use super::error::Problem;
use super::machine::{Cell, Run};
use super::value::{Data, Id, PickledTensor, Value};
use crate::outside::printable;

/// The most bytes of values that have to be unpacked or reordered, as a multiple of the file's
/// length. [`SMALL`] bytes are added. The limit keeps a small file from requesting much memory.
const MOST_GROWTH: u64 = 16;
const SMALL: u64 = 16 << 20;

pub(super) struct Contents {
    pub values: Vec<Value>,
    pub root: Id,
}

/// What has to be known about a file.
pub(super) struct Form<'a> {
    pub big_endian: bool,
    /// The length of the file in bytes.
    pub length: u64,
    /// The name of the pickle, for errors.
    pub pickle: &'a str,
}

impl Form<'_> {
    /// Returns the most bytes that a storage may have, and that the tensors whose values have to be
    /// unpacked or reordered may have together.
    fn most(&self) -> u64 {
        self.length
            .saturating_mul(MOST_GROWTH)
            .saturating_add(SMALL)
    }

    /// Returns the error for a problem at a byte of the pickle.
    fn wrong(&self, byte: usize, problem: String) -> Problem {
        Problem::Pickle {
            pickle: self.pickle.to_owned(),
            byte: byte as u64,
            problem,
        }
    }
}

/// Locates each tensor's values in the storages. `find` returns a storage by name.
pub(super) fn of<'s>(
    run: Run,
    find: impl Fn(&str) -> Option<&'s Stored>,
    form: Form<'_>,
) -> Result<Contents, Problem> {
    let stored = storages(&run, find, &form)?;
    let most = form.most();
    let mut gathered = 0_u64;
    let mut value = |cell| {
        Ok(match cell {
            Cell::Value(value) => value,
            Cell::Global { name, .. } | Cell::Object { name } => Value::Inert(name),
            Cell::Storage(_) => Value::Inert("torch.UntypedStorage".into()),
            Cell::Tensor(raw) => {
                let storage = &run.storages[raw.storage];
                let data = raw.place(storage, stored[raw.storage], form.big_endian);
                let data = data.map_err(|problem| form.wrong(raw.at, problem))?;
                let tensor = PickledTensor {
                    dtype: raw.dtype,
                    shape: raw.shape,
                    data,
                };
                if let Data::Gathered(gather) = &tensor.data {
                    gathered = gathered.saturating_add(gather.cost());
                }
                if gathered > most {
                    let problem = "tensors that repeat or share the numbers of the file too often";
                    return Err(form.wrong(raw.at, problem.to_owned()));
                }
                Value::Tensor(Box::new(tensor))
            }
        })
    };
    let values: Result<Vec<_>, Problem> = run.cells.into_iter().map(&mut value).collect();
    Ok(Contents {
        values: values?,
        root: run.root,
    })
}

/// Returns the bytes of each storage, after checking that the file has as many as the pickle says.
fn storages<'s>(
    run: &Run,
    find: impl Fn(&str) -> Option<&'s Stored>,
    form: &Form<'_>,
) -> Result<Vec<&'s Stored>, Problem> {
    let most = form.most();
    let mut stored = Vec::with_capacity(run.storages.len());
    for storage in &run.storages {
        let key = run.text(storage.key);
        let problem = |problem: String| {
            form.wrong(
                storage.at,
                format!("storage `{}` {problem}", printable(key)),
            )
        };
        let found = find(key).ok_or_else(|| problem("is not in the file".to_owned()))?;
        if found.length != storage.length {
            let (said, found) = (storage.length, found.length);
            return Err(problem(format!(
                "has {said} bytes in the pickle, but {found} in the file"
            )));
        }
        // Only compressed data can be longer than the file.
        if found.length > most {
            let length = found.length;
            return Err(problem(format!(
                "has {length} bytes, expected at most {most}"
            )));
        }
        stored.push(found);
    }
    Ok(stored)
}
