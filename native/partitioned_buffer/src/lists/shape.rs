//! The shapes of the elements of a list.

use partitioned_buffer_engine::Version;
use rustler::Term;

use crate::vm::caller::{amount, cell, elements, version};
use crate::vm::term::RawTerm;

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
    /// Whether an element has this shape.
    pub(super) fn fits(self, element: Term<'_>) -> bool {
        match self {
            Shape::Pair | Shape::Versioned => Entry::decode(self, element).is_some(),
            Shape::Amount => addition(element).is_some(),
            Shape::Item => true,
        }
    }
}

/// An entry of a list, with the terms of the caller.
#[derive(Clone, Copy)]
pub(crate) enum Entry {
    /// To be put: key and value.
    Put(RawTerm, RawTerm),
    /// To be put if it is newer: key, value and version.
    PutNewer(RawTerm, RawTerm, Version<RawTerm>),
}

impl Entry {
    /// The entry in an element of a list; `None` if it has another shape.
    pub(super) fn decode(shape: Shape, element: Term<'_>) -> Option<Self> {
        if let Shape::Versioned = shape {
            let [key, value, number] = elements(element)?;
            Some(Entry::PutNewer(key.into(), value.into(), version(number)?))
        } else {
            let [key, value] = elements(element)?;
            Some(Entry::Put(key.into(), value.into()))
        }
    }
}

/// The key and the amount in an element of a list; `None` if it has another shape.
pub(super) fn addition(element: Term<'_>) -> Option<(RawTerm, i64)> {
    let [key, number] = elements(element)?;
    Some((key.into(), amount(number)?))
}

/// Why a list is invalid.
pub(crate) enum Invalid<'a> {
    /// This element has another shape.
    Element(Term<'a>),
    /// This is no list, but the tail of one.
    Tail(Term<'a>),
}

/// The error of a list that does not begin with an element of its shape.
pub(super) fn invalid(list: Term<'_>) -> Invalid<'_> {
    match cell(list) {
        Some((element, _tail)) => Invalid::Element(element),
        None => Invalid::Tail(list),
    }
}
