//! The operations on a partition of a queue.

use super::access::{Access, Closed};
use super::partition::{Partition, Stored, Written};
use crate::memory::parcel::Parcel;
use crate::memory::reclaim::help;
use crate::store::queue::Log;
use crate::store::Store;
use crate::term::Heap;

/// A partition of a queue.
pub type QueuePartition<H> = Partition<Log<H>, 1>;

impl<H: Heap> QueuePartition<H> {
    /// Adds an item behind all others.
    #[inline]
    pub fn push(&self, access: Access, item: &Parcel<H>) -> Result<Stored, Closed> {
        let mut state = self.shards[0].lock_open(access)?;
        if state.is_bounded && !self.find_room(access, true) {
            return Ok(Stored::Full);
        }
        let begins = state.waiting.append(item);
        let is_enough = state.is_counted && self.count_write(&mut state, true);
        if access.has_room() {
            self.use_room(&state, true);
        }
        drop(state);
        if begins {
            help();
        }
        Ok(if is_enough { Stored::Enough } else { Stored::Stored })
    }

    /// Adds items in their order under one lock. The caller keeps the list short, and has room for
    /// it if it is `reserved`.
    #[inline]
    pub fn push_all<'i>(
        &self,
        access: Access,
        reserved: bool,
        items: impl Iterator<Item = &'i Parcel<H>>,
    ) -> Result<Written, Closed> {
        let mut state = self.shards[0].lock_open(access)?;
        let before = state.waiting.len();
        let mut begins = false;
        items.for_each(|item| begins |= state.waiting.append(item));
        let added = state.waiting.len() - before;
        let written = self.count_all(&mut state, added, added, reserved);
        drop(state);
        if begins {
            help();
        }
        Ok(written)
    }
}
