//! NIFs for the stages of a buffer of several nodes.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use partitioned_buffer_engine::clock::STEPS;
use rustler::{Encoder, Env, Error, NifResult, ResourceArc, Term};

use super::{atoms, done, nif, nil_or, or_not_running};
use crate::any::{AnyPartitions, Run};
use crate::buffer::MapPartitions;
use crate::flush::FlushResource;
use crate::run::NotRunning;
use crate::vm::caller::{atom_to, tuple, unsigned_to};
use crate::vm::entry::Function;
use crate::vm::term::RawTerm;

/// Versions in a millisecond.
const STEPS_IN_MS: i64 = STEPS * 1_000;

nif!(collect / 1);
fn collect<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    Ok(done(
        env,
        run.enter(|partitions| {
            partitions.shared().collect();
            Ok(())
        }),
    ))
}

nif!(mark / 2);
fn mark<'a>(env: Env<'a>, [flush, mark]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    let mark = match nil_or::<(u64, Term<'_>)>(mark)? {
        None => None,
        Some((number, node)) if node.is_atom() => Some((number, RawTerm::from(node).word())),
        Some(_no_atom) => return Err(Error::BadArg),
    };
    Ok(flush.enter(|flush| flush.mark(env, mark)).unwrap_or(false).encode(env))
}

nif!(marked / 1);
fn marked<'a>(env: Env<'a>, [flush]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let flush: ResourceArc<FlushResource> = flush.decode()?;
    Ok(match flush.enter(FlushResource::marked) {
        Ok(Some((number, node))) => tuple(env, [unsigned_to(env, number), atom_to(env, node)]),
        Ok(None) | Err(NotRunning) => atoms::nil().to_term(env),
    })
}

nif!(latest_version / 2);
fn latest_version<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let partition: u32 = partition.decode()?;
    with_map(env, run, |map| Ok(map.running(partition)?.latest_version()))
}

nif!(see_version / 3);
fn see_version<'a>(env: Env<'a>, [run, version, most_ms]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (version, most_ms): (i64, u64) = (version.decode()?, most_ms.decode()?);
    let most = i64::try_from(most_ms).unwrap_or(i64::MAX).saturating_mul(STEPS_IN_MS);
    with_map(env, run, |map| {
        let ahead = version.saturating_sub(map.partition(0).present_version()).max(0);
        if ahead <= most {
            map.shared.clock.see(version);
        }
        Ok(ahead / STEPS_IN_MS)
    })
}

/// Does something with the map of a run.
fn with_map<'a>(
    env: Env<'a>,
    run: Term<'a>,
    act: impl FnOnce(&'static MapPartitions) -> Result<i64, NotRunning>,
) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    if matches!(run.partitions(), Some(AnyPartitions::Counter(_) | AnyPartitions::Queue(_))) {
        return Err(Error::BadArg);
    }
    Ok(or_not_running(
        env,
        run.enter(|partitions| match partitions {
            AnyPartitions::Map(map) => act(map),
            AnyPartitions::Counter(_) | AnyPartitions::Queue(_) => Err(NotRunning),
        }),
    ))
}
