//! The partitions of a queue, and models of them.

use std::collections::VecDeque;

use partitioned_buffer_engine::{Hasher, Heap, Log, Resident, Stored};

use super::{fate, Buffer, Reading, PARTITIONS};
use crate::common::{content, TestHeap, TestTerm};

/// An item.
type Item = super::Content;

/// The items that wait, each with its attempts.
type Items = VecDeque<(Item, u32)>;

/// See the module's documentation.
struct Queue {
    buffer: Buffer<Log<TestHeap>, 1, Items>,
}

/// Does the operations of `bytes` to a queue and its model, and panics if they differ. Returns the
/// number of operations.
pub fn run(bytes: &[u8]) -> usize {
    let (&[size], bytes) = bytes.split_first_chunk().unwrap_or((&[0], &[]));
    let running = 1 + usize::from(size) % PARTITIONS;
    super::run((size % 2 == 1).then_some(size.into()), || {
        let mut queue = Queue { buffer: Buffer::start(&Hasher::seeded(0), running, size % 4 < 2) };
        bytes.chunks_exact(3).for_each(|step| queue.step(step[0], step[1], step[2]));
        queue.buffer.finish()
    })
}

impl Queue {
    fn step(&mut self, operation: u8, a: u8, b: u8) {
        let (number, count) = (usize::from(a) % self.buffer.running, usize::from(b));
        match operation % 32 {
            0..=8 => self.push(number, false),
            9..=10 => self.push(number, true),
            // Many pushes, which a short sequence of bytes would not reach otherwise: two of these
            // operations fill a chunk and some segments.
            11..=13 => (0..count).for_each(|_| self.push(number, false)),
            14..=16 => self.push_all(number, count),
            17..=18 => self.push_all(number, 4 * count),
            // Batch by batch, as a reader reads, perhaps not to the end.
            19..=21 => {
                let (partition, reading) = (usize::from(a) % PARTITIONS, Reading::new(count, usize::from(a)));
                (0..a / 32).for_each(|_| self.buffer.process(partition, reading, fate(operation, b)));
            }
            _ => self.buffer.step(operation, a, b),
        }
    }

    /// The next item, on the caller's heap.
    fn item(&mut self, caller: &mut TestHeap, is_large: bool) -> TestTerm {
        let content = self.buffer.value(is_large);
        caller.term(content)
    }

    fn push(&mut self, number: usize, is_large: bool) {
        self.buffer.operations += 1;
        let mut caller = TestHeap::new();
        let item = self.item(&mut caller, is_large);
        let result = self.buffer.partitions[number].push(self.buffer.access(), &item.parcel());
        assert_eq!(result, self.buffer.expected(number, Stored::Stored));
        if result.is_ok() {
            self.buffer.models[number].waiting.push_back((item.content(), 0));
        }
    }

    /// Pushes items, one of them large, and takes the lock once.
    fn push_all(&mut self, number: usize, count: usize) {
        self.buffer.operations += 1;
        let mut caller = TestHeap::new();
        let items: Vec<TestTerm> = (0..count).map(|place| self.item(&mut caller, place == count / 2)).collect();
        let parcels: Vec<_> = items.iter().map(|item| item.parcel()).collect();
        let result = self.buffer.partitions[number].push_all(self.buffer.access(), false, parcels.iter());
        assert_eq!(result.map(|_written| ()), self.buffer.expected(number, ()));
        if result.is_ok() {
            self.buffer.models[number].waiting.extend(items.into_iter().map(|item| (item.content(), 0)));
        }
    }
}

impl super::Waiting<Log<TestHeap>> for Items {
    type Entry = Item;

    fn entry(record: Resident<TestTerm>) -> Item {
        content(record)
    }

    fn key(entry: Item) -> Item {
        entry
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn supersedes(&self, _entry: Item) -> bool {
        false
    }

    fn take_back(&mut self, entry: Item, attempts: u32) {
        self.push_back((entry, attempts));
    }

    fn entries(&self) -> Vec<(Item, u32)> {
        self.iter().copied().collect()
    }

    fn attempts(&self, entries: &[Item]) -> Vec<u32> {
        assert!(entries.iter().eq(self.iter().map(|(item, _attempts)| item)), "all items come, in their order");
        self.iter().map(|(_item, attempts)| *attempts).collect()
    }
}
