//! A segment of an [arena](super::arena): a heap, the owners of its copies, and the weight of dead
//! ones.

use std::ops::Range;

use crate::ids::{EntryId, SegmentId};
use crate::term::Heap;

/// A segment is sparse when fewer than one in this many copies, or bytes, are live. A greater
/// number makes overwriting cheaper (`1 / (SPARSE_DIVISOR - 1)` copies are moved for each one
/// written) and needs more memory.
const SPARSE_DIVISOR: usize = 5;

/// Up to this many dead bytes, 128 for each copy, only the number of copies makes a segment sparse.
/// A segment of at most this size is light: it need not weigh dead copies.
pub(super) const MIN_DEAD_WEIGHT: usize = 128 * 1024;

/// One copy and one death in this many is weighed, on behalf of the others: to weigh each would
/// cost more than many copies do.
const SAMPLE_INTERVAL: usize = 32;

/// The work of one operation on an evacuated segment, measured in dead copies that it skips.
pub(super) const EVACUATION_STEP: usize = 128;

/// The work of moving a copy, in dead copies. A copy takes 8 kB at most, except for an unnoticed
/// large one.
const MOVE_COST: usize = 4;

/// Where in its life a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentState {
    /// Takes the copies of one lane.
    Open,
    /// Full.
    Sealed,
    /// Full, with few live copies.
    Sparse,
    /// Its live copies are being moved.
    Evacuated,
    /// Evacuated except for its large copy.
    Kept,
    /// Empty.
    Vacant,
}

/// The entries that the copies of a segment were made for, most often one run, as ids follow the
/// order of the copies.
#[derive(Default)]
pub(super) struct Owners {
    /// The first id of each run, and its length.
    pub(super) runs: Vec<(EntryId, u32)>,
    /// The length of all runs.
    pub(super) count: usize,
}

impl Owners {
    /// Adds an owner.
    #[inline]
    pub(super) fn push(&mut self, owner: EntryId) {
        self.count += 1;
        match self.runs.last_mut() {
            Some((first, length)) if *first + *length == owner => *length += 1,
            _ => self.runs.push((owner, 1)),
        }
    }

    /// Takes out the last owner.
    pub(super) fn pop(&mut self) {
        self.count = self.count.saturating_sub(1);
        if let Some((_first, length)) = self.runs.last_mut() {
            *length -= 1;
            if *length == 0 {
                self.runs.pop();
            }
        }
    }
}

/// A segment under evacuation. The caller takes the owners, moves their live copies with
/// `copy`, `own` and `release` of the [arena](super::arena::Arena), and returns it with
/// `evacuated`.
pub struct Evacuation {
    /// The segment.
    pub segment: SegmentId,
    /// The owners of all copies but the large one.
    pub(super) owners: Owners,
    /// The index of the next owner's run.
    pub(super) run: usize,
    /// The index of the next owner in its run.
    pub(super) offset: u32,
    /// The remaining work of this operation.
    pub(super) budget: usize,
}

impl Evacuation {
    /// The next owner; `None` after the last one of the segment, or of this operation.
    pub fn next_owner(&mut self) -> Option<EntryId> {
        let &(first, length) = self.owners.runs.get(self.run)?;
        self.budget = self.budget.checked_sub(1)?;
        let owner = first + self.offset;
        self.offset += 1;
        if self.offset == length {
            (self.run, self.offset) = (self.run + 1, 0);
        }
        Some(owner)
    }

    /// Notes that the copy of the last owner was moved.
    pub fn moved(&mut self) {
        self.budget = self.budget.saturating_sub(MOVE_COST - 1);
    }
}

/// Chooses the copies to be weighed, at random, so that no rhythm of writes hides heavy ones.
pub(super) struct Sampler(u32);

impl Sampler {
    /// A sampler for copies or deaths. Both choose alike: if copies die in their order, the same
    /// are weighed.
    pub(super) fn new(id: SegmentId) -> Self {
        Sampler(id.0.wrapping_mul(0x9e37_79b9))
    }

    /// How many copies the next one is weighed for: 1 while `weigh_all` lasts, else
    /// [`SAMPLE_INTERVAL`] or 0.
    #[inline]
    pub(super) fn sample(&mut self, weigh_all: &mut u32) -> usize {
        if *weigh_all > 0 {
            *weigh_all -= 1;
            return 1;
        }
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if (self.0 >> 16) as usize % SAMPLE_INTERVAL == 0 {
            SAMPLE_INTERVAL
        } else {
            0
        }
    }
}

/// A heap and its copies. Only the lane of an open segment writes the first cache line.
#[repr(C)]
pub(super) struct Segment<H> {
    /// Where the copies live.
    pub(super) heap: H,
    /// The entry that each copy was made for, in their order.
    pub(super) owners: Owners,
    /// The estimated bytes of all copies.
    pub(super) weight: u32,
    /// Samples the copies.
    pub(super) sampler: Sampler,
    /// The part that every lane writes.
    pub(super) shared: Shared,
}

/// The part of a segment that every lane writes, when it overwrites a copy: the second cache line.
#[repr(align(64))]
pub(super) struct Shared {
    /// The number of dead copies, which no entry names.
    pub(super) deaths: usize,
    /// The estimated bytes of the former.
    pub(super) dead_weight: u32,
    /// Samples the deaths.
    pub(super) sampler: Sampler,
    /// See the table in the module's documentation.
    pub(super) state: SegmentState,
    /// The ids of the entries whose copies are here, if the ids of entries ascend. It ends when the
    /// segment is sealed.
    pub(super) span: Range<EntryId>,
}

impl Shared {
    /// The part of an empty, open segment, for entries from `first` on.
    pub(super) fn new(id: SegmentId, first: EntryId) -> Self {
        let sampler = Sampler::new(id);
        Shared { deaths: 0, dead_weight: 0, sampler, state: SegmentState::Open, span: first..first }
    }
}

impl<H: Heap> Segment<H> {
    /// How many copies are still named by their entry.
    #[inline]
    pub(super) fn live(&self) -> usize {
        self.owners.count - self.shared.deaths
    }

    /// Whether moving the live copies pays.
    pub(super) fn is_sparse(&self) -> bool {
        let dead_weight = self.shared.dead_weight;
        let live_weight = self.weight.saturating_sub(dead_weight);
        self.live() * SPARSE_DIVISOR < self.owners.count
            || (dead_weight as usize > MIN_DEAD_WEIGHT && live_weight as usize * SPARSE_DIVISOR < self.weight as usize)
    }
}

/// Adds a weight to a sum `times` times. The sum stays at `u32::MAX`, where more makes no
/// difference.
pub(super) fn add_weight(sum: u32, weight: usize, times: usize) -> u32 {
    sum.saturating_add(u32::try_from(weight.saturating_mul(times)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_one_cache_line_for_its_lane_and_one_for_all() {
        assert_eq!(size_of::<Segment<[usize; 3]>>(), 128);
        assert_eq!(std::mem::offset_of!(Segment<[usize; 3]>, shared), 64);
    }
}
