//! The reclaimer falls behind only so far. This process has only one test, since it keeps the
//! thread of the process busy.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use common::busy::keep_busy;
use partitioned_buffer_engine::reclaim::{help, is_behind, reclaim, reclaiming, settle, Work};

const MB: usize = 1024 * 1024;

/// Work of this many steps, each of a megabyte.
struct Steps(usize);

impl Work for Steps {
    fn step(&mut self) -> Option<usize> {
        self.0 = self.0.checked_sub(1)?;
        Some(MB)
    }
}

#[test]
fn those_who_make_garbage_free_what_is_above_the_limit() {
    let end = keep_busy();
    for made in 1..=50 {
        reclaim(Steps(8), 8 * MB);
        assert_eq!(is_behind(), made > 8, "{} bytes after {made} units", reclaiming());
        while is_behind() {
            help();
        }
        assert!(reclaiming() <= 64 * MB);
        assert_eq!(reclaiming(), (made * 8).min(64) * MB, "help ends at the limit");
    }
    drop(end);
    settle();
    assert_eq!(reclaiming(), 0);
}
