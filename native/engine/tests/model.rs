//! Random sequences of operations on partitions and on models of them give the same. `native/fuzz`
//! looks for more.
//!
//! `MODEL_SEED` and `MODEL_OPERATIONS` choose the sequences. A failure prints its seed.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::hash::{BuildHasher, RandomState};

use common::{model, Random};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Runs sequences of random bytes until there were enough operations.
fn check(run: fn(&[u8]) -> usize) {
    let seed = setting("MODEL_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let wanted = setting("MODEL_OPERATIONS").unwrap_or(100_000) as usize;
    println!("MODEL_SEED={seed} MODEL_OPERATIONS={wanted}");
    let mut random = Random(seed);
    let (mut sequences, mut operations) = (0, 0);
    while operations < wanted {
        let longest = 1 << (1 + random.below(11));
        let length = 3 * random.below(longest) + 2;
        let bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        operations += run(&bytes);
        sequences += 1;
    }
    println!("{operations} operations in {sequences} sequences");
}

#[test]
fn maps_agree_with_a_model() {
    check(model::map::run);
}

#[test]
fn queues_agree_with_a_model() {
    check(model::queue::run);
}

#[test]
fn counters_agree_with_a_model() {
    check(model::counter::run);
}
