//! Room for a list, as a resource: unused room goes back when the list is written, or when its
//! writer dies.
//!
//! Each step of a list takes its part of the room before it writes. So two lists that share a
//! reservation never use more than it has.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustler::{Env, Resource};

use crate::any::AnyPartitions;
use crate::run::Shared;

/// Room for some entries.
pub(crate) struct Reservation {
    /// The partitions of the buffer.
    partitions: AnyPartitions,
    /// The unused room.
    left: AtomicUsize,
}

#[rustler::resource_impl]
impl Resource for Reservation {
    fn destructor(self, env: Env<'_>) {
        self.end(env);
    }
}

impl Reservation {
    /// Takes room for `count` entries, if the buffer has enough; a writer with its `turn` does not
    /// wait for others.
    pub(crate) fn new(partitions: AnyPartitions, count: usize, turn: bool) -> Option<Self> {
        let reserve = || partitions.shared().bound.reserve(count, turn);
        let is_reserved = reserve() || (partitions.take_room() && reserve());
        is_reserved.then(|| Reservation { partitions, left: AtomicUsize::new(count) })
    }

    /// Whether the room is in the buffer with this state, and enough for `count` entries.
    pub(crate) fn is_for(&self, shared: &Shared, count: usize) -> bool {
        std::ptr::eq(self.partitions.shared(), shared) && self.left.load(Ordering::Relaxed) >= count
    }

    /// Takes a part of the room, for `count` entries.
    pub(crate) fn take(&self, count: usize) -> Result<Taken<'_>, TooLittle> {
        let less = |left: usize| left.checked_sub(count);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_left) => Ok(Taken { reservation: self, unused: Cell::new(count) }),
            Err(_left) => Err(TooLittle),
        }
    }

    /// Gives back the unused room.
    pub(crate) fn end(&self, env: Env<'_>) {
        self.partitions.shared().bound.release(self.left.swap(0, Ordering::Relaxed));
        self.partitions.shared().tell_of_room(env);
    }
}

/// Less room is left than a step needs.
pub(crate) struct TooLittle;

/// A part of the room of a reservation. Its unused rest goes back to the reservation.
pub(crate) struct Taken<'r> {
    /// The reservation.
    reservation: &'r Reservation,
    /// The room that no entry has.
    unused: Cell<usize>,
}

impl Taken<'_> {
    /// Gives room to `count` entries.
    pub(crate) fn use_room(&self, count: usize) {
        self.unused.set(self.unused.get().saturating_sub(count));
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.reservation.left.fetch_add(self.unused.get(), Ordering::Relaxed);
    }
}
