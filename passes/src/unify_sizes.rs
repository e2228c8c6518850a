//! Gives sizes that must be equal one name.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, s, 4], %n: i64[]) dims(b, s, u0, u1, u2, u3) {
//!   const @split: i64[2] = [2, 2]
//!   %0 = dims [b] : i64[1]
//!   %1 = view %n : i64[1]
//!   %2 = concat %0, %1, @split {axis = 0} : i64[4]
//!   %3 = reshape %x, %2 : f32[u0, u1, u2, u3]
//!   return %3
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, s, 4], %n: i64[]) dims(b, s) {
//!   const @split: i64[2] = [2, 2]
//!   %0 = dims [b] : i64[1]
//!   %1 = view %n : i64[1]
//!   %2 = concat %0, %1, @split {axis = 0} : i64[4]
//!   %3 = reshape %x, %2 : f32[b, s, 2, 2]
//!   return %3
//! }
//! ```
//!
//! Inference makes a symbol for each size that only data tells. The pass replaces such a symbol by an expression of others:
//!
//! * what inference says of a node now that more is known of its operands;
//! * `Reshape`: a size that its operand does not tell is what the others leave of the number of elements;
//! * `Expand` to sizes that are known in part;
//! * `a[.., k] · b[k, ..]`: the sizes that are summed are equal;
//! * operators that broadcast: a size that was broadcast from another, and broadcasts to that other again, is that other;
//! * `Einsum`: sizes of one letter are equal, where none is known to be 1;
//! * windows, slices and integers: `floor((size + pads - reach) / stride) + 1`, `ceil((end - start) / step)` and the integer
//!   `a / b` are one size if they are the same quotient, up to a constant; slices of equal sizes by the same bounds are equally long.
//!
//! Preconditions: the model runs, and no size is zero. Where sizes do not agree, the graph as it was is an error too; what still
//! finds the size says so then. A symbol is replaced only where every node that finds it can tell what stands for it: by sizes of the inputs, by
//! another symbol, or by sizes of the operands of those nodes.
//!
//! Numeric effect: exact.
//!
//! Source: unification of first-order terms (Robinson, 1965) over polynomials, without search: a symbol is bound once.

use std::collections::{HashMap, HashSet};

use lancet_ir::{Dim, Graph, NodeId, Symbol, Value};
use lancet_ops::Operator;

use crate::expand_einsum::{Label, terms};
use crate::matcher::{ints, normalize_axis, result};
use crate::simplify_shapes::broadcasts_operands;
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "unify-sizes",
    summary: "give sizes that must be equal one name",
    options: &[],
    new: || Box::new(UnifySizes),
};

struct UnifySizes;

impl Pass for UnifySizes {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, _: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        // Each round but the last binds a symbol, of which there are finitely many.
        loop {
            let inputs = graph.input_symbols();
            if graph.used_symbols().iter().all(|s| inputs.contains(s)) {
                return Ok(changed);
            }
            let mut unifier = Unifier {
                graph,
                inputs,
                lengths: HashMap::new(),
                quotients: HashMap::new(),
                changed: false,
            };
            for node in unifier.graph.order() {
                unifier.node(node);
            }
            if !unifier.changed {
                return Ok(changed);
            }
            changed = Changed::Yes;
        }
    }
}

/// What tells a length, up to a constant.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Length {
    /// `floor(numerator / divisor)`, the constant of the numerator from 0 to below the divisor.
    Quotient { numerator: Dim, divisor: i64 },
    /// A dimension of this size from the element of one value to that of another, by steps of a third.
    Slice {
        size: Dim,
        bounds: [Option<Value>; 3],
        index: usize,
    },
}

struct Unifier<'g> {
    graph: &'g mut Graph,
    inputs: HashSet<Symbol>,
    lengths: HashMap<Length, Dim>,
    /// What symbols are, where a quotient tells.
    quotients: HashMap<Symbol, More>,
    changed: bool,
}

/// A length, and what the size is more than it.
type More = (Length, i64);

impl Unifier<'_> {
    fn node(&mut self, node: NodeId) {
        self.as_inferred(node);
        let found = result(node);
        match self.graph.op(node).operator() {
            Some(Operator::MatMul) => self.contracted(node),
            Some(Operator::Einsum) => self.letters(node),
            Some(Operator::Div) => {
                self.broadcast(node);
                self.integer(found);
            }
            Some(op) if broadcasts_operands(op) => self.broadcast(node),
            Some(Operator::Reshape) => {
                for told in [reshaped, remaining] {
                    if let Some(shape) = told(self.graph, node) {
                        self.shape(found, &shape);
                    }
                }
            }
            Some(Operator::Expand) => {
                if let Some(shape) = expanded(self.graph, node) {
                    self.shape(found, &shape);
                }
            }
            Some(Operator::Conv | Operator::AveragePool | Operator::MaxPool) => {
                self.lengths(found, windows(self.graph, node));
            }
            Some(Operator::Slice) => {
                self.lengths(found, slices(self.graph, node));
            }
            _ => {}
        }
    }

    /// Takes over what inference says, as far as it says something.
    fn as_inferred(&mut self, node: NodeId) {
        let Ok(inferred) = self.graph.inferred(node) else {
            return;
        };
        for (i, info) in inferred.into_iter().enumerate() {
            let value = Value {
                node,
                result: i as u32,
            };
            let known = |d: &Dim| d.symbols().iter().all(|s| self.graph.has_symbol(s));
            let shape = info.ty.shape.into_iter();
            let shape: Vec<Option<Dim>> = shape.map(|d| Some(d).filter(known)).collect();
            let elements = info.elements.filter(|e| e.iter().all(known));
            if let Some(elements) = elements
                && self.graph.elements(value).is_none()
            {
                self.learn(value, &elements);
            }
            self.shape(value, &shape);
        }
    }

    fn learn(&mut self, value: Value, elements: &[Dim]) {
        self.graph.learn_elements(value, elements);
        self.changed |= self.graph.elements(value).is_some();
    }

    /// The integer quotient `value`, if a size is known to be that.
    fn integer(&mut self, value: Value) {
        let graph = &self.graph;
        let operand = |i: usize| match graph.elements(graph.operand(value.node, i)?)? {
            [d] => Some(d),
            _ => None,
        };
        let (Some(a), Some(b), None) = (operand(0), operand(1), graph.elements(value)) else {
            return;
        };
        let divisor = b.as_fixed().filter(|&b| 0 < b);
        let found = divisor.and_then(|by| quotient(a, by, 0));
        let known = found.and_then(|found| {
            let (length, more) = self.composed(found);
            let known = self.lengths.get(&length)?;
            known.add(&Dim::fixed(more))
        });
        if let Some(known) = known {
            self.learn(value, &[known]);
        }
    }

    /// Binds sizes of operands that were broadcast from that of the result: they are 1 or that, and 1 only if it is too.
    fn broadcast(&mut self, node: NodeId) {
        for operand in self.graph.operands(node).into_iter().flatten() {
            let op = self.graph.op(operand.node).operator();
            if !op.is_some_and(broadcasts_operands) {
                continue;
            }
            let rank = self.graph.ty(operand).rank();
            let behind: Vec<Value> =
                (self.graph.operands(operand.node).into_iter().flatten()).collect();
            for from_end in 1..=rank {
                let size = |v: Value| {
                    let shape = self.graph.shape(v);
                    shape.len().checked_sub(from_end).map(|i| shape[i].clone())
                };
                if let (Some(own), Some(whole)) = (size(operand), size(result(node)))
                    && behind.iter().any(|&v| size(v).as_ref() == Some(&whole))
                {
                    self.unify(&own, &whole);
                }
            }
        }
    }

    fn letters(&mut self, node: NodeId) {
        let operands: Vec<Value> = self.graph.operands(node).into_iter().flatten().collect();
        let equation = self.graph.attributes(node).str("equation");
        let terms = terms(self.graph, equation.unwrap_or_default(), &operands);
        let mut sizes: HashMap<char, Dim> = HashMap::new();
        for (labels, &x) in terms.unwrap_or_default().iter().zip(&operands) {
            for (axis, label) in labels.iter().enumerate() {
                let (Label::Letter(letter), Some(size)) = (label, self.graph.shape(x).get(axis))
                else {
                    continue;
                };
                let size = size.clone();
                if size.as_fixed() == Some(1) {
                    continue;
                }
                match sizes.get(letter).cloned() {
                    Some(known) => self.unify(&size, &known),
                    None => {
                        sizes.insert(*letter, size);
                    }
                }
            }
        }
    }

    fn contracted(&mut self, node: NodeId) {
        let operands = self.graph.operands(node);
        let &[Some(a), Some(b)] = &operands[..] else {
            return;
        };
        let (a, b) = (self.graph.shape(a), self.graph.shape(b));
        if let (Some(left), Some(right)) = (a.last(), b.get(b.len().saturating_sub(2))) {
            let (left, right) = (left.clone(), right.clone());
            self.unify(&left, &right);
        }
    }

    /// Binds the sizes of a value that are told.
    fn shape(&mut self, value: Value, shape: &[Option<Dim>]) {
        for (i, told) in shape.iter().enumerate() {
            if let (Some(told), Some(stated)) = (told, self.graph.shape(value).get(i).cloned()) {
                self.unify(&stated, told);
            }
        }
    }

    /// Binds sizes of a value that another value has for the same reason.
    fn lengths(&mut self, value: Value, lengths: Vec<(usize, More)>) {
        for (axis, length) in lengths {
            let Some(stated) = self.graph.shape(value).get(axis).cloned() else {
                continue;
            };
            let (length, more) = self.composed(length);
            if let (Length::Quotient { divisor, .. }, Some(symbol)) = (&length, stated.as_symbol())
                && 1 < *divisor
                && !self.inputs.contains(symbol)
            {
                let known = self.quotients.entry(symbol.clone());
                known.or_insert((length.clone(), more));
            }
            let more = Dim::fixed(more);
            match self.lengths.get(&length) {
                Some(known) => {
                    if let Some(known) = known.add(&more) {
                        self.unify(&stated, &known);
                    }
                }
                None => {
                    let known = stated.sub(&more);
                    self.lengths.extend(known.map(|known| (length, known)));
                }
            }
        }
    }

    /// A quotient of a quotient as one: `floor((floor(n / a) + c) / b) = floor((n + a c) / (a b))`.
    fn composed(&self, length: More) -> More {
        let once = |(length, more): &More| {
            let Length::Quotient { numerator, divisor } = length else {
                return None;
            };
            let mut symbols = numerator.symbols().into_iter();
            let (Some(symbol), None) = (symbols.next(), symbols.next()) else {
                return None;
            };
            let c = numerator.sub(&Dim::symbol(symbol.name()))?.as_fixed()?;
            let (
                Length::Quotient {
                    numerator,
                    divisor: a,
                },
                m,
            ) = self.quotients.get(&symbol)?
            else {
                return None;
            };
            let moved = a.checked_mul(c.checked_add(*m)?)?;
            quotient(
                &numerator.add(&Dim::fixed(moved))?,
                a.checked_mul(*divisor)?,
                *more,
            )
        };
        let mut length = length;
        // Divisors grow until they overflow.
        while let Some(composed) = once(&length) {
            length = composed;
        }
        length
    }

    /// Makes two sizes one, if a symbol that data tells can stand for the rest.
    fn unify(&mut self, a: &Dim, b: &Dim) {
        if a == b {
            return;
        }
        for (bound, by) in [(a, b), (b, a)] {
            let Some(symbol) = bound.as_symbol() else {
                continue;
            };
            if !self.inputs.contains(symbol)
                && !by.symbols().contains(symbol)
                && self.is_told(symbol, by)
                && self.graph.substitute(symbol, by)
            {
                for known in self.lengths.values_mut() {
                    if let Some(d) = known.substitute(symbol, by) {
                        *known = d;
                    }
                }
                self.changed = true;
                return;
            }
        }
    }

    /// Whether every node that finds `symbol` can tell `by` instead.
    fn is_told(&self, symbol: &Symbol, by: &Dim) -> bool {
        let mut of_data = by.symbols();
        of_data.retain(|s| !self.inputs.contains(s));
        if of_data.is_empty() || by.as_symbol().is_some() {
            return true;
        }
        let graph = &self.graph;
        graph.nodes().into_iter().all(|node| {
            let finds = graph.sizes_found_by(node).contains(symbol);
            let operands = graph.operands(node).into_iter().flatten();
            let known: HashSet<Symbol> = operands
                .flat_map(|v| graph.shape(v).iter().flat_map(Dim::symbols))
                .collect();
            !finds || of_data.iter().all(|s| known.contains(s))
        })
    }
}

/// The elements of a shape that is computed, as far as they are known.
fn elements(graph: &Graph, value: Value) -> Option<Vec<Option<Dim>>> {
    if let Some(known) = graph.elements(value) {
        return Some(known.iter().cloned().map(Some).collect());
    }
    let n = graph
        .ty(value)
        .shape
        .iter()
        .try_fold(1i64, |n, d| n.checked_mul(d.as_fixed()?))?;
    if graph.operator(value) == Some(Operator::Concat) {
        let parts = graph.operands(value.node).into_iter().flatten();
        let parts = parts.map(|v| elements(graph, v));
        return Some(parts.collect::<Option<Vec<_>>>()?.concat());
    }
    Some(vec![
        None;
        usize::try_from(n).ok().filter(|&n| n <= MAX_RANK)?
    ])
}

/// Elements of a shape at most.
const MAX_RANK: usize = 16;

/// The sizes that a `Reshape` gives, as far as they are known.
fn reshaped(graph: &Graph, node: NodeId) -> Option<Vec<Option<Dim>>> {
    let (x, shape) = (graph.operand(node, 0)?, graph.operand(node, 1)?);
    let copies = graph.attributes(node).int_or("allowzero", 0) == 0;
    let mut sizes = elements(graph, shape)?;
    for (i, size) in sizes.iter_mut().enumerate() {
        match size.as_ref().and_then(Dim::as_fixed) {
            Some(0) if copies => *size = graph.shape(x).get(i).cloned(),
            Some(-1) => *size = None,
            _ => {}
        }
    }
    Some(sizes)
}

/// The sizes of the result of a `Reshape`, each as what the others leave of the number of elements.
fn remaining(graph: &Graph, node: NodeId) -> Option<Vec<Option<Dim>>> {
    let total = Dim::product(graph.shape(graph.operand(node, 0)?))?;
    // Of nothing, any size may be left.
    if total.as_fixed() == Some(0) {
        return None;
    }
    let stated = graph.shape(result(node));
    let left = |i: usize| {
        let others = stated.iter().enumerate().filter(|(j, _)| *j != i);
        total.div_exact(&Dim::product(others.map(|(_, d)| d))?)
    };
    Some((0..stated.len()).map(left).collect())
}

/// The sizes that an `Expand` gives, as far as they are known.
fn expanded(graph: &Graph, node: NodeId) -> Option<Vec<Option<Dim>>> {
    let (x, shape) = (graph.operand(node, 0)?, graph.operand(node, 1)?);
    let wanted = elements(graph, shape)?;
    let own = graph.shape(x);
    let rank = graph.ty(result(node)).rank();
    let one = Dim::fixed(1);
    let size = |i: usize| {
        let of_x = (i + own.len()).checked_sub(rank).map_or(&one, |i| &own[i]);
        let of_shape = match (i + wanted.len()).checked_sub(rank) {
            Some(i) => wanted[i].as_ref()?,
            None => &one,
        };
        match (of_x == &one, of_shape == &one || of_x == of_shape) {
            (true, _) => Some(of_shape.clone()),
            (_, true) => Some(of_x.clone()),
            _ => None,
        }
    };
    Some((0..rank).map(size).collect())
}

/// `floor(numerator / divisor) + more`, for a divisor of at least 1.
fn quotient(numerator: &Dim, divisor: i64, more: i64) -> Option<More> {
    let constant = numerator.terms().find(|(m, _)| m.is_empty());
    let whole = constant.map_or(0, |(_, c)| c.div_euclid(divisor));
    let numerator = numerator.sub(&Dim::fixed(whole.checked_mul(divisor)?))?;
    let length = Length::Quotient { numerator, divisor };
    Some((length, more.checked_add(whole)?))
}

/// The lengths of a convolution or a pool, by axis.
fn windows(graph: &Graph, node: NodeId) -> Vec<(usize, More)> {
    let attributes = graph.attributes(node);
    let Some(x) = graph.operand(node, 0) else {
        return Vec::new();
    };
    let of_weight = graph.operand(node, 1).map(|w| graph.shape(w));
    let n = graph.ty(x).rank().saturating_sub(2);
    let of = |name: &str, i: usize, default: i64| match attributes.ints(name) {
        Some(list) => list.get(i).copied(),
        None => Some(default),
    };
    let explicit = matches!(attributes.str("auto_pad"), None | Some("" | "NOTSET"));
    let ceil = attributes.int_or("ceil_mode", 0) == 1;
    let length = |i: usize| {
        let kernel = match of_weight {
            Some(shape) => shape.get(i + 2)?.as_fixed()?,
            None => of("kernel_shape", i, 1)?,
        };
        let (stride, dilation) = (of("strides", i, 1)?, of("dilations", i, 1)?);
        let (begin, end) = (of("pads", i, 0)?, of("pads", n + i, 0)?);
        let reach = dilation
            .checked_mul(kernel.checked_sub(1)?)?
            .checked_add(1)?;
        // Rounded up, a window could begin beyond the operand.
        let is_inside = end.checked_add(stride)? <= reach;
        if !explicit || stride < 1 || (ceil && !is_inside) {
            return None;
        }
        let more = begin.checked_add(end)?.checked_sub(reach)?;
        let more = more.checked_add(if ceil { stride - 1 } else { 0 })?;
        let numerator = graph.shape(x)[i + 2].add(&Dim::fixed(more))?;
        Some((i + 2, quotient(&numerator, stride, 1)?))
    };
    (0..n).filter_map(length).collect()
}

/// The lengths of a slice, by axis.
fn slices(graph: &Graph, node: NodeId) -> Vec<(usize, More)> {
    let bounds = [1, 2, 4].map(|i| graph.operand(node, i));
    let [Some(starts), Some(ends), steps] = bounds else {
        return Vec::new();
    };
    let Some(x) = graph.operand(node, 0) else {
        return Vec::new();
    };
    let rank = graph.ty(x).rank();
    let axes = match graph.operand(node, 3) {
        Some(axes) => ints(graph, axes),
        None => Some((0..rank as i64).collect()),
    };
    let at = |v: Value, i: usize| graph.elements(v).and_then(|e| e.get(i)?.as_fixed());
    let length = |(index, axis): (usize, i64)| {
        let axis = normalize_axis(axis, rank)?;
        let size = &graph.shape(x)[axis];
        let step = steps.map_or(Some(1), |v| at(v, index));
        let by_bounds = Length::Slice {
            size: size.clone(),
            bounds,
            index,
        };
        let by_bounds = (by_bounds, 0);
        let (Some(0), Some(end), Some(step)) = (at(starts, index), at(ends, index), step) else {
            return Some((axis, by_bounds));
        };
        let end = match end {
            -1 => size.sub(&Dim::fixed(1))?,
            end if i64::from(i32::MAX) <= end => size.clone(),
            _ => return Some((axis, by_bounds)),
        };
        if step < 1 {
            return Some((axis, by_bounds));
        }
        Some((axis, quotient(&end.add(&Dim::fixed(step - 1))?, step, 0)?))
    };
    let axes = axes.unwrap_or_default().into_iter().enumerate();
    axes.filter_map(length).collect()
}
