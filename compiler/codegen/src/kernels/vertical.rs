//! An elementwise function of several operands over rows of one panel, in one pass.
//!
//! Arguments: `[0]` y; `[1]` rows, or whole quads of rows where the result is bytes; `[2]`, `[3]`, `[4]` for bytes one if the last quad
//! has a first, a second, a third row, otherwise zero; from `[5]` on the operands: first row of a panel, the number of the first
//! feature, or one number. y may be an operand of the same rows unless it is bytes.

use lancet_artifact::{Activation, Binary as Function, Element, Extent, Vertical, VerticalOp};

use super::{Tile, math};
use crate::kir::{Addr, Binary, Builder, Compare, Program, Scalar, Shift, Unary, Vector, at};

const FIRST_OPERAND: usize = 5;

/// Registers of 128 and of 256 bits.
const REGISTERS: usize = 16;

/// The kernel of an expression that [`Vertical::check`] accepts.
pub(super) fn program(name: String, vertical: &Vertical, result: Element, tile: &Tile) -> Program {
    // As many numbers of features as leave room are loaded once for each row.
    let held = (1..=3)
        .rev()
        .map(|n| program_of(name.clone(), vertical, result, tile, n));
    let fits = held.into_iter().find(|p| p.n_vectors <= REGISTERS);
    fits.unwrap_or_else(|| program_of(name, vertical, result, tile, 0))
}

/// The kernel that holds the numbers of `n_held` features in registers while it computes a row.
fn program_of(
    name: String,
    vertical: &Vertical,
    result: Element,
    tile: &Tile,
    n_held: usize,
) -> Program {
    let mut b = Builder::new(name, tile.vl);
    let y = b.arg(0);
    let n = b.arg(1);
    let operands: Vec<Scalar> = (0..vertical.operands.len())
        .map(|i| b.arg(FIRST_OPERAND + i))
        .collect();
    let mut kernel = Kernel {
        vertical,
        tile: *tile,
        y,
        operands,
        held: vec![None; vertical.operands.len()],
        quantize: None,
        last_use: last_uses(vertical),
    };
    let rest: Vec<Scalar> = (2..FIRST_OPERAND)
        .filter(|_| result == Element::Quad)
        .map(|i| {
            let s = b.slot();
            b.load_scalar(s, crate::kir::Width::B64, at(b.args(), i as i32 * 8));
            s
        })
        .collect();
    kernel.load_scalars(&mut b);
    if result != Element::Quad {
        let features: Vec<usize> = (0..vertical.operands.len())
            .filter(|&i| vertical.operands[i].extent == Extent::Features)
            .take(n_held)
            .collect();
        b.repeat(n, |b| {
            let held: Vec<(usize, Vector)> = features.iter().map(|&i| (i, b.vector())).collect();
            for &(i, v) in &held {
                b.broadcast(v, kernel.address(i, 0, 0));
                kernel.held[i] = Some(v);
            }
            for v in 0..tile.lanes / tile.vl {
                let value = kernel.evaluate(b, v, 0);
                b.store(at(y, v as i32 * b.vector_bytes()), value);
                b.free_vector(value);
            }
            for (i, v) in held {
                kernel.held[i] = None;
                b.free_vector(v);
            }
            kernel.next_rows(b, 1);
        });
        return b.finish();
    }
    b.repeat(n, |b| {
        for v in 0..tile.lanes / tile.vl {
            let quad = kernel.evaluate(b, v, 0);
            for row in 1..4 {
                let value = kernel.evaluate(b, v, row);
                b.shift(Shift::Left, value, value, 8 * row as u8);
                b.binary(Binary::Or, quad, quad, value);
                b.free_vector(value);
            }
            b.store(at(y, v as i32 * b.vector_bytes()), quad);
            b.free_vector(quad);
        }
        kernel.next_rows(b, 4);
    });
    for (row, &has_row) in rest.iter().enumerate() {
        b.repeat(has_row, |b| {
            for v in 0..tile.lanes / tile.vl {
                let to = at(y, v as i32 * b.vector_bytes());
                let value = kernel.evaluate(b, v, row);
                if row > 0 {
                    b.shift(Shift::Left, value, value, 8 * row as u8);
                    b.binary(Binary::Or, value, value, to);
                }
                b.store(to, value);
                b.free_vector(value);
            }
        });
    }
    b.finish()
}

/// What the kernel of an expression is called: result and operations.
pub(super) fn name(vertical: &Vertical, result: Element) -> String {
    let mut name = match result {
        Element::F32 => "f32",
        Element::I32 => "i32",
        Element::Quad => "u8",
    }
    .to_owned();
    for op in &vertical.ops {
        name.push('_');
        name.push_str(match op {
            VerticalOp::Binary { op, .. } => op.name(),
            VerticalOp::Activation { kind, .. } => kind.name(),
            VerticalOp::ToFloat { .. } => "cast",
            VerticalOp::Quantize { .. } => "quantize",
        });
    }
    name
}

struct Kernel<'a> {
    vertical: &'a Vertical,
    tile: Tile,
    y: Scalar,
    operands: Vec<Scalar>,
    /// Registers of operands that stay: one number, or a feature's for a row.
    held: Vec<Option<Vector>>,
    /// Least and greatest quotient that is not saturated, if the last operation quantizes.
    quantize: Option<(Vector, Vector)>,
    /// For each value, the last operation that uses it.
    last_use: Vec<usize>,
}

fn uses(op: &VerticalOp) -> impl Iterator<Item = usize> {
    let values = match *op {
        VerticalOp::Binary { a, b, .. } => [Some(a), Some(b), None],
        VerticalOp::Activation { a, .. } | VerticalOp::ToFloat { a } => [Some(a), None, None],
        VerticalOp::Quantize {
            a,
            scale,
            zero_point,
            ..
        } => [Some(a), Some(scale), zero_point],
    };
    values.into_iter().flatten().map(|v| v as usize)
}

fn last_uses(vertical: &Vertical) -> Vec<usize> {
    let mut last = vec![usize::MAX; vertical.operands.len() + vertical.ops.len()];
    for (i, op) in vertical.ops.iter().enumerate() {
        uses(op).for_each(|v| last[v] = i);
    }
    last
}

impl Kernel<'_> {
    /// Broadcasts what is the same for all elements.
    fn load_scalars(&mut self, b: &mut Builder) {
        for (i, operand) in self.vertical.operands.iter().enumerate() {
            if operand.extent == Extent::Scalar {
                let v = b.vector();
                b.broadcast(v, at(self.operands[i], 0));
                self.held[i] = Some(v);
            }
        }
        if let Some(&VerticalOp::Quantize { zero_point, .. }) = self.vertical.ops.last() {
            let (low, high) = (b.vector(), b.vector());
            b.zero(low);
            b.constant(high, 255.0);
            if let Some(zero) = zero_point.and_then(|z| self.held[z as usize]) {
                let t = b.vector();
                b.unary(Unary::ToFloat, t, zero);
                for bound in [low, high] {
                    b.sub(bound, bound, t);
                }
                b.free_vector(t);
            }
            self.quantize = Some((low, high));
        }
    }

    fn next_rows(&self, b: &mut Builder, rows: i32) {
        for (operand, &s) in self.vertical.operands.iter().zip(&self.operands) {
            match operand.extent {
                Extent::Panels => b.add_imm(s, rows * self.tile.row_bytes()),
                Extent::Features => b.add_imm(s, rows * 4),
                Extent::Scalar => {}
            }
        }
        b.add_imm(self.y, self.tile.row_bytes());
    }

    /// Where operand `i` has the numbers of vector `v` of row `row`, if in memory.
    fn address(&self, i: usize, v: usize, row: usize) -> Addr {
        match self.vertical.operands[i].extent {
            Extent::Panels => at(
                self.operands[i],
                row as i32 * self.tile.row_bytes() + (v * self.tile.vl * 4) as i32,
            ),
            Extent::Features => at(self.operands[i], row as i32 * 4),
            Extent::Scalar => at(self.operands[i], 0),
        }
    }

    /// The result for vector `v` of row `row`, in a register of its own.
    fn evaluate(&self, b: &mut Builder, v: usize, row: usize) -> Vector {
        let n = self.vertical.operands.len();
        let mut values: Vec<Option<Vector>> = self.held.clone();
        // What the last value is still to be divided by.
        let mut denominator = None;
        for (i, op) in self.vertical.ops.iter().enumerate() {
            for u in uses(op) {
                if u < n && values[u].is_none() {
                    let register = b.vector();
                    match self.vertical.operands[u].extent {
                        Extent::Panels => b.load(register, self.address(u, v, row)),
                        Extent::Features | Extent::Scalar => {
                            b.broadcast(register, self.address(u, v, row));
                        }
                    }
                    values[u] = Some(register);
                }
            }
            let get = |v: u32| values[v as usize].expect("loaded or computed before");
            let to = b.vector();
            match *op {
                VerticalOp::Binary { op, a, b: c } => {
                    let is_float = self.element(a) == Element::F32;
                    let instruction = instruction(op, is_float);
                    if matches!(op, Function::Max | Function::Min) {
                        // The instruction keeps a second operand that is NaN.
                        let t = b.vector();
                        b.binary(instruction, t, get(a), get(c));
                        b.select(to, (Compare::Unordered, get(a), get(a)), get(a), t);
                        b.free_vector(t);
                    } else {
                        b.binary(instruction, to, get(a), get(c));
                    }
                }
                VerticalOp::Activation {
                    kind: Activation::Gelu,
                    a,
                } if self.is_quantized_next(i) => {
                    b.copy(to, get(a));
                    denominator = Some(math::gelu_ratio(b, to));
                }
                VerticalOp::Activation { kind, a } => {
                    b.copy(to, get(a));
                    math::activation(b, kind, to);
                }
                VerticalOp::ToFloat { a } => b.unary(Unary::ToFloat, to, get(a)),
                VerticalOp::Quantize {
                    a,
                    scale,
                    zero_point,
                } => {
                    let (low, high) = self.quantize.expect("set where something quantizes");
                    match denominator.take() {
                        // One division for two.
                        Some(d) => {
                            b.mul(d, d, get(scale));
                            b.div(to, get(a), d);
                            b.free_vector(d);
                        }
                        None => b.div(to, get(a), get(scale)),
                    }
                    // A NaN becomes the least value.
                    b.max(to, to, low);
                    b.min(to, to, high);
                    b.unary(Unary::ToInt, to, to);
                    if let Some(zero) = zero_point {
                        b.binary(Binary::IntAdd, to, to, get(zero));
                    }
                }
            }
            for u in uses(op) {
                let stays = u < n && self.held[u].is_some();
                if self.last_use[u] == i
                    && !stays
                    && let Some(r) = values[u].take()
                {
                    b.free_vector(r);
                }
            }
            values.push(Some(to));
        }
        let result = values.pop().flatten().expect("there is an operation");
        for (u, value) in values.iter().enumerate().skip(n) {
            // Results that nothing uses.
            if let Some(r) = value
                && self.last_use[u] == usize::MAX
            {
                b.free_vector(*r);
            }
        }
        result
    }

    /// Whether operation `i + 1` quantizes the result of operation `i`.
    fn is_quantized_next(&self, i: usize) -> bool {
        let value = self.vertical.operands.len() + i;
        matches!(self.vertical.ops.get(i + 1), Some(VerticalOp::Quantize { a, .. }) if *a as usize == value)
    }

    fn element(&self, value: u32) -> Element {
        let n = self.vertical.operands.len();
        match self.vertical.operands.get(value as usize) {
            Some(operand) => operand.element,
            None => match self.vertical.ops[value as usize - n] {
                VerticalOp::Binary { a, .. } => self.element(a),
                VerticalOp::Activation { .. } | VerticalOp::ToFloat { .. } => Element::F32,
                VerticalOp::Quantize { .. } => Element::Quad,
            },
        }
    }
}

fn instruction(op: Function, is_float: bool) -> Binary {
    match (op, is_float) {
        (Function::Add, true) => Binary::Add,
        (Function::Sub, true) => Binary::Sub,
        (Function::Mul, true) => Binary::Mul,
        (Function::Div, _) => Binary::Div,
        (Function::Max | Function::AtLeast, _) => Binary::Max,
        (Function::Min | Function::AtMost, _) => Binary::Min,
        (Function::Add, false) => Binary::IntAdd,
        (Function::Sub, false) => Binary::IntSub,
        (Function::Mul, false) => Binary::IntMul,
    }
}
