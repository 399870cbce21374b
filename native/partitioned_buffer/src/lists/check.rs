//! Checks the elements of a list before the first one is written.

use rustler::{Env, Term};

use super::shape::{invalid, Invalid, Shape};
use crate::pace::Pace;
use crate::vm::caller::cell;

/// How many elements are checked before a look at the clock.
const CHUNK: usize = 2048;

/// Checks the elements of a list until the time is up, and returns the unchecked rest, which is
/// empty at the end.
pub(crate) fn check_list<'a>(env: Env<'a>, shape: Shape, list: Term<'a>) -> Result<Term<'a>, Invalid<'a>> {
    let mut pace = Pace::start();
    let mut rest = list;
    loop {
        for _ in 0..CHUNK {
            match cell(rest) {
                Some((element, tail)) if shape.fits(element) => rest = tail,
                _ => {
                    pace.consume_timeslice(env);
                    return if rest.is_empty_list() { Ok(rest) } else { Err(invalid(rest)) };
                }
            }
        }
        if !pace.goes_on(CHUNK) {
            pace.consume_timeslice(env);
            return Ok(rest);
        }
    }
}
