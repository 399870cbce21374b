//! Measures the longest call of each NIF, with the feature `timing`, for benchmarks.
//!
//! It measures wall-clock time, which goes on while the system runs another thread or the host
//! another machine, and CPU time of the thread, which is the cost of the call itself. CPU time is
//! counted apart for calls with page faults: during such a call the system provides memory, and on
//! a virtual machine perhaps the host as well.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// The nanoseconds that a NIF may take on a normal scheduler.
const LIMIT: u64 = 1_000_000;

/// The clock of the CPU time of the calling thread.
const CPU: libc::clockid_t = libc::CLOCK_THREAD_CPUTIME_ID;

/// The clock of the wall-clock time.
const WALL: libc::clockid_t = libc::CLOCK_MONOTONIC;

/// The NIFs with at least one call.
static CALLED: Mutex<Vec<&'static Timing>> = Mutex::new(Vec::new());

/// The longest call of one NIF, among calls of one sort.
struct Longest {
    /// Nanoseconds of the longest call.
    nanoseconds: AtomicU64,
    /// Calls that took longer than `LIMIT`.
    over: AtomicU64,
}

impl Longest {
    /// No calls yet.
    const fn new() -> Self {
        Longest { nanoseconds: AtomicU64::new(0), over: AtomicU64::new(0) }
    }

    /// Counts a call that took `elapsed` nanoseconds.
    fn count(&self, elapsed: u64) {
        self.nanoseconds.fetch_max(elapsed, Ordering::Relaxed);
        if elapsed > LIMIT {
            self.over.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Nanoseconds of the longest call, and the number of calls that took longer than `LIMIT`.
    fn result(&self) -> (u64, u64) {
        (self.nanoseconds.load(Ordering::Relaxed), self.over.load(Ordering::Relaxed))
    }
}

/// The calls of one NIF.
pub(crate) struct Timing {
    /// The name of the NIF.
    name: &'static str,
    /// Calls without a page fault, in CPU time of the calling thread.
    cpu: Longest,
    /// Calls with page faults, in CPU time of the calling thread.
    faulting: Longest,
    /// All calls, in wall-clock time.
    wall: Longest,
    /// Whether it is in `CALLED`.
    called: AtomicBool,
}

impl Timing {
    /// No calls yet.
    pub(crate) const fn new(name: &'static str) -> Self {
        let (cpu, faulting, wall) = (Longest::new(), Longest::new(), Longest::new());
        Timing { name, cpu, faulting, wall, called: AtomicBool::new(false) }
    }

    /// Counts the time until the timer is dropped.
    pub(crate) fn start(&'static self) -> Timer {
        if !self.called.swap(true, Ordering::Relaxed) {
            CALLED.lock().push(self);
        }
        Timer { timing: self, faults: faults(), wall: now(WALL), cpu: now(CPU) }
    }
}

/// A running call.
pub(crate) struct Timer {
    /// The counts of its NIF.
    timing: &'static Timing,
    /// The page faults of the thread at its start.
    faults: i64,
    /// The wall-clock time at its start.
    wall: u64,
    /// The CPU time of the thread at its start.
    cpu: u64,
}

impl Drop for Timer {
    fn drop(&mut self) {
        let (cpu, wall) = (now(CPU) - self.cpu, now(WALL) - self.wall);
        let calls = if faults() == self.faults { &self.timing.cpu } else { &self.timing.faulting };
        calls.count(cpu);
        self.timing.wall.count(wall);
    }
}

/// For each called NIF its name and its longest calls: calls without page faults in CPU time, calls
/// with page faults in CPU time, and all calls in wall-clock time. Each is the nanoseconds of the
/// longest call and the number of calls over a millisecond.
pub(crate) fn all() -> Vec<Calls> {
    let result =
        |timing: &&'static Timing| (timing.name, timing.cpu.result(), timing.faulting.result(), timing.wall.result());
    CALLED.lock().iter().map(result).collect()
}

/// See [`all`].
pub(crate) type Calls = (&'static str, (u64, u64), (u64, u64), (u64, u64));

/// The page faults of the calling thread. The system counts them for a thread on Linux only.
fn faults() -> i64 {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the pointer is to a `rusage`, which the call writes if it succeeds, as it does for
    // the calling thread.
    let usage = unsafe {
        let result = libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        assert_eq!(result, 0, "the system counts for a thread");
        usage.assume_init()
    };
    usage.ru_minflt + usage.ru_majflt
}

/// The time that a clock shows, in nanoseconds.
fn now(clock: libc::clockid_t) -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is to a `timespec`, which the call writes if it succeeds, as it does for
    // these clocks.
    let time = unsafe {
        let result = libc::clock_gettime(clock, time.as_mut_ptr());
        assert_eq!(result, 0, "the system has this clock");
        time.assume_init()
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as u64
}
