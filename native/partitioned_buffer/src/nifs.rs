//! The NIFs: each decodes its arguments, makes one call, and encodes the result. `PartitionedBuffer.Native` documents
//! them for their callers.
//!
//! Arguments are not trusted: what does not fit raises `badarg` and has changed nothing. Those that work on many
//! entries stop after [`TIME_SLICE`] and say how far they came.

// The NIFs' documentation is in `PartitionedBuffer.Native`.
#![allow(clippy::missing_docs_in_private_items)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use partitioned_buffer_engine::entries::Record;
use partitioned_buffer_engine::partition::{Write, SHARDS};
use partitioned_buffer_engine::{Closed, HandedOver};
use rustler::codegen_runtime::inventory;
use rustler::{Encoder, Env, Error, NifResult, Resource, ResourceArc, SchedulerFlags, Term};

use crate::buffer::{Buffer, HandOver, NotRunning, Partition, Route};
use crate::registry;
use crate::term::{
    cell, copy_to, elements, entry, tuple, unsigned_to, version, version_to, Function, ListBuilder, RawTerm,
};

/// After so long a NIF that could go on returns: half of the millisecond that a NIF may take.
const TIME_SLICE: Duration = Duration::from_micros(500);

/// Writes that are done with the locks of their partitions taken once, and between two looks at the clock.
const WRITES_AT_ONCE: usize = 128;

/// The same for the first writes of a call, of which it is not known how long one takes.
const FIRST_WRITES: usize = 16;

/// Entries, or places of deleted ones, that are read between two looks at the clock.
const READS_AT_ONCE: usize = 32;

/// `size` looks at all partitions, and a slice of a list may have writes for each: with so many it stays well below a
/// millisecond.
const MAX_PARTITIONS: u32 = 1 << 12;

mod atoms {
    //! The atoms of the results.
    rustler::atoms! {
        ok,
        error,
        nil,
        more,
        not_running,
        empty,
        rest,
        fresh
    }
}

/// What a hand-over is to the process that works on it.
struct Batch {
    /// The buffer.
    buffer: &'static Buffer,
    /// The number of the partition that gave it.
    partition: u32,
    /// The entries.
    hand_over: Arc<HandOver>,
}

#[rustler::resource_impl]
impl Resource for Batch {}

/// Makes a function known to the VM as a NIF of its name.
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
                fn timing() -> &'static crate::timing::Timing {
                    static TIMING: crate::timing::Timing = crate::timing::Timing::new(stringify!($function));
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

nif!(open / 2, DirtyCpu);
fn open<'a>(env: Env<'a>, [name, partitions]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let partitions: u32 = partitions.decode()?;
    if !name.is_atom() || partitions > MAX_PARTITIONS {
        return Err(Error::BadArg);
    }
    let buffer = registry::find_or_add(RawTerm::from(name).word());
    Buffer::open(buffer, env, partitions);
    Ok(buffer.encode(env))
}

nif!(reopen / 2);
fn reopen<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let number = partition.decode()?;
    Ok(done(env, find(name).and_then(|buffer| buffer.reopen(number))))
}

nif!(close / 2);
fn close<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let number = partition.decode()?;
    Ok(done(env, find(name).and_then(|buffer| buffer.numbered(number)).map(Partition::close)))
}

nif!(partitions / 1);
fn partitions<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    Ok(number(env, find(name).and_then(|buffer| buffer.partitions().map(u64::from))))
}

nif!(size / 1);
fn size<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    Ok(number(env, find(name).and_then(|buffer| buffer.size().map(|size| size as u64))))
}

nif!(put / 4);
fn put<'a>(env: Env<'a>, [name, to, key, value]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (route, key, value) = (route(to)?, RawTerm::from(key), RawTerm::from(value));
    let result = find(name).and_then(|buffer| {
        let hash = buffer.hash(key);
        buffer.with_partition(route, key, |partition, among| partition.put(among, hash, key, value))
    });
    Ok(done(env, result))
}

nif!(put_newer / 5);
fn put_newer<'a>(env: Env<'a>, [name, to, key, value, number]: [Term<'a>; 5]) -> NifResult<Term<'a>> {
    let (route, key, value) = (route(to)?, RawTerm::from(key), RawTerm::from(value));
    let version = version(number).ok_or(Error::BadArg)?;
    let result = find(name).and_then(|buffer| {
        let hash = buffer.hash(key);
        buffer.with_partition(route, key, |partition, among| partition.put_newer(among, hash, key, value, version))
    });
    Ok(done(env, result))
}

nif!(get / 3);
fn get<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, RawTerm::from(key));
    let found = find(name).and_then(|buffer| {
        let hash = buffer.hash(key);
        buffer
            .with_partition(route, key, |partition, among| partition.get(among, hash, key, |value| copy_to(env, value)))
    });
    Ok(match found {
        Ok(Some(value)) => tuple(env, [atoms::ok().to_term(env), value]),
        Ok(None) => atoms::error().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(delete / 3);
fn delete<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, RawTerm::from(key));
    let result = find(name).and_then(|buffer| {
        let hash = buffer.hash(key);
        buffer.with_partition(route, key, |partition, among| partition.delete(among, hash, key))
    });
    Ok(done(env, result))
}

nif!(put_all / 3);
fn put_all<'a>(env: Env<'a>, [name, to, entries]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    write_all(env, name, to, entries, |entry| {
        let [key, value] = elements(entry)?;
        Some(Write::Put(key.into(), value.into()))
    })
}

nif!(put_all_newer / 3);
fn put_all_newer<'a>(env: Env<'a>, [name, to, entries]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    write_all(env, name, to, entries, |entry| {
        let [key, value, number] = elements(entry)?;
        Some(Write::PutNewer(key.into(), value.into(), version(number)?))
    })
}

nif!(hand_over / 2);
fn hand_over<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let number = partition.decode()?;
    let handed_over = find(name).and_then(|buffer| Ok((buffer, buffer.numbered(number)?.hand_over())));
    let (buffer, kind, hand_over) = match handed_over {
        Ok((buffer, Some(HandedOver::Rest(hand_over)))) => (buffer, atoms::rest(), hand_over),
        Ok((buffer, Some(HandedOver::Fresh(hand_over)))) => (buffer, atoms::fresh(), hand_over),
        Ok((_, None)) => return Ok(atoms::empty().to_term(env)),
        Err(NotRunning) => return Ok(atoms::not_running().to_term(env)),
    };
    Ok((kind, ResourceArc::new(Batch { buffer, partition: number, hand_over })).encode(env))
}

nif!(position / 1);
fn position<'a>(env: Env<'a>, [batch]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let batch: ResourceArc<Batch> = batch.decode()?;
    Ok(unsigned_to(env, batch.hand_over.position() as u64))
}

nif!(read / 3);
fn read<'a>(env: Env<'a>, [batch, position, count]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (batch, mut position, count): (ResourceArc<Batch>, usize, usize) =
        (batch.decode()?, position.decode()?, count.decode()?);
    let started = Instant::now();
    let mut entries = ListBuilder::with_capacity(env, count.min(READS_AT_ONCE));
    if let Some(retired) = batch.hand_over.entries() {
        let end = batch.hand_over.end();
        while position < end && entries.len() < count {
            let stop = position.saturating_add(READS_AT_ONCE).min(end);
            while position < stop && entries.len() < count {
                if let Some(record) = retired.record(position) {
                    entries.push(record_to(env, record));
                }
                position += 1;
            }
            if started.elapsed() >= TIME_SLICE {
                break;
            }
        }
    }
    consume_timeslice(env, started);
    Ok(tuple(env, [entries.build(), unsigned_to(env, position as u64)]))
}

nif!(claim / 2);
fn claim<'a>(env: Env<'a>, [batch, position]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (batch, position): (ResourceArc<Batch>, usize) = (batch.decode()?, position.decode()?);
    batch.buffer.partition(batch.partition).claim(&batch.hand_over, position);
    Ok(atoms::ok().to_term(env))
}

nif!(longest_calls / 0);
fn longest_calls<'a>(env: Env<'a>, []: [Term<'a>; 0]) -> NifResult<Term<'a>> {
    #[cfg(feature = "timing")]
    let calls = crate::timing::all();
    #[cfg(not(feature = "timing"))]
    let calls: Vec<(&str, u64, u64)> = Vec::new();
    Ok(calls.encode(env))
}

/// The buffer of this name, running or not.
#[inline]
fn find(name: Term<'_>) -> Result<&'static Buffer, NotRunning> {
    registry::find(RawTerm::from(name).word()).map(|buffer| &**buffer).ok_or(NotRunning)
}

/// `nil`, or the number of a partition.
#[inline]
fn route(to: Term<'_>) -> NifResult<Route> {
    if to.as_c_arg() == atoms::nil().as_c_arg() {
        Ok(Route::ByKey)
    } else {
        Ok(Route::To(to.decode()?))
    }
}

/// `:ok` or `:not_running`.
#[inline]
fn done(env: Env<'_>, result: Result<(), NotRunning>) -> Term<'_> {
    match result {
        Ok(()) => atoms::ok().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    }
}

/// The number or `:not_running`.
fn number(env: Env<'_>, result: Result<u64, NotRunning>) -> Term<'_> {
    match result {
        Ok(number) => unsigned_to(env, number),
        Err(NotRunning) => atoms::not_running().to_term(env),
    }
}

/// A record as the processor gets it.
#[inline]
fn record_to(env: Env<'_>, record: Record<RawTerm>) -> Term<'_> {
    let key = copy_to(env, record.key);
    let value = copy_to(env, record.value);
    tuple(env, [key, value, version_to(env, record.version), unsigned_to(env, record.updates)])
}

/// Does the writes that `decode` makes of the elements of a list, in slices. The list that is left when the time is up
/// is returned, to go on with.
fn write_all<'a>(
    env: Env<'a>,
    name: Term<'a>,
    to: Term<'a>,
    entries: Term<'a>,
    decode: impl Fn(Term<'a>) -> Option<Write<RawTerm>>,
) -> NifResult<Term<'a>> {
    let started = Instant::now();
    let route = route(to)?;
    let Ok(buffer) = find(name) else { return Ok(atoms::not_running().to_term(env)) };
    let mut rest = entries;
    let mut slice = Vec::with_capacity(WRITES_AT_ONCE);
    let mut at_once = FIRST_WRITES;
    loop {
        slice.clear();
        while slice.len() < at_once {
            let Some((entry, tail)) = cell(rest) else { break };
            slice.push(decode(entry).ok_or(Error::BadArg)?);
            rest = tail;
        }
        if let Err(NotRunning) = write_slice(buffer, route, &slice) {
            return Ok(atoms::not_running().to_term(env));
        }
        if slice.len() < at_once {
            consume_timeslice(env, started);
            return if rest.is_empty_list() { Ok(atoms::ok().to_term(env)) } else { Err(Error::BadArg) };
        }
        if started.elapsed() >= TIME_SLICE {
            consume_timeslice(env, started);
            return Ok(tuple(env, [atoms::more().to_term(env), rest]));
        }
        at_once = WRITES_AT_ONCE;
    }
}

/// Does the writes, those of a lock in their order and with the lock taken once.
fn write_slice(buffer: &Buffer, route: Route, slice: &[Write<RawTerm>]) -> Result<(), NotRunning> {
    'again: loop {
        let among = buffer.partitions()?;
        // The number of the lock of each write, and of each lock's writes the place of the first, and behind the last.
        let mut locks = Vec::with_capacity(slice.len());
        let mut places = vec![0_u32; among as usize * SHARDS + 1];
        for &write in slice {
            let (Write::Put(key, value) | Write::PutNewer(key, value, _)) = write;
            value.prefetch();
            let hash = buffer.hash(key);
            let lock = Buffer::route(route, key, among)? as usize * SHARDS + Partition::shard_of(hash);
            places[lock + 1] += 1;
            locks.push((lock, hash));
        }
        for lock in 1..places.len() {
            places[lock] += places[lock - 1];
        }
        let mut sorted = vec![None; slice.len()];
        for (&(lock, hash), &write) in locks.iter().zip(slice) {
            sorted[places[lock] as usize] = Some((hash, write));
            places[lock] += 1;
        }
        // Each place has moved on to where the next lock's writes begin.
        let mut start = 0;
        for (lock, &end) in places[..places.len() - 1].iter().enumerate() {
            let writes = &sorted[start..end as usize];
            start = end as usize;
            if writes.is_empty() {
                continue;
            }
            let partition = buffer.partition((lock / SHARDS) as u32);
            match partition.write_all(among, lock % SHARDS, writes.iter().flatten().copied()) {
                Ok(()) => {}
                Err(Closed) if buffer.partitions()? == among => return Err(NotRunning),
                // Doing again what another partition has already taken in changes nothing.
                Err(Closed) => continue 'again,
            }
        }
        return Ok(());
    }
}

/// Tells the scheduler how much of its millisecond the caller has used.
fn consume_timeslice(env: Env<'_>, started: Instant) {
    let percent = started.elapsed().as_micros() / 10;
    rustler::schedule::consume_timeslice(env, percent.clamp(1, 100) as i32);
}
