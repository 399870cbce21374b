//! The time of `System.monotonic_time/1`. Only schedulers may ask for it.

use rustler::sys::{enif_monotonic_time, ErlNifTimeUnit};

/// Nanoseconds since a moment that the VM has chosen. They may be negative.
pub(crate) fn monotonic_time() -> i64 {
    // SAFETY: the only argument is a unit that the VM knows. On a thread that is no scheduler it returns an error.
    unsafe { enif_monotonic_time(ErlNifTimeUnit::ERL_NIF_NSEC) }
}
