//! Freeing memory where nobody waits for it.
//!
//! A generation of a million entries takes tens of milliseconds to free, and whoever drops the last reference to it may
//! be a scheduler. So it goes over a channel to a thread that does nothing else.

use std::sync::OnceLock;
use std::thread;

use crossbeam_channel::{bounded, unbounded, Sender};

/// Something to be dropped on the thread.
type Garbage = Box<dyn Send>;

/// The way to the thread; `None` if the system gave us no thread.
static RECLAIMER: OnceLock<Option<Sender<Garbage>>> = OnceLock::new();

/// Drops `garbage` on the reclaimer thread, which the first call starts. Without a thread it is dropped here: late is
/// better than never.
pub fn reclaim(garbage: impl Send + 'static) {
    if cfg!(shuttle) {
        // The model knows of no thread but its own.
        drop(garbage);
    } else if let Some(reclaimer) = RECLAIMER.get_or_init(start) {
        // The receiver lives as long as the thread, and the thread as long as the sender.
        let _ = reclaimer.send(Box::new(garbage));
    }
}

/// Waits until all that was given to the thread before is freed.
pub fn settle() {
    let (done, waiting) = bounded::<()>(0);
    reclaim(done);
    // An error: nothing is ever sent, but the sender is freed in its turn.
    let _ = waiting.recv();
}

/// Starts the thread.
fn start() -> Option<Sender<Garbage>> {
    let (sender, receiver) = unbounded::<Garbage>();
    let thread = thread::Builder::new().name("pb_reclaimer".into());
    thread.spawn(move || receiver.iter().for_each(drop)).ok().map(|_| sender)
}
