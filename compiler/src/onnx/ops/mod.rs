//! Operators of the file, of any opset, to the newest form of the operator table.
//!
//! Most nodes need no rule: [`Lowering::finish`] looks the operator up, checks attributes against its schema and adds it.
//! The rules of the other files run before it and move what older opsets wrote as attributes to operands, write out what
//! newer ones no longer imply, and put defaults that have changed into words.

mod axes;
mod constant;
mod microsoft;
mod norm;
mod quantize;
pub(crate) mod sequence;
mod softmax;

use std::sync::Arc;

use lancet_ir::{Dim, Graph, Op, Value};
use lancet_ops::{Attribute, AttributeType, Attributes, DType, Domain, Element, Operator, Tensor};

use super::attributes::dtype_name;
use super::error::{Fault, Faults};

pub use microsoft::written_out;

/// A node of the file with its operands found.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) op: &'a str,
    pub(crate) domain: &'a str,
    pub(crate) opset: i64,
    pub(crate) name: String,
    pub(crate) operands: Vec<Option<Value>>,
    /// For each result that the node names, whether anything uses it.
    pub(crate) used: Vec<bool>,
    pub(crate) attributes: Attributes,
}

/// The results of a node; one that nothing uses may be absent.
pub(crate) type Results = Result<Vec<Option<Value>>, Faults>;

/// True if an operator of this name is known in some opset.
pub(crate) fn is_known(domain: &str, op: &str) -> bool {
    operator(domain, op).is_some()
        || op == "Constant"
        || (domain.is_empty() && sequence::is_known(op))
}

/// True if nodes of this operator are read from models of this opset, attributes and types aside.
pub fn is_supported(domain: &str, op: &str, opset: i64) -> bool {
    let known =
        is_known(domain, op) || (domain == "com.microsoft" && microsoft::rule(op).is_some());
    let is_old = domain.is_empty() && opset < 7;
    known && (!is_old || OLD.iter().any(|o| o.0 == op && o.1 <= opset))
}

/// The table's operator for a name of the file.
fn operator(domain: &str, op: &str) -> Option<Operator> {
    match (domain, op) {
        ("", "Scatter") => Some(Operator::ScatterElements),
        ("", "Upsample") => Some(Operator::Resize),
        // ONNX Runtime's optimizer writes these to domains that do not define them.
        ("", "SimplifiedLayerNormalization") => Some(Operator::MsSimplifiedLayerNormalization),
        ("com.microsoft", "TransposeMatMul") => Some(Operator::MsFusedMatMul),
        ("com.microsoft", "LayerNormalization") => Some(Operator::LayerNormalization),
        ("", _) => Operator::from_onnx(Domain::Onnx, op),
        ("com.microsoft", _) => Operator::from_onnx(Domain::Microsoft, op),
        _ => None,
    }
}

/// Operators whose meaning before opset 7 is today's, with the first opset of that meaning.
const OLD: &[(&str, i64)] = &[
    ("Abs", 1),
    ("ArgMax", 1),
    ("ArgMin", 1),
    ("Cast", 6),
    ("Ceil", 1),
    ("Clip", 1),
    ("Concat", 4),
    ("Constant", 1),
    ("Conv", 1),
    ("ConvTranspose", 1),
    ("DepthToSpace", 1),
    ("Elu", 1),
    ("Exp", 1),
    ("Flatten", 1),
    ("Floor", 1),
    ("Gather", 1),
    ("GlobalAveragePool", 1),
    ("GlobalMaxPool", 1),
    ("HardSigmoid", 6),
    ("Hardmax", 1),
    ("Identity", 1),
    ("InstanceNormalization", 1),
    ("LeakyRelu", 1),
    ("Log", 1),
    ("LogSoftmax", 1),
    ("LpNormalization", 1),
    ("MatMul", 1),
    ("Neg", 1),
    ("Not", 1),
    ("Pad", 2),
    ("Reciprocal", 1),
    ("ReduceL1", 1),
    ("ReduceL2", 1),
    ("ReduceLogSum", 1),
    ("ReduceLogSumExp", 1),
    ("ReduceMax", 1),
    ("ReduceMean", 1),
    ("ReduceMin", 1),
    ("ReduceProd", 1),
    ("ReduceSum", 1),
    ("ReduceSumSquare", 1),
    ("Relu", 1),
    ("Reshape", 5),
    ("Selu", 6),
    ("Shape", 1),
    ("Sigmoid", 1),
    ("Size", 1),
    ("Slice", 1),
    ("Softmax", 1),
    ("Softplus", 1),
    ("Softsign", 1),
    ("SpaceToDepth", 1),
    ("Split", 2),
    ("Sqrt", 1),
    ("Squeeze", 1),
    ("Tanh", 1),
    ("Tile", 6),
    ("TopK", 1),
    ("Transpose", 1),
    ("Unsqueeze", 1),
];

/// Adds a node to the graph.
///
/// # Errors
/// Everything that is wrong with it.
pub(crate) fn add(graph: &mut Graph, call: Call<'_>) -> Results {
    if !is_supported(call.domain, call.op, call.opset) {
        return Err(Fault::Operator.into());
    }
    let mut l = Lowering { graph, call };
    if l.call.domain == "com.microsoft" {
        return match microsoft::rule(l.call.op) {
            Some(rule) => rule(l),
            None => l.finish(),
        };
    }
    match l.call.op {
        "Constant" => constant::constant(l),
        "ConstantOfShape" => constant::constant_of_shape(l),
        "Squeeze" | "Unsqueeze" => axes::axes(l, 1),
        op if op.starts_with("Reduce") => axes::axes(l, 1),
        "Split" => axes::split(l),
        "Slice" => axes::slice(l),
        "Pad" => axes::pad(l),
        "TopK" => axes::top_k(l),
        "Clip" => axes::clip(l),
        "DFT" => axes::dft(l),
        "Resize" | "Upsample" if l.call.opset < 11 || l.call.op == "Upsample" => axes::resize(l),
        "Dropout" => norm::dropout(l),
        "BatchNormalization" => norm::batch_normalization(l),
        "GroupNormalization" => norm::group_normalization(l),
        "Softmax" | "LogSoftmax" | "Hardmax" => softmax::softmax(l),
        "Cast" | "CastLike" => {
            // Says how to round to an exponent-only type, which Lancet does not have.
            l.call.attributes.remove("round_mode");
            l.finish()
        }
        _ => l.finish(),
    }
}

/// Adds a `GatherBlockQuantized` of a table with one element in each byte.
pub(crate) fn gather_blocks(graph: &mut Graph, call: Call<'_>) -> Results {
    microsoft::gather_blocks(Lowering { graph, call })
}

/// `value`, integers of a byte, within a range.
pub(crate) fn clipped(graph: &mut Graph, value: Value, range: (i64, i64)) -> Result<Value, Fault> {
    let bound = |v: i64| match graph.ty(value).dtype {
        DType::I8 => Tensor::scalar(v as i8),
        _ => Tensor::scalar(v as u8),
    };
    let (least, most) = (bound(range.0), bound(range.1));
    let bounds = [("least", least), ("most", most)]
        .map(|(name, tensor)| Some(graph.add_const(name, Arc::new(tensor))));
    let op = Op::Apply(Operator::Clip, Attributes::new());
    let node = graph.add(op, &[Some(value), bounds[0], bounds[1]])?;
    Ok(Value { node, result: 0 })
}

/// A node on its way into the graph.
pub(crate) struct Lowering<'g, 'c> {
    pub(crate) graph: &'g mut Graph,
    pub(crate) call: Call<'c>,
}

impl Lowering<'_, '_> {
    /// Adds the node as it now stands.
    pub(crate) fn finish(self) -> Results {
        let op = operator(self.call.domain, self.call.op).ok_or(Fault::Operator)?;
        self.finish_as(op)
    }

    /// Adds the node, as it now stands, as `op`.
    pub(crate) fn finish_as(mut self, op: Operator) -> Results {
        self.check_attributes(op)?;
        let (least, most) = op.schema().operands;
        while self.call.operands.len() > least && self.call.operands.last() == Some(&None) {
            self.call.operands.pop();
        }
        let found = self.call.operands.len();
        if found < least || found > most {
            let expected = match most {
                usize::MAX => format!("at least {least}"),
                _ if least == most => least.to_string(),
                _ => format!("{least} to {most}"),
            };
            return Err(Fault::invalid(format!("takes {expected} operands, found {found}")).into());
        }
        let n_used = self.n_used();
        let n_results = if op == Operator::Split {
            self.call.used.len()
        } else {
            n_used.max(op.schema().results.0)
        };
        if n_results > op.schema().results.1 {
            return Err(
                Fault::unsupported(format!("result {} is not supported", n_results - 1)).into(),
            );
        }
        let n_results = n_results.max(1);
        let Call {
            attributes,
            operands,
            name,
            ..
        } = self.call;
        let op = Op::Apply(op, attributes);
        let node = self.graph.add_results(op, &operands, n_results)?;
        self.graph.set_node_name(node, &name);
        let value = |result| Some(Value { node, result });
        Ok((0..n_results as u32).map(value).collect())
    }

    /// Checks names and types of attributes, and gives element types their names.
    fn check_attributes(&mut self, op: Operator) -> Result<(), Faults> {
        let mut faults = Vec::new();
        let mut renamed = Vec::new();
        for (name, value) in self.call.attributes.iter() {
            let Some(schema) = op.schema().attributes.iter().find(|a| a.name == name) else {
                let message = "is not known for this operator and opset".to_owned();
                faults.push(Fault::Attribute(name.to_owned(), message));
                continue;
            };
            match (schema.ty, value) {
                (ty, value) if ty == value.ty() => {}
                (AttributeType::Str, Attribute::Int(code)) => match dtype_name(*code) {
                    // Zero says that the attribute is not set, where it may be left out.
                    _ if *code == 0 && schema.default != lancet_ops::DefaultValue::Required => {
                        renamed.push((name.to_owned(), None));
                    }
                    Ok(dtype) => renamed.push((name.to_owned(), Some(dtype))),
                    Err(fault) => faults.push(fault),
                },
                // An empty list has no type of its own in some writers.
                (AttributeType::Ints, Attribute::Floats(v)) if v.is_empty() => {
                    renamed.push((name.to_owned(), None));
                }
                (ty, value) => faults.push(Fault::invalid(format!(
                    "attribute `{name}` is {:?}, not {ty:?}",
                    value.ty()
                ))),
            }
        }
        for (name, dtype) in renamed {
            match dtype {
                Some(dtype) => self
                    .call
                    .attributes
                    .set(&name, Attribute::Str(dtype.to_owned())),
                None => {
                    self.call.attributes.remove(&name);
                }
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Faults(faults))
        }
    }

    /// Number of results up to the last one that is used.
    pub(crate) fn n_used(&self) -> usize {
        self.call.used.iter().rposition(|u| *u).map_or(0, |i| i + 1)
    }

    /// Operand `index`, if it is there.
    pub(crate) fn operand(&self, index: usize) -> Option<Value> {
        self.call.operands.get(index).copied().flatten()
    }

    /// Operand `index`.
    ///
    /// # Errors
    /// [`Fault::Invalid`] if it is absent.
    pub(crate) fn required(&self, index: usize) -> Result<Value, Fault> {
        self.operand(index)
            .ok_or_else(|| Fault::invalid(format!("operand {index} is missing")))
    }

    /// Sets operand `index`; those before it that are not given become absent.
    pub(crate) fn set_operand(&mut self, index: usize, value: Value) {
        if self.call.operands.len() <= index {
            self.call.operands.resize(index + 1, None);
        }
        self.call.operands[index] = Some(value);
    }

    /// A constant that stands for the attribute `part` of the node.
    pub(crate) fn constant<T: Element>(
        &mut self,
        part: &str,
        shape: impl Into<Vec<usize>>,
        data: Vec<T>,
    ) -> Value {
        let name = format!("{}.{part}", self.call.name);
        self.graph
            .add_const(&name, Arc::new(Tensor::new(shape, data)))
    }

    /// A one-dimensional `i64` constant.
    pub(crate) fn ints(&mut self, part: &str, data: Vec<i64>) -> Value {
        self.constant(part, vec![data.len()], data)
    }

    /// Takes an integer attribute out of the node.
    pub(crate) fn take_int(&mut self, name: &str) -> Result<Option<i64>, Fault> {
        match self.call.attributes.remove(name) {
            None => Ok(None),
            Some(Attribute::Int(v)) => Ok(Some(v)),
            Some(other) => Err(wrong_type(name, &other, "Int")),
        }
    }

    /// Takes a float attribute out of the node.
    pub(crate) fn take_float(&mut self, name: &str) -> Result<Option<f32>, Fault> {
        match self.call.attributes.remove(name) {
            None => Ok(None),
            Some(Attribute::Float(v)) => Ok(Some(v)),
            Some(other) => Err(wrong_type(name, &other, "Float")),
        }
    }

    /// Takes a string out of the node.
    pub(crate) fn take_str(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.call.attributes.remove(name) {
            None => Ok(None),
            Some(Attribute::Str(v)) => Ok(Some(v)),
            Some(other) => Err(wrong_type(name, &other, "Str")),
        }
    }

    /// Takes a list of floats out of the node.
    pub(crate) fn take_floats(&mut self, name: &str) -> Result<Option<Vec<f32>>, Fault> {
        match self.call.attributes.remove(name) {
            None => Ok(None),
            Some(Attribute::Floats(v)) => Ok(Some(v)),
            Some(other) => Err(wrong_type(name, &other, "Floats")),
        }
    }

    /// Takes a list of integers out of the node.
    pub(crate) fn take_ints(&mut self, name: &str) -> Result<Option<Vec<i64>>, Fault> {
        match self.call.attributes.remove(name) {
            None => Ok(None),
            Some(Attribute::Ints(v)) => Ok(Some(v)),
            Some(Attribute::Floats(v)) if v.is_empty() => Ok(Some(Vec::new())),
            Some(other) => Err(wrong_type(name, &other, "Ints")),
        }
    }

    /// The elements of a value in another shape.
    pub(crate) fn view(&mut self, x: Value, shape: Vec<Dim>) -> Result<Value, Fault> {
        let node = self.graph.add(Op::View(shape), &[Some(x)])?;
        self.graph.set_node_name(node, &self.call.name);
        Ok(Value { node, result: 0 })
    }

    /// Adds a helper node of this one.
    pub(crate) fn apply(
        &mut self,
        op: Operator,
        attributes: Attributes,
        operands: &[Value],
    ) -> Result<Value, Fault> {
        let operands: Vec<Option<Value>> = operands.iter().copied().map(Some).collect();
        self.apply_optional(op, attributes, &operands)
    }

    /// Adds a helper node of this one, with operands that may be absent.
    pub(crate) fn apply_optional(
        &mut self,
        op: Operator,
        attributes: Attributes,
        operands: &[Option<Value>],
    ) -> Result<Value, Fault> {
        let node = self.graph.add(Op::Apply(op, attributes), operands)?;
        self.graph.set_node_name(node, &self.call.name);
        Ok(Value { node, result: 0 })
    }
}

fn wrong_type(name: &str, found: &Attribute, expected: &str) -> Fault {
    Fault::invalid(format!(
        "attribute `{name}` is {:?}, not {expected}",
        found.ty()
    ))
}

/// `axis` counted from the front, or an error if it is outside `-rank..rank`, or `-rank..=rank` where `end` is allowed.
pub(crate) fn axis_from_front(axis: i64, rank: usize, end: bool) -> Result<usize, Fault> {
    let n = rank as i64;
    let most = if end { n } else { n - 1 };
    let from_front = if axis < 0 {
        axis.checked_add(n)
    } else {
        Some(axis)
    };
    from_front
        .filter(|a| (0..=most).contains(a))
        .and_then(|a| usize::try_from(a).ok())
        .ok_or_else(|| Fault::invalid(format!("axis {axis} is out of range for rank {rank}")))
}
