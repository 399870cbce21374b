//! Places in a sequence, each with its attempts, as runs of equal neighbours.
//!
//! A place is the position of an entry in a flush, or the id of an item in a log. Attempts are the
//! number of times the processor failed with the entry. Most batches are a single run.

use std::collections::VecDeque;

/// Consecutive places with equal attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first place.
    pub(crate) first: usize,
    /// The number of places, never 0.
    pub(crate) length: usize,
    /// The attempts of each place.
    pub(crate) attempts: u32,
}

impl Run {
    /// The place behind the last one.
    pub(crate) fn end(&self) -> usize {
        self.first + self.length
    }

    /// Whether `next` continues this run.
    fn continues_in(&self, next: &Run) -> bool {
        self.end() == next.first && self.attempts == next.attempts
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Runs {
    /// The runs. No run continues the one before it.
    runs: VecDeque<Run>,
    /// The number of places.
    length: usize,
    /// The number of places with attempts.
    failed: usize,
}

impl Runs {
    /// No places; allocates nothing.
    pub(crate) const NONE: Self = Runs { runs: VecDeque::new(), length: 0, failed: 0 };

    /// The number of places.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Whether the sequence is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The number of places with attempts.
    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    /// The first run.
    pub(crate) fn first(&self) -> Option<Run> {
        self.runs.front().copied()
    }

    /// The runs, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().copied()
    }

    /// Each place with its attempts, in their order.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.iter().flat_map(|run| (run.first..run.end()).map(move |place| (place, run.attempts)))
    }

    /// The attempts of a place, 0 for a missing one. The runs must be in ascending order.
    pub(crate) fn attempts(&self, place: usize) -> u32 {
        let next = self.runs.partition_point(|run| run.end() <= place);
        self.runs.get(next).filter(|run| run.first <= place).map_or(0, |run| run.attempts)
    }

    /// The highest attempts of all places.
    pub(crate) fn most_attempts(&self) -> u32 {
        self.iter().map(|run| run.attempts).max().unwrap_or(0)
    }

    /// Adds a place at the end.
    #[inline]
    pub(crate) fn push(&mut self, place: usize, attempts: u32) {
        self.push_run(Run { first: place, length: 1, attempts });
    }

    /// Adds a run at the end.
    #[inline]
    pub(crate) fn push_run(&mut self, run: Run) {
        self.count(&run);
        match self.runs.back_mut() {
            Some(last) if last.continues_in(&run) => last.length += run.length,
            _ => self.runs.push_back(run),
        }
    }

    /// Counts a new run.
    #[inline]
    fn count(&mut self, run: &Run) {
        self.length += run.length;
        self.failed += if run.attempts > 0 { run.length } else { 0 };
    }

    /// Adds other runs at the end.
    pub(crate) fn append(&mut self, others: &Runs) {
        others.iter().for_each(|run| self.push_run(run));
    }

    /// Adds other runs at the front. Moves the runs of the shorter sequence.
    pub(crate) fn prepend(&mut self, mut others: Runs) {
        if others.runs.len() > self.runs.len() {
            std::mem::swap(self, &mut others);
            self.append(&others);
            return;
        }
        for run in others.runs.iter().rev() {
            self.count(run);
            match self.runs.front_mut() {
                Some(front) if run.continues_in(front) => {
                    (front.first, front.length) = (run.first, run.length + front.length)
                }
                _ => self.runs.push_front(*run),
            }
        }
    }

    /// The first `count` places, or fewer.
    pub(crate) fn head(&self, count: usize) -> Runs {
        let (mut head, mut left) = (Runs::NONE, count);
        for run in self.iter() {
            if left == 0 {
                break;
            }
            let length = run.length.min(left);
            left -= length;
            head.push_run(Run { length, ..run });
        }
        head
    }

    /// Removes the first `count` places, or fewer.
    pub(crate) fn advance(&mut self, count: usize) {
        let mut left = count;
        while let Some(run) = self.runs.front_mut().filter(|_| left > 0) {
            let length = run.length.min(left);
            left -= length;
            self.length -= length;
            self.failed -= if run.attempts > 0 { length } else { 0 };
            (run.first, run.length) = (run.first + length, run.length - length);
            if run.length == 0 {
                self.runs.pop_front();
            }
        }
    }

    /// Removes all places, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        (self.length, self.failed) = (0, 0);
    }
}

impl Default for Runs {
    fn default() -> Self {
        Runs::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places as runs.
    fn runs(places: &[(usize, u32)]) -> Runs {
        let mut runs = Runs::NONE;
        places.iter().for_each(|&(place, attempts)| runs.push(place, attempts));
        runs
    }

    /// The places, after a check of the counts.
    fn places(runs: &Runs) -> Vec<(usize, u32)> {
        let places: Vec<_> = runs.places().collect();
        assert_eq!(runs.len(), places.len());
        assert_eq!(runs.failed(), places.iter().filter(|(_place, attempts)| *attempts > 0).count());
        places
    }

    #[test]
    fn runs_split_and_join_again() {
        let all = [(3, 0), (4, 0), (5, 2), (6, 2), (7, 0), (9, 0)];
        for cut in 0..=all.len() + 1 {
            let whole = runs(&all);
            let (head, mut rest) = (whole.head(cut), whole.clone());
            rest.advance(cut);
            assert_eq!(places(&head), all[..cut.min(all.len())]);
            assert_eq!(places(&rest), all[cut.min(all.len())..]);
            rest.prepend(head);
            assert_eq!((places(&rest), rest.runs.len()), (all.to_vec(), 4));
        }
        let mut doubled = runs(&all);
        doubled.append(&runs(&[(10, 0), (12, 1)]));
        assert_eq!((doubled.runs.len(), places(&doubled).len()), (5, 8));
        doubled.clear();
        assert_eq!(places(&doubled), []);
    }

    #[test]
    fn attempts_are_found_by_place() {
        let runs = runs(&[(3, 1), (4, 1), (8, 2)]);
        assert_eq!([2, 3, 4, 5, 7, 8, 9].map(|place| runs.attempts(place)), [0, 1, 1, 0, 0, 2, 0]);
        assert_eq!(runs.most_attempts(), 2);
    }
}
