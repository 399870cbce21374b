//! The NIF library of `PartitionedBuffer`. Its layers, each of which uses only the layers below:
//!
//! | module | what it does |
//! |---|---|
//! | [`nifs`] | decodes the arguments, makes one call, encodes the result |
//! | [`registry`] | finds a buffer by its name |
//! | [`absorb`] | absorbs entries of the same buffer on another node |
//! | [`lists`] | writes lists, step by step |
//! | [`reservation`] | reserves room for a list |
//! | [`flush`] | the flushes in flight: their batches and outcomes |
//! | [`journal`] | the journal of a buffer: its threads, its start and its end |
//! | [`any`] | the partitions of any kind of buffer |
//! | [`buffer`] | the partitions of a name: routes keys to them |
//! | [`run`] | from the start of a buffer to its end, and what its processes share |
//! | [`route`] | the partition of an operation, and its caller |
//! | [`processes`], [`kept`] | the processes and the terms of a run |
//! | [`pace`], [`clock`] | the time of a call |
//! | [`vm`] | all `unsafe` code: terms and environments for the engine, the allocator |
//!
//! The partitions themselves are in the crate `partitioned_buffer_engine`.
#![deny(unsafe_code)]

mod absorb;
mod any;
mod buffer;
mod clock;
mod flush;
mod journal;
mod kept;
mod lists;
mod nifs;
mod pace;
mod processes;
mod registry;
mod reservation;
mod route;
mod run;
mod vm;

use std::sync::atomic::{AtomicBool, Ordering};

use rustler::{Env, Term};

rustler::init!("Elixir.PartitionedBuffer.Native", load = load);

/// Whether the VM loaded this copy of the library in memory before.
static LOADED: AtomicBool = AtomicBool::new(false);

/// The VM calls this whenever it loads the module. `info` is the version that the module was
/// compiled for, and whether the VM has buffers. `false` refuses to load: this library cannot find
/// the buffers of another one, so their users would lose them.
fn load<'a>(_env: Env<'a>, info: Term<'a>) -> bool {
    let Ok((version, are_buffers)) = info.decode::<(&str, bool)>() else { return false };
    let was_loaded = LOADED.load(Ordering::Relaxed);
    let accepted = version == env!("CARGO_PKG_VERSION") && (was_loaded || !are_buffers);
    LOADED.store(was_loaded || accepted, Ordering::Relaxed);
    accepted
}
