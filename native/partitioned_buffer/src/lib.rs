//! The NIF library of `PartitionedBuffer`. Layers, each knowing only those below:
//!
//! | module | what it does |
//! |---|---|
//! | [`nifs`] | decodes the arguments, makes one call, encodes the result |
//! | [`registry`] | finds a buffer by its name |
//! | [`flush`] | reads and claims what is in flight |
//! | [`lists`] | writes lists, step by step |
//! | [`pace`] | keeps a call to its time |
//! | [`buffer`] | routes keys to the partitions of a buffer; knows whether it is running |
//! | [`vm`] | all `unsafe` code: terms and environments for the engine, the allocator |
//!
//! What a partition is and does is in the crate `partitioned_buffer_engine`.
#![deny(unsafe_code)]

mod buffer;
mod flush;
mod lists;
mod nifs;
mod pace;
mod registry;
mod vm;

use std::sync::atomic::{AtomicBool, Ordering};

use rustler::{Env, Term};

rustler::init!("Elixir.PartitionedBuffer.Native", load = load);

/// Whether this library, as it is in memory, has been loaded before.
static LOADED: AtomicBool = AtomicBool::new(false);

/// Called by the VM for each version of the module that it loads this library for, with the version that the module was
/// compiled for and whether there are buffers in the VM. `false` refuses: buffers of another library, which this one
/// does not know, would be lost to their users.
fn load<'a>(_env: Env<'a>, info: Term<'a>) -> bool {
    let Ok((version, are_buffers)) = info.decode::<(&str, bool)>() else { return false };
    let was_loaded = LOADED.load(Ordering::Relaxed);
    let accepted = version == env!("CARGO_PKG_VERSION") && (was_loaded || !are_buffers);
    LOADED.store(was_loaded || accepted, Ordering::Relaxed);
    accepted
}
