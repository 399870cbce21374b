//! The journal of a buffer: its log, the passes over the entries, and the waiters.
//!
//! Two threads work on a journal: one [writes](Journal::write), the other [syncs](Journal::sync). Each
//! holds the lock of the log while it works, so a disk that hangs holds them up. All others only take
//! the lock of the [status](Journal::status), which nobody holds during other work.
//!
//! A pass has a number. What was written to the buffer before a pass began is in the log when the pass
//! ends, so a waiter waits for a pass that begins later.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::disk::Disk;
use super::log::{Failure, Log, Numbers, Operation};
use super::pass::{Blocks, Pass};
use super::record::Record;
use crate::flush::{Fate, Note};

/// The time after which a pass that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long a move of all entries waits for the end of a pass.
const MOVE_TIME: Duration = Duration::from_secs(5);

/// A log without entries is removed after this time, since a new one costs some syncs.
const IDLE: Duration = Duration::from_secs(10);

/// The entries of a buffer.
pub trait Entries: Send + Sync + 'static {
    /// Encodes their terms.
    type Codec: Send;

    /// Writes what changed in a partition. Returns the number of records.
    fn pass<B: Blocks>(&self, partition: u32, pass: Pass<'_, B, Self::Codec>) -> Result<usize, B::Failure>;

    /// See [`Partition::take_notes`](crate::Partition::take_notes).
    fn take_notes(&self, partition: u32) -> Vec<Note>;

    /// See [`Partition::live_generation`](crate::Partition::live_generation).
    fn live_generation(&self, partition: u32) -> u64;

    /// See [`Partition::unsave`](crate::Partition::unsave).
    fn unsave(&self, partition: u32);

    /// See [`Partition::unsaved`](crate::Partition::unsaved).
    fn unsaved(&self, partition: u32) -> usize;

    /// Estimates how many bytes a partition holds.
    fn bytes(&self, partition: u32) -> usize;
}

/// The aim of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It survives the VM.
    Written,
    /// It survives the machine.
    Synced,
}

/// How often a journal is written and synced.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The time between two passes.
    pub write: Duration,
    /// The time between two syncs; `None` leaves them to the system.
    pub sync: Option<Duration>,
}

/// The state of a journal.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whether the last pass or sync failed.
    pub is_failing: bool,
    /// The age of the oldest change that may not be written.
    pub lag: Duration,
    /// The number of unwritten changes.
    pub unwritten: usize,
    /// The time since the beginning of the last pass that succeeded.
    pub written_ago: Duration,
    /// The time since the end of the last sync that succeeded.
    pub synced_ago: Duration,
    /// The numbers of the log.
    pub numbers: Numbers,
    /// The last failure, and when it was.
    pub last_failure: Option<(Failure, Instant)>,
}

/// News of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The first failure since the journal worked.
    Failed(Failure),
    /// The journal works again, after this time.
    Recovered(Duration),
    /// All entries were written anew.
    Rewritten {
        /// The number of records.
        records: usize,
        /// The bytes of the log.
        bytes: u64,
        /// The time that it took.
        duration: Duration,
    },
}

/// Gets the answer when what was waited for happened, or failed.
pub type Answer = Box<dyn FnOnce(Result<(), Failure>) + Send>;

/// A waiter.
struct Waiter {
    /// The pass that it waits for.
    pass: u64,
    /// Whether it is to be written or synced.
    level: Level,
    /// Its answer.
    answer: Answer,
}

/// The state that all threads share.
struct Shared {
    /// The number of the last pass that began.
    begun: u64,
    /// The number of the last pass that succeeded.
    written: u64,
    /// The number of the last pass whose log is synced.
    synced: u64,
    /// When the last pass that succeeded began.
    written_at: Instant,
    /// When the last sync that succeeded ended.
    synced_at: Instant,
    /// When the last pass ended, and whether it succeeded.
    ended: (Instant, bool),
    /// When the last sync ended.
    sync_ended: Instant,
    /// Whether a copy of all entries only has to be synced: the old segments stay until then.
    is_copied: bool,
    /// The numbers of the log.
    numbers: Numbers,
    /// Since when the journal fails.
    failing_since: Option<Instant>,
    /// The last failure, and when it was.
    last_failure: Option<(Failure, Instant)>,
    /// The waiters.
    waiters: Vec<Waiter>,
    /// Whether the threads gave the journal up.
    has_ended: bool,
    /// How often it is written and synced.
    times: Times,
}

/// The state of the threads.
struct Work<D: Disk, C> {
    /// The log.
    log: Log<D>,
    /// Encodes terms.
    codec: C,
    /// The taken and unwritten notes of each partition.
    notes: Vec<Vec<Note>>,
    /// The beginning of the copy of all entries on its way to the log.
    copying: Option<Instant>,
    /// The time from which on the log has only useless entries.
    idle_since: Option<Instant>,
    /// The live generation of each partition before the last pass that succeeded.
    live: Vec<u64>,
}

/// See the module's documentation.
pub struct Journal<D: Disk, E: Entries> {
    /// The entries.
    entries: E,
    /// The number of partitions.
    partitions: AtomicU32,
    /// Whether all entries move to a new epoch: their places changed.
    wants_epoch: AtomicBool,
    /// The state of the threads.
    work: Mutex<Work<D, E::Codec>>,
    /// Held during a sync.
    syncing: Mutex<()>,
    /// The state for all others.
    shared: Mutex<Shared>,
}

impl<D: Disk> Blocks for Log<D> {
    type Failure = Failure;

    fn append(&mut self, partition: u32, generation: u64, payload: Vec<u8>) -> Result<(), Failure> {
        Log::append(self, partition, generation, payload)
    }

    fn blocks(&self) -> u64 {
        Log::blocks(self)
    }
}

impl<D: Disk, E: Entries> Journal<D, E> {
    /// A journal of the entries of this many partitions. If the directory of its log has segments of a
    /// former one, these go when all entries are written and synced.
    pub fn new(log: Log<D>, entries: E, codec: E::Codec, partitions: u32, times: Times) -> Self {
        let (now, numbers) = (Instant::now(), log.numbers());
        let mut work = Work { log, codec, notes: Vec::new(), copying: None, idle_since: None, live: Vec::new() };
        if numbers.segments > 0 {
            work.log.begin_rewrite();
            work.copying = Some(now);
        }
        let shared = Shared {
            begun: 0,
            written: 0,
            synced: 0,
            written_at: now,
            synced_at: now,
            ended: (now, true),
            sync_ended: now,
            is_copied: false,
            numbers,
            failing_since: None,
            last_failure: None,
            waiters: Vec::new(),
            has_ended: false,
            times,
        };
        Journal {
            entries,
            partitions: AtomicU32::new(partitions),
            wants_epoch: AtomicBool::new(false),
            work: Mutex::new(work),
            syncing: Mutex::default(),
            shared: Mutex::new(shared),
        }
    }

    /// The entries.
    pub fn entries(&self) -> &E {
        &self.entries
    }

    /// Does `move_all`, which moves the entries to other places in this many partitions. No pass sees them
    /// on their way, unless the disk hangs in the middle of one; then it removes nothing.
    pub fn moving<R>(&self, partitions: u32, move_all: impl FnOnce() -> R) -> R {
        let _no_pass = self.work.try_lock_for(MOVE_TIME);
        let result = move_all();
        self.partitions.store(partitions, Ordering::SeqCst);
        self.wants_epoch.store(true, Ordering::SeqCst);
        result
    }

    /// Notes that a pass or a sync panicked, so the state of the log is unknown. The next pass writes all
    /// entries anew.
    pub fn distrust(&self, report: &mut impl FnMut(Report)) {
        self.wants_epoch.store(true, Ordering::SeqCst);
        let result = Err(Failure { operation: Operation::Write, errno: BROKEN });
        let mut shared = self.shared.lock();
        shared.ended = (Instant::now(), false);
        shared.sync_ended = Instant::now();
        shared.note(result, report);
        let answers = shared.take_answers(|_waiter, _shared| true);
        drop(shared);
        answers.into_iter().for_each(|answer| answer(result));
    }

    /// Changes how often the journal is written and synced.
    pub fn set_times(&self, times: Times) {
        self.shared.lock().times = times;
    }

    /// The time until the next pass is due.
    pub fn until_write(&self) -> Duration {
        let shared = self.shared.lock();
        if shared.waiters.iter().any(|waiter| waiter.pass > shared.begun) {
            return Duration::ZERO;
        }
        let (ended, succeeded) = shared.ended;
        let pause = if succeeded { shared.times.write } else { RETRY };
        pause.saturating_sub(ended.elapsed())
    }

    /// The time until the next sync is due; `None` if only a pass makes one due.
    pub fn until_sync(&self) -> Option<Duration> {
        let shared = self.shared.lock();
        let is_waited_for = |waiter: &Waiter| waiter.level == Level::Synced && waiter.pass <= shared.written;
        if shared.is_copied || shared.waiters.iter().any(is_waited_for) {
            return Some(Duration::ZERO);
        }
        let pause = shared.times.sync.or((shared.numbers.synced < shared.numbers.written).then_some(RETRY))?;
        Some(pause.saturating_sub(shared.sync_ended.elapsed()))
    }

    /// Calls `answer` when all that was written to the buffer before is written or synced, or when
    /// that fails. The caller wakes the thread that writes. Returns `false`, and never calls it, if the
    /// journal has ended.
    pub fn wait(&self, level: Level, answer: Answer) -> bool {
        let mut shared = self.shared.lock();
        let pass = shared.begun + 1;
        if !shared.has_ended {
            shared.waiters.push(Waiter { pass, level, answer });
        }
        !shared.has_ended
    }

    /// The state.
    pub fn status(&self) -> Status {
        let unwritten = self.each_partition().map(|partition| self.entries.unsaved(partition)).sum();
        let shared = self.shared.lock();
        let written_ago = shared.written_at.elapsed();
        let is_behind = unwritten > 0 || shared.failing_since.is_some();
        Status {
            is_failing: shared.failing_since.is_some(),
            lag: if is_behind { written_ago } else { Duration::ZERO },
            unwritten,
            written_ago,
            synced_ago: shared.synced_at.elapsed(),
            numbers: shared.numbers,
            last_failure: shared.last_failure,
        }
    }

    /// The partitions.
    fn each_partition(&self) -> impl Iterator<Item = u32> {
        0..self.partitions.load(Ordering::SeqCst)
    }

    /// Writes all changes, and calls `report` with the news.
    pub fn write(&self, mut report: impl FnMut(Report)) {
        if self.shared.lock().is_copied {
            // The old segments stay until the copy is synced, so the log would grow beyond its bound.
            self.sync(&mut report);
        }
        let started = Instant::now();
        let number = {
            let mut shared = self.shared.lock();
            shared.begun += 1;
            shared.begun
        };
        let mut work = self.work.lock();
        let result = self.pass(&mut work, &mut report);
        let numbers = work.log.numbers();
        let is_copied = work.log.is_rewriting() && work.copying.is_none();
        drop(work);
        let mut shared = self.shared.lock();
        shared.numbers = numbers;
        shared.is_copied = is_copied && result.is_ok();
        shared.ended = (Instant::now(), result.is_ok());
        if result.is_ok() {
            (shared.written, shared.written_at) = (number, started);
        }
        shared.note(result, &mut report);
        let answers = shared.take_answers(|waiter, shared| match waiter.level {
            _ if result.is_err() => waiter.pass <= number,
            Level::Written => waiter.pass <= shared.written,
            Level::Synced => false,
        });
        drop(shared);
        answers.into_iter().for_each(|answer| answer(result));
    }

    /// Does a pass.
    fn pass(&self, work: &mut Work<D, E::Codec>, report: &mut impl FnMut(Report)) -> Result<(), Failure> {
        let Work { log, codec, notes, copying, idle_since, live: last_live } = work;
        if let Err(failure) = log.retry() {
            self.save_outcomes(log, notes);
            let may_forget = copying.is_none() && !self.wants_epoch.load(Ordering::SeqCst);
            self.make_room(log, may_forget.then_some(last_live), failure)?;
        }
        if self.wants_epoch.swap(false, Ordering::SeqCst) {
            log.next_epoch();
            last_live.clear();
            self.each_partition().for_each(|partition| self.entries.unsave(partition));
            *copying = Some(Instant::now());
        }
        let held = || self.each_partition().map(|partition| self.entries.bytes(partition) as u64).sum();
        if log.needs_rewrite() || (log.wants_rewrite(0) && log.wants_rewrite(held())) {
            log.begin_rewrite();
            self.each_partition().for_each(|partition| self.entries.unsave(partition));
            *copying = Some(Instant::now());
        }
        let partitions = self.partitions.load(Ordering::SeqCst);
        notes.resize_with(notes.len().max(partitions as usize), Vec::new);
        let mut live: Vec<_> = self.each_partition().map(|partition| self.entries.live_generation(partition)).collect();
        let is_held = live.iter().any(|&live| live < u64::MAX);
        let mut records = 0;
        for ((partition, notes), live) in (0..partitions).zip(notes).zip(&mut live) {
            let written = self.entries.pass(partition, Pass::new(log, codec, (partition, partitions), notes))?;
            records += written;
            if written > 0 && *live == u64::MAX {
                // It was empty, and may have got these entries since.
                *live = 0;
            }
        }
        last_live.clone_from(&live);
        if let Some(since) = *copying {
            // The next pass writes lost files anew.
            let Some((first, bytes)) = log.rewritten() else { return Ok(()) };
            // Each copy has this record, since a sync that failed may have lost an earlier copy of the epoch.
            let mut block = Vec::new();
            Record::Opened { partitions }.write(&mut block);
            Record::Follows { blocks: log.blocks() }.write(&mut block);
            Record::Complete { first, bytes }.write(&mut block);
            Log::append(log, 0, 0, block)?;
            *copying = None;
            let ended = log.end_rewrite();
            report(Report::Rewritten { records, bytes: log.numbers().bytes, duration: since.elapsed() });
            ended?;
        }
        let live = |partition: u32| live.get(partition as usize).copied().unwrap_or(u64::MAX);
        let is_empty = records == 0 && !is_held;
        if !is_empty {
            *idle_since = None;
        }
        let segments = log.numbers().segments;
        let is_idle = is_empty && idle_since.get_or_insert_with(Instant::now).elapsed() >= IDLE;
        if segments > 1 || (segments == 1 && is_idle) {
            log.forget(live)?;
        }
        Ok(())
    }

    /// Removes segments that nobody needs, for a log without room, and tries again. If the buffer holds
    /// nothing, neither does the block that found no room.
    ///
    /// What waits again may be in no block yet. So of a partition that holds entries all stays that the
    /// last pass, with these live generations, found needed.
    fn make_room(&self, log: &mut Log<D>, last_live: Option<&mut Vec<u64>>, failure: Failure) -> Result<(), Failure> {
        let live: Vec<_> = self.each_partition().map(|partition| self.entries.live_generation(partition)).collect();
        let holds = |partition| live[partition as usize] < u64::MAX || self.entries.unsaved(partition) > 0;
        if !self.each_partition().any(holds) {
            return log.abandon();
        }
        let Some(last_live) = last_live else { return Err(failure) };
        log.forget(|partition| match live.get(partition as usize) {
            Some(&live) if live < u64::MAX => {
                let last = last_live.get(partition as usize).copied();
                // It held nothing then: all that the log has of it came later.
                last.filter(|&last| last < u64::MAX).unwrap_or(0)
            }
            _ => u64::MAX,
        })?;
        log.retry().map_err(|_| failure)
    }

    /// Lets the outcomes of the processor through although the disk has no room, so that the next VM does
    /// not repeat what is stored.
    fn save_outcomes(&self, log: &mut Log<D>, notes: &mut [Vec<Note>]) {
        for (partition, notes) in (0..).zip(notes) {
            notes.extend(self.entries.take_notes(partition));
            let outcomes = notes.iter().filter(|note| note.fate == Fate::Done);
            let mut block = Vec::new();
            outcomes.for_each(|note| note.record().write(&mut block));
            // Those that find no room stay among the notes, as all do: records are absolute.
            if !block.is_empty() && log.append_urgent(partition, &block).is_ok() {
                notes.retain(|note| note.fate != Fate::Done);
            }
        }
    }

    /// Syncs all written blocks, and calls `report` with the news.
    pub fn sync(&self, mut report: impl FnMut(Report)) {
        let _syncing = self.syncing.lock();
        let mut work = self.work.lock();
        let written = self.shared.lock().written;
        let checked = work.log.check();
        let unsynced = work.log.unsynced();
        drop(work);
        let synced = unsynced.map(|unsynced| {
            let result = unsynced.sync();
            (unsynced, result)
        });
        let mut work = self.work.lock();
        let settled = synced.map_or(Ok(()), |(unsynced, result)| work.log.synced(unsynced, result));
        let numbers = work.log.numbers();
        let is_trusted = work.log.is_trusted();
        let is_copied = work.log.is_rewriting() && work.copying.is_none();
        drop(work);
        let result = checked.and(settled);
        let mut shared = self.shared.lock();
        shared.numbers = numbers;
        shared.sync_ended = Instant::now();
        shared.is_copied = is_copied;
        if result.is_ok() && is_trusted {
            (shared.synced, shared.synced_at) = (written, Instant::now());
        }
        let both = result.and(shared.last_pass());
        shared.note(both, &mut report);
        let answers = shared.take_answers(|waiter, shared| {
            let is_due = if result.is_err() { waiter.pass <= written } else { waiter.pass <= shared.synced };
            waiter.level == Level::Synced && is_due
        });
        drop(shared);
        answers.into_iter().for_each(|answer| answer(result));
    }

    /// Writes and syncs all, at the end of a buffer. Removes the log if the buffer holds nothing. The
    /// threads gave the journal up before.
    pub fn finish(&self) {
        // What a pass ends, the next one removes.
        for _ in 0..2 {
            self.write(|_report| {});
            self.sync(|_report| {});
            let mut work = self.work.lock();
            let live: Vec<_> = self.each_partition().map(|partition| self.entries.live_generation(partition)).collect();
            // What cannot be removed replays to nothing.
            let _ = work.log.forget(|partition| live.get(partition as usize).copied().unwrap_or(u64::MAX));
        }
        self.shared.lock().numbers = self.work.lock().log.numbers();
        let waiters = {
            let mut shared = self.shared.lock();
            shared.has_ended = true;
            std::mem::take(&mut shared.waiters)
        };
        let closed = Failure { operation: Operation::Write, errno: CLOSED };
        waiters.into_iter().for_each(|waiter| (waiter.answer)(Err(closed)));
    }
}

/// The error number for the waiters of a journal that ends: `EBADF`.
const CLOSED: i32 = 9;

/// The error number after a panic: `EIO`.
const BROKEN: i32 = 5;

impl Shared {
    /// The result of the last pass.
    fn last_pass(&self) -> Result<(), Failure> {
        match self.last_failure {
            Some((failure, _)) if !self.ended.1 => Err(failure),
            _ => Ok(()),
        }
    }

    /// Notes the result of a pass or a sync.
    fn note(&mut self, result: Result<(), Failure>, report: &mut impl FnMut(Report)) {
        match result {
            Ok(()) => {
                if let Some(since) = self.failing_since.take() {
                    report(Report::Recovered(since.elapsed()));
                }
            }
            Err(failure) => {
                let now = Instant::now();
                self.last_failure = Some((failure, now));
                if self.failing_since.is_none() {
                    self.failing_since = Some(now);
                    report(Report::Failed(failure));
                }
            }
        }
    }

    /// Takes out the answers of the due waiters.
    fn take_answers(&mut self, is_due: impl Fn(&Waiter, &Shared) -> bool) -> Vec<Answer> {
        let waiters = std::mem::take(&mut self.waiters);
        let (due, others): (Vec<_>, Vec<_>) = waiters.into_iter().partition(|waiter| is_due(waiter, self));
        self.waiters = others;
        due.into_iter().map(|waiter| waiter.answer).collect()
    }
}
