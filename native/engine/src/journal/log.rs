//! The log: appends blocks to segments, and removes useless segments.
//!
//! The log is plain state behind a lock of its owner. Another thread syncs the files:
//! [`Log::unsynced`] gives them out, and [`Log::synced`] takes the result.
//!
//! | state | meaning | what ends it |
//! |---|---|---|
//! | blocked | the last block could not be written and is kept | [`Log::retry`] |
//! | needs a rewrite | a sync failed, or files are lost: written blocks may be gone | a rewrite |
//! | rewriting | the owner appends all that it holds | [`Log::end_rewrite`] and a sync |
//!
//! Invariants:
//!
//! * A file whose sync failed is never written or synced again, and counts as not synced. The number
//!   of synced blocks stays until everything is written anew.
//! * Segments go from the oldest on, and the directory is synced between two. So what a crash leaves
//!   has no gap: outcomes never go before the entries that they are about.
//! * Segments go only when the blocks that make them useless are synced, or when syncing is left to
//!   the system. A rewrite replaces nothing before it is synced, in either case.
//! * Each segment but the last ends with a whole block, unless it could not be cut.
//!
//! # A full disk
//!
//! A reserve of zeros is made with the first segment. While no block can be appended, outcomes
//! overwrite it in place ([`Log::append_urgent`]): it becomes the newest segment, and is cut to its
//! used length when the next block was written. That block, the kept one or the next, still goes to an
//! older segment than the urgent blocks. For the kept one this is the order in which they were made.
//! One that was made later has no entry that had an outcome by then, so the order does not
//! matter for it. Only if the kept block fails again, otherwise than for lack of room, is it behind
//! urgent blocks that were made after it; records are absolute, and what comes again is at most an
//! entry of this block with an outcome since.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::mem;

use rustix::io::Errno;

use super::block::{self, Place, HEAD};
use super::disk::{Disk, Regained, SegmentFile};

/// The bytes of the reserve: outcomes of some thousand batches.
pub const RESERVE: u64 = 256 * 1024;

/// The parameters of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A segment of this size gets no further block.
    pub segment_bytes: u64,
    /// The growth of the log after which a rewrite is due.
    pub max_bytes: u64,
    /// Who syncs.
    pub syncing: Syncing,
}

/// Who syncs what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncing {
    /// The owner. No segment goes before its reasons are synced.
    Owner,
    /// The system, at some time. The owner syncs rewrites only.
    System,
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Making a segment, the reserve or the directory.
    Open,
    /// Writing a block.
    Write,
    /// Syncing a segment.
    Sync,
    /// Removing a segment or the reserve.
    Delete,
}

/// An operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The operation.
    pub operation: Operation,
    /// The error number of the system.
    pub errno: i32,
}

impl Failure {
    /// The failure of an operation. Any other error than the system's is an input/output error.
    fn new(operation: Operation, error: &io::Error) -> Self {
        Failure { operation, errno: error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()) }
    }
}

/// Numbers of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// The bytes of all segments.
    pub bytes: u64,
    /// The number of segments.
    pub segments: usize,
    /// The number of all appended blocks.
    pub written: u64,
    /// The number of synced blocks, and of blocks replaced by a synced rewrite.
    pub synced: u64,
    /// The last failure of all.
    pub last_failure: Option<Failure>,
}

/// The files written since the last sync.
#[derive(Debug)]
#[must_use = "the log gives out no further file before it knows the result"]
pub struct Unsynced<F> {
    /// The files.
    files: Vec<F>,
    /// The newest segment among the files.
    newest: u64,
    /// The number of synced blocks after this.
    blocks: u64,
}

impl<F: SegmentFile> Unsynced<F> {
    /// Waits until the device has the files.
    pub fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(SegmentFile::sync)
    }

    /// So many blocks of the log are synced after this.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
}

/// A block that waits for its disk.
#[derive(Debug)]
struct Kept {
    /// The partition.
    partition: u32,
    /// The highest generation of its entries, or 0.
    generation: u64,
    /// The records.
    payload: Vec<u8>,
}

/// A segment.
#[derive(Debug)]
struct Segment<F> {
    /// The file while it is written or has to be synced.
    file: Option<F>,
    /// Its bytes, all of whole blocks.
    bytes: u64,
    /// Whether it was changed since it was given out to be synced.
    is_dirty: bool,
    /// The highest generation of the entries of each partition; `None` for a segment of a former log.
    generations: Option<HashMap<u32, u64>>,
}

/// A rewrite.
#[derive(Clone, Copy, Debug)]
struct Rewrite {
    /// Its first segment.
    first: u64,
    /// The number of blocks when its last one was appended.
    end: Option<u64>,
}

/// Segments that go.
#[derive(Clone, Copy, Debug)]
struct Doomed {
    /// All before this one go.
    before: u64,
    /// The number of synced blocks at which they go.
    after: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Log<D: Disk> {
    /// The directory.
    disk: D,
    /// The parameters.
    settings: Settings,
    /// The epoch of the blocks.
    epoch: u32,
    /// The segments by number.
    segments: BTreeMap<u64, Segment<D::File>>,
    /// The number of the next segment.
    next: u64,
    /// The segment that gets the next block.
    current: Option<u64>,
    /// The current segment is closed after its next block if it is before this one.
    floor: u64,
    /// The block that could not be written.
    kept: Option<Kept>,
    /// The unused reserve.
    reserve: Option<D::File>,
    /// Whether the directory may have a reserve, also one of a former log.
    may_have_reserve: bool,
    /// The former reserve, while the log writes it.
    urgent: Option<u64>,
    /// The number that the next segment has in the place of `next`, to be before `urgent`.
    held_back: Option<u64>,
    /// The number of appended blocks.
    written: u64,
    /// The same without those of [`Log::append_urgent`].
    ordered: u64,
    /// The number of synced blocks.
    synced: u64,
    /// The number of blocks, synced or in segments up to `failed`.
    covered: u64,
    /// Whether files are given out to be synced.
    is_syncing: bool,
    /// Segments up to this one may have lost what was written to them.
    failed: Option<u64>,
    /// The rewrite under way.
    rewrite: Option<Rewrite>,
    /// Segments that go as soon as possible.
    doomed: Option<Doomed>,
    /// The bytes that the log had after the last rewrite, or less if it had less since.
    base: u64,
    /// The last failure.
    last_failure: Option<Failure>,
}

impl<D: Disk> Log<D> {
    /// A log behind the segments of the directory, whose next segment has at least this number. It
    /// makes no file before its first block.
    pub fn new(disk: D, settings: Settings, epoch: u32, next: u64) -> io::Result<Self> {
        let former = |(number, bytes)| (number, Segment { file: None, bytes, is_dirty: false, generations: None });
        let segments: BTreeMap<_, _> = disk.segments()?.into_iter().map(former).collect();
        let next = segments.last_key_value().map_or(next, |(&last, _)| next.max(last + 1));
        let base = segments.values().map(|segment| segment.bytes).sum();
        Ok(Log {
            disk,
            settings,
            epoch,
            segments,
            next,
            current: None,
            floor: 0,
            kept: None,
            reserve: None,
            may_have_reserve: true,
            urgent: None,
            held_back: None,
            written: 0,
            ordered: 0,
            synced: 0,
            covered: 0,
            is_syncing: false,
            failed: None,
            rewrite: None,
            doomed: None,
            base,
            last_failure: None,
        })
    }

    /// The directory.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The epoch of the blocks.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The numbers.
    pub fn numbers(&self) -> Numbers {
        Numbers {
            bytes: self.bytes_from(0),
            segments: self.segments.len(),
            written: self.written,
            synced: self.synced,
            last_failure: self.last_failure,
        }
    }

    /// The number of blocks before the next one, without those of [`Log::append_urgent`].
    pub fn blocks(&self) -> u64 {
        self.ordered + u64::from(self.kept.is_some())
    }

    /// Whether a block is kept. [`Log::retry`] comes before the next one.
    pub fn is_blocked(&self) -> bool {
        self.kept.is_some()
    }

    /// Whether outcomes would still have room on a full disk.
    pub fn has_reserve(&self) -> bool {
        self.reserve.is_some() || self.urgent.is_some()
    }

    /// Whether a rewrite is under way: begun, or ended and not synced yet.
    pub fn is_rewriting(&self) -> bool {
        self.rewrite.is_some()
    }

    /// The first segment of the rewrite under way, and the bytes of its blocks before the next one; `None`
    /// if a failure has ended it.
    pub fn rewritten(&self) -> Option<(u64, u64)> {
        let first = self.rewrite?.first;
        // The next block goes before urgent ones.
        let urgent = self.urgent.filter(|&urgent| urgent >= first).map_or(0, |urgent| self.segments[&urgent].bytes);
        Some((first, self.bytes_from(first) - urgent))
    }

    /// Whether what was written may be lost, and no rewrite is under way that would replace it. One
    /// that was under way counts for nothing then. An unfinished epoch begins again.
    pub fn needs_rewrite(&self) -> bool {
        self.failed.is_some() && self.rewrite.is_none()
    }

    /// Whether no written block may be lost.
    pub fn is_trusted(&self) -> bool {
        self.failed.is_none()
    }

    /// Whether the log has grown enough to be written anew.
    pub fn wants_rewrite(&self, held_bytes: u64) -> bool {
        let bytes = self.bytes_from(self.doomed.map_or(0, |doomed| doomed.before));
        let limit = self.base.saturating_add(self.settings.max_bytes).max(held_bytes.saturating_mul(2));
        self.rewrite.is_none() && bytes >= limit
    }

    /// Appends a block. `generation` is the highest generation of the partition's entries in it, or
    /// 0. After a failure the log keeps the block.
    ///
    /// # Panics
    ///
    /// If a block is kept already.
    pub fn append(&mut self, partition: u32, generation: u64, payload: Vec<u8>) -> Result<(), Failure> {
        assert!(self.kept.is_none(), "the kept block is written before the next one");
        self.append_or_keep(Kept { partition, generation, payload })
    }

    /// Tries again to write the kept block, if any.
    pub fn retry(&mut self) -> Result<(), Failure> {
        self.kept.take().map_or(Ok(()), |kept| self.append_or_keep(kept))
    }

    /// Appends a block without entries, to the reserve if there is no other room. After a failure the
    /// block is not kept.
    pub fn append_urgent(&mut self, partition: u32, payload: &[u8]) -> Result<(), Failure> {
        if self.kept.is_none() && self.try_append(partition, 0, payload).is_ok() {
            return Ok(());
        }
        self.append_to_reserve(partition, payload)
    }

    /// The files to be synced; `None` without any, or while some are given out.
    pub fn unsynced(&mut self) -> Option<Unsynced<D::File>> {
        if self.is_syncing {
            return None;
        }
        let in_use = [self.current, self.urgent];
        let (mut files, mut newest) = (Vec::new(), 0);
        for (&number, segment) in &mut self.segments {
            if mem::take(&mut segment.is_dirty) {
                files.extend(segment.file.clone());
                newest = number;
            }
            if !in_use.contains(&Some(number)) {
                segment.file = None;
            }
        }
        self.is_syncing = !files.is_empty();
        self.is_syncing.then_some(Unsynced { files, newest, blocks: self.written })
    }

    /// Takes the result of a sync. A failure of this sync, or of removing segments after it, is
    /// returned.
    pub fn synced(&mut self, unsynced: Unsynced<D::File>, result: io::Result<()>) -> Result<(), Failure> {
        self.is_syncing = false;
        match result {
            Ok(()) => {
                self.covered = unsynced.blocks;
                self.settle()
            }
            Err(error) => {
                self.distrust(unsynced.newest);
                Err(self.note(Operation::Sync, &error))
            }
        }
    }

    /// Fails, and needs a rewrite, if the current segment has lost its name. Only the next block would
    /// show it otherwise.
    pub fn check(&mut self) -> Result<(), Failure> {
        let Some(file) = self.current.and_then(|current| self.segments[&current].file.clone()) else { return Ok(()) };
        match file.write(&[], &[]) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.distrust_all();
                Err(self.note(Operation::Write, &error))
            }
            _ => Ok(()),
        }
    }

    /// Begins a rewrite: the owner now appends all that it holds. One under way begins again.
    pub fn begin_rewrite(&mut self) {
        self.floor = self.next;
        if self.kept.is_none() {
            self.close();
        }
        self.rewrite = Some(Rewrite { first: self.next, end: None });
    }

    /// Ends a rewrite. The segments before it go when it is synced. Nothing happens if a failure has
    /// ended it before.
    pub fn end_rewrite(&mut self) -> Result<(), Failure> {
        if let Some(rewrite) = &mut self.rewrite {
            rewrite.end = Some(self.written + u64::from(self.kept.is_some()));
        }
        self.settle()
    }

    /// Begins the next epoch, and a rewrite in it. The last block of the rewrite has the record that the epoch
    /// is complete; before that is synced, readers use the former epoch.
    ///
    /// # Panics
    ///
    /// If a block is kept: it belongs to the former epoch.
    pub fn next_epoch(&mut self) {
        assert!(self.kept.is_none(), "the kept block is written before the next epoch begins");
        self.epoch += 1;
        self.begin_rewrite();
    }

    /// Removes segments, from the oldest on, that have only entries of generations below `live` of
    /// their partition. They go when all blocks that are there now are synced, or at once when
    /// syncing is left to the system. If that is all segments, the current one is closed and goes as well,
    /// with the reserve. What could not be removed is tried again by the next call or sync.
    pub fn forget(&mut self, live: impl Fn(u32) -> u64) -> Result<(), Failure> {
        let is_needed = |segment: &Segment<D::File>| match &segment.generations {
            None => true,
            Some(generations) => generations.iter().any(|(&partition, &generation)| generation >= live(partition)),
        };
        if self.doomed.is_none() {
            let needed = self.segments.iter().find(|(_, segment)| is_needed(segment)).map(|(&number, _)| number);
            let before = match needed {
                Some(number) => number,
                None if self.kept.is_some() || self.urgent.is_some() => {
                    [self.current, self.held_back, self.urgent].into_iter().flatten().min().unwrap_or(self.next)
                }
                None => {
                    self.close();
                    self.next
                }
            };
            if self.segments.first_key_value().is_none_or(|(&oldest, _)| oldest < before) {
                let after = if self.settings.syncing == Syncing::System { 0 } else { self.written };
                self.doomed = Some(Doomed { before, after });
            }
        }
        self.settle()
    }

    /// Removes all segments, and the kept block: the owner holds nothing.
    pub fn abandon(&mut self) -> Result<(), Failure> {
        self.kept = None;
        if let Some(urgent) = self.urgent.take() {
            self.cut(urgent);
        }
        self.forget(|_partition| u64::MAX)
    }

    /// The bytes of the segments from this one on.
    fn bytes_from(&self, first: u64) -> u64 {
        self.segments.range(first..).map(|(_, segment)| segment.bytes).sum()
    }

    /// Notes a failure.
    fn note(&mut self, operation: Operation, error: &io::Error) -> Failure {
        let failure = Failure::new(operation, error);
        self.last_failure = Some(failure);
        failure
    }

    /// Appends a block, or keeps it.
    fn append_or_keep(&mut self, block: Kept) -> Result<(), Failure> {
        let result = self.try_append(block.partition, block.generation, &block.payload);
        match result {
            Ok(()) => self.ordered += 1,
            Err(_) => self.kept = Some(block),
        }
        result
    }

    /// Appends a block to the current segment, or to a new one.
    fn try_append(&mut self, partition: u32, generation: u64, payload: &[u8]) -> Result<(), Failure> {
        if self.current.is_some_and(|current| self.segments[&current].bytes >= self.settings.segment_bytes) {
            self.close_current();
        }
        let number = match self.current {
            Some(number) => number,
            None => self.create().map_err(|error| self.note(Operation::Open, &error))?,
        };
        if let Err(error) = self.write_to(number, partition, generation, payload) {
            self.give_up_block(number, &error);
            return Err(self.note(Operation::Write, &error));
        }
        if let Some(urgent) = self.urgent.take() {
            self.cut(urgent);
        }
        if number < self.floor {
            self.close_current();
        }
        Ok(())
    }

    /// Writes a block behind the last one of a segment.
    fn write_to(&mut self, number: u64, partition: u32, generation: u64, payload: &[u8]) -> io::Result<()> {
        let segment = self.segments.get_mut(&number).expect("the segment that is written is there");
        let place = Place { partition, epoch: self.epoch, segment: number, offset: segment.bytes };
        let file = segment.file.as_ref().expect("the segment that is written is open");
        file.write(&block::head(place, payload), payload)?;
        segment.bytes += (HEAD + payload.len()) as u64;
        segment.is_dirty = true;
        if let (Some(generations), 1..) = (&mut segment.generations, generation) {
            let highest = generations.entry(partition).or_default();
            *highest = generation.max(*highest);
        }
        self.written += 1;
        Ok(())
    }

    /// Cuts off a block that could not be written. For other reasons than room the segment is done.
    fn give_up_block(&mut self, number: u64, error: &io::Error) {
        let is_cut = self.cut(number);
        let is_full = [Some(Errno::NOSPC), Some(Errno::DQUOT)].contains(&Errno::from_io_error(error));
        if error.kind() == ErrorKind::NotFound {
            self.distrust_all();
        } else if !is_cut || !is_full {
            self.close_current();
            if self.segments[&number].bytes == 0 && self.disk.remove(number).is_ok() {
                self.segments.remove(&number);
            }
        }
    }

    /// Cuts the file of a segment to its whole blocks; `false` if it could not.
    fn cut(&mut self, number: u64) -> bool {
        let segment = self.segments.get_mut(&number).expect("the segment that is written is there");
        let Some(file) = &segment.file else { return false };
        let is_cut = file.truncate(segment.bytes).is_ok();
        // The device may have a longer file.
        segment.is_dirty |= is_cut;
        is_cut
    }

    /// Makes a segment, and the reserve if there is none.
    fn create(&mut self) -> io::Result<u64> {
        let mut is_regained = false;
        let file = loop {
            let number = self.held_back.unwrap_or(self.next);
            match self.disk.create(number) {
                Ok(file) => break file,
                Err(error) if error.kind() == ErrorKind::NotFound && !is_regained => {
                    self.regain()?;
                    is_regained = true;
                }
                // A failed call has left an empty file.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    self.add(number, None);
                    self.held_back = None;
                }
                Err(error) => return Err(error),
            }
        };
        let number = self.held_back.take().unwrap_or(self.next);
        self.add(number, Some(file));
        self.current = Some(number);
        if !self.has_reserve() {
            self.may_have_reserve = true;
            match self.disk.create_reserve(RESERVE) {
                Ok(file) => self.reserve = Some(file),
                Err(error) => {
                    self.note(Operation::Open, &error);
                }
            }
        }
        Ok(number)
    }

    /// Makes and locks the directory again.
    fn regain(&mut self) -> io::Result<()> {
        self.distrust_all();
        if self.disk.regain()? == Regained::New {
            self.segments.clear();
            // Segments of somebody else are left alone.
            let last = self.disk.segments()?.last().map_or(0, |&(last, _)| last);
            self.next = self.next.max(last + 1);
        }
        Ok(())
    }

    /// Adds an empty segment.
    fn add(&mut self, number: u64, file: Option<D::File>) {
        let segment = Segment { file, bytes: 0, is_dirty: false, generations: Some(HashMap::new()) };
        self.segments.insert(number, segment);
        self.next = self.next.max(number + 1);
    }

    /// Writes a block to the reserve, which becomes a segment.
    fn append_to_reserve(&mut self, partition: u32, payload: &[u8]) -> Result<(), Failure> {
        let length = (HEAD + payload.len()) as u64;
        let used = self.urgent.map_or(0, |urgent| self.segments[&urgent].bytes);
        if !self.has_reserve() || length > RESERVE - used {
            return Err(self.note(Operation::Write, &Errno::NOSPC.into()));
        }
        let number = match self.urgent {
            Some(number) => number,
            None => self.use_reserve().map_err(|error| self.note(Operation::Open, &error))?,
        };
        self.write_to(number, partition, 0, payload).map_err(|error| {
            self.cut(number);
            self.urgent = None;
            self.note(Operation::Write, &error)
        })
    }

    /// Makes the reserve the newest segment. The next block of another kind still goes before it.
    fn use_reserve(&mut self) -> io::Result<u64> {
        let file = self.reserve.take();
        if self.current.is_none() {
            // It is among the segments before its file is made, in case that fails halfway.
            self.held_back = Some(self.next);
            self.add(self.next, None);
        }
        let number = self.next;
        self.add(number, None);
        self.floor = self.next;
        // After a failure the file has either name, so it is no longer a reserve.
        self.disk.rename_reserve(number)?;
        self.segments.get_mut(&number).expect("it was added").file = file;
        self.urgent = Some(number);
        Ok(number)
    }

    /// Lets the next block go to a new segment.
    fn close(&mut self) {
        self.close_current();
        self.held_back = None;
        if let Some(urgent) = self.urgent.take() {
            self.cut(urgent);
        }
    }

    /// Closes the current segment.
    fn close_current(&mut self) {
        if let Some(segment) = self.current.take().and_then(|current| self.segments.get_mut(&current)) {
            if !segment.is_dirty {
                segment.file = None;
            }
        }
    }

    /// Takes all written blocks for lost.
    fn distrust_all(&mut self) {
        if let Some((&last, _)) = self.segments.last_key_value() {
            self.distrust(last);
        }
        self.held_back = None;
        self.reserve = None;
    }

    /// Takes what was written up to this segment for lost.
    fn distrust(&mut self, last: u64) {
        self.failed = self.failed.max(Some(last));
        self.rewrite = self.rewrite.filter(|rewrite| rewrite.first > last);
        self.current = self.current.filter(|&current| current > last);
        self.urgent = self.urgent.filter(|&urgent| urgent > last);
        self.held_back = None;
        for (_, segment) in self.segments.range_mut(..=last) {
            segment.file = None;
            segment.is_dirty = false;
        }
    }

    /// Draws the conclusions from the synced blocks.
    fn settle(&mut self) -> Result<(), Failure> {
        if !self.is_syncing && self.segments.values().all(|segment| !segment.is_dirty) {
            self.covered = self.written;
        }
        if let Some(rewrite) = self.rewrite.filter(|rewrite| rewrite.end.is_some_and(|end| end <= self.covered)) {
            self.rewrite = None;
            self.failed = None;
            self.base = self.bytes_from(rewrite.first);
            self.doomed = Some(Doomed { before: rewrite.first, after: 0 });
        }
        if self.failed.is_none() {
            self.synced = self.covered;
        }
        self.remove_doomed()
    }

    /// Removes the segments that go, unless they are being synced.
    fn remove_doomed(&mut self) -> Result<(), Failure> {
        let Some(doomed) = self.doomed.filter(|doomed| doomed.after <= self.synced && !self.is_syncing) else {
            return Ok(());
        };
        let removed = self.remove_before(doomed.before);
        self.base = self.base.min(self.bytes_from(0));
        if let Err(error) = removed {
            // If the directory cannot be had again, the next segment tries that.
            let is_lost = error.kind() == ErrorKind::NotFound;
            let _ = is_lost.then(|| self.regain());
            return Err(self.note(Operation::Delete, &error));
        }
        self.doomed = None;
        Ok(())
    }

    /// Removes the segments before this one, and the reserve with the last segment.
    fn remove_before(&mut self, before: u64) -> io::Result<()> {
        while let Some((&number, _)) = self.segments.range(..before).next() {
            self.disk.remove(number)?;
            self.disk.sync_directory()?;
            self.segments.remove(&number);
        }
        if self.segments.is_empty() && self.kept.is_none() && self.may_have_reserve {
            self.disk.remove_reserve()?;
            self.reserve = None;
            self.may_have_reserve = false;
        }
        Ok(())
    }
}
