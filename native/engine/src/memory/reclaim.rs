//! Frees memory on a separate thread, because freeing a million entries takes tens of milliseconds,
//! and a scheduler may drop the last reference to them.

use std::sync::OnceLock;
use std::thread;

use crossbeam_channel::{bounded, unbounded, Sender};

/// A value for the thread to drop.
type Garbage = Box<dyn Send>;

/// The channel to the thread; `None` if the system refused to start one.
static RECLAIMER: OnceLock<Option<Sender<Garbage>>> = OnceLock::new();

/// Drops `garbage` on the reclaimer thread, which the first call starts. Without that thread, drops
/// it here.
pub fn reclaim(garbage: impl Send + 'static) {
    if cfg!(shuttle) {
        // The model has no threads but its own.
        drop(garbage);
    } else if let Some(reclaimer) = RECLAIMER.get_or_init(start) {
        // This cannot fail: the thread and its receiver live as long as the sender.
        let _ = reclaimer.send(Box::new(garbage));
    }
}

/// Waits until the thread freed all earlier garbage.
pub fn settle() {
    let (sender, receiver) = bounded::<()>(0);
    reclaim(sender);
    // Nothing is ever sent: this ends with an error when the thread drops the sender.
    let _ = receiver.recv();
}

/// Starts the thread.
fn start() -> Option<Sender<Garbage>> {
    let (sender, receiver) = unbounded::<Garbage>();
    let thread = thread::Builder::new().name("pb_reclaimer".into());
    thread.spawn(move || receiver.iter().for_each(drop)).ok().map(|_| sender)
}
