//! The directory of a journal in a real file system.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use partitioned_buffer_engine::journal::disk::{Directory, Disk, Regained, SegmentFile};
use partitioned_buffer_engine::journal::log::{Log, Operation, Settings, Syncing};

const SETTINGS: Settings = Settings { segment_bytes: 256 * 1024, max_bytes: 1 << 20, syncing: Syncing::Owner };

/// A directory that goes with the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("journal-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Temporary(path)
    }

    fn journal(&self) -> PathBuf {
        self.0.join("parent/journal")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn log(path: &Path) -> Log<Directory> {
    Log::new(Directory::open(path).unwrap(), SETTINGS, 1, 1).unwrap()
}

fn sync(log: &mut Log<Directory>) {
    if let Some(unsynced) = log.unsynced() {
        let (result, unsynced) = std::thread::spawn(move || (unsynced.sync(), unsynced)).join().unwrap();
        log.synced(unsynced, result).unwrap();
    }
}

fn rewrite(log: &mut Log<Directory>, payload: &str) {
    log.begin_rewrite();
    log.append(0, 1, payload.into()).unwrap();
    log.end_rewrite().unwrap();
    sync(log);
}

#[test]
fn a_directory_is_made_with_its_parents_for_its_owner_only() {
    let temporary = Temporary::new();
    let path = temporary.journal();
    let mut log = log(&path);
    assert_eq!(names(&path), ["lock"]);
    log.append(0, 1, b"a".to_vec()).unwrap();
    assert_eq!(names(&path), ["0000000000000001.log", "lock", "reserve"]);
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o700, 0o700));
    for name in names(&path) {
        assert_eq!(mode(&path.join(name)), 0o600);
    }
    assert_eq!(fs::read(path.join("reserve")).unwrap(), vec![0; 256 * 1024]);
}

#[test]
fn a_directory_is_locked_once_and_until_it_is_dropped() {
    let temporary = Temporary::new();
    let directory = Directory::open(&temporary.journal()).unwrap();
    assert_eq!(Directory::open(&temporary.journal()).unwrap_err().kind(), ErrorKind::WouldBlock);
    // The lock does not go to another program.
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    drop(directory);
    // A program that another test starts has the lock for a moment.
    let start = Instant::now();
    while Directory::open(&temporary.journal()).is_err() {
        assert!(start.elapsed() < Duration::from_secs(4), "the lock is free");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(&temporary.journal()), ["lock"]);
}

#[test]
fn a_directory_without_its_lock_is_not_changed() {
    let temporary = Temporary::new();
    let mut log = log(&temporary.journal());
    log.append(0, 1, b"a".to_vec()).unwrap();
    let reader = Directory::read_only(&temporary.journal()).unwrap();
    assert_eq!(reader.segments().unwrap(), [(1, 37)]);
    assert_eq!(reader.read(1).unwrap().len(), 37);
    assert_eq!(reader.remove(1).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    assert!(reader.create(2).is_err() && reader.keep_damaged(1).is_err());
}

#[test]
fn other_names_are_no_segments() {
    let temporary = Temporary::new();
    let directory = Directory::open(&temporary.journal()).unwrap();
    for name in ["1.log", "000000000000000A.log", "+000000000000001.log", "0000000000000001.log.bak"] {
        fs::write(directory.path().join(name), "x").unwrap();
    }
    directory.create(0xab).unwrap();
    directory.create(2).unwrap();
    assert_eq!(directory.segments().unwrap(), [(2, 0), (0xab, 0)]);
    assert_eq!(directory.create(2).unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn damaged_segments_are_all_kept() {
    let temporary = Temporary::new();
    let directory = Directory::open(&temporary.journal()).unwrap();
    for _ in 0..3 {
        directory.create(1).unwrap();
        directory.keep_damaged(1).unwrap();
        directory.keep_damaged(1).unwrap();
        directory.remove(1).unwrap();
    }
    assert_eq!(directory.segments().unwrap(), []);
    let damaged = ["0000000000000001.1.damaged", "0000000000000001.2.damaged", "0000000000000001.damaged"];
    assert_eq!(names(directory.path())[..3], damaged);
}

#[test]
fn a_file_is_no_directory() {
    let temporary = Temporary::new();
    let file = temporary.0.join("file");
    fs::write(&file, "x").unwrap();
    assert_eq!(Directory::open(&file).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(Directory::open(&file.join("journal")).unwrap_err().kind(), ErrorKind::NotADirectory);
}

#[test]
fn a_directory_without_permission_is_an_error() {
    let temporary = Temporary::new();
    fs::set_permissions(&temporary.0, fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(temporary.0.join("probe"), "x").is_ok() {
        return println!("skipped: this user may write everything");
    }
    assert_eq!(Directory::open(&temporary.journal()).unwrap_err().kind(), ErrorKind::PermissionDenied);
    fs::set_permissions(&temporary.0, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn writes_go_behind_the_last_one_and_behind_a_cut() {
    let temporary = Temporary::new();
    let directory = Directory::open(&temporary.journal()).unwrap();
    let file = directory.create(1).unwrap();
    file.write(b"head", b"").unwrap();
    file.write(b"", b"payload").unwrap();
    file.write(b"", b"").unwrap();
    file.truncate(6).unwrap();
    file.write(b"x", &[b'y'; 100_000]).unwrap();
    file.clone().sync().unwrap();
    let read = directory.read(1).unwrap();
    assert_eq!((&read[..8], read.len()), (&b"headpaxy"[..], 100_007));
}

#[test]
fn a_file_that_was_removed_is_neither_written_nor_synced() {
    let temporary = Temporary::new();
    let directory = Directory::open(&temporary.journal()).unwrap();
    let file = directory.create(1).unwrap();
    directory.remove(1).unwrap();
    directory.remove(1).unwrap();
    assert_eq!(file.write(b"a", b"b").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(file.sync().unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_log_that_is_done_leaves_its_lock() {
    let temporary = Temporary::new();
    let mut log = log(&temporary.journal());
    log.append(0, 1, vec![0; 300_000]).unwrap();
    log.append(0, 2, vec![0; 300_000]).unwrap();
    sync(&mut log);
    log.forget(|_| 2).unwrap();
    assert_eq!(log.disk().segments().unwrap(), [(2, 300_036)]);
    log.forget(|_| 3).unwrap();
    assert_eq!(names(&temporary.journal()), ["lock"]);
}

#[test]
fn a_log_goes_on_in_a_new_directory_when_its_own_is_removed() {
    let temporary = Temporary::new();
    let path = temporary.journal();
    let mut log = log(&path);
    log.append(0, 1, b"a".to_vec()).unwrap();
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    assert_eq!(log.append(0, 1, b"b".to_vec()).unwrap_err().operation, Operation::Write);
    log.retry().unwrap();
    assert!(log.needs_rewrite());
    rewrite(&mut log, "all");
    assert_eq!(log.disk().segments().unwrap(), [(3, 39)]);
    assert_eq!(Directory::open(&path).unwrap_err().kind(), ErrorKind::WouldBlock);
    let numbers = log.numbers();
    assert_eq!((numbers.written, numbers.synced), (3, 3));
}

#[test]
fn a_log_leaves_a_directory_alone_that_another_one_has_made_since() {
    let temporary = Temporary::new();
    let path = temporary.journal();
    let mut log = log(&path);
    log.append(0, 1, vec![0; 300_000]).unwrap();
    sync(&mut log);
    fs::remove_dir_all(&path).unwrap();
    let mut other = Log::new(Directory::open(&path).unwrap(), SETTINGS, 1, 1).unwrap();
    other.append(0, 1, b"other".to_vec()).unwrap();
    log.forget(|_| 2).unwrap_err();
    let failure = log.append(0, 1, b"b".to_vec()).unwrap_err();
    assert_eq!((failure.operation, failure.errno), (Operation::Open, 11));
    assert_eq!(other.disk().segments().unwrap(), [(1, 41)]);
    drop(other);
    log.retry().unwrap();
    rewrite(&mut log, "all");
    assert_eq!(log.disk().segments().unwrap(), [(1, 41), (3, 39)]);
}

#[test]
fn a_directory_whose_lock_was_removed_is_still_the_same() {
    let temporary = Temporary::new();
    let mut directory = Directory::open(&temporary.journal()).unwrap();
    directory.create(1).unwrap();
    fs::remove_file(temporary.journal().join("lock")).unwrap();
    assert_eq!(directory.create(2).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(directory.regain().unwrap(), Regained::Same);
    directory.create(2).unwrap();
    fs::remove_dir_all(temporary.journal()).unwrap();
    assert_eq!(directory.regain().unwrap(), Regained::New);
}

/// A small file system in memory; `None` if this user must not mount one.
struct Mounted(Temporary);

impl Mounted {
    fn new(size: &str) -> Option<Self> {
        let temporary = Temporary::new();
        let options = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&temporary.0).output();
        let is_mounted = mount.is_ok_and(|output| output.status.success());
        is_mounted.then_some(Mounted(temporary)).or_else(|| {
            println!("skipped: this user must not mount a file system");
            None
        })
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount").args(["-o", options]).arg(&self.0 .0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0 .0).status();
    }
}

#[test]
fn a_log_goes_on_after_its_disk_was_full() {
    let Some(mounted) = Mounted::new("1m") else { return };
    let path = mounted.0.journal();
    let mut log = log(&path);
    let mut blocks = 0;
    let failure = loop {
        match log.append(0, 1, vec![7; 10_000]) {
            Ok(()) => blocks += 1,
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.errno, 28);
    assert!((50..100).contains(&blocks), "{blocks} blocks had room");
    for _ in 0..20 {
        log.append_urgent(0, &[8; 10_000]).unwrap();
    }
    assert_eq!(log.retry().unwrap_err().errno, 28);
    mounted.remount("remount,size=4m");
    log.retry().unwrap();
    log.append(0, 1, vec![7; 10_000]).unwrap();
    sync(&mut log);
    let bytes: u64 = log.disk().segments().unwrap().iter().map(|&(_, bytes)| bytes).sum();
    assert_eq!(bytes, (blocks + 22) * 10_036);
    assert!(log.has_reserve());
    log.forget(|_| 2).unwrap();
    assert_eq!(names(&path), ["lock"]);
}

#[test]
fn a_disk_that_can_only_be_read_is_an_error_until_it_can_be_written() {
    let Some(mounted) = Mounted::new("4m") else { return };
    mounted.remount("remount,ro");
    let error = Directory::open(&mounted.0.journal()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    mounted.remount("remount,rw");
    Directory::open(&mounted.0.journal()).unwrap();
}
