//! What a partition collects writes in, whatever kind of buffer it belongs to.

use crate::entries::EntryId;
use crate::index::Hasher;

/// What has come in since the last hand-over. Written under a lock; once retired it is frozen, and read from any thread
/// without one.
pub trait Store: Send + Sync + 'static {
    /// What is handed over of one write.
    type Record: Copy;

    /// An empty store of a buffer with this hasher; allocates nothing.
    fn new(hasher: &Hasher) -> Self;

    /// An empty store in the place of this one; allocates nothing.
    fn successor(&self) -> Self;

    /// How many records there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The positions of all records are below this one.
    fn end(&self) -> usize;

    /// Whether some terms may be large, so that copying a few records may take long.
    fn has_large(&self) -> bool;

    /// The record at a position, unless it was deleted.
    fn record(&self, position: EntryId) -> Option<Self::Record>;
}
