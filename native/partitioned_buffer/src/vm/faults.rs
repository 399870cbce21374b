//! Panics on request, with the feature `faults`: tests look at the state that a panic leaves
//! behind.
//!
//! The copies panic, because terms are copied in the middle of every write under the lock of the
//! shard, and while the live terms of a sparse segment are moved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::LazyLock;

/// One of this many copies panics. Without the variable none does.
static EVERY: LazyLock<Option<u64>> =
    LazyLock::new(|| std::env::var("PARTITIONED_BUFFER_PANIC_EVERY").ok()?.parse().ok());

/// The number of copies so far.
static COPIES: AtomicU64 = AtomicU64::new(0);

/// Panics if it is this copy's turn.
pub(crate) fn before_copy() {
    let copy = COPIES.fetch_add(1, Ordering::Relaxed) + 1;
    if EVERY.is_some_and(|every| copy % every == 0) {
        panic!("copy {copy} panics as it was told to");
    }
}
