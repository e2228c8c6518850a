//! Undoing the split into heads: which axes of a value are batch, head, token and feature, through views and transpositions.
//!
//! Attention works on `[batch, tokens, heads · features]`; exporters view, transpose and scale on the way to
//! `[batch, heads, tokens, features]` and back, in several orders. An [`Axes`] says, for each axis of a value, which roles it
//! holds, outermost first; [`join`] follows a value back to where the split began, [`split`] does the reverse.

use lancet_ir::{Dim, Graph, IrError, Op, Value};
use lancet_ops::{Attribute, Attributes, Operator};

use crate::matcher::{peel, permutation, result};
use crate::polynomial::scaled;

/// Elementwise functions that are moved in front of a split into heads, one within the other.
const MAX_DEPTH: usize = 8;

/// What an axis stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Batch,
    Head,
    Token,
    Feature,
}

use Role::{Batch, Feature, Head, Token};

/// Sizes by role.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sizes {
    pub(crate) batch: Dim,
    pub(crate) heads: Dim,
    pub(crate) tokens: Dim,
    pub(crate) features: Dim,
}

impl Sizes {
    fn of(&self, role: Role) -> &Dim {
        match role {
            Batch => &self.batch,
            Head => &self.heads,
            Token => &self.tokens,
            Feature => &self.features,
        }
    }

    /// `[batch, tokens, heads · features]`, or `None` on overflow.
    pub(crate) fn joined(&self) -> Option<Vec<Dim>> {
        let hidden = self.heads.mul(&self.features)?;
        Some(vec![self.batch.clone(), self.tokens.clone(), hidden])
    }
}

/// Roles of each axis of a value, outermost first.
pub(crate) type Axes = Vec<Vec<Role>>;

/// The axes of `[batch, tokens, heads · features]`.
fn joined_axes() -> Axes {
    vec![vec![Batch], vec![Token], vec![Head, Feature]]
}

/// Axes of a value of this shape whose elements are ordered by `roles`, or `None` if no grouping fits.
fn group(roles: &[Role], sizes: &Sizes, shape: &[Dim]) -> Option<Axes> {
    let one = Dim::fixed(1);
    let mut rest = roles.iter().copied().peekable();
    let mut axes = Axes::with_capacity(shape.len());
    for size in shape {
        let mut axis = Vec::new();
        let mut product = one.clone();
        if *size == one
            && let Some(role) = rest.next_if(|&r| *sizes.of(r) == one)
        {
            axis.push(role);
        }
        while product != *size {
            let role = rest.next()?;
            product = product.mul(sizes.of(role))?;
            axis.push(role);
        }
        axes.push(axis);
    }
    for role in rest {
        if *sizes.of(role) != one {
            return None;
        }
        axes.last_mut()?.push(role);
    }
    Some(axes)
}

/// A value, what its axes are, and the scalar that what it was found from has been multiplied by since.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) value: Value,
    axes: Axes,
    pub(crate) scale: f64,
}

/// Whether a scalar factor on the way may be passed, to be applied elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scaling {
    Pass,
    Stop,
}

/// Follows `value` back through views, transpositions and scalar factors to where heads are joined, or as far as possible.
pub(crate) fn join(
    graph: &Graph,
    value: Value,
    axes: Axes,
    sizes: &Sizes,
    scaling: Scaling,
) -> Origin {
    let mut at = Origin {
        value: peel(graph, value),
        axes,
        scale: 1.0,
    };
    loop {
        let next = match scaled(graph, at.value) {
            Some((x, factor)) if scaling == Scaling::Pass => Some((x, at.axes.clone(), factor)),
            _ if at.axes == joined_axes() => None,
            _ => before(graph, at.value, &at.axes, sizes).map(|(x, axes)| (x, axes, 1.0)),
        };
        match next {
            Some((x, axes, factor)) => {
                at = Origin {
                    value: peel(graph, x),
                    axes,
                    scale: at.scale * factor,
                }
            }
            None => return at,
        }
    }
}

/// The operand of the view or transposition that makes `value`, with its axes.
fn before(graph: &Graph, value: Value, axes: &Axes, sizes: &Sizes) -> Option<(Value, Axes)> {
    let x = graph.operand(value.node, 0)?;
    if let Op::View(_) = graph.op(value.node) {
        return Some((x, group(&axes.concat(), sizes, graph.shape(x))?));
    }
    let perm = permutation(graph, value.node)?;
    let mut of_operand = vec![Vec::new(); perm.len()];
    for (axis, &p) in axes.iter().zip(&perm) {
        *of_operand.get_mut(p)? = axis.clone();
    }
    Some((x, of_operand))
}

/// The axes of the view or transposition `value` of an operand with these axes.
fn after(graph: &Graph, value: Value, axes: &Axes, sizes: &Sizes) -> Option<Axes> {
    if let Op::View(shape) = graph.op(value.node) {
        return group(&axes.concat(), sizes, shape);
    }
    let perm = permutation(graph, value.node)?;
    perm.iter().map(|&p| axes.get(p).cloned()).collect()
}

impl Origin {
    /// The value as `[batch, tokens, heads · features]`, by views and a transposition where needed.
    pub(crate) fn joined(&self, graph: &mut Graph, sizes: &Sizes) -> Result<Value, IrError> {
        if self.axes == joined_axes() {
            return Ok(self.value);
        }
        if let Some(hoisted) = hoisted(graph, self.value, &self.axes, sizes, MAX_DEPTH)? {
            return Ok(hoisted);
        }
        let roles = self.axes.concat();
        let shape = joined_shape(sizes)?;
        if roles == [Batch, Token, Head, Feature] {
            return view(graph, self.value, shape);
        }
        // Heads and features that lie side by side move as one axis.
        let mut units: Vec<Vec<Role>> = Vec::new();
        for role in roles {
            match units.last_mut() {
                Some(unit) if role == Feature && unit == &[Head] => unit.push(Feature),
                _ => units.push(vec![role]),
            }
        }
        let size = |unit: &Vec<Role>| Dim::product(unit.iter().map(|&r| sizes.of(r)));
        let unit_shape: Option<Vec<Dim>> = units.iter().map(size).collect();
        let apart = view(graph, self.value, unit_shape.ok_or_else(overflow)?)?;
        let perm = [Batch, Token, Head, Feature]
            .iter()
            .filter_map(|role| units.iter().position(|u| u.first() == Some(role)))
            .collect::<Vec<usize>>();
        let moved = transpose(graph, apart, &perm)?;
        view(graph, moved, shape)
    }
}

/// `value`, an elementwise function of values whose heads can be joined, computed from the joined ones: splitting heads
/// commutes with it. What is broadcast to all heads, tokens or features is broadcast after the move.
fn hoisted(
    graph: &mut Graph,
    value: Value,
    axes: &Axes,
    sizes: &Sizes,
    depth: usize,
) -> Result<Option<Value>, IrError> {
    let elementwise = match graph.operator(value) {
        Some(Operator::Add | Operator::Sub | Operator::Mul | Operator::Div) => true,
        Some(Operator::Neg | Operator::Relu | Operator::Tanh | Operator::Sigmoid) => true,
        Some(_) | None => false,
    };
    if !elementwise || depth == 0 {
        return Ok(None);
    }
    let operands: Vec<Value> = graph.operands(value.node).into_iter().flatten().collect();
    let is_split = |graph: &Graph, v: Value| graph.ty(v).same_value(graph.ty(value));
    if !operands.iter().any(|&v| is_split(graph, v)) {
        return Ok(None);
    }
    let mut moved = Vec::with_capacity(operands.len());
    for operand in operands {
        let joined = if is_split(graph, operand) {
            let origin = join(graph, operand, axes.clone(), sizes, Scaling::Stop);
            if origin.axes == joined_axes() {
                Some(origin.value)
            } else {
                hoisted(graph, origin.value, &origin.axes, sizes, depth - 1)?
            }
        } else {
            broadcast(graph, operand, axes, sizes)?
        };
        let Some(joined) = joined else {
            return Ok(None);
        };
        moved.push(joined);
    }
    let op = graph.op(value.node).clone();
    let operands: Vec<Option<Value>> = moved.into_iter().map(Some).collect();
    let node = graph.add(op, &operands)?;
    let name = graph.node_name(value.node).to_owned();
    graph.set_node_name(node, &name);
    Ok(Some(result(node)))
}

/// `value`, which broadcasts to a shape with these axes, broadcast to joined heads; to their features alone where it is the
/// same for all tokens.
fn broadcast(
    graph: &mut Graph,
    value: Value,
    axes: &Axes,
    sizes: &Sizes,
) -> Result<Option<Value>, IrError> {
    let one = Dim::fixed(1);
    let own = graph.shape(value).to_vec();
    let Some(missing) = axes.len().checked_sub(own.len()) else {
        return Ok(None);
    };
    let padded = [vec![one.clone(); missing], own].concat();
    let all = [Batch, Token, Head, Feature];
    let mut perm = Vec::with_capacity(all.len());
    for role in all {
        let Some(axis) = axes.iter().position(|a| a.contains(&role)) else {
            return Ok(None);
        };
        if axes[axis].len() != 1 && padded[axis] != one {
            return Ok(None);
        }
        if !perm.contains(&axis) {
            perm.push(axis);
        }
    }
    if perm.len() != axes.len() {
        return Ok(None);
    }
    let same_for_tokens = axes
        .iter()
        .zip(&padded)
        .all(|(roles, size)| *size == one || !(roles.contains(&Batch) || roles.contains(&Token)));
    let padded = view(graph, value, padded)?;
    let moved = transpose(graph, padded, &perm)?;
    let Some(joined) = sizes.joined() else {
        return Ok(None);
    };
    // A size of 1 stands for each role of a merged axis.
    let by_role: Vec<Dim> = all
        .iter()
        .map(|role| {
            let axis = axes.iter().position(|a| a.contains(role));
            let merged = axis.is_none_or(|a| axes[a].len() != 1);
            let size =
                axis.and_then(|a| graph.shape(moved).get(perm.iter().position(|&p| p == a)?));
            if merged {
                one.clone()
            } else {
                size.cloned().unwrap_or(one.clone())
            }
        })
        .collect();
    let apart = view(graph, moved, by_role)?;
    let (shape, joined) = if same_for_tokens {
        (
            vec![sizes.heads.clone(), sizes.features.clone()],
            joined[2..].to_vec(),
        )
    } else {
        (all.iter().map(|&r| sizes.of(r).clone()).collect(), joined)
    };
    let apart = if same_for_tokens {
        let by_features = graph.shape(apart)[2..].to_vec();
        view(graph, apart, by_features)?
    } else {
        apart
    };
    let whole = if graph.shape(apart) == shape.as_slice() {
        apart
    } else {
        result(graph.add(Op::Broadcast(shape), &[Some(apart)])?)
    };
    Ok(Some(view(graph, whole, joined)?))
}

/// Puts `joined`, which is `[batch, tokens, heads · features]`, in the place of `value`, whose axes are `axes`, and of the
/// views and transpositions of it that join heads again.
pub(crate) fn split(
    graph: &mut Graph,
    joined: Value,
    value: Value,
    axes: Axes,
    sizes: &Sizes,
) -> Result<(), IrError> {
    let (mut value, mut axes) = (value, axes);
    while axes != joined_axes() {
        let next = graph.single_user(value).and_then(|user| {
            let moved = result(user);
            after(graph, moved, &axes, sizes).map(|axes| (moved, axes))
        });
        match next {
            Some((moved, moved_axes)) => (value, axes) = (moved, moved_axes),
            None => break,
        }
    }
    let shape = graph.shape(value).to_vec();
    let roles = axes.concat();
    let new = if axes == joined_axes() || roles == [Batch, Token, Head, Feature] {
        view(graph, joined, shape)?
    } else {
        let all = [Batch, Token, Head, Feature];
        let apart = all.iter().map(|&r| sizes.of(r).clone()).collect();
        let apart = view(graph, joined, apart)?;
        let perm: Vec<usize> = roles
            .iter()
            .filter_map(|role| all.iter().position(|r| r == role))
            .collect();
        let moved = transpose(graph, apart, &perm)?;
        view(graph, moved, shape)?
    };
    graph.replace_all_uses(value, new)
}

/// The view of `value` under this shape; `value` itself if it has it.
pub(crate) fn view(graph: &mut Graph, value: Value, shape: Vec<Dim>) -> Result<Value, IrError> {
    if graph.shape(value) == shape.as_slice() {
        return Ok(value);
    }
    graph.add(Op::View(shape), &[Some(value)]).map(result)
}

/// `value` with its axes in this order; `value` itself if that is theirs.
pub(crate) fn transpose(graph: &mut Graph, value: Value, perm: &[usize]) -> Result<Value, IrError> {
    if perm.iter().enumerate().all(|(i, &p)| i == p) {
        return Ok(value);
    }
    let perm = perm.iter().map(|&p| p as i64).collect();
    let attributes = Attributes::new().with("perm", Attribute::Ints(perm));
    graph.apply(Operator::Transpose, attributes, &[value])
}

/// The shape of joined heads.
pub(crate) fn joined_shape(sizes: &Sizes) -> Result<Vec<Dim>, IrError> {
    sizes.joined().ok_or_else(overflow)
}

fn overflow() -> IrError {
    IrError::Type {
        op: "view".to_owned(),
        message: "the size of joined heads overflows".to_owned(),
    }
}
