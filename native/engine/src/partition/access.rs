//! The access that a caller has, and the gate by which a shard grants it.
//!
//! Both are a partition count with marks, so that a put compares two words.

/// The partition refuses an operation: it is closed, drains, or is open for another partition
/// count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// Marks the access of a processor, and the gate of a shard that drains.
const PROCESSOR: u32 = 1 << 31;

/// Marks the access of a writer with a reservation.
const RESERVED: u32 = 1 << 30;

/// Both marks.
const MARKS: u32 = PROCESSOR | RESERVED;

/// The count of a caller that leaves the choice of the partition to the key, or item. Lower counts
/// are partition counts.
const BY_TERM: u32 = (1 << 30) - 1;

/// The count of a closed shard. No access has it.
const CLOSED: u32 = (1 << 30) - 2;

/// An operation's caller: a plain one, a processor, which may write while the partition drains, or
/// a writer that reserved room for an entry, which the write uses or releases. With the partition
/// count by which the caller chose the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access(u32);

impl Access {
    /// A caller that leaves the choice of the partition to the key, or item.
    pub const BY_TERM: Self = Access(BY_TERM);

    /// A plain caller that chose the partition by this count. Counts that no buffer has are all the
    /// same.
    #[inline]
    pub const fn by_count(partition_count: u32) -> Self {
        Access(if partition_count < CLOSED { partition_count } else { CLOSED - 1 })
    }

    /// The same caller as a processor.
    #[inline]
    pub const fn of_processor(self) -> Self {
        Access(self.0 | PROCESSOR)
    }

    /// The same caller with room for an entry. Unless the partition is closed, the write uses the
    /// room or releases it.
    #[inline]
    pub const fn with_room(self) -> Self {
        Access(self.0 | RESERVED)
    }

    /// The same kind of caller with another partition count.
    #[inline]
    pub const fn with_count(self, partition_count: u32) -> Self {
        Access(Self::by_count(partition_count).0 | self.0 & MARKS)
    }

    /// The partition count by which the caller chose the partition; `None` if the key or item
    /// chooses.
    #[inline]
    pub const fn count(self) -> Option<u32> {
        match self.0 & !MARKS {
            BY_TERM => None,
            count => Some(count),
        }
    }

    /// Whether the caller is a processor.
    #[inline]
    pub const fn is_processor(self) -> bool {
        self.0 & PROCESSOR != 0
    }

    /// Whether the caller reserved room for an entry.
    #[inline]
    pub const fn has_room(self) -> bool {
        self.0 & RESERVED != 0
    }

    /// All of the access as a word.
    #[inline]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// The access of a word from [`to_bits`](Self::to_bits).
    #[inline]
    pub const fn from_bits(bits: u32) -> Self {
        Access(bits)
    }
}

/// The access that a shard grants: open or draining for a partition count, or closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gate(u32);

impl Gate {
    /// Grants nothing.
    pub(super) const CLOSED: Self = Gate(CLOSED);

    /// Grants all operations of callers with this partition count.
    pub(super) fn open(partition_count: u32) -> Self {
        Gate(Access::by_count(partition_count).0)
    }

    /// Grants no writes but those of processors; `None` for a closed gate.
    pub(super) fn draining(self) -> Option<Self> {
        (self != Self::CLOSED).then_some(Gate(self.0 | PROCESSOR))
    }

    /// Whether it grants a write.
    #[inline]
    pub(super) fn admits_write(self, access: Access) -> bool {
        // This comparison is all that a plain write needs.
        self.0 == access.0 || self.admits_marked(access)
    }

    /// Whether it grants another write than a plain one to an open shard.
    #[cold]
    fn admits_marked(self, access: Access) -> bool {
        self.admits_read(access) && self.0 & PROCESSOR <= access.0 & PROCESSOR
    }

    /// Whether it grants a read or a delete.
    #[inline]
    pub(super) fn admits_read(self, access: Access) -> bool {
        self.0 & !MARKS == access.0 & !MARKS
    }

    /// Whether it grants all operations.
    pub(super) fn is_open(self) -> bool {
        self != Self::CLOSED && self.0 & PROCESSOR == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_admits_only_its_count() {
        let (open, draining) = (Gate::open(3), Gate::open(3).draining().expect("it is open"));
        let plain = Access::by_count(3);
        let processor = plain.of_processor();
        assert!([plain, processor, plain.with_room(), processor.with_room()]
            .iter()
            .all(|&access| { open.admits_write(access) && open.admits_read(access) && draining.admits_read(access) }));
        assert_eq!(
            [plain, processor, plain.with_room()].map(|access| draining.admits_write(access)),
            [false, true, false]
        );
        assert!(draining.admits_write(processor.with_room()) && !draining.is_open() && open.is_open());
        for other in [Access::by_count(2), Access::by_count(u32::MAX), Access::BY_TERM, Access::BY_TERM.of_processor()]
        {
            for gate in [open, draining, Gate::CLOSED] {
                assert!(!gate.admits_write(other) && !gate.admits_read(other));
            }
        }
        assert!(!Gate::CLOSED.admits_read(plain) && Gate::CLOSED.draining().is_none() && !Gate::CLOSED.is_open());
    }

    #[test]
    fn an_access_is_a_count_and_a_caller() {
        let access = Access::BY_TERM.with_room().of_processor();
        assert_eq!((access.count(), access.with_count(7).count()), (None, Some(7)));
        assert_eq!(access.with_count(7), Access::by_count(7).of_processor().with_room());
        assert_eq!(Access::from_bits(access.to_bits()), access);
        assert!(access.has_room() && !Access::by_count(7).of_processor().has_room());
        assert_ne!(Access::by_count(u32::MAX).count(), None);
    }
}
