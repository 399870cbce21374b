//! What the engine asks of terms and of the heaps they are copied to.
//!
//! The NIF crate implements both over process-independent environments, the tests over a heap that notices every use
//! of a term whose heap has been cleared.

use std::cmp::Ordering;

/// A term as the engine holds it: a word that has a meaning only as long as the heap that it lives in.
///
/// `PartialEq` compares the words: equal words are the same term, different ones may still be [identical].
///
/// [identical]: Term::is_identical
pub trait Term: Copy + PartialEq + Send + Sync + 'static {
    /// Erlang's `=:=`: `1` and `1.0` differ.
    fn is_identical(self, other: Self) -> bool;

    /// The order of two integers.
    fn compare_integers(self, other: Self) -> Ordering;
}

/// Memory that terms are copied to and that can only be given back as a whole, by dropping the heap.
pub trait Heap: Send + Sync + 'static {
    /// The terms that live here.
    type Term: Term;

    /// An empty heap.
    fn new() -> Self;

    /// Copies `term` to this heap. An immediate, which needs no memory, comes back as the same word.
    fn copy(&mut self, term: Self::Term) -> Self::Term;

    /// About how many bytes a copy of `term` keeps allocated, binaries outside of the heap included. An estimate whose
    /// own cost does not grow with the term.
    fn weigh(&self, term: Self::Term) -> usize;

    /// Whether a large term was copied here: one that should have had a [heap of its own](crate::Parcel), but looked small
    /// from outside. It is the last copy then.
    fn holds_large(&self) -> bool;

    /// A number of the calling thread. Copies that are made under the same number share their memory; threads with different
    /// numbers do not wait for each other's caches.
    fn lane() -> usize;

    /// Asks the processor to load `place` into its cache, where that can be done. It changes nothing else.
    #[inline]
    fn prefetch<T>(_place: &T) {}

    /// The same for the memory of a term.
    #[inline]
    fn prefetch_term(_term: Self::Term) {}
}

/// The version of an entry: an integer of any size, held without a heap where 64 bits suffice.
#[derive(Clone, Copy, Debug)]
pub enum Version<T> {
    /// An integer below the range of `i64`.
    Below(T),
    /// An integer in the range of `i64`.
    Int(i64),
    /// An integer above the range of `i64`.
    Above(T),
}

impl<T: Term> Version<T> {
    /// Whether this version replaces `other`: it is greater.
    pub fn is_newer_than(self, other: Self) -> bool {
        let order = match (self, other) {
            (Version::Int(new), Version::Int(old)) => new.cmp(&old),
            (Version::Below(new), Version::Below(old)) | (Version::Above(new), Version::Above(old)) => {
                new.compare_integers(old)
            }
            (Version::Below(_), _) | (_, Version::Above(_)) => Ordering::Less,
            (Version::Above(_), _) | (_, Version::Below(_)) => Ordering::Greater,
        };
        order == Ordering::Greater
    }
}
