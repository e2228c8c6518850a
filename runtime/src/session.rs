//! One caller's state: the arena, and the values of the request that runs.

use std::ops::Range;

use lancet_artifact::StepKind;
use lancet_ops::{Tensor, TensorView};

use crate::arena::{Buffer, Rest};
use crate::bind::{Binding, bind_symbols};
use crate::program::{Home, Op, Program, view_of_bytes};
use crate::{Model, RuntimeError, steps};

/// Runs a model, one request at a time.
///
/// Working memory is sized by the first request of given sizes and kept. After that, a run whose steps all have kernels
/// allocates nothing; steps that run portably allocate their results.
pub struct Session {
    model: Model,
    binding: Binding,
    /// Scratch for the symbols of the next request.
    symbols: Vec<Option<i64>>,
    /// For each port, which of the caller's tensors it is.
    order: Vec<usize>,
    arena: Buffer,
    /// Elements of roots whose home is not the arena.
    owned: Vec<Option<Owned>>,
    bound: bool,
    complete: bool,
}

/// Memory of one value.
pub(crate) enum Owned {
    Tensor(Tensor),
    Buffer(Buffer),
}

impl Session {
    /// A session of `model` that has no memory yet.
    pub fn new(model: &Model) -> Session {
        let n_values = model.shared.program.values.len();
        Session {
            model: model.clone(),
            binding: Binding::default(),
            symbols: Vec::new(),
            order: Vec::new(),
            arena: Buffer::empty(),
            owned: (0..n_values).map(|_| None).collect(),
            bound: false,
            complete: false,
        }
    }

    /// Runs the model and copies every output out.
    ///
    /// # Errors
    /// As [`Session::run_in_place`].
    pub fn run(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
    ) -> Result<Vec<(String, Tensor)>, RuntimeError> {
        self.run_in_place(inputs)?;
        let names: Vec<String> = self
            .model
            .plan()
            .outputs
            .iter()
            .map(|p| p.name.clone())
            .collect();
        names
            .into_iter()
            .map(|name| {
                let tensor = self.output(&name)?.to_tensor();
                Ok((name, tensor))
            })
            .collect()
    }

    /// Runs the model; outputs stay in the session until the next run, for [`Session::output`].
    ///
    /// # Errors
    /// [`RuntimeError`] if the inputs are not those of the model, their sizes contradict each other or need too much
    /// memory, or a step fails on their values. The session can be used again after any error.
    pub fn run_in_place(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<(), RuntimeError> {
        self.complete = false;
        let model = self.model.clone();
        let program = &model.shared.program;
        self.match_inputs(program, inputs)?;
        bind_symbols(program, |p| inputs[self.order[p]].1, &mut self.symbols)?;
        self.bind(program, model.shared.options.max_arena_bytes)?;
        for step in 0..program.ops.len() {
            self.run_step(&model, step, inputs)?;
            for &root in &program.dead_after[step] {
                self.owned[root] = None;
            }
        }
        for port in &program.plan.outputs {
            let root = program.values[port.value as usize].root;
            if let Home::Input(p) = program.values[root].home {
                self.owned[root] = Some(Owned::Tensor(inputs[self.order[p]].1.to_tensor()));
            }
        }
        self.complete = true;
        Ok(())
    }

    /// The output `name` of the last run.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownOutput`], or [`RuntimeError::NoOutputs`] if the last run failed or there was none.
    pub fn output(&self, name: &str) -> Result<TensorView<'_>, RuntimeError> {
        let program = &self.model.shared.program;
        let Some(port) = program.plan.outputs.iter().find(|p| p.name == name) else {
            return Err(RuntimeError::UnknownOutput {
                name: name.to_owned(),
                known: names(&program.plan.outputs),
            });
        };
        if !self.complete {
            return Err(RuntimeError::NoOutputs);
        }
        let v = port.value as usize;
        let root = program.values[v].root;
        let (shape, dtype) = (&self.binding.shapes[v], program.values[v].dtype);
        let view = match &program.values[root].home {
            Home::Weights(range) => {
                view_of_bytes(dtype, shape, &self.model.shared.weights()[range.clone()])
            }
            Home::Constant(i) => TensorView::new(shape, program.constants[*i].data().view()),
            Home::Arena => {
                let range = self.binding.slots[root].clone();
                view_of_bytes(dtype, shape, &self.arena.bytes()[range])
            }
            Home::Input(_) | Home::Owned => match &self.owned[root] {
                Some(Owned::Tensor(t)) => TensorView::new(shape, t.data().view()),
                Some(Owned::Buffer(b)) => view_of_bytes(dtype, shape, b.bytes()),
                None => None,
            },
        };
        view.ok_or(RuntimeError::NoOutputs)
    }

    /// Finds each port's tensor among the caller's.
    fn match_inputs(
        &mut self,
        program: &Program,
        inputs: &[(&str, TensorView<'_>)],
    ) -> Result<(), RuntimeError> {
        let ports = &program.plan.inputs;
        self.order.clear();
        self.order.resize(ports.len(), usize::MAX);
        for (i, (name, _)) in inputs.iter().enumerate() {
            let Some(p) = ports.iter().position(|p| p.name == *name) else {
                return Err(RuntimeError::UnknownInput {
                    name: (*name).to_owned(),
                    known: names(ports),
                });
            };
            if self.order[p] != usize::MAX {
                return Err(RuntimeError::RepeatedInput {
                    name: (*name).to_owned(),
                });
            }
            self.order[p] = i;
        }
        match self.order.iter().position(|&i| i == usize::MAX) {
            Some(p) => Err(RuntimeError::MissingInput {
                name: ports[p].name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Makes `self.binding` that of `self.symbols`, and forgets what the last request's data bound.
    fn bind(&mut self, program: &Program, limit_bytes: u64) -> Result<(), RuntimeError> {
        let same = self.bound
            && (self.symbols.iter().zip(&self.binding.symbols))
                .zip(&program.input_symbols)
                .all(|((next, last), &of_input)| !of_input || next == last);
        if same {
            for (v, value) in program.values.iter().enumerate() {
                if value.late {
                    self.binding.shapes[v].clear();
                }
            }
            self.binding.symbols.clone_from(&self.symbols);
        } else {
            self.bound = false;
            self.binding = Binding::new(program, self.symbols.clone(), limit_bytes)?;
            if self.arena.len() < self.binding.arena_bytes {
                self.arena = Buffer::empty();
                self.arena =
                    Buffer::zeroed(self.binding.arena_bytes).ok_or(RuntimeError::OutOfMemory {
                        bytes: self.binding.arena_bytes as u64,
                    })?;
            }
            self.bound = true;
        }
        self.owned.iter_mut().for_each(|o| *o = None);
        Ok(())
    }

    fn run_step(
        &mut self,
        model: &Model,
        step: usize,
        inputs: &[(&str, TensorView<'_>)],
    ) -> Result<(), RuntimeError> {
        let program = &model.shared.program;
        let desc = &program.plan.steps[step];
        let error = |message: String| RuntimeError::Step {
            step,
            name: desc.name.clone(),
            message,
        };
        let op = &program.ops[step];
        if let Op::Portable {
            operator,
            attributes,
        } = op
        {
            let (_, rest) = self.arena.split(0..0);
            let reads = Reads {
                model,
                binding: &self.binding,
                rest,
                owned: &self.owned,
                inputs,
                order: &self.order,
            };
            let operands: Vec<Option<TensorView<'_>>> = desc
                .inputs
                .iter()
                .map(|v| v.map(|v| reads.view(v as usize)))
                .collect();
            let results =
                lancet_ops::evaluate(*operator, attributes, &operands, desc.outputs.len())
                    .map_err(|source| RuntimeError::Operator {
                        step,
                        name: desc.name.clone(),
                        source,
                    })?;
            if results.len() < desc.outputs.len() {
                return Err(error(format!("gave {} results", results.len())));
            }
            for (&out, tensor) in desc.outputs.iter().zip(results) {
                self.accept(program, out as usize, tensor).map_err(error)?;
            }
            return Ok(());
        }
        let out = desc.outputs[0] as usize;
        if program.values[out].late {
            self.binding.shapes[out] = self.binding.shape(program, out)?;
        }
        if matches!(op, Op::View) {
            let source = desc.inputs[0].expect("checked: a view has an operand") as usize;
            let (from, to) = (&self.binding.shapes[source], &self.binding.shapes[out]);
            if from.iter().product::<usize>() != to.iter().product::<usize>() {
                return Err(error(format!("cannot view shape {from:?} as {to:?}")));
            }
            return Ok(());
        }
        // The result is taken out of `owned` while it is written, so that the operands can be read there.
        let mut late = None;
        if matches!(program.values[out].home, Home::Owned) {
            let n_bytes = self.binding.n_bytes(program, out);
            let limit_bytes = model.shared.options.max_arena_bytes;
            let n_bytes = match n_bytes {
                Some(n) if n as u64 <= limit_bytes => n,
                other => {
                    return Err(RuntimeError::MemoryLimit {
                        needed_bytes: other.map_or(u64::MAX, |n| n as u64),
                        limit_bytes,
                    });
                }
            };
            late = Some(Buffer::zeroed(n_bytes).ok_or(RuntimeError::OutOfMemory {
                bytes: n_bytes as u64,
            })?);
        }
        {
            let slot = if late.is_some() {
                0..0
            } else {
                self.binding.slots[out].clone()
            };
            let (written, rest) = self.arena.split(slot);
            let written = late.as_mut().map_or(written, |b| b.bytes_mut());
            let reads = Reads {
                model,
                binding: &self.binding,
                rest,
                owned: &self.owned,
                inputs,
                order: &self.order,
            };
            let input = desc.inputs.first().copied().flatten().map(|v| v as usize);
            match (op, &desc.kind, input) {
                (Op::Dims, StepKind::Dims(dims), _) => {
                    steps::sizes::dims(dims, &self.binding, written).map_err(error)?;
                }
                (Op::Broadcast, _, Some(input)) => {
                    let size = program.values[out].dtype.size_bytes();
                    let from = (reads.bytes(input), self.binding.shapes[input].as_slice());
                    steps::sizes::broadcast(from, &self.binding.shapes[out], size, written)
                        .map_err(error)?;
                }
                _ => return Err(error("is not implemented".to_owned())),
            }
        }
        if let Some(buffer) = late {
            self.owned[out] = Some(Owned::Buffer(buffer));
        }
        Ok(())
    }

    /// Takes the result of a portable step: binds symbols that its shape is the first to show, checks the rest.
    fn accept(&mut self, program: &Program, out: usize, tensor: Tensor) -> Result<(), String> {
        let desc = &program.plan.values[out];
        let expected_dtype = program.values[out].dtype;
        if tensor.dtype() != expected_dtype || tensor.shape().len() != desc.shape.len() {
            return Err(format!(
                "gave {}{:?} for `{}`, expected {expected_dtype} of rank {}",
                tensor.dtype(),
                tensor.shape(),
                desc.name,
                desc.shape.len()
            ));
        }
        for (dim, &found) in desc.shape.iter().zip(tensor.shape()) {
            if let Some(s) = dim.as_symbol() {
                let symbol = &mut self.binding.symbols[s as usize];
                if symbol.is_none() {
                    *symbol = i64::try_from(found).ok();
                }
            }
        }
        for (i, (dim, &found)) in desc.shape.iter().zip(tensor.shape()).enumerate() {
            let expected = dim.eval(&|s| self.binding.symbols[s as usize]);
            if expected != i64::try_from(found).ok() {
                let text = crate::bind::dim_text(program, dim);
                return Err(format!(
                    "gave shape {:?} for `{}`, expected `{text}` at dimension {i}",
                    tensor.shape(),
                    desc.name
                ));
            }
        }
        if program.values[out].late {
            self.binding.shapes[out] = tensor.shape().to_vec();
        }
        self.owned[out] = Some(Owned::Tensor(tensor));
        Ok(())
    }
}

fn names(ports: &[lancet_artifact::Port]) -> String {
    let names: Vec<String> = ports.iter().map(|p| format!("`{}`", p.name)).collect();
    names.join(", ")
}

/// Everything that a step may read while it writes its result.
pub(crate) struct Reads<'a> {
    pub(crate) model: &'a Model,
    pub(crate) binding: &'a Binding,
    rest: Rest<'a>,
    owned: &'a [Option<Owned>],
    inputs: &'a [(&'a str, TensorView<'a>)],
    order: &'a [usize],
}

impl<'a> Reads<'a> {
    /// A row-major value.
    pub(crate) fn view(&self, v: usize) -> TensorView<'a> {
        let program: &'a Program = &self.model.shared.program;
        let root = program.values[v].root;
        let (shape, dtype) = (&self.binding.shapes[v], program.values[v].dtype);
        let view = match &program.values[root].home {
            Home::Input(p) => TensorView::new(shape, self.inputs[self.order[*p]].1.data()),
            Home::Weights(range) => {
                view_of_bytes(dtype, shape, &self.model.shared.weights()[range.clone()])
            }
            Home::Constant(i) => TensorView::new(shape, program.constants[*i].data().view()),
            Home::Arena => view_of_bytes(dtype, shape, self.rest.get(self.slot(root))),
            Home::Owned => match &self.owned[root] {
                Some(Owned::Tensor(t)) => TensorView::new(shape, t.data().view()),
                Some(Owned::Buffer(b)) => view_of_bytes(dtype, shape, b.bytes()),
                None => None,
            },
        };
        view.expect(
            "the plan was checked: a value is written, whole and of its type, before it is read",
        )
    }

    fn slot(&self, root: usize) -> Range<usize> {
        self.binding.slots[root].clone()
    }

    /// The bytes of a row-major value.
    pub(crate) fn bytes(&self, v: usize) -> &'a [u8] {
        lancet_ops::with_elements!(self.view(v).data(), elements => bytemuck::cast_slice(elements))
    }
}
