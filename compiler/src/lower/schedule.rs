//! Puts steps in an order in which every size is known when a step needs it.
//!
//! A size that depends on data is known when the portable step that finds it has run. What needs the size alone, such as sizes that
//! are written as a tensor, does not have that step's results as operands, and the order of the graph does not tell.

use std::collections::HashSet;

use lancet_artifact::{Dim, Plan, Step, StepKind, Storage};

/// Moves each step behind those that find its sizes. Steps that wait for a size that no step finds stay at the end, in their
/// order: loading names the first.
pub(super) fn schedule(plan: &mut Plan) {
    let shape = |v: u32| &plan.values[v as usize].shape;
    let inputs = plan.inputs.iter().flat_map(|p| shape(p.value));
    let mut known: HashSet<u32> = inputs.filter_map(Dim::as_symbol).collect();
    let stored = plan.values.iter().map(|v| v.storage != Storage::Slot);
    let mut written: Vec<bool> = stored.collect();
    let mut ordered = Vec::with_capacity(plan.steps.len());
    let mut pending = std::mem::take(&mut plan.steps);
    loop {
        let n_pending = pending.len();
        let mut waiting = Vec::new();
        for step in pending {
            let finds = matches!(step.kind, StepKind::Portable { .. });
            let results = step.outputs.iter().flat_map(|&v| shape(v));
            let found: Vec<u32> = results.clone().filter_map(Dim::as_symbol).collect();
            let is_known = |s: &u32| known.contains(s) || (finds && found.contains(s));
            let mut symbols = results
                .chain(sizes(&step))
                .flat_map(|d| &d.terms)
                .flat_map(|(_, s)| s);
            let mut operands = step.inputs.iter().flatten();
            if operands.all(|&v| written[v as usize]) && symbols.all(is_known) {
                step.outputs
                    .iter()
                    .for_each(|&v| written[v as usize] = true);
                known.extend(found);
                ordered.push(step);
            } else {
                waiting.push(step);
            }
        }
        pending = waiting;
        if pending.is_empty() || pending.len() == n_pending {
            break;
        }
    }
    ordered.append(&mut pending);
    plan.steps = ordered;
}

/// Sizes that a step writes.
fn sizes(step: &Step) -> &[Dim] {
    match &step.kind {
        StepKind::Dims(dims) => dims,
        _ => &[],
    }
}
