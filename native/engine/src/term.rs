//! The interface of terms, and of the heaps for their copies.
//!
//! The NIF crate implements both over process-independent environments, the tests over a heap that
//! detects the use of a term after its heap was dropped.

use std::cmp::Ordering;

/// A term as the engine holds it: a word, valid as long as the heap of the term.
///
/// `PartialEq` compares the words. Different words may still be [identical](Term::is_identical)
/// terms.
pub trait Term: Copy + PartialEq + Send + Sync + 'static {
    /// Erlang's `=:=`: `1` and `1.0` differ.
    fn is_identical(self, other: Self) -> bool;

    /// The order of two integers.
    fn compare_integers(self, other: Self) -> Ordering;
}

/// A term in a store, as readers get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident<T> {
    /// The term.
    pub term: T,
    /// Whether it is an immediate for sure, which is valid without its store.
    pub is_immediate: bool,
}

/// Memory for copies of terms, freed only as a whole, by dropping the heap.
pub trait Heap: Send + Sync + 'static {
    /// A term that lives here.
    type Term: Term;

    /// An empty heap.
    fn new() -> Self;

    /// Copies `term` to this heap. An immediate needs no memory and stays the same word.
    fn copy(&mut self, term: Self::Term) -> Self::Term;

    /// Estimates how many bytes a copy of `term` keeps allocated, including binaries outside of the
    /// heap. The cost of the estimate does not grow with the term.
    fn weigh(&self, term: Self::Term) -> usize;

    /// The estimated bytes of the last copy if it was large, or 0. No copy may follow it: it has
    /// the heap [for itself](crate::Parcel), or it looked small and is among others.
    fn large_bytes(&self) -> usize;

    /// Whether the last copy was a large term.
    fn holds_large(&self) -> bool {
        self.large_bytes() > 0
    }

    /// A heap without memory, in the place of a freed one. Nothing is copied to it.
    fn none() -> Self;

    /// Parts of a flush with fewer bytes are not freed apart.
    const LEAST_PART: usize = 64 * 1024;

    /// A number of the calling thread, which chooses its lane in an [arena](crate::arena).
    fn lane() -> usize;

    /// The microseconds since 1970, by the wall clock.
    fn wall_clock() -> i64;

    /// Asks the processor to load `target` into its cache, if it can.
    #[inline]
    fn prefetch<T>(_target: &T) {}

    /// Prefetches the memory of a term.
    #[inline]
    fn prefetch_term(_term: Self::Term) {}
}

/// The version of an entry: an integer of any size, which needs a heap only beyond 64 bits.
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
    /// Whether this version is greater than `other`, and so replaces it.
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
