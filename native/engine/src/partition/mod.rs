//! Partitions: the shards in which entries wait, their locks, and the flush in flight.
//!
//! This layer has all others below it. `partition` has the life of a flush, and each of the other
//! files the operations of one caller.

mod absorb;
mod access;
mod counter;
mod evicted;
mod give_back;
mod keyed;
mod map;
#[allow(clippy::module_inception)] // The layer has one type at its centre.
mod partition;
mod queue;
mod room;
mod save;
mod shard;

pub use self::absorb::{AbsorbedSum, AbsorbedValue, Empty};
pub use self::access::{Access, Closed};
pub use self::counter::CounterPartition;
pub use self::evicted::{Evicted, Leftover};
pub use self::keyed::TABLE_SHARDS;
pub use self::map::{MapPartition, Write};
pub use self::partition::{Info, Partition, Stored, Versions, Written};
pub use self::queue::QueuePartition;
pub use self::save::{Pinned, SavedInFlight, TakesInFlight};
