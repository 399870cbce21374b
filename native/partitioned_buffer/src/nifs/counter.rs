//! NIFs of counters.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use rustler::{Env, NifResult, Term};

use super::map::{delete_from, missing};
use super::{atoms, find, nif, route, stored, told};
use crate::buffer::CounterPartitions;
use crate::pace::KeyClock;
use crate::run::NotRunning;
use crate::vm::argument::Argument;
use crate::vm::caller::{amount, sum_to, tuple};
use crate::vm::entry::Function;
use crate::vm::large::parcel;

nif!(add / 4);
fn add<'a>(env: Env<'a>, [name, to, key, number]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, Argument::from(key));
    let Some(amount) = amount(number) else { return Ok(atoms::invalid().to_term(env)) };
    let clock = KeyClock::start(env, key);
    let result = find_counter(name)?.and_then(|counter| {
        let hash = counter.hash(key.term);
        let parcel = parcel(env, key);
        let stored = counter
            .with_partition(route, key.term, |partition, access| partition.add(access, hash, &parcel, amount))?;
        Ok(told(counter, env, route, key.term, stored))
    });
    clock.charge(env);
    Ok(stored(env, result, atoms::ok()))
}

nif!(add_counted / 5);
fn add_counted<'a>(env: Env<'a>, [name, to, key, number, count]: [Term<'a>; 5]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, Argument::from(key));
    let (amount, count) = (amount(number), amount(count).and_then(|count| u64::try_from(count).ok()));
    let (Some(amount), Some(count)) = (amount, count) else { return Ok(atoms::invalid().to_term(env)) };
    let clock = KeyClock::start(env, key);
    let result = find_counter(name)?.and_then(|counter| {
        let hash = counter.hash(key.term);
        let parcel = parcel(env, key);
        let stored = counter.with_partition(route, key.term, |partition, access| {
            partition.add_counted(access, hash, &parcel, amount, count)
        })?;
        Ok(told(counter, env, route, key.term, stored))
    });
    clock.charge(env);
    Ok(stored(env, result, atoms::ok()))
}

nif!(sum / 3);
fn sum<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, Argument::from(key));
    let clock = KeyClock::start(env, key);
    let result = find_counter(name)?.and_then(|counter| {
        let hash = counter.hash(key.term);
        let sum = counter.with_partition(route, key.term, |partition, access| partition.sum(access, hash, key.term))?;
        Ok((sum, counter.shared.collects()))
    });
    clock.charge(env);
    Ok(match result {
        Ok((Some(sum), is_elsewhere)) => {
            let found = if is_elsewhere { atoms::elsewhere() } else { atoms::ok() };
            tuple(env, [found.to_term(env), sum_to(env, sum)])
        }
        Ok((None, is_elsewhere)) => missing(env, is_elsewhere),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(delete_sum / 3);
fn delete_sum<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    delete_from(env, find_counter(name)?, to, key)
}

/// The counter of this name, running or not.
#[inline]
pub(super) fn find_counter(name: Term<'_>) -> NifResult<Result<&'static CounterPartitions, NotRunning>> {
    Ok(find(name)?.map(|buffer| &buffer.counter))
}
