//! Removes operations that give back their operand, and merges chains of views, transpositions and casts.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[2, 3]) {
//!   const @one: f32[] = full(1)
//!   %0 = mul %x, @one : f32[2, 3]
//!   %1 = transpose %0 {perm = [1, 0]} : f32[3, 2]
//!   %2 = transpose %1 {perm = [1, 0]} : f32[2, 3]
//!   %3 = tanh %2 : f32[2, 3]
//!   return %3
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[2, 3]) {
//!   %0 = tanh %x : f32[2, 3]
//!   return %0
//! }
//! ```
//!
//! Identities: `x·1 = x/1 = x^1 = x - 0 = x + (-0) = x`; `x ∧ true = x ∨ false = x ∧ x = x`; `¬¬x = x`;
//! `where(true, a, b) = a`, `where(c, a, a) = a`; a permutation after a permutation is a permutation, one that moves only
//! dimensions of size 1 is a view; a view of a view is a view; a cast through a type that holds every value of the first is
//! the last cast; concatenating one tensor, repeating dimensions of size 1 (which broadcasts them), clipping at infinities,
//! slicing everything, padding by nothing, reducing dimensions of size 1, the maximum of one operand.
//!
//! Preconditions: the result has the operand's element type; where it is larger, the operand is broadcast. Constants
//! count whatever their shape, if all of their elements are the neutral one.
//!
//! Numeric effect: exact. `x + 0` stays for floating-point numbers that may be -0, because it turns -0 into 0; `x + (-0)` and
//! `x - 0` do not. Integers as floating-point numbers are not -0, nor are they times a constant that leaves none of them to
//! underflow; a sum is -0 only where both operands are.
//!
//! Source: algebra; IEEE 754-2019, section 6.3, for the signs of zero.

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, with_elements};

use crate::matcher::{ints, peel, peel_broadcasts, permutation, result};
use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "eliminate-identities",
    summary: "removes operations that give back their operand and merges chains",
    options: &[],
    new: || Box::new(EliminateIdentities),
};

struct EliminateIdentities;

impl Pass for EliminateIdentities {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, _: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let found: Vec<(Value, Same)> = graph
            .order()
            .into_iter()
            .filter_map(|node| Some((result(node), find(graph, node)?)))
            .collect();
        let mut rewrites = Rewrites::new();
        for (from, same) in found {
            match same {
                Same::As(operand) => rewrites.replace(graph, from, operand)?,
                Same::By(op, operand) => {
                    rewrites.replace_by(graph, from, op, &[operand])?;
                }
            }
        }
        Ok(rewrites.changed())
    }
}

/// What a value equals.
enum Same {
    /// Another value.
    As(Value),
    /// One operation on another value.
    By(Op, Value),
}

/// What the first result of a node equals, if that is simpler.
fn find(graph: &Graph, node: NodeId) -> Option<Same> {
    let value = result(node);
    match graph.op(node) {
        Op::Input(_) | Op::Const(_) | Op::Dims(_) | Op::If { .. } | Op::Loop { .. } => None,
        Op::Convert(layout) => {
            let x = graph.operand(node, 0)?;
            (graph.ty(x).layout == *layout).then_some(Same::As(x))
        }
        Op::View(_) => views(graph, value),
        Op::Broadcast(_) => broadcasts(graph, value),
        Op::Apply(operator, attributes) => {
            apply(graph, value, *operator, attributes).or_else(|| {
                let x = neutral(graph, value, *operator)?;
                broadcast_to(graph, x, value)
            })
        }
    }
}

/// `x` as the type of `value`, if it is of its element type.
fn broadcast_to(graph: &Graph, x: Value, value: Value) -> Option<Same> {
    let (from, to) = (graph.ty(x), graph.ty(value));
    if from.dtype != to.dtype {
        None
    } else if from.shape == to.shape {
        Some(Same::As(x))
    } else {
        Some(Same::By(Op::Broadcast(to.shape.clone()), x))
    }
}

/// Operators that change the order of elements, their type, or nothing at all.
fn apply(graph: &Graph, value: Value, operator: Operator, attributes: &Attributes) -> Option<Same> {
    let node = value.node;
    let x = graph.operand(node, 0)?;
    let same_type = graph.ty(x).same_value(graph.ty(value));
    let n_operands = graph.operands(node).len();
    let holds = match operator {
        Operator::Identity => true,
        Operator::Dropout => graph
            .operand(node, 2)
            .is_none_or(|training| every(graph, training, |t| t == 0.0)),
        Operator::Cast | Operator::CastLike => {
            return if same_type {
                Some(Same::As(x))
            } else {
                casts(graph, value, operator)
            };
        }
        Operator::Transpose => return transposes(graph, value),
        Operator::Reshape | Operator::Flatten | Operator::Squeeze | Operator::Unsqueeze => {
            return if same_type {
                Some(Same::As(x))
            } else {
                views(graph, value)
            };
        }
        Operator::Expand => same_type,
        Operator::Tile => return tiles(graph, value),
        Operator::Concat | Operator::Max | Operator::Min | Operator::Sum | Operator::Mean => {
            n_operands == 1
        }
        Operator::Clip => {
            let float = graph.ty(x).dtype.is_float();
            let open = |index, bound: f64| {
                graph
                    .operand(node, index)
                    .is_none_or(|v| float && every(graph, v, |c| c == bound))
            };
            open(1, f64::NEG_INFINITY) && open(2, f64::INFINITY)
        }
        Operator::Slice => {
            same_type
                && graph.operand(node, 4).is_none_or(|steps| {
                    ints(graph, steps).is_some_and(|s| s.iter().all(|&s| s == 1))
                })
        }
        Operator::Pad => ints(graph, graph.operand(node, 1)?)?
            .iter()
            .all(|&p| p == 0),
        Operator::Not => {
            let inner = peel(graph, x);
            return match graph.operator(inner) {
                Some(Operator::Not) => graph.operand(inner.node, 0).map(Same::As),
                _ => None,
            };
        }
        Operator::ReduceSum
        | Operator::ReduceMean
        | Operator::ReduceMax
        | Operator::ReduceMin
        | Operator::ReduceProd => return reduces_nothing(graph, value, attributes),
        _ => return None,
    };
    (holds && same_type).then_some(Same::As(x))
}

/// The operand that an elementwise operator gives back, broadcast.
fn neutral(graph: &Graph, value: Value, operator: Operator) -> Option<Value> {
    let operands: Vec<Value> = graph.operands(value.node).into_iter().flatten().collect();
    if operator == Operator::Where {
        let &[c, a, b] = operands.as_slice() else {
            return None;
        };
        return if a == b || every(graph, c, |c| c != 0.0) {
            Some(a)
        } else if every(graph, c, |c| c == 0.0) {
            Some(b)
        } else {
            None
        };
    }
    let &[a, b] = operands.as_slice() else {
        return None;
    };
    let float = graph.ty(value).dtype.is_float();
    let one = |v: Value| every(graph, v, |c| c == 1.0);
    let zero = |v: Value| every(graph, v, |c| c == 0.0);
    let either = |is: &dyn Fn(Value) -> bool| {
        if is(b) {
            Some(a)
        } else if is(a) {
            Some(b)
        } else {
            None
        }
    };
    match operator {
        Operator::Mul => either(&one),
        Operator::Div | Operator::Pow => one(b).then_some(a),
        Operator::Add if float => {
            either(&|v| every(graph, v, |c| c == 0.0 && c.is_sign_negative()))
                .or_else(|| either(&zero).filter(|&x| is_never_negative_zero(graph, x)))
        }
        Operator::Sub if float => {
            every(graph, b, |c| c == 0.0 && c.is_sign_positive()).then_some(a)
        }
        Operator::Add | Operator::BitwiseOr | Operator::BitwiseXor => either(&zero),
        Operator::Sub => zero(b).then_some(a),
        Operator::And | Operator::Or | Operator::Max | Operator::Min if a == b => Some(a),
        Operator::And => either(&|v| every(graph, v, |c| c != 0.0)),
        Operator::Or | Operator::Xor => either(&zero),
        _ => None,
    }
}

/// Whether no element of `value` is -0.
fn is_never_negative_zero(graph: &Graph, value: Value) -> bool {
    let is_integer = |v: Value| {
        graph.operator(v) == Some(Operator::Cast)
            && (graph.operand(v.node, 0)).is_some_and(|x| graph.ty(x).dtype.is_integer())
    };
    let has_no_negative_zero = |v| every(graph, v, |c| c != 0.0 || c.is_sign_positive());
    let operands = || graph.operands(value.node).into_iter().flatten();
    match graph.operator(value) {
        Some(Operator::Cast) => is_integer(value),
        Some(Operator::Mul) => {
            let is_normal = |c: f64| c >= f64::from(f32::MIN_POSITIVE) && c.is_finite();
            let has_range = matches!(graph.ty(value).dtype, DType::F32 | DType::F64);
            has_range
                && operands().filter(|&v| is_integer(v)).count() == 1
                && operands().any(|v| every(graph, v, is_normal))
        }
        Some(Operator::Add) => operands().any(has_no_negative_zero),
        _ => has_no_negative_zero(value),
    }
}

/// Whether `value` is a constant with elements, all of which satisfy `holds`.
fn every(graph: &Graph, value: Value, holds: impl Fn(f64) -> bool) -> bool {
    if let Some(elements) = ints(graph, value) {
        return !elements.is_empty() && elements.iter().all(|&x| holds(x as f64));
    }
    let Some(tensor) = graph.constant(peel_broadcasts(graph, value)) else {
        return false;
    };
    trait Wide: Copy {
        fn wide(self) -> f64;
    }
    macro_rules! wide {
        ($($ty:ty: $x:ident => $e:expr),*) => { $(impl Wide for $ty { fn wide(self) -> f64 { let $x = self; $e } })* };
    }
    wide!(f32: x => x.into(), f64: x => x, half::f16: x => x.into(), half::bf16: x => x.into(),
          i8: x => x.into(), i16: x => x.into(), i32: x => x.into(), i64: x => x as f64,
          u8: x => x.into(), u16: x => x.into(), u32: x => x.into(), u64: x => x as f64,
          bool: x => u8::from(x).into());
    with_elements!(tensor.data().view(), v => !v.is_empty() && v.iter().all(|x| holds(x.wide())))
}

/// Several views in a row: one view, or none if the shape is the first one's.
fn views(graph: &Graph, value: Value) -> Option<Same> {
    let x = crate::matcher::peel_views(graph, value);
    if graph.ty(x).same_value(graph.ty(value)) {
        return Some(Same::As(x));
    }
    let direct = graph.operand(value.node, 0)?;
    let to = graph.shape(value);
    (x != direct && same_size(graph.shape(x), to)).then(|| Same::By(Op::View(to.to_vec()), x))
}

/// Whether two shapes hold equally many elements whatever the sizes are.
pub(crate) fn same_size(a: &[Dim], b: &[Dim]) -> bool {
    match (Dim::product(a), Dim::product(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// Several broadcasts in a row: one, or none if nothing grows.
fn broadcasts(graph: &Graph, value: Value) -> Option<Same> {
    let direct = graph.operand(value.node, 0)?;
    let mut x = peel(graph, direct);
    while let Op::Broadcast(_) = graph.op(x.node) {
        x = peel(graph, graph.operand(x.node, 0)?);
    }
    if graph.ty(x).same_value(graph.ty(value)) {
        return Some(Same::As(x));
    }
    (x != direct).then(|| Same::By(Op::Broadcast(graph.shape(value).to_vec()), x))
}

/// A repetition of dimensions of size 1: a broadcast.
fn tiles(graph: &Graph, value: Value) -> Option<Same> {
    let x = graph.operand(value.node, 0)?;
    let mut sizes = graph.shape(x).iter().zip(graph.shape(value));
    let one = Dim::fixed(1);
    // Where the sizes are the same, so is the number of repetitions 1, or there is nothing to repeat.
    let once = sizes.all(|(from, to)| from == to || *from == one);
    once.then(|| broadcast_to(graph, x, value))?
}

/// Transpositions in a row: one, a view if only dimensions of size 1 move, or none.
fn transposes(graph: &Graph, value: Value) -> Option<Same> {
    let mut perm = permutation(graph, value.node)?;
    let direct = graph.operand(value.node, 0)?;
    let mut x = peel(graph, direct);
    while let Some(inner) = permutation(graph, x.node) {
        perm = perm.iter().map(|&p| inner[p]).collect();
        x = peel(graph, graph.operand(x.node, 0)?);
    }
    let shape = graph.shape(x);
    let moved = perm.iter().filter(|&&p| shape[p] != Dim::fixed(1));
    if moved.is_sorted() {
        let to = graph.shape(value);
        return Some(if shape == to {
            Same::As(x)
        } else {
            Same::By(Op::View(to.to_vec()), x)
        });
    }
    if x == direct {
        return None;
    }
    let perm = perm.iter().map(|&p| p as i64).collect();
    let attributes = Attributes::new().with("perm", Attribute::Ints(perm));
    Some(Same::By(Op::Apply(Operator::Transpose, attributes), x))
}

/// A cast of a cast through a type that holds every value of the first.
fn casts(graph: &Graph, value: Value, operator: Operator) -> Option<Same> {
    let inner = graph.operand(value.node, 0)?;
    if operator != Operator::Cast || graph.operator(inner) != Some(Operator::Cast) {
        return None;
    }
    let x = graph.operand(inner.node, 0)?;
    let (a, b, c) = (
        graph.ty(x).dtype,
        graph.ty(inner).dtype,
        graph.ty(value).dtype,
    );
    // A float out of an integer's range casts as the platform likes, an integer out of range wraps.
    let wraps = b.is_float() && a.is_integer() && c.is_integer() && !holds_all(c, a);
    if !holds_all(b, a) || wraps {
        return None;
    }
    if a == c {
        return Some(Same::As(x));
    }
    Some(Same::By(graph.op(value.node).clone(), x))
}

/// Whether type `wide` holds every value of type `narrow`, with 0 and 1 for `bool`.
fn holds_all(wide: DType, narrow: DType) -> bool {
    /// Bits of magnitude, whether there is a sign, and for floats bits of exponent.
    fn extent(dtype: DType) -> (u32, bool, u32) {
        match dtype {
            DType::Bool => (1, false, 0),
            DType::U8 => (8, false, 0),
            DType::U16 => (16, false, 0),
            DType::U32 => (32, false, 0),
            DType::U64 => (64, false, 0),
            DType::I8 => (7, true, 0),
            DType::I16 => (15, true, 0),
            DType::I32 => (31, true, 0),
            DType::I64 => (63, true, 0),
            DType::BF16 => (8, true, 8),
            DType::F16 => (11, true, 5),
            DType::F32 => (24, true, 8),
            DType::F64 => (53, true, 11),
        }
    }
    let ((wb, ws, we), (nb, ns, ne)) = (extent(wide), extent(narrow));
    // Every float type here reaches beyond the integers that its significand holds exactly.
    wide == narrow || (wide != DType::Bool && nb <= wb && (ws || !ns) && (ne <= we || ne == 0))
}

/// A reduction of dimensions of size 1 only.
fn reduces_nothing(graph: &Graph, value: Value, attributes: &Attributes) -> Option<Same> {
    let x = graph.operand(value.node, 0)?;
    let rank = graph.ty(x).rank();
    let axes = match graph.operand(value.node, 1) {
        Some(axes) => ints(graph, axes)?,
        None if attributes.int_or("noop_with_empty_axes", 0) == 1 => Vec::new(),
        None => return None,
    };
    if axes.is_empty() && attributes.int_or("noop_with_empty_axes", 0) != 1 {
        return None;
    }
    for axis in axes {
        let axis = crate::matcher::normalize_axis(axis, rank)?;
        if graph.shape(x)[axis] != Dim::fixed(1) {
            return None;
        }
    }
    if graph.ty(x).same_value(graph.ty(value)) {
        return Some(Same::As(x));
    }
    Some(Same::By(Op::View(graph.shape(value).to_vec()), x))
}
