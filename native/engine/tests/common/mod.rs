//! A heap for tests. A use of a term after its heap was dropped panics, where it would crash a
//! BEAM.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

pub mod busy;
pub mod counter;
pub mod journal;
pub mod map;
pub mod model;
pub mod persist;
pub mod queue;
pub mod reading;
pub mod sim_disk;

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering as Memory};
use std::sync::LazyLock;

// The thread sanitizer sees the locks of `std` only in part.
use parking_lot::RwLock;
use partitioned_buffer_engine::{
    Access, Bound, Hash, Hasher, Heap, Info, Parcel, Partition, Resident, Store, Term, Version,
};

/// A plain caller of the only partition.
pub const ONE: Access = Access::by_count(1);

static CONTENTS: LazyLock<RwLock<HashMap<u64, i64>>> = LazyLock::new(Default::default);
static NEXT_ID: AtomicU64 = AtomicU64::new(0);
static HEAPS: AtomicUsize = AtomicUsize::new(0);

/// Terms with this content or more are large.
pub const LARGE: i64 = 1 << 40;

/// Terms with this content or more are large, but look small: only a copy shows it.
pub const HIDDEN: i64 = 1 << 41;

thread_local! {
    static LANES: Cell<Option<u64>> = const { Cell::new(None) };
    static COPIES: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    static ON_COPY: Cell<Option<fn()>> = const { Cell::new(None) };
    static ON_DROP: Cell<Option<fn()>> = const { Cell::new(None) };
    static FREED: Cell<usize> = const { Cell::new(0) };
    static WALL_CLOCK: Cell<i64> = const { Cell::new(1_000_000) };
}

/// How many small and large terms this thread has copied since the last call.
pub fn copies() -> (usize, usize) {
    COPIES.take()
}

/// How many terms this thread has freed since the last call.
pub fn freed() -> usize {
    FREED.take()
}

/// Sets what this thread does whenever it copies a term.
pub fn on_copy(action: Option<fn()>) {
    ON_COPY.set(action);
}

/// Sets what this thread does whenever it drops a heap.
pub fn on_drop(action: Option<fn()>) {
    ON_DROP.set(action);
}

/// With a seed, each copy of this thread comes from now on as if from a random thread.
pub fn set_lanes(seed: Option<u64>) {
    LANES.set(seed);
}

/// Sets the wall clock of this thread, in microseconds.
pub fn set_wall_clock(micros: i64) {
    WALL_CLOCK.set(micros);
}

/// The number of heaps in this process.
pub fn heaps() -> usize {
    HEAPS.load(Memory::SeqCst)
}

/// The number of terms on heaps in this process.
pub fn terms() -> usize {
    CONTENTS.read().len()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestTerm {
    Immediate(i64),
    Boxed(u64),
}

impl TestTerm {
    pub fn content(self) -> (bool, i64) {
        match self {
            TestTerm::Immediate(content) => (false, content),
            TestTerm::Boxed(id) => (true, *CONTENTS.read().get(&id).expect("a term is used while it lives")),
        }
    }

    /// The term as it is stored: packed if it is large, and some small terms are packed as well.
    pub fn parcel(self) -> Parcel<TestHeap> {
        self.parcel_with(Version::Int(0)).0
    }

    /// The same with its version.
    pub fn parcel_with(self, version: Version<TestTerm>) -> (Parcel<TestHeap>, Version<TestTerm>) {
        let is_packed = |content| (LARGE..HIDDEN).contains(&content) || content % 7 == 5;
        match self {
            // The library does not notice all immediates.
            TestTerm::Immediate(content) if content % 2 == 0 => return (Parcel::immediate(self), version),
            TestTerm::Boxed(_) if is_packed(self.content().1) => {}
            _ => return (Parcel::loose(self), version),
        }
        let mut heap = TestHeap::new();
        let copy = heap.copy(self);
        let version = match version {
            Version::Int(_) => version,
            Version::Below(big) => Version::Below(heap.copy(big)),
            Version::Above(big) => Version::Above(heap.copy(big)),
        };
        (Parcel::packed(heap, copy), version)
    }

    /// Whether its heap has not been dropped.
    pub fn is_live(self) -> bool {
        match self {
            TestTerm::Immediate(_) => true,
            TestTerm::Boxed(id) => CONTENTS.read().contains_key(&id),
        }
    }
}

impl Term for TestTerm {
    fn is_identical(self, other: Self) -> bool {
        self.content() == other.content()
    }

    fn compare_integers(self, other: Self) -> Ordering {
        self.content().1.cmp(&other.content().1)
    }
}

/// Whether a term in a store is boxed, and its content.
pub fn content(resident: Resident<TestTerm>) -> (bool, i64) {
    let (is_boxed, content) = resident.term.content();
    assert!(!(is_boxed && resident.is_immediate), "an immediate is not boxed");
    (is_boxed, content)
}

pub struct TestHeap {
    ids: Vec<u64>,
    large_bytes: usize,
    is_none: bool,
}

impl TestHeap {
    /// A term on this heap. Every third content is an immediate, as small integers are in Erlang.
    pub fn term(&mut self, content: i64) -> TestTerm {
        if content % 3 == 0 {
            TestTerm::Immediate(content)
        } else {
            self.boxed(content)
        }
    }

    pub fn boxed(&mut self, content: i64) -> TestTerm {
        let id = NEXT_ID.fetch_add(1, Memory::Relaxed);
        CONTENTS.write().insert(id, content);
        self.ids.push(id);
        TestTerm::Boxed(id)
    }

    /// The number of terms on this heap.
    pub fn len(&self) -> usize {
        self.ids.len()
    }
}

impl Heap for TestHeap {
    type Term = TestTerm;

    fn new() -> Self {
        HEAPS.fetch_add(1, Memory::SeqCst);
        TestHeap { ids: Vec::new(), large_bytes: 0, is_none: false }
    }

    fn none() -> Self {
        TestHeap { ids: Vec::new(), large_bytes: 0, is_none: true }
    }

    /// Each flush has parts, so that all tests try them.
    const LEAST_PART: usize = 1;

    fn copy(&mut self, term: TestTerm) -> TestTerm {
        assert!(!self.is_none, "nothing is copied to a heap without memory");
        if let Some(action) = ON_COPY.get() {
            action();
        }
        match term {
            TestTerm::Immediate(_) => term,
            TestTerm::Boxed(_) => {
                let is_large = term.content().1 >= LARGE;
                let (small, large) = COPIES.get();
                COPIES.set(if is_large { (small, large + 1) } else { (small + 1, large) });
                if term.content().1 >= HIDDEN {
                    self.large_bytes = self.weigh(term);
                }
                self.boxed(term.content().1)
            }
        }
    }

    fn large_bytes(&self) -> usize {
        self.large_bytes
    }

    fn weigh(&self, term: TestTerm) -> usize {
        match term {
            TestTerm::Immediate(_) => 0,
            TestTerm::Boxed(_) if term.content().1 >= LARGE => 32 * 1024,
            TestTerm::Boxed(_) => 64,
        }
    }

    fn lane() -> usize {
        let Some(seed) = LANES.get() else { return 0 };
        let mut random = Random(seed);
        let lane = random.below(1 << 32);
        LANES.set(Some(random.0));
        lane as usize
    }

    fn wall_clock() -> i64 {
        WALL_CLOCK.get()
    }
}

impl Drop for TestHeap {
    fn drop(&mut self) {
        if self.is_none {
            return;
        }
        if let Some(action) = ON_DROP.get() {
            action();
        }
        FREED.set(FREED.get() + self.ids.len());
        let mut contents = CONTENTS.write();
        for id in self.ids.drain(..) {
            contents.remove(&id);
        }
        HEAPS.fetch_sub(1, Memory::SeqCst);
    }
}

/// The greatest distance from 0 of a version that is not boxed, as integers beyond 64 bits are in
/// Erlang.
pub const SMALL_VERSION: i64 = 40;

/// The version of this number.
pub fn to_version(caller: &mut TestHeap, number: i64) -> Version<TestTerm> {
    if number < -SMALL_VERSION {
        Version::Below(caller.boxed(number))
    } else if number > SMALL_VERSION {
        Version::Above(caller.boxed(number))
    } else {
        Version::Int(number)
    }
}

/// The number of a version.
pub fn version_number(version: Version<TestTerm>) -> i64 {
    match version {
        Version::Int(number) => number,
        Version::Below(term) | Version::Above(term) => term.content().1,
    }
}

/// A weak hash of a term's content, so that different keys collide.
pub fn hash(hasher: &Hasher, term: TestTerm) -> Hash {
    hasher.hash(term.content().1 as u64 % 5_000)
}

/// A small generator of pseudo-random numbers (splitmix64), so that a failing seed can be run
/// again.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Checks that each entry left these partitions in one way, or is still there, and that their bound
/// counts those.
pub fn assert_law<S: Store, const SHARDS: usize>(partitions: &[Partition<S, SHARDS>], bound: Option<&Bound>) {
    let (mut added, mut held, mut left, mut all_bytes) = (0, 0, 0, 0);
    for partition in partitions {
        let Info { waiting, in_flight, bytes, writes, ended, .. } = partition.info();
        added += writes.written as i64 - writes.coalesced as i64;
        held += waiting + in_flight;
        all_bytes += bytes;
        left += writes.deleted + ended.superseded + ended.processed + ended.given_up;
    }
    assert_eq!(added, (held + left) as i64, "each entry leaves in one way");
    let is_counted =
        |bound: &Bound| bound.held() == held && (bound.limits().bytes.is_none() || bound.bytes() == all_bytes);
    assert!(bound.is_none_or(is_counted), "{bound:?} holds {held} of {all_bytes} bytes");
}
