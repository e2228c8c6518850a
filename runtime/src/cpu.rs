//! What this machine offers: how many threads the process may run.

/// Threads that the process may run at once: the affinity mask, lowered to the cgroup's CPU quota.
pub(crate) fn available_threads() -> usize {
    // The standard library reads both: `sched_getaffinity`, and `cpu.max` or `cfs_quota_us` of the process's cgroups.
    std::thread::available_parallelism().map_or(1, usize::from)
}
