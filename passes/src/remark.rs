//! What a pass tells its user: rewrites made, rewrites declined and why, facts found.

use std::fmt;

/// What a remark is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RemarkKind {
    /// A rewrite was made.
    Applied,
    /// A rewrite was looked for and declined.
    Missed,
    /// A fact that explains later choices.
    Analysis,
}

impl fmt::Display for RemarkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RemarkKind::Applied => "applied",
            RemarkKind::Missed => "missed",
            RemarkKind::Analysis => "analysis",
        })
    }
}

/// One thing that a pass has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    pub pass: &'static str,
    pub kind: RemarkKind,
    /// The node's name, or its operator where it has none.
    pub node: String,
    /// Lower case, no full stop.
    pub message: String,
}

/// Prints `missed: raise-gelu: /layer.0/Mul: constant is 0.4, not 0.5`.
impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: {}: {}",
            self.kind, self.pass, self.node, self.message
        )
    }
}
