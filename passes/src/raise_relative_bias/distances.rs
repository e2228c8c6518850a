//! What depends on query and key by their distance alone, computed for each distance once.

use std::collections::HashMap;
use std::sync::Arc;

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use super::MAX_DEPTH;
use crate::PassError;
use crate::analysis::access::{Expr, describe, is_elementwise};
use crate::analysis::affine::Affine;
use crate::attention::context::keeps_matrices;
use crate::heads::view;
use crate::matcher::{axis_of, permutation, result};
use crate::polynomial::scaled;

/// Longest chain of operands followed from a bias.
const MAX_CHAIN: usize = 100;

/// Values by distance instead of by query and key.
pub(super) struct Distances<'a> {
    queries: Dim,
    keys: Dim,
    known: &'a mut Known,
    /// Operands followed to where the walk is.
    chain: usize,
}

/// What values became, with their axes of queries and keys, and the sizes of these.
pub(super) type Known = HashMap<(Value, Axes, [Dim; 2]), Option<Value>>;

/// The axes of queries and of keys.
type Axes = [usize; 2];

impl<'a> Distances<'a> {
    /// Those of so many queries and keys.
    pub(super) fn new(queries: &Dim, keys: &Dim, known: &'a mut Known) -> Distances<'a> {
        Distances {
            queries: queries.clone(),
            keys: keys.clone(),
            known,
            chain: 0,
        }
    }

    /// A bias of scores as `f32[1 or heads, queries + keys]`, if it is a function of the distance.
    pub(super) fn bias(
        &mut self,
        graph: &mut Graph,
        bias: Value,
    ) -> Result<Option<Value>, PassError> {
        match self.relative(graph, bias)? {
            Some(relative) => self.rows(graph, relative),
            None => Ok(None),
        }
    }

    /// A bias of the scores of `attention` that takes from rows of queries (0) or of keys (1), by distance: the rows as `[batch,
    /// heads, tokens, positions]`, and the index by distance.
    pub(super) fn positions(
        &mut self,
        graph: &mut Graph,
        attention: NodeId,
        bias: Value,
    ) -> Result<Option<(usize, [Value; 2])>, PassError> {
        let heads = graph.attributes(attention).int("num_heads");
        let (Some(found), Some(q), Some(heads)) =
            (gathered(graph, bias), graph.operand(attention, 0), heads)
        else {
            return Ok(None);
        };
        let batch = graph.shape(q)[0].clone();
        let (of_rows, of_index) = (graph.shape(found.rows), graph.shape(found.index).to_vec());
        let rank = of_index.len();
        let [side, queries, keys] = match found.transposed {
            false => [0, rank - 2, rank - 1],
            true => [1, rank - 1, rank - 2],
        };
        let (Some((width, of_tokens)), Some((_, leading))) =
            (of_rows.split_last(), of_index.split_last())
        else {
            return Ok(None);
        };
        if of_tokens != leading || of_index[queries] != self.queries || of_index[keys] != self.keys
        {
            return Ok(None);
        }
        let n_heads = Dim::fixed(heads);
        let apart = match &leading[..leading.len() - 1] {
            [b, h] => *b == batch && *h == n_heads,
            [both] => batch.mul(&n_heads).as_ref() == Some(both),
            _ => false,
        };
        let shape = vec![
            batch,
            n_heads,
            leading[leading.len() - 1].clone(),
            width.clone(),
        ];
        let Some(n_distances) = self.queries.add(&self.keys).filter(|_| apart) else {
            return Ok(None);
        };
        // Batch and heads are alike in the index: it is the same behind them.
        let (mut index, mut axes) = (found.index, [queries, keys]);
        while let Op::Broadcast(_) = graph.op(index.node)
            && let Some(x) = graph.operand(index.node, 0)
        {
            let skipped = graph.ty(index).rank() - graph.ty(x).rank();
            let of_x = axes.map(|a| a.checked_sub(skipped));
            let [Some(i), Some(j)] = of_x else { break };
            if graph.shape(x)[i] != self.queries || graph.shape(x)[j] != self.keys {
                break;
            }
            (index, axes) = (x, [i, j]);
        }
        let Some(index) = self.along(graph, index, axes)? else {
            return Ok(None);
        };
        let own = graph.shape(index);
        let alike = (0..own.len()).all(|a| a == axes[1] || own[a].as_fixed() == Some(1));
        if !alike {
            return Ok(None);
        }
        let mut index = view(graph, index, vec![n_distances])?;
        if graph.ty(index).dtype != DType::I64 {
            let to = Attributes::new().with("to", Attribute::Str(DType::I64.name().to_owned()));
            index = graph.apply(Operator::Cast, to, &[index])?;
        }
        let mut rows = view(graph, found.rows, shape)?;
        if found.factor != 1.0 {
            let factor = Tensor::scalar(found.factor as f32);
            let factor = graph.add_const("factor", Arc::new(factor));
            rows = graph.apply(Operator::Mul, Attributes::new(), &[rows, factor])?;
        }
        Ok(Some((side, [rows, index])))
    }

    /// `relative`, `[1, 1 or heads, 1, distances]` or of a lower rank, as rows.
    pub(super) fn rows(
        &self,
        graph: &mut Graph,
        relative: Value,
    ) -> Result<Option<Value>, PassError> {
        let shape = graph.shape(relative).to_vec();
        let one = Dim::fixed(1);
        let (heads, distances) = match shape.as_slice() {
            [_, d] => (one, d.clone()),
            [h, _, d] => (h.clone(), d.clone()),
            [b, h, _, d] if *b == one => (h.clone(), d.clone()),
            _ => return Ok(None),
        };
        Ok(Some(view(graph, relative, vec![heads, distances])?))
    }

    /// What has queries and keys as its last axes, with queries taken to be one and distances in the place of keys.
    pub(super) fn relative(
        &mut self,
        graph: &mut Graph,
        value: Value,
    ) -> Result<Option<Value>, PassError> {
        let shape = graph.shape(value);
        match *shape {
            [.., ref q, ref k] if *q == self.queries && *k == self.keys => {
                let rank = shape.len();
                self.along(graph, value, [rank - 2, rank - 1])
            }
            _ => Ok(None),
        }
    }

    /// `value` with size 1 along the axis of queries and distances along that of keys, if it depends on both by their
    /// distance alone.
    fn along(
        &mut self,
        graph: &mut Graph,
        value: Value,
        axes: Axes,
    ) -> Result<Option<Value>, PassError> {
        let key = (value, axes, [self.queries.clone(), self.keys.clone()]);
        if let Some(&found) = self.known.get(&key) {
            return Ok(found);
        }
        if MAX_CHAIN < self.chain {
            return Ok(None);
        }
        self.chain += 1;
        let ty = graph.ty(value);
        let (rank, dtype) = (ty.rank(), ty.dtype);
        let found = match describe(graph, value) {
            Expr::Affine(a) => self.leaf(graph, (rank, dtype), &a, axes)?,
            Expr::Apply { op, operands, .. } if is_comparison(op) => match operands.as_slice() {
                // Positions compare as their difference does with zero.
                [(Expr::Affine(a), _), (Expr::Affine(b), _)] => match a.sub(b) {
                    Some(difference) => {
                        let x = self.leaf(graph, (rank, DType::I64), &difference, axes)?;
                        let zero = graph.add_const("", Arc::new(Tensor::scalar(0i64)));
                        x.map(|x| graph.apply(op, Attributes::new(), &[x, zero]))
                            .transpose()?
                    }
                    None => None,
                },
                _ => self.through(graph, value, axes)?,
            },
            _ => self.through(graph, value, axes)?,
        };
        self.chain -= 1;
        self.known.insert(key, found);
        Ok(found)
    }

    /// The integers `c (j - i) + n`, of this rank and type.
    fn leaf(
        &self,
        graph: &mut Graph,
        (rank, dtype): (usize, DType),
        affine: &Affine,
        [queries, keys]: Axes,
    ) -> Result<Option<Value>, PassError> {
        let c = affine.coefficient(keys);
        let factor = c.as_fixed().filter(|&c| c != i64::MIN);
        let Some((factor, offset)) = factor.zip(self.offset(affine, [queries, keys], &c)) else {
            return Ok(None);
        };
        let Some(n_distances) = self.queries.add(&self.keys) else {
            return Ok(None);
        };
        let dims = |graph: &mut Graph, d: &Dim| graph.add(Op::Dims(vec![d.clone()]), &[]);
        let int = |graph: &mut Graph, v: i64| graph.add_const("", Arc::new(Tensor::scalar(v)));
        let n = dims(graph, &n_distances)?;
        let n = view(graph, result(n), Vec::new())?;
        let (zero, one) = (int(graph, 0), int(graph, 1));
        let range = graph.apply(Operator::Range, Attributes::new(), &[zero, n, one])?;
        let keys_dim = dims(graph, &self.keys)?;
        let mut distance = [result(keys_dim), range];
        if factor < 0 {
            distance.reverse();
        }
        let mut x = graph.apply(Operator::Sub, Attributes::new(), &distance)?;
        if factor.abs() != 1 {
            let factor = int(graph, factor.abs());
            x = graph.apply(Operator::Mul, Attributes::new(), &[x, factor])?;
        }
        if offset != Dim::fixed(0) {
            let offset = dims(graph, &offset)?;
            x = graph.apply(Operator::Add, Attributes::new(), &[x, result(offset)])?;
        }
        if dtype != DType::I64 {
            let to = Attributes::new().with("to", Attribute::Str(dtype.name().to_owned()));
            x = graph.apply(Operator::Cast, to, &[x])?;
        }
        let mut shape = vec![Dim::fixed(1); rank];
        shape[keys] = n_distances;
        Ok(Some(view(graph, x, shape)?))
    }

    /// `n` in `c (j - i) + n`, if `affine` is that.
    fn offset(&self, affine: &Affine, [queries, keys]: Axes, c: &Dim) -> Option<Dim> {
        let distance = Affine::index(keys).sub(&Affine::index(queries))?;
        affine.sub(&distance.scale(c)?)?.as_constant().cloned()
    }

    /// Through the operation that makes a value.
    fn through(
        &mut self,
        graph: &mut Graph,
        value: Value,
        axes: Axes,
    ) -> Result<Option<Value>, PassError> {
        let node = value.node;
        if value.result != 0 {
            return Ok(None);
        }
        let Some(n_distances) = self.queries.add(&self.keys) else {
            return Ok(None);
        };
        let by_distance = |shape: &[Dim], [queries, keys]: Axes| {
            let mut shape = shape.to_vec();
            shape[queries] = Dim::fixed(1);
            shape[keys] = n_distances.clone();
            shape
        };
        let op = graph.op(node).clone();
        match &op {
            Op::View(shape) => {
                let Some(x) = graph.operand(node, 0) else {
                    return Ok(None);
                };
                let Some(of_x) = axes_of_operand(shape, axes, graph.shape(x)) else {
                    return Ok(None);
                };
                let Some(x) = self.along(graph, x, of_x)? else {
                    return Ok(None);
                };
                Ok(Some(view(graph, x, by_distance(shape, axes))?))
            }
            Op::Broadcast(shape) => {
                let Some(x) = self.aligned(graph, node, 0, shape.len(), axes)? else {
                    return Ok(None);
                };
                let to = Op::Broadcast(by_distance(shape, axes));
                Ok(Some(result(graph.add(to, &[Some(x)])?)))
            }
            Op::Apply(Operator::Transpose, attributes) => {
                let (Some(perm), Some(x)) = (permutation(graph, node), graph.operand(node, 0))
                else {
                    return Ok(None);
                };
                let Some(x) = self.along(graph, x, axes.map(|a| perm[a]))? else {
                    return Ok(None);
                };
                let transposed = graph.apply(Operator::Transpose, attributes.clone(), &[x])?;
                Ok(Some(transposed))
            }
            Op::Apply(Operator::Gather, attributes) => {
                let (Some(table), Some(indices)) = (graph.operand(node, 0), graph.operand(node, 1))
                else {
                    return Ok(None);
                };
                let Some(axis) = axis_of(graph, node, graph.ty(table).rank()) else {
                    return Ok(None);
                };
                let n = graph.ty(indices).rank();
                if !axes.iter().all(|a| (axis..axis + n).contains(a)) {
                    return Ok(None);
                }
                let Some(indices) = self.along(graph, indices, axes.map(|a| a - axis))? else {
                    return Ok(None);
                };
                let operands = [table, indices];
                Ok(Some(graph.apply(
                    Operator::Gather,
                    attributes.clone(),
                    &operands,
                )?))
            }
            Op::Apply(operator, _) if of_each_element(*operator) => {
                let rank = graph.ty(value).rank();
                let mut operands = Vec::new();
                for i in 0..graph.operands(node).len() {
                    if graph.operand(node, i).is_none() {
                        operands.push(None);
                        continue;
                    }
                    match self.aligned(graph, node, i, rank, axes)? {
                        Some(x) => operands.push(Some(x)),
                        None => return Ok(None),
                    }
                }
                Ok(Some(result(graph.add(op, &operands)?)))
            }
            _ => Ok(None),
        }
    }

    /// Operand `i` of a node that broadcasts it to a result of `rank` with these axes.
    fn aligned(
        &mut self,
        graph: &mut Graph,
        node: NodeId,
        i: usize,
        rank: usize,
        axes: Axes,
    ) -> Result<Option<Value>, PassError> {
        let Some(x) = graph.operand(node, i) else {
            return Ok(None);
        };
        let shape = graph.shape(x);
        let skipped = rank.saturating_sub(shape.len());
        let own = axes.map(|a| {
            a.checked_sub(skipped)
                .filter(|&a| shape[a].as_fixed() != Some(1))
        });
        match own {
            [None, None] => Ok(Some(x)),
            [Some(queries), Some(keys)] => self.along(graph, x, [queries, keys]),
            _ => Ok(None),
        }
    }
}

/// Elements that are taken from rows: `factor · row[index]`.
struct Gathered {
    rows: Value,
    index: Value,
    /// Rows are those of keys, not of queries.
    transposed: bool,
    factor: f64,
}

/// What `value` takes from rows of its last axis, through factors, one transposition of the last two axes, and views of those
/// before them.
fn gathered(graph: &Graph, value: Value) -> Option<Gathered> {
    let mut value = value;
    let (mut transposed, mut factor) = (false, 1.0);
    for _ in 0..MAX_DEPTH {
        let node = value.node;
        if let Some((x, by)) = scaled(graph, value) {
            value = x;
            factor *= by;
            continue;
        }
        let x = graph.operand(node, 0)?;
        if keeps_matrices(graph, value, x) {
            value = x;
            continue;
        }
        let rank = graph.ty(value).rank();
        match graph.op(node) {
            Op::Apply(Operator::Transpose, _) => {
                let mut swapped: Vec<usize> = (0..rank).collect();
                swapped.swap(rank.checked_sub(2)?, rank - 1);
                (permutation(graph, node)? == swapped).then_some(())?;
                transposed = !transposed;
                value = x;
            }
            Op::Apply(Operator::GatherElements, _) => {
                (2 <= rank && axis_of(graph, node, rank)? == rank - 1).then_some(())?;
                return Some(Gathered {
                    rows: x,
                    index: graph.operand(node, 1)?,
                    transposed,
                    factor,
                });
            }
            _ => return None,
        }
    }
    None
}

/// Where the axes of a view are in what it is a view of, if the two differ in dimensions of size 1 alone.
fn axes_of_operand(shape: &[Dim], axes: Axes, from: &[Dim]) -> Option<Axes> {
    let long = |shape: &[Dim]| -> Vec<usize> {
        (0..shape.len())
            .filter(|&a| shape[a].as_fixed() != Some(1))
            .collect()
    };
    let (to_axes, from_axes) = (long(shape), long(from));
    let same = to_axes.len() == from_axes.len()
        && (to_axes.iter().zip(&from_axes)).all(|(&a, &b)| shape[a] == from[b]);
    if !same {
        return None;
    }
    let mut found = [0; 2];
    for (found, axis) in found.iter_mut().zip(axes) {
        *found = from_axes[to_axes.iter().position(|&a| a == axis)?];
    }
    Some(found)
}

fn is_comparison(operator: Operator) -> bool {
    matches!(
        operator,
        Operator::Equal
            | Operator::Less
            | Operator::LessOrEqual
            | Operator::Greater
            | Operator::GreaterOrEqual
    )
}

/// True if each element of the result depends on the elements of the operands at the same place, after broadcasting.
fn of_each_element(operator: Operator) -> bool {
    is_elementwise(operator)
        || matches!(
            operator,
            Operator::Log
                | Operator::Exp
                | Operator::Sqrt
                | Operator::Reciprocal
                | Operator::Floor
                | Operator::Ceil
                | Operator::Round
                | Operator::Tanh
                | Operator::Sigmoid
                | Operator::Relu
                | Operator::Identity
        )
}
