//! Terms and environments for the engine, made with the functions of `erl_nif`.
//!
//! The code is sound for these reasons:
//!
//! * A [`RawTerm`] is a word without a lifetime. Some are made from an argument of the current NIF
//!   call and used only during that call: the modules above store none. The others come from
//!   [`Environment::copy`] and are used only while that environment exists and is not cleared: the
//!   engine takes care of this, and its tests have a heap that checks it.
//! * Only one thread at a time writes an environment (copies to it or clears it), because that
//!   takes `&mut`. While nobody writes it, any thread may read its terms: they are immutable, and
//!   references to binaries outside of the environment are counted atomically.
//! * Any thread may make, use and free process-independent environments.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use partitioned_buffer_engine::reclaim::reclaim;
use partitioned_buffer_engine::{Heap, Parcel, Term as EngineTerm, Version};
use rustler::sys::{ERL_NIF_TERM as ErlNifTerm, *};
use rustler::{Encoder, Env, Term};

/// A term as the word that represents it in the VM. See the module's documentation for when it may
/// be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawTerm(ErlNifTerm);

impl RawTerm {
    /// The word itself. The word of an atom is the same everywhere and for ever.
    #[inline]
    pub(crate) fn word(self) -> usize {
        self.0
    }

    /// Whether it is an immediate, by its tag. Callers must be safe with a wrong answer.
    #[inline]
    pub(crate) fn is_immediate(self) -> bool {
        Self::is_immediate_word(self.word())
    }

    /// Whether the term of this word is an immediate.
    #[inline]
    pub(super) fn is_immediate_word(word: ErlNifTerm) -> bool {
        word & 3 == 3
    }

    /// Whether it is a non-empty list, by its tag. Callers must be safe with a wrong answer.
    fn is_list(self) -> bool {
        self.word() & 3 == 1
    }

    /// The address of the term, unless it is an immediate.
    #[inline]
    fn address(self) -> usize {
        self.word() & !7
    }

    /// Starts loading the memory of the term into the cache. The tag in the low bits of the pointer
    /// does not matter, and for an immediate the load has no effect.
    #[inline]
    pub(crate) fn prefetch(self) {
        prefetch_address(self.word() as *const u8);
    }

    /// The VM's own hash for its tables, salted.
    #[inline]
    pub(crate) fn internal_hash(self, salt: u32) -> u64 {
        // SAFETY: `self` is a valid term, by the module's documentation. The same holds for all
        // calls below.
        unsafe { enif_hash(ErlNifHash::ERL_NIF_INTERNAL_HASH, self.0, u64::from(salt)) }
    }

    /// `:erlang.phash2/1`.
    #[inline]
    pub(crate) fn phash2(self) -> u32 {
        // SAFETY: as in `internal_hash`. The result has 27 bits.
        unsafe { enif_hash(ErlNifHash::ERL_NIF_PHASH2, self.0, 0) as u32 }
    }
}

impl From<Term<'_>> for RawTerm {
    #[inline]
    fn from(term: Term<'_>) -> Self {
        RawTerm(term.as_c_arg())
    }
}

impl EngineTerm for RawTerm {
    #[inline]
    fn is_identical(self, other: Self) -> bool {
        // SAFETY: both are valid terms.
        self.0 == other.0 || unsafe { enif_is_identical(self.0, other.0) != 0 }
    }

    fn compare_integers(self, other: Self) -> Ordering {
        // SAFETY: both are valid terms.
        unsafe { enif_compare(self.0, other.0) }.cmp(&0)
    }
}

/// A process-independent environment: a heap that no process owns and no garbage collector sees.
pub(crate) struct Environment {
    /// From `enif_alloc_env`; freed when this is dropped.
    env: *mut ErlNifEnv,
    /// The address of the last copy.
    last: usize,
    /// About how many bytes the large copy here takes; 0 without one.
    large: usize,
}

// SAFETY: such an environment is bound to no thread, and all functions that write it take
// `&mut self`.
unsafe impl Send for Environment {}
// SAFETY: no function changes the environment through `&self`.
unsafe impl Sync for Environment {}

/// A term of this many bytes is large: it gets a separate environment, which takes some 2.5 kB in
/// addition to the copy.
const LARGE: usize = 8 * 1024;

/// The VM enlarges an environment by pieces of at least this many bytes. A copy that begins nearer
/// to the copy before is in the same piece. (If a VM did otherwise, copies would be measured too
/// often, or large ones would not be noticed.)
const PIECE: usize = 200 * size_of::<ErlNifTerm>();

/// If this many first elements of a list are immediates, most likely all elements are.
const CELLS_LOOKED_AT: u32 = 8;

impl Environment {
    /// About how many bytes `copy`, the last copy, takes here. The VM makes terms one behind the
    /// other, so a small new term shows where the copy ends. The copy begins with its root, unless
    /// it is a list.
    #[cold]
    fn measure(&mut self, copy: RawTerm) -> usize {
        // SAFETY: `self.env` is ours, nobody else writes it, and `copy` lives there. The functions
        // write all variables that are read.
        unsafe {
            let end = RawTerm(enif_make_list_cell(self.env, copy.0, copy.0)).address();
            // The VM puts cells with immediates at the end of the copy, so the copy begins with the
            // first other cell. A list of immediates takes two words for each cell.
            let (mut start, mut head, mut tail, mut length) = (copy, copy.0, copy.0, 0);
            while start.is_list() && enif_get_list_cell(self.env, start.0, &mut head, &mut tail) != 0 {
                if !RawTerm(head).is_immediate() {
                    break;
                }
                length += 1;
                if length == CELLS_LOOKED_AT {
                    enif_get_list_length(self.env, copy.0, &mut length);
                    return length as usize * 2 * size_of::<ErlNifTerm>();
                }
                start = RawTerm(tail);
            }
            end.saturating_sub(start.address())
        }
    }

    /// Copies a term.
    #[inline]
    fn make_copy(&mut self, term: RawTerm) -> RawTerm {
        #[cfg(feature = "faults")]
        super::faults::before_copy();
        // SAFETY: `self.env` is ours, nobody else writes it, and `term` is valid.
        RawTerm(unsafe { enif_make_copy(self.env, term.0) })
    }
}

impl Heap for Environment {
    type Term = RawTerm;

    fn new() -> Self {
        super::memory::count_environments(1);
        let spare = SPARE.with_borrow_mut(|spare| spare.0.pop());
        // SAFETY: it may be called on any thread, and never returns null.
        Environment { env: spare.unwrap_or_else(|| unsafe { enif_alloc_env() }), last: 0, large: 0 }
    }

    #[inline]
    fn copy(&mut self, term: RawTerm) -> RawTerm {
        let copy = self.make_copy(term);
        if copy != term {
            if copy.address().abs_diff(self.last) > PIECE {
                let bytes = self.measure(copy);
                if bytes >= LARGE {
                    self.large = bytes;
                    watch_for_large(bytes);
                }
            }
            self.last = copy.address();
        }
        copy
    }

    #[inline]
    fn large_bytes(&self) -> usize {
        self.large
    }

    fn weigh(&self, term: RawTerm) -> usize {
        weigh(self.env, term.0, &mut Budget::new())
    }

    /// Only threads that copy get a lane, so no two of four schedulers share one.
    #[inline]
    fn lane() -> usize {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static LANE: usize = THREADS.fetch_add(1, Relaxed);
        }
        LANE.with(|&lane| lane)
    }

    #[inline]
    fn prefetch_term(term: RawTerm) {
        term.prefetch();
    }

    #[inline]
    fn prefetch<T>(place: &T) {
        prefetch_address(std::ptr::from_ref(place).cast());
    }
}

/// Lets the CPU load the memory at an address into its cache, on architectures where we know how.
#[inline]
fn prefetch_address(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: it is a hint without effect on an unmapped address, and SSE is part of x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A copy of this many bytes is freed on the reclaimer's thread.
const FREED_ELSEWHERE: usize = 512 * 1024;

/// How many cleared environments a scheduler keeps for reuse: making one takes longer than most
/// copies.
const SPARES: usize = 8;

/// The environments that a scheduler keeps.
struct Spare(Vec<*mut ErlNifEnv>);

impl Drop for Spare {
    fn drop(&mut self) {
        // SAFETY: the environments are ours, and this is their last use.
        self.0.drain(..).for_each(|env| unsafe { enif_free_env(env) });
    }
}

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare(Vec::new())) };
}

/// Whether the calling thread is one of the VM's schedulers.
fn is_scheduler() -> bool {
    // SAFETY: it may be called on any thread.
    unsafe { enif_thread_type() != 0 }
}

impl Drop for Environment {
    fn drop(&mut self) {
        if self.env.is_null() {
            return;
        }
        let is_scheduler = is_scheduler();
        if is_scheduler && self.large >= FREED_ELSEWHERE {
            let env = std::mem::replace(&mut self.env, std::ptr::null_mut());
            reclaim(Environment { env, ..*self });
            return;
        }
        super::memory::count_environments(-1);
        // SAFETY: `self.env` is ours, and nobody uses its terms any longer.
        unsafe {
            if is_scheduler {
                enif_clear_env(self.env);
                let is_kept = SPARE.with_borrow_mut(|spare| {
                    let is_room = spare.0.len() < SPARES;
                    is_room.then(|| spare.0.push(self.env)).is_some()
                });
                if is_kept {
                    return;
                }
            }
            enif_free_env(self.env);
        }
    }
}

thread_local! {
    /// Bytes of copies not yet charged to a process.
    static UNCHARGED: Cell<usize> = const { Cell::new(0) };
}

/// How many more terms are weighed before they are written. A large term raises this count, which
/// is not exact.
static WATCHED: AtomicUsize = AtomicUsize::new(0);

/// One term is weighed for this many bytes of a large one: weighing all these terms takes about as
/// long as copying the large one did.
const WATCH_DIVISOR: usize = 32;

/// Lets the next terms be weighed, after a large one.
#[cold]
fn watch_for_large(bytes: usize) {
    WATCHED.fetch_max(bytes / WATCH_DIVISOR, Relaxed);
}

/// A term of the caller for a store. A large term is copied to a separate environment.
#[inline]
pub(crate) fn parcel(env: Env<'_>, term: RawTerm) -> Parcel<Environment> {
    if looks_large(env, term) {
        let (heap, [copy]) = pack(env, [term]);
        Parcel::packed(heap, copy)
    } else {
        Parcel::loose(term)
    }
}

/// A value of the caller, with its version, for a store. A version beyond 64 bits is copied to the
/// environment of a large value.
#[inline]
pub(crate) fn parcel_with(
    env: Env<'_>,
    value: RawTerm,
    version: Version<RawTerm>,
) -> (Parcel<Environment>, Version<RawTerm>) {
    match version {
        Version::Below(big) | Version::Above(big) if looks_large(env, value) => {
            let (heap, [copy, big]) = pack(env, [value, big]);
            let version = if matches!(version, Version::Below(_)) { Version::Below(big) } else { Version::Above(big) };
            (Parcel::packed(heap, copy), version)
        }
        _ => (parcel(env, value), version),
    }
}

/// Whether a term should have a separate environment. Measuring a term takes as long as copying it.
/// After a while without large terms, all terms are therefore taken for small, and the first large
/// term is noticed after its copy.
#[inline]
fn looks_large(env: Env<'_>, term: RawTerm) -> bool {
    !term.is_immediate() && WATCHED.load(Relaxed) > 0 && is_large(env, term)
}

/// Whether a term is large, by an estimate.
#[cold]
fn is_large(env: Env<'_>, term: RawTerm) -> bool {
    let watched = WATCHED.load(Relaxed);
    WATCHED.store(watched.saturating_sub(1), Relaxed);
    // SAFETY: `term` is valid, and `env` belongs to the current call.
    let is_binary = unsafe { enif_is_binary(env.as_c_arg(), term.0) != 0 };
    // The copy of a binary is a small reference.
    let bytes = if is_binary { 0 } else { weigh(env.as_c_arg(), term.0, &mut Budget::new()) };
    if bytes >= LARGE {
        watch_for_large(bytes);
    }
    bytes >= LARGE
}

/// Copies terms to a new environment, and measures the copies.
#[cold]
pub(super) fn pack<const N: usize>(env: Env<'_>, terms: [RawTerm; N]) -> (Environment, [RawTerm; N]) {
    let mut heap = Environment::new();
    let words = terms.map(|term| term.0);
    // SAFETY: the terms belong to `env`, the environment of the current call. The copy is a tuple
    // of `N` elements, which live in `heap`.
    let copies = unsafe {
        // The VM puts no part of a tuple before its root, so the copy is measured as a whole.
        let tuple = enif_make_tuple_from_array(env.as_c_arg(), words.as_ptr(), N as u32);
        let copy = heap.make_copy(RawTerm(tuple));
        let (mut arity, mut elements) = (0, std::ptr::null());
        enif_get_tuple(heap.env, copy.0, &mut arity, &mut elements);
        debug_assert_eq!(arity as usize, N);
        heap.large = heap.measure(copy).max(1);
        std::array::from_fn(|at| RawTerm(*elements.add(at)))
    };
    (heap, copies)
}

/// How many bytes are copied in a hundredth of a process's time slice.
const CHARGED: usize = 40 * 1024;

/// Charges the process for the large copy of a call, unless the call `is_charged` as a whole.
#[inline]
pub(crate) fn charge(env: Env<'_>, heap: Option<&Environment>, is_charged: bool) {
    if let Some(heap) = heap.filter(|_| !is_charged) {
        let bytes = UNCHARGED.get() + heap.large;
        UNCHARGED.set(bytes % CHARGED);
        if bytes >= CHARGED {
            rustler::schedule::consume_timeslice(env, (bytes / CHARGED).min(100) as i32);
        }
    }
}

/// The part of a term that a weighing may look at.
struct Budget {
    /// Terms.
    nodes: usize,
    /// Cells of lists, which are only counted. A list of this many cells is large in any case.
    cells: usize,
}

impl Budget {
    /// The full budget.
    fn new() -> Self {
        Budget { nodes: 24, cells: 16 * 1024 }
    }
}

/// The weight of a term whose size the VM does not report: a function with its environment, or a
/// bitstring other than a binary. The weight is high, so few such terms share a segment.
const OPAQUE: usize = 32 * 1024;

/// The number of elements of a tuple, list or map that are looked at. They stand for the others.
const ELEMENTS_WEIGHED: usize = 4;

/// An estimate of the bytes that `term` takes with its binaries; a part of a binary counts without
/// the rest. The time is within the budget, except for a binary that begins within a byte: the VM
/// copies it to report its size.
fn weigh(env: *mut ErlNifEnv, term: ErlNifTerm, budget: &mut Budget) -> usize {
    const WORD: usize = size_of::<ErlNifTerm>();
    if budget.nodes == 0 || RawTerm(term).is_immediate() {
        return WORD;
    }
    budget.nodes -= 1;
    // SAFETY: `term` is valid, and these functions only read it and do not write `env`. The
    // pointers are to variables of the right types, which are read only if the function reports
    // that it wrote them. (This does not use `enif_term_type`, because a newer VM may have types
    // that the Rust enum lacks.)
    unsafe {
        if enif_is_binary(env, term) != 0 {
            return 4 * WORD + binary_size(term);
        }
        let (mut arity, mut elements) = (0, std::ptr::null());
        if enif_get_tuple(env, term, &mut arity, &mut elements) != 0 {
            let arity = arity.max(0) as usize;
            let looked_at = arity.min(ELEMENTS_WEIGHED);
            let seen: usize = (0..looked_at).map(|at| weigh(env, *elements.add(at), budget)).sum();
            return WORD + (WORD + seen).saturating_mul(arity) / looked_at.max(1);
        }
        let mut size = 0;
        if enif_get_map_size(env, term, &mut size) != 0 {
            let mut iterator = MaybeUninit::<ErlNifMapIterator>::uninit();
            let first = ErlNifMapIteratorEntry::ERL_NIF_MAP_ITERATOR_HEAD;
            if enif_map_iterator_create(env, term, iterator.as_mut_ptr(), first) == 0 {
                return WORD;
            }
            let (mut key, mut value) = (term, term);
            let (mut seen, mut looked_at) = (0_usize, 0);
            while looked_at < ELEMENTS_WEIGHED
                && enif_map_iterator_get_pair(env, iterator.as_mut_ptr(), &mut key, &mut value) != 0
            {
                seen += weigh(env, key, budget) + weigh(env, value, budget);
                looked_at += 1;
                enif_map_iterator_next(env, iterator.as_mut_ptr());
            }
            enif_map_iterator_destroy(env, iterator.as_mut_ptr());
            return 3 * WORD + seen.saturating_mul(size) / looked_at.max(1);
        }
        let (mut head, mut tail) = (term, term);
        if enif_get_list_cell(env, term, &mut head, &mut tail) != 0 {
            let mut seen = WORD + weigh(env, head, budget);
            let mut length = 1;
            while budget.cells > 0 && enif_get_list_cell(env, tail, &mut head, &mut tail) != 0 {
                if length < ELEMENTS_WEIGHED {
                    seen += WORD + weigh(env, head, budget);
                }
                length += 1;
                budget.cells -= 1;
            }
            return seen.saturating_mul(length) / length.min(ELEMENTS_WEIGHED);
        }
        let is_small = enif_is_number(env, term) != 0
            || enif_is_ref(env, term) != 0
            || enif_is_pid(env, term) != 0
            || enif_is_port(env, term) != 0;
        if is_small {
            4 * WORD
        } else {
            OPAQUE
        }
    }
}

/// An environment that holds terms only for a moment, so it is not counted.
struct Scratch(*mut ErlNifEnv);

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: the environment is ours, and this is its last use.
        unsafe { enif_free_env(self.0) }
    }
}

thread_local! {
    // SAFETY: it may be called on any thread, and never returns null.
    static SCRATCH: Scratch = Scratch(unsafe { enif_alloc_env() });
}

/// The bytes of a binary.
fn binary_size(term: ErlNifTerm) -> usize {
    SCRATCH.with(|scratch| {
        let mut binary = MaybeUninit::<ErlNifBinary>::uninit();
        // SAFETY: `term` is valid. The environment belongs to this thread, and none of its terms is
        // used after it is cleared. `binary` is read only if the function reports that it wrote it.
        unsafe {
            let size = match enif_inspect_binary(scratch.0, term, binary.as_mut_ptr()) {
                0 => 0,
                _ => binary.assume_init().size,
            };
            enif_clear_env(scratch.0);
            size
        }
    })
}

/// The version in `term`, if `term` is an integer.
#[inline]
pub(crate) fn version(term: Term<'_>) -> Option<Version<RawTerm>> {
    let env = term.get_env().as_c_arg();
    if let Some(small) = amount(term) {
        return Some(Version::Int(small));
    }
    let mut float = 0.0;
    // SAFETY: `term` belongs to `env`; the pointer is to an `f64`.
    let is_integer =
        unsafe { enif_is_number(env, term.as_c_arg()) != 0 && enif_get_double(env, term.as_c_arg(), &mut float) == 0 };
    if !is_integer {
        return None;
    }
    // SAFETY: `env` belongs to the current call, which may write it, and zero is an immediate.
    let sign = unsafe { enif_compare(term.as_c_arg(), enif_make_int(env, 0)) };
    Some(if sign < 0 { Version::Below(term.into()) } else { Version::Above(term.into()) })
}

/// The integer in `term`, if it is one of 64 bits.
#[inline]
pub(crate) fn amount(term: Term<'_>) -> Option<i64> {
    let mut amount = 0_i64;
    // SAFETY: `term` belongs to its environment; the pointer is to an `i64`.
    (unsafe { enif_get_int64(term.get_env().as_c_arg(), term.as_c_arg(), &mut amount) } != 0).then_some(amount)
}

/// A copy of `term` in the environment of the caller.
#[inline]
pub(crate) fn copy_to(env: Env<'_>, term: RawTerm) -> Term<'_> {
    // SAFETY: `env` belongs to the current call, `term` is valid, and the new term belongs to
    // `env`.
    unsafe { Term::new(env, enif_make_copy(env.as_c_arg(), term.0)) }
}

/// A signed integer as a term in the environment of the caller.
#[inline]
fn signed_to(env: Env<'_>, integer: i64) -> Term<'_> {
    // SAFETY: `env` belongs to the current call, and the new term belongs to `env`.
    unsafe { Term::new(env, enif_make_int64(env.as_c_arg(), integer)) }
}

/// A sum as a term in the environment of the caller.
#[inline]
pub(crate) fn sum_to(env: Env<'_>, sum: i128) -> Term<'_> {
    match i64::try_from(sum) {
        Ok(small) => signed_to(env, small),
        Err(_) => sum.encode(env),
    }
}

/// The version as a term in the environment of the caller.
#[inline]
pub(crate) fn version_to(env: Env<'_>, version: Version<RawTerm>) -> Term<'_> {
    match version {
        Version::Int(small) => signed_to(env, small),
        Version::Below(big) | Version::Above(big) => copy_to(env, big),
    }
}

/// An unsigned integer as a term in the environment of the caller.
#[inline]
pub(crate) fn unsigned_to(env: Env<'_>, integer: u64) -> Term<'_> {
    // SAFETY: `env` belongs to the current call, and the new term belongs to `env`.
    unsafe { Term::new(env, enif_make_uint64(env.as_c_arg(), integer)) }
}

/// A tuple of terms of the caller.
#[inline]
pub(crate) fn tuple<'a, const N: usize>(env: Env<'a>, elements: [Term<'a>; N]) -> Term<'a> {
    let words = elements.map(|element| element.as_c_arg());
    // SAFETY: all elements belong to `env`, as their lifetime shows, and the array has `N`
    // elements.
    unsafe { Term::new(env, enif_make_tuple_from_array(env.as_c_arg(), words.as_ptr(), N as u32)) }
}

/// The elements of a tuple of this size.
#[inline]
pub(crate) fn elements<const N: usize>(term: Term<'_>) -> Option<[Term<'_>; N]> {
    let env = term.get_env();
    let (mut arity, mut words) = (0, std::ptr::null());
    // SAFETY: `term` belongs to `env`. If it is a tuple, `words` points to `arity` terms of the
    // same environment, which live as long as it does.
    unsafe {
        if enif_get_tuple(env.as_c_arg(), term.as_c_arg(), &mut arity, &mut words) == 0 || arity as usize != N {
            return None;
        }
        Some(std::array::from_fn(|at| Term::new(env, *words.add(at))))
    }
}

/// Head and tail of a non-empty list.
#[inline]
pub(crate) fn cell(list: Term<'_>) -> Option<(Term<'_>, Term<'_>)> {
    let env = list.get_env();
    let (mut head, mut tail) = (list.as_c_arg(), list.as_c_arg());
    // SAFETY: `list` belongs to `env`, and so do the head and tail, which are written if it is a
    // cell.
    unsafe {
        (enif_get_list_cell(env.as_c_arg(), list.as_c_arg(), &mut head, &mut tail) != 0)
            .then(|| (Term::new(env, head), Term::new(env, tail)))
    }
}

/// The rest of a list behind its first `count` elements.
pub(crate) fn tail(list: Term<'_>, count: usize) -> Term<'_> {
    (0..count).fold(list, |rest, _| cell(rest).map_or(rest, |(_, tail)| tail))
}

/// A list of terms of the caller, collected before it is made.
pub(crate) struct ListBuilder<'a> {
    /// The environment of the list.
    env: Env<'a>,
    /// Its elements, which belong to `env`.
    elements: Vec<ErlNifTerm>,
}

impl<'a> ListBuilder<'a> {
    /// An empty list with room for `capacity` elements.
    pub(crate) fn with_capacity(env: Env<'a>, capacity: usize) -> Self {
        ListBuilder { env, elements: Vec::with_capacity(capacity) }
    }

    /// Adds an element at the end.
    #[inline]
    pub(crate) fn push(&mut self, element: Term<'a>) {
        self.elements.push(element.as_c_arg());
    }

    /// The list.
    pub(crate) fn build(self) -> Term<'a> {
        let length = u32::try_from(self.elements.len()).expect("a batch has fewer than 2^32 entries");
        // SAFETY: all elements belong to `env`, as their lifetime shows, and their number is
        // `length`.
        unsafe {
            let list = enif_make_list_from_array(self.env.as_c_arg(), self.elements.as_ptr(), length);
            Term::new(self.env, list)
        }
    }
}
