//! Removes neurons, heads and channels that no output observes or that are constant.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[s, 2]) dims(s) {
//!   const @w1: f32[3, 2] = [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]
//!   const @b1: f32[3] = [0.5, 2.0, 0.25]
//!   const @w2: f32[2, 3] = [[1.0, 3.0, 0.0], [2.0, 4.0, 0.0]]
//!   const @b2: f32[2] = [0.125, 0.25]
//!   %0 = linear %x, @w1, @b1 : f32[s, 3]
//!   %1 = relu %0 : f32[s, 3]
//!   %2 = linear %1, @w2, @b2 : f32[s, 2]
//!   return %2
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[s, 2]) dims(s) {
//!   const @w1: f32[1, 2] = [[1.0, 2.0]]
//!   const @b1: f32[1] = [0.5]
//!   const @w2: f32[2, 1] = [[1.0], [2.0]]
//!   const @b2: f32[2] = [6.125, 8.25]
//!   %0 = linear %x, @w1, @b1 : f32[s, 1]
//!   %1 = relu %0 : f32[s, 1]
//!   %2 = linear %1, @w2, @b2 : f32[s, 2]
//!   return %2
//! }
//! ```
//!
//! Identities, for a layer `Y = H W2ᵀ + b2` that alone reads `H`:
//!
//! ```text
//! column i of W2 is zero                            H[:, i] is not observed
//! H[:, i] = c                                       Y = (the rest) + c · W2[:, i]
//! row i of W1 is zero                               f(X W1ᵀ + b1)[:, i] = f(b1[i])
//! softmax(Q Kᵀ) V, V[:, i] = c                      the result's channel i is c: probabilities sum to one
//! Q[:, i] = 0, or K[:, i] one number for all keys   channel i adds nothing to scores, or one number to all of them
//! ```
//!
//! `H` is what activations, products of two layers (gated units) and views make of layers; or the result of an attention.
//! A head goes when all of its value channels do; a pair of query and key channels goes from every head where each head has
//! one to spare, and value channels alike, since heads are equally wide. What is left runs at its own width: nothing is padded
//! to a multiple. Neurons of a block of four that lost one go behind the others, so that blocks in the weights stay aligned. If nothing
//! is left the layer is its bias, and where that is zero a sum with it is its other addend.
//!
//! Preconditions: constant weights, a residual at the last layer alone, and one use of each value between the layers. Inputs are taken to be finite: `0 · x`
//! is 0.
//!
//! Numeric effect: reassociates; exact but for the rounding of constants folded into biases and the sign of a zero.
//!
//! Source: Kurtic et al., "ZipLM" (arXiv:2302.04089), whose structures these are.

use std::sync::Arc;

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, Operator, Tensor, evaluate};

use crate::layer::{Layer, regrouped};
use crate::matcher::{binary, result};
use crate::polynomial::is_dead;
use crate::quantized::rounds;
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "remove-dead-units",
    summary: "remove neurons, heads and channels that are constant or that nothing observes",
    options: &[],
    new: || Box::new(RemoveDeadUnits),
};

struct RemoveDeadUnits;

/// Steps between two layers that are looked through.
const MAX_DEPTH: usize = 8;

impl Pass for RemoveDeadUnits {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        for node in graph.order() {
            if is_dead(graph, result(node)) {
                continue;
            }
            changed |= match graph.op(node).operator() {
                Some(Operator::Linear) => neurons(graph, node, cx)?,
                Some(Operator::ScaledDotProductAttention) => heads(graph, node, cx)?,
                _ => Changed::No,
            };
        }
        // Last, so that the layers that read one fold its constants through what is between.
        for node in graph.order() {
            if let Some(layer) = Layer::of(graph, result(node))
                && !layer.live_rows(graph).contains(&true)
            {
                cx.applied(graph, node, "its weights are zero: it is its bias");
                let bias = layer.bias(graph);
                changed |= become_bias(graph, &layer, &bias)?;
            }
        }
        Ok(changed)
    }
}

/// Removes inputs of the layer `node` that are constant or not observed, together with what computes them.
fn neurons(
    graph: &mut Graph,
    node: NodeId,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let Some(layer) = Layer::of(graph, result(node)) else {
        return Ok(Changed::No);
    };
    let mut observed = layer.live_columns(graph);
    let Some(units) = units(graph, layer.x, MAX_DEPTH) else {
        return Ok(Changed::No);
    };
    let constants = units.constants(graph, layer.k);
    observed
        .iter_mut()
        .zip(&constants)
        .for_each(|(live, c)| *live &= c.is_none());
    let kept = in_whole_blocks(positions(&observed));
    if kept.len() == layer.k {
        return Ok(Changed::No);
    }
    let message = format!(
        "removed {} of {} neurons, {} weights",
        layer.k - kept.len(),
        layer.k,
        (layer.k - kept.len()) * (layer.n + units.fan_in())
    );
    cx.applied(graph, node, message);
    let bias = layer.bias_with(graph, &constants);
    if kept.is_empty() {
        return become_bias(graph, &layer, &bias);
    }
    let x = units.narrowed(graph, &kept)?;
    let rows: Vec<usize> = (0..layer.n).collect();
    let to = layer.rebuilt(graph, x, &rows, &kept, &bias)?;
    graph.replace_all_uses(result(node), to)?;
    Ok(Changed::Yes)
}

/// Positions that are true.
fn positions(flags: &[bool]) -> Vec<usize> {
    (0..flags.len()).filter(|&i| flags[i]).collect()
}

/// Consecutive units whose weights may be blocks of a format.
const BLOCK: usize = 4;

/// The same units with those of whole blocks before those of blocks that lost one.
fn in_whole_blocks(kept: Vec<usize>) -> Vec<usize> {
    let (whole, broken): (Vec<_>, Vec<_>) = kept
        .chunk_by(|a, b| a / BLOCK == b / BLOCK)
        .partition(|block| block.len() == BLOCK);
    [whole, broken].concat().concat()
}

/// Puts what `bias` makes of a layer that multiplies nothing in its place.
fn become_bias(graph: &mut Graph, layer: &Layer, bias: &[f32]) -> Result<Changed, PassError> {
    let y = result(layer.node);
    let Some(bias) = layer.at_zero(graph, bias.to_vec()) else {
        return Ok(Changed::No);
    };
    let is_zero = bias.iter().all(|&b| b == 0.0);
    if is_zero && let Some(residual) = layer.residual {
        graph.replace_all_uses(y, residual)?;
        return Ok(Changed::Yes);
    }
    if is_zero
        && let Some(user) = graph.single_user(y)
        && let Some((a, b)) = binary(graph, result(user), Operator::Add)
    {
        let other = if a == y { b } else { a };
        if other != y && graph.ty(other).same_value(graph.ty(result(user))) {
            graph.replace_all_uses(result(user), other)?;
            return Ok(Changed::Yes);
        }
    }
    let vector = graph.add_const("bias", Arc::new(Tensor::new([bias.len()], bias.to_vec())));
    let shape = graph.shape(y).to_vec();
    let mut to = result(graph.add(Op::Broadcast(shape), &[Some(vector)])?);
    if let Some(residual) = layer.residual {
        to = graph.apply(Operator::Add, Attributes::new(), &[residual, vector])?;
    }
    graph.replace_all_uses(y, to)?;
    Ok(Changed::Yes)
}

/// How the features of a value are computed, each from the same feature of layers.
enum Units {
    Layer(Layer),
    /// An elementwise function of one operand.
    Activation(NodeId, Box<Units>),
    Product(Box<[Units; 2]>),
    /// The same features, with the tokens grouped as in this value.
    View(Value, Box<Units>),
}

/// How the features of `value` are computed, if nothing else uses it or what it is computed from.
fn units(graph: &Graph, value: Value, depth: usize) -> Option<Units> {
    let depth = depth.checked_sub(1)?;
    graph.single_user(value)?;
    if let Some(layer) = Layer::of(graph, value) {
        return layer.residual.is_none().then_some(Units::Layer(layer));
    }
    if let Some(x) = regrouped(graph, value) {
        return Some(Units::View(value, Box::new(units(graph, x, depth)?)));
    }
    match graph.operator(value)? {
        Operator::Relu
        | Operator::Gelu
        | Operator::Tanh
        | Operator::Sigmoid
        | Operator::Swish
        | Operator::Identity => {
            let x = units(graph, graph.operand(value.node, 0)?, depth)?;
            Some(Units::Activation(value.node, Box::new(x)))
        }
        Operator::Mul => {
            let (a, b) = binary(graph, value, Operator::Mul)?;
            let same = |v| graph.ty(v).same_value(graph.ty(value));
            let both = same(a) && same(b);
            let factors = both.then(|| Some([units(graph, a, depth)?, units(graph, b, depth)?]))?;
            Some(Units::Product(Box::new(factors?)))
        }
        _ => None,
    }
}

impl Units {
    /// Features that are the same number for all inputs, of `n`.
    fn constants(&self, graph: &Graph, n: usize) -> Vec<Option<f32>> {
        match self {
            Units::Layer(layer) => {
                let rows = layer.live_rows(graph).into_iter();
                let Some(at_zero) = layer.at_zero(graph, layer.bias(graph)) else {
                    return vec![None; n];
                };
                let constant = |(live, b): (bool, f32)| (!live).then_some(b);
                rows.zip(at_zero).map(constant).collect()
            }
            Units::Activation(node, x) => {
                let of_x = x.constants(graph, n);
                let numbers = of_x.iter().map(|c| c.unwrap_or(0.0)).collect::<Vec<f32>>();
                let tensor = Tensor::new([n], numbers);
                let Some(op) = graph.op(*node).operator() else {
                    return vec![None; n];
                };
                let results = evaluate(op, graph.attributes(*node), &[Some(tensor.view())], 1);
                let computed = results.ok().and_then(|r| r.into_iter().next());
                match computed.as_ref().and_then(|t| t.as_slice::<f32>()) {
                    Some(y) => of_x.iter().zip(y).map(|(c, &y)| c.map(|_| y)).collect(),
                    None => vec![None; n],
                }
            }
            Units::Product(factors) => {
                let [a, b] = [0, 1].map(|i| factors[i].constants(graph, n));
                let product = |(a, b): (Option<f32>, Option<f32>)| match (a, b) {
                    (Some(a), Some(b)) => Some(a * b),
                    (Some(0.0), None) | (None, Some(0.0)) => Some(0.0),
                    _ => None,
                };
                a.into_iter().zip(b).map(product).collect()
            }
            Units::View(_, x) => x.constants(graph, n),
        }
    }

    /// Weights that compute one feature.
    fn fan_in(&self) -> usize {
        match self {
            Units::Layer(layer) => layer.k,
            Units::Activation(_, x) | Units::View(_, x) => x.fan_in(),
            Units::Product(factors) => factors[0].fan_in() + factors[1].fan_in(),
        }
    }

    /// The value with these features alone.
    fn narrowed(&self, graph: &mut Graph, kept: &[usize]) -> Result<Value, PassError> {
        match self {
            Units::Layer(layer) => with_rows(graph, layer, kept),
            Units::Activation(node, x) => {
                let x = x.narrowed(graph, kept)?;
                let to = graph.add(graph.op(*node).clone(), &[Some(x)])?;
                Ok(result(to))
            }
            Units::Product(factors) => {
                let a = factors[0].narrowed(graph, kept)?;
                let b = factors[1].narrowed(graph, kept)?;
                Ok(graph.apply(Operator::Mul, Attributes::new(), &[a, b])?)
            }
            Units::View(value, x) => {
                let x = x.narrowed(graph, kept)?;
                let mut shape = graph.shape(*value).to_vec();
                if let Some(last) = shape.last_mut() {
                    *last = kept.len().into();
                }
                Ok(result(graph.add(Op::View(shape), &[Some(x)])?))
            }
        }
    }
}

/// The layer with these outputs alone.
fn with_rows(graph: &mut Graph, layer: &Layer, rows: &[usize]) -> Result<Value, PassError> {
    let bias = layer.bias(graph);
    let bias: Vec<f32> = rows.iter().map(|&r| bias[r]).collect();
    let columns: Vec<usize> = (0..layer.k).collect();
    layer.rebuilt(graph, layer.x, rows, &columns, &bias)
}

/// What an attention is computed from and read by, where these are layers of its own.
struct Attention {
    queries_and_keys: Option<[Units; 2]>,
    values: Option<Units>,
    reader: Option<Layer>,
    n_heads: usize,
    /// Channels of a head: of queries and keys, of values.
    widths: [usize; 2],
}

impl Attention {
    fn of(graph: &Graph, node: NodeId) -> Option<Attention> {
        let n_heads = usize::try_from(graph.attributes(node).int("num_heads")?).ok()?;
        let width = |i: usize| {
            let hidden = graph.shape(graph.operand(node, i)?).last()?.as_fixed()?;
            let width = usize::try_from(hidden).ok()?.checked_div(n_heads)?;
            (0 < width).then_some(width)
        };
        let layer = |i: usize| {
            let found = units(graph, graph.operand(node, i)?, MAX_DEPTH)?;
            found.is_linear(graph).then_some(found)
        };
        let queries_and_keys = layer(0).and_then(|q| Some([q, layer(1)?]));
        Some(Attention {
            queries_and_keys,
            values: layer(2),
            reader: Layer::after(graph, result(node)),
            n_heads,
            widths: [width(0)?, width(2)?],
        })
    }

    /// Value channels that no output observes or that are constant, and the constants, where both sides are layers.
    fn dead_values(&self, graph: &Graph) -> Option<(Vec<bool>, Vec<Option<f32>>)> {
        let (values, reader) = (self.values.as_ref()?, self.reader.as_ref()?);
        let constants = values.constants(graph, reader.k);
        let columns = reader.live_columns(graph).into_iter();
        let dead = columns
            .zip(&constants)
            .map(|(live, c)| !live || c.is_some());
        Some((dead.collect(), constants))
    }

    /// Channels that do not tell one key from another.
    fn dead_scores(&self, graph: &Graph) -> Option<Vec<bool>> {
        let [queries, keys] = self.queries_and_keys.as_ref()?;
        let n = self.n_heads * self.widths[0];
        let (q, k) = (queries.constants(graph, n), keys.constants(graph, n));
        let dead = |(q, k): (Option<f32>, Option<f32>)| q == Some(0.0) || k.is_some();
        Some(q.into_iter().zip(k).map(dead).collect())
    }
}

impl Units {
    /// True for a plain layer, or a view of one.
    fn is_linear(&self, graph: &Graph) -> bool {
        match self {
            Units::Layer(layer) => layer.is_plain(graph),
            Units::View(_, x) => x.is_linear(graph),
            Units::Activation(..) | Units::Product(_) => false,
        }
    }
}

/// Channels of `heads` to keep, `width` each: those that are not dead, and dead ones where other heads have more.
fn kept_channels(dead: &[bool], width: usize, heads: &[usize]) -> Vec<usize> {
    let of = |h: usize| h * width..(h + 1) * width;
    let n_live = |&h: &usize| of(h).filter(|&c| !dead[c]).count();
    let kept_width = heads.iter().map(n_live).max().unwrap_or(0).max(1);
    let mut kept = Vec::new();
    for &h in heads {
        let mut spare = kept_width.saturating_sub(n_live(&h));
        kept.extend(of(h).filter(|&c| {
            let fills = dead[c] && 0 < spare;
            spare -= usize::from(fills);
            !dead[c] || fills
        }));
    }
    kept
}

/// Removes dead heads of an attention, and dead channels of all of its heads.
fn heads(graph: &mut Graph, node: NodeId, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
    // A head whose probabilities are read is observed.
    let stays = rounds(graph, node) || graph.n_results(node) != 1;
    let Some(a) = Attention::of(graph, node).filter(|_| !stays) else {
        return Ok(Changed::No);
    };
    let [d, dv] = a.widths;
    let all: Vec<usize> = (0..a.n_heads).collect();
    let values = a.dead_values(graph);
    let live: Vec<usize> = match (&values, &a.queries_and_keys) {
        (Some((dead, _)), _) if dead.iter().all(|&d| d) => Vec::new(),
        (Some((dead, _)), Some(_)) => {
            let is_live = |&h: &usize| dead[h * dv..(h + 1) * dv].contains(&false);
            all.iter().copied().filter(is_live).collect()
        }
        _ => all.clone(),
    };
    if let (true, Some(reader), Some((_, constants))) = (live.is_empty(), &a.reader, &values) {
        cx.applied(graph, node, format!("all {} heads are dead", a.n_heads));
        let bias = reader.bias_with(graph, constants);
        return become_bias(graph, reader, &bias);
    }
    let of_scores = a.dead_scores(graph);
    let qk_kept = of_scores.map(|dead| kept_channels(&dead, d, &live));
    let v_kept = values
        .as_ref()
        .map(|(dead, _)| kept_channels(dead, dv, &live));
    let (qk_len, v_len) = (a.n_heads * d, a.n_heads * dv);
    let narrower = |kept: &Option<Vec<usize>>, n: usize| kept.as_ref().is_some_and(|k| k.len() < n);
    if !narrower(&qk_kept, qk_len) && !narrower(&v_kept, v_len) {
        return Ok(Changed::No);
    }
    let per_head = |kept: &Option<Vec<usize>>, width: usize| {
        kept.as_ref().map_or(width, |k| k.len() / live.len())
    };
    let message = format!(
        "{} of {} heads are left, of {} and {} channels where there were {d} and {dv}",
        live.len(),
        a.n_heads,
        per_head(&qk_kept, d),
        per_head(&v_kept, dv),
    );
    cx.applied(graph, node, message);

    let mut operands = graph.operands(node);
    if let (Some([queries, keys]), Some(kept)) = (&a.queries_and_keys, &qk_kept) {
        operands[0] = Some(queries.narrowed(graph, kept)?);
        operands[1] = Some(keys.narrowed(graph, kept)?);
    }
    if let (Some(units), Some(kept)) = (&a.values, &v_kept) {
        operands[2] = Some(units.narrowed(graph, kept)?);
    }
    for (i, from_the_end) in [(4, 3), (5, 2), (7, 3), (9, 3)] {
        if let Some(bias) = operands.get(i).copied().flatten()
            && live.len() < a.n_heads
        {
            let axis = graph.ty(bias).rank().checked_sub(from_the_end);
            operands[i] = Some(bias_of_heads(graph, bias, axis, &live)?);
        }
    }
    let mut attributes = graph.attributes(node).clone();
    attributes.set("num_heads", Attribute::Int(live.len() as i64));
    let op = Op::Apply(Operator::ScaledDotProductAttention, attributes);
    let rebuilt = graph.add(op, &operands)?;
    let name = graph.node_name(node).to_owned();
    graph.set_node_name(rebuilt, &name);
    let (Some(reader), Some(kept), Some((_, constants))) = (&a.reader, &v_kept, &values) else {
        graph.replace_all_uses(result(node), result(rebuilt))?;
        return Ok(Changed::Yes);
    };
    // A dead channel that stays still computes its constant.
    let mut removed = constants.clone();
    kept.iter().for_each(|&c| removed[c] = None);
    let bias = reader.bias_with(graph, &removed);
    let x = regroup_as(graph, result(rebuilt), reader.x)?;
    let rows: Vec<usize> = (0..reader.n).collect();
    let to = reader.rebuilt(graph, x, &rows, kept, &bias)?;
    graph.replace_all_uses(result(reader.node), to)?;
    Ok(Changed::Yes)
}

/// `value` with its tokens grouped as those of `like`.
fn regroup_as(graph: &mut Graph, value: Value, like: Value) -> Result<Value, PassError> {
    let mut shape = graph.shape(like).to_vec();
    if let (Some(last), Some(width)) = (shape.last_mut(), graph.shape(value).last()) {
        *last = width.clone();
    }
    Ok(crate::heads::view(graph, value, shape)?)
}

/// The bias of scores of these heads; `axis` is that of heads.
fn bias_of_heads(
    graph: &mut Graph,
    bias: Value,
    axis: Option<usize>,
    heads: &[usize],
) -> Result<Value, PassError> {
    let Some(axis) = axis else {
        return Ok(bias);
    };
    if graph.shape(bias)[axis].as_fixed() == Some(1) {
        return Ok(bias);
    }
    let indices = heads.iter().map(|&h| h as i64).collect::<Vec<i64>>();
    let indices = graph.add_const("heads", Arc::new(Tensor::new([heads.len()], indices)));
    let attributes = Attributes::new().with("axis", Attribute::Int(axis as i64));
    Ok(graph.apply(Operator::Gather, attributes, &[bias, indices])?)
}
