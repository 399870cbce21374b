//! A shard: a store behind its lock.

use std::sync::Arc;

use super::access::{Access, Closed, Gate};
use crate::flush::{Flush, Frozen};
use crate::limits::totals::Writes;
use crate::store::hash::Hasher;
use crate::store::Store;
use crate::sync::{Mutex, MutexGuard};

/// How often a thread looks at a taken lock before it leaves the wait to `parking_lot`: this takes
/// some microseconds.
const SPINS: usize = 400;

/// A store behind its lock. Aligned to two cache lines, which processors fetch together.
#[repr(align(128))]
pub(super) struct Shard<S: Store>(Mutex<ShardState<S>>);

/// The state under the lock of a shard. The fields that each write reads are in the cache line of
/// the lock.
#[repr(C)]
pub(super) struct ShardState<S: Store> {
    /// The granted access.
    pub(super) gate: Gate,
    /// Whether the buffer has a bound.
    pub(super) is_bounded: bool,
    /// Whether writes are counted, for the bound or for the threshold.
    pub(super) is_counted: bool,
    /// Whether the bound counts bytes.
    pub(super) counts_bytes: bool,
    /// The bytes of `waiting`, as the bound counts them.
    pub(super) bytes: usize,
    /// The entries written since the last flush.
    pub(super) waiting: S,
    /// The flush that operations look into: none if the partition has no outcomes.
    pub(super) in_flight: Option<InFlight<S>>,
    /// The counts from before the last flush.
    pub(super) before: Writes,
}

/// A flush with its stores, which stay until the shard gives this up.
pub(super) struct InFlight<S: Store> {
    /// The flush.
    pub(super) flush: Arc<Flush<S>>,
    /// Its stores.
    pub(super) frozen: Arc<Frozen<S>>,
}

impl<S: Store> Clone for InFlight<S> {
    fn clone(&self) -> Self {
        InFlight { flush: self.flush.clone(), frozen: self.frozen.clone() }
    }
}

impl<S: Store> Shard<S> {
    /// A closed, empty shard without a bound.
    pub(super) fn new(hasher: &Hasher) -> Self {
        Shard(Mutex::new(ShardState {
            gate: Gate::CLOSED,
            is_bounded: false,
            is_counted: false,
            counts_bytes: false,
            bytes: 0,
            waiting: S::new(hasher),
            in_flight: None,
            before: Writes::default(),
        }))
    }

    /// The lock, if the shard grants a write.
    #[inline]
    pub(super) fn lock_open(&self, access: Access) -> Result<MutexGuard<'_, ShardState<S>>, Closed> {
        let state = self.lock();
        if state.gate.admits_write(access) {
            Ok(state)
        } else {
            Err(Closed)
        }
    }

    /// The lock, if the shard grants a read or a delete.
    #[inline]
    pub(super) fn lock_readable(&self, access: Access) -> Result<MutexGuard<'_, ShardState<S>>, Closed> {
        let state = self.lock();
        if state.gate.admits_read(access) {
            Ok(state)
        } else {
            Err(Closed)
        }
    }

    /// The lock. Holders keep it for some hundred nanoseconds, so spinning is cheaper than calling
    /// the system, which `parking_lot` soon does. After [`SPINS`] the holder was probably
    /// interrupted, and `parking_lot` takes over.
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, ShardState<S>> {
        match self.0.try_lock() {
            Some(state) => state,
            None => self.lock_contended(),
        }
    }

    /// Waits for the lock.
    #[cold]
    fn lock_contended(&self) -> MutexGuard<'_, ShardState<S>> {
        for _ in 0..SPINS {
            std::hint::spin_loop();
            if !self.0.is_locked() {
                if let Some(state) = self.0.try_lock() {
                    return state;
                }
            }
        }
        self.0.lock()
    }
}

impl<S: Store> ShardState<S> {
    /// Swaps the store for an empty one.
    pub(super) fn freeze(&mut self) -> S {
        self.waiting.settle();
        self.before += self.waiting.writes();
        let successor = self.waiting.successor();
        std::mem::replace(&mut self.waiting, successor)
    }
}
