//! Runs a pipeline: after each pass it sweeps, verifies, times and hands the graph to whoever wants to see it.

use std::time::Duration;

use lancet_ir::{Graph, print, verify};

use crate::{
    Changed, Pass, PassContext, PassError, Pipeline, PipelineEntry, PipelineError, Remark, Target,
};

/// How much the manager checks after each pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checks {
    /// The graph's invariants and types.
    #[default]
    Verify,
    /// Also that the pass told the truth about having changed the graph, by comparing printed text. For tests.
    VerifyAndCompareText,
}

/// What one pass did.
#[derive(Clone, Debug, PartialEq)]
pub struct PassReport {
    pub pass: &'static str,
    pub changed: Changed,
    /// Nodes after the pass, swept.
    pub n_nodes: usize,
    /// Time of the pass alone; zero without a clock.
    pub time: Duration,
}

/// What a pipeline did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub passes: Vec<PassReport>,
    pub remarks: Vec<Remark>,
}

/// Reads a clock: time since any fixed moment.
type Clock<'a> = Box<dyn FnMut() -> Duration + 'a>;
/// Sees the graph after the pass of this name.
type AfterPass<'a> = Box<dyn FnMut(&'static str, &Graph) + 'a>;

/// Runs pipelines.
#[derive(Default)]
pub struct PassManager<'a> {
    target: Target,
    checks: Checks,
    clock: Option<Clock<'a>>,
    after_pass: Option<AfterPass<'a>>,
}

impl<'a> PassManager<'a> {
    /// A manager for this target.
    pub fn new(target: Target) -> PassManager<'a> {
        PassManager {
            target,
            ..PassManager::default()
        }
    }

    /// Sets how much is checked after each pass.
    #[must_use]
    pub fn with_checks(mut self, checks: Checks) -> PassManager<'a> {
        self.checks = checks;
        self
    }

    /// Times passes by this clock, which gives the time since any fixed moment.
    #[must_use]
    pub fn with_clock(mut self, clock: impl FnMut() -> Duration + 'a) -> PassManager<'a> {
        self.clock = Some(Box::new(clock));
        self
    }

    /// Hands the swept graph to `hook` after each pass.
    #[must_use]
    pub fn after_each_pass(
        mut self,
        hook: impl FnMut(&'static str, &Graph) + 'a,
    ) -> PassManager<'a> {
        self.after_pass = Some(Box::new(hook));
        self
    }

    /// Runs the passes in order.
    ///
    /// # Errors
    /// [`PipelineError::Pass`] from the first pass that fails or leaves an invalid graph. The graph is then half-way.
    pub fn run(&mut self, pipeline: &Pipeline, graph: &mut Graph) -> Result<Report, PipelineError> {
        let mut report = Report::default();
        for entry in &pipeline.entries {
            let pass = (entry.info.new)();
            let name = entry.info.name;
            let fail = |source| PipelineError::Pass { pass: name, source };
            let text_before = self.text(graph);
            let start = self.now();
            let changed = self
                .apply(pass.as_ref(), entry, graph, &mut report.remarks)
                .map_err(fail)?;
            let time = self.now().saturating_sub(start);
            let told = text_before.map(|before| Changed::from(Some(before) != self.text(graph)));
            if told.is_some_and(|seen| seen != changed) {
                let message = format!("says changed: {changed:?}, which its graph's text belies");
                return Err(fail(PassError::Broken(message)));
            }
            verify(graph).map_err(|errors| fail(PassError::Invalid(errors)))?;
            report.passes.push(PassReport {
                pass: name,
                changed,
                n_nodes: graph.len(),
                time,
            });
            if let Some(hook) = &mut self.after_pass {
                hook(name, graph);
            }
        }
        Ok(report)
    }

    /// Runs a pass on a graph, sweeps it, and does the same with the graphs that its nodes run. Each stands by itself: what one
    /// reads of those around it are operands of its node, and inputs to it.
    fn apply(
        &self,
        pass: &dyn Pass,
        entry: &PipelineEntry,
        graph: &mut Graph,
        remarks: &mut Vec<Remark>,
    ) -> Result<Changed, PassError> {
        let mut cx = PassContext::new(entry.info.name, &self.target, &entry.options, remarks);
        let mut changed = pass.run(graph, &mut cx)?;
        graph.sweep();
        for node in graph.order() {
            for region in graph.regions_mut(node) {
                if self.apply(pass, entry, region, remarks)? == Changed::Yes {
                    changed = Changed::Yes;
                }
            }
        }
        Ok(changed)
    }

    /// The printed graph, where it is to be compared.
    fn text(&self, graph: &Graph) -> Option<String> {
        match self.checks {
            Checks::Verify => None,
            Checks::VerifyAndCompareText => Some(print(graph)),
        }
    }

    fn now(&mut self) -> Duration {
        self.clock.as_mut().map_or(Duration::ZERO, |clock| clock())
    }
}
