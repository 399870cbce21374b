//! The terms of the caller: reads them, and makes new ones.

use std::cell::Cell;
use std::cmp::Ordering;

use partitioned_buffer_engine::{Resident, Term as _, Version};
use rustler::sys::{ERL_NIF_TERM as ErlNifTerm, *};
use rustler::{Encoder, Env, Term};

use super::term::RawTerm;

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

/// The atom of this word, which `RawTerm::word` returned for an atom.
pub(crate) fn atom_to(env: Env<'_>, word: usize) -> Term<'_> {
    // SAFETY: an atom belongs to any environment, and the VM never removes one.
    unsafe { Term::new(env, word as ErlNifTerm) }
}

/// The integer in `term`, if its magnitude is at most `most`.
#[inline]
pub(crate) fn integer(term: Term<'_>, most: i128) -> Option<i128> {
    match amount(term) {
        Some(small) => Some(small.into()),
        None => big_integer(term, most),
    }
}

/// The same for an integer beyond 64 bits. It is compared before it is read: the VM compares integers
/// of other sizes by their sizes, and reads one with memory for all its digits.
#[cold]
fn big_integer(term: Term<'_>, most: i128) -> Option<i128> {
    let limit = |limit: i128| RawTerm::from(sum_to(term.get_env(), limit));
    let is_within = match version(term)? {
        Version::Int(_) => true,
        Version::Below(big) => big.compare_integers(limit(-most)) != Ordering::Less,
        Version::Above(big) => big.compare_integers(limit(most)) != Ordering::Greater,
    };
    // The external format of an integer of 128 bits.
    if is_within {
        term.decode().ok()
    } else {
        None
    }
}

/// A term of a store in the environment of the caller.
#[inline]
pub(crate) fn resident_to(env: Env<'_>, resident: Resident<RawTerm>) -> Term<'_> {
    if resident.is_immediate {
        // SAFETY: an immediate belongs to any environment.
        unsafe { Term::new(env, resident.term.0) }
    } else {
        copy_to(env, resident.term)
    }
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

/// A count as a term in the environment of the caller.
#[inline]
pub(crate) fn count_to(env: Env<'_>, count: u128) -> Term<'_> {
    match u64::try_from(count) {
        Ok(small) => unsigned_to(env, small),
        Err(_) => count.encode(env),
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

/// A binary with these bytes.
pub(crate) fn binary_to<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    let mut term = 0;
    // SAFETY: `env` belongs to the current call. The function returns memory for as many bytes, which
    // nobody else has yet.
    unsafe {
        let data = enif_make_new_binary(env.as_c_arg(), bytes.len(), &mut term);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
        Term::new(env, term)
    }
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

/// The first elements of a list, at most `most`, and the rest of the list.
pub(crate) fn cells(mut list: Term<'_>, most: usize) -> (Vec<Term<'_>>, Term<'_>) {
    let mut elements = Vec::with_capacity(most);
    while let Some((element, tail)) = cell(list).filter(|_| elements.len() < most) {
        elements.push(element);
        list = tail;
    }
    (elements, list)
}

/// The rest of a list behind its first `count` elements.
pub(crate) fn tail(list: Term<'_>, count: usize) -> Term<'_> {
    (0..count).fold(list, |rest, _| cell(rest).map_or(rest, |(_, tail)| tail))
}

/// The most elements for which a thread keeps room.
const ROOM: usize = 1024;

thread_local! {
    /// Room for the elements of the next list.
    static ELEMENTS: Cell<Vec<ErlNifTerm>> = const { Cell::new(Vec::new()) };
}

/// A list of terms of the caller, collected before it is made.
pub(crate) struct ListBuilder<'a> {
    /// The environment of the list.
    env: Env<'a>,
    /// Its elements, which belong to `env`.
    elements: Vec<ErlNifTerm>,
}

impl<'a> ListBuilder<'a> {
    /// An empty list.
    pub(crate) fn start(env: Env<'a>) -> Self {
        ListBuilder { env, elements: ELEMENTS.take() }
    }

    /// Adds an element at the end.
    #[inline]
    pub(crate) fn push(&mut self, element: Term<'a>) {
        self.elements.push(element.as_c_arg());
    }

    /// The list.
    pub(crate) fn build(mut self) -> Term<'a> {
        let length = u32::try_from(self.elements.len()).expect("a batch has fewer than 2^32 entries");
        // SAFETY: all elements belong to `env`, as their lifetime shows, and their number is
        // `length`.
        let list = unsafe {
            let list = enif_make_list_from_array(self.env.as_c_arg(), self.elements.as_ptr(), length);
            Term::new(self.env, list)
        };
        if self.elements.capacity() <= ROOM {
            self.elements.clear();
            ELEMENTS.set(self.elements);
        }
        list
    }
}
