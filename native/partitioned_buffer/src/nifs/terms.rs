//! NIFs of the terms of a run: its options, functions, last error and notes.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use std::sync::Arc;

use rustler::{Encoder, Env, Error, NifResult, Term};

use super::{atoms, done, find, nif, nil_or, or_not_running};
use crate::any::{each, AnyPartitions, Run};
use crate::kept::Terms;
use crate::registry;
use crate::run::NotRunning;
use crate::vm::caller::{tuple, unsigned_to, ListBuilder};
use crate::vm::entry::Function;
use crate::vm::kept::KeptTerm;
use crate::vm::small::is_small_copy;

nif!(options / 1);
fn options<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    let options = run.enter(|own| kept(own.shared().kept.get(run.number, |kept| (kept.version, kept.options.clone()))));
    Ok(match options {
        Ok((version, Some(options))) => tuple(env, [unsigned_to(env, version), options.to_term(env)]),
        Ok((_version, None)) => atoms::nil().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(put_options / 4, DirtyCpu);
fn put_options<'a>(env: Env<'a>, [run, version, options, functions]: [Term<'a>; 4]) -> NifResult<Term<'a>> {
    let (run, version): (Run, u64) = (run.decode()?, version.decode()?);
    let options = KeptTerm::small(options).ok_or(Error::BadArg)?;
    let functions = nil_or::<Term<'_>>(functions)?.map(KeptTerm::new);
    Ok(match run.enter(|own| kept(own.shared().kept.put_options(run.number, version, options, functions))) {
        Ok(true) => atoms::ok().to_term(env),
        Ok(false) => atoms::changed().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(functions / 1);
fn functions<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let functions = kept_term(run, |kept| &kept.functions)?;
    if functions.as_ref().is_ok_and(|functions| functions.as_ref().is_some_and(|functions| functions.is_large)) {
        return Ok(atoms::large().to_term(env));
    }
    Ok(kept_to(env, functions))
}

nif!(functions_large / 1, DirtyCpu);
fn functions_large<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    Ok(kept_to(env, kept_term(run, |kept| &kept.functions)?))
}

nif!(last_error / 1);
fn last_error<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    Ok(kept_to(env, kept_term(run, |kept| &kept.last_error)?))
}

nif!(put_error / 2);
fn put_error<'a>(env: Env<'a>, [run, error]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    if !is_small_copy(env, error.into()) {
        return Err(Error::BadArg);
    }
    let error = KeptTerm::new(error);
    Ok(done(env, run.enter(|own| kept(own.shared().kept.put_error(run.number, error)))))
}

nif!(put_stop / 2);
fn put_stop<'a>(env: Env<'a>, [run, leftovers]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let leftovers = leftovers.decode()?;
    note(env, run, |terms| {
        terms.stop.get_or_insert(leftovers);
    })
}

nif!(stop / 1);
fn stop<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    let stop = run.enter(|own| kept(own.shared().kept.get(run.number, |terms| terms.stop)));
    Ok(or_not_running(env, stop))
}

nif!(settle / 1);
fn settle<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    note(env, run, |terms| terms.is_settled = true)
}

nif!(leftovers / 0, DirtyCpu);
fn leftovers<'a>(env: Env<'a>, []: [Term<'a>; 0]) -> NifResult<Term<'a>> {
    let mut left = ListBuilder::start(env);
    registry::all(|name, buffer| {
        let all = AnyPartitions::all(buffer);
        if all.into_iter().any(|partitions| partitions.shared().opened_count().is_some()) {
            return;
        }
        for partitions in all.into_iter().filter(|partitions| partitions.shared().kept.left().is_some()) {
            let (count, held) = each!(AnyPartitions, partitions, own => own.left());
            if held > 0 {
                left.push((name, partitions.kind(), count, held).encode(env));
            }
        }
    });
    Ok(left.build())
}

nif!(left_terms / 2, DirtyCpu);
fn left_terms<'a>(env: Env<'a>, [name, kind]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let kind: rustler::Atom = kind.decode()?;
    if !AnyPartitions::is_kind(kind) {
        return Err(Error::BadArg);
    }
    let left = find(name)?.ok().and_then(|buffer| AnyPartitions::of_kind(buffer, kind).shared().kept.left());
    Ok(match left {
        Some((Some(options), Some(functions))) => tuple(env, [options.to_term(env), functions.to_term(env)]),
        _none => atoms::nil().to_term(env),
    })
}

/// Notes something in the terms of a run.
fn note<'a>(env: Env<'a>, run: Term<'a>, note: impl FnOnce(&mut Terms)) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    Ok(done(env, run.enter(|own| kept(own.shared().kept.note(run.number, note)))))
}

/// The result of a look at the terms of a run, unless it is over.
fn kept<R>(result: Option<R>) -> Result<R, NotRunning> {
    result.ok_or(NotRunning)
}

/// A term of a run.
type MaybeKept = Result<Option<Arc<KeptTerm>>, NotRunning>;

/// A term of a run, to be copied.
fn kept_term(run: Term<'_>, slot: fn(&Terms) -> &Option<Arc<KeptTerm>>) -> NifResult<MaybeKept> {
    let run: Run = run.decode()?;
    Ok(run.enter(|own| kept(own.shared().kept.get(run.number, |terms| slot(terms).clone()))))
}

/// A copy of a term of a run; nil without one.
fn kept_to(env: Env<'_>, term: MaybeKept) -> Term<'_> {
    match term {
        Ok(Some(term)) => term.to_term(env),
        Ok(None) => atoms::nil().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    }
}
