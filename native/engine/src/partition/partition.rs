//! A partition: the entries that wait in it, and the flush in flight.
//!
//! A partition consists of one or more *shards*, each a [`Store`] behind a lock. A map and a
//! counter spread their keys over several shards by their hash, so writers rarely meet; a queue
//! needs one shard for its order. `keyed` has the common part of maps and counters; `map`,
//! `counter` and `queue` have the operations of each kind.
//!
//! [`Partition::flush`] takes the locks of all shards and swaps each store for an empty one. So a
//! write comes either before the flush and is part of it, or after it and waits for the next one.
//! At most one [`Flush`] is unfinished. The partition keeps it until all entries have an outcome,
//! so the next reader finds the entries that a crashed one left. A finished flush stays until the
//! next one, for the call that may be open.
//!
//! A partition open *with outcomes* also looks into its flush: each shard has a reference to it,
//! set together with the swap. So an operation sees waiting entries and those in flight in one
//! picture. In a map a waiting entry hides the one of its key in flight, and in a counter both are
//! added up.
//!
//! | state | reads, deletes | writes | writes of a processor | flush |
//! |---|---|---|---|---|
//! | open | granted | granted | granted | the rest of the last flush, else the waiting entries |
//! | draining | granted | refused | granted | the same |
//! | closed | refused | refused | refused | the same |
//!
//! A partition drains while a stop processes its entries: a processor may write to its own buffer.
//!
//! A lock is held for one operation on one store, for the swap, or for one step of giving back. No
//! store is freed and no foreign code runs under a lock. The order of the locks is: `giving_back`,
//! `in_flight`, the progress of the flush, the shards in their order, the outcomes. The lock of a
//! frozen store is apart: readers take it before or after that of a shard, since a waiting writer,
//! which has no other lock, does not keep them out.
//!
//! A write changes three cache lines that move between processors: those of the shard's lock, of
//! the entry, and of the deaths in the old value's segment. The copy itself goes to memory of the
//! thread's lane; see [`crate::memory::arena`]. An addition to a counter changes the first two
//! only, and the first one only if it is to the key of the last one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::access::{Access, Closed, Gate};
use super::shard::{InFlight, Shard, ShardState};
use crate::clock::Clock;
use crate::flush::{Flush, Flushed, Frozen, Held, Notes};
use crate::limits::bound::Bound;
use crate::limits::isolation::Isolation;
use crate::limits::outcomes::{Learned, Outcomes};
use crate::limits::threshold::Threshold;
use crate::limits::totals::{Ended, Writes};
use crate::store::hash::Hasher;
use crate::store::Store;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard, Ordering};

/// See the module's documentation.
pub struct Partition<S: Store, const SHARDS: usize> {
    /// Waiting entries.
    pub(super) shards: [Shard<S>; SHARDS],
    /// The last flush, finished or not.
    pub(super) in_flight: Mutex<Option<Arc<Flush<S>>>>,
    /// Held during a step of giving back a batch. Who takes it finds no entry on its way between
    /// flush and shards.
    pub(super) giving_back: Mutex<()>,
    /// Whether the partition is open with outcomes. It changes only while nobody writes.
    has_outcomes: AtomicBool,
    /// Whether failed entries keep their place and are retried before all others, instead of
    /// waiting again. It changes only while nobody writes.
    keeps_order: AtomicBool,
    /// Whose versions the entries of a map have, as a [`Versions`]. It changes only while nobody
    /// writes.
    versions: AtomicUsize,
    /// The clock of the map, which all partitions share.
    pub(super) clock: Arc<Clock>,
    /// The outcomes of the entries of all flushes.
    pub(super) outcomes: Arc<Outcomes>,
    /// The bound of the buffer, which all partitions share.
    pub(super) bound: Arc<Bound>,
    /// The number of waiting entries at which the partition is to flush.
    pub(super) threshold: Threshold,
    /// Notes for the journal; none without one.
    pub(super) notes: Arc<Notes>,
}

/// Contents and counts of a partition. They are read shard by shard, so a concurrent write may be
/// included or not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// Waiting entries.
    pub waiting: usize,
    /// Entries in flight. A deleted entry counts until a reader comes to it.
    pub in_flight: usize,
    /// Failed entries among both, which wait for the next attempt.
    pub retried: usize,
    /// The estimated bytes of both.
    pub bytes: usize,
    /// When the oldest of both was written, or an earlier entry of its flush.
    pub since: Option<Instant>,
    /// Effects of writes.
    pub writes: Writes,
    /// Outcomes of entries in flight.
    pub ended: Ended,
    /// Whether plain writes are refused.
    pub is_closed: bool,
}

/// Whose versions the entries of a map have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Those of writes with a version, and 0 otherwise.
    Any = 0,
    /// Those of the clock.
    Clock = 1,
    /// Those of writes, which all have one.
    Own = 2,
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The value is stored.
    Stored,
    /// The value is stored, and enough entries wait: the partition is to flush.
    Enough,
    /// The version is not newer, or the key exists.
    Refused,
    /// Nothing is stored: the entries have versions of another source.
    Versioned,
    /// Nothing is stored: the buffer has no room for another entry.
    Full,
}

/// The result of several writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The number of writes done.
    pub done: usize,
    /// The used part of the reserved room.
    pub used: usize,
    /// Whether enough entries wait: the partition is to flush.
    pub is_enough: bool,
}

#[allow(clippy::len_without_is_empty)] // Callers need only the size of all partitions together.
impl<S: Store, const SHARDS: usize> Partition<S, SHARDS> {
    /// A closed, empty partition.
    pub fn new(hasher: &Hasher) -> Self {
        Self::with_bound(hasher, &Arc::default())
    }

    /// A closed, empty partition of a buffer with this bound.
    pub fn with_bound(hasher: &Hasher, bound: &Arc<Bound>) -> Self {
        Self::sharing(hasher, bound, &Arc::default())
    }

    /// A closed, empty partition of a buffer with this bound and clock.
    pub fn sharing(hasher: &Hasher, bound: &Arc<Bound>, clock: &Arc<Clock>) -> Self {
        Partition {
            shards: std::array::from_fn(|_| Shard::new(hasher)),
            in_flight: Mutex::default(),
            giving_back: Mutex::default(),
            has_outcomes: AtomicBool::new(false),
            keeps_order: AtomicBool::new(S::KEEPS_ORDER),
            versions: AtomicUsize::new(Versions::Any as usize),
            clock: clock.clone(),
            outcomes: Arc::default(),
            bound: bound.clone(),
            threshold: Threshold::default(),
            notes: Arc::default(),
        }
    }

    /// Grants operations of callers with this partition count.
    pub fn open(&self, partition_count: u32) {
        self.set_gate(Gate::open(partition_count));
    }

    /// Refuses all writes but those of processors. A closed partition stays closed.
    pub fn drain(&self) -> Result<(), Closed> {
        for shard in &self.shards {
            let mut state = shard.lock();
            state.gate = state.gate.draining().ok_or(Closed)?;
        }
        Ok(())
    }

    /// Refuses all operations. The entries can still be flushed.
    pub fn close(&self) {
        self.set_gate(Gate::CLOSED);
    }

    /// Changes the granted access.
    fn set_gate(&self, gate: Gate) {
        self.shards.iter().for_each(|shard| shard.lock().gate = gate);
    }

    /// Decides whether operations look into the flush. The partition must be closed.
    pub fn set_outcomes(&self, has_outcomes: bool) {
        let in_flight = self.in_flight.lock();
        self.has_outcomes.store(has_outcomes, Ordering::SeqCst);
        self.look_into(in_flight.as_ref().filter(|_| has_outcomes));
        if !has_outcomes {
            self.forget_limit();
        }
    }

    /// Lets the next batch have any size.
    pub fn forget_limit(&self) {
        self.outcomes.learn(Ended::default(), |learned| learned.isolation = Isolation::default());
    }

    /// Adds a replayed entry that may end the VM. Until as many were called, the processor gets entries
    /// with this number of attempts alone.
    pub fn suspect(&self, attempts: u32) {
        self.outcomes.learn(Ended::default(), |learned| learned.isolation.suspects.add(attempts));
    }

    /// Decides whether failed items of a queue keep their order. The partition must be closed.
    pub fn set_order(&self, keeps_order: bool) {
        let in_flight = self.in_flight.lock();
        self.keeps_order.store(keeps_order, Ordering::SeqCst);
        in_flight.iter().for_each(|flush| flush.set_order(keeps_order));
    }

    /// Decides whose versions the entries of a map have. The partition must be closed.
    pub fn set_versions(&self, versions: Versions) {
        self.versions.store(versions as usize, Ordering::SeqCst);
    }

    /// Whether the entries have these versions.
    #[inline]
    pub fn has_versions(&self, versions: Versions) -> bool {
        self.versions.load(Ordering::Relaxed) == versions as usize
    }

    /// Lets the shards look into a flush, unless it is finished, or into none. The caller has the
    /// lock of `in_flight`.
    pub(super) fn look_into(&self, flush: Option<&Arc<Flush<S>>>) {
        let new = flush.and_then(|flush| Some(InFlight { flush: flush.clone(), frozen: flush.entries()? }));
        let old = self.shards.each_ref().map(|shard| std::mem::replace(&mut shard.lock().in_flight, new.clone()));
        drop(old);
    }

    /// Lets the shards give up a finished flush, so that its stores are freed. To be called after
    /// each call of a reader that can finish it.
    pub fn settle(&self, flush: &Arc<Flush<S>>) {
        if self.has_outcomes.load(Ordering::SeqCst) && flush.is_finished() {
            // With this lock no other thread lets the shards look into the flush at the same time.
            let in_flight = self.in_flight.lock();
            self.look_into(in_flight.as_ref());
        }
    }

    /// Whether a waiting entry replaces this one of the flush, whose age it takes over then: what
    /// was written first has not been stored since.
    pub fn supersedes(&self, held: &Held<'_, S>) -> bool {
        let mut state = self.shards[held.shard()].lock();
        let is_replaced = held.is_replaced_in(&state.waiting);
        if is_replaced {
            state.waiting.inherit_age(held.store());
        }
        is_replaced
    }

    /// Leases entries of the flush to a reader, which gives them back, since others wait and need not
    /// wait for these: the passed ones, and `count` others. It leases none if the sink may
    /// be away: the flush has entries that did not fail, and none that succeeded; or `if_others` must
    /// wait and do not. Returns whether it leased some.
    pub fn lease_rest(&self, flush: &Flush<S>, reader: u64, count: usize, if_others: bool) -> bool {
        (!if_others || self.has_untried()) && flush.lease_rest(reader, count)
    }

    /// Whether entries wait that did not fail yet.
    pub fn has_untried(&self) -> bool {
        self.shards.iter().any(|shard| {
            let state = shard.lock();
            state.waiting.len() > state.waiting.retried()
        })
    }

    /// The number of waiting entries.
    pub fn len(&self, access: Access) -> Result<usize, Closed> {
        self.shards.iter().map(|shard| Ok(shard.lock_readable(access)?.waiting.len())).sum()
    }

    /// The unfinished flush; else a new flush of the waiting entries; `None` without any. Only a
    /// returned flush replaces the finished one before it, and resets [`Learned::failed`].
    pub fn flush(&self) -> Option<Flushed<S>> {
        let mut in_flight = self.in_flight.lock();
        let flushed = match in_flight.as_ref().filter(|flush| !flush.is_finished()) {
            Some(rest) => Flushed::Rest(rest.clone()),
            None => {
                self.look_into(None);
                let leaves_out = !in_flight.as_ref().is_some_and(|last| last.has_left_out());
                let fresh = self.freeze(leaves_out)?;
                *in_flight = Some(fresh.clone());
                Flushed::Fresh(fresh)
            }
        };
        self.outcomes.learn(Ended::default(), |learned| learned.failed = 0);
        Some(flushed)
    }

    /// The last flush, with which a reader may be busy. It may be finished.
    pub fn in_flight(&self) -> Option<Arc<Flush<S>>> {
        self.in_flight.lock().clone()
    }

    /// Makes a flush of the entries of all shards at one point in time, when all their locks are
    /// held; `None` without any. At each lock it waits for at most one operation of another thread.
    /// The shards look into no flush before, and into this one if the partition has outcomes.
    fn freeze(&self, leaves_out: bool) -> Option<Arc<Flush<S>>> {
        let mut states = self.shards.each_ref().map(Shard::lock);
        let frozen = Arc::new(self.swap(&mut states)?);
        // Stores whose entries were all deleted are only memory, freed like the others.
        if frozen.len() == 0 {
            states.iter_mut().for_each(|state| self.count_bytes(state));
            drop(states);
            if let Some(generation) = frozen.generation() {
                self.notes.end(generation);
            }
            return None;
        }
        let bound = states[0].is_bounded.then(|| self.bound.clone());
        let keeps_order = self.keeps_order.load(Ordering::SeqCst);
        let flush =
            Arc::new(Flush::new(frozen.clone(), self.outcomes.clone(), bound, keeps_order, leaves_out, &self.notes));
        // The flush counts the bytes of its stores already, so the sum is never too low.
        states.iter_mut().for_each(|state| self.count_bytes(state));
        if self.has_outcomes.load(Ordering::SeqCst) {
            let in_flight = InFlight { flush: flush.clone(), frozen };
            states.iter_mut().for_each(|state| state.in_flight = Some(in_flight.clone()));
        }
        Some(flush)
    }

    /// Swaps all stores for empty ones; `None` if nothing was written to them.
    pub(super) fn swap(&self, states: &mut [MutexGuard<'_, ShardState<S>>; SHARDS]) -> Option<Frozen<S>> {
        if states.iter().all(|state| state.waiting.end() == 0) {
            return None;
        }
        self.threshold.reset();
        let is_seen = self.has_outcomes.load(Ordering::SeqCst);
        Some(Frozen::new(states.iter_mut().map(|state| state.freeze()).collect(), is_seen))
    }

    /// The lessons from failures.
    pub fn learned(&self) -> Learned {
        self.outcomes.learned()
    }

    /// Starts a pause or prolongs the present one, and counts a failure if it is `counted`.
    pub fn pause(&self, pause: Duration, counted: bool) {
        self.outcomes.learn(Ended::default(), |learned| learned.pause(pause, counted));
    }

    /// Ends the pause.
    pub fn end_pause(&self) {
        self.outcomes.learn(Ended::default(), |learned| learned.paused_until = None);
    }

    /// Ends the pause if its time is over, and returns its end otherwise. Another partition may have
    /// prolonged it.
    pub fn pass_pause(&self) -> Option<Instant> {
        let mut until = None;
        self.outcomes.learn(Ended::default(), |learned| {
            learned.paused_until = learned.paused_until.filter(|&until| until > Instant::now());
            until = learned.paused_until;
        });
        until
    }

    /// See [`Flush::lost`], for the open call of any reader. To be called before the next
    /// [`flush`](Self::flush).
    pub fn lost(&self) -> usize {
        self.in_flight().map_or(0, |flush| flush.lost(None))
    }

    /// Contents and counts. Takes a few microseconds, however many entries exist.
    pub fn info(&self) -> Info {
        let mut info = Info { ended: self.outcomes.ended(), ..Info::default() };
        // Waiting entries come last: an entry on its way back counts twice rather than not at all.
        if let Some(flush) = self.in_flight() {
            info.bytes = flush.bytes();
            if flush.left() > 0 {
                info.in_flight = flush.left();
                info.retried = flush.staying();
                info.since = flush.since();
            }
        }
        for shard in &self.shards {
            let state = shard.lock();
            info.waiting += state.waiting.len();
            info.retried += state.waiting.retried();
            info.bytes += state.waiting.bytes();
            if !state.waiting.is_empty() {
                info.since = [info.since, state.waiting.since()].into_iter().flatten().min();
            }
            info.writes += state.before;
            info.writes += state.waiting.writes();
            info.is_closed |= !state.gate.is_open();
        }
        info
    }

    /// The number of entries that wait, or are in flight without an outcome. It looks at each of
    /// the latter.
    pub fn held(&self) -> usize {
        let in_flight = self.in_flight.lock();
        let flush = in_flight.clone();
        // Waiting entries come last, as above.
        let unsettled = flush.as_ref().map(|flush| flush.unsettled());
        let waiting: usize = self.shards.iter().map(|shard| shard.lock().waiting.len()).sum();
        drop(in_flight);
        waiting + unsettled.map_or(0, |count| count())
    }
}
