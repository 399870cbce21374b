//! Entries of other nodes under thousands of schedules: those of a number come once and as a whole.
//! `partition.rs` tells how to choose the schedules and run one again.
#![allow(missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

mod buffer;

use std::sync::Arc;

use buffer::counter::{self, Buffer};
use buffer::{check, join, spawn};
use common::{hash, TestHeap, ONE};
use partitioned_buffer_engine::partition::AbsorbedSum;
use partitioned_buffer_engine::streams::Take;
use partitioned_buffer_engine::{CounterPartition, Heap, Streams};
use shuttle::thread;

/// The keys of each list. They are in several shards.
const KEYS: [i64; 4] = [1, 2, 3, 4];

/// Absorbs a list with this sum for each key, as the NIF library does: lock by lock. Returns whether
/// the number was taken.
fn absorb(buffer: &Buffer, streams: &Streams, number: u64, sum: i128) -> bool {
    let write = || {
        let mut caller = TestHeap::new();
        let entries = KEYS.map(|key| {
            let key = caller.boxed(key);
            (hash(&buffer.hasher, key), AbsorbedSum { key: key.parcel(), sum, count: 1 })
        });
        for entry in &entries {
            let shard = CounterPartition::<TestHeap>::shard_of(entry.0);
            let written = buffer.first().absorb_all(ONE, shard, false, std::slice::from_ref(entry).iter())?;
            assert_eq!(written.done, 1);
        }
        Ok::<_, partitioned_buffer_engine::Closed>(())
    };
    match streams.take((1, 1), number, true, write) {
        Take::Done(result) => {
            result.expect("the buffer runs");
            true
        }
        Take::Duplicate => false,
        Take::Busy => unreachable!("the call may wait"),
    }
}

/// Lets the processor succeed with all that is left. Returns what it got for each key.
fn finish(buffer: &Buffer) -> [(i128, u128); 4] {
    buffer.succeed_with_all(2);
    KEYS.map(|key| buffer.sunk(key))
}

#[test]
fn the_entries_of_a_number_come_once_from_two_calls_at_once() {
    check(|| {
        let (buffer, streams) = (counter::start(1, true), Arc::new(Streams::default()));
        let calls = [(); 2].map(|()| {
            let streams = streams.clone();
            spawn(&buffer, move |buffer| {
                absorb(buffer, &streams, 1, 10);
            })
        });
        calls.into_iter().for_each(join);
        assert_eq!(finish(&buffer), [(10, 1); 4]);
        assert_eq!(streams.all(), [(1, 1, 1)]);
    });
}

#[test]
fn what_comes_during_a_flush_is_delivered_once() {
    check(|| {
        let (buffer, streams) = (counter::start(1, true), Arc::new(Streams::default()));
        let sender = streams.clone();
        let call = spawn(&buffer, move |buffer| {
            assert!(absorb(buffer, &sender, 1, 10));
            assert!(!absorb(buffer, &sender, 1, 10));
            assert!(absorb(buffer, &sender, 2, 5));
        });
        let processor = spawn(&buffer, |buffer| {
            buffer.lease(1).into_iter().for_each(|lease| {
                buffer.fail(&lease, None);
            });
            buffer.lease(usize::MAX).into_iter().for_each(|lease| buffer.succeed(lease));
        });
        join(call);
        join(processor);
        assert_eq!(finish(&buffer), [(15, 2); 4]);
    });
}

#[test]
fn a_duplicate_answers_only_when_all_is_written() {
    check(|| {
        let (buffer, streams) = (counter::start(1, true), Arc::new(Streams::default()));
        let sender = streams.clone();
        let call = spawn(&buffer, move |buffer| {
            absorb(buffer, &sender, 1, 10);
        });
        absorb(&buffer, &streams, 1, 10);
        assert_eq!(KEYS.map(|key| buffer.sum(key)), [Some(10); 4], "whoever of both wrote it");
        join(call);
        assert_eq!(finish(&buffer), [(10, 1); 4]);
    });
}

#[test]
fn a_number_is_taken_while_the_streams_are_forgotten() {
    check(|| {
        let (buffer, streams) = (counter::start(1, true), Arc::new(Streams::default()));
        let forgetter = streams.clone();
        let forgets = thread::spawn(move || forgetter.forget(1, 1));
        let taken = [1, 1, 2].map(|number| absorb(&buffer, &streams, number, 1));
        forgets.join().expect("nothing panics");
        let times = taken.iter().filter(|&&taken| taken).count();
        // The second call finds the first one's number, unless it was forgotten in between. A number that is
        // being taken is not forgotten.
        assert!(taken[0] && taken[2] && times >= 2);
        assert_eq!(finish(&buffer), [(times as i128, times as u128); 4]);
    });
}
