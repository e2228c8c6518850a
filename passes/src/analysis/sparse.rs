//! Constant matrices that are held as their values and positions.
//!
//! A sparse tensor of a model file becomes `from_sparse` on two constants. Where such a matrix is a weight, it stays so up to the
//! packed format; anywhere else it is folded to what it stands for.

use lancet_ir::{Dim, Graph, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use std::sync::Arc;

use crate::PassError;
use crate::matcher::applied;

/// The values of a constant matrix that has zeros everywhere else.
#[derive(Clone, Copy, Debug)]
pub struct SparseMatrix<'g> {
    pub n: usize,
    pub k: usize,
    pub values: &'g [f32],
    /// Row-major, ascending, each below `n * k`.
    pub positions: &'g [i64],
}

impl<'g> SparseMatrix<'g> {
    /// The constant that `value` is, if it is one in two dimensions, neither 0.
    pub fn of(graph: &'g Graph, value: Value) -> Option<SparseMatrix<'g>> {
        let node = applied(graph, value, Operator::FromSparse)?;
        let &[n, k] = graph.ty(value).fixed_shape()?.as_slice() else {
            return None;
        };
        let n_elements = n.checked_mul(k).and_then(|n| i64::try_from(n).ok())?;
        let values = graph.constant(graph.operand(node, 0)?)?.as_slice::<f32>()?;
        let positions = graph.constant(graph.operand(node, 1)?)?.as_slice::<i64>()?;
        let inside = |p: &i64| (0..n_elements).contains(p);
        let valid = n_elements != 0
            && values.len() == positions.len()
            && positions.windows(2).all(|p| p[0] < p[1])
            && positions.first().is_none_or(inside)
            && positions.last().is_none_or(inside);
        valid.then_some(SparseMatrix {
            n,
            k,
            values,
            positions,
        })
    }

    /// Row and column of each value.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<'g> {
        let k = self.k;
        (self.positions.iter()).map(move |&p| (p as usize / k, p as usize % k))
    }

    /// Values and positions of the transpose, every value multiplied by `factor`.
    pub fn transposed(&self, factor: f32) -> (Vec<f32>, Vec<i64>) {
        let places = self.places().zip(self.values);
        let to = |(row, column): (usize, usize)| (column * self.n + row) as i64;
        if self.values.len() < self.k / 8 {
            let mut moved: Vec<(i64, f32)> = places.map(|(at, &v)| (to(at), v * factor)).collect();
            moved.sort_unstable_by_key(|(p, _)| *p);
            return moved.into_iter().map(|(p, v)| (v, p)).unzip();
        }
        // Where the values of each column go: columns in order, and rows of one in theirs.
        let mut next = vec![0usize; self.k + 1];
        self.places().for_each(|(_, column)| next[column + 1] += 1);
        for column in 1..next.len() {
            next[column] += next[column - 1];
        }
        let (mut values, mut positions) = (self.values.to_vec(), self.positions.to_vec());
        for (at, &v) in places {
            let place = next[at.1];
            next[at.1] += 1;
            (values[place], positions[place]) = (v * factor, to(at));
        }
        (values, positions)
    }
}

/// Adds a constant matrix of these values at these positions.
pub(crate) fn add_sparse(
    graph: &mut Graph,
    name: &str,
    shape: [usize; 2],
    values: Vec<f32>,
    positions: Vec<i64>,
) -> Result<Value, PassError> {
    let values = graph.add_const("values", Arc::new(Tensor::new([values.len()], values)));
    let positions = Tensor::new([positions.len()], positions);
    let positions = graph.add_const("positions", Arc::new(positions));
    let shape = shape.map(|d| d as i64).to_vec();
    let attributes = Attributes::new().with("shape", Attribute::Ints(shape));
    let op = Op::Apply(Operator::FromSparse, attributes);
    let node = graph.add(op, &[Some(values), Some(positions)])?;
    graph.set_node_name(node, name);
    Ok(crate::matcher::result(node))
}

/// Whether every use of a sparse matrix is one that keeps it sparse: as the weight of a product or a linear layer, perhaps
/// transposed or packed.
pub(crate) fn stays_sparse(graph: &Graph, value: Value) -> bool {
    let one_or_more = |d: &Dim| d.as_fixed().is_some_and(|d| 0 < d);
    let ty = graph.ty(value);
    ty.rank() == 2
        && ty.dtype == DType::F32
        && ty.shape.iter().all(one_or_more)
        && !graph.is_output(value)
        && graph.users(value).iter().all(|&(user, operand)| {
            let y = crate::matcher::result(user);
            match graph.op(user) {
                Op::Convert(_) => true,
                Op::Apply(Operator::MatMul | Operator::Gemm | Operator::Linear, _) => operand == 1,
                Op::Apply(Operator::Transpose, _) => {
                    !graph.is_output(y)
                        && (graph.users(y).iter()).all(|&(user, operand)| {
                            operand == 1 && graph.op(user).operator() == Some(Operator::MatMul)
                        })
                }
                _ => false,
            }
        })
}
