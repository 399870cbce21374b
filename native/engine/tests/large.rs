//! The work under the lock of a shard is bounded, also with large terms.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::sync::{mpsc, Arc, LazyLock};
use std::thread;
use std::time::Duration;

use common::map::Map;
use common::{copies, freed, hash, on_copy, on_drop, Random, TestHeap, TestTerm, HIDDEN, LARGE, ONE};
use partitioned_buffer_engine::{Generation, Hasher, Heap, MapPartition, Parcel, Store};

static HASHER: LazyLock<Hasher> = LazyLock::new(Hasher::new);

static PARTITION: LazyLock<Arc<MapPartition<TestHeap>>> = LazyLock::new(|| {
    let partition = MapPartition::new(&HASHER);
    partition.open(1);
    Arc::new(partition)
});

/// Panics if this thread holds the lock of a shard: another thread could not count the entries
/// then.
fn assert_no_lock_is_held() {
    let (sender, receiver) = mpsc::channel();
    let partition = PARTITION.clone();
    thread::spawn(move || sender.send(partition.len(ONE)));
    receiver.recv_timeout(Duration::from_secs(20)).expect("no lock is held").unwrap();
}

fn packed(term: TestTerm) -> Parcel<TestHeap> {
    let mut heap = TestHeap::new();
    let copy = heap.copy(term);
    Parcel::packed(heap, copy)
}

fn put(key: i64, value: impl Fn(TestTerm) -> Parcel<TestHeap>, content: i64) {
    let mut caller = TestHeap::new();
    let key = caller.boxed(key);
    let value = value(caller.boxed(content));
    PARTITION.put(ONE, hash(&HASHER, key), &Parcel::loose(key), &value).unwrap();
}

#[test]
fn no_lock_is_held_while_a_heap_is_dropped_or_a_large_value_is_read() {
    on_drop(Some(assert_no_lock_is_held));
    for content in 0..200 {
        // The first leaves a segment to drop, the second the heap of a large value.
        put(1, Parcel::loose, content);
        put(2, packed, LARGE + content);
    }
    on_drop(None);

    let mut caller = TestHeap::new();
    let key = caller.boxed(2);
    let read = PARTITION.get(ONE, hash(&HASHER, key), key, |value| {
        assert!(value.heap().is_some());
        assert_no_lock_is_held();
        // The value may be replaced while it is read.
        put(2, packed, LARGE);
        value.term().content().1
    });
    assert_eq!(read, Ok(Some(LARGE + 199)));
}

static MAP: LazyLock<Arc<Map>> = LazyLock::new(|| Arc::new(Map::start()));

/// Panics if this thread holds the lock of a flush: another thread could not see how far it is
/// then.
fn assert_no_flush_is_locked() {
    let (sender, receiver) = mpsc::channel();
    let flush = MAP.partition.in_flight().expect("entries are in flight");
    thread::spawn(move || sender.send(flush.seen().left));
    assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(20), "the batch has its outcome as a whole");
}

#[test]
fn the_lock_of_a_flush_is_free_while_its_batch_is_given_back() {
    MAP.put_all(0..20);
    let (flush, _batch) = MAP.lease_all();
    on_copy(Some(assert_no_flush_is_locked));
    let given_back = MAP.fail(&flush, None, None);
    on_copy(None);
    assert_eq!((given_back.retried, flush.seen().left), (20, 0));
}

#[test]
fn an_operation_copies_few_small_terms_and_no_large_term_but_its_own() {
    let hasher = Hasher::new();
    let mut generation = Generation::<TestHeap>::new(&hasher);
    let mut random = Random(1);
    let mut put = |key: i64, content: i64| {
        let mut caller = TestHeap::new();
        let (key, value) = (caller.boxed(key), caller.boxed(content));
        copies();
        generation.put(hash(&hasher, key), &Parcel::loose(key), &Parcel::loose(value), |_is_new| true);
        let (small, large) = copies();
        drop(generation.take_garbage());
        assert!(small <= 2 + 128 / 4 + 1, "{small} small terms were copied");
        assert_eq!(large, usize::from(content >= LARGE), "a large term is copied once");
    };
    for step in 0..200_000 {
        // Some terms are large and look small. Some of these stay, and some are overwritten.
        match step % 100 {
            0 => put(random.below(500) as i64, HIDDEN + step),
            _ => put(1_000 + random.below(4_000) as i64, step),
        }
    }
}

#[test]
fn an_operation_frees_few_heavy_terms_however_many_there_are() {
    let hasher = Hasher::new();
    let mut generation = Generation::<TestHeap>::new(&hasher);
    for step in 0..20_000 {
        // Loose terms of 32 kB, as binaries are: the copy is small, and the memory is elsewhere.
        let mut caller = TestHeap::new();
        let (key, value) = (caller.boxed(step % 5_000), caller.boxed(LARGE + step));
        generation.put(hash(&hasher, key), &Parcel::loose(key), &Parcel::loose(value), |_is_new| true);
        let garbage = generation.take_garbage();
        freed();
        drop(garbage);
        let freed = freed();
        // Two segments of 4 MB: one whose last copy has died, and one that has been evacuated.
        assert!(freed <= 2 * (4 * 1024 / 32 + 1), "{freed} terms of 32 kB were freed at once");
    }
}
