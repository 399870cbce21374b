//! Moves the entries of a partition to others, for another partition count.
//!
//! The owner of all partitions evicts the old ones, and lets the new ones take in each leftover,
//! where its key or item belongs now. An old partition may be a new one as well. All partitions
//! stay closed until the end.

use std::sync::Arc;

use super::partition::Partition;
use super::shard::Shard;
use crate::flush::{Flush, Frozen, Held};
use crate::limits::totals::{Ended, Writes};
use crate::runs::Runs;
use crate::store::{Store, TakenBack};

/// The entries of an evicted partition without an outcome. Its drop frees the stores.
pub struct Evicted<S: Store> {
    /// The waiting entries.
    waiting: Option<Frozen<S>>,
    /// The entries in flight.
    in_flight: Option<InFlight<S>>,
}

/// The entries in flight of an evicted partition, except for deleted and replaced ones.
struct InFlight<S: Store> {
    /// Their stores.
    frozen: Arc<Frozen<S>>,
    /// The entries given up.
    given_up: Runs,
    /// The other entries.
    others: Runs,
}

/// An entry of an evicted partition.
pub struct Leftover<'e, S: Store> {
    /// The key or item.
    term: S::Term,
    /// The stores. The entry has no outcome, so they keep it.
    frozen: &'e Frozen<S>,
    /// The entry's position there.
    position: usize,
    /// The entry's attempts.
    attempts: u32,
}

impl<'e, S: Store> Leftover<'e, S> {
    /// The entry at a position; `None` if it was deleted.
    fn new(frozen: &'e Frozen<S>, position: usize, attempts: u32) -> Option<Self> {
        let held = frozen.hold(position)?;
        Some(Leftover { term: held.store().term(held.id())?, frozen, position, attempts })
    }

    /// Holds the entry.
    fn hold(&self) -> Held<'e, S> {
        self.frozen.hold(self.position).expect("its position is in the stores")
    }

    /// The key or item: the term that chooses the partition.
    pub fn term(&self) -> S::Term {
        self.term
    }
}

impl<S: Store> Evicted<S> {
    /// The entries given up, whose dead letters are not written.
    pub fn given_up(&self) -> impl Iterator<Item = Leftover<'_, S>> {
        self.in_flight.iter().flat_map(|in_flight| leftovers(&in_flight.frozen, &in_flight.given_up))
    }

    /// All other entries, in the order in which they must be taken in: items in the order of the
    /// queue; of a map or counter waiting entries first, since they are newer.
    pub fn entries(&self) -> impl Iterator<Item = Leftover<'_, S>> {
        let waiting = self.waiting.iter().flat_map(|frozen| {
            let attempts = |position| frozen.attempts(position);
            (0..frozen.end()).filter_map(move |position| Leftover::new(frozen, position, attempts(position)))
        });
        self.in_flight(S::KEEPS_ORDER).chain(waiting).chain(self.in_flight(!S::KEEPS_ORDER))
    }

    /// The entries in flight, if this is their place.
    fn in_flight(&self, is_place: bool) -> impl Iterator<Item = Leftover<'_, S>> {
        let in_flight = self.in_flight.iter().filter(move |_| is_place);
        in_flight.flat_map(|in_flight| leftovers(&in_flight.frozen, &in_flight.others))
    }
}

/// The entries at these positions.
fn leftovers<'e, S: Store>(frozen: &'e Frozen<S>, runs: &'e Runs) -> impl Iterator<Item = Leftover<'e, S>> {
    runs.places().filter_map(|(position, attempts)| Leftover::new(frozen, position, attempts))
}

impl<S: Store, const SHARDS: usize> Partition<S, SHARDS> {
    /// Closes the partition and takes out all entries without an outcome. Ends the flush: a reader
    /// that still has it gets nothing more, and its later calls change nothing. Forgets the lessons
    /// from failures.
    ///
    /// Entries of a leased batch get another attempt. Those given up are kept apart: the processor
    /// must not get them again.
    pub fn evict(&self) -> Evicted<S> {
        self.close();
        let giving_back = self.giving_back.lock();
        // Locked to the end, so no other thread flushes.
        let mut in_flight = self.in_flight.lock();
        let flush = in_flight.take();
        let leftovers = flush.as_ref().and_then(|flush| flush.end_early());
        self.look_into(None);
        let waiting = self.take_waiting();
        self.outcomes.forget();
        drop(in_flight);
        drop(giving_back);
        let in_flight = flush.zip(leftovers).map(|(flush, leftovers)| {
            let mut others = Runs::NONE;
            for (position, attempts) in leftovers.entries() {
                let replaced = |waiting: &Frozen<S>| {
                    let held = leftovers.frozen.hold(position)?;
                    Some(held.is_replaced_in(&waiting.store(held.shard())))
                };
                if !flush.is_gone(position) && waiting.as_ref().and_then(replaced) != Some(true) {
                    others.push(position, attempts);
                }
            }
            let given_up = leftovers.given_up().clone();
            let superseded = leftovers.left - others.len() - given_up.len();
            self.outcomes.count(Ended { superseded, ..Ended::default() });
            InFlight { frozen: leftovers.frozen, given_up, others }
        });
        Evicted { waiting, in_flight }
    }

    /// Takes out the waiting entries, and releases their room. Later stamps of other partitions are
    /// greater than those here.
    fn take_waiting(&self) -> Option<Frozen<S>> {
        let mut states = self.shards.each_ref().map(Shard::lock);
        states.iter().for_each(|state| self.clock.see(state.waiting.last_stamp()));
        for state in states.iter_mut().filter(|state| state.is_bounded) {
            self.bound.release(state.waiting.len());
        }
        let waiting = self.swap(&mut states);
        states.iter_mut().for_each(|state| self.count_bytes(state));
        waiting
    }

    /// Lets an entry of an evicted partition wait here, with its age, version, updates and
    /// attempts. If its key waits already, a map keeps the entry with the higher version, and a
    /// counter adds both up.
    pub fn take_in(&self, leftover: &Leftover<'_, S>) {
        let held = leftover.hold();
        let mut state = self.shards[held.shard()].lock();
        let taken_in = state.waiting.take_in(held.store(), held.id(), leftover.attempts);
        self.count_bytes(&mut state);
        if taken_in == TakenBack::Added && state.is_bounded {
            self.bound.add(1);
        }
        drop(state);
        if matches!(taken_in, TakenBack::Superseded | TakenBack::Replaced) {
            self.outcomes.count(Ended { superseded: 1, ..Ended::default() });
        }
    }

    /// Takes in entries given up, as the batch of a flush. The partition has no other flush.
    pub fn take_in_given_up(&self, leftovers: &[Leftover<'_, S>]) {
        self.begin_given_up(|stores| {
            for leftover in leftovers {
                let held = leftover.hold();
                let taken_in = stores[held.shard()].take_in(held.store(), held.id(), leftover.attempts);
                if matches!(taken_in, TakenBack::Superseded | TakenBack::Replaced) {
                    self.outcomes.count(Ended { superseded: 1, ..Ended::default() });
                }
            }
        });
    }

    /// Begins a flush of entries given up, which `fill` adds to its stores.
    pub(super) fn begin_given_up(&self, fill: impl FnOnce(&mut [S])) {
        let mut in_flight = self.in_flight.lock();
        debug_assert!(in_flight.is_none(), "the partition was evicted, or is new");
        let mut states = self.shards.each_ref().map(Shard::lock);
        let mut stores: Vec<_> = states.iter().map(|state| state.waiting.successor()).collect();
        for (store, state) in stores.iter_mut().zip(&mut states) {
            // They come before all waiting entries, which the journal does not have yet. No notes about an
            // earlier flush have their generation.
            if let Some(generation) = state.waiting.generation() {
                store.set_journaled(Some(generation));
                state.waiting.set_journaled(Some(generation + 1));
                state.waiting.unsave();
            }
        }
        fill(&mut stores);
        for (store, state) in stores.iter_mut().zip(&mut states) {
            store.settle();
            state.before += store.writes();
        }
        let flush = Flush::given_up(Arc::new(Frozen::new(stores, true)), self.outcomes.clone(), &self.notes);
        flush.set_bound(states[0].is_bounded.then_some(&self.bound));
        *in_flight = Some(Arc::new(flush));
    }

    /// Takes over the totals of another partition, which was evicted.
    pub fn adopt_counts(&self, other: &Self) {
        let mut writes = Writes::default();
        for shard in &other.shards {
            writes += std::mem::take(&mut shard.lock().before);
        }
        self.shards[0].lock().before += writes;
        self.outcomes.count(other.outcomes.take());
    }
}
