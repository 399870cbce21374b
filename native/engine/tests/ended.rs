//! The end of a flush while the reclaimer still has parts to free. This process has only one test,
//! since it keeps the thread of the process busy.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::sync::mpsc::{channel, Receiver, Sender};

use common::reading::{flush, read};
use common::{queue, LARGE};
use partitioned_buffer_engine::reclaim::{reclaim, reclaiming, settle, Work};

/// Keeps the thread busy until the test allows it to go on.
struct Busy(Sender<()>, Receiver<()>);

impl Work for Busy {
    fn step(&mut self) -> Option<usize> {
        self.0.send(()).unwrap();
        let _ = self.1.recv();
        None
    }
}

#[test]
fn the_end_of_a_flush_frees_its_stores_as_a_whole_whatever_parts_wait() {
    let queue = queue::start();
    queue::push_all(&queue, LARGE..LARGE + 240);
    settle();
    let ((begun, began), (end, busy)) = (channel(), channel());
    reclaim(Busy(begun, busy), 0);
    began.recv().unwrap();
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
