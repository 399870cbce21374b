//! The processes that act for a run of a buffer, by their roles.
//!
//! They have no names that other processes could take, and a new process finds the others here. The
//! pid of a dead process stays until another one takes its role.

use rustler::{Env, LocalPid};

/// The processes of one kind of buffer.
#[derive(Default)]
pub(crate) struct Processes {
    /// The process at which writers wait for room.
    pub(crate) room: Option<LocalPid>,
    /// The last child of the supervisor. It takes its role when the start is complete.
    pub(crate) drainer: Option<LocalPid>,
    /// The processes of each partition.
    partitions: Vec<OfPartition>,
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
}

impl Processes {
    /// The processes of a partition.
    pub(crate) fn of(&self, partition: u32) -> OfPartition {
        self.partitions.get(partition as usize).copied().unwrap_or_default()
    }

    /// The processes of a partition, for a change.
    pub(crate) fn of_mut(&mut self, partition: u32) -> &mut OfPartition {
        let partition = partition as usize;
        if self.partitions.len() <= partition {
            self.partitions.resize(partition + 1, OfPartition::default());
        }
        &mut self.partitions[partition]
    }

    /// The processes of all partitions.
    pub(crate) fn all(&self) -> impl Iterator<Item = OfPartition> + '_ {
        self.partitions.iter().copied()
    }

    /// Forgets the processes of the last run, except for live tasks: the next task of the partition
    /// waits for their end.
    pub(crate) fn forget(&mut self, env: Env<'_>) {
        (self.room, self.drainer) = (None, None);
        for partition in &mut self.partitions {
            let task = partition.task.filter(|task| task.is_alive(env));
            *partition = OfPartition { task, ..OfPartition::default() };
        }
    }
}
