//! Additions to a counter that bring a count.

mod common;

use common::counter::Counter;
use common::reading::all_of;
use common::ONE;

/// The largest count of one addition.
const LARGEST: u64 = (1 << 63) - 1;

#[test]
fn a_count_is_added_beside_the_counts_of_single_additions() {
    let counter = Counter::start();
    counter.add(1, 5);
    counter.add(1, 5);
    counter.add_counted(1, 7, 10);
    counter.add(1, 5);
    counter.add_counted(2, -3, 0);
    assert_eq!((counter.sum(1), counter.sum(2)), (Some(22), Some(-3)));
    let (_flush, batch) = counter.lease_all();
    assert_eq!(batch, [(1, 22, 13), (2, -3, 0)]);
}

#[test]
fn a_count_is_exact_beyond_64_bits() {
    let counter = Counter::start();
    for _ in 0..5 {
        counter.add_counted(1, i64::MAX, LARGEST);
        counter.add(1, i64::MAX);
        counter.add(1, i64::MAX);
    }
    let expected = (1, 15 * i128::from(i64::MAX), 5 * u128::from(LARGEST) + 10);
    assert_eq!(counter.lease_all().1, [expected]);
}

#[test]
fn a_failed_count_beyond_64_bits_joins_the_waiting_one() {
    let counter = Counter::start();
    (0..4).for_each(|_| counter.add_counted(1, i64::MIN, LARGEST));
    let (flush, _batch) = counter.lease_all();
    (0..3).for_each(|_| counter.add_counted(1, i64::MIN, LARGEST));
    assert_eq!(counter.partition.give_back(&flush, all_of(1)).retried, 1);
    counter.add(1, -1);
    assert_eq!(counter.lease_all().1, [(1, 7 * i128::from(i64::MIN) - 1, 7 * u128::from(LARGEST) + 1)]);
}

#[test]
fn an_addition_with_a_count_is_one_write() {
    let counter = Counter::start();
    counter.add_counted(1, 1, 100);
    counter.add_counted(1, 1, 100);
    let writes = counter.partition.info().writes;
    assert_eq!((writes.written, writes.coalesced), (2, 1));
    assert_eq!(counter.partition.len(ONE), Ok(1));
}
