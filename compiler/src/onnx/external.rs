//! Tensors that stand in files beside the model.
//!
//! A location comes from the model, which is not trusted: it must be a relative path without `..`, and the file it leads
//! to, symbolic links followed, must be a regular file inside the model's folder. Only the needed range is read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, SeekFrom};
use std::path::{Component, Path, PathBuf};

use onnx_protobuf::TensorProto;

use super::error::Fault;
use super::wire::{Payload, Source};

/// Most files that are open at once.
const MAX_OPEN: usize = 16;

/// Opens the files that tensors point to.
#[derive(Debug, Default)]
pub(crate) struct ExternalFiles {
    base_dir: Option<PathBuf>,
    open: HashMap<PathBuf, (BufReader<File>, u64)>,
}

impl ExternalFiles {
    /// Files are looked for in `base_dir`; without one, external data is an error.
    pub(crate) fn new(base_dir: Option<&Path>) -> ExternalFiles {
        ExternalFiles {
            base_dir: base_dir.map(Path::to_owned),
            open: HashMap::new(),
        }
    }

    /// The file that holds the elements of `tensor`, the range in it, and its path for messages.
    ///
    /// # Errors
    /// [`Fault`] if the location is not allowed, the file cannot be read, or the range is not `n_bytes` bytes inside it.
    pub(crate) fn locate(
        &mut self,
        tensor: &TensorProto,
        n_bytes: u64,
    ) -> Result<(&mut dyn Source, Payload, PathBuf), Fault> {
        let entry = |key: &str| {
            tensor
                .external_data
                .iter()
                .find(|e| e.key == key)
                .map(|e| e.value.as_str())
        };
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => text.trim().parse::<u64>().map(Some).map_err(|_| {
                Fault::invalid(format!("external data: {key} `{text}` is not a number"))
            }),
        };
        let location =
            entry("location").ok_or_else(|| Fault::invalid("external data: no location"))?;
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?;
        let path = self.resolve(location)?;
        if self.open.len() >= MAX_OPEN && !self.open.contains_key(&path) {
            self.open.clear();
        }
        if !self.open.contains_key(&path) {
            let failed = |e| Fault::Io(path.clone(), e);
            let file = File::open(&path).map_err(failed)?;
            let len = file.metadata().map_err(failed)?.len();
            self.open
                .insert(path.clone(), (BufReader::with_capacity(1 << 16, file), len));
        }
        let (file, file_bytes) = self.open.get_mut(&path).expect("inserted above");
        let len = length.unwrap_or(n_bytes);
        if len != n_bytes {
            return Err(Fault::invalid(format!(
                "external data: {len} bytes stated, the shape takes {n_bytes}"
            )));
        }
        if offset.checked_add(len).is_none_or(|end| end > *file_bytes) {
            return Err(Fault::invalid(format!(
                "external data: bytes {offset} to {offset} + {len} are not in `{location}`, which has {file_bytes}"
            )));
        }
        Ok((file, Payload { offset, len }, path))
    }

    fn resolve(&self, location: &str) -> Result<PathBuf, Fault> {
        let refuse = |why: &str| Fault::invalid(format!("external data: `{location}` {why}"));
        let base_dir = self
            .base_dir
            .as_deref()
            .ok_or_else(|| refuse("is external, and the model is not a file in a folder"))?;
        let relative = Path::new(location);
        let plain = relative
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !plain || location.contains(['\\', '\0']) {
            return Err(refuse("is not a path below the model's folder"));
        }
        let base = base_dir
            .canonicalize()
            .map_err(|e| Fault::Io(base_dir.to_owned(), e))?;
        let path = base_dir.join(relative);
        let path = path.canonicalize().map_err(|e| Fault::Io(path, e))?;
        if !path.starts_with(&base) {
            return Err(refuse("leads out of the model's folder"));
        }
        let is_file = path
            .metadata()
            .map_err(|e| Fault::Io(path.clone(), e))?
            .is_file();
        if !is_file {
            return Err(refuse("is not a file"));
        }
        Ok(path)
    }
}

/// Moves `source` to the start of a range.
pub(crate) fn seek(source: &mut dyn Source, payload: Payload) -> std::io::Result<()> {
    source.seek(SeekFrom::Start(payload.offset)).map(|_| ())
}
