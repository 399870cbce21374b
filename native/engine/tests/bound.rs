//! The bound of a buffer, and the threshold of a partition.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::thread;

use common::map::{entry, Map};
use common::reading::read;
use common::{hash, TestHeap, ONE};
use partitioned_buffer_engine::partition::Write;
use partitioned_buffer_engine::{Access, Bound, Hasher, Heap, MapPartition, Parcel, QueuePartition, Stored, Written};

/// A map whose partition is open with outcomes, and has this bound.
fn bounded(max: usize) -> (Map, Arc<Bound>) {
    let (hasher, bound) = (Hasher::new(), Arc::new(Bound::default()));
    let map = Map { partition: MapPartition::with_bound(&hasher, &bound), hasher };
    map.open(1);
    bound.set_max(Some(max), 4);
    map.partition.set_bounded(true);
    (map, bound)
}

fn put(map: &Map, access: Access, key: i64) -> Stored {
    let mut caller = TestHeap::new();
    let (key, value) = (caller.boxed(key), caller.boxed(key));
    map.partition.put(access, hash(&map.hasher, key), &key.parcel(), &value.parcel()).unwrap()
}

/// What the shards have not used goes back. Then `held` counts entries only.
fn held(map: &Map, bound: &Bound) -> usize {
    map.partition.take_room();
    let info = map.partition.info();
    assert_eq!(bound.held(), info.waiting + info.in_flight);
    bound.held()
}

/// Puts new keys until there is no room, and says how many.
fn fill(map: &Map, bound: &Bound, keys: impl Iterator<Item = i64>) -> usize {
    let mut count = 0;
    for key in keys {
        match put(map, ONE, key) {
            Stored::Full if bound.take_lent() => {
                map.partition.take_room();
                if put(map, ONE, key) == Stored::Full {
                    return count;
                }
                count += 1;
            }
            Stored::Full => return count,
            _ => count += 1,
        }
    }
    count
}

#[test]
fn a_bound_is_filled_to_the_last_entry_and_not_exceeded() {
    for max in [1, 2, 7, 64, 1_000] {
        let (map, bound) = bounded(max);
        assert_eq!(fill(&map, &bound, 0..), max);
        assert_eq!((held(&map, &bound), map.len()), (max, max));
        assert_eq!(put(&map, ONE, -1), Stored::Full);
    }
}

#[test]
fn a_full_buffer_takes_a_value_for_a_waiting_key() {
    let (map, bound) = bounded(2);
    assert!(map.put_newer(1, 10, 5) && map.put_newer(2, 10, 5));
    assert_eq!(put(&map, ONE, 3), Stored::Full);
    assert!(map.put_newer(1, 11, 6) && !map.put_newer(1, 12, 6) && !map.put_new(2, 12));
    assert_eq!(map.get(1), Some(11));
    assert_eq!(held(&map, &bound), 2);
    // In flight neither: but a new entry for such a key needs room.
    let (flush, _batch) = map.lease_all();
    assert_eq!(held(&map, &bound), 2);
    assert!(!map.put_newer(1, 12, 6) && !map.put_new(1, 12));
    assert_eq!(put(&map, ONE, 1), Stored::Full);
    map.succeed(&flush);
    assert_eq!(held(&map, &bound), 0);
    assert_eq!(put(&map, ONE, 3), Stored::Stored);
}

#[test]
fn room_comes_back_with_each_outcome_and_each_delete() {
    let (map, bound) = bounded(1_000);
    map.put_all(0..100);
    map.delete(7);
    map.delete(7);
    map.delete(1_000);
    assert_eq!(held(&map, &bound), 99);
    let flush = map.flush().unwrap();
    let first = map.lease(&flush, 10);
    assert_eq!(held(&map, &bound), 99);
    map.succeed(&flush);
    assert_eq!((first.len(), held(&map, &bound)), (10, 89));
    // What has failed is held as before; of the rest of a batch that has failed in part the room is
    // back.
    let second = map.lease(&flush, 10);
    map.fail(&flush, Some(&[0, 1, 2]), None);
    assert_eq!((map.len(), held(&map, &bound)), (3, 82));
    map.put_all(second.iter().map(|entry| entry.key).take(3));
    assert_eq!(held(&map, &bound), 82, "they have replaced what waits again");
    // What is given up is held until the dead letters are written.
    assert_eq!(map.lease(&flush, 10).len(), 10);
    assert_eq!(map.fail(&flush, None, Some(1)).given_up, 10);
    assert_eq!(held(&map, &bound), 82);
    map.succeed(&flush);
    assert_eq!(held(&map, &bound), 72);
    // What a newer write has superseded is left out by the reader.
    let waiting: Vec<i64> = read(&flush, 9, 5, entry).unwrap().iter().map(|entry| entry.key).collect();
    map.put_all(waiting.iter().copied());
    assert_eq!(held(&map, &bound), 77);
    assert_eq!(map.lease_resumed(&flush, 1_000).len(), 64);
    assert_eq!(held(&map, &bound), 72);
    map.fail(&flush, None, None);
    assert_eq!(held(&map, &bound), 72);
    let rest = map.succeed_with_all();
    assert_eq!((rest.len(), held(&map, &bound)), (72, 0));
}

#[test]
fn a_claimed_batch_is_held_no_more() {
    let (map, bound) = bounded(10);
    map.put_all(0..10);
    let flush = map.flush().unwrap();
    assert_eq!(read(&flush, 1, 4, entry).unwrap().len(), 4);
    assert_eq!(held(&map, &bound), 10);
    assert!(flush.claim(1, 0));
    assert_eq!(held(&map, &bound), 6);
}

#[test]
fn a_late_bound_counts_all_entries_and_a_removed_one_none() {
    let (map, bound) = bounded(1_000);
    map.partition.set_bounded(false);
    assert_eq!(bound.held(), 0);
    map.put_all(0..50);
    let flush = map.flush().unwrap();
    map.lease(&flush, 20);
    map.put_all(100..105);
    assert_eq!(bound.held(), 0);
    map.partition.set_bounded(true);
    assert_eq!(held(&map, &bound), 55);
    map.partition.set_bounded(true);
    assert_eq!(held(&map, &bound), 55);
    map.fail(&flush, Some(&[0]), None);
    assert_eq!(held(&map, &bound), 36);
    put(&map, ONE, 200);
    map.partition.set_bounded(false);
    assert_eq!(bound.held(), 0);
    assert_eq!(map.succeed_with_all().len(), 37);
    assert_eq!(bound.held(), 0);
}

#[test]
fn a_bound_below_what_is_held_throws_nothing_away() {
    let (map, bound) = bounded(1_000);
    map.put_all(0..100);
    bound.set_max(Some(10), 4);
    assert_eq!((held(&map, &bound), put(&map, ONE, 100), put(&map, ONE, 5)), (100, Stored::Full, Stored::Stored));
    let flush = map.flush().unwrap();
    map.lease(&flush, 91);
    map.succeed(&flush);
    assert_eq!(put(&map, ONE, 100), Stored::Stored);
    assert_eq!(put(&map, ONE, 101), Stored::Full);
}

#[test]
fn while_writers_wait_only_the_one_whose_turn_it_is_gets_room() {
    let (map, bound) = bounded(2);
    map.put_all(0..2);
    assert!(bound.fill() && !bound.fill());
    bound.set_queued(true);
    assert!(!bound.take_news());
    map.delete(0);
    assert!(bound.take_news() && !bound.take_news());
    assert_eq!(put(&map, ONE, 3), Stored::Full);
    assert_eq!(put(&map, ONE.of_waiter(), 3), Stored::Stored);
    assert_eq!(put(&map, ONE.of_waiter(), 4), Stored::Full);
    assert!(!bound.clear());
    map.delete(1);
    bound.set_queued(false);
    assert!(bound.clear());
    assert_eq!(put(&map, ONE, 4), Stored::Stored);
    assert!(bound.fill());
}

#[test]
fn a_list_writes_to_the_room_that_it_has_reserved() {
    let (map, bound) = bounded(100);
    map.put_all(0..40);
    map.partition.take_room();
    assert!(bound.reserve(60, false) && !bound.reserve(1, false));
    let mut caller = TestHeap::new();
    let mut used = 0;
    for key in 30..90 {
        let term = caller.boxed(key);
        let hash = hash(&map.hasher, term);
        let writes = [(hash, Write::Put(term.parcel(), term.parcel()))];
        let shard = MapPartition::<TestHeap>::shard_of(hash);
        used += map.partition.write_all(ONE, shard, true, writes.iter()).unwrap().used;
    }
    assert_eq!(used, 50);
    bound.release(60 - used);
    assert_eq!((held(&map, &bound), map.len()), (90, 90));
}

#[test]
fn a_threshold_is_reached_once_for_each_flush_by_new_entries() {
    let map = Map::start();
    assert!(!map.partition.set_threshold(Some(5)));
    let reached =
        |keys: std::ops::Range<i64>| -> Vec<bool> { keys.map(|key| put(&map, ONE, key) == Stored::Enough).collect() };
    assert_eq!(reached(0..7), [false, false, false, false, true, false, false]);
    assert!(reached(0..7).iter().all(|reached| !reached), "these are no new entries");
    let (flush, _batch) = map.lease_all();
    assert_eq!(reached(0..4), [false; 4]);
    map.fail(&flush, None, None);
    assert_eq!(map.len(), 7);
    // Three wait again, which do not count; four are new.
    assert_eq!(reached(4..8), [false, false, false, true]);
    assert_eq!(reached(8..9), [false]);
    // It may change.
    assert!(map.partition.set_threshold(Some(3)), "enough wait");
    assert!(!map.partition.set_threshold(None));
    assert_eq!(reached(20..30), [false; 10]);
    assert_eq!(map.succeed_with_all().len(), 19);
    map.partition.set_threshold(Some(3));
    map.put_all(0..2);
    map.delete(0);
    map.put_all(3..4);
    assert_eq!(reached(4..5), [true], "a deleted entry does not count");
}

#[test]
fn a_list_reaches_the_threshold_and_the_bound_of_a_queue() {
    let bound = Arc::new(Bound::default());
    let queue = QueuePartition::<TestHeap>::with_bound(&Hasher::new(), &bound);
    queue.open(1);
    queue.set_threshold(Some(4));
    let mut caller = TestHeap::new();
    let items: Vec<Parcel<TestHeap>> = (0..3).map(|item| caller.boxed(item).parcel()).collect();
    let push_all = |reserved| queue.push_all(ONE, reserved, items.iter());
    assert_eq!(push_all(false), Ok(Written { used: 0, is_enough: false }));
    assert_eq!(push_all(false), Ok(Written { used: 0, is_enough: true }));
    bound.set_max(Some(10), 1);
    queue.set_bounded(true);
    assert!(bound.reserve(3, false));
    assert_eq!(push_all(true), Ok(Written { used: 3, is_enough: false }));
    let push = || queue.push(ONE, &items[0]).unwrap();
    assert_eq!((push(), push()), (Stored::Stored, Stored::Full));
    assert_eq!((queue.info().waiting, bound.held()), (10, 10));
}

#[test]
fn under_threads_the_bound_is_never_exceeded_and_all_room_comes_back() {
    const MAX: usize = 300;
    let (map, bound) = bounded(MAX);
    let most = thread::scope(|scope| {
        let writers = [0, 1, 2].map(|writer| {
            let (map, bound) = (&map, &bound);
            scope.spawn(move || {
                let mut written = 0;
                for key in 0..20_000 {
                    match put(map, ONE, key * 4 + writer) {
                        Stored::Full if bound.take_lent() => map.partition.take_room(),
                        Stored::Full => thread::yield_now(),
                        _ => written += 1,
                    }
                }
                written
            })
        });
        let mut most = 0;
        while writers.iter().any(|writer| !writer.is_finished()) {
            most = most.max(bound.held());
            if let Some(flush) = map.flush() {
                map.lease(&flush, 50);
                if most % 2 == 0 {
                    map.succeed(&flush);
                } else {
                    map.fail(&flush, Some(&[0, 3]), Some(2));
                    map.succeed(&flush);
                }
            }
        }
        assert!(writers.into_iter().map(|writer| writer.join().unwrap()).sum::<usize>() > MAX);
        most
    });
    assert!(most <= MAX);
    assert!(held(&map, &bound) <= MAX);
    map.succeed_with_all();
    assert_eq!(held(&map, &bound), 0);
}
