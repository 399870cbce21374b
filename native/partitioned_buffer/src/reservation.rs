//! Room for a write, as a resource. Unused room goes back when the write is done, or when its
//! writer dies.
//!
//! A writer reserves room at once, or waits in the line of the buffer and takes the reservation
//! that is granted there. Each step of a list takes its part of the room before it writes, so two
//! lists that share a reservation never use more than it has.
//!
//! A list that [began](Reservation::begin) is written as a whole: a stop waits for its end.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use partitioned_buffer_engine::waiting::Place;
use rustler::{Env, Resource};

use crate::any::AnyPartitions;
use crate::run::{News, NotRunning, Shared};

/// Room for some entries, or the place of a writer that waits for it.
pub(crate) struct Reservation {
    /// The partitions of the buffer.
    partitions: AnyPartitions,
    /// The number of entries.
    count: usize,
    /// The place of a writer that waits or waited.
    place: Option<Place>,
    /// Whether the writer waits, or did not take its grant yet.
    is_waiting: AtomicBool,
    /// The unused room.
    left: AtomicUsize,
    /// Whether a list began.
    has_begun: AtomicBool,
}

#[rustler::resource_impl]
impl Resource for Reservation {
    fn destructor(self, env: Env<'_>) {
        self.end(env);
    }
}

impl Reservation {
    /// Reserves room for `count` entries, if the buffer has enough and nobody waits for some.
    pub(crate) fn new(partitions: AnyPartitions, count: usize) -> Option<Self> {
        let is_reserved = count == 0 || partitions.shared().bound.reserve(count);
        is_reserved.then(|| Self::with(partitions, count, None))
    }

    /// Lets the calling process wait for room for `count` entries. Its answer is a message.
    pub(crate) fn wait(env: Env<'_>, partitions: AnyPartitions, count: usize) -> (Self, Place) {
        let shared = partitions.shared();
        let (place, is_alone) = shared.waiting.join(&shared.bound, count, env.pid());
        let reservation = Self::with(partitions, count, Some(place));
        shared.serve(env);
        if is_alone {
            shared.tell(env, News::Room);
        }
        (reservation, place)
    }

    /// A reservation of a writer with this place in the line, or with its room.
    fn with(partitions: AnyPartitions, count: usize, place: Option<Place>) -> Self {
        Reservation {
            partitions,
            count,
            place,
            is_waiting: AtomicBool::new(place.is_some()),
            left: AtomicUsize::new(if place.is_none() { count } else { 0 }),
            has_begun: AtomicBool::new(false),
        }
    }

    /// Lets the calling process wait again, after its grant lapsed.
    pub(crate) fn wait_again(&self, env: Env<'_>) -> Option<Place> {
        let shared = self.partitions.shared();
        let place = self.place.filter(|_| self.is_waiting.load(Ordering::Acquire))?;
        let is_alone = shared.waiting.rejoin(&shared.bound, place, self.count, env.pid());
        shared.serve(env);
        if is_alone {
            shared.tell(env, News::Room);
        }
        Some(place)
    }

    /// Ends the wait; `false` if the writer was answered.
    pub(crate) fn leave(&self, env: Env<'_>) -> bool {
        let shared = self.partitions.shared();
        let has_left = self.place.is_some_and(|place| shared.waiting.leave(&shared.bound, place));
        shared.tell_of_room(env);
        has_left
    }

    /// Takes the room that was granted, if the writer waited for it; `false` if the grant lapsed.
    pub(crate) fn take_grant(&self) -> bool {
        let Some(place) = self.place.filter(|_| self.is_waiting.load(Ordering::Acquire)) else { return true };
        let Some(count) = self.partitions.shared().waiting.take(place) else { return false };
        self.left.store(count, Ordering::Relaxed);
        self.is_waiting.store(false, Ordering::Release);
        true
    }

    /// Begins to write a list, unless a stop began before.
    pub(crate) fn begin(&self, env: Env<'_>) -> Result<(), NotRunning> {
        if self.has_begun.swap(true, Ordering::SeqCst) || self.partitions.shared().begin_list() {
            return Ok(());
        }
        self.end_list(env);
        Err(NotRunning)
    }

    /// Ends the list, if it began.
    fn end_list(&self, env: Env<'_>) {
        if self.has_begun.swap(false, Ordering::SeqCst) {
            self.partitions.shared().end_list(env);
        }
    }

    /// Takes a part of the room, for `count` entries of the buffer with this state. Another buffer
    /// has no room here.
    pub(crate) fn take(&self, shared: &Shared, count: usize) -> Result<Taken<'_>, TooLittle> {
        let is_for = std::ptr::eq(self.partitions.shared(), shared);
        let less = |left: usize| left.checked_sub(count).filter(|_| is_for);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_left) => Ok(Taken { reservation: self, unused: Cell::new(count) }),
            Err(_left) => Err(TooLittle),
        }
    }

    /// Gives back the unused room, or the place of a writer that waits.
    pub(crate) fn end(&self, env: Env<'_>) {
        let shared = self.partitions.shared();
        shared.bound.release(self.left.swap(0, Ordering::Relaxed));
        if let Some(place) = self.place.filter(|_| self.is_waiting.swap(false, Ordering::AcqRel)) {
            shared.waiting.forget(&shared.bound, place);
        }
        self.end_list(env);
        if self.place.is_some() {
            // With a limit of bytes, the next writer is granted room only now. If others still wait,
            // the partitions have to flush what this one wrote.
            shared.serve(env);
            if !shared.waiting.is_empty() {
                shared.tell(env, News::Room);
            }
        }
        shared.tell_of_room(env);
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
