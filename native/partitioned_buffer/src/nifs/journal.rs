//! NIFs of journals.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use std::path::Path;
use std::time::Duration;

use partitioned_buffer_engine::journal::log::{Failure, Operation, Settings, Syncing};
use partitioned_buffer_engine::journal::record::SavedVersion;
use partitioned_buffer_engine::journal::replay::{Content, Kind, Replayed};
use partitioned_buffer_engine::journal::{Level, Report, Status, Times};
use rustler::{Atom, Encoder, Env, Error, LocalPid, NifResult, OwnedEnv, Reference, Term};

use super::{atoms, done, infinity, nif, or_not_running};
use crate::any::{AnyPartitions, Run};
use crate::journal::{self, Opened, Place, Refusal};
use crate::registry;
use crate::vm::caller::{binary_to, ListBuilder};
use crate::vm::entry::Function;
use crate::vm::term::RawTerm;

use super::runs::MAX_PARTITIONS;

/// The segments of a full log.
const SEGMENTS: u64 = 8;

/// The least bytes of a segment.
const LEAST_SEGMENT: u64 = 256 * 1024;

nif!(open_journal / 6, DirtyIo);
fn open_journal<'a>(env: Env<'a>, arguments: [Term<'a>; 6]) -> NifResult<Term<'a>> {
    let [name, kind, count, place, settings, max_attempts] = arguments;
    let (kind, count): (Atom, u32) = (kind.decode()?, count.decode()?);
    if !name.is_atom() || !AnyPartitions::is_kind(kind) || count == 0 || count > MAX_PARTITIONS {
        return Err(Error::BadArg);
    }
    let (write_ms, sync_ms, max_bytes): (u64, Term<'_>, u64) = settings.decode()?;
    let times = times(write_ms, sync_ms)?;
    let syncing = if times.sync.is_some() { Syncing::Owner } else { Syncing::System };
    let segment_bytes = (max_bytes / SEGMENTS).max(LEAST_SEGMENT);
    let settings = (Settings { segment_bytes, max_bytes, syncing }, times);
    let max_attempts = if max_attempts.is_atom() { infinity(max_attempts)? } else { Some(max_attempts.decode()?) };
    let paths: Option<(&str, &str)> = super::nil_or(place)?;
    let place = paths.map(|(dir, path)| Place { dir: Path::new(dir), path: Path::new(path) });
    let buffer = registry::find_or_add(name.decode()?, RawTerm::from(name).word());
    let partitions = AnyPartitions::of_kind(buffer, kind);
    let opened = journal::open(partitions, place.as_ref(), count, settings, max_attempts, Box::new(report));
    Ok(match opened {
        Ok(None) => atoms::ok().to_term(env),
        Ok(Some(Opened { entries, records, bytes, torn_bytes, damaged_bytes, damaged_records, duration })) => {
            let damaged = (damaged_bytes, damaged_records);
            let replayed = (entries, records, bytes, torn_bytes, damaged, duration.as_nanos() as u64);
            (atoms::ok(), replayed).encode(env)
        }
        Err(refusal) => (atoms::error(), reason(env, &refusal)).encode(env),
    })
}

nif!(close_journal / 1, DirtyIo);
fn close_journal<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    run.partitions().into_iter().for_each(journal::close);
    Ok(atoms::ok().to_term(env))
}

nif!(journal_wait / 3);
fn journal_wait<'a>(env: Env<'a>, [run, level, reference]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, level, reference): (Run, Atom, Reference<'_>) = (run.decode()?, level.decode()?, reference.decode()?);
    let level = if level == atoms::written() {
        Level::Written
    } else if level == atoms::synced() {
        Level::Synced
    } else {
        return Err(Error::BadArg);
    };
    // A task that outlives its run waits as well.
    let Some(journaled) = run.partitions().and_then(|partitions| partitions.shared().journaled()) else {
        return Ok(atoms::nil().to_term(env));
    };
    let (pid, own) = (env.pid(), OwnedEnv::new());
    let saved = own.save(reference);
    let waits = journaled.wait(
        level,
        Box::new(move |result| {
            let mut own = own;
            let _ = own.send_and_clear(&pid, |env| {
                let answer = match result {
                    Ok(()) => atoms::ok().to_term(env),
                    Err(failure) => (atoms::error(), posix(env, failure.errno)).encode(env),
                };
                (saved.load(env), answer).encode(env)
            });
        }),
    );
    Ok(if waits { atoms::ok() } else { atoms::nil() }.to_term(env))
}

nif!(journal_status / 1, DirtyCpu);
fn journal_status<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    let found = run.enter(|partitions| Ok(partitions.shared().journaled().map(|own| (own.status(), own))));
    Ok(or_not_running(
        env,
        found.map(|found| {
            found.map(|(status, own)| {
                let Status { is_failing, lag, unwritten, written_ago, synced_ago, numbers, last_failure } = status;
                let last_failure = last_failure.map(|(failure, at)| (failed(env, failure), ms(at.elapsed())));
                let times = (ms(lag), unwritten, ms(written_ago), ms(synced_ago));
                (is_failing, times, (numbers.bytes, numbers.segments, own.replayed), last_failure)
            })
        }),
    ))
}

nif!(set_journal_times / 3);
fn set_journal_times<'a>(env: Env<'a>, [run, write_ms, sync_ms]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    let times = times(write_ms.decode()?, sync_ms)?;
    Ok(done(
        env,
        run.enter(|partitions| {
            partitions.shared().journaled().iter().for_each(|journaled| journaled.set_times(times));
            Ok(())
        }),
    ))
}

nif!(watch_journal / 1);
fn watch_journal<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    let pid = env.pid();
    Ok(done(
        env,
        run.enter(|partitions| {
            partitions.shared().journaled().iter().for_each(|journaled| journaled.report_to(pid));
            Ok(())
        }),
    ))
}

nif!(read_journal / 2, DirtyIo);
fn read_journal<'a>(env: Env<'a>, [path, kind]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (path, kind): (&str, Atom) = (path.decode()?, kind.decode()?);
    if !AnyPartitions::is_kind(kind) {
        return Err(Error::BadArg);
    }
    let kind = match kind.to_term(env).atom_to_string()?.as_str() {
        "map" => Kind::Map,
        "counter" => Kind::Counter,
        _ => Kind::Queue,
    };
    Ok(match journal::read(Path::new(path), kind, |replayed| contents(env, replayed)) {
        Ok(contents) => (atoms::ok(), contents).encode(env),
        Err(refusal) => (atoms::error(), reason(env, &refusal)).encode(env),
    })
}

nif!(delete_journal / 1, DirtyIo);
fn delete_journal<'a>(env: Env<'a>, [path]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let path: &str = path.decode()?;
    Ok(match journal::delete(Path::new(path)) {
        Ok(()) => atoms::ok().to_term(env),
        Err(refusal) => (atoms::error(), reason(env, &refusal)).encode(env),
    })
}

/// The contents of a journal: its entries in the external format, without its first byte, and the damage.
fn contents<'a>(env: Env<'a>, replayed: &Replayed<'_>) -> Term<'a> {
    let mut entries = ListBuilder::start(env);
    for kept in replayed.given_up.iter().chain(&replayed.entries) {
        entries.push(match kept.content {
            Content::Value { updates, version, key, value } => {
                let version = match version {
                    SavedVersion::Int(version) => version.encode(env),
                    SavedVersion::Below(big) | SavedVersion::Above(big) => binary_to(env, big),
                };
                (atoms::value(), binary_to(env, key), binary_to(env, value), version, updates).encode(env)
            }
            Content::Sum { sum, count, key } => {
                (atoms::sum(), binary_to(env, key), sum.encode(env), count.encode(env)).encode(env)
            }
            Content::Item { item } => (atoms::item(), binary_to(env, item)).encode(env),
        });
    }
    let damaged: Vec<_> = replayed.damaged.iter().map(|damage| (damage.segment, damage.offset, damage.bytes)).collect();
    (entries.build(), damaged, replayed.torn_bytes, replayed.damaged_records).encode(env)
}

/// How often a journal is written and synced.
fn times(write_ms: u64, sync_ms: Term<'_>) -> NifResult<Times> {
    let sync = if sync_ms.is_atom() { infinity::<u64>(sync_ms)? } else { Some(sync_ms.decode()?) };
    if write_ms == 0 || sync == Some(0) {
        return Err(Error::BadArg);
    }
    Ok(Times { write: Duration::from_millis(write_ms), sync: sync.map(Duration::from_millis) })
}

/// A time in milliseconds.
fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// Sends a report of a journal to a process.
fn report(pid: LocalPid, report: Report) {
    let _ = OwnedEnv::new().send_and_clear(&pid, |env| {
        let report = match report {
            Report::Failed(failure) => (atoms::failed(), failed(env, failure)).encode(env),
            Report::Recovered(time) => (atoms::recovered(), time.as_nanos() as u64).encode(env),
            Report::Rewritten { records, bytes, duration } => {
                (atoms::rewritten(), (records, bytes, duration.as_nanos() as u64)).encode(env)
            }
        };
        (atoms::journal(), report).encode(env)
    });
}

/// The operation and the reason of a failure.
fn failed<'a>(env: Env<'a>, failure: Failure) -> (Term<'a>, Term<'a>) {
    let operation = match failure.operation {
        Operation::Open => atoms::open(),
        Operation::Write => atoms::write(),
        Operation::Sync => atoms::sync(),
        Operation::Delete => atoms::delete(),
    };
    (operation.to_term(env), posix(env, failure.errno))
}

/// Why a journal does not start.
fn reason<'a>(env: Env<'a>, refusal: &Refusal) -> Term<'a> {
    match refusal {
        Refusal::Locked => atoms::locked().to_term(env),
        Refusal::Format(version) => (atoms::format(), *version).encode(env),
        Refusal::Held => atoms::held().to_term(env),
        Refusal::System(errno) => posix(env, *errno),
    }
}

/// The name of an error number, as in `t:File.posix/0`; the number of one without a name here.
fn posix(env: Env<'_>, errno: i32) -> Term<'_> {
    let name = match errno {
        1 => "eperm",
        2 => "enoent",
        4 => "eintr",
        5 => "eio",
        6 => "enxio",
        9 => "ebadf",
        12 => "enomem",
        13 => "eacces",
        16 => "ebusy",
        17 => "eexist",
        19 => "enodev",
        20 => "enotdir",
        21 => "eisdir",
        22 => "einval",
        23 => "enfile",
        24 => "emfile",
        27 => "efbig",
        28 => "enospc",
        30 => "erofs",
        31 => "emlink",
        36 if cfg!(target_os = "linux") => "enametoolong",
        40 if cfg!(target_os = "linux") => "eloop",
        116 if cfg!(target_os = "linux") => "estale",
        122 if cfg!(target_os = "linux") => "edquot",
        62 if cfg!(target_os = "macos") => "eloop",
        63 if cfg!(target_os = "macos") => "enametoolong",
        69 if cfg!(target_os = "macos") => "edquot",
        70 if cfg!(target_os = "macos") => "estale",
        other => return other.encode(env),
    };
    Atom::from_str(env, name).map_or_else(|_| errno.encode(env), |name| name.to_term(env))
}
