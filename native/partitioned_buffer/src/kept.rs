//! The terms that a run of a buffer keeps for its processes. The terms outlive the processes.
//!
//! They are of one run, by its number: after [`Kept::end`] nobody can put a term of that run. So a
//! call that began before the end of its run leaves no term behind. The options and functions of a run
//! that left entries outlive it until the next start, for whoever takes care of these entries. Each
//! term is replaced as a whole. Terms are copied and freed without the lock.

use std::sync::Arc;

use parking_lot::Mutex;
use rustler::Atom;

use crate::vm::kept::KeptTerm;

/// A term that readers share.
pub(crate) type Shared = Option<Arc<KeptTerm>>;

/// The terms of a run.
#[derive(Default)]
pub(crate) struct Terms {
    /// How often the options and functions were replaced.
    pub(crate) version: u64,
    /// The plain options.
    pub(crate) options: Shared,
    /// The functions of the user.
    pub(crate) functions: Shared,
    /// The last failure of a processor.
    pub(crate) last_error: Shared,
    /// What a stop by the application does with leftovers; `None` without such a stop.
    pub(crate) stop: Option<Atom>,
    /// Whether the run leaves no entries that need its options and functions.
    pub(crate) is_settled: bool,
}

/// The terms of the last run.
#[derive(Default)]
struct OfRun {
    /// The number of the run; `None` before the first one.
    run: Option<u32>,
    /// Whether it is over.
    is_over: bool,
    /// Its terms.
    terms: Terms,
}

impl OfRun {
    /// Whether the run with this number is the last one, and goes on.
    fn is_present(&self, run: u32) -> bool {
        self.run == Some(run) && !self.is_over
    }
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Kept(Mutex<OfRun>);

impl Kept {
    /// Begins a run without terms.
    pub(crate) fn begin(&self, run: u32) {
        let next = OfRun { run: Some(run), ..OfRun::default() };
        let mut kept = self.0.lock();
        let old = std::mem::replace(&mut *kept, next);
        drop(kept);
        drop(old);
    }

    /// Ends a run: keeps its options and functions if it left entries, and frees its other terms.
    pub(crate) fn end(&self, run: u32) {
        let mut kept = self.0.lock();
        let old = kept.is_present(run).then(|| {
            kept.is_over = true;
            let old = std::mem::take(&mut kept.terms);
            kept.terms.is_settled = old.is_settled;
            if !old.is_settled {
                (kept.terms.options, kept.terms.functions) = (old.options.clone(), old.functions.clone());
            }
            old
        });
        drop(kept);
        drop(old);
    }

    /// The options and functions of the last run, if it is over and left entries.
    pub(crate) fn left(&self) -> Option<(Shared, Shared)> {
        let kept = self.0.lock();
        (kept.is_over && !kept.terms.is_settled).then(|| (kept.terms.options.clone(), kept.terms.functions.clone()))
    }

    /// Looks at the terms of a run; `None` if it is over.
    pub(crate) fn get<R>(&self, run: u32, look: impl FnOnce(&Terms) -> R) -> Option<R> {
        let kept = self.0.lock();
        kept.is_present(run).then(|| look(&kept.terms))
    }

    /// Notes something in the terms of a run; `None` if it is over. It frees no term.
    pub(crate) fn note(&self, run: u32, note: impl FnOnce(&mut Terms)) -> Option<()> {
        let mut kept = self.0.lock();
        kept.is_present(run).then(|| note(&mut kept.terms))
    }

    /// Replaces the last failure of a run; `None` if it is over.
    pub(crate) fn put_error(&self, run: u32, error: KeptTerm) -> Option<()> {
        let mut new = Some(Arc::new(error));
        let mut kept = self.0.lock();
        let is_present = kept.is_present(run);
        if is_present {
            std::mem::swap(&mut kept.terms.last_error, &mut new);
        }
        drop(kept);
        drop(new);
        is_present.then_some(())
    }

    /// Replaces the options of this version by those of the next one, and the functions with them, if
    /// given; `false` if they have another version.
    pub(crate) fn put_options(
        &self,
        run: u32,
        version: u64,
        options: KeptTerm,
        functions: Option<KeptTerm>,
    ) -> Option<bool> {
        let (mut new, mut functions) = (Some(Arc::new(options)), functions.map(Arc::new));
        let mut kept = self.0.lock();
        let is_present = kept.is_present(run);
        let is_put = is_present && kept.terms.version == version;
        if is_put {
            kept.terms.version += 1;
            std::mem::swap(&mut kept.terms.options, &mut new);
            if functions.is_some() {
                std::mem::swap(&mut kept.terms.functions, &mut functions);
            }
        }
        drop(kept);
        drop((new, functions));
        is_present.then_some(is_put)
    }
}
