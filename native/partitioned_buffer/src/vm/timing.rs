//! The longest call of each NIF, counted in the library itself. Only with the feature `timing`: for benchmarks.
//!
//! Counted twice: on the clock, which goes on while the system runs somebody else or the host interrupts the machine, and
//! in processor time of the thread, which is what the call itself has cost.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// What a NIF may take on a normal scheduler, in nanoseconds.
const LIMIT: u64 = 1_000_000;

/// The NIFs that have been called.
static CALLED: Mutex<Vec<&'static Timing>> = Mutex::new(Vec::new());

/// The calls of one NIF by one clock.
struct Longest {
    /// The system's number of the clock.
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
    /// In processor time of the calling thread.
    processor: Longest,
    /// On the clock.
    wall: Longest,
    /// Whether it stands in `CALLED`.
    called: AtomicBool,
}

impl Timing {
    /// No calls yet.
    pub(crate) const fn new(name: &'static str) -> Self {
        let (processor, wall) = (Longest::by(libc::CLOCK_THREAD_CPUTIME_ID), Longest::by(libc::CLOCK_MONOTONIC));
        Timing { name, processor, wall, called: AtomicBool::new(false) }
    }

    /// Counts the time until the timer is dropped.
    pub(crate) fn start(&'static self) -> Timer {
        if !self.called.swap(true, Ordering::Relaxed) {
            CALLED.lock().push(self);
        }
        Timer { timing: self, wall: now(self.wall.clock), processor: now(self.processor.clock) }
    }
}

/// A call that is running.
pub(crate) struct Timer {
    /// Where it is counted.
    timing: &'static Timing,
    /// What the clock showed at its start.
    wall: u64,
    /// What the thread had used at its start.
    processor: u64,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.timing.processor.count(self.processor);
        self.timing.wall.count(self.wall);
    }
}

/// Of each NIF that was called its name and, in processor time and on the clock, nanoseconds of the longest call and
/// number of calls over a millisecond.
pub(crate) fn all() -> Vec<Calls> {
    CALLED.lock().iter().map(|timing| (timing.name, timing.processor.result(), timing.wall.result())).collect()
}

/// See [`all`].
pub(crate) type Calls = (&'static str, (u64, u64), (u64, u64));

/// The time that a clock shows, in nanoseconds.
fn now(clock: libc::clockid_t) -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is to a `timespec`, which the call writes where it succeeds; it does for these clocks.
    let time = unsafe {
        let result = libc::clock_gettime(clock, time.as_mut_ptr());
        assert_eq!(result, 0, "the system has this clock");
        time.assume_init()
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as u64
}
