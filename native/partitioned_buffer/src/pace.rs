//! The time of a call: its limit if the call works on many entries, and its charge.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustler::Env;

use crate::vm::argument::Argument;
use crate::vm::small::is_small;
use crate::vm::term::RawTerm;

/// A call with more to do returns after this time: half of the millisecond that a NIF may take.
const TIME_SLICE: Duration = Duration::from_micros(500);

/// The time that a step should take at most. The clock is read after each step.
const STEP_TIME: Duration = Duration::from_micros(100);

/// The most entries in a step of a read. If all entries of a step are large, and no entry before was,
/// the call takes as long as copying this many.
const MAX_STEP: usize = 32;

/// The first step of a call whose entries are known to be small.
const SMALL_STEP: usize = 32;

/// Chooses the length of each step by the time that the step before took.
pub(crate) struct Pace {
    /// When the call began.
    started: Instant,
    /// The time from the start of the call to the end of the last step.
    elapsed: Duration,
    /// How many entries the next step has.
    pub(crate) step: usize,
    /// The most entries in a step.
    most: usize,
}

impl Pace {
    /// The pace of a call that begins now. Its entries are unknown, so the first step takes one
    /// entry.
    pub(crate) fn start() -> Self {
        Pace { step: 1, ..Self::of_steps(MAX_STEP) }
    }

    /// The pace of a call that begins now with small entries, in steps of this many.
    pub(crate) fn of_steps(most: usize) -> Self {
        Pace { started: Instant::now(), elapsed: Duration::ZERO, step: most, most }
    }

    /// Entries are known to be small, so the first step takes several.
    pub(crate) fn expect_small(&mut self) {
        self.step = SMALL_STEP;
    }

    /// Whether time remains for another step, after a step of `done` entries.
    pub(crate) fn goes_on(&mut self, done: usize) -> bool {
        let elapsed = self.started.elapsed();
        let took = nanoseconds(elapsed - self.elapsed).max(1);
        let fitting = done * nanoseconds(STEP_TIME) / took;
        self.step = fitting.clamp(1, (self.step * 16).min(self.most));
        self.elapsed = elapsed;
        elapsed < TIME_SLICE
    }

    /// Whether half of the time remains after `more` time.
    pub(crate) fn has_half(&self, more: Duration) -> bool {
        self.started.elapsed() + more <= TIME_SLICE / 2
    }

    /// Whether the time is up in the middle of a step.
    pub(crate) fn is_late(&self) -> bool {
        self.started.elapsed() >= TIME_SLICE
    }

    /// Ends the last step. Returns the time.
    pub(crate) fn end(&mut self) -> Instant {
        let now = Instant::now();
        self.elapsed = now - self.started;
        now
    }

    /// Charges the process for the time until the end of the last step. Returns whether the process
    /// used up its time.
    pub(crate) fn consume_timeslice(&self, env: Env<'_>) -> bool {
        charge_time(env, self.elapsed)
    }
}

/// The hundredth of a millisecond: the VM charges for time in this unit.
const HUNDREDTH: usize = 10_000;

thread_local! {
    /// Nanoseconds not yet charged to a process.
    static UNCHARGED: Cell<usize> = const { Cell::new(0) };
}

/// Charges the process for a time. What is less than the VM's unit is left to the next charge.
/// Returns whether the process used up its time.
fn charge_time(env: Env<'_>, time: Duration) -> bool {
    let time = UNCHARGED.get() + nanoseconds(time);
    UNCHARGED.set(time % HUNDREDTH);
    time >= HUNDREDTH && rustler::schedule::consume_timeslice(env, (time / HUNDREDTH).min(100) as i32)
}

/// Charges a process for a call that hashes a key, or an item, if it may be large: nothing can
/// interrupt the VM at that.
///
/// To read a clock costs the time of hashing a small key, so only calls with other keys do.
pub(crate) struct KeyClock(Option<Instant>);

impl KeyClock {
    /// The clock of a call that hashes nothing.
    pub(crate) const STOPPED: Self = KeyClock(None);

    /// The clock of a call that begins now.
    #[inline]
    pub(crate) fn start(env: Env<'_>, key: Argument) -> Self {
        KeyClock(if key.is_immediate { None } else { Self::start_for(env, key.term) })
    }

    /// The start of a call with a key that is no immediate.
    #[inline(never)]
    fn start_for(env: Env<'_>, key: RawTerm) -> Option<Instant> {
        (!is_small(env, key)).then(Instant::now)
    }

    /// Whether the process is charged for the time of the call.
    #[inline]
    pub(crate) fn runs(&self) -> bool {
        self.0.is_some()
    }

    /// Charges the process, at the end of the call.
    #[inline]
    pub(crate) fn charge(self, env: Env<'_>) {
        if let Some(started) = self.0 {
            charge_since(env, started);
        }
    }
}

/// Charges the process for the time since then.
#[cold]
fn charge_since(env: Env<'_>, started: Instant) {
    charge_time(env, started.elapsed());
}

/// The time in nanoseconds.
fn nanoseconds(time: Duration) -> usize {
    time.as_nanos() as usize
}
