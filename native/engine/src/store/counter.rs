//! A tally: the sums of one shard since its last flush, each under its key.
//!
//! Only the keys are copied. Sums and counts are exact: each takes 64 bits, and a carry beyond
//! them.
//!
//! Additions often come to one hot key. Amounts for the key of the last addition stay in
//! `Table::head`, in the cache line of the lock, so that several writers to one key change no other
//! line. `Tally::sum` includes them. An addition to another key, a delete and a flush first write
//! them to their entry.

use super::entries::Entry;
use super::hash::Hash;
use super::saved::Saved;
use super::store::{Store, TakenBack};
use super::table::{Contents, Table};
use crate::ids::EntryId;
use crate::memory::parcel::Parcel;
use crate::term::{Heap, Resident, Term};

/// See the module's documentation.
pub type Tally<H> = Table<H, Sums>;

/// The contents of a tally outside of its entries: nothing.
pub struct Sums;

/// The entry of the last addition, and the amounts added to it since. [`Store::settle`] moves them
/// to the entry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Last {
    /// The entry, if it is still that of its key.
    id: EntryId,
    /// The seed of the key's hash.
    seed: u32,
    /// The sum of the amounts.
    sum: i64,
    /// The number of the additions.
    count: u64,
}

/// A sum in an entry. Packed, so that the entry needs no padding.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
pub struct Sum {
    /// The lowest 64 bits of the sum, as a signed number.
    low: i64,
    /// The lowest 63 bits of the count, and single additions since: they are too few to overflow
    /// the 64th bit.
    count: u64,
    /// The failed attempts of the processor.
    attempts: u32,
}

/// The rest of a sum and its count beyond their 64 bits. Few entries have one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Carry {
    /// Counts 2^64 of the sum.
    sum: i64,
    /// Counts 2^63 of the count.
    count: u64,
}

/// An entry as readers get it.
#[derive(Clone, Copy, Debug)]
pub struct Counted<T> {
    /// The key.
    pub key: Resident<T>,
    /// The sum. 128 bits are enough for 2^63 additions.
    pub sum: i128,
    /// The count: the number of additions, or what they brought. 128 bits are enough as well.
    pub count: u128,
}

/// The most that an entry counts, and the limit of its sum in both directions. Single additions do
/// not come to it in a century. It keeps the parts of sums from elsewhere within their words.
pub const LIMIT: i128 = (1 << 120) - 1;

/// A sum and a count within [`LIMIT`].
fn within_limits((sum, count): (i128, u128)) -> (i128, u128) {
    (sum.clamp(-LIMIT, LIMIT), count.min(LIMIT.unsigned_abs()))
}

/// The sum of the lowest 64 bits and of the carry, which counts 2^64.
#[inline]
fn sum_of(low: i64, carry: i64) -> i128 {
    (i128::from(carry) << 64) + i128::from(low)
}

/// The bits of a count in its entry.
const COUNT_BITS: u32 = 63;

/// The sum of the count in an entry and of the carry, which counts 2^63.
#[inline]
fn count_of(low: u64, carry: u64) -> u128 {
    (u128::from(carry) << COUNT_BITS) + u128::from(low)
}

/// The opposite of [`count_of`].
#[inline]
fn split_count(count: u128) -> (u64, u64) {
    (count as u64 & (u64::MAX >> 1), (count >> COUNT_BITS) as u64)
}

/// The opposite of [`sum_of`].
#[inline]
fn split(sum: i128) -> (i64, i64) {
    let low = sum as i64;
    (low, (sum >> 64) as i64 + i64::from(low < 0))
}

impl<H: Heap> Tally<H> {
    /// Adds `amount` to the sum of `key`; `true` if the key is new. A new key is added only if
    /// `admits` returns true; else the result is `None`.
    #[inline(always)]
    pub fn add(&mut self, hash: Hash, key: &Parcel<H>, amount: i64, admits: impl FnOnce() -> bool) -> Option<bool> {
        if self.add_to_last(hash, key.term, amount) {
            return Some(false);
        }
        Sums::settle(self);
        let Some(id) = self.find(hash, key.term) else {
            if !admits() {
                return None;
            }
            self.insert(hash, key, Sum { low: amount, count: 1, attempts: 0 }, Carry::default());
            return Some(true);
        };
        self.head = Last { id, seed: hash.seed(), sum: 0, count: 0 };
        self.count_merged();
        self.add_to(id, amount, 1);
        Some(false)
    }

    /// The same, and adds `count` to its count.
    pub fn add_counted(
        &mut self,
        hash: Hash,
        key: &Parcel<H>,
        (amount, count): (i64, u64),
        admits: impl FnOnce() -> bool,
    ) -> Option<bool> {
        self.add_parts(hash, key, (amount.into(), count.into()), admits)
    }

    /// The same with a sum and a count of any size.
    pub fn add_parts(
        &mut self,
        hash: Hash,
        key: &Parcel<H>,
        added: (i128, u128),
        admits: impl FnOnce() -> bool,
    ) -> Option<bool> {
        Sums::settle(self);
        let Some(id) = self.find(hash, key.term) else {
            if !admits() {
                return None;
            }
            let (value, carry) = Sum::new(within_limits(added), 0);
            self.insert(hash, key, value, carry);
            return Some(true);
        };
        self.count_merged();
        let attempts = self.attempts(id);
        self.join(id, added, attempts);
        Some(false)
    }

    /// Adds a sum and a count to an entry, which must be there, and sets its attempts.
    fn join(&mut self, id: EntryId, (sum, count): (i128, u128), attempts: u32) {
        let carry = self.entries.extra(id);
        let entry = self.entries.get_mut(id).expect("what is added to is there");
        let (old_sum, old_count) = entry.value.parts(carry);
        let total = (old_sum.saturating_add(sum), old_count.saturating_add(count));
        let (value, carry) = Sum::new(within_limits(total), attempts);
        entry.value = value;
        self.entries.set_extra(id, carry);
        self.mark(id);
    }

    /// Adds `amount` beside the lock; `false` unless the last addition was to `key` as well, or if
    /// the sum there would overflow.
    #[inline]
    fn add_to_last(&mut self, hash: Hash, key: H::Term, amount: i64) -> bool {
        let Last { id, seed, sum, .. } = self.head;
        let is_key = |entry: &&Entry<H::Term, Sum>| entry.key.is_identical(key);
        if seed != hash.seed() || self.entries.get(id).filter(is_key).is_none() {
            return false;
        }
        let Some(sum) = sum.checked_add(amount) else { return false };
        self.head.sum = sum;
        self.head.count += 1;
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
        self.mark(id);
        if overflows {
            self.carry(id, amount);
        }
    }

    /// Notes for the journal that an entry contains a failed sum of the flush.
    fn absorb(&mut self, id: EntryId) {
        if let Some(marks) = &mut self.marks {
            marks.absorb(id);
        }
    }

    /// Counts an overflow of the 64 bits of an entry's sum, by this amount.
    #[cold]
    fn carry(&mut self, id: EntryId, amount: i64) {
        let carry = self.entries.extra(id);
        self.entries.set_extra(id, Carry { sum: carry.sum + amount.signum(), ..carry });
    }

    /// The sum of an entry; `None` for an unknown id.
    #[inline]
    pub(crate) fn sum(&self, id: EntryId) -> Option<i128> {
        let low = self.entries.get(id)?.value.low;
        let beside = if self.head.id == id { self.head.sum } else { 0 };
        Some(sum_of(low, self.entries.extra(id).sum) + i128::from(beside))
    }
}

impl Sum {
    /// The value of an entry with this sum and count, and the carry beside it.
    fn new((sum, count): (i128, u128), attempts: u32) -> (Self, Carry) {
        let (low, carry) = split(sum);
        let (count, count_carry) = split_count(count);
        (Sum { low, count, attempts }, Carry { sum: carry, count: count_carry })
    }

    /// The sum and the count of an entry with this carry.
    #[inline]
    fn parts(self, carry: Carry) -> (i128, u128) {
        (sum_of(self.low, carry.sum), count_of(self.count, carry.count))
    }
}

impl<H: Heap> Contents<H> for Sums {
    type Value = Sum;

    type Extra = Carry;

    type Record = Counted<H::Term>;

    type Head = Last;

    const ADDS_UP: bool = true;

    fn new() -> Self {
        Sums
    }

    #[inline]
    fn record(key: Resident<H::Term>, value: Sum, carry: Carry) -> Counted<H::Term> {
        let (sum, count) = value.parts(carry);
        Counted { key, sum, count }
    }

    fn attempts(value: Sum, _carry: Carry) -> u32 {
        value.attempts
    }

    #[inline]
    fn settle(table: &mut Tally<H>) {
        let Last { id, seed, sum, count } = table.head;
        if count > 0 {
            table.head = Last { id, seed, sum: 0, count: 0 };
            table.add_to(id, sum, count);
        }
    }

    fn removed(_table: &mut Tally<H>, _value: Sum) {}

    fn take_back(table: &mut Tally<H>, flushed: &Tally<H>, id: EntryId, attempts: u32) -> TakenBack {
        let Some(entry) = flushed.entries.get(id) else { return TakenBack::Superseded };
        let (hash, failed, carry) = (flushed.hash(id), entry.value, flushed.entries.extra(id));
        let Some(waiting) = table.find(hash, entry.key) else {
            let id = table.entries.next_id();
            table.insert(hash, &flushed.key(entry), Sum { attempts, ..failed }, carry);
            table.count_taken_back(flushed, attempts);
            table.absorb(id);
            return TakenBack::Added;
        };
        table.absorb(waiting);
        let old_attempts = table.attempts(waiting);
        let attempts = attempts.max(old_attempts);
        table.join(waiting, failed.parts(carry), attempts);
        table.count_joined(flushed, old_attempts, attempts);
        TakenBack::Joined
    }

    fn saved(table: &Tally<H>, id: EntryId, entry: &Entry<H::Term, Sum>) -> Saved<H> {
        let (sum, count) = entry.value.parts(table.entries.extra(id));
        let absorbs = table.marks.as_ref().is_some_and(|marks| marks.absorbs(id));
        Saved::Sum { key: table.key(entry), sum, count, absorbs }
    }

    fn restore(table: &mut Tally<H>, hash: Hash, saved: &Saved<H>, attempts: u32) {
        let Saved::Sum { key, sum, count, .. } = saved else { return };
        let Some(old) = table.find(hash, key.term) else {
            let (value, carry) = Sum::new(within_limits((*sum, *count)), attempts);
            table.insert(hash, key, value, carry);
            return table.count_restored(None, attempts);
        };
        let old_attempts = table.attempts(old);
        let attempts = attempts.max(old_attempts);
        table.join(old, (*sum, *count), attempts);
        table.count_restored(Some(old_attempts), attempts);
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

    #[test]
    fn a_count_is_its_parts_and_the_part_in_the_entry_leaves_a_bit() {
        let edges = [0, 1, i64::MAX as u128, 1 << 63, u64::MAX.into(), 1 << 64, 1 << 100, 1 << 126];
        for count in edges.into_iter().flat_map(|edge| [edge, edge + 1]) {
            let (low, carry) = split_count(count);
            assert_eq!(count_of(low, carry), count);
            assert!(low < 1 << 63);
        }
    }
}
