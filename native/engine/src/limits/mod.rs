//! Limits and counts: the bound of a buffer and the writers that wait for room, the threshold of a partition, the totals, the
//! lessons from failures, and the numbers taken from other nodes.
//!
//! This layer has only locks and atomics below it.

pub mod bound;
pub(crate) mod isolation;
pub(crate) mod outcomes;
pub mod streams;
pub(crate) mod threshold;
pub mod totals;
pub mod waiting;

pub use self::isolation::Isolation;
pub use self::outcomes::Learned;
