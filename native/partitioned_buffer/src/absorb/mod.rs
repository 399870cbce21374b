//! Absorbs entries of the same buffer on another node: as a whole, and once.
//!
//! All entries are read and checked before the first is written, and have room. A
//! partition cannot refuse in the middle: a start waits for the call, which acts for its run; a stop
//! waits as it does for a list; and [`Shared::closing`] keeps partitions from being closed. A NIF is
//! never interrupted, so the entries and the number of their stream come together.
//!
//! The order of the locks is: the stream, `closing`, a shard. Nothing is freed or sent under the lock
//! of a shard.

mod entries;
mod kind;

use partitioned_buffer_engine::streams::{StreamId, Take};
use partitioned_buffer_engine::Closed;
use rustler::{Env, Term};

use self::entries::{Entries, Refused};
pub(crate) use self::kind::Kind;
use crate::lists::Invalid;
use crate::pace::Pace;
use crate::run::{News, NotRunning, Shared};

/// A call that absorbs entries.
pub(crate) struct Absorb<'a> {
    /// The caller.
    pub(crate) env: Env<'a>,
    /// The list of the entries.
    pub(crate) entries: Term<'a>,
    /// The stream of the entries and their number there; `None` if nobody counts them.
    pub(crate) taken_as: Option<(StreamId, u64)>,
    /// Whether the buffer may hold more than its bound afterwards.
    pub(crate) is_forced: bool,
    /// Whether the entries are also written during a stop, as those of a processor.
    pub(crate) writes_in_stop: bool,
    /// The limits of a call on a normal scheduler; `None` without limits.
    pub(crate) pace: Option<Pace>,
}

/// The reason why nothing is written.
pub(crate) enum Unwritten<'a> {
    /// The number was taken before.
    Duplicate,
    /// The buffer has no room for all entries.
    Full,
    /// A call on a normal scheduler might take too long.
    Large,
    /// A stop began, or a partition refuses writes.
    Stopping,
    /// The run is over.
    NotRunning,
    /// The list is invalid.
    Invalid(Invalid<'a>),
}

impl From<NotRunning> for Unwritten<'_> {
    fn from(NotRunning: NotRunning) -> Self {
        Unwritten::NotRunning
    }
}

impl<'a> Absorb<'a> {
    /// Writes all entries, unless it returns the reason why it writes nothing.
    pub(crate) fn write_to<K: Kind>(&mut self, own: &K) -> Result<(), Unwritten<'a>> {
        let mut enough = Vec::new();
        // A stop waits for it, and then finds the number as well.
        let list = List::begin(self.env, own.shared());
        let may_write = list.has_begun || self.writes_in_stop;
        let written = match self.taken_as {
            None => self.write(own, may_write, &mut enough),
            Some((id, number)) => {
                let may_wait = self.pace.is_none();
                match own.shared().streams.take(id, number, may_wait, || self.write(own, may_write, &mut enough)) {
                    Take::Done(result) => result,
                    Take::Duplicate => Err(Unwritten::Duplicate),
                    Take::Busy => Err(Unwritten::Large),
                }
            }
        };
        for partition in enough {
            own.shared().tell(self.env, News::Enough(partition));
        }
        if matches!(written, Err(Unwritten::Full)) && own.shared().bound.fill() {
            own.shared().tell(self.env, News::Full);
        }
        if let Some(pace) = &mut self.pace {
            pace.end();
            pace.consume_timeslice(self.env);
        }
        written
    }

    /// The same, with the stream in hand. Adds the partitions in which enough entries wait then.
    fn write<K: Kind>(&mut self, own: &K, may_write: bool, enough: &mut Vec<u32>) -> Result<(), Unwritten<'a>> {
        if !may_write {
            return Err(Unwritten::Stopping);
        }
        let (env, shared) = (self.env, own.shared());
        // The run is present, so its partitions stay open for this count even if it ends now.
        let partition_count = shared.count()?;
        let entries = Entries::read(env, own, self.entries, partition_count, self.pace.as_ref());
        let entries = entries.map_err(|refused| match refused {
            Refused::Invalid(invalid) => Unwritten::Invalid(invalid),
            Refused::Large => Unwritten::Large,
        })?;
        let closing = if self.pace.is_some() { shared.closing.try_read() } else { Some(shared.closing.read()) };
        let _open = closing.ok_or(Unwritten::Large)?;
        let admitted = entries.admitted(own, partition_count, self.writes_in_stop);
        let empty = admitted.map_err(|Closed| Unwritten::Stopping)?;
        if self.pace.as_ref().is_some_and(|pace| !entries.are_short(empty, pace)) {
            return Err(Unwritten::Large);
        }
        let room = Room::reserve(env, shared, entries.count(), self.is_forced).ok_or(Unwritten::Full)?;
        entries.write(own, partition_count, room, enough);
        Ok(())
    }
}

/// A list that a stop waits for, until it is dropped.
struct List<'s, 'a> {
    /// The caller.
    env: Env<'a>,
    /// The state of the buffer.
    shared: &'s Shared,
    /// Whether it began before a stop.
    has_begun: bool,
}

impl<'s, 'a> List<'s, 'a> {
    /// Begins a list.
    fn begin(env: Env<'a>, shared: &'s Shared) -> Self {
        List { env, shared, has_begun: shared.begin_list() }
    }
}

impl Drop for List<'_, '_> {
    fn drop(&mut self) {
        self.shared.end_list(self.env);
    }
}

/// Room for entries. The unused rest goes back when it is dropped.
struct Room<'s, 'a> {
    /// The caller.
    env: Env<'a>,
    /// The state of the buffer.
    shared: &'s Shared,
    /// Whether room was reserved: the buffer has a bound.
    is_reserved: bool,
    /// The unused room.
    left: usize,
}

impl<'s, 'a> Room<'s, 'a> {
    /// Reserves room for `count` entries, if the buffer has a bound and enough room, or if it
    /// `is_forced`.
    fn reserve(env: Env<'a>, shared: &'s Shared, count: usize, is_forced: bool) -> Option<Self> {
        let is_reserved = shared.bound.is_limited() && count > 0;
        if is_reserved && is_forced {
            shared.bound.reserve_beyond(count);
        } else if is_reserved && !shared.bound.reserve(count) {
            return None;
        }
        Some(Room { env, shared, is_reserved, left: if is_reserved { count } else { 0 } })
    }

    /// Gives room to `count` entries.
    fn use_room(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
    }
}

impl Drop for Room<'_, '_> {
    fn drop(&mut self) {
        self.shared.bound.release(self.left);
        self.shared.tell_of_room(self.env);
    }
}
