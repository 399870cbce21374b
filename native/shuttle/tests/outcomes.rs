//! Entries in flight with outcomes, in the partition of a map, under thousands of schedules.
//! `partition.rs` tells how to choose them and run one again.
#![allow(missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

mod buffer;

use std::sync::Arc;

use buffer::history::{Answer, History, Step};
use buffer::map::{self, Buffer};
use buffer::{check, join, spawn};
use common::reading::{flush, read, GivenBack};
use common::ONE;
use partitioned_buffer_engine::{Limits, Stored};
use shuttle::rand::{thread_rng, Rng};
use shuttle::sync::atomic::{AtomicBool, Ordering};

/// The version of the entries that a test begins with.
const FIRST: i64 = 5;

/// A buffer in whose first flush these keys are, each with a value of its own number, and the batch
/// of all of them.
fn start_in_flight(keys: &[i64]) -> (Arc<Buffer>, map::Lease) {
    let buffer = map::start(1, true);
    for &key in keys {
        assert_eq!(buffer.put_newer_as(|access| access, key, key, FIRST), Ok(Stored::Stored));
    }
    let lease = buffer.lease(usize::MAX).expect("all is in flight");
    assert_eq!(lease.entries.len(), keys.len());
    (buffer, lease)
}

/// Leases a batch several times, and fails with it each time.
fn fail_times(buffer: &Buffer, times: usize, size: usize) {
    for lease in (0..times).filter_map(|_| buffer.lease(size)) {
        buffer.fail(&lease, None);
    }
}

impl Buffer {
    /// The values of a key that the processor has succeeded with, in order.
    fn sunk(&self, key: i64) -> Vec<i64> {
        self.sink().into_iter().filter(|entry| entry.key == key).map(|entry| entry.value).collect()
    }
}

/// Lets the processor succeed with all that is left, and checks that no memory is.
fn finish(buffer: &Buffer) {
    buffer.succeed_with_all(2);
    assert_freed(buffer);
}

fn assert_freed(buffer: &Buffer) {
    let mut copies = buffer.leased().into_iter().flat_map(|entry| entry.copies);
    assert!(copies.all(|copy| !copy.is_live()), "the last outcome frees the memory");
}

#[test]
fn a_delete_while_the_entry_is_given_back_is_not_lost() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1]);
        let processor = spawn(&buffer, move |buffer| buffer.fail(&lease, None));
        buffer.delete(1);
        assert_eq!(buffer.get(1), None, "a deleted entry is gone at once");
        join(processor);
        assert_eq!(buffer.get(1), None, "and does not come back");
        finish(&buffer);
        assert_eq!(buffer.sink(), [], "a deleted entry is not retried");
    });
}

#[test]
fn an_entry_is_read_until_the_processor_has_succeeded_with_it() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1, 2]);
        let processor = spawn(&buffer, move |buffer| {
            buffer.fail(&lease, None);
            // Swaps the stores as well.
            fail_times(buffer, 2, usize::MAX);
        });
        for _ in 0..4 {
            assert_eq!((buffer.get(1), buffer.get(2)), (Some(1), Some(2)));
        }
        join(processor);
        assert_eq!(buffer.sink(), []);
        finish(&buffer);
        assert_eq!((buffer.get(1), buffer.get(2)), (None, None));
    });
}

#[test]
fn an_entry_is_held_all_the_time_while_it_is_given_back() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1]);
        let processor = spawn(&buffer, move |buffer| buffer.fail(&lease, None));
        let held = buffer.first().held();
        assert!((1..=2).contains(&held), "{held} are held");
        join(processor);
        assert_eq!(buffer.first().held(), 1);
        finish(&buffer);
    });
}

#[test]
fn a_key_is_new_only_when_the_processor_has_succeeded_with_its_entry() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1]);
        let has_succeeded = Arc::new(AtomicBool::new(false));
        let processor = {
            let has_succeeded = has_succeeded.clone();
            spawn(&buffer, move |buffer| {
                buffer.fail(&lease, None);
                fail_times(buffer, 1, 1);
                let lease = buffer.lease(1).expect("the entry waits again");
                has_succeeded.store(true, Ordering::SeqCst);
                buffer.succeed(lease);
            })
        };
        let is_stored = (0..4).any(|_| buffer.put_new(1, 7) == Ok(Stored::Stored));
        assert!(!is_stored || has_succeeded.load(Ordering::SeqCst), "it is in flight or waits");
        join(processor);
        finish(&buffer);
        assert_eq!(buffer.sunk(1), if is_stored { vec![1, 7] } else { vec![1] });
    });
}

#[test]
fn versions_rise_at_the_sink_though_batches_fail() {
    check(|| {
        let buffer = map::start(1, true);
        let writers = [0, 1].map(|key| {
            spawn(&buffer, move |buffer| {
                for version in 1..=4 {
                    assert_eq!(buffer.put_newer(key, version), Ok(Stored::Stored), "a newer version is stored");
                }
            })
        });
        let processor = spawn(&buffer, |buffer| {
            fail_times(buffer, 2, usize::MAX);
            buffer.lease(1).into_iter().for_each(|lease| buffer.succeed(lease));
            fail_times(buffer, 1, 1);
        });
        writers.into_iter().for_each(join);
        join(processor);
        finish(&buffer);
        for key in 0..2 {
            let versions = buffer.sunk(key);
            assert!(versions.is_sorted_by(|old, new| old < new), "versions rise: {versions:?}");
            assert_eq!(versions.last(), Some(&4), "the last version comes last: {versions:?}");
        }
    });
}

#[test]
fn a_stale_version_is_refused_wherever_the_entry_is() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1]);
        let processor = spawn(&buffer, move |buffer| {
            buffer.fail(&lease, None);
            fail_times(buffer, 2, 1);
        });
        let writer = spawn(&buffer, |buffer| {
            (FIRST + 1..=FIRST + 3).for_each(|version| assert_eq!(buffer.put_newer(1, version), Ok(Stored::Stored)))
        });
        (0..3).for_each(|_| assert_eq!(buffer.put_newer_as(|access| access, 1, 100, FIRST), Ok(Stored::Refused)));
        join(writer);
        (0..3).for_each(|_| assert_eq!(buffer.put_newer_as(|access| access, 1, 100, FIRST + 3), Ok(Stored::Refused)));
        join(processor);
        finish(&buffer);
        assert_eq!(buffer.sunk(1), [FIRST + 3], "all failures are superseded");
    });
}

#[test]
fn a_newer_write_replaces_the_entry_that_is_given_back() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1, 2, 3]);
        let processor = spawn(&buffer, move |buffer| buffer.fail(&lease, None));
        buffer.put(1, 10).expect("the buffer runs");
        assert_eq!(buffer.put_newer(2, FIRST + 1), Ok(Stored::Stored));
        assert_eq!((buffer.get(1), buffer.get(2), buffer.get(3)), (Some(10), Some(FIRST + 1), Some(3)));
        let GivenBack { retried, superseded, given_up } = join(processor);
        assert_eq!((retried + superseded, given_up), (3, 0));
        assert!(superseded <= 2, "{superseded} are superseded");
        finish(&buffer);
        assert_eq!([1, 2, 3].map(|key| buffer.sunk(key)), [[10], [FIRST + 1], [3]], "each key comes once, the newest");
    });
}

#[test]
fn a_success_takes_only_what_was_in_the_batch() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1, 2, 3]);
        let processor = spawn(&buffer, move |buffer| buffer.succeed(lease));
        let is_new = buffer.put_new(1, 10) == Ok(Stored::Stored);
        buffer.put(2, 20).expect("the buffer runs");
        buffer.delete(3);
        assert_eq!((buffer.get(2), buffer.get(3)), (Some(20), None));
        let read = buffer.get(1);
        assert!(if is_new { read == Some(10) } else { matches!(read, Some(1) | None) }, "{is_new}, {read:?}");
        join(processor);
        finish(&buffer);
        assert_eq!(buffer.sunk(1), if is_new { vec![1, 10] } else { vec![1] });
        assert_eq!((buffer.sunk(2), buffer.sunk(3)), (vec![2, 20], vec![3]));
    });
}

#[test]
fn two_readers_never_lease_the_same_batch() {
    check(|| {
        let buffer = map::start(1, true);
        (0..5).for_each(|key| buffer.put(key, key).expect("the buffer runs"));
        let readers = [1, 2].map(|size| {
            spawn(&buffer, move |buffer| {
                for lease in (0..4).filter_map(|_| buffer.lease(size)) {
                    buffer.succeed(lease);
                }
            })
        });
        readers.into_iter().for_each(join);
        finish(&buffer);
        (0..5).for_each(|key| assert_eq!(buffer.sunk(key), [key]));
    });
}

#[test]
fn operations_beside_a_flush_whose_parts_are_freed_use_no_freed_term() {
    check(|| {
        let buffer = map::start(1, true);
        (1..=4).for_each(|key| assert_eq!(buffer.put_newer(key, key), Ok(Stored::Stored)));
        let reader = spawn(&buffer, |buffer| {
            // Each success frees an entry, while the others are in flight.
            for lease in (0..4).filter_map(|_| buffer.lease(1)) {
                buffer.succeed(lease);
            }
        });
        let other = spawn(&buffer, |buffer| {
            assert!([None, Some(2)].contains(&buffer.get(2)), "a key has its value or none");
            buffer.put(3, 30).expect("the buffer runs");
            assert!([None, Some(3), Some(4)].contains(&buffer.get(4)), "a key has a value or none");
        });
        buffer.delete(2);
        let newer = buffer.put_newer(4, 3);
        assert!([None, Some(1)].contains(&buffer.get(1)), "a key has its value or none");
        join(reader);
        join(other);
        finish(&buffer);
        assert_eq!(buffer.sunk(1), [1]);
        assert_eq!(buffer.sunk(3).last(), Some(&30));
        // The older version is stored only after the outcome of the newer one.
        assert!(buffer.sunk(4) == if newer == Ok(Stored::Stored) { vec![4, 3] } else { vec![4] });
    });
}

#[test]
fn an_heir_gives_back_what_a_dead_reader_has_not() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1, 2, 3]);
        let flush = lease.flush.clone();
        // It dies between two steps.
        let dead = spawn(&buffer, move |buffer| buffer.give_back(0, &lease.flush, lease.reader, Some(&[0])));
        let heir = buffer.inherit(0, &flush);
        let given_back = [join(dead), heir].map(|given_back| given_back.retried);
        assert!(matches!(given_back, [1, 0..=2] | [0, 3]), "{given_back:?}");
        assert_eq!(buffer.first().len(ONE), Ok(given_back.iter().sum()));
        finish(&buffer);
    });
}

#[test]
fn a_flush_that_ends_while_the_shards_begin_to_look_into_it_is_freed() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1, 2]);
        let processor = spawn(&buffer, move |buffer| buffer.succeed(lease));
        drop(buffer.first().flush());
        join(processor);
        assert_freed(&buffer);
    });
}

#[test]
fn an_eviction_between_steps_of_giving_back_loses_and_doubles_nothing() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1, 2, 3]);
        buffer.bound.set_limits(Limits { entries: Some(10), bytes: Some(1 << 40) });
        buffer.partitions.iter().for_each(|partition| partition.set_bounded(true));
        buffer.put(1, 10).expect("the buffer runs");
        buffer.delete(2);
        let processor = spawn(&buffer, move |buffer| buffer.fail(&lease, None));
        buffer.restart(1, 2);
        buffer.assert_law();
        assert_eq!([1, 2, 3].map(|key| buffer.get(key)), [Some(10), None, Some(3)]);
        let GivenBack { retried, superseded, given_up } = join(processor);
        assert!(retried + superseded <= 3 && given_up == 0);
        buffer.assert_law();
        finish(&buffer);
        buffer.assert_law();
        assert_eq!([1, 2, 3].map(|key| buffer.sunk(key)), [vec![10], vec![], vec![3]]);
    });
}

#[test]
fn a_success_at_an_eviction_counts_or_the_entries_come_once_more() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1, 2]);
        let processor = spawn(&buffer, move |buffer| buffer.succeed(lease));
        buffer.restart(1, 2);
        join(processor);
        finish(&buffer);
        buffer.assert_law();
        let (first, second) = (buffer.sunk(1).len(), buffer.sunk(2).len());
        assert!(first == second && (1..=2).contains(&first), "{first}, {second} times");
        let processed = buffer.partitions.iter().map(|partition| partition.info().ended.processed);
        assert_eq!(processed.sum::<usize>(), 2, "each entry ends once");
    });
}

#[test]
fn steps_of_two_batches_among_puts_deletes_and_reads_keep_the_law() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1, 2, 3]);
        let processor = spawn(&buffer, move |buffer| {
            buffer.fail(&lease, Some(&[0, 1]));
            fail_times(buffer, 1, 2);
        });
        let writer = spawn(&buffer, |buffer| {
            buffer.put(1, 10).expect("the buffer runs");
            buffer.delete(2);
            buffer.delete(1);
            buffer.put(2, 20).expect("the buffer runs");
        });
        assert!(matches!(buffer.get(1), Some(1 | 10) | None));
        assert!(matches!(buffer.get(2), Some(2 | 20) | None));
        join(writer);
        assert_eq!((buffer.get(1), buffer.get(2)), (None, Some(20)));
        join(processor);
        buffer.assert_law();
        finish(&buffer);
        buffer.assert_law();
    });
}

#[test]
fn a_call_is_confirmed_or_lost_and_never_both() {
    check(|| {
        let buffer = map::start(1, true);
        (0..4).for_each(|key| buffer.put(key, key).expect("the buffer runs"));
        let batches = flush(buffer.first()).expect("entries wait");
        let reader = {
            let batches = batches.clone();
            spawn(&buffer, move |_buffer| {
                for _ in 0..2 {
                    if read(&batches, 1, 2, |_record| ()).is_some() {
                        batches.claim(1, 0);
                    }
                }
            })
        };
        let lost = buffer.first().lost() + batches.lost(Some(2));
        join(reader);
        let late = buffer.first().lost();
        assert!(matches!(lost + late, 2 | 4), "the last call stays open, so it is lost");
        assert_eq!(batches.lost(None), 0);
        let (ended, learned) = (buffer.first().info().ended, buffer.first().learned());
        assert_eq!((ended.processed, ended.failed, learned.failed), (4, lost + late, lost + late));
        assert_freed(&buffer);
    });
}

/// Writes and fails while the partition count changes.
fn restart<const BEFORE: u32, const AFTER: u32>() {
    let buffer = map::start(BEFORE, true);
    // A write between the two states is refused. The writers go on.
    let writers = [0, 1].map(|key| {
        spawn(&buffer, move |buffer| {
            (1..=5).filter(|&version| buffer.put_newer(key, version).is_ok()).collect::<Vec<i64>>()
        })
    });
    let processor = spawn(&buffer, |buffer| {
        for number in [0, BEFORE as usize - 1, 0] {
            if let Some(lease) = buffer.lease_from(number, usize::MAX) {
                buffer.fail(&lease, None);
            }
        }
    });
    let owner = spawn(&buffer, |buffer| buffer.restart(BEFORE, AFTER));
    let accepted = writers.map(join);
    join(owner);
    join(processor);
    finish(&buffer);
    for (key, accepted) in (0..).zip(accepted) {
        let versions = buffer.sunk(key);
        assert!(versions.is_sorted_by(|old, new| old < new), "versions rise: {versions:?}");
        assert_eq!(versions.last(), accepted.last(), "the last accepted version comes last: {versions:?}");
    }
}

#[test]
fn added_partitions_neither_lose_nor_double_what_has_failed() {
    check(restart::<1, 2>);
}

#[test]
fn removed_partitions_neither_lose_nor_double_what_has_failed() {
    check(restart::<2, 1>);
}

/// Does random steps with key 1.
fn write_at_random(buffer: &Buffer, history: &History, writer: i64) {
    for step in 1..=3 {
        let value = writer * 10 + step;
        match thread_rng().gen_range(0..7) {
            0 => buffer.step(history, Step::Put(value)),
            1 => buffer.step(history, Step::PutNew(value)),
            2 => buffer.step(history, Step::PutNewer(value, thread_rng().gen_range(FIRST - 2..FIRST + 4))),
            3..=4 => buffer.step(history, Step::Delete),
            _ => buffer.step(history, Step::Get),
        };
    }
}

impl Buffer {
    /// Does a step with key 1, and notes it.
    fn step(&self, history: &History, step: Step) -> Answer {
        let stored = |result| Answer::Is(result == Ok(Stored::Stored));
        history.note(step, || match step {
            Step::Put(value) => self.put(1, value).map(|()| Answer::Done).expect("the buffer runs"),
            Step::PutNew(value) => stored(self.put_new(1, value)),
            Step::PutNewer(value, version) => stored(self.put_newer_as(|access| access, 1, value, version)),
            Step::Delete => {
                self.delete(1);
                Answer::Done
            }
            Step::Get => Answer::Value(self.get(1)),
            _ => panic!("a step of the processor"),
        })
    }

    /// Flushes, leases all, and succeeds or fails with it.
    fn process(&self, history: &History, is_failure: bool) -> bool {
        let has_flush = history.note(Step::Flush, || Answer::Is(flush(self.first()).is_some()));
        if has_flush == Answer::Is(true) {
            let mut lease = None;
            history.note(Step::Lease, || {
                lease = self.lease(usize::MAX);
                Answer::Value(lease.as_ref().map(|lease| lease.entries[0].value))
            });
            let Some(lease) = lease else { return true };
            let step = if is_failure { Step::Fail } else { Step::Succeed };
            history.note(step, || {
                if is_failure {
                    self.fail(&lease, None);
                } else {
                    self.succeed(lease);
                }
                Answer::Done
            });
        }
        has_flush == Answer::Is(true)
    }
}

#[test]
fn a_key_behaves_as_if_all_steps_were_done_one_by_one() {
    check(|| {
        let (buffer, history) = (map::start(1, true), Arc::new(History::default()));
        buffer.step(&history, Step::PutNewer(1, FIRST));
        let writers = [1, 2].map(|writer| {
            let history = history.clone();
            spawn(&buffer, move |buffer| write_at_random(buffer, &history, writer))
        });
        let processor = {
            let history = history.clone();
            spawn(&buffer, move |buffer| {
                for _ in 0..3 {
                    buffer.process(&history, thread_rng().gen_ratio(2, 3));
                }
            })
        };
        writers.into_iter().for_each(join);
        join(processor);
        buffer.step(&history, Step::Get);
        while buffer.process(&history, false) {}
        history.assert_linearizable();
        finish(&buffer);
    });
}
