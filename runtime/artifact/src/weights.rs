//! The weights section while it is being put together: pieces in order, each at a multiple of 64 bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};

use crate::validate::ALIGNMENT;

/// Pieces of the weights section, borrowed where the caller keeps them; nothing is copied until they are written.
///
/// Equal pieces are kept once, and a piece of 64 bytes or more that a longer one begins with is part of that one: variants of one model share what
/// they have in common.
#[derive(Clone, Debug, Default)]
pub struct Weights<'a> {
    /// With the offset of each.
    pieces: Vec<(u64, Cow<'a, [u8]>)>,
    len_bytes: u64,
    /// Indices of pieces by the checksum of their first bytes.
    by_start: HashMap<u32, Vec<usize>>,
}

/// How much of a piece is hashed to find pieces that may begin alike.
const START_BYTES: usize = 64;

impl<'a> Weights<'a> {
    /// No weights.
    pub fn new() -> Weights<'a> {
        Weights::default()
    }

    /// Adds `bytes`, unless they are found to be part of a piece, and returns the offset that they will have, a multiple of 64.
    pub fn push(&mut self, bytes: impl Into<Cow<'a, [u8]>>) -> u64 {
        let bytes = bytes.into();
        let start = &bytes[..bytes.len().min(START_BYTES)];
        let alike = self.by_start.entry(crc32fast::hash(start)).or_default();
        if let Some(&i) = alike
            .iter()
            .find(|&&i| self.pieces[i].1.starts_with(&bytes))
        {
            return self.pieces[i].0;
        }
        alike.push(self.pieces.len());
        let offset = self.len_bytes.next_multiple_of(ALIGNMENT);
        self.len_bytes = offset + bytes.len() as u64;
        self.pieces.push((offset, bytes));
        offset
    }

    /// Length of the section in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The section as one buffer.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(usize::try_from(self.len_bytes).unwrap_or(0));
        self.for_each_part(|part| {
            out.extend_from_slice(part);
            Ok(())
        })
        .expect("extending a vector gives no I/O error");
        out
    }

    /// Checksum of the section.
    pub(crate) fn crc32(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        self.for_each_part(|part| {
            hasher.update(part);
            Ok(())
        })
        .expect("hashing gives no I/O error");
        hasher.finalize()
    }

    /// Writes the section.
    pub(crate) fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        self.for_each_part(|part| out.write_all(part))
    }

    /// Calls `f` on the pieces and the zeros between them, in order.
    fn for_each_part(&self, mut f: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut at = 0u64;
        for (offset, piece) in &self.pieces {
            let gap = (offset - at) as usize;
            f(&[0u8; ALIGNMENT as usize][..gap])?;
            f(piece)?;
            at += gap as u64 + piece.len() as u64;
        }
        Ok(())
    }
}
