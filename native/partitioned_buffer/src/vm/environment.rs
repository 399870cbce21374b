//! Process-independent environments: the heaps of the engine.
//!
//! The code is sound for these reasons:
//!
//! * The terms are valid, for the reasons that [`super::term`] has.
//! * Only one thread at a time writes an environment (copies to it or clears it), because that
//!   takes `&mut`. While nobody writes it, any thread may read its terms: they are immutable, and
//!   references to binaries outside of the environment are counted atomically.
//! * Any thread may make, use and free process-independent environments.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use partitioned_buffer_engine::reclaim::{reclaim, Work};
use partitioned_buffer_engine::Heap;
use rustler::sys::{ERL_NIF_TERM as ErlNifTerm, *};

use super::term::{prefetch_address, RawTerm};
use super::wall_clock;
use super::weight::{weigh, Budget};

/// A process-independent environment: a heap that no process owns and no garbage collector sees.
pub(crate) struct Environment {
    /// From `enif_alloc_env`; freed when this is dropped. Null without memory.
    pub(super) env: *mut ErlNifEnv,
    /// The last copy.
    last: RawTerm,
    /// About how many bytes the large copy here takes; 0 without one.
    pub(super) large: usize,
}

// SAFETY: such an environment is bound to no thread, and all functions that write it take
// `&mut self`.
unsafe impl Send for Environment {}

// SAFETY: no function changes the environment through `&self`.
unsafe impl Sync for Environment {}

/// A term of this many bytes is large: it gets a separate environment, which takes some 2.5 kB in
/// addition to the copy.
pub(super) const LARGE: usize = 8 * 1024;

/// The VM enlarges an environment by pieces of at least this many bytes. A copy that begins nearer
/// to the copy before is in the same piece. (If a VM did otherwise, copies would be measured too
/// often, or large ones would not be noticed.)
const PIECE: usize = 200 * size_of::<ErlNifTerm>();

/// If this many first elements of a list are tiny, most likely all elements are.
const CELLS_LOOKED_AT: u32 = 4;

impl Environment {
    /// About how many bytes `copy`, the last copy, takes here. The VM makes terms one behind the
    /// other, so a small new term shows where the copy ends. The copy begins with its root, unless
    /// it is a list.
    #[cold]
    pub(super) fn measure(&mut self, copy: RawTerm) -> usize {
        // SAFETY: `self.env` is ours, nobody else writes it, and `copy` lives there. The functions
        // write all variables that are read.
        unsafe {
            let end = RawTerm(enif_make_list_cell(self.env, copy.0, copy.0));
            // The VM puts cells with immediates at the end of the copy, so the copy begins with the
            // first other cell. A list of immediates takes two words for each cell.
            let (mut start, mut head, mut tail, mut length) = (copy, copy.0, copy.0, 0);
            while enif_get_list_cell(self.env, start.0, &mut head, &mut tail) != 0 {
                if !RawTerm(head).is_tiny(self.env) && enif_is_pid(self.env, head) == 0 {
                    break;
                }
                length += 1;
                if length == CELLS_LOOKED_AT {
                    enif_get_list_length(self.env, copy.0, &mut length);
                    return length as usize * 2 * size_of::<ErlNifTerm>();
                }
                start = RawTerm(tail);
            }
            if start.is_tiny(self.env) {
                // All of the list is tiny, its end included.
                return length as usize * 2 * size_of::<ErlNifTerm>();
            }
            end.distance(start)
        }
    }

    /// Copies a term.
    #[inline]
    pub(super) fn make_copy(&mut self, term: RawTerm) -> RawTerm {
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
        Environment { env: spare.unwrap_or_else(|| unsafe { enif_alloc_env() }), last: RawTerm::ZERO, large: 0 }
    }

    fn none() -> Self {
        Environment { env: std::ptr::null_mut(), last: RawTerm::ZERO, large: 0 }
    }

    #[inline]
    fn copy(&mut self, term: RawTerm) -> RawTerm {
        let copy = self.make_copy(term);
        if copy != term {
            if copy.distance(self.last) > PIECE {
                let bytes = self.measure(copy);
                if bytes >= LARGE {
                    self.large = bytes;
                    watch_for_large(bytes);
                }
            }
            self.last = copy;
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
    fn wall_clock() -> i64 {
        wall_clock::micros()
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

/// A copy of this many bytes is freed on the reclaimer's thread.
const FREED_ELSEWHERE: usize = 512 * 1024;

/// How many cleared environments a scheduler keeps for reuse: making one takes longer than most
/// copies.
const SPARES: usize = 8;

/// A large environment, which is freed as a whole.
struct Elsewhere(#[allow(dead_code)] Environment); // It is there to be dropped.

impl Work for Elsewhere {
    fn step(&mut self) -> Option<usize> {
        None
    }
}

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
            reclaim(Elsewhere(Environment { env, ..*self }), self.large);
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

/// How many more terms are weighed before they are written. A large term raises this count, which
/// is not exact.
pub(super) static WATCHED: AtomicUsize = AtomicUsize::new(0);

/// One term is weighed for this many bytes of a large one: weighing all these terms takes about as
/// long as copying the large one did.
const WATCH_DIVISOR: usize = 32;

/// How many more terms are weighed. The count rises when a term turns out to be large.
#[inline]
pub(crate) fn watched() -> usize {
    WATCHED.load(Relaxed)
}

/// Lets the next terms be weighed, after a large one.
#[cold]
pub(super) fn watch_for_large(bytes: usize) {
    WATCHED.fetch_max(bytes / WATCH_DIVISOR, Relaxed);
}
