//! All unsafe code of the library, mostly calls of the VM's C functions. Each module gives the
//! reasons why its code is sound.
//!
//! | module | what it does |
//! |---|---|
//! | [`entry`] | the functions that the VM calls |
//! | [`term`] | terms as words |
//! | [`argument`] | the terms of the caller that a store keeps |
//! | [`caller`] | all other terms of the caller |
//! | [`environment`] | the heaps of the engine |
//! | [`large`] | environments for large terms, and their charge |
//! | [`small`], [`weight`] | whether a term is small; an estimate of its bytes |
//! | [`array`] | an array on the stack |
//! | [`kept`] | terms that outlive their process |
//! | [`external`] | terms in the external format, for the journal |
//! | [`memory`] | the VM's allocators, counted |
//! | [`wall_clock`] | the wall clock, read fast |
//! | `timing` | for benchmarks only: how long calls take |
//! | `faults` | for tests only: panics in copies |
#![allow(unsafe_code)]

pub(crate) mod argument;
pub(crate) mod array;
pub(crate) mod caller;
pub(crate) mod entry;
pub(crate) mod environment;
pub(crate) mod external;
#[cfg(feature = "faults")]
mod faults;
pub(crate) mod kept;
pub(crate) mod large;
pub(crate) mod memory;
pub(crate) mod small;
pub(crate) mod term;
#[cfg(feature = "timing")]
pub(crate) mod timing;
pub(crate) mod wall_clock;
mod weight;
