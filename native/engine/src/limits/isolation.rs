//! How a partition isolates the entries that its sink refuses: how many entries the next batch may
//! have, and whether the next failure begins a pause.
//!
//! | outcome | limit | ceiling |
//! |---|---|---|
//! | a batch of `n` entries fails as a whole, a *split* | `n / 4` | `n / 2` |
//! | a single entry fails | 1 | the batch size: the cause was the entry, not the size |
//! | a single entry is cancelled | | the batch size |
//! | a batch as large as the limit succeeds | times 4, up to the ceiling | |
//! | the 16th success in a row | | times 2, up to the batch size |
//!
//! A split needs no pause, since a smaller batch may succeed. Single entries that fail do: the third
//! one since the last success, or the first one after a pause.
//!
//! A processor that ends its VM leaves no outcome, so nobody splits its batch: each of its entries has
//! one more attempt. A replay makes the entries with many attempts [suspects](Suspects), and the
//! processor gets each of them alone.

/// The ceiling grows after this number of successes in a row.
const SUCCESSES: u32 = 16;

/// This number of single entries fails before a pause.
const ALONE: u32 = 3;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// How many entries the next batch may have, beside the batch size.
    pub limit: usize,
    /// The limit does not grow above this number.
    pub ceiling: usize,
    /// Failures of single entries since the last success.
    pub alone: u32,
    /// Whether a pause began since the last success.
    pub has_paused: bool,
    /// The entries that the processor gets alone.
    pub suspects: Suspects,
    /// Successes in a row.
    successes: u32,
}

/// Replayed entries with many attempts: one may end the VM again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspects {
    /// An entry with this number of attempts is a suspect.
    from: u32,
    /// The number of suspects that were not called. Deleted ones count too.
    left: usize,
}

impl Suspects {
    /// No suspects.
    pub(crate) const NONE: Suspects = Suspects { from: u32::MAX, left: 0 };

    /// Whether an entry with this number of attempts is a suspect.
    pub(crate) fn has(&self, attempts: u32) -> bool {
        attempts >= self.from
    }

    /// Adds one that was replayed.
    pub(crate) fn add(&mut self, from: u32) {
        *self = Suspects { from, left: self.left + 1 };
    }

    /// A suspect was called.
    pub(crate) fn call(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            *self = Suspects::NONE;
        }
    }
}

impl Default for Isolation {
    /// No limit but the batch size.
    fn default() -> Self {
        Isolation {
            limit: usize::MAX,
            ceiling: usize::MAX,
            alone: 0,
            has_paused: false,
            suspects: Suspects::NONE,
            successes: 0,
        }
    }
}

impl Isolation {
    /// The processor succeeded with all or some entries of a batch of `length` entries.
    pub(crate) fn succeed(&mut self, length: usize) {
        (self.alone, self.has_paused, self.successes) = (0, false, self.successes + 1);
        if length >= self.limit {
            self.limit = self.limit.saturating_mul(4).min(self.ceiling);
        }
        if self.successes == SUCCESSES {
            (self.ceiling, self.successes) = (self.ceiling.saturating_mul(2), 0);
        }
    }

    /// A batch of `length` entries failed as a whole.
    pub(crate) fn split(&mut self, length: usize) {
        (self.limit, self.ceiling, self.successes) = ((length / 4).max(1), (length / 2).max(1), 0);
    }

    /// Each entry of a batch of `length` entries failed by itself.
    pub(crate) fn fail(&mut self, length: usize) {
        (self.alone, self.successes) = (self.alone.saturating_add(1), 0);
        if length == 1 {
            (self.limit, self.ceiling) = (1, usize::MAX);
        }
    }

    /// The processor cancelled a whole batch of `length` entries.
    pub(crate) fn cancel(&mut self, length: usize) {
        if length == 1 {
            self.ceiling = usize::MAX;
        }
    }

    /// A pause begins.
    pub(crate) fn pause(&mut self) {
        self.has_paused = true;
    }

    /// Whether another failure of a single entry begins a pause.
    pub fn is_exhausted(&self) -> bool {
        self.has_paused || self.alone + 1 >= ALONE
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A partition that processes entries until none is left, or a pause begins.
    struct Sink<F> {
        isolation: Isolation,
        batch_size: usize,
        takes: F,
        calls: usize,
        refused: usize,
        pauses: usize,
    }

    impl<F: FnMut(&[usize]) -> bool> Sink<F> {
        fn new(batch_size: usize, takes: F) -> Self {
            Sink { isolation: Isolation::default(), batch_size, takes, calls: 0, refused: 0, pauses: 0 }
        }

        /// Returns the entries that wait, and whether a pause began.
        fn process(&mut self, entries: impl IntoIterator<Item = usize>) -> (Vec<usize>, bool) {
            let (mut head, mut waiting) = (VecDeque::from_iter(entries), Vec::new());
            while !head.is_empty() {
                let length = self.isolation.limit.min(self.batch_size).min(head.len());
                let batch: Vec<_> = head.iter().take(length).copied().collect();
                self.calls += 1;
                if (self.takes)(&batch) {
                    self.isolation.succeed(length);
                    head.drain(..length);
                    continue;
                }
                self.refused += 1;
                if length > 1 {
                    self.isolation.split(length);
                    continue;
                }
                let pauses = self.isolation.is_exhausted() || head.len() == 1;
                self.isolation.fail(1);
                waiting.extend(head.pop_front());
                if pauses {
                    self.isolation.pause();
                    self.pauses += 1;
                    return (head.into_iter().chain(waiting).collect(), true);
                }
            }
            (waiting, false)
        }

        /// Processes entries, with as many pauses as it takes.
        fn process_all(&mut self, entries: impl IntoIterator<Item = usize>) {
            let mut left = self.process(entries);
            while left.1 {
                left = self.process(left.0);
            }
        }
    }

    #[test]
    fn one_refused_entry_costs_few_calls_and_no_pause() {
        for refused in 0..999 {
            let mut sink = Sink::new(1_000, |batch: &[usize]| !batch.contains(&refused));
            assert_eq!(sink.process(0..1_000), (vec![refused], false));
            assert!(sink.calls <= 30, "{} calls", sink.calls);
        }
    }

    #[test]
    fn refused_entries_among_others_cost_few_calls_each() {
        let mut sink = Sink::new(1_000, |batch: &[usize]| !batch.iter().any(|entry| entry % 40 == 7));
        let (waiting, paused) = sink.process(0..5_000);
        assert_eq!((waiting.len(), paused), (125, false));
        assert!(sink.calls < 1_500, "{} calls", sink.calls);
    }

    #[test]
    fn an_entry_that_is_cancelled_when_alone_lets_the_limit_grow_again() {
        let mut isolation = Isolation::default();
        isolation.split(2);
        isolation.cancel(1);
        let limits = [1, 4, 16, 64].map(|length| {
            isolation.succeed(length);
            isolation.limit
        });
        assert_eq!((limits, isolation.alone), ([4, 16, 64, 256], 0));
    }

    #[test]
    fn entries_are_suspects_until_all_replayed_ones_were_called() {
        let mut suspects = Suspects::NONE;
        assert!(!suspects.has(1_000));
        (0..2).for_each(|_| suspects.add(2));
        assert_eq!([1, 2, 3].map(|attempts| suspects.has(attempts)), [false, true, true]);
        suspects.call();
        assert!(suspects.has(2));
        suspects.call();
        assert_eq!(suspects, Suspects::NONE);
    }

    #[test]
    fn the_limit_finds_the_size_that_a_sink_takes() {
        let mut sink = Sink::new(1_000, |batch: &[usize]| batch.len() <= 100);
        assert_eq!(sink.process(0..20_000), (vec![], false));
        assert!(sink.calls <= 360 && sink.refused <= 25, "{} of {} calls refused", sink.refused, sink.calls);
    }

    #[test]
    fn an_outage_costs_one_call_for_each_pause() {
        let mut sink = Sink::new(1_000, |_: &[usize]| false);
        let mut left: Vec<_> = (0..10_000).collect();
        for _pause in 0..100 {
            left = sink.process(left).0;
        }
        assert_eq!((sink.pauses, left.len()), (100, 10_000));
        assert!(sink.calls <= 100 + 8, "{} calls", sink.calls);
        let mut recovered = Sink { isolation: sink.isolation, ..Sink::new(1_000, |_: &[usize]| true) };
        assert_eq!(recovered.process(left), (vec![], false));
        assert!(recovered.calls <= 15, "{} calls", recovered.calls);
    }

    #[test]
    fn failures_at_random_cost_a_multiple_of_the_calls() {
        let mut random = 1_u64;
        let mut sink = Sink::new(500, |_: &[usize]| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % 10 > 0
        });
        sink.process_all(0..20_000);
        assert!(sink.calls < 400, "{} calls", sink.calls);
    }
}
