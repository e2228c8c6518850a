//! One caller's state: the arena, and the values of the request that runs.

mod region;

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use lancet_artifact::StepKind;
use lancet_ops::{Attributes, DType, Operator, Tensor, TensorView};

use crate::arena::{Buffer, Rest};
use crate::bind::{Binding, bind_symbols};
use crate::pool::Team;
use crate::program::{Home, Op, Program, view_of_bytes};
use crate::steps::{self, Bound, Failure, Workers};
use crate::{Model, RuntimeError};

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
    /// Buffers of values whose sizes depended on data, for the next ones.
    spare: Vec<Buffer>,
    /// Steps over panels. Those whose sizes depend on data are bound when they run, and stay so while the sizes do.
    steps: Vec<Option<Bound>>,
    /// For each step whose sizes depend on data, the symbols that it was bound with.
    bound_with: Vec<Vec<Option<i64>>>,
    /// Memory of each thread.
    scratch: Vec<Mutex<Vec<f32>>>,
    /// Memory of one step at a time.
    between: Vec<f32>,
    bound: bool,
    complete: bool,
    traces: Option<Vec<StepTrace>>,
    /// For each step that runs plans, their sessions.
    regions: Vec<Vec<Session>>,
    /// Most bytes of memory, of the sessions of plans too.
    limit_bytes: u64,
}

/// What one step did in the last run.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTrace {
    /// The node that the step came from.
    pub name: String,
    /// What ran: the name of a kernel or of an operator.
    pub kernel: Arc<str>,
    pub nanoseconds: u64,
    /// Useful floating-point operations of matrix products; 0 for other steps.
    pub flops: u64,
}

/// Memory of one value.
pub(crate) enum Owned {
    Tensor(Tensor),
    Buffer(Buffer),
}

/// Buffers that are kept for the next values: as many as are alive at once in a layer.
const MAX_SPARE: usize = 8;

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
            spare: Vec::new(),
            steps: Vec::new(),
            bound_with: Vec::new(),
            scratch: (0..model.threads()).map(|_| Mutex::default()).collect(),
            between: Vec::new(),
            bound: false,
            complete: false,
            traces: None,
            regions: model.shared.regions.iter().map(|_| Vec::new()).collect(),
            limit_bytes: model.shared.options.max_arena_bytes,
        }
    }

    /// Whether runs measure their steps, for [`Session::trace`].
    pub fn set_tracing(&mut self, on: bool) {
        self.traces = on.then(Vec::new);
    }

    /// The steps of the last run, in order; empty if it was not measured.
    pub fn trace(&self) -> &[StepTrace] {
        self.traces.as_deref().unwrap_or(&[])
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
        let model = self.model.clone();
        let mut team = model.shared.pool.request();
        let mut iterations_left = model.shared.options.max_iterations;
        self.run_inside(inputs, &mut team, &mut iterations_left)
    }

    /// As [`Session::run_in_place`], as part of a request.
    fn run_inside(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        team: &mut Team<'_>,
        iterations_left: &mut u64,
    ) -> Result<(), RuntimeError> {
        self.complete = false;
        let model = self.model.clone();
        let program = &model.shared.program;
        self.match_inputs(program, inputs)?;
        bind_symbols(program, |p| inputs[self.order[p]].1, &mut self.symbols)?;
        self.bind(&model)?;
        if let Some(traces) = &mut self.traces {
            traces.clear();
        }
        for step in 0..program.ops.len() {
            self.run_step(&model, step, inputs, team, iterations_left)?;
            for &root in &program.dead_after[step] {
                self.release(root);
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
        let index = program.plan.outputs.iter().position(|p| p.name == name);
        match index {
            Some(index) => self.output_at(index),
            None => Err(RuntimeError::UnknownOutput {
                name: name.to_owned(),
                known: names(&program.plan.outputs),
            }),
        }
    }

    fn output_at(&self, index: usize) -> Result<TensorView<'_>, RuntimeError> {
        let program = &self.model.shared.program;
        let port = &program.plan.outputs[index];
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
    fn bind(&mut self, model: &Model) -> Result<(), RuntimeError> {
        let program = &model.shared.program;
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
            self.binding = Binding::new(program, self.symbols.clone(), self.limit_bytes)?;
            if self.arena.len() < self.binding.arena_bytes {
                self.arena = Buffer::empty();
                self.arena =
                    Buffer::zeroed(self.binding.arena_bytes).ok_or(RuntimeError::OutOfMemory {
                        bytes: self.binding.arena_bytes as u64,
                    })?;
            }
            self.bind_steps(model)?;
            self.bound = true;
        }
        for root in 0..self.owned.len() {
            self.release(root);
        }
        Ok(())
    }

    /// Binds the steps whose sizes are known before anything runs.
    fn bind_steps(&mut self, model: &Model) -> Result<(), RuntimeError> {
        let program = &model.shared.program;
        self.steps.clear();
        self.steps.resize_with(program.ops.len(), || None);
        self.bound_with.clear();
        self.bound_with.resize_with(program.ops.len(), Vec::new);
        let early = (0..program.ops.len())
            .filter(|&i| matches!(program.ops[i], Op::Panels) && !is_late(program, i));
        let steps = &mut self.steps;
        steps::bind_all(&model.shared, &self.binding, early, |i, bound| {
            steps[i] = Some(bound)
        })
        .map_err(|(step, message)| step_error(program, step, message))
    }

    fn run_step(
        &mut self,
        model: &Model,
        step: usize,
        inputs: &[(&str, TensorView<'_>)],
        team: &mut Team<'_>,
        iterations_left: &mut u64,
    ) -> Result<(), RuntimeError> {
        let program = &model.shared.program;
        let start = self.traces.is_some().then(Instant::now);
        let (kernel, flops) = match &program.ops[step] {
            Op::Portable {
                operator,
                attributes,
            } => {
                self.run_portable(model, step, (*operator, attributes), inputs)?;
                (operator.schema().text, 0)
            }
            Op::Regions => {
                self.run_regions(model, step, inputs, team, iterations_left)?;
                (program.plan.steps[step].kind.name(), 0)
            }
            Op::View => {
                self.check_view(program, step)?;
                ("view", 0)
            }
            Op::Dims | Op::Broadcast | Op::Number | Op::Panels => {
                self.run_kernel(model, step, inputs, team)?;
                match &self.steps[step] {
                    Some(bound) => {
                        if let (Some(start), Some(traces)) = (start, &mut self.traces) {
                            traces.push(StepTrace {
                                name: program.plan.steps[step].name.clone(),
                                kernel: bound.kernel_name(),
                                nanoseconds: nanoseconds(start),
                                flops: bound.flops(),
                            });
                        }
                        return Ok(());
                    }
                    None => ("sizes", 0),
                }
            }
        };
        if let (Some(start), Some(traces)) = (start, &mut self.traces) {
            traces.push(StepTrace {
                name: program.plan.steps[step].name.clone(),
                kernel: kernel.into(),
                nanoseconds: nanoseconds(start),
                flops,
            });
        }
        Ok(())
    }

    fn run_portable(
        &mut self,
        model: &Model,
        step: usize,
        (operator, attributes): (Operator, &Attributes),
        inputs: &[(&str, TensorView<'_>)],
    ) -> Result<(), RuntimeError> {
        let program = &model.shared.program;
        let desc = &program.plan.steps[step];
        let (_, rest) = self.arena.split([0..0, 0..0]);
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
        let results = lancet_ops::evaluate(operator, attributes, &operands, desc.outputs.len())
            .map_err(|source| RuntimeError::Operator {
                step,
                name: desc.name.clone(),
                source,
            })?;
        if results.len() < desc.outputs.len() {
            let message = format!("gave {} results", results.len());
            return Err(step_error(program, step, message));
        }
        for (&out, tensor) in desc.outputs.iter().zip(results) {
            self.accept(program, out as usize, tensor)
                .map_err(|m| step_error(program, step, m))?;
        }
        Ok(())
    }

    /// Makes the shapes of the step's outputs known if they waited for data; the first output, and the second if there is one.
    fn bind_outputs(
        &mut self,
        program: &Program,
        step: usize,
    ) -> Result<(usize, Option<usize>), RuntimeError> {
        let outputs = &program.plan.steps[step].outputs;
        for &out in outputs {
            let out = out as usize;
            if program.values[out].late {
                self.binding.shapes[out] = self.binding.shape(program, out)?;
            }
        }
        Ok((outputs[0] as usize, outputs.get(1).map(|&v| v as usize)))
    }

    fn check_view(&mut self, program: &Program, step: usize) -> Result<(), RuntimeError> {
        let (out, _) = self.bind_outputs(program, step)?;
        let source =
            program.plan.steps[step].inputs[0].expect("checked: a view has an operand") as usize;
        let (from, to) = (&self.binding.shapes[source], &self.binding.shapes[out]);
        if from.iter().product::<usize>() != to.iter().product::<usize>() {
            let message = format!("cannot view shape {from:?} as {to:?}");
            return Err(step_error(program, step, message));
        }
        Ok(())
    }

    /// Runs a step that writes its results into memory of the session.
    fn run_kernel(
        &mut self,
        model: &Model,
        step: usize,
        inputs: &[(&str, TensorView<'_>)],
        team: &mut Team<'_>,
    ) -> Result<(), RuntimeError> {
        let program = &model.shared.program;
        let desc = &program.plan.steps[step];
        let (out, second) = self.bind_outputs(program, step)?;
        if matches!(program.ops[step], Op::Panels)
            && (self.steps[step].is_none()
                || (is_late(program, step) && self.bound_with[step] != self.binding.symbols))
        {
            let bound = &mut self.steps[step];
            *bound = None;
            steps::bind_all(
                &model.shared,
                &self.binding,
                std::iter::once(step),
                |_, b| *bound = Some(b),
            )
            .map_err(|(step, message)| step_error(program, step, message))?;
            self.bound_with[step].clone_from(&self.binding.symbols);
        }
        // Results are outside `owned` while they are written, so that the operands can be read there.
        let mut memory =
            |out: Option<usize>| -> Result<(Option<Buffer>, Range<usize>), RuntimeError> {
                Ok(match out {
                    Some(out) if matches!(program.values[out].home, Home::Owned) => {
                        (Some(self.allocate(model, out)?), 0..0)
                    }
                    Some(out) => (None, self.binding.slots[out].clone()),
                    None => (None, 0..0),
                })
            };
        let ((mut owned, slot), (mut second_owned, second_slot)) =
            (memory(Some(out))?, memory(second)?);
        let ([written, second_written], rest) = self.arena.split([slot, second_slot]);
        let written = owned.as_mut().map_or(written, |b| b.bytes_mut());
        let second_written = (second_owned.as_mut()).map_or(second_written, |b| b.bytes_mut());
        let reads = Reads {
            model,
            binding: &self.binding,
            rest,
            owned: &self.owned,
            inputs,
            order: &self.order,
        };
        let input = desc.inputs.first().copied().flatten().map(|v| v as usize);
        let result = match (&self.steps[step], &desc.kind, input) {
            (Some(bound), _, _) => {
                let mut workers = Workers {
                    team,
                    scratch: &self.scratch,
                    between: &mut self.between,
                };
                bound.run(&reads, [written, second_written], &mut workers)
            }
            (None, StepKind::Dims(dims), _) => {
                steps::sizes::dims(dims, &self.binding, written).map_err(Failure::Message)
            }
            (None, StepKind::RangeScale, Some(input)) => {
                let scale = steps::range::scale(reads.f32(input));
                written.copy_from_slice(&scale.to_ne_bytes());
                Ok(())
            }
            (None, StepKind::RangeZeroPoint, Some(input)) => {
                let byte = steps::range::zero_point(reads.f32(input));
                match program.values[out].dtype {
                    DType::I32 => written.copy_from_slice(&i32::from(byte).to_ne_bytes()),
                    _ => written.copy_from_slice(&[byte]),
                }
                Ok(())
            }
            (None, _, Some(input)) => {
                let size = program.values[out].dtype.size_bytes();
                let from = (reads.bytes(input), self.binding.shapes[input].as_slice());
                steps::sizes::broadcast(from, &self.binding.shapes[out], size, written)
                    .map_err(Failure::Message)
            }
            (None, _, None) => Err(Failure::Message("has no operand".to_owned())),
        };
        result.map_err(|failure| match failure {
            Failure::Message(message) => step_error(program, step, message),
            Failure::Panicked => RuntimeError::Panicked,
        })?;
        for (out, owned) in [(Some(out), owned), (second, second_owned)] {
            if let (Some(out), Some(buffer)) = (out, owned) {
                self.owned[out] = Some(Owned::Buffer(buffer));
            }
        }
        Ok(())
    }

    /// Memory for a value of its own.
    fn allocate(&mut self, model: &Model, v: usize) -> Result<Buffer, RuntimeError> {
        let limit_bytes = model.shared.options.max_arena_bytes;
        let n_bytes = self.binding.n_bytes(&model.shared.program, v);
        match n_bytes {
            Some(n) if n as u64 <= limit_bytes => match self.take_spare(n) {
                Some(buffer) => Ok(buffer),
                None => Buffer::zeroed(n).ok_or(RuntimeError::OutOfMemory { bytes: n as u64 }),
            },
            _ => Err(RuntimeError::MemoryLimit {
                needed_bytes: n_bytes.map_or(u64::MAX, |n| n as u64),
                limit_bytes,
            }),
        }
    }

    /// A spare buffer of `n` bytes.
    fn take_spare(&mut self, n: usize) -> Option<Buffer> {
        let i = self.spare.iter().position(|b| b.len() == n)?;
        Some(self.spare.swap_remove(i))
    }

    /// Gives up the memory of a value; a buffer is kept for the next value of its size.
    fn release(&mut self, root: usize) {
        if let Some(Owned::Buffer(buffer)) = self.owned[root].take() {
            if self.spare.len() == MAX_SPARE {
                self.spare.remove(0);
            }
            self.spare.push(buffer);
        }
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
                let text = program.plan.dim_text(dim);
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

/// True if sizes of the step are known only when others have run.
fn is_late(program: &Program, step: usize) -> bool {
    let step = &program.plan.steps[step];
    let mut values = step.inputs.iter().flatten().chain(&step.outputs);
    values.any(|&v| program.values[v as usize].late)
}

fn step_error(program: &Program, step: usize, message: String) -> RuntimeError {
    RuntimeError::Step {
        step,
        name: program.plan.steps[step].name.clone(),
        message,
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn names(ports: &[lancet_artifact::Port]) -> String {
    quoted(ports.iter().map(|p| p.name.as_str()))
}

/// Names for a message: `` `a`, `b` ``.
pub(crate) fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|n| format!("`{n}`")).collect();
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

    /// A row-major value of element type `f32`.
    pub(crate) fn f32(&self, v: usize) -> &'a [f32] {
        self.view(v)
            .as_slice()
            .expect("the check of the step found f32")
    }

    /// A value in panels.
    pub(crate) fn panels(&self, v: usize) -> &'a [f32] {
        let root = self.model.shared.program.values[v].root;
        let bytes = match &self.owned[root] {
            Some(Owned::Buffer(buffer)) => buffer.bytes(),
            _ => self.rest.get(self.slot(root)),
        };
        bytemuck::try_cast_slice(bytes).expect("buffers are aligned and steps write dwords")
    }

    /// Zeros, at least as many as any step has features.
    pub(crate) fn zeros(&self) -> &'a [f32] {
        &self.model.shared.zeros
    }

    /// The bytes of a row-major value.
    pub(crate) fn bytes(&self, v: usize) -> &'a [u8] {
        lancet_ops::with_elements!(self.view(v).data(), elements => bytemuck::cast_slice(elements))
    }
}
