//! Linear layers on constant matrices, read and rebuilt: some rows, some columns, another bias.

use std::sync::Arc;

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{DType, Operator, Tensor, evaluate};

use crate::PassError;
use crate::analysis::sparse::{SparseMatrix, add_sparse};
use crate::matcher::{applied, result};
use crate::vector::constant_name;

/// Rows or columns up to which a weight that is held as its values is read here.
const MANY: usize = 1 << 20;

/// `y = activation(x · wᵀ + bias) + residual` with constant `w[n, k]` and `bias[n]`.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) node: NodeId,
    pub(crate) x: Value,
    weight: Value,
    bias: Option<Value>,
    pub(crate) residual: Option<Value>,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

impl Layer {
    /// The layer that makes `value`.
    pub(crate) fn of(graph: &Graph, value: Value) -> Option<Layer> {
        let node = applied(graph, value, Operator::Linear)?;
        let (x, weight) = (graph.operand(node, 0)?, graph.operand(node, 1)?);
        let bias = graph.operand(node, 2);
        let &[n, k] = graph.ty(weight).fixed_shape()?.as_slice() else {
            return None;
        };
        let is_sparse = || n.max(k) <= MANY && SparseMatrix::of(graph, weight).is_some();
        let is_constant = graph.ty(weight).dtype == DType::F32
            && (graph.constant(weight).is_some() || is_sparse())
            && bias.is_none_or(|b| graph.constant(b).is_some());
        is_constant.then_some(Layer {
            node,
            x,
            weight,
            bias,
            residual: graph.operand(node, 3),
            n,
            k,
        })
    }

    /// True if nothing is fused into the layer.
    pub(crate) fn is_plain(&self, graph: &Graph) -> bool {
        self.residual.is_none() && !self.has_activation(graph)
    }

    fn has_activation(&self, graph: &Graph) -> bool {
        let activation = graph.attributes(self.node).str("activation");
        activation.is_some_and(|a| a != "none")
    }

    /// The features where every product is zero and the bias is this, before the residual.
    pub(crate) fn at_zero(&self, graph: &Graph, bias: Vec<f32>) -> Option<Vec<f32>> {
        if !self.has_activation(graph) {
            return Some(bias);
        }
        let nothing = Tensor::new([1, 0], Vec::<f32>::new());
        let no_weights = Tensor::new([self.n, 0], Vec::<f32>::new());
        let bias = Tensor::new([self.n], bias);
        let operands = [&nothing, &no_weights, &bias].map(|t| Some(t.view()));
        let attributes = graph.attributes(self.node);
        let results = evaluate(Operator::Linear, attributes, &operands, 1).ok()?;
        Some(results.first()?.as_slice::<f32>()?.to_vec())
    }

    /// The plain layer that `value` is, or regroups the tokens of, if nothing else uses what is between.
    pub(crate) fn behind(graph: &Graph, value: Value) -> Option<Layer> {
        let mut value = value;
        loop {
            graph.single_user(value)?;
            if let Some(layer) = Layer::of(graph, value) {
                return Some(layer).filter(|l| l.is_plain(graph));
            }
            value = regrouped(graph, value)?;
        }
    }

    /// The layer that alone uses `value`, perhaps with its tokens regrouped.
    pub(crate) fn after(graph: &Graph, value: Value) -> Option<Layer> {
        let mut value = value;
        loop {
            let user = result(graph.single_user(value)?);
            if let Some(layer) = Layer::of(graph, user) {
                return Some(layer).filter(|l| l.x == value && l.residual != Some(value));
            }
            regrouped(graph, user)?;
            value = user;
        }
    }

    /// `w` in row-major order, unless it is held as the values that are not zero.
    fn dense<'g>(&self, graph: &'g Graph) -> Option<&'g [f32]> {
        graph.constant(self.weight)?.as_slice()
    }

    /// Every element of `w` that is not zero with its row and column, in row-major order.
    fn for_each_nonzero(&self, graph: &Graph, mut each: impl FnMut(usize, usize, f32)) {
        match self.dense(graph) {
            Some(_) if self.k == 0 => {}
            Some(w) => {
                for (row, values) in w.chunks_exact(self.k).enumerate() {
                    for (column, &v) in values.iter().enumerate().filter(|(_, v)| **v != 0.0) {
                        each(row, column, v);
                    }
                }
            }
            None => {
                let w = SparseMatrix::of(graph, self.weight).expect("checked by `of`");
                for ((row, column), &v) in w.places().zip(w.values).filter(|(_, v)| **v != 0.0) {
                    each(row, column, v);
                }
            }
        }
    }

    pub(crate) fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// The bias; zeros where there is none.
    pub(crate) fn bias(&self, graph: &Graph) -> Vec<f32> {
        let tensor = self.bias.and_then(|b| graph.constant(b));
        match tensor.and_then(|t| t.as_slice::<f32>()) {
            Some(bias) => bias.to_vec(),
            None => vec![0.0; self.n],
        }
    }

    /// True for each row of `w` that has an element other than zero.
    pub(crate) fn live_rows(&self, graph: &Graph) -> Vec<bool> {
        let mut live = vec![false; self.n];
        self.for_each_nonzero(graph, |row, _, _| live[row] = true);
        live
    }

    /// True for each column of `w` that has an element other than zero.
    pub(crate) fn live_columns(&self, graph: &Graph) -> Vec<bool> {
        let mut live = vec![false; self.k];
        self.for_each_nonzero(graph, |_, column, _| live[column] = true);
        live
    }

    /// The bias when inputs that `constants` names are no longer multiplied but are these numbers: `bias + w · constants`.
    pub(crate) fn bias_with(&self, graph: &Graph, constants: &[Option<f32>]) -> Vec<f32> {
        let mut bias = self.bias(graph);
        if constants.iter().flatten().any(|&c| c != 0.0) {
            let mut sums = vec![0.0f64; self.n];
            self.for_each_nonzero(graph, |row, column, w| {
                let c = constants.get(column).copied().flatten();
                sums[row] += c.map_or(0.0, |c| f64::from(w) * f64::from(c));
            });
            for (b, sum) in bias.iter_mut().zip(sums) {
                *b = (f64::from(*b) + sum) as f32;
            }
        }
        bias
    }

    /// The layer on `x` with these rows and columns of `w`, in this order, and this bias; without one if it is all zeros. All
    /// rows stay where there is a residual.
    ///
    /// # Errors
    /// [`PassError`] if `x` does not have as many features as there are columns: a bug.
    pub(crate) fn rebuilt(
        &self,
        graph: &mut Graph,
        x: Value,
        rows: &[usize],
        columns: &[usize],
        bias: &[f32],
    ) -> Result<Value, PassError> {
        let Some(w) = self.dense(graph) else {
            let weight = self.kept_of_sparse(graph, rows, columns)?;
            return self.with_weight(graph, x, weight, bias);
        };
        let kept = rows
            .iter()
            .flat_map(|r| columns.iter().map(move |c| w[r * self.k + c]));
        let tensor = Tensor::new([rows.len(), columns.len()], kept.collect::<Vec<f32>>());
        let name = constant_name(graph, self.weight);
        let weight = graph.add_const(&name, Arc::new(tensor));
        self.with_weight(graph, x, weight, bias)
    }

    /// These rows and columns of a weight that is held as the values that are not zero.
    fn kept_of_sparse(
        &self,
        graph: &mut Graph,
        rows: &[usize],
        columns: &[usize],
    ) -> Result<Value, PassError> {
        let places = |kept: &[usize], n: usize| {
            let mut places = vec![None; n];
            kept.iter()
                .enumerate()
                .for_each(|(to, &from)| places[from] = Some(to));
            places
        };
        let (row_places, column_places) = (places(rows, self.n), places(columns, self.k));
        let mut kept = Vec::new();
        self.for_each_nonzero(graph, |row, column, v| {
            if let (Some(row), Some(column)) = (row_places[row], column_places[column]) {
                kept.push(((row * columns.len() + column) as i64, v));
            }
        });
        kept.sort_unstable_by_key(|(p, _)| *p);
        let (positions, values) = kept.into_iter().unzip();
        let name = constant_name(graph, self.weight);
        add_sparse(graph, &name, [rows.len(), columns.len()], values, positions)
    }

    /// The layer with another bias; without one if it is all zeros.
    pub(crate) fn with_bias(&self, graph: &mut Graph, bias: &[f32]) -> Result<Value, PassError> {
        self.with_weight(graph, self.x, self.weight, bias)
    }

    /// The layer with every weight and the bias multiplied by `factor`.
    pub(crate) fn scaled(&self, graph: &mut Graph, factor: f32) -> Result<Value, PassError> {
        let bias: Vec<f32> = self.bias(graph).iter().map(|b| b * factor).collect();
        let name = constant_name(graph, self.weight);
        let scaled = |w: &[f32]| -> Vec<f32> { w.iter().map(|w| w * factor).collect() };
        let shape = [self.n, self.k];
        let weight = match (self.dense(graph), SparseMatrix::of(graph, self.weight)) {
            (None, Some(w)) => {
                let (values, positions) = (scaled(w.values), w.positions.to_vec());
                add_sparse(graph, &name, shape, values, positions)?
            }
            (w, _) => {
                let scaled = Tensor::new(shape, scaled(w.unwrap_or_default()));
                graph.add_const(&name, Arc::new(scaled))
            }
        };
        self.with_weight(graph, self.x, weight, &bias)
    }

    fn with_weight(
        &self,
        graph: &mut Graph,
        x: Value,
        weight: Value,
        bias: &[f32],
    ) -> Result<Value, PassError> {
        let mut operands = vec![Some(x), Some(weight)];
        if bias.iter().any(|&b| b != 0.0) {
            let name = self.bias.map_or(String::new(), |b| constant_name(graph, b));
            let tensor = Tensor::new([bias.len()], bias.to_vec());
            operands.push(Some(graph.add_const(&name, Arc::new(tensor))));
        }
        if let Some(residual) = self.residual {
            operands.resize(3, None);
            operands.push(Some(residual));
        }
        let node = graph.add(graph.op(self.node).clone(), &operands)?;
        let name = graph.node_name(self.node).to_owned();
        graph.set_node_name(node, &name);
        Ok(result(node))
    }
}

/// What `value` is a view of with the same features.
pub(crate) fn regrouped(graph: &Graph, value: Value) -> Option<Value> {
    let Op::View(_) = graph.op(value.node) else {
        return None;
    };
    let inner = graph.operand(value.node, 0)?;
    let same_features = graph.shape(inner).last() == graph.shape(value).last();
    (same_features && 2 <= graph.ty(inner).rank()).then_some(inner)
}
