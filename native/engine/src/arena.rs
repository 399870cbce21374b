//! Copies of terms in segments: a log-structured store with a cleaner.
//!
//! A heap cannot free single terms. So copies go to an *open* segment, a heap for a bounded number of them. A full
//! segment is *sealed*. Each segment counts its copies and their deaths. A sealed segment with few live copies, or with much
//! dead memory, becomes *sparse*. Some sparse segments may wait: keys that are written in turn let their last copies die
//! soon. When there are more, the one that has waited longest is *evacuated*: its owner moves the live copies to an open
//! segment, a bounded number of them with each operation. Then its heap is replaced by an empty one (*vacant*). So the memory is
//! bounded by the live copies, whatever is overwritten.
//!
//! | state | leaves it when |
//! |---|---|
//! | open | it holds its capacity, weighs too much, or has got a large copy: sealed |
//! | sealed | a copy dies and few are live: sparse; none: vacant |
//! | sparse | none is live: vacant; too many wait: evacuated |
//! | evacuated | its owner has moved what was live: vacant; but a large copy, which is not moved, is left: kept |
//! | kept | its large copy dies: vacant |
//! | vacant | an open segment is needed: open |
//!
//! A large copy comes in a [`Parcel`], with a heap of its own that is freed when the copy dies. Only large terms that look
//! small come to a segment, each as the last copy of one.
//!
//! Nothing is freed here: freeing runs code of the VM and of other libraries. Heaps that hold nothing live are added to a
//! list of [`Garbage`], which the partition drops when it has released its lock.
//!
//! Threads that write in turn each have a *lane*, an open segment of their own, and the deaths are counted on a cache line
//! of their own. So a write changes no cache line of the arena that another thread has just changed, unless that thread
//! counted a death in the same segment. Lanes only serve speed: the store's lock protects all of them, and more threads
//! than lanes share them.
//!
//! Invariants: the copies of a segment less its deaths are the entries that name it; a term is used only while an entry
//! names its segment, so a vacant segment holds nothing that anyone refers to.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::ids::{EntryId, SegmentId};
use crate::own_heaps::OwnHeaps;
use crate::parcel::Parcel;
use crate::term::Heap;

/// Copies a segment takes at most. Its heap costs about 2 kB whatever it holds, so 2 bytes a copy.
const CAPACITY: usize = 1024;

/// Copies a segment takes at least. Between the two bounds it takes a part of what the full ones hold: dead copies of a few
/// hot keys then amount to a few dozen and not to hundreds.
const MIN_CAPACITY: usize = 64;

/// Between the two bounds, in how many segments of the same size the full ones would fit.
const SEGMENTS: usize = 4;

/// How many segments may be open at the same time, for as many threads.
const LANES: usize = 4;

/// A sealed segment with less than one live copy, or one live byte, in so many is sparse. A greater number makes
/// overwriting cheaper (`1 / (SPARSE_DIVISOR - 1)` copies are moved for each one written) and needs more memory.
const SPARSE_DIVISOR: usize = 5;

/// One segment in so many may be sparse and wait, or a single one.
const WAITING_DIVISOR: usize = 8;

/// One copy in so many is weighed, by chance, when it is made and when it dies, and counts for all of them: weighing each
/// would cost more than many copies do.
const WEIGHED: usize = 32;

/// A segment of this weight in bytes is sealed, or of a part of what the full ones weigh, if that is more: so large binaries
/// are freed soon.
const WEIGHT_LIMIT: usize = 256 * 1024;

/// Up to so many dead bytes a segment is sparse by the number of its copies only: estimates of less mean nothing.
const DEAD_WEIGHT_MIN: usize = 64 * 1024;

/// From this weight in bytes on a dead copy is a heavy one. Where one was found there will be more, hidden among the
/// light: so all copies are weighed for a while.
const HEAVY: usize = 8 * 1024;

/// For so many bytes of a heavy copy this goes on for one more copy or release: heavy ones that come more rarely than that
/// are few beside all that was written meanwhile.
const VIGILANCE_DIVISOR: usize = 8;

/// Dead copies of an evacuated segment that one operation looks at.
const EVACUATED_AT_ONCE: usize = 128;

/// A copy that is moved counts for so many dead ones. Each takes 8 kB at the most, but for some that are not noticed.
const MOVED: usize = 4;

/// See the table in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SegmentState {
    /// Takes copies, of the threads of one lane.
    Open,
    /// Full.
    Sealed,
    /// Full, with few live copies: waits for their death, or to be evacuated.
    Sparse,
    /// Its live copies are being moved.
    Evacuated,
    /// Evacuated, but for its large copy.
    Kept,
    /// Empty.
    Vacant,
}

/// The entries that the copies of a segment were made for: most often one run, as new entries are numbered in the order
/// of their copies.
#[derive(Default)]
struct Owners {
    /// The first number of each run, and how many there are.
    runs: Vec<(EntryId, u32)>,
    /// How many there are in all runs.
    count: usize,
}

impl Owners {
    /// Adds one.
    #[inline]
    fn push(&mut self, owner: EntryId) {
        self.count += 1;
        match self.runs.last_mut() {
            Some((first, length)) if *first + *length == owner => *length += 1,
            _ => self.runs.push((owner, 1)),
        }
    }

    /// Takes out the last one.
    fn pop(&mut self) {
        self.count = self.count.saturating_sub(1);
        if let Some((_first, length)) = self.runs.last_mut() {
            *length -= 1;
            if *length == 0 {
                self.runs.pop();
            }
        }
    }
}

/// A segment that is being evacuated. The caller asks for the owners of its copies, moves those that are live with
/// [`Arena::copy`], [`Arena::own`] and [`Arena::release`], and gives it back with [`Arena::evacuated`].
pub struct Evacuation {
    /// The segment.
    pub segment: SegmentId,
    /// The owners of all copies that may be moved.
    owners: Owners,
    /// The run of the next owner.
    run: usize,
    /// How many of that run have been asked for.
    passed: u32,
    /// How many more may be asked for now.
    step: usize,
}

impl Evacuation {
    /// The next owner; `None` if there are no more, or it has been enough for one operation.
    pub fn next_owner(&mut self) -> Option<EntryId> {
        let &(first, length) = self.owners.runs.get(self.run)?;
        self.step = self.step.checked_sub(1)?;
        let owner = first + self.passed;
        self.passed += 1;
        if self.passed == length {
            (self.run, self.passed) = (self.run + 1, 0);
        }
        Some(owner)
    }

    /// Tells that the copy of the last owner has been moved.
    pub fn moved(&mut self) {
        self.step = self.step.saturating_sub(MOVED - 1);
    }
}

/// A copy that no entry names yet. [`Arena::own`] or [`Arena::leave`] takes it.
#[must_use = "a copy without an owner is never freed before its store"]
pub struct Unowned(SegmentId);

/// A heap that nothing refers to any more, to be dropped where it may take its time.
#[allow(dead_code)] // It is there to be dropped.
pub enum Garbage<H> {
    /// Of a segment.
    Segment(H),
    /// Of a large copy; a reader may still have it.
    Own(Arc<H>),
}

/// Chooses one in [`WEIGHED`], in no rhythm that writes could have.
struct Chance(u32);

impl Chance {
    /// Choices that differ from one segment to the next. The copies and the deaths of one are chosen alike: if they die in the
    /// order in which they were made, the same are weighed.
    fn new(id: SegmentId) -> Self {
        Chance(id.0.wrapping_mul(0x9e37_79b9))
    }

    /// For how many copies the next one is to be weighed: for itself while there is `vigilance`, else for [`WEIGHED`] or
    /// none.
    #[inline]
    fn weighed_for(&mut self, vigilance: &mut usize) -> usize {
        if *vigilance > 0 {
            *vigilance -= 1;
            return 1;
        }
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if (self.0 >> 16) as usize % WEIGHED == 0 {
            WEIGHED
        } else {
            0
        }
    }
}

/// A heap and what lives in it. Two cache lines: while the segment is open its lane writes the first.
#[repr(C)]
struct Segment<H> {
    /// The memory of the copies.
    heap: H,
    /// The entry that each copy was made for, in the order of the copies.
    owners: Owners,
    /// The estimated bytes of all copies.
    weight: u32,
    /// Chooses the copies that are weighed.
    chance: Chance,
    /// What has become of the copies.
    fate: Fate,
}

/// What whoever overwrites the copies of a segment writes.
#[repr(align(64))]
struct Fate {
    /// How many of the copies no entry names any more.
    deaths: usize,
    /// The estimated bytes of these.
    dead_weight: u32,
    /// Chooses those of them that are weighed.
    chance: Chance,
    /// Where in its life the segment is.
    state: SegmentState,
}

impl<H: Heap> Segment<H> {
    /// How many of the copies are still named by their entry.
    #[inline]
    fn live(&self) -> usize {
        self.owners.count - self.fate.deaths
    }

    /// Whether moving the live copies pays.
    fn is_sparse(&self) -> bool {
        let Fate { dead_weight, .. } = self.fate;
        let live_weight = self.weight.saturating_sub(dead_weight);
        self.live() * SPARSE_DIVISOR < self.owners.count
            || (dead_weight as usize > DEAD_WEIGHT_MIN && live_weight as usize * SPARSE_DIVISOR < self.weight as usize)
    }
}

/// Segments of copies; see the module's documentation.
pub struct Arena<H> {
    /// All segments there are, by their number. When it grows it is moved: with the tens of millions of copies of a full shard
    /// that takes less than a millisecond.
    segments: Vec<Segment<H>>,
    /// The segment that takes copies, of each lane, or `NONE`.
    open: [SegmentId; LANES],
    /// Cleared segments, to be opened again before a new one is made.
    vacant: Vec<SegmentId>,
    /// Segments to be evacuated, the longest waiting first.
    sparse: VecDeque<SegmentId>,
    /// The segment of which some copies have been moved.
    evacuation: Option<Evacuation>,
    /// The heaps of the large copies.
    own_heaps: OwnHeaps<H>,
    /// Whether there has ever been a large copy.
    had_large: bool,
    /// Copies, live or dead, in all segments that are full.
    full: usize,
    /// The estimated bytes of these.
    full_weight: usize,
    /// For how many more copies and releases all of them are weighed.
    vigilance: usize,
}

impl<H: Heap> Arena<H> {
    /// An arena without segments; allocates nothing.
    pub fn new() -> Self {
        Arena {
            segments: Vec::new(),
            open: [SegmentId::NONE; LANES],
            vacant: Vec::new(),
            sparse: VecDeque::new(),
            evacuation: None,
            own_heaps: OwnHeaps::new(),
            had_large: false,
            full: 0,
            full_weight: 0,
            vigilance: 0,
        }
    }

    /// Copies `terms`, which live and die together. A copy that a panic leaves without an owner is only memory until the store
    /// is freed.
    #[inline]
    pub fn copy<const N: usize>(&mut self, terms: [H::Term; N]) -> ([H::Term; N], Unowned) {
        let id = self.open_segment();
        let segment = &mut self.segments[id.index()];
        let weighed_for = segment.chance.weighed_for(&mut self.vigilance);
        // The first always is: a large one may be the only one for long.
        let weighed_for = if segment.owners.count == 0 { weighed_for.max(1) } else { weighed_for };
        let copies = terms.map(|term| segment.heap.copy(term));
        if copies == terms {
            return (copies, Unowned(SegmentId::NONE));
        }
        if weighed_for > 0 {
            let weight: usize = terms.iter().map(|&term| segment.heap.weigh(term)).sum();
            segment.weight = add_weight(segment.weight, weight, weighed_for);
        }
        (copies, Unowned(id))
    }

    /// Keeps a copy that has a heap of its own.
    pub fn keep(&mut self, heap: &Arc<H>) -> Unowned {
        self.had_large = true;
        Unowned(SegmentId::of_own_heap(self.own_heaps.add(heap.clone())))
    }

    /// Whether there has ever been a large copy.
    pub fn had_large(&self) -> bool {
        self.had_large
    }

    /// Copies the term of a parcel, or keeps its heap.
    #[inline]
    pub fn store(&mut self, parcel: &Parcel<H>) -> (H::Term, Unowned) {
        match &parcel.heap {
            None => {
                let ([copy], unowned) = self.copy([parcel.term]);
                (copy, unowned)
            }
            Some(heap) => (parcel.term, self.keep(heap)),
        }
    }

    /// The heap of a large copy.
    #[inline]
    pub fn own_heap(&self, id: SegmentId) -> Option<&Arc<H>> {
        self.own_heaps.get(id.own_heap()?)
    }

    /// Tells which entry names a copy from now on, and gives the id that the entry has to keep.
    #[inline]
    pub fn own(&mut self, Unowned(id): Unowned, owner: EntryId) -> SegmentId {
        if id.is_segment() {
            self.segments[id.index()].owners.push(owner);
            self.seal_if_full(id);
        }
        id
    }

    /// Leaves a copy in the arena until the store is freed.
    #[inline]
    pub fn leave(&mut self, Unowned(id): Unowned) {
        if id.is_segment() {
            self.segments[id.index()].owners.count += 1;
            self.seal_if_full(id);
        }
    }

    /// Seals a segment that has got its last copy.
    #[inline]
    fn seal_if_full(&mut self, id: SegmentId) {
        let segment = &self.segments[id.index()];
        let capacity = (self.full / SEGMENTS).clamp(MIN_CAPACITY, CAPACITY);
        let is_heavy = || segment.weight as usize >= (self.full_weight / SEGMENTS).max(WEIGHT_LIMIT);
        if segment.owners.count >= capacity || is_heavy() || segment.heap.holds_large() {
            self.seal(id);
        }
    }

    /// Tells that an entry no longer names `id`, where `term` lives. Nothing happens for `NONE`.
    #[inline]
    pub fn release(&mut self, id: SegmentId, term: H::Term, garbage: &mut Vec<Garbage<H>>) {
        if !id.is_segment() {
            if let Some(number) = id.own_heap() {
                garbage.extend(self.own_heaps.remove(number).map(Garbage::Own));
            }
            return;
        }
        let segment = &mut self.segments[id.index()];
        let fate = &mut segment.fate;
        let weighed_for = fate.chance.weighed_for(&mut self.vigilance);
        // As of the copies, the first always is.
        let weighed_for = if fate.deaths == 0 { weighed_for.max(1) } else { weighed_for };
        fate.deaths += 1;
        if weighed_for > 0 && fate.state != SegmentState::Evacuated {
            let weight = segment.heap.weigh(term);
            fate.dead_weight = add_weight(fate.dead_weight, weight, weighed_for);
            if weight >= HEAVY {
                self.vigilance = self.vigilance.max(weight / VIGILANCE_DIVISOR);
            }
        }
        let state = fate.state;
        match state {
            SegmentState::Sealed | SegmentState::Sparse | SegmentState::Kept if segment.live() == 0 => {
                self.die(id, garbage)
            }
            SegmentState::Sealed if segment.is_sparse() => {
                segment.fate.state = SegmentState::Sparse;
                self.sparse.push_back(id);
            }
            _ => {}
        }
    }

    /// The segment that is being evacuated, or the next one, if there are too many that are sparse.
    #[inline]
    pub fn take_sparse(&mut self) -> Option<Evacuation> {
        if self.evacuation.is_none() && self.sparse.len() <= (self.segments.len() / WAITING_DIVISOR).max(1) {
            return None;
        }
        self.next_evacuation()
    }

    /// What [`Arena::take_sparse`] gives when there is something.
    #[cold]
    fn next_evacuation(&mut self) -> Option<Evacuation> {
        if let Some(evacuation) = self.evacuation.take() {
            return Some(Evacuation { step: EVACUATED_AT_ONCE, ..evacuation });
        }
        let id = self.sparse.pop_front()?;
        let segment = &mut self.segments[id.index()];
        segment.fate.state = SegmentState::Evacuated;
        let mut owners = std::mem::take(&mut segment.owners);
        segment.owners.count = owners.count;
        if segment.heap.holds_large() {
            // The large copy stays.
            owners.pop();
        }
        Some(Evacuation { segment: id, owners, run: 0, passed: 0, step: EVACUATED_AT_ONCE })
    }

    /// After a step of an evacuation. A segment whose live copies have all been moved is vacant.
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
            segment.fate.state = SegmentState::Kept;
        }
    }

    /// Vacates a full segment in which nothing is live.
    #[cold]
    fn die(&mut self, id: SegmentId, garbage: &mut Vec<Garbage<H>>) {
        if self.segments[id.index()].fate.state == SegmentState::Sparse {
            self.sparse.retain(|&waiting| waiting != id);
        }
        self.vacate(id, garbage);
    }

    /// Makes a segment that no entry names as new.
    fn vacate(&mut self, id: SegmentId, garbage: &mut Vec<Garbage<H>>) {
        let segment = &mut self.segments[id.index()];
        let fate = &mut segment.fate;
        debug_assert_eq!(fate.deaths, segment.owners.count, "a vacated segment has no live copies");
        self.full -= segment.owners.count;
        self.full_weight -= segment.weight as usize;
        segment.owners.runs.clear();
        segment.owners.count = 0;
        segment.weight = 0;
        (fate.deaths, fate.dead_weight, fate.state) = (0, 0, SegmentState::Vacant);
        garbage.push(Garbage::Segment(std::mem::replace(&mut segment.heap, H::new())));
        self.vacant.push(id);
    }

    /// The open segment of the thread's lane; makes one, from a vacant one where there is one.
    #[inline]
    fn open_segment(&mut self) -> SegmentId {
        let lane = H::lane() % LANES;
        if self.open[lane] == SegmentId::NONE {
            self.open[lane] = self.next_segment();
        }
        self.open[lane]
    }

    /// A vacant or new segment, as an open one.
    #[cold]
    fn next_segment(&mut self) -> SegmentId {
        if let Some(id) = self.vacant.pop() {
            self.segments[id.index()].fate.state = SegmentState::Open;
            return id;
        }
        let id = SegmentId(u32::try_from(self.segments.len()).expect("fewer than 2^32 segments"));
        let segment = Segment {
            heap: H::new(),
            owners: Owners::default(),
            weight: 0,
            chance: Chance::new(id),
            fate: Fate { deaths: 0, dead_weight: 0, chance: Chance::new(id), state: SegmentState::Open },
        };
        self.segments.push(segment);
        id
    }

    /// Ends the time in which an open segment takes copies.
    fn seal(&mut self, id: SegmentId) {
        self.open.iter_mut().filter(|open| **open == id).for_each(|open| *open = SegmentId::NONE);
        let segment = &mut self.segments[id.index()];
        self.had_large |= segment.heap.holds_large();
        self.full += segment.owners.count;
        self.full_weight += segment.weight as usize;
        if segment.is_sparse() {
            segment.fate.state = SegmentState::Sparse;
            self.sparse.push_back(id);
        } else {
            segment.fate.state = SegmentState::Sealed;
        }
    }
}

impl<H: Heap> Default for Arena<H> {
    fn default() -> Self {
        Self::new()
    }
}

/// A sum of weights after one that counts for `times` as many. It says no more than that a segment is heavy when it is more
/// than it can hold.
fn add_weight(sum: u32, weight: usize, times: usize) -> u32 {
    sum.saturating_add(u32::try_from(weight.saturating_mul(times)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_lane_writes_and_what_others_write_are_two_cache_lines() {
        assert_eq!(size_of::<Segment<[usize; 3]>>(), 128);
        assert_eq!(std::mem::offset_of!(Segment<[usize; 3]>, fate), 64);
    }
}
