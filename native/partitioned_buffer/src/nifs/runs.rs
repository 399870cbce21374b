//! NIFs of runs: their start, their processes and their terms.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use rustler::{Encoder, Env, Error, LocalPid, NifResult, Term};

use super::{atoms, count_or_not_running, done, find, limit, nif, or_not_running};
use crate::any::{each, AnyPartitions, Run};
use crate::registry;
use crate::run::NotRunning;
use crate::vm::entry::Function;
use crate::vm::kept::KeptTerm;
use crate::vm::term::{tuple, unsigned_to, ListBuilder, RawTerm};

/// `size` looks at all partitions, and a step of a list may write to each partition. With this many
/// partitions, both stay well below a millisecond.
pub(super) const MAX_PARTITIONS: u32 = 1 << 12;

nif!(open / 5, DirtyCpu);
fn open<'a>(env: Env<'a>, arguments: [Term<'a>; 5]) -> NifResult<Term<'a>> {
    let [name, kind, partition_count, has_outcomes, max_size] = arguments;
    let (kind, partition_count): (rustler::Atom, u32) = (kind.decode()?, partition_count.decode()?);
    let (has_outcomes, max_size) = (has_outcomes.decode()?, limit(max_size)?);
    if !name.is_atom() || partition_count > MAX_PARTITIONS || !AnyPartitions::is_kind(kind) {
        return Err(Error::BadArg);
    }
    let buffer = registry::find_or_add(name.decode()?, RawTerm::from(name).word());
    let partitions = AnyPartitions::of_kind(buffer, kind);
    let open = each!(AnyPartitions, partitions, own => own.open(env, partition_count, has_outcomes, max_size));
    let Some(number) = open else { return Ok(atoms::not_running().to_term(env)) };
    let others = AnyPartitions::all(buffer).into_iter().filter(|other| other.kind() != kind);
    others.for_each(|other| other.shared().end(None));
    Ok(tuple(env, [name, number.encode(env)]))
}

nif!(run / 1);
fn run<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run = present(name)?.map(|(number, _owner)| tuple(env, [name, number.encode(env)]));
    Ok(or_not_running(env, run))
}

nif!(owner / 1);
fn owner<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    Ok(or_not_running(env, present(name)?.map(|(_number, owner)| owner)))
}

nif!(buffers / 0);
fn buffers<'a>(env: Env<'a>, []: [Term<'a>; 0]) -> NifResult<Term<'a>> {
    let mut names = ListBuilder::with_capacity(env, 0);
    registry::all(|name, buffer| {
        if AnyPartitions::all(buffer).into_iter().any(|partitions| partitions.shared().opened_count().is_some()) {
            names.push(name.to_term(env));
        }
    });
    Ok(names.build())
}

nif!(partition_count / 1);
fn partition_count<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let count = find(name)?.and_then(AnyPartitions::running).and_then(|partitions| partitions.shared().count());
    Ok(count_or_not_running(env, count.map(u64::from)))
}

nif!(status / 1);
fn status<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let status = find(name)?.ok().and_then(|buffer| {
        let status = |partitions: AnyPartitions| Some((partitions.kind(), partitions.shared().opened_count()?));
        AnyPartitions::all(buffer).into_iter().find_map(status)
    });
    Ok(or_not_running(env, status.ok_or(NotRunning)))
}

nif!(size / 1);
fn size<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let partitions = find(name)?.and_then(AnyPartitions::running);
    let size = partitions.and_then(|partitions| each!(AnyPartitions, partitions, own => own.size()));
    Ok(count_or_not_running(env, size.map(|size| size as u64)))
}

nif!(set_max_size / 2, DirtyCpu);
fn set_max_size<'a>(env: Env<'a>, [run, max_size]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, max_size): (Run, _) = (run.decode()?, limit(max_size)?);
    let change = |partitions| each!(AnyPartitions, partitions, own => own.change_bound(max_size));
    Ok(done(env, run.enter(change)))
}

nif!(register / 3);
fn register<'a>(env: Env<'a>, [run, partition, role]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, role): (Run, Role) = (run.decode()?, Role::decode(partition, role)?);
    let pid = Some(env.pid());
    Ok(done(
        env,
        run.enter(|partitions| {
            let mut processes = partitions.shared().processes.lock();
            match role {
                Role::Room => processes.room = pid,
                Role::Drainer => processes.drainer = pid,
                Role::Server(partition) => processes.of_mut(partition).server = pid,
                Role::Tasks(_) | Role::Task(_) => return Err(NotRunning),
            }
            Ok(())
        }),
    ))
}

nif!(set_tasks / 3);
fn set_tasks<'a>(env: Env<'a>, [run, partition, pid]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, pid): (Run, LocalPid) = (run.decode()?, pid.decode()?);
    let partition = number_of_partition(partition)?;
    Ok(done(
        env,
        run.enter(|partitions| {
            partitions.shared().processes.lock().of_mut(partition).tasks = Some(pid);
            Ok(())
        }),
    ))
}

nif!(process / 3);
fn process<'a>(env: Env<'a>, [run, partition, role]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, role): (Run, Role) = (run.decode()?, Role::decode(partition, role)?);
    Ok(or_not_running(
        env,
        run.enter(|partitions| {
            let processes = partitions.shared().processes.lock();
            Ok(match role {
                Role::Room => processes.room,
                Role::Drainer => processes.drainer,
                Role::Server(partition) => processes.of(partition).server,
                Role::Tasks(partition) => processes.of(partition).tasks,
                Role::Task(partition) => processes.of(partition).task,
            })
        }),
    ))
}

nif!(begin_task / 2);
fn begin_task<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, partition): (Run, _) = (run.decode()?, number_of_partition(partition)?);
    let (own, is_other) = (env.pid(), |pid: &LocalPid| *pid != env.pid() && pid.is_alive(env));
    let busy = run.enter(|partitions| {
        let mut processes = partitions.shared().processes.lock();
        // `end_run` ends the run first, and takes this lock afterwards: it sees each task that begins.
        if !partitions.shared().is_present(run.number) {
            return Err(NotRunning);
        }
        let task = &mut processes.of_mut(partition).task;
        let busy = task.filter(is_other);
        *task = busy.or(Some(own));
        Ok(busy)
    });
    Ok(match busy {
        Ok(None) => atoms::ok().to_term(env),
        Ok(Some(pid)) => tuple(env, [atoms::busy().to_term(env), pid.encode(env)]),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(end_task / 2);
fn end_task<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, partition): (Run, _) = (run.decode()?, number_of_partition(partition)?);
    // This also works after the end of the run, since it removes only the calling task.
    if let Some(partitions) = run.partitions() {
        let mut processes = partitions.shared().processes.lock();
        let task = &mut processes.of_mut(partition).task;
        *task = task.filter(|pid| *pid != env.pid());
    }
    Ok(atoms::ok().to_term(env))
}

nif!(end_run / 1, DirtyCpu);
fn end_run<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let mut left = ListBuilder::with_capacity(env, 0);
    let mut had_outcomes = false;
    for partitions in find(name)?.map(AnyPartitions::all).into_iter().flatten() {
        let shared = partitions.shared();
        shared.end(None);
        had_outcomes |= shared.opened.read().has_outcomes;
        let processes = shared.processes.lock();
        let mut push = |role: rustler::Atom, pid: Option<LocalPid>| {
            if let Some(pid) = pid {
                left.push((role, pid).encode(env));
            }
        };
        push(atoms::room(), processes.room);
        push(atoms::drainer(), processes.drainer);
        for partition in processes.all() {
            push(atoms::server(), partition.server);
            push(atoms::tasks(), partition.tasks);
            push(atoms::task(), partition.task);
        }
    }
    Ok(tuple(env, [had_outcomes.encode(env), left.build()]))
}

nif!(options / 1);
fn options<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    Ok(match run.enter(|partitions| Ok(partitions.shared().kept.options.get())) {
        Ok((version, Some(options))) => tuple(env, [unsigned_to(env, version), options.to_term(env)]),
        Ok((_version, None)) => atoms::nil().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(put_options / 3);
fn put_options<'a>(env: Env<'a>, [run, version, options]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, version): (Run, u64) = (run.decode()?, version.decode()?);
    let options = KeptTerm::new(options);
    Ok(match run.enter(|partitions| Ok(partitions.shared().kept.options.put(version, options))) {
        Ok(true) => atoms::ok().to_term(env),
        Ok(false) => atoms::changed().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(functions / 1);
fn functions<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    Ok(match run.enter(|partitions| Ok(partitions.shared().kept.functions.get())) {
        Ok(Some(functions)) if functions.is_large => atoms::large().to_term(env),
        Ok(Some(functions)) => functions.to_term(env),
        Ok(None) => atoms::nil().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(functions_large / 1, DirtyCpu);
fn functions_large<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    Ok(match run.enter(|partitions| Ok(partitions.shared().kept.functions.get())) {
        Ok(Some(functions)) => functions.to_term(env),
        Ok(None) => atoms::nil().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(put_functions / 2, DirtyCpu);
fn put_functions<'a>(env: Env<'a>, [run, functions]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    let functions = KeptTerm::new(functions);
    Ok(done(
        env,
        run.enter(|partitions| {
            partitions.shared().kept.functions.put(Some(functions));
            Ok(())
        }),
    ))
}

nif!(last_error / 1);
fn last_error<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    Ok(match run.enter(|partitions| Ok(partitions.shared().kept.last_error.get())) {
        Ok(Some(error)) => error.to_term(env),
        Ok(None) => atoms::nil().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(put_error / 2);
fn put_error<'a>(env: Env<'a>, [run, error]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    let error = KeptTerm::new(error);
    Ok(done(
        env,
        run.enter(|partitions| {
            partitions.shared().kept.last_error.put(Some(error));
            Ok(())
        }),
    ))
}

/// A role of a process.
enum Role {
    /// The process at which writers wait for room.
    Room,
    /// The last child of the supervisor.
    Drainer,
    /// The process of a partition.
    Server(u32),
    /// The task supervisor of a partition.
    Tasks(u32),
    /// The task of a partition.
    Task(u32),
}

impl Role {
    /// The role of this name, of a partition or of the buffer.
    fn decode(partition: Term<'_>, role: Term<'_>) -> NifResult<Self> {
        let role: rustler::Atom = role.decode()?;
        if partition.is_atom() {
            let partition: rustler::Atom = partition.decode()?;
            let roles = [(atoms::room(), Role::Room), (atoms::drainer(), Role::Drainer)];
            return roles
                .into_iter()
                .find(|(name, _)| *name == role && role == partition)
                .map(|(_, role)| role)
                .ok_or(Error::BadArg);
        }
        let partition = number_of_partition(partition)?;
        let roles = [
            (atoms::server(), Role::Server(partition)),
            (atoms::tasks(), Role::Tasks(partition)),
            (atoms::task(), Role::Task(partition)),
        ];
        roles.into_iter().find(|(name, _)| *name == role).map(|(_, role)| role).ok_or(Error::BadArg)
    }
}

/// The number of a partition that a buffer may have.
fn number_of_partition(term: Term<'_>) -> NifResult<u32> {
    let partition: u32 = term.decode()?;
    if partition < MAX_PARTITIONS {
        Ok(partition)
    } else {
        Err(Error::BadArg)
    }
}

/// The number of the present run of a buffer, and its owner.
fn present(name: Term<'_>) -> NifResult<Result<(u32, LocalPid), NotRunning>> {
    Ok(find(name)?.and_then(|buffer| {
        let present = |partitions: AnyPartitions| partitions.shared().present().ok();
        AnyPartitions::all(buffer).into_iter().find_map(present).ok_or(NotRunning)
    }))
}
