//! Writes the elements of a list, which are read in chunks and written in steps.

use rustler::{Env, Error, NifResult, Term};

use super::shape::{invalid, Invalid};
use super::step::Step;
use super::target::Target;
use crate::pace::Pace;
use crate::reservation::Reservation;
use crate::run::NotRunning;
use crate::vm::caller::{cell, tail};

/// The number of elements of a list read before the first is written.
const CHUNK: usize = 2048;

/// The number of elements that a chunk has room for at the start.
const SHORT: usize = 16;

/// The additional room for a full chunk: making room little by little costs more than it saves.
const LONG: usize = 1024;

/// The progress of writing a list.
pub(crate) enum Written<'a> {
    /// All elements are written.
    All,
    /// The time was up. This rest is not written.
    More(Term<'a>),
    /// A partition refused a write. This rest is not written.
    Refused(Term<'a>),
    /// Nothing is written: the list is too long to be checked and written by one call.
    Long,
    /// Nothing is written: the buffer has a bound, and no room is reserved.
    Bounded,
    /// Nothing is written: the grant of the reservation lapsed.
    Lapsed,
    /// Nothing is written: the list is invalid.
    Invalid(Invalid<'a>),
}

/// Writes the elements of a list until the time is up. A list that the caller did not check
/// (`checked`) is checked as a whole first, if it fits into one chunk. In a buffer with a bound,
/// the caller must have a reservation for all elements.
///
/// A chunk that cannot be written is an error only if it is the first one. Else the call returns
/// before it, so a call with an error changes nothing.
pub(crate) fn write_list<'a, T: Target>(
    env: Env<'a>,
    target: &T,
    list: Term<'a>,
    checked: bool,
    reservation: Option<&Reservation>,
) -> NifResult<Result<Written<'a>, NotRunning>> {
    if let Some(reservation) = reservation {
        if !reservation.take_grant() {
            return Ok(Ok(Written::Lapsed));
        }
        if !target.route().is_of_processor() && reservation.begin(env).is_err() {
            return Ok(Err(NotRunning));
        }
    }
    let mut pace = Pace::start();
    let mut chunk = Vec::with_capacity(SHORT);
    let mut step = Step::new();
    let mut start = list;
    let is_begun = |rest: Term<'a>| rest.as_c_arg() != list.as_c_arg();
    let stop = |pace: &Pace, rest: Term<'a>| {
        pace.consume_timeslice(env);
        if is_begun(rest) {
            Ok(Ok(Written::More(rest)))
        } else {
            Err(Error::BadArg)
        }
    };
    loop {
        let end = read(target, start, &mut chunk);
        let is_whole = end.is_empty_list();
        if !is_whole && !checked {
            return Ok(Ok(if chunk.len() == CHUNK { Written::Long } else { Written::Invalid(invalid(end)) }));
        }
        if reservation.is_none() && !checked && target.shared().bound.limits().any() {
            return Ok(Ok(Written::Bounded));
        }
        // An empty list has no write that would notice a stopped buffer. A reservation may be from
        // a buffer that runs as another kind.
        if let Err(NotRunning) = target.shared().count() {
            return Ok(if is_begun(start) { Ok(Written::Refused(start)) } else { Err(NotRunning) });
        }
        let has_room = reservation.is_none_or(|reservation| reservation.is_for(target.shared(), chunk.len()));
        if !has_room || !is_whole && chunk.len() < CHUNK {
            return stop(&pace, start);
        }
        let mut written = 0;
        while written < chunk.len() {
            let next = chunk.len().min(written + pace.step);
            let room = reservation.map(|reservation| reservation.take(next - written));
            // Another process may use the same reservation.
            let Ok(room) = room.transpose() else { return stop(&pace, tail(start, written)) };
            let Ok(done) = step.write(env, target, &chunk[written..next], room.as_ref()) else {
                return Ok(Ok(Written::Refused(step.rest(tail(start, written), next - written))));
            };
            written += done;
            let is_done = is_whole && written == chunk.len();
            if !pace.goes_on(done) && !is_done {
                pace.consume_timeslice(env);
                return Ok(Ok(Written::More(tail(start, written))));
            }
        }
        if is_whole {
            pace.consume_timeslice(env);
            return Ok(Ok(Written::All));
        }
        start = end;
    }
}

/// Reads elements of a list until the chunk is full or an element has another shape, and returns
/// the rest.
fn read<'a, T: Target>(target: &T, list: Term<'a>, chunk: &mut Vec<T::Element>) -> Term<'a> {
    let mut rest = list;
    chunk.clear();
    while chunk.len() < CHUNK {
        let Some((element, tail)) = cell(rest) else { break };
        let Some(decoded) = target.decode(element) else { break };
        if chunk.len() == chunk.capacity() {
            chunk.reserve(LONG);
        }
        chunk.push(decoded);
        rest = tail;
    }
    rest
}
