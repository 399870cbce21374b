//! Terms on their way into a store.
//!
//! A large term is copied to a separate heap before its shard is locked; under the lock the heap
//! only changes hands. It is freed as soon as its entry gives it up, and never copied again to make
//! room. A small term is copied under the lock, to a segment of the [arena](crate::memory::arena).

use std::sync::Arc;

use crate::term::Heap;

/// See the module's documentation.
pub struct Parcel<H: Heap> {
    /// The copy of a packed term, else the caller's term.
    pub(crate) term: H::Term,
    /// The heap of the copy. Readers share it to copy from it without the lock.
    pub(crate) heap: Option<Arc<H>>,
}

impl<H: Heap> Parcel<H> {
    /// A small term, which the store copies.
    #[inline]
    pub fn loose(term: H::Term) -> Self {
        Parcel { term, heap: None }
    }

    /// A large term: `term` is the copy in `heap`, which holds nothing else but perhaps the version
    /// of the entry.
    pub fn packed(heap: H, term: H::Term) -> Self {
        Parcel { term, heap: Some(Arc::new(heap)) }
    }

    /// The term.
    #[inline]
    pub fn term(&self) -> H::Term {
        self.term
    }

    /// The heap of a large term.
    #[inline]
    pub fn heap(&self) -> Option<&H> {
        self.heap.as_deref()
    }
}
