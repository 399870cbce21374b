//! The entries that the processor gets together.

use crate::limits::isolation::Suspects;
use crate::runs::Runs;

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
    /// How many entries it may have. Of a batch that is given up: how many entries the function for
    /// dead letters gets together.
    pub(super) size: usize,
    /// The entries that it may only have alone.
    pub(super) suspects: Suspects,
    /// Whether it has such an entry.
    pub(super) has_suspect: bool,
    /// Whether failed entries wait for the others.
    pub(super) defers: bool,
    /// Whether it is leased only to be given back, without a call of the processor.
    pub(super) returns: bool,
    /// The mark of its reader, for whoever inherits the batch.
    pub(super) mark: Option<Mark>,
}

/// A note about a leased batch: two words, whose meaning is that of the reader.
pub type Mark = (u64, usize);

impl Batch {
    /// No batch.
    pub(super) const NONE: Batch = Batch {
        reader: 0,
        state: BatchState::Read,
        runs: Runs::NONE,
        size: 0,
        suspects: Suspects::NONE,
        has_suspect: false,
        defers: false,
        returns: false,
        mark: None,
    };

    /// An empty batch of a reader.
    pub(super) fn begin(&mut self, reader: u64, defers: bool) {
        self.end();
        (self.reader, self.defers) = (reader, defers);
    }

    /// Leaves no batch, and keeps the memory for the next one.
    pub(super) fn end(&mut self) {
        let mut runs = std::mem::replace(&mut self.runs, Runs::NONE);
        runs.clear();
        *self = Batch { runs, ..Batch::NONE };
    }

    /// Adds an entry; `false` if the batch has no room.
    #[inline]
    pub(super) fn add(&mut self, position: usize, attempts: u32) -> bool {
        let (length, is_suspect) = (self.runs.len(), self.suspects.has(attempts));
        let has_room = length < self.size && (length == 0 || !(is_suspect || self.has_suspect));
        if has_room {
            self.runs.push(position, attempts);
            self.has_suspect = is_suspect;
        }
        has_room
    }

    /// Whether this reader put the batch together and stopped at `length` entries.
    pub(super) fn is_read_by(&self, reader: u64, length: usize) -> bool {
        self.state == BatchState::Read && self.reader == reader && self.runs.len() == length
    }

    /// How many entries have their outcome together: all, except for a batch that is given up.
    pub(super) fn part(&self) -> usize {
        let length = self.runs.len();
        if self.is_given_up() {
            length.min(self.size.max(1))
        } else {
            length
        }
    }

    /// A reader died of the size of a batch that is given up: the next one gets fewer entries
    /// together. If it was one entry, the second time, the batch counts as buried.
    pub(super) fn shrink(&mut self) {
        let (part, was_alone) = (self.part(), self.size == 0);
        self.state = if was_alone { BatchState::Buried } else { BatchState::GivenUp };
        self.size = if part == 1 { 0 } else { (part / 4).max(1) };
    }

    /// Whether the entries were given up.
    pub(super) fn is_given_up(&self) -> bool {
        matches!(self.state, BatchState::GivenUp | BatchState::Buried)
    }
}
