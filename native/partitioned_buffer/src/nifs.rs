//! The NIFs: each decodes its arguments, makes one call, and encodes the result. `PartitionedBuffer.Native` documents
//! them for their callers.
//!
//! Arguments are not trusted: what does not fit raises `badarg` and has changed nothing, but for what stands before it in
//! a list that the caller says it has checked. Those that work on many entries stop after [`TIME_SLICE`] and say how far
//! they came.

// The NIFs' documentation is in `PartitionedBuffer.Native`.
#![allow(clippy::missing_docs_in_private_items)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use partitioned_buffer_engine::entries::Record;
use partitioned_buffer_engine::partition::{Write, SHARDS};
use partitioned_buffer_engine::{reclaim, Closed, HandedOver, Hash, Version};
use rustler::codegen_runtime::inventory;
use rustler::{Encoder, Env, Error, NifResult, Resource, ResourceArc, SchedulerFlags, Term};

use crate::buffer::{Buffer, HandOver, NotRunning, Partition, Route};
use crate::term::{
    cell, copy_to, elements, entry, tuple, unsigned_to, version, version_to, Function, ListBuilder, RawTerm,
};
use crate::{memory, registry};

/// After so long a NIF that could go on returns: half of the millisecond that a NIF may take.
const TIME_SLICE: Duration = Duration::from_micros(500);

/// How long it should at most take from one look at the clock to the next.
const STEP_TIME: Duration = Duration::from_micros(100);

/// Entries that are written or read between two looks at the clock, at most.
const MAX_STEP: usize = 128;

/// So many are written one by one; more are sorted by their locks, each of which is then taken once.
const WRITTEN_ONE_BY_ONE: usize = 16;

/// So many elements of a list are checked before the first is written.
const CHECKED_AT_ONCE: usize = 2048;

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
        unchecked,
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
    Ok(done(env, find(name)?.and_then(|buffer| buffer.reopen(number))))
}

nif!(close / 2);
fn close<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let number = partition.decode()?;
    Ok(done(env, find(name)?.and_then(|buffer| buffer.numbered(number)).map(Partition::close)))
}

nif!(partitions / 1);
fn partitions<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    Ok(number(env, find(name)?.and_then(|buffer| buffer.partitions().map(u64::from))))
}

nif!(size / 1);
fn size<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    Ok(number(env, find(name)?.and_then(|buffer| buffer.size().map(|size| size as u64))))
}

nif!(put / 4);
fn put<'a>(env: Env<'a>, [name, to, key, value]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let route = route(to)?;
    Ok(done(env, find(name)?.and_then(|buffer| put_one(buffer, route, key.into(), value.into()))))
}

nif!(put_newer / 5);
fn put_newer<'a>(env: Env<'a>, [name, to, key, value, number]: [Term<'a>; 5]) -> NifResult<Term<'a>> {
    let (route, version) = (route(to)?, version(number).ok_or(Error::BadArg)?);
    let result = find(name)?.and_then(|buffer| put_newer_one(buffer, route, key.into(), value.into(), version));
    Ok(done(env, result))
}

nif!(get / 3);
fn get<'a>(env: Env<'a>, [name, to, key]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (route, key) = (route(to)?, RawTerm::from(key));
    let found = find(name)?.and_then(|buffer| {
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
    let result = find(name)?.and_then(|buffer| {
        let hash = buffer.hash(key);
        buffer.with_partition(route, key, |partition, among| partition.delete(among, hash, key))
    });
    Ok(done(env, result))
}

nif!(put_all / 4);
fn put_all<'a>(env: Env<'a>, arguments: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    write_all(env, arguments, |entry| {
        let [key, value] = elements(entry)?;
        Some(Write::Put(key.into(), value.into()))
    })
}

nif!(put_all_newer / 4);
fn put_all_newer<'a>(env: Env<'a>, arguments: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    write_all(env, arguments, |entry| {
        let [key, value, number] = elements(entry)?;
        Some(Write::PutNewer(key.into(), value.into(), version(number)?))
    })
}

nif!(hand_over / 2);
fn hand_over<'a>(env: Env<'a>, [name, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let number = partition.decode()?;
    let handed_over = find(name)?.and_then(|buffer| Ok((buffer, buffer.numbered(number)?.hand_over())));
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
    let mut pace = Pace::start();
    let mut entries = ListBuilder::with_capacity(env, count.min(MAX_STEP));
    if let Some(retired) = batch.hand_over.entries() {
        let end = batch.hand_over.end();
        while position < end && entries.len() < count {
            // Places of deleted entries count as well.
            let stop = position.saturating_add(pace.step).min(end);
            while position < stop && entries.len() < count {
                if let Some(record) = retired.record(position) {
                    entries.push(record_to(env, record));
                }
                position += 1;
            }
            if !pace.goes_on() {
                break;
            }
        }
    }
    pace.consume_timeslice(env);
    Ok(tuple(env, [entries.build(), unsigned_to(env, position as u64)]))
}

nif!(claim / 3);
fn claim<'a>(env: Env<'a>, [batch, from, to]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (batch, from, to): (ResourceArc<Batch>, usize, usize) = (batch.decode()?, from.decode()?, to.decode()?);
    Ok(batch.buffer.partition(batch.partition).claim(&batch.hand_over, from, to).encode(env))
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
    let calls = crate::timing::all();
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

/// Does a `put`.
#[inline]
fn put_one(buffer: &Buffer, route: Route, key: RawTerm, value: RawTerm) -> Result<(), NotRunning> {
    let hash = buffer.hash(key);
    buffer.with_partition(route, key, |partition, among| partition.put(among, hash, key, value))
}

/// Does a `put_newer`.
#[inline]
fn put_newer_one(
    buffer: &Buffer,
    route: Route,
    key: RawTerm,
    value: RawTerm,
    version: Version<RawTerm>,
) -> Result<(), NotRunning> {
    let hash = buffer.hash(key);
    buffer.with_partition(route, key, |partition, among| partition.put_newer(among, hash, key, value, version))
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
///
/// A list that the caller has not `checked` is checked here before anything is written, if it is short.
fn write_all<'a>(
    env: Env<'a>,
    [name, to, entries, checked]: [Term<'a>; 4],
    decode: impl Fn(Term<'a>) -> Option<Write<RawTerm>>,
) -> NifResult<Term<'a>> {
    let mut pace = Pace::start();
    let (route, checked): (_, bool) = (route(to)?, checked.decode()?);
    if !checked && !is_short_list_of(entries, &decode) {
        return Ok(atoms::unchecked().to_term(env));
    }
    let Ok(buffer) = find(name)? else { return Ok(atoms::not_running().to_term(env)) };
    let mut rest = entries;
    let mut slice = Slice::default();
    loop {
        slice.writes.clear();
        while slice.writes.len() < pace.step {
            let Some((entry, tail)) = cell(rest) else { break };
            slice.writes.push(decode(entry).ok_or(Error::BadArg)?);
            rest = tail;
        }
        let is_last = slice.writes.len() < pace.step;
        if let Err(NotRunning) = slice.write(buffer, route) {
            return Ok(atoms::not_running().to_term(env));
        }
        let goes_on = pace.goes_on();
        if is_last {
            pace.consume_timeslice(env);
            return if rest.is_empty_list() { Ok(atoms::ok().to_term(env)) } else { Err(Error::BadArg) };
        }
        if !goes_on {
            pace.consume_timeslice(env);
            return Ok(tuple(env, [atoms::more().to_term(env), rest]));
        }
    }
}

/// Whether all elements of a list are such that `decode` takes them, and it is no longer than can be told at once.
fn is_short_list_of<'a>(list: Term<'a>, decode: impl Fn(Term<'a>) -> Option<Write<RawTerm>>) -> bool {
    let mut rest = list;
    for _ in 0..CHECKED_AT_ONCE {
        match cell(rest) {
            Some((entry, tail)) if decode(entry).is_some() => rest = tail,
            Some(_) => return false,
            None => return rest.is_empty_list(),
        }
    }
    false
}

/// Some writes, and room to order them by their locks.
#[derive(Default)]
struct Slice {
    /// The writes, in the order of the caller.
    writes: Vec<Write<RawTerm>>,
    /// The hash of each one's key.
    hashes: Vec<Hash>,
    /// The number of each one's lock.
    locks: Vec<u32>,
    /// For each lock, where its writes begin in `sorted`, and later where they end.
    places: Vec<u32>,
    /// The numbers of the writes, by lock, those of a lock in the order of the caller.
    sorted: Vec<u32>,
}

impl Slice {
    /// Does the writes.
    fn write(&mut self, buffer: &Buffer, route: Route) -> Result<(), NotRunning> {
        if self.writes.len() > WRITTEN_ONE_BY_ONE {
            return self.write_by_lock(buffer, route);
        }
        self.writes.iter().try_for_each(|&write| match write {
            Write::Put(key, value) => put_one(buffer, route, key, value),
            Write::PutNewer(key, value, version) => put_newer_one(buffer, route, key, value, version),
        })
    }

    /// Does the writes, each lock taken once; goes on with what is left where the buffer has started again with another
    /// number of partitions.
    fn write_by_lock(&mut self, buffer: &Buffer, route: Route) -> Result<(), NotRunning> {
        loop {
            let among = buffer.partitions()?;
            self.sort(buffer, route, among)?;
            let done = self.write_sorted(buffer, among);
            if done == self.sorted.len() {
                return Ok(());
            }
            if buffer.partitions()? == among {
                return Err(NotRunning);
            }
            let mut left = self.sorted.split_off(done);
            left.sort_unstable();
            self.writes = left.iter().map(|&number| self.writes[number as usize]).collect();
        }
    }

    /// Does the sorted writes, as long as the partitions take them, and says how many.
    fn write_sorted(&self, buffer: &Buffer, among: u32) -> usize {
        let mut start = 0;
        for (lock, &end) in self.places.iter().enumerate() {
            let numbers = &self.sorted[start..end as usize];
            if numbers.is_empty() {
                continue;
            }
            let writes = numbers.iter().map(|&number| (self.hashes[number as usize], self.writes[number as usize]));
            if let Err(Closed) = buffer.partition((lock / SHARDS) as u32).write_all(among, lock % SHARDS, writes) {
                break;
            }
            start = end as usize;
        }
        start
    }

    /// Finds the lock of each write, and sorts the writes by it, by counting.
    fn sort(&mut self, buffer: &Buffer, route: Route, among: u32) -> Result<(), NotRunning> {
        let Slice { writes, hashes, locks, places, sorted } = self;
        hashes.clear();
        locks.clear();
        places.clear();
        places.resize(among as usize * SHARDS, 0);
        for &(Write::Put(key, value) | Write::PutNewer(key, value, _)) in &*writes {
            value.prefetch();
            let hash = buffer.hash(key);
            let lock = Buffer::route(route, key, among)? as usize * SHARDS + Partition::shard_of(hash);
            places[lock] += 1;
            locks.push(lock as u32);
            hashes.push(hash);
        }
        let mut start = 0;
        for place in &mut *places {
            start += std::mem::replace(place, start);
        }
        sorted.clear();
        sorted.resize(writes.len(), 0);
        for (number, &lock) in locks.iter().enumerate() {
            let place = &mut places[lock as usize];
            sorted[*place as usize] = number as u32;
            *place += 1;
        }
        Ok(())
    }
}

/// How a call with many entries keeps to its time: by steps that are as long as the one before lets expect.
struct Pace {
    /// When the call began.
    started: Instant,
    /// How long it had taken after the last step.
    elapsed: Duration,
    /// Entries of the next step.
    step: usize,
}

impl Pace {
    /// For a call that begins now. Of its entries nothing is known, so the first is a step.
    fn start() -> Self {
        Pace { started: Instant::now(), elapsed: Duration::ZERO, step: 1 }
    }

    /// After a step: whether there is time for another.
    fn goes_on(&mut self) -> bool {
        let elapsed = self.started.elapsed();
        let took = (elapsed - self.elapsed).as_nanos().max(1);
        let fitting = self.step as u128 * STEP_TIME.as_nanos() / took;
        self.step = (fitting as usize).clamp(1, (self.step * 8).min(MAX_STEP));
        self.elapsed = elapsed;
        elapsed < TIME_SLICE
    }

    /// Tells the scheduler how much of its millisecond the call has used.
    fn consume_timeslice(&self, env: Env<'_>) {
        let percent = self.elapsed.as_micros() / 10;
        rustler::schedule::consume_timeslice(env, percent.clamp(1, 100) as i32);
    }
}
