//! Import: ONNX models to [`lancet_ir::Graph`]. The only module that knows ONNX's messages.
//!
//! ```text
//! file ──wire──► skeleton ──onnx_protobuf──► ModelProto ──walk──► Graph
//!   └───────────── elements of tensors, read once ────────tensor────┘
//! ```
//!
//! Operators arrive in the newest form of the operator table whatever opset the model was written for: [`ops`] holds the
//! rules. A model is untrusted input: nothing in it causes a panic, and what is allocated is bounded by the size of the
//! file and by [`ImportOptions`]. All problems of a model are reported at once ([`ImportErrors`]).

mod attributes;
mod error;
mod external;
mod inputs;
mod ops;
mod order;
mod sparse;
pub mod synth;
mod tensor;
pub mod testsuite;
mod walk;
mod wire;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Cursor};
use std::path::Path;

use lancet_ir::Graph;
use lancet_ops::Tensor;
use onnx_protobuf::{Message as _, ModelProto, TensorProto};

pub use error::{ErrorKind, ImportError, ImportErrors};
pub use ops::{is_supported as reads, written_out};

use error::{Collector, Fault, Place};
use external::ExternalFiles;
use tensor::TensorReader;
use walk::{Binding, Initializer, Scope, Walk};
use wire::{Message, Source};

/// Newest version of the default domain that is read.
pub const NEWEST_OPSET: i64 = 28;

/// Bounds on what a model may ask for.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Most nodes, those of functions counted at each call.
    pub max_nodes: usize,
    /// Most bytes of all constants together.
    pub max_constant_bytes: u64,
    /// Most bytes of one sparse tensor that is made dense.
    pub max_dense_bytes: u64,
}

impl Default for ImportOptions {
    fn default() -> ImportOptions {
        ImportOptions {
            max_nodes: 1_000_000,
            max_constant_bytes: 16 << 30,
            max_dense_bytes: 1 << 30,
        }
    }
}

/// Imports a model file. External data is looked for beside it.
///
/// # Errors
/// Everything that stands in the way of the model.
pub fn import_file(path: &Path, options: &ImportOptions) -> Result<Graph, ImportErrors> {
    let (source, len) = open(path).map_err(ImportErrors::from)?;
    let base_dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    import(
        Box::new(source),
        len,
        path,
        ExternalFiles::new(Some(base_dir)),
        options,
    )
}

/// Imports a model from memory. External data is looked for in `base_dir`; without one it is an error.
///
/// # Errors
/// As [`import_file`].
pub fn import_bytes(
    bytes: &[u8],
    base_dir: Option<&Path>,
    options: &ImportOptions,
) -> Result<Graph, ImportErrors> {
    import(
        Box::new(Cursor::new(bytes)),
        bytes.len() as u64,
        Path::new("model"),
        ExternalFiles::new(base_dir),
        options,
    )
}

/// Reads a file that holds one serialized tensor, such as `input_0.pb`. Gives its name, often empty, and the tensor.
///
/// # Errors
/// [`ImportErrors`] if the file cannot be read, is malformed, or has an element type that Lancet does not have.
pub fn read_tensor_file(path: &Path) -> Result<(String, Tensor), ImportErrors> {
    let (mut source, len) = open(path).map_err(ImportErrors::from)?;
    let errors = Collector::new(path);
    let place = Place::new(path.display().to_string());
    let read = || -> Result<(String, Tensor), Fault> {
        let skeleton = wire::skeleton(&mut source, len, Message::Tensor)?;
        let mut proto = TensorProto::parse_from_bytes(&skeleton).map_err(malformed)?;
        let external = ExternalFiles::new(path.parent());
        let mut reader = TensorReader::new(Box::new(source), external, u64::MAX);
        let tensor = reader.read(&mut proto)?;
        Ok((std::mem::take(&mut proto.name), tensor))
    };
    read().map_err(|fault| errors.fail(&place, fault))
}

fn open(path: &Path) -> Result<(BufReader<File>, u64), ImportError> {
    let failed = |source| ImportError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    Ok((BufReader::with_capacity(1 << 16, file), len))
}

fn malformed(error: protobuf::Error) -> Fault {
    Fault::invalid(format!("malformed protobuf: {error}"))
}

fn import<'a>(
    mut source: Box<dyn Source + 'a>,
    len: u64,
    path: &Path,
    external: ExternalFiles,
    options: &'a ImportOptions,
) -> Result<Graph, ImportErrors> {
    let errors = Collector::new(path);
    let place = Place::new(path.display().to_string());
    let parsed = wire::skeleton(source.as_mut(), len, Message::Model)
        .and_then(|skeleton| ModelProto::parse_from_bytes(&skeleton).map_err(malformed))
        .and_then(|model| check(&model).map(|()| model));
    let mut model = match parsed {
        Ok(model) => model,
        Err(fault) => return Err(errors.fail(&place, fault)),
    };
    let main = model.graph.as_mut().expect("checked above");
    let dense = std::mem::take(&mut main.initializer);
    let sparse = std::mem::take(&mut main.sparse_initializer);
    let initializers = dense.into_iter().map(|t| Initializer::Dense(Box::new(t)));
    let initializers = initializers.chain(sparse.into_iter().map(Initializer::Sparse));
    let model = &model;
    // The walk borrows the model, and the reader of elements may outlive neither.
    let mut walk = Walk {
        graph: Graph::new(&inputs::identifier(&model.graph.name).unwrap_or("model".to_owned())),
        reader: TensorReader::new(source, external, options.max_constant_bytes),
        errors,
        functions: HashMap::new(),
        options,
        narrow: HashMap::new(),
        n_nodes: 0,
    };
    match build(&mut walk, model, initializers.collect()) {
        Ok(()) => {
            let Walk {
                mut graph, errors, ..
            } = walk;
            graph.sweep();
            errors.finish(graph)
        }
        Err(fault) => Err(walk.errors.fail(&place, fault)),
    }
}

/// Rejects what is wrong with a model as a whole.
fn check(model: &ModelProto) -> Result<(), Fault> {
    let graph = model.graph.as_ref().ok_or_else(|| {
        Fault::invalid("the file holds no graph: it is truncated, or no ONNX model")
    })?;
    if graph.output.is_empty() {
        return Err(Fault::invalid("the graph has no outputs"));
    }
    let opsets = walk::opsets(&model.opset_import);
    for (domain, newest) in [("", NEWEST_OPSET), ("com.microsoft", 1)] {
        let version = opsets.get(domain).copied().unwrap_or(1);
        if version < 1 {
            return Err(Fault::invalid(format!("opset version {version}")));
        }
        if version > newest {
            let name = if domain.is_empty() { "ai.onnx" } else { domain };
            return Err(Fault::unsupported(format!(
                "opset {version} of {name} is newer than {newest}, the newest that is supported"
            )));
        }
    }
    Ok(())
}

fn build<'a>(
    walk: &mut Walk<'a>,
    model: &'a ModelProto,
    initializers: Vec<Initializer>,
) -> Result<(), Fault> {
    for f in &model.functions {
        let key = (
            walk::domain(&f.domain),
            f.name.as_str(),
            f.overload.as_str(),
        );
        if walk.functions.insert(key, f).is_some() {
            let fault = Fault::invalid("the function is defined twice");
            walk.errors
                .add(&Place::new(format!("function `{}`", f.name)), fault);
        }
    }
    let main = model.graph.as_ref().expect("checked before the walk");
    let mut scope = Scope::root(walk::opsets(&model.opset_import));
    inputs::add(walk, main, &initializers, &mut scope);
    let wanted: Vec<&str> = main.output.iter().map(|o| o.name.as_str()).collect();
    walk.body(&main.node, initializers, &wanted, &mut scope)?;
    for name in wanted {
        let place = Place::new(format!("graph output `{name}`"));
        match scope.lookup(name) {
            Some(Binding::Value(value)) => match walk.narrow.get(&value) {
                None => walk.graph.add_output(name, value),
                Some(ty) => walk.errors.add(&place, Fault::DType(ty.name())),
            },
            Some(Binding::Sequence(_) | Binding::Stacked(_) | Binding::Grown(_)) => {
                let fault = Fault::unsupported("only tensors are supported, found a sequence");
                walk.errors.add(&place, fault);
            }
            Some(Binding::Failed | Binding::Absent) => {}
            None => walk
                .errors
                .add(&place, Fault::invalid("no node gives this value")),
        }
    }
    Ok(())
}
