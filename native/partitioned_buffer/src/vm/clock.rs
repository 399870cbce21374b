//! The time of `System.monotonic_time/1`. Only schedulers may read it.

use rustler::sys::{enif_monotonic_time, ErlNifTimeUnit};

/// Nanoseconds since a moment that the VM chose. They may be negative.
pub(crate) fn monotonic_time() -> i64 {
    // SAFETY: the only argument is a valid unit. On other threads than schedulers it returns an
    // error.
    unsafe { enif_monotonic_time(ErlNifTimeUnit::ERL_NIF_NSEC) }
}
