//! The keys of maps and counters.

use partitioned_buffer_engine::{Hash, Hasher};

use crate::common::{hash, TestHeap, TestTerm};

/// A key.
pub(super) type Key = super::Content;

/// The keys of a buffer.
pub(super) struct Keys {
    hasher: Hasher,
    /// How many there are.
    count: i64,
}

impl Keys {
    pub(super) fn new(hasher: Hasher, count: i64) -> Self {
        Keys { hasher, count }
    }

    /// The key with this number. A few contents are both a boxed key and another one that is not
    /// boxed.
    pub(super) fn key(&self, number: i64) -> Key {
        let content = number % self.count;
        (content % 3 != 0 || number & 0x4000 != 0, content)
    }

    /// Neighbouring keys.
    pub(super) fn neighbours(&self, a: u8, b: u8) -> impl Iterator<Item = Key> {
        let (first, count) = (i64::from(a) << 3, 2 * many(a, b));
        let keys: Vec<Key> = (first..first + count).map(|number| self.key(number)).collect();
        keys.into_iter()
    }

    pub(super) fn term(&self, caller: &mut TestHeap, (is_boxed, content): Key) -> (Hash, TestTerm) {
        let term = if is_boxed { caller.boxed(content) } else { TestTerm::Immediate(content) };
        (hash(&self.hasher, term), term)
    }
}

/// How many writes two bytes ask for: most often few, so that a sequence has other operations as
/// well.
pub(super) fn many(a: u8, b: u8) -> i64 {
    i64::from(if a % 8 == 0 { b } else { b % 16 })
}
