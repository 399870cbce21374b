//! The ids that entries and arenas share.

use crate::term::Resident;

/// An entry within its store. Ids follow the order of insertion, but a new entry takes the id of a
/// deleted one.
pub type EntryId = u32;

/// Where in its arena a copy lives: in a segment, or in a separate heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentId(pub(crate) u32);

/// Lower ids are those of segments.
const FIRST_OWN: u32 = 1 << 31;

impl SegmentId {
    /// An immediate, which lives nowhere.
    pub const NONE: Self = SegmentId(u32::MAX);

    /// A deleted entry, which has no term.
    pub const VACANT: Self = SegmentId(u32::MAX - 1);

    /// The id of the heap in a slot of `Arena::own_heaps`.
    pub(crate) fn of_own_heap(slot: u32) -> Self {
        SegmentId(FIRST_OWN | slot)
    }

    /// Whether this is the id of a segment.
    #[inline]
    pub(crate) fn is_segment(self) -> bool {
        self.0 < FIRST_OWN
    }

    /// The term that has this id, as readers get it.
    #[inline]
    pub(crate) fn resident<T>(self, term: T) -> Resident<T> {
        Resident { term, is_immediate: self == Self::NONE }
    }

    /// The slot in `Arena::own_heaps`, if this is the id of a separate heap.
    #[inline]
    pub(crate) fn own_heap(self) -> Option<u32> {
        (!self.is_segment() && self.0 < Self::VACANT.0).then_some(self.0 & !FIRST_OWN)
    }

    /// The index in `Arena::segments`, if this is the id of a segment.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}
