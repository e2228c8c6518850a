//! The test harness: IR files, and the laws that the repository holds itself to.
//!
//! Behaviour is tested through text. [`ir_file`] runs one `.ir` file; the tests in `tests/` find the files.
#![forbid(unsafe_code)]

pub mod compare;
pub mod directives;
pub mod ir_file;

use std::path::PathBuf;

/// A path inside the repository.
pub fn repository(path: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.parent()
        .expect("the crate's folder is in the repository's root")
        .join(path)
}
