//! The journal: a copy of the entries on disk, which survives the death of the VM.

pub mod block;
pub mod disk;
#[allow(clippy::module_inception)] // The layer has one type at its centre.
mod journal;
pub mod log;
mod pass;
pub mod record;
pub mod replay;
pub mod threads;

pub use self::journal::{Answer, Entries, Journal, Level, Report, Status, Times};
pub use self::pass::{Blocks, Codec, Pass};
