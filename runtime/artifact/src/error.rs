//! What can be wrong with an artifact or a plan.

/// Why bytes are not an artifact that this version reads, or why one could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The first bytes are not those of an artifact.
    #[error("not a Lancet artifact: the file does not begin with its magic number")]
    Magic,
    /// The artifact is of another format version.
    #[error(
        "artifact format version {found} is not supported: this build reads version {supported}"
    )]
    Version { found: u32, supported: u32 },
    /// The file ends before a section does.
    #[error("artifact is truncated: {section} needs {expected} bytes, found {found}")]
    Truncated {
        section: &'static str,
        expected: u64,
        found: u64,
    },
    /// A section lies where the format does not allow it.
    #[error("artifact header: {section} section at {offset} of {len} bytes: {message}")]
    Section {
        section: &'static str,
        offset: u64,
        len: u64,
        message: &'static str,
    },
    /// A section's bytes are not those that were written.
    #[error("artifact is damaged: checksum of {section} is {found:08x}, expected {expected:08x}")]
    Checksum {
        section: &'static str,
        expected: u32,
        found: u32,
    },
    /// The plan's message does not decode.
    #[error("artifact plan does not decode: {0}")]
    Decode(String),
    /// The plan decodes, but does not make sense.
    #[error("artifact plan: {0}")]
    Plan(#[from] PlanError),
    /// The variants cannot be told apart.
    #[error("artifact variants: {0}")]
    Variants(String),
    /// The artifact could not be written.
    #[error("artifact could not be written: {0}")]
    Io(#[from] std::io::Error),
}

/// A part of a plan that does not make sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct PlanError {
    /// The part: ``step 3 `encoder/dense` input 1``.
    pub place: String,
    /// What is wrong with it, with the values.
    pub message: String,
}

impl PlanError {
    /// An error at `place`.
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> PlanError {
        PlanError {
            place: place.into(),
            message: message.into(),
        }
    }
}
