//! Room for a list, as a resource: unused room goes back when the list is written, or when its
//! writer dies.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustler::{Env, Resource};

use crate::any::AnyPartitions;

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

    /// Gives a part of the room to `count` entries.
    pub(crate) fn use_room(&self, count: usize) {
        self.left.fetch_sub(count, Ordering::Relaxed);
    }

    /// Gives back the unused room.
    pub(crate) fn end(&self, env: Env<'_>) {
        self.partitions.shared().bound.release(self.left.swap(0, Ordering::Relaxed));
        self.partitions.shared().tell_of_room(env);
    }
}
