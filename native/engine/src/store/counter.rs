//! A tally: the sums of one shard since its last flush, each under its key.
//!
//! Only the keys are copied. A sum is exact: it takes 64 bits, and a carry after their first
//! overflow.
//!
//! Additions often come to one hot key. Amounts for the key of the last addition stay in
//! `Table::last`, in the cache line of the lock, so that several writers to one key change no other
//! line. `Tally::sum` includes them. An addition to another key, a delete and a flush first write
//! them to their entry.

use super::entries::Entry;
use super::hash::Hash;
use super::store::TakenBack;
use super::table::{Contents, Last, Table};
use crate::ids::EntryId;
use crate::memory::parcel::Parcel;
use crate::term::{Heap, Term};

/// See the module's documentation.
pub type Tally<H> = Table<H, Sums>;

/// The contents of a tally outside of its entries: nothing.
pub struct Sums;

/// A sum in an entry. Packed, so that the entry needs no padding.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
pub struct Sum {
    /// The lowest 64 bits of the sum, as a signed number.
    low: i64,
    /// The number of additions.
    count: u64,
    /// The failed attempts of the processor.
    attempts: u32,
}

/// An entry as readers get it.
#[derive(Clone, Copy, Debug)]
pub struct Counted<T> {
    /// The key.
    pub key: T,
    /// The sum. 128 bits are enough for 2^63 additions.
    pub sum: i128,
    /// The number of additions.
    pub count: u64,
}

/// The sum of the lowest 64 bits and of the carry, which counts 2^64.
#[inline]
fn sum_of(low: i64, carry: i64) -> i128 {
    (i128::from(carry) << 64) + i128::from(low)
}

/// The opposite of [`sum_of`].
#[inline]
fn split(sum: i128) -> (i64, i64) {
    let low = sum as i64;
    (low, (sum >> 64) as i64 + i64::from(low < 0))
}

impl<H: Heap> Tally<H> {
    /// Adds `amount` to the sum of `key`; `true` if the key is new.
    #[inline(always)]
    pub fn add(&mut self, hash: Hash, key: &Parcel<H>, amount: i64) -> bool {
        if self.add_to_last(hash, key.term, amount) {
            return false;
        }
        Sums::settle(self);
        let Some(id) = self.find(hash, key.term) else {
            self.insert(hash, key, Sum { low: amount, count: 1, attempts: 0 }, 0);
            return true;
        };
        self.last = Last { id, seed: hash.seed(), sum: 0, count: 0 };
        self.count_merged();
        self.add_to(id, amount, 1);
        false
    }

    /// Adds `amount` beside the lock; `false` unless the last addition was to `key` as well, or if
    /// the sum there would overflow.
    #[inline]
    fn add_to_last(&mut self, hash: Hash, key: H::Term, amount: i64) -> bool {
        let Last { id, seed, sum, .. } = self.last;
        let is_key = |entry: &&Entry<H::Term, Sum>| entry.key.is_identical(key);
        if seed != hash.seed() || self.entries.get(id).filter(is_key).is_none() {
            return false;
        }
        let Some(sum) = sum.checked_add(amount) else { return false };
        self.last.sum = sum;
        self.last.count += 1;
        self.count_merged();
        true
    }

    /// Adds to an entry, which must be there.
    #[inline]
    fn add_to(&mut self, id: EntryId, amount: i64, count: u64) {
        let entry = self.entries.get_mut(id).expect("what is added to is there");
        let (low, overflows) = { entry.value.low }.overflowing_add(amount);
        // Field by field: to read what was just written in other pieces stalls the processor.
        entry.value.low = low;
        entry.value.count += count;
        if overflows {
            self.carry(id, amount);
        }
    }

    /// Counts an overflow of the 64 bits of an entry's sum, by this amount.
    #[cold]
    fn carry(&mut self, id: EntryId, amount: i64) {
        let carry = self.entries.extra(id);
        self.entries.set_extra(id, carry + amount.signum());
    }

    /// The sum of an entry; `None` for an unknown id.
    #[inline]
    pub(crate) fn sum(&self, id: EntryId) -> Option<i128> {
        let low = self.entries.get(id)?.value.low;
        let beside = if self.last.id == id { self.last.sum } else { 0 };
        Some(sum_of(low, self.entries.extra(id)) + i128::from(beside))
    }
}

impl<H: Heap> Contents<H> for Sums {
    type Value = Sum;

    /// The carry: multiples of 2^64 beyond the 64 bits.
    type Extra = i64;

    type Record = Counted<H::Term>;

    const ADDS_UP: bool = true;

    fn new() -> Self {
        Sums
    }

    #[inline]
    fn record(key: H::Term, Sum { low, count, .. }: Sum, carry: i64) -> Counted<H::Term> {
        Counted { key, sum: sum_of(low, carry), count }
    }

    fn attempts(value: Sum, _carry: i64) -> u32 {
        value.attempts
    }

    #[inline]
    fn settle(table: &mut Tally<H>) {
        let Last { id, seed, sum, count } = table.last;
        if count > 0 {
            table.last = Last { id, seed, sum: 0, count: 0 };
            table.add_to(id, sum, count);
        }
    }

    fn removed(_table: &mut Tally<H>, _value: Sum) {}

    fn take_back(table: &mut Tally<H>, flushed: &Tally<H>, id: EntryId, attempts: u32) -> TakenBack {
        let Some(entry) = flushed.entries.get(id) else { return TakenBack::Superseded };
        let (hash, failed, carry) = (flushed.hash(id), entry.value, flushed.entries.extra(id));
        let Some(waiting) = table.find(hash, entry.key) else {
            table.insert(hash, &flushed.key(entry), Sum { attempts, ..failed }, carry);
            table.count_taken_back(flushed, attempts);
            return TakenBack::Added;
        };
        let carry = (table.entries.extra(waiting), carry);
        let entry = table.entries.get_mut(waiting).expect("an entry that was found is there");
        let old = entry.value;
        let (low, carry) = split(sum_of(old.low, carry.0) + sum_of(failed.low, carry.1));
        let attempts = attempts.max(old.attempts);
        entry.value = Sum { low, count: old.count + failed.count, attempts };
        table.entries.set_extra(waiting, carry);
        table.count_joined(flushed, old.attempts, attempts);
        TakenBack::Joined
    }

    fn stale(&self) -> usize {
        0
    }

    fn bytes(&self) -> usize {
        0
    }

    fn has_large(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_half_a_cache_line() {
        assert_eq!(size_of::<Entry<usize, Sum>>(), 32);
    }

    #[test]
    fn a_sum_is_its_parts() {
        // The last is what 2^63 additions of the largest amount come to.
        let edges = [0, 1, i64::MAX.into(), i128::from(i64::MAX) + 1, 1 << 64, (1 << 64) - 1, 1 << 100, 1 << 126];
        for sum in edges.into_iter().flat_map(|edge| [edge, -edge, -edge - 1]) {
            let (low, carry) = split(sum);
            assert_eq!(sum_of(low, carry), sum);
        }
    }
}
