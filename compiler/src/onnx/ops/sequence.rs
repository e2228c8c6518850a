//! Sequences of tensors, taken apart on import.
//!
//! Exporters write splits, chunks and stacks as a sequence and the parts of it that are read. Where the number of parts and the
//! positions are known, a sequence is only a list of values, and no node of the graph stands for it. One of a length that depends
//! on data, which a loop made or a split into single elements, is one tensor, if its parts have one shape.

use std::sync::Arc;

use lancet_ir::{Dim, Graph, Value};
use lancet_ops::{Attribute, Attributes, Operator};

use super::{Call, Lowering, axis_from_front};
use crate::onnx::error::{Fault, Faults};

/// Longest sequence.
const MAX_PARTS: usize = 1 << 16;

/// What an operator on sequences takes or gives.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Tensor(Value),
    Sequence(Arc<[Value]>),
    /// Parts of one shape, along the first dimension.
    Stacked(Value),
    /// Parts behind a sequence of which nothing is known here.
    Grown(Arc<[Value]>),
}

/// True for the operators of [`add`], aside from `Identity`.
pub(crate) fn is_known(op: &str) -> bool {
    matches!(
        op,
        "ConcatFromSequence"
            | "SequenceAt"
            | "SequenceConstruct"
            | "SequenceEmpty"
            | "SequenceErase"
            | "SequenceInsert"
            | "SequenceLength"
            | "SplitToSequence"
    )
}

/// Reads a node that takes or gives a sequence; the operands of `call` stand in `items`.
///
/// # Errors
/// What is wrong with it, or that a length or a position is not known.
pub(crate) fn add(
    graph: &mut Graph,
    call: Call<'_>,
    items: &[Option<Item>],
) -> Result<Item, Faults> {
    if call.opset < 11 {
        return Err(Fault::Operator.into());
    }
    let mut l = Lowering { graph, call };
    let parts = |index: usize| match items.get(index) {
        Some(Some(Item::Sequence(parts))) => Ok(Arc::clone(parts)),
        Some(Some(Item::Stacked(_) | Item::Grown(_))) => Err(Fault::unsupported(
            "a sequence of a length that is not constant stands where its parts are needed one by one",
        )),
        _ => Err(Fault::invalid(format!("operand {index} is no sequence"))),
    };
    let at_end = !matches!(items.get(2), Some(Some(_)));
    let item = match l.call.op {
        "SequenceEmpty" => Item::Sequence(Arc::from([])),
        "SequenceConstruct" => {
            let parts = (0..items.len()).map(|i| tensor(items, i));
            Item::Sequence(parts.collect::<Result<_, Fault>>()?)
        }
        "SequenceInsert" if at_end && matches!(items.first(), Some(Some(Item::Grown(_)))) => {
            let mut parts = match items.first() {
                Some(Some(Item::Grown(parts))) => parts.to_vec(),
                _ => Vec::new(),
            };
            parts.push(tensor(items, 1)?);
            Item::Grown(parts.into())
        }
        "SequenceInsert" => {
            let mut parts = parts(0)?.to_vec();
            let at = position(&l, items, 2, parts.len(), parts.len())?;
            parts.insert(at.unwrap_or(parts.len()), tensor(items, 1)?);
            Item::Sequence(parts.into())
        }
        "SequenceErase" => {
            let mut parts = parts(0)?.to_vec();
            let last = last(&parts)?;
            parts.remove(position(&l, items, 1, parts.len(), last)?.unwrap_or(last));
            Item::Sequence(parts.into())
        }
        "SequenceAt" if let Some(stack) = stacked(items) => {
            let at = tensor(items, 1)?;
            let at = l.view(at, Vec::new())?;
            let along = Attributes::new().with("axis", Attribute::Int(0));
            Item::Tensor(l.apply(Operator::Gather, along, &[stack, at])?)
        }
        "SequenceLength" if let Some(stack) = stacked(items) => {
            let first = Attributes::new().with("end", Attribute::Int(1));
            let length = l.apply(Operator::Shape, first, &[stack])?;
            Item::Tensor(l.view(length, Vec::new())?)
        }
        "ConcatFromSequence" if let Some(stack) = stacked(items) => {
            Item::Tensor(concat_stacked(&mut l, stack)?)
        }
        "Identity" if let Some(Some(item)) = items.first() => item.clone(),
        "SequenceAt" => {
            let parts = parts(0)?;
            let at = position(&l, items, 1, parts.len(), last(&parts)?)?;
            Item::Tensor(parts[at.ok_or_else(|| Fault::invalid("operand 1 is missing"))?])
        }
        "SequenceLength" => {
            let n = parts(0)?.len() as i64;
            Item::Tensor(l.constant("length", Vec::new(), vec![n]))
        }
        "ConcatFromSequence" => Item::Tensor(concat(&mut l, &parts(0)?)?),
        "SplitToSequence" => match singles(&mut l, items)? {
            Some(stack) => Item::Stacked(stack),
            None => Item::Sequence(split(&mut l, items)?),
        },
        _ => Item::Sequence(parts(0)?),
    };
    match &item {
        Item::Sequence(parts) if MAX_PARTS < parts.len() => {
            Err(Fault::limit(format!("a sequence of more than {MAX_PARTS} tensors")).into())
        }
        _ => Ok(item),
    }
}

fn tensor(items: &[Option<Item>], index: usize) -> Result<Value, Fault> {
    match items.get(index) {
        Some(Some(Item::Tensor(value))) => Ok(*value),
        _ => Err(Fault::invalid(format!("operand {index} is no tensor"))),
    }
}

fn stacked(items: &[Option<Item>]) -> Option<Value> {
    match items.first() {
        Some(Some(Item::Stacked(value))) => Some(*value),
        _ => None,
    }
}

/// Dimension 0 of a value as dimension `to`.
fn first_to(l: &mut Lowering<'_, '_>, x: Value, to: usize) -> Result<Value, Fault> {
    let mut perm: Vec<i64> = (1..l.graph.ty(x).rank() as i64).collect();
    perm.insert(to, 0);
    let perm = Attributes::new().with("perm", Attribute::Ints(perm));
    l.apply(Operator::Transpose, perm, &[x])
}

/// As [`concat`], of parts that stand along the first dimension.
fn concat_stacked(l: &mut Lowering<'_, '_>, stack: Value) -> Result<Value, Fault> {
    let axis = l
        .take_int("axis")?
        .ok_or_else(|| Fault::invalid("attribute `axis` is missing"))?;
    let is_new = l.take_int("new_axis")?.unwrap_or(0) != 0;
    let rank = l.graph.ty(stack).rank() - usize::from(!is_new);
    let axis = axis_from_front(axis, rank, false)?;
    let x = first_to(l, stack, axis)?;
    if is_new {
        return Ok(x);
    }
    let mut shape = l.graph.shape(x).to_vec();
    let size = shape.remove(axis);
    let joined = size.mul(&shape[axis]);
    shape[axis] = joined.ok_or_else(|| Fault::unsupported("a size of many terms"))?;
    l.view(x, shape)
}

/// A split into parts of one element along a dimension of a size that is not known.
fn singles(l: &mut Lowering<'_, '_>, items: &[Option<Item>]) -> Result<Option<Value>, Fault> {
    let x = tensor(items, 0)?;
    let axis = l.call.attributes.int("axis").unwrap_or(0);
    let axis = axis_from_front(axis, l.graph.ty(x).rank(), false)?;
    let is_stated = matches!(items.get(1), Some(Some(_)));
    let of_one = !is_stated || {
        let size = tensor(items, 1)?;
        l.graph.ty(size).rank() == 0 && integers(l, size)? == [1]
    };
    if !of_one || l.graph.shape(x)[axis].as_fixed().is_some() {
        return Ok(None);
    }
    l.take_int("axis")?;
    let keeps = l.take_int("keepdims")?.unwrap_or(1) != 0;
    let rank = l.graph.ty(x).rank();
    let mut perm: Vec<i64> = (0..rank as i64).filter(|&i| i != axis as i64).collect();
    perm.insert(0, axis as i64);
    let perm = Attributes::new().with("perm", Attribute::Ints(perm));
    let mut stack = l.apply(Operator::Transpose, perm, &[x])?;
    if is_stated || keeps {
        let mut shape = l.graph.shape(stack).to_vec();
        shape.insert(axis + 1, Dim::fixed(1));
        stack = l.view(stack, shape)?;
    }
    Ok(Some(stack))
}

fn last(parts: &[Value]) -> Result<usize, Fault> {
    let last = parts.len().checked_sub(1);
    last.ok_or_else(|| Fault::invalid("the sequence is empty"))
}

/// The elements of an integer tensor that is known.
fn integers(l: &Lowering<'_, '_>, value: Value) -> Result<Vec<i64>, Fault> {
    if let Some(tensor) = l.graph.constant(value) {
        return Ok(tensor.view().to_i64_vec());
    }
    let known = l.graph.elements(value);
    let fixed = known.and_then(|e| e.iter().map(Dim::as_fixed).collect::<Option<Vec<i64>>>());
    fixed.ok_or_else(|| Fault::unsupported("a position or size in a sequence that is not constant"))
}

/// Operand `index`, a position among `len`, at most `most`; negative ones count from the end.
fn position(
    l: &Lowering<'_, '_>,
    items: &[Option<Item>],
    index: usize,
    len: usize,
    most: usize,
) -> Result<Option<usize>, Fault> {
    if !matches!(items.get(index), Some(Some(_))) {
        return Ok(None);
    }
    let found = integers(l, tensor(items, index)?)?;
    let &[at] = found.as_slice() else {
        return Err(Fault::invalid(format!("operand {index} is not one number")));
    };
    let from_front = if at < 0 {
        at.checked_add(len as i64)
    } else {
        Some(at)
    };
    let from_front = from_front.and_then(|at| usize::try_from(at).ok());
    (from_front.filter(|&at| at <= most).map(Some))
        .ok_or_else(|| Fault::invalid(format!("position {at} in a sequence of {len}")))
}

/// The parts, one after the other along `axis`, which is a new one if `new_axis` says so.
fn concat(l: &mut Lowering<'_, '_>, parts: &[Value]) -> Result<Value, Fault> {
    let axis = l
        .take_int("axis")?
        .ok_or_else(|| Fault::invalid("attribute `axis` is missing"))?;
    last(parts)?;
    let mut parts = parts.to_vec();
    if l.take_int("new_axis")?.unwrap_or(0) != 0 {
        let at = l.ints("axis", vec![axis]);
        for part in &mut parts {
            *part = l.apply(Operator::Unsqueeze, Attributes::new(), &[*part, at])?;
        }
    }
    let along = Attributes::new().with("axis", Attribute::Int(axis));
    l.apply(Operator::Concat, along, &parts)
}

/// Parts of the stated sizes along `axis`: each of one size, or of one element if none is stated.
fn split(l: &mut Lowering<'_, '_>, items: &[Option<Item>]) -> Result<Arc<[Value]>, Fault> {
    let x = tensor(items, 0)?;
    let axis = l.take_int("axis")?.unwrap_or(0);
    let keeps = l.take_int("keepdims")?.unwrap_or(1) != 0;
    let from_front = axis_from_front(axis, l.graph.ty(x).rank(), false)?;
    let of_size = |l: &Lowering<'_, '_>, size: i64| -> Result<Vec<i64>, Fault> {
        let n = l.graph.shape(x)[from_front].as_fixed();
        let n = n.ok_or_else(|| {
            Fault::unsupported("a split into a number of parts that depends on the input")
        })?;
        if size < 1 {
            return Err(Fault::invalid(format!("parts of {size} elements")));
        }
        if MAX_PARTS as i64 <= n / size {
            return Err(Fault::limit(format!("a split into {} parts", n / size)));
        }
        let starts = (0..).map(|i| i * size).take_while(|&start| start < n);
        Ok(starts.map(|start| size.min(n - start)).collect())
    };
    let is_stated = matches!(items.get(1), Some(Some(_)));
    let sizes = if is_stated {
        let stated = tensor(items, 1)?;
        let sizes = integers(l, stated)?;
        match (l.graph.ty(stated).rank(), sizes.as_slice()) {
            (0, &[size]) => of_size(l, size)?,
            (0, _) => return Err(Fault::invalid("operand 1 is not one number")),
            _ => sizes,
        }
    } else {
        of_size(l, 1)?
    };
    if sizes.is_empty() {
        return Ok(Arc::from([]));
    }
    let n = sizes.len();
    let sizes = l.ints("sizes", sizes);
    let along = Attributes::new().with("axis", Attribute::Int(axis));
    let mut parts = l.apply_results(Operator::Split, along, &[Some(x), Some(sizes)], n)?;
    if !is_stated && !keeps {
        let at = l.ints("axis", vec![axis]);
        for part in &mut parts {
            *part = l.apply(Operator::Squeeze, Attributes::new(), &[*part, at])?;
        }
    }
    Ok(parts.into())
}
