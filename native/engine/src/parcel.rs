//! Terms on their way into a store.
//!
//! A large term is copied before the lock of its shard is taken, to a heap of its own, which then only changes hands under
//! the lock. It shares its heap with no other term, so it is freed as soon as its entry gives it up, and is never copied
//! again to make room. A small term is copied under the lock, to a segment of the [arena](crate::arena).

use std::sync::Arc;

use crate::term::Heap;

/// See the module's documentation.
pub struct Parcel<H: Heap> {
    /// The term: the copy if it is packed, else the caller's.
    pub(crate) term: H::Term,
    /// The heap of the copy. Readers may share it, to copy from it without the lock.
    pub(crate) heap: Option<Arc<H>>,
}

impl<H: Heap> Parcel<H> {
    /// A small term, which is copied where it is stored.
    #[inline]
    pub fn loose(term: H::Term) -> Self {
        Parcel { term, heap: None }
    }

    /// A copy that lives in `heap`, alone or with the version of its entry.
    pub fn packed(heap: H, term: H::Term) -> Self {
        Parcel { term, heap: Some(Arc::new(heap)) }
    }

    /// The term.
    #[inline]
    pub fn term(&self) -> H::Term {
        self.term
    }

    /// The heap of its own, for a large term.
    #[inline]
    pub fn heap(&self) -> Option<&H> {
        self.heap.as_deref()
    }
}
