//! The walk over a model's nodes that builds the graph.
//!
//! Nodes are taken in the order of the file wherever that is an order of evaluation, and are sorted where it is not. Only
//! nodes that an output needs are looked at. Calls of the model's own functions are walked in place. When a node fails, its results are bound to [`Binding::Failed`], and of whatever needs them
//! only the operator is looked at: each problem is reported once, and every unsupported operator at once.

mod control;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lancet_ir::{Graph, Op, Value};
use lancet_ops::{Attribute, Attributes, Operator, Tensor};
use onnx_protobuf::{
    FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, SparseTensorProto, TensorProto,
};

use super::attributes::{self, NodeAttributes};
use super::error::{Collector, Fault, Faults, Place};
use super::ops::sequence::{self, Item};
use super::ops::{self, Call};
use super::order::Order;
use super::tensor::{Narrow, TensorReader};
use super::{ImportOptions, sparse};
use sparse::Sparse;

/// Deepest nesting of function calls and branches.
const MAX_DEPTH: usize = 32;

/// What a name stands for.
#[derive(Clone, Debug)]
pub(crate) enum Binding {
    Value(Value),
    /// A list of values, which operators on sequences take apart.
    Sequence(Arc<[Value]>),
    /// A list of values of one shape, along the first dimension of one value.
    Stacked(Value),
    /// A list that a loop carries: what it was before the iteration, and these values behind it.
    Grown(Arc<[Value]>),
    /// An optional input of a function that its call leaves out.
    Absent,
    /// A result of a node that has been reported, or that depends on one.
    Failed,
}

/// The names that nodes see.
pub(crate) struct Scope<'s> {
    parent: Option<&'s Scope<'s>>,
    values: HashMap<String, Binding>,
    opsets: HashMap<String, i64>,
    /// Attributes of the call, inside a function.
    formal: Option<Attributes>,
    /// Put before the names of nodes.
    prefix: String,
    depth: usize,
    /// Graphs that nodes run, around this one.
    regions: usize,
}

impl Scope<'_> {
    /// The outermost scope.
    pub(crate) fn root(opsets: HashMap<String, i64>) -> Scope<'static> {
        Scope {
            parent: None,
            values: HashMap::new(),
            opsets,
            formal: None,
            prefix: String::new(),
            depth: 0,
            regions: 0,
        }
    }

    /// A scope inside this one.
    fn inside(&self, name: &str) -> Scope<'_> {
        Scope {
            parent: Some(self),
            values: HashMap::new(),
            opsets: self.opsets.clone(),
            formal: self.formal.clone(),
            prefix: format!("{}{name}/", self.prefix),
            depth: self.depth + 1,
            regions: self.regions,
        }
    }

    /// Binds a name; false if it was bound.
    pub(crate) fn bind(&mut self, name: &str, binding: Binding) -> bool {
        self.values.insert(name.to_owned(), binding).is_none()
    }

    /// What a name stands for here, or `None` if it is not defined.
    pub(crate) fn lookup(&self, name: &str) -> Option<Binding> {
        let mut scope = Some(self);
        while let Some(s) = scope {
            if let Some(binding) = s.values.get(name) {
                return Some(binding.clone());
            }
            scope = s.parent;
        }
        None
    }
}

/// Versions by domain, with the two names of the default domain made one.
pub(crate) fn opsets(imports: &[OperatorSetIdProto]) -> HashMap<String, i64> {
    imports
        .iter()
        .map(|o| (domain(&o.domain).to_owned(), o.version))
        .collect()
}

/// The domain under the name it is known by here: empty for the default one.
pub(crate) fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

/// A constant that has not been read.
pub(crate) enum Initializer {
    Dense(Box<TensorProto>),
    Sparse(SparseTensorProto),
}

impl Initializer {
    pub(crate) fn name(&self) -> &str {
        match self {
            Initializer::Dense(t) => &t.name,
            Initializer::Sparse(t) => t.values.as_ref().map_or("", |v| &v.name),
        }
    }
}

/// The state of an import.
pub(crate) struct Walk<'a> {
    pub(crate) graph: Graph,
    pub(crate) reader: TensorReader<'a>,
    pub(crate) errors: Collector,
    pub(crate) functions: HashMap<(&'a str, &'a str, &'a str), &'a FunctionProto>,
    pub(crate) options: &'a ImportOptions,
    /// Values that hold elements of less than a byte as bytes.
    pub(crate) narrow: HashMap<Value, Narrow>,
    /// Nodes walked, those of inlined bodies at each call.
    pub(crate) n_nodes: usize,
}

impl<'a> Walk<'a> {
    /// Walks the nodes that `wanted` needs, and binds their results in `scope`.
    pub(crate) fn body(
        &mut self,
        nodes: &'a [NodeProto],
        initializers: Vec<Initializer>,
        wanted: &[&'a str],
        scope: &mut Scope<'_>,
    ) -> Result<(), Fault> {
        self.n_nodes = self.n_nodes.saturating_add(nodes.len());
        if self.n_nodes > self.options.max_nodes {
            return Err(Fault::limit(format!(
                "more than {} nodes, functions inlined",
                self.options.max_nodes
            )));
        }
        let producers = self.producers(nodes, &initializers, scope);
        let plan = Order::new(nodes, &producers, wanted);
        for initializer in initializers {
            if plan.used.contains(initializer.name()) {
                self.initializer(initializer, scope);
            }
        }
        for &index in &plan.cyclic {
            let place = place(&nodes[index], scope);
            let fault = Fault::invalid("needs its own result, through a cycle of nodes");
            self.errors.add(&place, fault);
        }
        for &index in &plan.blocked {
            self.bind_results(&nodes[index], &[], scope);
        }
        for &index in &plan.order {
            let node = &nodes[index];
            if is_of_sequences(node, scope) {
                let binding = self.sequence(node, scope).unwrap_or_else(|faults| {
                    let place = place(node, scope);
                    for fault in faults.0 {
                        self.errors.add(&place, fault);
                    }
                    Binding::Failed
                });
                if let Some(output) = node.output.first().filter(|o| !o.is_empty()) {
                    scope.bind(output, binding);
                }
                continue;
            }
            if self.runs_graphs(node) {
                let used: Vec<bool> = (node.output.iter())
                    .map(|o| plan.used.contains(o.as_str()))
                    .collect();
                let bindings = self.control(node, &used, scope).unwrap_or_else(|faults| {
                    let place = place(node, scope);
                    for fault in faults.0 {
                        self.errors.add(&place, fault);
                    }
                    vec![Binding::Failed; node.output.len()]
                });
                for (output, binding) in node.output.iter().zip(bindings) {
                    if !output.is_empty() {
                        scope.bind(output, binding);
                    }
                }
                continue;
            }
            let results = match self.operands(node, scope) {
                Ok(None) => {
                    // Nothing else can be said of a node without its operands.
                    if !self.is_supported(node, scope) {
                        self.errors.add(&place(node, scope), Fault::Operator);
                    }
                    Vec::new()
                }
                Ok(Some(operands)) => {
                    let used = node.output.iter().map(|o| plan.used.contains(o.as_str()));
                    self.node(node, operands, used.collect(), scope)
                        .unwrap_or_else(|faults| {
                            let place = place(node, scope);
                            for fault in faults.0 {
                                self.errors.add(&place, fault);
                            }
                            Vec::new()
                        })
                }
                Err(fault) => {
                    self.errors.add(&place(node, scope), fault);
                    Vec::new()
                }
            };
            self.bind_results(node, &results, scope);
        }
        Ok(())
    }

    /// Which node gives each name.
    fn producers(
        &mut self,
        nodes: &'a [NodeProto],
        initializers: &[Initializer],
        scope: &Scope<'_>,
    ) -> HashMap<&'a str, usize> {
        let mut taken: HashSet<&str> = scope.values.keys().map(String::as_str).collect();
        for initializer in initializers {
            let name = initializer.name();
            if !taken.insert(name) {
                let fault = Fault::invalid("the name is given twice");
                self.errors
                    .add(&Place::new(format!("initializer `{name}`")), fault);
            }
        }
        let mut producers = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                let twice = taken.contains(output.as_str())
                    || producers.insert(output.as_str(), index).is_some();
                if twice {
                    let fault =
                        Fault::invalid(format!("result `{output}` has the name of another value"));
                    self.errors.add(&place(node, scope), fault);
                }
            }
        }
        producers
    }

    fn initializer(&mut self, initializer: Initializer, scope: &mut Scope<'_>) {
        let name = initializer.name().to_owned();
        let narrow = match &initializer {
            Initializer::Dense(proto) => Narrow::of(proto.data_type),
            Initializer::Sparse(_) => None,
        };
        let read = match initializer {
            Initializer::Dense(mut proto) => match narrow {
                None => self.reader.read(&mut proto),
                Some(ty) => self.reader.read_narrow(&mut proto, ty),
            }
            .map(Sparse::Dense),
            Initializer::Sparse(mut proto) => {
                sparse::read(&mut self.reader, &mut proto, self.options.max_dense_bytes)
            }
        };
        let in_scope = format!("{}{name}", scope.prefix);
        let value = read.and_then(|tensor| match tensor {
            Sparse::Dense(tensor) => Ok(self.graph.add_const(&in_scope, Arc::new(tensor))),
            Sparse::Matrix {
                shape,
                values,
                positions,
            } => self.sparse_matrix(&in_scope, &shape, values, positions),
        });
        let binding = match value {
            Ok(value) => {
                self.narrow.extend(narrow.map(|ty| (value, ty)));
                Binding::Value(value)
            }
            Err(fault) => {
                self.errors
                    .add(&Place::new(format!("initializer `{name}`")), fault);
                Binding::Failed
            }
        };
        scope.bind(&name, binding);
    }

    /// A constant matrix of these values at these positions.
    fn sparse_matrix(
        &mut self,
        name: &str,
        shape: &[usize],
        values: Vec<f32>,
        positions: Vec<i64>,
    ) -> Result<Value, Fault> {
        let values = Tensor::new([values.len()], values);
        let values = self.graph.add_const("values", Arc::new(values));
        let positions = Tensor::new([positions.len()], positions);
        let positions = self.graph.add_const("positions", Arc::new(positions));
        let shape = shape.iter().map(|&d| d as i64).collect();
        let attributes = Attributes::new().with("shape", Attribute::Ints(shape));
        let op = Op::Apply(Operator::FromSparse, attributes);
        let node = (self.graph.add(op, &[Some(values), Some(positions)]))
            .map_err(|e| Fault::invalid(e.to_string()))?;
        self.graph.set_node_name(node, name);
        Ok(Value { node, result: 0 })
    }

    /// The operands of a node, or `None` if one of them has failed.
    fn operands(
        &self,
        node: &NodeProto,
        scope: &Scope<'_>,
    ) -> Result<Option<Vec<Option<Value>>>, Fault> {
        let mut operands = Vec::with_capacity(node.input.len());
        let mut failed = false;
        for name in &node.input {
            operands.push(if name.is_empty() {
                None
            } else {
                match scope.lookup(name) {
                    Some(Binding::Value(v)) => Some(v),
                    Some(Binding::Absent) => None,
                    Some(Binding::Sequence(_) | Binding::Stacked(_) | Binding::Grown(_)) => {
                        return Err(Fault::unsupported(format!(
                            "operand `{name}` is a sequence"
                        )));
                    }
                    Some(Binding::Failed) => {
                        failed = true;
                        None
                    }
                    None => {
                        return Err(Fault::invalid(format!("operand `{name}` is not defined")));
                    }
                }
            });
        }
        Ok((!failed).then_some(operands))
    }

    /// What a node that takes or gives a sequence stands for.
    fn sequence(&mut self, node: &'a NodeProto, scope: &Scope<'_>) -> Result<Binding, Faults> {
        let mut items = Vec::with_capacity(node.input.len());
        for name in &node.input {
            items.push(match scope.lookup(name) {
                _ if name.is_empty() => None,
                Some(Binding::Value(value)) => Some(Item::Tensor(value)),
                Some(Binding::Sequence(parts)) => Some(Item::Sequence(parts)),
                Some(Binding::Stacked(value)) => Some(Item::Stacked(value)),
                Some(Binding::Grown(parts)) => Some(Item::Grown(parts)),
                Some(Binding::Absent) => None,
                Some(Binding::Failed) => return Ok(Binding::Failed),
                None => {
                    return Err(Fault::invalid(format!("operand `{name}` is not defined")).into());
                }
            });
        }
        let attributes = attributes::read(
            &node.attribute,
            scope.formal.as_ref(),
            &mut self.reader,
            self.options.max_dense_bytes,
        )?;
        let call = Call {
            op: &node.op_type,
            domain: "",
            opset: scope.opsets.get("").copied().unwrap_or(1),
            name: format!("{}{}", scope.prefix, name_of(node)),
            operands: Vec::new(),
            used: Vec::new(),
            attributes: attributes.values,
        };
        Ok(match sequence::add(&mut self.graph, call, &items)? {
            Item::Tensor(value) => Binding::Value(value),
            Item::Sequence(parts) => Binding::Sequence(parts),
            Item::Stacked(value) => Binding::Stacked(value),
            Item::Grown(parts) => Binding::Grown(parts),
        })
    }

    fn bind_results(&self, node: &NodeProto, results: &[Option<Value>], scope: &mut Scope<'_>) {
        for (i, output) in node
            .output
            .iter()
            .enumerate()
            .filter(|(_, o)| !o.is_empty())
        {
            let binding = match results.get(i) {
                Some(Some(value)) => Binding::Value(*value),
                _ => Binding::Failed,
            };
            // A name that is given twice has been reported.
            scope.bind(output, binding);
        }
    }

    /// True for `If`, `Loop` and `Scan`.
    fn runs_graphs(&self, node: &NodeProto) -> bool {
        let (domain, op) = (domain(&node.domain), node.op_type.as_str());
        control::is_control(domain, op)
            && !(self.functions).contains_key(&(domain, op, node.overload.as_str()))
    }

    /// False if the operator of a node is one that no model may use.
    fn is_supported(&self, node: &NodeProto, scope: &Scope<'_>) -> bool {
        let domain = domain(&node.domain);
        let op = node.op_type.as_str();
        let is_function = self
            .functions
            .contains_key(&(domain, op, node.overload.as_str()));
        let opset = scope.opsets.get(domain).copied().unwrap_or(1);
        is_function || control::is_control(domain, op) || ops::is_supported(domain, op, opset)
    }

    /// Adds one node, and gives its results; those that nothing uses may be absent.
    fn node(
        &mut self,
        node: &'a NodeProto,
        operands: Vec<Option<Value>>,
        used: Vec<bool>,
        scope: &Scope<'_>,
    ) -> Result<Vec<Option<Value>>, Faults> {
        let attributes = attributes::read(
            &node.attribute,
            scope.formal.as_ref(),
            &mut self.reader,
            self.options.max_dense_bytes,
        )?;
        let domain = domain(&node.domain);
        let key = (domain, node.op_type.as_str(), node.overload.as_str());
        if let Some(function) = self.functions.get(&key).copied() {
            return self.function(function, node, &operands, attributes, scope);
        }
        if let Some((name, _)) = attributes.graphs.first() {
            let message = "is a graph, which this operator does not run".to_owned();
            return Err(if ops::is_known(domain, &node.op_type) {
                Fault::Attribute((*name).to_owned(), message).into()
            } else {
                Fault::Operator.into()
            });
        }
        let opset = scope.opsets.get(domain).copied();
        let opset = match (opset, domain) {
            (Some(version), _) => version,
            // Exporters leave out the import of contributed operators, of which there is one version.
            (None, "com.microsoft") => 1,
            (None, _) => {
                return Err(Fault::invalid(format!(
                    "the model does not import the domain `{}`",
                    node.domain
                ))
                .into());
            }
        };
        let call = Call {
            op: &node.op_type,
            domain,
            opset,
            name: format!("{}{}", scope.prefix, name_of(node)),
            operands,
            used,
            attributes: attributes.values,
        };
        let found = call.operands.iter().flatten();
        match found.filter_map(|v| self.narrow.get(v)).next() {
            None => ops::add(&mut self.graph, call),
            Some(&ty) => self.narrow(call, ty),
        }
    }

    /// Adds a node of which an operand is of the narrow type `ty`.
    fn narrow(&mut self, call: Call<'_>, ty: Narrow) -> Result<Vec<Option<Value>>, Faults> {
        let is_moved = matches!(
            call.op,
            "Concat"
                | "Expand"
                | "Flatten"
                | "Gather"
                | "Identity"
                | "Reshape"
                | "Slice"
                | "Split"
                | "Squeeze"
                | "Transpose"
                | "Unsqueeze"
        );
        match call.op {
            // Values are what they are in any type; what the block is quantized by is read as its bytes are.
            "Cast" | "DequantizeLinear" => ops::add(&mut self.graph, call),
            "QuantizeLinear" => {
                let mut y = ops::add(&mut self.graph, call)?;
                for value in y.iter_mut().flatten() {
                    *value = ops::clipped(&mut self.graph, *value, ty.range())?;
                    self.narrow.insert(*value, ty);
                }
                Ok(y)
            }
            "GatherBlockQuantized" => ops::gather_blocks(&mut self.graph, call),
            _ if is_moved => {
                let y = ops::add(&mut self.graph, call)?;
                let results = y.iter().flatten();
                self.narrow.extend(results.map(|value| (*value, ty)));
                Ok(y)
            }
            _ => Err(Fault::DType(ty.name()).into()),
        }
    }

    /// Walks the body of a function of the model.
    fn function(
        &mut self,
        function: &'a FunctionProto,
        node: &'a NodeProto,
        operands: &[Option<Value>],
        mut attributes: NodeAttributes<'a>,
        scope: &Scope<'_>,
    ) -> Result<Vec<Option<Value>>, Faults> {
        if scope.depth >= MAX_DEPTH {
            return Err(Fault::limit(format!(
                "functions are nested deeper than {MAX_DEPTH} calls"
            ))
            .into());
        }
        if !attributes.graphs.is_empty() {
            return Err(Fault::unsupported("a graph is passed to a function").into());
        }
        if operands.len() > function.input.len() || node.output.len() > function.output.len() {
            return Err(Fault::invalid(format!(
                "the function takes {} operands and gives {} results, found {} and {}",
                function.input.len(),
                function.output.len(),
                operands.len(),
                node.output.len()
            ))
            .into());
        }
        let defaults = attributes::read(
            &function.attribute_proto,
            None,
            &mut self.reader,
            self.options.max_dense_bytes,
        )?;
        for (name, value) in defaults.values.iter() {
            if attributes.values.get(name).is_none() {
                attributes.values.set(name, value.clone());
            }
        }
        let mut opsets = opsets(&function.opset_import);
        if opsets.is_empty() {
            opsets = scope.opsets.clone();
        }
        let mut inner = Scope {
            parent: None,
            values: HashMap::new(),
            opsets,
            formal: Some(attributes.values),
            prefix: format!("{}{}/", scope.prefix, name_of(node)),
            depth: scope.depth + 1,
            regions: scope.regions,
        };
        for (i, input) in function.input.iter().enumerate() {
            let binding = match operands.get(i).copied().flatten() {
                Some(value) => Binding::Value(value),
                None => Binding::Absent,
            };
            if !inner.bind(input, binding) {
                return Err(Fault::invalid(format!(
                    "the function takes two operands of the name `{input}`"
                ))
                .into());
            }
        }
        let wanted: Vec<&str> = wanted(node, &function.output);
        self.body(&function.node, Vec::new(), &wanted, &mut inner)?;
        results(node, &function.output, &inner)
    }
}

/// True for operators on sequences, and for a copy of one.
fn is_of_sequences(node: &NodeProto, scope: &Scope<'_>) -> bool {
    let is_copy = || {
        let operand = node.input.first().and_then(|name| scope.lookup(name));
        let is_sequence = matches!(
            operand,
            Some(Binding::Sequence(_) | Binding::Stacked(_) | Binding::Grown(_))
        );
        node.op_type == "Identity" && is_sequence
    };
    domain(&node.domain).is_empty() && (sequence::is_known(&node.op_type) || is_copy())
}

/// The constants of a branch; their elements stay in the file until they are read.
fn initializers_of(graph: &GraphProto) -> Vec<Initializer> {
    let dense = graph
        .initializer
        .iter()
        .map(|t| Initializer::Dense(Box::new(t.clone())));
    let sparse = graph
        .sparse_initializer
        .iter()
        .cloned()
        .map(Initializer::Sparse);
    dense.chain(sparse).collect()
}

/// Formal results that the node gives names to.
fn wanted<'f>(node: &NodeProto, formal: &'f [String]) -> Vec<&'f str> {
    formal
        .iter()
        .zip(&node.output)
        .filter(|(_, to)| !to.is_empty())
        .map(|(name, _)| name.as_str())
        .collect()
}

/// The values of the formal results that the node gives names to.
fn results(
    node: &NodeProto,
    formal: &[String],
    inner: &Scope<'_>,
) -> Result<Vec<Option<Value>>, Faults> {
    let mut out = Vec::with_capacity(node.output.len());
    for (name, to) in formal.iter().zip(&node.output) {
        out.push(if to.is_empty() {
            None
        } else {
            match inner.lookup(name) {
                Some(Binding::Value(v)) => Some(v),
                Some(Binding::Sequence(_) | Binding::Stacked(_) | Binding::Grown(_)) => {
                    let message = format!("result `{name}` of its body is a sequence");
                    return Err(Fault::unsupported(message).into());
                }
                Some(Binding::Absent | Binding::Failed) => None,
                None => {
                    return Err(Fault::invalid(format!(
                        "result `{name}` of its body is not defined"
                    ))
                    .into());
                }
            }
        });
    }
    Ok(out)
}

/// The name of a node: its own, else its first result's.
pub(crate) fn name_of(node: &NodeProto) -> &str {
    if !node.name.is_empty() {
        return &node.name;
    }
    node.output
        .iter()
        .find(|o| !o.is_empty())
        .map_or("", String::as_str)
}

fn place(node: &NodeProto, scope: &Scope<'_>) -> Place {
    let domain = domain(&node.domain);
    let name = format!("{}{}", scope.prefix, name_of(node));
    let op = if domain.is_empty() {
        node.op_type.clone()
    } else {
        format!("{domain}.{}", node.op_type)
    };
    Place {
        text: format!("node `{name}` ({op})"),
        node: format!("`{name}`"),
        op: node.op_type.clone(),
        domain: if domain.is_empty() { "ai.onnx" } else { domain }.to_owned(),
        opset: scope.opsets.get(domain).copied().unwrap_or(1),
    }
}
