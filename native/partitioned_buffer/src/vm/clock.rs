//! The time that `System.monotonic_time/1` tells.
//!
//! It is asked for on schedulers only, where the VM has it at hand.

use rustler::sys::{enif_monotonic_time, ErlNifTimeUnit};

/// Nanoseconds, since a moment that the VM has chosen: they may be below zero.
pub(crate) fn monotonic_time() -> i64 {
    // SAFETY: it takes a unit that the VM knows, and nothing else; on a thread that is no scheduler it returns an error.
    unsafe { enif_monotonic_time(ErlNifTimeUnit::ERL_NIF_NSEC) }
}
