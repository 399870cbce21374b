//! Memory stays bounded by the live entries. One test a process: the heaps are counted for all of it.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use common::{hash, heaps, Random, TestHeap};
use partitioned_buffer_engine::{Generation, Hasher, Heap, Store};

#[test]
fn segments_do_not_grow_in_number_whatever_is_overwritten_or_deleted() {
    let hasher = Hasher::new();
    let mut generation = Generation::<TestHeap>::new(&hasher);
    let mut random = Random(1);
    let write = |generation: &mut Generation<TestHeap>, key: i64, value: i64| {
        let mut caller = TestHeap::new();
        let (key, value) = (caller.boxed(key), caller.boxed(value));
        generation.put(hash(&hasher, key), key, value);
    };

    // One key.
    (0..20_000).for_each(|step| write(&mut generation, 0, step));
    assert!(heaps() <= 4, "{} heaps hold one entry", heaps());

    // A thousand keys in random order: at least one copy in five of a segment is live.
    (0..200_000).for_each(|step| write(&mut generation, random.below(1_000) as i64, step));
    let bound = 1_000 / 256 * 5 + 1_000 / 256 + 8;
    assert!(heaps() <= bound, "{} heaps hold a thousand entries, at most {bound} were expected", heaps());

    // Keys that come and go, with some that stay.
    for step in 1_000..100_000 {
        write(&mut generation, step, step);
        if step % 100 != 0 {
            let mut caller = TestHeap::new();
            let key = caller.boxed(step);
            generation.delete(hash(&hasher, key), key);
        }
    }
    assert_eq!(generation.len(), 1_000 + 990);
    let bound = bound + 2 * (990 / 256 * 6 + 8);
    assert!(heaps() <= bound, "{} heaps hold two thousand entries, at most {bound} were expected", heaps());

    drop(generation);
    assert_eq!(heaps(), 0);
}
