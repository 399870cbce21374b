//! Replay: the entries that a log holds.
//!
//! A copy of all entries begins a new *epoch*. The blocks of the highest complete epoch count: a crash may
//! lose a part of the copy, and not the record behind it. While the first copy is unfinished, the blocks
//! of the lowest epoch count. The records take effect in the order
//! of the log, each on the entries of its block's partition:
//!
//! - The last record of an entry counts. A record that removes or changes entries is about those
//!   that are there.
//! - An item with an origin replaces the one there and all later ones of that origin, and a sum that
//!   absorbs replaces those of its key in all generations before, wherever in the log these are, and also
//!   if it is itself removed later: an entry that failed is in the newer one for good. Several flushes
//!   may begin in the time of a pass, so the generations between need not be in the log.
//! - An entry of a map whose outcome is there ended the older ones of its key.
//! - Of the entries of a key in a generation, the one with the last record remains: the others were
//!   deleted. Of the generations of a key, a map has the highest, and a counter the sum.
//! - Entries that were given up are beside the others, and no sum replaces them.
//!
//! A loss of power may lose a block and keep later ones. Of an entry that these do not have, only the
//! outcome counts then: what it is now, or where it waits again, may be lost.
//!
//! If blocks are lost, there may be older entries, or done ones, but none that was never written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;

use super::block::{self, Place, Stretch};
use super::record::{records, EntryPlace, Record, RunOf, SavedVersion};

/// The kind of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Values by their keys.
    Map,
    /// Sums by their keys.
    Counter,
    /// Items in their order.
    Queue,
}

/// An entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved<'s> {
    /// Its partition.
    pub partition: u32,
    /// Its place; of an added up sum, that of the newest entry.
    pub place: EntryPlace,
    /// The calls of the processor that began with it; of an added up sum, the most of an entry.
    pub attempts: u32,
    /// What it holds.
    pub content: Content<'s>,
}

/// What an entry holds, in the external term format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'s> {
    /// An entry of a map.
    Value {
        /// The number of writes that it has replaced.
        updates: u64,
        /// Its version.
        version: SavedVersion<'s>,
        /// Its key.
        key: &'s [u8],
        /// Its value.
        value: &'s [u8],
    },
    /// An entry of a counter.
    Sum {
        /// Its sum.
        sum: i128,
        /// The number of its additions.
        count: u128,
        /// Its key.
        key: &'s [u8],
    },
    /// An entry of a queue.
    Item {
        /// The item.
        item: &'s [u8],
    },
}

/// Damaged bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    /// The number of the segment.
    pub segment: u64,
    /// The offset of the first byte.
    pub offset: u64,
    /// The number of bytes.
    pub bytes: u64,
}

/// What a log holds. Each byte of the log is counted in one of `bytes`, `torn_bytes` and `damaged`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed<'s> {
    /// The number of partitions in the epoch, if it is known.
    pub partitions: Option<u32>,
    /// The highest epoch, also if it does not count; 0 without any block.
    pub epoch: u32,
    /// The entries that wait, or were with the processor, by partition and place.
    pub entries: Vec<Saved<'s>>,
    /// The entries that only wait for their dead letters, by partition and place.
    pub given_up: Vec<Saved<'s>>,
    /// The number of records.
    pub records: usize,
    /// The bytes of all blocks, whether they count or not.
    pub bytes: u64,
    /// The bytes behind the last block of an epoch: those of an interrupted write.
    pub torn_bytes: u64,
    /// All other bytes outside of blocks, by segment and offset.
    pub damaged: Vec<Damage>,
    /// The number of records that could not be read, or were those of another kind of buffer.
    pub damaged_records: usize,
    /// The highest format of a block, if it is above that of this library. The rest of the log is
    /// not to be used then.
    pub newer_format: Option<u8>,
}

/// Reads a log: the numbers of its segments, ascending, with the bytes of their files.
pub fn replay(segments: &[(u64, Vec<u8>)], kind: Kind) -> Replayed<'_> {
    let (blocks, mut replayed) = read(segments);
    let epochs: HashSet<u32> = blocks.iter().map(|(place, _payload)| place.epoch).collect();
    let counts = epochs.iter().copied().filter(|epoch| epochs.len() > 1 && is_complete(&blocks, *epoch)).max();
    let counts = counts.or(epochs.into_iter().min());
    let mut fold = Fold::new(kind);
    for (place, payload) in blocks.iter().filter(|(place, _payload)| Some(place.epoch) == counts) {
        for record in records(payload) {
            match record {
                Ok(Record::Opened { partitions }) => replayed.partitions = Some(partitions),
                Ok(record) if fold.apply(place.partition, record) => {}
                _ => {
                    replayed.damaged_records += 1;
                    continue;
                }
            }
            replayed.records += 1;
        }
    }
    (replayed.entries, replayed.given_up) = fold.finish();
    replayed
}

/// The blocks of a log in their order, and the counts of its bytes.
fn read(segments: &[(u64, Vec<u8>)]) -> (Vec<(Place, &[u8])>, Replayed<'_>) {
    let (mut blocks, mut replayed, mut tails) = (Vec::new(), Replayed::default(), Vec::new());
    // The last segment of each epoch.
    let mut last = BTreeMap::new();
    let mut epoch_before = None;
    for (segment, bytes) in segments {
        let (segment, mut epoch) = (*segment, None);
        // The file of a segment that was just begun is a tail as well, whatever epoch that was to be.
        let is_unfinished = block::is_unfinished(segment, bytes);
        for stretch in block::read(segment, bytes) {
            match stretch {
                Stretch::Block { place, payload } => {
                    (epoch, epoch_before) = (Some(place.epoch), Some(place.epoch));
                    last.insert(place.epoch, segment);
                    replayed.epoch = replayed.epoch.max(place.epoch);
                    replayed.bytes += (block::HEAD + payload.len()) as u64;
                    blocks.push((place, payload));
                }
                Stretch::Newer { version, bytes } => {
                    replayed.newer_format = replayed.newer_format.max(Some(version));
                    replayed.bytes += bytes;
                }
                Stretch::Damaged { offset, bytes: length } => {
                    let damage = Damage { segment, offset, bytes: length };
                    if offset + length == bytes.len() as u64 && (epoch.is_some() || is_unfinished) {
                        tails.push((epoch.or(epoch_before), damage));
                    } else {
                        replayed.damaged.push(damage);
                    }
                }
            }
        }
    }
    for (epoch, tail) in tails {
        if epoch.map_or(last.is_empty(), |epoch| last[&epoch] <= tail.segment) {
            replayed.torn_bytes += tail.bytes;
        } else {
            replayed.damaged.push(tail);
        }
    }
    replayed.damaged.sort_unstable();
    (blocks, replayed)
}

/// Whether an epoch is complete: it has the record for that, and all blocks that the record counts.
fn is_complete(blocks: &[(Place, &[u8])], epoch: u32) -> bool {
    let own = || blocks.iter().filter(|(place, _payload)| place.epoch == epoch);
    own().enumerate().any(|(before, (_place, payload))| {
        records(payload).any(|record| {
            let Ok(Record::Complete { first, bytes }) = record else { return false };
            let copied = own().take(before).filter(|(place, _payload)| place.segment >= first);
            copied.map(|(_place, payload)| (block::HEAD + payload.len()) as u64).sum::<u64>() == bytes
        })
    })
}

/// The partition of an entry, and its place there.
type Id = (u32, EntryPlace);

/// The entry of a key of a partition.
type KeyId<'s> = (u32, Option<&'s [u8]>);

/// A present entry, without an outcome.
#[derive(Clone, Copy)]
struct Held<'s> {
    /// The number of its last record.
    record: usize,
    /// Its attempts.
    attempts: u32,
    /// Whether the processor does not get it again.
    is_given_up: bool,
    /// Where it was first, if it waits again.
    origin: Option<EntryPlace>,
    /// What it holds.
    content: Content<'s>,
}

/// Why an entry is not where it was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// It was deleted.
    Deleted,
    /// It has its outcome.
    Done,
    /// It waits again, or a newer one replaced it.
    Moved,
}

/// The state behind a part of the log.
struct Fold<'s> {
    /// The kind of the buffer.
    kind: Kind,
    /// The number of records about one entry.
    records: usize,
    /// The number of blocks up to this one, as far as it is known.
    blocks: Option<u64>,
    /// The number of records about one entry before the last block that is lost.
    before_gap: usize,
    /// The entries.
    held: BTreeMap<Id, Held<'s>>,
    /// The last generation of the items that wait again, by their first places.
    replaced: HashMap<Id, u64>,
    /// The generations of the entries of a map that left while there were older ones.
    outlived: HashMap<(u32, &'s [u8]), u64, ahash::RandomState>,
    /// The last generation whose sum a later one contains, by its key.
    absorbed: HashMap<KeyId<'s>, u64, ahash::RandomState>,
}

impl<'s> Fold<'s> {
    /// Nothing is held.
    fn new(kind: Kind) -> Self {
        Fold {
            kind,
            records: 0,
            blocks: None,
            before_gap: 0,
            held: BTreeMap::new(),
            replaced: HashMap::new(),
            outlived: HashMap::default(),
            absorbed: HashMap::default(),
        }
    }

    /// Applies a record; `false` for one of another kind of buffer.
    fn apply(&mut self, partition: u32, record: Record<'s>) -> bool {
        match (record, self.kind) {
            (Record::Value { place, attempts, updates, version, key, value }, Kind::Map) => {
                self.hold((partition, place), attempts, None, Content::Value { updates, version, key, value });
            }
            (Record::Sum { place, attempts, absorbs, sum, count, key }, Kind::Counter) => {
                if let Some(before) = place.generation.checked_sub(1).filter(|_before| absorbs) {
                    let last = self.absorbed.entry((partition, Some(key))).or_default();
                    *last = before.max(*last);
                }
                self.hold((partition, place), attempts, None, Content::Sum { sum, count, key });
            }
            (Record::Item { place, attempts, origin, item }, Kind::Queue) => {
                let origin = origin.filter(|origin| origin.generation < place.generation);
                if let Some(origin) = origin {
                    let last = self.replaced.entry((partition, origin)).or_default();
                    *last = place.generation.max(*last);
                }
                self.hold((partition, place), attempts, origin, Content::Item { item });
            }
            (Record::Value { .. } | Record::Sum { .. } | Record::Item { .. }, _) => return false,
            (Record::Gone { run }, _) => self.remove(partition, places(run), Reason::Deleted),
            (Record::Done { run }, _) => self.remove(partition, places(run), Reason::Done),
            (Record::Moved { run }, _) => self.remove(partition, places(run), Reason::Moved),
            (Record::Began { run, attempts }, _) => self.change(partition, run, |held| held.attempts = attempts),
            (Record::GivenUp { run }, _) => self.change(partition, run, |held| held.is_given_up = true),
            (Record::Ended { generation }, _) => {
                let first = EntryPlace { generation: 0, shard: 0, id: 0 };
                let last = EntryPlace { generation, shard: u8::MAX, id: u32::MAX };
                self.remove(partition, Some(first..=last), Reason::Moved);
            }
            (Record::Follows { blocks }, _) => {
                if self.blocks.is_some_and(|last| blocks > last) {
                    self.before_gap = self.records;
                }
                self.blocks = blocks.checked_add(1);
            }
            (Record::Opened { .. } | Record::Complete { .. }, _) => {}
        }
        true
    }

    /// Takes the last record of an entry.
    fn hold(&mut self, id: Id, attempts: u32, origin: Option<EntryPlace>, content: Content<'s>) {
        self.records += 1;
        self.held.insert(id, Held { record: self.records, attempts, is_given_up: false, origin, content });
    }

    /// Removes the entries of a partition in these places.
    fn remove(&mut self, partition: u32, places: Option<RangeInclusive<EntryPlace>>, reason: Reason) {
        let Some(places) = places else { return };
        let ids = (partition, *places.start())..=(partition, *places.end());
        let counts = |held: &Held| reason != Reason::Moved || held.record > self.before_gap;
        let ids: Vec<Id> = self.held.range(ids).filter(|(_id, held)| counts(held)).map(|(id, _held)| *id).collect();
        for id in ids {
            let Some(Held { content: Content::Value { key, .. }, is_given_up: false, .. }) = self.held.remove(&id)
            else {
                continue;
            };
            if reason == Reason::Deleted && self.before_gap == 0 {
                // The records say of the older ones that they were deleted as well.
                continue;
            }
            let generation = id.1.generation;
            // Most often all older ones are gone.
            let oldest = self.held.range((partition, EntryPlace { generation: 0, shard: 0, id: 0 })..).next();
            if oldest.is_some_and(|((of, place), _held)| *of == partition && place.generation < generation) {
                let newest = self.outlived.entry((partition, key)).or_default();
                *newest = generation.max(*newest);
            }
        }
    }

    /// Changes the entries of a run.
    fn change(&mut self, partition: u32, run: RunOf, change: impl Fn(&mut Held<'s>)) {
        let Some(places) = places(run) else { return };
        for (_id, held) in self.held.range_mut((partition, *places.start())..=(partition, *places.end())) {
            if held.record > self.before_gap {
                change(held);
            }
        }
    }

    /// The entries, and those given up.
    fn finish(self) -> (Vec<Saved<'s>>, Vec<Saved<'s>>) {
        let Fold { kind, held, replaced, outlived, absorbed, .. } = self;
        let (mut waiting, mut records, mut given_up) = (Vec::with_capacity(held.len()), Vec::new(), Vec::new());
        for ((partition, place), Held { record, attempts, is_given_up, origin, content }) in held {
            let saved = Saved { partition, place, attempts, content };
            let last = replaced.get(&(partition, origin.unwrap_or(place)));
            if last.is_some_and(|&last| last > place.generation) {
                continue;
            }
            let newer = || Some(*outlived.get(&(partition, saved.key()?))?);
            if is_given_up {
                given_up.push(saved);
            } else if newer().is_some_and(|newer| newer > place.generation) {
                continue;
            } else if absorbed.get(&(partition, saved.key())).is_none_or(|&last| last < place.generation) {
                waiting.push(saved);
                records.push(record);
            }
        }
        if kind != Kind::Queue {
            join(&mut waiting, &records, kind);
        }
        (waiting, given_up)
    }
}

impl<'s> Saved<'s> {
    /// The key, if the kind has one.
    fn key(&self) -> Option<&'s [u8]> {
        match self.content {
            Content::Value { key, .. } | Content::Sum { key, .. } => Some(key),
            Content::Item { .. } => None,
        }
    }
}

/// The places of a run; `None` if it is empty.
fn places(run: RunOf) -> Option<RangeInclusive<EntryPlace>> {
    let RunOf { generation, shard, first, length } = run;
    let last = first.saturating_add(length.checked_sub(1)?);
    Some(EntryPlace { generation, shard, id: first }..=EntryPlace { generation, shard, id: last })
}

/// Leaves one entry of each key: the newest one, with the others added up in a counter. The entries are
/// in ascending order, and have the numbers of their records beside them.
fn join(entries: &mut Vec<Saved>, records: &[usize], kind: Kind) {
    // By a hash of the keys, so that only equal keys are compared: sorting takes less time and memory
    // than a table of the keys.
    let hasher = ahash::RandomState::new();
    let key = |index: usize| (entries[index].partition, entries[index].key());
    let mut order: Vec<(u64, usize)> = (0..entries.len()).map(|index| (hasher.hash_one(key(index)), index)).collect();
    order.sort_unstable_by(|(hash, index), (other, next)| {
        hash.cmp(other).then_with(|| key(*index).cmp(&key(*next))).then(index.cmp(next))
    });
    // The entries to leave out, with that of the next generation.
    let mut older = Vec::new();
    for same_key in order.chunk_by(|(hash, index), (other, next)| hash == other && key(*index) == key(*next)) {
        let generation = |(_hash, index): &(u64, usize)| entries[*index].place.generation;
        let mut newest = None;
        for same_generation in same_key.chunk_by(|entry, next| generation(entry) == generation(next)) {
            let indices = || same_generation.iter().map(|(_hash, index)| *index);
            let last = indices().max_by_key(|index| records[*index]);
            older.extend(indices().filter(|index| Some(*index) != last).map(|index| (index, None)));
            older.extend(newest.map(|newest| (newest, last)));
            newest = last;
        }
    }
    let mut keeps = vec![true; entries.len()];
    for (index, newer) in older {
        keeps[index] = false;
        if let (Kind::Counter, Some(newer)) = (kind, newer) {
            entries[newer] = add(entries[index], entries[newer]);
        }
    }
    let mut keeps = keeps.into_iter();
    entries.retain(|_saved| keeps.next() == Some(true));
}

/// A sum with that of an older generation.
fn add<'s>(older: Saved<'s>, mut newer: Saved<'s>) -> Saved<'s> {
    if let (Content::Sum { sum, count, .. }, Content::Sum { sum: others, count: more, .. }) =
        (&mut newer.content, older.content)
    {
        (*sum, *count) = (sum.saturating_add(others), count.saturating_add(more));
    }
    Saved { attempts: newer.attempts.max(older.attempts), ..newer }
}
