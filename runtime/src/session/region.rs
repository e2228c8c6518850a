//! Steps that run plans: each plan has a session of its own, inside the one that runs the step.
//!
//! A plan is given views of its operands, and its outputs are copied out. All plans of a request share its threads, its memory
//! and the number of iterations that it may run.

use lancet_artifact::StepKind;
use lancet_ops::{Iteration, IterationError, Tensor, TensorView, truth};

use super::{Reads, Session, step_error};
use crate::bind::Binding;
use crate::pool::Team;
use crate::program::Program;
use crate::steps::Failure;
use crate::{Model, RuntimeError};

impl From<IterationError> for Failure {
    fn from(error: IterationError) -> Failure {
        Failure::Message(error.0)
    }
}

impl Session {
    /// Runs a step of a kind that runs plans.
    pub(super) fn run_regions(
        &mut self,
        model: &Model,
        step: usize,
        inputs: &[(&str, TensorView<'_>)],
        team: &mut Team<'_>,
        iterations_left: &mut u64,
    ) -> Result<(), RuntimeError> {
        let program = &model.shared.program;
        let mut regions = self.sessions_of(model, step);
        let (_, rest) = self.arena.split([0..0, 0..0]);
        let reads = Reads {
            model,
            binding: &self.binding,
            rest,
            owned: &self.owned,
            inputs,
            order: &self.order,
        };
        let operands: Vec<Option<TensorView<'_>>> = (program.plan.steps[step].inputs.iter())
            .map(|v| v.map(|v| reads.view(v as usize)))
            .collect();
        let results = match (&program.plan.steps[step].kind, regions.as_mut_slice()) {
            (StepKind::If { .. }, [then, otherwise]) => {
                choose(&operands, then, otherwise, team, iterations_left)
            }
            (StepKind::Loop { n_carried, .. }, [body]) => {
                let n_carried = *n_carried as usize;
                let collected = program.plan.steps[step].outputs[n_carried..].iter();
                let iteration = Iteration {
                    trips: None,
                    condition: true,
                    carried: Vec::new(),
                    collected: collected
                        .map(|&v| {
                            (
                                program.values[v as usize].dtype,
                                element(&self.binding, program, v),
                            )
                        })
                        .collect(),
                    max_bytes: model.shared.options.max_arena_bytes,
                };
                iterate(iteration, n_carried, &operands, body, team, iterations_left)
            }
            _ => Err(Failure::Message("runs no plan".to_owned())),
        };
        self.regions[step] = regions;
        let results = results.map_err(|failure| match failure {
            Failure::Message(message) => step_error(program, step, message),
            Failure::Panicked => RuntimeError::Panicked,
        })?;
        for (&out, tensor) in program.plan.steps[step].outputs.iter().zip(results) {
            self.accept(program, out as usize, tensor)
                .map_err(|m| step_error(program, step, m))?;
        }
        Ok(())
    }

    /// The sessions of a step's plans, which may use what memory this one has left.
    fn sessions_of(&mut self, model: &Model, step: usize) -> Vec<Session> {
        let mut regions = std::mem::take(&mut self.regions[step]);
        if regions.is_empty() {
            let models = model.shared.regions[step].iter();
            regions = models.map(Session::new).collect();
        }
        let left = self.limit_bytes.saturating_sub(self.arena.len() as u64);
        let others =
            |regions: &[Vec<Session>]| regions.iter().flatten().map(Session::held_bytes).sum();
        let mut held: u64 = others(&self.regions);
        if left / 2 < held {
            self.regions.iter_mut().for_each(Vec::clear);
            held = 0;
        }
        let n = regions.len() as u64;
        for region in &mut regions {
            region.limit_bytes = (left - held) / n.max(1);
        }
        regions
    }

    /// Bytes of memory that are kept between requests.
    fn held_bytes(&self) -> u64 {
        let inside = self.regions.iter().flatten().map(Session::held_bytes);
        self.arena.len() as u64 + inside.sum::<u64>()
    }

    /// Runs the session's plan on operands in the order of its inputs.
    fn run_region(
        &mut self,
        operands: &[TensorView<'_>],
        team: &mut Team<'_>,
        iterations_left: &mut u64,
    ) -> Result<Vec<Tensor>, Failure> {
        let model = self.model.clone();
        let plan = &model.shared.program.plan;
        let names = plan.inputs.iter().map(|p| p.name.as_str());
        let inputs: Vec<_> = names.zip(operands.iter().copied()).collect();
        let ran = self.run_inside(&inputs, team, iterations_left);
        let outputs = ran.and_then(|()| {
            let outputs = (0..plan.outputs.len()).map(|i| Ok(self.output_at(i)?.to_tensor()));
            outputs.collect::<Result<Vec<_>, RuntimeError>>()
        });
        outputs.map_err(|error| match error {
            RuntimeError::Panicked => Failure::Panicked,
            other => Failure::Message(other.to_string()),
        })
    }
}

/// The shape of an element of a collection, as far as it is known; other sizes are zero.
fn element(binding: &Binding, program: &Program, v: u32) -> Vec<usize> {
    let dims = program.plan.values[v as usize].shape.iter().skip(1);
    let sizes = dims.map(|d| d.eval(&|s| binding.symbols[s as usize]));
    let size = |d: Option<i64>| d.and_then(|d| usize::try_from(d).ok()).unwrap_or(0);
    sizes.map(size).collect()
}

/// One of two plans.
fn choose(
    operands: &[Option<TensorView<'_>>],
    then: &mut Session,
    otherwise: &mut Session,
    team: &mut Team<'_>,
    iterations_left: &mut u64,
) -> Result<Vec<Tensor>, Failure> {
    let condition = operands.first().copied().flatten().and_then(truth);
    let condition =
        condition.ok_or_else(|| Failure::Message("its condition is not one boolean".to_owned()))?;
    let rest: Vec<TensorView<'_>> = operands[1..].iter().copied().flatten().collect();
    let (first, second) = rest.split_at(then.model.plan().inputs.len());
    match condition {
        true => then.run_region(first, team, iterations_left),
        false => otherwise.run_region(second, team, iterations_left),
    }
}

/// A plan again and again; `iteration` lacks what operands tell.
fn iterate(
    iteration: Iteration,
    n_carried: usize,
    operands: &[Option<TensorView<'_>>],
    body: &mut Session,
    team: &mut Team<'_>,
    iterations_left: &mut u64,
) -> Result<Vec<Tensor>, Failure> {
    let message = |m: &str| Failure::Message(m.to_owned());
    let single = |t: TensorView<'_>| match t.as_slice::<i64>() {
        Some([n]) => Ok(*n),
        _ => Err(message("the most iterations are not one i64")),
    };
    let rest: Vec<TensorView<'_>> = operands[2..].iter().copied().flatten().collect();
    let (carried, read) = rest.split_at(n_carried);
    let iteration = Iteration {
        trips: operands[0].map(single).transpose()?,
        condition: match operands[1] {
            Some(c) => truth(c).ok_or_else(|| message("its condition is not one boolean"))?,
            None => true,
        },
        carried: carried.iter().map(|t| t.to_tensor()).collect(),
        ..iteration
    };
    let limit = body.model.shared.options.max_iterations;
    let plan = body.model.clone();
    let plan = plan.plan();
    let rank = |i: usize| plan.values[plan.inputs[i].value as usize].shape.len();
    let ones = [vec![1; rank(0)], vec![1; rank(1)]];
    iteration.run(|i, condition, carried| {
        *iterations_left = iterations_left.checked_sub(1).ok_or_else(|| {
            Failure::Message(format!(
                "loops of one request run more than {limit} iterations"
            ))
        })?;
        let first = [
            Tensor::new(ones[0].clone(), vec![i]),
            Tensor::new(ones[1].clone(), vec![condition]),
        ];
        let operands = first.iter().chain(carried).map(Tensor::view);
        let operands: Vec<_> = operands.chain(read.iter().copied()).collect();
        body.run_region(&operands, team, iterations_left)
    })
}
