//! The entries of a call: read as a whole, then written lock by lock.

use std::time::Duration;

use partitioned_buffer_engine::partition::Empty;
use partitioned_buffer_engine::{Access, Closed};
use rustler::{Env, Term};

use super::kind::{Kind, Work};
use super::Room;
use crate::lists::{invalid, Invalid};
use crate::pace::Pace;
use crate::route::Route;
use crate::vm::caller::cell;

/// The most entries of a call on a normal scheduler. Reading and writing one takes from a hundred to
/// three hundred nanoseconds.
const MOST: usize = 512;

/// The clock is read after this many entries. A shorter list takes little time, unless the system
/// interrupts the call.
const UNTIMED: usize = 16;

/// The time that the first entry of an empty shard takes at most, for its memory.
const FIRST_TIME: Duration = Duration::from_micros(4);

/// The most writes under one lock: other writers wait for them.
const LOCKED: usize = 64;

/// No slot.
const NONE: u32 = u32::MAX;

/// An entry to be written.
struct Slot<W> {
    /// The write.
    write: W,
    /// The index of its lock, among those of all partitions.
    lock: u32,
    /// The slot of the next write with the same lock.
    next: u32,
}

/// The entries of a call.
pub(super) struct Entries<W> {
    /// The writes, in the order of the list.
    slots: Vec<Slot<W>>,
    /// The first slot of each used lock.
    firsts: Vec<u32>,
}

/// The reason why entries are not read.
pub(super) enum Refused<'a> {
    /// The list is invalid.
    Invalid(Invalid<'a>),
    /// A call on a normal scheduler might take too long.
    Large,
}

impl<W> Entries<W> {
    /// Reads and checks all entries of a list, and finds their locks. With a `pace`, the call stops
    /// at entries that might take too long to write as well.
    pub(super) fn read<'a, K: Kind<Write = W>>(
        env: Env<'a>,
        own: &K,
        list: Term<'a>,
        partition_count: u32,
        pace: Option<&Pace>,
    ) -> Result<Self, Refused<'a>> {
        if pace.is_some() && is_longer(list, MOST) {
            return Err(Refused::Large);
        }
        let mut work = if pace.is_some() { Work::limited() } else { Work::unlimited() };
        let mut slots: Vec<Slot<W>> = Vec::new();
        let mut rest = list;
        while let Some((element, tail)) = cell(rest) {
            let decoded = K::decode(element).ok_or_else(|| Refused::Invalid(invalid(rest)))?;
            if slots.len() % UNTIMED == UNTIMED - 1 && pace.is_some_and(|pace| !pace.has_half(Duration::ZERO)) {
                return Err(Refused::Large);
            }
            let write = own.prepare(env, decoded, &mut work).ok_or(Refused::Large)?;
            let (key, shard) = K::place(&write);
            // The key chooses the partition, so the route is never void.
            let partition = Route::BY_TERM.partition(key, partition_count).unwrap_or(0);
            let lock = partition * K::SHARDS as u32 + shard as u32;
            slots.push(Slot { write, lock, next: NONE });
            rest = tail;
        }
        if !rest.is_empty_list() {
            return Err(Refused::Invalid(invalid(rest)));
        }
        let mut entries = Entries { slots, firsts: Vec::new() };
        entries.chain(partition_count as usize * K::SHARDS);
        Ok(entries)
    }

    /// Chains the writes of each lock in their order.
    fn chain(&mut self, locks: usize) {
        let mut heads = vec![NONE; locks];
        for (number, slot) in self.slots.iter_mut().enumerate().rev() {
            slot.next = std::mem::replace(&mut heads[slot.lock as usize], number as u32);
        }
        self.firsts = heads.into_iter().filter(|&head| head != NONE).collect();
    }

    /// The number of entries.
    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    /// How many empty shards will have an entry, if the shards of all entries grant writes.
    pub(super) fn admitted<K: Kind<Write = W>>(
        &self,
        own: &K,
        partition_count: u32,
        writes_in_stop: bool,
    ) -> Result<usize, Closed> {
        let plain = Access::by_count(partition_count);
        let access = if writes_in_stop { plain.of_processor() } else { plain };
        self.firsts.iter().try_fold(0, |empty, &first| {
            let lock = self.slots[first as usize].lock;
            let Empty(is_empty) = own.admits(lock / K::SHARDS as u32, access, lock as usize % K::SHARDS)?;
            Ok(empty + usize::from(is_empty))
        })
    }

    /// Whether the entries can be written in the rest of the time, if `empty` shards are empty.
    pub(super) fn are_short(&self, empty: usize, pace: &Pace) -> bool {
        self.slots.len() < UNTIMED || pace.has_half(FIRST_TIME * empty as u32)
    }

    /// Writes all entries, which were admitted, and adds the partitions in which enough entries wait
    /// then.
    pub(super) fn write<K: Kind<Write = W>>(
        &self,
        own: &K,
        partition_count: u32,
        mut room: Room<'_, '_>,
        enough: &mut Vec<u32>,
    ) {
        // A partition that drains since it admitted the entries grants the writes of a processor.
        let access = Access::by_count(partition_count).of_processor();
        for &first in &self.firsts {
            let lock = self.slots[first as usize].lock;
            let (partition, shard) = (lock / K::SHARDS as u32, lock as usize % K::SHARDS);
            let mut next = first;
            while next != NONE {
                let chain = Chain { slots: &self.slots, next, left: LOCKED };
                next = chain.clone().end();
                let written = own.write_all(partition, access, shard, room.is_reserved, chain);
                let written = written.expect("no partition closes while its entries are written");
                room.use_room(written.used);
                if written.is_enough && enough.last() != Some(&partition) {
                    enough.push(partition);
                }
            }
        }
    }
}

/// Whether a list has more than `count` elements.
fn is_longer(mut list: Term<'_>, count: usize) -> bool {
    for _ in 0..count {
        match cell(list) {
            Some((_element, tail)) => list = tail,
            None => return false,
        }
    }
    cell(list).is_some()
}

/// Writes of one lock.
struct Chain<'s, W> {
    /// All slots.
    slots: &'s [Slot<W>],
    /// The slot of the next write.
    next: u32,
    /// How many writes may follow.
    left: usize,
}

impl<W> Chain<'_, W> {
    /// The slot behind these writes.
    fn end(mut self) -> u32 {
        self.by_ref().for_each(drop);
        self.next
    }
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
        let slot = self.slots.get(self.next as usize)?;
        self.left = self.left.checked_sub(1)?;
        self.next = slot.next;
        Some(&slot.write)
    }
}
