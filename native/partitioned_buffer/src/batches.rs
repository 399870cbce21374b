//! What a partition has handed over, for the process that works on it, whatever kind of buffer it is.

use std::sync::Arc;

use partitioned_buffer_engine::entries::Record;
use partitioned_buffer_engine::{Closed, HandOver, HandedOver, Partition, Store};
use rustler::{Env, Resource, Term};

use crate::buffer::{Buffer, NotRunning, Side};
use crate::pace::Pace;
use crate::vm::clock::monotonic_time;
use crate::vm::term::{copy_to, tuple, unsigned_to, version_to, ListBuilder, RawTerm};

/// A record as the processor gets it.
pub(crate) trait ToTerm: Copy {
    /// A copy in the environment of the caller.
    fn to_term(self, env: Env<'_>) -> Term<'_>;
}

impl ToTerm for Record<RawTerm> {
    #[inline]
    fn to_term(self, env: Env<'_>) -> Term<'_> {
        let (key, value) = (copy_to(env, self.key), copy_to(env, self.value));
        tuple(env, [key, value, version_to(env, self.version), unsigned_to(env, self.updates)])
    }
}

impl ToTerm for RawTerm {
    #[inline]
    fn to_term(self, env: Env<'_>) -> Term<'_> {
        copy_to(env, self)
    }
}

/// A hand-over, as a resource.
pub(crate) struct Batch(pub(crate) Arc<dyn Work>);

#[rustler::resource_impl]
impl Resource for Batch {}

/// Records that a read has room for from the beginning: more than most batches, and than it often has time for.
const ROOM: usize = 1024;

/// What can be done with a hand-over.
pub(crate) trait Work: Send + Sync {
    /// Where the next batch begins.
    fn position(&self) -> usize;

    /// Where the next batch begins, where the last one ends, and when the one before was claimed.
    fn progress(&self) -> (usize, usize, Option<i64>);

    /// At most `count` records from `position` on, and the position behind them. It may be fewer when the time is up.
    fn read<'a>(&self, env: Env<'a>, position: usize, count: usize) -> (Term<'a>, usize);

    /// Takes what is between two positions as handed to the processor; `false` if somebody else has.
    fn claim(&self, from: usize, to: usize) -> bool;
}

impl<S: Store<Record: ToTerm>> Work for HandOver<S> {
    fn position(&self) -> usize {
        self.position()
    }

    fn progress(&self) -> (usize, usize, Option<i64>) {
        (self.position(), self.end(), self.claimed_at())
    }

    fn read<'a>(&self, env: Env<'a>, mut position: usize, count: usize) -> (Term<'a>, usize) {
        let mut pace = Pace::start();
        let mut records = ListBuilder::with_capacity(env, count.min(ROOM));
        if let Some(retired) = self.entries() {
            let end = self.end();
            let has_large = retired.has_large();
            while position < end && records.len() < count {
                // Places of deleted entries count as well.
                let start = position;
                // A large record comes unannounced: there is a look at the clock after each.
                let step = if has_large { 1 } else { pace.step };
                let stop = position.saturating_add(step).min(end);
                while position < stop && records.len() < count {
                    if let Some(record) = retired.record(position) {
                        records.push(record.to_term(env));
                    }
                    position += 1;
                }
                if !pace.goes_on(position - start) {
                    break;
                }
            }
        }
        pace.consume_timeslice(env);
        (records.build(), position)
    }

    fn claim(&self, from: usize, to: usize) -> bool {
        self.claim(from, to, monotonic_time())
    }
}

/// The side of a name, whatever kind of buffer it is for.
pub(crate) trait AnySide {
    /// See [`Side::partitions`].
    fn partitions(&self) -> Result<u32, NotRunning>;
    /// See [`Side::size`].
    fn size(&self) -> Result<usize, NotRunning>;
    /// See [`Side::reopen`].
    fn reopen(&self, number: u32) -> Result<(), NotRunning>;
    /// See [`Partition::drain`].
    fn drain(&self, number: u32) -> Result<Result<(), Closed>, NotRunning>;
    /// See [`Partition::close`].
    fn close(&self, number: u32) -> Result<(), NotRunning>;
    /// See [`Partition::held`].
    fn held(&self, number: u32) -> Result<usize, NotRunning>;
    /// What a partition hands over, and whether it is the rest of an earlier hand-over; `None` if there is nothing.
    fn hand_over(&self, number: u32) -> Result<Option<(bool, Batch)>, NotRunning>;
    /// See [`Partition::pending`].
    fn pending(&self, number: u32) -> Result<Option<Batch>, NotRunning>;
}

impl<S: Store<Record: ToTerm>, const SHARDS: usize> AnySide for Side<S, SHARDS> {
    fn partitions(&self) -> Result<u32, NotRunning> {
        self.partitions()
    }

    fn size(&self) -> Result<usize, NotRunning> {
        self.size()
    }

    fn reopen(&self, number: u32) -> Result<(), NotRunning> {
        self.reopen(number)
    }

    fn drain(&self, number: u32) -> Result<Result<(), Closed>, NotRunning> {
        self.numbered(number).map(Partition::drain)
    }

    fn close(&self, number: u32) -> Result<(), NotRunning> {
        self.numbered(number).map(Partition::close)
    }

    fn held(&self, number: u32) -> Result<usize, NotRunning> {
        self.numbered(number).map(Partition::held)
    }

    fn hand_over(&self, number: u32) -> Result<Option<(bool, Batch)>, NotRunning> {
        Ok(self.numbered(number)?.hand_over().map(|handed_over| match handed_over {
            HandedOver::Rest(hand_over) => (true, Batch(hand_over)),
            HandedOver::Fresh(hand_over) => (false, Batch(hand_over)),
        }))
    }

    fn pending(&self, number: u32) -> Result<Option<Batch>, NotRunning> {
        Ok(self.numbered(number)?.pending().map(|hand_over| Batch(hand_over)))
    }
}

impl Buffer {
    /// The side that runs.
    pub(crate) fn running(&'static self) -> Result<&'static dyn AnySide, NotRunning> {
        if self.map.partitions().is_ok() {
            return Ok(&self.map);
        }
        self.queue.partitions().map(|_| &self.queue as &dyn AnySide)
    }
}
