//! NIFs of flushes, batches and their outcomes.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use std::time::Duration;

use partitioned_buffer_engine::{BatchState, Death, GaveBack, Seen};
use rustler::{Encoder, Env, Error, NifResult, ResourceArc, Term};

use super::{atoms, infinity, nif, nil_or};
use crate::any::{each, AnyPartitions, Run};
use crate::clock::now;
use crate::flush::{Begun, Failed, FlushResource, Next, NoEntry, PartitionFlush, Reading, Resumed, Terms};
use crate::run::NotRunning;
use crate::vm::caller::{cell, tail, tuple, unsigned_to, ListBuilder};
use crate::vm::entry::Function;

nif!(flush / 2);
fn flush<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, partition): (Run, u32) = (run.decode()?, partition.decode()?);
    let number = run.number;
    if run.enter(|partitions| Ok(partitions.shared().is_on_hold())).unwrap_or(false) {
        return Ok(atoms::on_hold().to_term(env));
    }
    let resource = |kind: rustler::Atom, flush| (kind, ResourceArc::new(flush)).encode(env);
    let flushed = run.enter(|partitions| {
        let flush = match partitions {
            AnyPartitions::Map(own) => {
                PartitionFlush::start(own, number, partition)?.map(|flush| flush.map(FlushResource::Map))
            }
            AnyPartitions::Counter(own) => {
                PartitionFlush::start(own, number, partition)?.map(|flush| flush.map(FlushResource::Counter))
            }
            AnyPartitions::Queue(own) => {
                PartitionFlush::start(own, number, partition)?.map(|flush| flush.map(FlushResource::Queue))
            }
        };
        // Without an entry there may be memory that is free now.
        partitions.shared().tell_of_room(env);
        Ok(flush)
    });
    Ok(match flushed {
        Ok(Some(Resumed::Rest(flush))) => resource(atoms::rest(), flush),
        Ok(Some(Resumed::Fresh(flush))) => resource(atoms::fresh(), flush),
        Ok(None) => atoms::empty().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(in_flight / 2);
fn in_flight<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, partition): (Run, u32) = (run.decode()?, partition.decode()?);
    let number = run.number;
    let in_flight = run.enter(|partitions| {
        Ok(match partitions {
            AnyPartitions::Map(own) => PartitionFlush::in_flight(own, number, partition)?.map(FlushResource::Map),
            AnyPartitions::Counter(own) => {
                PartitionFlush::in_flight(own, number, partition)?.map(FlushResource::Counter)
            }
            AnyPartitions::Queue(own) => PartitionFlush::in_flight(own, number, partition)?.map(FlushResource::Queue),
        })
    });
    Ok(match in_flight {
        Ok(Some(flush)) => ResourceArc::new(flush).encode(env),
        Ok(None) => atoms::empty().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(lost / 2);
fn lost<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, partition): (Run, u32) = (run.decode()?, partition.decode()?);
    let lost = run.enter(|partitions| each!(AnyPartitions, partitions, own => Ok(own.running(partition)?.lost())));
    Ok(super::count_or_not_running(env, lost.map(|lost| lost as u64)))
}

nif!(seen / 1);
fn seen<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let Seen { calls, called_with, left, called_at } = flush.seen();
    Ok((calls, called_with, left, called_at.map(|called_at| now() - called_at)).encode(env))
}

nif!(read / 4);
fn read<'a>(env: Env<'a>, [flush, length, size, resumed]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let reading = Reading { resumed: resumed.decode()?, ..reading(length, size)? };
    let (records, length, begun) = read_for(env, &flush, &reading);
    let is_complete = !matches!(begun, Begun::Later);
    Ok(tuple(env, [records, length, is_complete.encode(env)]))
}

nif!(claim_next / 3);
fn claim_next<'a>(env: Env<'a>, [flush, length, size]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let reading = Reading { next: Next::Claim, ..reading(length, size)? };
    let (records, length, begun) = read_for(env, &flush, &reading);
    Ok(tuple(env, [records, length, claimed(env, &begun)]))
}

nif!(lease_next / 6);
fn lease_next<'a>(env: Env<'a>, arguments: [Term<'a>; 6]) -> NifResult<Term<'a>> {
    let [flush, length, size, resumed, in_pause, succeeded] = arguments;
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let next = Next::Lease { in_pause: in_pause.decode()? };
    let (resumed, succeeded) = (resumed.decode()?, succeeded.decode()?);
    let reading = Reading { succeeded, resumed, next, ..reading(length, size)? };
    let (records, length, begun) = read_for(env, &flush, &reading);
    Ok(tuple(env, [records, length, leased(env, &begun)]))
}

/// A plain read.
fn reading(length: Term<'_>, size: Term<'_>) -> NifResult<Reading> {
    let (length, size) = (length.decode()?, size.decode()?);
    if size == 0 {
        return Err(Error::BadArg);
    }
    Ok(Reading { succeeded: false, length, size, resumed: false, next: Next::Others })
}

/// Reads for a batch. Returns the entries, the length of the batch, and whether its call began.
fn read_for<'a>(env: Env<'a>, flush: &FlushResource, reading: &Reading) -> (Term<'a>, Term<'a>, Begun) {
    let (records, length, begun) = match flush.enter(|flush| flush.read(env, reading)) {
        Ok(read) => read,
        Err(NotRunning) => {
            flush.confirm(env);
            (ListBuilder::start(env).build(), reading.length, Begun::Taken)
        }
    };
    (records, unsigned_to(env, length as u64), begun)
}

nif!(claim / 1);
fn claim<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    Ok(claimed(env, &flush.enter(|flush| flush.claim(env)).unwrap_or(Begun::Taken)))
}

nif!(lease / 2);
fn lease<'a>(env: Env<'a>, [flush, in_pause]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (flush, in_pause): (ResourceArc<FlushResource>, bool) = (flush.decode()?, in_pause.decode()?);
    Ok(leased(env, &flush.enter(|flush| flush.lease(env, in_pause)).unwrap_or(Begun::Taken)))
}

/// Whether a call with a claimed batch begins: true, or the reason against it.
fn claimed<'a>(env: Env<'a>, begun: &Begun) -> Term<'a> {
    match begun {
        Begun::Yes(_) => true.encode(env),
        _ => leased(env, begun),
    }
}

/// Whether a call with a leased batch begins: its attempts, or the reason against it.
fn leased<'a>(env: Env<'a>, begun: &Begun) -> Term<'a> {
    match begun {
        Begun::Yes(attempts) => unsigned_to(env, u64::from(*attempts)),
        Begun::Later => atoms::more().to_term(env),
        Begun::Taken => false.encode(env),
        Begun::OnHold => atoms::on_hold().to_term(env),
        Begun::Paused => atoms::paused().to_term(env),
    }
}

nif!(succeed / 1);
fn succeed<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    Ok(unsigned_to(env, flush.enter(|flush| flush.succeed(env)).unwrap_or(0) as u64))
}

nif!(split / 1);
fn split<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    Ok(match flush.enter(|flush| flush.split(env)) {
        Ok(Some(split)) => split.encode(env),
        Ok(None) | Err(NotRunning) => atoms::nil().to_term(env),
    })
}

nif!(shorten / 2);
fn shorten<'a>(env: Env<'a>, [flush, length]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (flush, length): (ResourceArc<FlushResource>, usize) = (flush.decode()?, length.decode()?);
    let _ = flush.enter(|flush| flush.shorten(env, length));
    Ok(atoms::ok().to_term(env))
}

nif!(defer / 1);
fn defer<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let _ = flush.enter(FlushResource::defer);
    Ok(atoms::ok().to_term(env))
}

nif!(lease_rest / 2);
fn lease_rest<'a>(env: Env<'a>, [flush, if_others]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (flush, if_others): (ResourceArc<FlushResource>, bool) = (flush.decode()?, if_others.decode()?);
    Ok(flush.enter(|flush| flush.lease_rest(env, if_others)).unwrap_or(false).encode(env))
}

nif!(give_back / 5);
fn give_back<'a>(env: Env<'a>, arguments: [Term<'a>; 5]) -> NifResult<Term<'a>> {
    let [flush, failed, counted, max_attempts, pause] = arguments;
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let known = if failed.is_atom() { all(failed)? } else { numbers(failed)? };
    let max_attempts = if max_attempts.is_atom() { infinity(max_attempts)? } else { Some(max_attempts.decode()?) };
    let pause = nil_or(pause)?.map(Duration::from_millis);
    let terms = Terms { counted: counted.decode()?, max_attempts, pause };
    let over = (GaveBack { is_done: true, ..GaveBack::default() }, 0);
    let gave_back = flush.enter(|flush| flush.give_back(env, &known, &terms)).unwrap_or(Ok(over));
    let (GaveBack { retried, superseded, given_up, is_done }, next) = gave_back.map_err(|NoEntry| Error::BadArg)?;
    let counts = (retried, superseded, given_up).encode(env);
    if is_done {
        return Ok(tuple(env, [atoms::done().to_term(env), counts]));
    }
    let done = known.numbers.map_or(0, |numbers| numbers.partition_point(|&number| number < next));
    Ok(tuple(env, [atoms::more().to_term(env), tail(failed, done), counts]))
}

nif!(inherit / 2);
fn inherit<'a>(env: Env<'a>, [flush, death]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (flush, death): (ResourceArc<FlushResource>, rustler::Atom) = (flush.decode()?, death.decode()?);
    let death = if death == atoms::killed() {
        Some(Death::Killed)
    } else if death == atoms::timeout() {
        Some(Death::TimedOut)
    } else if death == atoms::nil() {
        None
    } else {
        return Err(Error::BadArg);
    };
    Ok(match flush.enter(|flush| flush.inherit(env, death)) {
        Ok(Some((BatchState::Buried, length))) => (atoms::buried(), length).encode(env),
        Ok(Some((BatchState::GivenUp, length))) => (atoms::given_up(), length).encode(env),
        Ok(Some((BatchState::Leased | BatchState::Read, length))) => (atoms::leased(), length).encode(env),
        Ok(None) | Err(NotRunning) => atoms::nil().to_term(env),
    })
}

nif!(batch / 1, DirtyCpu);
fn batch<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    Ok(flush.batch(env))
}

nif!(touch / 1);
fn touch<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let _ = flush.enter(FlushResource::touch);
    Ok(atoms::ok().to_term(env))
}

nif!(bury / 1);
fn bury<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let _ = flush.enter(FlushResource::bury);
    Ok(atoms::ok().to_term(env))
}

/// How many numbers of failed entries a call looks at. In its time it gives back about as many.
const NUMBERS: usize = 4096;

/// The first numbers of a list, in ascending order. An entry that is cancelled has the number
/// `-1 - number`.
fn numbers(list: Term<'_>) -> NifResult<Failed> {
    let (mut numbers, mut cancelled, mut rest) = (Vec::new(), Vec::new(), list);
    while let Some((number, tail)) = cell(rest).filter(|_| numbers.len() < NUMBERS) {
        let marked: i64 = number.decode()?;
        let is_cancelled = marked < 0;
        let number = (if is_cancelled { -1 - marked } else { marked }) as usize;
        if numbers.last().is_some_and(|&last| last >= number) {
            return Err(Error::BadArg);
        }
        numbers.push(number);
        if is_cancelled {
            cancelled.push(number);
        }
        rest = tail;
    }
    let is_whole = rest.is_empty_list();
    if is_whole || numbers.len() == NUMBERS {
        Ok(Failed { numbers: Some(numbers), cancelled, is_whole })
    } else {
        Err(Error::BadArg)
    }
}

/// All entries, for the atom `:all`.
fn all(term: Term<'_>) -> NifResult<Failed> {
    let atom: rustler::Atom = term.decode()?;
    if atom == atoms::all() {
        Ok(Failed { numbers: None, cancelled: Vec::new(), is_whole: true })
    } else {
        Err(Error::BadArg)
    }
}
