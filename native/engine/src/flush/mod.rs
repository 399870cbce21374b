//! Flushed entries: the stores that a partition has swapped out, and the outcome of each entry.
//!
//! Below it are the stores, and the limits that an outcome is counted in.

#[allow(clippy::module_inception)] // The layer has one type at its centre.
mod flush;

pub use self::flush::*;
