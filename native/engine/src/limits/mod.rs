//! Limits and counts: the bound of a buffer and the writers that wait for room, the threshold of a partition, the totals, and the
//! lessons from failures.
//!
//! This layer has only locks and atomics below it.

pub mod bound;
pub(crate) mod isolation;
pub(crate) mod outcomes;
pub(crate) mod threshold;
pub mod totals;
pub mod waiting;

pub use self::isolation::Isolation;
pub use self::outcomes::Learned;
