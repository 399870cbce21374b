//! An array on the stack. Its free places hold nothing: to fill them first would cost a short list
//! as much as its writes.

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

/// Up to `N` items.
pub(crate) struct Array<T, const N: usize> {
    /// The number of items. As many places, from the first one on, hold one.
    length: usize,
    /// The places.
    places: [MaybeUninit<T>; N],
}

impl<T, const N: usize> Array<T, N> {
    /// No items.
    #[inline]
    pub(crate) fn new() -> Self {
        Array { length: 0, places: [const { MaybeUninit::uninit() }; N] }
    }

    /// Adds an item behind all others. The array must have a free place. The item is made in its
    /// place: a copy would wait for the parts just written, which costs an entry of a list a tenth.
    #[inline(always)]
    pub(crate) fn push_with(&mut self, make: impl FnOnce() -> T) -> &mut T {
        let place = &mut self.places[self.length];
        let item = place.write(make());
        self.length += 1;
        item
    }

    /// Drops all items.
    #[inline]
    pub(crate) fn clear(&mut self) {
        let items: *mut [T] = &mut **self;
        self.length = 0;
        // SAFETY: the places hold these items, and with the length 0 nobody uses them again, even if
        // a drop panics.
        unsafe { std::ptr::drop_in_place(items) }
    }
}

impl<T, const N: usize> Deref for Array<T, N> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the first `length` places hold an item, and a place has the layout of its item.
        unsafe { std::slice::from_raw_parts(self.places.as_ptr().cast(), self.length) }
    }
}

impl<T, const N: usize> DerefMut for Array<T, N> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.places.as_mut_ptr().cast(), self.length) }
    }
}

impl<T, const N: usize> Drop for Array<T, N> {
    #[inline]
    fn drop(&mut self) {
        self.clear();
    }
}
