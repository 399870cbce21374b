//! The terms that a run of a buffer keeps for its processes. The terms outlive the processes.
//!
//! They are of one run, by its number: [`Kept::end`] frees them, and afterwards nothing is kept for
//! that run. So a call that began before the end of its run leaves no term behind. Each term is
//! replaced as a whole. Terms are copied and freed without the lock.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::vm::kept::KeptTerm;

/// A term that readers share.
type Shared = Option<Arc<KeptTerm>>;

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
}

/// The terms of the present run.
#[derive(Default)]
struct OfRun {
    /// The number of the run; `None` between the end of a run and the start of the next one.
    run: Option<u32>,
    /// Its terms.
    terms: Terms,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Kept(Mutex<OfRun>);

impl Kept {
    /// Begins a run without terms.
    pub(crate) fn begin(&self, run: u32) {
        self.replace(|_present| true, Some(run));
    }

    /// Frees the terms of a run.
    pub(crate) fn end(&self, run: u32) {
        self.replace(|present| present == Some(run), None);
    }

    /// Frees the terms of the run, if it `is_over`.
    fn replace(&self, is_over: impl FnOnce(Option<u32>) -> bool, next: Option<u32>) {
        let mut kept = self.0.lock();
        let next = OfRun { run: next, terms: Terms::default() };
        let old = is_over(kept.run).then(|| std::mem::replace(&mut *kept, next));
        drop(kept);
        drop(old);
    }

    /// Looks at the terms of a run; `None` if it is over.
    pub(crate) fn get<R>(&self, run: u32, look: impl FnOnce(&Terms) -> R) -> Option<R> {
        let kept = self.0.lock();
        (kept.run == Some(run)).then(|| look(&kept.terms))
    }

    /// Replaces the last failure of a run; `None` if it is over.
    pub(crate) fn put_error(&self, run: u32, error: KeptTerm) -> Option<()> {
        let mut new = Some(Arc::new(error));
        let mut kept = self.0.lock();
        let is_present = kept.run == Some(run);
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
        let is_present = kept.run == Some(run);
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
