//! Batches that are given back in steps, and readers that die before or between them.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::counter::Counter;
use common::map::Map;
use common::queue;
use common::reading::{all_of, batch, flush, give_back, read, read_resumed, GivenBack};
use common::{assert_law, content, ONE};
use partitioned_buffer_engine::{BatchState, Bound, GaveBack, GiveBack, Hasher, Leased, Limits, MapPartition};

/// The result of a step.
fn gave_back(retried: usize, superseded: usize, given_up: usize, is_done: bool) -> GaveBack {
    GaveBack { retried, superseded, given_up, is_done }
}

/// A map with a bound.
fn bounded() -> (Map, Arc<Bound>) {
    let (hasher, bound) = (Hasher::new(), Arc::new(Bound::default()));
    let map = Map { partition: MapPartition::with_bound(&hasher, &bound), hasher };
    map.open(1);
    bound.set_limits(Limits { entries: Some(1_000), bytes: Some(1 << 40) });
    map.partition.set_bounded(true);
    (map, bound)
}

fn assert_map_law(map: &Map, bound: &Bound) {
    assert_law(std::slice::from_ref(&map.partition), Some(bound));
}

fn key(record: partitioned_buffer_engine::generation::Record<common::TestTerm>) -> i64 {
    content(record.key).1
}

#[test]
fn a_reader_that_leaves_out_the_last_entries_and_dies_leaks_no_room() {
    let (map, bound) = bounded();
    map.put_all(0..20);
    let flush = map.flush().unwrap();
    (0..10).for_each(|key| map.delete(key));
    map.put_all(10..20);
    assert_eq!(read_resumed(&map.partition, &flush, 1, 100, key), Some(vec![]));
    drop(flush);
    assert_map_law(&map, &bound);
    let info = map.partition.info();
    assert_eq!((info.in_flight, info.waiting, info.ended.superseded, bound.held()), (0, 10, 20, 10));
    assert_eq!(map.succeed_with_all().len(), 10);
    assert_map_law(&map, &bound);
}

#[test]
fn entries_left_out_behind_a_lost_batch_are_counted_once() {
    let (map, bound) = bounded();
    map.put_all(0..20);
    let flush = map.flush().unwrap();
    let first = read(&flush, 1, 1, key).unwrap()[0];
    (0..20).filter(|&key| key != first).for_each(|key| map.delete(key));
    for reader in 2..5 {
        assert_eq!(read(&flush, reader, 9, key), Some(vec![first]));
        assert_map_law(&map, &bound);
        assert_eq!((map.partition.info().in_flight, bound.held()), (1, 1));
    }
    assert_eq!((flush.inherit(9, None), flush.seen().left), (None, 1));
    map.delete(first);
    assert_eq!(read(&flush, 9, 9, key), Some(vec![]));
    assert_eq!((flush.seen().left, map.partition.held()), (0, 0));
    assert_map_law(&map, &bound);
}

#[test]
fn a_reader_of_a_counter_that_leaves_out_entries_and_dies_leaks_none() {
    let counter = Counter::start();
    (0..10).for_each(|key| counter.add(key, 1));
    let first = flush(&counter.partition).unwrap();
    (1..10).for_each(|key| counter.delete(key));
    for reader in 1..4 {
        assert_eq!(read(&first, reader, 10, common::counter::sum), Some(vec![(0, 1, 1)]));
        assert_law(std::slice::from_ref(&counter.partition), None);
        assert_eq!(counter.partition.info().in_flight, 1);
    }
    counter.delete(0);
    assert_eq!(read(&first, 4, 10, common::counter::sum), Some(vec![]));
    assert_eq!((counter.partition.info().in_flight, counter.partition.info().ended.superseded), (0, 10));
    assert!(flush(&counter.partition).is_none());
}

#[test]
fn failed_numbers_are_those_of_the_whole_batch_in_each_step() {
    let (map, bound) = bounded();
    map.put_all(0..10);
    let flush = map.flush().unwrap();
    let batch = map.lease(&flush, 10);
    let step = GiveBack { failed: Some(&[0, 3, 4, 9]), count: 3, ..all_of(1) };
    for (retried, left) in [(1, 7), (2, 4), (0, 1)] {
        assert_eq!(map.partition.give_back(&flush, step), gave_back(retried, 0, 0, false));
        assert_eq!((flush.inherit(1, None), flush.seen().left), (Some((BatchState::Leased, left)), left));
        assert_map_law(&map, &bound);
    }
    assert_eq!(map.partition.give_back(&flush, step), gave_back(1, 0, 0, true));
    assert_map_law(&map, &bound);
    let failed: Vec<i64> = [0, 3, 4, 9].iter().map(|&number: &usize| batch[number].key).collect();
    assert!(failed.iter().all(|&key| map.get(key).is_some()));
    assert_eq!((map.len(), map.partition.info().ended.processed, bound.held()), (4, 6, 4));
    assert_eq!(map.partition.give_back(&flush, step), gave_back(0, 0, 0, true), "nothing is left");
}

#[test]
fn an_heir_gives_back_the_rest_of_a_map_that_a_dead_reader_began_with() {
    let (map, bound) = bounded();
    map.put_all(0..6);
    let (flush, batch) = map.lease_all();
    let failed = GiveBack { failed: Some(&[0, 2, 3, 4, 5]), count: 2, ..all_of(1) };
    assert_eq!(map.partition.give_back(&flush, failed), gave_back(1, 0, 0, false));
    assert_eq!(flush.inherit(2, None), Some((BatchState::Leased, 4)));
    assert_eq!(map.partition.give_back(&flush, failed), gave_back(0, 0, 0, true), "it is not his");
    flush.succeed(2);
    assert_eq!(read(&flush, 2, 9, key), None, "a batch half given back cannot succeed");
    map.delete(batch[3].key);
    map.put(batch[4].key, 44);
    assert_map_law(&map, &bound);
    assert_eq!(give_back(&map.partition, &flush, all_of(2)), GivenBack { retried: 2, superseded: 2, given_up: 0 });
    let info = map.partition.info();
    assert_eq!((info.waiting, info.in_flight, info.ended.processed, info.ended.failed), (4, 0, 1, 5));
    assert_map_law(&map, &bound);
    let (flush, _) = map.lease_all();
    assert_eq!(flush.attempts(), 1);
}

#[test]
fn an_heir_gives_back_the_rest_of_a_counter_and_all_adds_up() {
    let counter = Counter::start();
    (0..4).for_each(|key| counter.add(key, 10));
    let (flush, _) = counter.lease_all();
    let step = GiveBack { count: 1, ..all_of(1) };
    for done in 1..=2 {
        (0..4).for_each(|key| counter.add(key, 1));
        assert_eq!(counter.partition.give_back(&flush, step), gave_back(1, 0, 0, false));
        (0..4).for_each(|key| assert_eq!(counter.sum(key), Some(10 + done)));
        assert_law(std::slice::from_ref(&counter.partition), None);
    }
    assert_eq!(flush.inherit(2, None), Some((BatchState::Leased, 2)));
    assert_eq!(give_back(&counter.partition, &flush, all_of(2)), GivenBack::retried(2));
    let (flush, batch) = counter.lease_all();
    assert_eq!((batch, flush.attempts()), ((0..4).map(|key| (key, 12, 3)).collect(), 1));
    assert_law(std::slice::from_ref(&counter.partition), None);
}

#[test]
fn an_heir_gives_back_the_rest_of_a_queue_in_its_order() {
    let queue = queue::start();
    queue::push_all(&queue, 0..8);
    let (flush, _) = queue::lease(&queue, 6);
    let step = GiveBack { failed: Some(&[1, 2, 4]), count: 4, ..all_of(1) };
    assert_eq!(queue.give_back(&flush, step), gave_back(2, 0, 0, false));
    assert_eq!((queue.held(), queue.info().in_flight, flush.seen().left), (6, 6, 6));
    assert_law(std::slice::from_ref(&queue), None);
    assert_eq!(flush.inherit(2, None), Some((BatchState::Leased, 2)));
    assert_eq!(queue.give_back(&flush, all_of(2)), gave_back(2, 0, 0, true));
    assert_eq!((queue.held(), queue.info().retried), (6, 4));
    assert_law(std::slice::from_ref(&queue), None);
    assert_eq!(read(&flush, 3, 64, queue::item).unwrap(), [1, 2, 4, 5, 6, 7]);
    assert_eq!(flush.attempts(), 1);
}

#[test]
fn entries_given_up_in_steps_are_the_batch_after_the_last_one() {
    let queue = queue::start();
    queue::push_all(&queue, 0..6);
    let (flush, _) = queue::lease(&queue, 6);
    let step = GiveBack { failed: Some(&[0, 2, 3, 5]), max_attempts: Some(1), count: 2, ..all_of(1) };
    for left in [4, 2] {
        assert_eq!(queue.give_back(&flush, step).given_up, if left == 4 { 1 } else { 2 });
        assert_eq!(flush.inherit(1, None), Some((BatchState::Leased, left)));
        assert_eq!(read(&flush, 2, 1, queue::item), None);
        assert_law(std::slice::from_ref(&queue), None);
    }
    assert_eq!(queue.give_back(&flush, step), gave_back(0, 0, 1, true));
    assert_eq!((flush.inherit(2, None), flush.attempts()), (Some((BatchState::GivenUp, 4)), 1));
    assert_eq!(batch(&flush, queue::item), [0, 2, 3, 5]);
    flush.succeed(2);
    let info = queue.info();
    assert_eq!((info.ended.given_up, info.ended.processed, queue.held()), (4, 2, 0));
    assert_law(std::slice::from_ref(&queue), None);
}

#[test]
fn a_step_of_no_entries_takes_one() {
    let map = Map::start();
    map.put_all(0..2);
    let (flush, _) = map.lease_all();
    let step = GiveBack { count: 0, ..all_of(1) };
    assert_eq!(map.partition.give_back(&flush, step), gave_back(1, 0, 0, false));
    assert_eq!(map.partition.give_back(&flush, step), gave_back(1, 0, 0, true));
    assert_eq!(map.partition.len(ONE), Ok(2));
}

#[test]
fn a_closed_map_takes_back_what_has_failed() {
    let map = Map::start();
    map.put_all(0..3);
    let (flush, _) = map.lease_all();
    map.partition.close();
    assert_eq!(map.fail(&flush, None, None), GivenBack::retried(3));
    assert_eq!((map.partition.info().waiting, map.partition.held()), (3, 3));
    map.open(1);
    assert_eq!(map.succeed_with_all().len(), 3);
}

#[test]
fn a_leased_batch_has_its_length_until_its_last_step() {
    let (map, bound) = bounded();
    map.put_all(0..10);
    let flush = map.flush().unwrap();
    assert_eq!(flush.leased(1), None);
    assert_eq!(read(&flush, 1, 6, key).unwrap().len(), 6);
    assert_eq!(flush.leased(1), None, "it is only read");
    assert!(flush.lease(1, 0));
    let leased = |next| Some(Leased { next, length: 6 });
    assert_eq!((flush.leased(1), flush.leased(2)), (leased(0), None));
    map.partition.give_back(&flush, GiveBack { count: 2, ..all_of(1) });
    assert_eq!((flush.leased(1), flush.leased(2)), (leased(2), None));
    assert_eq!(flush.inherit(2, None), Some((BatchState::Leased, 4)));
    assert_eq!((flush.leased(1), flush.leased(2)), (None, leased(2)));
    // Of a step, only the numbers of its entries have to be known.
    map.partition.give_back(&flush, GiveBack { failed: Some(&[2]), count: 1, ..all_of(2) });
    let step = GiveBack { failed: Some(&[3, 5]), count: 3, ..all_of(2) };
    assert_eq!(map.partition.give_back(&flush, step), gave_back(2, 0, 0, true));
    assert_eq!((flush.leased(1), flush.leased(2)), (None, None));
    assert_eq!(map.partition.info().ended.processed, 1);
    assert_map_law(&map, &bound);
}
