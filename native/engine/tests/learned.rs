//! Lessons that a partition learns from failures, and calls of the processor that are lost.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::map::{entry, Map, MapFlush};
use common::reading::{all_of, give_back, read};
use partitioned_buffer_engine::{GiveBack, Learned};

const MINUTE: Duration = Duration::from_secs(60);

/// A map with these keys in a leased batch.
fn start(keys: i64) -> (Map, Arc<MapFlush>) {
    let map = Map::start();
    map.put_all(0..keys);
    let (flush, _) = map.lease_all();
    (map, flush)
}

fn learned(map: &Map) -> Learned {
    map.partition.learned()
}

/// Leases all again, and gives it back with a pause.
fn fail_again(map: &Map, failed: Option<&[usize]>, counted: bool) {
    let (flush, _) = map.lease_all();
    give_back(&map.partition, &flush, GiveBack { failed, counted, pause: Some(MINUTE), ..all_of(1) });
}

#[test]
fn failures_in_a_row_are_counted_until_a_success() {
    let (map, flush) = start(4);
    assert_eq!(learned(&map), Learned::default());
    let before = Instant::now();
    give_back(&map.partition, &flush, GiveBack { pause: Some(MINUTE), ..all_of(1) });
    let first = learned(&map);
    assert_eq!((first.failures, first.failed), (1, 4));
    assert!(first.failing_since.unwrap() >= before && first.paused_until.unwrap() >= before + MINUTE);
    fail_again(&map, None, true);
    let second = learned(&map);
    assert_eq!((second.failures, second.failing_since, second.failed), (2, first.failing_since, 4));
    assert!(second.paused_until > first.paused_until);
    let (flush, _) = map.lease_all();
    map.succeed(&flush);
    let Learned { failures, failing_since, failed, .. } = learned(&map);
    assert_eq!((failures, failing_since, failed), (0, None, 0));
}

#[test]
fn a_failure_that_is_not_counted_pauses_only() {
    let (map, flush) = start(2);
    give_back(&map.partition, &flush, GiveBack { counted: false, pause: Some(MINUTE), ..all_of(1) });
    let Learned { failures, failing_since, paused_until, failed, .. } = learned(&map);
    assert_eq!((failures, failing_since, failed), (0, None, 2));
    assert!(paused_until.is_some());
    map.partition.pause(Duration::ZERO, false);
    assert_eq!(learned(&map).paused_until, paused_until, "a pause does not become shorter");
    map.partition.end_pause();
    assert_eq!(learned(&map).paused_until, None);
    map.partition.pause(MINUTE, true);
    map.partition.pause(Duration::MAX, true);
    assert_eq!(learned(&map).failures, 2);
    assert!(learned(&map).paused_until.unwrap() > Instant::now() + 1_000 * MINUTE);
}

#[test]
fn a_batch_that_fails_in_part_ends_the_failures_before_it() {
    let (map, flush) = start(4);
    give_back(&map.partition, &flush, GiveBack { pause: Some(MINUTE), ..all_of(1) });
    fail_again(&map, None, true);
    fail_again(&map, Some(&[1]), true);
    assert_eq!(learned(&map).failures, 1, "the failure of the last batch");
    fail_again(&map, Some(&[]), true);
    assert_eq!((learned(&map).failures, learned(&map).failed), (1, 0), "the pause is a failure");
}

#[test]
fn only_a_pause_whose_time_is_over_is_passed() {
    let (map, _flush) = start(1);
    map.partition.pause(Duration::ZERO, false);
    map.partition.pause(MINUTE, false);
    assert_eq!(map.partition.pass_pause(), learned(&map).paused_until);
    assert!(learned(&map).paused_until.is_some(), "it was prolonged");
    map.partition.end_pause();
    map.partition.pause(Duration::ZERO, false);
    assert_eq!((map.partition.pass_pause(), learned(&map).paused_until), (None, None));
}

#[test]
fn the_last_step_decides_on_failures_and_pause() {
    let (map, flush) = start(4);
    map.partition.pause(MINUTE, true);
    map.partition.end_pause();
    let step = GiveBack { failed: Some(&[0, 1, 3]), pause: Some(MINUTE), count: 1, ..all_of(1) };
    for failed in [1, 2, 2] {
        assert!(!map.partition.give_back(&flush, step).is_done);
        let Learned { failures, paused_until, failed: learned, .. } = learned(&map);
        assert_eq!((failures, paused_until, learned), (1, None, failed));
    }
    // The success was in an earlier step, and of another reader.
    flush.inherit(2, None);
    assert!(map.partition.give_back(&flush, GiveBack { pause: None, ..all_of(2) }).is_done);
    assert_eq!((learned(&map).failures, learned(&map).paused_until, learned(&map).failed), (0, None, 3));
}

#[test]
fn entries_given_up_have_not_failed_and_their_end_is_no_success() {
    let (map, flush) = start(3);
    let step = GiveBack { max_attempts: Some(1), pause: Some(MINUTE), ..all_of(1) };
    assert_eq!(give_back(&map.partition, &flush, step).given_up, 3);
    assert_eq!((learned(&map).failed, map.partition.info().ended.failed), (0, 3));
    flush.bury(0);
    map.succeed(&flush);
    assert_eq!((learned(&map).failures, map.partition.info().ended.given_up), (1, 3));
}

#[test]
fn a_cancelled_entry_ends_the_splits_before_it_and_was_no_matter_of_size() {
    let (map, flush) = start(2);
    assert_eq!(flush.split(1), Some((2, 1)));
    assert!(learned(&map).failing_since.is_some());
    for _ in 0..2 {
        map.partition.end_pause();
        let (flush, _) = map.lease_all();
        give_back(&map.partition, &flush, GiveBack { max_attempts: Some(0), ..all_of(1) });
        map.succeed(&flush);
    }
    let Learned { failing_since, isolation, .. } = learned(&map);
    assert_eq!((failing_since, isolation.limit, isolation.ceiling), (None, 1, usize::MAX));
}

#[test]
fn only_a_flush_that_is_given_starts_to_count_failed_entries_anew() {
    let (map, flush) = start(2);
    give_back(&map.partition, &flush, all_of(1));
    assert_eq!(learned(&map).failed, 2);
    map.delete(0);
    map.delete(1);
    assert!(map.flush().is_none());
    assert_eq!(learned(&map).failed, 2);
    map.put(1, 1);
    map.flush().unwrap();
    assert_eq!(learned(&map).failed, 0);
}

#[test]
fn an_evicted_partition_forgets_its_lessons() {
    let (map, flush) = start(2);
    give_back(&map.partition, &flush, GiveBack { pause: Some(MINUTE), ..all_of(1) });
    let new = Map::new(&map.hasher);
    let evicted = map.partition.evict();
    evicted.entries().for_each(|leftover| new.partition.take_in(&leftover));
    new.partition.adopt_counts(&map.partition);
    assert_eq!((learned(&map), learned(&new)), (Learned::default(), Learned::default()));
    assert_eq!(new.partition.info().ended.failed, 2);
}

/// A map of four keys, of which reader 1 has claimed some.
fn start_claimed(size: usize) -> (Map, Arc<MapFlush>) {
    let map = Map::start();
    map.put_all(0..4);
    let flush = map.flush().unwrap();
    claim(&flush, 1, size);
    (map, flush)
}

fn claim(flush: &MapFlush, reader: u64, size: usize) {
    assert_eq!(read(flush, reader, size, entry).unwrap().len(), size);
    assert!(flush.claim(reader, 0));
}

/// The entries that have failed, by the totals and by the lessons.
fn failed(map: &Map) -> (usize, usize) {
    (map.partition.info().ended.failed, learned(map).failed)
}

#[test]
fn the_next_read_of_the_reader_confirms_its_call() {
    let (map, flush) = start_claimed(2);
    map.partition.pause(MINUTE, true);
    assert!(flush.read(1, 7, 9).is_none(), "any length");
    assert_eq!((flush.lost(None), map.partition.lost(), failed(&map)), (0, 0, (0, 0)));
    assert_eq!(learned(&map).failures, 0, "the processor has succeeded");
    // One that finds nothing as well.
    claim(&flush, 1, 2);
    assert_eq!(flush.seen().left, 0);
    assert!(flush.read(1, 0, 9).is_none());
    assert_eq!(map.partition.lost(), 0);
}

#[test]
fn a_call_of_a_dead_reader_is_lost() {
    let (map, flush) = start_claimed(3);
    assert_eq!(flush.inherit(2, None), None);
    assert_eq!(flush.lost(Some(1)), 0, "its own call may still return");
    assert_eq!(read(&flush, 2, 9, entry).unwrap().len(), 1, "the read of another reader confirms nothing");
    assert_eq!((flush.lost(Some(2)), failed(&map)), (3, (3, 3)));
    assert_eq!((flush.lost(Some(2)), flush.lost(None), map.partition.lost()), (0, 0, 0));
    assert!(flush.claim(2, 0));
    assert_eq!((map.partition.lost(), failed(&map)), (1, (4, 4)), "the flush is finished");
    assert_eq!(map.partition.info().ended.processed, 4);
}

#[test]
fn a_claim_of_another_reader_means_that_the_call_before_is_lost() {
    let (map, flush) = start_claimed(3);
    claim(&flush, 2, 1);
    assert_eq!((failed(&map), flush.lost(None), failed(&map)), ((3, 3), 1, (4, 4)));
}

#[test]
fn a_finished_flush_is_asked_for_its_call_until_the_next_one() {
    let (map, flush) = start_claimed(4);
    drop(flush);
    assert!(map.flush().is_none());
    map.partition.settle(&map.partition.in_flight().unwrap());
    assert_eq!((map.partition.lost(), map.partition.lost()), (4, 0));
    map.put_all(0..4);
    let next = map.flush().unwrap();
    assert_eq!((failed(&map), map.partition.lost()), ((4, 0), 0));
    claim(&next, 1, 4);
    map.put(1, 1);
    map.flush().unwrap();
    assert_eq!(map.partition.lost(), 0, "the new flush has no call");
}

#[test]
fn an_empty_claim_opens_no_call() {
    let map = Map::start();
    map.put_all(0..2);
    let flush = map.flush().unwrap();
    [0, 1].into_iter().for_each(|key| map.delete(key));
    assert_eq!(read(&flush, 1, 9, entry), Some(vec![]));
    assert!(flush.claim(1, 0));
    assert_eq!(map.partition.lost(), 0);
}
