//! Partitions of maps with outcomes: an entry is there until the processor has succeeded with it.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::map::{entry, Entry, Map, MapFlush};
use common::reading::{all_of, batch, contents, give_back, read, GivenBack};
use common::{Random, TestTerm, LARGE};
use partitioned_buffer_engine::{reclaim, BatchState, Death, GiveBack};

/// The result of giving back a batch of which so many will be retried, and so many are superseded.
fn given_back(retried: usize, superseded: usize) -> GivenBack {
    GivenBack { retried, superseded, given_up: 0 }
}

/// The keys of entries, in their order.
fn keys(batch: &[Entry]) -> Vec<i64> {
    let mut keys: Vec<i64> = batch.iter().map(|entry| entry.key).collect();
    keys.sort_unstable();
    keys
}

/// Those of these keys that are there.
fn seen(map: &Map, keys: impl IntoIterator<Item = i64>) -> Vec<i64> {
    keys.into_iter().filter(|&key| map.get(key).is_some()).collect()
}

/// An entry that was put.
fn plain(key: i64, value: i64) -> Entry {
    Entry { key, value, version: 0, updates: 0 }
}

/// A copy of the value of each entry in a flush, to see whether it is freed.
fn copies(flush: &MapFlush) -> Vec<TestTerm> {
    contents(&flush.entries().unwrap(), |record| record.value.term)
}

fn assert_freed(copies: &[TestTerm]) {
    reclaim::settle();
    assert!(copies.iter().all(|copy| !copy.is_live()), "nothing refers to the stores");
}

/// A map with key 1 in flight, with value 10 and version 5.
fn start_in_flight() -> (Map, Arc<MapFlush>) {
    let map = Map::start();
    assert!(map.put_newer(1, 10, 5));
    let (flush, batch) = map.lease_all();
    assert_eq!(batch, [Entry { key: 1, value: 10, version: 5, updates: 0 }]);
    (map, flush)
}

#[test]
fn an_entry_in_flight_is_there_until_the_processor_has_succeeded() {
    let map = Map::start();
    map.put_all([1, 2]);
    let flush = map.flush().unwrap();
    assert_eq!((map.get(1), map.get(3), map.len(), map.partition.held()), (Some(1), None, 0, 2));
    assert_eq!(map.lease(&flush, 1).len(), 1);
    assert_eq!((map.get(1), map.get(2), map.partition.held()), (Some(1), Some(2), 2));
    map.succeed(&flush);
    assert_eq!((seen(&map, [1, 2]).len(), map.partition.held()), (1, 1));
    assert_eq!(map.lease(&flush, 1).len(), 1);
    map.succeed(&flush);
    assert_eq!((map.get(1), map.get(2), map.partition.held()), (None, None, 0));
    assert!(map.flush().is_none());
}

#[test]
fn without_outcomes_nothing_in_flight_is_seen() {
    let map = Map::start();
    map.partition.close();
    map.partition.set_outcomes(false);
    map.partition.open(1);
    map.put(1, 1);
    let flush = map.flush().unwrap();
    assert_eq!(map.get(1), None);
    map.delete(1);
    assert!(map.put_new(1, 2));
    assert_eq!(map.lease(&flush, 10), [plain(1, 1)]);
}

#[test]
fn outcomes_can_be_switched_on_and_off_over_an_unfinished_flush() {
    let map = Map::start();
    map.put_all([1, 2, 3]);
    let flush = map.flush().unwrap();
    let claimed = read(&flush, 1, 1, entry).unwrap()[0].key;
    let set_outcomes = |has_outcomes| {
        map.partition.close();
        map.partition.set_outcomes(has_outcomes);
        map.partition.open(1);
    };
    set_outcomes(false);
    assert!(flush.claim(1, 0));
    assert_eq!(seen(&map, 1..=3), []);
    set_outcomes(true);
    let left: Vec<i64> = (1..=3).filter(|&key| key != claimed).collect();
    assert_eq!(seen(&map, 1..=3), left, "what is claimed is gone");
    let leased = map.lease(&flush, 1)[0].key;
    set_outcomes(false);
    assert_eq!(map.fail(&flush, None, None), given_back(1, 0));
    assert_eq!(seen(&map, 1..=3), [leased], "it waits");
    set_outcomes(true);
    assert_eq!(seen(&map, 1..=3), left);
    assert_eq!(keys(&map.succeed_with_all()), left);
}

#[test]
fn a_bad_entry_is_alone_after_a_few_splits_and_waits_again() {
    let map = Map::start();
    map.put_all(0..500);
    let flush = map.flush().unwrap();
    let (mut calls, mut stored) = (0, Vec::new());
    while flush.seen().left > 0 {
        let batch = map.lease(&flush, 500);
        calls += 1;
        assert_eq!(flush.attempts(), 0, "a split is no attempt");
        if !batch.iter().any(|entry| entry.key == 321) {
            stored.extend(keys(&batch));
            map.succeed(&flush);
        } else if batch.len() > 1 {
            assert_eq!(flush.split(1), Some((batch.len(), (batch.len() / 4).max(1))));
        } else {
            assert_eq!(map.fail(&flush, None, None), given_back(1, 0));
        }
    }
    stored.sort_unstable();
    assert_eq!(stored, (0..500).filter(|&key| key != 321).collect::<Vec<_>>());
    assert!(calls < 30, "{calls} calls");
    assert_eq!(map.partition.info().ended.failed, 1);
    let (flush, batch) = map.lease_all();
    assert_eq!((batch, flush.attempts()), (vec![plain(321, 321)], 1));
}

#[test]
fn a_split_batch_belongs_to_its_reader_and_comes_first() {
    let map = Map::start();
    map.put_all(0..8);
    let flush = map.flush().unwrap();
    assert_eq!(flush.split(1), None, "nothing is leased");
    let first = map.lease(&flush, 6);
    assert_eq!((flush.split(2), flush.split(1), flush.split(1)), (None, Some((6, 1)), None));
    map.put(first[0].key, 100);
    map.delete(first[1].key);
    // What was replaced or deleted meanwhile is left out.
    assert_eq!(map.lease_resumed(&flush, 6), [first[2]]);
}

#[test]
fn the_rest_of_a_batch_half_given_back_can_be_split() {
    let map = Map::start();
    map.put_all(0..6);
    let (flush, batch) = map.lease_all();
    let step = GiveBack { failed: Some(&[0, 2]), cancelled: &[2], count: 3, ..all_of(1) };
    assert!(!map.partition.give_back(&flush, step).is_done);
    assert_eq!(flush.split(1), Some((3, 1)));
    assert_eq!(flush.inherit(1, None), Some((BatchState::GivenUp, 1)), "the third entry was cancelled");
    assert_eq!(flush.succeed(1), 0);
    let mut rest = map.succeed_with_all();
    rest.retain(|entry| !batch[3..].contains(entry));
    assert_eq!(rest, [batch[0]], "it waited again, and the second has succeeded");
}

#[test]
fn after_a_pause_failed_entries_come_last() {
    let map = Map::start();
    map.put_all(0..3);
    let (flush, _) = map.lease_all();
    map.fail(&flush, None, None);
    map.put_all(10..13);
    map.partition.pause(Duration::ZERO, true);
    let flush = map.flush().unwrap();
    for expected in [[10, 11, 12], [0, 1, 2]] {
        assert_eq!(keys(&map.lease(&flush, 9)), expected);
        map.succeed(&flush);
    }
    assert_eq!(map.partition.held(), 0);
}

#[test]
fn after_a_pause_entries_that_failed_less_often_come_first() {
    let map = Map::start();
    map.put(5, 5);
    // The entries fail three times, twice, and once.
    for key in 0..3 {
        map.put(key, key);
        let (flush, _) = map.lease_all();
        map.fail(&flush, None, None);
    }
    map.partition.pause(Duration::ZERO, true);
    let flush = map.flush().unwrap();
    for (expected, attempts) in [(vec![2], 1), (vec![1], 2), (vec![0, 5], 3)] {
        assert_eq!((keys(&map.lease(&flush, 9)), flush.attempts()), (expected.clone(), attempts));
        map.succeed(&flush);
        assert_eq!(seen(&map, expected), []);
    }
}

#[test]
fn the_rest_of_a_flush_with_a_success_joins_those_that_wait() {
    let map = Map::start();
    map.put_all(0..10);
    let flush = map.flush().unwrap();
    assert_eq!(map.lease(&flush, 2).len(), 2);
    map.put_all(20..22);
    assert!(!map.partition.lease_rest(&flush, 1, 3, true), "a batch is leased");
    map.succeed(&flush);
    assert_eq!(map.lease(&flush, 1).len(), 1);
    map.fail(&flush, None, None);
    // Three entries at a time.
    for retried in [3, 3, 1] {
        assert!(map.partition.lease_rest(&flush, 1, 3, true));
        assert_eq!(map.give_back(&flush, None, false, None), given_back(retried, 0));
    }
    assert!(!map.partition.lease_rest(&flush, 1, 3, true));
    assert_eq!((flush.seen().left, map.len(), map.partition.info().retried), (0, 10, 1));
    assert_eq!(map.partition.info().ended.failed, 1);
}

#[test]
fn a_rest_whose_reader_died_is_read_again_without_an_attempt() {
    for is_moved in [false, true] {
        let map = Map::start();
        map.put_all(0..10);
        let flush = map.flush().unwrap();
        map.lease(&flush, 2);
        map.succeed(&flush);
        map.put(20, 20);
        assert!(map.partition.lease_rest(&flush, 1, usize::MAX, true));
        let step = GiveBack { counted: false, count: 3, ..all_of(1) };
        assert!(!map.partition.give_back(&flush, step).is_done);
        if is_moved {
            let evicted = map.partition.evict();
            evicted.entries().for_each(|leftover| map.partition.take_in(&leftover));
            map.open(1);
        } else {
            assert_eq!(flush.inherit(2, Some(Death::Killed)), None);
        }
        assert_eq!((map.partition.held(), map.partition.info().retried), (9, 0));
        assert_eq!(map.succeed_with_all().len(), 9);
    }
}

#[test]
fn a_replaced_entry_leaves_its_age_to_the_one_that_replaces_it() {
    for is_read_again in [false, true] {
        let map = Map::start();
        map.put_all(1..3);
        let since = map.partition.info().since;
        let (flush, _) = map.lease_all();
        thread::sleep(Duration::from_millis(2));
        map.put_all(1..3);
        if is_read_again {
            flush.split(1);
            assert_eq!(map.lease_resumed(&flush, 2), []);
        } else {
            assert_eq!(map.fail(&flush, None, None), given_back(0, 2));
        }
        assert_eq!((flush.seen().left, map.partition.info().since), (0, since));
        assert_eq!(map.succeed_with_all().len(), 2);
        assert_eq!(map.partition.info().since, None);
    }
}

#[test]
fn failed_entries_that_are_left_join_those_that_wait() {
    let map = Map::start();
    map.put_all(0..3);
    let (flush, _) = map.lease_all();
    map.fail(&flush, None, None);
    let rest = map.flush().unwrap();
    assert!(!map.partition.lease_rest(&rest, 1, usize::MAX, true), "its entries were not read");
    map.partition.pause(Duration::ZERO, true);
    assert_eq!(map.lease(&rest, 1).len(), 1);
    map.fail(&rest, None, None);
    assert!(!map.partition.lease_rest(&rest, 1, usize::MAX, true), "no other entry waits");
    map.put_all(10..12);
    assert!(map.partition.lease_rest(&rest, 1, usize::MAX, true));
    assert_eq!(map.give_back(&rest, None, false, None), given_back(2, 0));
    assert_eq!((rest.seen().left, map.len()), (0, 5));
}

#[test]
fn the_entries_that_fail_are_chosen_by_their_numbers_in_the_batch() {
    let map = Map::start();
    map.put_all(0..10);
    let flush = map.flush().unwrap();
    let order = read(&flush, 1, 10, |record| entry(record).key).unwrap();
    assert!(flush.lease(1, 0));
    // Numbers beyond the batch, and one that comes twice, change nothing.
    assert_eq!(map.fail(&flush, Some(&[0, 3, 3, 9, 10, 99]), None), given_back(3, 0));
    let mut failed = [order[0], order[3], order[9]];
    failed.sort_unstable();
    assert_eq!(seen(&map, 0..10), failed);
    assert_eq!((map.len(), flush.seen().left), (3, 0));
    assert_eq!(keys(&map.succeed_with_all()), failed);
}

#[test]
fn a_batch_without_failed_entries_has_succeeded() {
    let (map, flush) = start_in_flight();
    assert_eq!(map.fail(&flush, Some(&[]), None), GivenBack::default());
    assert_eq!((map.get(1), flush.seen().left), (None, 0));
}

#[test]
fn a_batch_that_is_not_counted_has_failed_as_often_as_before() {
    let (map, flush) = start_in_flight();
    assert_eq!(map.fail(&flush, None, Some(2)), given_back(1, 0));
    for _ in 0..3 {
        let (flush, _) = map.lease_all();
        assert_eq!(flush.attempts(), 1);
        assert_eq!(map.give_back(&flush, None, false, Some(2)), given_back(1, 0));
    }
    let (flush, _) = map.lease_all();
    assert_eq!(map.fail(&flush, None, Some(2)), GivenBack { given_up: 1, ..GivenBack::default() });
}

#[test]
fn entries_that_are_given_up_are_the_batch_until_the_end() {
    let map = Map::start();
    map.put_all(0..6);
    let (flush, _) = map.lease_all();
    map.fail(&flush, Some(&[1, 2]), Some(2));
    map.put_all(10..13);
    let flush = map.flush().unwrap();
    let retried = seen(&map, 0..6);
    assert_eq!(keys(&map.lease(&flush, 1000)), [&retried[..], &[10, 11, 12]].concat());
    assert_eq!(map.fail(&flush, None, Some(2)), GivenBack { retried: 3, superseded: 0, given_up: 2 });

    // They are still held, but nothing sees them.
    assert_eq!((map.get(retried[0]), map.get(10), map.len(), map.partition.held()), (None, Some(10), 3, 5));
    assert!(map.put_new(retried[0], 99));
    assert_eq!(flush.inherit(1, None), Some((BatchState::GivenUp, 2)));
    assert_eq!(flush.attempts(), 2);
    assert_eq!(read(&flush, 2, 10, entry), None, "they are with the processor");
    assert_eq!(map.fail(&flush, None, None), GivenBack::default(), "they are given up for good");
    let mut batch = batch(&flush, entry);
    batch.sort_unstable();
    assert_eq!(batch, [plain(retried[0], retried[0]), plain(retried[1], retried[1])]);
    flush.bury(8);
    assert_eq!((flush.inherit(1, None), flush.seen().called_at), (Some((BatchState::Buried, 2)), Some(8)));
    flush.bury(9);
    assert_eq!(flush.seen().called_at, Some(9));
    assert_eq!((map.fail(&flush, None, None), map.partition.held()), (GivenBack::default(), 6));
    map.succeed(&flush);
    assert_eq!(flush.seen().left, 0);
    flush.bury(10);
    assert_eq!((flush.inherit(1, None), flush.seen().called_at), (None, Some(9)));
    assert_eq!(keys(&map.succeed_with_all()), [retried[0], 10, 11, 12]);
}

#[test]
fn entries_are_cancelled_by_no_more_attempts() {
    let map = Map::start();
    map.put_all(0..4);
    let (flush, _) = map.lease_all();
    map.delete(0);
    let GivenBack { retried, superseded, given_up } = map.fail(&flush, None, Some(0));
    assert_eq!((retried, superseded, given_up), (0, 1, 3), "what was deleted is not given up");
    map.succeed(&flush);
    assert_eq!((map.partition.held(), map.flush().is_none()), (0, true));
}

#[test]
fn a_reader_that_dies_while_it_reads_takes_nothing() {
    let map = Map::start();
    map.put_all(0..10);
    let flush = map.flush().unwrap();
    let all = read(&flush, 1, 10, entry).unwrap();
    assert_eq!(read(&flush, 2, 4, entry).unwrap(), all[..4]);
    assert_eq!(flush.inherit(1, None), None);
    assert_eq!(flush.seen().left, 10);
    assert!(!flush.lease(2, 0), "its batch was taken from it");
    assert!(flush.read(2, 4, 4).is_none());
    assert_eq!(read(&flush, 3, 3, entry).unwrap(), all[..3]);
    assert!(flush.lease(3, 7));
    assert_eq!(flush.seen().called_at, Some(7));
    flush.succeed(3);
    // Nor does one that dies while it reads entries for the second time.
    assert_eq!(read(&flush, 3, 3, entry).unwrap(), all[3..6]);
    assert_eq!(read(&flush, 4, 2, entry).unwrap(), all[3..5]);
    assert_eq!(read(&flush, 5, 5, entry).unwrap(), all[3..8]);
    assert_eq!(read(&flush, 6, 10, entry).unwrap(), all[3..]);
    assert!(flush.claim(6, 9));
    assert_eq!(flush.seen().calls, 2);
    assert!(map.flush().is_none());
}

#[test]
fn what_a_dead_reader_has_leased_is_inherited() {
    let map = Map::start();
    map.put_all(0..5);
    let flush = map.flush().unwrap();
    assert_eq!(map.lease(&flush, 3).len(), 3);
    for heir in [3, 2, 1] {
        assert_eq!(flush.inherit(heir, None), Some((BatchState::Leased, 3)));
        assert!(!flush.claim(heir, 0) && !flush.lease(heir, 0), "it is leased");
    }
    // Those who had it before cannot end it any more.
    flush.succeed(2);
    assert_eq!(give_back(&map.partition, &flush, all_of(3)), GivenBack::default());
    assert_eq!(map.fail(&flush, None, None), given_back(3, 0));
    assert_eq!(flush.inherit(1, None), None);
    assert_eq!((map.lease(&flush, 5).len(), map.len()), (2, 3));
    map.succeed(&flush);
    assert_eq!(map.succeed_with_all().len(), 3);
}

#[test]
fn two_readers_never_claim_or_lease_the_same_batch() {
    let map = Map::start();
    map.put_all(0..4);
    let flush = map.flush().unwrap();
    let first = read(&flush, 1, 2, entry).unwrap();
    assert_eq!(read(&flush, 2, 2, entry).unwrap(), first);
    assert!(!flush.lease(1, 0) && !flush.claim(1, 0), "the last one to begin has it");
    assert!(flush.lease(2, 0));
    assert!(!flush.lease(2, 0) && !flush.claim(2, 0), "once");
    assert_eq!(read(&flush, 1, 2, entry), None);
    assert!(!flush.lease(1, 0) && !flush.claim(1, 0));
    flush.succeed(1);
    assert_eq!(read(&flush, 1, 2, entry), None, "it is not his to end");
    flush.succeed(2);
    assert_ne!(read(&flush, 1, 2, entry).unwrap(), first);
    assert!(flush.claim(1, 0) && !flush.claim(1, 0));
    assert!(map.flush().is_none());
}

#[test]
fn a_reader_begins_the_call_with_its_batch() {
    let map = Map::start();
    map.put_all(0..4);
    let flush = map.flush().unwrap();
    let read_whole = |size| {
        let mut reader = flush.read(1, 0, size).unwrap();
        while !reader.read(1, |_| false, |_| {}) {}
        reader
    };
    let seen = || {
        let seen = flush.seen();
        (seen.calls, seen.called_with, seen.left, seen.called_at)
    };
    assert_eq!(read_whole(3).lease(7), 0);
    assert_eq!(seen(), (1, 3, 4, Some(7)));
    assert!(!flush.lease(1, 0) && !flush.claim(1, 0), "once");
    flush.succeed(1);
    read_whole(3).claim(8);
    assert_eq!(seen(), (2, 1, 0, Some(8)));
    assert!(!flush.claim(1, 0), "once");
    assert!(map.flush().is_none());
}

#[test]
fn a_failed_entry_keeps_its_version_its_updates_and_its_attempts() {
    let map = Map::start();
    for version in 1..=4 {
        assert!(map.put_newer(1, 10 * version, version));
    }
    let expected = [Entry { key: 1, value: 40, version: 4, updates: 3 }];
    for attempts in 0..5 {
        let (flush, batch) = map.lease_all();
        assert_eq!((&batch[..], flush.attempts()), (&expected[..], attempts));
        assert!(!map.put_newer(1, 99, 4), "in flight");
        assert_eq!(map.fail(&flush, None, None), given_back(1, 0));
        assert!(!map.put_newer(1, 99, 4), "it waits");
        assert_eq!((map.get(1), map.len()), (Some(40), 1));
    }
    assert!(map.put_newer(1, 50, 5));
    let (flush, batch) = map.lease_all();
    assert_eq!(batch, [Entry { key: 1, value: 50, version: 5, updates: 4 }]);
    assert_eq!(flush.attempts(), 0, "a newer write starts anew");
}

#[test]
fn a_write_over_what_waits_again_starts_without_attempts() {
    let writes: [fn(&Map); 3] = [
        |map| map.put(1, 11),
        |map| assert!(map.put_newer(1, 11, 6)),
        |map| {
            map.delete(1);
            assert!(map.put_new(1, 11));
        },
    ];
    for write in writes {
        let (map, flush) = start_in_flight();
        map.fail(&flush, None, None);
        write(&map);
        let (flush, batch) = map.lease_all();
        assert_eq!((batch[0].value, flush.attempts()), (11, 0));
    }
}

#[test]
fn large_terms_and_big_versions_survive_the_stores_they_came_from() {
    let map = Map::start();
    // Contents below 0 and above 40 are versions that need a heap. Some values are packed, some are
    // not.
    let entries: Vec<Entry> = (0..30)
        .map(|key| {
            let value = if key % 2 == 0 { LARGE + key } else { key };
            Entry { key, value, version: [-1_000, -41, -40, 0, 40, 41, 1_000][key as usize % 7] - key % 3, updates: 0 }
        })
        .collect();
    for &Entry { key, value, version, .. } in &entries {
        assert!(map.put_newer(key, value, version));
    }
    for _ in 0..3 {
        let (flush, mut batch) = map.lease_all();
        batch.sort_unstable();
        assert_eq!(batch, entries);
        let copies = copies(&flush);
        assert_eq!(map.fail(&flush, None, None), given_back(30, 0));
        reclaim::settle();
        let is_packed = |copy: &&TestTerm| copy.is_live();
        let live = copies.iter().filter(is_packed).count();
        assert!((1..30).contains(&live), "only heaps of their own go from store to store: {live}");
        for &Entry { key, value, version, .. } in &entries {
            assert_eq!(map.get(key), Some(value));
            assert!(!map.put_newer(key, 0, version), "version {version}");
        }
    }
    for &Entry { key, version, .. } in &entries {
        assert!(map.put_newer(key, key, version + 1));
    }
    assert!(map.succeed_with_all().iter().all(|entry| entry.value == entry.key && entry.updates == 1));
}

#[test]
fn resumed_reading_leaves_out_what_waits_and_what_was_deleted() {
    let map = Map::start();
    map.put_all(0..6);
    let flush = map.flush().unwrap();
    map.put(1, 11);
    map.put_newer(2, 22, 1);
    map.delete(3);
    assert_eq!(keys(&map.lease(&flush, 10)), [0, 1, 2, 4, 5], "the first reading leaves out what was deleted only");

    let map = Map::start();
    map.put_all(0..6);
    let flush = map.flush().unwrap();
    map.put(1, 11);
    map.put_newer(2, 22, 1);
    map.delete(3);
    assert_eq!(keys(&map.lease_resumed(&flush, 10)), [0, 4, 5]);
    map.succeed(&flush);
    assert_eq!(map.succeed_with_all(), [plain(1, 11), Entry { version: 1, ..plain(2, 22) }]);
}

// The table "Races" of the contract: A is key 1, with value 10 and version 5.

#[test]
fn race_nothing_comes_between() {
    let (map, flush) = start_in_flight();
    map.succeed(&flush);
    assert_eq!((map.get(1), map.flush().is_none()), (None, true));

    let (map, flush) = start_in_flight();
    assert_eq!(map.fail(&flush, None, None), given_back(1, 0));
    let (flush, batch) = map.lease_all();
    assert_eq!((batch[0].value, flush.attempts()), (10, 1));
}

#[test]
fn race_a_put_or_a_newer_version() {
    let writes: [fn(&Map); 2] = [|map| map.put(1, 20), |map| assert!(map.put_newer(1, 20, 6))];
    for write in writes {
        let (map, flush) = start_in_flight();
        write(&map);
        assert_eq!((map.get(1), map.len()), (Some(20), 1), "what waits hides what is in flight");
        map.succeed(&flush);
        let (second, batch) = map.lease_all();
        assert_eq!((batch[0].value, second.attempts()), (20, 0));
        map.succeed(&second);
        assert!(map.flush().is_none());

        let (map, flush) = start_in_flight();
        write(&map);
        assert_eq!(map.fail(&flush, None, Some(9)), given_back(0, 1));
        let (second, batch) = map.lease_all();
        assert_eq!((batch.len(), batch[0].value, batch[0].updates, second.attempts()), (1, 20, 0, 0));
    }
}

#[test]
fn race_a_version_that_is_not_newer() {
    for version in [4, 5] {
        let (map, flush) = start_in_flight();
        assert!(!map.put_newer(1, 20, version));
        map.succeed(&flush);
        assert_eq!((map.get(1), map.flush().is_none()), (None, true), "it was never stored");

        let (map, flush) = start_in_flight();
        assert!(!map.put_newer(1, 20, version));
        assert_eq!(map.fail(&flush, None, None), given_back(1, 0));
        assert!(!map.put_newer(1, 20, version), "it stays stale");
        assert_eq!(map.get(1), Some(10));
    }
}

#[test]
fn race_a_value_for_a_new_key() {
    let (map, flush) = start_in_flight();
    assert!(!map.put_new(1, 20));
    map.succeed(&flush);
    assert!(map.put_new(1, 20));
    assert_eq!(map.get(1), Some(20));

    let (map, flush) = start_in_flight();
    assert!(!map.put_new(1, 20));
    map.fail(&flush, None, None);
    assert!(!map.put_new(1, 20));
    assert_eq!(map.get(1), Some(10));
}

#[test]
fn race_a_delete_before_the_processor_has_the_entry() {
    let map = Map::start();
    map.put_all([1, 2]);
    let flush = map.flush().unwrap();
    map.delete(1);
    assert_eq!((map.get(1), map.partition.held()), (None, 1));
    assert_eq!(map.lease(&flush, 10), [plain(2, 2)]);
    map.succeed(&flush);
    assert!(map.flush().is_none());
}

#[test]
fn race_a_delete_when_the_processor_has_the_entry() {
    let (map, flush) = start_in_flight();
    map.delete(1);
    assert_eq!(map.get(1), None, "at once");
    map.succeed(&flush);
    assert_eq!((map.get(1), map.flush().is_none()), (None, true));

    let (map, flush) = start_in_flight();
    map.delete(1);
    assert_eq!(map.fail(&flush, None, None), given_back(0, 1));
    assert_eq!((map.get(1), map.flush().is_none()), (None, true), "it is not retried");
}

#[test]
fn race_a_delete_and_then_a_put() {
    let writes: [fn(&Map); 3] =
        [|map| map.put(1, 30), |map| assert!(map.put_new(1, 30)), |map| assert!(map.put_newer(1, 30, 1))];
    for write in writes {
        for is_success in [true, false] {
            let (map, flush) = start_in_flight();
            map.delete(1);
            write(&map);
            assert_eq!(map.get(1), Some(30));
            if is_success {
                map.succeed(&flush);
            } else {
                assert_eq!(map.fail(&flush, None, None), given_back(0, 1));
            }
            let (second, batch) = map.lease_all();
            assert_eq!((batch.len(), batch[0].value, second.attempts()), (1, 30, 0));
        }
    }
}

#[test]
fn race_a_delete_of_what_waits_and_of_what_is_in_flight() {
    let (map, flush) = start_in_flight();
    map.put(1, 20);
    map.delete(1);
    assert_eq!((map.get(1), map.len()), (None, 0));
    assert_eq!(map.fail(&flush, None, None), given_back(0, 1));
    assert!(map.flush().is_none());
}

#[test]
fn a_flush_of_which_all_was_deleted_is_freed_though_its_reader_has_died() {
    let map = Map::start();
    map.put_all([1, 2]);
    let flush = map.flush().unwrap();
    let copies = copies(&flush);
    map.delete(1);
    map.delete(2);
    assert_eq!(read(&flush, 1, 10, entry), Some(vec![]));
    drop(flush);
    assert!(map.flush().is_none());
    assert_freed(&copies);
}

/// Writers write versions of their own keys, while a processor fails with most batches.
#[test]
fn under_threads_an_entry_is_there_until_the_sink_has_it() {
    const WRITERS: i64 = 3;
    const WRITES: i64 = 10_000;
    const KEYS: u64 = 40;
    let map = Map::start();
    // The newest version of each key that the processor has succeeded with.
    let sink: Mutex<HashMap<i64, i64>> = Mutex::default();
    let done = AtomicBool::new(false);

    let process = |random: &mut Random| {
        let Some(flush) = map.flush() else { return thread::yield_now() };
        let batch = map.lease_resumed(&flush, 1 + random.below(30) as usize);
        let (is_counted, fails) = (random.below(4) > 0, random.below(4));
        let failed: Vec<usize> = (0..batch.len()).filter(|_| random.below(4) < fails).collect();
        for (_, entry) in batch.iter().enumerate().filter(|(number, _)| !failed.contains(number)) {
            let before = sink.lock().unwrap().insert(entry.key, entry.version);
            assert!(before.is_none_or(|before| before < entry.version), "{entry:?} after {before:?}");
        }
        let GivenBack { retried, superseded, given_up } = map.give_back(&flush, Some(&failed), is_counted, None);
        assert_eq!((retried + superseded, given_up), (failed.len(), 0));
    };
    let expected: HashMap<i64, i64> = thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(0);
            while !done.load(Ordering::SeqCst) {
                process(&mut random);
            }
        });
        let writers = [0, 1, 2].map(|writer| {
            let (map, sink) = (&map, &sink);
            scope.spawn(move || {
                let mut random = Random(writer as u64 + 1);
                let mut last = HashMap::new();
                for version in 1..=WRITES {
                    let key = random.below(KEYS) as i64 * WRITERS + writer;
                    assert!(map.put_newer(key, version, version), "a newer version is stored");
                    match map.get(key) {
                        Some(read) => assert_eq!(read, version),
                        None => assert_eq!(sink.lock().unwrap().get(&key), Some(&version)),
                    }
                    last.insert(key, version);
                }
                last
            })
        });
        let last = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        last
    });
    let rest = map.succeed_with_all();
    let mut sink = sink.into_inner().unwrap();
    for Entry { key, version, .. } in rest {
        assert!(sink.insert(key, version).is_none_or(|before| before < version));
    }
    assert_eq!(sink, expected);
}

#[test]
fn under_threads_each_entry_is_leased_by_one_reader() {
    const KEYS: i64 = 20_000;
    let map = Map::start();
    map.put_all(0..KEYS);
    let flush = map.flush().unwrap();
    // The first reader claims, the others lease.
    let read_all = &|reader| {
        let mut own = Vec::new();
        while flush.seen().left > 0 {
            let Some(batch) = read(&flush, reader, 7, entry) else { continue };
            let is_own = if reader == 1 { flush.claim(reader, 0) } else { flush.lease(reader, 0) };
            if is_own {
                own.extend(keys(&batch));
            }
            if is_own && reader != 1 && !batch.is_empty() {
                flush.succeed(reader);
            }
        }
        own
    };
    let mut all = thread::scope(|scope| {
        let readers = [1, 2, 3].map(|reader| scope.spawn(move || read_all(reader)));
        readers.map(|reader| reader.join().unwrap()).concat()
    });
    all.sort_unstable();
    assert!(all.into_iter().eq(0..KEYS), "each key once");
}

#[test]
fn a_key_that_is_always_written_again_comes_to_the_processor_every_second_time() {
    let map = Map::start();
    map.put(1, 0);
    for n in 1..5 {
        let flush = map.flush().unwrap();
        map.put(1, n);
        let batch = map.lease_resumed(&flush, 10);
        assert_eq!(batch.len(), usize::from(n % 2 == 0));
        map.succeed(&flush);
    }
}
