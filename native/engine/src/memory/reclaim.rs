//! Frees memory on a separate thread, because freeing a million entries takes tens of milliseconds,
//! and a scheduler may drop the last reference to them.
//!
//! The thread may fall behind many writers. Then the makers of garbage [`help`]: so a writer is
//! slowed, and the memory does not grow.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver, Sender};

/// Memory to be freed, in steps of some ten microseconds.
pub trait Work: Send + 'static {
    /// Frees a piece. Returns its estimated bytes; `None` if nothing is left but to drop this.
    fn step(&mut self) -> Option<usize>;

    /// Whether others wait for the lock that a step takes.
    fn holds_up(&self) -> bool {
        false
    }
}

/// The thread rests between steps that hold up others, unless it is behind. It holds their lock for
/// a twentieth of this time.
const REST: Duration = Duration::from_micros(50);

/// Others help the thread while it is this many bytes behind.
const MOST_BEHIND: usize = 64 * 1024 * 1024;

/// The time of a helper in one call, of the millisecond that the call may take.
const HELP_TIME: Duration = Duration::from_micros(200);

/// The estimated bytes given to the thread and not yet free.
static BEHIND: AtomicUsize = AtomicUsize::new(0);

/// How often somebody began to help the thread.
static HELPED: AtomicUsize = AtomicUsize::new(0);

/// The number of present helpers.
static HELPERS: AtomicUsize = AtomicUsize::new(0);

/// The channel to the thread; `None` if the system refused to start one.
static RECLAIMER: OnceLock<Option<(Sender<Job>, Receiver<Job>)>> = OnceLock::new();

/// Work, and the part of [`BEHIND`] that it stands for.
struct Job {
    /// The work.
    work: Box<dyn Work>,
    /// The bytes that are not free yet.
    bytes: usize,
}

impl Job {
    /// Does a step; `false` if nothing is left but to drop the job.
    fn step(&mut self) -> bool {
        let freed = self.work.step();
        let counted = freed.unwrap_or(0).min(self.bytes);
        self.bytes -= counted;
        BEHIND.fetch_sub(counted, Ordering::Relaxed);
        freed.is_some()
    }

    /// Does all steps.
    fn finish(mut self) {
        while self.step() {
            if self.work.holds_up() && !is_behind() && !cfg!(shuttle) {
                thread::sleep(REST);
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        BEHIND.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Does `work`, which frees about as many bytes, on the reclaimer thread. The first call starts the
/// thread. Without it the work is done here.
pub fn reclaim(work: impl Work, bytes: usize) {
    BEHIND.fetch_add(bytes, Ordering::Relaxed);
    let job = Job { work: Box::new(work), bytes };
    if cfg!(shuttle) {
        // The model has no threads but its own.
        job.finish();
    } else if let Some((reclaimer, _)) = RECLAIMER.get_or_init(start) {
        // This cannot fail: the channel lives as long as the process.
        let _ = reclaimer.send(job);
    } else {
        job.finish();
    }
}

/// The estimated bytes that nobody needs and that are not free yet.
pub fn reclaiming() -> usize {
    BEHIND.load(Ordering::Relaxed)
}

/// Whether the makers of garbage must help the thread.
#[inline]
pub fn is_behind() -> bool {
    reclaiming() > MOST_BEHIND
}

/// Does a part of the thread's work if it is behind.
#[inline]
pub fn help() {
    if is_behind() {
        help_now();
    }
}

/// Does a part of the thread's work.
#[cold]
fn help_now() {
    if let Some(Some((sender, receiver))) = RECLAIMER.get() {
        let started = Instant::now();
        HELPERS.fetch_add(1, Ordering::SeqCst);
        HELPED.fetch_add(1, Ordering::SeqCst);
        let mut begun = None;
        while is_behind() && started.elapsed() < HELP_TIME {
            let Some(mut job) = begun.take().or_else(|| receiver.try_recv().ok()) else { break };
            begun = job.step().then_some(job);
        }
        // This cannot fail, as below.
        begun.into_iter().for_each(|job| drop(sender.send(job)));
        HELPERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits until all earlier garbage is free.
pub fn settle() {
    loop {
        let (helped, helpers) = (HELPED.load(Ordering::SeqCst), HELPERS.load(Ordering::SeqCst));
        // The work before the first signal may give other work to the thread.
        for _ in 0..2 {
            let (sender, receiver) = bounded::<()>(0);
            reclaim(Signal(sender), 0);
            // Nothing is ever sent: this ends with an error when the thread drops the sender.
            let _ = receiver.recv();
        }
        // A helper may put work back behind the signal.
        if helpers == 0 && helped == HELPED.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// Work that frees nothing, and whose end somebody waits for.
struct Signal(#[allow(dead_code)] Sender<()>); // It is there to be dropped.

impl Work for Signal {
    fn step(&mut self) -> Option<usize> {
        None
    }
}

/// Starts the thread.
fn start() -> Option<(Sender<Job>, Receiver<Job>)> {
    let (sender, receiver) = unbounded::<Job>();
    let thread = thread::Builder::new().name("pb_reclaimer".into());
    let jobs = receiver.clone();
    thread.spawn(move || jobs.iter().for_each(Job::finish)).ok().map(|_| (sender, receiver))
}
