//! NIFs of the library as a whole.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use partitioned_buffer_engine::reclaim;
use rustler::{Encoder, Env, NifResult, Term};

use super::{atoms, nif};
use crate::vm::entry::Function;
use crate::vm::{memory, wall_clock};

nif!(memory / 0);
fn memory<'a>(env: Env<'a>, []: [Term<'a>; 0]) -> NifResult<Term<'a>> {
    let (bytes, environments) = memory::allocated();
    Ok((bytes, environments, reclaim::reclaiming()).encode(env))
}

nif!(await_reclaimed / 0, DirtyIo);
fn await_reclaimed<'a>(env: Env<'a>, []: [Term<'a>; 0]) -> NifResult<Term<'a>> {
    reclaim::settle();
    Ok(atoms::ok().to_term(env))
}

nif!(shift_clock / 1);
fn shift_clock<'a>(env: Env<'a>, [milliseconds]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let milliseconds: i64 = milliseconds.decode()?;
    wall_clock::shift(milliseconds.saturating_mul(1_000));
    Ok(atoms::ok().to_term(env))
}

nif!(longest_calls / 0);
fn longest_calls<'a>(env: Env<'a>, []: [Term<'a>; 0]) -> NifResult<Term<'a>> {
    #[cfg(feature = "timing")]
    let calls = crate::vm::timing::all();
    #[cfg(not(feature = "timing"))]
    let calls: [&str; 0] = [];
    Ok(calls.encode(env))
}
