//! Limits the time of a call that works on many entries.

use std::time::{Duration, Instant};

use rustler::Env;

/// A call with more to do returns after this time: half of the millisecond that a NIF may take.
const TIME_SLICE: Duration = Duration::from_micros(500);

/// The time that a step should take at most. The clock is read after each step.
const STEP_TIME: Duration = Duration::from_micros(100);

/// The most entries in a step. If all entries of a step are large, and no entry before was, the
/// call takes as long as copying this many. (Steps of 128 made a list of a thousand small entries
/// only a twentieth faster.)
const MAX_STEP: usize = 32;

/// Chooses the length of each step by the time that the step before took.
pub(crate) struct Pace {
    /// When the call began.
    started: Instant,
    /// The time from the start of the call to the end of the last step.
    elapsed: Duration,
    /// How many entries the next step has.
    pub(crate) step: usize,
}

impl Pace {
    /// The pace of a call that begins now. Its entries are unknown, so the first step takes one
    /// entry.
    pub(crate) fn start() -> Self {
        Pace { started: Instant::now(), elapsed: Duration::ZERO, step: 1 }
    }

    /// Whether time remains for another step, after a step of `done` entries.
    pub(crate) fn goes_on(&mut self, done: usize) -> bool {
        let elapsed = self.started.elapsed();
        let took = nanoseconds(elapsed - self.elapsed).max(1);
        let fitting = done * nanoseconds(STEP_TIME) / took;
        self.step = fitting.clamp(1, (self.step * 16).min(MAX_STEP));
        self.elapsed = elapsed;
        elapsed < TIME_SLICE
    }

    /// Reports to the scheduler the part of its millisecond that the call used. The VM counts in
    /// hundredths, and charges every call for less than one.
    pub(crate) fn consume_timeslice(&self, env: Env<'_>) {
        let percent = self.elapsed.as_micros() / 10;
        if percent > 0 {
            rustler::schedule::consume_timeslice(env, percent.min(100) as i32);
        }
    }
}

/// The time in nanoseconds.
fn nanoseconds(time: Duration) -> usize {
    time.as_nanos() as usize
}
