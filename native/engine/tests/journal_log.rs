//! The log of a journal over a simulated disk: each behaviour by itself, then random histories with
//! faults and a crash.
//!
//! `JOURNAL_SEED`, `JOURNAL_CRASHES` and `JOURNAL_FAULTS` choose the histories. A failure prints the seed of its
//! history.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

use common::sim_disk::{Faults, Loss, SimDisk, SimFile, EIO, ENOENT, ENOSPC};
use common::Random;
use partitioned_buffer_engine::journal::block::{self, Place, HEAD, MAGIC};
use partitioned_buffer_engine::journal::disk::Disk;
use partitioned_buffer_engine::journal::log::{Failure, Log, Operation, Settings, Syncing, Unsynced, RESERVE};

const SETTINGS: Settings = Settings { segment_bytes: 2_000, max_bytes: 10_000, syncing: Syncing::Owner };

/// A whole block on a disk.
struct Found {
    place: Place,
    payload: Vec<u8>,
}

fn number<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes[..N].try_into().unwrap()
}

/// The whole blocks of a disk in the order of a reader, and the bytes between them.
fn read(disk: &SimDisk) -> (Vec<Found>, usize) {
    let (mut found, mut torn) = (Vec::new(), 0);
    for (segment, _) in disk.segments().unwrap() {
        let bytes = disk.read(segment).unwrap();
        let mut at = 0;
        while at < bytes.len() {
            match block_at(&bytes[at..], segment, at as u64) {
                Some(block) => {
                    at += HEAD + block.payload.len();
                    found.push(block);
                }
                None => {
                    at += 1;
                    torn += 1;
                }
            }
        }
    }
    (found, torn)
}

fn block_at(bytes: &[u8], segment: u64, offset: u64) -> Option<Found> {
    if bytes.len() < HEAD || bytes[..3] != MAGIC {
        return None;
    }
    let length = u32::from_le_bytes(number(&bytes[8..])) as usize;
    let payload = bytes.get(HEAD..HEAD.checked_add(length)?)?;
    let partition = u32::from_le_bytes(number(&bytes[12..]));
    let epoch = u32::from_le_bytes(number(&bytes[16..]));
    let place = Place { partition, epoch, segment, offset };
    (block::head(place, payload) == bytes[..HEAD]).then(|| Found { place, payload: payload.to_vec() })
}

fn texts(disk: &SimDisk) -> Vec<String> {
    read(disk).0.into_iter().map(|found| String::from_utf8(found.payload).unwrap()).collect()
}

fn segments(disk: &SimDisk) -> Vec<u64> {
    disk.segments().unwrap().into_iter().map(|(number, _)| number).collect()
}

fn log(disk: &SimDisk) -> Log<SimDisk> {
    Log::new(disk.clone(), SETTINGS, 1, 1).unwrap()
}

fn sync(log: &mut Log<SimDisk>) -> Result<(), Failure> {
    let Some(unsynced) = log.unsynced() else { return Ok(()) };
    let result = unsynced.sync();
    log.synced(unsynced, result)
}

fn append(log: &mut Log<SimDisk>, payload: &str) -> Result<(), Failure> {
    log.append(0, 1, payload.into())
}

fn failure(operation: Operation, errno: i32) -> Result<(), Failure> {
    Err(Failure { operation, errno })
}

/// A payload that fills a segment.
fn long(first: char) -> String {
    first.to_string().repeat(2_000)
}

#[test]
fn a_log_without_blocks_has_no_file() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    assert!(log.unsynced().is_none());
    log.forget(|_| 0).unwrap();
    assert!(disk.is_empty());
}

#[test]
fn blocks_are_read_in_order_from_their_segments() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    for payload in ["a", &long('b'), "c", ""] {
        append(&mut log, payload).unwrap();
    }
    let (found, torn) = read(&disk);
    let places: Vec<_> = found.iter().map(|found| (found.place.segment, found.place.offset)).collect();
    assert_eq!(places, [(1, 0), (1, 37), (2, 0), (2, 37)]);
    assert_eq!((torn, log.numbers().segments, log.numbers().written), (0, 2, 4));
    assert!(disk.has_reserve());
}

#[test]
fn a_sync_covers_what_was_written_before_it() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, "a").unwrap();
    let unsynced = log.unsynced().unwrap();
    assert!(log.unsynced().is_none(), "one sync at a time");
    append(&mut log, "b").unwrap();
    assert_eq!(unsynced.blocks(), 1);
    let result = std::thread::spawn(move || (unsynced.sync(), unsynced)).join().unwrap();
    log.synced(result.1, result.0).unwrap();
    assert_eq!(log.numbers().synced, 1);
    sync(&mut log).unwrap();
    assert_eq!(log.numbers().synced, 2);
    assert!(log.unsynced().is_none(), "all is synced");
}

#[test]
fn a_block_without_room_is_kept_and_written_later_to_the_same_segment() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, "a").unwrap();
    disk.set_faults(Faults { room: Some(disk.used() + 50), ..Faults::default() });
    assert_eq!(append(&mut log, &long('b')), failure(Operation::Write, ENOSPC));
    assert!(log.is_blocked());
    assert_eq!(read(&disk).1, 0, "the block begun is cut off");
    assert_eq!(log.retry(), failure(Operation::Write, ENOSPC));
    assert!(catch_unwind(AssertUnwindSafe(|| append(&mut log, "c"))).is_err());
    disk.set_faults(Faults::default());
    log.retry().unwrap();
    append(&mut log, "c").unwrap();
    assert_eq!(texts(&disk), ["a".into(), long('b'), "c".into()]);
    assert_eq!(read(&disk).0[1].place.segment, 1);
}

#[test]
fn a_block_that_fails_otherwise_goes_to_a_new_segment() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, "a").unwrap();
    for is_uncut in [false, true] {
        let at = disk.operations() + 1;
        disk.set_faults(Faults { io_error: Some((at, at + 1)), is_uncut, ..Faults::default() });
        assert_eq!(append(&mut log, "b"), failure(Operation::Write, EIO));
        disk.set_faults(Faults::default());
        log.retry().unwrap();
    }
    assert_eq!(segments(&disk), [1, 2, 3]);
    assert_eq!(log.numbers().last_failure, Some(Failure { operation: Operation::Write, errno: EIO }));
}

#[test]
fn a_disk_that_fails_for_long_gets_no_more_segments() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, "a").unwrap();
    for _ in 0..50 {
        // Each creation succeeds, each write fails.
        let at = disk.operations() + if log.is_blocked() { 3 } else { 1 };
        disk.set_faults(Faults { io_error: Some((at, at + 1)), ..Faults::default() });
        let result = if log.is_blocked() { log.retry() } else { append(&mut log, "b") };
        assert_eq!(result, failure(Operation::Write, EIO));
    }
    disk.set_faults(Faults::default());
    log.retry().unwrap();
    assert_eq!(log.numbers().segments, 2);
    assert_eq!(texts(&disk), ["a", "b"]);
}

#[test]
fn outcomes_get_through_on_a_full_disk_in_order() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, "a").unwrap();
    disk.set_faults(Faults { room: Some(0), ..Faults::default() });
    append(&mut log, "kept").unwrap_err();
    log.append_urgent(0, b"x").unwrap();
    log.append_urgent(0, b"y").unwrap();
    log.retry().unwrap_err();
    sync(&mut log).unwrap();
    assert_eq!(log.numbers().synced, 3);
    assert_eq!(texts(&disk), ["a", "x", "y"]);
    let big = vec![0; RESERVE as usize];
    assert_eq!(log.append_urgent(0, &big), failure(Operation::Write, ENOSPC));
    log.append_urgent(0, b"z").unwrap();
    disk.set_faults(Faults::default());
    log.retry().unwrap();
    append(&mut log, "b").unwrap();
    assert_eq!(texts(&disk), ["a", "kept", "x", "y", "z", "b"]);
    assert_eq!(read(&disk).1, 0, "the rest of the reserve is cut off");
    assert!(disk.has_reserve() && log.has_reserve());
}

#[test]
fn outcomes_get_through_when_a_segment_cannot_be_made() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, &long('a')).unwrap();
    disk.set_faults(Faults { room: Some(0), ..Faults::default() });
    assert_eq!(append(&mut log, "kept"), failure(Operation::Open, ENOSPC));
    log.append_urgent(0, b"x").unwrap();
    disk.set_faults(Faults::default());
    log.retry().unwrap();
    append(&mut log, "b").unwrap();
    assert_eq!(texts(&disk)[1..], ["kept", "x", "b"]);
    assert_eq!(segments(&disk), [1, 2, 3, 4]);
}

#[test]
fn a_kept_block_and_its_place_outlive_all_segments() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, &long('a')).unwrap();
    disk.set_faults(Faults { room: Some(0), ..Faults::default() });
    log.append(0, 2, "kept".into()).unwrap_err();
    log.append_urgent(0, b"x").unwrap();
    log.forget(|_| 3).unwrap();
    sync(&mut log).unwrap();
    assert_eq!(texts(&disk), ["x"]);
    disk.set_faults(Faults::default());
    log.retry().unwrap();
    assert_eq!(texts(&disk), ["kept", "x"]);
}

#[test]
fn an_outcome_that_meets_the_full_disk_first_gets_through() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, "a").unwrap();
    disk.set_faults(Faults { room: Some(0), ..Faults::default() });
    log.append_urgent(0, b"x").unwrap();
    assert!(!log.is_blocked());
    disk.set_faults(Faults::default());
    append(&mut log, "b").unwrap();
    append(&mut log, "c").unwrap();
    assert_eq!(texts(&disk), ["a", "b", "x", "c"]);
}

#[test]
fn a_missing_reserve_is_no_error_of_a_block() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    disk.set_faults(Faults { room: Some(1_000), ..Faults::default() });
    append(&mut log, "a").unwrap();
    assert!(!log.has_reserve());
    assert_eq!(log.numbers().last_failure, Some(Failure { operation: Operation::Open, errno: ENOSPC }));
    append(&mut log, &long('b')).unwrap_err();
    assert_eq!(log.append_urgent(0, &[0; 2_000]), failure(Operation::Write, ENOSPC));
}

#[test]
fn segments_go_when_their_generations_are_done_and_all_is_synced() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    for generation in 1..=3 {
        log.append(7, generation, long('a').into()).unwrap();
    }
    log.forget(|_| 2).unwrap();
    assert_eq!(segments(&disk), [1, 2, 3], "not before the sync");
    sync(&mut log).unwrap();
    assert_eq!(segments(&disk), [2, 3]);
    log.forget(|partition| if partition == 7 { 4 } else { 0 }).unwrap();
    assert!(disk.is_empty());
    assert_eq!(log.numbers().segments, 0);
    append(&mut log, "b").unwrap();
    assert_eq!(segments(&disk), [4]);
}

#[test]
fn segments_go_at_once_when_the_system_syncs() {
    let disk = SimDisk::default();
    let mut log = Log::new(disk.clone(), Settings { syncing: Syncing::System, ..SETTINGS }, 1, 1).unwrap();
    append(&mut log, "a").unwrap();
    log.forget(|_| 2).unwrap();
    assert!(disk.is_empty());
}

#[test]
fn what_is_appended_after_the_last_generation_stays() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, "a").unwrap();
    log.forget(|_| 2).unwrap();
    log.append(0, 2, "b".into()).unwrap();
    sync(&mut log).unwrap();
    assert_eq!(texts(&disk), ["b"]);
}

#[test]
fn a_segment_that_cannot_be_removed_is_removed_later() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, &long('a')).unwrap();
    log.append(0, 2, "b".into()).unwrap();
    sync(&mut log).unwrap();
    disk.set_faults(Faults { is_kept: true, ..Faults::default() });
    assert_eq!(log.forget(|_| 2), failure(Operation::Delete, EIO));
    disk.set_faults(Faults::default());
    log.forget(|_| 2).unwrap();
    assert_eq!(texts(&disk), ["b"]);
}

#[test]
fn a_rewrite_replaces_the_segments_before_it_when_it_is_synced() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    while !log.wants_rewrite(100) {
        append(&mut log, &long('a')).unwrap();
    }
    assert!(log.numbers().bytes >= 10_000 && !log.wants_rewrite(6_000));
    sync(&mut log).unwrap();
    log.begin_rewrite();
    append(&mut log, "lost").unwrap();
    log.begin_rewrite();
    append(&mut log, "all").unwrap();
    log.end_rewrite().unwrap();
    append(&mut log, "more").unwrap();
    assert!(log.is_rewriting() && !log.wants_rewrite(0));
    assert!(log.numbers().segments > 3);
    sync(&mut log).unwrap();
    assert_eq!(texts(&disk), ["all", "more"]);
    assert!(!log.is_rewriting() && !log.wants_rewrite(0));
}

#[test]
fn a_failed_sync_is_not_tried_again_and_needs_a_rewrite() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, "a").unwrap();
    disk.set_faults(Faults { failing_syncs: 1, ..Faults::default() });
    assert_eq!(sync(&mut log), failure(Operation::Sync, EIO));
    assert!(log.needs_rewrite() && log.unsynced().is_none());
    append(&mut log, "b").unwrap();
    sync(&mut log).unwrap();
    assert_eq!(log.numbers().synced, 0);
    log.begin_rewrite();
    assert!(!log.needs_rewrite());
    append(&mut log, "a").unwrap();
    disk.set_faults(Faults { failing_syncs: 1, ..Faults::default() });
    assert_eq!(sync(&mut log), failure(Operation::Sync, EIO));
    assert!(log.needs_rewrite(), "a rewrite that fails begins again");
    log.end_rewrite().unwrap();
    log.begin_rewrite();
    append(&mut log, "a").unwrap();
    log.end_rewrite().unwrap();
    sync(&mut log).unwrap();
    assert_eq!(log.numbers().synced, 4);
    assert_eq!(texts(&disk), ["a"]);
}

#[test]
fn an_epoch_replaces_all_segments_of_a_former_log() {
    let disk = SimDisk::default();
    append(&mut log(&disk), "old").unwrap();
    let mut log = log(&disk);
    log.forget(|_| 9).unwrap();
    log.next_epoch();
    append(&mut log, "all").unwrap();
    assert_eq!(texts(&disk), ["old", "all"]);
    log.end_rewrite().unwrap();
    sync(&mut log).unwrap();
    let (found, _) = read(&disk);
    assert_eq!((found.len(), found[0].place.epoch, found[0].place.segment), (1, 2, 2));
}

#[test]
fn an_epoch_without_blocks_leaves_an_empty_directory() {
    let disk = SimDisk::default();
    append(&mut log(&disk), "old").unwrap();
    let mut log = log(&disk);
    log.next_epoch();
    log.end_rewrite().unwrap();
    assert!(disk.is_empty());
}

#[test]
fn a_lost_directory_is_made_again_and_needs_a_rewrite() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, "a").unwrap();
    sync(&mut log).unwrap();
    log.check().unwrap();
    disk.lose();
    assert_eq!(append(&mut log, "b"), failure(Operation::Write, ENOENT));
    log.retry().unwrap();
    assert!(log.needs_rewrite());
    log.begin_rewrite();
    append(&mut log, "all").unwrap();
    log.end_rewrite().unwrap();
    sync(&mut log).unwrap();
    assert_eq!(texts(&disk), ["all"]);
    assert_eq!(log.numbers().synced, 3);
    disk.lose();
    assert_eq!(log.check(), failure(Operation::Write, ENOENT));
    assert!(log.needs_rewrite());
}

#[test]
fn a_lost_lock_costs_a_rewrite_and_leaves_no_old_segment() {
    let disk = SimDisk::default();
    let mut log = log(&disk);
    append(&mut log, &long('a')).unwrap();
    disk.lose_lock();
    append(&mut log, "b").unwrap();
    assert!(log.needs_rewrite());
    log.begin_rewrite();
    append(&mut log, "all").unwrap();
    log.end_rewrite().unwrap();
    sync(&mut log).unwrap();
    assert_eq!(texts(&disk), ["all"]);
}

/// A block that the driver made.
#[derive(Clone, Debug)]
struct Made {
    id: u64,
    partition: u32,
    generation: u64,
    is_urgent: bool,
    payload: Vec<u8>,
}

/// The kinds of faults that a history may have.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    None,
    Full,
    Any,
}

/// A log, and what must be on its disk.
struct Driver {
    disk: SimDisk,
    log: Log<SimDisk>,
    random: Random,
    kind: Kind,
    /// All blocks that were ever given to a log, by id.
    ids: HashMap<u64, Made>,
    next_id: u64,
    /// The blocks that were written, in that order, with those of former logs first.
    written: Vec<Made>,
    /// The number of blocks of former logs.
    former: usize,
    kept: Option<Made>,
    /// The blocks from here on count; `None` while all may be lost.
    base: Option<usize>,
    /// The first block of the rewrite, and its end.
    rewrite: Option<(usize, Option<usize>)>,
    /// Whether the kept block is older than the rewrite.
    is_kept_before: bool,
    given_out: Option<Unsynced<SimFile>>,
    generation: u64,
    live: u64,
}

impl Driver {
    fn new(disk: SimDisk, seed: u64, kind: Kind) -> Self {
        let log = log(&disk);
        Driver {
            disk,
            log,
            random: Random(seed),
            kind,
            ids: HashMap::new(),
            next_id: 0,
            written: Vec::new(),
            former: 0,
            kept: None,
            base: Some(0),
            rewrite: None,
            is_kept_before: false,
            given_out: None,
            generation: 1,
            live: 0,
        }
    }

    fn make(&mut self, is_urgent: bool) -> Made {
        let id = self.next_id;
        self.next_id += 1;
        let length = match self.random.below(8) {
            0 => 0,
            7 => self.random.below(2_500),
            _ => self.random.below(200),
        };
        let mut payload = id.to_le_bytes().to_vec();
        // Some blocks have the head of another one in them.
        if self.random.below(4) == 0 {
            let place = Place { partition: 0, epoch: 1, segment: 1, offset: self.random.below(100) };
            payload.extend_from_slice(&block::head(place, &[]));
        }
        payload.resize(payload.len() + length as usize, id as u8);
        let generation = if is_urgent { 0 } else { self.generation - self.random.below(2).min(self.generation - 1) };
        let generation = if generation < self.live { self.live } else { generation };
        let generation = if is_urgent { 0 } else { generation };
        let made = Made { id, partition: self.random.below(3) as u32, generation, is_urgent, payload };
        self.ids.insert(id, made.clone());
        made
    }

    fn append(&mut self) {
        if self.log.is_blocked() {
            return self.retry();
        }
        let made = self.make(false);
        match self.log.append(made.partition, made.generation, made.payload.clone()) {
            Ok(()) => self.written.push(made),
            Err(_) => {
                self.kept = Some(made);
                self.is_kept_before = false;
            }
        }
    }

    fn retry(&mut self) {
        if self.log.retry().is_ok() {
            self.written.extend(self.kept.take());
            if std::mem::take(&mut self.is_kept_before) {
                self.rewrite = self.rewrite.map(|(_, end)| (self.written.len(), end));
            }
        }
    }

    fn urgent(&mut self) {
        let made = self.make(true);
        if self.log.append_urgent(made.partition, &made.payload).is_ok() {
            self.written.push(made);
        }
    }

    fn begin_rewrite(&mut self) {
        self.log.begin_rewrite();
        self.rewrite = Some((self.written.len(), None));
        self.is_kept_before = self.log.is_blocked();
    }

    fn end_rewrite(&mut self) {
        if self.log.is_blocked() {
            return;
        }
        if let Some((_, end)) = &mut self.rewrite {
            *end = Some(self.written.len());
        }
        let _ = self.log.end_rewrite();
        self.note_rewrite();
    }

    /// Notes whether the rewrite has ended, well or not.
    fn note_rewrite(&mut self) {
        if self.disk.is_crashed() || self.log.is_rewriting() {
            return;
        }
        if let Some((first, end)) = self.rewrite {
            if self.log.needs_rewrite() {
                self.rewrite = None;
            } else if end.is_some() {
                self.base = Some(first);
                self.rewrite = None;
            }
        }
    }

    fn give_out(&mut self) {
        if self.given_out.is_none() {
            self.given_out = self.log.unsynced();
        }
    }

    fn finish_sync(&mut self) {
        if let Some(unsynced) = self.given_out.take() {
            let result: io::Result<()> = unsynced.sync();
            let _ = self.log.synced(unsynced, result);
        }
    }

    fn forget(&mut self) {
        self.generation += self.random.below(3);
        let live = if self.random.below(3) == 0 { self.generation + 1 } else { self.generation };
        self.generation = self.generation.max(live);
        self.live = live;
        let _ = self.log.forget(|_| live);
    }

    fn fault(&mut self) {
        let mut faults = self.disk.faults();
        match self.random.below(8) {
            0 | 1 => faults = Faults { crash: faults.crash, ..Faults::default() },
            2..=4 => faults.room = Some(self.disk.used() + self.random.below(1_500) as usize),
            _ if self.kind == Kind::Full => {}
            5 => {
                let from = self.disk.operations() + self.random.below(6);
                faults.io_error = Some((from, from + 1 + self.random.below(4)));
                faults.is_uncut = self.random.below(3) == 0;
                faults.is_kept = self.random.below(3) == 0;
            }
            6 => faults.failing_syncs = 1 + self.random.below(2) as u32,
            _ => {
                self.base = None;
                if self.random.below(2) == 0 {
                    self.disk.lose();
                } else {
                    self.disk.lose_lock();
                }
                // The owner looks now and then.
                let _ = self.log.check();
            }
        }
        self.disk.set_faults(faults);
    }

    fn step(&mut self) {
        match self.random.below(24) {
            0..=9 => self.append(),
            10 | 11 => self.urgent(),
            12 => self.retry(),
            13 | 14 => self.give_out(),
            15..=17 => {
                self.give_out();
                self.finish_sync();
            }
            18 => self.forget(),
            19 => self.begin_rewrite(),
            20 | 21 => self.end_rewrite(),
            _ if self.kind != Kind::None => self.fault(),
            _ => self.append(),
        }
        self.note_rewrite();
        if !self.disk.is_crashed() {
            let numbers = self.log.numbers();
            assert_eq!(numbers.written as usize, self.written.len() - self.former, "each block counts once");
            assert!(numbers.synced <= numbers.written);
            assert_eq!(self.log.is_blocked(), self.kept.is_some());
        }
    }

    /// What a crash leaves, checked.
    fn crash(&mut self, loss: Loss) -> SimDisk {
        let disk = self.disk.crash(&mut self.random, loss);
        let (found, torn) = read(&disk);
        let mut at = HashMap::new();
        for (position, found) in found.iter().enumerate() {
            let id = u64::from_le_bytes(number(&found.payload));
            let made = &self.ids[&id];
            assert_eq!((&made.payload, made.partition), (&found.payload, found.place.partition), "as it was written");
            at.insert(id, position);
        }
        if loss == Loss::Nothing && self.kind == Kind::None && self.log.epoch() == 1 {
            let crashed_write = usize::from(self.disk.faults().crash.is_some()) * 4_000;
            assert!(torn <= crashed_write, "{torn} bytes are torn");
        }
        self.check_order(&found);
        let synced = match loss {
            Loss::Nothing => self.written.len(),
            _ => self.former + self.log.numbers().synced as usize,
        };
        let is_there = |from: usize, to: usize| {
            let needed = (from..to).find(|&index| self.written[index].generation >= self.live);
            (needed.unwrap_or(to)..to).all(|index| at.contains_key(&self.written[index].id))
        };
        let is_whole = self.base.is_none_or(|base| is_there(base, synced.max(base)))
            || self.rewrite.is_some_and(|(first, end)| end.is_some_and(|end| is_there(first, synced.max(end))));
        if self.kind != Kind::Any {
            // What is removed is older than all that is left, also halfway.
            let mut plain = self.written[..synced].iter().filter(|made| !made.is_urgent);
            let first = plain.find(|made| at.contains_key(&made.id));
            assert!(first.is_none() || plain.all(|made| at.contains_key(&made.id)), "there is no gap");
        }
        if !is_whole {
            let missing: Vec<_> = self.written[..synced].iter().filter(|made| !at.contains_key(&made.id)).collect();
            panic!(
                "base {:?}, rewrite {:?}, live {}, {loss:?}: {synced} synced, missing {:?}",
                self.base,
                self.rewrite,
                self.live,
                missing.iter().map(|made| (made.id, made.generation)).collect::<Vec<_>>()
            );
        }
        disk
    }

    /// The blocks come in the order in which they were made. Urgent ones may come later, but not
    /// before an older block.
    fn check_order(&self, found: &[Found]) {
        let ids = found.iter().map(|found| u64::from_le_bytes(number(&found.payload)));
        let (mut plain, mut urgent) = (0, 0);
        for id in ids {
            if self.ids[&id].is_urgent {
                assert!(self.kind == Kind::Any || id >= urgent || id >= plain, "urgent {id} after {urgent}");
                urgent = urgent.max(id);
            } else {
                assert!(id >= plain, "{id} after {plain}");
                assert!(self.kind == Kind::Any || id + 1 > urgent || id >= plain, "{id} after urgent {urgent}");
                plain = id;
            }
        }
    }

    /// Faults end, and the log goes on until nothing is left.
    fn recover(&mut self) {
        self.disk.set_faults(Faults::default());
        let mut calls = 0;
        while self.log.is_blocked() || self.log.needs_rewrite() {
            calls += 1;
            assert!(calls < 5, "the log goes on");
            self.retry();
            if !self.log.is_blocked() && self.log.needs_rewrite() {
                self.begin_rewrite();
                self.append();
                self.end_rewrite();
            }
        }
        self.append();
        self.retry();
        for _ in 0..2 {
            self.finish_sync();
            self.give_out();
            self.finish_sync();
            if self.log.needs_rewrite() {
                // The directory was lost without the log's notice.
                return self.recover();
            }
            if self.log.is_rewriting() {
                self.end_rewrite();
            }
        }
        let numbers = self.log.numbers();
        assert_eq!(numbers.synced, numbers.written, "all is synced");
        self.note_rewrite();
        if let Err(failure) = self.log.forget(|_| u64::MAX) {
            assert_eq!(failure, Failure { operation: Operation::Delete, errno: ENOENT });
            return self.recover();
        }
        self.log.forget(|_| u64::MAX).unwrap();
        if self.former > 0 || !self.disk.is_empty() {
            // Segments of a former log, or of a file that a failed creation left.
            self.begin_rewrite();
            self.end_rewrite();
        }
        assert!(self.disk.is_empty(), "nothing is left of {:?}", segments(&self.disk));
    }

    /// The next life over what a crash left.
    fn restart(self, disk: SimDisk, seed: u64) -> Self {
        let (found, _) = read(&disk);
        let mut next = Driver::new(disk, seed, self.kind);
        for found in found {
            let id = u64::from_le_bytes(number(&found.payload));
            let mut made = self.ids[&id].clone();
            // All of a former log stays until the epoch is complete.
            made.generation = u64::MAX;
            next.written.push(made);
        }
        next.former = next.written.len();
        next.ids = self.ids;
        next.next_id = self.next_id;
        next.log.next_epoch();
        next.rewrite = Some((next.former, None));
        next
    }
}

/// Runs a history with a crash at an operation, if it has so many, and goes on after it. Returns how
/// many operations it had.
fn run(seed: u64, kind: Kind, steps: u64, crash: Option<u64>) -> u64 {
    let mut driver = Driver::new(SimDisk::default(), seed, kind);
    let mut operations = 0;
    for life in 0..3 {
        let is_last = life == 2;
        let crash = if life == 0 { crash } else { crash.map(|_| 1 + driver.random.below(60)) };
        driver.disk.set_faults(Faults { crash, ..Faults::default() });
        for _ in 0..steps {
            if driver.disk.is_crashed() {
                break;
            }
            driver.step();
        }
        operations = operations.max(driver.disk.operations());
        let losses = [Loss::Nothing, Loss::Random, Loss::Random, Loss::All];
        let loss = losses[driver.random.below(4) as usize];
        let disk = driver.crash(loss);
        if is_last {
            break;
        }
        let seed = driver.random.below(u64::MAX);
        driver = driver.restart(disk, seed);
    }
    operations
}

/// Runs a history whose faults end.
fn run_and_recover(seed: u64, kind: Kind, steps: u64) {
    let mut driver = Driver::new(SimDisk::default(), seed, kind);
    for _ in 0..steps {
        driver.step();
    }
    driver.recover();
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Runs a check, and prints its seed if it fails.
fn with_seed(seed: u64, check: impl FnOnce(u64)) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(seed))) {
        println!("seed {seed}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_crash_after_any_operation_loses_nothing_synced() {
    for seed in 0..60 {
        for kind in [Kind::None, Kind::Full, Kind::Any] {
            let operations = run(seed, kind, 40, None);
            for crash in 1..=operations {
                with_seed(seed, |seed| {
                    run(seed, kind, 40, Some(crash));
                });
            }
        }
    }
}

#[test]
fn a_log_goes_on_after_its_faults() {
    for seed in 0..setting("JOURNAL_FAULTS").unwrap_or(1_500) {
        for kind in [Kind::None, Kind::Full, Kind::Any] {
            with_seed(seed, |seed| run_and_recover(seed, kind, 80));
        }
    }
}

#[test]
fn random_crashes_lose_nothing_synced() {
    let first = setting("JOURNAL_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let wanted = setting("JOURNAL_CRASHES");
    println!("JOURNAL_SEED={first}");
    let start = Instant::now();
    let mut crashes = 0;
    while wanted.map_or(start.elapsed() < Duration::from_secs(10), |wanted| crashes < wanted) {
        with_seed(first.wrapping_add(crashes), |seed| {
            let mut random = Random(seed);
            let kind = [Kind::None, Kind::Full, Kind::Any][random.below(3) as usize];
            let crash = Some(1 + random.below(120));
            let steps = 20 + random.below(200);
            run(random.below(u64::MAX), kind, steps, crash);
        });
        crashes += 3;
    }
    println!("{crashes} crashes");
}
