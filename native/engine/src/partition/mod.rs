//! Partitions: the shards in which entries wait, their locks, and the flush in flight.
//!
//! Below it are all other layers.

mod counter;
mod keyed;
mod map;
#[allow(clippy::module_inception)] // The layer has one type at its centre.
mod partition;
mod queue;

pub use self::counter::CounterPartition;
pub use self::keyed::TABLE_SHARDS;
pub use self::map::{MapPartition, Write};
pub use self::partition::{Closed, Info, Partition, Stored, Written, DRAINING, TURN};
pub use self::queue::QueuePartition;
