//! Entries of the same buffer on another node, with their history.

use super::{store_value, Generation, Put};
use crate::memory::parcel::Parcel;
use crate::store::hash::Hash;
use crate::store::history::Counts;
use crate::term::{Heap, Version};

/// The most updates of an absorbed entry: another node can absorb it again.
const MOST_UPDATES: u64 = i64::MAX as u64;

impl<H: Heap> Generation<H> {
    /// Stores `value` for `key` if the key is new or `version` is greater than its version, as
    /// [`put_newer`](Generation::put_newer) does. The entry brings its `updates`: a new entry keeps
    /// them, and a replacement adds them to those before, and one.
    #[inline(never)]
    pub fn absorb(
        &mut self,
        hash: Hash,
        key: &Parcel<H>,
        value: &Parcel<H>,
        (version, updates): (Version<H::Term>, u64),
        is_stale: impl FnOnce() -> bool,
    ) -> Put {
        let Some(id) = self.find(hash, key.term) else {
            if is_stale() {
                self.contents.stale += 1;
                return Put::Stale;
            }
            let copy = store_value(&mut self.contents.arena, value, version);
            self.add(hash, key, copy, Counts { updates: updates.min(MOST_UPDATES), attempts: 0 });
            return Put::New;
        };
        let old = self.entries.extra(id);
        if !version.is_newer_than(old.version()) {
            self.contents.stale += 1;
            return Put::Stale;
        }
        let copy = store_value(&mut self.contents.arena, value, version);
        let updates = { old.counts().updates }.saturating_add(updates).saturating_add(1);
        self.replace(id, copy, updates.min(MOST_UPDATES));
        Put::Replaced
    }
}
