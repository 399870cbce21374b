//! The partition of an operation, and its caller.

use partitioned_buffer_engine::{routing, Access};

use crate::run::NotRunning;
use crate::vm::term::RawTerm;

/// A partition and the caller's [`Access`]. A single word, since every NIF decodes one: larger
/// results are copied piece by piece, which costs a put a tenth.
///
/// The lower half is the access, the upper half the partition. Without a partition count the key or
/// item chooses the partition.
#[derive(Clone, Copy)]
pub(crate) struct Route(u64);

impl Route {
    /// The key, or item, chooses the partition.
    pub(crate) const BY_TERM: Self = Route(Access::BY_TERM.to_bits() as u64);

    /// The caller chose a partition, by a partition count. If the buffer has another one now, the
    /// route is void.
    pub(crate) fn new(partition: u32, partition_count: u32) -> Self {
        Route(u64::from(partition) << 32).with(Access::by_count(partition_count))
    }

    /// The same route for a processor.
    pub(crate) fn of_processor(self) -> Self {
        self.with(self.access().of_processor())
    }

    /// The same route for a writer that reserved room for an entry.
    pub(crate) fn with_room(self) -> Self {
        self.with(self.access().with_room())
    }

    /// Whether the caller is a processor.
    pub(crate) fn is_of_processor(self) -> bool {
        self.access().is_processor()
    }

    /// Whether the key or item chooses the partition.
    #[inline]
    pub(crate) fn is_by_term(self) -> bool {
        self.access().count().is_none()
    }

    /// The same partition with another access.
    fn with(self, access: Access) -> Self {
        Route(self.0 >> 32 << 32 | u64::from(access.to_bits()))
    }

    /// The access of the caller.
    #[inline]
    fn access(self) -> Access {
        Access::from_bits(self.0 as u32)
    }

    /// The partition of a key or item.
    #[inline]
    pub(crate) fn partition(self, term: RawTerm, count: u32) -> Result<u32, NotRunning> {
        let chosen = (self.0 >> 32) as u32;
        match self.access().count() {
            None if count == 1 => Ok(0),
            None => Ok(routing::partition(term.phash2(), count)),
            Some(partition_count) if partition_count == count && chosen < count => Ok(chosen),
            Some(_) => Err(NotRunning),
        }
    }

    /// The access to a partition of a buffer with this partition count.
    #[inline]
    pub(crate) fn access_to(self, partition_count: u32) -> Access {
        self.access().with_count(partition_count)
    }
}
