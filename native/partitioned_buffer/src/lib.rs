//! The NIF library of `PartitionedBuffer`. Its layers, each of which knows only those below it. The modules of one line know each
//! other:
//!
//! | module | what it does |
//! |---|---|
//! | [`nifs`] | decodes the arguments, makes one call, encodes the result |
//! | [`registry`] | finds a buffer by its name |
//! | [`lists`] | writes lists, step by step |
//! | [`room`] | reserves room for a list |
//! | [`buffer`], [`flush`] | the partitions of a buffer: routes keys to them, knows whether they run; their flushes in flight |
//! | [`pace`] | limits the time of a call |
//! | [`vm`] | all `unsafe` code: terms and environments for the engine, the allocator |
//!
//! The partitions themselves are in the crate `partitioned_buffer_engine`.
#![deny(unsafe_code)]

mod buffer;
mod flush;
mod lists;
mod nifs;
mod pace;
mod registry;
mod room;
mod vm;

use std::sync::atomic::{AtomicBool, Ordering};

use rustler::{Env, Term};

rustler::init!("Elixir.PartitionedBuffer.Native", load = load);

/// Whether this copy of the library in memory has been loaded before.
static LOADED: AtomicBool = AtomicBool::new(false);

/// The VM calls this whenever it loads the module. `info` is the version that the module was compiled for, and whether there
/// are buffers in the VM. `false` refuses to load: this library does not know the buffers of another one, so their
/// users would lose them.
fn load<'a>(_env: Env<'a>, info: Term<'a>) -> bool {
    let Ok((version, are_buffers)) = info.decode::<(&str, bool)>() else { return false };
    let was_loaded = LOADED.load(Ordering::Relaxed);
    let accepted = version == env!("CARGO_PKG_VERSION") && (was_loaded || !are_buffers);
    LOADED.store(was_loaded || accepted, Ordering::Relaxed);
    accepted
}
