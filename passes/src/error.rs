//! What can go wrong with a pipeline or a pass.

use lancet_ir::IrError;

/// Why a pass could not finish. All are bugs of a pass.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PassError {
    /// A rewrite made an invalid node.
    #[error(transparent)]
    Ir(#[from] IrError),
    /// A rewrite of this node failed.
    #[error("{node}: {source}")]
    Node { node: String, source: IrError },
    /// The graph after the pass breaks invariants.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<IrError>),
    /// The pass broke a promise.
    #[error("{0}")]
    Broken(String),
}

/// Why a pipeline could not be read or run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PipelineError {
    /// The text is not a pipeline. `column` counts characters from 1.
    #[error("pipeline column {column}: {message}")]
    Syntax { column: usize, message: String },
    /// No pass has this name.
    #[error("pipeline column {column}: unknown pass `{name}`; passes are {}", .valid.join(", "))]
    UnknownPass {
        column: usize,
        name: String,
        valid: Vec<String>,
    },
    /// The pass has no such option.
    #[error("pipeline column {column}: pass `{pass}` has no option `{name}`; {}", valid_options(.valid))]
    UnknownOption {
        column: usize,
        pass: &'static str,
        name: String,
        valid: Vec<String>,
    },
    /// The option takes values of another type.
    #[error(
        "pipeline column {column}: option `{name}` of `{pass}` takes {expected}, found `{found}`"
    )]
    OptionValue {
        column: usize,
        pass: &'static str,
        name: &'static str,
        expected: &'static str,
        found: String,
    },
    /// A pass failed.
    #[error("pass `{pass}`: {source}")]
    Pass {
        pass: &'static str,
        source: PassError,
    },
}

fn valid_options(names: &[String]) -> String {
    if names.is_empty() {
        "it has none".to_owned()
    } else {
        format!("options are {}", names.join(", "))
    }
}
