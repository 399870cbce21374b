//! A disk in memory that fails, fills and crashes by a seed.
//!
//! What is not synced survives a crash in any subset: each sector of 512 bytes has its old or its new
//! contents, each file any length between the old and the new one, each name its old or new file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use partitioned_buffer_engine::journal::disk::{Disk, Regained, SegmentFile};

use super::Random;

pub const ENOENT: i32 = 2;
pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;
const EEXIST: i32 = 17;

const SECTOR: usize = 512;

/// The bytes that a new file takes.
const INODE: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Segment(u64),
    Reserve,
}

#[derive(Clone, Default)]
struct Contents {
    cache: Vec<u8>,
    /// The sectors of the cache that the device does not have.
    dirty: BTreeSet<usize>,
    device: Vec<u8>,
    cursor: usize,
}

impl Contents {
    fn write(&mut self, bytes: &[u8]) {
        let end = self.cursor + bytes.len();
        if self.cache.len() < end {
            self.cache.resize(end, 0);
        }
        self.cache[self.cursor..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(self.cursor / SECTOR..=(end - 1) / SECTOR);
        }
        self.cursor = end;
    }

    /// Writes one dirty sector to the device.
    fn write_back(&mut self, sector: usize) {
        let range = sector * SECTOR..self.cache.len().min((sector + 1) * SECTOR);
        if range.is_empty() {
            return;
        }
        if self.device.len() < range.end {
            self.device.resize(range.end, 0);
        }
        self.device[range.clone()].copy_from_slice(&self.cache[range]);
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.write_back(sector);
        }
        self.device.resize(self.cache.len(), 0);
    }

    /// The contents after the power was lost.
    fn crash(&mut self, random: &mut Random, loss: Loss) {
        let (old, new) = (self.device.len(), self.cache.len());
        let dirty = std::mem::take(&mut self.dirty);
        for sector in dirty {
            if loss.keeps(random) {
                self.write_back(sector);
            }
        }
        let length = match loss {
            Loss::Nothing => new,
            Loss::All => old,
            Loss::Random => match random.below(4) {
                0 => old,
                1 | 2 => new,
                _ => old.min(new) + random.below((old.abs_diff(new) + 1) as u64) as usize,
            },
        };
        self.device.resize(length, 0);
        self.cache = self.device.clone();
    }
}

/// How much of what is not synced a crash loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// As if only the process was killed.
    Nothing,
    Random,
    All,
}

impl Loss {
    fn keeps(self, random: &mut Random) -> bool {
        match self {
            Loss::Nothing => true,
            Loss::Random => random.below(2) == 0,
            Loss::All => false,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The operations that fail with `EIO`, by number.
    pub io_error: Option<(u64, u64)>,
    /// The operation at which the machine crashes.
    pub crash: Option<u64>,
    /// How many of the next syncs fail and drop what they should have written.
    pub failing_syncs: u32,
    /// The room; `None` for as much as wanted.
    pub room: Option<usize>,
    /// Whether files cannot be cut.
    pub is_uncut: bool,
    /// Whether nothing can be removed.
    pub is_kept: bool,
}

#[derive(Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<Name, usize>,
    device_names: BTreeMap<Name, usize>,
    /// Whether the directory is gone.
    is_lost: bool,
    operations: u64,
    is_crashed: bool,
    faults: Faults,
    syncs: u64,
}

impl State {
    fn used(&self) -> usize {
        self.names.values().map(|&file| INODE + self.files[file].cache.len()).sum()
    }

    fn free(&self) -> usize {
        self.faults.room.map_or(usize::MAX, |room| room.saturating_sub(self.used()))
    }

    /// Counts an operation and fails if its turn has come.
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        if self.faults.crash.is_some_and(|crash| self.operations >= crash) {
            self.is_crashed = true;
        }
        let is_failing = self.faults.io_error.is_some_and(|(from, to)| (from..to).contains(&self.operations));
        if self.is_crashed || is_failing {
            return error(EIO);
        }
        Ok(())
    }

    fn step_in_directory(&mut self) -> io::Result<()> {
        self.step()?;
        if self.is_lost {
            return error(ENOENT);
        }
        Ok(())
    }

    fn create(&mut self, name: Name) -> io::Result<usize> {
        if self.names.contains_key(&name) {
            return error(EEXIST);
        }
        if self.free() < INODE {
            return error(ENOSPC);
        }
        self.files.push(Contents::default());
        self.names.insert(name, self.files.len() - 1);
        Ok(self.files.len() - 1)
    }

    fn remove(&mut self, name: Name) -> io::Result<()> {
        self.step_in_directory()?;
        if self.faults.is_kept {
            return error(EIO);
        }
        self.names.remove(&name);
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.step_in_directory()?;
        self.device_names.clone_from(&self.names);
        Ok(())
    }

    /// Writes what has room.
    fn write(&mut self, file: usize, bytes: &[u8]) -> io::Result<()> {
        let contents = &self.files[file];
        let within = contents.cache.len().saturating_sub(contents.cursor);
        let room = bytes.len().min(within.saturating_add(self.free()));
        self.files[file].write(&bytes[..room]);
        if room < bytes.len() {
            return error(ENOSPC);
        }
        Ok(())
    }

    fn sync(&mut self, file: usize) -> io::Result<()> {
        self.step()?;
        self.syncs += 1;
        if self.faults.failing_syncs > 0 {
            self.faults.failing_syncs -= 1;
            self.files[file].dirty.clear();
            return error(EIO);
        }
        self.files[file].sync();
        Ok(())
    }
}

fn error<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

/// A disk with one directory. Its clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

/// A file of a [`SimDisk`].
#[derive(Clone)]
pub struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    pub fn faults(&self) -> Faults {
        self.lock().faults
    }

    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub fn is_crashed(&self) -> bool {
        self.lock().is_crashed
    }

    pub fn used(&self) -> usize {
        self.lock().used()
    }

    /// Somebody removes the directory.
    pub fn lose(&self) {
        let mut state = self.lock();
        state.names.clear();
        state.device_names.clear();
        state.is_lost = true;
    }

    /// Somebody removes the lock.
    pub fn lose_lock(&self) {
        self.lock().is_lost = true;
    }

    pub fn has_reserve(&self) -> bool {
        self.lock().names.contains_key(&Name::Reserve)
    }

    pub fn is_empty(&self) -> bool {
        self.lock().names.is_empty()
    }

    /// The disk after a crash.
    pub fn crash(&self, random: &mut Random, loss: Loss) -> SimDisk {
        let mut state = self.lock();
        let mut names = BTreeMap::new();
        let all: BTreeSet<Name> = state.names.keys().chain(state.device_names.keys()).copied().collect();
        for name in all {
            let of = if loss.keeps(random) { &state.names } else { &state.device_names };
            if let Some(&file) = of.get(&name) {
                names.insert(name, file);
            }
        }
        let mut files: Vec<Contents> = Vec::new();
        for file in names.values_mut() {
            let mut contents = state.files[*file].clone();
            // The cache of a killed process stays, but for what a failed sync has dropped.
            if loss == Loss::Nothing {
                contents.device = contents.cache.clone();
                contents.dirty.clear();
            } else {
                contents.crash(random, loss);
            }
            *file = files.len();
            files.push(contents);
        }
        state.is_crashed = true;
        let device_names = names.clone();
        SimDisk(Arc::new(Mutex::new(State { files, names, device_names, ..State::default() })))
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn segments(&self) -> io::Result<Vec<(u64, u64)>> {
        let state = self.lock();
        let segment = |(name, &file): (&Name, &usize)| match name {
            Name::Segment(number) => Some((*number, state.files[file].cache.len() as u64)),
            _ => None,
        };
        Ok(state.names.iter().filter_map(segment).collect())
    }

    fn read(&self, segment: u64) -> io::Result<Vec<u8>> {
        let state = self.lock();
        let Some(&file) = state.names.get(&Name::Segment(segment)) else { return error(ENOENT) };
        Ok(state.files[file].cache.clone())
    }

    fn create(&self, segment: u64) -> io::Result<SimFile> {
        let mut state = self.lock();
        state.step_in_directory()?;
        let file = state.create(Name::Segment(segment))?;
        // After this failure the empty file stays.
        state.sync_directory()?;
        Ok(SimFile { disk: self.clone(), file })
    }

    fn remove(&self, segment: u64) -> io::Result<()> {
        self.lock().remove(Name::Segment(segment))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.lock().sync_directory()
    }

    fn create_reserve(&self, bytes: u64) -> io::Result<SimFile> {
        let mut state = self.lock();
        state.step_in_directory()?;
        state.names.remove(&Name::Reserve);
        let file = state.create(Name::Reserve)?;
        let mut fill = || {
            state.write(file, &vec![0; bytes as usize])?;
            state.files[file].cursor = 0;
            state.sync(file)?;
            state.sync_directory()
        };
        if let Err(error) = fill() {
            state.names.remove(&Name::Reserve);
            return Err(error);
        }
        Ok(SimFile { disk: self.clone(), file })
    }

    fn rename_reserve(&self, segment: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.step_in_directory()?;
        let Some(file) = state.names.remove(&Name::Reserve) else { return error(ENOENT) };
        state.names.insert(Name::Segment(segment), file);
        state.sync_directory()
    }

    fn remove_reserve(&self) -> io::Result<()> {
        self.lock().remove(Name::Reserve)
    }

    fn regain(&mut self) -> io::Result<Regained> {
        let mut state = self.lock();
        state.step()?;
        let regained = if state.is_lost && state.names.is_empty() { Regained::New } else { Regained::Same };
        state.is_lost = false;
        Ok(regained)
    }
}

impl SimFile {
    fn check_name(&self, state: &State) -> io::Result<()> {
        if state.names.values().any(|&file| file == self.file) {
            Ok(())
        } else {
            error(ENOENT)
        }
    }
}

impl SegmentFile for SimFile {
    fn write(&self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        self.check_name(&state)?;
        let bytes = [head, payload].concat();
        if let Err(error) = state.step() {
            // A part of it is written, unless the machine had crashed before.
            if state.faults.crash.is_some_and(|crash| state.operations > crash) {
                return Err(error);
            }
            let part = state.operations as usize * 7919 % (bytes.len() + 1);
            state.write(self.file, &bytes[..part])?;
            return Err(error);
        }
        state.write(self.file, &bytes)
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.step()?;
        if state.faults.is_uncut {
            return error(EIO);
        }
        let contents = &mut state.files[self.file];
        contents.cache.resize(bytes as usize, 0);
        contents.cursor = bytes as usize;
        let end = (bytes as usize).div_ceil(SECTOR);
        contents.dirty.retain(|&sector| sector < end);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.sync(self.file)?;
        self.check_name(&state)
    }
}
