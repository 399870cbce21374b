//! Large terms: each is copied to a separate environment, and charged to the process.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use partitioned_buffer_engine::{Heap, Parcel, Version};
use rustler::sys::{enif_get_tuple, enif_is_binary, enif_make_tuple_from_array};
use rustler::Env;

use super::argument::Argument;
use super::environment::{watch_for_large, Environment, LARGE, WATCHED};
use super::term::RawTerm;
use super::weight::{weigh, Budget};

/// A term of the caller for a store. A large term is copied to a separate environment.
#[inline]
pub(crate) fn parcel(env: Env<'_>, argument: Argument) -> Parcel<Environment> {
    let term = argument.term;
    if argument.is_immediate {
        Parcel::immediate(term)
    } else if looks_large(env, term) {
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
    value: Argument,
    version: Version<RawTerm>,
) -> (Parcel<Environment>, Version<RawTerm>) {
    match version {
        Version::Below(big) | Version::Above(big) if !value.is_immediate && looks_large(env, value.term) => {
            let (heap, [copy, big]) = pack(env, [value.term, big]);
            let version = if matches!(version, Version::Below(_)) { Version::Below(big) } else { Version::Above(big) };
            (Parcel::packed(heap, copy), version)
        }
        _ => (parcel(env, value), version),
    }
}

/// A term of the caller for a store, and a version that goes with it, whatever the terms before
/// were: it is weighed.
#[cold]
pub(crate) fn weighed(
    env: Env<'_>,
    argument: Argument,
    version: Version<RawTerm>,
) -> (Parcel<Environment>, Version<RawTerm>) {
    let term = argument.term;
    if argument.is_immediate {
        return (Parcel::immediate(term), version);
    }
    if !is_large(env, term) {
        return (Parcel::loose(term), version);
    }
    let version_to = |big, packed: fn(RawTerm) -> Version<RawTerm>| {
        let (heap, [copy, big]) = pack(env, [term, big]);
        (Parcel::packed(heap, copy), packed(big))
    };
    match version {
        Version::Below(big) => version_to(big, Version::Below),
        Version::Above(big) => version_to(big, Version::Above),
        Version::Int(_) => {
            let (heap, [copy]) = pack(env, [term]);
            (Parcel::packed(heap, copy), version)
        }
    }
}

/// Whether a term, which is no immediate, should have a separate environment. Measuring a term takes as long as copying it.
/// After a while without large terms, all terms are therefore taken for small, and the first large
/// term is noticed after its copy.
#[inline]
fn looks_large(env: Env<'_>, term: RawTerm) -> bool {
    WATCHED.load(Relaxed) > 0 && is_large(env, term)
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

thread_local! {
    /// Bytes of copies not yet charged to a process.
    static UNCHARGED: Cell<usize> = const { Cell::new(0) };
}

/// Charges the process for the large copy of a call, unless the call `is_charged` as a whole.
#[inline]
pub(crate) fn charge(env: Env<'_>, heap: Option<&Environment>, is_charged: bool) {
    if let Some(heap) = heap.filter(|_| !is_charged) {
        charge_bytes(env, heap.large);
    }
}

/// Charges the process for large copies of this many bytes.
pub(crate) fn charge_bytes(env: Env<'_>, bytes: usize) {
    let bytes = UNCHARGED.get() + bytes;
    UNCHARGED.set(bytes % CHARGED);
    if bytes >= CHARGED {
        rustler::schedule::consume_timeslice(env, (bytes / CHARGED).min(100) as i32);
    }
}
