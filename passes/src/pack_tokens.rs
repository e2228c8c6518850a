//! Computes no padding: tokens that no output observes leave the batch, and what is left is one list of tokens.
//!
//! Before:
//! ```ir
//! graph @g(%ids: i64[b, s], %mask: i64[b, s]) dims(b, s) {
//!   const @table: f32[9, 4] = random(seed = 1)
//!   const @w: f32[4, 4] = random(seed = 2)
//!   const @first: i64[] = 0
//!   %0 = embedding_lookup %ids, @table : f32[b, s, 4]
//!   %1 = linear %0, @w : f32[b, s, 4]
//!   %2 = scaled_dot_product_attention %1, %1, %1, %mask {num_heads = 2, scale = 0.5} : f32[b, s, 4]
//!   %3 = gather %2, @first {axis = 1} : f32[b, 4]
//!   return %3
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%ids: i64[b, s], %mask: i64[b, s]) dims(b, s, u0) {
//!   const @table: f32[9, 4] = random(seed = 1)
//!   const @w: f32[4, 4] = random(seed = 2)
//!   %0 = view %ids : i64[b*s]
//!   %1, %2 = token_packing %mask {keep_first = 1} : i64[u0], i64[b]
//!   %3 = gather %0, %1 {axis = 0} : i64[u0]
//!   %4 = embedding_lookup %3, @table : f32[u0, 4]
//!   %5 = linear %4, @w : f32[u0, 4]
//!   %6 = view %mask : i64[b*s]
//!   %7 = gather %6, %1 {axis = 0} : i64[u0]
//!   %8 = packed_attention %5, %5, %5, %2, %2, %7 {masked_value = -3.4028235e38, num_heads = 2, scale = 0.5} : f32[u0, 4]
//!   %9 = gather %8, %2 {axis = 0} : f32[b, 4]
//!   return %9
//! }
//! ```
//!
//! Identity: an operator that treats every token alike commutes with leaving tokens out, and a key whose score is masked
//! has weight 0 in the softmax. A sequence of nothing but padding keeps all its tokens: there the masked scores are all
//! there is.
//!
//! Preconditions: tokens begin at embedding lookups and pass through operators that treat them alike and through attention
//! under one key mask, without a bias, whose masked value is at most -10000. They end where padding is not observed: as keys
//! and values of attention under that mask, as the first token of each sequence, or in a product with a factor that is zero
//! where the mask is. Whatever else observes a token (an output for every token, a mean over all of them) keeps it and what
//! it is computed from in the batch, with a remark.
//!
//! Numeric effect: exact while values are finite and the scores of a query differ by less than 9,800, so that `exp` of a
//! masked score is 0 in f32.
//!
//! Source: Zeng et al., "Boosting Distributed Training Performance of the Unpadded BERT Model" (arXiv:2208.08124).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{AttentionRounding, Attribute, Attributes, DType, Operator, Tensor};

use crate::analysis::access::is_elementwise;
use crate::analysis::padding::{MASKED, zero_where_masked};
use crate::matcher::{axis_of, ints, result};
use crate::{Changed, Pass, PassContext, PassError, Rewrites};

/// The pass `pack-tokens`.
pub(crate) struct PackTokens;

impl Pass for PackTokens {
    fn name(&self) -> &'static str {
        "pack-tokens"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut masks = Vec::new();
        for node in graph.order() {
            if let Some(mask) = masked_attention(graph, node)
                && !masks.contains(&mask)
            {
                masks.push(mask);
            }
        }
        let mut changed = Changed::No;
        for mask in masks {
            let (inside, reason) = Region::find(graph, mask);
            let products = |n: &&NodeId| !matches!(inside[n], Kind::Embedding);
            if inside.keys().any(|n| products(&n)) {
                pack(graph, cx, mask, &inside)?;
                changed = Changed::Yes;
            } else if let Some((node, reason)) = reason {
                cx.missed(graph, node, format!("padding is computed: {reason}"));
            }
        }
        Ok(changed)
    }
}

/// The key mask of attention that this pass understands.
fn masked_attention(graph: &Graph, node: NodeId) -> Option<Value> {
    if graph.op(node).operator() != Some(Operator::ScaledDotProductAttention) {
        return None;
    }
    let masked_value = match graph.attribute(node, "masked_value") {
        Some(Attribute::Float(v)) => *v,
        _ => f32::MIN,
    };
    let has_bias = graph.operands(node).iter().skip(4).any(Option::is_some);
    let rounding = AttentionRounding::of(graph.attributes(node)).unwrap_or_default();
    let rounded = rounding.masked.map_or(masked_value, |r| {
        let [scale, least, _] = r.numbers();
        masked_value.max(scale * least)
    });
    let understood = !has_bias && rounded <= MASKED && graph.n_results(node) == 1;
    graph.operand(node, 3).filter(|_| understood)
}

/// How an operator treats tokens.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// It looks them up.
    Embedding,
    /// Each alike; these operands hold tokens.
    TokenWise(Vec<usize>),
    /// Attention under the mask.
    Attention,
}

impl Kind {
    fn token_operands(&self) -> &[usize] {
        match self {
            Kind::Embedding => &[],
            Kind::TokenWise(operands) => operands,
            Kind::Attention => &[0, 1, 2],
        }
    }
}

/// Where packed tokens go that are not packed any more behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Exit {
    /// The first token of each sequence.
    First,
    /// Keys and values of attention whose queries are not packed.
    Attention,
    /// A product with zero for padding.
    Masked,
}

/// Why a node is not packed.
type Reason = (NodeId, String);

/// The greatest set of nodes that can be packed under one mask.
struct Region<'g> {
    graph: &'g Graph,
    mask: Value,
    inside: HashMap<NodeId, Kind>,
}

impl Region<'_> {
    /// The nodes, and why the first that was left out was.
    fn find(graph: &Graph, mask: Value) -> (HashMap<NodeId, Kind>, Option<Reason>) {
        let order = graph.order();
        let mut region = Region {
            graph,
            mask,
            inside: HashMap::new(),
        };
        for &node in &order {
            if let Some(kind) = region.kind(node) {
                region.inside.insert(node, kind);
            }
        }
        // Each round of the loop leaves a node out for good or has one node fewer to look at.
        let mut reason = None;
        let mut waiting = order;
        while let Some(node) = waiting.pop() {
            if !region.inside.contains_key(&node) {
                continue;
            }
            let Some(why) = region.obstacle(node) else {
                continue;
            };
            if let Some(why) = why {
                reason.get_or_insert((node, why));
            }
            let kind = region.inside.remove(&node).unwrap_or(Kind::Embedding);
            let operands = kind.token_operands().iter();
            waiting.extend(operands.filter_map(|&i| Some(graph.operand(node, i)?.node)));
            for (user, _) in graph.users(result(node)) {
                waiting.push(user);
                // Keys and values leave together.
                let siblings = graph.operands(user).into_iter().flatten();
                waiting.extend(siblings.map(|v| v.node));
            }
        }
        (region.inside, reason)
    }

    fn is_tokens(&self, value: Value) -> bool {
        let (shape, of_mask) = (self.graph.shape(value), self.graph.shape(self.mask));
        shape.len() == 3 && shape[..2] == *of_mask
    }

    /// Whether a value has one number for each sequence.
    fn is_alike(&self, value: Value) -> bool {
        !self.is_tokens(value) && is_of_sequences(self.graph, self.mask, value)
    }

    /// How a node treats tokens, if it can be packed at all.
    fn kind(&self, node: NodeId) -> Option<Kind> {
        let graph = self.graph;
        let operator = graph.op(node).operator()?;
        if graph.n_results(node) != 1 || !self.is_tokens(result(node)) {
            return None;
        }
        let rank = |i: usize| graph.operand(node, i).map_or(0, |v| graph.ty(v).rank());
        let n = graph.operands(node).len();
        let kind = match operator {
            Operator::EmbeddingLookup => return Some(Kind::Embedding),
            Operator::ScaledDotProductAttention => {
                let fits = masked_attention(graph, node) == Some(self.mask)
                    && (0..3).all(|i| graph.operand(node, i).is_some_and(|v| self.is_tokens(v)));
                return fits.then_some(Kind::Attention);
            }
            Operator::Linear if rank(2) <= 1 => match graph.operand(node, 3) {
                Some(_) => vec![0, 3],
                None => vec![0],
            },
            Operator::LayerNormalization | Operator::RMSNormalization
                if axis_of(graph, node, 3) == Some(2) && rank(1) <= 1 && rank(2) <= 1 =>
            {
                vec![0]
            }
            Operator::MatMul | Operator::MatMulInteger
                if rank(1) == 2 && rank(2) == 0 && rank(3) <= 1 =>
            {
                vec![0]
            }
            Operator::IntegerLinear => vec![0],
            Operator::QuantizeLinear | Operator::DequantizeLinear
                if rank(1) == 0 && rank(2) == 0 =>
            {
                vec![0]
            }
            Operator::Gelu
            | Operator::Relu
            | Operator::Tanh
            | Operator::Sigmoid
            | Operator::Swish
            | Operator::Erf
            | Operator::Exp
            | Operator::Sqrt => vec![0],
            _ if is_elementwise(operator) => {
                let alike = |i| graph.operand(node, i).is_some_and(|v| self.is_alike(v));
                (0..n).filter(|&i| 1 < rank(i) && !alike(i)).collect()
            }
            _ => return None,
        };
        let fits = |&i: &usize| graph.operand(node, i).is_some_and(|v| self.is_tokens(v));
        (!kind.is_empty() && kind.iter().all(fits)).then_some(Kind::TokenWise(kind))
    }

    /// What keeps a node out of the region: a reason of its own, or (`Some(None)`) another node that is out.
    fn obstacle(&self, node: NodeId) -> Option<Option<String>> {
        let graph = self.graph;
        if graph.is_output(result(node)) {
            return Some(Some("an output has a value for every token".to_owned()));
        }
        let packed = |v: Value| v.result == 0 && self.inside.contains_key(&v.node);
        for &i in self.inside[&node].token_operands() {
            match graph.operand(node, i) {
                Some(v) if packed(v) => {}
                Some(v) if self.kind(v.node).is_none() => {
                    let op = graph.op(v.node).text();
                    return Some(Some(format!("its operand comes from {op}")));
                }
                _ => return Some(None),
            }
        }
        for (user, operand) in graph.users(result(node)) {
            let accepts = (self.inside.get(&user))
                .is_some_and(|kind| kind.token_operands().contains(&operand));
            if accepts || self.exit(user, operand).is_some() {
                continue;
            }
            return Some(self.kind(user).is_none().then(|| {
                let op = graph.op(user).text();
                format!("{op} observes every token")
            }));
        }
        None
    }

    /// What kind of exit the operand of a node outside is, if it is one.
    fn exit(&self, user: NodeId, operand: usize) -> Option<Exit> {
        let graph = self.graph;
        let packed = |i: usize| {
            let v = graph.operand(user, i);
            v.is_some_and(|v| self.is_tokens(v) && self.inside.contains_key(&v.node))
        };
        match graph.op(user).operator()? {
            Operator::Gather if operand == 0 && axis_of(graph, user, 3) == Some(1) => {
                let indices = graph.operand(user, 1)?;
                let one = graph.ty(indices).rank() <= 1 && ints(graph, indices)? == [0];
                one.then_some(Exit::First)
            }
            Operator::ScaledDotProductAttention
                if matches!(operand, 1 | 2)
                    && masked_attention(graph, user) == Some(self.mask)
                    && packed(1)
                    && packed(2) =>
            {
                Some(Exit::Attention)
            }
            Operator::Mul if graph.ty(result(user)).dtype == DType::F32 => {
                let factor = graph.operand(user, 1 - operand)?;
                zero_where_masked(graph, factor, self.mask).then_some(Exit::Masked)
            }
            _ => None,
        }
    }
}

/// What the packed values of one region are made of.
struct Packing<'a> {
    graph: &'a mut Graph,
    mask: Value,
    /// `i64[t]`: places of the packed tokens in the flattened batch.
    places: Value,
    /// `i64[b]`: the first packed token of each sequence.
    starts: Value,
    /// Packed forms of values of the batch.
    packed: HashMap<Value, Value>,
}

impl Packing<'_> {
    /// Values of each token in the batch, `[b, s]` or broadcast to it, as those of the packed tokens, `[t]`.
    fn gather(&mut self, value: Value) -> Result<Value, PassError> {
        if let Some(&to) = self.packed.get(&value) {
            return Ok(to);
        }
        let shape = self.graph.shape(self.mask).to_vec();
        let mut whole = value;
        if self.graph.shape(value) != shape {
            whole = result(
                self.graph
                    .add(Op::Broadcast(shape.clone()), &[Some(value)])?,
            );
        }
        let n = n_tokens(&shape)?;
        let flat = result(self.graph.add(Op::View(vec![n]), &[Some(whole)])?);
        let to = self.rows(flat, self.places)?;
        self.packed.insert(value, to);
        Ok(to)
    }

    /// Numbers of sequences, `[b, 1, 1]`, as those of the packed tokens, `[t, 1]`.
    fn of_tokens(&mut self, value: Value) -> Result<Value, PassError> {
        if let Some(&to) = self.packed.get(&value) {
            return Ok(to);
        }
        let shape = self.graph.shape(value)[..2].to_vec();
        let column = result(self.graph.add(Op::View(shape), &[Some(value)])?);
        let flat = self.gather(column)?;
        let shape = vec![self.graph.shape(flat)[0].clone(), Dim::fixed(1)];
        let to = result(self.graph.add(Op::View(shape), &[Some(flat)])?);
        self.packed.insert(value, to);
        Ok(to)
    }

    fn rows(&mut self, value: Value, indices: Value) -> Result<Value, PassError> {
        let axis = Attributes::new().with("axis", Attribute::Int(0));
        Ok(self
            .graph
            .apply(Operator::Gather, axis, &[value, indices])?)
    }

    /// The packed form of a node of the region, whose operands have theirs already.
    fn node(&mut self, node: NodeId, kind: &Kind) -> Result<(), PassError> {
        let mut operands = self.graph.operands(node);
        let mut op = self.graph.op(node).clone();
        match kind {
            Kind::Attention => {
                let of_queries = (operands[0], Some(self.starts));
                let to = self.attention(node, of_queries)?;
                self.packed.insert(result(node), to);
                return Ok(());
            }
            Kind::Embedding => {
                for ids in operands.iter_mut().step_by(2).flatten() {
                    *ids = self.gather(*ids)?;
                }
            }
            Kind::TokenWise(tokens) => {
                for (i, operand) in operands.iter_mut().enumerate() {
                    let Some(value) = *operand else { continue };
                    if tokens.contains(&i) {
                        *operand = Some(self.packed[&value]);
                    } else if is_of_sequences(self.graph, self.mask, value) {
                        *operand = Some(self.of_tokens(value)?);
                    }
                }
                if let Op::Apply(_, attributes) = &mut op
                    && attributes.int("axis").is_some()
                {
                    attributes.set("axis", Attribute::Int(-1));
                }
            }
        }
        let to = self.graph.add(op, &operands)?;
        let name = self.graph.node_name(node).to_owned();
        self.graph.set_node_name(to, &name);
        self.packed.insert(result(node), result(to));
        Ok(())
    }

    /// Attention over packed keys and values, for packed queries or `[n, hidden]` queries in equal parts.
    fn attention(
        &mut self,
        node: NodeId,
        (queries, q_starts): (Option<Value>, Option<Value>),
    ) -> Result<Value, PassError> {
        let [k, v] = [1, 2].map(|i| {
            let operand = self.graph.operand(node, i);
            operand.and_then(|v| self.packed.get(&v).copied())
        });
        let queries = queries.map(|q| self.packed.get(&q).copied().unwrap_or(q));
        let mask = self.gather(self.mask)?;
        let mut attributes = self.graph.attributes(node).clone();
        if attributes.get("masked_value").is_none() {
            attributes.set("masked_value", Attribute::Float(f32::MIN));
        }
        let op = Op::Apply(Operator::PackedAttention, attributes);
        let operands = [queries, k, v, Some(self.starts), q_starts, Some(mask)];
        let to = self.graph.add(op, &operands)?;
        let name = self.graph.node_name(node).to_owned();
        self.graph.set_node_name(to, &name);
        Ok(result(to))
    }

    /// Packed tokens in their places in the batch, zeros in all others.
    fn unpack(&mut self, value: Value) -> Result<Value, PassError> {
        let shape = self.graph.shape(value).to_vec();
        let packed = self.packed[&value];
        let t = self.graph.shape(packed)[0].clone();
        let flat = vec![n_tokens(&shape[..2])?, shape[2].clone()];
        let zero = self
            .graph
            .add_const("padding", Arc::new(Tensor::scalar(0.0f32)));
        let zeros = result(self.graph.add(Op::Broadcast(flat), &[Some(zero)])?);
        let column = Op::View(vec![t, Dim::fixed(1)]);
        let places = result(self.graph.add(column, &[Some(self.places)])?);
        let scattered = self.graph.apply(
            Operator::ScatterND,
            Attributes::new(),
            &[zeros, places, packed],
        )?;
        Ok(result(self.graph.add(Op::View(shape), &[Some(scattered)])?))
    }
}

/// Whether a value is `[b, 1, 1]` for sequences of this mask.
fn is_of_sequences(graph: &Graph, mask: Value, value: Value) -> bool {
    let one = Dim::fixed(1);
    graph.shape(value)[..] == [graph.shape(mask)[0].clone(), one.clone(), one]
}

/// Number of places in a batch of this shape.
fn n_tokens(shape: &[Dim]) -> Result<Dim, PassError> {
    shape[0]
        .mul(&shape[1])
        .ok_or_else(|| PassError::Broken("the size of a batch overflows".to_owned()))
}

/// Rebuilds the nodes `inside` on packed tokens.
fn pack(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    mask: Value,
    inside: &HashMap<NodeId, Kind>,
) -> Result<(), PassError> {
    let order: Vec<NodeId> = (graph.order().into_iter())
        .filter(|n| inside.contains_key(n))
        .collect();
    let region = Region {
        graph,
        mask,
        inside: inside.clone(),
    };
    let mut exits = Vec::new();
    let mut seen = HashSet::new();
    for &node in &order {
        for (user, operand) in graph.users(result(node)) {
            if let Some(exit) = region
                .exit(user, operand)
                .filter(|_| !inside.contains_key(&user))
                && (exit != Exit::Attention || seen.insert(user))
            {
                exits.push((exit, user, operand));
            }
        }
    }
    let keep_first = exits.iter().any(|e| e.0 == Exit::First);
    let attributes = Attributes::new().with("keep_first", Attribute::Int(keep_first.into()));
    let op = Op::Apply(Operator::TokenPacking, attributes);
    let packing = graph.add_results(op, &[Some(mask)], 2)?;
    let mut packing = Packing {
        places: result(packing),
        starts: Value {
            node: packing,
            result: 1,
        },
        graph,
        mask,
        packed: HashMap::new(),
    };
    for node in &order {
        packing.node(*node, &inside[node])?;
    }
    let mut rewrites = Rewrites::new();
    for (exit, user, operand) in exits {
        let observed = packing.graph.operand(user, operand);
        let shape = packing.graph.shape(result(user)).to_vec();
        let to = match (exit, observed) {
            (Exit::First, Some(v)) => {
                let tokens = packing.packed[&v];
                packing.rows(tokens, packing.starts)?
            }
            (Exit::Attention, _) => {
                let q = packing.graph.operand(user, 0);
                let q = q.map(|q| rewrites.resolve(q));
                let flat = q.map(|q| packing.graph.shape(q).to_vec());
                let flat = match flat.as_deref() {
                    Some([b, sq, hidden]) => {
                        vec![n_tokens(&[b.clone(), sq.clone()])?, hidden.clone()]
                    }
                    _ => return Err(PassError::Broken("queries are of rank 3".to_owned())),
                };
                let q = result(packing.graph.add(Op::View(flat), &[q])?);
                packing.attention(user, (Some(q), None))?
            }
            (Exit::Masked, Some(v)) => {
                let whole = packing.unpack(v)?;
                packing.graph.set_operand(user, operand, Some(whole))?;
                continue;
            }
            (Exit::First | Exit::Masked, None) => continue,
        };
        let mut to = to;
        if packing.graph.shape(to) != shape {
            to = result(packing.graph.add(Op::View(shape), &[Some(to)])?);
        }
        rewrites.replace(packing.graph, result(user), to)?;
    }
    let n = order.len();
    cx.applied(
        graph,
        mask.node,
        format!("{n} operators compute the tokens of this mask alone"),
    );
    Ok(())
}
