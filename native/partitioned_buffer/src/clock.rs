//! The time that the engine notes. The VM's clock takes four times as long to read.

use std::sync::LazyLock;
use std::time::Instant;

/// The first moment that anybody asked for.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The present moment.
pub(crate) fn now() -> i64 {
    time_of(Instant::now())
}

/// The nanoseconds between the start of the time and a moment.
pub(crate) fn time_of(moment: Instant) -> i64 {
    moment.saturating_duration_since(*START).as_nanos() as i64
}
