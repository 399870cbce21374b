//! The journal of a buffer: its threads, its start and its end.
//!
//! The partitions of a kind keep a [`Journaled`] from run to run, as long as they have a journal. It
//! ends when a run that left nothing ends, and with the VM.

mod open;
mod read;

use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use partitioned_buffer_engine::journal::disk::Directory;
use partitioned_buffer_engine::journal::threads::{Threads, Timed};
use partitioned_buffer_engine::journal::{Answer, Blocks, Entries, Journal, Level, Pass, Report, Status, Times};
use partitioned_buffer_engine::Note;
use rustler::LocalPid;

pub(crate) use self::open::{close, open, Opened, Place, Refusal};
pub(crate) use self::read::{delete, read};
use crate::any::{each, AnyPartitions};
use crate::vm::external::Terms;

/// The threads of each directory, as long as it has journals.
static THREADS: Mutex<BTreeMap<PathBuf, Weak<Threads>>> = Mutex::new(BTreeMap::new());

/// How long the end of a journal is waited for.
const END_TIME: Duration = Duration::from_secs(5);

/// Sends news of a journal to a process.
pub(crate) type Reporter = Box<dyn Fn(LocalPid, Report) + Send + Sync>;

/// See the module's documentation.
pub(crate) struct Journaled {
    /// The journal.
    journal: Journal<Directory, AnyPartitions>,
    /// Its directory.
    pub(crate) path: PathBuf,
    /// The threads of the directory above.
    threads: Arc<Threads>,
    /// The process that gets the news.
    reporter: Mutex<Option<LocalPid>>,
    /// Sends a report.
    report: Reporter,
    /// The number of entries that a former VM left.
    pub(crate) replayed: usize,
}

impl Entries for AnyPartitions {
    type Codec = Terms;

    fn pass<B: Blocks>(&self, partition: u32, pass: Pass<'_, B, Terms>) -> Result<usize, B::Failure> {
        each!(AnyPartitions, self, own => pass.run(own.partition(partition)))
    }

    fn take_notes(&self, partition: u32) -> Vec<Note> {
        each!(AnyPartitions, self, own => own.partition(partition).take_notes())
    }

    fn live_generation(&self, partition: u32) -> u64 {
        each!(AnyPartitions, self, own => own.partition(partition).live_generation())
    }

    fn unsave(&self, partition: u32) {
        each!(AnyPartitions, self, own => own.partition(partition).unsave());
    }

    fn unsaved(&self, partition: u32) -> usize {
        each!(AnyPartitions, self, own => own.partition(partition).unsaved())
    }

    fn bytes(&self, partition: u32) -> usize {
        each!(AnyPartitions, self, own => own.partition(partition).info().bytes)
    }
}

impl Journaled {
    /// Changes how often the journal is written and synced.
    pub(crate) fn set_times(&self, times: Times) {
        self.journal.set_times(times);
        self.threads.wake();
    }

    /// See [`Journal::wait`].
    pub(crate) fn wait(&self, level: Level, answer: Answer) -> bool {
        let waits = self.journal.wait(level, answer);
        self.threads.wake();
        waits
    }

    /// See [`Journal::status`].
    pub(crate) fn status(&self) -> Status {
        self.journal.status()
    }

    /// Lets a process get the reports.
    pub(crate) fn report_to(&self, pid: LocalPid) {
        *self.reporter.lock() = Some(pid);
    }

    /// See [`Journal::moving`].
    pub(crate) fn moving<R>(&self, partitions: u32, move_all: impl FnOnce() -> R) -> R {
        let result = self.journal.moving(partitions, move_all);
        self.threads.wake();
        result
    }

    /// Does a part of a thread's work. A panic is a bug, but does not end the thread: other journals need
    /// it.
    fn guard(&self, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.journal.distrust(&mut |report| self.tell(report));
        }
    }

    /// Writes and syncs all, for the last time, on a thread apart from the schedulers: the waiters get their
    /// answers from there. The caller does not wait for a disk that hangs.
    pub(crate) fn finish(self: &Arc<Self>) {
        let timed: Arc<dyn Timed> = self.clone();
        self.threads.remove(&timed);
        let (own, (ended, end)) = (self.clone(), bounded(1));
        let thread = std::thread::Builder::new().name("pb_journal_end".into());
        let finish = move || {
            own.journal.finish();
            drop(own);
            let _ = ended.send(());
        };
        if thread.spawn(finish).is_ok() {
            let _ = end.recv_timeout(END_TIME);
        }
    }

    /// Reports to the process that wants it.
    fn tell(&self, report: Report) {
        let pid = *self.reporter.lock();
        pid.into_iter().for_each(|pid| (self.report)(pid, report));
    }
}

impl Timed for Journaled {
    fn until_write(&self) -> Duration {
        self.journal.until_write()
    }

    fn until_sync(&self) -> Option<Duration> {
        self.journal.until_sync()
    }

    fn write(&self) {
        self.guard(|| self.journal.write(|report| self.tell(report)));
    }

    fn sync(&self) {
        self.guard(|| self.journal.sync(|report| self.tell(report)));
    }
}

/// The threads of a directory, which start with its first journal.
fn threads_of(dir: &Path) -> std::io::Result<Arc<Threads>> {
    let mut all = THREADS.lock();
    if let Some(threads) = all.get(dir).and_then(Weak::upgrade) {
        return Ok(threads);
    }
    let threads = Arc::new(Threads::start()?);
    all.retain(|_, others| others.strong_count() > 0);
    all.insert(dir.to_owned(), Arc::downgrade(&threads));
    Ok(threads)
}
