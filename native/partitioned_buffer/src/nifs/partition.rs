//! NIFs of the partitions of a run.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use std::time::{Duration, Instant};

use partitioned_buffer_engine::{Info, Learned};
use rustler::{Encoder, Env, NifResult, Term};

use super::{atoms, count_or_not_running, done, limit, nif, nil_or, or_not_running};
use crate::any::{each, AnyPartitions, Run};
use crate::run::NotRunning;
use crate::vm::entry::Function;

/// Does something with a partition of a run.
macro_rules! partition {
    ($run:expr, $partition:expr, $own:ident => $body:expr) => {{
        let (run, partition): (Run, u32) = ($run.decode()?, $partition.decode()?);
        run.enter(|partitions| each!(AnyPartitions, partitions, own => own.running(partition).map(|$own| $body)))
    }};
}

nif!(reopen / 2);
fn reopen<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, partition): (Run, u32) = (run.decode()?, partition.decode()?);
    Ok(done(env, run.enter(|partitions| each!(AnyPartitions, partitions, own => own.reopen(partition)))))
}

nif!(close / 2, DirtyCpu);
fn close<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, partition): (Run, u32) = (run.decode()?, partition.decode()?);
    let close = |partitions: AnyPartitions| {
        let _closing = partitions.shared().closing.write();
        each!(AnyPartitions, partitions, own => own.running(partition).map(|own| own.close()))
    };
    Ok(done(env, run.enter(close)))
}

nif!(drain / 2);
fn drain<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    Ok(match partition!(run, partition, own => own.drain().is_ok()) {
        Ok(true) => atoms::ok().to_term(env),
        Ok(false) => atoms::closed().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(held / 2, DirtyCpu);
fn held<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    Ok(count_or_not_running(env, partition!(run, partition, own => own.held() as u64)))
}

nif!(set_threshold / 3);
fn set_threshold<'a>(env: Env<'a>, [run, partition, threshold]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let threshold = limit(threshold)?;
    Ok(or_not_running(env, partition!(run, partition, own => own.set_threshold(threshold))))
}

nif!(set_next / 3);
fn set_next<'a>(env: Env<'a>, [run, partition, next]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let next = nil_or(next)?;
    let (run, partition): (Run, u32) = (run.decode()?, partition.decode()?);
    Ok(done(
        env,
        run.enter(|partitions| {
            each!(AnyPartitions, partitions, own => own.running(partition).map(|_| ()))?;
            partitions.shared().processes.lock().of_mut(partition).next = next;
            Ok(())
        }),
    ))
}

nif!(first_warning / 2);
fn first_warning<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, partition): (Run, u32) = (run.decode()?, partition.decode()?);
    let first = run.enter(|partitions| {
        each!(AnyPartitions, partitions, own => own.running(partition).map(|_| ()))?;
        let had_ignored =
            std::mem::replace(&mut partitions.shared().processes.lock().of_mut(partition).has_warned, true);
        Ok(!had_ignored)
    });
    Ok(or_not_running(env, first))
}

nif!(info / 2);
fn info<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, number): (Run, u32) = (run.decode()?, partition.decode()?);
    let found = run.enter(|partitions| {
        let processes = partitions.shared().processes.lock().of(number);
        each!(AnyPartitions, partitions, own => {
            own.running(number).map(|own| (own.info(), own.learned(), processes))
        })
    });
    let Ok((info, learned, processes)) = found else { return Ok(atoms::not_running().to_term(env)) };
    let is_task_alive = processes.task.is_some_and(|pid| pid.is_alive(env));
    let Info { waiting, in_flight, retried, bytes, since, writes, ended, is_closed } = info;
    let age = since.map(|since| since.elapsed().as_millis() as u64);
    let writes = (writes.written, writes.coalesced, writes.stale, writes.deleted);
    let ended = (ended.superseded, ended.processed, ended.failed, ended.given_up);
    let now = (
        is_closed,
        is_task_alive,
        learned.failures,
        failing_ms(&learned),
        pause_ms(&learned),
        processes.next,
        batch_limit(&learned),
    );
    Ok(((waiting, in_flight, retried, bytes), age, writes, ended, now).encode(env))
}

nif!(learned / 2);
fn learned<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let learned = partition!(run, partition, own => own.learned());
    Ok(or_not_running(
        env,
        learned.map(|learned| (learned.failures, failing_ms(&learned), pause_ms(&learned), learned.failed)),
    ))
}

nif!(pause / 4);
fn pause<'a>(env: Env<'a>, [run, partition, ms, counted]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (ms, counted): (u64, bool) = (ms.decode()?, counted.decode()?);
    Ok(done(env, partition!(run, partition, own => own.pause(Duration::from_millis(ms), counted))))
}

nif!(pause_all / 2, DirtyCpu);
fn pause_all<'a>(env: Env<'a>, [run, ms]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, ms): (Run, u64) = (run.decode()?, ms.decode()?);
    let pause = Duration::from_millis(ms);
    let paused = run.enter(|partitions| {
        each!(AnyPartitions, partitions, own => {
            for partition in 0..own.count()? {
                own.running(partition)?.pause(pause, false);
            }
            Ok(())
        })?;
        partitions.shared().tell_of_pause(env);
        Ok(())
    });
    Ok(done(env, paused))
}

nif!(end_pause / 2);
fn end_pause<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    Ok(done(env, partition!(run, partition, own => own.end_pause())))
}

nif!(pass_pause / 2);
fn pass_pause<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let until = partition!(run, partition, own => own.pass_pause());
    Ok(or_not_running(env, until.map(|until| until.map(rest_ms))))
}

nif!(alone / 2);
fn alone<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let alone = partition!(run, partition, own => {
        let learned = own.learned();
        let isolation = learned.isolation;
        let failed_ms = learned.failed_at.map(|at| at.elapsed().as_millis() as u64);
        let has_success = own.in_flight().is_some_and(|flush| flush.has_success());
        (isolation.alone, isolation.is_exhausted(), own.has_untried(), has_success, failed_ms)
    });
    Ok(or_not_running(env, alone))
}

nif!(forget_limit / 2);
fn forget_limit<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    Ok(done(env, partition!(run, partition, own => own.forget_limit())))
}

/// How many entries the next batch may have; `None` without a limit.
fn batch_limit(learned: &Learned) -> Option<usize> {
    Some(learned.isolation.limit).filter(|&limit| limit < usize::MAX)
}

/// The time since the first failure in a row, in milliseconds.
fn failing_ms(learned: &Learned) -> u64 {
    learned.failing_since.map_or(0, |since| since.elapsed().as_millis() as u64)
}

/// The rest of the pause, in milliseconds.
fn pause_ms(learned: &Learned) -> Option<u64> {
    learned.paused_until.map(rest_ms)
}

/// The time until then, in milliseconds, rounded up.
fn rest_ms(until: Instant) -> u64 {
    until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1_000) as u64
}
