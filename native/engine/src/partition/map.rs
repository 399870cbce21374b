//! The operations on a partition of a map.

use super::access::{Access, Closed};
use super::keyed::{TableState, TABLE_SHARDS};
use super::partition::{Partition, Stored, Versions, Written};
use super::shard::InFlight;
use crate::clock;
use crate::memory::parcel::Parcel;
use crate::store::hash::Hash;
use crate::store::map::{Generation, Put, Values};
use crate::store::Store;
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
    /// Stores `value` for `key` if the key is new or `version` is greater than its version, and if it
    /// `has_room`, which gets whether the key is new.
    #[inline]
    fn put_newer(
        &mut self,
        hash: Hash,
        key: &Parcel<H>,
        value: &Parcel<H>,
        version: Version<H::Term>,
        has_room: impl FnOnce(bool) -> bool,
    ) -> Put {
        let Self { waiting, in_flight, .. } = self;
        let is_stale = || is_stale(in_flight.as_ref(), hash, key.term, version);
        waiting.put_newer(hash, key, value, version, is_stale, has_room)
    }
}

/// Whether `version` is not greater than that of the entry of `key` in a flush, unless the entry has
/// an outcome or was deleted.
#[inline]
pub(super) fn is_stale<H: Heap>(
    in_flight: Option<&InFlight<Generation<H>>>,
    hash: Hash,
    key: H::Term,
    version: Version<H::Term>,
) -> bool {
    let found = in_flight.and_then(|in_flight| in_flight.find(hash, key));
    found.is_some_and(|found| !version.is_newer_than(found.held.store().version(found.held.id())))
}

impl<H: Heap> MapPartition<H> {
    /// Stores `value` for `key` unconditionally, or with a version of the clock.
    #[inline(always)]
    pub fn put(&self, access: Access, hash: Hash, key: &Parcel<H>, value: &Parcel<H>) -> Result<Stored, Closed> {
        let mut state = self.lock_open(access, hash)?;
        if !self.has_versions(Versions::Any) {
            return Ok(self.put_stamped(state, access, hash, key, value));
        }
        let is_bounded = state.is_bounded;
        let has_room = |is_new| !is_bounded || self.find_room(access, is_new);
        let is_new = state.waiting.put(hash, key, value, has_room);
        Ok(self.written(state, access, is_new))
    }

    /// Stores `value` for `key` with a version of the clock. In this shard only a version that came
    /// from elsewhere may be as great. A map whose writes have versions refuses.
    #[inline(never)]
    fn put_stamped(
        &self,
        mut state: MutexGuard<'_, TableState<H, Values<H>>>,
        access: Access,
        hash: Hash,
        key: &Parcel<H>,
        value: &Parcel<H>,
    ) -> Stored {
        if !self.has_versions(Versions::Clock) {
            return self.refuse_versions(state, access);
        }
        let is_bounded = state.is_bounded;
        let has_room = |is_new| !is_bounded || self.find_room(access, is_new);
        // The index loads while the clock is read.
        state.waiting.prefetch(hash);
        let version = state.waiting.stamp(&self.clock, clock::now::<H>());
        let put = state.waiting.put_stamped(hash, key, value, version, has_room);
        self.written(state, access, (put != Put::Full).then_some(put == Put::New))
    }

    /// Lets all later stamps of the map be greater than a version of another clock.
    pub fn see_version(&self, version: i64) {
        self.clock.see(version);
    }

    /// The version of the present moment.
    pub fn present_version(&self) -> i64 {
        clock::now::<H>()
    }

    /// A version that is at least as great as all stamps of this partition.
    pub fn latest_version(&self) -> i64 {
        let stamps = self.shards.iter().map(|shard| shard.lock().waiting.last_stamp());
        stamps.max().unwrap_or(0).max(self.clock.seen()).max(clock::now::<H>())
    }

    /// Refuses a write whose version would come from another source than those of the map.
    #[cold]
    fn refuse_versions(&self, state: MutexGuard<'_, TableState<H, Values<H>>>, access: Access) -> Stored {
        self.written(state, access, Some(false));
        Stored::Versioned
    }

    /// Stores `value` for `key` if the key is new.
    pub fn put_new(&self, access: Access, hash: Hash, key: &Parcel<H>, value: &Parcel<H>) -> Result<Stored, Closed> {
        let mut state = self.lock_open(access, hash)?;
        if self.has_versions(Versions::Own) {
            return Ok(self.refuse_versions(state, access));
        }
        if state.waiting.find(hash, key.term).is_some() || state.find_in_flight(hash, key.term).is_some() {
            self.written(state, access, Some(false));
            return Ok(Stored::Refused);
        }
        if state.is_bounded && !self.find_room(access, true) {
            return Ok(Stored::Full);
        }
        let version = if self.has_versions(Versions::Any) {
            Version::Int(0)
        } else {
            state.waiting.stamp(&self.clock, clock::now::<H>())
        };
        state.waiting.put_new(hash, key, value, version);
        Ok(self.written(state, access, Some(true)))
    }

    /// Stores `value` for `key` if the key is new or `version` is greater than its version. A stale
    /// version needs no room.
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
        if self.has_versions(Versions::Clock) {
            return Ok(self.refuse_versions(state, access));
        }
        let is_bounded = state.is_bounded;
        let has_room = |is_new| !is_bounded || self.find_room(access, is_new);
        let put = state.put_newer(hash, key, value, version, has_room);
        let stored = self.written(state, access, (put != Put::Full).then_some(put == Put::New));
        Ok(if put == Put::Stale { Stored::Refused } else { stored })
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
        let mut now = None;
        let is_stamped = self.has_versions(Versions::Clock);
        self.write_each(access, shard, reserved, writes, |state, hash, write| match write {
            Write::Put(key, value) if is_stamped => {
                let version = state.waiting.stamp(&self.clock, *now.get_or_insert_with(clock::now::<H>));
                state.waiting.put_stamped(hash, key, value, version, |_is_new| true) == Put::New
            }
            Write::Put(key, value) => state.waiting.put(hash, key, value, |_is_new| true) == Some(true),
            Write::PutNewer(key, value, version) => {
                state.put_newer(hash, key, value, *version, |_is_new| true) == Put::New
            }
        })
    }

    /// As [`get`](Self::get), with the version.
    pub fn get_versioned<R>(
        &self,
        access: Access,
        hash: Hash,
        key: H::Term,
        copy: impl FnOnce(&Parcel<H>, Version<H::Term>) -> R,
    ) -> Result<Option<R>, Closed> {
        let state = self.shards[Self::shard_of(hash)].lock_readable(access)?;
        let waiting = state.waiting.find(hash, key).and_then(|id| state.waiting.versioned(id));
        if let Some((value, version)) = waiting {
            if value.heap().is_some() {
                drop(state);
            }
            return Ok(Some(copy(&value, version)));
        }
        let Some(found) = state.find_in_flight(hash, key) else { return Ok(None) };
        let Some((value, version)) = found.held.store().versioned(found.held.id()) else { return Ok(None) };
        if value.heap().is_some() {
            drop(found);
            drop(state);
        }
        Ok(Some(copy(&value, version)))
    }

    /// The result of `copy` for the value of `key`; `None` for a missing key. A large value is copied
    /// without the lock.
    #[inline]
    pub fn get<R>(
        &self,
        access: Access,
        hash: Hash,
        key: H::Term,
        copy: impl FnOnce(&Parcel<H>) -> R,
    ) -> Result<Option<R>, Closed> {
        let state = self.shards[Self::shard_of(hash)].lock_readable(access)?;
        let Some(value) = state.waiting.get(hash, key) else {
            return Ok(Self::get_in_flight(state, hash, key, copy));
        };
        if value.heap().is_some() {
            drop(state);
        }
        Ok(Some(copy(&value)))
    }

    /// The same for a key without a waiting entry.
    #[inline]
    fn get_in_flight<R>(
        state: MutexGuard<'_, TableState<H, Values<H>>>,
        hash: Hash,
        key: H::Term,
        copy: impl FnOnce(&Parcel<H>) -> R,
    ) -> Option<R> {
        let found = state.find_in_flight(hash, key)?;
        let value = found.held.store().value(found.held.id())?;
        if value.heap().is_some() {
            drop(found);
            drop(state);
        }
        Some(copy(&value))
    }
}
