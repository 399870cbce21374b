//! The files of a journal: a directory with numbered segments, a reserve and a lock.
//!
//! [`Disk`] and [`SegmentFile`] are the part of a file system that a [log](super::log) needs, so that tests
//! can fill, fail and tear one. [`Directory`] is the real one.
//!
//! | name | what it is |
//! |---|---|
//! | `<16 hex digits>.log` | a segment |
//! | `*.damaged` | a segment with damage, under a second name. Nothing reads or removes it |
//! | `reserve` | zeros, which become a segment while the disk is full |
//! | `lock` | its `flock` shows the owner of the directory. It stays when all else is gone |
//!
//! Invariants of [`Directory`]:
//!
//! * Nothing in the directory changes unless the file `lock` is the locked one: after somebody removed
//!   the directory, another process may have made and locked it again.
//! * A new name is on the device when the call returns, or the call failed.
//! * No file is mapped into memory, and all are closed when another program is executed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;

/// The name of the lock.
const LOCK: &str = "lock";

/// The end of the name of a segment with damage.
const DAMAGED: &str = ".damaged";

/// The name of the reserve.
const RESERVE: &str = "reserve";

/// The bytes that one write of zeros has.
const ZEROS: [u8; 4096] = [0; 4096];

/// Whether a regained directory is the former one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regained {
    /// It is the same. Its segments are still there.
    Same,
    /// It is another one.
    New,
}

/// The directory of one log. Only the owner of its lock has one.
pub trait Disk {
    /// A file of this disk.
    type File: SegmentFile;

    /// The numbers and bytes of the segments, ascending.
    fn segments(&self) -> io::Result<Vec<(u64, u64)>>;

    /// The contents of a segment.
    fn read(&self, segment: u64) -> io::Result<Vec<u8>>;

    /// Makes a new segment, and syncs the directory. [`ErrorKind::NotFound`] if the
    /// directory is lost.
    fn create(&self, segment: u64) -> io::Result<Self::File>;

    /// Removes a segment, if it is there. The directory is not synced.
    fn remove(&self, segment: u64) -> io::Result<()>;

    /// Waits until the device has the names of the directory.
    fn sync_directory(&self) -> io::Result<()>;

    /// Makes a reserve of this many zeros in the place of any other, and syncs it. Writes go to its
    /// first byte.
    fn create_reserve(&self, bytes: u64) -> io::Result<Self::File>;

    /// Makes the reserve a segment, and syncs the directory.
    fn rename_reserve(&self, segment: u64) -> io::Result<()>;

    /// Removes the reserve, if it is there. The directory is not synced.
    fn remove_reserve(&self) -> io::Result<()>;

    /// Makes and locks the directory again if it is lost.
    fn regain(&mut self) -> io::Result<Regained>;
}

/// An open file. Its clones are the same file, which another thread may sync.
pub trait SegmentFile: Clone + Send + Sync + 'static {
    /// Writes both behind what was written or truncated last. After an error any part may be
    /// there. [`ErrorKind::NotFound`] if the file lost its name, also without anything to write.
    fn write(&self, head: &[u8], payload: &[u8]) -> io::Result<()>;

    /// Cuts the file off. The next write goes there.
    fn truncate(&self, bytes: u64) -> io::Result<()>;

    /// Waits until the device has the contents. [`ErrorKind::NotFound`] if the file has no name any
    /// more.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the file system.
#[derive(Debug)]
pub struct Directory {
    /// Its path.
    path: PathBuf,
    /// The directory itself. While it is open, no other one is taken for it.
    handle: File,
    /// The locked file; `None` for a directory without a writer.
    lock: Option<File>,
}

impl Directory {
    /// Makes the directory with its parents, if need be, and locks it. [`ErrorKind::WouldBlock`] if
    /// it is in use.
    pub fn open(path: &Path) -> io::Result<Self> {
        make(path)?;
        let lock = create(path.join(LOCK), OpenOptions::new().write(true).create(true))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Directory { path: path.to_owned(), handle: File::open(path)?, lock: Some(lock) })
    }

    /// The directory without its lock. Nothing in it can be changed.
    pub fn read_only(path: &Path) -> io::Result<Self> {
        Ok(Directory { path: path.to_owned(), handle: File::open(path)?, lock: None })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives a segment a second name, under which it stays when the log removes it.
    pub fn keep_damaged(&self, segment: u64) -> io::Result<()> {
        self.check()?;
        let own = fs::metadata(self.segment(segment))?;
        let mut name = self.path.join(format!("{segment:016x}{DAMAGED}"));
        let mut copies = 0;
        while let Ok(other) = fs::metadata(&name) {
            if (own.dev(), own.ino()) == (other.dev(), other.ino()) {
                // An earlier start did it.
                return Ok(());
            }
            copies += 1;
            name = self.path.join(format!("{segment:016x}.{copies}{DAMAGED}"));
        }
        fs::hard_link(self.segment(segment), name)?;
        self.sync_directory()
    }

    /// Removes all files of a journal, and the directory if it has no others.
    pub fn delete(self) -> io::Result<()> {
        self.check()?;
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let is_own = |name: &str| number(name).is_some() || name.ends_with(DAMAGED) || name == RESERVE;
            if name.to_str().is_some_and(is_own) {
                fs::remove_file(self.path.join(name))?;
            }
        }
        fs::remove_file(self.path.join(LOCK))?;
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed,
        }
    }

    /// The path of a segment.
    fn segment(&self, segment: u64) -> PathBuf {
        self.path.join(format!("{segment:016x}.log"))
    }

    /// An error unless the directory is that of the lock.
    fn check(&self) -> io::Result<()> {
        let lock = self.lock.as_ref().ok_or(Errno::ROFS)?.metadata()?;
        let named = fs::metadata(self.path.join(LOCK))?;
        if (lock.dev(), lock.ino()) == (named.dev(), named.ino()) {
            Ok(())
        } else {
            Err(Errno::NOENT.into())
        }
    }

    /// Writes zeros to a file, and goes back to its start.
    fn fill(&self, mut file: &File, bytes: u64) -> io::Result<()> {
        let mut rest = bytes;
        while rest > 0 {
            let length = rest.min(ZEROS.len() as u64);
            file.write_all(&ZEROS[..length as usize])?;
            rest -= length;
        }
        file.rewind()?;
        file.sync_data()?;
        self.sync_directory()
    }
}

impl Disk for Directory {
    type File = Arc<File>;

    fn segments(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Some(number) = entry.file_name().to_str().and_then(number) {
                segments.push((number, entry.metadata()?.len()));
            }
        }
        segments.sort_unstable();
        Ok(segments)
    }

    fn read(&self, segment: u64) -> io::Result<Vec<u8>> {
        fs::read(self.segment(segment))
    }

    fn create(&self, segment: u64) -> io::Result<Self::File> {
        self.check()?;
        let file = create(self.segment(segment), OpenOptions::new().write(true).create_new(true))?;
        if let Err(error) = self.sync_directory() {
            // A file that stays is empty.
            let _ = self.remove(segment);
            return Err(error);
        }
        Ok(Arc::new(file))
    }

    fn remove(&self, segment: u64) -> io::Result<()> {
        self.check()?;
        remove(&self.segment(segment))
    }

    fn sync_directory(&self) -> io::Result<()> {
        sync_directory(&self.handle)
    }

    fn create_reserve(&self, bytes: u64) -> io::Result<Self::File> {
        self.check()?;
        self.remove_reserve()?;
        let file = create(self.path.join(RESERVE), OpenOptions::new().write(true).create_new(true))?;
        if let Err(error) = self.fill(&file, bytes) {
            let _ = self.remove_reserve();
            return Err(error);
        }
        Ok(Arc::new(file))
    }

    fn rename_reserve(&self, segment: u64) -> io::Result<()> {
        self.check()?;
        fs::rename(self.path.join(RESERVE), self.segment(segment))?;
        self.sync_directory()
    }

    fn remove_reserve(&self) -> io::Result<()> {
        self.check()?;
        remove(&self.path.join(RESERVE))
    }

    fn regain(&mut self) -> io::Result<Regained> {
        if self.check().is_ok() {
            return Ok(Regained::Same);
        }
        let again = Directory::open(&self.path)?;
        let (old, new) = (self.handle.metadata()?, again.handle.metadata()?);
        *self = again;
        let is_same = (old.dev(), old.ino()) == (new.dev(), new.ino());
        Ok(if is_same { Regained::Same } else { Regained::New })
    }
}

impl SegmentFile for Arc<File> {
    fn write(&self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        check_name(self)?;
        let mut slices = [IoSlice::new(head), IoSlice::new(payload)];
        let mut rest = &mut slices[..];
        // An empty slice at the front goes.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match (&**self).write_vectored(rest) {
                Ok(0) => return Err(Errno::IO.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)?;
        (&**self).seek(SeekFrom::Start(bytes))?;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()?;
        check_name(self)
    }
}

/// An error if a file was removed, or all its directory.
fn check_name(file: &File) -> io::Result<()> {
    if file.metadata()?.nlink() == 0 {
        Err(Errno::NOENT.into())
    } else {
        Ok(())
    }
}

/// Makes a directory with its parents. What was there stays as it is.
fn make(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut made = DirBuilder::new().mode(0o700).create(path);
    if let (Err(error), Some(parent)) = (&made, parent) {
        if error.kind() == ErrorKind::NotFound {
            make(parent)?;
            made = DirBuilder::new().mode(0o700).create(path);
        }
    }
    match made {
        Ok(()) => sync_directory(&File::open(parent.unwrap_or(Path::new(".")))?),
        Err(_) if path.is_dir() => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Errno::NOTDIR.into()),
        Err(error) => Err(error),
    }
}

/// Opens or makes a file that only its owner may read.
fn create(path: PathBuf, options: &mut OpenOptions) -> io::Result<File> {
    options.mode(0o600).open(path)
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Syncs a directory. Some file systems cannot, and have nothing to sync.
fn sync_directory(directory: &File) -> io::Result<()> {
    match directory.sync_all() {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Ok(()),
        result => result,
    }
}

/// The number of the segment of this name.
fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_number = digits.len() == 16 && digits.bytes().all(is_digit);
    is_number.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}
