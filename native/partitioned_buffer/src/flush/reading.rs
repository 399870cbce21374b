//! Reads batches, and begins the calls of the processor.

use std::time::Instant;

use partitioned_buffer_engine::{Held, Reader, Store};
use rustler::{Env, Term};

use super::{reader, PartitionFlush, ToTerm};
use crate::clock::time_of;
use crate::pace::Pace;
use crate::vm::caller::ListBuilder;

/// A call for a batch.
pub(crate) struct Reading {
    /// Whether the processor succeeded with the reader's leased batch.
    pub(crate) succeeded: bool,
    /// How many entries the batch has already.
    pub(crate) length: usize,
    /// How many entries it may have.
    pub(crate) size: usize,
    /// Whether entries are left out that newer writes replaced.
    pub(crate) resumed: bool,
    /// What follows.
    pub(crate) next: Next,
}

/// What follows when a batch is complete.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Other calls.
    Others,
    /// Its claim.
    Claim,
    /// Its lease, `in_pause` or not.
    Lease {
        /// Whether it is leased in a pause of the partition.
        in_pause: bool,
    },
}

/// Whether a call of the processor begins.
pub(crate) enum Begun {
    /// It begins, with the reader's batch. An entry has this many attempts at most, if it is leased.
    Yes(u32),
    /// The batch is not complete, or the process must let others run first.
    Later,
    /// Another reader began a batch, or no entry is left.
    Taken,
    /// The run is on hold.
    OnHold,
    /// The partition pauses.
    Paused,
}

impl<S: Store, const SHARDS: usize> PartitionFlush<S, SHARDS> {
    /// Begins a call of the processor by `take`, which returns the attempts of the batch, unless the
    /// run is on hold or the partition pauses.
    pub(super) fn begin(&self, env: Env<'_>, in_pause: bool, take: impl FnOnce() -> Option<u32>) -> Begun {
        let begun = self.refusal(in_pause).unwrap_or_else(|| take().map_or(Begun::Taken, Begun::Yes));
        self.settle(env);
        begun
    }

    /// The reason against a call of the processor. A refused batch is read again later.
    fn refusal(&self, in_pause: bool) -> Option<Begun> {
        if self.partitions.shared.is_on_hold() {
            return Some(Begun::OnHold);
        }
        let is_paused = !in_pause && self.partition.learned().paused_until.is_some_and(|until| until > Instant::now());
        is_paused.then_some(Begun::Paused)
    }
}

impl<S: Store<Record: ToTerm>, const SHARDS: usize> PartitionFlush<S, SHARDS> {
    /// See [`FlushResource::read`].
    pub(super) fn read<'a>(&self, env: Env<'a>, reading: &Reading) -> (Term<'a>, usize, Begun) {
        let &Reading { succeeded, length, size, resumed, next } = reading;
        let mut pace = Pace::start();
        let mut records = ListBuilder::start(env);
        let own = reader(env);
        if succeeded {
            self.flush.succeed(own);
        }
        let Some(mut reader) = self.flush.read(own, length, size) else {
            // The batch may have been the last one.
            self.settle(env);
            return (records.build(), length, Begun::Taken);
        };
        let has_large = reader.has_large();
        if !has_large {
            pace.expect_small();
        }
        let leaves_out = resumed && self.flush.leaves_out();
        let is_superseded = |held: &Held<'_, S>| leaves_out && self.partition.supersedes(held);
        let is_complete = loop {
            // Nothing announces a large record, so the clock is read after each one.
            let step = if has_large { 1 } else { pace.step };
            if reader.read(step, is_superseded, |record| records.push(record.to_term(env))) {
                break true;
            }
            if !pace.goes_on(step) {
                break false;
            }
        };
        let (length, ended) = (reader.length(), time_of(pace.end()));
        if !is_complete {
            // A long read is not a part of a call that takes too long.
            reader.touch(ended);
        }
        let must_yield = pace.consume_timeslice(env);
        let next = if is_complete { Some(next) } else { None };
        let begun = self.begin_read(reader, next, ended, must_yield);
        if let Begun::Later = begun {
            self.partitions.shared.tell_of_room(env);
        } else {
            self.settle(env);
        }
        (records.build(), length, begun)
    }

    /// Begins the `next` call of a complete batch, and lets go of the flush. A process that must yield
    /// does so before the processor gets the batch: whatever happens then should happen before the
    /// call begins.
    fn begin_read(&self, reader: Reader<'_, S>, next: Option<Next>, now: i64, must_yield: bool) -> Begun {
        let has_entries = reader.length() > 0;
        match next {
            Some(Next::Others) => Begun::Yes(0),
            Some(_) if !has_entries => Begun::Taken,
            Some(Next::Claim) if !must_yield => self.refusal(true).unwrap_or_else(|| {
                reader.claim(now);
                Begun::Yes(0)
            }),
            Some(Next::Lease { in_pause }) if !must_yield => {
                self.refusal(in_pause).unwrap_or_else(|| Begun::Yes(reader.lease(now)))
            }
            Some(_) | None => Begun::Later,
        }
    }
}
