//! Copies of terms in segments: a log-structured store with a cleaner.
//!
//! A heap cannot free single terms. So copies go to *segments*: heaps for a bounded number of
//! copies, which count dead ones. A segment is *sparse* when few of its copies are live or much of
//! its memory is dead. Some sparse segments may stay: if keys are written in turn, their last
//! copies die soon. With more, each operation moves some live copies from the oldest to an open
//! segment. So live copies bound the memory, whatever is overwritten.
//!
//! | state | leaves it when |
//! |---|---|
//! | open | it holds its capacity, weighs too much, or gets a large copy: sealed |
//! | sealed | it is sparse: sparse; none is live: vacant |
//! | sparse | none is live: vacant; too many are sparse: evacuated |
//! | evacuated | all live copies are moved: vacant; all but a large copy, which stays: kept |
//! | kept | its large copy dies: vacant |
//! | vacant | an open segment is needed: open |
//!
//! A large copy comes in a [`Parcel`], with a separate heap, freed when the copy dies. Only a large
//! term that looks small goes to a segment, as its last copy.
//!
//! Freeing a heap runs code of the VM and of other libraries. So the arena only lists [`Garbage`],
//! which the partition drops without its lock.
//!
//! Threads are spread over *lanes*. Each lane has its open segment, and each segment has a separate
//! cache line for the deaths. So a write meets a cache line that another lane just changed only if
//! both count a death in the same segment. Lanes only serve speed, since the store's lock protects
//! all.
//!
//! Invariants: the copies of a segment less its deaths are the entries that name it. A term is used
//! only while an entry names its segment, so nobody refers to a vacant segment.

use std::collections::VecDeque;
use std::sync::Arc;

use super::frozen::Left;
use super::own_heaps::OwnHeaps;
use super::parcel::{Kind, Parcel};
use super::segment::{add_weight, Owners, Sampler, Segment, SegmentState, Shared, MIN_DEAD_WEIGHT};
use crate::ids::{EntryId, SegmentId};
use crate::term::Heap;

pub use super::segment::Evacuation;

/// Copies in a segment at most. Its heap costs about 2 kB whatever it holds, so 2 bytes a copy.
const MAX_CAPACITY: usize = 1024;

/// The capacity of the first segments: a few hot keys leave a few dozen dead copies and not
/// hundreds.
const MIN_CAPACITY: usize = 64;

/// The weight at which the first segments are sealed, so that large binaries are freed soon.
const MIN_WEIGHT_LIMIT: usize = 256 * 1024;

/// The weight at which any segment is sealed, since one call frees it as a whole.
const MAX_WEIGHT_LIMIT: usize = 4 * 1024 * 1024;

/// Capacity and weight limit grow with what all full segments hold, divided by this.
const GROWTH_DIVISOR: usize = 4;

/// How many segments may be open, each for one thread or several.
const LANES: usize = 4;

/// A copy of this many bytes is heavy. More may hide among the light ones, so all copies and
/// deaths are weighed for a while.
const HEAVY: usize = 8 * 1024;

/// After a heavy copy of `n` bytes, the next `n / WEIGH_ALL_DIVISOR` copies and releases are all
/// weighed. Rarer heavy copies matter little beside all other writes.
const WEIGH_ALL_DIVISOR: usize = 8;

/// What a segment takes beside its copies.
const SEGMENT_BYTES: usize = 2 * 1024;

/// A copy that no entry names yet, for [`Arena::own`] or [`Arena::leave`].
#[must_use = "a copy without an owner is never freed before its store"]
pub struct Unowned(SegmentId);

impl Unowned {
    /// Nothing, as an immediate needs no copy.
    pub(crate) const NOTHING: Self = Unowned(SegmentId::NONE);

    /// Whether the term needed no copy.
    #[inline]
    pub(crate) fn is_nothing(&self) -> bool {
        self.0 == SegmentId::NONE
    }
}

/// A heap that nothing refers to, to be dropped where it may take long.
#[allow(dead_code)] // It is there to be dropped.
pub enum Garbage<H> {
    /// The heap of a segment.
    Segment(H),
    /// The heap of a large copy, which a reader may still hold.
    Own(Arc<H>),
    /// Nothing, but the writer is to help the reclaimer.
    Debt,
}

/// Segments of copies; see the module's documentation.
pub struct Arena<H> {
    /// The segments, by id. To grow takes less than a millisecond, even with tens of millions of
    /// copies.
    pub(super) segments: Vec<Segment<H>>,
    /// The open segment of each lane, or `NONE`.
    pub(super) open: [SegmentId; LANES],
    /// The vacant segments.
    pub(super) vacant: Vec<SegmentId>,
    /// The sparse segments, oldest first.
    pub(super) sparse: VecDeque<SegmentId>,
    /// The partly evacuated segment.
    pub(super) evacuation: Option<Evacuation>,
    /// The heaps of the large copies.
    pub(super) own_heaps: OwnHeaps<H>,
    /// The estimated bytes of the former.
    pub(super) own_weight: usize,
    /// How many copies, live or dead, all full segments hold.
    pub(super) full: usize,
    /// The estimated bytes of the former.
    pub(super) full_weight: usize,
    /// How many more copies and releases are all weighed.
    weigh_all: u32,
    /// The id behind the last owner of a sealed segment, if the ids of owners ascend.
    pub(super) left_end: EntryId,
    /// The rest about copies that were [left](Self::leave); few arenas need it.
    pub(super) left: Option<Box<Left>>,
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
            own_weight: 0,
            full: 0,
            full_weight: 0,
            weigh_all: 0,
            left_end: 0,
            left: None,
        }
    }

    /// Copies `terms`, which live and die together. If a panic leaves the copy without an owner,
    /// the store frees it.
    #[inline]
    pub fn copy<const N: usize>(&mut self, terms: [H::Term; N]) -> ([H::Term; N], Unowned) {
        let id = self.open_segment();
        let segment = &mut self.segments[id.index()];
        let times = segment.sampler.sample(&mut self.weigh_all);
        // The first copy is always weighed: a heavy one may be the only one for long.
        let times = if segment.owners.count == 0 { times.max(1) } else { times };
        let copies = terms.map(|term| segment.heap.copy(term));
        if copies == terms {
            return (copies, Unowned::NOTHING);
        }
        if times > 0 {
            let weight: usize = terms.iter().map(|&term| segment.heap.weigh(term)).sum();
            segment.weight = add_weight(segment.weight, weight, times);
            weigh_after(&mut self.weigh_all, weight);
        }
        (copies, Unowned(id))
    }

    /// Takes over a large copy with its heap.
    pub fn keep(&mut self, heap: &Arc<H>) -> Unowned {
        self.own_heaps.had_large = true;
        self.own_weight += heap.large_bytes();
        Unowned(SegmentId::of_own_heap(self.own_heaps.add(heap.clone())))
    }

    /// Whether a large copy ever came.
    pub fn had_large(&self) -> bool {
        self.own_heaps.had_large
    }

    /// Estimates how many bytes the copies take, live and dead ones.
    pub fn bytes(&self) -> usize {
        let open = self.open.iter().filter(|id| id.is_segment()).map(|id| self.segments[id.index()].weight as usize);
        let heaps = (self.segments.len() - self.vacant.len()) * SEGMENT_BYTES;
        heaps + self.full_weight + open.sum::<usize>() + self.own_weight
    }

    /// Copies a small term, or takes over a large copy. An immediate needs neither.
    #[inline]
    pub fn store(&mut self, parcel: &Parcel<H>) -> (H::Term, Unowned) {
        match &parcel.kind {
            Kind::Immediate => (parcel.term, Unowned::NOTHING),
            Kind::Small => {
                let ([copy], unowned) = self.copy([parcel.term]);
                (copy, unowned)
            }
            Kind::Large(heap) => (parcel.term, self.keep(heap)),
        }
    }

    /// A copy on its way to another arena. A large one shares its heap.
    #[inline]
    pub fn parcel(&self, id: SegmentId, term: H::Term) -> Parcel<H> {
        if id == SegmentId::NONE {
            return Parcel::immediate(term);
        }
        let heap = id.own_heap().and_then(|slot| self.own_heaps.get(slot));
        Parcel { term, kind: heap.map_or(Kind::Small, |heap| Kind::Large(heap.clone())) }
    }

    /// Makes an entry the owner of a copy, and returns the id that the entry has to keep.
    #[inline]
    pub fn own(&mut self, Unowned(id): Unowned, owner: EntryId) -> SegmentId {
        if id.is_segment() {
            self.segments[id.index()].owners.push(owner);
            self.seal_if_full(id, owner);
        }
        id
    }

    /// Leaves a copy for an entry that does not name it. The ids of such entries ascend, and
    /// [`free_left`](Self::free_left) frees their copies.
    #[inline]
    pub fn leave(&mut self, Unowned(id): Unowned, owner: EntryId) {
        if id.is_segment() {
            self.segments[id.index()].owners.count += 1;
            self.seal_if_full(id, owner);
        } else if id.own_heap().is_some() {
            self.left.get_or_insert_default().large.push(owner);
        }
    }

    /// Abandons a copy that was made for an entry, but that no entry names.
    pub fn discard(&mut self, copy: Unowned, owner: EntryId, term: H::Term, garbage: &mut Vec<Garbage<H>>) {
        let id = self.own(copy, owner);
        self.release(id, term, garbage);
    }

    /// Seals a segment if the copy just made, for `owner`, was its last.
    #[inline]
    fn seal_if_full(&mut self, id: SegmentId, owner: EntryId) {
        let segment = &self.segments[id.index()];
        let capacity = (self.full / GROWTH_DIVISOR).clamp(MIN_CAPACITY, MAX_CAPACITY);
        let weight_limit = (self.full_weight / GROWTH_DIVISOR).clamp(MIN_WEIGHT_LIMIT, MAX_WEIGHT_LIMIT);
        let is_full = segment.owners.count >= capacity || segment.weight as usize >= weight_limit;
        if is_full || segment.heap.holds_large() {
            self.seal(id, owner);
        }
    }

    /// Counts the death of `term`, which an entry named in `id`. Nothing happens for `NONE`.
    #[inline]
    pub fn release(&mut self, id: SegmentId, term: H::Term, garbage: &mut Vec<Garbage<H>>) {
        if !id.is_segment() {
            if let Some(heap) = id.own_heap().and_then(|slot| self.own_heaps.remove(slot)) {
                self.own_weight -= heap.large_bytes();
                garbage.push(Garbage::Own(heap));
            }
            return;
        }
        let segment = &mut self.segments[id.index()];
        let shared = &mut segment.shared;
        let times = shared.sampler.sample(&mut self.weigh_all);
        let times = if shared.deaths == 0 { times.max(1) } else { times };
        shared.deaths += 1;
        // Most dead copies are in no cache. In a light segment only their number counts.
        let is_weighed = times == 1 || times > 0 && segment.weight as usize > MIN_DEAD_WEIGHT;
        if is_weighed && shared.state != SegmentState::Evacuated {
            let weight = segment.heap.weigh(term);
            shared.dead_weight = add_weight(shared.dead_weight, weight, times);
            weigh_after(&mut self.weigh_all, weight);
        }
        let state = shared.state;
        match state {
            SegmentState::Sealed | SegmentState::Sparse | SegmentState::Kept if segment.live() == 0 => {
                self.die(id, garbage)
            }
            SegmentState::Sealed if segment.is_sparse() => {
                segment.shared.state = SegmentState::Sparse;
                self.sparse.push_back(id);
            }
            _ => {}
        }
    }

    /// The open segment of the thread's lane, opened now if missing.
    #[inline]
    fn open_segment(&mut self) -> SegmentId {
        let lane = H::lane() % LANES;
        if self.open[lane] == SegmentId::NONE {
            self.open[lane] = self.next_segment();
        }
        self.open[lane]
    }

    /// Opens a vacant segment, or a new one.
    #[cold]
    fn next_segment(&mut self) -> SegmentId {
        if let Some(id) = self.vacant.pop() {
            let shared = &mut self.segments[id.index()].shared;
            (shared.state, shared.span) = (SegmentState::Open, self.left_end..self.left_end);
            return id;
        }
        let id = SegmentId(u32::try_from(self.segments.len()).expect("fewer than 2^32 segments"));
        let segment = Segment {
            heap: H::new(),
            owners: Owners::default(),
            weight: 0,
            sampler: Sampler::new(id),
            shared: Shared::new(id, self.left_end),
        };
        self.segments.push(segment);
        id
    }

    /// Seals an open segment, whose last copy was made for `owner` or an earlier entry.
    pub(super) fn seal(&mut self, id: SegmentId, owner: EntryId) {
        self.open.iter_mut().filter(|open| **open == id).for_each(|open| *open = SegmentId::NONE);
        let segment = &mut self.segments[id.index()];
        segment.shared.span.end = owner.saturating_add(1);
        self.left_end = self.left_end.max(segment.shared.span.end);
        self.own_heaps.had_large |= segment.heap.holds_large();
        self.full += segment.owners.count;
        self.full_weight += segment.weight as usize;
        if segment.is_sparse() {
            segment.shared.state = SegmentState::Sparse;
            self.sparse.push_back(id);
        } else {
            segment.shared.state = SegmentState::Sealed;
        }
    }
}

/// Lets the next copies and deaths be weighed, after one of this weight.
#[inline]
fn weigh_after(weigh_all: &mut u32, weight: usize) {
    if weight >= HEAVY {
        let next = u32::try_from(weight / WEIGH_ALL_DIVISOR).unwrap_or(u32::MAX);
        *weigh_all = (*weigh_all).max(next);
    }
}

impl<H: Heap> Default for Arena<H> {
    fn default() -> Self {
        Self::new()
    }
}
