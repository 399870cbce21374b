//! All unsafe code of the library, most of it calls of the VM's C functions. Each module says why its code is sound.
//!
//! | module | what it does |
//! |---|---|
//! | [`term`] | terms and environments for the engine, entry points for the VM |
//! | [`clock`] | the VM's time |
//! | [`memory`] | the VM's allocators, counted |
//! | `timing` | for benchmarks only: how long calls take |
//! | `faults` | for tests only: panics in copies |
#![allow(unsafe_code)]

pub(crate) mod clock;
#[cfg(feature = "faults")]
mod faults;
pub(crate) mod memory;
pub(crate) mod term;
#[cfg(feature = "timing")]
pub(crate) mod timing;
