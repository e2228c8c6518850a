//! Raises attention whose probabilities are another function of scores than softmax to `GeneralizedAttention`.
//!
//! Before:
//! ```ir
//! graph @g(%q: f32[b, s, 4], %k: f32[b, s, 4], %v: f32[b, s, 4], %kept: f32[b, 1, 1, s]) dims(b, s) {
//!   const @five: f32[] = 5.0
//!   const @keys: i64[1] = [-1]
//!   %0 = view %q : f32[b, s, 2, 2]
//!   %1 = transpose %0 {perm = [0, 2, 1, 3]} : f32[b, 2, s, 2]
//!   %2 = view %k : f32[b, s, 2, 2]
//!   %3 = transpose %2 {perm = [0, 2, 3, 1]} : f32[b, 2, 2, s]
//!   %4 = matmul %1, %3 : f32[b, 2, s, s]
//!   %5 = add %4, @five : f32[b, 2, s, s]
//!   %6 = mul %5, %5 : f32[b, 2, s, s]
//!   %7 = mul %6, %kept : f32[b, 2, s, s]
//!   %8 = reduce_sum %7, @keys : f32[b, 2, s, 1]
//!   %9 = div %7, %8 : f32[b, 2, s, s]
//!   %10 = view %v : f32[b, s, 2, 2]
//!   %11 = transpose %10 {perm = [0, 2, 1, 3]} : f32[b, 2, s, 2]
//!   %12 = matmul %9, %11 : f32[b, 2, s, 2]
//!   %13 = transpose %12 {perm = [0, 2, 1, 3]} : f32[b, s, 2, 2]
//!   %14 = view %13 : f32[b, s, 4]
//!   return %14
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%q: f32[b, s, 4], %k: f32[b, s, 4], %v: f32[b, s, 4], %kept: f32[b, 1, 1, s]) dims(b, s) {
//!   %0 = generalized_attention %q, %k, %v, %kept {num_heads = 2, probability = ["div x0 x1"], weight = ["add x0 5.0", "mul v0 v0", "mul v1 x2"]} : f32[b, s, 4]
//!   return %0
//! }
//! ```
//!
//! Identity: functions of each element compose, as in `fuse-elementwise`; the greatest score of a row and the sum of its weights
//! are known when a tile of queries has its scores with all keys. The pass starts at the product with the values and reads
//! backwards, through elementwise functions, one greatest score, one sum and softmax, to one product of two computed values. What
//! does not depend on that product is an operand; of what is broadcast, it is what was broadcast, and functions of that are
//! computed in place. It comes after `raise-attention`, and takes what that leaves: softmax that is multiplied or masked
//! afterwards, polynomials, integer arithmetic, and sigmoids or ReLU without any sum.
//!
//! Preconditions: scores and probabilities of type `f32`, of rank 4, or of rank 3 without operands that differ between heads; what
//! is between used by nothing else; probabilities read elsewhere as in `raise-attention`; types that elementwise bodies hold, at
//! most 64 lines a stage and 12 operands of `f32` or `bool` that broadcast to the scores. Otherwise the pass declines, with a
//! remark where a sum or a greatest score was found.
//!
//! Passes that use what softmax is (weights that sum to 1, a key bias that is the same for all keys) do not see this operator.
//!
//! Numeric effect: reassociates the products alone; every function is the one that the graph has.
//!
//! Source: Li et al., "MPCFormer" (arXiv:2211.01452), section 3; Kim et al., "I-BERT" (arXiv:2101.01321), section 3.5.

use std::collections::{HashMap, HashSet};

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::elementwise::{Argument, Function, Instruction};
use lancet_ops::generalized::{OF_ROW, STAGE_BEFORE, STAGES, stages};
use lancet_ops::{Attribute, Attributes, DType, Operator};

use crate::attention::heads::Heads;
use crate::attention::probabilities::shown;
use crate::fuse_elementwise::{lines, number};
use crate::heads::{Scaling, join, split};
use crate::matcher::{axis_of, binary, is_dtype, reduced_last_axis, result};
use crate::polynomial::is_dead;
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "raise-generalized-attention",
    summary: "turn attention by other functions than softmax into one operator on unsplit heads",
    options: &[],
    new: || Box::new(RaiseGeneralizedAttention),
};

struct RaiseGeneralizedAttention;

/// Nodes between the two products at most.
const MAX_NODES: usize = 96;

/// Operands beside queries, keys and values at most.
const MAX_OTHERS: usize = 12;

impl Pass for RaiseGeneralizedAttention {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let products: Vec<NodeId> = (graph.order().into_iter())
            .filter(|&n| graph.op(n).operator() == Some(Operator::MatMul))
            .collect();
        let mut changed = Changed::No;
        for node in products {
            if is_dead(graph, result(node)) {
                continue;
            }
            let Some(between) = Between::of(graph, node) else {
                continue;
            };
            let raised = match program(graph, &between) {
                Ok(program) => raise(graph, &between, &program, cx)?,
                Err(reason) => Err(reason),
            };
            match raised {
                Ok(()) => changed = Changed::Yes,
                Err(reason) if between.has_row() => cx.missed(graph, node, reason),
                Err(_) => {}
            }
        }
        Ok(changed)
    }
}

/// What stands between the product of queries and keys and that with values.
struct Between {
    output: Value,
    probabilities: Value,
    values: Value,
    queries: Value,
    keys: Value,
    product: Value,
    /// Values that depend on the product, the probabilities among them.
    inside: HashSet<Value>,
    /// The operands of the reductions and the softmax among them, and these.
    greatest: Vec<(Value, Value)>,
    sums: Vec<(Value, Value)>,
    softmaxes: Vec<(Value, Value)>,
}

impl Between {
    /// That before the product `node` with values, if there is a function on the way.
    fn of(graph: &Graph, node: NodeId) -> Option<Between> {
        let (p, values) = binary(graph, result(node), Operator::MatMul)?;
        let rank = graph.ty(p).rank();
        let batched = (3..=4).contains(&rank) && graph.ty(values).rank() == rank;
        if !batched || graph.constant(values).is_some() || !is_dtype(graph, p, DType::F32) {
            return None;
        }
        let mut cone = Cone {
            graph,
            p,
            product: None,
            depends: HashMap::new(),
        };
        let inside = cone.visit(p);
        let product = cone.product.flatten().filter(|&x| inside && x != p)?;
        let (queries, keys) = binary(graph, product, Operator::MatMul)?;
        let inside: HashSet<Value> = (cone.depends.into_iter())
            .filter_map(|(v, depends)| (depends && v != product).then_some(v))
            .collect();
        let of = |op: Operator| {
            let all = inside.iter().filter(|v| graph.operator(**v) == Some(op));
            let all = all.filter_map(|&v| Some((graph.operand(v.node, 0)?, v)));
            all.collect::<Vec<_>>()
        };
        Some(Between {
            output: result(node),
            probabilities: p,
            values,
            queries,
            keys,
            product,
            greatest: of(Operator::ReduceMax),
            sums: of(Operator::ReduceSum),
            softmaxes: of(Operator::Softmax),
            inside,
        })
    }

    /// Whether something stands for a whole row of scores.
    fn has_row(&self) -> bool {
        !(self.greatest.is_empty() && self.sums.is_empty() && self.softmaxes.is_empty())
    }
}

/// What depends on a product of two computed values that has the shape of probabilities.
struct Cone<'g> {
    graph: &'g Graph,
    p: Value,
    /// `Some(None)` if there are several.
    product: Option<Option<Value>>,
    depends: HashMap<Value, bool>,
}

impl Cone<'_> {
    fn visit(&mut self, v: Value) -> bool {
        if let Some(&depends) = self.depends.get(&v) {
            return depends;
        }
        if MAX_NODES < self.depends.len() || v.result != 0 {
            return false;
        }
        self.depends.insert(v, false);
        let depends = if self.is_product(v) {
            let first = self.product.is_none();
            self.product = Some(first.then_some(v));
            true
        } else if passes(self.graph, v) {
            let operands = self.graph.operands(v.node).into_iter().flatten();
            operands.fold(false, |depends, x| self.visit(x) | depends)
        } else {
            false
        };
        self.depends.insert(v, depends);
        depends
    }

    fn is_product(&self, v: Value) -> bool {
        let graph = self.graph;
        let Some((a, b)) = binary(graph, v, Operator::MatMul) else {
            return false;
        };
        let rank = graph.ty(v).rank();
        let batched = [a, b].iter().all(|&x| graph.ty(x).rank() == rank);
        let computed = [a, b].iter().all(|&x| graph.constant(x).is_none());
        batched && computed && graph.shape(v) == graph.shape(self.p)
    }
}

/// Whether a stage computes this value from its operands.
fn passes(graph: &Graph, v: Value) -> bool {
    let reduces = |op| reduced_last_axis(graph, v, op).is_some();
    let rank = graph.ty(v).rank();
    match graph.operator(v) {
        Some(Operator::ReduceMax) => reduces(Operator::ReduceMax),
        Some(Operator::ReduceSum) => reduces(Operator::ReduceSum),
        Some(Operator::Softmax) => axis_of(graph, v.node, rank).map(|a| a + 1) == Some(rank),
        _ => lines(graph, v.node).is_some(),
    }
}

/// The bodies of the stages, and their other operands.
struct Program {
    stages: [Vec<Instruction>; 3],
    others: Vec<Value>,
}

/// Writes what is between the products in stages, or says why it is none.
fn program(graph: &Graph, between: &Between) -> Result<Program, String> {
    let one = |found: &[(Value, Value)], what: &str| match found {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        _ => Err(format!("there are several {what} of a row")),
    };
    let greatest = one(&between.greatest, "greatest scores")?;
    let sum = one(&between.sums, "sums")?;
    let softmax = one(&between.softmaxes, "softmaxes")?;
    if softmax.is_some() && (greatest.is_some() || sum.is_some()) {
        return Err("softmax stands beside a sum or a greatest score".to_owned());
    }
    let is_shared = |v: Value| {
        let outside = |(user, _): (NodeId, usize)| !between.inside.contains(&result(user));
        graph.is_output(v) || graph.users(v).into_iter().any(outside)
    };
    let mut read = (between.inside.iter()).filter(|&&v| v != between.probabilities);
    if is_shared(between.product) || read.any(|&v| is_shared(v)) {
        return Err("something else reads scores or weights".to_owned());
    }
    let scores = greatest.or(softmax).map(|(x, _)| x);
    let mut writer = Writer {
        graph,
        between,
        others: Vec::new(),
        known: HashMap::new(),
        bodies: Default::default(),
        stage: 0,
    };
    let p = between.probabilities;
    let before = Argument::Operand(STAGE_BEFORE);
    let row = Argument::Operand(OF_ROW);
    writer.begin(0, &[(between.product, before)]);
    if let Some(scores) = scores {
        writer.finish(scores)?;
        let mut known = vec![(scores, before)];
        known.extend(greatest.map(|(_, max)| (max, row)));
        writer.begin(1, &known);
    } else {
        writer.begin(1, &[(between.product, before)]);
    }
    if let Some((_, softmax)) = softmax {
        let line = |op, arguments: &[Argument]| Instruction {
            function: Function::Operator(op),
            arguments: arguments.to_vec(),
        };
        let shifted = line(Operator::Sub, &[before, row]);
        let exponential = line(Operator::Exp, &[Argument::Result(0)]);
        writer.bodies[1] = vec![shifted, exponential];
        writer.begin(2, &[(softmax, Argument::Result(0))]);
        writer.bodies[2] = vec![line(Operator::Div, &[before, row])];
        writer.finish(p)?;
    } else if let Some((weights, sum)) = sum {
        writer.finish(weights)?;
        writer.begin(2, &[(weights, before), (sum, row)]);
        writer.finish(p)?;
    } else {
        writer.finish(p)?;
    }
    Ok(Program {
        stages: writer.bodies,
        others: writer.others,
    })
}

/// Writes bodies.
struct Writer<'g> {
    graph: &'g Graph,
    between: &'g Between,
    others: Vec<Value>,
    /// What values are in the stage that is written.
    known: HashMap<Value, Argument>,
    bodies: [Vec<Instruction>; 3],
    stage: usize,
}

impl Writer<'_> {
    /// Goes on to a stage in which these are known.
    fn begin(&mut self, stage: usize, known: &[(Value, Argument)]) {
        self.stage = stage;
        self.known = known.iter().copied().collect();
    }

    /// Makes `v` the result of the stage.
    fn finish(&mut self, v: Value) -> Result<(), String> {
        let found = self.argument(v)?;
        let n = self.bodies[self.stage].len();
        match found {
            Argument::Operand(STAGE_BEFORE) if n == 0 => Ok(()),
            Argument::Result(r) if r + 1 == n => Ok(()),
            _ => Err(format!(
                "{} is no function of its scores",
                STAGES[self.stage]
            )),
        }
    }

    /// A value in the body of this stage.
    fn argument(&mut self, v: Value) -> Result<Argument, String> {
        if let Some(&known) = self.known.get(&v) {
            return Ok(known);
        }
        let graph = self.graph;
        if !self.between.inside.contains(&v) {
            if v == self.between.product {
                return Err(
                    "products are read again behind the greatest score or the sum".to_owned(),
                );
            }
            if let Some(number) = number(graph, v) {
                return Ok(number);
            }
            if !self.is_computed_in_place(v) {
                return self.other(v);
            }
        }
        let text = graph.op(v.node).text();
        let instructions = lines(graph, v.node);
        let instructions =
            instructions.ok_or_else(|| format!("{text} is read where it is not known"))?;
        let operands = graph.operands(v.node);
        let mut arguments = Vec::with_capacity(operands.len());
        for operand in operands {
            arguments.push(operand.map(|x| self.argument(x)).transpose()?);
        }
        let first = self.bodies[self.stage].len();
        for mut instruction in instructions {
            for argument in &mut instruction.arguments {
                *argument = match *argument {
                    Argument::Operand(i) => arguments[i].ok_or("an operand is absent")?,
                    Argument::Result(r) => Argument::Result(first + r),
                    Argument::Number(v) => Argument::Number(v),
                };
            }
            self.bodies[self.stage].push(instruction);
        }
        let last = Argument::Result(self.bodies[self.stage].len() - 1);
        self.known.insert(v, last);
        Ok(last)
    }

    /// Whether `v` is a function of something broadcast, which needs no memory of its own where it is computed in place.
    fn is_computed_in_place(&self, v: Value) -> bool {
        let graph = self.graph;
        let operands: Vec<Value> = graph.operands(v.node).into_iter().flatten().collect();
        let broadcast = |x: &Value| matches!(graph.op(x.node), Op::Broadcast(_));
        let held = |x: &Value| {
            matches!(graph.ty(*x).dtype, DType::F32 | DType::Bool) || number(graph, *x).is_some()
        };
        v.result == 0
            && lines(graph, v.node).is_some()
            && operands.iter().any(broadcast)
            && operands.iter().all(held)
    }

    /// An operand beside queries, keys and values.
    fn other(&mut self, v: Value) -> Result<Argument, String> {
        let graph = self.graph;
        let v = match graph.op(v.node) {
            Op::Broadcast(_) => graph.operand(v.node, 0).unwrap_or(v),
            _ => v,
        };
        let ty = graph.ty(v);
        let shape = graph.shape(self.between.product);
        let broadcasts = (ty.shape.iter().rev().zip(shape.iter().rev()))
            .all(|(d, s)| d == s || d.as_fixed() == Some(1));
        // Of rank 3, the first dimension of scores is that of batch and heads.
        let one = Dim::fixed(1);
        let of_all_heads = shape.len() == 4 || ty.rank() < 3 || ty.shape[0] == one;
        let known = self.others.iter().position(|&o| o == v);
        let i = known.unwrap_or(self.others.len());
        if !broadcasts || ty.rank() > shape.len() || !of_all_heads || i >= MAX_OTHERS {
            return Err(format!("{ty} does not broadcast to the scores"));
        }
        if known.is_none() {
            self.others.push(v);
        }
        Ok(Argument::Operand(OF_ROW + 1 + i))
    }
}

/// Puts the operator in the place of the product with values, or says why it cannot.
fn raise(
    graph: &mut Graph,
    between: &Between,
    program: &Program,
    cx: &mut PassContext<'_>,
) -> Result<Result<(), String>, PassError> {
    let operands = [between.queries, between.keys, between.values];
    let heads = match Heads::of(graph, operands) {
        Ok(heads) => heads,
        Err(reason) => return Ok(Err(reason)),
    };
    let text = program.stages.each_ref().map(|body| {
        let lines = body.iter().map(ToString::to_string);
        lines.collect::<Vec<String>>()
    });
    let dtypes: Vec<DType> = program.others.iter().map(|&v| graph.ty(v).dtype).collect();
    if let Err(reason) = stages(text.each_ref().map(Vec::as_slice), &dtypes) {
        return Ok(Err(reason));
    }
    let p = between.probabilities;
    let others = graph.users(p).into_iter().map(|u| u.0);
    let is_read = graph.is_output(p) || others.into_iter().any(|u| u != between.output.node);
    let read_at = is_read.then_some((p, between.output.node));
    let shown = shown(graph, read_at.as_slice());
    let [_, _, of_v] = &heads.sizes;
    if shown.is_some() && (of_v.features.as_fixed() == Some(0) || graph.ty(p).rank() != 4) {
        return Ok(Err("probabilities of this shape are not shown".to_owned()));
    }
    let axes = heads.axes(graph, operands);
    let mut joined = Vec::with_capacity(3 + program.others.len());
    for ((value, axes), sizes) in operands.into_iter().zip(axes).zip(&heads.sizes) {
        let origin = join(graph, value, axes, sizes, Scaling::Stop);
        let whole = origin.joined(graph, sizes)?;
        joined.push(Some(heads.repeated(graph, whole, sizes)?));
    }
    joined.extend(program.others.iter().copied().map(Some));
    let mut attributes = Attributes::new().with("num_heads", Attribute::Int(heads.n));
    for (name, lines) in STAGES.into_iter().zip(text) {
        if !lines.is_empty() {
            attributes.set(name, Attribute::Strs(lines));
        }
    }
    if let Some(shown) = &shown {
        let name = shown.over_queries.name().to_owned();
        attributes.set("probabilities", Attribute::Str(name));
    }
    let op = Op::Apply(Operator::GeneralizedAttention, attributes);
    let node = graph.add_results(op, &joined, 1 + usize::from(shown.is_some()))?;
    if let Some(shown) = &shown {
        shown.replace(graph, Value { node, result: 1 })?;
    }
    let name = graph.node_name(between.output.node).to_owned();
    graph.set_node_name(node, &name);
    let n_lines: usize = program.stages.iter().map(Vec::len).sum();
    let message = format!(
        "raised to attention with num_heads = {}, by {n_lines} functions of scores{}",
        heads.n,
        shown.as_ref().map_or("", |s| s.describe())
    );
    cx.applied(graph, between.output.node, message);
    let of_result = heads.token_major(graph, between.output);
    split(
        graph,
        result(node),
        between.output,
        of_result,
        &heads.of_output(),
    )?;
    Ok(Ok(()))
}
