//! The terms that a run of a buffer keeps for its processes. The terms outlive the processes.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::vm::kept::KeptTerm;

/// A term, replaced only as a whole. Readers copy it without the lock.
#[derive(Default)]
pub(crate) struct Slot(Mutex<Option<Arc<KeptTerm>>>);

impl Slot {
    /// The present term.
    pub(crate) fn get(&self) -> Option<Arc<KeptTerm>> {
        self.0.lock().clone()
    }

    /// Replaces the term. The old one is freed without the lock.
    pub(crate) fn put(&self, term: Option<KeptTerm>) {
        let old = std::mem::replace(&mut *self.0.lock(), term.map(Arc::new));
        drop(old);
    }
}

/// A term with a version. Only a caller that saw the present version replaces the term.
#[derive(Default)]
pub(crate) struct VersionedSlot(Mutex<(u64, Option<Arc<KeptTerm>>)>);

impl VersionedSlot {
    /// The present version, and its term.
    pub(crate) fn get(&self) -> (u64, Option<Arc<KeptTerm>>) {
        self.0.lock().clone()
    }

    /// Replaces the term of this version by the term of the next version; `false` if `version` is
    /// not the present one.
    pub(crate) fn put(&self, version: u64, term: KeptTerm) -> bool {
        let term = Some(Arc::new(term));
        let mut slot = self.0.lock();
        let is_present = slot.0 == version;
        if is_present {
            let old = std::mem::replace(&mut *slot, (version + 1, term));
            drop(slot);
            drop(old);
        }
        is_present
    }

    /// Forgets the term.
    fn clear(&self) {
        let old = std::mem::take(&mut *self.0.lock());
        drop(old);
    }
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Kept {
    /// The plain options.
    pub(crate) options: VersionedSlot,
    /// The functions of the user.
    pub(crate) functions: Slot,
    /// The last failure of a processor.
    pub(crate) last_error: Slot,
}

impl Kept {
    /// Forgets all terms.
    pub(crate) fn clear(&self) {
        self.options.clear();
        self.functions.put(None);
        self.last_error.put(None);
    }
}
