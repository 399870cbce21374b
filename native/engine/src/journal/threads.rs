//! The two threads of a directory, which write and sync the journals there.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

/// The longest time between two looks at the journals.
const LONGEST: Duration = Duration::from_secs(1);

/// A journal, as its threads see it.
pub trait Timed: Send + Sync + 'static {
    /// The time until it is to be written.
    fn until_write(&self) -> Duration;

    /// The time until it is to be synced; `None` if only a write makes it due.
    fn until_sync(&self) -> Option<Duration>;

    /// Writes all changes.
    fn write(&self);

    /// Syncs all written blocks.
    fn sync(&self);
}

/// The journals of a directory.
type Journals = Arc<Mutex<Vec<Arc<dyn Timed>>>>;

/// The threads, which end when this is dropped.
pub struct Threads {
    /// The journals.
    journals: Journals,
    /// Wakes the thread that writes.
    writer: Sender<()>,
    /// Wakes the thread that syncs.
    syncer: Sender<()>,
}

impl Threads {
    /// Starts the threads, without journals.
    pub fn start() -> io::Result<Self> {
        let journals = Journals::default();
        let (writer, written) = bounded(1);
        let (syncer, synced) = bounded(1);
        let (all, wakes) = (journals.clone(), syncer.clone());
        thread::Builder::new().name("pb_journal".into()).spawn(move || write_all(&all, &written, &wakes))?;
        let all = journals.clone();
        thread::Builder::new().name("pb_journal_sync".into()).spawn(move || sync_all(&all, &synced))?;
        Ok(Threads { journals, writer, syncer })
    }

    /// Adds a journal.
    pub fn add(&self, journal: Arc<dyn Timed>) {
        self.journals.lock().push(journal);
        self.wake();
    }

    /// Removes a journal. The threads may be at work on it.
    pub fn remove(&self, journal: &Arc<dyn Timed>) {
        self.journals.lock().retain(|other| !Arc::ptr_eq(other, journal));
    }

    /// Wakes the threads, since something is due.
    pub fn wake(&self) {
        // A full channel wakes them anyway.
        let _ = self.writer.try_send(());
        let _ = self.syncer.try_send(());
    }
}

/// Waits until it is woken or the time is up; `false` if the threads are to end.
fn rest(wakes: &Receiver<()>, time: Duration) -> bool {
    !matches!(wakes.recv_timeout(time.min(LONGEST)), Err(RecvTimeoutError::Disconnected))
}

/// Writes each journal when it is due, until the end.
fn write_all(journals: &Journals, wakes: &Receiver<()>, syncer: &Sender<()>) {
    loop {
        let time = journals.lock().iter().map(|journal| journal.until_write()).min();
        if !rest(wakes, time.unwrap_or(LONGEST)) {
            return;
        }
        let due: Vec<_> = journals.lock().iter().filter(|journal| journal.until_write().is_zero()).cloned().collect();
        due.iter().for_each(|journal| journal.write());
        if due.iter().any(|journal| journal.until_sync().is_some_and(|time| time.is_zero())) {
            let _ = syncer.try_send(());
        }
    }
}

/// Syncs each journal when it is due, until the end.
fn sync_all(journals: &Journals, wakes: &Receiver<()>) {
    loop {
        let time = journals.lock().iter().filter_map(|journal| journal.until_sync()).min();
        if !rest(wakes, time.unwrap_or(LONGEST)) {
            return;
        }
        let is_due = |journal: &&Arc<dyn Timed>| journal.until_sync().is_some_and(|time| time.is_zero());
        let due: Vec<_> = journals.lock().iter().filter(is_due).cloned().collect();
        due.iter().for_each(|journal| journal.sync());
    }
}
