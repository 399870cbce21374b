//! The NIFs: each decodes its arguments, makes one call, and encodes the result. `PartitionedBuffer.Native` documents
//! them for their callers.
//!
//! Arguments are not trusted: what does not fit raises `badarg` and has changed nothing. Those that work on many
//! entries stop after [`TIME_SLICE`] and say how far they came.

use std::sync::Arc;
use std::time::{Duration, Instant};

use partitioned_buffer_engine::partition::Write;
use partitioned_buffer_engine::{Closed, HandedOver, Hash};
use rustler::{Atom, Encoder, Env, Error, NifResult, Resource, ResourceArc, Term};

use crate::buffer::{Buffer, HandOver, NotRunning, Partition, Route};
use crate::registry;
use crate::term::{cell, copy_to, elements, tuple, unsigned_to, version, version_to, ListBuilder, RawTerm};

/// After so long a NIF that could go on returns: half of the millisecond that a NIF may take.
const TIME_SLICE: Duration = Duration::from_micros(500);

/// Writes that are done with the locks of their partitions taken once, and between two looks at the clock.
const WRITES_AT_ONCE: usize = 128;

/// The same for the first writes of a call, of which it is not known how long one takes.
const FIRST_WRITES: usize = 16;

/// Entries, or places of deleted ones, that are read between two looks at the clock.
const READS_AT_ONCE: usize = 32;

/// The number of partitions is limited only so that a mistaken one cannot take all memory.
const MAX_PARTITIONS: u32 = 1 << 20;

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

impl Encoder for NotRunning {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        atoms::not_running().encode(env)
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

#[rustler::nif(schedule = "DirtyCpu")]
fn open<'a>(env: Env<'a>, name: Term<'a>, partitions: u32) -> NifResult<Term<'a>> {
    if !name.is_atom() || partitions > MAX_PARTITIONS {
        return Err(Error::BadArg);
    }
    let buffer = registry::find_or_add(RawTerm::from(name).word());
    Buffer::open(buffer, env, partitions);
    Ok(buffer.encode(env))
}

#[rustler::nif]
fn reopen(name: Term<'_>, number: u32) -> Atom {
    done(find(name).and_then(|buffer| buffer.reopen(number)))
}

#[rustler::nif]
fn close(name: Term<'_>, number: u32) -> Atom {
    done(find(name).and_then(|buffer| buffer.numbered(number)).map(Partition::close))
}

#[rustler::nif]
fn partitions<'a>(env: Env<'a>, name: Term<'a>) -> Term<'a> {
    result(env, find(name).and_then(Buffer::partitions))
}

#[rustler::nif]
fn size<'a>(env: Env<'a>, name: Term<'a>) -> Term<'a> {
    result(env, find(name).and_then(Buffer::size))
}

#[rustler::nif]
fn put<'a>(name: Term<'a>, to: Term<'a>, key: Term<'a>, value: Term<'a>) -> NifResult<Atom> {
    let (route, key, value) = (route(to)?, RawTerm::from(key), RawTerm::from(value));
    Ok(done(find(name).and_then(|buffer| {
        let hash = buffer.hash(key);
        buffer.with_partition(route, key, |partition, among| partition.put(among, hash, key, value))
    })))
}

#[rustler::nif]
fn put_newer<'a>(name: Term<'a>, to: Term<'a>, key: Term<'a>, value: Term<'a>, number: Term<'a>) -> NifResult<Atom> {
    let (route, key, value) = (route(to)?, RawTerm::from(key), RawTerm::from(value));
    let version = version(number).ok_or(Error::BadArg)?;
    Ok(done(find(name).and_then(|buffer| {
        let hash = buffer.hash(key);
        buffer.with_partition(route, key, |partition, among| partition.put_newer(among, hash, key, value, version))
    })))
}

#[rustler::nif]
fn get<'a>(env: Env<'a>, name: Term<'a>, to: Term<'a>, key: Term<'a>) -> NifResult<Term<'a>> {
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

#[rustler::nif]
fn delete<'a>(name: Term<'a>, to: Term<'a>, key: Term<'a>) -> NifResult<Atom> {
    let (route, key) = (route(to)?, RawTerm::from(key));
    Ok(done(find(name).and_then(|buffer| {
        let hash = buffer.hash(key);
        buffer.with_partition(route, key, |partition, among| partition.delete(among, hash, key))
    })))
}

#[rustler::nif]
fn put_all<'a>(env: Env<'a>, name: Term<'a>, to: Term<'a>, entries: Term<'a>) -> NifResult<Term<'a>> {
    write_all(env, name, to, entries, |entry| {
        let [key, value] = elements(entry)?;
        Some(Write::Put(key.into(), value.into()))
    })
}

#[rustler::nif]
fn put_all_newer<'a>(env: Env<'a>, name: Term<'a>, to: Term<'a>, entries: Term<'a>) -> NifResult<Term<'a>> {
    write_all(env, name, to, entries, |entry| {
        let [key, value, number] = elements(entry)?;
        Some(Write::PutNewer(key.into(), value.into(), version(number)?))
    })
}

#[rustler::nif]
fn hand_over<'a>(env: Env<'a>, name: Term<'a>, number: u32) -> Term<'a> {
    let handed_over = find(name).and_then(|buffer| Ok((buffer, buffer.numbered(number)?.hand_over())));
    let (buffer, kind, hand_over) = match handed_over {
        Ok((buffer, Some(HandedOver::Rest(hand_over)))) => (buffer, atoms::rest(), hand_over),
        Ok((buffer, Some(HandedOver::Fresh(hand_over)))) => (buffer, atoms::fresh(), hand_over),
        Ok((_, None)) => return atoms::empty().encode(env),
        Err(not_running) => return not_running.encode(env),
    };
    (kind, ResourceArc::new(Batch { buffer, partition: number, hand_over })).encode(env)
}

#[rustler::nif]
fn position(batch: ResourceArc<Batch>) -> u64 {
    batch.hand_over.position() as u64
}

#[rustler::nif]
fn read<'a>(env: Env<'a>, batch: ResourceArc<Batch>, position: u64, count: u64) -> NifResult<Term<'a>> {
    let hand_over = &batch.hand_over;
    let count = usize::try_from(count).map_err(|_| Error::BadArg)?;
    let mut position = usize::try_from(position).map_err(|_| Error::BadArg)?;
    let started = Instant::now();
    let mut entries = ListBuilder::with_capacity(env, count.min(READS_AT_ONCE));
    while position < hand_over.end() && entries.len() < count {
        let stop = position.saturating_add(READS_AT_ONCE).min(hand_over.end());
        while position < stop && entries.len() < count {
            if let Some(entry) = hand_over.entry(position) {
                let key = copy_to(env, entry.key);
                let value = copy_to(env, entry.value);
                let version = version_to(env, entry.version);
                entries.push(tuple(env, [key, value, version, unsigned_to(env, entry.updates)]));
            }
            position += 1;
        }
        if started.elapsed() >= TIME_SLICE {
            break;
        }
    }
    consume_timeslice(env, started);
    Ok(tuple(env, [entries.build(), unsigned_to(env, position as u64)]))
}

#[rustler::nif]
fn claim(batch: ResourceArc<Batch>, position: u64) -> NifResult<Atom> {
    let position = usize::try_from(position).map_err(|_| Error::BadArg)?;
    batch.buffer.partition(batch.partition).claim(&batch.hand_over, position);
    Ok(atoms::ok())
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
fn done(result: Result<(), NotRunning>) -> Atom {
    match result {
        Ok(()) => atoms::ok(),
        Err(NotRunning) => atoms::not_running(),
    }
}

/// The result or `:not_running`.
fn result<T: Encoder>(env: Env<'_>, result: Result<T, NotRunning>) -> Term<'_> {
    match result {
        Ok(result) => result.encode(env),
        Err(not_running) => not_running.encode(env),
    }
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
    let Ok(buffer) = find(name) else { return Ok(atoms::not_running().encode(env)) };
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
            return Ok(atoms::not_running().encode(env));
        }
        if slice.len() < at_once {
            consume_timeslice(env, started);
            return if rest.is_empty_list() { Ok(atoms::ok().encode(env)) } else { Err(Error::BadArg) };
        }
        if started.elapsed() >= TIME_SLICE {
            consume_timeslice(env, started);
            return Ok(tuple(env, [atoms::more().encode(env), rest]));
        }
        at_once = WRITES_AT_ONCE;
    }
}

/// Does the writes, those of a partition in their order and with its lock taken once.
fn write_slice(buffer: &Buffer, route: Route, slice: &[Write<RawTerm>]) -> Result<(), NotRunning> {
    let key = |write: &Write<RawTerm>| match *write {
        Write::Put(key, _) | Write::PutNewer(key, _, _) => key,
    };
    'again: loop {
        let among = buffer.partitions()?;
        let mut order = Vec::with_capacity(slice.len());
        for (at, write) in slice.iter().enumerate() {
            order.push((Buffer::route(route, key(write), among)?, at));
        }
        order.sort_unstable();
        for writes in order.chunk_by(|(one, _), (other, _)| one == other) {
            let hashed = writes.iter().map(|&(_, at)| (buffer.hash(key(&slice[at])), slice[at]));
            let hashed: Vec<(Hash, Write<RawTerm>)> = hashed.collect();
            match buffer.partition(writes[0].0).write_all(among, hashed.into_iter()) {
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
