//! The graph: nodes, the values they produce, and the few ways to change them.
//!
//! A private `petgraph::StableDiGraph` is the single truth for edges. It is wrapped because its freed slots are reused, its
//! adjacency runs in reverse order of insertion, and its topological order follows edit history. So: operand order lives
//! on the edge; nodes are removed only by [`Graph::sweep`]; and [`Graph::order`] is a post-order walk from the outputs,
//! operands left to right, so equal graphs give equal orders whatever their history.
//!
//! Invariants: acyclic (an operand exists before its user; [`Graph::set_operand`] refuses a cycle); every node's result
//! types are what [`crate::infer`] says, up to layout; every operand edge names an existing result.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use lancet_ops::{Attribute, Attributes, Operator, Tensor};
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use crate::infer::infer;
use crate::verify::types_fit;
use crate::{Constant, Dim, IrError, Layout, Op, Symbol, TensorType};

/// Identifies a node of one graph. Stays valid until [`Graph::sweep`] removes the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(NodeIndex<u32>);

impl NodeId {
    /// A number that is dense enough to index side tables; not stable over edits.
    pub fn index(self) -> usize {
        self.0.index()
    }
}

/// One result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    pub node: NodeId,
    pub result: u32,
}

/// What is known of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    pub ty: TensorType,
    /// The elements, in row-major order, where they are known as expressions of the sizes: shapes computed from shapes.
    /// Only for integer and boolean tensors of at most [`ValueInfo::MAX_ELEMENTS`] elements.
    pub elements: Option<Arc<[Dim]>>,
}

impl ValueInfo {
    /// Larger tensors have no known elements.
    pub const MAX_ELEMENTS: usize = 64;

    /// A value of this type with unknown elements.
    pub fn new(ty: TensorType) -> ValueInfo {
        ValueInfo { ty, elements: None }
    }
}

/// A named output of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub name: String,
    pub value: Value,
}

#[derive(Clone, Debug)]
struct Node {
    op: Op,
    /// Number of operand positions, absent optional operands included.
    n_operands: u32,
    results: Vec<ValueInfo>,
    name: String,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    result: u32,
    operand: u32,
}

/// A typed dataflow graph.
#[derive(Clone, Debug)]
pub struct Graph {
    name: String,
    nodes: StableDiGraph<Node, Use, u32>,
    inputs: Vec<NodeId>,
    outputs: Vec<Output>,
    symbols: BTreeSet<Symbol>,
    n_fresh: usize,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Graph {
        Graph {
            name: name.to_owned(),
            nodes: StableDiGraph::default(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            symbols: BTreeSet::new(),
            n_fresh: 0,
        }
    }

    /// The graph's name, without the `@` of IR text.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of nodes, those that no output needs included.
    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    /// True if there is no node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A graph that a node of this one is to run. It makes up no symbol that this one has, so that types can be carried over.
    pub fn region(&self, name: &str) -> Graph {
        Graph {
            symbols: self.symbols.clone(),
            n_fresh: self.n_fresh,
            ..Graph::new(name)
        }
    }

    /// The graphs that a node runs, to be changed. Types and order of their inputs and outputs must stay.
    pub fn regions_mut(&mut self, node: NodeId) -> Vec<&mut Graph> {
        self.nodes[node.0].op.regions_mut()
    }

    // Building.

    /// Declares a symbol, so that printed text lists it and no fresh symbol takes its name.
    pub fn declare_symbol(&mut self, name: &str) {
        self.symbols.insert(Symbol::new(name));
    }

    /// Every symbol of the graph, in name order.
    pub fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter()
    }

    /// A dimension that nothing else is known of.
    pub fn fresh_dim(&mut self) -> Dim {
        loop {
            let name = format!("u{}", self.n_fresh);
            self.n_fresh += 1;
            if self.symbols.insert(Symbol::new(&name)) {
                return Dim::symbol(&name);
            }
        }
    }

    /// Adds a graph input.
    pub fn add_input(&mut self, name: &str, ty: TensorType) -> Value {
        self.declare_symbols_of(&ty);
        let id = self.insert(Op::Input(name.to_owned()), &[], vec![ValueInfo::new(ty)]);
        self.nodes[id.0].name = name.to_owned();
        self.inputs.push(id);
        Value {
            node: id,
            result: 0,
        }
    }

    /// Adds a constant.
    pub fn add_const(&mut self, name: &str, tensor: Arc<Tensor>) -> Value {
        let constant = Constant {
            name: name.to_owned(),
            tensor,
            literal: None,
        };
        self.add(Op::Const(constant), &[])
            .map(|node| Value { node, result: 0 })
            .expect("a constant has no operands to be wrong")
    }

    /// Adds a node and infers the types of its results.
    ///
    /// # Errors
    /// [`IrError`] if the operands or attributes do not fit the operation. The graph is then as before.
    pub fn add(&mut self, op: Op, operands: &[Option<Value>]) -> Result<NodeId, IrError> {
        let n_results = match &op {
            Op::Apply(operator, _) => operator.schema().results.0,
            Op::If { then, .. } => then.outputs.len(),
            Op::Loop { body, .. } => body.outputs.len().saturating_sub(1),
            _ => 1,
        };
        self.add_results(op, operands, n_results)
    }

    /// Adds a node that gives `n_results` results, for operators that give a varying number (`Split`, `LSTM`).
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub fn add_results(
        &mut self,
        op: Op,
        operands: &[Option<Value>],
        n_results: usize,
    ) -> Result<NodeId, IrError> {
        if let Op::Apply(operator, attributes) = &op {
            attributes.check(*operator).map_err(IrError::Attributes)?;
        }
        let infos: Vec<Option<ValueInfo>> = operands
            .iter()
            .map(|v| v.map(|v| self.info(v).clone()))
            .collect();
        let refs: Vec<Option<&ValueInfo>> = infos.iter().map(Option::as_ref).collect();
        let results = infer(&op, &refs, n_results, &mut || self.fresh_dim())?;
        Ok(self.insert(op, operands, results))
    }

    /// Adds a node whose result types are stated (by IR text), and checks them against the inferred ones.
    ///
    /// A fresh symbol that inference made up is replaced by what is stated. A stated symbol that no input has is a size that
    /// depends on data, and fits whatever inference says.
    ///
    /// # Errors
    /// As [`Graph::add`], and [`IrError::Mismatch`].
    pub fn add_stated(
        &mut self,
        op: Op,
        operands: &[Option<Value>],
        stated: &[TensorType],
    ) -> Result<NodeId, IrError> {
        let fresh_before = self.symbols.clone();
        let text = op.text();
        let id = self.add_results(op, operands, stated.len())?;
        let made: HashSet<Symbol> = self.symbols.difference(&fresh_before).cloned().collect();
        self.symbols = fresh_before;
        let inferred = self.nodes[id.0].results.clone();
        let fits = |i: &TensorType, s: &TensorType| {
            // The symbols of the inputs are only looked up where a type is not plainly equal.
            types_fit(i, s, &|x| !made.contains(x)) || {
                let bound = self.input_symbols();
                types_fit(i, s, &|x| bound.contains(x))
            }
        };
        for (index, s) in stated.iter().enumerate() {
            let found = inferred.get(index).map(|i| &i.ty);
            if !found.is_some_and(|i| fits(i, s)) {
                self.nodes.remove_node(id.0);
                return Err(IrError::Mismatch {
                    op: text.to_owned(),
                    index,
                    stated: s.to_string(),
                    inferred: found.map_or_else(|| "nothing".to_owned(), ToString::to_string),
                });
            }
        }
        for (index, s) in stated.iter().enumerate() {
            self.declare_symbols_of(s);
            let result = &mut self.nodes[id.0].results[index];
            result.ty = s.clone();
            let made_up = |d: &Dim| d.symbols().iter().any(|x| made.contains(x));
            if result
                .elements
                .as_ref()
                .is_some_and(|e| e.iter().any(made_up))
            {
                result.elements = None;
            }
        }
        Ok(id)
    }

    /// Adds an operator with one result.
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub fn apply(
        &mut self,
        op: Operator,
        attributes: Attributes,
        operands: &[Value],
    ) -> Result<Value, IrError> {
        let operands: Vec<Option<Value>> = operands.iter().copied().map(Some).collect();
        self.add(Op::Apply(op, attributes), &operands)
            .map(|node| Value { node, result: 0 })
    }

    /// Names a node after what it came from; diagnostics and traces show it.
    pub fn set_node_name(&mut self, node: NodeId, name: &str) {
        self.nodes[node.0].name = name.to_owned();
    }

    /// Declares an output.
    pub fn add_output(&mut self, name: &str, value: Value) {
        self.outputs.push(Output {
            name: name.to_owned(),
            value,
        });
    }

    // Reading.

    /// Input nodes in declared order.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// Outputs in declared order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// What a node does.
    pub fn op(&self, node: NodeId) -> &Op {
        &self.nodes[node.0].op
    }

    /// The operator that a value's node applies, if it applies one.
    pub fn operator(&self, value: Value) -> Option<Operator> {
        self.op(value.node).operator()
    }

    /// Attributes of a node; empty where it applies no operator.
    pub fn attributes(&self, node: NodeId) -> &Attributes {
        static NONE: std::sync::OnceLock<Attributes> = std::sync::OnceLock::new();
        match self.op(node) {
            Op::Apply(_, a) => a,
            _ => NONE.get_or_init(Attributes::new),
        }
    }

    /// Attribute of a node by name.
    pub fn attribute(&self, node: NodeId, name: &str) -> Option<&Attribute> {
        self.attributes(node).get(name)
    }

    /// The name a node was given; empty if none.
    pub fn node_name(&self, node: NodeId) -> &str {
        &self.nodes[node.0].name
    }

    /// Number of results of a node.
    pub fn n_results(&self, node: NodeId) -> usize {
        self.nodes[node.0].results.len()
    }

    /// Operands in order; `None` is an absent optional operand.
    pub fn operands(&self, node: NodeId) -> Vec<Option<Value>> {
        let mut out = vec![None; self.nodes[node.0].n_operands as usize];
        for e in self.nodes.edges_directed(node.0, Direction::Incoming) {
            out[e.weight().operand as usize] = Some(Value {
                node: NodeId(e.source()),
                result: e.weight().result,
            });
        }
        out
    }

    /// Operand `index`, if present.
    pub fn operand(&self, node: NodeId, index: usize) -> Option<Value> {
        self.operands(node).get(index).copied().flatten()
    }

    /// Nodes that use a value, with the operand position, in a stable order. Graph outputs are not among them.
    pub fn users(&self, value: Value) -> Vec<(NodeId, usize)> {
        let mut out: Vec<(NodeId, usize)> = self
            .nodes
            .edges_directed(value.node.0, Direction::Outgoing)
            .filter(|e| e.weight().result == value.result)
            .map(|e| (NodeId(e.target()), e.weight().operand as usize))
            .collect();
        out.sort();
        out
    }

    /// True if a value is an output of the graph.
    pub fn is_output(&self, value: Value) -> bool {
        self.outputs.iter().any(|o| o.value == value)
    }

    /// The only user of a value that is not an output, if there is exactly one use.
    pub fn single_user(&self, value: Value) -> Option<NodeId> {
        match self.users(value).as_slice() {
            [(node, _)] if !self.is_output(value) => Some(*node),
            _ => None,
        }
    }

    /// True if a value's node is in the graph and has that many results.
    pub fn contains(&self, value: Value) -> bool {
        self.nodes
            .node_weight(value.node.0)
            .is_some_and(|n| (value.result as usize) < n.results.len())
    }

    /// Symbols in the types of the inputs; the others are sizes that depend on data.
    pub fn input_symbols(&self) -> HashSet<Symbol> {
        let inputs = self.inputs.iter();
        inputs
            .flat_map(|n| &self.nodes[n.0].results)
            .flat_map(|r| r.ty.shape.iter().flat_map(Dim::symbols))
            .collect()
    }

    /// True if a symbol was declared and is in use, or may be.
    pub fn has_symbol(&self, symbol: &Symbol) -> bool {
        self.symbols.contains(symbol)
    }

    /// What is known of a value.
    pub fn info(&self, value: Value) -> &ValueInfo {
        &self.nodes[value.node.0].results[value.result as usize]
    }

    /// Type of a value.
    pub fn ty(&self, value: Value) -> &TensorType {
        &self.info(value).ty
    }

    /// Shape of a value.
    pub fn shape(&self, value: Value) -> &[Dim] {
        &self.ty(value).shape
    }

    /// Elements of a value where they are known as expressions of the sizes.
    pub fn elements(&self, value: Value) -> Option<&[Dim]> {
        self.info(value).elements.as_deref()
    }

    /// The tensor of a constant.
    pub fn constant(&self, value: Value) -> Option<&Arc<Tensor>> {
        match self.op(value.node) {
            Op::Const(c) => Some(&c.tensor),
            _ => None,
        }
    }

    /// The only element of a constant `f32` tensor with one element.
    pub fn scalar_f32(&self, value: Value) -> Option<f32> {
        match self.constant(value)?.as_slice::<f32>()? {
            [x] => Some(*x),
            _ => None,
        }
    }

    /// Whether the sizes of the first result follow from sizes of operands, or from those that operands hold.
    pub fn sizes_are_known(&self, node: NodeId) -> bool {
        self.sizes_found_by(node).is_empty()
    }

    /// The sizes of the first result that neither operands have nor what they hold: they are known when the operator has run.
    pub fn sizes_found_by(&self, node: NodeId) -> HashSet<Symbol> {
        let sizes = self.shape(Value { node, result: 0 });
        let mut found: HashSet<Symbol> = sizes.iter().flat_map(Dim::symbols).collect();
        if found.is_empty() {
            return found;
        }
        for v in self.operands(node).into_iter().flatten() {
            let held = self.elements(v).unwrap_or_default();
            let known = self.shape(v).iter().chain(held).flat_map(Dim::symbols);
            known.for_each(|s| {
                found.remove(&s);
            });
        }
        found
    }

    /// What inference says of the results of a node, whatever is stated. Sizes that only data tells have symbols that no graph
    /// has; inputs are what they are.
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub fn inferred(&self, node: NodeId) -> Result<Vec<ValueInfo>, IrError> {
        let op = self.op(node);
        if let Op::Input(_) = op {
            return Ok(self.nodes[node.0].results.clone());
        }
        let operands = self.operands(node);
        let infos: Vec<Option<&ValueInfo>> = (operands.into_iter())
            .map(|v| v.map(|v| self.info(v)))
            .collect();
        let mut n_fresh = 0;
        infer(op, &infos, self.n_results(node), &mut || {
            n_fresh += 1;
            Dim::symbol(&n_fresh.to_string())
        })
    }

    /// Writes `by` wherever a size is `symbol`, which is no symbol of an input; if an expression becomes too large, nothing is
    /// written and the answer is false.
    ///
    /// Whatever finds `symbol` when it has run must be able to tell the symbols of `by`.
    pub fn substitute(&mut self, symbol: &Symbol, by: &Dim) -> bool {
        let has = |dims: &[Dim]| dims.iter().any(|d| d.symbols().contains(symbol));
        let written = |dims: &[Dim]| {
            let each = dims.iter().map(|d| d.substitute(symbol, by));
            each.collect::<Option<Vec<Dim>>>()
        };
        let write = |node: &Node| {
            let mut node = node.clone();
            if let Op::Dims(dims) | Op::View(dims) | Op::Broadcast(dims) = &mut node.op {
                *dims = written(dims)?;
            }
            for result in &mut node.results {
                result.ty.shape = written(&result.ty.shape)?;
                if let Some(elements) = &mut result.elements {
                    *elements = written(elements)?.into();
                }
            }
            Some(node)
        };
        let mut nodes = Vec::new();
        for id in self.nodes.node_indices() {
            let node = &self.nodes[id];
            let in_op = match &node.op {
                Op::Dims(dims) | Op::View(dims) | Op::Broadcast(dims) => has(dims),
                _ => false,
            };
            let in_result =
                |r: &ValueInfo| has(&r.ty.shape) || r.elements.as_deref().is_some_and(has);
            if in_op || node.results.iter().any(in_result) {
                match write(node) {
                    Some(node) => nodes.push((id, node)),
                    None => return false,
                }
            }
        }
        for (id, node) in nodes {
            self.nodes[id] = node;
        }
        true
    }

    /// Notes that these are the elements of a value, if it may have known ones.
    pub fn learn_elements(&mut self, value: Value, elements: &[Dim]) {
        let info = &mut self.nodes[value.node.0].results[value.result as usize];
        let n = info
            .ty
            .shape
            .iter()
            .try_fold(1i64, |n, d| n.checked_mul(d.as_fixed()?));
        if !info.ty.dtype.is_float()
            && elements.len() <= ValueInfo::MAX_ELEMENTS
            && n == i64::try_from(elements.len()).ok()
        {
            info.elements = Some(elements.into());
        }
    }

    /// Nodes that the outputs need, operands before users: a post-order walk from the outputs, operands left to right,
    /// after all inputs in declared order.
    pub fn order(&self) -> Vec<NodeId> {
        let mut order: Vec<NodeId> = self.inputs.clone();
        let mut seen: HashSet<NodeId> = order.iter().copied().collect();
        for output in &self.outputs {
            let mut stack = vec![(output.value.node, false)];
            while let Some((node, expanded)) = stack.pop() {
                if expanded {
                    order.push(node);
                } else if seen.insert(node) {
                    stack.push((node, true));
                    for v in self.operands(node).into_iter().rev().flatten() {
                        if !seen.contains(&v.node) {
                            stack.push((v.node, false));
                        }
                    }
                }
            }
        }
        order
    }

    // Editing.

    /// Makes every user of `from`, graph outputs included, use `to`.
    ///
    /// Sizes that depend on data are new symbols wherever they are inferred: a `to` that nothing uses yet takes those of `from`.
    ///
    /// # Errors
    /// [`IrError::Replace`] if element types or shapes differ otherwise; layouts may.
    pub fn replace_all_uses(&mut self, from: Value, to: Value) -> Result<(), IrError> {
        if from == to {
            return Ok(());
        }
        if !self.ty(from).same_value(self.ty(to)) && self.users(to).is_empty() {
            let bound = self.input_symbols();
            if types_fit(self.ty(from), self.ty(to), &|s| bound.contains(s)) {
                let shape = self.ty(from).shape.clone();
                self.nodes[to.node.0].results[to.result as usize].ty.shape = shape;
            }
        }
        if !self.ty(from).same_value(self.ty(to)) {
            return Err(IrError::Replace {
                from: self.ty(from).to_string(),
                to: self.ty(to).to_string(),
            });
        }
        for (node, operand) in self.users(from) {
            // A rewrite often wraps the old value: `to` computed from `from` keeps its own use of it.
            if !self.depends_on(to.node, node) {
                self.set_operand(node, operand, Some(to))?;
            }
        }
        for o in &mut self.outputs {
            if o.value == from {
                o.value = to;
            }
        }
        Ok(())
    }

    /// Sets one operand. Types of the node's results are kept: the new operand must be of the old one's type, or the node
    /// must be given its new layout or type by the caller.
    ///
    /// # Errors
    /// [`IrError::Invariant`] if it would close a cycle or the position does not exist.
    pub fn set_operand(
        &mut self,
        node: NodeId,
        operand: usize,
        value: Option<Value>,
    ) -> Result<(), IrError> {
        let invalid = |message: &str| IrError::Invariant {
            node: self.op(node).text().to_owned(),
            message: message.to_owned(),
        };
        if operand >= self.nodes[node.0].n_operands as usize {
            return Err(invalid(&format!("has no operand {operand}")));
        }
        if value.is_some_and(|v| self.depends_on(v.node, node)) {
            return Err(invalid("would use its own result"));
        }
        let old: Vec<_> = self
            .nodes
            .edges_directed(node.0, Direction::Incoming)
            .filter(|e| e.weight().operand as usize == operand)
            .map(|e| e.id())
            .collect();
        for e in old {
            self.nodes.remove_edge(e);
        }
        if let Some(v) = value {
            self.nodes.add_edge(
                v.node.0,
                node.0,
                Use {
                    result: v.result,
                    operand: operand as u32,
                },
            );
        }
        Ok(())
    }

    /// Makes an output name another value.
    pub fn set_output(&mut self, index: usize, value: Value) {
        self.outputs[index].value = value;
    }

    /// Sets the layout of a value.
    pub fn set_layout(&mut self, value: Value, layout: Layout) {
        self.nodes[value.node.0].results[value.result as usize]
            .ty
            .layout = layout;
    }

    /// Removes every node that no output needs; inputs stay. Ids of removed nodes become invalid. True if any was removed.
    pub fn sweep(&mut self) -> bool {
        let live: HashSet<NodeId> = self.order().into_iter().collect();
        let before = self.nodes.node_count();
        self.nodes.retain_nodes(|_, i| live.contains(&NodeId(i)));
        self.nodes.node_count() != before
    }

    /// Removes the inputs that are not to be kept, which nothing may use, and forgets symbols that no node has.
    pub fn retain_inputs(&mut self, keep: impl Fn(usize) -> bool) {
        let mut index = 0;
        let nodes = &mut self.nodes;
        self.inputs.retain(|node| {
            index += 1;
            let kept = keep(index - 1);
            if !kept {
                nodes.remove_node(node.0);
            }
            kept
        });
        self.symbols = self.used_symbols();
    }

    /// Every symbol that some node has in its types or sizes.
    pub fn used_symbols(&self) -> BTreeSet<Symbol> {
        let sizes = |node: &Node| {
            let own = match &node.op {
                Op::Dims(dims) | Op::View(dims) | Op::Broadcast(dims) => dims.as_slice(),
                _ => &[],
            };
            let known = node.results.iter().flat_map(|r| {
                let elements = r.elements.as_deref().unwrap_or_default();
                r.ty.shape.iter().chain(elements)
            });
            own.iter()
                .chain(known)
                .flat_map(Dim::symbols)
                .collect::<Vec<_>>()
        };
        self.nodes.node_weights().flat_map(sizes).collect()
    }

    /// Every node in id order, those that no output needs included.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.nodes.node_indices().map(NodeId).collect()
    }

    /// Dense numbers of all values in canonical order, for printing.
    pub fn numbering(&self) -> HashMap<Value, usize> {
        let mut numbers = HashMap::new();
        for node in self.order() {
            for result in 0..self.n_results(node) as u32 {
                numbers.insert(Value { node, result }, numbers.len());
            }
        }
        numbers
    }

    /// True if `node` is `other` or needs its results.
    fn depends_on(&self, node: NodeId, other: NodeId) -> bool {
        let mut stack = vec![node];
        let mut seen = HashSet::new();
        while let Some(n) = stack.pop() {
            if n == other {
                return true;
            }
            if seen.insert(n) {
                stack.extend(
                    self.nodes
                        .neighbors_directed(n.0, Direction::Incoming)
                        .map(NodeId),
                );
            }
        }
        false
    }

    fn insert(&mut self, op: Op, operands: &[Option<Value>], results: Vec<ValueInfo>) -> NodeId {
        let node = Node {
            op,
            n_operands: operands.len() as u32,
            results,
            name: String::new(),
        };
        let id = self.nodes.add_node(node);
        for (i, v) in operands.iter().enumerate() {
            if let Some(v) = v {
                self.nodes.add_edge(
                    v.node.0,
                    id,
                    Use {
                        result: v.result,
                        operand: i as u32,
                    },
                );
            }
        }
        NodeId(id)
    }

    fn declare_symbols_of(&mut self, ty: &TensorType) {
        for d in &ty.shape {
            self.symbols.extend(d.symbols());
        }
    }
}
