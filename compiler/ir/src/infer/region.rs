//! Nodes that run graphs: their results have the types of the graphs' outputs, in the sizes of the operands.
//!
//! A graph has symbols of its own. Those that are a dimension of an input by themselves stand for the size that the operand has
//! there; of the others nothing is known outside.

use std::collections::HashMap;

use lancet_ops::DType;

use super::call::{Many, check_result};
use crate::{Dim, Graph, IrError, Layout, Symbol, TensorType, Value, ValueInfo};

/// What is wrong.
type Inferred = Result<Vec<TensorType>, String>;

/// Types of the results of one of two graphs.
pub(super) fn branch(
    then: &Graph,
    otherwise: &Graph,
    operands: &[Option<&ValueInfo>],
    fresh: &mut dyn FnMut() -> Dim,
) -> Inferred {
    let (condition, rest) = operands.split_first().ok_or("takes a condition")?;
    boolean(condition.ok_or("takes a condition")?)?;
    let n = then.inputs().len();
    if rest.len() != n + otherwise.inputs().len() {
        return Err(format!(
            "takes {} operands, found {}",
            1 + n + otherwise.inputs().len(),
            operands.len()
        ));
    }
    let (first, second) = rest.split_at(n);
    let mut results = outputs(then, &arguments(then, 0, first, &|_, _| true)?)?;
    let other = outputs(otherwise, &arguments(otherwise, 0, second, &|_, _| true)?)?;
    if results.len() != other.len() {
        return Err(format!(
            "its graphs give {} and {} results",
            results.len(),
            other.len()
        ));
    }
    for (i, (a, b)) in results.iter_mut().zip(other).enumerate() {
        if a.dtype != b.dtype || a.shape.len() != b.shape.len() {
            return Err(format!(
                "result {i} is {} of rank {} or {} of rank {}",
                a.dtype,
                a.shape.len(),
                b.dtype,
                b.shape.len()
            ));
        }
        for (a, b) in a.shape.iter_mut().zip(b.shape) {
            if *a != b {
                *a = None;
            }
        }
    }
    Ok(results.into_iter().map(|r| r.with(fresh)).collect())
}

/// Types of the results of a graph that runs again and again.
pub(super) fn iteration(
    body: &Graph,
    n_carried: usize,
    operands: &[Option<&ValueInfo>],
    fresh: &mut dyn FnMut() -> Dim,
) -> Inferred {
    let (n_inputs, n_outputs) = (body.inputs().len(), body.outputs().len());
    if operands.len() != n_inputs || n_inputs < 2 + n_carried || n_outputs < 1 + n_carried {
        return Err(format!(
            "carries {n_carried} values with {} operands, its graph takes {n_inputs} and gives {n_outputs}",
            operands.len()
        ));
    }
    if let Some(trips) = operands[0]
        && (trips.ty.dtype != DType::I64 || !may_be_single(&trips.ty))
    {
        return Err(format!("the most iterations are {}", trips.ty));
    }
    if let Some(condition) = operands[1] {
        boolean(condition)?;
    }
    let input = |i: usize| {
        body.ty(Value {
            node: body.inputs()[i],
            result: 0,
        })
    };
    let output = |i: usize| body.ty(body.outputs()[i].value);
    for (i, dtype) in [DType::I64, DType::Bool].into_iter().enumerate() {
        if input(i).dtype != dtype || !is_single(input(i)) {
            return Err(format!("its graph takes {} first", input(i)));
        }
    }
    if output(0).dtype != DType::Bool {
        return Err(format!("the next condition is {}", output(0)));
    }
    for i in 0..n_carried {
        let (from, to) = (input(2 + i), output(1 + i));
        if from.dtype != to.dtype || from.rank() != to.rank() {
            return Err(format!("carries {from} in and {to} out"));
        }
    }
    // The first iteration only tells sizes that every iteration keeps.
    let is_kept = |i: usize, axis: usize| {
        n_carried <= i || input(2 + i).shape[axis] == output(1 + i).shape[axis]
    };
    let known = arguments(body, 2, &operands[2..], &is_kept)?;
    let n_iterations = trips(body, operands);
    let mut results = outputs(body, &known)?;
    results.remove(0);
    for (i, result) in results.iter_mut().enumerate() {
        if i < n_carried {
            // Without iterations the result is the operand.
            let first = operands[2 + i].map(|v| &v.ty.shape);
            for (axis, d) in result.shape.iter_mut().enumerate() {
                if d.as_ref() != first.map(|shape| &shape[axis]) {
                    *d = None;
                }
            }
        } else {
            result.shape.insert(0, n_iterations.clone());
        }
    }
    Ok(results.into_iter().map(|r| r.with(fresh)).collect())
}

/// The number of iterations, if the condition holds throughout.
fn trips(body: &Graph, operands: &[Option<&ValueInfo>]) -> Option<Dim> {
    let single = |elements: Option<&[Dim]>| match elements {
        Some([d]) => Some(d.clone()),
        _ => None,
    };
    let holds = |elements| single(elements).is_some_and(|d| d.as_fixed().is_some_and(|d| d != 0));
    let next = body.outputs()[0].value;
    let is_same = next.node == body.inputs()[1];
    let begins = operands[1].is_none_or(|c| holds(c.elements.as_deref()));
    let trips = single(operands[0]?.elements.as_deref())?;
    (begins && (is_same || holds(body.elements(next))) && trips.is_non_negative()).then_some(trips)
}

/// Results, checked and as many as are asked for.
pub(super) fn checked(op: &str, results: Vec<TensorType>, n_results: usize) -> Many {
    if results.len() != n_results {
        return Err(IrError::Type {
            op: op.to_owned(),
            message: format!("gives {} results, not {n_results}", results.len()),
        });
    }
    if results.is_empty() {
        return Err(IrError::Type {
            op: op.to_owned(),
            message: "gives no results".to_owned(),
        });
    }
    for ty in &results {
        check_result(op, ty)?;
    }
    Ok(results.into_iter().map(ValueInfo::new).collect())
}

/// A type of which some sizes are not known.
struct Partial {
    dtype: DType,
    shape: Vec<Option<Dim>>,
}

impl Partial {
    fn with(self, fresh: &mut dyn FnMut() -> Dim) -> TensorType {
        let shape = self.shape.into_iter();
        TensorType::new(
            self.dtype,
            shape.map(|d| d.unwrap_or_else(&mut *fresh)).collect(),
        )
    }
}

fn is_single(ty: &TensorType) -> bool {
    ty.shape.iter().all(|d| d.as_fixed() == Some(1))
}

/// False if there is not one element, whatever the sizes.
fn may_be_single(ty: &TensorType) -> bool {
    (ty.shape.iter()).all(|d| d.as_fixed().is_none_or(|d| d == 1))
}

fn boolean(condition: &ValueInfo) -> Result<(), String> {
    if condition.ty.dtype != DType::Bool || !may_be_single(&condition.ty) {
        return Err(format!("the condition is {}", condition.ty));
    }
    Ok(())
}

/// What the symbols of a graph stand for, if its inputs from `skip` on are these operands. Only dimensions that `tells` names tell.
fn arguments(
    graph: &Graph,
    skip: usize,
    operands: &[Option<&ValueInfo>],
    tells: &dyn Fn(usize, usize) -> bool,
) -> Result<HashMap<Symbol, Dim>, String> {
    let mut known = HashMap::new();
    for (i, (&node, operand)) in graph.inputs()[skip..].iter().zip(operands).enumerate() {
        let input = graph.ty(Value { node, result: 0 });
        let operand = &operand
            .ok_or_else(|| format!("operand for {input} is absent"))?
            .ty;
        let differs = |(a, b): (&Dim, &Dim)| {
            let (a, b) = (a.as_fixed(), b.as_fixed());
            a.is_some() && b.is_some() && a != b
        };
        if input.dtype != operand.dtype
            || input.rank() != operand.rank()
            || operand.layout != Layout::RowMajor
            || input.shape.iter().zip(&operand.shape).any(differs)
        {
            return Err(format!("its graph takes {input}, found {operand}"));
        }
        for (axis, (dim, size)) in input.shape.iter().zip(&operand.shape).enumerate() {
            if let Some(symbol) = dim.as_symbol()
                && tells(i, axis)
            {
                known.entry(symbol.clone()).or_insert_with(|| size.clone());
            }
        }
    }
    Ok(known)
}

/// Types of the outputs of a graph whose symbols stand for these sizes.
fn outputs(graph: &Graph, known: &HashMap<Symbol, Dim>) -> Result<Vec<Partial>, String> {
    let mut types = Vec::with_capacity(graph.outputs().len());
    for output in graph.outputs() {
        let ty = graph.ty(output.value);
        if ty.layout != Layout::RowMajor {
            return Err(format!("its graph gives {ty}"));
        }
        types.push(Partial {
            dtype: ty.dtype,
            shape: ty.shape.iter().map(|d| substitute(d, known)).collect(),
        });
    }
    Ok(types)
}

fn substitute(dim: &Dim, known: &HashMap<Symbol, Dim>) -> Option<Dim> {
    let mut sum = Dim::fixed(0);
    for (symbols, coefficient) in dim.terms() {
        let mut product = Dim::fixed(coefficient);
        for symbol in symbols {
            product = product.mul(known.get(symbol)?)?;
        }
        sum = sum.add(&product)?;
    }
    Some(sum)
}
