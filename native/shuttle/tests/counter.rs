//! The partition of a counter under thousands of schedules: nothing that was added is lost or
//! counted twice. `partition.rs` tells how to choose them and run one again.
#![allow(missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

mod buffer;

use std::sync::Arc;

use buffer::counter::{self, Buffer, Lease};
use buffer::{check, join, spawn};
use common::reading::GivenBack;
use partitioned_buffer_engine::{Limits, Stored};

/// A buffer in whose first flush these keys are, each with a sum of its own number, and the batch
/// of all of them.
fn start_in_flight(keys: &[i64]) -> (Arc<Buffer>, Lease) {
    let buffer = counter::start(1, true);
    keys.iter().for_each(|&key| assert_eq!(buffer.add(key, key), Stored::Stored));
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

/// Lets the processor succeed with all that is left. Then no memory is, and each entry has left in
/// one way.
fn finish(buffer: &Buffer) {
    buffer.succeed_with_all(2);
    assert!(!buffer.leased().iter().any(|entry| entry.copy.is_live()), "the last outcome frees the memory");
    let infos = buffer.partitions.iter().map(|partition| partition.info());
    let (added, left) = infos.fold((0, 0), |(added, left), info| {
        assert_eq!((info.waiting, info.in_flight, info.retried), (0, 0, 0));
        let (writes, ended) = (info.writes, info.ended);
        (
            added + writes.written - writes.coalesced,
            left + writes.deleted + ended.superseded + ended.processed + ended.given_up,
        )
    });
    assert_eq!(added, left);
}

#[test]
fn what_was_added_is_delivered_once_though_batches_fail() {
    check(|| {
        let buffer = counter::start(1, true);
        let writers = [3, 5].map(|amount| {
            spawn(&buffer, move |buffer| {
                (0..4).for_each(|n| {
                    buffer.add(n % 2, amount);
                })
            })
        });
        let processor = spawn(&buffer, |buffer| {
            fail_times(buffer, 2, usize::MAX);
            buffer.lease(1).into_iter().for_each(|lease| buffer.succeed(lease));
            buffer.lease(2).into_iter().for_each(|lease| {
                buffer.fail(&lease, Some(&[0]));
            });
        });
        writers.into_iter().for_each(join);
        join(processor);
        finish(&buffer);
        assert_eq!([buffer.sunk(0), buffer.sunk(1)], [(16, 4); 2]);
    });
}

#[test]
fn without_outcomes_what_was_added_is_claimed_once() {
    check(|| {
        let buffer = counter::start(1, false);
        let writers = [3, 5].map(|amount| {
            spawn(&buffer, move |buffer| {
                (0..3).for_each(|_| {
                    buffer.add(1, amount);
                })
            })
        });
        let reader = spawn(&buffer, |buffer| buffer.deliver_times(3, 1));
        writers.into_iter().for_each(join);
        join(reader);
        buffer.drain();
        let delivered = buffer.delivered();
        assert_eq!(delivered.iter().map(|entry| entry.sum).sum::<i128>(), 24);
        assert_eq!(delivered.iter().map(|entry| entry.count).sum::<u128>(), 6);
    });
}

#[test]
fn a_sum_is_read_once_while_it_is_in_flight_and_given_back() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1, 2]);
        let processor = spawn(&buffer, move |buffer| {
            buffer.fail(&lease, None);
            // Swaps the stores as well.
            fail_times(buffer, 2, usize::MAX);
        });
        for _ in 0..4 {
            assert_eq!((buffer.sum(1), buffer.sum(2)), (Some(1), Some(2)));
        }
        join(processor);
        finish(&buffer);
        assert_eq!((buffer.sum(1), buffer.sum(2)), (None, None));
    });
}

#[test]
fn a_sum_grows_by_each_addition_while_it_is_given_back() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1]);
        let processor = spawn(&buffer, move |buffer| {
            buffer.fail(&lease, None);
            fail_times(buffer, 2, 1);
        });
        for added in 1..=4 {
            assert_eq!(buffer.add(1, 10), Stored::Stored);
            assert_eq!(buffer.sum(1), Some(1 + 10 * added));
        }
        join(processor);
        finish(&buffer);
        assert_eq!(buffer.sunk(1), (41, 5));
    });
}

#[test]
fn a_delete_while_the_sum_is_given_back_is_not_lost() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1]);
        let processor = spawn(&buffer, move |buffer| buffer.fail(&lease, None));
        buffer.delete(1);
        assert_eq!(buffer.sum(1), None, "a deleted sum is gone at once");
        assert_eq!(buffer.add(1, 7), Stored::Stored);
        assert_eq!(buffer.sum(1), Some(7), "and does not come back");
        join(processor);
        finish(&buffer);
        assert_eq!(buffer.sunk(1), (7, 1), "a deleted sum is not retried");
    });
}

#[test]
fn a_sum_is_held_all_the_time_while_it_is_given_back() {
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
fn the_room_of_a_sum_that_joins_another_is_free() {
    check(|| {
        let buffer = counter::start(1, true);
        buffer.bound.set_limits(Limits { entries: Some(2), bytes: Some(1 << 40) });
        buffer.first().set_bounded(true);
        assert_eq!(buffer.add(1, 1), Stored::Stored);
        let lease = buffer.lease(1).expect("it waits");
        let processor = spawn(&buffer, move |buffer| buffer.fail(&lease, None));
        let is_added = (0..3).any(|_| buffer.add(1, 10) == Stored::Stored);
        assert!(buffer.bound.held() <= 2);
        let GivenBack { retried, superseded, given_up } = join(processor);
        assert_eq!((retried, superseded, given_up), (1, 0, 0), "nothing supersedes a sum");
        assert_eq!(buffer.bound.held(), 1, "both are one entry now");
        finish(&buffer);
        assert_eq!(buffer.bound.held(), 0);
        assert_eq!(buffer.sunk(1), if is_added { (11, 2) } else { (1, 1) });
    });
}

#[test]
fn a_restart_while_a_sum_is_given_back_loses_nothing() {
    check(|| {
        let (buffer, lease) = start_in_flight(&[1, 2, 3]);
        let processor = spawn(&buffer, move |buffer| buffer.fail(&lease, None));
        buffer.restart(1, 2);
        (1..=3).for_each(|key| assert_eq!(buffer.add(key, 10), Stored::Stored));
        join(processor);
        buffer.succeed_with_all(2);
        assert_eq!([1, 2, 3].map(|key| buffer.sunk(key)), [(11, 2), (12, 2), (13, 2)]);
        buffer.assert_law();
    });
}
