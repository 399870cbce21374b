//! The entries of one shard since its last flush: tables with keys, and logs without.
//!
//! Below it are the memory of the copies, and the counts of writes.

pub mod counter;
pub mod entries;
pub mod hash;
mod history;
pub mod index;
pub mod map;
pub mod marks;
pub mod queue;
pub mod saved;
#[allow(clippy::module_inception)] // The trait of all stores has the name of the layer.
mod store;
pub mod table;

pub use self::store::{Store, TakenBack};
