//! The locks and atomics of the engine. Whatever else its threads share never changes.
//!
//! Under `cfg(shuttle)` they are those of a model, with which `native/shuttle` chooses the
//! schedules of threads.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Mutex, MutexGuard};
#[cfg(not(shuttle))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[cfg(shuttle)]
pub(crate) use self::modelled::{AtomicBool, AtomicUsize, Mutex, MutexGuard, Ordering};

#[cfg(shuttle)]
mod modelled {
    //! The model's lock with the methods of `parking_lot`'s.

    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    pub(crate) use shuttle::sync::MutexGuard;

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
}
