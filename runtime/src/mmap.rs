//! Bytes of an artifact: mapped from a file, or owned.
//!
//! A mapped file must not be changed or truncated while a model uses it: its pages are read on demand, so a change made by
//! anyone after loading is seen by kernels after their input was validated, and a truncation raises `SIGBUS`. Replacing
//! a file by renaming another over it is fine. Where that cannot be promised, load from bytes.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::arena::Buffer;

/// Bytes at a multiple of 64 that do not change.
pub(crate) enum Bytes {
    Mapped(Mmap),
    Owned(Buffer),
}

impl Bytes {
    /// Maps a file.
    pub(crate) fn map(path: &Path) -> std::io::Result<Bytes> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::Owned(Buffer::empty()));
        }
        // SAFETY: the map is read-only and private to this process. That nobody changes the file meanwhile cannot be
        // enforced; it is the documented condition of `Model::load`.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Bytes::Mapped(map))
    }

    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(buffer) => buffer.bytes(),
        }
    }
}
