//! The cleaner of an [arena](super::arena): empties sparse segments, so that they can be used again.

use super::arena::{Arena, Garbage};
use super::segment::{Evacuation, SegmentState, EVACUATION_STEP};
use crate::ids::SegmentId;
use crate::term::Heap;

/// One in this many segments may stay sparse, or a single one.
const STAYING_DIVISOR: usize = 8;

impl<H: Heap> Arena<H> {
    /// The partly evacuated segment, or the next one if too many are sparse.
    #[inline]
    pub fn take_sparse(&mut self) -> Option<Evacuation> {
        if self.evacuation.is_none() && self.sparse.len() <= (self.segments.len() / STAYING_DIVISOR).max(1) {
            return None;
        }
        self.next_evacuation()
    }

    /// The part of [`Arena::take_sparse`] that is seldom needed.
    #[cold]
    fn next_evacuation(&mut self) -> Option<Evacuation> {
        if let Some(evacuation) = self.evacuation.take() {
            return Some(Evacuation { budget: EVACUATION_STEP, ..evacuation });
        }
        let id = self.sparse.pop_front()?;
        let segment = &mut self.segments[id.index()];
        segment.shared.state = SegmentState::Evacuated;
        let mut owners = std::mem::take(&mut segment.owners);
        segment.owners.count = owners.count;
        if segment.heap.holds_large() {
            owners.pop();
        }
        Some(Evacuation { segment: id, owners, run: 0, offset: 0, budget: EVACUATION_STEP })
    }

    /// Ends a step of an evacuation, and vacates a segment without live copies after the last one.
    pub fn evacuated(&mut self, evacuation: Evacuation, garbage: &mut Vec<Garbage<H>>) {
        if evacuation.run < evacuation.owners.runs.len() {
            self.evacuation = Some(evacuation);
            return;
        }
        let segment = &mut self.segments[evacuation.segment.index()];
        if segment.live() == 0 {
            segment.owners.runs = evacuation.owners.runs;
            self.vacate(evacuation.segment, garbage);
        } else {
            segment.shared.state = SegmentState::Kept;
        }
    }

    /// Vacates a full segment in which nothing is live.
    #[cold]
    pub(super) fn die(&mut self, id: SegmentId, garbage: &mut Vec<Garbage<H>>) {
        if self.segments[id.index()].shared.state == SegmentState::Sparse {
            self.sparse.retain(|&sparse| sparse != id);
        }
        self.vacate(id, garbage);
    }

    /// Empties a segment that no entry names.
    fn vacate(&mut self, id: SegmentId, garbage: &mut Vec<Garbage<H>>) {
        self.empty(id, H::new(), garbage);
        self.vacant.push(id);
    }

    /// Empties a segment, which gets another heap.
    pub(super) fn empty(&mut self, id: SegmentId, heap: H, garbage: &mut Vec<Garbage<H>>) {
        let segment = &mut self.segments[id.index()];
        let shared = &mut segment.shared;
        debug_assert_eq!(shared.deaths, segment.owners.count, "a vacated segment has no live copies");
        self.full -= segment.owners.count;
        self.full_weight -= segment.weight as usize;
        segment.owners.runs.clear();
        segment.owners.count = 0;
        segment.weight = 0;
        (shared.deaths, shared.dead_weight, shared.state) = (0, 0, SegmentState::Vacant);
        garbage.push(Garbage::Segment(std::mem::replace(&mut segment.heap, heap)));
    }
}
