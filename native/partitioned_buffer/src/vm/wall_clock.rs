//! The wall clock. The standard library reads it by the same call and takes ten nanoseconds longer,
//! a tenth of a put.

use std::sync::atomic::{AtomicI64, Ordering};

/// The microseconds that a test adds to the wall clock.
static SHIFT: AtomicI64 = AtomicI64::new(0);

/// The microseconds since 1970.
#[inline]
pub(super) fn micros() -> i64 {
    system_micros().saturating_add(SHIFT.load(Ordering::Relaxed))
}

/// Shifts the wall clock by as many microseconds, for tests.
pub(crate) fn shift(micros: i64) {
    SHIFT.store(micros, Ordering::Relaxed);
}

/// The microseconds since 1970, without the shift.
#[cfg(unix)]
#[inline]
#[allow(clippy::unnecessary_cast)] // On some systems the fields have 32 bits.
fn system_micros() -> i64 {
    let mut time = std::mem::MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the system writes the time behind the pointer, and `time` is read only if it did.
    unsafe {
        if libc::clock_gettime(libc::CLOCK_REALTIME, time.as_mut_ptr()) != 0 {
            return 0;
        }
        let time = time.assume_init();
        (time.tv_sec as i64).saturating_mul(1_000_000).saturating_add(time.tv_nsec as i64 / 1_000)
    }
}

/// The microseconds since 1970, without the shift.
#[cfg(not(unix))]
fn system_micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}
