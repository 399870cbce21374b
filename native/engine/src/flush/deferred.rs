//! Failed entries of a flush that wait for the others.

use std::collections::BTreeMap;

use crate::runs::{Run, Runs};

/// Passed entries by their attempts. The ones with the fewest attempts come first, so each has its
/// turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Deferred {
    /// The entries with the same attempts, in ascending order.
    by_attempts: BTreeMap<u32, Runs>,
}

impl Deferred {
    /// Adds an entry.
    pub(super) fn push(&mut self, position: usize, attempts: u32) {
        self.by_attempts.entry(attempts).or_default().push(position, attempts);
    }

    /// Takes out the entries with the fewest attempts; `None` without entries.
    pub(super) fn take_first(&mut self) -> Option<Runs> {
        self.by_attempts.pop_first().map(|(_attempts, runs)| runs)
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.lists().map(Runs::len).sum()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.by_attempts.is_empty()
    }

    /// The lowest position.
    pub(super) fn first(&self) -> Option<usize> {
        self.lists().filter_map(Runs::first).map(|run| run.first).min()
    }

    /// The entries, as lists of equal attempts.
    pub(super) fn lists(&self) -> impl Iterator<Item = &Runs> {
        self.by_attempts.values()
    }

    /// Removes all entries.
    pub(super) fn clear(&mut self) {
        self.by_attempts.clear();
    }
}

/// The places of all lists in ascending order. Each run has the number of its list.
pub(super) fn in_order<'r>(lists: impl IntoIterator<Item = &'r Runs>) -> Vec<(usize, Run)> {
    let runs = |(list, runs): (usize, &'r Runs)| runs.iter().map(move |run| (list, run));
    let mut all: Vec<_> = lists.into_iter().enumerate().flat_map(runs).collect();
    all.sort_unstable_by_key(|(_list, run)| run.first);
    all
}
