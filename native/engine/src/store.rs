//! What a shard collects entries in, whatever the kind of the buffer.

use crate::ids::EntryId;
use crate::index::Hasher;

/// The entries of a shard since the last flush. Threads write it under the shard's lock. After the flush nobody writes it,
/// and any thread reads it without a lock.
pub trait Store: Send + Sync + 'static {
    /// What readers get of an entry.
    type Record: Copy;

    /// An empty store for keys hashed by `hasher`; allocates nothing.
    fn new(hasher: &Hasher) -> Self;

    /// An empty store to take the place of this one; allocates nothing.
    fn successor(&self) -> Self;

    /// How many entries there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids of all entries are below this one.
    fn end(&self) -> usize;

    /// Whether copying a few records may take long, because some terms may be large.
    fn has_large(&self) -> bool;

    /// The record of an entry, unless it was deleted or there is no such id.
    fn record(&self, id: EntryId) -> Option<Self::Record>;
}
