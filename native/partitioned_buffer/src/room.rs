//! Room for a list, as a resource: what the list does not need goes back when it is written, or when its writer dies.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustler::{Env, Resource};

use crate::flush::AnyPartitions;

/// Room for so many entries.
pub(crate) struct Reservation {
    /// The partitions of the buffer.
    partitions: &'static dyn AnyPartitions,
    /// How much of it is not used.
    left: AtomicUsize,
}

#[rustler::resource_impl]
impl Resource for Reservation {
    fn destructor(self, env: Env<'_>) {
        self.end(env);
    }
}

impl Reservation {
    /// Takes room for so many entries, if there is as much; a writer whose `turn` it is does not wait for others.
    pub(crate) fn new(partitions: &'static dyn AnyPartitions, count: usize, turn: bool) -> Option<Self> {
        let reserve = || partitions.bound().reserve(count, turn);
        let is_reserved = reserve() || (partitions.take_room() && reserve());
        is_reserved.then(|| Reservation { partitions, left: AtomicUsize::new(count) })
    }

    /// Entries take a part of the room.
    pub(crate) fn use_room(&self, count: usize) {
        self.left.fetch_sub(count, Ordering::Relaxed);
    }

    /// Gives back what is left.
    pub(crate) fn end(&self, env: Env<'_>) {
        self.partitions.bound().release(self.left.swap(0, Ordering::Relaxed));
        self.partitions.tell_of_room(env);
    }
}
