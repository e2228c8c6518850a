//! What a pass is handed besides the graph: the target, its options, and where remarks go.

use std::collections::BTreeMap;
use std::fmt;

use lancet_ir::{Graph, NodeId, WeightFormat};

use crate::matcher::describe;
use crate::{Remark, RemarkKind};

/// The machine that the plan is made for, as plain numbers. Passes know no other.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Bytes of one vector register.
    pub vector_bytes: usize,
    /// Number of vector registers.
    pub n_vector_registers: usize,
    /// Widths of token panels that kernels exist for, in tokens, ascending.
    pub panel_widths: Vec<usize>,
    /// Data cache sizes of one core; the last level is shared.
    pub l1_bytes: usize,
    pub l2_bytes: usize,
    pub l3_bytes: usize,
    /// Threads that a plan may expect.
    pub n_threads: usize,
}

/// A 256-bit machine with common cache sizes: the fixed target of tests.
impl Default for Target {
    fn default() -> Target {
        Target {
            vector_bytes: 32,
            n_vector_registers: 16,
            panel_widths: vec![8, 16, 32],
            l1_bytes: 32 << 10,
            l2_bytes: 512 << 10,
            l3_bytes: 8 << 20,
            n_threads: 2,
        }
    }
}

/// The value of a pass option.
#[derive(Clone, Debug, PartialEq)]
pub enum OptionValue {
    Int(i64),
    Float(f64),
    Bool(bool),
    /// `None` is `auto`.
    Format(Option<WeightFormat>),
}

impl fmt::Display for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionValue::Int(v) => write!(f, "{v}"),
            OptionValue::Float(v) => write!(f, "{v}"),
            OptionValue::Bool(v) => write!(f, "{v}"),
            OptionValue::Format(None) => f.write_str("auto"),
            OptionValue::Format(Some(WeightFormat::Bsr { r, c })) => write!(f, "{r}x{c}"),
            OptionValue::Format(Some(format)) => write!(f, "{format}"),
        }
    }
}

/// Options of one pass: every option of its schema, those not given in the pipeline with their defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options(pub(crate) BTreeMap<&'static str, OptionValue>);

impl Options {
    /// Names and values in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &OptionValue)> {
        self.0.iter().map(|(k, v)| (*k, v))
    }

    /// The integer option `name`.
    ///
    /// # Panics
    /// If the pass's schema has no integer option of this name: a bug of the pass.
    pub fn int(&self, name: &str) -> i64 {
        match self.0.get(name) {
            Some(OptionValue::Int(v)) => *v,
            other => panic!("no integer option `{name}` in the schema ({other:?})"),
        }
    }

    /// The number option `name`.
    ///
    /// # Panics
    /// If the pass's schema has no number option of this name: a bug of the pass.
    pub fn float(&self, name: &str) -> f64 {
        match self.0.get(name) {
            Some(OptionValue::Float(v)) => *v,
            other => panic!("no number option `{name}` in the schema ({other:?})"),
        }
    }

    /// The truth value option `name`.
    ///
    /// # Panics
    /// If the pass's schema has no truth value option of this name: a bug of the pass.
    pub fn bool(&self, name: &str) -> bool {
        match self.0.get(name) {
            Some(OptionValue::Bool(v)) => *v,
            other => panic!("no truth value option `{name}` in the schema ({other:?})"),
        }
    }

    /// The format option `name`; `None` is `auto`.
    ///
    /// # Panics
    /// If the pass's schema has no format option of this name: a bug of the pass.
    pub fn format(&self, name: &str) -> Option<WeightFormat> {
        match self.0.get(name) {
            Some(OptionValue::Format(v)) => *v,
            other => panic!("no format option `{name}` in the schema ({other:?})"),
        }
    }
}

/// What a pass is handed besides the graph.
pub struct PassContext<'a> {
    pub target: &'a Target,
    pub options: &'a Options,
    pass: &'static str,
    remarks: &'a mut Vec<Remark>,
}

impl<'a> PassContext<'a> {
    /// A context for the pass of this name; remarks are appended to `remarks`.
    pub fn new(
        pass: &'static str,
        target: &'a Target,
        options: &'a Options,
        remarks: &'a mut Vec<Remark>,
    ) -> PassContext<'a> {
        PassContext {
            target,
            options,
            pass,
            remarks,
        }
    }

    /// Tells that a rewrite of `node` was made.
    pub fn applied(&mut self, graph: &Graph, node: NodeId, message: impl Into<String>) {
        self.remark(RemarkKind::Applied, graph, node, message.into());
    }

    /// Tells that a rewrite of `node` was declined, and why.
    pub fn missed(&mut self, graph: &Graph, node: NodeId, message: impl Into<String>) {
        self.remark(RemarkKind::Missed, graph, node, message.into());
    }

    /// Tells a fact about `node`.
    pub fn analysis(&mut self, graph: &Graph, node: NodeId, message: impl Into<String>) {
        self.remark(RemarkKind::Analysis, graph, node, message.into());
    }

    fn remark(&mut self, kind: RemarkKind, graph: &Graph, node: NodeId, message: String) {
        self.remarks.push(Remark {
            pass: self.pass,
            kind,
            node: describe(graph, node).to_owned(),
            message,
        });
    }
}
