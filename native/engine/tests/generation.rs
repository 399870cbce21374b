//! Random operations on a generation and on a plain map give the same.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;

use common::{content, hash, to_version, version_number, Random, TestHeap};
use partitioned_buffer_engine::generation::Put;
use partitioned_buffer_engine::{Generation, Hasher, Heap, Store};

type Model = HashMap<(bool, i64), (i64, i64, u64)>;

fn contents(generation: &Generation<TestHeap>) -> Model {
    (0..generation.end())
        .filter_map(|id| generation.record(id as u32))
        .map(|entry| (content(entry.key), (content(entry.value).1, version_number(entry.version), entry.updates)))
        .collect()
}

fn run(seed: u64, operations: usize, keys: u64) {
    let mut random = Random(seed);
    let hasher = Hasher::new();
    let mut generation = Generation::<TestHeap>::new(&hasher);
    let mut model = Model::new();
    for step in 0..operations {
        let mut caller = TestHeap::new();
        let key = caller.term(random.below(keys) as i64);
        let value = caller.term(step as i64);
        let hash = hash(&hasher, key);
        match random.below(10) {
            0..=3 => {
                let is_new = generation.put(hash, &key.parcel(), &value.parcel(), |_is_new| true) == Some(true);
                assert_eq!(is_new, model.insert(key.content(), (step as i64, 0, 0)).is_none());
            }
            4..=7 => {
                let new = random.below(100) as i64 - 50;
                let version = to_version(&mut caller, new);
                let (value, version) = value.parcel_with(version);
                let put = generation.put_newer(hash, &key.parcel(), &value, version, || false, |_is_new| true);
                let is_new = !model.contains_key(&key.content());
                let entry = model.entry(key.content()).or_insert((step as i64, new, 0));
                let expected = match (is_new, new > entry.1) {
                    (true, _) => Put::New,
                    (false, true) => Put::Replaced,
                    (false, false) => Put::Stale,
                };
                assert_eq!(put, expected, "seed {seed}, step {step}");
                if new > entry.1 {
                    *entry = (step as i64, new, entry.2 + 1);
                }
            }
            8 => {
                assert_eq!(generation.delete(hash, key), model.remove(&key.content()).is_some());
            }
            _ => {
                let expected = model.get(&key.content()).map(|entry| entry.0);
                assert_eq!(generation.get(hash, key).map(|found| found.term().content().1), expected, "seed {seed}");
            }
        }
        drop(caller);
        drop(generation.take_garbage());
        assert_eq!(generation.len(), model.len(), "seed {seed}, step {step}");
    }
    assert_eq!(contents(&generation), model, "seed {seed}");
}

#[test]
fn a_generation_agrees_with_a_map() {
    for seed in 0..40 {
        run(seed, 5_000, 1 + seed * 97);
    }
}

#[test]
fn a_large_generation_agrees_with_a_map() {
    run(4_711, 300_000, 50_000);
}

#[test]
fn entries_come_in_the_order_of_their_insertion() {
    let hasher = Hasher::new();
    let mut generation = Generation::<TestHeap>::new(&hasher);
    let mut caller = TestHeap::new();
    for number in (0..10_000).rev() {
        let key = caller.term(number);
        generation.put(hash(&hasher, key), &key.parcel(), &key.parcel(), |_is_new| true);
    }
    let keys: Vec<i64> =
        (0..generation.end()).filter_map(|id| generation.record(id as u32)).map(|entry| content(entry.key).1).collect();
    assert!(keys.iter().copied().eq((0..10_000).rev()));
}
