//! Writes a list step by step, until the time is up.

use std::ops::ControlFlow::{self, Break, Continue};

use rustler::{Env, Error, NifResult, Term};

use super::shape::{check_chunk, invalid, Invalid};
use super::step::{Behind, Step, Stopped, LONG};
use super::target::Target;
use crate::pace::Pace;
use crate::reservation::{Reservation, Taken};
use crate::run::NotRunning;

/// The most elements of the first step: as many as one call may write without a look at the clock.
const SHORT: usize = 16;

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

/// The result of writing a list.
type Result<'a> = NifResult<std::result::Result<Written<'a>, NotRunning>>;

/// Writes the elements of a list until the time is up. A list that the caller did not check
/// (`checked`) is checked as a whole first, unless it is too long. In a buffer with a bound, the
/// caller must have a reservation for all elements.
///
/// A step that cannot be written is an error only if it is the first one. Else the call returns
/// before it, so a call with an error changes nothing.
#[inline]
pub(crate) fn write_list<'a, T: Target>(
    env: Env<'a>,
    target: &T,
    list: Term<'a>,
    checked: bool,
    reservation: Option<&Reservation>,
) -> Result<'a> {
    if let Some(reservation) = reservation {
        if !reservation.take_grant() {
            return Ok(Ok(Written::Lapsed));
        }
        if !target.route().is_of_processor() && reservation.begin(env).is_err() {
            return Ok(Err(NotRunning));
        }
    }
    let mut call = Call { env, target, list, checked, reservation, pace: None };
    let mut step = Step::before(list);
    let result = loop {
        if let Break(result) = call.step(&mut step) {
            break result;
        }
    };
    if let Some(pace) = call.pace {
        pace.consume_timeslice(env);
    }
    result
}

/// A call that writes a list.
struct Call<'c, 'a, T> {
    /// The caller.
    env: Env<'a>,
    /// The destination.
    target: &'c T,
    /// The whole list.
    list: Term<'a>,
    /// Whether the list is checked.
    checked: bool,
    /// The room for all elements.
    reservation: Option<&'c Reservation>,
    /// The pace, once the call has more than a few small elements.
    pace: Option<Pace>,
}

impl<'c, 'a, T: Target> Call<'c, 'a, T> {
    /// Does the step behind this one. Breaks with the result at the end of the call.
    #[inline(always)]
    fn step(&mut self, step: &mut Step<'a, T::Write>) -> ControlFlow<Result<'a>> {
        let most = self.pace.as_ref().map_or(SHORT, |pace| pace.step);
        step.read(self.env, self.target, most, &mut self.pace);
        if step.behind == Behind::Elements {
            // The writes of this step tell how long the next one may be.
            self.pace.get_or_insert_with(|| Pace::of_steps(LONG));
        }
        let done = self.admit(step).map(|room| step.write(self.env, self.target, room.as_ref(), self.pace.as_ref()));
        let goes_on = self.pace.as_mut().is_none_or(|pace| pace.goes_on(step.count()));
        Break(Ok(Ok(match done {
            Ok(Ok(())) if step.behind == Behind::End => Written::All,
            Ok(Ok(())) if goes_on => return Continue(()),
            Ok(Ok(())) => Written::More(step.rest),
            Ok(Err(Stopped::Large | Stopped::Late)) => Written::More(step.undone()),
            Ok(Err(Stopped::Refused)) => Written::Refused(step.undone()),
            Err(result) => return Break(result),
        })))
    }

    /// Checks that a step may be written, and takes its room. Before the first step, it checks the
    /// whole list.
    #[inline(always)]
    fn admit(&mut self, step: &Step<'a, T::Write>) -> std::result::Result<Option<Taken<'c>>, Result<'a>> {
        if step.behind == Behind::Misfit {
            return Err(if self.checked { self.stop(step.list) } else { Ok(Ok(Written::Invalid(invalid(step.rest)))) });
        }
        if !self.checked {
            if step.behind == Behind::Elements {
                match check_chunk(T::SHAPE, step.rest) {
                    Ok(unchecked) if unchecked.is_empty_list() => {}
                    Ok(_unchecked) => return Err(Ok(Ok(Written::Long))),
                    Err(invalid) => return Err(Ok(Ok(Written::Invalid(invalid)))),
                }
            }
            self.checked = true;
            if self.target.shared().bound.is_limited() {
                return Err(Ok(Ok(Written::Bounded)));
            }
        }
        // An empty list has no write that would notice a stopped buffer. A reservation may be from
        // a buffer that runs as another kind.
        if let Err(NotRunning) = self.target.shared().count() {
            return Err(if self.is_begun(step.list) {
                Ok(Ok(Written::Refused(step.list)))
            } else {
                Ok(Err(NotRunning))
            });
        }
        let room = self.reservation.map(|reservation| reservation.take(self.target.shared(), step.count()));
        room.transpose().map_err(|_too_little| self.stop(step.list))
    }

    /// The result at a step that cannot be written.
    #[cold]
    fn stop(&self, rest: Term<'a>) -> Result<'a> {
        if self.is_begun(rest) {
            Ok(Ok(Written::More(rest)))
        } else {
            Err(Error::BadArg)
        }
    }

    /// Whether elements before this rest of the list are written.
    fn is_begun(&self, rest: Term<'a>) -> bool {
        rest.as_c_arg() != self.list.as_c_arg()
    }
}
