//! The NIFs: each decodes its arguments, makes one call, and encodes the result.
//! `PartitionedBuffer.Native` documents them for their callers.
//!
//! Arguments are not trusted: a wrong one raises `badarg` and changes nothing. A NIF that works on
//! many entries stops after half a millisecond and returns its progress. Then only the call for the
//! rest finds what is wrong there.

mod absorb;
mod cluster;
mod counter;
mod flush;
mod journal;
mod library;
mod lists;
mod map;
mod partition;
mod queue;
mod room;
mod runs;
mod terms;

use std::cell::Cell;

use partitioned_buffer_engine::{Store, Stored};
use rustler::{Decoder, Encoder, Env, Error, NifResult, Term};

use crate::buffer::{Buffer, Partitions};
use crate::registry;
use crate::route::Route;
use crate::run::NotRunning;
use crate::vm::caller::{elements, unsigned_to};
use crate::vm::term::RawTerm;

mod atoms {
    //! The atoms of arguments and results.
    #![allow(clippy::missing_docs_in_private_items)]
    rustler::atoms! {
        ok,
        error,
        nil,
        killed,
        timeout,
        more,
        done,
        refused,
        processor,
        closed,
        not_running,
        long,
        large,
        changed,
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
        wait,
        lapsed,
        reserved,
        busy,
        on_hold,
        paused,
        events,
        room,
        drainer,
        drained,
        server,
        tasks,
        task,
        any,
        clock,
        own,
        versions,
        elsewhere,
        duplicate,
        stopping,
        force,
        written,
        synced,
        failed,
        recovered,
        rewritten,
        journal,
        locked,
        format,
        held,
        value,
        sum,
        open,
        write,
        sync,
        delete
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
            rustler::codegen_runtime::inventory::submit!(crate::vm::entry::entry::<$arity, Nif>(
                rustler::SchedulerFlags::$scheduler
            ));
        };
    };
}
pub(crate) use nif;

/// The buffer of this name, running or not. A name of another type than atom is an error.
#[inline]
fn find(name: Term<'_>) -> NifResult<Result<&'static Buffer, NotRunning>> {
    match registry::find(RawTerm::from(name).word()) {
        Some(buffer) => Ok(Ok(buffer)),
        None if name.is_atom() => Ok(Err(NotRunning)),
        None => Err(Error::BadArg),
    }
}

/// The route of a call. Most calls give nil.
#[inline]
fn route(term: Term<'_>) -> NifResult<Route> {
    if term.as_c_arg() == atoms::nil().as_c_arg() {
        return Ok(Route::BY_TERM);
    }
    chosen_route(term)
}

thread_local! {
    /// Whether the present call may use a route with reserved room.
    static IS_RESERVED: Cell<bool> = const { Cell::new(false) };
}

/// Lets a call use a route `{:reserved, to}`: its caller has room for an entry.
fn with_reserved_routes<R>(call: impl FnOnce() -> R) -> R {
    IS_RESERVED.set(true);
    let result = call();
    IS_RESERVED.set(false);
    result
}

/// A route chosen by the caller; `{:processor, to}` marks the write of a processor.
#[cold]
fn chosen_route(term: Term<'_>) -> NifResult<Route> {
    match elements(term) {
        Some([writer, to]) if writer.as_c_arg() == atoms::reserved().as_c_arg() && IS_RESERVED.get() => {
            Ok(route(to)?.with_room())
        }
        Some([writer, to]) if writer.as_c_arg() == atoms::processor().as_c_arg() => {
            Ok(partition_or_nil(to)?.of_processor())
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
        Ok(Stored::Versioned) => atoms::versions().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    }
}

/// The result of a write. Sends the news to the partition if enough entries wait now.
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

/// `None` for the atom `:infinity`.
fn infinity<T>(term: Term<'_>) -> NifResult<Option<T>> {
    let atom: rustler::Atom = term.decode()?;
    if atom == atoms::infinity() {
        Ok(None)
    } else {
        Err(Error::BadArg)
    }
}

/// `None` for the atom `:infinity`, else a positive count.
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

/// The result or `:not_running`.
fn or_not_running<'a>(env: Env<'a>, result: Result<impl Encoder, NotRunning>) -> Term<'a> {
    match result {
        Ok(result) => result.encode(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    }
}

/// `None` for the atom `nil`.
fn nil_or<'a, T: Decoder<'a>>(term: Term<'a>) -> NifResult<Option<T>> {
    if term.as_c_arg() == atoms::nil().as_c_arg() {
        return Ok(None);
    }
    term.decode().map(Some)
}
