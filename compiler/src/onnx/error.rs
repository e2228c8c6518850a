//! What can be wrong with a model, and who is told which.
//!
//! Helpers return a [`Fault`]; the graph walk adds where it happened and collects [`ImportError`]s, so that one run
//! reports everything that stands in the way of a model.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use lancet_ir::IrError;
use lancet_ops::OpError;

/// Whose problem it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// The model is well formed, and Lancet cannot do what it asks.
    Unsupported,
    /// The model is larger or more deeply nested than Lancet takes.
    Limit,
    /// The model breaks the rules of ONNX.
    Invalid,
    /// A file could not be read.
    Io,
}

/// One thing that stands in the way of a model.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Something breaks the rules of ONNX.
    #[error("{place}: {message}")]
    Invalid { place: String, message: String },
    /// An operator that Lancet does not know, with every node that applies it.
    #[error("operator {op} ({domain}, opset {opset}) is not supported; nodes: {}", nodes.join(", "))]
    Operator {
        op: String,
        domain: String,
        opset: i64,
        nodes: Vec<String>,
    },
    /// An attribute that Lancet does not know, or a value of it.
    #[error("{place}: attribute `{attribute}` {message}")]
    Attribute {
        place: String,
        attribute: String,
        message: String,
    },
    /// An element type that Lancet does not have.
    #[error("{place}: element type {dtype} is not supported")]
    DType { place: String, dtype: String },
    /// A use of a supported operator or feature that is not supported.
    #[error("{place}: {message}")]
    Unsupported { place: String, message: String },
    /// The types of operands do not fit.
    #[error("{place}: {source}")]
    Infer {
        place: String,
        #[source]
        source: IrError,
    },
    /// Larger or more deeply nested than Lancet takes.
    #[error("{place}: {message}")]
    Limit { place: String, message: String },
}

impl ImportError {
    /// Whose problem it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ImportError::Io { .. } => ErrorKind::Io,
            ImportError::Invalid { .. } => ErrorKind::Invalid,
            ImportError::Operator { .. }
            | ImportError::Attribute { .. }
            | ImportError::DType { .. }
            | ImportError::Unsupported { .. } => ErrorKind::Unsupported,
            ImportError::Infer { source, .. } => match source {
                IrError::Op(OpError::DType { .. }) => ErrorKind::Unsupported,
                IrError::Op(OpError::TooLarge { .. }) => ErrorKind::Limit,
                _ => ErrorKind::Invalid,
            },
            ImportError::Limit { .. } => ErrorKind::Limit,
        }
    }
}

/// Everything that stands in the way of a model; at least one error. Displays one per line.
#[derive(Debug)]
pub struct ImportErrors(Vec<ImportError>);

impl ImportErrors {
    /// The kind of the gravest error: I/O, then invalid, limit, unsupported.
    pub fn kind(&self) -> ErrorKind {
        self.0
            .iter()
            .map(ImportError::kind)
            .max()
            .unwrap_or(ErrorKind::Invalid)
    }

    /// The errors, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, ImportError> {
        self.0.iter()
    }
}

impl From<ImportError> for ImportErrors {
    fn from(error: ImportError) -> ImportErrors {
        ImportErrors(vec![error])
    }
}

impl fmt::Display for ImportErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, e) in self.0.iter().enumerate() {
            write!(f, "{}{e}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ImportErrors {}

/// What is wrong, without where.
#[derive(Debug)]
pub(crate) enum Fault {
    Invalid(String),
    Operator,
    Attribute(String, String),
    DType(String),
    Unsupported(String),
    Infer(IrError),
    Limit(String),
    /// The model's own file or bytes could not be read.
    Read(io::Error),
    /// Another file could not be read.
    Io(PathBuf, io::Error),
}

impl Fault {
    pub(crate) fn invalid(message: impl Into<String>) -> Fault {
        Fault::Invalid(message.into())
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Fault {
        Fault::Unsupported(message.into())
    }

    pub(crate) fn limit(message: impl Into<String>) -> Fault {
        Fault::Limit(message.into())
    }
}

impl From<IrError> for Fault {
    fn from(error: IrError) -> Fault {
        Fault::Infer(error)
    }
}

/// Several faults of one node; at least one.
#[derive(Debug)]
pub(crate) struct Faults(pub(crate) Vec<Fault>);

impl<T: Into<Fault>> From<T> for Faults {
    fn from(fault: T) -> Faults {
        Faults(vec![fault.into()])
    }
}

/// Where in a model something is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    /// Text such as "node `x` (Add)".
    pub(crate) text: String,
    pub(crate) node: String,
    pub(crate) op: String,
    pub(crate) domain: String,
    pub(crate) opset: i64,
}

impl Place {
    pub(crate) fn new(text: impl Into<String>) -> Place {
        Place {
            text: text.into(),
            ..Place::default()
        }
    }
}

/// Errors are listed up to this number; hostile files could have millions.
const MAX_ERRORS: usize = 1000;

/// Collects errors.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    errors: Vec<ImportError>,
    path: PathBuf,
}

impl Collector {
    /// `path` is what reading errors of the model itself name.
    pub(crate) fn new(path: &Path) -> Collector {
        Collector {
            errors: Vec::new(),
            path: path.to_owned(),
        }
    }

    /// Adds a fault at a place.
    pub(crate) fn add(&mut self, place: &Place, fault: Fault) {
        let text = place.text.clone();
        let error = match fault {
            Fault::Invalid(message) => ImportError::Invalid {
                place: text,
                message,
            },
            Fault::Operator => ImportError::Operator {
                op: place.op.clone(),
                domain: place.domain.clone(),
                opset: place.opset,
                nodes: vec![place.node.clone()],
            },
            Fault::Attribute(attribute, message) => ImportError::Attribute {
                place: text,
                attribute,
                message,
            },
            Fault::DType(dtype) => ImportError::DType { place: text, dtype },
            Fault::Unsupported(message) => ImportError::Unsupported {
                place: text,
                message,
            },
            Fault::Infer(source) => ImportError::Infer {
                place: text,
                source,
            },
            Fault::Limit(message) => ImportError::Limit {
                place: text,
                message,
            },
            Fault::Read(source) => ImportError::Io {
                path: self.path.clone(),
                source,
            },
            Fault::Io(path, source) => ImportError::Io { path, source },
        };
        self.push(error);
    }

    /// Adds an error. Unsupported operators are grouped.
    fn push(&mut self, error: ImportError) {
        if let ImportError::Operator {
            op,
            domain,
            opset,
            nodes,
        } = &error
        {
            let same = self.errors.iter_mut().find_map(|e| match e {
                ImportError::Operator {
                    op: o,
                    domain: d,
                    opset: v,
                    nodes,
                } if o == op && d == domain && v == opset => Some(nodes),
                _ => None,
            });
            if let Some(known) = same {
                known.extend(nodes.iter().cloned());
                return;
            }
        }
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    /// Takes what was collected, so that what comes next can be kept apart; [`Collector::join`] brings both together.
    pub(crate) fn fork(&mut self) -> Collector {
        let empty = Collector::new(&self.path);
        std::mem::replace(self, empty)
    }

    /// Puts what was collected earlier before what was collected since.
    pub(crate) fn join(&mut self, mut before: Collector) {
        for error in self.errors.drain(..) {
            before.push(error);
        }
        *self = before;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// `value` if nothing was collected.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, ImportErrors> {
        if self.errors.is_empty() {
            Ok(value)
        } else {
            Err(ImportErrors(self.errors))
        }
    }

    /// Everything collected, with one more.
    pub(crate) fn fail(mut self, place: &Place, fault: Fault) -> ImportErrors {
        self.add(place, fault);
        ImportErrors(self.errors)
    }
}
