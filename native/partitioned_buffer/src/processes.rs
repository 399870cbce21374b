//! The processes that act for a run of a buffer, by their roles.
//!
//! They have no names that other processes could take, and a new process finds the others here. The
//! pid of a dead process stays until another one takes its role.

use rustler::{Env, LocalPid};

/// A role of a process.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    /// The process that runs the handlers of events and log lines.
    Events,
    /// The process at which writers wait for room.
    Room,
    /// The last child of the supervisor.
    Drainer,
    /// The drainer that finished its stop.
    Drained,
    /// The process of a partition.
    Server(u32),
    /// The task supervisor of a partition.
    Tasks(u32),
    /// The task of a partition.
    Task(u32),
}

/// The processes of one kind of buffer.
#[derive(Clone, Default)]
pub(crate) struct Processes {
    /// The process that runs the handlers of events and log lines, with its pending work.
    pub(crate) events: Events,
    /// The process at which writers wait for room.
    pub(crate) room: Option<LocalPid>,
    /// The last child of the supervisor. It takes its role when the start is complete.
    pub(crate) drainer: Option<LocalPid>,
    /// The drainer that finished its stop.
    pub(crate) drained: Option<LocalPid>,
    /// The drainer that makes the stop.
    pub(crate) stopper: Option<LocalPid>,
    /// The processes of each partition.
    partitions: Vec<OfPartition>,
}

/// The process that runs the handlers of events and log lines. A handler may hang, so senders bound
/// its mailbox by these counts, which survive its death.
#[derive(Clone, Copy, Default)]
pub(crate) struct Events {
    /// The process.
    pid: Option<LocalPid>,
    /// The weight of all events in its mailbox or at a handler.
    pending: u64,
    /// How many events were dropped since the last report.
    dropped: u64,
}

/// What a sender does with an event.
pub(crate) enum Admission {
    /// Sends it to this process. Nobody registered if it is none.
    Sent(Option<LocalPid>),
    /// Drops it: too much is pending.
    Dropped,
}

impl Events {
    /// The process, alive or dead.
    pub(crate) fn pid(&self) -> Option<LocalPid> {
        self.pid
    }

    /// Admits an event of this weight, or counts it as dropped. After the first dropped event, all
    /// are dropped until none is pending, so that one report covers them.
    pub(crate) fn begin(&mut self, weight: u64, limit: u64) -> Admission {
        if self.pid.is_some() {
            if self.dropped > 0 || self.pending >= limit {
                self.dropped += 1;
                return Admission::Dropped;
            }
            self.pending = self.pending.saturating_add(weight);
        }
        Admission::Sent(self.pid)
    }

    /// Ends events of this weight. Returns how many were dropped, once none is pending.
    pub(crate) fn end(&mut self, weight: u64) -> u64 {
        self.pending = self.pending.saturating_sub(weight);
        if self.pending == 0 {
            std::mem::take(&mut self.dropped)
        } else {
            0
        }
    }
}

/// The processes of one partition.
#[derive(Clone, Copy, Default)]
pub(crate) struct OfPartition {
    /// The process with the timers.
    pub(crate) server: Option<LocalPid>,
    /// The task supervisor.
    pub(crate) tasks: Option<LocalPid>,
    /// The task.
    pub(crate) task: Option<LocalPid>,
    /// The time of the next tick, in milliseconds of the VM's monotonic time.
    pub(crate) next: Option<i64>,
    /// Whether the partition warned of what its processor returned.
    pub(crate) has_warned: bool,
}

impl Processes {
    /// The processes of a partition.
    pub(crate) fn of(&self, partition: u32) -> OfPartition {
        self.partitions.get(partition as usize).copied().unwrap_or_default()
    }

    /// The process with a role, for a change. A partition must run.
    pub(crate) fn pid_mut(&mut self, role: Role) -> &mut Option<LocalPid> {
        match role {
            Role::Events => &mut self.events.pid,
            Role::Room => &mut self.room,
            Role::Drainer => &mut self.drainer,
            Role::Drained => &mut self.drained,
            Role::Server(partition) => &mut self.of_mut(partition).server,
            Role::Tasks(partition) => &mut self.of_mut(partition).tasks,
            Role::Task(partition) => &mut self.of_mut(partition).task,
        }
    }

    /// Gives a process a role. The mailbox of a new process for events is empty.
    pub(crate) fn register(&mut self, role: Role, pid: LocalPid) {
        *self.pid_mut(role) = Some(pid);
        if let Role::Events = role {
            self.events.pending = 0;
        }
    }

    /// Ends the role of a task, unless another process has it.
    pub(crate) fn end_task(&mut self, partition: u32, pid: LocalPid) {
        if let Some(of_partition) = self.partitions.get_mut(partition as usize) {
            of_partition.task.take_if(|task| *task == pid);
        }
    }

    /// The processes of a partition that runs, for a change.
    pub(crate) fn of_mut(&mut self, partition: u32) -> &mut OfPartition {
        &mut self.partitions[partition as usize]
    }

    /// The processes of all partitions.
    pub(crate) fn all(&self) -> impl Iterator<Item = OfPartition> + '_ {
        self.partitions.iter().copied()
    }

    /// Forgets the processes of the last run, except for live tasks: the next task of the partition
    /// waits for their end. Makes room for the processes of the next run.
    pub(crate) fn forget(&mut self, env: Env<'_>, partition_count: u32) {
        self.events = Events::default();
        (self.room, self.drainer, self.drained, self.stopper) = (None, None, None, None);
        let length = self.partitions.len().max(partition_count as usize);
        self.partitions.resize(length, OfPartition::default());
        for partition in &mut self.partitions {
            let task = partition.task.filter(|task| task.is_alive(env));
            *partition = OfPartition { task, ..OfPartition::default() };
        }
    }
}
