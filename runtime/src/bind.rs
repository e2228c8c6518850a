//! Sizes of one request: symbols, shapes, and where each value lies in the arena.

use std::ops::Range;

use lancet_artifact::Layout;
use lancet_ops::TensorView;

use crate::RuntimeError;
use crate::arena::ALIGN;
use crate::panels::PanelShape;
use crate::program::{Home, Program};

/// Bytes that are left free behind every value, so that kernels may read a vector past its end.
const SLACK_BYTES: usize = 64;

/// What is known once the sizes of the inputs are.
#[derive(Clone, Default)]
pub(crate) struct Binding {
    /// Values of symbols; those that depend on data are `None` until a step has bound them.
    pub(crate) symbols: Vec<Option<i64>>,
    /// Shapes of values; empty while not known.
    pub(crate) shapes: Vec<Vec<usize>>,
    /// Byte range in the arena of each root that lives there.
    pub(crate) slots: Vec<Range<usize>>,
    /// Length of the arena.
    pub(crate) arena_bytes: usize,
}

/// Binds symbols to the sizes of `inputs` (by port) and checks every dimension against them.
pub(crate) fn bind_symbols<'a>(
    program: &Program,
    input: impl Fn(usize) -> TensorView<'a>,
    symbols: &mut Vec<Option<i64>>,
) -> Result<(), RuntimeError> {
    symbols.clear();
    symbols.resize(program.plan.symbols.len(), None);
    for (p, port) in program.plan.inputs.iter().enumerate() {
        let (desc, value) = (
            &program.plan.values[port.value as usize],
            &program.values[port.value as usize],
        );
        let view = input(p);
        if view.dtype() != value.dtype {
            return Err(RuntimeError::InputDType {
                name: port.name.clone(),
                expected: value.dtype,
                found: view.dtype(),
            });
        }
        if view.rank() != desc.shape.len() {
            return Err(RuntimeError::InputRank {
                name: port.name.clone(),
                expected: desc.shape.len(),
                found: view.shape().to_vec(),
            });
        }
        for (dim, &size) in desc.shape.iter().zip(view.shape()) {
            if let Some(s) = dim.as_symbol() {
                let symbol = &mut symbols[s as usize];
                if symbol.is_none() {
                    *symbol = i64::try_from(size).ok();
                }
            }
        }
    }
    for (p, port) in program.plan.inputs.iter().enumerate() {
        let desc = &program.plan.values[port.value as usize];
        for (i, (dim, &found)) in desc.shape.iter().zip(input(p).shape()).enumerate() {
            let expected = dim.eval(&|s| symbols[s as usize]);
            if expected.is_none() || expected != i64::try_from(found).ok() {
                let text = program.plan.dim_text(dim);
                return Err(RuntimeError::InputDim {
                    name: port.name.clone(),
                    dim: i,
                    expected: match expected {
                        Some(v) if text != v.to_string() => format!("{v} (`{text}`)"),
                        Some(v) => v.to_string(),
                        None => format!("`{text}`"),
                    },
                    found,
                });
            }
        }
    }
    Ok(())
}

impl Binding {
    /// Computes shapes and places everything that does not wait for data.
    pub(crate) fn new(
        program: &Program,
        symbols: Vec<Option<i64>>,
        limit_bytes: u64,
    ) -> Result<Binding, RuntimeError> {
        let mut binding = Binding {
            symbols,
            shapes: vec![Vec::new(); program.values.len()],
            slots: vec![0..0; program.values.len()],
            arena_bytes: 0,
        };
        for v in 0..program.values.len() {
            if !program.values[v].late {
                binding.shapes[v] = binding.shape(program, v)?;
            }
        }
        binding.place(program, limit_bytes)?;
        Ok(binding)
    }

    /// The shape of a value under the symbols bound so far.
    pub(crate) fn shape(&self, program: &Program, v: usize) -> Result<Vec<usize>, RuntimeError> {
        let desc = &program.plan.values[v];
        let mut shape = Vec::with_capacity(desc.shape.len());
        let mut n_elements = 1usize;
        for dim in &desc.shape {
            let size = dim
                .eval(&|s| self.symbols[s as usize])
                .and_then(|v| usize::try_from(v).ok());
            let product = size.and_then(|s| n_elements.checked_mul(s));
            let (Some(size), Some(product)) = (size, product) else {
                return Err(RuntimeError::Size {
                    place: format!("value {v} `{}`", desc.name),
                    size: program.plan.dim_text(dim),
                });
            };
            n_elements = product;
            shape.push(size);
        }
        Ok(shape)
    }

    /// The panel sizes of a value whose shape is known, in dwords: of bytes, four features of a token are one.
    pub(crate) fn panels(&self, program: &Program, v: usize) -> PanelShape {
        let leading = self.shapes[v]
            .split_last()
            .map_or(&[][..], |(_, rest)| rest);
        PanelShape::new(
            leading.iter().product(),
            program.values[v].panel_rows(),
            program.panel_width,
        )
    }

    /// Bytes that the elements of a value take, or `None` if they overflow.
    pub(crate) fn n_bytes(&self, program: &Program, v: usize) -> Option<usize> {
        let value = &program.values[v];
        match value.layout {
            Layout::RowMajor => {
                let n: usize = self.shapes[v].iter().product();
                n.checked_mul(value.dtype.size_bytes())
            }
            Layout::Panels => self.panels(program, v).n_elements()?.checked_mul(4),
        }
    }

    /// Gives each arena value an offset: largest first, each in the lowest gap among those that live when it does.
    fn place(&mut self, program: &Program, limit_bytes: u64) -> Result<(), RuntimeError> {
        let too_large = |needed_bytes| RuntimeError::MemoryLimit {
            needed_bytes,
            limit_bytes,
        };
        let mut order = Vec::new();
        for (v, value) in program.values.iter().enumerate() {
            if value.root != v
                || !matches!(value.home, Home::Arena)
                || program.lifetimes[v].is_none()
            {
                continue;
            }
            let bytes = self
                .n_bytes(program, v)
                .and_then(|b| b.checked_add(SLACK_BYTES))
                .and_then(|b| b.checked_next_multiple_of(ALIGN))
                .filter(|&b| b as u64 <= limit_bytes)
                .ok_or_else(|| too_large(u64::MAX))?;
            order.push((bytes, v));
        }
        order.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut placed: Vec<(Range<usize>, usize)> = Vec::with_capacity(order.len());
        let mut end = 0usize;
        for (bytes, v) in order {
            let (first, last) = program.lifetimes[v].expect("filtered above");
            let mut offset = 0;
            // `placed` is sorted by offset.
            for (range, other) in &placed {
                let (other_first, other_last) = program.lifetimes[*other].expect("filtered above");
                let live_together = first <= other_last && other_first <= last;
                if !live_together || range.end <= offset {
                    continue;
                }
                if offset + bytes <= range.start {
                    break;
                }
                offset = range.end;
            }
            let range = offset..offset + bytes;
            if range.end as u64 > limit_bytes {
                return Err(too_large(range.end as u64));
            }
            end = end.max(range.end);
            let at = placed.partition_point(|(r, _)| r.start < range.start);
            placed.insert(at, (range, v));
            let n_bytes = self.n_bytes(program, v).expect("computed above");
            self.slots[v] = offset..offset + n_bytes;
        }
        self.arena_bytes = end;
        Ok(())
    }
}
