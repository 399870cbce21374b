//! Copies of terms in segments: a log-structured store with a cleaner.
//!
//! A heap cannot free single terms. So copies go to an *open* segment, a heap for a bounded number of them. A full
//! segment is *sealed*. Each segment counts its copies and their deaths; a sealed one in which few are left, or much is dead, becomes
//! *sparse*. Some of these may wait: keys that are written in turn let their last copies die soon. When there are more, the
//! longest waiting is *evacuated*: its owner moves the live copies to an open segment, and the heap is cleared and reused
//! (*vacant*). The work of one step is bounded by one segment, and the memory by the live copies, whatever is overwritten.
//!
//! | state | leaves it when |
//! |---|---|
//! | open | it holds its capacity, or weighs too much: sealed |
//! | sealed | a copy dies and few are live: sparse; none: vacant |
//! | sparse | none is live: vacant; too many wait: evacuated |
//! | evacuated | its owner has moved what was live: vacant |
//! | vacant | an open segment is needed: open |
//!
//! Threads that write in turn each have a *lane*, an open segment of their own, and the deaths are counted on a cache line
//! of their own. So a write changes no line of the arena that another thread's write has just changed, but where that
//! counts deaths in the same segment. It is only a matter of speed, since whoever is here has the store's lock: more threads
//! than lanes share them.
//!
//! Invariants: the copies of a segment less its deaths are the entries that name it; a term is used only while an entry
//! names its segment, so a vacant segment holds nothing that anyone refers to.

use std::collections::VecDeque;

use crate::entries::EntryId;
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

/// A segment of this weight in bytes is sealed, so that large terms are freed soon and moved in small numbers.
const WEIGHT_LIMIT: usize = 256 * 1024;

/// Up to so many dead bytes a segment is sparse by the number of its copies only: estimates of less mean nothing.
const DEAD_WEIGHT_MIN: usize = 64 * 1024;

/// From this weight in bytes on a dead copy is a heavy one. Where one was found there will be more, hidden among the
/// light: so all copies are weighed for a while.
const HEAVY: usize = 8 * 1024;

/// For so many bytes of a heavy copy this goes on for one more copy or release: heavy ones that come more rarely than that
/// are few beside all that was written meanwhile.
const VIGILANCE_DIVISOR: usize = 8;

/// The number of a segment within its arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentId(u32);

impl SegmentId {
    /// Of a term that lives in no segment, because it is an immediate.
    pub const NONE: Self = SegmentId(u32::MAX);

    /// Of no term: where an entry was deleted.
    pub const VACANT: Self = SegmentId(u32::MAX - 1);

    /// The place in `Arena::segments`.
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// See the table in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Takes copies, of the threads of one lane.
    Open,
    /// Full.
    Sealed,
    /// Full, with few live copies: waits for their death, or to be evacuated.
    Sparse,
    /// Its live copies are being moved.
    Evacuated,
    /// Empty.
    Vacant,
}

/// The entries that the copies of a segment were made for: most often one run, as new entries are numbered in the order
/// of their copies.
#[derive(Default)]
pub struct Owners {
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

    /// All of them, in the order of the copies.
    pub fn iter(&self) -> impl Iterator<Item = EntryId> + '_ {
        self.runs.iter().flat_map(|&(first, length)| first..first + length)
    }

    /// Forgets all, and keeps the memory.
    fn clear(&mut self) {
        self.runs.clear();
        self.count = 0;
    }
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
        if ((self.0 >> 16) as usize).is_multiple_of(WEIGHED) {
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
    weight: usize,
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
    dead_weight: usize,
    /// Chooses those of them that are weighed.
    chance: Chance,
    /// Where in its life the segment is.
    state: State,
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
            || (dead_weight > DEAD_WEIGHT_MIN && live_weight * SPARSE_DIVISOR < self.weight)
    }
}

/// Segments of copies; see the module's documentation.
pub struct Arena<H> {
    /// All segments there are, by their number.
    segments: Vec<Segment<H>>,
    /// The segment that takes copies, of each lane, or `NONE`.
    open: [SegmentId; LANES],
    /// Cleared segments, to be opened again before a new one is made.
    vacant: Vec<SegmentId>,
    /// Segments to be evacuated, the longest waiting first.
    sparse: VecDeque<SegmentId>,
    /// Copies, live or dead, in all segments that are full.
    full: usize,
    /// For how many more copies and releases all of them are.
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
            full: 0,
            vigilance: 0,
        }
    }

    /// Copies `terms`, which live and die together. The segment is `NONE` if all are immediates; else the next call must
    /// be [`Arena::own`].
    #[inline]
    pub fn copy<const N: usize>(&mut self, terms: [H::Term; N]) -> ([H::Term; N], SegmentId) {
        let id = self.open_segment();
        let segment = &mut self.segments[id.index()];
        let weighed_for = segment.chance.weighed_for(&mut self.vigilance);
        // The first always is: a large one may be the only one for long.
        let weighed_for = if segment.owners.count == 0 { weighed_for.max(1) } else { weighed_for };
        let copies = terms.map(|term| segment.heap.copy(term));
        if copies == terms {
            return (copies, SegmentId::NONE);
        }
        if weighed_for > 0 {
            let weight: usize = terms.iter().map(|&term| segment.heap.weigh(term)).sum();
            segment.weight = segment.weight.saturating_add(weight.saturating_mul(weighed_for));
        }
        (copies, id)
    }

    /// Tells which entry names the copies just made, by the segment that [`Arena::copy`] gave.
    #[inline]
    pub fn own(&mut self, id: SegmentId, owner: EntryId) {
        if id == SegmentId::NONE {
            return;
        }
        let segment = &mut self.segments[id.index()];
        segment.owners.push(owner);
        let capacity = (self.full / SEGMENTS).clamp(MIN_CAPACITY, CAPACITY);
        if segment.owners.count >= capacity || segment.weight >= WEIGHT_LIMIT {
            self.seal(id);
        }
    }

    /// Tells that an entry no longer names `segment`, where `term` lives. Nothing happens for `NONE`.
    #[inline]
    pub fn release(&mut self, id: SegmentId, term: H::Term) {
        if id == SegmentId::NONE {
            return;
        }
        let segment = &mut self.segments[id.index()];
        let fate = &mut segment.fate;
        let weighed_for = fate.chance.weighed_for(&mut self.vigilance);
        // As of the copies, the first always is.
        let weighed_for = if fate.deaths == 0 { weighed_for.max(1) } else { weighed_for };
        fate.deaths += 1;
        if weighed_for > 0 && fate.state != State::Evacuated {
            let weight = segment.heap.weigh(term);
            fate.dead_weight = fate.dead_weight.saturating_add(weight.saturating_mul(weighed_for));
            if weight >= HEAVY {
                self.vigilance = self.vigilance.max(weight / VIGILANCE_DIVISOR);
            }
        }
        let state = fate.state;
        match state {
            State::Sealed | State::Sparse if segment.live() == 0 => self.die(id),
            State::Sealed if segment.is_sparse() => {
                segment.fate.state = State::Sparse;
                self.sparse.push_back(id);
            }
            _ => {}
        }
    }

    /// The next segment to be evacuated with the owners of its copies, dead and live. The caller moves what is live
    /// with [`Arena::copy`], [`Arena::own`] and [`Arena::release`], then calls [`Arena::vacate`].
    #[inline]
    pub fn take_sparse(&mut self) -> Option<(SegmentId, Owners)> {
        if self.sparse.len() <= (self.segments.len() / WAITING_DIVISOR).max(1) {
            return None;
        }
        let id = self.sparse.pop_front()?;
        let segment = &mut self.segments[id.index()];
        segment.fate.state = State::Evacuated;
        Some((id, std::mem::take(&mut segment.owners)))
    }

    /// Clears a full segment in which nothing is live.
    #[cold]
    fn die(&mut self, id: SegmentId) {
        let segment = &mut self.segments[id.index()];
        if segment.fate.state == State::Sparse {
            self.sparse.retain(|&waiting| waiting != id);
        }
        let owners = std::mem::take(&mut segment.owners);
        self.vacate(id, owners);
    }

    /// Frees the copies of a segment that no entry names, and keeps it for reuse.
    pub fn vacate(&mut self, id: SegmentId, mut owners: Owners) {
        let segment = &mut self.segments[id.index()];
        let fate = &mut segment.fate;
        debug_assert_eq!(fate.deaths, owners.count, "a vacated segment has no live copies");
        self.full -= owners.count;
        owners.clear();
        segment.heap.clear();
        segment.owners = owners;
        segment.weight = 0;
        (fate.deaths, fate.dead_weight, fate.state) = (0, 0, State::Vacant);
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
            self.segments[id.index()].fate.state = State::Open;
            return id;
        }
        let id = SegmentId(u32::try_from(self.segments.len()).expect("fewer than 2^32 segments"));
        let segment = Segment {
            heap: H::new(),
            owners: Owners::default(),
            weight: 0,
            chance: Chance::new(id),
            fate: Fate { deaths: 0, dead_weight: 0, chance: Chance::new(id), state: State::Open },
        };
        self.segments.push(segment);
        id
    }

    /// Ends the time in which an open segment takes copies.
    fn seal(&mut self, id: SegmentId) {
        self.open.iter_mut().filter(|open| **open == id).for_each(|open| *open = SegmentId::NONE);
        let segment = &mut self.segments[id.index()];
        self.full += segment.owners.count;
        if segment.is_sparse() {
            segment.fate.state = State::Sparse;
            self.sparse.push_back(id);
        } else {
            segment.fate.state = State::Sealed;
        }
    }
}

impl<H: Heap> Default for Arena<H> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_lane_writes_and_what_others_write_are_two_cache_lines() {
        assert_eq!(size_of::<Segment<usize>>(), 128);
        assert_eq!(std::mem::offset_of!(Segment<usize>, fate), 64);
    }
}
