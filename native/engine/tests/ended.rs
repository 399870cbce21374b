//! The end of a flush while the reclaimer still has parts to free. This process has only one test,
//! since it keeps the thread of the process busy.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use common::busy::keep_busy;
use common::reading::{flush, read};
use common::{queue, LARGE};
use partitioned_buffer_engine::reclaim::{reclaiming, settle};

#[test]
fn the_end_of_a_flush_frees_its_stores_as_a_whole_whatever_parts_wait() {
    let queue = queue::start();
    queue::push_all(&queue, LARGE..LARGE + 240);
    settle();
    let end = keep_busy();
    let full = queue.info().bytes;
    let flush = flush(&queue).unwrap();
    let mut parts = 0;
    while read(&flush, 1, 10, |_| ()).is_some_and(|items| !items.is_empty()) {
        parts = reclaiming();
        assert!(flush.lease(1, 0));
        flush.succeed(1);
    }
    queue.settle(&flush);
    drop(flush);
    assert!(0 < parts && parts <= full, "{parts} bytes of {full} are those of the parts that wait");
    assert_eq!(reclaiming() - parts, full, "the stores are the thread's at once");
    drop(end);
    settle();
    assert_eq!((reclaiming(), queue.info().bytes), (0, 0));
}
