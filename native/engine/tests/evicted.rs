//! Partitions that take in the entries of evicted ones, as at a restart with another partition
//! count.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::counter::{sum, Counter};
use common::map::{entry, Entry, Map};
use common::reading::{all_of, batch, contents, flush, give_back, read, GivenBack};
use common::{assert_law, queue, TestTerm, LARGE};
use partitioned_buffer_engine::{
    reclaim, BatchState, Bound, Evicted, Flushed, GaveBack, GiveBack, Hasher, Limits, MapPartition, Partition,
    QueuePartition, Store,
};

/// Moves all entries of a partition to another one, with what was counted of them.
fn move_all<S: Store, const SHARDS: usize>(old: &Partition<S, SHARDS>, new: &Partition<S, SHARDS>) {
    take_in(new, &old.evict());
    new.adopt_counts(old);
    let info = old.info();
    assert_eq!((info.waiting, info.in_flight, old.held()), (0, 0, 0));
    assert_law(std::slice::from_ref(new), None);
}

fn take_in<S: Store, const SHARDS: usize>(partition: &Partition<S, SHARDS>, evicted: &Evicted<S>) {
    evicted.entries().for_each(|leftover| partition.take_in(&leftover));
}

/// Two maps of one buffer, the first one open.
fn maps() -> (Map, Map) {
    let old = Map::start();
    let new = Map::new(&old.hasher);
    (old, new)
}

/// The entries that a new map gets from an old one, and their highest attempts.
fn moved(old: &Map, new: &Map) -> (Vec<Entry>, u32) {
    move_all(&old.partition, &new.partition);
    new.open(1);
    let (flush, mut batch) = new.lease_all();
    batch.sort_unstable();
    let attempts = flush.attempts();
    new.succeed(&flush);
    (batch, attempts)
}

fn plain(key: i64, value: i64) -> Entry {
    Entry { key, value, version: 0, updates: 0 }
}

#[test]
fn waiting_entries_hide_those_in_flight_whatever_their_version() {
    let (old, new) = maps();
    old.put_newer(1, 10, 5);
    old.put(2, 20);
    old.put_newer(3, 30, 1);
    old.lease_all();
    old.put(1, 11);
    old.put_newer(3, 31, 2);
    let superseded = |map: &Map| map.partition.info().ended.superseded;
    let (batch, attempts) = moved(&old, &new);
    assert_eq!(batch, [plain(1, 11), plain(2, 20), Entry { version: 2, ..plain(3, 31) }]);
    assert_eq!((attempts, superseded(&new), superseded(&old)), (1, 2, 0));
}

#[test]
fn an_entry_keeps_its_version_its_updates_and_its_attempts() {
    let (old, new) = maps();
    (1..=3).for_each(|version| assert!(old.put_newer(1, LARGE + version, 100 * version)));
    let (flush, _) = old.lease_all();
    old.fail(&flush, None, None);
    let expected = Entry { key: 1, value: LARGE + 3, version: 300, updates: 2 };
    let since = old.partition.info().since;
    assert_eq!(since, flush_since(&old));
    move_all(&old.partition, &new.partition);
    assert_eq!(new.partition.info().since, since);
    assert_eq!(new.partition.info().retried, 1);
    new.open(1);
    let (flush, batch) = new.lease_all();
    assert_eq!((batch, flush.attempts()), (vec![expected], 1));
    // The lease has no outcome, so it is another attempt.
    let (batch, attempts) = moved(&new, &old);
    assert_eq!((batch, attempts), (vec![expected], 2));
}

/// When the oldest entry was written, after another look.
fn flush_since(map: &Map) -> Option<std::time::Instant> {
    map.partition.info().since
}

#[test]
fn attempts_depend_on_how_far_the_batch_has_come() {
    let start = |keys: i64| {
        let (old, new) = maps();
        old.put_all(0..keys);
        let flush = old.flush().unwrap();
        (old, new, flush)
    };
    let (old, new, flush) = start(4);
    assert_eq!(read(&flush, 1, 2, entry).unwrap().len(), 2);
    let (batch, attempts) = moved(&old, &new);
    assert_eq!((batch.len(), attempts), (4, 0), "a batch that was only read");

    let (old, new, flush) = start(4);
    assert_eq!(read(&flush, 1, 3, entry).unwrap().len(), 3);
    assert!(flush.claim(1, 0));
    let (batch, attempts) = moved(&old, &new);
    assert_eq!((batch.len(), attempts), (1, 0), "a claimed batch is gone");
    assert_eq!(flush.lost(None), 0);

    let (old, new, flush) = start(4);
    old.lease(&flush, 3);
    let (batch, attempts) = moved(&old, &new);
    assert_eq!((batch.len(), attempts), (4, 1), "a leased batch");

    for is_buried in [false, true] {
        let (old, _new, flush) = start(4);
        old.lease(&flush, 3);
        assert_eq!(old.fail(&flush, None, Some(1)).given_up, 3);
        if is_buried {
            flush.bury(1);
        }
        let evicted = old.partition.evict();
        assert_eq!((evicted.given_up().count(), evicted.entries().count()), (3, 1));
    }
}

#[test]
fn entries_given_up_are_a_batch_of_dead_letters_that_no_operation_sees() {
    let hasher = Hasher::new();
    let [one, two, new] = [(), (), ()].map(|()| Map::new(&hasher));
    for (map, first) in [(&one, 0), (&two, 10)] {
        map.partition.set_outcomes(true);
        map.open(1);
        map.put_all(first..first + 4);
        let (flush, _batch) = map.lease_all();
        let step = GiveBack { failed: Some(&[0, 1, 2]), max_attempts: Some(1), ..all_of(1) };
        assert_eq!(give_back(&map.partition, &flush, step).given_up, 3);
        map.put(first, 1);
    }
    let evicted = [&one, &two].map(|map| map.partition.evict());
    evicted.iter().for_each(|evicted| take_in(&new.partition, evicted));
    let given_up: Vec<_> = evicted.iter().flat_map(|evicted| evicted.given_up()).collect();
    new.partition.take_in_given_up(&given_up);
    [&one, &two].iter().for_each(|map| new.partition.adopt_counts(&map.partition));
    assert_law(std::slice::from_ref(&new.partition), None);
    new.partition.set_outcomes(true);
    new.open(1);
    assert_eq!((new.partition.held(), new.get(0), new.get(1), new.get(10)), (8, Some(1), None, Some(1)));
    let Some(Flushed::Rest(flush)) = new.partition.flush() else { panic!("the batch given up comes first") };
    assert!(flush.read(1, 0, 9).is_none(), "the processor does not get it");
    assert_eq!(flush.inherit(1, None), Some((BatchState::GivenUp, 6)));
    assert_eq!((batch(&flush, entry).len(), flush.attempts()), (6, 1));
    flush.succeed(1);
    new.partition.settle(&flush);
    assert_eq!((new.partition.info().ended.given_up, new.partition.info().ended.processed), (6, 2));
    assert_eq!(new.succeed_with_all().len(), 2);
    assert_law(std::slice::from_ref(&new.partition), None);
}

#[test]
fn without_outcomes_an_unseen_higher_version_is_kept() {
    let (old, new) = maps();
    old.partition.set_outcomes(false);
    for key in 0..4 {
        old.put_newer(key, 10, 5);
    }
    old.flush().unwrap();
    // These writes do not see the entries in flight.
    assert!(old.put_newer(0, 11, 4) && old.put_newer(1, 11, 5) && old.put_newer(2, 11, 6));
    old.put(3, 11);
    let (batch, _attempts) = moved(&old, &new);
    assert_eq!(batch.iter().map(|entry| entry.value).collect::<Vec<_>>(), [10, 11, 11, 11]);
    assert_eq!(new.partition.info().ended.superseded, 4);
}

#[test]
fn deleted_entries_stay_deleted() {
    let (old, new) = maps();
    old.put_all(0..6);
    let flush = old.flush().unwrap();
    let leased = old.lease(&flush, 3);
    let ahead = (0..6).find(|&key| leased.iter().all(|entry| entry.key != key)).unwrap();
    old.put(7, 7);
    [leased[1].key, ahead, 7].into_iter().for_each(|key| old.delete(key));
    let (batch, _attempts) = moved(&old, &new);
    assert_eq!(batch.len(), 4);
    assert!(batch.iter().all(|entry| ![leased[1].key, ahead, 7].contains(&entry.key)));
    assert_eq!(new.partition.info().ended.superseded, 2);
    assert_eq!(new.partition.info().writes.deleted, 1);
}

#[test]
fn of_two_partitions_the_higher_version_of_a_key_is_kept() {
    for is_newer_first in [true, false] {
        let [one, two, new] = {
            let hasher = Hasher::new();
            [(), (), ()].map(|()| Map::new(&hasher))
        };
        [&one, &two].iter().for_each(|map| map.open(1));
        assert!(one.put_newer(1, 10, 90) && one.put_newer(1, LARGE, 100) && two.put_newer(1, 20, 5));
        one.put(2, 12);
        two.put(2, 22);
        let (flush, _) = one.lease_all();
        one.fail(&flush, None, None);
        let evicted = if is_newer_first { [one, two] } else { [two, one] };
        let first = evicted[0].partition.evict();
        let second = evicted[1].partition.evict();
        [&first, &second].iter().for_each(|evicted| take_in(&new.partition, evicted));
        evicted.iter().for_each(|map| new.partition.adopt_counts(&map.partition));
        assert_law(std::slice::from_ref(&new.partition), None);
        assert_eq!(new.partition.info().retried, if is_newer_first { 2 } else { 1 });
        drop((first, second));
        reclaim::settle();
        new.open(1);
        assert_eq!(new.get(1), Some(LARGE));
        assert!(!new.put_newer(1, 0, 100));
        let batch = new.succeed_with_all();
        assert_eq!(batch[0], Entry { key: 1, value: LARGE, version: 100, updates: 1 });
        assert_eq!(batch[1].value, if is_newer_first { 12 } else { 22 }, "of equal versions the first");
        assert_law(std::slice::from_ref(&new.partition), None);
    }
}

#[test]
fn calls_of_old_readers_change_nothing() {
    let (old, new) = maps();
    old.put_all(0..4);
    let flush = old.flush().unwrap();
    old.lease(&flush, 2);
    move_all(&old.partition, &new.partition);
    new.open(1);
    assert!(flush.read(1, 0, 9).is_none() && flush.read(1, 2, 9).is_none());
    assert!(!flush.claim(1, 0) && !flush.lease(1, 0));
    assert_eq!(flush.inherit(2, None), None);
    assert!(!flush.claim(2, 0) && !flush.lease(2, 0));
    flush.succeed(1);
    flush.bury(0);
    assert_eq!(old.partition.give_back(&flush, all_of(1)), GaveBack { is_done: true, ..GaveBack::default() });
    assert!(batch(&flush, entry).is_empty() && flush.entries().is_none());
    assert_eq!((flush.seen().left, flush.seen().calls, flush.attempts(), flush.lost(None)), (0, 1, 0, 0));
    old.partition.settle(&flush);
    assert!(old.partition.in_flight().is_none() && old.flush().is_none());
    assert_eq!((old.partition.held(), old.partition.info().ended.processed), (0, 0));
    assert_eq!(new.succeed_with_all().len(), 4);
    assert_law(&[old.partition, new.partition], None);
}

#[test]
fn an_evicted_reader_can_still_read_what_it_holds() {
    let (old, new) = maps();
    old.put_all(0..4);
    let (flush, _) = old.lease_all();
    let frozen = flush.entries().unwrap();
    let (batch, _attempts) = moved(&old, &new);
    reclaim::settle();
    let mut read = contents(&frozen, entry);
    read.sort_unstable();
    assert_eq!(read, batch);
    let copies: Vec<TestTerm> = contents(&frozen, |entry| entry.key.term);
    drop(frozen);
    reclaim::settle();
    assert!(copies.iter().all(|copy| !copy.is_live()), "nothing refers to the stores");
}

#[test]
fn a_batch_half_given_back_is_moved_as_a_whole() {
    let (old, new) = maps();
    old.put_all(0..6);
    let (flush, batch) = old.lease_all();
    let step = GiveBack { failed: Some(&[0, 1, 3]), max_attempts: Some(2), count: 3, ..all_of(1) };
    assert_eq!(old.partition.give_back(&flush, step).retried, 2);
    let (left, attempts) = moved(&old, &new);
    assert_eq!((left.len(), attempts), (5, 1), "the third has succeeded");
    assert!(left.iter().all(|entry| entry.key != batch[2].key));
    assert_eq!(new.partition.info().ended.processed, 6);
}

#[test]
fn room_moves_with_the_entries() {
    let (hasher, bound) = (Hasher::new(), Arc::new(Bound::default()));
    let [old, new] =
        [(), ()].map(|()| Map { partition: MapPartition::with_bound(&hasher, &bound), hasher: hasher.clone() });
    bound.set_limits(Limits { entries: Some(100), bytes: None });
    old.open(1);
    old.partition.set_bounded(true);
    old.put_all(0..20);
    let (_flush, _) = old.lease_all();
    (0..5).for_each(|key| old.delete(key));
    old.put_all(10..25);
    let evicted = old.partition.evict();
    assert_eq!(bound.held(), 0);
    for is_bounded in [true, false] {
        new.partition.set_bounded(is_bounded);
        take_in(&new.partition, &evicted);
        assert_eq!(bound.held(), if is_bounded { 20 } else { 0 });
    }
    new.partition.set_bounded(true);
    new.open(1);
    assert_eq!((bound.held(), new.succeed_with_all().len()), (20, 20));
    assert_eq!(bound.held(), 0);
}

#[test]
fn sums_in_flight_and_waiting_sums_add_up() {
    let old = Counter::start();
    let new = Counter::new(&old.hasher);
    (0..4).for_each(|key| old.add(key, 10));
    let (flush, _) = old.lease_all();
    // Two entries wait again, the others are still with the processor.
    assert_eq!(old.partition.give_back(&flush, GiveBack { count: 2, ..all_of(1) }).retried, 2);
    (0..3).for_each(|key| old.add(key, 1));
    old.delete(0);
    old.add(5, 5);
    move_all(&old.partition, &new.partition);
    new.open();
    assert_eq!([0, 1, 2, 3, 5].map(|key| new.sum(key)), [None, Some(11), Some(11), Some(10), Some(5)]);
    let (flush, batch) = new.lease_all();
    assert_eq!(batch, [(1, 11, 2), (2, 11, 2), (3, 10, 1), (5, 5, 1)]);
    assert_eq!(flush.attempts(), 1);
    flush.succeed(1);
    assert_law(&[old.partition, new.partition], None);
}

#[test]
fn sums_of_two_partitions_add_up_to_one_entry() {
    let hasher = Hasher::new();
    let [one, two, new] = [(), (), ()].map(|()| Counter::new(&hasher));
    [&one, &two].iter().for_each(|counter| counter.open());
    one.add(1, i64::MAX);
    two.add(1, i64::MAX);
    let (_flush, _) = two.lease_all();
    two.add(1, i64::MAX);
    [&one, &two].iter().for_each(|old| move_all(&old.partition, &new.partition));
    new.open();
    assert_eq!(new.sum(1), Some(3 * i128::from(i64::MAX)));
    let (first, sums) = new.lease_all();
    assert_eq!((sums, first.attempts()), (vec![(1, 3 * i128::from(i64::MAX), 3)], 1));
    assert_eq!(batch(&flush(&new.partition).unwrap(), sum).len(), 1);
}

#[test]
fn items_keep_their_order_and_their_attempts() {
    let (old, new) = (queue::start(), queue::closed());
    queue::push_all(&old, 0..10);
    let since = old.info().since;
    let (flush, _) = queue::lease(&old, 4);
    let failed = |failed| GiveBack { failed: Some(failed), ..all_of(1) };
    assert_eq!(give_back(&old, &flush, failed(&[1, 3])), GivenBack::retried(2));
    assert_eq!(queue::lease(&old, 4).1, [1, 3, 4, 5]);
    queue::push_all(&old, 10..12);
    // Half given back: 1 stays with two attempts, 3 has succeeded, 4 and 5 are still leased.
    assert_eq!(old.give_back(&flush, GiveBack { count: 2, ..failed(&[0]) }).retried, 1);
    move_all(&old, &new);
    assert_eq!((new.info().since, new.info().retried, new.info().waiting), (since, 3, 9));
    queue::open(&new);
    queue::push_all(&new, 12..13);
    let expected = [(1, 2), (4, 1), (5, 1), (6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (11, 0), (12, 0)];
    for (item, attempts) in expected {
        let (flush, batch) = queue::lease(&new, 1);
        assert_eq!((batch, flush.attempts()), (vec![item], attempts));
        flush.succeed(1);
        new.settle(&flush);
    }
    assert_law(&[old, new], None);
}

#[test]
fn items_of_several_partitions_keep_the_order_of_each() {
    let olds: [QueuePartition<_>; 2] = [queue::start(), queue::start()];
    queue::push_all(&olds[0], [0, LARGE + 2, 4]);
    queue::push_all(&olds[1], [1, 3]);
    let (_flush, _) = queue::lease(&olds[1], 1);
    let new = queue::closed();
    olds.iter().for_each(|old| move_all(old, &new));
    queue::open(&new);
    let (flush, batch) = queue::lease(&new, 1_000);
    assert_eq!((batch, flush.attempts()), (vec![0, LARGE + 2, 4, 1, 3], 1));
}

#[test]
fn a_partition_takes_in_its_own_entries() {
    let map = Map::start();
    map.put_all(0..5);
    let flush = map.flush().unwrap();
    map.lease(&flush, 2);
    map.put(9, 9);
    let evicted = map.partition.evict();
    let mut keys: Vec<i64> = evicted.entries().map(|leftover| leftover.term().content().1).collect();
    keys.sort_unstable();
    assert_eq!(keys, [0, 1, 2, 3, 4, 9]);
    take_in(&map.partition, &evicted);
    map.open(1);
    assert_eq!((map.succeed_with_all().len(), map.partition.info().writes.written), (6, 6));
    assert_law(std::slice::from_ref(&map.partition), None);
}

#[test]
fn with_outcomes_since_then_an_unseen_higher_version_is_kept() {
    let map = Map::start();
    map.partition.set_outcomes(false);
    (0..3).for_each(|key| assert!(map.put_newer(key, 10, 5)));
    let flush = map.flush().unwrap();
    // These writes do not see the entries in flight.
    assert!(map.put_newer(0, 11, 4) && map.put_newer(1, 11, 6));
    map.partition.set_outcomes(true);
    let (_, batch) = map.lease_all();
    assert_eq!(batch.len(), 2, "the entry with a lower version than the waiting one is left out");
    let failed = map.fail(&flush, None, None);
    assert_eq!((failed.retried, failed.superseded), (2, 0));
    assert_eq!((map.get(0), map.get(1), map.get(2)), (Some(10), Some(11), Some(10)));
    assert_law(std::slice::from_ref(&map.partition), None);
    assert_eq!(map.succeed_with_all().len(), 3);
    assert_law(std::slice::from_ref(&map.partition), None);
}
