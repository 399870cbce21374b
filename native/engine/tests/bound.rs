//! The bound of a buffer, and the threshold of a partition.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::counter::Counter;
use common::map::{entry, Map};
use common::reading::read;
use common::{hash, TestHeap, ONE};
use partitioned_buffer_engine::partition::Write;
use partitioned_buffer_engine::waiting::{Answer, Place};
use partitioned_buffer_engine::{
    Access, Bound, CounterPartition, Hasher, Heap, Limits, MapPartition, Parcel, QueuePartition, Stored, Waiting,
    Written,
};

/// A map whose partition is open with outcomes, and has this bound.
fn bounded(max: usize) -> (Map, Arc<Bound>) {
    let (hasher, bound) = (Hasher::new(), Arc::new(Bound::default()));
    let map = Map { partition: MapPartition::with_bound(&hasher, &bound), hasher };
    map.open(1);
    bound.set_limits(entries(max));
    map.partition.set_bounded(true);
    (map, bound)
}

fn put(map: &Map, access: Access, key: i64) -> Stored {
    let mut caller = TestHeap::new();
    let (key, value) = (caller.boxed(key), caller.boxed(key));
    map.partition.put(access, hash(&map.hasher, key), &key.parcel(), &value.parcel()).unwrap()
}

/// Only a limit of entries.
fn entries(max: usize) -> Limits {
    Limits { entries: Some(max), bytes: None }
}

/// Without reservations `held` counts entries only.
fn held(map: &Map, bound: &Bound) -> usize {
    let info = map.partition.info();
    assert_eq!(bound.held(), info.waiting + info.in_flight);
    bound.held()
}

/// Puts new keys until there is no room, and says how many.
fn fill(map: &Map, keys: impl Iterator<Item = i64>) -> usize {
    keys.take_while(|&key| put(map, ONE, key) != Stored::Full).count()
}

#[test]
fn a_bound_is_filled_to_the_last_entry_and_not_exceeded() {
    for max in [1, 2, 7, 64, 1_000] {
        let (map, bound) = bounded(max);
        assert_eq!(fill(&map, 0..), max);
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
    bound.set_limits(entries(10));
    assert_eq!((held(&map, &bound), put(&map, ONE, 100), put(&map, ONE, 5)), (100, Stored::Full, Stored::Stored));
    let flush = map.flush().unwrap();
    map.lease(&flush, 91);
    map.succeed(&flush);
    assert_eq!(put(&map, ONE, 100), Stored::Stored);
    assert_eq!(put(&map, ONE, 101), Stored::Full);
}

#[test]
fn while_writers_wait_only_they_get_room_in_their_order_as_many_as_there_is_room_for() {
    let (map, bound) = bounded(4);
    map.put_all(0..4);
    let waiting = Waiting::default();
    assert!(bound.fill() && !bound.fill());
    let [first, second, third] = [1, 2, 2].map(|count| waiting.join(&bound, count, count).0);
    assert_eq!(answers(&waiting, &bound, false), []);
    assert!(!bound.take_news());
    (0..3).for_each(|key| map.delete(key));
    assert!(bound.take_news() && !bound.take_news());
    assert_eq!(put(&map, ONE, 4), Stored::Full, "others wait");
    assert_eq!(answers(&waiting, &bound, false), [(first, Answer::Granted), (second, Answer::Granted)]);
    assert_eq!((bound.held(), waiting.len(), waiting.joined()), (4, 1, 3));
    assert_eq!([first, second, third].map(|place| waiting.take(place)), [Some(1), Some(2), None]);
    assert_eq!(put(&map, ONE.with_room(), 5), Stored::Stored);
    assert_eq!(bound.held(), 4, "the write used the room");
    assert_eq!(put(&map, ONE.with_room(), 5), Stored::Stored);
    assert_eq!(bound.held(), 3, "it was no new entry");
    assert!(!bound.clear());
    assert!(waiting.leave(&bound, third) && !waiting.leave(&bound, third));
    assert!(bound.clear() && bound.fill());
}

#[test]
fn a_writer_that_joins_alone_is_told_so() {
    let (map, bound) = bounded(1);
    map.put_all(0..1);
    let waiting = Waiting::default();
    let (first, is_alone) = waiting.join(&bound, 1, ());
    assert!(is_alone && !waiting.join(&bound, 1, ()).1);
    assert!(waiting.leave(&bound, first) && !waiting.rejoin(&bound, first, 1, ()));
    assert_eq!(waiting.len(), 2);
}

#[test]
fn a_writer_that_leaves_lets_the_next_one_in() {
    let (map, bound) = bounded(3);
    map.put_all(0..2);
    let waiting = Waiting::default();
    let [first, second] = [2, 1].map(|count| waiting.join(&bound, count, ()).0);
    assert_eq!(answers(&waiting, &bound, false), []);
    waiting.forget(&bound, first);
    assert!(bound.take_news());
    assert_eq!(answers(&waiting, &bound, false), [(second, Answer::Granted)]);
    waiting.forget(&bound, second);
    assert_eq!(bound.held(), 2);
}

#[test]
fn a_grant_that_nobody_takes_lapses_only_if_others_wait() {
    let (map, bound) = bounded(1);
    map.put_all(0..1);
    let waiting = Waiting::default();
    let first = waiting.join(&bound, 1, ()).0;
    map.delete(0);
    assert_eq!(answers(&waiting, &bound, false), [(first, Answer::Granted)]);
    waiting.lapse(&bound, Duration::ZERO);
    assert!(!waiting.may_lapse());
    let second = waiting.join(&bound, 1, ()).0;
    assert!(waiting.may_lapse());
    waiting.lapse(&bound, Duration::from_secs(60));
    assert_eq!(answers(&waiting, &bound, false), []);
    waiting.lapse(&bound, Duration::ZERO);
    assert_eq!(answers(&waiting, &bound, false), [(second, Answer::Granted)]);
    assert_eq!(waiting.take(first), None);
    waiting.rejoin(&bound, first, 1, ());
    let third = waiting.join(&bound, 1, ()).0;
    assert_eq!(waiting.take(second), Some(1));
    bound.release(1);
    assert_eq!(answers(&waiting, &bound, false), [(first, Answer::Granted)], "it kept its place");
    assert_eq!(answers(&waiting, &bound, true), [(third, Answer::Ended)]);
}

#[test]
fn a_list_that_no_longer_fits_is_told_so_and_holds_up_nobody() {
    let (map, bound) = bounded(10);
    map.put_all(0..10);
    let waiting = Waiting::default();
    let [list, single] = [9, 1].map(|count| waiting.join(&bound, count, ()).0);
    bound.set_limits(entries(8));
    assert!(bound.take_news());
    assert_eq!(answers(&waiting, &bound, false), [(list, Answer::TooLong)]);
    (0..3).for_each(|key| map.delete(key));
    assert_eq!(answers(&waiting, &bound, false), [(single, Answer::Granted)]);
}

/// A limit of bytes.
fn bytes(max: usize) -> Limits {
    Limits { entries: None, bytes: Some(max) }
}

#[test]
fn bytes_are_counted_as_the_stores_estimate_them_until_their_flush_ends() {
    let (map, bound) = bounded(1_000);
    map.put_all(0..100);
    for is_bounded in [true, false, true] {
        bound.set_limits(if is_bounded { bytes(1 << 30) } else { entries(1_000) });
        map.partition.set_bounded(true);
        assert_eq!(bound.bytes(), if is_bounded { map.partition.info().bytes } else { 0 });
    }
    let counted = |map: &Map| {
        // First: it lets the bound count the parts that the reclaimer freed.
        let bytes = map.partition.info().bytes;
        assert_eq!(bound.bytes(), bytes);
        bytes
    };
    map.put_all(0..200);
    assert!(counted(&map) > 0);
    let flush = map.flush().unwrap();
    map.put_all(300..310);
    map.lease(&flush, 100);
    counted(&map);
    map.fail(&flush, Some(&[0, 1, 2]), None);
    map.delete(300);
    counted(&map);
    map.partition.set_bounded(false);
    assert_eq!((bound.bytes(), bound.held()), (0, 0));
    map.partition.set_bounded(true);
    counted(&map);
    map.succeed_with_all();
    counted(&map);
    map.partition.evict();
    assert_eq!((bound.bytes(), bound.held()), (0, 0));
}

#[test]
fn a_delete_of_another_key_counts_the_carry_of_the_last_additions() {
    let (hasher, bound) = (Hasher::new(), Arc::new(Bound::default()));
    let counter = Counter { partition: CounterPartition::with_bound(&hasher, &bound), hasher };
    counter.open();
    bound.set_limits(bytes(1 << 30));
    counter.partition.set_bounded(true);
    [1, 1, i64::MAX - 1].into_iter().for_each(|amount| counter.add(1, amount));
    let before = bound.bytes();
    // One of these keys is in the same shard.
    (2..100).for_each(|key| counter.delete(key));
    assert!(bound.bytes() > before);
    assert_eq!((bound.bytes(), counter.sum(1)), (counter.partition.info().bytes, Some(1 << 63)));
}

#[test]
fn no_write_takes_memory_while_the_bytes_are_reached_and_one_waiting_writer_at_a_time_gets_some() {
    let (map, bound) = bounded(1_000);
    bound.set_limits(bytes(1));
    map.partition.set_bounded(true);
    assert_eq!(put(&map, ONE, 1), Stored::Stored);
    assert_eq!((put(&map, ONE, 1), put(&map, ONE, 2)), (Stored::Full, Stored::Full));
    assert!(!map.put_newer(1, 5, 0), "it is stale");
    let waiting = Waiting::default();
    let [first, second] = [1, 1].map(|count| waiting.join(&bound, count, ()).0);
    assert_eq!(answers(&waiting, &bound, false), []);
    map.succeed_with_all();
    assert!(bound.take_news());
    assert_eq!(answers(&waiting, &bound, false), [(first, Answer::Granted)]);
    assert_eq!(answers(&waiting, &bound, false), []);
    assert_eq!(waiting.take(first), Some(1));
    assert_eq!(answers(&waiting, &bound, false), [(second, Answer::Granted)]);
}

/// Serves the line, and returns the answers.
fn answers<W>(waiting: &Waiting<W>, bound: &Bound, is_over: bool) -> Vec<(Place, Answer)> {
    let mut answers = Vec::new();
    waiting.serve(bound, is_over, 10, |place, _writer, answer| answers.push((place, answer)));
    answers
}

#[test]
fn a_list_writes_to_the_room_that_it_has_reserved() {
    let (map, bound) = bounded(100);
    map.put_all(0..40);
    assert!(bound.reserve(60) && !bound.reserve(1));
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
    assert_eq!(push_all(false), Ok(Written { done: 3, used: 0, is_enough: false }));
    assert_eq!(push_all(false), Ok(Written { done: 3, used: 0, is_enough: true }));
    bound.set_limits(entries(10));
    queue.set_bounded(true);
    assert!(bound.reserve(3));
    assert_eq!(push_all(true), Ok(Written { done: 3, used: 3, is_enough: false }));
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
            let map = &map;
            scope.spawn(move || {
                let mut written = 0;
                for key in 0..20_000 {
                    match put(map, ONE, key * 4 + writer) {
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
