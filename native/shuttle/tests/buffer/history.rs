//! What threads have done to one key, and whether it could have happened one by one.
//!
//! The key is a register of two places: a value that waits, and one in flight, which the first
//! hides.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A step with one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Put(i64),
    PutNew(i64),
    /// A value and its version.
    PutNewer(i64, i64),
    Delete,
    Get,
    /// Swaps the stores, unless a flush is in flight.
    Flush,
    /// Reads all of the flush and leases it.
    Lease,
    Succeed,
    /// Gives all back.
    Fail,
}

/// What a step has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// A write was stored, or there was a flush.
    Is(bool),
    /// The value that was found, or that is in the batch.
    Value(Option<i64>),
}

/// A step that a thread has done between two times.
#[derive(Clone, Copy, Debug)]
struct Done {
    step: Step,
    answer: Answer,
    begun: usize,
    ended: usize,
}

/// All steps of all threads.
#[derive(Default)]
pub struct History {
    clock: AtomicUsize,
    done: Mutex<Vec<Done>>,
}

impl History {
    /// Notes a step of this thread.
    pub fn note(&self, step: Step, act: impl FnOnce() -> Answer) -> Answer {
        // This is no atomic of shuttle, so threads do not change at it.
        let begun = self.clock.fetch_add(1, Ordering::SeqCst);
        let answer = act();
        let ended = self.clock.fetch_add(1, Ordering::SeqCst);
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(Done { step, answer, begun, ended });
        answer
    }

    /// Panics unless there is an order of all steps, in which no step comes before one that had
    /// ended when it began, and each has its answer.
    pub fn assert_linearizable(&self) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner).clone();
        done.sort_by_key(|done| done.begun);
        let is_found = find_order(&done, (1 << done.len()) - 1, Register::default(), &mut HashSet::new());
        assert!(is_found, "no order explains these answers: {done:#?}");
    }
}

/// Whether there is an order of the steps that are left, a bit for each.
fn find_order(done: &[Done], left: u32, register: Register, failed: &mut HashSet<(u32, Register)>) -> bool {
    if left == 0 {
        return true;
    }
    if failed.contains(&(left, register)) {
        return false;
    }
    let steps = || done.iter().enumerate().filter(|(place, _)| left & 1 << place != 0);
    let first_end = steps().map(|(_, done)| done.ended).min().unwrap_or(0);
    let is_found = steps().filter(|(_, done)| done.begun < first_end).any(|(place, next)| {
        let mut after = register;
        after.step(next.step) == next.answer && find_order(done, left & !(1 << place), after, failed)
    });
    if !is_found {
        failed.insert((left, register));
    }
    is_found
}

/// A key as it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Register {
    /// The value that waits, and its version.
    waiting: Option<(i64, i64)>,
    /// The value in flight, and its version, unless it was deleted.
    in_flight: Option<(i64, i64)>,
    /// Whether a flush has no outcome.
    has_flush: bool,
    /// Whether a reader left out the value of the last flush for a newer one.
    has_left_out: bool,
    /// Whether readers of the present flush may not do so, after a flush in which one did.
    keeps: bool,
}

impl Register {
    fn visible(&self) -> Option<(i64, i64)> {
        self.waiting.or(self.in_flight)
    }

    fn write_if(&mut self, is_stored: bool, value: i64, version: i64) -> Answer {
        if is_stored {
            self.waiting = Some((value, version));
        }
        Answer::Is(is_stored)
    }

    fn step(&mut self, step: Step) -> Answer {
        match step {
            Step::Put(value) => self.waiting = Some((value, 0)),
            Step::PutNew(value) => return self.write_if(self.visible().is_none(), value, 0),
            Step::PutNewer(value, version) => {
                let is_newer = self.visible().is_none_or(|(_, old)| version > old);
                return self.write_if(is_newer, value, version);
            }
            Step::Delete => (self.waiting, self.in_flight) = (None, None),
            Step::Get => return Answer::Value(self.visible().map(|(value, _)| value)),
            Step::Flush => {
                if !self.has_flush {
                    self.in_flight = self.waiting.take();
                    self.has_flush = self.in_flight.is_some();
                    if self.has_flush {
                        self.keeps = std::mem::take(&mut self.has_left_out);
                    }
                }
                return Answer::Is(self.has_flush);
            }
            Step::Lease => {
                // What a newer value hides is left out. An empty batch ends the flush.
                if self.waiting.is_some() && !self.keeps {
                    self.has_left_out |= self.in_flight.take().is_some();
                }
                self.has_flush = self.in_flight.is_some();
                return Answer::Value(self.in_flight.map(|(value, _)| value));
            }
            Step::Succeed => (self.in_flight, self.has_flush) = (None, false),
            Step::Fail => {
                self.waiting = self.visible();
                (self.in_flight, self.has_flush) = (None, false);
            }
        }
        Answer::Done
    }
}
