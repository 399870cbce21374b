//! The operations on a partition of a map.

use super::access::{Access, Closed};
use super::keyed::{FoundInFlight, TableState, TABLE_SHARDS};
use super::partition::{Partition, Stored, Written};
use super::room::Need;
use super::shard::InFlight;
use crate::memory::parcel::Parcel;
use crate::store::hash::Hash;
use crate::store::map::{Found, Generation, Put, Values};
use crate::sync::MutexGuard;
use crate::term::{Heap, Version};

/// A partition of a map.
pub type MapPartition<H> = Partition<Generation<H>, TABLE_SHARDS>;

/// A write for [`MapPartition::write_all`].
pub enum Write<H: Heap> {
    /// Unconditional: key and value.
    Put(Parcel<H>, Parcel<H>),
    /// Newer version wins: key, value and version.
    PutNewer(Parcel<H>, Parcel<H>, Version<H::Term>),
}

impl<H: Heap> TableState<H, Values<H>> {
    /// Stores `value` for `key` if the key is new or `version` is greater than its version.
    #[inline]
    fn put_newer(&mut self, hash: Hash, key: &Parcel<H>, value: &Parcel<H>, version: Version<H::Term>) -> Put {
        let Self { waiting, in_flight, .. } = self;
        let old = || find_version(in_flight.as_ref(), hash, key.term);
        waiting.put_newer(hash, key, value, version, old)
    }
}

/// The version of the entry of `key` in a flush, unless it has an outcome or was deleted.
#[inline]
fn find_version<H: Heap>(
    in_flight: Option<&InFlight<Generation<H>>>,
    hash: Hash,
    key: H::Term,
) -> Option<Version<H::Term>> {
    let found = in_flight?.find(hash, key)?;
    Some(found.table().version(found.id))
}

impl<H: Heap> MapPartition<H> {
    /// Stores `value` for `key` unconditionally.
    #[inline(always)]
    pub fn put(&self, access: Access, hash: Hash, key: &Parcel<H>, value: &Parcel<H>) -> Result<Stored, Closed> {
        let Some(mut state) = self.lock_with_room(access, hash, key.term, true)? else { return Ok(Stored::Full) };
        let is_new = state.waiting.put(hash, key, value);
        Ok(self.written(state, is_new))
    }

    /// Stores `value` for `key` if the key is new.
    pub fn put_new(&self, access: Access, hash: Hash, key: &Parcel<H>, value: &Parcel<H>) -> Result<Stored, Closed> {
        let mut state = self.lock_open(access, hash)?;
        if state.waiting.find(hash, key.term).is_some() || state.find_in_flight(hash, key.term).is_some() {
            self.find_room(access, Need::Nothing);
            return Ok(Stored::Refused);
        }
        if state.is_bounded && !self.find_room(access, Need::Entry) {
            return Ok(Stored::Full);
        }
        state.waiting.put_new(hash, key, value);
        Ok(self.written(state, true))
    }

    /// Stores `value` for `key` if the key is new or `version` is greater than its version.
    #[inline]
    pub fn put_newer(
        &self,
        access: Access,
        hash: Hash,
        key: &Parcel<H>,
        value: &Parcel<H>,
        version: Version<H::Term>,
    ) -> Result<Stored, Closed> {
        let mut state = self.lock_open(access, hash)?;
        let put = if state.is_bounded {
            match self.put_newer_bounded(&mut state, access, hash, (key, value, version)) {
                Some(put) => put,
                None => return Ok(Stored::Full),
            }
        } else {
            state.put_newer(hash, key, value, version)
        };
        let stored = self.written(state, put == Put::New);
        Ok(if put == Put::Stale { Stored::Refused } else { stored })
    }

    /// The same under the lock of a bounded shard; `None` without room. A stale version needs none.
    #[cold]
    fn put_newer_bounded(
        &self,
        state: &mut TableState<H, Values<H>>,
        access: Access,
        hash: Hash,
        (key, value, version): (&Parcel<H>, &Parcel<H>, Version<H::Term>),
    ) -> Option<Put> {
        // The entry in flight is looked up once: after its outcome the write would add an entry
        // without room.
        let (need, old) = match state.waiting.find(hash, key.term) {
            Some(id) if version.is_newer_than(state.waiting.version(id)) => (Need::Memory, None),
            Some(_) => (Need::Nothing, None),
            None => match find_version(state.in_flight.as_ref(), hash, key.term) {
                Some(old) if !version.is_newer_than(old) => (Need::Nothing, Some(old)),
                old => (Need::Entry, old),
            },
        };
        let has_room = self.find_room(access, need);
        has_room.then(|| state.waiting.put_newer(hash, key, value, version, || old))
    }

    /// Performs `writes`, which all belong to one shard, in their order under one lock. The caller
    /// keeps the list short, and has room for it if it is `reserved`.
    pub fn write_all<'w>(
        &self,
        access: Access,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w (Hash, Write<H>)> + Clone,
    ) -> Result<Written, Closed> {
        self.write_each(access, shard, reserved, writes, |state, hash, write| match write {
            Write::Put(key, value) => state.waiting.put(hash, key, value),
            Write::PutNewer(key, value, version) => state.put_newer(hash, key, value, *version) == Put::New,
        })
    }

    /// The result of `copy` for the value of `key` and the value's heap, if the value is large;
    /// `None` for a missing key. A large value is copied without the lock.
    #[inline]
    pub fn get<R>(
        &self,
        access: Access,
        hash: Hash,
        key: H::Term,
        copy: impl FnOnce(H::Term, Option<&H>) -> R,
    ) -> Result<Option<R>, Closed> {
        let state = self.shards[Self::shard_of(hash)].lock_readable(access)?;
        let Some(Found { value, heap }) = state.waiting.get(hash, key) else {
            return Ok(Self::get_in_flight(state, hash, key, copy));
        };
        let Some(heap) = heap else { return Ok(Some(copy(value, None))) };
        drop(state);
        Ok(Some(copy(value, Some(&heap))))
    }

    /// The same for a key without a waiting entry.
    #[inline]
    fn get_in_flight<R>(
        state: MutexGuard<'_, TableState<H, Values<H>>>,
        hash: Hash,
        key: H::Term,
        copy: impl FnOnce(H::Term, Option<&H>) -> R,
    ) -> Option<R> {
        let FoundInFlight { in_flight, shard, id, .. } = state.find_in_flight(hash, key)?;
        let frozen = in_flight.frozen.clone();
        drop(state);
        let Found { value, heap } = frozen.stores()[shard].value(id)?;
        Some(copy(value, heap.as_deref()))
    }
}
