//! The live entries bound the memory. This process has only one test, since it counts all heaps of
//! the process.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use common::{hash, heaps, set_lanes, terms, Random, TestHeap};
use partitioned_buffer_engine::{Generation, Hasher, Heap, Parcel, Store};

/// The most segments of an arena with `live` copies whose sealed segments took `capacity` copies or
/// more. At least one copy in five of a sealed segment is live; one segment in eight may wait to be
/// cleaned; one is open, one vacant.
fn segments(live: usize, capacity: usize) -> usize {
    (live * 5 / capacity + 2) * 8 / 7
}

#[test]
fn the_number_of_segments_stays_bounded_whatever_is_written() {
    let hasher = Hasher::new();
    let mut generation = Generation::<TestHeap>::new(&hasher);
    let mut random = Random(1);
    let write = |generation: &mut Generation<TestHeap>, key: i64, value: i64| {
        let mut caller = TestHeap::new();
        let (key, value) = (caller.boxed(key), caller.boxed(value));
        generation.put(hash(&hasher, key), &Parcel::loose(key), &Parcel::loose(value), |_is_new| true);
        drop(generation.take_garbage());
    };

    // One key.
    (0..20_000).for_each(|step| write(&mut generation, 0, step));
    assert!(heaps() <= 4, "{} heaps hold one entry", heaps());
    assert!(terms() <= 3 * 64, "{} copies are kept of one entry", terms());

    // A thousand keys in random order. A segment takes a quarter of the live copies, at least 64
    // and at most 1,024. No key dies. So the keys are in four segments of 64, in five more that
    // each take a third of all before, and in an open one.
    (0..200_000).for_each(|step| write(&mut generation, random.below(1_000) as i64, step));
    let bound = 4 + 5 + 1 + segments(1_000, 250);
    assert!(heaps() <= bound, "{} heaps hold a thousand entries, at most {bound} were expected", heaps());

    // Most keys come and go, some stay.
    for step in 1_000..100_000 {
        write(&mut generation, step, step);
        if step % 100 != 0 {
            let mut caller = TestHeap::new();
            let key = caller.boxed(step);
            generation.delete(hash(&hasher, key), key);
            drop(generation.take_garbage());
        }
    }
    assert_eq!(generation.len(), 1_000 + 990);
    let bound = bound + 2 * segments(990, 250);
    assert!(heaps() <= bound, "{} heaps hold two thousand entries, at most {bound} were expected", heaps());

    drop(generation);
    assert_eq!(heaps(), 0);

    // Many threads write one key, so three more segments are open.
    let mut generation = Generation::<TestHeap>::new(&hasher);
    set_lanes(Some(1));
    (0..20_000).for_each(|step| write(&mut generation, 0, step));
    assert!((5..=4 + 3).contains(&heaps()), "{} heaps hold one entry of several threads", heaps());
    assert!(terms() <= (3 + 3) * 64, "{} copies are kept of one entry of several threads", terms());
}
