//! A partition: the entries that wait in it, and the flushes that are in flight.
//!
//! A partition has one or more *shards*, each a [`Store`] behind a lock of its own. A map and a counter spread their keys
//! over several shards by their hash, so writers rarely meet; a queue has one shard, for its order. What maps and
//! counters share is in `keyed`, and `map`, `counter` and `queue` have the operations of each kind.
//!
//! [`Partition::flush`] takes the locks of all shards and swaps each store for an empty one. So a write comes either
//! before the flush and is part of it, or after it and waits for the next one. The partition keeps a [`Flush`] until all
//! its entries have an outcome: what a crashed reader has left is there for the next reader. The next flush removes what
//! is finished, since the reader may have got the flush from another partition, before the count of partitions changed.
//!
//! A partition that is open *with outcomes* also looks into its flush: each shard has a reference to it, set together
//! with the swap. So an operation sees what waits and what is in flight in one picture. In a map an entry that waits
//! hides the one of its key in flight, and in a counter both are added up. After a restart with another partition count
//! there may be several flushes.
//!
//! | state | reads, deletes | writes | writes of a processor | flush |
//! |---|---|---|---|---|
//! | open | are taken | are taken | are taken | gives the rest of the last flush, else what waits |
//! | draining | are taken | are refused | are taken | the same |
//! | closed | are refused | are refused | are refused | the same |
//!
//! A partition drains while a stop processes what it holds: a processor may write to its own buffer.
//!
//! A lock is held for one operation on one store, or for the swap. No store is freed and no foreign code runs under a
//! lock. The lock of `in_flight` is taken first, then that of a flush, then those of the shards in their order; only a
//! flush whose batch is given back is held even before.
//!
//! A write changes three cache lines that move between processors: those of the shard's lock, of the entry, and of the
//! deaths in the old value's segment. The copy itself goes to memory of the thread's lane; see [`crate::memory::arena`]. An
//! addition to a counter changes the first two only, and the first one only if it is to the key of the last one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::flush::{Flush, Flushed, Frozen, GivenBack, Retry};
use crate::limits::bound::Bound;
use crate::limits::threshold::Threshold;
use crate::limits::totals::{Ended, Outcomes, Writes};
use crate::store::index::Hasher;
use crate::store::{Store, TakenBack};
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering};

/// Added to a partition count, this marks the write of a processor, which is taken until the partition is closed. No
/// buffer has as many partitions.
pub const DRAINING: u32 = 1 << 31;

/// Added to a partition count, this marks the write of a writer that has waited for room, and whose turn it is.
pub const TURN: u32 = 1 << 30;

/// The partition refuses an operation: it is closed, drains, or is open for another partition count than the caller
/// chose it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// How often a thread looks at a taken lock before it leaves the wait to `parking_lot`: this takes some microseconds.
const SPINS: usize = 400;

/// See the module's documentation.
pub struct Partition<S: Store, const SHARDS: usize> {
    /// Where entries wait.
    pub(super) shards: [Shard<S>; SHARDS],
    /// The flushes in flight, oldest first, and finished ones that the next flush removes. Only a restart with another
    /// partition count makes more than one unfinished flush.
    in_flight: Mutex<VecDeque<Arc<Flush<S>>>>,
    /// Whether it is open with outcomes. It changes only while nobody writes.
    has_outcomes: AtomicBool,
    /// What became of the entries of its flushes.
    outcomes: Arc<Outcomes>,
    /// The bound of the buffer, which all partitions share.
    pub(super) bound: Arc<Bound>,
    /// When it is to flush.
    pub(super) threshold: Threshold,
}

/// What a partition holds, and what was counted. Without the locks of all shards at once, so writes that come meanwhile
/// are in it or not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// How many entries wait.
    pub waiting: usize,
    /// How many entries are in flight. Of deleted ones this is known when a reader comes to them.
    pub in_flight: usize,
    /// How many of both have failed, and wait for the next attempt.
    pub retried: usize,
    /// The estimated bytes of both.
    pub bytes: usize,
    /// When the oldest of both was written, or one of its flush before it.
    pub since: Option<Instant>,
    /// What writes have done.
    pub writes: Writes,
    /// What became of the entries in flight.
    pub ended: Ended,
    /// Whether it refuses the writes of others than processors.
    pub is_closed: bool,
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The value is stored.
    Stored,
    /// The value is stored, and now enough entries wait: the partition is to flush.
    Enough,
    /// The version there is as high, or the key is there.
    Refused,
    /// Nothing is stored: the buffer has no room for another entry.
    Full,
}

/// What several writes have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How much of the reserved room they have used.
    pub used: usize,
    /// Whether enough entries wait now: the partition is to flush.
    pub is_enough: bool,
}

/// A store behind its lock. Aligned to two cache lines, which processors fetch together.
#[repr(align(128))]
pub(super) struct Shard<S: Store>(Mutex<ShardState<S>>);

/// What the lock of a shard guards. What each write looks at is in the cache line of the lock.
#[repr(C)]
pub(super) struct ShardState<S: Store> {
    /// The partition count by which callers must have chosen this partition; with [`DRAINING`] only processors may
    /// write; 0 while closed.
    pub(super) partition_count: u32,
    /// Whether there is a bound.
    pub(super) is_bounded: bool,
    /// Whether new entries are counted, for the bound or for the threshold.
    pub(super) is_counted: bool,
    /// How many entries may be added without asking the bound; 1 without a bound.
    pub(super) room: usize,
    /// The entries written since the last flush.
    pub(super) waiting: S,
    /// The flushes that the shard's operations look into, oldest first: none if the partition has no outcomes.
    pub(super) in_flight: Vec<InFlight<S>>,
    /// What was counted before the last flush.
    pub(super) before: Writes,
}

/// A flush with its stores, which stay until the shard gives this up.
pub(super) struct InFlight<S: Store> {
    /// The flush.
    pub(super) flush: Arc<Flush<S>>,
    /// Its stores.
    pub(super) frozen: Arc<Frozen<S>>,
}

/// Where failed entries of a flush may wait again. In a closed partition they stay in the flush, because another
/// partition may adopt it, and in that of another partition as well.
struct Home<S: Store> {
    /// While the partition is open for this count; 0 if it never is.
    partition_count: u32,
    /// The stores of later flushes, which have newer entries. Only a restart with another partition count makes some.
    later: Vec<Arc<Frozen<S>>>,
}

impl<S: Store> Home<S> {
    /// All entries stay in the flush.
    const NOWHERE: Self = Home { partition_count: 0, later: Vec::new() };
}

impl<S: Store> Clone for InFlight<S> {
    fn clone(&self) -> Self {
        InFlight { flush: self.flush.clone(), frozen: self.frozen.clone() }
    }
}

impl<S: Store> Shard<S> {
    /// The lock, if the shard takes writes of callers with this partition count.
    #[inline]
    pub(super) fn lock_open(&self, partition_count: u32) -> Result<MutexGuard<'_, ShardState<S>>, Closed> {
        let state = self.lock();
        // The second case is a processor's write to an open partition, the third that of a writer that has waited.
        if state.partition_count == partition_count
            || state.partition_count | DRAINING == partition_count
            || state.partition_count | TURN == partition_count
        {
            Ok(state)
        } else {
            Err(Closed)
        }
    }

    /// The lock, if the shard takes reads and deletes of callers with this partition count.
    #[inline]
    pub(super) fn lock_readable(&self, partition_count: u32) -> Result<MutexGuard<'_, ShardState<S>>, Closed> {
        let state = self.lock();
        if state.partition_count & !DRAINING == partition_count & !DRAINING {
            Ok(state)
        } else {
            Err(Closed)
        }
    }

    /// The lock. Holders keep it for some hundred nanoseconds, so spinning is cheaper than calling the system, which
    /// `parking_lot` soon does. After [`SPINS`] the holder has been interrupted, and `parking_lot` takes over.
    #[inline]
    fn lock(&self) -> MutexGuard<'_, ShardState<S>> {
        match self.0.try_lock() {
            Some(state) => state,
            None => self.lock_contended(),
        }
    }

    /// Waits for the lock.
    #[cold]
    fn lock_contended(&self) -> MutexGuard<'_, ShardState<S>> {
        for _ in 0..SPINS {
            std::hint::spin_loop();
            if !self.0.is_locked() {
                if let Some(state) = self.0.try_lock() {
                    return state;
                }
            }
        }
        self.0.lock()
    }
}

impl<S: Store> ShardState<S> {
    /// Replaces the store by an empty one.
    fn freeze(&mut self) -> S {
        self.waiting.settle();
        self.before += self.waiting.writes();
        let successor = self.waiting.successor();
        std::mem::replace(&mut self.waiting, successor)
    }
}

#[allow(clippy::len_without_is_empty)] // Only the size of all partitions together is asked for.
impl<S: Store, const SHARDS: usize> Partition<S, SHARDS> {
    /// A closed, empty partition.
    pub fn new(hasher: &Hasher) -> Self {
        Self::with_bound(hasher, &Arc::default())
    }

    /// A closed, empty partition of a buffer with this bound.
    pub fn with_bound(hasher: &Hasher, bound: &Arc<Bound>) -> Self {
        let state = || ShardState {
            partition_count: 0,
            waiting: S::new(hasher),
            in_flight: Vec::new(),
            before: Writes::default(),
            room: 1,
            is_bounded: false,
            is_counted: false,
        };
        Partition {
            shards: std::array::from_fn(|_| Shard(Mutex::new(state()))),
            in_flight: Mutex::default(),
            has_outcomes: AtomicBool::new(false),
            outcomes: Arc::default(),
            bound: bound.clone(),
            threshold: Threshold::default(),
        }
    }

    /// Takes operations of callers with this partition count.
    pub fn open(&self, partition_count: u32) {
        self.shards.iter().for_each(|shard| shard.0.lock().partition_count = partition_count);
    }

    /// Decides whether operations look into flushes. The partition must be closed.
    pub fn set_outcomes(&self, has_outcomes: bool) {
        let in_flight = self.in_flight.lock();
        self.has_outcomes.store(has_outcomes, Ordering::SeqCst);
        self.look_into(in_flight.iter().filter(|_| has_outcomes));
    }

    /// Lets the shards look into these flushes, as far as they are not finished. The caller has the lock of `in_flight`.
    fn look_into<'f>(&self, flushes: impl Iterator<Item = &'f Arc<Flush<S>>>) {
        let visible = |flush: &Arc<Flush<S>>| Some(InFlight { flush: flush.clone(), frozen: flush.entries()? });
        let new: Vec<_> = flushes.filter_map(visible).collect();
        let old = self.shards.each_ref().map(|shard| std::mem::replace(&mut shard.lock().in_flight, new.clone()));
        drop(old);
    }

    /// Lets the shards give up a flush, so that its stores are freed, if all its entries have an outcome. To be called
    /// after a batch of it was claimed or leased, has succeeded or was given back.
    pub fn settle(&self, flush: &Arc<Flush<S>>) {
        if self.has_outcomes.load(Ordering::SeqCst) && flush.is_finished() {
            // No other thread is about to let the shards look into this flush.
            let in_flight = self.in_flight.lock();
            self.look_into(in_flight.iter());
        }
    }

    /// The processor has failed with entries of this reader's batch: those with these numbers, or all. They are
    /// retried unless they have failed `max_attempts` times. If this one is not `counted`, they have failed as often as
    /// before.
    pub fn give_back(
        &self,
        flush: &Arc<Flush<S>>,
        reader: u64,
        failed: Option<&[usize]>,
        counted: bool,
        max_attempts: Option<u32>,
    ) -> GivenBack {
        let Home { partition_count, later } = self.home(flush);
        flush.give_back(reader, failed, counted, max_attempts, |frozen, position, attempts| {
            let Some((shard, id)) = frozen.locate(position) else { return Retry::IsSuperseded };
            let flushed = &frozen.stores[shard];
            let mut state = self.shards[shard].lock();
            // Asked again under the lock that a delete takes: the entry that it has deleted must not wait again.
            if flush.is_gone(position) {
                Retry::IsSuperseded
            } else if S::KEEPS_ORDER
                || state.partition_count == 0
                || state.partition_count & !DRAINING != partition_count
            {
                Retry::Stays
            } else if later.iter().any(|later| later.stores[shard].supersedes(flushed, id)) {
                Retry::IsSuperseded
            } else {
                let taken_back = state.waiting.take_back(flushed, id, attempts);
                if S::ADDS_UP {
                    // From now on it is seen among what waits.
                    flush.remove(position);
                }
                match taken_back {
                    TakenBack::Added => Retry::Waits,
                    TakenBack::Joined => Retry::Joins,
                    TakenBack::Superseded => Retry::IsSuperseded,
                }
            }
        })
    }

    /// Where failed entries of a flush may wait again.
    fn home(&self, flush: &Arc<Flush<S>>) -> Home<S> {
        let in_flight = self.in_flight.lock();
        let Some(place) = in_flight.iter().position(|own| Arc::ptr_eq(own, flush)) else { return Home::NOWHERE };
        let later = in_flight.iter().skip(place + 1).filter_map(|later| later.entries()).collect();
        Home { partition_count: self.shards[0].lock().partition_count & !DRAINING, later }
    }

    /// Whether an entry that waits replaces the one at this position of a flush.
    pub fn supersedes(&self, frozen: &Frozen<S>, position: usize) -> bool {
        let Some((shard, id)) = frozen.locate(position) else { return false };
        self.shards[shard].lock().waiting.supersedes(&frozen.stores[shard], id)
    }

    /// Refuses all writes but those of processors from now on. A closed partition stays closed.
    pub fn drain(&self) -> Result<(), Closed> {
        for shard in &self.shards {
            let mut state = shard.lock();
            if state.partition_count == 0 {
                return Err(Closed);
            }
            state.partition_count |= DRAINING;
        }
        Ok(())
    }

    /// Refuses all operations from now on. Entries that are here can still be flushed.
    pub fn close(&self) {
        self.open(0);
    }

    /// How many entries wait for the next flush.
    pub fn len(&self, partition_count: u32) -> Result<usize, Closed> {
        self.shards.iter().map(|shard| Ok(shard.lock_readable(partition_count)?.waiting.len())).sum()
    }

    /// Takes room for a shard that has none; `false` if there is none.
    #[cold]
    pub(super) fn find_room(&self, state: &mut ShardState<S>, partition_count: u32) -> bool {
        let turn = partition_count & !DRAINING & TURN != 0;
        state.room = self.bound.take(turn);
        state.room > 0
    }

    /// Counts a new entry; `true` if enough wait now.
    #[inline(never)]
    pub(super) fn count_new(&self, state: &mut ShardState<S>) -> bool {
        if state.is_bounded {
            state.room -= 1;
        }
        self.threshold.add(1)
    }

    /// Counts new entries of a list, which do not take the shard's room.
    pub(super) fn count_all(&self, state: &ShardState<S>, added: usize, reserved: bool) -> Written {
        if state.is_bounded && !reserved {
            // The bound is younger than the list.
            self.bound.add(added);
        }
        let used = if state.is_bounded && reserved { added } else { 0 };
        Written { used, is_enough: state.is_counted && self.threshold.add(added) }
    }

    /// Counts the entries of the partition for the bound, or no more.
    pub fn set_bounded(&self, is_bounded: bool) {
        loop {
            // Nothing is given back meanwhile. To wait for that may take long, so it is done without other locks.
            let flushes = self.in_flight.lock().clone();
            let _held: Vec<_> = flushes.iter().map(|flush| flush.hold()).collect();
            let in_flight = self.in_flight.lock();
            if in_flight.len() == flushes.len() && in_flight.iter().zip(&flushes).all(|(a, b)| Arc::ptr_eq(a, b)) {
                self.set_bounded_with(&in_flight, is_bounded);
                return;
            }
        }
    }

    /// The same with the lock of `in_flight`, while none of these flushes is given back. So entries only leave meanwhile,
    /// or come to a shard.
    fn set_bounded_with(&self, in_flight: &VecDeque<Arc<Flush<S>>>, is_bounded: bool) {
        for flush in in_flight {
            flush.set_bound(is_bounded.then_some(&self.bound));
        }
        for shard in &self.shards {
            let mut state = shard.lock();
            if state.is_bounded == is_bounded {
                continue;
            }
            let waiting = state.waiting.len();
            if is_bounded {
                self.bound.add(waiting);
                state.room = 0;
            } else {
                self.bound.release(waiting + state.room);
                state.room = 1;
            }
            state.is_bounded = is_bounded;
            state.is_counted = is_bounded || self.threshold.is_set();
        }
    }

    /// Takes the room from the shards that they have not used.
    pub fn take_room(&self) {
        for shard in &self.shards {
            let mut state = shard.lock();
            if state.is_bounded {
                // With the lock: a writer that finds it gone from the shard must find it in the bound.
                self.bound.release(std::mem::take(&mut state.room));
            }
        }
    }

    /// Changes how many entries are enough to flush; `true` if as many wait.
    pub fn set_threshold(&self, enough: Option<usize>) -> bool {
        let mut states = self.shards.each_ref().map(Shard::lock);
        let waiting = states.iter().map(|state| state.waiting.len() - state.waiting.returned()).sum();
        let is_enough = self.threshold.set(enough, waiting);
        for state in &mut states {
            state.is_counted = state.is_bounded || enough.is_some();
        }
        is_enough
    }

    /// What the partition holds, and what was counted. It takes a few microseconds, however many entries there are.
    pub fn info(&self) -> Info {
        let mut info = Info { ended: self.outcomes.get(), ..Info::default() };
        // Those that wait come last: an entry that is given back meanwhile is rather counted twice than not at all.
        for flush in self.in_flight.lock().iter().filter(|flush| flush.left() > 0) {
            info.in_flight += flush.left();
            info.retried += flush.staying();
            info.bytes += flush.bytes();
            info.since = [info.since, flush.since()].into_iter().flatten().min();
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
            info.is_closed |= state.partition_count == 0 || state.partition_count & DRAINING != 0;
        }
        info
    }

    /// Counts failures of which a flush without outcomes knows nothing.
    pub fn count_failed(&self, failed: usize) {
        self.outcomes.add(Ended { failed, ..Ended::default() });
    }

    /// How many entries wait, or are in flight without an outcome. It looks at each of the latter.
    pub fn held(&self) -> usize {
        let in_flight = self.in_flight.lock();
        let flushes = in_flight.clone();
        // Before those that wait: an entry that is given back meanwhile is rather counted twice than not at all.
        let unsettled: Vec<_> = flushes.iter().map(|flush| flush.unsettled()).collect();
        let waiting: usize = self.shards.iter().map(|shard| shard.lock().waiting.len()).sum();
        drop(in_flight);
        waiting + unsettled.into_iter().map(|count| count()).sum::<usize>()
    }

    /// The rest of the oldest unfinished flush; else a new flush of the entries that wait; `None` if there are none.
    pub fn flush(&self) -> Option<Flushed<S>> {
        let mut in_flight = self.in_flight.lock();
        let has_outcomes = self.has_outcomes.load(Ordering::SeqCst);
        let before = in_flight.len();
        while in_flight.front().is_some_and(|oldest| oldest.is_finished()) {
            in_flight.pop_front();
        }
        if has_outcomes && in_flight.len() < before {
            self.look_into(in_flight.iter());
        }
        if let Some(rest) = in_flight.front() {
            return Some(Flushed::Rest(rest.clone()));
        }
        let fresh = self.freeze(has_outcomes)?;
        in_flight.push_back(fresh.clone());
        Some(Flushed::Fresh(fresh))
    }

    /// The oldest flush, at which a reader may be at work. It may be finished by now.
    pub fn in_flight(&self) -> Option<Arc<Flush<S>>> {
        self.in_flight.lock().front().cloned()
    }

    /// Closes the partition and takes out its flushes, oldest first, the entries that wait as the last one.
    pub fn evict(&self) -> VecDeque<Arc<Flush<S>>> {
        self.close();
        // Locked to the end: a concurrent flush could otherwise add its entries in between.
        let mut in_flight = self.in_flight.lock();
        let mut evicted = std::mem::take(&mut *in_flight);
        evicted.retain(|flush| !flush.is_finished());
        self.look_into(std::iter::empty());
        evicted.extend(self.freeze(false));
        self.take_room();
        evicted
    }

    /// Takes over the flushes of another partition. They come before all new ones.
    pub fn adopt(&self, evicted: VecDeque<Arc<Flush<S>>>) {
        evicted.iter().for_each(|flush| flush.set_outcomes(&self.outcomes));
        self.in_flight.lock().extend(evicted);
    }

    /// Takes over what another partition has counted, whose flushes were evicted and adopted.
    pub fn adopt_counts(&self, other: &Self) {
        let mut writes = Writes::default();
        for shard in &other.shards {
            writes += std::mem::take(&mut shard.lock().before);
        }
        self.shards[0].lock().before += writes;
        self.outcomes.add(other.outcomes.take());
    }

    /// Takes the entries of all shards at one point in time, when all their locks are held; `None` if there are none.
    /// At each lock it waits for at most one operation of another thread. The shards look into the flush if it is
    /// `visible`, and must look into no other.
    fn freeze(&self, visible: bool) -> Option<Arc<Flush<S>>> {
        let mut stores = Vec::with_capacity(SHARDS);
        let mut states = self.shards.each_ref().map(Shard::lock);
        if states.iter().all(|state| state.waiting.end() == 0) {
            return None;
        }
        stores.extend(states.iter_mut().map(|state| state.freeze()));
        // Stores whose entries were all deleted are only memory, freed like the others.
        let is_empty = stores.iter().all(Store::is_empty);
        let frozen = Arc::new(Frozen::new(stores));
        let bound = states[0].is_bounded.then(|| self.bound.clone());
        let flush = Arc::new(Flush::new(frozen.clone(), self.outcomes.clone(), bound));
        self.threshold.reset();
        if !is_empty && visible {
            let in_flight = InFlight { flush: flush.clone(), frozen };
            states.iter_mut().for_each(|state| state.in_flight.push(in_flight.clone()));
        }
        drop(states);
        (!is_empty).then_some(flush)
    }
}
