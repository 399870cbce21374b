//! Whether a term is small for sure.
//!
//! No function of the VM returns the size of a term. So a term is looked at part by part, within a
//! budget. If the budget is too low for all parts, the term may be large.

use std::mem::MaybeUninit;

use rustler::sys::{ERL_NIF_TERM as ErlNifTerm, *};
use rustler::Env;

use super::term::RawTerm;

/// A term of this many bytes may be large. The VM hashes a binary of this size in two microseconds,
/// a five hundredth of what a process may do in a row.
const BUDGET: usize = 4096;

/// Each term but a tiny one counts as this many bytes, so at most 16 are looked at.
const PART: usize = BUDGET / 16;

/// The work for a small term that is not tiny.
pub(crate) const WORK_OF_PART: usize = PART;

/// A tiny term counts as a word.
const WORD: usize = size_of::<ErlNifTerm>();

/// Whether to hash, compare and copy a term takes a few microseconds at most.
#[inline]
pub(crate) fn is_small(env: Env<'_>, term: RawTerm) -> bool {
    spend::<true>(env.as_c_arg(), term.word(), BUDGET).is_some()
}

/// Whether to copy a term takes a few microseconds at most. The copy of a binary is a reference.
pub(crate) fn is_small_copy(env: Env<'_>, term: RawTerm) -> bool {
    spend_part::<false>(env.as_c_arg(), term.word(), BUDGET).is_some()
}

/// The work to hash, compare and copy a small term; `None` if it may be large. Most units are a byte,
/// and each term but a tiny one takes [`WORK_OF_PART`].
#[inline]
pub(crate) fn work_to_hash(env: Env<'_>, term: RawTerm) -> Option<usize> {
    spend::<true>(env.as_c_arg(), term.word(), BUDGET).map(|rest| BUDGET - rest)
}

/// The work to copy a small term; `None` if it may be large.
#[inline]
pub(crate) fn work_to_copy(env: Env<'_>, term: RawTerm) -> Option<usize> {
    spend_part::<false>(env.as_c_arg(), term.word(), BUDGET).map(|rest| BUDGET - rest)
}

/// The bytes of a binary.
#[inline]
fn binary_size(env: *mut ErlNifEnv, term: ErlNifTerm) -> Option<usize> {
    let mut binary = MaybeUninit::<ErlNifBinary>::uninit();
    // SAFETY: `term` is valid and belongs to `env`, the environment of the current call. `binary`
    // is read only if the function reports that it wrote it.
    unsafe { (enif_inspect_binary(env, term, binary.as_mut_ptr()) != 0).then(|| binary.assume_init_ref().size) }
}

/// The rest of the budget behind a term; `None` if the budget is too low, or the size is unknown.
/// The bytes of binaries count if they are `HASHED`.
#[inline]
fn spend<const HASHED: bool>(env: *mut ErlNifEnv, term: ErlNifTerm, budget: usize) -> Option<usize> {
    let budget = budget.checked_sub(PART)?;
    let (mut arity, mut elements) = (0, std::ptr::null());
    // SAFETY: as in `binary_size`, for all pointers. The elements of a tuple live as long as it
    // does.
    unsafe {
        // Most keys that are no words are tuples or binaries, and a tuple is noticed faster.
        if enif_get_tuple(env, term, &mut arity, &mut elements) != 0 {
            return (0..arity as usize)
                .try_fold(budget, |budget, at| spend_part::<HASHED>(env, *elements.add(at), budget));
        }
    }
    match binary_size(env, term) {
        Some(size) => budget.checked_sub(if HASHED { size } else { 0 }),
        None => spend_other::<HASHED>(env, term, budget),
    }
}

/// The rest of the budget behind a part of a term.
#[inline]
fn spend_part<const HASHED: bool>(env: *mut ErlNifEnv, term: ErlNifTerm, budget: usize) -> Option<usize> {
    if RawTerm(term).is_tiny(env) {
        budget.checked_sub(WORD)
    } else {
        spend::<HASHED>(env, term, budget)
    }
}

/// The rest of the budget behind a term that is neither tuple nor binary.
fn spend_other<const HASHED: bool>(env: *mut ErlNifEnv, term: ErlNifTerm, budget: usize) -> Option<usize> {
    let (mut head, mut tail) = (term, term);
    let mut size = 0;
    // SAFETY: as in `binary_size`, for all pointers.
    unsafe {
        if enif_get_list_cell(env, term, &mut head, &mut tail) != 0 {
            return spend_part::<HASHED>(env, tail, spend_part::<HASHED>(env, head, budget)?);
        }
        if enif_get_map_size(env, term, &mut size) != 0 {
            return spend_map::<HASHED>(env, term, budget.checked_sub(size.saturating_mul(PART))?);
        }
    }
    is_word_or_name(env, term).then_some(budget)
}

/// The rest of the budget behind a map.
fn spend_map<const HASHED: bool>(env: *mut ErlNifEnv, map: ErlNifTerm, budget: usize) -> Option<usize> {
    let mut iterator = MaybeUninit::<ErlNifMapIterator>::uninit();
    let first = ErlNifMapIteratorEntry::ERL_NIF_MAP_ITERATOR_HEAD;
    let (mut key, mut value, mut rest) = (map, map, Some(budget));
    // SAFETY: as in `binary_size`. The iterator is used only after it was made, and then destroyed.
    unsafe {
        if enif_map_iterator_create(env, map, iterator.as_mut_ptr(), first) == 0 {
            return None;
        }
        while rest.is_some() && enif_map_iterator_get_pair(env, iterator.as_mut_ptr(), &mut key, &mut value) != 0 {
            rest = rest.and_then(|budget| spend_part::<HASHED>(env, value, spend_part::<HASHED>(env, key, budget)?));
            enif_map_iterator_next(env, iterator.as_mut_ptr());
        }
        enif_map_iterator_destroy(env, iterator.as_mut_ptr());
    }
    rest
}

/// Whether a term is a number of 64 bits, or names a process, a port or something else.
fn is_word_or_name(env: *mut ErlNifEnv, term: ErlNifTerm) -> bool {
    let (mut signed, mut unsigned, mut float) = (0, 0, 0.0);
    // SAFETY: as in `binary_size`.
    unsafe {
        enif_is_ref(env, term) != 0
            || enif_is_pid(env, term) != 0
            || enif_is_port(env, term) != 0
            || enif_get_double(env, term, &mut float) != 0
            || enif_get_int64(env, term, &mut signed) != 0
            || enif_get_uint64(env, term, &mut unsigned) != 0
    }
}
