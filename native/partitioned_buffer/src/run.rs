//! A run of a buffer: from its start until the process that started it, the buffer's supervisor,
//! dies.
//!
//! All processes that act for a run have its number, and their calls go through [`Shared::enter`].
//! It does nothing once the run is over, so a process that outlives its run cannot touch the next
//! one. A start waits for the calls under way: these hold [`Shared::opened`] for reading, and a
//! start holds it for writing. Only a start waits for the lock; other calls find it taken, which
//! means that their run is over.
//!
//! The end of a run waits for no call. It changes [`Shared::state`], which every operation reads,
//! and ends the run's [terms](Kept).

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use partitioned_buffer_engine::waiting::{Answer, Waiting};
use partitioned_buffer_engine::{Bound, Clock, Streams};
use rustler::{Atom, Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::journal::Journaled;
use crate::kept::Kept;
use crate::processes::Processes;

mod message {
    //! The messages to processes.
    rustler::atoms! {
        enough,
        full,
        room,
        paused,
        resumed,
        lists_written,
        room_answer = "$partitioned_buffer_room",
        granted,
        too_long,
        ended
    }
}

/// The buffer was never started, was stopped, crashed, or has no partitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotRunning;

/// The most writers that a call answers: this takes some ten microseconds.
const MOST_ANSWERS: usize = 64;

/// The count while no process has the partitions open.
const CLOSED: u32 = 0;

/// The count of a run with 0 partitions.
const NONE: u32 = u32::MAX;

/// The state that all partitions of one kind of a buffer share, from run to run.
#[derive(Default)]
pub(crate) struct Shared {
    /// The number of the last run in the upper half, and in the lower half the partition count, or
    /// [`CLOSED`], or [`NONE`].
    state: AtomicU64,
    /// The last run. Held for reading by all calls that act for a run, and for writing by a start.
    pub(crate) opened: RwLock<Opened>,
    /// How many entries the partitions may hold.
    pub(crate) bound: Arc<Bound>,
    /// The clock of a map.
    pub(crate) clock: Arc<Clock>,
    /// Whether the run is the first stage of a buffer of several nodes, so that other entries of its
    /// keys may be elsewhere.
    collects: AtomicBool,
    /// Whether the run is on hold: no call of the processor begins, until its stop.
    on_hold: AtomicBool,
    /// Whether the stop of the run began.
    stops: AtomicBool,
    /// Held while the bound changes.
    pub(crate) changing_bound: Mutex<()>,
    /// The writers that wait for room.
    pub(crate) waiting: Waiting<LocalPid>,
    /// Whether a message to the process of the room is on its way.
    is_room_told: AtomicBool,
    /// How many lists are being written for which a stop waits.
    lists: AtomicUsize,
    /// Held for writing while a partition is closed, and for reading by calls that none may refuse in
    /// the middle.
    pub(crate) closing: RwLock<()>,
    /// The numbers of entries from other nodes. They outlive a run.
    pub(crate) streams: Streams,
    /// The journal of the entries, which outlives a run.
    pub(crate) journaled: Mutex<Option<Arc<Journaled>>>,
    /// The processes of the run.
    pub(crate) processes: Mutex<Processes>,
    /// The terms of the run.
    pub(crate) kept: Kept,
}

/// The last run.
#[derive(Default)]
pub(crate) struct Opened {
    /// The process that opened it.
    pub(crate) owner: Option<ResourceArc<Owner>>,
    /// The partition count.
    pub(crate) partition_count: u32,
    /// Whether the partitions were open with outcomes.
    pub(crate) has_outcomes: bool,
}

/// The reason for a message to a process.
#[derive(Clone, Copy)]
pub(crate) enum News {
    /// Enough entries wait in this partition.
    Enough(u32),
    /// The buffer has no room.
    Full,
    /// The buffer may have room again, or writers wait that need a look.
    Room,
    /// The lists are written for which a stop waits.
    Lists,
}

impl Shared {
    /// The journal of the entries.
    pub(crate) fn journaled(&self) -> Option<Arc<Journaled>> {
        self.journaled.lock().clone()
    }

    /// How many partitions are open.
    #[inline]
    pub(crate) fn count(&self) -> Result<u32, NotRunning> {
        match self.state.load(Ordering::Acquire) as u32 {
            CLOSED | NONE => Err(NotRunning),
            count => Ok(count),
        }
    }

    /// The partition count, which may be 0; `None` if no process has the partitions open.
    pub(crate) fn opened_count(&self) -> Option<u32> {
        match self.state.load(Ordering::Acquire) as u32 {
            CLOSED => None,
            NONE => Some(0),
            count => Some(count),
        }
    }

    /// The number of the present run, and the process that opened it.
    pub(crate) fn present(&self) -> Result<(u32, LocalPid), NotRunning> {
        let opened = self.opened.try_read().ok_or(NotRunning)?;
        let owner = opened.owner.as_ref().filter(|owner| self.is_present(owner.number)).ok_or(NotRunning)?;
        Ok((owner.number, owner.pid))
    }

    /// Whether the run with this number is the present one.
    pub(crate) fn is_present(&self, number: u32) -> bool {
        let state = self.state.load(Ordering::Acquire);
        (state >> 32) as u32 == number && state as u32 != CLOSED
    }

    /// Acts for the run with this number, unless it is over.
    #[inline]
    pub(crate) fn enter<R>(&self, number: u32, act: impl FnOnce() -> Result<R, NotRunning>) -> Result<R, NotRunning> {
        let _opened = self.opened.try_read().ok_or(NotRunning)?;
        if self.is_present(number) {
            act()
        } else {
            Err(NotRunning)
        }
    }

    /// The number of the next run, which no other run of any buffer has.
    pub(crate) fn next_number() -> u32 {
        static LAST: AtomicU32 = AtomicU32::new(0);
        LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Whether no other run began since the one with this number. It may be over.
    pub(crate) fn is_last(&self, number: u32) -> bool {
        (self.state.load(Ordering::Acquire) >> 32) as u32 == number
    }

    /// Acts for a task of the run with this number, unless another run began since. A task that
    /// outlives its run may still settle its batch: nobody else has the batch before the next
    /// start.
    #[inline]
    pub(crate) fn enter_last<R>(&self, number: u32, act: impl FnOnce() -> R) -> Result<R, NotRunning> {
        while self.is_last(number) {
            // Recursive, so that a start that waits for another call does not keep this one out.
            if let Some(_opened) = self.opened.try_read_recursive() {
                return if self.is_last(number) { Ok(act()) } else { Err(NotRunning) };
            }
            // A start has the lock, and soon prepares its run.
            std::thread::yield_now();
        }
        Err(NotRunning)
    }

    /// Whether no call of the processor may begin.
    pub(crate) fn is_on_hold(&self) -> bool {
        self.on_hold.load(Ordering::Acquire) && !self.stops.load(Ordering::Acquire)
    }

    /// Whether entries of the keys may be elsewhere.
    pub(crate) fn collects(&self) -> bool {
        self.collects.load(Ordering::Relaxed)
    }

    /// Notes that entries of the keys may be elsewhere.
    pub(crate) fn collect(&self) {
        self.collects.store(true, Ordering::Relaxed);
    }

    /// Puts the run on hold. A stop ends that, and during a stop it has no effect.
    pub(crate) fn hold(&self) {
        self.on_hold.store(true, Ordering::Release);
    }

    /// Lets calls of the processor begin again, and sends the processes of the partitions the news.
    pub(crate) fn resume(&self, env: Env<'_>) {
        self.on_hold.store(false, Ordering::Release);
        self.tell_partitions(env, message::resumed());
    }

    /// Notes that the stop of the run begins, and ends all waits for room. Returns how many lists are
    /// being written. If there are any, the calling process gets a message at the end of the last
    /// one.
    pub(crate) fn begin_stop(&self, env: Env<'_>) -> usize {
        self.processes.lock().stopper = Some(env.pid());
        self.stops.store(true, Ordering::SeqCst);
        self.serve(env);
        self.lists.load(Ordering::SeqCst)
    }

    /// Counts a list that begins; `false` if a stop began before.
    pub(crate) fn begin_list(&self) -> bool {
        self.lists.fetch_add(1, Ordering::SeqCst);
        !self.stops.load(Ordering::SeqCst)
    }

    /// Counts the end of a list.
    pub(crate) fn end_list(&self, env: Env<'_>) {
        if self.lists.fetch_sub(1, Ordering::SeqCst) == 1 && self.stops.load(Ordering::SeqCst) {
            self.tell(env, News::Lists);
        }
    }

    /// Answers writers that wait for room. The process of the room gets the news if others may be
    /// answered by the next call, or grants may lapse.
    pub(crate) fn serve(&self, env: Env<'_>) {
        if self.answer(env) || self.waiting.may_lapse() {
            self.tell(env, News::Room);
        }
    }

    /// Answers writers that wait for room, as many as a call has the time for. Returns whether others
    /// may be answered.
    pub(crate) fn answer(&self, env: Env<'_>) -> bool {
        let is_over = self.count().is_err() || self.stops.load(Ordering::SeqCst);
        self.waiting.serve(&self.bound, is_over, MOST_ANSWERS, |place, writer, answer| {
            let answer = match answer {
                Answer::Granted => message::granted(),
                Answer::TooLong => message::too_long(),
                Answer::Ended => message::ended(),
            };
            let _ = env.send(writer, (message::room_answer(), place, answer));
        })
    }

    /// Lets the process of the room get news again.
    pub(crate) fn hear_of_room(&self) {
        self.is_room_told.store(false, Ordering::SeqCst);
    }

    /// Leaves no run present, until the run with this number begins.
    pub(crate) fn prepare(&self, number: u32) {
        self.collects.store(false, Ordering::Relaxed);
        self.bound.set_refusing(false);
        self.on_hold.store(false, Ordering::Release);
        self.stops.store(false, Ordering::Release);
        self.state.store(u64::from(number) << 32 | u64::from(CLOSED), Ordering::Release);
    }

    /// Begins the prepared run.
    pub(crate) fn begin(&self, number: u32, partition_count: u32) {
        let count = if partition_count == 0 { NONE } else { partition_count };
        self.state.store(u64::from(number) << 32 | u64::from(count), Ordering::Release);
    }

    /// Ends the run with this number, or any, and its terms.
    pub(crate) fn end(&self, number: Option<u32>) {
        let end = |state: u64| {
            let present = (state >> 32) as u32;
            number.is_none_or(|number| number == present).then_some(state >> 32 << 32 | u64::from(CLOSED))
        };
        if let Ok(state) = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, end) {
            self.kept.end((state >> 32) as u32);
        }
    }

    /// Sends news to the process that waits for it.
    #[cold]
    pub(crate) fn tell(&self, env: Env<'_>, news: News) {
        if matches!(news, News::Room) && self.is_room_told.swap(true, Ordering::SeqCst) {
            return;
        }
        let processes = self.processes.lock();
        let (pid, message) = match news {
            News::Enough(partition) => (processes.of(partition).server, message::enough()),
            News::Full => (processes.room, message::full()),
            News::Room => (processes.room, message::room()),
            News::Lists => (processes.stopper, message::lists_written()),
        };
        drop(processes);
        if let Some(pid) = pid {
            // The process may be dead. Its successor checks the state by itself at its start.
            let _ = env.send(&pid, message);
        }
    }

    /// Sends the processes of the partitions the news of a pause.
    pub(crate) fn tell_of_pause(&self, env: Env<'_>) {
        self.tell_partitions(env, message::paused());
    }

    /// Sends a message to the processes of all partitions. A process that dies before it gets the
    /// message has a successor, which checks the state by itself at its start.
    fn tell_partitions(&self, env: Env<'_>, message: Atom) {
        let processes = self.processes.lock().clone();
        for pid in processes.all().filter_map(|partition| partition.server) {
            let _ = env.send(&pid, message);
        }
    }

    /// Gives free room to the writers that wait for some, and sends the process of the room the news.
    #[inline]
    pub(crate) fn tell_of_room(&self, env: Env<'_>) {
        if self.bound.take_news() {
            self.serve(env);
            self.tell(env, News::Room);
        }
    }
}

/// The process that opened a run, as a resource that monitors it.
pub(crate) struct Owner {
    /// The state that the partitions share.
    shared: &'static Shared,
    /// The number of the run.
    number: u32,
    /// The process.
    pub(crate) pid: LocalPid,
}

#[rustler::resource_impl]
impl Resource for Owner {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, env: Env<'a>, _pid: LocalPid, _monitor: Monitor) {
        self.shared.end(Some(self.number));
        // A writer that gets this answer releases its reservation, which answers the next ones.
        self.shared.serve(env);
    }
}

impl Owner {
    /// Monitors the calling process; `None` if it was killed already. Its death ends the run of
    /// this number.
    pub(crate) fn monitor(env: Env<'_>, shared: &'static Shared, number: u32) -> Option<ResourceArc<Self>> {
        let owner = ResourceArc::new(Owner { shared, number, pid: env.pid() });
        env.monitor(&owner, &owner.pid)?;
        Some(owner)
    }
}
