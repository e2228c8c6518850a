//! A fixed set of threads that run the tasks of a step.
//!
//! [`Pool::request`] takes the pool for one request; the [`Team`] that it gives runs parallel loops. Of T threads, thread t begins
//! with the tasks t, t + T, .., so that loop after loop it works on the same panels, which its own cache then holds, and goes on
//! with those of others. Tasks are claimed one by one from counters, so a thread that another process has pushed aside delays
//! at most the task that it holds. What a
//! task computes depends on its index alone, never on the thread, so results have the same bits at any thread count.
//!
//! Between the loops of one request the workers spin for a short while; when it ends, or takes long between loops, they sleep.
//!
//! # How a loop is published
//! `state` packs a generation, an open bit and the number of workers inside. The caller writes the job while the loop is
//! closed and nobody is inside, then opens it with a new generation. A worker enters by adding one to the count in a
//! compare-and-swap that fails unless the loop is open. The caller closes it when the tasks are all claimed, and waits until
//! the workers that entered have left; workers that never woke are not waited for.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// The open bit; the bits below count the workers inside, those above are the generation.
const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u64 = OPEN << 1;

/// How often an idle worker looks for work before it sleeps: some tens of microseconds.
const SPINS: u32 = 2_000;

/// A task of a loop panicked. The pool can be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskPanicked;

/// A fixed set of threads, the caller's included.
pub(crate) struct Pool {
    control: Arc<Control>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the request that uses the pool.
    busy: Mutex<()>,
}

struct Control {
    state: AtomicU64,
    /// For each thread, the next task to claim of those that it begins with.
    next: Box<[Next]>,
    job: UnsafeCell<Job>,
    panicked: AtomicBool,
    /// A request holds the pool, so more loops will follow soon.
    active: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

/// A counter in a cache line of its own.
#[repr(align(64))]
struct Next(AtomicUsize);

#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize, usize) + Sync),
    n_tasks: usize,
}

// SAFETY: `job` is the only part that is not thread-safe by itself. It is written by the caller of a loop, who holds the
// `busy` lock, while the loop is closed with nobody inside, and read by workers between entering and leaving; both are
// ordered by `state`. The closure it points to is `Sync`.
unsafe impl Sync for Control {}
// SAFETY: the pointer in `job` is only followed inside a loop, while its closure is borrowed by the caller.
unsafe impl Send for Control {}

impl Pool {
    /// A pool of `threads` threads: the caller of each request and `threads - 1` workers. Where the system refuses a
    /// thread the pool is smaller.
    pub(crate) fn new(threads: usize) -> Pool {
        let idle: &'static (dyn Fn(usize, usize) + Sync) = &|_, _| {};
        let control = Arc::new(Control {
            state: AtomicU64::new(0),
            next: (0..threads.clamp(1, INSIDE as usize))
                .map(|thread| Next(AtomicUsize::new(thread)))
                .collect(),
            job: UnsafeCell::new(Job {
                task: idle,
                n_tasks: 0,
            }),
            panicked: AtomicBool::new(false),
            active: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let workers = (1..threads.clamp(1, INSIDE as usize))
            .map_while(|thread| {
                let control = Arc::clone(&control);
                std::thread::Builder::new()
                    .name(format!("lancet-{thread}"))
                    .spawn(move || control.work(thread))
                    .ok()
            })
            .collect();
        Pool {
            control,
            workers,
            busy: Mutex::new(()),
        }
    }

    /// Number of threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Takes the pool for one request; waits while another request has it.
    pub(crate) fn request(&self) -> Team<'_> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        self.control.active.store(true, Ordering::Relaxed);
        Team {
            control: &self.control,
            threads: self.threads(),
            _busy: busy,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::SeqCst);
        self.control.wake_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks and has none of its own.
            let _ = worker.join();
        }
    }
}

/// The pool in the hands of one request.
pub(crate) struct Team<'a> {
    control: &'a Control,
    /// Number of threads; thread indices are below it.
    threads: usize,
    _busy: MutexGuard<'a, ()>,
}

impl Drop for Team<'_> {
    fn drop(&mut self) {
        self.control.active.store(false, Ordering::Relaxed);
    }
}

impl Team<'_> {
    /// Calls `task(task_idx, thread_idx)` for every index below `n_tasks`, on all threads, and waits for them.
    ///
    /// # Errors
    /// [`TaskPanicked`] if a task panicked; tasks not yet claimed then do not run.
    pub(crate) fn parallel_for(
        &mut self,
        n_tasks: usize,
        task: impl Fn(usize, usize) + Sync,
    ) -> Result<(), TaskPanicked> {
        if self.threads == 1 || n_tasks <= 1 {
            return catch_unwind(AssertUnwindSafe(|| {
                for i in 0..n_tasks {
                    task(i, 0);
                }
            }))
            .map_err(|_| TaskPanicked);
        }
        let task: &(dyn Fn(usize, usize) + Sync) = &task;
        // SAFETY: only the lifetime changes. Workers follow the pointer only while they are inside the loop, and `close`
        // below returns when none is; nothing between here and there unwinds.
        let task: &'static (dyn Fn(usize, usize) + Sync) = unsafe { std::mem::transmute(task) };
        self.control.open(Job { task, n_tasks });
        self.control.run_tasks(Job { task, n_tasks }, 0);
        self.control.close();
        if self.control.panicked.swap(false, Ordering::Relaxed) {
            return Err(TaskPanicked);
        }
        Ok(())
    }

    /// As [`parallel_for`](Team::parallel_for), with part `task_idx` of `out` lent to each task for writing.
    ///
    /// # Panics
    /// If a part lies outside `out`: a bug of the step that made the parts.
    pub(crate) fn for_each_part<T: Send>(
        &mut self,
        parts: &Parts,
        out: &mut [T],
        task: impl Fn(usize, usize, &mut [T]) + Sync,
    ) -> Result<(), TaskPanicked> {
        assert!(
            parts.end <= out.len(),
            "parts end at {} of {} elements",
            parts.end,
            out.len()
        );
        let base = Shared(out.as_mut_ptr());
        self.parallel_for(parts.ranges.len(), |i, thread| {
            let range = &parts.ranges[i];
            // SAFETY: the range ends within `out` (checked above), ranges of different tasks are disjoint (invariant of
            // `Parts`), and each task index is claimed once.
            let part = unsafe {
                std::slice::from_raw_parts_mut(base.get().add(range.start), range.end - range.start)
            };
            task(i, thread, part);
        })
    }

    /// As [`for_each_part`](Team::for_each_part), with all parts of group `task_idx` of `out` lent to each task, and with part
    /// `task_idx` of `second`: nothing of it where `second_parts` has no such part.
    ///
    /// # Panics
    /// If a part lies outside its slice: a bug of the step that made the parts.
    pub(crate) fn for_each_group<T: Send, U: Send>(
        &mut self,
        (groups, out): (&Groups, &mut [T]),
        (second_parts, second): (&Parts, &mut [U]),
        task: impl Fn(usize, usize, Pieces<'_, T>, &mut [U]) + Sync,
    ) -> Result<(), TaskPanicked> {
        let parts = &groups.parts;
        for (end, len) in [(parts.end, out.len()), (second_parts.end, second.len())] {
            assert!(end <= len, "parts end at {end} of {len} elements");
        }
        let base = Shared(out.as_mut_ptr());
        let second_base = Shared(second.as_mut_ptr());
        self.parallel_for(groups.len(), |i, thread| {
            let ranges = &parts.ranges[groups.firsts[i]..groups.firsts[i + 1]];
            // The ranges end within `out` (checked above), those of different tasks are disjoint (invariant of `Parts`),
            // and each task index is claimed once: what `Pieces` asks for.
            let base = base.get();
            let range = second_parts.ranges.get(i).cloned().unwrap_or(0..0);
            // SAFETY: as in `for_each_part`, of the second slice; an empty range is within any.
            let part = unsafe {
                std::slice::from_raw_parts_mut(second_base.get().add(range.start), range.len())
            };
            task(i, thread, Pieces { base, ranges }, part);
        })
    }
}

/// The start of a slice whose disjoint parts several threads write.
struct Shared<T>(*mut T);

// SAFETY: the pointer is used only for disjoint parts of a slice that is borrowed mutably for the whole loop, and `T: Send`
// may be written from other threads.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// Parts of a slice that are lent to one task.
pub(crate) struct Pieces<'a, T> {
    /// Of a slice in which all ranges lie, borrowed mutably, and used for nothing else within these ranges.
    base: *mut T,
    /// Pairwise disjoint.
    ranges: &'a [Range<usize>],
}

impl<T> Pieces<'_, T> {
    /// Number of pieces.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Piece `i`.
    pub(crate) fn piece(&mut self, i: usize) -> &mut [T] {
        let range = &self.ranges[i];
        // SAFETY: the range is within the slice and nothing else uses its elements (invariants of the fields); `self` is
        // borrowed for as long as the piece.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(range.start), range.len()) }
    }
}

/// Parts in groups, one group for each task of a loop.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    parts: Parts,
    /// Where each group begins among the parts, and where the last ends.
    firsts: Vec<usize>,
    /// Memory of the check that parts are disjoint.
    order: Vec<usize>,
}

impl Groups {
    fn len(&self) -> usize {
        self.firsts.len().saturating_sub(1)
    }

    /// Part `i` of a group.
    pub(crate) fn range(&self, group: usize, i: usize) -> Range<usize> {
        self.parts.range(self.firsts[group] + i)
    }

    /// Takes these `(group, range)`, ordered by group, instead of what there was. Memory is used again.
    ///
    /// # Panics
    /// If two ranges overlap or the order is another: a bug of the step that made them.
    pub(crate) fn set(&mut self, ranges: impl Iterator<Item = (usize, Range<usize>)>) {
        let (parts, firsts) = (&mut self.parts.ranges, &mut self.firsts);
        parts.clear();
        firsts.clear();
        for (group, range) in ranges {
            assert!(group + 1 >= firsts.len(), "group {group} is out of order");
            firsts.resize(group + 1, parts.len());
            parts.push(range);
        }
        firsts.push(parts.len());
        self.order.clear();
        self.order.extend(0..parts.len());
        self.order.retain(|&i| !parts[i].is_empty());
        self.order.sort_unstable_by_key(|&i| parts[i].start);
        self.parts.end = 0;
        for &i in &self.order {
            assert!(self.parts.end <= parts[i].start, "parts overlap");
            self.parts.end = parts[i].end;
        }
    }
}

/// Disjoint ranges of a slice, one for each task of a loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    /// Pairwise disjoint, each with `start <= end`.
    ranges: Vec<Range<usize>>,
    /// The greatest end.
    end: usize,
}

impl Parts {
    /// These ranges.
    ///
    /// # Panics
    /// If two overlap: a bug of the step that made them.
    pub(crate) fn new(ranges: Vec<Range<usize>>) -> Parts {
        let mut order: Vec<&Range<usize>> = ranges.iter().filter(|r| !r.is_empty()).collect();
        order.sort_by_key(|r| (r.start, r.end));
        for pair in order.windows(2) {
            assert!(
                pair[0].end <= pair[1].start,
                "parts {:?} and {:?} overlap",
                pair[0],
                pair[1]
            );
        }
        assert!(
            ranges.iter().all(|r| r.start <= r.end),
            "a part ends before it starts"
        );
        let end = ranges.iter().map(|r| r.end).max().unwrap_or(0);
        Parts { ranges, end }
    }

    /// `n` elements, `task` in each part but the last.
    pub(crate) fn of_tasks(n: usize, task: usize) -> Parts {
        let part = |first: usize| first..n.min(first + task);
        Parts::new((0..n).step_by(task).map(part).collect())
    }

    /// Number of parts.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Part `i`.
    pub(crate) fn range(&self, i: usize) -> Range<usize> {
        self.ranges[i].clone()
    }
}

impl Control {
    /// Publishes a loop and wakes the sleepers. The previous loop is closed and empty.
    fn open(&self, job: Job) {
        // SAFETY: the caller holds the `busy` lock through its `Team`, the loop is closed and nobody is inside (the
        // previous `close` waited for that), so no other thread reads or writes `job`.
        unsafe { *self.job.get() = job }
        for (thread, next) in self.next.iter().enumerate() {
            next.0.store(thread, Ordering::Relaxed);
        }
        let generation =
            (self.state.load(Ordering::Relaxed) & !(OPEN | INSIDE)).wrapping_add(GENERATION);
        self.state.store(generation | OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_all();
        }
    }

    /// Lets nobody in any more and waits until everybody is out.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while self.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Claims and runs tasks until none is left. Does not unwind.
    fn run_tasks(&self, job: Job, thread: usize) {
        let n_threads = self.next.len();
        // Its own tasks, then those of the others.
        for turn in 0..n_threads {
            let next = &self.next[(thread + turn) % n_threads].0;
            loop {
                let i = next.fetch_add(n_threads, Ordering::Relaxed);
                if i >= job.n_tasks {
                    break;
                }
                // SAFETY: called by the caller of the loop, who borrows the closure, or by a worker inside the loop, which
                // the caller waits for.
                let task = unsafe { &*job.task };
                if catch_unwind(AssertUnwindSafe(|| task(i, thread))).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                    for next in &self.next {
                        next.0.store(job.n_tasks, Ordering::Relaxed);
                    }
                    return;
                }
            }
        }
    }

    /// A worker's life.
    fn work(&self, thread: usize) {
        let mut done = 0;
        while let Some(generation) = self.enter(done) {
            // SAFETY: this worker is inside the loop, so the job was published before and is not written until it leaves.
            let job = unsafe { *self.job.get() };
            self.run_tasks(job, thread);
            self.state.fetch_sub(1, Ordering::AcqRel);
            done = generation;
        }
    }

    /// Waits for a loop of another generation than `done` and enters it; `None` if the pool stops.
    fn enter(&self, done: u64) -> Option<u64> {
        let mut spins = 0u32;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let state = self.state.load(Ordering::Acquire);
            let generation = state & !(OPEN | INSIDE);
            if state & OPEN != 0 && generation != done {
                let entered = self.state.compare_exchange_weak(
                    state,
                    state + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if entered.is_ok() {
                    return Some(generation);
                }
                continue;
            }
            spins += 1;
            if spins < SPINS && self.active.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            } else {
                self.sleep_until_opened(done);
                spins = 0;
            }
        }
    }

    fn sleep_until_opened(&self, done: u64) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        // A loop opened from here on sees the sleeper and takes the lock to wake it; one opened before is seen here.
        loop {
            let state = self.state.load(Ordering::SeqCst);
            let opened = state & OPEN != 0 && state & !(OPEN | INSIDE) != done;
            if opened || self.stop.load(Ordering::SeqCst) {
                break;
            }
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_all(&self) {
        let _guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in 1..=4 {
            let pool = Pool::new(threads);
            for n in [0usize, 1, 2, 3, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                let mut team = pool.request();
                for _ in 0..20 {
                    team.parallel_for(n, |i, thread| {
                        assert!(thread < threads);
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    })
                    .expect("no task panics");
                }
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 20));
            }
        }
    }

    #[test]
    fn parts_are_written_by_their_task() {
        let pool = Pool::new(3);
        let parts = Parts::new(vec![4..7, 0..2, 2..4, 9..9, 8..10]);
        let mut out = vec![0usize; 11];
        pool.request()
            .for_each_part(&parts, &mut out, |i, _, part| part.fill(i + 1))
            .expect("no task panics");
        assert_eq!(out, [2, 2, 3, 3, 1, 1, 1, 0, 5, 5, 0]);
    }

    #[test]
    fn groups_are_written_by_their_task() {
        let pool = Pool::new(3);
        let mut groups = Groups::default();
        let mut out = vec![0usize; 11];
        // The last group has no part.
        let parts = Parts::new(vec![1..3, 3..3, 0..1]);
        let mut second = vec![0u8; 4];
        for _ in 0..2 {
            groups.set([(0, 4..7), (0, 0..1), (1, 1..4), (3, 9..9), (3, 8..10)].into_iter());
            let (out, second) = ((&groups, &mut out[..]), (&parts, &mut second[..]));
            pool.request()
                .for_each_group(out, second, |i, _, mut pieces, part| {
                    part.fill(i as u8 + 1);
                    match i {
                        0 => (0..2).for_each(|j| pieces.piece(j).fill(j + 1)),
                        1 => pieces.piece(0).fill(3),
                        2 => assert!(pieces.ranges.is_empty()),
                        _ => (0..2).for_each(|j| pieces.piece(j).fill(5)),
                    }
                })
                .expect("no task panics");
        }
        assert_eq!(out, [2, 3, 3, 3, 1, 1, 1, 0, 5, 5, 0]);
        assert_eq!(second, [3, 1, 1, 0]);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_groups_are_refused() {
        Groups::default().set([(0, 0..3), (1, 5..6), (2, 2..4)].into_iter());
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_parts_are_refused() {
        let _ = Parts::new(vec![0..3, 5..6, 2..4]);
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives_on() {
        for threads in 1..=3 {
            let pool = Pool::new(threads);
            for _ in 0..10 {
                let mut team = pool.request();
                let result = team.parallel_for(50, |i, _| assert_ne!(i, 7));
                assert_eq!(result, Err(TaskPanicked));
                assert_eq!(team.parallel_for(50, |_, _| {}), Ok(()));
            }
        }
    }

    #[test]
    fn requests_of_several_threads_take_turns() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let mut team = pool.request();
                        for _ in 0..3 {
                            team.parallel_for(10, |i, _| {
                                sum.fetch_add(i, Ordering::Relaxed);
                            })
                            .expect("no task panics");
                        }
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3 * 50 * 3 * 45);
    }
}
