//! Keeps the reclaimer's thread busy, for tests that are alone in their process.

use std::sync::mpsc::{channel, Receiver, Sender};

use partitioned_buffer_engine::reclaim::{reclaim, Work};

/// Work that reports its begin, and ends when the sender is dropped.
struct Busy(Sender<()>, Receiver<()>);

impl Work for Busy {
    fn step(&mut self) -> Option<usize> {
        self.0.send(()).unwrap();
        let _ = self.1.recv();
        None
    }
}

/// Keeps the thread busy until the result is dropped.
pub fn keep_busy() -> Sender<()> {
    let ((begun, began), (end, busy)) = (channel(), channel());
    reclaim(Busy(begun, busy), 0);
    began.recv().unwrap();
    end
}
