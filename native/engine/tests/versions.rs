//! Maps whose entries have the versions of the clock, or those of their writes.

#![allow(clippy::unwrap_used)] // A test may panic.

mod common;

use common::map::{Entry, Map};
use common::{hash, set_wall_clock, to_version, TestHeap, ONE};
use partitioned_buffer_engine::clock::STEPS;
use partitioned_buffer_engine::partition::Write;
use partitioned_buffer_engine::{Hasher, Heap, MapPartition, Stored, Versions};

/// An open map with these versions.
fn start(versions: Versions) -> Map {
    let map = Map::new(&Hasher::new());
    map.partition.set_versions(versions);
    map.open(1);
    map
}

/// Puts a value, and returns the result.
fn put(map: &Map, key: i64, value: i64) -> Stored {
    let mut caller = TestHeap::new();
    let (key, value) = (caller.boxed(key), caller.boxed(value));
    map.partition.put(ONE, hash(&map.hasher, key), &key.parcel(), &value.parcel()).unwrap()
}

/// Puts a value with a version, and returns the result.
fn put_newer(map: &Map, key: i64, value: i64, number: i64) -> Stored {
    let mut caller = TestHeap::new();
    let (key, value, number) = (caller.boxed(key), caller.boxed(value), to_version(&mut caller, number));
    let (value, number) = value.parcel_with(number);
    map.partition.put_newer(ONE, hash(&map.hasher, key), &key.parcel(), &value, number).unwrap()
}

/// The value and the version of a key.
fn fetch(map: &Map, key: i64) -> Option<(i64, i64)> {
    let mut caller = TestHeap::new();
    let key = caller.boxed(key);
    let copy = |value: &partitioned_buffer_engine::Parcel<TestHeap>, version| {
        (common::content(value.resident()).1, common::version_number(version))
    };
    map.partition.get_versioned(ONE, hash(&map.hasher, key), key, copy).unwrap()
}

#[test]
fn a_put_gets_the_time_as_its_version() {
    set_wall_clock(70);
    let map = start(Versions::Clock);
    assert_eq!(put(&map, 1, 10), Stored::Stored);
    assert_eq!(fetch(&map, 1), Some((10, 70 * STEPS)));
    assert!(map.put_new(2, 20) && !map.put_new(2, 21));
    assert!(fetch(&map, 2).unwrap().1 >= 70 * STEPS);
    assert_eq!(fetch(&map, 3), None);
}

#[test]
fn versions_of_a_key_grow_while_the_wall_clock_stands_or_goes_back() {
    set_wall_clock(70);
    let map = start(Versions::Clock);
    let versions = [70, 70, 40, 71].map(|micros| {
        set_wall_clock(micros);
        put(&map, 1, micros);
        // A flush does not reset the clock.
        let flush = map.flush().unwrap();
        let [Entry { version, .. }] = map.lease(&flush, 10)[..] else { panic!("one entry was put") };
        map.succeed(&flush);
        version
    });
    assert_eq!(versions, [70 * STEPS, 70 * STEPS + 1, 70 * STEPS + 2, 71 * STEPS]);
}

#[test]
fn a_stamp_is_greater_than_versions_of_other_clocks() {
    set_wall_clock(70);
    let map = start(Versions::Clock);
    map.partition.see_version(100 * STEPS);
    put(&map, 1, 10);
    assert_eq!(fetch(&map, 1), Some((10, 100 * STEPS + 1)));
}

#[test]
fn a_replacement_counts_as_an_update_and_an_older_stamp_is_stale() {
    set_wall_clock(70);
    let map = start(Versions::Any);
    put_newer(&map, 1, 10, 90 * STEPS);
    put_newer(&map, 2, 20, 5);
    map.partition.close();
    map.partition.set_versions(Versions::Clock);
    map.open(1);
    assert_eq!([put(&map, 1, 11), put(&map, 2, 21)], [Stored::Stored; 2]);
    assert_eq!(fetch(&map, 1), Some((10, 90 * STEPS)));
    let mut entries = map.lease(&map.flush().unwrap(), 10);
    entries.sort();
    assert_eq!(entries.iter().map(|entry| (entry.value, entry.updates)).collect::<Vec<_>>(), [(10, 0), (21, 1)]);
    let writes = map.partition.info().writes;
    assert_eq!((writes.written, writes.coalesced, writes.stale), (3, 1, 1));
}

#[test]
fn a_list_is_stamped_in_its_order() {
    set_wall_clock(70);
    let map = start(Versions::Clock);
    let mut caller = TestHeap::new();
    let key = caller.boxed(1);
    let hash = hash(&map.hasher, key);
    let writes: Vec<_> =
        [10, 11, 12].map(|value| (hash, Write::Put(key.parcel(), caller.boxed(value).parcel()))).into();
    let shard = MapPartition::<TestHeap>::shard_of(hash);
    map.partition.write_all(ONE, shard, false, writes.iter()).unwrap();
    assert_eq!(fetch(&map, 1), Some((12, 70 * STEPS + 2)));
}

#[test]
fn a_map_refuses_writes_with_versions_of_another_source() {
    let map = start(Versions::Clock);
    assert_eq!(put_newer(&map, 1, 10, 1), Stored::Versioned);
    let map = start(Versions::Own);
    assert_eq!(put(&map, 1, 10), Stored::Versioned);
    assert_eq!(put_newer(&map, 1, 10, 1), Stored::Stored);
    let mut caller = TestHeap::new();
    let (key, value) = (caller.boxed(2), caller.boxed(20));
    let stored = map.partition.put_new(ONE, hash(&map.hasher, key), &key.parcel(), &value.parcel());
    assert_eq!(stored, Ok(Stored::Versioned));
    assert_eq!(map.len(), 1);
}

#[test]
fn another_partition_goes_on_with_the_clock_of_an_evicted_one() {
    set_wall_clock(70);
    let (hasher, bound, clock) = (Hasher::new(), Default::default(), Default::default());
    let [old, new] = [(), ()].map(|()| {
        let partition = MapPartition::sharing(&hasher, &bound, &clock);
        partition.set_versions(Versions::Clock);
        let map = Map { partition, hasher: hasher.clone() };
        map.open(1);
        map
    });
    put(&old, 1, 10);
    let evicted = old.partition.evict();
    evicted.entries().for_each(|leftover| new.partition.take_in(&leftover));
    set_wall_clock(40);
    put(&new, 1, 11);
    assert_eq!(fetch(&new, 1), Some((11, 70 * STEPS + 1)));
}
