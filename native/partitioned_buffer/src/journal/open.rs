//! The start of a journal: its directory is locked, and the entries of a former VM wait again.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use partitioned_buffer_engine::journal::disk::{Directory, Disk};
use partitioned_buffer_engine::journal::log::{Log, Settings};
use partitioned_buffer_engine::journal::record::SavedVersion;
use partitioned_buffer_engine::journal::replay::{replay, Content, Kind, Replayed, Saved as Kept};
use partitioned_buffer_engine::journal::{Journal, Times};
use partitioned_buffer_engine::saved::{Saved, SavedEntry};
use partitioned_buffer_engine::{routing, Parcel, Store, Version};

use super::{threads_of, Journaled, Reporter};
use crate::any::{each, AnyPartitions};
use crate::buffer::Partitions;
use crate::vm::environment::Environment;
use crate::vm::external::Terms;
use crate::vm::term::RawTerm;

/// The time that a start waits for the lock: the former VM may be dying.
const LOCK_TIME: Duration = Duration::from_secs(5);

/// An entry with this number of attempts may end the VM: a crash interrupted its calls, or they failed.
const SUSPECT: u32 = 2;

/// The time between two looks at the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The directory of a journal.
pub(crate) struct Place<'p> {
    /// The directory that journals share.
    pub(crate) dir: &'p Path,
    /// The journal's own one.
    pub(crate) path: &'p Path,
}

/// The numbers of a replay.
pub(crate) struct Opened {
    /// The number of entries that wait again.
    pub(crate) entries: usize,
    /// The number of records.
    pub(crate) records: usize,
    /// The bytes of all blocks.
    pub(crate) bytes: u64,
    /// The bytes of a torn tail.
    pub(crate) torn_bytes: u64,
    /// The bytes of damaged blocks.
    pub(crate) damaged_bytes: u64,
    /// The number of records that nobody can decode.
    pub(crate) damaged_records: usize,
    /// The time of the replay.
    pub(crate) duration: Duration,
}

/// Why a journal does not start.
pub(crate) enum Refusal {
    /// Another VM or buffer uses the directory.
    Locked,
    /// A newer version of the library wrote it.
    Format(u8),
    /// The buffer holds entries, and had another journal or none.
    Held,
    /// The system refuses an operation.
    System(i32),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        const EIO: i32 = 5;
        Refusal::System(error.raw_os_error().unwrap_or(EIO))
    }
}

/// Lets the partitions of a buffer that does not run have a journal at this place, or none. Returns the
/// numbers of the replay, if this begins the journal.
pub(crate) fn open(
    partitions: AnyPartitions,
    place: Option<&Place<'_>>,
    count: u32,
    (settings, times): (Settings, Times),
    max_attempts: Option<u32>,
    report: Reporter,
) -> Result<Option<Opened>, Refusal> {
    let own = partitions.shared().journaled.lock();
    if let Some(journaled) = own.as_ref().filter(|own| place.is_some_and(|place| own.path == place.path)) {
        journaled.set_times(times);
        each!(AnyPartitions, partitions, own => journal_others(own, count));
        return Ok(None);
    }
    if own.is_none() && place.is_none() {
        return Ok(None);
    }
    drop(own);
    close(partitions);
    let mut own = partitions.shared().journaled.lock();
    if own.is_some() || each!(AnyPartitions, partitions, own => own.left().1) > 0 {
        return Err(Refusal::Held);
    }
    let Some(place) = place else { return Ok(None) };
    let started = Instant::now();
    let directory = lock(place.path)?;
    let numbers = directory.segments()?;
    let segments = numbers.iter().map(|&(number, _)| Ok((number, directory.read(number)?)));
    let segments: Vec<_> = segments.collect::<io::Result<_>>()?;
    let replayed = replay(&segments, kind(partitions));
    if let Some(version) = replayed.newer_format {
        return Err(Refusal::Format(version));
    }
    let threads = threads_of(place.dir)?;
    let mut terms = Terms::new();
    let undecoded = each!(AnyPartitions, partitions, own => {
        partitions.shared().opened.write().partition_count = count;
        (0..count).for_each(|partition| {
            own.partition(partition).close();
            own.partition(partition).set_journaled(true);
        });
        restore(own, &replayed, count, max_attempts, &mut terms)
    });
    let next = numbers.last().map_or(1, |&(number, _)| number + 1);
    // A file with damage stays, for people.
    for damage in replayed.damaged.iter().map(|damage| damage.segment).collect::<std::collections::BTreeSet<_>>() {
        directory.keep_damaged(damage)?;
    }
    let log = Log::new(directory, settings, replayed.epoch + 1, next)?;
    let journal = Journal::new(log, partitions, terms, count, times);
    let opened = Opened {
        entries: replayed.entries.len() + replayed.given_up.len() - undecoded,
        records: replayed.records,
        bytes: replayed.bytes,
        torn_bytes: replayed.torn_bytes,
        damaged_bytes: replayed.damaged.iter().map(|damage| damage.bytes).sum(),
        damaged_records: replayed.damaged_records + undecoded,
        duration: started.elapsed(),
    };
    let journaled = Arc::new(Journaled {
        journal,
        path: place.path.to_owned(),
        threads: threads.clone(),
        reporter: Mutex::new(None),
        report,
        replayed: opened.entries,
    });
    threads.add(journaled.clone());
    *own = Some(journaled);
    Ok(Some(opened))
}

/// Ends the journal of a buffer that holds nothing, with its log. One of a buffer with entries stays.
pub(crate) fn close(partitions: AnyPartitions) {
    let mut own = partitions.shared().journaled.lock();
    let (count, held) = each!(AnyPartitions, partitions, own => own.left());
    if held > 0 {
        return;
    }
    if let Some(journaled) = own.take() {
        journaled.finish();
        each!(AnyPartitions, partitions, own => {
            (0..count).for_each(|partition| own.partition(partition).set_journaled(false));
        });
    }
}

/// Locks a directory, which is made if need be.
fn lock(path: &Path) -> Result<Directory, Refusal> {
    let until = Instant::now() + LOCK_TIME;
    loop {
        match Directory::open(path) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => thread::sleep(LOCK_PAUSE),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(Refusal::Locked),
            opened => return Ok(opened?),
        }
    }
}

/// The kind of the partitions.
fn kind(partitions: AnyPartitions) -> Kind {
    match partitions {
        AnyPartitions::Map(_) => Kind::Map,
        AnyPartitions::Counter(_) => Kind::Counter,
        AnyPartitions::Queue(_) => Kind::Queue,
    }
}

/// Lets the new partitions of a buffer have its journal as well.
fn journal_others<S: Store, const SHARDS: usize>(partitions: &Partitions<S, SHARDS>, count: u32) {
    let others = (0..count).map(|partition| partitions.partition(partition));
    others.filter(|own| !own.is_journaled()).for_each(|own| own.set_journaled(true));
}

/// Lets entries wait. Entries with `max_attempts` are given up. Returns the number of entries without a
/// decodable term.
fn restore<S, const SHARDS: usize>(
    partitions: &Partitions<S, SHARDS>,
    replayed: &Replayed<'_>,
    count: u32,
    max_attempts: Option<u32>,
    terms: &mut Terms,
) -> usize
where
    S: Store<Term = RawTerm, Saved = SavedEntry<Environment>>,
{
    let old = replayed.partitions.unwrap_or(count);
    // An entry that may end the VM is called alone before its attempts are over.
    let suspect = max_attempts.map_or(SUSPECT, |most| most.saturating_sub(1).clamp(1, SUSPECT));
    let is_exhausted = |kept: &Kept<'_>| max_attempts.is_some_and(|most| kept.attempts >= most);
    let mut undecoded = 0;
    let mut decode = |kept: &Kept<'_>| {
        let decoded = entry(kept, terms);
        undecoded += usize::from(decoded.is_none());
        let (key, entry) = decoded?;
        Some((partitions.hash(key), partition_of(key, kept.partition, old, count), entry))
    };
    for kept in replayed.entries.iter().filter(|kept| !is_exhausted(kept)) {
        if let Some((hash, partition, entry)) = decode(kept) {
            partitions.partition(partition).restore(hash, &entry);
            if kept.attempts >= suspect {
                partitions.partition(partition).suspect(suspect);
            }
        }
    }
    // The terms of one entry live until the next ones are decoded, so each partition has its turn.
    let given_up: Vec<_> =
        replayed.given_up.iter().chain(replayed.entries.iter().filter(|kept| is_exhausted(kept))).collect();
    let mut by_partition = std::collections::BTreeMap::<u32, Vec<&Kept<'_>>>::new();
    for kept in given_up {
        if let Some((_hash, partition, _entry)) = decode(kept) {
            by_partition.entry(partition).or_default().push(kept);
        }
    }
    for (partition, all) in by_partition {
        partitions.partition(partition).restore_given_up(|restore| {
            for kept in all {
                if let Some((hash, _partition, entry)) = decode(kept) {
                    restore(hash, &entry);
                }
            }
        });
    }
    undecoded
}

/// The key or item of an entry, and the entry.
fn entry(kept: &Kept<'_>, terms: &mut Terms) -> Option<(RawTerm, SavedEntry<Environment>)> {
    let (key, saved) = match kept.content {
        Content::Value { updates, version, key, value } => {
            let (key, value, version) = match version {
                SavedVersion::Int(version) => {
                    let [key, value] = terms.decode([key, value])?;
                    (key, value, Version::Int(version))
                }
                SavedVersion::Below(big) => {
                    let [key, value, big] = terms.decode([key, value, big])?;
                    (key, value, Version::Below(big))
                }
                SavedVersion::Above(big) => {
                    let [key, value, big] = terms.decode([key, value, big])?;
                    (key, value, Version::Above(big))
                }
            };
            (key, Saved::Value { key: Parcel::loose(key), value: Parcel::loose(value), version, updates })
        }
        Content::Sum { sum, count, key } => {
            let [key] = terms.decode([key])?;
            (key, Saved::Sum { key: Parcel::loose(key), sum, count, absorbs: false })
        }
        Content::Item { item } => {
            let [item] = terms.decode([item])?;
            (item, Saved::Item { item: Parcel::loose(item), origin: None })
        }
    };
    Some((key, SavedEntry { attempts: kept.attempts, saved }))
}

/// The partition of an entry now. An entry that chose its partition by its key does so again; any other
/// one keeps its partition, modulo the new count.
fn partition_of(key: RawTerm, partition: u32, old: u32, new: u32) -> u32 {
    if old == new {
        return partition.min(new - 1);
    }
    let hash = key.phash2();
    if routing::partition(hash, old) == partition {
        routing::partition(hash, new)
    } else {
        partition % new
    }
}
