//! Frees the copies of a frozen store, to which nothing is copied any longer.

use std::ops::Range;

use super::arena::{Arena, Garbage};
use super::segment::{Segment, SegmentState};
use crate::ids::{EntryId, SegmentId};
use crate::term::Heap;

/// Segments that [`Arena::take_apart`] frees together at most. Each weighs up to 4 MB.
const SEGMENTS: usize = 4;

/// Large copies that it frees together at most.
const OWN_HEAPS: usize = 8;

/// Passed segments that a release looks at again at most. Most often this is one for each lane.
const PASSED: usize = 64;

/// Copies that no entry names: see [`Arena::leave`]. Their order shows where they live.
#[derive(Default)]
pub(super) struct Left {
    /// The owner of the large copy in each slot.
    pub(super) large: Vec<EntryId>,
    /// The next segment that a release looks at.
    next: usize,
    /// Earlier segments with copies.
    passed: Vec<SegmentId>,
}

impl<H: Heap> Arena<H> {
    /// Seals the open segments, whose last owner is before `end`, and ends an evacuation.
    fn freeze(&mut self, end: EntryId) {
        self.evacuation = None;
        self.open.into_iter().filter(|id| id.is_segment()).for_each(|id| self.seal(id, end.saturating_sub(1)));
    }

    /// Counts the death of a copy that an entry named. The heap becomes garbage with the last one.
    pub fn free(&mut self, id: SegmentId, garbage: &mut Vec<Garbage<H>>) {
        self.freeze(EntryId::MAX);
        if id.is_segment() {
            self.kill(id, 1, garbage);
        } else if let Some(slot) = id.own_heap() {
            self.free_own(slot, garbage);
        }
    }

    /// Frees the copies of entries that do not name them. `is_free` returns whether all entries of a
    /// range are free; ids from `end` on do not exist.
    pub fn free_left(
        &mut self,
        ids: Range<EntryId>,
        end: EntryId,
        is_free: impl Fn(Range<EntryId>) -> bool,
        garbage: &mut Vec<Garbage<H>>,
    ) {
        self.freeze(end);
        let mut left = self.left.take().unwrap_or_default();
        let slots = [ids.start, ids.end].map(|id| left.large.partition_point(|&owner| owner < id));
        for slot in slots[0]..slots[1] {
            let owner = left.large[slot];
            if is_free(owner..owner + 1) {
                self.free_own(slot as u32, garbage);
            }
        }
        let is_behind = |segment: &Segment<H>| segment.shared.span.start >= ids.end;
        while self.segments.get(left.next).is_some_and(|segment| !is_behind(segment)) {
            left.passed.push(SegmentId(left.next as u32));
            left.next += 1;
        }
        left.passed.retain(|&id| {
            let segment = &self.segments[id.index()];
            let is_needed = !is_free(segment.shared.span.clone());
            if !is_needed {
                self.kill(id, segment.live(), garbage);
            }
            is_needed
        });
        // The others stay until the store is freed, so that no release takes long.
        left.passed.drain(..left.passed.len().saturating_sub(PASSED));
        self.left = Some(left);
    }

    /// Counts deaths in a segment.
    fn kill(&mut self, id: SegmentId, deaths: usize, garbage: &mut Vec<Garbage<H>>) {
        let segment = &mut self.segments[id.index()];
        segment.shared.deaths += deaths;
        if segment.live() == 0 && segment.shared.state != SegmentState::Vacant {
            self.empty(id, H::none(), garbage);
            self.vacant.push(id);
        }
    }

    /// Frees the large copy in a slot.
    fn free_own(&mut self, slot: u32, garbage: &mut Vec<Garbage<H>>) {
        if let Some(heap) = self.own_heaps.remove(slot) {
            self.own_weight -= heap.large_bytes();
            garbage.push(Garbage::Own(heap));
        }
    }

    /// Frees a few heaps; `false` without any.
    pub fn take_apart(&mut self) -> bool {
        self.freeze(EntryId::MAX);
        if !self.own_heaps.is_empty() {
            let heaps = self.own_heaps.take_last(OWN_HEAPS);
            self.own_weight -= heaps.iter().map(|heap| heap.large_bytes()).sum::<usize>();
            return true;
        }
        if self.segments.is_empty() {
            return false;
        }
        let mut garbage = Vec::new();
        for index in (0..self.segments.len()).rev().take(SEGMENTS) {
            let id = SegmentId(index as u32);
            self.kill(id, self.segments[index].live(), &mut garbage);
            self.segments.pop();
            // It was vacant. Only the number counts from here on.
            self.vacant.pop();
        }
        true
    }
}
