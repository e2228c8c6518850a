//! Applying matches: replacements that know of each other.
//!
//! Matches are collected on an immutable graph and applied one by one; a later one may name a value that an earlier one
//! has replaced. [`Rewrites::resolve`] follows those replacements, so that dead values are not brought back to life.

use std::collections::HashMap;

use lancet_ir::{Graph, IrError, NodeId, Op, Value};

use crate::matcher::describe;
use crate::{Changed, PassError};

/// The replacements made so far by one pass.
#[derive(Debug, Default)]
pub struct Rewrites {
    replaced: HashMap<Value, Value>,
}

impl Rewrites {
    /// None yet.
    pub fn new() -> Rewrites {
        Rewrites::default()
    }

    /// Whether any value was replaced.
    pub fn changed(&self) -> Changed {
        Changed::from(!self.replaced.is_empty())
    }

    /// Number of values replaced.
    pub fn len(&self) -> usize {
        self.replaced.len()
    }

    /// True if no value was replaced.
    pub fn is_empty(&self) -> bool {
        self.replaced.is_empty()
    }

    /// True if this value was replaced, so that a match on it is stale.
    pub fn is_replaced(&self, value: Value) -> bool {
        self.replaced.contains_key(&value)
    }

    /// What `value` was replaced by, to the end of the chain; `value` itself if it was not.
    pub fn resolve(&self, value: Value) -> Value {
        let mut value = value;
        while let Some(&next) = self.replaced.get(&value) {
            value = next;
        }
        value
    }

    /// Makes all users of `from` use `to`, and gives `to`'s node the name of `from`'s where it has none.
    ///
    /// `to` must not be computed from users of `from`. Does nothing if `from` resolves to `to` already.
    ///
    /// # Errors
    /// [`PassError::Node`] if the types differ.
    pub fn replace(&mut self, graph: &mut Graph, from: Value, to: Value) -> Result<(), PassError> {
        let (from, to) = (self.resolve(from), self.resolve(to));
        if from == to {
            return Ok(());
        }
        graph
            .replace_all_uses(from, to)
            .map_err(|source| node_error(graph, from.node, source))?;
        if graph.node_name(to.node).is_empty() {
            let name = graph.node_name(from.node).to_owned();
            graph.set_node_name(to.node, &name);
        }
        self.replaced.insert(from, to);
        Ok(())
    }

    /// Adds a node with one result in the place of `from`, whose operands are resolved first.
    ///
    /// # Errors
    /// [`PassError::Node`] if the operation rejects the operands or its result is of another type.
    pub fn replace_by(
        &mut self,
        graph: &mut Graph,
        from: Value,
        op: Op,
        operands: &[Value],
    ) -> Result<Value, PassError> {
        let operands: Vec<Option<Value>> =
            operands.iter().map(|&v| Some(self.resolve(v))).collect();
        let node = graph
            .add(op, &operands)
            .map_err(|source| node_error(graph, from.node, source))?;
        let to = Value { node, result: 0 };
        self.replace(graph, from, to)?;
        Ok(to)
    }
}

/// Puts an operation on these operands, with as many results, in the place of `node` and gives it its name.
pub(crate) fn replace_node(
    graph: &mut Graph,
    node: NodeId,
    op: Op,
    operands: &[Option<Value>],
) -> Result<NodeId, IrError> {
    let n_results = graph.n_results(node);
    let to = graph.add_results(op, operands, n_results)?;
    let name = graph.node_name(node).to_owned();
    graph.set_node_name(to, &name);
    for result in 0..n_results as u32 {
        graph.replace_all_uses(Value { node, result }, Value { node: to, result })?;
    }
    Ok(to)
}

/// The error of a rewrite at `node`.
pub(crate) fn node_error(graph: &Graph, node: NodeId, source: IrError) -> PassError {
    PassError::Node {
        node: describe(graph, node).to_owned(),
        source,
    }
}
