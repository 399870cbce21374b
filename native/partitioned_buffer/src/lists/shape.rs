//! The shapes of the elements of a list, and their check before the first one is written.

use rustler::{Env, Term};

use crate::pace::Pace;
use crate::vm::caller::{amount, cell, elements, version};

/// The shape of a list's elements.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// `{key, value}`
    Pair,
    /// `{key, value, version}`
    Versioned,
    /// `{key, amount}`
    Amount,
    /// Any term.
    Item,
}

impl Shape {
    /// Whether an element has this shape. A large element must not take longer: a whole chunk is
    /// checked without a look at the clock.
    fn fits(self, element: Term<'_>) -> bool {
        match self {
            Shape::Pair => elements::<2>(element).is_some(),
            Shape::Versioned => elements(element).is_some_and(|[_key, _value, number]| version(number).is_some()),
            Shape::Amount => elements(element).is_some_and(|[_key, number]| amount(number).is_some()),
            Shape::Item => true,
        }
    }
}

/// Why a list is invalid.
pub(crate) enum Invalid<'a> {
    /// This element has another shape.
    Element(Term<'a>),
    /// This is no list, but the tail of one.
    Tail(Term<'a>),
}

/// The error of a list that does not begin with an element of its shape.
pub(crate) fn invalid(list: Term<'_>) -> Invalid<'_> {
    match cell(list) {
        Some((element, _tail)) => Invalid::Element(element),
        None => Invalid::Tail(list),
    }
}

/// How many elements are checked before a look at the clock.
const CHUNK: usize = 2048;

/// Checks a chunk of elements, and returns the unchecked rest.
pub(super) fn check_chunk(shape: Shape, list: Term<'_>) -> Result<Term<'_>, Invalid<'_>> {
    let mut rest = list;
    for _ in 0..CHUNK {
        match cell(rest) {
            Some((element, tail)) if shape.fits(element) => rest = tail,
            None if rest.is_empty_list() => break,
            _misfit => return Err(invalid(rest)),
        }
    }
    Ok(rest)
}

/// Checks the elements of a list until the time is up, and returns the unchecked rest, which is
/// empty at the end.
pub(crate) fn check_list<'a>(env: Env<'a>, shape: Shape, list: Term<'a>) -> Result<Term<'a>, Invalid<'a>> {
    let mut pace = Pace::start();
    let mut rest = check_chunk(shape, list);
    while pace.goes_on(CHUNK) && rest.as_ref().is_ok_and(|rest| !rest.is_empty_list()) {
        rest = rest.and_then(|rest| check_chunk(shape, rest));
    }
    pace.consume_timeslice(env);
    rest
}
