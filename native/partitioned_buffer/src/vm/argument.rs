//! The arguments that a store keeps: keys, values and items.

use rustler::{Env, Term};

use super::term::RawTerm;

/// A term of the caller.
#[derive(Clone, Copy)]
pub(crate) struct Argument {
    /// The term.
    pub(crate) term: RawTerm,
    /// Whether it is an immediate for sure, which needs no memory.
    pub(crate) is_immediate: bool,
}

impl Argument {
    /// A term of the caller.
    #[inline]
    pub(crate) fn new(env: Env<'_>, term: RawTerm) -> Self {
        Argument { term, is_immediate: term.is_immediate(env) }
    }
}

impl From<Term<'_>> for Argument {
    #[inline]
    fn from(term: Term<'_>) -> Self {
        Self::new(term.get_env(), term.into())
    }
}
