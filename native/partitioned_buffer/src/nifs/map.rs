//! NIFs of maps.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use partitioned_buffer_engine::partition::TABLE_SHARDS;
use partitioned_buffer_engine::table::{Contents, Table};
use partitioned_buffer_engine::{MapPartition, Parcel, Version};
use rustler::{Env, Error, NifResult, Term};

use super::{atoms, done, find, nif, route, stored, told};
use crate::buffer::{MapPartitions, Partitions};
use crate::pace::KeyClock;
use crate::run::NotRunning;
use crate::vm::argument::Argument;
use crate::vm::caller::{resident_to, tuple, version, version_to};
use crate::vm::entry::Function;
use crate::vm::environment::Environment;
use crate::vm::large::{charge, parcel, parcel_with};
use crate::vm::term::RawTerm;

nif!(put / 4);
fn put<'a>(env: Env<'a>, [name, to, key, value]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, key, value) = (route(to)?, Argument::from(key), Argument::from(value));
    let clock = KeyClock::start(env, key);
    let result = find_map(name)?.and_then(|map| {
        let hash = map.hash(key.term);
        let (key_parcel, value) = (parcel(env, key), parcel(env, value));
        charge(env, value.heap(), clock.runs());
        let stored =
            map.with_partition(route, key.term, |partition, access| partition.put(access, hash, &key_parcel, &value))?;
        Ok(told(map, env, route, key.term, stored))
    });
    clock.charge(env);
    Ok(stored(env, result, atoms::ok()))
}

nif!(put_newer / 5);
fn put_newer<'a>(env: Env<'a>, [name, to, key, value, number]: [Term<'a>; 5]) -> NifResult<Term<'a>> {
    let (route, key, value) = (route(to)?, Argument::from(key), Argument::from(value));
    let version = version(number).ok_or(Error::BadArg)?;
    let clock = KeyClock::start(env, key);
    let result = find_map(name)?.and_then(|map| {
        let hash = map.hash(key.term);
        let (key_parcel, (value, version)) = (parcel(env, key), parcel_with(env, value, version));
        charge(env, value.heap(), clock.runs());
        let stored = map.with_partition(route, key.term, |partition, access| {
            partition.put_newer(access, hash, &key_parcel, &value, version)
        })?;
        Ok(told(map, env, route, key.term, stored))
    });
    clock.charge(env);
    Ok(stored(env, result, atoms::stale()))
}

nif!(put_new / 4);
fn put_new<'a>(env: Env<'a>, [name, to, key, value]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, key, value) = (route(to)?, Argument::from(key), Argument::from(value));
    let map = find_map(name)?;
    if map.is_ok_and(|map| map.shared.collects()) {
        return Ok(atoms::elsewhere().to_term(env));
    }
    let clock = KeyClock::start(env, key);
    let result = map.and_then(|map| {
        let hash = map.hash(key.term);
        let (key_parcel, value) = (parcel(env, key), parcel(env, value));
        charge(env, value.heap(), clock.runs());
        let stored = map.with_partition(route, key.term, |partition, access| {
            partition.put_new(access, hash, &key_parcel, &value)
        })?;
        Ok(told(map, env, route, key.term, stored))
    });
    clock.charge(env);
    Ok(stored(env, result, atoms::exists()))
}

nif!(get / 3);
fn get<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, Argument::from(key));
    let clock = KeyClock::start(env, key);
    let result = find_map(name)?.and_then(|map| {
        let copy = |value: &Parcel<Environment>| {
            charge(env, value.heap(), clock.runs());
            resident_to(env, value.resident())
        };
        let hash = map.hash(key.term);
        let found =
            map.with_partition(route, key.term, |partition, access| partition.get(access, hash, key.term, copy))?;
        Ok(found.ok_or_else(|| map.shared.collects()))
    });
    clock.charge(env);
    Ok(match result {
        Ok(Ok(value)) => tuple(env, [atoms::ok().to_term(env), value]),
        Ok(Err(is_elsewhere)) => missing(env, is_elsewhere),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(get_versioned / 3);
fn get_versioned<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, Argument::from(key));
    let clock = KeyClock::start(env, key);
    let result = find_map(name)?.and_then(|map| {
        let copy = |value: &Parcel<Environment>, version: Version<RawTerm>| {
            charge(env, value.heap(), clock.runs());
            [resident_to(env, value.resident()), version_to(env, version)]
        };
        let hash = map.hash(key.term);
        let get = |partition: &MapPartition<_>, access| partition.get_versioned(access, hash, key.term, copy);
        let found = map.with_partition(route, key.term, get)?;
        Ok(found.ok_or_else(|| map.shared.collects()))
    });
    clock.charge(env);
    Ok(match result {
        Ok(Ok([value, version])) => tuple(env, [atoms::ok().to_term(env), value, version]),
        Ok(Err(is_elsewhere)) => missing(env, is_elsewhere),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(delete / 3);
fn delete<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    delete_from(env, find_map(name)?, to, key)
}

/// The result for a key without an entry here.
#[inline]
pub(super) fn missing(env: Env<'_>, is_elsewhere: bool) -> Term<'_> {
    if is_elsewhere { atoms::elsewhere() } else { atoms::error() }.to_term(env)
}

/// The map of this name, running or not.
#[inline]
pub(super) fn find_map(name: Term<'_>) -> NifResult<Result<&'static MapPartitions, NotRunning>> {
    Ok(find(name)?.map(|buffer| &buffer.map))
}

/// Deletes the entry of a key.
pub(super) fn delete_from<'a, C: Contents<Environment>>(
    env: Env<'a>,
    partitions: Result<&'static Partitions<Table<Environment, C>, TABLE_SHARDS>, NotRunning>,
    to: Term<'a>,
    key: Term<'a>,
) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, Argument::from(key));
    if partitions.is_ok_and(|partitions| partitions.shared.collects()) {
        return Ok(atoms::elsewhere().to_term(env));
    }
    let clock = KeyClock::start(env, key);
    let result = partitions.and_then(|partitions| {
        let hash = partitions.hash(key.term);
        let result =
            partitions.with_partition(route, key.term, |partition, access| partition.delete(access, hash, key.term));
        partitions.shared.tell_of_room(env);
        result
    });
    clock.charge(env);
    Ok(done(env, result))
}
