//! The locks and atomics of the engine. Whatever else its threads share never changes.
//!
//! Under `cfg(shuttle)` they are those of a model, with which `native/shuttle` chooses the
//! schedules of threads.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLockReadGuard as ReadGuard};
#[cfg(not(shuttle))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
#[cfg(not(shuttle))]
pub(crate) use std::thread::yield_now;

#[cfg(shuttle)]
pub(crate) use self::modelled::{
    yield_now, AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, ReadGuard, RwLock,
};

/// A lock for readers and a writer. A waiting writer keeps no reader out, so a thread may wait for
/// another lock while it reads.
#[cfg(not(shuttle))]
pub(crate) struct RwLock<T>(parking_lot::RwLock<T>);

#[cfg(not(shuttle))]
impl<T> RwLock<T> {
    /// A free lock.
    pub(crate) fn new(value: T) -> Self {
        RwLock(parking_lot::RwLock::new(value))
    }

    /// Waits until nobody writes.
    #[inline]
    pub(crate) fn read(&self) -> ReadGuard<'_, T> {
        self.0.read_recursive()
    }

    /// Waits until nobody reads or writes.
    pub(crate) fn write(&self) -> parking_lot::RwLockWriteGuard<'_, T> {
        self.0.write()
    }

    /// The value, after the last use of the lock.
    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

#[cfg(shuttle)]
mod modelled {
    //! The model's lock with the methods of `parking_lot`'s.

    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use shuttle::sync::{MutexGuard, RwLockReadGuard as ReadGuard};
    pub(crate) use shuttle::thread::yield_now;

    /// A lock at which the model decides who runs next.
    #[derive(Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A free lock.
        pub(crate) fn new(value: T) -> Self {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread has panicked with the lock")
        }

        /// The lock, if it is free.
        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }

        /// Always true: only a spinning thread needs this, and spinning is no use in the model.
        pub(crate) fn is_locked(&self) -> bool {
            true
        }
    }

    /// A lock at which the model decides who runs next. A waiting writer keeps no reader out.
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        /// A free lock.
        pub(crate) fn new(value: T) -> Self {
            RwLock(shuttle::sync::RwLock::new(value))
        }

        /// Waits until nobody writes.
        pub(crate) fn read(&self) -> ReadGuard<'_, T> {
            self.0.read().expect("no thread has panicked with the lock")
        }

        /// Waits until nobody reads or writes.
        pub(crate) fn write(&self) -> shuttle::sync::RwLockWriteGuard<'_, T> {
            self.0.write().expect("no thread has panicked with the lock")
        }

        /// The value, after the last use of the lock.
        pub(crate) fn into_inner(self) -> T {
            self.0.into_inner().expect("no thread has panicked with the lock")
        }
    }
}
