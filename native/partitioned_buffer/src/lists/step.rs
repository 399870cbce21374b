//! A step of a list: some writes, which are prepared first, and then done lock by lock, so that
//! each lock is taken once.

use partitioned_buffer_engine::Written;
use rustler::{Env, Term};

use super::target::Target;
use crate::pace::Pace;
use crate::reservation::Taken;
use crate::run::NotRunning;
use crate::vm::array::Array;
use crate::vm::caller::{cell, cells};
use crate::vm::environment::watched;
use crate::vm::large::charge_bytes;
use crate::vm::small::is_small;

/// The most elements of any step.
pub(super) const LONG: usize = 128;

/// A step ends behind large copies of this many bytes.
const LARGE_BYTES: usize = 256 * 1024;

/// The clock is read between two locks, after this number of writes.
const UNTIMED: usize = 32;

/// No slot.
const NONE: u8 = u8::MAX;

/// The number of chains. If more locks are needed, some share a chain, and the lock of each part of
/// the chain is taken apart.
const CHAINS: usize = 64;

/// No lock: the write is done.
const DONE: u32 = u32::MAX;

/// A write.
struct Slot<W> {
    /// The write.
    write: W,
    /// The index of its lock.
    lock: u32,
    /// The slot of the next write in its chain.
    next: u8,
}

/// Why a step ends before its last write.
pub(super) enum Stopped {
    /// A partition refuses writes.
    Refused,
    /// A written term is large, and others may be, too: they are to be weighed first.
    Large,
    /// The time is up: the terms are larger than those before.
    Late,
}

impl From<NotRunning> for Stopped {
    fn from(NotRunning: NotRunning) -> Self {
        Stopped::Refused
    }
}

/// What follows the elements of a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// More elements.
    Elements,
    /// The end of the list.
    End,
    /// An element of another shape, or an improper tail.
    Misfit,
}

/// Some elements of a list, and their writes in the same order.
pub(super) struct Step<'a, W> {
    /// The list that begins with the elements.
    pub(super) list: Term<'a>,
    /// The list behind the elements.
    pub(super) rest: Term<'a>,
    /// How that list begins.
    pub(super) behind: Behind,
    /// The writes.
    slots: Array<Slot<W>, LONG>,
}

impl<'a, W> Step<'a, W> {
    /// The step before the first one of a list.
    #[inline]
    pub(super) fn before(list: Term<'a>) -> Self {
        Step { list, rest: list, behind: Behind::Elements, slots: Array::new() }
    }

    /// The number of elements.
    #[inline]
    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Prepares the writes of the next elements: at most `most`, and none behind a large one. A large
    /// key starts the clock. Other large terms charge the process if the clock does not run.
    #[inline]
    pub(super) fn read<T: Target<Write = W>>(
        &mut self,
        env: Env<'a>,
        target: &T,
        most: usize,
        pace: &mut Option<Pace>,
    ) {
        let mut large_bytes = 0;
        self.slots.clear();
        (self.list, self.behind) = (self.rest, Behind::Elements);
        while self.slots.len() < most && large_bytes < LARGE_BYTES {
            let Some((element, tail)) = cell(self.rest) else {
                self.behind = if self.rest.is_empty_list() { Behind::End } else { Behind::Misfit };
                return;
            };
            let Some(element) = T::decode(element) else {
                self.behind = Behind::Misfit;
                return;
            };
            let hashed = target.hashed(element);
            if hashed.is_some_and(|key| !key.is_immediate && !is_small(env, key.term)) {
                pace.get_or_insert_with(|| Pace::of_steps(LONG));
                large_bytes = LARGE_BYTES;
            }
            let slot = self.slots.push_with(|| Slot { write: target.prepare(env, element), lock: 0, next: NONE });
            let bytes = T::large_bytes(&slot.write);
            if bytes > 0 {
                large_bytes += bytes;
                if pace.is_none() {
                    charge_bytes(env, bytes);
                }
            }
            self.rest = tail;
        }
        if self.rest.is_empty_list() {
            self.behind = Behind::End;
        }
    }

    /// Does the writes, lock by lock. If the buffer starts again with another number of partitions,
    /// the undone writes go on there. The `pace` limits the time.
    #[inline]
    pub(super) fn write<T: Target<Write = W>>(
        &mut self,
        env: Env<'_>,
        target: &T,
        room: Option<&Taken<'_>>,
        pace: Option<&Pace>,
    ) -> Result<(), Stopped> {
        let watched = watched();
        let mut untimed = 0;
        let mut partition_count = target.shared().count()?;
        self.chain(target, partition_count)?;
        let mut first = 0;
        while let Some(&Slot { lock, .. }) = self.slots.get(first) {
            if lock == DONE {
                first += 1;
                continue;
            }
            let (partition, shard) = (lock / T::SHARDS as u32, lock as usize % T::SHARDS);
            let writes = Chain { slots: &self.slots, next: first, lock, watched };
            match target.write_all(partition_count, partition, shard, room.is_some(), writes) {
                Ok(Written { done, used, is_enough }) => {
                    if let Some(room) = room {
                        room.use_room(used);
                    }
                    if is_enough {
                        target.tell_enough(env, lock as usize);
                    }
                    self.note_done(first, done);
                    if is_noticed(watched) {
                        return Err(Stopped::Large);
                    }
                    untimed += done;
                    if untimed >= UNTIMED {
                        untimed = 0;
                        if pace.is_some_and(Pace::is_late) {
                            return Err(Stopped::Late);
                        }
                    }
                }
                Err(_closed) => {
                    let count = target.shared().count()?;
                    if count == partition_count {
                        return Err(Stopped::Refused);
                    }
                    partition_count = count;
                    self.chain(target, partition_count)?;
                }
            }
        }
        Ok(())
    }

    /// Finds the locks of all undone writes, and chains the writes of each lock in their order.
    #[inline]
    fn chain<T: Target<Write = W>>(&mut self, target: &T, partition_count: u32) -> Result<(), NotRunning> {
        let mut firsts = [NONE; CHAINS];
        for (number, slot) in self.slots.iter_mut().enumerate().rev().filter(|(_, slot)| slot.lock != DONE) {
            let lock = target.lock(&slot.write, partition_count)?;
            slot.lock = lock as u32;
            slot.next = std::mem::replace(&mut firsts[lock % CHAINS], number as u8);
        }
        Ok(())
    }

    /// Notes that the first `count` writes of a chain are done.
    #[inline]
    fn note_done(&mut self, first: usize, count: usize) {
        let mut next = first;
        for _ in 0..count {
            let Some(slot) = self.slots.get_mut(next) else { return };
            slot.lock = DONE;
            next = usize::from(slot.next);
        }
    }

    /// The undone elements, and all elements behind the step.
    #[cold]
    pub(super) fn undone(&self) -> Term<'a> {
        let (elements, rest) = cells(self.list, self.count());
        let undone = elements.into_iter().zip(&*self.slots).rev().filter(|(_, slot)| slot.lock != DONE);
        undone.fold(rest, |rest, (element, _)| rest.list_prepend(element))
    }
}

/// Whether a copy turned out to be large since fewer terms were [`watched`].
#[inline]
fn is_noticed(before: usize) -> bool {
    watched() > before
}

/// The writes of one lock, until one turns out to be large.
struct Chain<'s, W> {
    /// All slots of the step.
    slots: &'s [Slot<W>],
    /// The slot of the next write.
    next: usize,
    /// The lock.
    lock: u32,
    /// How many terms were watched for large ones.
    watched: usize,
}

impl<W> Clone for Chain<'_, W> {
    fn clone(&self) -> Self {
        Chain { ..*self }
    }
}

impl<'s, W> Iterator for Chain<'s, W> {
    type Item = &'s W;

    #[inline]
    fn next(&mut self) -> Option<&'s W> {
        let slot = self.slots.get(self.next)?;
        if slot.lock != self.lock || is_noticed(self.watched) {
            return None;
        }
        self.next = usize::from(slot.next);
        Some(&slot.write)
    }
}
