//! NIFs of queues.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use rustler::{Env, NifResult, Term};

use super::{atoms, find, nif, route, stored, told};
use crate::buffer::QueuePartitions;
use crate::pace::KeyClock;
use crate::run::NotRunning;
use crate::vm::argument::Argument;
use crate::vm::entry::Function;
use crate::vm::large::{charge, parcel};

nif!(push / 3);
fn push<'a>(env: Env<'a>, [name, to, item]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (route, item) = (route(to)?, Argument::from(item));
    let result = find_queue(name)?.and_then(|queue| {
        let is_hashed = route.is_by_term() && queue.count()? > 1;
        let clock = if is_hashed { KeyClock::start(env, item) } else { KeyClock::STOPPED };
        let parcel = parcel(env, item);
        charge(env, parcel.heap(), clock.runs());
        let stored = queue.with_partition(route, item.term, |partition, access| partition.push(access, &parcel));
        clock.charge(env);
        Ok(told(queue, env, route, item.term, stored?))
    });
    Ok(stored(env, result, atoms::ok()))
}

/// The queue of this name, running or not.
#[inline]
pub(super) fn find_queue(name: Term<'_>) -> NifResult<Result<&'static QueuePartitions, NotRunning>> {
    Ok(find(name)?.map(|buffer| &buffer.queue))
}
