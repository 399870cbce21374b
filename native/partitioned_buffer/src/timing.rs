//! The longest call of each NIF, counted in the library itself. Only with the feature `timing`: for benchmarks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What a NIF may take on a normal scheduler.
const LIMIT: Duration = Duration::from_millis(1);

/// The NIFs that have been called.
static CALLED: Mutex<Vec<&'static Timing>> = Mutex::new(Vec::new());

/// The calls of one NIF.
pub(crate) struct Timing {
    /// The name of the NIF.
    name: &'static str,
    /// Nanoseconds of the longest call.
    longest: AtomicU64,
    /// Calls that took longer than `LIMIT`.
    over: AtomicU64,
    /// Whether it stands in `CALLED`.
    called: AtomicBool,
}

impl Timing {
    /// No calls yet.
    pub(crate) const fn new(name: &'static str) -> Self {
        Timing { name, longest: AtomicU64::new(0), over: AtomicU64::new(0), called: AtomicBool::new(false) }
    }

    /// Counts the time until the timer is dropped.
    pub(crate) fn start(&'static self) -> Timer {
        if !self.called.swap(true, Ordering::Relaxed) {
            CALLED.lock().push(self);
        }
        Timer { timing: self, started: Instant::now() }
    }
}

/// A call that is running.
pub(crate) struct Timer {
    /// Where it is counted.
    timing: &'static Timing,
    /// Since when.
    started: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        self.timing.longest.fetch_max(elapsed.as_nanos() as u64, Ordering::Relaxed);
        if elapsed > LIMIT {
            self.timing.over.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Name, nanoseconds of the longest call and number of calls over a millisecond, of each NIF that was called.
pub(crate) fn all() -> Vec<(&'static str, u64, u64)> {
    let called = CALLED.lock();
    let row =
        |timing: &&Timing| (timing.name, timing.longest.load(Ordering::Relaxed), timing.over.load(Ordering::Relaxed));
    called.iter().map(row).collect()
}
