//! How a call that works on many entries keeps to its time.

use std::time::{Duration, Instant};

use rustler::Env;

/// After so long a call that could go on returns: half of the millisecond that a NIF may take.
const TIME_SLICE: Duration = Duration::from_micros(500);

/// How long it should at most take from one look at the clock to the next.
const STEP_TIME: Duration = Duration::from_micros(100);

/// Entries between two looks at the clock, at most: if all of them are large, and none before was, the call takes as long as
/// copying so many. (Steps of 128 made a list of a thousand small entries a twentieth faster.)
const MAX_STEP: usize = 32;

/// Steps that are as long as the one before lets expect.
pub(crate) struct Pace {
    /// When the call began.
    started: Instant,
    /// How long it had taken after the last step.
    elapsed: Duration,
    /// Entries of the next step.
    pub(crate) step: usize,
}

impl Pace {
    /// For a call that begins now. Of its entries nothing is known, so the first is a step.
    pub(crate) fn start() -> Self {
        Pace { started: Instant::now(), elapsed: Duration::ZERO, step: 1 }
    }

    /// After a step in which so many entries were done: whether there is time for another.
    pub(crate) fn goes_on(&mut self, done: usize) -> bool {
        let elapsed = self.started.elapsed();
        let took = nanoseconds(elapsed - self.elapsed).max(1);
        let fitting = done * nanoseconds(STEP_TIME) / took;
        self.step = fitting.clamp(1, (self.step * 16).min(MAX_STEP));
        self.elapsed = elapsed;
        elapsed < TIME_SLICE
    }

    /// Tells the scheduler how much of its millisecond the call has used. A hundredth is the least that can be told; what is less
    /// is covered by what every call is charged.
    pub(crate) fn consume_timeslice(&self, env: Env<'_>) {
        let percent = self.elapsed.as_micros() / 10;
        if percent > 0 {
            rustler::schedule::consume_timeslice(env, percent.min(100) as i32);
        }
    }
}

/// A time of a call, in nanoseconds.
fn nanoseconds(time: Duration) -> usize {
    time.as_nanos() as usize
}
