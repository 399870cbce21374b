//! The data structures behind `PartitionedBuffer`: partitioned maps and queues that hand over what they hold.
//!
//! It knows nothing of Erlang: terms and the heaps they are copied to are the traits [`Term`] and [`Heap`], so all of
//! it is tested by `cargo test` without a BEAM. Layers, each knowing only those below:
//!
//! | module | what it is |
//! |---|---|
//! | [`partition`] | the locks, the swap of stores, what has been handed over and not yet claimed |
//! | [`reclaim`] | the thread on which retired memory is freed |
//! | `sync` | the locks and atomics, which tests replace by those of a model |
//! | [`store`] | what a partition needs of the following two |
//! | [`log`] | items in the order in which they were appended |
//! | [`generation`] | a map from keys to values, versions and update counts, in insertion order |
//! | [`index`] | from a hash to entry numbers, growing in small steps |
//! | [`entries`] | the entries themselves, in chunks of fixed size |
//! | [`arena`] | copies of terms in segments, cleaned with bounded work |
//! | `own_heaps` | the heaps that hold one large copy each |
//! | [`parcel`] | terms on their way into a store, large ones already copied |
//! | [`term`] | what a term and a heap must be able to do |
#![forbid(unsafe_code)]

pub mod arena;
pub mod entries;
pub mod generation;
pub mod index;
pub mod log;
mod own_heaps;
pub mod parcel;
pub mod partition;
pub mod reclaim;
pub mod routing;
pub mod store;
mod sync;
pub mod term;

pub use generation::Generation;
pub use index::{Hash, Hasher};
pub use log::Log;
pub use parcel::Parcel;
pub use partition::{Closed, HandOver, HandedOver, MapPartition, Partition, QueuePartition};
pub use store::Store;
pub use term::{Heap, Term, Version};
