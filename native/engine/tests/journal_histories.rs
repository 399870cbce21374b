//! Random histories of a partition, written to a log now and then: after each time the log holds what
//! the partition holds.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use common::journal::{Log, KINDS};
use common::Random;
use partitioned_buffer_engine::journal::record::{EntryPlace, Record, RunOf, SavedVersion};
use partitioned_buffer_engine::journal::replay::{Content, Kind, Saved};

const PARTITION: u32 = 5;
const SHARDS: u64 = 2;
const KEYS: u64 = 6;

/// A key, or nothing in a queue, and a value, a sum or an item.
#[derive(Clone, Debug)]
struct Entry {
    key: u64,
    number: i64,
    additions: u64,
    attempts: u32,
    absorbs: bool,
    origin: Option<EntryPlace>,
    is_given_up: bool,
}

/// The entries of a generation.
#[derive(Default)]
struct Store {
    generation: u64,
    entries: BTreeMap<(u8, u32), Entry>,
    /// What changed since the last pass. It may be deleted.
    changed: BTreeSet<(u8, u32)>,
    /// The ids that a queue has used.
    used: u32,
}

impl Store {
    fn place(&self, (shard, id): (u8, u32)) -> EntryPlace {
        EntryPlace { generation: self.generation, shard, id }
    }

    fn find(&self, key: u64) -> Option<(u8, u32)> {
        self.entries.iter().find(|(_at, entry)| entry.key == key).map(|(at, _entry)| *at)
    }

    fn set(&mut self, at: (u8, u32), entry: Entry) {
        self.changed.insert(at);
        self.entries.insert(at, entry);
    }

    /// The place of a new entry: a place of a deleted one, if there is one.
    fn free(&mut self, kind: Kind, key: u64) -> (u8, u32) {
        if kind == Kind::Queue {
            self.used += 1;
            return (0, self.used);
        }
        let shard = (key % SHARDS) as u8;
        (shard, (0..).find(|id| !self.entries.contains_key(&(shard, *id))).unwrap())
    }
}

/// What happened to entries in flight.
enum Event {
    Gone,
    Began(u32),
    GivenUp,
    Done,
    /// The entry of this key waits again.
    Again(u64),
    Ended,
}

struct History {
    kind: Kind,
    random: Random,
    log: Log,
    waiting: Store,
    in_flight: Option<Store>,
    /// The entries that the processor has.
    batch: Vec<(u8, u32)>,
    /// The events since the last pass, with the generation.
    events: Vec<(u64, (u8, u32), Event)>,
    next_number: i64,
}

impl History {
    fn start(kind: Kind, seed: u64) -> Self {
        let mut log = Log::start(1);
        // Another partition has the same places.
        log.write_payload(PARTITION + 1, &neighbour(kind));
        History {
            kind,
            random: Random(seed),
            log,
            waiting: Store::default(),
            in_flight: None,
            batch: Vec::new(),
            events: Vec::new(),
            next_number: 1,
        }
    }

    fn chance(&mut self, one_of: u64) -> bool {
        self.random.below(one_of) == 0
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..=3 => self.put(),
            4 => self.delete(),
            5 => self.flush(),
            6..=7 => self.begin(),
            8..=9 => self.outcome(),
            _ => {
                self.pass();
                self.check();
                if self.chance(12) {
                    self.copy();
                }
            }
        }
    }

    fn put(&mut self) {
        let key = if self.kind == Kind::Queue { 0 } else { self.random.below(KEYS) };
        let number = self.next_number;
        self.next_number += 1;
        let new = Entry { key, number, additions: 1, attempts: 0, absorbs: false, origin: None, is_given_up: false };
        match (self.kind, self.waiting.find(key)) {
            (Kind::Map, Some(at)) => self.waiting.set(at, new),
            (Kind::Counter, Some(at)) => {
                let mut sum = self.waiting.entries[&at].clone();
                (sum.number, sum.additions) = (sum.number + number, sum.additions + 1);
                self.waiting.set(at, sum);
            }
            _ => {
                let at = self.waiting.free(self.kind, key);
                self.waiting.set(at, new);
            }
        }
    }

    fn delete(&mut self) {
        let key = self.random.below(KEYS);
        if self.kind == Kind::Queue {
            return;
        }
        if let Some(at) = self.waiting.find(key) {
            self.waiting.entries.remove(&at);
            self.waiting.changed.insert(at);
        }
        // What the processor has, and what it does not get again, cannot be deleted.
        let Some(store) = &mut self.in_flight else { return };
        let Some(at) = store.find(key) else { return };
        if !self.batch.contains(&at) && !store.entries[&at].is_given_up {
            store.entries.remove(&at);
            self.events.push((store.generation, at, Event::Gone));
            self.end_flush();
        }
    }

    fn flush(&mut self) {
        if self.in_flight.is_none() && !self.waiting.entries.is_empty() {
            let next = Store { generation: self.waiting.generation + 1, ..Store::default() };
            self.in_flight = Some(mem::replace(&mut self.waiting, next));
        }
    }

    /// A call of the processor begins with some entries.
    fn begin(&mut self) {
        if self.in_flight.is_none() || !self.batch.is_empty() {
            return;
        }
        // Nothing reaches the sink that the journal does not have.
        self.pass();
        let (first, length) = (self.random.below(4) as usize, 1 + self.random.below(4) as usize);
        let store = self.in_flight.as_mut().unwrap();
        let pending = store.entries.iter_mut().filter(|(_at, entry)| !entry.is_given_up);
        for (at, entry) in pending.skip(first).take(length) {
            entry.attempts += 1;
            self.batch.push(*at);
            self.events.push((store.generation, *at, Event::Began(entry.attempts)));
        }
    }

    /// The call returns, or dead letters are written.
    fn outcome(&mut self) {
        let Some(mut store) = self.in_flight.take() else { return };
        let generation = store.generation;
        for at in mem::take(&mut self.batch) {
            match self.random.below(5) {
                0 => {}
                1 => {
                    store.entries.get_mut(&at).unwrap().is_given_up = true;
                    self.events.push((generation, at, Event::GivenUp));
                }
                2..=3 => {
                    store.entries.remove(&at);
                    self.events.push((generation, at, Event::Done));
                }
                _ => {
                    let entry = store.entries.remove(&at).unwrap();
                    self.events.push((generation, at, Event::Again(entry.key)));
                    self.wait_again(store.place(at), entry);
                }
            }
        }
        let given_up: Vec<_> =
            store.entries.iter().filter(|(_at, entry)| entry.is_given_up).map(|(at, _)| *at).collect();
        for at in given_up {
            if self.chance(3) {
                store.entries.remove(&at);
                self.events.push((generation, at, Event::Done));
            }
        }
        self.in_flight = Some(store);
        self.end_flush();
    }

    /// A failed entry waits again, unless a newer one supersedes it.
    fn wait_again(&mut self, origin: EntryPlace, mut entry: Entry) {
        match (self.kind, self.waiting.find(entry.key)) {
            (Kind::Map, Some(_)) => return,
            (Kind::Counter, Some(at)) => {
                let mut sum = self.waiting.entries[&at].clone();
                (sum.number, sum.additions) = (sum.number + entry.number, sum.additions + entry.additions);
                (sum.attempts, sum.absorbs) = (sum.attempts.max(entry.attempts), true);
                self.waiting.set(at, sum);
                return;
            }
            (Kind::Counter, None) => entry.absorbs = true,
            (Kind::Queue, _) => entry.origin = entry.origin.or(Some(origin)),
            (Kind::Map, None) => {}
        }
        let at = self.waiting.free(self.kind, entry.key);
        self.waiting.set(at, entry);
    }

    fn end_flush(&mut self) {
        let Some(store) = self.in_flight.take_if(|store| store.entries.is_empty()) else { return };
        let generation = store.generation;
        if self.chance(2) {
            // All that is done since the last pass is in this one event.
            self.events
                .retain(|(_generation, _at, event)| !matches!(event, Event::Done | Event::Again(_) | Event::Gone));
        }
        self.events.push((generation, (0, 0), Event::Ended));
    }

    /// Writes all changes.
    fn pass(&mut self) {
        let mut texts = Vec::new();
        let mut stores: Vec<&mut Store> = self.in_flight.iter_mut().collect();
        stores.push(&mut self.waiting);
        for store in stores {
            for at in mem::take(&mut store.changed) {
                let entry = store.entries.get(&at).cloned();
                texts.push((store.place(at), entry));
            }
        }
        let mut payloads = written(self.kind, &texts);
        // A sum that absorbs, and the origin of an item, say what the event does. A value does not: it
        // may be deleted. Nor does a sum that was deleted before the pass, and begun anew.
        let says_so = |key| {
            let is_written = || {
                texts
                    .iter()
                    .flat_map(|(_place, entry)| entry)
                    .any(|entry| entry.key == key && (entry.absorbs || entry.origin.is_some()))
            };
            self.kind != Kind::Map && is_written()
        };
        let mut late = Vec::new();
        for (generation, (shard, id), event) in mem::take(&mut self.events) {
            let run = RunOf { generation, shard, first: id, length: 1 };
            let record = match event {
                Event::Gone => Record::Gone { run },
                Event::Began(attempts) => Record::Began { run, attempts },
                Event::GivenUp => Record::GivenUp { run },
                Event::Again(key) if says_so(key) && self.random.below(2) == 0 => {
                    late.push((generation, (shard, id), Event::Done));
                    continue;
                }
                Event::Done | Event::Again(_) => Record::Done { run },
                Event::Ended => Record::Ended { generation },
            };
            payloads.push(Vec::new());
            record.write(payloads.last_mut().unwrap());
        }
        self.events = late;
        self.write(&payloads);
    }

    /// Writes records in random blocks, some of them twice.
    fn write(&mut self, payloads: &[Vec<u8>]) {
        let mut rest = payloads;
        while !rest.is_empty() {
            let (block, others) = rest.split_at(1 + self.random.below(rest.len() as u64) as usize);
            rest = others;
            if self.chance(8) {
                self.log.next_segment();
            }
            for _ in 0..1 + u64::from(self.chance(5)) {
                self.log.write_payload(PARTITION, &block.concat());
            }
        }
    }

    /// Copies all entries to a new epoch, which counts when it is complete.
    fn copy(&mut self) {
        let old_segments = self.log.segments.len();
        self.log.next_segment();
        self.log.epoch += 1;
        let stores = self.in_flight.iter().chain([&self.waiting]);
        let texts: Vec<_> = stores
            .flat_map(|store| store.entries.iter().map(|(at, entry)| (store.place(*at), Some(entry.clone()))))
            .collect();
        let payloads = written(self.kind, &texts);
        self.write(&payloads);
        self.check();
        for (place, entry) in &texts {
            if entry.as_ref().unwrap().is_given_up {
                let run = RunOf { generation: place.generation, shard: place.shard, first: place.id, length: 1 };
                self.log.write(PARTITION, &[Record::GivenUp { run }]);
            }
        }
        self.check();
        let mut payload = neighbour(self.kind);
        let first = self.log.segments[old_segments].0;
        self.log.complete(first).write(&mut payload);
        self.log.write_payload(PARTITION + 1, &payload);
        self.check();
        if self.chance(2) {
            self.log.segments.drain(..old_segments);
        }
    }
}

impl History {
    /// The log holds what the partition holds.
    fn check(&self) {
        let replayed = self.log.replay(self.kind);
        assert_eq!((replayed.damaged.len(), replayed.torn_bytes, replayed.damaged_records), (0, 0, 0));
        let (own, others): (Vec<_>, Vec<_>) = replayed.entries.iter().partition(|saved| saved.partition == PARTITION);
        assert_eq!(others.len(), 1, "another partition's entry remains");
        let (entries, given_up) = self.held();
        assert_eq!(own.into_iter().map(shown).collect::<Vec<_>>(), entries);
        assert_eq!(replayed.given_up.iter().map(shown).collect::<Vec<_>>(), given_up);
    }

    /// The entries, and those given up.
    fn held(&self) -> (Vec<Shown>, Vec<Shown>) {
        let show = |store: &Store, at: (u8, u32), entry: &Entry| {
            (store.place(at), entry.attempts, entry.key, entry.number, entry.additions)
        };
        let (mut entries, mut given_up) = (Vec::new(), Vec::new());
        let mut older = BTreeMap::new();
        if let Some(store) = &self.in_flight {
            for (at, entry) in &store.entries {
                if entry.is_given_up {
                    given_up.push(show(store, *at, entry));
                } else if self.kind == Kind::Queue || self.waiting.find(entry.key).is_none() {
                    entries.push(show(store, *at, entry));
                } else {
                    older.insert(entry.key, entry);
                }
            }
        }
        for (at, entry) in &self.waiting.entries {
            let mut entry = entry.clone();
            if let (Kind::Counter, Some(older)) = (self.kind, older.get(&entry.key)) {
                entry.attempts = entry.attempts.max(older.attempts);
                (entry.number, entry.additions) = (entry.number + older.number, entry.additions + older.additions);
            }
            entries.push(show(&self.waiting, *at, &entry));
        }
        (entries, given_up)
    }
}

/// Place, attempts, key, number and additions.
type Shown = (EntryPlace, u32, u64, i64, u64);

fn shown(saved: &Saved) -> Shown {
    let number = |bytes| std::str::from_utf8(bytes).unwrap().parse().unwrap();
    let (key, number, additions) = match saved.content {
        Content::Value { key, value, updates, version } => {
            assert_eq!(version, SavedVersion::Int(number(value)));
            (number(key), number(value), updates)
        }
        Content::Sum { key, sum, count } => (number(key), sum as i64, count as u64),
        Content::Item { item } => (0, number(item), 1),
    };
    (saved.place, saved.attempts, key as u64, number, additions)
}

/// The record of each entry, or of its end.
fn written(kind: Kind, entries: &[(EntryPlace, Option<Entry>)]) -> Vec<Vec<u8>> {
    let record = |(place, entry): &(EntryPlace, Option<Entry>)| {
        let (place, mut payload) = (*place, Vec::new());
        let Some(entry) = entry else {
            let run = RunOf { generation: place.generation, shard: place.shard, first: place.id, length: 1 };
            Record::Gone { run }.write(&mut payload);
            return payload;
        };
        let Entry { number, additions: updates, attempts, absorbs, origin, .. } = *entry;
        let (key, text) = (entry.key.to_string(), number.to_string());
        let (key, text, version) = (key.as_bytes(), text.as_bytes(), SavedVersion::Int(number));
        match kind {
            Kind::Map => Record::Value { place, attempts, updates, version, key, value: text },
            Kind::Counter => Record::Sum { place, attempts, absorbs, sum: number.into(), count: updates.into(), key },
            Kind::Queue => Record::Item { place, attempts, origin, item: text },
        }
        .write(&mut payload);
        payload
    };
    entries.iter().map(record).collect()
}

/// The record of the only entry of another partition.
fn neighbour(kind: Kind) -> Vec<u8> {
    let (key, number, additions, attempts) = (0, 0, 1, 0);
    let entry = Entry { key, number, additions, attempts, absorbs: false, origin: None, is_given_up: false };
    let place = EntryPlace { generation: 0, shard: 0, id: 0 };
    written(kind, &[(place, Some(entry))]).concat()
}

#[test]
fn a_log_holds_what_the_partition_held_after_each_pass() {
    for seed in 0..1_500 {
        for kind in KINDS {
            let mut history = History::start(kind, seed);
            let steps = 20 + history.random.below(80);
            let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                (0..steps).for_each(|_| history.step());
                history.pass();
                history.check();
            }));
            assert!(run.is_ok(), "{kind:?}, seed {seed}");
        }
    }
}
