//! Partitions of maps, alone and under threads: each write is flushed exactly once, also while
//! generations are swapped.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;

use common::reading::{contents, flush, read};
use common::{content, hash, Random, TestHeap, TestTerm, ONE};
use partitioned_buffer_engine::generation::Record;
use partitioned_buffer_engine::partition::Write;
use partitioned_buffer_engine::{
    Access, Closed, Flush, Flushed, Generation, Hasher, Heap, MapPartition, Stored, Version,
};

fn partition(hasher: &Hasher) -> MapPartition<TestHeap> {
    let partition = MapPartition::new(hasher);
    partition.open(1);
    partition
}

fn put(partition: &MapPartition<TestHeap>, hasher: &Hasher, key: i64, value: i64) -> Result<(), Closed> {
    let mut caller = TestHeap::new();
    let (key, value) = (caller.boxed(key), caller.boxed(value));
    let stored = partition.put(ONE, hash(hasher, key), &key.parcel(), &value.parcel())?;
    assert_eq!(stored, Stored::Stored);
    Ok(())
}

fn keys(flush: &Flush<Generation<TestHeap>>) -> Vec<i64> {
    contents(&flush.entries().unwrap(), key)
}

fn key(record: Record<TestTerm>) -> i64 {
    content(record.key).1
}

/// Reads a batch of at most `size` entries and claims it at a time. Returns its keys.
fn claim(flush: &Flush<Generation<TestHeap>>, size: usize, now: i64) -> Vec<i64> {
    let batch = read(flush, 1, size, key).unwrap();
    assert!(flush.claim(1, now));
    batch
}

#[test]
fn a_closed_partition_refuses_writes_and_still_flushes_its_entries() {
    let hasher = Hasher::new();
    let partition = partition(&hasher);
    put(&partition, &hasher, 1, 1).unwrap();
    partition.close();
    assert_eq!(put(&partition, &hasher, 2, 2), Err(Closed));
    assert_eq!(keys(&flush(&partition).unwrap()), [1]);
}

#[test]
fn a_draining_partition_takes_no_writes_but_those_of_processors() {
    let hasher = Hasher::new();
    let partition = partition(&hasher);
    let mut caller = TestHeap::new();
    let (one, two) = (caller.boxed(1), caller.boxed(2));
    let processor = ONE.of_processor();
    let put_by_processor = |key| partition.put(processor, hash(&hasher, key), &key.parcel(), &key.parcel());
    let get = |key| partition.get(ONE, hash(&hasher, key), key, |value| value.term().content().1);

    assert_eq!(put_by_processor(one), Ok(Stored::Stored), "a processor may write before the stop as well");
    partition.drain().unwrap();
    assert_eq!(put(&partition, &hasher, 2, 2), Err(Closed));
    assert_eq!(put_by_processor(two), Ok(Stored::Stored));
    let writes = [(hash(&hasher, two), Write::Put(two.parcel(), one.parcel()))];
    let shard = MapPartition::<TestHeap>::shard_of(hash(&hasher, two));
    assert_eq!(partition.write_all(ONE, shard, false, writes.iter()), Err(Closed));
    assert!(partition.write_all(processor, shard, false, writes.iter()).is_ok());
    assert_eq!((get(one), get(two), partition.len(ONE)), (Ok(Some(1)), Ok(Some(1)), Ok(2)));
    assert_eq!(partition.delete(ONE, hash(&hasher, one), one), Ok(()));
    assert_eq!(keys(&flush(&partition).unwrap()), [2]);

    let other = Access::by_count(2);
    for among in [other, other.of_processor(), Access::by_count(0), Access::BY_TERM.of_processor()] {
        assert_eq!(partition.put(among, hash(&hasher, one), &one.parcel(), &one.parcel()), Err(Closed));
        assert_eq!(partition.get(among, hash(&hasher, one), one, |_value| ()), Err(Closed));
    }

    partition.close();
    assert_eq!(put_by_processor(one), Err(Closed));
    assert_eq!((get(two), partition.len(ONE)), (Err(Closed), Err(Closed)));
    assert_eq!(partition.delete(ONE, hash(&hasher, two), two), Err(Closed));
    assert_eq!(partition.drain(), Err(Closed), "a closed partition stays closed");
    assert_eq!(put_by_processor(one), Err(Closed));

    partition.open(1);
    assert_eq!(put(&partition, &hasher, 3, 3), Ok(()));
}

#[test]
fn a_partition_refuses_keys_that_were_routed_with_another_partition_count() {
    let hasher = Hasher::new();
    let partition = partition(&hasher);
    partition.open(2);
    assert_eq!(put(&partition, &hasher, 1, 1), Err(Closed));
}

#[test]
fn a_partition_flushes_unclaimed_entries_again() {
    let hasher = Hasher::new();
    let partition = partition(&hasher);
    (0..5).for_each(|key| put(&partition, &hasher, key, key).unwrap());
    let first = flush(&partition).unwrap();
    let all = keys(&first);
    assert_eq!(read(&first, 2, 3, key).unwrap(), all[..3]);
    assert_eq!(claim(&first, 2, 0), all[..2]);
    assert!(!first.claim(2, 0), "another reader was first");
    put(&partition, &hasher, 9, 9).unwrap();
    let Some(Flushed::Rest(rest)) = partition.flush() else { panic!("a rest is flushed") };
    assert_eq!(rest.seen().left, 3);
    assert_eq!(claim(&rest, usize::MAX, 0), all[2..]);
    let next = flush(&partition).unwrap();
    assert_eq!(keys(&next), [9]);
    assert_eq!(claim(&next, usize::MAX, 0), [9]);
    assert!(flush(&partition).is_none());
}

#[test]
fn a_flush_knows_when_its_last_batch_was_claimed() {
    let hasher = Hasher::new();
    let partition = partition(&hasher);
    (0..5).for_each(|key| put(&partition, &hasher, key, key).unwrap());
    let first = flush(&partition).unwrap();
    assert_eq!(first.seen().called_at, None);
    claim(&first, 2, -7);
    assert_eq!(first.seen().called_at, Some(-7));
    claim(&first, 2, -3);
    assert_eq!(first.seen().called_at, Some(-3));
    assert_eq!(partition.in_flight().unwrap().seen().called_at, Some(-3));
}

#[test]
fn a_partition_counts_unclaimed_and_waiting_entries_but_no_deleted_ones() {
    let hasher = Hasher::new();
    let partition = partition(&hasher);
    assert_eq!(partition.held(), 0);
    (0..5).for_each(|key| put(&partition, &hasher, key, key).unwrap());
    let mut caller = TestHeap::new();
    let key = caller.boxed(3);
    partition.delete(ONE, hash(&hasher, key), key).unwrap();
    assert_eq!(partition.held(), 4);
    let first = flush(&partition).unwrap();
    assert_eq!(claim(&first, 2, 0).len(), 2);
    put(&partition, &hasher, 9, 9).unwrap();
    partition.close();
    assert_eq!(partition.held(), 3);
    assert_eq!(claim(&first, usize::MAX, 0).len(), 2);
    assert_eq!(partition.held(), 1);
}

#[test]
fn a_partition_flushes_nothing_if_all_entries_were_deleted() {
    let hasher = Hasher::new();
    let partition = partition(&hasher);
    put(&partition, &hasher, 1, 1).unwrap();
    let mut caller = TestHeap::new();
    let key = caller.boxed(1);
    partition.delete(ONE, hash(&hasher, key), key).unwrap();
    assert!(flush(&partition).is_none());
    assert_eq!(partition.len(ONE), Ok(0));
}

#[test]
fn every_write_is_flushed_once_or_superseded_by_a_newer_one() {
    const WRITERS: i64 = 4;
    const WRITES: i64 = 20_000;
    const KEYS: u64 = 50;
    let hasher = Hasher::new();
    let partition = Arc::new(partition(&hasher));
    let done = Arc::new(AtomicBool::new(false));

    let reader = {
        let (partition, done) = (partition.clone(), done.clone());
        thread::spawn(move || {
            let mut newest: HashMap<i64, i64> = HashMap::new();
            let mut flushed = 0_u64;
            loop {
                let last = done.load(Ordering::SeqCst);
                while let Some(flush) = flush(&partition) {
                    let view = |entry: Record<TestTerm>| (key(entry), entry.version, entry.updates);
                    for (key, version, updates) in read(&flush, 1, usize::MAX, view).unwrap() {
                        let Version::Int(version) = version else { panic!("a small version") };
                        let before = newest.insert(key, version);
                        // One writer writes to a key, and counts its versions up. So no version
                        // comes twice or late.
                        assert!(before.is_none_or(|before| before < version), "key {key}: {before:?}, {version}");
                        flushed += 1 + updates;
                    }
                    assert!(flush.claim(1, 0));
                }
                if last {
                    return (newest, flushed);
                }
            }
        })
    };
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (partition, hasher) = (partition.clone(), hasher.clone());
            thread::spawn(move || {
                let mut random = Random(writer as u64);
                let mut last = HashMap::new();
                for version in 1..=WRITES {
                    let key = random.below(KEYS) as i64 * WRITERS + writer;
                    let mut caller = TestHeap::new();
                    let (term, value) = (caller.boxed(key), caller.boxed(version));
                    let (parcel, value) = (term.parcel(), value.parcel());
                    partition.put_newer(ONE, hash(&hasher, term), &parcel, &value, Version::Int(version)).unwrap();
                    last.insert(key, version);
                }
                last
            })
        })
        .collect();
    let expected: HashMap<i64, i64> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    done.store(true, Ordering::SeqCst);
    let (newest, flushed) = reader.join().unwrap();
    assert_eq!(newest, expected);
    assert_eq!(flushed, (WRITERS * WRITES) as u64, "exactly one flush counts each write");
}

#[test]
fn concurrent_operations_give_each_key_only_its_own_values() {
    const THREADS: u64 = 4;
    const OPERATIONS: u64 = 20_000;
    const KEYS: u64 = 200;
    let hasher = Hasher::new();
    let partition = Arc::new(partition(&hasher));
    let done = Arc::new(AtomicBool::new(false));

    let check = |key: i64, value: i64| assert_eq!(value / 1_000, key, "the value was put for this key");
    let writers: Vec<_> = (0..THREADS)
        .map(|seed| {
            let (partition, hasher) = (partition.clone(), hasher.clone());
            thread::spawn(move || {
                let mut random = Random(seed + 1);
                for _ in 0..OPERATIONS {
                    let mut caller = TestHeap::new();
                    let (key, value) = (random.below(KEYS) as i64, random.below(1_000) as i64);
                    let (key, value) = (caller.boxed(key), caller.boxed(key * 1_000 + value));
                    let hash = hash(&hasher, key);
                    match random.below(5) {
                        0 => assert_eq!(partition.put(ONE, hash, &key.parcel(), &value.parcel()), Ok(Stored::Stored)),
                        1 => {
                            let version = Version::Int(value.content().1);
                            partition.put_newer(ONE, hash, &key.parcel(), &value.parcel(), version).unwrap();
                        }
                        2 => partition.delete(ONE, hash, key).unwrap(),
                        3 => {
                            let shard = MapPartition::<TestHeap>::shard_of(hash);
                            let writes = [(); 3].map(|()| (hash, Write::Put(key.parcel(), value.parcel())));
                            partition.write_all(ONE, shard, false, writes.iter()).unwrap();
                        }
                        _ => {
                            let found = partition.get(ONE, hash, key, |value| value.term().content().1).unwrap();
                            found.into_iter().for_each(|value| check(key.content().1, value));
                        }
                    }
                }
            })
        })
        .collect();

    let reader = {
        let (partition, done) = (partition.clone(), done.clone());
        thread::spawn(move || {
            let mut entries = 0;
            while !done.load(Ordering::SeqCst) || partition.len(ONE).unwrap() > 0 {
                let Some(flush) = flush(&partition) else { continue };
                let view = |entry: Record<TestTerm>| (key(entry), content(entry.value).1);
                for (key, value) in read(&flush, 1, usize::MAX, view).unwrap() {
                    check(key, value);
                    entries += 1;
                }
                assert!(flush.claim(1, 0));
            }
            entries
        })
    };
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    done.store(true, Ordering::SeqCst);
    assert!(reader.join().unwrap() > 0);
}
