//! The destination of the elements of a list. Each kind of buffer has its own.

use partitioned_buffer_engine::{Closed, Stored, Written};
use rustler::{Env, Term};

use crate::route::Route;
use crate::run::{News, NotRunning, Shared};
use crate::vm::term::RawTerm;

/// The destination of the elements of a list.
pub(crate) trait Target {
    /// An element of the expected shape.
    type Element: Copy;

    /// A prepared write of an element.
    type Write;

    /// How many shards, each with a lock, a partition has.
    const SHARDS: usize;

    /// The state that the partitions of the buffer share.
    fn shared(&self) -> &Shared;

    /// The route to the partition of an element.
    fn route(&self) -> Route;

    /// Reads an element; `None` if it has another shape. A large element must not take longer: a
    /// whole chunk is read without a look at the clock.
    fn decode(&self, element: Term<'_>) -> Option<Self::Element>;

    /// Prepares a write: looks at the whole key, copies large terms, and lets the CPU load the
    /// terms that will be copied.
    fn prepare(&self, env: Env<'_>, element: Self::Element) -> Self::Write;

    /// Bytes of the large copies of a write.
    fn large_bytes(write: &Self::Write) -> usize;

    /// The term that chooses the partition of a write, and the shard in there.
    fn place(write: &Self::Write) -> (RawTerm, usize);

    /// Does one write, for which no room is reserved.
    fn write(&self, write: &Self::Write) -> Result<Stored, NotRunning>;

    /// Does all writes of one shard of a partition, in order, with reserved room or without.
    fn write_all<'w>(
        &self,
        partition_count: u32,
        partition: u32,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Written, Closed>
    where
        Self::Write: 'w;

    /// The index of the lock that a write needs, among those of all partitions.
    fn lock(&self, write: &Self::Write, partition_count: u32) -> Result<usize, NotRunning> {
        let (term, shard) = Self::place(write);
        Ok(self.route().partition(term, partition_count)? as usize * Self::SHARDS + shard)
    }

    /// Sends the partition of a lock the news that enough entries wait.
    fn tell_enough(&self, env: Env<'_>, lock: usize) {
        self.shared().tell(env, News::Enough((lock / Self::SHARDS) as u32));
    }
}
