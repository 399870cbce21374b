//! What a partition needs of a generation or a log.

use crate::ids::EntryId;
use crate::index::Hasher;

/// The entries of a shard since the last flush. Threads write it under the shard's lock. The flush freezes it, and then
/// any thread reads it without a lock.
pub trait Store: Send + Sync + 'static {
    /// What readers get of an entry.
    type Record: Copy;

    /// An empty store for keys hashed by `hasher`; allocates nothing.
    fn new(hasher: &Hasher) -> Self;

    /// An empty store to replace this one; allocates nothing.
    fn successor(&self) -> Self;

    /// How many entries there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One above the highest id.
    fn end(&self) -> usize;

    /// Whether some terms may be large, so that copying even a few records may take long.
    fn has_large(&self) -> bool;

    /// The record of an entry; `None` if it was deleted or there is no such id.
    fn record(&self, id: EntryId) -> Option<Self::Record>;
}
