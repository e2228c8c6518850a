//! The interface of a pass.

use std::ops::{BitOr, BitOrAssign};

use lancet_ir::Graph;

use crate::{PassContext, PassError};

/// Whether a pass changed the graph: its printed text, that is. Nodes that no output needs do not print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    No,
    Yes,
}

impl From<bool> for Changed {
    fn from(changed: bool) -> Changed {
        if changed { Changed::Yes } else { Changed::No }
    }
}

impl BitOr for Changed {
    type Output = Changed;

    fn bitor(self, other: Changed) -> Changed {
        Changed::from(self == Changed::Yes || other == Changed::Yes)
    }
}

impl BitOrAssign for Changed {
    fn bitor_assign(&mut self, other: Changed) {
        *self = *self | other;
    }
}

/// A rewrite of the graph.
///
/// A pass keeps the meaning of every output, within the numeric effect that its documentation states. What it cannot
/// rewrite it leaves as it is, with a remark. It need not remove nodes that nothing uses any more: the manager does.
pub trait Pass {
    /// The name in pipelines, as in the table of passes.
    fn name(&self) -> &'static str;

    /// Rewrites `graph` and says truthfully whether anything changed.
    ///
    /// # Errors
    /// [`PassError`] if the graph cannot be rewritten into a valid one: a bug of the pass, never a property of the model.
    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError>;
}
