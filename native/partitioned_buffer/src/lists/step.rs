//! A step of a list: some writes, which are prepared first, and then done lock by lock, so that
//! each lock is taken once.

use partitioned_buffer_engine::Written;
use rustler::{Env, Term};

use super::target::Target;
use crate::pace::Pace;
use crate::reservation::Taken;
use crate::run::NotRunning;
use crate::vm::caller::{cell, cells};
use crate::vm::environment::watched;
use crate::vm::large::charge_bytes;
use crate::vm::small::is_small;

/// The most elements of any step.
pub(super) const LONG: usize = 128;

/// A step ends behind large copies of this many bytes.
const LARGE_BYTES: usize = 256 * 1024;

/// No slot.
const NONE: u8 = u8::MAX;

/// The number of chains. If more locks are needed, some share a chain, and the lock of each part of
/// the chain is taken apart.
const CHAINS: usize = 64;

/// Room for a write.
pub(super) struct Slot<W> {
    /// The write, until it is done.
    write: Option<W>,
    /// The index of its lock.
    lock: u32,
    /// The slot of the next write in its chain.
    next: u8,
}

impl<W> Slot<W> {
    /// No write.
    pub(super) const EMPTY: Self = Slot { write: None, lock: 0, next: NONE };
}

/// Why a step ends before its last write.
pub(super) enum Stopped {
    /// A partition refuses writes.
    Refused,
    /// A written term is large, and others may be, too: they are to be weighed first.
    Large,
}

impl From<NotRunning> for Stopped {
    fn from(NotRunning: NotRunning) -> Self {
        Stopped::Refused
    }
}

/// Some writes, in the order of the caller.
pub(super) struct Step<'s, 'a, W> {
    /// Room for all elements that the step may have. The slots behind its elements are empty.
    slots: &'s mut [Slot<W>],
    /// The number of elements.
    pub(super) count: usize,
    /// The list behind the elements.
    pub(super) behind: Term<'a>,
    /// Whether that list is a step's own choice: it does not begin with an element of another shape.
    pub(super) fits: bool,
}

impl<'s, 'a, W> Step<'s, 'a, W> {
    /// Prepares the writes of the first elements of a list: at most as many as there are slots, and
    /// none behind a large one. A large key starts the clock, and other large terms charge the
    /// process if the clock does not run.
    #[inline]
    pub(super) fn read<T: Target<Write = W>>(
        env: Env<'a>,
        target: &T,
        list: Term<'a>,
        slots: &'s mut [Slot<W>],
        pace: &mut Option<Pace>,
    ) -> Self {
        let (mut behind, mut count, mut large_bytes) = (list, 0, 0);
        while count < slots.len() && large_bytes < LARGE_BYTES && !behind.is_empty_list() {
            let decoded = cell(behind).and_then(|(element, tail)| Some((T::decode(element)?, tail)));
            let Some((element, tail)) = decoded else {
                return Step { slots, count, behind, fits: false };
            };
            let hashed = target.hashed(element);
            if hashed.is_some_and(|term| !term.is_immediate() && !is_small(env, term)) {
                pace.get_or_insert_with(|| Pace::of_steps(LONG));
                large_bytes = LARGE_BYTES;
            }
            let write = target.prepare(env, element);
            let bytes = T::large_bytes(&write);
            if bytes > 0 {
                large_bytes += bytes;
                if pace.is_none() {
                    charge_bytes(env, bytes);
                }
            }
            slots[count].write = Some(write);
            count += 1;
            behind = tail;
        }
        Step { slots, count, behind, fits: true }
    }

    /// Does the writes, lock by lock. If the buffer starts again with another number of partitions,
    /// the undone writes go on there.
    #[inline]
    pub(super) fn write<T: Target<Write = W>>(
        &mut self,
        env: Env<'_>,
        target: &T,
        room: Option<&Taken<'_>>,
    ) -> Result<(), Stopped> {
        let watched = watched();
        let mut partition_count = target.shared().count()?;
        self.chain(target, partition_count)?;
        let mut first = 0;
        while first < self.count {
            if self.slots[first].write.is_none() {
                first += 1;
                continue;
            }
            let lock = self.slots[first].lock;
            let (partition, shard) = (lock / T::SHARDS as u32, lock as usize % T::SHARDS);
            let writes = Chain { slots: self.slots, next: first, lock, watched };
            match target.write_all(partition_count, partition, shard, room.is_some(), writes) {
                Ok(Written { done, used, is_enough }) => {
                    if let Some(room) = room {
                        room.use_room(used);
                    }
                    if is_enough {
                        target.tell_enough(env, lock as usize);
                    }
                    self.remove(first, done);
                    if is_noticed(watched) {
                        return Err(Stopped::Large);
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
        for number in (0..self.count).rev() {
            let slot = &mut self.slots[number];
            if let Some(write) = &slot.write {
                let lock = target.lock(write, partition_count)?;
                slot.lock = lock as u32;
                slot.next = std::mem::replace(&mut firsts[lock % CHAINS], number as u8);
            }
        }
        Ok(())
    }

    /// Empties the first `count` slots of a chain.
    #[inline]
    fn remove(&mut self, first: usize, count: usize) {
        let mut next = first;
        for _ in 0..count {
            let slot = &mut self.slots[next];
            slot.write = None;
            next = usize::from(slot.next);
        }
    }

    /// The undone elements among those of a list that the step has, and all elements behind them.
    #[cold]
    pub(super) fn rest(&self, list: Term<'a>) -> Term<'a> {
        let (elements, behind) = cells(list, self.count);
        let undone = elements.into_iter().zip(&*self.slots).rev().filter(|(_, slot)| slot.write.is_some());
        undone.fold(behind, |rest, (element, _)| rest.list_prepend(element))
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
        slot.write.as_ref()
    }
}
