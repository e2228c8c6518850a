//! Elementwise expressions over panels, alone or behind an integer product.

use std::sync::Arc;

use lancet_artifact::{Binary, Element, Extent, KernelSpec, Vertical, VerticalOp};
use lancet_ops::DataView;

use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, PanelKernels, Sizes, Workers, activation};

/// An expression with its operands; the number of each is that of an input of the step.
pub(super) struct Expression {
    pub(super) vertical: Vertical,
    /// Value of each operand; `None` is what the step itself computed.
    values: Vec<Option<usize>>,
    pub(super) result: Element,
    shape: PanelShape,
    kernels: PanelKernels,
}

impl Expression {
    /// `first` is the input that is the first operand, `features` how many features the operands have.
    pub(super) fn bind(
        sizes: &Sizes<'_>,
        vertical: &Vertical,
        first: Option<usize>,
        features: usize,
    ) -> Result<Expression, String> {
        let result = vertical.check()?;
        let out = sizes.panels(sizes.output());
        let shape = PanelShape { features, ..out };
        let mut values = Vec::with_capacity(vertical.operands.len());
        // Without a first input the first operand is the step's own, and the others are the inputs after x.
        let input = |i: usize| first.map_or((i > 0).then_some(i), |f| Some(f + i));
        for (i, operand) in vertical.operands.iter().enumerate() {
            let Some(input) = input(i) else {
                values.push(None);
                continue;
            };
            if operand.extent == Extent::Panels {
                sizes.panels_like_output(input)?;
            }
            values.push(Some(sizes.required(input)));
        }
        Ok(Expression {
            kernels: sizes.kernels(shape, |panel, lanes| KernelSpec::Vertical {
                vertical: vertical.clone(),
                panel,
                lanes,
            }),
            vertical: vertical.clone(),
            values,
            result,
            shape,
        })
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        self.kernels.name()
    }

    /// The operands as dwords; scalars are converted into `scalars`.
    pub(super) fn read<'a>(
        &self,
        reads: &Reads<'a>,
        scalars: &'a mut [f32; Vertical::MAX_OPERANDS],
    ) -> Operands<'a> {
        let mut operands = [None; Vertical::MAX_OPERANDS];
        for (i, value) in self.values.iter().enumerate() {
            if let Some(v) = *value
                && self.vertical.operands[i].extent == Extent::Scalar
            {
                scalars[i] = scalar(reads.view(v).data());
            }
        }
        let scalars: &'a [f32] = scalars;
        for (i, value) in self.values.iter().enumerate() {
            operands[i] = value.map(|v| match self.vertical.operands[i].extent {
                Extent::Panels => reads.panels(v),
                Extent::Features => bytemuck::cast_slice(reads.bytes(v)),
                Extent::Scalar => &scalars[i..=i],
            });
        }
        operands
    }

    /// Computes rows `first..first + rows` of panel `p`. `own` is the step's own operand, of these rows; without it that operand is
    /// `y` itself.
    pub(super) fn run(
        &self,
        operands: &Operands<'_>,
        own: Option<&[f32]>,
        p: usize,
        (first, rows): (usize, usize),
        y: &mut [f32],
    ) {
        let mut slices = *operands;
        for (slice, operand) in slices.iter_mut().zip(&self.vertical.operands) {
            *slice = match (*slice, operand.extent) {
                (None, _) => own,
                (Some(s), Extent::Panels) => Some(&s[self.shape.rows(p, first..first + rows)]),
                (Some(s), Extent::Features) => Some(&s[first..first + rows]),
                (Some(s), Extent::Scalar) => Some(s),
            };
        }
        let slices = &slices[..self.vertical.operands.len()];
        match self.kernels.get(p) {
            Some(kernel) => kernel.vertical(slices, rows, y),
            None => self.portable(slices, rows, self.shape.stride(p), y),
        }
    }

    fn portable(&self, operands: &[Option<&[f32]>], rows: usize, stride: usize, y: &mut [f32]) {
        let n = operands.len();
        if self.result == Element::Quad {
            y.fill(0.0);
        }
        for row in 0..rows {
            let mut values: Vec<Vec<f32>> = Vec::with_capacity(n + self.vertical.ops.len());
            for (slice, operand) in operands.iter().zip(&self.vertical.operands) {
                values.push(match (slice, operand.extent) {
                    (None, _) => y[row * stride..(row + 1) * stride].to_vec(),
                    (Some(s), Extent::Panels) => s[row * stride..(row + 1) * stride].to_vec(),
                    (Some(s), Extent::Features) => vec![s[row]; stride],
                    (Some(s), Extent::Scalar) => vec![s[0]; stride],
                });
            }
            for op in &self.vertical.ops {
                let value = apply(op, &values, |v| self.is_integer(v));
                values.push(value);
            }
            let Some(result) = values.pop() else { continue };
            if self.result == Element::Quad {
                for (y, v) in y[row / 4 * stride..].iter_mut().zip(result) {
                    let byte = v.to_bits() << (row % 4 * 8);
                    *y = f32::from_bits(y.to_bits() | byte);
                }
            } else {
                y[row * stride..(row + 1) * stride].copy_from_slice(&result);
            }
        }
    }

    fn is_integer(&self, value: u32) -> bool {
        let n = self.vertical.operands.len();
        match self.vertical.operands.get(value as usize) {
            Some(operand) => operand.element == Element::I32,
            None => match self.vertical.ops[value as usize - n] {
                VerticalOp::Binary { a, .. } => self.is_integer(a),
                VerticalOp::Activation { .. }
                | VerticalOp::ToFloat { .. }
                | VerticalOp::Quantize { .. } => false,
            },
        }
    }
}

/// Operands of an expression as dwords, whole.
pub(super) type Operands<'a> = [Option<&'a [f32]>; Vertical::MAX_OPERANDS];

/// A number as the dword that expressions take: `f32`, or `i32` for integers.
fn scalar(data: DataView<'_>) -> f32 {
    let int = |v: i32| f32::from_bits(v as u32);
    match data {
        DataView::F32(v) => v.first().copied().unwrap_or(0.0),
        DataView::I32(v) => int(v.first().copied().unwrap_or(0)),
        DataView::U8(v) => int(v.first().map_or(0, |&v| i32::from(v))),
        DataView::I8(v) => int(v.first().map_or(0, |&v| i32::from(v))),
        _ => 0.0,
    }
}

fn apply(op: &VerticalOp, values: &[Vec<f32>], is_integer: impl Fn(u32) -> bool) -> Vec<f32> {
    let of = |v: u32| &values[v as usize];
    let int = |v: f32| v.to_bits() as i32;
    match *op {
        VerticalOp::Binary { op, a, b } => {
            let function = |x: f32, y: f32| {
                if !is_integer(a) {
                    return op.apply(x, y);
                }
                let (x, y) = (int(x), int(y));
                let z = match op {
                    Binary::Add => x.wrapping_add(y),
                    Binary::Sub => x.wrapping_sub(y),
                    Binary::Mul => x.wrapping_mul(y),
                    // Checked with the expression: integers have no others.
                    Binary::Div | Binary::Max | Binary::Min | Binary::AtLeast | Binary::AtMost => 0,
                };
                f32::from_bits(z as u32)
            };
            (of(a).iter().zip(of(b)))
                .map(|(&x, &y)| function(x, y))
                .collect()
        }
        VerticalOp::Activation { kind, a } => {
            let mut value = of(a).clone();
            activation::portable(kind, &mut value);
            value
        }
        VerticalOp::ToFloat { a } => of(a).iter().map(|&v| int(v) as f32).collect(),
        VerticalOp::Quantize {
            a,
            scale,
            zero_point,
        } => {
            let scale = of(scale)[0];
            let zero = zero_point.map_or(0.0, |z| int(of(z)[0]) as f32);
            let byte = |v: f32| ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0) as u8;
            (of(a).iter())
                .map(|&v| f32::from_bits(u32::from(byte(v))))
                .collect()
        }
    }
}

/// The step.
pub(crate) struct Elementwise {
    expression: Expression,
    parts: Parts,
}

impl Elementwise {
    pub(super) fn bind(sizes: &Sizes<'_>, vertical: &Vertical) -> Result<Elementwise, String> {
        let out = sizes.panels(sizes.output());
        let features = sizes.features(sizes.output());
        Ok(Elementwise {
            expression: Expression::bind(sizes, vertical, Some(0), features)?,
            parts: Parts::new((0..out.n_panels()).map(|p| out.panel(p)).collect()),
        })
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        self.expression.kernel_name()
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let mut scalars = [0.0; Vertical::MAX_OPERANDS];
        let operands = self.expression.read(reads, &mut scalars);
        let rows = self.expression.shape.features;
        workers.team.for_each_part(&self.parts, out, |p, _, y| {
            self.expression.run(&operands, None, p, (0, rows), y);
        })?;
        Ok(())
    }
}
