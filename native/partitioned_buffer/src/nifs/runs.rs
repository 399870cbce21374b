//! NIFs of runs: their start, their holds and their processes.

// `PartitionedBuffer.Native` documents the NIFs.
#![allow(clippy::missing_docs_in_private_items)]

use partitioned_buffer_engine::{Limits, Versions};
use rustler::{Encoder, Env, Error, LocalPid, NifResult, Term};

use super::{atoms, count_or_not_running, done, find, infinity, limit, nif, or_not_running};
use crate::any::{each, AnyPartitions, Run};
use crate::processes::{Admission, Processes, Role};
use crate::registry;
use crate::run::{NotRunning, Shared};
use crate::vm::caller::{tuple, ListBuilder};
use crate::vm::entry::Function;
use crate::vm::term::RawTerm;

/// `size` looks at all partitions, and a step of a list may write to each partition. With this many
/// partitions, both stay well below a millisecond.
pub(super) const MAX_PARTITIONS: u32 = 1 << 12;

nif!(open / 7, DirtyCpu);
fn open<'a>(env: Env<'a>, arguments: [Term<'a>; 7]) -> NifResult<Term<'a>> {
    let [name, kind, partition_count, has_outcomes, keeps_order, sources, bound] = arguments;
    let (kind, partition_count): (rustler::Atom, u32) = (kind.decode()?, partition_count.decode()?);
    let (has_outcomes, keeps_order, bound) = (has_outcomes.decode()?, keeps_order.decode()?, limits(bound)?);
    let versions = versions(sources)?;
    if !name.is_atom() || partition_count > MAX_PARTITIONS || !AnyPartitions::is_kind(kind) {
        return Err(Error::BadArg);
    }
    let buffer = registry::find_or_add(name.decode()?, RawTerm::from(name).word());
    let partitions = AnyPartitions::of_kind(buffer, kind);
    // First, since the caller may be killed during this call, and another start may follow.
    let others = AnyPartitions::all(buffer).into_iter().filter(|other| other.kind() != kind);
    others.for_each(|other| other.shared().end(None));
    let open = each!(AnyPartitions, partitions, own => {
        own.open(env, partition_count, has_outcomes, keeps_order, versions, bound)
    });
    let Some(number) = open else { return Ok(atoms::not_running().to_term(env)) };
    Ok(tuple(env, [name, number.encode(env)]))
}

/// Whose versions the entries of a map have, by the name of the source.
fn versions(source: Term<'_>) -> NifResult<Versions> {
    let source: rustler::Atom = source.decode()?;
    let sources = [(atoms::any(), Versions::Any), (atoms::clock(), Versions::Clock), (atoms::own(), Versions::Own)];
    sources.into_iter().find(|(name, _)| *name == source).map(|(_, versions)| versions).ok_or(Error::BadArg)
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

nif!(buffers / 0, DirtyCpu);
fn buffers<'a>(env: Env<'a>, []: [Term<'a>; 0]) -> NifResult<Term<'a>> {
    let mut names = ListBuilder::start(env);
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
    let size = count_or_not_running(env, size.map(|size| size as u64));
    let is_elsewhere = partitions.is_ok_and(|partitions| partitions.shared().collects());
    Ok(if is_elsewhere { tuple(env, [atoms::elsewhere().to_term(env), size]) } else { size })
}

nif!(set_bound / 2, DirtyCpu);
fn set_bound<'a>(env: Env<'a>, [run, bound]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, bound): (Run, _) = (run.decode()?, limits(bound)?);
    let change = |partitions: AnyPartitions| {
        each!(AnyPartitions, partitions, own => own.change_bound(bound))?;
        partitions.shared().tell_of_room(env);
        Ok(())
    };
    Ok(done(env, run.enter(change)))
}

/// The limits of a bound: entries and bytes.
fn limits(bound: Term<'_>) -> NifResult<Limits> {
    let (entries, bytes): (Term<'_>, Term<'_>) = bound.decode()?;
    let bytes = if bytes.is_atom() { infinity(bytes)? } else { Some(bytes.decode::<u64>()? as usize) };
    if bytes == Some(0) {
        return Err(Error::BadArg);
    }
    Ok(Limits { entries: limit(entries)?, bytes })
}

nif!(register / 3);
fn register<'a>(env: Env<'a>, [run, partition, role]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, role): (Run, Role) = (run.decode()?, Role::decode(partition, role)?);
    if let Role::Tasks(_) | Role::Task(_) = role {
        return Err(Error::BadArg);
    }
    Ok(done(env, with_processes(&run, role, |processes| processes.register(role, env.pid()))))
}

nif!(begin_event / 3);
fn begin_event<'a>(env: Env<'a>, [run, weight, limit]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, weight, limit): (Run, _, _) = (run.decode()?, weight.decode()?, limit.decode()?);
    let admission = with_processes(&run, Role::Events, |processes| processes.events.begin(weight, limit));
    Ok(match admission {
        Ok(Admission::Sent(pid)) => pid.encode(env),
        Ok(Admission::Dropped) => atoms::full().to_term(env),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(end_event / 2);
fn end_event<'a>(env: Env<'a>, [run, weight]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, weight): (Run, _) = (run.decode()?, weight.decode()?);
    let dropped = with_processes(&run, Role::Events, |processes| processes.events.end(weight));
    Ok(count_or_not_running(env, dropped))
}

nif!(set_tasks / 3);
fn set_tasks<'a>(env: Env<'a>, [run, partition, pid]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, partition, pid): (Run, _, LocalPid) = (run.decode()?, partition.decode()?, pid.decode()?);
    let role = Role::Tasks(partition);
    Ok(done(env, with_processes(&run, role, |processes| *processes.pid_mut(role) = Some(pid))))
}

nif!(process / 3);
fn process<'a>(env: Env<'a>, [run, partition, role]: [Term<'a>; 3]) -> NifResult<Term<'a>> {
    let (run, role): (Run, Role) = (run.decode()?, Role::decode(partition, role)?);
    Ok(or_not_running(env, with_processes(&run, role, |processes| *processes.pid_mut(role))))
}

nif!(begin_task / 2);
fn begin_task<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, partition): (Run, _) = (run.decode()?, partition.decode()?);
    let (own, is_other) = (env.pid(), |pid: &LocalPid| *pid != env.pid() && pid.is_alive(env));
    let role = Role::Task(partition);
    let busy = with_processes(&run, role, |processes| {
        let task = processes.pid_mut(role);
        let busy = task.filter(is_other);
        *task = busy.or(Some(own));
        busy
    });
    Ok(match busy {
        Ok(None) => atoms::ok().to_term(env),
        Ok(Some(pid)) => tuple(env, [atoms::busy().to_term(env), pid.encode(env)]),
        Err(NotRunning) => atoms::not_running().to_term(env),
    })
}

nif!(end_task / 2);
fn end_task<'a>(env: Env<'a>, [run, partition]: [Term<'a>; 2]) -> NifResult<Term<'a>> {
    let (run, partition): (Run, u32) = (run.decode()?, partition.decode()?);
    // This also works after the end of the run, since it removes only the calling task.
    if let Some(partitions) = run.partitions() {
        partitions.shared().processes.lock().end_task(partition, env.pid());
    }
    Ok(atoms::ok().to_term(env))
}

nif!(end_run / 1, DirtyCpu);
fn end_run<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    for partitions in find(name)?.map(AnyPartitions::all).into_iter().flatten() {
        partitions.shared().end(None);
        partitions.shared().serve(env);
    }
    Ok(atoms::ok().to_term(env))
}

nif!(left / 1, DirtyCpu);
fn left<'a>(env: Env<'a>, [name]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let mut left = ListBuilder::start(env);
    let mut had_outcomes = false;
    for partitions in find(name)?.map(AnyPartitions::all).into_iter().flatten() {
        let shared = partitions.shared();
        had_outcomes |= shared.opened.read().has_outcomes;
        // A copy, since the list allocates and frees memory while it grows.
        let processes = shared.processes.lock().clone();
        let mut push = |role: rustler::Atom, pid: Option<LocalPid>| {
            if let Some(pid) = pid {
                left.push((role, pid).encode(env));
            }
        };
        push(atoms::events(), processes.events.pid());
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

nif!(hold_run / 1);
fn hold_run<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    act(env, run, Shared::hold)
}

nif!(resume_run / 1, DirtyCpu);
fn resume_run<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    act(env, run, |shared| shared.resume(env))
}

nif!(begin_stop / 1);
fn begin_stop<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    let lists = run.enter(|partitions| Ok(partitions.shared().begin_stop(env) as u64));
    Ok(count_or_not_running(env, lists))
}

nif!(on_hold / 1);
fn on_hold<'a>(env: Env<'a>, [run]: [Term<'a>; 1]) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    Ok(or_not_running(env, run.enter(|partitions| Ok(partitions.shared().is_on_hold()))))
}

/// Does something with the shared state of a run.
fn act<'a>(env: Env<'a>, run: Term<'a>, act: impl FnOnce(&Shared)) -> NifResult<Term<'a>> {
    let run: Run = run.decode()?;
    Ok(done(
        env,
        run.enter(|partitions| {
            act(partitions.shared());
            Ok(())
        }),
    ))
}

impl Role {
    /// The role of this name, of a partition or of the buffer.
    fn decode(partition: Term<'_>, role: Term<'_>) -> NifResult<Self> {
        let role: rustler::Atom = role.decode()?;
        if partition.is_atom() {
            let partition: rustler::Atom = partition.decode()?;
            let roles = [
                (atoms::events(), Role::Events),
                (atoms::room(), Role::Room),
                (atoms::drainer(), Role::Drainer),
                (atoms::drained(), Role::Drained),
            ];
            return roles
                .into_iter()
                .find(|(name, _)| *name == role && role == partition)
                .map(|(_, role)| role)
                .ok_or(Error::BadArg);
        }
        let partition: u32 = partition.decode()?;
        let roles = [
            (atoms::server(), Role::Server(partition)),
            (atoms::tasks(), Role::Tasks(partition)),
            (atoms::task(), Role::Task(partition)),
        ];
        roles.into_iter().find(|(name, _)| *name == role).map(|(_, role)| role).ok_or(Error::BadArg)
    }
}

/// Does something with the processes of a run, for a role of the buffer or of a partition that
/// runs.
fn with_processes<R>(run: &Run, role: Role, act: impl FnOnce(&mut Processes) -> R) -> Result<R, NotRunning> {
    run.enter(|partitions| {
        let shared = partitions.shared();
        // A start ends the run before it takes this lock to see the processes of the run.
        let mut processes = shared.processes.lock();
        if !shared.is_present(run.number) {
            return Err(NotRunning);
        }
        match role {
            Role::Events | Role::Room | Role::Drainer | Role::Drained => {}
            Role::Server(partition) | Role::Tasks(partition) | Role::Task(partition) => {
                shared.count().ok().filter(|&count| partition < count).ok_or(NotRunning)?;
            }
        }
        Ok(act(&mut processes))
    })
}

/// The number of the present run of a buffer, and its owner.
fn present(name: Term<'_>) -> NifResult<Result<(u32, LocalPid), NotRunning>> {
    Ok(find(name)?.and_then(|buffer| {
        let present = |partitions: AnyPartitions| partitions.shared().present().ok();
        AnyPartitions::all(buffer).into_iter().find_map(present).ok_or(NotRunning)
    }))
}
