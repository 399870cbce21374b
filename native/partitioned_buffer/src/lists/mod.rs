//! Writes the elements of a list. Each module uses only those below it:
//!
//! | module | what it does |
//! |---|---|
//! | [`check`] | checks a list before the first write |
//! | [`write`] | reads a list in chunks, and writes them in steps |
//! | [`step`] | sorts some writes by their locks, and does them |
//! | [`map`], [`queue`], [`counter`] | the writes of each kind |
//! | [`target`] | the interface of a kind |
//! | [`shape`] | the shapes of the elements |

mod check;
mod counter;
mod map;
mod queue;
mod shape;
mod step;
mod target;
mod write;

pub(crate) use self::check::check_list;
pub(crate) use self::counter::ToCounter;
pub(crate) use self::map::ToMap;
pub(crate) use self::queue::ToQueue;
pub(crate) use self::shape::{Invalid, Shape};
pub(crate) use self::target::Target;
pub(crate) use self::write::{write_list, Written};
