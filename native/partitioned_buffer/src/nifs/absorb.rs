//! NIFs that absorb entries of the same buffer on another node, and of what they took from there.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use rustler::{Env, Error, NifResult, Term};

use super::lists::invalid_to;
use super::{atoms, done, nif, nil_or, or_not_running};
use crate::absorb::{Absorb, Unwritten};
use crate::any::{AnyPartitions, Run};
use crate::pace::Pace;
use crate::registry;
use crate::vm::caller::{cell, unsigned_to};
use crate::vm::entry::Function;
use crate::vm::term::RawTerm;

nif!(absorb / 5);
fn absorb<'a>(env: Env<'a>, arguments: [Term<'a>; 5]) -> NifResult<Term<'a>> {
    absorb_with(env, arguments, Some(Pace::start()))
}

nif!(absorb_large / 5, DirtyCpu);
fn absorb_large<'a>(env: Env<'a>, arguments: [Term<'a>; 5]) -> NifResult<Term<'a>> {
    absorb_with(env, arguments, None)
}

/// Absorbs entries within the limits of a pace, or without limits.
fn absorb_with<'a>(env: Env<'a>, arguments: [Term<'a>; 5], pace: Option<Pace>) -> NifResult<Term<'a>> {
    let [run, entries, stream, number, modes] = arguments;
    let (run, id, number): (Run, _, u64) = (run.decode()?, nil_or(stream)?, number.decode()?);
    if number == 0 || matches!(run.partitions(), Some(AnyPartitions::Queue(_))) {
        return Err(Error::BadArg);
    }
    let (is_forced, writes_in_stop) = modes_of(modes)?;
    let taken_as = id.map(|id| (id, number));
    let mut absorb = Absorb { env, entries, taken_as, is_forced, writes_in_stop, pace };
    let written = run.enter(|partitions| {
        Ok(match partitions {
            AnyPartitions::Map(own) => absorb.write_to(own),
            AnyPartitions::Counter(own) => absorb.write_to(own),
            AnyPartitions::Queue(_) => Err(Unwritten::NotRunning),
        })
    });
    Ok(match written.unwrap_or(Err(Unwritten::NotRunning)) {
        Ok(()) => atoms::ok().to_term(env),
        Err(Unwritten::Duplicate) => atoms::duplicate().to_term(env),
        Err(Unwritten::Full) => atoms::full().to_term(env),
        Err(Unwritten::Large) => atoms::large().to_term(env),
        Err(Unwritten::Stopping) => atoms::stopping().to_term(env),
        Err(Unwritten::NotRunning) => atoms::not_running().to_term(env),
        Err(Unwritten::Invalid(invalid)) => invalid_to(env, invalid),
    })
}

/// Whether a list of modes has `:force`, and `:processor`. There are no others.
fn modes_of(modes: Term<'_>) -> NifResult<(bool, bool)> {
    let (mut is_forced, mut writes_in_stop, mut rest) = (false, false, modes);
    for _ in 0..2 {
        let Some((mode, tail)) = cell(rest) else { break };
        let mode = mode.as_c_arg();
        is_forced |= mode == atoms::force().as_c_arg();
        writes_in_stop |= mode == atoms::processor().as_c_arg();
        if mode != atoms::force().as_c_arg() && mode != atoms::processor().as_c_arg() {
            return Err(Error::BadArg);
        }
        rest = tail;
    }
    if rest.is_empty_list() {
        Ok((is_forced, writes_in_stop))
    } else {
        Err(Error::BadArg)
    }
}

nif!(streams / 1, DirtyCpu);
fn streams<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    Ok(or_not_running(env, run.enter(|partitions| Ok(partitions.shared().streams.all()))))
}

nif!(forget_streams / 3, DirtyCpu);
fn forget_streams<'a>(env: Env<'a>, [run, first, most]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, first, most): (Run, u64, u64) = (run.decode()?, first.decode()?, most.decode()?);
    Ok(done(
        env,
        run.enter(|partitions| {
            partitions.shared().streams.forget(first, most);
            Ok(())
        }),
    ))
}

nif!(incarnation / 1);
fn incarnation<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let (atom, word): (rustler::Atom, usize) = (name.decode()?, RawTerm::from(name).word());
    let buffer = registry::find(word).unwrap_or_else(|| registry::find_or_add(atom, word));
    Ok(unsigned_to(env, buffer.incarnation))
}
