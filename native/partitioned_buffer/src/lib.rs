//! The NIF library of `PartitionedBuffer`. Layers, each knowing only those below:
//!
//! | module | what it does |
//! |---|---|
//! | [`nifs`] | decodes the arguments, makes one call, encodes the result |
//! | [`registry`] | finds a buffer by its name |
//! | [`buffer`] | routes keys to the partitions of a buffer; knows whether it is running |
//! | [`term`] | terms and environments for the engine |
//! | [`memory`] | the allocator, which counts |
//!
//! All `unsafe` code is in the last two, but for the clock of `timing`, which is in no release.
//!
//! What a partition is and does is in the crate `partitioned_buffer_engine`.
#![deny(unsafe_code)]

mod buffer;
#[cfg(feature = "faults")]
mod faults;
mod memory;
mod nifs;
mod registry;
mod term;
#[cfg(feature = "timing")]
mod timing;

rustler::init!("Elixir.PartitionedBuffer.Native");
