//! The data structures behind `PartitionedBuffer`: partitions of maps, queues and counters.
//!
//! This crate is independent of Erlang: terms and the heaps for their copies are the traits
//! [`Term`] and [`Heap`], so `cargo test` needs no BEAM. Each layer uses only lower ones:
//!
//! | module | what it is |
//! |---|---|
//! | [`journal`] | a copy of the entries on disk |
//! | [`partition`] | the locks of the shards, and the flush, which swaps their stores |
//! | [`flush`] | the entries in flight, the batch that the processor has, and their outcomes |
//! | [`store`] | the entries of one shard: tables of values or sums by their key, and logs |
//! | [`memory`] | copies of terms in segments, and the thread that frees memory |
//! | [`limits`] | how many entries a buffer may hold, how many wait until a flush, and the totals |
//! | [`routing`] | from a key to its partition |
//! | [`term`] | the interface of terms and heaps |
//! | [`clock`] | the versions that a map gives to its entries |
//! | `runs` | positions of entries with their failed attempts |
//! | `ids` | the ids of entries and segments |
//! | `sync` | the locks and atomics, which a test replaces by those of a model |
#![forbid(unsafe_code)]

pub mod clock;
pub mod flush;
mod ids;
pub mod journal;
pub mod limits;
pub mod memory;
pub mod partition;
pub mod routing;
mod runs;
pub mod store;
mod sync;
pub mod term;

pub use clock::Clock;
pub use flush::{
    BatchState, Death, Fate, Flush, Flushed, Frozen, GaveBack, GiveBack, Held, Leased, Mark, Note, Reader, Seen,
};
pub use ids::EntryId;
pub use limits::bound::{self, Bound, Limits};
pub use limits::streams::{self, Streams};
pub use limits::totals::{self, Ended, Writes};
pub use limits::waiting::{self, Waiting};
pub use limits::{Isolation, Learned};
pub use memory::arena;
pub use memory::parcel::{self, Parcel};
pub use memory::reclaim;
pub use partition::{
    Access, Closed, CounterPartition, Evicted, Info, Leftover, MapPartition, Partition, QueuePartition, Stored,
    Versions, Written,
};
pub use store::counter::{self as tally, Tally};
pub use store::hash::{Hash, Hasher};
pub use store::map::{self as generation, Generation};
pub use store::queue::{self as log, Log};
pub use store::saved;
pub use store::{entries, index, table, Store};
pub use term::{Heap, Resident, Term, Version};
