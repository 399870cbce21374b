//! The entries that the processor gets together.

use crate::runs::Runs;

/// Each attempt of an entry divides the size of its batch by four, which are two bits. So an entry
/// that makes its batch fail is soon alone in it.
const BITS_PER_ATTEMPT: u32 = 2;

/// The state of a batch; see the table in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchState {
    /// A reader puts it together, or no batch exists.
    Read,
    /// The processor has it, and it has no outcome yet.
    Leased,
    /// The processor failed with it too often.
    GivenUp,
    /// The function for dead letters has it.
    Buried,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// The number of its reader; no other reader has the same one.
    pub(super) reader: u64,
    /// Its state.
    pub(super) state: BatchState,
    /// The positions of its entries, in the order of their reading, with their attempts before this
    /// batch. [`Partition::give_back`](crate::Partition::give_back) removes them step by step.
    pub(super) runs: Runs,
    /// The size of a batch without failed entries.
    pub(super) size: usize,
    /// The size of this batch.
    pub(super) limit: usize,
}

impl Batch {
    /// No batch.
    pub(super) const NONE: Batch = Batch { reader: 0, state: BatchState::Read, runs: Runs::NONE, size: 0, limit: 0 };

    /// An empty batch of a reader.
    pub(super) fn begin(&mut self, reader: u64, size: usize) {
        self.end();
        (self.reader, self.size, self.limit) = (reader, size, size);
    }

    /// Leaves no batch, and keeps the memory for the next one.
    pub(super) fn end(&mut self) {
        let mut runs = std::mem::replace(&mut self.runs, Runs::NONE);
        runs.clear();
        *self = Batch { runs, ..Batch::NONE };
    }

    /// Adds an entry; `false` if the batch has no room for an entry with these attempts.
    #[inline]
    pub(super) fn add(&mut self, position: usize, attempts: u32) -> bool {
        let divided = self.size >> attempts.saturating_mul(BITS_PER_ATTEMPT).min(usize::BITS - 1);
        let limit = self.limit.min(divided.max(1));
        let has_room = self.runs.len() < limit;
        if has_room {
            self.limit = limit;
            self.runs.push(position, attempts);
        }
        has_room
    }

    /// Whether this reader put the batch together and stopped at `length` entries.
    pub(super) fn is_read_by(&self, reader: u64, length: usize) -> bool {
        self.state == BatchState::Read && self.reader == reader && self.runs.len() == length
    }

    /// Whether the entries were given up.
    pub(super) fn is_given_up(&self) -> bool {
        matches!(self.state, BatchState::GivenUp | BatchState::Buried)
    }
}
