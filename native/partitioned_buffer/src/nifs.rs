//! The NIFs: each decodes its arguments, makes one call, and encodes the result. `PartitionedBuffer.Native` documents
//! them for their callers.
//!
//! Arguments are not trusted: a wrong one raises `badarg` and changes nothing. Only in a list that the caller says it has
//! checked, the elements before the wrong one may be written. A NIF that works on many entries stops after half a millisecond
//! and says how far it came.

// The NIFs' documentation is in `PartitionedBuffer.Native`.
#![allow(clippy::missing_docs_in_private_items)]

use partitioned_buffer_engine::partition::{DRAINING, TABLE_SHARDS, TURN};
use partitioned_buffer_engine::table::{Contents, Table};
use partitioned_buffer_engine::{reclaim, BatchState, Closed, GivenBack, Info, Seen, Store, Stored};
use rustler::codegen_runtime::inventory;
use rustler::{Encoder, Env, Error, NifResult, ResourceArc, SchedulerFlags, Term};

use crate::buffer::{Buffer, CounterPartitions, MapPartitions, NotRunning, Partitions, QueuePartitions, Route};
use crate::flush::{AnyFlushed, FlushResource};
use crate::lists::{check_list, write_list, Invalid, Shape, Target, ToCounter, ToMap, ToQueue, Written};
use crate::registry;
use crate::room::Reservation;
use crate::vm::memory;
use crate::vm::term::{
    amount, cell, charge, copy_to, elements, entry, parcel, parcel_with, sum_to, tuple, unsigned_to, version,
    Environment, Function, RawTerm,
};

/// `size` looks at all partitions, and a step of a list may write to each of them. With this many, both stay well below a
/// millisecond.
const MAX_PARTITIONS: u32 = 1 << 12;

mod atoms {
    //! The atoms of the results.
    rustler::atoms! {
        ok,
        error,
        nil,
        more,
        refused,
        processor,
        closed,
        not_running,
        long,
        invalid,
        improper,
        pair,
        versioned,
        amount,
        item,
        empty,
        rest,
        fresh,
        stale,
        exists,
        all,
        infinity,
        leased,
        given_up,
        buried,
        full,
        bounded,
        next,
        room
    }
}

/// Registers a function with the VM, as a NIF of the same name.
macro_rules! nif {
    ($function:ident / $arity:literal) => {
        nif!($function / $arity, Normal);
    };
    ($function:ident / $arity:literal, $scheduler:ident) => {
        const _: () = {
            struct Nif;
            impl Function<$arity> for Nif {
                const NAME: &'static str = concat!(stringify!($function), "\0");

                #[cfg(feature = "timing")]
                fn timing() -> &'static crate::vm::timing::Timing {
                    static TIMING: crate::vm::timing::Timing = crate::vm::timing::Timing::new(stringify!($function));
                    &TIMING
                }

                #[inline]
                fn call<'a>(env: Env<'a>, arguments: [Term<'a>; $arity]) -> NifResult<Term<'a>> {
                    $function(env, arguments)
                }
            }
            inventory::submit!(entry::<$arity, Nif>(SchedulerFlags::$scheduler));
        };
    };
}

nif!(open / 5, DirtyCpu);
fn open<'a>(env: Env<'a>, arguments: [Term<'a>; 5]) -> NifResult<Term<'a>> {
    let [name, kind, partition_count, has_outcomes, max_size] = arguments;
    let (kind, partition_count): (rustler::Atom, u32) = (kind.decode()?, partition_count.decode()?);
    let (has_outcomes, max_size) = (has_outcomes.decode()?, limit(max_size)?);
    if !name.is_atom() || partition_count > MAX_PARTITIONS {
        return Err(Error::BadArg);
    }
    let buffer = registry::find_or_add(RawTerm::from(name).word());
    let of_kind = |(name, _): &(rustler::Atom, _)| *name == kind;
    let (_, partitions) = buffer.kinds().into_iter().find(of_kind).ok_or(Error::BadArg)?;
    if partitions.open(buffer, env, partition_count, has_outcomes, max_size) {
        buffer.kinds().into_iter().filter(|kind| !of_kind(kind)).for_each(|(_, other)| other.end());
    }
    Ok(buffer.encode(env))
}

nif!(reopen / 2);
fn reopen<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let partition = partition.decode()?;
    Ok(done(env, find(name)?.and_then(Buffer::running).and_then(|partitions| partitions.reopen(partition))))
}

nif!(close / 2);
fn close<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let partition = partition.decode()?;
    Ok(done(env, find(name)?.and_then(Buffer::running).and_then(|partitions| partitions.close(partition))))
}

nif!(drain / 2);
fn drain<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let partition = partition.decode()?;
    Ok(match find(name)?.and_then(Buffer::running).and_then(|partitions| partitions.drain(partition)) {
        Ok(Err(Closed)) => atoms::closed().to_term(env),
        Ok(Ok(())) => atoms::ok().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(partition_count / 1);
fn partition_count<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let count = find(name)?.and_then(Buffer::running).and_then(|partitions| partitions.count());
    Ok(count_or_not_running(env, count.map(u64::from)))
}

nif!(status / 1);
fn status<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let status = find(name)?.ok().and_then(|buffer| {
        buffer.kinds().into_iter().find_map(|(kind, partitions)| Some((kind, partitions.opened()?)))
    });
    Ok(match status {
        Some(status) => status.encode(env),
        None => atoms::not_running().to_term(env),
    })
}

nif!(size / 1);
fn size<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let size = find(name)?.and_then(Buffer::running).and_then(|partitions| partitions.size());
    Ok(count_or_not_running(env, size.map(|size| size as u64)))
}

nif!(held / 2, DirtyCpu);
fn held<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let partition = partition.decode()?;
    let held = find(name)?.and_then(Buffer::running).and_then(|partitions| partitions.held(partition));
    Ok(count_or_not_running(env, held.map(|held| held as u64)))
}

nif!(info / 2);
fn info<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let partition = partition.decode()?;
    let Ok(info) = find(name)?.and_then(Buffer::running).and_then(|partitions| partitions.info(partition)) else {
        return Ok(atoms::not_running().to_term(env));
    };
    let Info { waiting, in_flight, retried, bytes, since, writes, ended, is_closed } = info;
    let age = since.map(|since| since.elapsed().as_millis() as u64);
    let writes = (writes.written, writes.coalesced, writes.stale, writes.deleted);
    let ended = (ended.superseded, ended.processed, ended.failed, ended.given_up);
    Ok(((waiting, in_flight, retried, bytes), age, writes, ended, is_closed).encode(env))
}

nif!(failed / 3);
fn failed<'a>(env: Env<'a>, [name, partition, count]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (partition, count): (u32, u32) = (partition.decode()?, count.decode()?);
    let partitions = find(name)?.and_then(Buffer::running);
    Ok(done(env, partitions.and_then(|partitions| partitions.count_failed(partition, count as usize))))
}

nif!(set_threshold / 3);
fn set_threshold<'a>(env: Env<'a>, [name, partition, threshold]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (partition, threshold) = (partition.decode()?, limit(threshold)?);
    let partitions = find(name)?.and_then(Buffer::running);
    Ok(match partitions.and_then(|partitions| partitions.set_threshold(partition, threshold)) {
        Ok(is_enough) => is_enough.encode(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(set_max_size / 2, DirtyCpu);
fn set_max_size<'a>(env: Env<'a>, [name, max_size]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let max_size = limit(max_size)?;
    Ok(done(env, find(name)?.and_then(Buffer::running).and_then(|partitions| partitions.change_bound(max_size))))
}

nif!(watch / 2);
fn watch<'a>(env: Env<'a>, [name, what]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let partition = if what.is_atom() {
        let room: rustler::Atom = what.decode()?;
        if room != atoms::room() {
            return Err(Error::BadArg);
        }
        None
    } else {
        Some(what.decode()?).filter(|&partition: &u32| partition < MAX_PARTITIONS)
    };
    if partition.is_none() && !what.is_atom() {
        return Err(Error::BadArg);
    }
    Ok(done(env, find(name)?.and_then(Buffer::running).map(|partitions| partitions.watch(env.pid(), partition))))
}

nif!(reserve / 3);
fn reserve<'a>(env: Env<'a>, [name, count, next]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (count, next): (u64, bool) = (count.decode()?, next.decode()?);
    let Ok(partitions) = find(name)?.and_then(Buffer::running) else {
        return Ok(atoms::not_running().to_term(env));
    };
    Ok(match Reservation::new(partitions, count as usize, next) {
        Some(reservation) => ResourceArc::new(reservation).encode(env),
        None => {
            partitions.tell_of_full(env);
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
    let count: u64 = count.decode()?;
    Ok(match find(name)?.and_then(Buffer::running) {
        Ok(partitions) => {
            let has_room = || partitions.bound().has_room(count as usize);
            let has_room = has_room() || (partitions.take_room() && has_room());
            if !has_room {
                partitions.tell_of_full(env);
            }
            has_room.encode(env)
        }
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(set_queued / 2);
fn set_queued<'a>(env: Env<'a>, [name, queued]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let queued = queued.decode()?;
    Ok(done(env, find(name)?.and_then(Buffer::running).map(|partitions| partitions.bound().set_queued(queued))))
}

nif!(clear_full / 1);
fn clear_full<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    Ok(match find(name)?.and_then(Buffer::running) {
        Ok(partitions) => partitions.bound().clear().encode(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(count_refused / 3);
fn count_refused<'a>(env: Env<'a>, [name, refused, dropped]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (refused, dropped): (u32, u32) = (refused.decode()?, dropped.decode()?);
    let partitions = find(name)?.and_then(Buffer::running);
    Ok(done(env, partitions.map(|partitions| partitions.bound().count_refused(refused as usize, dropped as usize))))
}

nif!(bound / 1);
fn bound<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    Ok(match find(name)?.and_then(Buffer::running) {
        Ok(partitions) => {
            let (refused, dropped) = partitions.bound().refused();
            (partitions.bound().held(), refused, dropped).encode(env)
        }
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(put / 4);
fn put<'a>(env: Env<'a>, [name, to, key, value]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, key, value) = (route(to)?, RawTerm::from(key), RawTerm::from(value));
    let result = find_map(name)?.and_then(|map| {
        let hash = map.hash(key);
        let (key_parcel, value) = (parcel(env, key), parcel(env, value));
        charge(env, value.heap());
        let stored =
            map.with_partition(route, key, |partition, count| partition.put(count, hash, &key_parcel, &value))?;
        Ok(told(map, env, route, key, stored))
    });
    Ok(stored(env, result, atoms::ok()))
}

nif!(put_newer / 5);
fn put_newer<'a>(env: Env<'a>, [name, to, key, value, number]: [Term<'a>; 5]) -> NifResult<Term<'a>> {
    let (route, key, value) = (route(to)?, RawTerm::from(key), RawTerm::from(value));
    let version = version(number).ok_or(Error::BadArg)?;
    let result = find_map(name)?.and_then(|map| {
        let hash = map.hash(key);
        let (key_parcel, (value, version)) = (parcel(env, key), parcel_with(env, value, version));
        charge(env, value.heap());
        let stored = map.with_partition(route, key, |partition, count| {
            partition.put_newer(count, hash, &key_parcel, &value, version)
        })?;
        Ok(told(map, env, route, key, stored))
    });
    Ok(stored(env, result, atoms::stale()))
}

nif!(put_new / 4);
fn put_new<'a>(env: Env<'a>, [name, to, key, value]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, key, value) = (route(to)?, RawTerm::from(key), RawTerm::from(value));
    let result = find_map(name)?.and_then(|map| {
        let hash = map.hash(key);
        let (key_parcel, value) = (parcel(env, key), parcel(env, value));
        charge(env, value.heap());
        let stored =
            map.with_partition(route, key, |partition, count| partition.put_new(count, hash, &key_parcel, &value))?;
        Ok(told(map, env, route, key, stored))
    });
    Ok(stored(env, result, atoms::exists()))
}

nif!(get / 3);
fn get<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, RawTerm::from(key));
    let copy = |value, heap: Option<&Environment>| {
        charge(env, heap);
        copy_to(env, value)
    };
    let found = find_map(name)?.and_then(|map| {
        let hash = map.hash(key);
        map.with_partition(route, key, |partition, count| partition.get(count, hash, key, copy))
    });
    Ok(match found {
        Ok(Some(value)) => tuple(env, [atoms::ok().to_term(env), value]),
        Ok(None) => atoms::error().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(delete / 3);
fn delete<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    delete_from(env, find_map(name)?, to, key)
}

nif!(add / 4);
fn add<'a>(env: Env<'a>, [name, to, key, number]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, RawTerm::from(key));
    let Some(amount) = amount(number) else { return Ok(atoms::invalid().to_term(env)) };
    let result = find_counter(name)?.and_then(|counter| {
        let hash = counter.hash(key);
        let parcel = parcel(env, key);
        let stored =
            counter.with_partition(route, key, |partition, count| partition.add(count, hash, &parcel, amount))?;
        Ok(told(counter, env, route, key, stored))
    });
    Ok(stored(env, result, atoms::ok()))
}

nif!(add_all / 4);
fn add_all<'a>(env: Env<'a>, [name, to, entries, checked]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, counter) = (route(to)?, find_counter(name)?);
    write_all(env, counter.map(|counter| ToCounter { counter, route }), entries, checked)
}

nif!(sum / 3);
fn sum<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, RawTerm::from(key));
    let found = find_counter(name)?.and_then(|counter| {
        let hash = counter.hash(key);
        counter.with_partition(route, key, |partition, count| partition.sum(count, hash, key))
    });
    Ok(match found {
        Ok(Some(sum)) => tuple(env, [atoms::ok().to_term(env), sum_to(env, sum)]),
        Ok(None) => atoms::error().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(delete_sum / 3);
fn delete_sum<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    delete_from(env, find_counter(name)?, to, key)
}

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
    let (route, map) = (route(to)?, find_map(name)?);
    write_all(env, map.map(|map| ToMap { map, route, shape: Shape::Pair }), entries, checked)
}

nif!(put_all_newer / 4);
fn put_all_newer<'a>(env: Env<'a>, [name, to, entries, checked]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, map) = (route(to)?, find_map(name)?);
    write_all(env, map.map(|map| ToMap { map, route, shape: Shape::Versioned }), entries, checked)
}

nif!(push / 3);
fn push<'a>(env: Env<'a>, [name, to, item]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (route, item) = (route(to)?, RawTerm::from(item));
    let result = find_queue(name)?.and_then(|queue| {
        let parcel = parcel(env, item);
        charge(env, parcel.heap());
        let stored = queue.with_partition(route, item, |partition, count| partition.push(count, &parcel))?;
        Ok(told(queue, env, route, item, stored))
    });
    Ok(stored(env, result, atoms::ok()))
}

nif!(push_all / 4);
fn push_all<'a>(env: Env<'a>, [name, to, items, checked]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, queue) = (route(to)?, find_queue(name)?);
    write_all(env, queue.map(|queue| ToQueue { queue, route }), items, checked)
}

nif!(flush / 2);
fn flush<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let partition = partition.decode()?;
    Ok(match find(name)?.and_then(Buffer::running).and_then(|partitions| partitions.flush(partition)) {
        Ok(AnyFlushed::Rest(flush)) => (atoms::rest(), ResourceArc::new(flush)).encode(env),
        Ok(AnyFlushed::Fresh(flush)) => (atoms::fresh(), ResourceArc::new(flush)).encode(env),
        Ok(AnyFlushed::Nothing) => atoms::empty().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(in_flight / 2);
fn in_flight<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let partition = partition.decode()?;
    Ok(match find(name)?.and_then(Buffer::running).and_then(|partitions| partitions.in_flight(partition)) {
        Ok(Some(flush)) => ResourceArc::new(flush).encode(env),
        Ok(None) => atoms::empty().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(seen / 1);
fn seen<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let Seen { calls, called_with, left, called_at } = flush.0.seen();
    Ok((calls, called_with, left, called_at).encode(env))
}

nif!(read / 4);
fn read<'a>(env: Env<'a>, [flush, length, size, resumed]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let size: usize = size.decode()?;
    if size == 0 {
        return Err(Error::BadArg);
    }
    let (records, length, is_complete) = flush.0.read(env, length.decode()?, size, resumed.decode()?);
    Ok(tuple(env, [records, unsigned_to(env, length as u64), is_complete.encode(env)]))
}

nif!(claim / 1);
fn claim<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    Ok(flush.0.claim(env).encode(env))
}

nif!(lease / 1);
fn lease<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    Ok(flush.0.lease(env).encode(env))
}

nif!(succeed / 1);
fn succeed<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    flush.0.succeed(env);
    Ok(atoms::ok().to_term(env))
}

nif!(give_back / 4);
fn give_back<'a>(env: Env<'a>, [flush, failed, counted, max_attempts]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let failed = if failed.is_atom() { all(failed)? } else { Some(numbers(failed)?) };
    let max_attempts = if max_attempts.is_atom() { infinity(max_attempts)? } else { Some(max_attempts.decode()?) };
    let given_back = flush.0.give_back(env, failed.as_deref(), counted.decode()?, max_attempts);
    let GivenBack { retried, superseded, given_up } = given_back;
    Ok((retried, superseded, given_up).encode(env))
}

nif!(give_back_many / 4, DirtyCpu);
fn give_back_many<'a>(env: Env<'a>, arguments: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    give_back(env, arguments)
}

nif!(inherit / 1);
fn inherit<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    Ok(match flush.0.inherit(env) {
        Some((BatchState::Buried, length)) => (atoms::buried(), length).encode(env),
        Some((BatchState::GivenUp, length)) => (atoms::given_up(), length).encode(env),
        Some((BatchState::Leased | BatchState::Read, length)) => (atoms::leased(), length).encode(env),
        None => atoms::nil().to_term(env),
    })
}

nif!(batch / 1, DirtyCpu);
fn batch<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    Ok(flush.0.batch(env))
}

nif!(attempts / 1);
fn attempts<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    Ok(unsigned_to(env, flush.0.attempts().into()))
}

nif!(bury / 1);
fn bury<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    flush.0.bury();
    Ok(atoms::ok().to_term(env))
}

nif!(memory / 0);
fn memory<'a>(env: Env<'a>, []: [Term<'a>; 0]) -> NifResult<Term<'a>> {
    Ok(memory::allocated().encode(env))
}

nif!(await_reclaimed / 0, DirtyIo);
fn await_reclaimed<'a>(env: Env<'a>, []: [Term<'a>; 0]) -> NifResult<Term<'a>> {
    reclaim::settle();
    Ok(atoms::ok().to_term(env))
}

nif!(longest_calls / 0);
fn longest_calls<'a>(env: Env<'a>, []: [Term<'a>; 0]) -> NifResult<Term<'a>> {
    #[cfg(feature = "timing")]
    let calls = crate::vm::timing::all();
    #[cfg(not(feature = "timing"))]
    let calls: [&str; 0] = [];
    Ok(calls.encode(env))
}

/// The buffer of this name, running or not. A name that is not an atom is an error.
#[inline]
fn find(name: Term<'_>) -> NifResult<Result<&'static Buffer, NotRunning>> {
    match registry::find(RawTerm::from(name).word()) {
        Some(buffer) => Ok(Ok(buffer)),
        None if name.is_atom() => Ok(Err(NotRunning)),
        None => Err(Error::BadArg),
    }
}

/// The map of this name, running or not.
#[inline]
fn find_map(name: Term<'_>) -> NifResult<Result<&'static MapPartitions, NotRunning>> {
    Ok(find(name)?.map(|buffer| &buffer.map))
}

/// The counter of this name, running or not.
#[inline]
fn find_counter(name: Term<'_>) -> NifResult<Result<&'static CounterPartitions, NotRunning>> {
    Ok(find(name)?.map(|buffer| &buffer.counter))
}

/// The queue of this name, running or not.
#[inline]
fn find_queue(name: Term<'_>) -> NifResult<Result<&'static QueuePartitions, NotRunning>> {
    Ok(find(name)?.map(|buffer| &buffer.queue))
}

/// The route of a call. Most have none.
#[inline]
fn route(term: Term<'_>) -> NifResult<Route> {
    if term.as_c_arg() == atoms::nil().as_c_arg() {
        return Ok(Route::BY_TERM);
    }
    chosen_route(term)
}

/// A route that the caller has chosen; `{:processor, to}` marks the write of a processor, `{:next, to}` that of a process
/// that has waited for room.
#[cold]
fn chosen_route(term: Term<'_>) -> NifResult<Route> {
    match elements(term) {
        Some([writer, to]) if writer.as_c_arg() == atoms::processor().as_c_arg() => {
            Ok(partition_or_nil(to)?.marked_with(DRAINING))
        }
        Some([writer, to]) if writer.as_c_arg() == atoms::next().as_c_arg() => {
            Ok(partition_or_nil(to)?.marked_with(TURN))
        }
        _ => partition_or_nil(term),
    }
}

/// `nil`, or a partition and the partition count that it was chosen by.
fn partition_or_nil(term: Term<'_>) -> NifResult<Route> {
    if term.as_c_arg() == atoms::nil().as_c_arg() {
        return Ok(Route::BY_TERM);
    }
    let (partition, partition_count) = term.decode()?;
    Ok(Route::new(partition, partition_count))
}

/// `:ok` or `:not_running`.
#[inline]
fn done(env: Env<'_>, result: Result<(), NotRunning>) -> Term<'_> {
    match result {
        Ok(()) => atoms::ok().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    }
}

/// `:ok`, `:not_running`, or this atom if the write was refused.
#[inline]
fn stored(env: Env<'_>, result: Result<Stored, NotRunning>, refused: rustler::Atom) -> Term<'_> {
    match result {
        Ok(Stored::Stored | Stored::Enough) => atoms::ok().to_term(env),
        Ok(Stored::Refused) => refused.to_term(env),
        Ok(Stored::Full) => atoms::full().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    }
}

/// The result of a write, of which the partition was told if enough entries wait now.
#[inline]
fn told<S: Store, const SHARDS: usize>(
    partitions: &Partitions<S, SHARDS>,
    env: Env<'_>,
    route: Route,
    term: RawTerm,
    stored: Stored,
) -> Stored {
    if stored == Stored::Enough {
        partitions.tell_enough(env, route, term);
    }
    stored
}

/// Deletes the entry of a key.
fn delete_from<'a, C: Contents<Environment>>(
    env: Env<'a>,
    partitions: Result<&'static Partitions<Table<Environment, C>, TABLE_SHARDS>, NotRunning>,
    to: Term<'a>,
    key: Term<'a>,
) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, RawTerm::from(key));
    let result = partitions.and_then(|partitions| {
        let hash = partitions.hash(key);
        let result = partitions.with_partition(route, key, |partition, count| partition.delete(count, hash, key));
        partitions.tell_of_room(env);
        result
    });
    Ok(done(env, result))
}

/// The numbers of a list.
fn numbers(list: Term<'_>) -> NifResult<Vec<usize>> {
    let (mut numbers, mut rest) = (Vec::new(), list);
    while let Some((number, tail)) = cell(rest) {
        numbers.push(number.decode()?);
        rest = tail;
    }
    if rest.is_empty_list() {
        Ok(numbers)
    } else {
        Err(Error::BadArg)
    }
}

/// `None` for the atom `:all`.
fn all<T>(term: Term<'_>) -> NifResult<Option<T>> {
    let atom: rustler::Atom = term.decode()?;
    if atom == atoms::all() {
        Ok(None)
    } else {
        Err(Error::BadArg)
    }
}

/// `None` for the atom `:infinity`.
fn infinity<T>(term: Term<'_>) -> NifResult<Option<T>> {
    let atom: rustler::Atom = term.decode()?;
    if atom == atoms::infinity() {
        Ok(None)
    } else {
        Err(Error::BadArg)
    }
}

/// `None` for the atom `:infinity`, else a count that is not 0.
fn limit(term: Term<'_>) -> NifResult<Option<usize>> {
    if term.is_atom() {
        return infinity(term);
    }
    let count: u32 = term.decode()?;
    if count == 0 {
        return Err(Error::BadArg);
    }
    Ok(Some(count as usize))
}

/// The count or `:not_running`.
fn count_or_not_running(env: Env<'_>, result: Result<u64, NotRunning>) -> Term<'_> {
    match result {
        Ok(count) => unsigned_to(env, count),
        Err(NotRunning) => atoms::not_running().to_term(env),
    }
}

/// Writes a list, and says how far it came.
fn write_all<'a>(
    env: Env<'a>,
    target: Result<impl Target, NotRunning>,
    list: Term<'a>,
    checked: Term<'a>,
) -> NifResult<Term<'a>> {
    let reservation: Option<ResourceArc<Reservation>> = checked.decode().ok();
    let checked = if reservation.is_some() { true } else { checked.decode()? };
    // An unchecked list may be invalid, which the caller must hear first.
    let written = match target {
        Ok(target) => write_list(env, &target, list, checked, reservation.as_deref())?,
        Err(NotRunning) if checked => Err(NotRunning),
        Err(NotRunning) => Ok(Written::Long),
    };
    Ok(match written {
        Ok(Written::All) => atoms::ok().to_term(env),
        Ok(Written::More(rest)) => tuple(env, [atoms::more().to_term(env), rest]),
        Ok(Written::Refused(rest)) => tuple(env, [atoms::refused().to_term(env), rest]),
        Ok(Written::Long) => atoms::long().to_term(env),
        Ok(Written::Bounded) => atoms::bounded().to_term(env),
        Ok(Written::Invalid(invalid)) => invalid_to(env, invalid),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

/// `{:invalid, element}` or `{:improper, tail}`.
fn invalid_to<'a>(env: Env<'a>, invalid: Invalid<'a>) -> Term<'a> {
    match invalid {
        Invalid::Element(element) => tuple(env, [atoms::invalid().to_term(env), element]),
        Invalid::Tail(tail) => tuple(env, [atoms::improper().to_term(env), tail]),
    }
}
