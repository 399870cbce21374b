//! What threads meet at: locks and atomics. They are `parking_lot`'s and `std`'s, unless `cfg(shuttle)` is set: then they
//! are those of a model, under which `native/shuttle` runs the partition with schedules of its choice. All that the
//! engine's threads share is either here or never changed.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Mutex, MutexGuard};
#[cfg(not(shuttle))]
pub(crate) use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

#[cfg(shuttle)]
pub(crate) use self::modelled::{AtomicI64, AtomicUsize, Mutex, MutexGuard, Ordering};

#[cfg(shuttle)]
mod modelled {
    //! The model's lock with the functions of `parking_lot`'s.

    pub(crate) use shuttle::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
    pub(crate) use shuttle::sync::MutexGuard;

    /// A lock at which the model decides who runs next.
    #[derive(Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A lock that is free.
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

        /// Only asked by who would spin for the lock: there is nothing to wait for but the model.
        pub(crate) fn is_locked(&self) -> bool {
            true
        }
    }
}
