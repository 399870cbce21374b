//! A pass over a partition: writes its changes to the log of a journal.

use super::record::{EntryPlace, Record, RunOf, SavedVersion};
use crate::flush::{Fate, Note};
use crate::ids::EntryId;
use crate::partition::{Partition, SavedInFlight, TakesInFlight};
use crate::store::saved::{Saved, SavedEntry};
use crate::store::Store;
use crate::term::{Heap, Version};

/// The number of entries that a pass takes under one lock.
const CHUNK: usize = 32;

/// A payload of this many bytes is written.
const PAYLOAD: usize = 128 * 1024;

/// Encodes terms.
pub trait Codec<H: Heap> {
    /// Appends the encoding of a term, which is the same for identical terms.
    fn encode(&mut self, term: H::Term, out: &mut Vec<u8>);
}

/// Takes the blocks of a pass.
pub trait Blocks {
    /// The reason why a block is not written.
    type Failure;

    /// Writes a block with the records of a partition, of entries up to this generation; 0 without
    /// entries. After a failure the block is kept, and written before all others.
    fn append(&mut self, partition: u32, generation: u64, payload: Vec<u8>) -> Result<(), Self::Failure>;

    /// The number of blocks before the next one.
    fn blocks(&self) -> u64;
}

/// The work of a pass.
pub struct Pass<'p, B: Blocks, C> {
    /// The blocks.
    blocks: &'p mut B,
    /// The codec.
    codec: &'p mut C,
    /// The number of the partition, and of all partitions.
    partition: (u32, u32),
    /// The unwritten notes of the partition.
    notes: &'p mut Vec<Note>,
    /// The next block.
    block: Vec<u8>,
    /// The highest generation of its entries.
    generation: u64,
    /// The number of records.
    records: usize,
    /// The encoding of the terms of an entry.
    terms: [Vec<u8>; 3],
}

impl Note {
    /// The record of a note.
    pub(super) fn record(&self) -> Record<'static> {
        let &Note { fate, generation, shard, first, length } = self;
        let run = RunOf { generation, shard: shard as u8, first, length };
        match fate {
            Fate::Attempts(attempts) => Record::Began { run, attempts },
            Fate::GivenUp => Record::GivenUp { run },
            Fate::Done => Record::Done { run },
            Fate::Moved => Record::Moved { run },
            Fate::Ended => Record::Ended { generation },
        }
    }
}

impl<'p, B: Blocks, C> Pass<'p, B, C> {
    /// A pass that begins.
    pub fn new(blocks: &'p mut B, codec: &'p mut C, partition: (u32, u32), notes: &'p mut Vec<Note>) -> Self {
        let terms = [const { Vec::new() }; 3];
        Pass { blocks, codec, partition, notes, block: Vec::new(), generation: 0, records: 0, terms }
    }

    /// Writes all changes. Returns the number of records.
    pub fn run<H, S, const SHARDS: usize>(mut self, partition: &Partition<S, SHARDS>) -> Result<usize, B::Failure>
    where
        H: Heap,
        S: Store<Saved = SavedEntry<H>>,
        C: Codec<H>,
    {
        self.notes.extend(partition.take_notes());
        // A flush that begins during the pass takes entries along that the pass did not come to, and may
        // give some back. So the pass looks again, at the flush first.
        loop {
            let generation = partition.generation();
            partition.save_in_flight(&mut self)?;
            for shard in 0..SHARDS {
                self.save_waiting(partition, generation, shard)?;
            }
            if partition.generation() == generation {
                break;
            }
        }
        for note in std::mem::take(self.notes) {
            self.record(&note.record());
        }
        self.write_if(1)?;
        Ok(self.records)
    }

    /// Adds the waiting entries of a shard that changed, as long as they have this generation: an item must
    /// not be in the log before an older one.
    fn save_waiting<H, S, const SHARDS: usize>(
        &mut self,
        partition: &Partition<S, SHARDS>,
        generation: Option<u64>,
        shard: usize,
    ) -> Result<(), B::Failure>
    where
        H: Heap,
        S: Store<Saved = SavedEntry<H>>,
        C: Codec<H>,
    {
        let Some(generation) = generation else { return Ok(()) };
        let (mut from, mut end) = (Some(0), None);
        while let Some(pinned) = from.and_then(|from| partition.save_waiting(generation, shard, from, CHUNK)) {
            for (id, entry) in &pinned.entries {
                self.add(EntryPlace { generation, shard: shard as u8, id: *id }, entry.as_ref());
            }
            // New entries of writers are left to the next pass.
            let end = *end.get_or_insert(pinned.end);
            from = pinned.next.filter(|&next| next < end);
            drop(pinned);
            self.write_if(PAYLOAD)?;
        }
        Ok(())
    }

    /// Adds an entry; `None` was deleted.
    fn add<H: Heap>(&mut self, place: EntryPlace, entry: Option<&SavedEntry<H>>)
    where
        C: Codec<H>,
    {
        let EntryPlace { generation, shard, id } = place;
        let Some(SavedEntry { attempts, saved }) = entry else {
            return self.record(&Record::Gone { run: RunOf { generation, shard, first: id, length: 1 } });
        };
        self.generation = self.generation.max(generation);
        let attempts = *attempts;
        let mut terms = std::mem::take(&mut self.terms);
        terms.iter_mut().for_each(Vec::clear);
        let mut encode = |at: usize, term: H::Term| self.codec.encode(term, &mut terms[at]);
        match saved {
            Saved::Value { key, value, version, updates } => {
                encode(0, key.term());
                encode(1, value.term());
                if let Version::Below(big) | Version::Above(big) = version {
                    encode(2, *big);
                }
                let version = match version {
                    Version::Below(_) => SavedVersion::Below(&terms[2]),
                    Version::Int(version) => SavedVersion::Int(*version),
                    Version::Above(_) => SavedVersion::Above(&terms[2]),
                };
                let (updates, key, value) = (*updates, &terms[0], &terms[1]);
                self.record(&Record::Value { place, attempts, updates, version, key, value });
            }
            &Saved::Sum { ref key, sum, count, absorbs } => {
                encode(0, key.term());
                self.record(&Record::Sum { place, attempts, absorbs, sum, count, key: &terms[0] });
            }
            Saved::Item { item, origin } => {
                encode(0, item.term());
                let origin = origin.map(|(generation, id): (u64, EntryId)| EntryPlace { generation, shard, id });
                self.record(&Record::Item { place, attempts, origin, item: &terms[0] });
            }
        }
        // A large term leaves no large buffer.
        terms.iter_mut().for_each(|term| term.shrink_to(PAYLOAD));
        self.terms = terms;
    }

    /// Adds a record.
    fn record(&mut self, record: &Record<'_>) {
        self.records += 1;
        if self.block.is_empty() {
            // A reader may have only later blocks.
            Record::Opened { partitions: self.partition.1 }.write(&mut self.block);
            Record::Follows { blocks: self.blocks.blocks() }.write(&mut self.block);
        }
        record.write(&mut self.block);
    }

    /// Writes the block if it has at least `least` bytes.
    fn write_if(&mut self, least: usize) -> Result<(), B::Failure> {
        if self.block.len() < least {
            return Ok(());
        }
        let (block, generation) = (std::mem::take(&mut self.block), std::mem::take(&mut self.generation));
        self.blocks.append(self.partition.0, generation, block)
    }
}

impl<H, S, B, C> TakesInFlight<S> for Pass<'_, B, C>
where
    H: Heap,
    S: Store<Saved = SavedEntry<H>>,
    B: Blocks,
    C: Codec<H>,
{
    type Failure = B::Failure;

    fn take(&mut self, entry: SavedInFlight<S>) {
        let SavedInFlight { generation, shard, id, attempts, is_given_up, saved } = entry;
        let shard = shard as u8;
        self.add(EntryPlace { generation, shard, id }, Some(&SavedEntry { attempts, ..saved }));
        if is_given_up {
            self.record(&Record::GivenUp { run: RunOf { generation, shard, first: id, length: 1 } });
        }
    }

    fn note(&mut self, note: Note) {
        self.notes.push(note);
    }

    fn write(&mut self) -> Result<(), B::Failure> {
        self.write_if(PAYLOAD)
    }
}
