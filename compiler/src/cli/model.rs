//! Files that verbs share: a model that is either an ONNX file or an artifact, and files written whole or not at all.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use lancet::onnx::{ErrorKind, ImportErrors};
use lancet::{CompileError, CompileOptions, Model, ModelOptions, compile_file};
use lancet_runtime::RuntimeError;
use tempfile::NamedTempFile;

use super::{Failure, Kind};

/// Loads an artifact, or compiles an ONNX file, whichever `path` is.
pub(super) fn load(path: &Path, options: &ModelOptions) -> Result<Model, Failure> {
    if is_artifact(path)? {
        return Model::load_with(path, options).map_err(|e| runtime_failure(path, &e));
    }
    if let Some(name) = &options.variant {
        return Err(Failure::new(
            Kind::Usage,
            format_args!(
                "{}: --variant {name}: only artifacts have variants",
                path.display()
            ),
        ));
    }
    let compiled =
        compile_file(path, &CompileOptions::default()).map_err(|e| compile_failure(path, &e))?;
    compiled
        .into_model(options)
        .map_err(|e| compile_failure(path, &e))
}

/// True if the file begins like an artifact.
pub(super) fn is_artifact(path: &Path) -> Result<bool, Failure> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|e| Failure::io(path, &e))?;
    file.take(16)
        .read_to_end(&mut start)
        .map_err(|e| Failure::io(path, &e))?;
    Ok(lancet_artifact::is_artifact(&start))
}

/// What a compile error means as an exit code.
pub(super) fn compile_failure(path: &Path, error: &CompileError) -> Failure {
    let kind = match error {
        CompileError::Import(e) => import_kind(e),
        CompileError::Pipeline(lancet_passes::PipelineError::Pass { .. }) => Kind::Bug,
        CompileError::Pipeline(_) => Kind::Usage,
        CompileError::Lower(_) => Kind::Bug,
        CompileError::Artifact(lancet_artifact::ArtifactError::Io(_)) => Kind::Io,
        CompileError::Artifact(_) => Kind::Bug,
        CompileError::Runtime(_) => Kind::Bug,
    };
    Failure::new(kind, format_args!("{}: {error}", path.display()))
}

pub(super) fn import_failure(path: &Path, errors: &ImportErrors) -> Failure {
    Failure::new(
        import_kind(errors),
        format_args!("{}: {errors}", path.display()),
    )
}

pub(super) fn import_kind(errors: &ImportErrors) -> Kind {
    match errors.kind() {
        ErrorKind::Invalid => Kind::InvalidFile,
        ErrorKind::Unsupported => Kind::Unsupported,
        ErrorKind::Limit => Kind::Limit,
        ErrorKind::Io => Kind::Io,
    }
}

/// What a runtime error means as an exit code.
pub(super) fn runtime_failure(path: &Path, error: &RuntimeError) -> Failure {
    let kind = match error {
        RuntimeError::Io { .. } => Kind::Io,
        RuntimeError::Artifact(_) | RuntimeError::Plan(_) => Kind::InvalidFile,
        RuntimeError::UnknownInput { .. }
        | RuntimeError::UnknownVariant { .. }
        | RuntimeError::RepeatedInput { .. }
        | RuntimeError::MissingInput { .. }
        | RuntimeError::InputDType { .. }
        | RuntimeError::InputRank { .. }
        | RuntimeError::InputDim { .. }
        | RuntimeError::UnknownOutput { .. }
        | RuntimeError::Operator { .. }
        | RuntimeError::Step { .. } => Kind::Usage,
        RuntimeError::MemoryLimit { .. }
        | RuntimeError::OutOfMemory { .. }
        | RuntimeError::Size { .. } => Kind::Limit,
        RuntimeError::Unsupported(_) => Kind::Unsupported,
        RuntimeError::NoOutputs | RuntimeError::Jit(_) | RuntimeError::Panicked => Kind::Bug,
    };
    Failure::new(kind, format_args!("{}: {error}", path.display()))
}

/// Writes a file beside its place and moves it there, so that it appears whole or not at all.
pub(super) fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), Failure> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut file = NamedTempFile::new_in(folder).map_err(|e| Failure::io(path, &e))?;
    write(file.as_file_mut()).map_err(|e| Failure::io(path, &e))?;
    file.persist(path)
        .map_err(|e| Failure::io(path, &e.error))?;
    Ok(())
}
