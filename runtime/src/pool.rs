//! Threads that run the tasks of a step.

/// A fixed number of threads.
pub(crate) struct Pool {
    threads: usize,
}

impl Pool {
    pub(crate) fn new(threads: usize) -> Pool {
        Pool { threads }
    }

    /// Number of threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }
}
