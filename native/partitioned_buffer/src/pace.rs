//! Limits the time of a call that works on many entries.

use std::time::{Duration, Instant};

use rustler::Env;

/// A call that has more to do returns after this time: half of the millisecond that a NIF may take.
const TIME_SLICE: Duration = Duration::from_micros(500);

/// The time that a step should take at most. The clock is read after each step.
const STEP_TIME: Duration = Duration::from_micros(100);

/// The most entries in a step. If all of them are large, and none before was, the call takes as long as copying this many.
/// (Steps of 128 made a list of a thousand small entries only a twentieth faster.)
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
    /// For a call that begins now. Nothing is known of its entries, so the first step has one.
    pub(crate) fn start() -> Self {
        Pace { started: Instant::now(), elapsed: Duration::ZERO, step: 1 }
    }

    /// Whether there is time for another step, after a step of `done` entries.
    pub(crate) fn goes_on(&mut self, done: usize) -> bool {
        let elapsed = self.started.elapsed();
        let took = nanoseconds(elapsed - self.elapsed).max(1);
        let fitting = done * nanoseconds(STEP_TIME) / took;
        self.step = fitting.clamp(1, (self.step * 16).min(MAX_STEP));
        self.elapsed = elapsed;
        elapsed < TIME_SLICE
    }

    /// Tells the scheduler how much of its millisecond the call has used. The VM counts in hundredths, and charges every call
    /// for less than one.
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
