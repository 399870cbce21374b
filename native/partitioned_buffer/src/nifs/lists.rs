//! NIFs that write lists.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use partitioned_buffer_engine::Versions;
use rustler::types::atom;
use rustler::{Env, Error, NifResult, ResourceArc, Term};

use super::counter::find_counter;
use super::map::find_map;
use super::queue::find_queue;
use super::{atoms, nif, route};
use crate::buffer::QueuePartitions;
use crate::lists::{check_list, write_list, Invalid, Shape, Target, ToCounter, ToMap, ToQueue, Written};
use crate::reservation::Reservation;
use crate::run::NotRunning;
use crate::vm::caller::tuple;
use crate::vm::entry::Function;

nif!(check / 2);
fn check<'a>(env: Env<'a>, [shape, list]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let shape: rustler::Atom = shape.decode()?;
    let shapes = [
        (atoms::pair(), Shape::Pair),
        (atoms::versioned(), Shape::Versioned),
        (atoms::amount(), Shape::Amount),
        (atoms::item(), Shape::Item),
    ];
    let (_, shape) = shapes.into_iter().find(|(atom, _)| *atom == shape).ok_or(Error::BadArg)?;
    Ok(match check_list(env, shape, list) {
        Ok(rest) if rest.is_empty_list() => atoms::ok().to_term(env),
        Ok(rest) => tuple(env, [atoms::more().to_term(env), rest]),
        Err(invalid) => invalid_to(env, invalid),
    })
}

nif!(put_all / 4);
fn put_all<'a>(env: Env<'a>, [name, to, entries, checked]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    write_to_map::<false>(env, name, to, entries, checked, Versions::Own)
}

nif!(put_all_newer / 4);
fn put_all_newer<'a>(env: Env<'a>, [name, to, entries, checked]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    write_to_map::<true>(env, name, to, entries, checked, Versions::Clock)
}

/// Writes a list to a map, unless its entries have the `refused` versions.
#[inline(always)]
fn write_to_map<'a, const VERSIONED: bool>(
    env: Env<'a>,
    name: Term<'a>,
    to: Term<'a>,
    entries: Term<'a>,
    checked: Term<'a>,
    refused: Versions,
) -> NifResult<Term<'a>> {
    let (route, map) = (route(to)?, find_map(name)?);
    if map.is_ok_and(|map| map.shared.count().is_ok() && map.partition(0).has_versions(refused)) {
        return Ok(atoms::versions().to_term(env));
    }
    write_all(env, map.map(|map| ToMap::<VERSIONED> { map, route }), entries, checked)
}

nif!(add_all / 4);
fn add_all<'a>(env: Env<'a>, [name, to, entries, checked]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, counter) = (route(to)?, find_counter(name)?);
    write_all(env, counter.map(|counter| ToCounter { counter, route }), entries, checked)
}

nif!(push_all / 4);
fn push_all<'a>(env: Env<'a>, [name, to, items, checked]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, queue) = (route(to)?, find_queue(name)?);
    let is_hashed = |queue: &QueuePartitions| route.is_by_term() && queue.count().is_ok_and(|count| count > 1);
    write_all(env, queue.map(|queue| ToQueue { queue, route, is_hashed: is_hashed(queue) }), items, checked)
}

/// Writes a list, and returns its progress.
#[inline]
fn write_all<'a>(
    env: Env<'a>,
    target: Result<impl Target, NotRunning>,
    list: Term<'a>,
    checked: Term<'a>,
) -> NifResult<Term<'a>> {
    let is_checked = checked.as_c_arg() == atom::true_().as_c_arg();
    let is_unchecked = checked.as_c_arg() == atom::false_().as_c_arg();
    let reservation: Option<ResourceArc<Reservation>> =
        if is_checked || is_unchecked { None } else { Some(checked.decode()?) };
    let checked = !is_unchecked;
    // An unchecked list may be invalid, and that error comes first.
    let written = match target {
        Ok(target) => write_list(env, &target, list, checked, reservation.as_deref())?,
        // A buffer that was never started has no reservations.
        Err(NotRunning) if reservation.is_some() => return Err(Error::BadArg),
        Err(NotRunning) if checked => Err(NotRunning),
        Err(NotRunning) => Ok(Written::Long),
    };
    Ok(match written {
        Ok(Written::All) => atoms::ok().to_term(env),
        Ok(Written::More(rest)) => tuple(env, [atoms::more().to_term(env), rest]),
        Ok(Written::Refused(rest)) => tuple(env, [atoms::refused().to_term(env), rest]),
        Ok(Written::Long) => atoms::long().to_term(env),
        Ok(Written::Lapsed) => atoms::lapsed().to_term(env),
        Ok(Written::Bounded) => atoms::bounded().to_term(env),
        Ok(Written::Invalid(invalid)) => invalid_to(env, invalid),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

/// `{:invalid, element}` or `{:improper, tail}`.
pub(super) fn invalid_to<'a>(env: Env<'a>, invalid: Invalid<'a>) -> Term<'a> {
    match invalid {
        Invalid::Element(element) => tuple(env, [atoms::invalid().to_term(env), element]),
        Invalid::Tail(tail) => tuple(env, [atoms::improper().to_term(env), tail]),
    }
}
