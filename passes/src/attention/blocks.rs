//! Scores computed block by block: concatenated products as one product.
//!
//! ```text
//! [a b₁  a b₂] = a [b₁ b₂]        [a₁ b₁  a₂ b₂] = [a₁ a₂] [b₁ 0 ; 0 b₂]        [a₁ b ; a₂ b] = [a₁ ; a₂] b
//! ```
//!
//! LUKE has other queries for words that meet words than for words that meet entities: four products, concatenated. The
//! zeros make as many features as there are blocks, which costs less than scores in memory. They meet features of the other blocks,
//! which are finite where scores are.

use std::collections::HashMap;

use lancet_ir::{Graph, NodeId, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use crate::PassError;
use crate::matcher::{axis_of, binary, is_dtype, result};

/// Blocks side by side at most.
const MAX_BLOCKS: usize = 4;

/// Nodes between blocks and their softmax at most.
const MAX_STEPS: usize = 16;

/// Block-diagonal matrices that were made, by their blocks.
pub(crate) type Diagonals = HashMap<Vec<Value>, Value>;

/// One product in the place of the concatenation `node` of blocks of scores; `None` if it is none.
pub(crate) fn joined_blocks(
    graph: &mut Graph,
    node: NodeId,
    diagonals: &mut Diagonals,
) -> Result<Option<Value>, PassError> {
    let value = result(node);
    let rank = graph.ty(value).rank();
    let axis = axis_of(graph, node, rank);
    let blocks: Vec<Value> = graph.operands(node).into_iter().flatten().collect();
    let factors = blocks.iter().map(|&v| {
        let (a, b) = binary(graph, v, Operator::MatMul)?;
        let batched = [a, b].iter().all(|&x| graph.ty(x).rank() == rank);
        (batched && graph.single_user(v) == Some(node)).then_some((a, b))
    });
    let Some(factors) = factors.collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let (left, right): (Vec<Value>, Vec<Value>) = factors.into_iter().unzip();
    let ([a, ..], [b, ..]) = (&left[..], &right[..]) else {
        return Ok(None);
    };
    let fits = (3..=4).contains(&rank)
        && is_dtype(graph, value, DType::F32)
        && blocks.len() <= MAX_BLOCKS
        && leads_to_softmax(graph, value);
    if !fits {
        return Ok(None);
    }
    let same = |values: &[Value]| values.iter().all(|v| *v == values[0]);
    let (a, b) = match axis.map(|axis| rank - axis) {
        Some(1) if same(&left) && alike(graph, &right, 1) => (*a, concat(graph, &right, -1)?),
        Some(1) if alike(graph, &left, 1) && same_batch(graph, &right) => {
            let Some(b) = diagonal(graph, &right, diagonals)? else {
                return Ok(None);
            };
            (concat(graph, &left, -1)?, b)
        }
        Some(2) if same(&right) && alike(graph, &left, 2) => (concat(graph, &left, -2)?, *b),
        _ => return Ok(None),
    };
    let product = graph.apply(Operator::MatMul, Attributes::new(), &[a, b])?;
    let name = graph.node_name(node).to_owned();
    graph.set_node_name(product.node, &name);
    Ok(Some(product))
}

/// Whether values can be concatenated along an axis, counted from the end: all other sizes are known to be equal.
fn alike(graph: &Graph, values: &[Value], from_end: usize) -> bool {
    let others = |v: Value| {
        let mut shape = graph.shape(v).to_vec();
        shape.remove(shape.len() - from_end);
        shape
    };
    values.iter().all(|&v| others(v) == others(values[0]))
}

/// Whether values are as many matrices.
fn same_batch(graph: &Graph, values: &[Value]) -> bool {
    let batch = |v: Value| {
        let shape = graph.shape(v);
        &shape[..shape.len() - 2]
    };
    values.iter().all(|&v| batch(v) == batch(values[0]))
}

/// Whether scores go through what scores go through, and nothing else, to a softmax.
fn leads_to_softmax(graph: &Graph, value: Value) -> bool {
    let mut value = value;
    for _ in 0..MAX_STEPS {
        let Some(user) = graph.single_user(value) else {
            return false;
        };
        match graph.op(user).operator() {
            Some(Operator::Softmax) => return true,
            Some(
                Operator::Add
                | Operator::Concat
                | Operator::Div
                | Operator::Mul
                | Operator::Sub
                | Operator::Where,
            ) => value = result(user),
            _ => return false,
        }
    }
    false
}

fn concat(graph: &mut Graph, values: &[Value], axis: i64) -> Result<Value, PassError> {
    let attributes = Attributes::new().with("axis", Attribute::Int(axis));
    Ok(graph.apply(Operator::Concat, attributes, values)?)
}

/// The matrices with these blocks on their diagonal, if their rows are fixed in number.
fn diagonal(
    graph: &mut Graph,
    blocks: &[Value],
    known: &mut Diagonals,
) -> Result<Option<Value>, PassError> {
    if let Some(&found) = known.get(blocks) {
        return Ok(Some(found));
    }
    let rows = blocks.iter().map(|&v| {
        let shape = graph.shape(v);
        shape[shape.len() - 2].as_fixed()
    });
    let Some(rows) = rows.collect::<Option<Vec<i64>>>() else {
        return Ok(None);
    };
    let total: i64 = rows.iter().sum();
    let mut above = 0;
    let mut padded = Vec::with_capacity(blocks.len());
    for (&block, n) in blocks.iter().zip(rows) {
        let rank = graph.ty(block).rank();
        let mut pads = vec![0i64; 2 * rank];
        pads[rank - 2] = above;
        pads[2 * rank - 2] = total - above - n;
        above += n;
        let pads = graph.add_const("pads", Tensor::new([2 * rank], pads).into());
        padded.push(graph.apply(Operator::Pad, Attributes::new(), &[block, pads])?);
    }
    let whole = concat(graph, &padded, -1)?;
    known.insert(blocks.to_vec(), whole);
    Ok(Some(whole))
}
