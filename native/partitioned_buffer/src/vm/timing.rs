//! Measures the longest call of each NIF, with the feature `timing`, for benchmarks.
//!
//! It measures twice: wall-clock time, which goes on while the system runs another thread or the host another machine, and
//! CPU time of the thread, which is the cost of the call itself.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// The nanoseconds that a NIF may take on a normal scheduler.
const LIMIT: u64 = 1_000_000;

/// The NIFs that have been called.
static CALLED: Mutex<Vec<&'static Timing>> = Mutex::new(Vec::new());

/// The calls of one NIF by one clock.
struct Longest {
    /// The clock.
    clock: libc::clockid_t,
    /// Nanoseconds of the longest call.
    nanoseconds: AtomicU64,
    /// Calls that took longer than `LIMIT`.
    over: AtomicU64,
}

impl Longest {
    /// No calls yet.
    const fn by(clock: libc::clockid_t) -> Self {
        Longest { clock, nanoseconds: AtomicU64::new(0), over: AtomicU64::new(0) }
    }

    /// Counts a call that began when the clock showed `started`.
    fn count(&self, started: u64) {
        let elapsed = now(self.clock) - started;
        self.nanoseconds.fetch_max(elapsed, Ordering::Relaxed);
        if elapsed > LIMIT {
            self.over.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Nanoseconds of the longest call, and how many took longer than `LIMIT`.
    fn result(&self) -> (u64, u64) {
        (self.nanoseconds.load(Ordering::Relaxed), self.over.load(Ordering::Relaxed))
    }
}

/// The calls of one NIF.
pub(crate) struct Timing {
    /// The name of the NIF.
    name: &'static str,
    /// In CPU time of the calling thread.
    cpu: Longest,
    /// In wall-clock time.
    wall: Longest,
    /// Whether it is in `CALLED`.
    called: AtomicBool,
}

impl Timing {
    /// No calls yet.
    pub(crate) const fn new(name: &'static str) -> Self {
        let (cpu, wall) = (Longest::by(libc::CLOCK_THREAD_CPUTIME_ID), Longest::by(libc::CLOCK_MONOTONIC));
        Timing { name, cpu, wall, called: AtomicBool::new(false) }
    }

    /// Counts the time until the timer is dropped.
    pub(crate) fn start(&'static self) -> Timer {
        if !self.called.swap(true, Ordering::Relaxed) {
            CALLED.lock().push(self);
        }
        Timer { timing: self, wall: now(self.wall.clock), cpu: now(self.cpu.clock) }
    }
}

/// A call that is running.
pub(crate) struct Timer {
    /// Where it is counted.
    timing: &'static Timing,
    /// The wall-clock time at its start.
    wall: u64,
    /// The CPU time of the thread at its start.
    cpu: u64,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.timing.cpu.count(self.cpu);
        self.timing.wall.count(self.wall);
    }
}

/// For each NIF that was called its name and, in CPU time and in wall-clock time, the nanoseconds of the longest call and
/// the number of calls over a millisecond.
pub(crate) fn all() -> Vec<Calls> {
    CALLED.lock().iter().map(|timing| (timing.name, timing.cpu.result(), timing.wall.result())).collect()
}

/// See [`all`].
pub(crate) type Calls = (&'static str, (u64, u64), (u64, u64));

/// The time that a clock shows, in nanoseconds.
fn now(clock: libc::clockid_t) -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is to a `timespec`, which the call writes if it succeeds, as it does for these clocks.
    let time = unsafe {
        let result = libc::clock_gettime(clock, time.as_mut_ptr());
        assert_eq!(result, 0, "the system has this clock");
        time.assume_init()
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as u64
}
