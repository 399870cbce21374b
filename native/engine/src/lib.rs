//! The data structures behind `PartitionedBuffer`: partitions of maps, queues and counters.
//!
//! This crate knows nothing of Erlang: terms and the heaps for their copies are the traits [`Term`] and [`Heap`], so
//! `cargo test` needs no BEAM. Each layer knows only those below it:
//!
//! | module | what it is |
//! |---|---|
//! | [`partition`] | the locks of the shards, and the flush, which swaps their stores |
//! | [`flush`] | the entries in flight, the batch that the processor has, and their outcomes |
//! | [`totals`] | what is counted of the entries |
//! | [`bound`] | how many entries a buffer may hold |
//! | `threshold` | how many may wait in a partition until it is to flush |
//! | [`routing`] | from a key to its partition |
//! | [`reclaim`] | the thread that frees memory |
//! | `sync` | the locks and atomics, which a test replaces by those of a model |
//! | [`store`] | what a partition needs of the next four |
//! | [`log`] | items in the order of their writes |
//! | [`generation`] | a table of values, with versions and update counts |
//! | [`tally`] | a table of sums |
//! | [`table`] | entries by their key, in the order of their insertion |
//! | [`index`] | from a hash to the ids of entries, growing in small steps |
//! | [`entries`] | the entries themselves, in chunks of fixed size |
//! | `history` | the version of an entry, and what is counted of it |
//! | [`arena`] | copies of terms in segments, cleaned with bounded work |
//! | `own_heaps` | the heaps of large copies |
//! | [`parcel`] | terms on their way into a store, large ones already copied |
//! | `ids` | the ids of entries and segments |
//! | [`term`] | what a term and a heap must be able to do |
#![forbid(unsafe_code)]

pub mod arena;
pub mod bound;
pub mod entries;
pub mod flush;
pub mod generation;
mod history;
mod ids;
pub mod index;
pub mod log;
mod own_heaps;
pub mod parcel;
pub mod partition;
pub mod reclaim;
pub mod routing;
pub mod store;
mod sync;
pub mod table;
pub mod tally;
pub mod term;
mod threshold;
pub mod totals;

pub use bound::Bound;
pub use flush::{BatchState, Flush, Flushed, Frozen, GivenBack, Reader, Seen};
pub use generation::Generation;
pub use ids::EntryId;
pub use index::{Hash, Hasher};
pub use log::Log;
pub use parcel::Parcel;
pub use partition::{Closed, CounterPartition, Info, MapPartition, Partition, QueuePartition, Stored, Written};
pub use store::Store;
pub use tally::Tally;
pub use term::{Heap, Term, Version};
pub use totals::{Ended, Writes};
