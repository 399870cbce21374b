//! Partitions of maps with outcomes: an entry is there until the processor has succeeded with it.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use common::map::{entry, Entry, Map, MapFlush};
use common::reading::read;
use partitioned_buffer_engine::{reclaim, BatchState, GivenBack};

/// A copy of the value of each entry in a flush, to see whether it is freed.
fn copies(flush: &MapFlush) -> Vec<common::TestTerm> {
    let frozen = flush.entries().unwrap();
    (0..flush.end()).filter_map(|position| frozen.record(position)).map(|record| record.value).collect()
}

fn assert_freed(copies: &[common::TestTerm]) {
    reclaim::settle();
    assert!(copies.iter().all(|copy| !copy.is_live()), "nothing refers to the stores");
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

#[test]
fn an_adopted_flush_that_an_old_reader_ends_is_freed_by_the_next_flush() {
    let old = Map::start();
    let new = Map::new(&old.hasher);
    old.put_all([1, 2]);
    let (flush, _) = old.lease_all();
    let copies = copies(&flush);
    new.partition.adopt(old.partition.evict());
    new.open(1);
    assert_eq!(new.get(1), Some(1));
    old.succeed(&flush);
    assert_eq!(new.get(1), None);
    assert!(new.flush().is_none());
    assert_freed(&copies);
}

#[test]
fn a_partition_that_is_opened_looks_into_its_oldest_unfinished_flush() {
    let old = Map::start();
    let new = Map::new(&old.hasher);
    old.put(1, 1);
    let (flush, _) = old.lease_all();
    old.put(2, 2);
    new.partition.adopt(old.partition.evict());
    old.succeed(&flush);
    new.open(1);
    assert_eq!(new.get(2), Some(2));
}

#[test]
fn a_newer_entry_of_a_later_flush_replaces_one_that_is_given_back_after_a_restart() {
    let old = Map::start();
    let new = Map::new(&old.hasher);
    old.put_newer(1, 10, 1);
    old.put(2, 2);
    old.lease_all();
    old.put_newer(1, 20, 2);
    new.partition.adopt(old.partition.evict());
    new.open(1);
    let left = new.flush().unwrap();
    assert_eq!(left.inherit(), Some((BatchState::Leased, 2)));
    assert_eq!(new.fail(&left, None, None), GivenBack { retried: 1, superseded: 1, given_up: 0 });
    let left: Vec<_> = new.succeed_with_all().iter().map(|entry| (entry.key, entry.value)).collect();
    assert_eq!(left, [(1, 20), (2, 2)]);
}

#[test]
fn an_old_reader_gives_entries_back_to_the_flush_that_another_partition_has_adopted() {
    let old = Map::start();
    let new = Map::new(&old.hasher);
    old.put(1, 1);
    let (flush, batch) = old.lease_all();
    new.partition.adopt(old.partition.evict());
    // Even if the old partition is open again.
    old.open(1);
    new.open(1);
    assert_eq!(old.fail(&flush, None, None).retried, 1);
    assert!(old.flush().is_none());
    assert_eq!(new.succeed_with_all(), batch);
}

#[test]
fn what_is_given_back_to_a_closed_partition_stays_in_the_flush_where_it_is_seen_after_the_reopening() {
    let map = Map::start();
    (1..=4).for_each(|key| assert!(map.put_newer(key, 10 * key, 5)));
    let flush = map.flush().unwrap();
    let order: Vec<i64> = read(&flush, 1, 4, |record| entry(record).key).unwrap();
    assert!(flush.lease(1, 0));
    map.partition.close();
    // The others have succeeded.
    assert_eq!(map.fail(&flush, Some(&[0, 2]), None), GivenBack { retried: 2, superseded: 0, given_up: 0 });
    assert_eq!(map.partition.held(), 2);
    map.open(1);
    assert_eq!(map.len(), 0);
    let [first, second, third, fourth] = order[..] else { panic!("four entries") };
    let seen = [first, second, third, fourth].map(|key| map.get(key));
    assert_eq!(seen, [Some(10 * first), None, Some(10 * third), None]);
    assert!(!map.put_newer(first, 1, 5), "the version in the flush is as high");
    assert!(!map.put_new(third, 1));
    assert!(map.put_new(second, 1));
    assert!(map.put_newer(fourth, 1, 1));
    map.delete(third);
    assert_eq!((map.get(third), map.partition.held()), (None, 3));

    let rest = map.flush().unwrap();
    let retried = map.lease_resumed(&rest, 10);
    assert_eq!(retried, [Entry { key: first, value: 10 * first, version: 5, updates: 0 }]);
    assert_eq!(rest.attempts(), 1);
    assert_eq!(map.fail(&rest, None, None), GivenBack { retried: 1, superseded: 0, given_up: 0 });
    assert_eq!((map.len(), map.get(first)), (3, Some(10 * first)), "it waits in an open partition");
    assert_eq!(map.succeed_with_all().len(), 3);
}
