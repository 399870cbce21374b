//! NIFs of room in a buffer with a bound.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use std::time::Duration;

use rustler::{Encoder, Env, Error, NifResult, ResourceArc, Term};

use super::counter::{add_counted_to, add_to};
use super::map::{put_new_to, put_newer_to, put_to};
use super::queue::push_to;
use super::{atoms, done, find, nif, or_not_running, route};
use crate::any::{AnyPartitions, Run};
use crate::reservation::Reservation;
use crate::run::{News, NotRunning};
use crate::vm::caller::{cells, tuple};
use crate::vm::entry::Function;

/// More entries than any machine has memory for. With a greater count, the sum of what a bound
/// counts could be too large for its word.
const MAX_COUNT: u64 = 1 << 48;

/// A number of entries.
fn entries(term: Term<'_>) -> NifResult<usize> {
    let count: u64 = term.decode()?;
    usize::try_from(count).ok().filter(|_| count <= MAX_COUNT).ok_or(Error::BadArg)
}

nif!(reserve / 3);
fn reserve<'a>(env: Env<'a>, [name, count, waits]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (count, waits): (_, bool) = (entries(count)?, waits.decode()?);
    let Ok(partitions) = find(name)?.and_then(AnyPartitions::running) else {
        return Ok(atoms::not_running().to_term(env));
    };
    if let Some(reservation) = Reservation::new(partitions, count) {
        return Ok(ResourceArc::new(reservation).encode(env));
    }
    tell_of_full(env, partitions);
    if !waits {
        return Ok(atoms::full().to_term(env));
    }
    let (reservation, place) = Reservation::wait(env, partitions, count);
    Ok(tuple(env, [atoms::wait().to_term(env), ResourceArc::new(reservation).encode(env), place.encode(env)]))
}

nif!(wait_again / 1);
fn wait_again<'a>(env: Env<'a>, [reservation]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let reservation: ResourceArc<Reservation> = reservation.decode()?;
    let place = reservation.wait_again(env).ok_or(Error::BadArg)?;
    Ok(tuple(env, [atoms::wait().to_term(env), reservation.encode(env), place.encode(env)]))
}

nif!(leave / 1);
fn leave<'a>(env: Env<'a>, [reservation]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let reservation: ResourceArc<Reservation> = reservation.decode()?;
    Ok(reservation.leave(env).encode(env))
}

nif!(release / 1);
fn release<'a>(env: Env<'a>, [reservation]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let reservation: ResourceArc<Reservation> = reservation.decode()?;
    reservation.end(env);
    Ok(atoms::ok().to_term(env))
}

/// The most arguments of a function that writes an entry.
const MOST_ARGUMENTS: usize = 5;

nif!(write / 3);
fn write<'a>(env: Env<'a>, [reservation, operation, arguments]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let reservation: ResourceArc<Reservation> = reservation.decode()?;
    let operation: rustler::Atom = operation.decode()?;
    let (arguments, tail) = cells(arguments, MOST_ARGUMENTS);
    let [name, to, rest @ ..] = arguments.as_slice() else { return Err(Error::BadArg) };
    if !tail.is_empty_list() {
        return Err(Error::BadArg);
    }
    let (name, route) = (*name, route(*to)?.with_room());
    let Ok(partitions) = find(name)?.and_then(AnyPartitions::running) else {
        return Ok(atoms::not_running().to_term(env));
    };
    if !reservation.take_grant() {
        return Ok(atoms::lapsed().to_term(env));
    }
    if !reservation.is_for(partitions.shared(), 1) {
        return Err(Error::BadArg);
    }
    let Ok(room) = reservation.take(1) else { return Err(Error::BadArg) };
    let written = match *rest {
        [key, value] if operation == atoms::put() => put_to(env, name, route, key, value),
        [key, value] if operation == atoms::put_new() => put_new_to(env, name, route, key, value),
        [key, value, version] if operation == atoms::put_newer() => put_newer_to(env, name, route, key, value, version),
        [key, amount] if operation == atoms::add() => add_to(env, name, route, key, amount),
        [key, amount, count] if operation == atoms::add_counted() => {
            add_counted_to(env, name, route, key, amount, count)
        }
        [item] if operation == atoms::push() => push_to(env, name, route, item),
        _ => Err(Error::BadArg),
    }?;
    // A write that a partition took used the room, or released it.
    let is_written = ![atoms::not_running(), atoms::invalid()].iter().any(|atom| written.as_c_arg() == atom.as_c_arg());
    room.use_room(is_written.into());
    drop(room);
    if is_written {
        reservation.end(env);
    }
    Ok(written)
}

/// The time, in milliseconds, after which a grant lapses that its writer did not take, if others
/// wait. The process of the room looks once in this time, so a grant is gone after twice as long.
const LAPSE_MS: u64 = 50;

nif!(serve / 1);
fn serve<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    let served = run.enter(|partitions| {
        let shared = partitions.shared();
        shared.hear_of_room();
        shared.waiting.lapse(&shared.bound, Duration::from_millis(LAPSE_MS));
        let next = match shared.answer(env) {
            true => 0.encode(env),
            false if shared.waiting.may_lapse() => LAPSE_MS.encode(env),
            false => atoms::infinity().to_term(env),
        };
        Ok(tuple(env, [shared.waiting.len().encode(env), next]))
    });
    Ok(served.unwrap_or_else(|NotRunning| atoms::not_running().to_term(env)))
}

nif!(clear_full / 1);
fn clear_full<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    Ok(or_not_running(env, run.enter(|partitions| Ok(partitions.shared().bound.clear()))))
}

nif!(count_refused / 3);
fn count_refused<'a>(env: Env<'a>, [name, refused, dropped]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (refused, dropped): (u32, u32) = (refused.decode()?, dropped.decode()?);
    let partitions = find(name)?.and_then(AnyPartitions::running);
    Ok(done(
        env,
        partitions.map(|partitions| partitions.shared().bound.count_refused(refused as usize, dropped as usize)),
    ))
}

nif!(bound / 1);
fn bound<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let counts = find(name)?.and_then(AnyPartitions::running).map(|partitions| {
        let shared = partitions.shared();
        let (refused, dropped) = shared.bound.refused();
        (shared.bound.held(), refused, dropped, shared.waiting.len(), shared.waiting.joined())
    });
    Ok(match counts {
        Ok(counts) => counts.encode(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

/// Sends the news that a write found no room, once until the buffer has room again.
fn tell_of_full(env: Env<'_>, partitions: AnyPartitions) {
    let shared = partitions.shared();
    if shared.bound.fill() {
        shared.tell(env, News::Full);
    }
}
