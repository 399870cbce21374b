//! A term that outlives the process that gave it.

use partitioned_buffer_engine::Heap;
use rustler::{Env, Term};

use super::caller::copy_to;
use super::environment::Environment;
use super::large::pack;
use super::term::RawTerm;

/// A term of more bytes is large: copying it can take longer than a NIF may on a normal scheduler.
const LARGE: usize = 32 * 1024;

/// A copy of a term in a separate environment. Nobody writes the environment after `new`.
pub(crate) struct KeptTerm {
    /// The copy.
    term: RawTerm,
    /// The environment of the copy.
    _environment: Environment,
    /// Whether it is large.
    pub(crate) is_large: bool,
}

// SAFETY: the term lives in the environment, which is shared without being written.
unsafe impl Send for KeptTerm {}
// SAFETY: as above.
unsafe impl Sync for KeptTerm {}

impl Drop for KeptTerm {
    fn drop(&mut self) {
        // The environment will take itself off the count.
        super::memory::count_environments(1);
    }
}

impl KeptTerm {
    /// Keeps a copy of the term, on a dirty scheduler unless it is small for sure.
    pub(crate) fn new(term: Term<'_>) -> Self {
        let (environment, [copy]) = pack(term.get_env(), [term.into()]);
        // It is not counted: the count is that of the heaps with copies of entries.
        super::memory::count_environments(-1);
        let is_large = environment.large_bytes() > LARGE;
        KeptTerm { term: copy, _environment: environment, is_large }
    }

    /// Keeps a copy of a term that is read on normal schedulers; `None` if it is large.
    pub(crate) fn small(term: Term<'_>) -> Option<Self> {
        Some(Self::new(term)).filter(|kept| !kept.is_large)
    }

    /// A copy in the environment of the caller.
    pub(crate) fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        copy_to(env, self.term)
    }
}
