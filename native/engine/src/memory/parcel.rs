//! Terms on their way into a store.
//!
//! An immediate needs no memory: its word is stored. A large term is copied to a separate heap before
//! its shard is locked; under the lock the heap only changes hands. It is freed as soon as its entry
//! gives it up, and never copied again to make room. Any other term is copied under the lock, to a
//! segment of the [arena](crate::memory::arena).

use std::sync::Arc;

use crate::term::{Heap, Resident};

/// See the module's documentation.
pub struct Parcel<H: Heap> {
    /// The copy of a packed term, else the caller's term.
    pub(crate) term: H::Term,
    /// What the store does with it.
    pub(crate) kind: Kind<H>,
}

/// The kinds of terms.
pub(crate) enum Kind<H> {
    /// An immediate.
    Immediate,
    /// Most likely a small term.
    Small,
    /// A large term, with the heap of its copy. Readers share it to copy from it without the lock.
    Large(Arc<H>),
}

impl<H: Heap> Parcel<H> {
    /// An immediate.
    #[inline]
    pub fn immediate(term: H::Term) -> Self {
        Parcel { term, kind: Kind::Immediate }
    }

    /// A small term, or an immediate, which the store copies.
    #[inline]
    pub fn loose(term: H::Term) -> Self {
        Parcel { term, kind: Kind::Small }
    }

    /// A large term: `term` is the copy in `heap`, which holds nothing else but perhaps the version
    /// of the entry.
    pub fn packed(heap: H, term: H::Term) -> Self {
        Parcel { term, kind: Kind::Large(Arc::new(heap)) }
    }

    /// The term.
    #[inline]
    pub fn term(&self) -> H::Term {
        self.term
    }

    /// Whether it is an immediate for sure.
    #[inline]
    pub fn is_immediate(&self) -> bool {
        matches!(self.kind, Kind::Immediate)
    }

    /// The term, as readers of a store get it.
    #[inline]
    pub fn resident(&self) -> Resident<H::Term> {
        Resident { term: self.term, is_immediate: self.is_immediate() }
    }

    /// The heap of a large term.
    #[inline]
    pub fn heap(&self) -> Option<&H> {
        match &self.kind {
            Kind::Large(heap) => Some(heap),
            Kind::Immediate | Kind::Small => None,
        }
    }
}
