//! Hands the entries of a partition to the journal.
//!
//! A *generation* numbers the stores of the shards from swap to swap, so an entry is known by its
//! generation, shard and id. Changes of waiting entries are marks in their stores; the fates of
//! entries in flight are in the notes of the partition.
//!
//! The journal first takes the notes, then the entries, and writes them in the opposite order. So it
//! has an entry that waits again before it has the end of its time in flight.

use std::sync::Arc;

use super::partition::Partition;
use crate::flush::{Fate, Flush, Note, Unsaved};
use crate::ids::EntryId;
use crate::store::hash::Hash;
use crate::store::marks::Pin;
use crate::store::Store;

/// Waiting entries for the journal. Their terms stay in memory until this is dropped.
pub struct Pinned<S: Store> {
    /// The ids of the entries; and the entries, unless they were deleted.
    pub entries: Vec<(EntryId, Option<S::Saved>)>,
    /// The id from which others follow.
    pub next: Option<EntryId>,
    /// The id behind the last entry of the shard.
    pub end: EntryId,
    /// Keeps the terms in memory.
    pin: Option<Pin>,
}

impl<S: Store> Drop for Pinned<S> {
    fn drop(&mut self) {
        self.entries.clear();
        self.pin.iter().for_each(Pin::release);
    }
}

/// An entry in flight for the journal.
pub struct SavedInFlight<S: Store> {
    /// Its generation.
    pub generation: u64,
    /// Its shard.
    pub shard: usize,
    /// Its id.
    pub id: EntryId,
    /// Its attempts, with the call under way.
    pub attempts: u32,
    /// Whether it was given up.
    pub is_given_up: bool,
    /// The entry.
    pub saved: S::Saved,
}

/// Gets entries in flight for the journal.
pub trait TakesInFlight<S: Store> {
    /// Why entries are not written.
    type Failure;

    /// Takes an entry. Its terms may be freed when this returns.
    fn take(&mut self, entry: SavedInFlight<S>);

    /// Takes a note, to be written after all entries.
    fn note(&mut self, note: Note);

    /// Writes what was taken, if that is much.
    fn write(&mut self) -> Result<(), Self::Failure>;
}

impl<S: Store, const SHARDS: usize> Partition<S, SHARDS> {
    /// Lets the journal know all changes, or no longer. The partition must be closed and empty.
    pub fn set_journaled(&self, is_journaled: bool) {
        let generation = is_journaled.then_some(1);
        self.shards.iter().for_each(|shard| shard.lock().waiting.set_journaled(generation));
        self.notes.take();
    }

    /// Lets the journal take all entries again.
    pub fn unsave(&self) {
        // In this order: a flush that begins in between has the marks, or is the one in flight.
        self.shards.iter().for_each(|shard| shard.lock().waiting.unsave());
        self.in_flight().iter().for_each(|flush| flush.set_unsaved(Unsaved::All));
    }

    /// The number of changes that the journal did not take.
    pub fn unsaved(&self) -> usize {
        self.notes.len() + self.shards.iter().map(|shard| shard.lock().waiting.unsaved()).sum::<usize>()
    }

    /// All entries of lower generations have left the partition, or wait.
    pub fn live_generation(&self) -> u64 {
        let in_flight = self.in_flight.lock();
        if let Some(generation) =
            in_flight.as_ref().filter(|flush| !flush.is_finished()).and_then(|own| own.generation())
        {
            return generation;
        }
        let states = self.shards.each_ref().map(|shard| shard.lock());
        if states.iter().all(|state| state.waiting.end() == 0) {
            return u64::MAX;
        }
        states[0].waiting.generation().unwrap_or(u64::MAX)
    }

    /// Takes the notes about entries in flight.
    pub fn take_notes(&self) -> Vec<Note> {
        self.notes.take()
    }

    /// Hands the entries in flight to the journal of which it does not have all, and notes about those that
    /// were deleted before the flush. Without a lock it lets the journal write now and then. The journal
    /// has all of them then.
    pub fn save_in_flight<J: TakesInFlight<S>>(&self, journal: &mut J) -> Result<(), J::Failure> {
        let Some(flush) = self.in_flight() else { return Ok(()) };
        let unsaved = flush.unsaved();
        if unsaved != Unsaved::None {
            self.save_flush(&flush, unsaved, journal)?;
            flush.set_unsaved(Unsaved::None);
        }
        Ok(())
    }

    /// See [`save_in_flight`](Self::save_in_flight).
    fn save_flush<J: TakesInFlight<S>>(
        &self,
        flush: &Arc<Flush<S>>,
        unsaved: Unsaved,
        journal: &mut J,
    ) -> Result<(), J::Failure> {
        let (Some(generation), Some(frozen)) = (flush.generation(), flush.entries()) else { return Ok(()) };
        for shard in 0..SHARDS {
            let store = frozen.store(shard);
            let mut next = store.deleted(0);
            while let Some(id) = next {
                journal.note(Note { fate: Fate::Done, generation, shard, first: id, length: 1 });
                next = store.deleted(id + 1);
            }
        }
        for (runs, is_given_up) in flush.unsettled_runs() {
            // Operations do not see what was given up, but it is there.
            let is_there = |position| is_given_up || !flush.is_gone(position);
            for (position, attempts) in runs.places().filter(|&(position, _attempts)| is_there(position)) {
                let Some(held) = frozen.hold(position) else { continue };
                if unsaved == Unsaved::Changed && !held.store().is_unsaved(held.id()) {
                    continue;
                }
                let Some(saved) = held.store().saved(held.id()) else { continue };
                let (shard, id) = (held.shard(), held.id());
                journal.take(SavedInFlight { generation, shard, id, attempts, is_given_up, saved });
                // The reclaimer, and writers that help it, may wait for the store.
                drop(held);
                journal.write()?;
            }
        }
        Ok(())
    }

    /// Takes entries of a shard that changed, from the id `from` on and at most `most`; `None` if none
    /// changed, if the waiting entries have another generation, or without a journal.
    pub fn save_waiting(&self, generation: u64, shard: usize, from: EntryId, most: usize) -> Option<Pinned<S>> {
        // The lock is too short for an allocation.
        let mut entries = Vec::with_capacity(most);
        let mut state = self.shards[shard].lock();
        state.waiting.generation().filter(|&waiting| waiting == generation)?;
        let end = state.waiting.end() as EntryId;
        let (next, pin) = state.waiting.save(from, most, |id, saved| entries.push((id, saved)));
        drop(state);
        (!entries.is_empty()).then_some(Pinned { entries, next, end, pin })
    }

    /// Lets an entry wait that a journal had. It has the hash of its key.
    pub fn restore(&self, hash: Hash, entry: &S::Saved) {
        self.shards[hash.shard_bits() & (SHARDS - 1)].lock().waiting.restore(hash, entry);
    }

    /// Takes in entries given up that a journal had. The partition has no flush.
    /// `restore_all` calls its argument with each one.
    pub fn restore_given_up(&self, restore_all: impl FnOnce(&mut dyn FnMut(Hash, &S::Saved))) {
        self.begin_given_up(|stores| {
            restore_all(&mut |hash, entry| stores[hash.shard_bits() & (SHARDS - 1)].restore(hash, entry));
        });
    }

    /// Whether the partition has a journal.
    pub fn is_journaled(&self) -> bool {
        self.generation().is_some()
    }

    /// The generation of the waiting entries; `None` without a journal.
    pub fn generation(&self) -> Option<u64> {
        self.shards[0].lock().waiting.generation()
    }
}
