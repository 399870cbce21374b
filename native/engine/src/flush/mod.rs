//! Flushed entries: the stores that a partition swapped out, and the outcome of each entry.
//!
//! This layer has stores and limits below it. `progress` and `batch` are the state under the lock
//! of a [`Flush`]; each of the other files has the operations of one caller.

mod batch;
mod calls;
mod deferred;
#[allow(clippy::module_inception)] // The layer has one type at its centre.
mod flush;
mod frozen;
mod give_back;
mod leftovers;
mod notes;
mod parts;
mod progress;
mod reader;

pub use self::batch::{BatchState, Mark};
pub use self::calls::Death;
pub use self::flush::{Flush, Flushed, Seen};
pub use self::frozen::{Frozen, Held};
pub(crate) use self::give_back::Retry;
pub use self::give_back::{GaveBack, GiveBack, Leased};
pub use self::notes::{Fate, Note};
pub(crate) use self::notes::{Notes, Unsaved};
pub use self::reader::Reader;
