//! Copies of the features of a linear layer: which feature each element of a value is, through views, transpositions,
//! slices, splits, gathers by constants, concatenations and negations.

use lancet_ir::{Dim, Graph, IrError, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator};

use crate::heads::view;
use crate::matcher::{axis_of, ints, normalize_axis, peel, permutation};

/// What an axis of a value is of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    /// This axis of the source: not the last.
    Token(usize),
    /// Features, or nothing: an axis of size 1 that a view put in.
    Feature(usize),
}

/// A value whose elements are features of `source`, each at the token that its other axes say, some of them negated.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    /// `[.., n]`.
    pub(crate) source: Value,
    axes: Vec<Axis>,
    /// For each element of the feature axes, row-major: which feature, and whether it is negated.
    pub(crate) from: Vec<(usize, bool)>,
}

/// Copies that are looked through, one behind the other and together.
const MAX_DEPTH: usize = 24;
const BUDGET: usize = 256;

/// Elements of the feature axes together.
const MAX_FEATURES: usize = 1 << 20;

impl Features {
    /// The features of a linear layer that `value` copies; those of the layer itself are copies of themselves.
    pub(crate) fn of(graph: &Graph, value: Value) -> Option<Features> {
        read(graph, value, MAX_DEPTH, &mut { BUDGET })
    }

    /// `features`, of which each is at the place in the last axis that it has in `from`, in the shape of the value that this
    /// describes.
    pub(crate) fn placed(&self, graph: &mut Graph, features: Value) -> Result<Value, IrError> {
        let leading = graph.shape(features).len() - 1;
        let mut shape = graph.shape(features)[..leading].to_vec();
        shape.extend(self.feature_sizes().map(Dim::from));
        let apart = view(graph, features, shape)?;
        let mut next = leading..;
        let perm: Vec<i64> = self
            .axes
            .iter()
            .map(|axis| match axis {
                Axis::Token(i) => *i,
                Axis::Feature(_) => next.next().expect("an endless range"),
            })
            .map(|p| p as i64)
            .collect();
        if perm.iter().copied().eq(0..perm.len() as i64) {
            return Ok(apart);
        }
        let attributes = Attributes::new().with("perm", Attribute::Ints(perm));
        graph.apply(Operator::Transpose, attributes, &[apart])
    }

    /// True if the tokens' axes come first, as in the source.
    pub(crate) fn has_tokens_in_front(&self) -> bool {
        let tokens = self.axes.iter().enumerate();
        let n_tokens = self.axes.iter().filter(|a| matches!(a, Axis::Token(_)));
        let n_tokens = n_tokens.count();
        tokens
            .take(n_tokens)
            .all(|(i, axis)| *axis == Axis::Token(i))
    }

    fn feature_sizes(&self) -> impl Iterator<Item = usize> {
        self.axes.iter().filter_map(|axis| match axis {
            Axis::Feature(n) => Some(*n),
            Axis::Token(_) => None,
        })
    }

    /// The features with axis `axis` replaced by axes of these sizes, whose elements are at these places of it.
    fn picked(&self, axis: usize, sizes: &[usize], places: &[usize]) -> Option<Features> {
        let Some(Axis::Feature(n)) = self.axes.get(axis).copied() else {
            return None;
        };
        let after: usize = inner(&self.axes[axis + 1..]);
        let outer = self.from.len().checked_div(n * after)?;
        let mut from = Vec::with_capacity(outer * places.len() * after);
        for i in 0..outer {
            for &p in places.iter() {
                let start = (i * n + Some(p).filter(|&p| p < n)?) * after;
                from.extend_from_slice(&self.from[start..start + after]);
            }
        }
        let mut axes = self.axes[..axis].to_vec();
        axes.extend(sizes.iter().map(|&n| Axis::Feature(n)));
        axes.extend_from_slice(&self.axes[axis + 1..]);
        Some(Features {
            axes,
            from,
            ..*self
        })
    }
}

/// Elements of the feature axes among `axes`.
fn inner(axes: &[Axis]) -> usize {
    let sizes = axes.iter().map(|axis| match axis {
        Axis::Feature(n) => *n,
        Axis::Token(_) => 1,
    });
    sizes.fold(1, usize::saturating_mul)
}

fn read(graph: &Graph, value: Value, depth: usize, budget: &mut usize) -> Option<Features> {
    let depth = depth.checked_sub(1)?;
    *budget = budget.checked_sub(1)?;
    let value = peel(graph, value);
    let (op, node) = (graph.op(value.node), value.node);
    if graph.ty(value).dtype != DType::F32 {
        return None;
    }
    let operand = |i| graph.operand(node, i);
    let mut of_operand = || read(graph, operand(0)?, depth, budget);
    match op {
        Op::View(_) => regroup(graph, of_operand()?, operand(0)?, value),
        Op::Apply(Operator::Linear, _) => {
            let (last, leading) = graph.shape(value).split_last()?;
            let n = usize::try_from(last.as_fixed()?).ok()?;
            let axes = (0..leading.len()).map(Axis::Token);
            (!leading.is_empty() && 0 < n && n <= MAX_FEATURES).then(|| Features {
                source: value,
                axes: axes.chain([Axis::Feature(n)]).collect(),
                from: (0..n).map(|i| (i, false)).collect(),
            })
        }
        Op::Apply(Operator::Neg, _) => {
            let mut x = of_operand()?;
            x.from.iter_mut().for_each(|(_, negated)| *negated ^= true);
            Some(x)
        }
        Op::Apply(Operator::Transpose, _) => {
            let x = of_operand()?;
            transposed(&x, &permutation(graph, node)?)
        }
        Op::Apply(Operator::Slice, _) => sliced(graph, of_operand()?, value),
        Op::Apply(Operator::Split, _) => {
            let x = of_operand()?;
            let axis = axis_of(graph, node, x.axes.len())?;
            let size = |r: u32| {
                let dim = &graph.shape(Value { node, result: r })[axis];
                usize::try_from(dim.as_fixed()?).ok()
            };
            let start = (0..value.result).map(size).sum::<Option<usize>>()?;
            let n = size(value.result)?;
            x.picked(axis, &[n], &(start..start + n).collect::<Vec<_>>())
        }
        Op::Apply(Operator::Gather, _) => {
            let x = of_operand()?;
            let axis = axis_of(graph, node, x.axes.len())?;
            let indices = operand(1)?;
            let n = graph.shape(operand(0)?)[axis].as_fixed()?;
            let places: Option<Vec<usize>> = ints(graph, indices)?
                .into_iter()
                .map(|i| usize::try_from(if i < 0 { i + n } else { i }).ok())
                .collect();
            let sizes: Option<Vec<usize>> = graph
                .shape(indices)
                .iter()
                .map(|d| usize::try_from(d.as_fixed()?).ok())
                .collect();
            x.picked(axis, &sizes?, &places?)
        }
        Op::Apply(Operator::Concat, _) => concatenated(graph, value, depth, budget),
        Op::Input(_)
        | Op::Const(_)
        | Op::Dims(_)
        | Op::Broadcast(_)
        | Op::Convert(_)
        | Op::Apply(..)
        | Op::If { .. }
        | Op::Loop { .. } => None,
    }
}

/// The features of a view: tokens stay, what is between them is regrouped.
fn regroup(graph: &Graph, mut x: Features, before: Value, after: Value) -> Option<Features> {
    let (of_x, shape) = (graph.shape(before), graph.shape(after));
    let fixed = |d: &Dim| usize::try_from(d.as_fixed()?).ok();
    let mut axes = Vec::with_capacity(shape.len());
    let mut at = 0;
    for (axis, dim) in x.axes.iter().zip(of_x) {
        let Axis::Token(_) = axis else { continue };
        // Everything before the token is features, and those of the operand must have as many elements.
        while shape.get(at)? != dim {
            axes.push(Axis::Feature(fixed(&shape[at])?));
            at += 1;
        }
        axes.push(*axis);
        at += 1;
    }
    for dim in &shape[at..] {
        axes.push(Axis::Feature(fixed(dim)?));
    }
    let between = |axes: &[Axis]| {
        let runs = axes.split(|a| matches!(a, Axis::Token(_)));
        runs.map(inner).collect::<Vec<usize>>()
    };
    (between(&axes) == between(&x.axes)).then(|| {
        x.axes = axes;
        x
    })
}

fn transposed(x: &Features, perm: &[usize]) -> Option<Features> {
    let axes: Vec<Axis> = perm
        .iter()
        .map(|&p| x.axes.get(p).copied())
        .collect::<Option<_>>()?;
    // Size and stride in `from` of each feature axis of the result.
    let steps: Vec<(usize, usize)> = perm
        .iter()
        .filter_map(|&p| match x.axes[p] {
            Axis::Feature(n) => Some((n, inner(&x.axes[p + 1..]))),
            Axis::Token(_) => None,
        })
        .collect();
    let mut places = vec![0usize];
    for (n, stride) in steps {
        places = places
            .iter()
            .flat_map(|&start| (0..n).map(move |i| start + i * stride))
            .collect();
    }
    let from = places.iter().map(|&p| x.from[p]).collect();
    Some(Features { axes, from, ..*x })
}

fn sliced(graph: &Graph, x: Features, value: Value) -> Option<Features> {
    let node = value.node;
    let list = |i| graph.operand(node, i).map(|v| ints(graph, v));
    let starts = list(1)??;
    let axes = match list(3) {
        Some(axes) => axes?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = match list(4) {
        Some(steps) => steps?,
        None => vec![1; starts.len()],
    };
    let mut x = x;
    for ((start, axis), step) in starts.into_iter().zip(axes).zip(steps) {
        let axis = normalize_axis(axis, x.axes.len())?;
        let before = graph.shape(graph.operand(node, 0)?)[axis].clone();
        let after = &graph.shape(value)[axis];
        if *after == before && 0 < step {
            continue;
        }
        let (n, kept) = (before.as_fixed()?, usize::try_from(after.as_fixed()?).ok()?);
        let start = if start < 0 {
            start.checked_add(n)?
        } else {
            start
        };
        let start = start.clamp(0, if step < 0 { n - 1 } else { n });
        let place = |i: i64| usize::try_from(start.checked_add(step.checked_mul(i)?)?).ok();
        let places: Option<Vec<usize>> = (0..kept as i64).map(place).collect();
        x = x.picked(axis, &[kept], &places?)?;
    }
    Some(x)
}

fn concatenated(graph: &Graph, value: Value, depth: usize, budget: &mut usize) -> Option<Features> {
    let parts: Option<Vec<Features>> = graph
        .operands(value.node)
        .into_iter()
        .map(|v| read(graph, v?, depth, budget))
        .collect();
    let parts = parts?;
    let first = parts.first()?;
    let axis = axis_of(graph, value.node, first.axes.len())?;
    let sizes: Option<Vec<usize>> = parts
        .iter()
        .map(|p| match p.axes.get(axis)? {
            Axis::Feature(n) => Some(*n),
            Axis::Token(_) => None,
        })
        .collect();
    let sizes = sizes?;
    let alike = parts.iter().all(|p| {
        let others = p.axes.iter().zip(&first.axes).enumerate();
        p.source == first.source
            && p.axes.len() == first.axes.len()
            && others.into_iter().all(|(i, (a, b))| i == axis || a == b)
    });
    let total: usize = sizes.iter().sum();
    let after = inner(&first.axes[axis + 1..]);
    let outer = inner(&first.axes[..axis]);
    if !alike || MAX_FEATURES < outer.checked_mul(total)?.checked_mul(after)? {
        return None;
    }
    let mut from = Vec::with_capacity(outer * total * after);
    for i in 0..outer {
        for (part, n) in parts.iter().zip(&sizes) {
            let row = n * after;
            from.extend_from_slice(&part.from[i * row..(i + 1) * row]);
        }
    }
    let mut axes = first.axes.clone();
    axes[axis] = Axis::Feature(total);
    Some(Features {
        source: first.source,
        axes,
        from,
    })
}
