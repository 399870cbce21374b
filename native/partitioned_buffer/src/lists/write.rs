//! Writes a list step by step, until the time is up.

use std::ops::ControlFlow::{self, Break, Continue};

use rustler::{Env, Error, NifResult, Term};

use super::shape::{check_chunk, invalid, Invalid};
use super::step::{Slot, Step, Stopped, LONG};
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
    let mut slots = [const { Slot::EMPTY }; SHORT];
    let result = match call.step(list, &mut slots) {
        Break(result) => result,
        Continue(rest) => call.write_rest(rest),
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
    /// The pace, if the call has more than a few small elements.
    pace: Option<Pace>,
}

impl<'c, 'a, T: Target> Call<'c, 'a, T> {
    /// Writes the elements behind the first step.
    #[inline(never)]
    fn write_rest(&mut self, mut rest: Term<'a>) -> Result<'a> {
        let mut slots = [const { Slot::EMPTY }; LONG];
        loop {
            let length = self.pace.get_or_insert_with(|| Pace::of_steps(LONG)).step;
            rest = match self.step(rest, &mut slots[..length]) {
                Break(result) => return result,
                Continue(rest) => rest,
            };
        }
    }

    /// Writes as many elements as there are slots, or fewer if they are large. Returns the rest of
    /// the list, or the result at the end of the call.
    #[inline]
    fn step(&mut self, list: Term<'a>, slots: &mut [Slot<T::Write>]) -> ControlFlow<Result<'a>, Term<'a>> {
        let mut step = Step::read(self.env, self.target, list, slots, &mut self.pace);
        let done = self.admit(list, &step).map(|room| step.write(self.env, self.target, room.as_ref()));
        let goes_on = self.pace.as_mut().is_none_or(|pace| pace.goes_on(step.count));
        let written = match done {
            Ok(Ok(())) if step.behind.is_empty_list() => Written::All,
            Ok(Ok(())) if goes_on => return Continue(step.behind),
            Ok(Ok(())) => Written::More(step.behind),
            Ok(Err(Stopped::Large)) => Written::More(step.rest(list)),
            Ok(Err(Stopped::Refused)) => Written::Refused(step.rest(list)),
            Err(result) => return Break(result),
        };
        Break(Ok(Ok(written)))
    }

    /// Checks that a step may be written, and takes its room. Before the first step, it checks the
    /// whole list.
    #[inline]
    fn admit(
        &mut self,
        list: Term<'a>,
        step: &Step<'_, 'a, T::Write>,
    ) -> std::result::Result<Option<Taken<'c>>, Result<'a>> {
        if !step.fits {
            return Err(if self.checked { self.stop(list) } else { Ok(Ok(Written::Invalid(invalid(step.behind)))) });
        }
        if !self.checked {
            match check_chunk(T::SHAPE, step.behind) {
                Ok(unchecked) if unchecked.is_empty_list() => self.checked = true,
                Ok(_unchecked) => return Err(Ok(Ok(Written::Long))),
                Err(invalid) => return Err(Ok(Ok(Written::Invalid(invalid)))),
            }
            if self.target.shared().bound.limits().any() {
                return Err(Ok(Ok(Written::Bounded)));
            }
        }
        // An empty list has no write that would notice a stopped buffer. A reservation may be from
        // a buffer that runs as another kind.
        if let Err(NotRunning) = self.target.shared().count() {
            return Err(if self.is_begun(list) { Ok(Ok(Written::Refused(list))) } else { Ok(Err(NotRunning)) });
        }
        let room = self.reservation.map(|reservation| reservation.take(self.target.shared(), step.count));
        room.transpose().map_err(|_too_little| self.stop(list))
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
