//! Notes for the journal: the fates of entries in flight.

use std::sync::Arc;

use super::flush::Flush;
use crate::ids::EntryId;
use crate::runs::Runs;
use crate::store::Store;
use crate::sync::{AtomicUsize, Mutex, Ordering};

/// The fate of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They have this many attempts; one more than before, when a call of the processor begins.
    Attempts(u32),
    /// They are given up, and their dead letters are not written.
    GivenUp,
    /// The processor succeeded with them, or they were deleted.
    Done,
    /// They wait again, or newer ones replaced them.
    Moved,
    /// All entries up to this generation are gone.
    Ended,
}

/// A note about consecutive entries of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Their fate.
    pub fate: Fate,
    /// Their generation.
    pub generation: u64,
    /// Their shard.
    pub shard: usize,
    /// The first id.
    pub first: EntryId,
    /// The number of entries.
    pub length: u32,
}

/// The notes of a partition that the journal did not take yet, in their order.
#[derive(Default)]
pub(crate) struct Notes(Mutex<Vec<Note>>);

impl Notes {
    /// Takes all notes.
    pub(crate) fn take(&self) -> Vec<Note> {
        std::mem::take(&mut self.0.lock())
    }

    /// Notes that all entries up to a generation are gone.
    pub(crate) fn end(&self, generation: u64) {
        self.0.lock().push(Note { fate: Fate::Ended, generation, shard: 0, first: 0, length: 0 });
    }

    /// The number of notes.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// The part of a flush that only a buffer with a journal has.
pub(crate) struct Journaled {
    /// The generation of its stores.
    generation: u64,
    /// The position behind the last entry of each store.
    ends: Vec<usize>,
    /// The notes of the partition.
    notes: Arc<Notes>,
    /// Which entries the journal does not have, as an [`Unsaved`].
    unsaved: AtomicUsize,
}

/// The entries of a flush that the journal does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsaved {
    /// None.
    None = 0,
    /// Those that changed since a pass took entries of their store.
    Changed = 1,
    /// All: they move to another segment.
    All = 2,
}

impl Journaled {
    /// Of a flush that begins.
    pub(crate) fn new(generation: u64, ends: Vec<usize>, notes: Arc<Notes>) -> Self {
        Journaled { generation, ends, notes, unsaved: AtomicUsize::new(Unsaved::Changed as usize) }
    }
}

impl<S: Store> Flush<S> {
    /// The generation of the entries; `None` without a journal.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.journaled.as_ref().map(|journaled| journaled.generation)
    }

    /// Which entries the journal does not have.
    pub(crate) fn unsaved(&self) -> Unsaved {
        let unsaved = self.journaled.as_ref().map_or(0, |journaled| journaled.unsaved.load(Ordering::Acquire));
        [Unsaved::None, Unsaved::Changed, Unsaved::All][unsaved.min(2)]
    }

    /// Notes which entries the journal does not have.
    pub(crate) fn set_unsaved(&self, unsaved: Unsaved) {
        if let Some(journaled) = &self.journaled {
            journaled.unsaved.store(unsaved as usize, Ordering::Release);
        }
    }

    /// Notes the fate of entries for the journal. `fate` gets their attempts.
    #[inline]
    pub(super) fn note(&self, runs: &Runs, fate: impl Fn(u32) -> Fate) {
        if let Some(journaled) = &self.journaled {
            journaled.note(runs, fate);
        }
    }

    /// Notes for the journal that all entries have their outcome. It may have some that were deleted
    /// before the flush, and that nobody noted.
    pub(super) fn note_end(&self) {
        if let Some(Journaled { generation, notes, .. }) = &self.journaled {
            notes.end(*generation);
        }
    }

    /// Notes the fate of an entry for the journal.
    #[inline]
    pub(crate) fn note_one(&self, position: usize, fate: Fate) {
        if let Some(journaled) = &self.journaled {
            let mut runs = Runs::NONE;
            runs.push(position, 0);
            journaled.note(&runs, |_attempts| fate);
        }
    }
}

impl Journaled {
    /// See [`Flush::note`].
    fn note(&self, runs: &Runs, fate: impl Fn(u32) -> Fate) {
        let mut notes = self.notes.0.lock();
        for run in runs.iter() {
            let (fate, mut first) = (fate(run.attempts), run.first);
            let mut start = 0;
            for (shard, &end) in self.ends.iter().enumerate() {
                let last = run.end().min(end);
                if first < last {
                    let (id, length) = ((first - start) as EntryId, (last - first) as u32);
                    notes.push(Note { fate, generation: self.generation, shard, first: id, length });
                    first = last;
                }
                start = end;
            }
        }
    }
}
