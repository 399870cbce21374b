//! NIFs of room in a buffer with a bound.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use std::time::Duration;

use rustler::{Encoder, Env, Error, NifResult, ResourceArc, Term};

use super::{atoms, done, find, nif, or_not_running, with_reserved_routes};
use crate::any::{each, AnyPartitions, Run};
use crate::reservation::Reservation;
use crate::run::{News, NotRunning};
use crate::vm::caller::{cells, tuple};
use crate::vm::entry::{call_by_name, Function};

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

/// The NIFs that write an entry. Their first arguments are the buffer and the route.
const WRITES: [&str; 6] = ["put", "put_new", "put_newer", "add", "add_counted", "push"];

/// The most arguments of such a NIF.
const MOST_ARGUMENTS: usize = 5;

nif!(write / 3);
fn write<'a>(env: Env<'a>, [reservation, operation, arguments]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let reservation: ResourceArc<Reservation> = reservation.decode()?;
    let operation = operation.atom_to_string()?;
    let (mut arguments, tail) = cells(arguments, MOST_ARGUMENTS);
    let &[name, to, ..] = arguments.as_slice() else { return Err(Error::BadArg) };
    if !tail.is_empty_list() || !WRITES.contains(&operation.as_str()) {
        return Err(Error::BadArg);
    }
    let Ok(partitions) = find(name)?.and_then(AnyPartitions::running) else {
        return Ok(atoms::not_running().to_term(env));
    };
    if !reservation.take_grant() {
        return Ok(atoms::lapsed().to_term(env));
    }
    let Ok(room) = reservation.take(partitions.shared(), 1) else { return Err(Error::BadArg) };
    arguments[1] = tuple(env, [atoms::reserved().to_term(env), to]);
    let called = with_reserved_routes(|| call_by_name(env, &operation, &arguments)).ok_or(Error::BadArg)?;
    // A write that a partition took used the room, or released it.
    let is_refused = |atom: rustler::Atom| called.result.as_c_arg() == atom.as_c_arg();
    let is_written = !called.is_exception && !is_refused(atoms::not_running()) && !is_refused(atoms::invalid());
    room.use_room(is_written.into());
    drop(room);
    if is_written {
        reservation.end(env);
    }
    Ok(called.result)
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

nif!(refuse_writes / 2, DirtyCpu);
fn refuse_writes<'a>(env: Env<'a>, [run, refuses]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, refuses): (Run, bool) = (run.decode()?, refuses.decode()?);
    let refuse = |partitions: AnyPartitions| {
        each!(AnyPartitions, partitions, own => own.refuse(refuses))?;
        partitions.shared().tell_of_room(env);
        Ok(())
    };
    Ok(done(env, run.enter(refuse)))
}

nif!(refuses_writes / 1);
fn refuses_writes<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let partitions = find(name)?.and_then(AnyPartitions::running);
    Ok(partitions.is_ok_and(|partitions| partitions.shared().bound.is_refusing()).encode(env))
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
