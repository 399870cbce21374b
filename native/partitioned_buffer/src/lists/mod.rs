//! Writes the elements of a list. Each module uses only those below it:
//!
//! | module | what it does |
//! |---|---|
//! | [`write`] | writes a list, step by step |
//! | [`step`] | prepares some writes, and does them lock by lock |
//! | [`target`] | the writes of each kind |
//! | [`shape`] | the shapes of the elements, and their check |

mod shape;
mod step;
mod target;
mod write;

pub(crate) use self::shape::invalid;
pub(crate) use self::shape::{check_list, Invalid, Shape};
pub(crate) use self::target::{Target, ToCounter, ToMap, ToQueue};
pub(crate) use self::write::{write_list, Written};
