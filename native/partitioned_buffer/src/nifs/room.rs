//! NIFs of room in a buffer with a bound.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use std::sync::atomic::Ordering;

use rustler::{Encoder, Env, Error, NifResult, ResourceArc, Term};

use super::{atoms, done, find, nif, or_not_running};
use crate::any::{AnyPartitions, Run};
use crate::reservation::Reservation;
use crate::run::{News, NotRunning};
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
fn reserve<'a>(env: Env<'a>, [name, count, next]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (count, next): (_, bool) = (entries(count)?, next.decode()?);
    let Ok(partitions) = find(name)?.and_then(AnyPartitions::running) else {
        return Ok(atoms::not_running().to_term(env));
    };
    Ok(match Reservation::new(partitions, count, next) {
        Some(reservation) => ResourceArc::new(reservation).encode(env),
        None => {
            tell_of_full(env, partitions);
            atoms::full().to_term(env)
        }
    })
}

nif!(release / 1);
fn release<'a>(env: Env<'a>, [reservation]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let reservation: ResourceArc<Reservation> = reservation.decode()?;
    reservation.end(env);
    Ok(atoms::ok().to_term(env))
}

nif!(has_room / 2);
fn has_room<'a>(env: Env<'a>, [name, count]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let count = entries(count)?;
    let has_room = find(name)?.and_then(AnyPartitions::running).map(|partitions| {
        let has_room = || partitions.shared().bound.has_room(count);
        let has_room = has_room() || (partitions.take_room() && has_room());
        if !has_room {
            tell_of_full(env, partitions);
        }
        has_room
    });
    Ok(or_not_running(env, has_room))
}

nif!(set_waiting / 3);
fn set_waiting<'a>(env: Env<'a>, [run, count, queued]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, count, queued): (Run, u32, bool) = (run.decode()?, count.decode()?, queued.decode()?);
    Ok(done(
        env,
        run.enter(|partitions| {
            let shared = partitions.shared();
            shared.waiting_writers.store(count, Ordering::Relaxed);
            shared.bound.set_queued(queued);
            Ok(())
        }),
    ))
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
        let bound = &partitions.shared().bound;
        let (refused, dropped) = bound.refused();
        (bound.held(), refused, dropped, partitions.shared().waiting_writers.load(Ordering::Relaxed))
    });
    Ok(match counts {
        Ok(counts) => counts.encode(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

/// Sends the news that a write found no room, once until the buffer has room again.
fn tell_of_full(env: Env<'_>, partitions: AnyPartitions) {
    let shared = partitions.shared();
    // The room taken from the shards may be enough for another writer.
    shared.tell_of_room(env);
    if shared.bound.fill() {
        shared.tell(env, News::Full);
    }
}
