//! Where copies of terms live, and how their memory is freed. Below it are only terms and ids.

pub mod arena;
mod cleaner;
mod frozen;
mod own_heaps;
pub mod parcel;
pub mod reclaim;
mod segment;
