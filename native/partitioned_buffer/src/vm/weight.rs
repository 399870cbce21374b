//! Estimates how many bytes a term takes.

use std::mem::MaybeUninit;

use rustler::sys::{ERL_NIF_TERM as ErlNifTerm, *};

use super::term::RawTerm;

/// The part of a term that a weighing may look at.
pub(super) struct Budget {
    /// Terms.
    nodes: usize,
    /// Cells of lists, which are only counted. A list of this many cells is large in any case.
    cells: usize,
}

impl Budget {
    /// The full budget.
    pub(super) fn new() -> Self {
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
pub(super) fn weigh(env: *mut ErlNifEnv, term: ErlNifTerm, budget: &mut Budget) -> usize {
    const WORD: usize = size_of::<ErlNifTerm>();
    if budget.nodes == 0 || RawTerm(term).is_tiny(env) {
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
