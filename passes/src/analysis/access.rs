//! Affine access analysis: what an element of a value is, as an expression of the element's indices.
//!
//! Exporters write masks and position arithmetic with `Range`, `Unsqueeze`, `Expand`, `Gather` and comparisons. Read
//! backwards from one element, most of it is index arithmetic that cancels:
//!
//! ```text
//! gather(flatten(mask[b, s]), i0·s + i3)   is   mask[i0, i3]
//! i3 >= 0                                  is   true
//! where(mask[i0, i3], 0, -10000)           stays, a scalar function of one read
//! ```
//!
//! [`describe`] never fails: what it does not understand is a read of that value itself. Work is bounded by a budget, so
//! that a graph of shared operands does not unfold without end.

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attributes, DType, Operator, Tensor, TensorView, evaluate, with_elements};

use super::affine::Affine;
use crate::matcher::{axis_of, ints, normalize_axis, permutation, tensor_ints};
use crate::quantized::{dequantize, quantize};

/// What an element of a value is.
#[derive(Clone, Debug)]
pub enum Expr {
    /// An integer, affine in the indices.
    Affine(Affine),
    /// A tensor of rank 0.
    Const(Tensor),
    /// An element of another value.
    Read { tensor: Value, index: Vec<Affine> },
    /// An elementwise operator of other expressions.
    Apply {
        op: Operator,
        attributes: Attributes,
        dtype: DType,
        operands: Vec<(Expr, DType)>,
    },
}

/// Nodes looked at before the analysis gives up and reads.
const BUDGET: usize = 2000;
/// Longest chain of operands followed.
const MAX_DEPTH: usize = 200;
/// Integer constants up to this many elements are tried as arithmetic progressions.
const MAX_PROGRESSION: usize = 1 << 16;

/// The element of `value` at indices `i0, i1, ..`, as an expression of them.
pub fn describe(graph: &Graph, value: Value) -> Expr {
    start(graph, value, Through::Arithmetic)
}

/// Where the elements of `value` are copied from: the value that computes them and the indices of the element in it.
pub fn origin(graph: &Graph, value: Value) -> Option<(Value, Vec<Affine>)> {
    match start(graph, value, Through::Copies) {
        Expr::Read { tensor, index } => Some((tensor, index)),
        Expr::Affine(_) | Expr::Const(_) | Expr::Apply { .. } => None,
    }
}

fn start(graph: &Graph, value: Value, through: Through) -> Expr {
    let shape = graph.shape(value);
    let mut analysis = Analysis {
        graph,
        extents: shape,
        through,
        budget: BUDGET,
        depth: 0,
    };
    let one = Dim::fixed(1);
    let index: Vec<Affine> = shape
        .iter()
        .enumerate()
        .map(|(axis, size)| {
            if *size == one {
                Affine::zero()
            } else {
                Affine::index(axis)
            }
        })
        .collect();
    analysis.element(value, &index)
}

impl Expr {
    /// The truth value, if it is known.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Expr::Const(t) => t.as_slice::<bool>()?.first().copied(),
            _ => None,
        }
    }

    /// Every read in the expression with whether all it goes into at once is a test for zero, left to right.
    pub fn reads(&self) -> Vec<Read<'_>> {
        let mut reads = Vec::new();
        self.collect_reads(false, &mut reads);
        reads
    }

    fn collect_reads<'a>(&'a self, tested: bool, out: &mut Vec<Read<'a>>) {
        match self {
            Expr::Affine(_) | Expr::Const(_) => {}
            Expr::Read { tensor, index } => out.push(Read {
                tensor: *tensor,
                index,
                only_zero_matters: tested,
            }),
            Expr::Apply {
                op,
                dtype,
                operands,
                ..
            } => {
                let zero = |i: usize| operands.get(i).is_some_and(|(e, _)| e.is_zero());
                let tests = match op {
                    Operator::Cast => *dtype == DType::Bool,
                    Operator::Equal => zero(0) || zero(1),
                    _ => false,
                };
                for (e, dtype) in operands {
                    e.collect_reads(tests || *dtype == DType::Bool, out);
                }
            }
        }
    }

    fn is_zero(&self) -> bool {
        match self {
            Expr::Affine(a) => a.as_fixed() == Some(0),
            Expr::Const(t) => {
                tensor_ints(t).is_some_and(|v| v == [0]) || crate::matcher::splat(t) == Some(0.0)
            }
            _ => false,
        }
    }

    /// The value when every read gives `read`: a tensor of rank 0. `None` if indices or sizes matter, or it has none.
    pub fn evaluate(&self, dtype: DType, read: &dyn Fn(Value) -> Option<Tensor>) -> Option<Tensor> {
        match self {
            Expr::Const(t) => Some(t.clone()),
            Expr::Affine(a) => integer(a.as_fixed()?, dtype),
            Expr::Read { tensor, .. } => read(*tensor),
            Expr::Apply {
                op,
                attributes,
                operands,
                ..
            } => {
                let operands: Vec<Tensor> = operands
                    .iter()
                    .map(|(e, dtype)| e.evaluate(*dtype, read))
                    .collect::<Option<_>>()?;
                let views: Vec<Option<TensorView<'_>>> =
                    operands.iter().map(|t| Some(t.view())).collect();
                let mut results = evaluate(*op, attributes, &views, 1).ok()?;
                results.pop()
            }
        }
    }
}

/// One read of an expression.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    pub tensor: Value,
    pub index: &'a [Affine],
    /// The expression depends on no more than whether the element is zero.
    pub only_zero_matters: bool,
}

/// A tensor of rank 0 that holds `value` in an integer, boolean or floating-point type.
pub fn integer(value: i64, dtype: DType) -> Option<Tensor> {
    let to = Attributes::new().with("to", lancet_ops::Attribute::Str(dtype.name().to_owned()));
    let exact = Tensor::scalar(value);
    let mut results = evaluate(Operator::Cast, &to, &[Some(exact.view())], 1).ok()?;
    results.pop()
}

struct Analysis<'g> {
    graph: &'g Graph,
    /// Sizes of the root.
    extents: &'g [Dim],
    through: Through,
    budget: usize,
    depth: usize,
}

/// What the analysis looks through.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Through {
    /// Elementwise operators too.
    Arithmetic,
    /// Only what copies elements; the indices by which it does are arithmetic.
    Copies,
}

impl Analysis<'_> {
    /// The element of `value` at `index`.
    fn element(&mut self, value: Value, index: &[Affine]) -> Expr {
        let read = || Expr::Read {
            tensor: value,
            index: index.to_vec(),
        };
        if self.budget == 0 || MAX_DEPTH < self.depth {
            return read();
        }
        self.budget -= 1;
        self.depth += 1;
        let found = self
            .known(value, index)
            .or_else(|| self.through(value, index));
        self.depth -= 1;
        found.unwrap_or_else(read)
    }

    /// The element as an affine integer.
    fn affine(&mut self, value: Value, index: &[Affine]) -> Option<Affine> {
        let through = std::mem::replace(&mut self.through, Through::Arithmetic);
        let element = self.element(value, index);
        self.through = through;
        match element {
            Expr::Affine(a) => Some(a),
            Expr::Const(t) => Some(Affine::constant(Dim::fixed(*tensor_ints(&t)?.first()?))),
            Expr::Read { .. } | Expr::Apply { .. } => None,
        }
    }

    /// An element that type inference knows, or that of a constant.
    fn known(&mut self, value: Value, index: &[Affine]) -> Option<Expr> {
        if let Some(elements) = self.graph.elements(value) {
            let at = match elements {
                [only] => Some(only),
                _ => self
                    .position(value, index)
                    .and_then(|p| elements.get(usize::try_from(p).ok()?)),
            };
            if let Some(d) = at {
                return Some(match (self.graph.ty(value).dtype, d.as_fixed()) {
                    (DType::Bool, Some(b)) => Expr::Const(Tensor::scalar(b != 0)),
                    _ => Expr::Affine(Affine::constant(d.clone())),
                });
            }
        }
        let tensor = self.graph.constant(value)?;
        let at = match self.position(value, index) {
            Some(p) => usize::try_from(p).ok()?,
            None if all_alike(tensor) => 0,
            None => return progression(tensor, index).map(Expr::Affine),
        };
        let scalar = pick(tensor, at)?;
        Some(match tensor_ints(&scalar).as_deref() {
            Some([v]) if tensor.dtype().is_integer() => {
                Expr::Affine(Affine::constant(Dim::fixed(*v)))
            }
            _ => Expr::Const(scalar),
        })
    }

    /// The row-major position of fixed indices in a value of fixed sizes.
    fn position(&self, value: Value, index: &[Affine]) -> Option<i64> {
        Affine::ravel(index, self.graph.shape(value))?.as_fixed()
    }

    /// The element in terms of the operands' elements.
    fn through(&mut self, value: Value, index: &[Affine]) -> Option<Expr> {
        let graph = self.graph;
        let node = value.node;
        let x = graph.operand(node, 0);
        match graph.op(node) {
            Op::Input(_) | Op::Const(_) | Op::Dims(_) | Op::If { .. } | Op::Loop { .. } => None,
            Op::Convert(_) => Some(self.element(x?, index)),
            Op::View(_) => self.reshaped(value, x?, index),
            Op::Broadcast(_) => Some(self.broadcast(x?, index)),
            Op::Apply(..) if value.result != 0 => None,
            Op::Apply(operator, attributes) => match operator {
                Operator::Identity => Some(self.element(x?, index)),
                Operator::Reshape | Operator::Flatten | Operator::Squeeze | Operator::Unsqueeze => {
                    self.reshaped(value, x?, index)
                }
                Operator::Expand => Some(self.broadcast(x?, index)),
                Operator::Transpose => {
                    let perm = permutation(graph, node)?;
                    let mut from = vec![Affine::zero(); perm.len()];
                    for (i, &p) in index.iter().zip(&perm) {
                        *from.get_mut(p)? = i.clone();
                    }
                    Some(self.element(x?, &from))
                }
                Operator::Range => {
                    let start = self.affine(x?, &[])?;
                    let step = self.affine(graph.operand(node, 2)?, &[])?;
                    let from_start = index.first()?.mul(&step)?;
                    Some(Expr::Affine(start.add(&from_start)?))
                }
                Operator::ConstantOfShape => match attributes.tensor("value") {
                    None => Some(Expr::Const(Tensor::scalar(0.0f32))),
                    Some(t) => Some(self.scalar((**t).clone().reshaped(Vec::new())?)),
                },
                Operator::Concat => self.concat(node, index),
                Operator::Slice => self.slice(node, index),
                Operator::Gather => self.gather(node, index),
                Operator::GatherND => self.gather_nd(node, index),
                Operator::QuantizeLinear | Operator::DequantizeLinear
                    if self.through == Through::Arithmetic && is_alike(self.graph, value) =>
                {
                    self.elementwise(node, index)
                }
                _ if self.through == Through::Arithmetic && is_elementwise(*operator) => {
                    self.elementwise(node, index)
                }
                _ => None,
            },
        }
    }

    /// A constant of rank 0, as an affine form if it is an integer.
    fn scalar(&self, t: Tensor) -> Expr {
        match tensor_ints(&t).as_deref() {
            Some([v]) if t.dtype().is_integer() => Expr::Affine(Affine::constant(Dim::fixed(*v))),
            _ => Expr::Const(t),
        }
    }

    /// Through an operation that keeps the order of elements.
    fn reshaped(&mut self, value: Value, x: Value, index: &[Affine]) -> Option<Expr> {
        let (from, to) = (self.graph.shape(x), self.graph.shape(value));
        let index = reindex(index, to, from).or_else(|| {
            let flat = Affine::ravel(index, to)?;
            flat.unravel(from, self.extents)
        })?;
        Some(self.element(x, &index))
    }

    /// Through a broadcast: leading axes go, axes of size 1 are read at 0.
    fn broadcast(&mut self, x: Value, index: &[Affine]) -> Expr {
        let shape = self.graph.shape(x);
        let skipped = index.len().saturating_sub(shape.len());
        let index: Vec<Affine> = index[skipped..]
            .iter()
            .zip(shape)
            .map(|(i, d)| {
                if *d == Dim::fixed(1) {
                    Affine::zero()
                } else {
                    i.clone()
                }
            })
            .collect();
        self.element(x, &index)
    }

    fn concat(&mut self, node: NodeId, index: &[Affine]) -> Option<Expr> {
        let axis = axis_of(self.graph, node, index.len())?;
        let mut at = index[axis].as_fixed()?;
        for x in self.graph.operands(node).into_iter().flatten() {
            let size = self.graph.shape(x)[axis].as_fixed()?;
            if at < size {
                let mut index = index.to_vec();
                index[axis] = Affine::constant(Dim::fixed(at));
                return Some(self.element(x, &index));
            }
            at -= size;
        }
        None
    }

    /// Through a slice whose bounds count from the front.
    fn slice(&mut self, node: NodeId, index: &[Affine]) -> Option<Expr> {
        let graph = self.graph;
        let x = graph.operand(node, 0)?;
        let starts = graph.elements(graph.operand(node, 1)?)?.to_vec();
        let axes = match graph.operand(node, 3) {
            Some(axes) => ints(graph, axes)?,
            None => (0..).take(starts.len()).collect(),
        };
        let steps = match graph.operand(node, 4) {
            Some(steps) => ints(graph, steps)?,
            None => vec![1; axes.len()],
        };
        let mut index = index.to_vec();
        let rank = index.len();
        for ((start, axis), step) in starts.iter().zip(axes).zip(steps) {
            let axis = normalize_axis(axis, rank)?;
            // A start beyond the end gives no elements, so that nothing is said about any.
            if step < 1 || !start.is_non_negative() {
                return None;
            }
            index[axis] = index[axis]
                .scale(&Dim::fixed(step))?
                .add(&Affine::constant(start.clone()))?;
        }
        Some(self.element(x, &index))
    }

    /// Through a gather by indices that are affine and not negative.
    fn gather(&mut self, node: NodeId, index: &[Affine]) -> Option<Expr> {
        let graph = self.graph;
        let (x, indices) = (graph.operand(node, 0)?, graph.operand(node, 1)?);
        let axis = axis_of(graph, node, graph.ty(x).rank())?;
        let n = graph.ty(indices).rank();
        let at = self.affine(indices, index.get(axis..axis + n)?)?;
        let at = self.in_bounds(at, &graph.shape(x)[axis])?;
        let from = [&index[..axis], &[at], &index[axis + n..]].concat();
        Some(self.element(x, &from))
    }

    fn gather_nd(&mut self, node: NodeId, index: &[Affine]) -> Option<Expr> {
        let graph = self.graph;
        if graph.attributes(node).int_or("batch_dims", 0) != 0 {
            return None;
        }
        let (x, indices) = (graph.operand(node, 0)?, graph.operand(node, 1)?);
        let (depth, outer) = graph.shape(indices).split_last()?;
        let depth = depth.as_fixed().filter(|&d| d <= 8)?;
        let mut from = Vec::new();
        for j in 0..depth {
            let mut row = index.get(..outer.len())?.to_vec();
            row.push(Affine::constant(Dim::fixed(j)));
            let at = self.affine(indices, &row)?;
            let size = graph.shape(x).get(usize::try_from(j).ok()?)?;
            from.push(self.in_bounds(at, size)?);
        }
        from.extend_from_slice(&index[outer.len()..]);
        (from.len() == graph.ty(x).rank()).then(|| self.element(x, &from))
    }

    /// An index of a gather that is known to count from the front. Beyond the end, the gather itself is an error.
    fn in_bounds(&self, at: Affine, size: &Dim) -> Option<Affine> {
        if let Some(negative) = at.as_fixed().filter(|&v| v < 0) {
            return Some(Affine::constant(size.add(&Dim::fixed(negative))?));
        }
        at.range(self.extents)?.0.is_non_negative().then_some(at)
    }

    fn elementwise(&mut self, node: NodeId, index: &[Affine]) -> Option<Expr> {
        let graph = self.graph;
        let Op::Apply(op, attributes) = graph.op(node) else {
            return None;
        };
        let values: Option<Vec<Value>> = graph.operands(node).into_iter().collect();
        let values = values?;
        let operands: Vec<(Expr, DType)> = values
            .iter()
            .map(|&v| (self.broadcast(v, index), graph.ty(v).dtype))
            .collect();
        let dtype = graph.ty(crate::matcher::result(node)).dtype;
        if let Some(simple) = self.simplify(*op, dtype, &operands) {
            return Some(simple);
        }
        let expr = Expr::Apply {
            op: *op,
            attributes: attributes.clone(),
            dtype,
            operands,
        };
        // A function of constants is a constant.
        match expr.evaluate(dtype, &|_| None) {
            Some(t) => Some(self.scalar(t)),
            None => Some(expr),
        }
    }

    /// Index arithmetic and truth values that are decided for all indices.
    fn simplify(&self, op: Operator, dtype: DType, operands: &[(Expr, DType)]) -> Option<Expr> {
        let truth = |b: bool| Some(Expr::Const(Tensor::scalar(b)));
        match (op, operands) {
            (Operator::Cast, [(Expr::Affine(a), from)]) => {
                // Sizes and indices fit 32 bits; smaller types may wrap.
                let wide = |d: DType| d.is_integer() && 4 <= d.size_bytes();
                (wide(dtype) && wide(*from)).then(|| Expr::Affine(a.clone()))
            }
            (Operator::Cast, [(e, from)]) if *from == dtype => Some(e.clone()),
            (Operator::Neg, [(Expr::Affine(a), _)]) => a.scale(&Dim::fixed(-1)).map(Expr::Affine),
            (Operator::And, [(a, _), (b, _)]) => match (a.as_bool(), b.as_bool()) {
                (Some(false), _) | (_, Some(false)) => truth(false),
                (Some(true), _) => Some(b.clone()),
                (_, Some(true)) => Some(a.clone()),
                (None, None) => None,
            },
            (Operator::Or, [(a, _), (b, _)]) => match (a.as_bool(), b.as_bool()) {
                (Some(true), _) | (_, Some(true)) => truth(true),
                (Some(false), _) => Some(b.clone()),
                (_, Some(false)) => Some(a.clone()),
                (None, None) => None,
            },
            (Operator::Where, [(c, _), (a, _), (b, _)]) => match c.as_bool() {
                Some(true) => Some(a.clone()),
                Some(false) => Some(b.clone()),
                None => None,
            },
            (_, [(Expr::Affine(a), _), (Expr::Affine(b), _)]) => self.integers(op, a, b),
            _ => None,
        }
    }

    /// Arithmetic and comparison of two affine integers.
    fn integers(&self, op: Operator, a: &Affine, b: &Affine) -> Option<Expr> {
        let truth = |b: bool| Some(Expr::Const(Tensor::scalar(b)));
        let difference = a.sub(b)?;
        let range = difference.range(self.extents);
        let never_negative = range
            .as_ref()
            .is_some_and(|(least, _)| least.is_non_negative());
        let below = |(_, most): &(Dim, Dim)| most.scale(-1).is_some_and(|m| m.is_positive());
        let negative = range.as_ref().is_some_and(below);
        let never_positive = range
            .as_ref()
            .is_some_and(|(_, most)| most.scale(-1).is_some_and(|m| m.is_non_negative()));
        let positive = range.as_ref().is_some_and(|(least, _)| least.is_positive());
        match op {
            Operator::Add => a.add(b).map(Expr::Affine),
            Operator::Sub => Some(Expr::Affine(difference)),
            Operator::Mul => a.mul(b).map(Expr::Affine),
            Operator::Max if never_negative => Some(Expr::Affine(a.clone())),
            Operator::Max if never_positive => Some(Expr::Affine(b.clone())),
            Operator::Min if never_negative => Some(Expr::Affine(b.clone())),
            Operator::Min if never_positive => Some(Expr::Affine(a.clone())),
            Operator::GreaterOrEqual if never_negative => truth(true),
            Operator::GreaterOrEqual if negative => truth(false),
            Operator::Less if never_negative => truth(false),
            Operator::Less if negative => truth(true),
            Operator::LessOrEqual if never_positive => truth(true),
            Operator::LessOrEqual if positive => truth(false),
            Operator::Greater if never_positive => truth(false),
            Operator::Greater if positive => truth(true),
            Operator::Equal if difference == Affine::zero() => truth(true),
            Operator::Equal if negative || positive => truth(false),
            _ => None,
        }
    }
}

/// Indices under another shape that differs in dimensions of size 1 alone.
fn reindex(index: &[Affine], to: &[Dim], from: &[Dim]) -> Option<Vec<Affine>> {
    let one = Dim::fixed(1);
    let mut long = index.iter().zip(to).filter(|(_, d)| **d != one);
    let mut out = Vec::with_capacity(from.len());
    for size in from {
        if *size == one {
            out.push(Affine::zero());
            continue;
        }
        let (i, d) = long.next()?;
        if d != size {
            return None;
        }
        out.push(i.clone());
    }
    long.next().is_none().then_some(out)
}

/// Whether every element of a tensor equals the first; not of an empty one.
fn all_alike(tensor: &Tensor) -> bool {
    // Signed zeros compare equal; they are the same to every mask.
    with_elements!(tensor.data().view(), v => v.first().is_some_and(|f| v.iter().all(|x| x == f)))
}

/// One element as a tensor of rank 0.
fn pick(tensor: &Tensor, at: usize) -> Option<Tensor> {
    with_elements!(tensor.data().view(), v => v.get(at).map(|&x| Tensor::scalar(x)))
}

/// An integer constant as an affine form of the indices into it.
fn progression(tensor: &Tensor, index: &[Affine]) -> Option<Affine> {
    if !tensor.dtype().is_integer() || MAX_PROGRESSION < tensor.len() {
        return None;
    }
    let elements = tensor_ints(tensor)?;
    let first = *elements.first()?;
    let shape = tensor.shape();
    let mut steps = vec![0i64; shape.len()];
    let mut stride = 1usize;
    for (step, &size) in steps.iter_mut().zip(shape).rev() {
        if 1 < size {
            *step = elements.get(stride)?.checked_sub(first)?;
        }
        stride *= size;
    }
    for (position, &x) in elements.iter().enumerate() {
        let mut rest = position;
        let mut expected = first;
        for (&step, &size) in steps.iter().zip(shape).rev() {
            let i = i64::try_from(rest % size).ok()?;
            expected = expected.checked_add(step.checked_mul(i)?)?;
            rest /= size;
        }
        if expected != x {
            return None;
        }
    }
    let mut sum = Affine::constant(Dim::fixed(first));
    for (i, step) in index.iter().zip(steps) {
        sum = sum.add(&i.scale(&Dim::fixed(step))?)?;
    }
    Some(sum)
}

/// Whether all elements are quantized, or dequantized, alike.
fn is_alike(graph: &Graph, value: Value) -> bool {
    quantize(graph, value)
        .or_else(|| dequantize(graph, value))
        .is_some()
}

/// Whether each element of the result depends on the elements of the operands at the same place, after broadcasting.
pub(crate) fn is_elementwise(operator: Operator) -> bool {
    matches!(
        operator,
        Operator::Abs
            | Operator::Neg
            | Operator::Not
            | Operator::Sign
            | Operator::Cast
            | Operator::Add
            | Operator::Sub
            | Operator::Mul
            | Operator::Div
            | Operator::Pow
            | Operator::Equal
            | Operator::Less
            | Operator::LessOrEqual
            | Operator::Greater
            | Operator::GreaterOrEqual
            | Operator::And
            | Operator::Or
            | Operator::Xor
            | Operator::Min
            | Operator::Max
            | Operator::Mod
            | Operator::Where
            | Operator::Clip
    )
}
