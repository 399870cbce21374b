//! Logs of a journal, in memory.

use std::collections::{HashMap, HashSet};

use partitioned_buffer_engine::journal::block::{self, Place, HEAD};
use partitioned_buffer_engine::journal::record::{EntryPlace, Record, RunOf, SavedVersion};
use partitioned_buffer_engine::journal::replay::{replay, Content, Kind, Replayed, Saved};

use super::Random;

/// The tag of a log that is older than another one.
pub const OLD: &str = "old";

pub const KINDS: [Kind; 3] = [Kind::Map, Kind::Counter, Kind::Queue];

/// The segments of a directory.
#[derive(Clone, Default)]
pub struct Log {
    pub epoch: u32,
    pub segments: Vec<(u64, Vec<u8>)>,
    /// The bytes of each block: the index of its segment, its offset and its length.
    pub blocks: Vec<(usize, usize, usize)>,
}

impl Log {
    pub fn start(epoch: u32) -> Self {
        Log { epoch, segments: vec![(1, Vec::new())], blocks: Vec::new() }
    }

    pub fn next_segment(&mut self) {
        let number = self.segments.last().map_or(1, |(number, _bytes)| number + 1);
        self.segments.push((number, Vec::new()));
    }

    pub fn write(&mut self, partition: u32, records: &[Record]) {
        let mut payload = Vec::new();
        records.iter().for_each(|record| record.write(&mut payload));
        self.write_payload(partition, &payload);
    }

    pub fn write_payload(&mut self, partition: u32, payload: &[u8]) {
        let index = self.segments.len() - 1;
        let (segment, bytes) = &mut self.segments[index];
        let place = Place { partition, epoch: self.epoch, segment: *segment, offset: bytes.len() as u64 };
        self.blocks.push((index, bytes.len(), HEAD + payload.len()));
        bytes.extend_from_slice(&block::head(place, payload));
        bytes.extend_from_slice(payload);
    }

    /// The record of a complete epoch, with its blocks from a segment on.
    pub fn complete(&self, first: u64) -> Record<'static> {
        let blocks = self.segments.iter().filter(|(segment, _bytes)| *segment >= first);
        let own =
            blocks.flat_map(|(segment, bytes)| block::read(*segment, bytes)).filter_map(|stretch| match stretch {
                block::Stretch::Block { place, payload } if place.epoch == self.epoch => Some(HEAD + payload.len()),
                _ => None,
            });
        Record::Complete { first, bytes: own.sum::<usize>() as u64 }
    }

    pub fn replay(&self, kind: Kind) -> Replayed<'_> {
        let replayed = replay(&self.segments, kind);
        assert_all_bytes_are_counted(&self.segments, &replayed);
        replayed
    }
}

pub fn assert_all_bytes_are_counted(segments: &[(u64, Vec<u8>)], replayed: &Replayed) {
    let damaged: u64 = replayed.damaged.iter().map(|damage| damage.bytes).sum();
    let all: u64 = segments.iter().map(|(_number, bytes)| bytes.len() as u64).sum();
    assert_eq!(replayed.bytes + replayed.torn_bytes + damaged, all, "each byte is counted once");
}

/// A number of any size: small ones, and those at the ends of the range, are likely.
pub fn number(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.below(4),
        1 => random.below(300),
        2 => u64::MAX - random.below(3),
        _ => random.below(u64::MAX) >> random.below(64),
    }
}

pub fn place(random: &mut Random) -> EntryPlace {
    EntryPlace { generation: number(random), shard: number(random) as u8, id: number(random) as u32 }
}

pub fn run(random: &mut Random) -> RunOf {
    let EntryPlace { generation, shard, id } = place(random);
    RunOf { generation, shard, first: id, length: number(random) as u32 }
}

/// Any record, with bytes of the pool.
pub fn record<'b>(random: &mut Random, pool: &'b [Vec<u8>]) -> Record<'b> {
    let bytes = |random: &mut Random| &*pool[random.below(pool.len() as u64) as usize];
    let attempts = number(random) as u32;
    match random.below(12) {
        0 => Record::Opened { partitions: number(random) as u32 },
        1 => Record::Complete { first: number(random), bytes: number(random) },
        2 => Record::Value {
            place: place(random),
            attempts,
            updates: number(random),
            version: match random.below(3) {
                0 => SavedVersion::Int(number(random) as i64),
                1 => SavedVersion::Below(bytes(random)),
                _ => SavedVersion::Above(bytes(random)),
            },
            key: bytes(random),
            value: bytes(random),
        },
        3 => Record::Sum {
            place: place(random),
            attempts,
            absorbs: random.below(2) == 0,
            sum: (i128::from(number(random)) << random.below(64)).wrapping_mul(1 - 2 * random.below(2) as i128),
            count: u128::from(number(random)) << random.below(65),
            key: bytes(random),
        },
        4 => Record::Item {
            place: place(random),
            attempts,
            origin: (random.below(2) == 0).then(|| place(random)),
            item: bytes(random),
        },
        5 => Record::Gone { run: run(random) },
        6 => Record::Began { run: run(random), attempts },
        7 => Record::GivenUp { run: run(random) },
        8 => Record::Done { run: run(random) },
        9 => Record::Moved { run: run(random) },
        10 => Record::Follows { blocks: number(random) },
        _ => Record::Ended { generation: number(random) },
    }
}

/// A log of some segments, whose values begin with the tag. Each addition to a key has its own bit,
/// also beside those of an older log, whose tag is [`OLD`].
pub fn sample(kind: Kind, tag: &str, blocks: u64, random: &mut Random) -> Log {
    let mut log = Log::start(3);
    let (mut written, mut additions) = (0_u32, HashMap::new());
    for number in 0..blocks {
        if number > 0 && number % 9 == 0 {
            log.next_segment();
        }
        let partition = random.below(2) as u32;
        let texts: Vec<(String, String)> = (0..1 + random.below(7))
            .map(|_| (format!("k{}", random.below(40)), format!("{tag}{}", random.below(1 << 40))))
            .collect();
        let mut records = vec![Record::Opened { partitions: 2 }];
        for (key, text) in &texts {
            written += 1;
            let place = EntryPlace { generation: number / 12, shard: written as u8 % 4, id: written / 4 % 30 };
            let (attempts, key) = (random.below(3) as u32, key.as_bytes());
            records.push(match kind {
                Kind::Map => {
                    let version = SavedVersion::Int(written.into());
                    Record::Value { place, attempts, updates: 0, version, key, value: text.as_bytes() }
                }
                Kind::Counter => {
                    let bit = additions.entry((partition, key.to_vec())).or_insert(if tag == OLD { 60 } else { 0 });
                    *bit += 1;
                    Record::Sum { place, attempts, absorbs: false, sum: 1 << *bit, count: 1, key }
                }
                Kind::Queue => Record::Item { place, attempts, origin: None, item: text.as_bytes() },
            });
            let run = RunOf { generation: place.generation, shard: place.shard, first: place.id, length: 1 };
            match random.below(12) {
                0 => records.push(Record::Gone { run }),
                1 => records.push(Record::Began { run, attempts: 7 }),
                2 => records.push(Record::GivenUp { run }),
                _ => {}
            }
        }
        log.write(partition, &records);
    }
    log
}

/// What was written about an entry, without the attempts, which are written apart.
pub type Seen = (u32, Option<EntryPlace>, Vec<u8>, Vec<u8>);

pub fn seen(saved: &Saved) -> Vec<Seen> {
    let Saved { partition, place, content, .. } = saved;
    match content {
        Content::Value { key, value, .. } => vec![(*partition, Some(*place), key.to_vec(), value.to_vec())],
        Content::Item { item } => vec![(*partition, Some(*place), Vec::new(), item.to_vec())],
        Content::Sum { sum, key, .. } => (0..127)
            .filter(|bit| sum >> bit & 1 == 1)
            .map(|bit: u8| (*partition, None, key.to_vec(), vec![bit]))
            .collect(),
    }
}

/// All that the records of a log say about entries.
pub fn all_seen(log: &Log) -> HashSet<Seen> {
    let mut all = HashSet::new();
    for (segment, bytes) in &log.segments {
        for stretch in block::read(*segment, bytes) {
            let block::Stretch::Block { place: Place { partition, .. }, payload } = stretch else { panic!() };
            for record in partitioned_buffer_engine::journal::record::records(payload) {
                let (place, attempts, content) = match record.unwrap() {
                    Record::Value { place, attempts, updates, version, key, value } => {
                        (place, attempts, Content::Value { updates, version, key, value })
                    }
                    Record::Sum { place, attempts, sum, count, key, .. } => {
                        (place, attempts, Content::Sum { sum, count, key })
                    }
                    Record::Item { place, attempts, item, .. } => (place, attempts, Content::Item { item }),
                    _ => continue,
                };
                all.extend(seen(&Saved { partition, place, attempts, content }));
            }
        }
    }
    all
}

/// Replays any bytes as a log. Afterwards they are changes to a log, which is replayed as well.
pub fn replay_bytes(bytes: &[u8]) {
    for kind in KINDS {
        assert_all(&[(1, bytes.to_vec())], kind);
        // As the payload of a block, so that the records are reached.
        let mut log = Log::start(0);
        let mut parts = bytes.split(|byte| *byte == b'|');
        log.write_payload(0, parts.next().unwrap_or_default());
        log.next_segment();
        parts.for_each(|part| log.write_payload(part.len() as u32 % 2, part));
        assert_all(&log.segments, kind);

        let mut log = sample(kind, "v", 24, &mut Random(7));
        let written = all_seen(&log);
        for change in bytes.chunks_exact(4) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
            let count = log.segments.len();
            let bytes = &mut log.segments[usize::from(change[2]) % count].1;
            match change[2] >> 6 {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes.resize(at + usize::from(change[3]), change[3]),
                2 if at < bytes.len() => drop(bytes.drain(..at)),
                _ => bytes.get_mut(at).into_iter().for_each(|byte| *byte = change[3]),
            }
        }
        let replayed = log.replay(kind);
        for saved in replayed.entries.iter().chain(&replayed.given_up) {
            assert!(seen(saved).iter().all(|seen| written.contains(seen)), "{saved:?} was written");
        }
    }
}

fn assert_all(segments: &[(u64, Vec<u8>)], kind: Kind) {
    let replayed = replay(segments, kind);
    assert_all_bytes_are_counted(segments, &replayed);
    for entries in [&replayed.entries, &replayed.given_up] {
        assert!(entries.is_sorted_by_key(|saved| (saved.partition, saved.place)), "in ascending order");
    }
}
