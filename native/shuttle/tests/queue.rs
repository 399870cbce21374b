//! The partition of a queue under thousands of schedules. `partition.rs` tells how to choose them
//! and run one again.
#![allow(missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

mod buffer;

use std::sync::Arc;

use buffer::{check, join, race, spawn};
use common::{TestHeap, TestTerm, ONE};
use partitioned_buffer_engine::{Closed, Heap, Log, Resident};
use shuttle::sync::atomic::{AtomicUsize, Ordering};

/// A claimed item: its content, and the partition's copy.
type Delivery = (i64, TestTerm);

type Buffer = buffer::Buffer<Log<TestHeap>, 1, Delivery>;

/// The items of a writer are its number times this, plus their numbers.
const WRITER: i64 = 100;

fn start(running: u32) -> Arc<Buffer> {
    Buffer::start(running, false, |copy: Resident<TestTerm>| (copy.term.content().1, copy.term), |item| item / WRITER)
}

fn start_with_outcomes(running: u32) -> Arc<Buffer> {
    Buffer::start(running, true, |copy: Resident<TestTerm>| (copy.term.content().1, copy.term), |item| item / WRITER)
}

impl Buffer {
    /// Pushes items of a writer, and takes the lock once.
    fn push(&self, writer: i64, numbers: &[i64]) -> Result<(), Closed> {
        let mut caller = TestHeap::new();
        let items: Vec<_> = numbers.iter().map(|number| caller.boxed(writer * WRITER + number).parcel()).collect();
        self.operate(writer, |partition, among| match &items[..] {
            [item] => partition.push(among, item).map(|_stored| ()),
            _ => partition.push_all(among, false, items.iter()).map(|_written| ()),
        })
    }

    /// Pushes items from 1 on, one by one. Returns the accepted ones.
    fn push_each(&self, writer: i64, count: i64) -> Vec<i64> {
        (1..=count).filter(|&number| self.push(writer, &[number]).is_ok()).collect()
    }

    /// The delivered items, in order.
    fn items(&self) -> Vec<i64> {
        self.delivered().into_iter().map(|(item, _)| item).collect()
    }
}

/// Checks that the accepted items of each writer were delivered once and in order, and nothing else
/// was. Checks also that the copies are gone, though the test still holds the flushes.
fn assert_conserved(buffer: &Buffer, accepted: &[Vec<i64>]) {
    let delivered = buffer.items();
    for (writer, accepted) in (0..).zip(accepted) {
        let own = delivered.iter().filter(|&item| item / WRITER == writer);
        let numbers: Vec<i64> = own.map(|item| item % WRITER).collect();
        assert_eq!(numbers, *accepted, "items of writer {writer} in {delivered:?}");
    }
    assert_eq!(delivered.len(), accepted.iter().map(Vec::len).sum::<usize>(), "nothing else is delivered");
    assert!(buffer.delivered().iter().all(|(_, copy)| !copy.is_live()), "the last claim frees the memory");
}

#[test]
fn items_are_delivered_once_and_in_the_order_of_their_writer() {
    check(|| {
        let buffer = start(1);
        let accepted =
            race(&buffer, |buffer, writer| buffer.push_each(writer, 5), |buffer| buffer.deliver_times(3, usize::MAX));
        buffer.drain();
        assert_eq!(accepted, [[1, 2, 3, 4, 5]; 2], "nothing is refused");
        assert_conserved(&buffer, &accepted);
    });
}

#[test]
fn items_pushed_together_stay_together() {
    check(|| {
        let buffer = start(1);
        let lists: [&[i64]; 4] = [&[1, 2, 3], &[4], &[5, 6], &[7, 8, 9]];
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let push = move |buffer: &Buffer| lists.iter().try_for_each(|list| buffer.push(writer, list));
                spawn(&buffer, push)
            })
            .collect();
        let reader = spawn(&buffer, |buffer| buffer.deliver_times(3, usize::MAX));
        writers.into_iter().for_each(|writer| join(writer).expect("the buffer runs"));
        join(reader);
        buffer.drain();
        assert_conserved(&buffer, &[(1..=9).collect(), (1..=9).collect()]);
        let delivered = buffer.items();
        for first in lists.iter().flat_map(|list| [list[0], WRITER + list[0]]) {
            let list = lists.iter().find(|list| list[0] == first % WRITER).expect("it is one of them");
            let place = delivered.iter().position(|&item| item == first).expect("it is delivered");
            let expected = first..first + list.len() as i64;
            assert!(delivered[place..].iter().copied().take(list.len()).eq(expected), "{first} in {delivered:?}");
        }
    });
}

#[test]
fn the_next_reader_delivers_unclaimed_items_before_new_ones() {
    check(|| {
        let buffer = start(1);
        let accepted = race(&buffer, |buffer, writer| buffer.push_each(writer, 4), |buffer| buffer.deliver_times(4, 2));
        buffer.drain();
        assert_conserved(&buffer, &accepted);
    });
}

#[test]
fn two_concurrent_readers_never_claim_the_same_batch() {
    check(|| {
        let buffer = start(1);
        let readers: Vec<_> =
            (1..=2).map(|count| spawn(&buffer, move |buffer| buffer.deliver_times(4, count))).collect();
        let writers: Vec<_> = (0..2).map(|writer| spawn(&buffer, move |buffer| buffer.push_each(writer, 4))).collect();
        let accepted: Vec<_> = writers.into_iter().map(join).collect();
        readers.into_iter().for_each(join);
        buffer.drain();
        buffer.sort();
        assert_conserved(&buffer, &accepted);
    });
}

#[test]
fn the_size_counts_the_items_that_are_not_flushed() {
    check(|| {
        let buffer = start(1);
        let (begun, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (begun, done) = (begun.clone(), done.clone());
                spawn(&buffer, move |buffer: &Buffer| {
                    for number in 1..=4 {
                        begun.fetch_add(1, Ordering::SeqCst);
                        buffer.push(writer, &[number]).expect("the buffer runs");
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        // Only the reader flushes, so it knows how many items were flushed.
        let reader = spawn(&buffer, move |buffer| {
            for _ in 0..4 {
                let flushed = buffer.flushed();
                let least = done.load(Ordering::SeqCst).saturating_sub(flushed);
                let size = buffer.first().len(ONE).expect("the buffer runs");
                let most = begun.load(Ordering::SeqCst) - flushed;
                assert!((least..=most).contains(&size), "{least} <= {size} <= {most}");
                buffer.deliver(buffer.first(), usize::MAX);
            }
        });
        writers.into_iter().for_each(join);
        join(reader);
        assert_eq!(buffer.first().len(ONE), Ok(8 - buffer.flushed()));
        buffer.drain();
        assert_eq!(buffer.first().len(ONE), Ok(0));
        assert_conserved(&buffer, &[vec![1, 2, 3, 4], vec![1, 2, 3, 4]]);
    });
}

#[test]
fn a_push_during_the_close_is_either_refused_or_evicted() {
    check(|| {
        let buffer = start(1);
        let writers: Vec<_> = (0..2).map(|writer| spawn(&buffer, move |buffer| buffer.push_each(writer, 6))).collect();
        let reader = spawn(&buffer, |buffer| buffer.deliver(buffer.first(), 1));
        let evicted = spawn(&buffer, |buffer| {
            buffer.running.store(0, Ordering::SeqCst);
            buffer.evict(0)
        });
        let accepted: Vec<_> = writers.into_iter().map(join).collect();
        let evicted = join(evicted);
        join(reader);
        buffer.take_in(&evicted, 1);
        while buffer.deliver(buffer.first(), usize::MAX) {}
        buffer.assert_law();
        drop(evicted);
        assert_conserved(&buffer, &accepted);
        assert_eq!(buffer.push(0, &[7]), Err(Closed));
    });
}

#[test]
fn a_partition_that_is_closed_and_opened_again_keeps_all_accepted_items() {
    check(|| {
        let buffer = start(1);
        let accepted = race(&buffer, |buffer, writer| buffer.push_each(writer, 4), Buffer::close_and_open);
        buffer.drain();
        assert_conserved(&buffer, &accepted);
    });
}

/// Pushes and delivers while the partition count changes. A push between the two states is refused.
/// The writers go on.
fn restart<const BEFORE: u32, const AFTER: u32>() {
    let buffer = start(BEFORE);
    let writers: Vec<_> = (0..2).map(|writer| spawn(&buffer, move |buffer| buffer.push_each(writer, 6))).collect();
    let reader = spawn(&buffer, |buffer| {
        buffer.deliver(buffer.first(), 1);
        buffer.deliver(&buffer.partitions[BEFORE as usize - 1], usize::MAX)
    });
    let owner = spawn(&buffer, |buffer| buffer.restart(BEFORE, AFTER));
    let accepted: Vec<_> = writers.into_iter().map(join).collect();
    join(owner);
    join(reader);
    buffer.drain();
    assert_conserved(&buffer, &accepted);
}

#[test]
fn added_partitions_neither_lose_nor_double_nor_reorder_items() {
    check(restart::<1, 2>);
}

#[test]
fn removed_partitions_neither_lose_nor_double_nor_reorder_items() {
    check(restart::<2, 1>);
}

/// Lets the processor succeed with all that is left, and checks that it has succeeded with the
/// accepted items of each writer once and in order, and with nothing else. Checks also that the
/// copies are gone.
fn assert_succeeded(buffer: &Buffer, accepted: &[Vec<i64>]) {
    buffer.succeed_with_all(2);
    let sink: Vec<i64> = buffer.sink().into_iter().map(|(item, _)| item).collect();
    for (writer, accepted) in (0..).zip(accepted) {
        let own = sink.iter().filter(|&item| item / WRITER == writer);
        let numbers: Vec<i64> = own.map(|item| item % WRITER).collect();
        assert_eq!(numbers, *accepted, "items of writer {writer} in {sink:?}");
    }
    assert_eq!(sink.len(), accepted.iter().map(Vec::len).sum::<usize>(), "nothing else has succeeded");
    assert!(buffer.leased().iter().all(|(_, copy)| !copy.is_live()), "the last outcome frees the memory");
}

#[test]
fn failed_items_come_again_before_all_others() {
    check(|| {
        let buffer = start_with_outcomes(1);
        let accepted = race(
            &buffer,
            |buffer, writer| buffer.push_each(writer, 4),
            |buffer| {
                let Some(lease) = buffer.lease(3) else { return };
                buffer.fail(&lease, None);
                let again = buffer.lease(lease.entries.len()).expect("the items are still there");
                assert_eq!(again.entries, lease.entries[..again.entries.len()]);
                assert!(again.entries.len() == lease.entries.len() || lease.entries.len() == 1);
                again.flush.split(again.reader);
                let first = buffer.lease(4).expect("the items are still there");
                assert_eq!(first.entries, lease.entries[..1], "a quarter, and at least one");
                buffer.fail(&first, None);
                buffer.lease(16).into_iter().for_each(|lease| buffer.succeed(lease));
            },
        );
        assert_succeeded(&buffer, &accepted);
    });
}

#[test]
fn each_item_succeeds_once_though_some_of_its_batch_fail() {
    check(|| {
        let buffer = start_with_outcomes(1);
        let accepted = race(
            &buffer,
            |buffer, writer| buffer.push_each(writer, 4),
            |buffer| {
                for lease in (0..3).filter_map(|_| buffer.lease(4)) {
                    let odd: Vec<usize> = (0..lease.entries.len()).filter(|number| number % 2 == 1).collect();
                    let given_back = buffer.fail(&lease, Some(&odd));
                    assert_eq!((given_back.retried, given_back.superseded), (odd.len(), 0));
                }
            },
        );
        buffer.succeed_with_all(3);
        let mut sink: Vec<i64> = buffer.sink().into_iter().map(|(item, _)| item).collect();
        sink.sort_unstable();
        let pushed = |writer| accepted[writer as usize].iter().map(move |number| writer * WRITER + number);
        assert!(sink.into_iter().eq(pushed(0).chain(pushed(1))), "each item once");
    });
}

#[test]
fn an_eviction_between_steps_of_giving_back_keeps_the_order() {
    check(|| {
        let buffer = start_with_outcomes(1);
        buffer.push(0, &[1, 2, 3, 4]).expect("the buffer runs");
        let lease = buffer.lease(3).expect("items wait");
        let processor = spawn(&buffer, move |buffer| buffer.fail(&lease, None));
        buffer.push(0, &[5]).expect("the buffer runs");
        buffer.restart(1, 2);
        buffer.push(0, &[6]).expect("the buffer runs");
        join(processor);
        buffer.assert_law();
        assert_succeeded(&buffer, &[(1..=6).collect()]);
        buffer.assert_law();
    });
}

/// Pushes and fails while the partition count changes.
fn restart_with_failures<const BEFORE: u32, const AFTER: u32>() {
    let buffer = start_with_outcomes(BEFORE);
    let writers: Vec<_> = (0..2).map(|writer| spawn(&buffer, move |buffer| buffer.push_each(writer, 6))).collect();
    let processor = spawn(&buffer, |buffer| {
        for number in [0, BEFORE as usize - 1, 0] {
            buffer.lease_from(number, 2).into_iter().for_each(|lease| _ = buffer.fail(&lease, None));
        }
    });
    let owner = spawn(&buffer, |buffer| buffer.restart(BEFORE, AFTER));
    let accepted: Vec<_> = writers.into_iter().map(join).collect();
    join(owner);
    join(processor);
    assert_succeeded(&buffer, &accepted);
}

#[test]
fn added_partitions_neither_lose_nor_double_nor_reorder_failed_items() {
    check(restart_with_failures::<1, 2>);
}

#[test]
fn removed_partitions_neither_lose_nor_double_nor_reorder_failed_items() {
    check(restart_with_failures::<2, 1>);
}
