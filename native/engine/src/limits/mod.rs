//! How many entries there are and may be: the bound of a buffer, the threshold of a partition, and the totals.
//!
//! Below it are only locks and atomics.

pub mod bound;
pub(crate) mod threshold;
pub mod totals;
