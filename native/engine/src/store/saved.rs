//! An entry on its way to the journal, or from it.

use crate::ids::EntryId;
use crate::memory::parcel::Parcel;
use crate::term::{Heap, Version};

/// The contents of an entry. Terms live in the store, except for large ones: see
/// [`Pinned`](crate::partition::Pinned).
pub enum Saved<H: Heap> {
    /// An entry of a map.
    Value {
        /// The key.
        key: Parcel<H>,
        /// The value. A large one also keeps the version in memory.
        value: Parcel<H>,
        /// The version.
        version: Version<H::Term>,
        /// The number of replacements by `put_newer`.
        updates: u64,
    },
    /// An entry of a counter.
    Sum {
        /// The key.
        key: Parcel<H>,
        /// The sum.
        sum: i128,
        /// The count.
        count: u128,
        /// Whether it contains a failed sum of the generation before.
        absorbs: bool,
    },
    /// An item of a queue.
    Item {
        /// The item.
        item: Parcel<H>,
        /// The generation and the id that it had before it waited again for the first time.
        origin: Option<(u64, EntryId)>,
    },
}

/// An entry with its attempts.
pub struct SavedEntry<H: Heap> {
    /// The failed attempts of the processor.
    pub attempts: u32,
    /// The contents.
    pub saved: Saved<H>,
}
