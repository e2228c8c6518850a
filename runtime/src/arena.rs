//! Working memory: aligned buffers, and written ranges beside any number of read ones.
//!
//! A [`Buffer`] is bytes at a multiple of 64. [`Buffer::split`] lends two ranges for writing and the rest for reading, so a
//! step reads its operands and writes its results in the same arena; that the ranges do not overlap is checked here on
//! every access, whatever the planner did.
//!
//! Buffers of [`HUGE_PAGE`] bytes and more ask the system for huge pages: with pages of 4 KB, which of them compete for the same
//! sets of a physically indexed cache is drawn anew in each process, and every first touch of a page walks two page tables in
//! a virtual machine.
//!
//! Invariant: `ptr` owns `len` initialised bytes of alignment [`ALIGN`], or dangles when `len` is 0.

use std::alloc::{Layout, alloc, dealloc};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

/// Alignment of buffers and of the values in them, in bytes.
pub(crate) const ALIGN: usize = 64;

/// Bytes of a huge page on x86-64, and of the smallest one that Linux makes of 4 KB pages on aarch64.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes of a page, or a part of one: what advice is given for.
const PAGE: usize = 4 << 10;

/// Zero-initialised bytes at a multiple of [`ALIGN`].
pub(crate) struct Buffer {
    ptr: NonNull<u8>,
    len: usize,
}

/// How `len` bytes are allocated: from [`HUGE_PAGE`] on from the first byte of a huge page to the last of a small one.
fn layout(len: usize) -> Option<Layout> {
    let layout = if len < HUGE_PAGE {
        Layout::from_size_align(len, ALIGN)
    } else {
        Layout::from_size_align(len.checked_next_multiple_of(PAGE)?, HUGE_PAGE)
    };
    layout.ok()
}

/// Asks for huge pages in a block of the allocator before it is first touched. Without them everything works, slower.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(ptr: NonNull<u8>, size: usize) {
    // SAFETY: the block is this buffer's alone, from its first page to its last; the advice does not change what they hold.
    let refused = unsafe { libc::madvise(ptr.as_ptr().cast(), size, libc::MADV_HUGEPAGE) } != 0;
    if refused {
        tracing::debug!(error = %std::io::Error::last_os_error(), "no huge pages");
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: NonNull<u8>, _: usize) {}

// SAFETY: a `Buffer` owns its bytes exclusively and gives access by the borrowing rules of `&self` and `&mut self` alone.
unsafe impl Send for Buffer {}
// SAFETY: as above; `&Buffer` gives shared reads only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of no bytes.
    pub(crate) fn empty() -> Buffer {
        Buffer {
            ptr: NonNull::<u64>::dangling().cast(),
            len: 0,
        }
    }

    /// `len` zero bytes, or `None` if the system has no such memory.
    pub(crate) fn zeroed(len: usize) -> Option<Buffer> {
        // SAFETY: every byte is written.
        unsafe { Buffer::filled(len, |ptr| ptr.write_bytes(0, len)) }
    }

    /// A copy of `bytes`, or `None` if the system has no such memory.
    pub(crate) fn copy_of(bytes: &[u8]) -> Option<Buffer> {
        let from = NonNull::from(bytes).cast();
        // SAFETY: every byte is written; a new block does not overlap `bytes`.
        unsafe {
            Buffer::filled(bytes.len(), |ptr| {
                ptr.copy_from_nonoverlapping(from, bytes.len())
            })
        }
    }

    /// `len` bytes that `fill` writes, given where they begin.
    ///
    /// # Safety
    /// `fill` writes all `len` bytes and nothing else.
    unsafe fn filled(len: usize, fill: impl FnOnce(NonNull<u8>)) -> Option<Buffer> {
        if len == 0 {
            return Some(Buffer::empty());
        }
        let layout = layout(len)?;
        // SAFETY: the layout's size is not zero: `len == 0` returned above.
        let ptr = NonNull::new(unsafe { alloc(layout) })?;
        if layout.align() == HUGE_PAGE {
            ask_for_huge_pages(ptr, layout.size());
        }
        fill(ptr);
        Some(Buffer { ptr, len })
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Every byte.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `len` initialised bytes (type invariant), borrowed from `&self`. For `len == 0` it is
        // dangling but not null and aligned.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// Every byte, for writing.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// Lends the ranges of `write`, of which any may be empty, for writing and everything else for reading.
    ///
    /// # Panics
    /// If one is outside the buffer or they overlap: a bug of the planner.
    pub(crate) fn split(&mut self, write: [Range<usize>; 2]) -> ([&mut [u8]; 2], Rest<'_>) {
        for range in &write {
            assert!(
                range.start <= range.end && range.end <= self.len,
                "written range {range:?} is outside a buffer of {} bytes",
                self.len
            );
        }
        assert!(
            are_apart(&write[0], &write[1]),
            "written ranges {write:?} overlap"
        );
        let rest = Rest {
            ptr: self.ptr,
            len: self.len,
            holes: write.clone(),
            borrow: PhantomData,
        };
        // SAFETY: the ranges were checked to lie in the buffer and not to overlap. `rest` hands out only ranges that overlap
        // none of them, and all borrow `self` mutably, so nothing else reaches these bytes.
        let written = write.map(|range| unsafe {
            std::slice::from_raw_parts_mut(self.ptr.as_ptr().add(range.start), range.len())
        });
        (written, rest)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len != 0 {
            let layout = layout(self.len).expect("checked when allocated");
            // SAFETY: `ptr` was allocated in `filled` with this same layout and is freed once, here.
            unsafe { dealloc(self.ptr.as_ptr(), layout) }
        }
    }
}

/// Whether no byte is in both ranges.
fn are_apart(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start
}

/// A buffer without the ranges that are being written.
#[derive(Clone)]
pub(crate) struct Rest<'a> {
    ptr: NonNull<u8>,
    len: usize,
    holes: [Range<usize>; 2],
    borrow: PhantomData<&'a [u8]>,
}

// SAFETY: a `Rest` gives shared reads of bytes that nobody writes while it lives.
unsafe impl Sync for Rest<'_> {}
// SAFETY: as above.
unsafe impl Send for Rest<'_> {}

impl<'a> Rest<'a> {
    /// The bytes of `range`.
    ///
    /// # Panics
    /// If `range` is outside the buffer or overlaps a written range: a bug of the planner.
    pub(crate) fn get(&self, range: Range<usize>) -> &'a [u8] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "read range {range:?} is outside a buffer of {} bytes",
            self.len
        );
        assert!(
            self.holes.iter().all(|hole| are_apart(&range, hole)),
            "read range {range:?} overlaps a written range of {:?}",
            self.holes
        );
        // SAFETY: the range lies in the buffer and does not overlap the holes, which are the only parts lent for writing for
        // the lifetime `'a` (see `Buffer::split`).
        unsafe {
            std::slice::from_raw_parts(self.ptr.as_ptr().add(range.start), range.end - range.start)
        }
    }
}
