//! The bytes of a file, or of a memory buffer that replaces it.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Mutex;

trait Bytes: Read + Seek + Send {}
impl<T: Read + Seek + Send> Bytes for T {}

pub(super) struct Source {
    bytes: Mutex<Box<dyn Bytes>>,
    pub length: u64,
}

impl Source {
    pub fn new(mut bytes: impl Read + Seek + Send + 'static) -> io::Result<Self> {
        let length = bytes.seek(SeekFrom::End(0))?;
        Ok(Self {
            bytes: Mutex::new(Box::new(bytes)),
            length,
        })
    }

    /// Reads exactly `length` bytes.
    pub fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let is_inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.length);
        let size = usize::try_from(length)
            .ok()
            .filter(|_| is_inside)
            .ok_or_else(|| {
                let found = self.length;
                let problem =
                    format!("no {length} bytes from byte {offset} on: the file has {found}");
                io::Error::new(io::ErrorKind::UnexpectedEof, problem)
            })?;
        let mut out = vec![0; size];
        // Poisoning is harmless: a reader that panicked changed only the position.
        let mut bytes = self
            .bytes
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        bytes.seek(SeekFrom::Start(offset))?;
        bytes.read_exact(&mut out)?;
        Ok(out)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.length)
    }
}
