//! The writers that wait for room, in their order.
//!
//! A writer *joins* the line. It is *granted* a reservation as soon as the [bound](super::bound)
//! has room for it and for all writers before it, so all writers are granted for which there is
//! room. The writer *takes* its grant when it writes. A grant that its writer does not take in time
//! *lapses* if others wait: the room goes to them, and the writer rejoins the line at its place.
//!
//! Whoever makes room free serves the line afterwards, and so does whoever joins or leaves it. All
//! of them hold the lock of the line, and a writer joins before it looks for room a last time.
//! Room therefore never stays free while the first writer waits for it.
//!
//! With a limit of bytes the next writer is granted room only when the one before took its grant,
//! since the size of a write is unknown before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::bound::Bound;
use crate::sync::{AtomicUsize, Mutex, Ordering};

/// See the module's documentation.
pub struct Waiting<W> {
    /// The writers.
    line: Mutex<Line<W>>,
    /// The number of joins so far.
    joined: AtomicUsize,
}

/// The place of a writer in the line. No other writer of the same buffer has it, ever.
pub type Place = u64;

/// The writers by their places.
struct Line<W> {
    /// The next place.
    next: Place,
    /// The writers that wait.
    waiters: BTreeMap<Place, Waiter<W>>,
    /// The reservations that no writer took yet.
    grants: BTreeMap<Place, Grant>,
}

/// A writer that waits.
struct Waiter<W> {
    /// The number of its entries.
    count: usize,
    /// The writer, for its answer.
    writer: W,
}

/// A reservation that its writer did not take yet.
struct Grant {
    /// The number of entries.
    count: usize,
    /// When it was granted.
    since: Instant,
}

/// The answer to a writer, which leaves the line with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A reservation is granted.
    Granted,
    /// The bound is now below the number of its entries.
    TooLong,
    /// The buffer ends.
    Ended,
}

impl<W> Default for Waiting<W> {
    fn default() -> Self {
        let line = Line { next: 1, waiters: BTreeMap::new(), grants: BTreeMap::new() };
        Waiting { line: Mutex::new(line), joined: AtomicUsize::new(0) }
    }
}

impl<W> Waiting<W> {
    /// Lets a writer join the line at its end. Returns its place, and whether it is the only one: the
    /// partitions may have flushed before the last entries came, and nobody else lets them flush. The
    /// caller serves the line then.
    pub fn join(&self, bound: &Bound, count: usize, writer: W) -> (Place, bool) {
        self.joined.fetch_add(1, Ordering::Relaxed);
        let mut line = self.line.lock();
        let place = line.next;
        line.next += 1;
        bound.set_queued(true);
        line.waiters.insert(place, Waiter { count, writer });
        (place, line.waiters.len() == 1)
    }

    /// Lets a writer whose grant lapsed join the line at its place. Returns whether it is the only one.
    /// The caller serves the line then.
    pub fn rejoin(&self, bound: &Bound, place: Place, count: usize, writer: W) -> bool {
        let mut line = self.line.lock();
        bound.set_queued(true);
        line.waiters.insert(place, Waiter { count, writer });
        line.waiters.len() == 1
    }

    /// Answers at most `most` writers, in their order: all of them if the buffer `is_over`. Returns
    /// whether others may be answered now. `send` is called with the lock of the line, so a writer
    /// that left was answered before, or never.
    pub fn serve(&self, bound: &Bound, is_over: bool, most: usize, mut send: impl FnMut(Place, &W, Answer)) -> bool {
        let mut line = self.line.lock();
        for _ in 0..most {
            let Line { waiters, grants, .. } = &mut *line;
            let Some(first) = waiters.first_entry() else { break };
            let count = first.get().count;
            let answer = if is_over {
                Answer::Ended
            } else if !bound.fits(count) {
                Answer::TooLong
            } else if (!bound.counts_bytes() || grants.is_empty()) && bound.reserve_first(count) {
                Answer::Granted
            } else {
                return false;
            };
            let (place, waiter) = first.remove_entry();
            if answer == Answer::Granted {
                grants.insert(place, Grant { count, since: Instant::now() });
            }
            send(place, &waiter.writer, answer);
        }
        line.open_if_empty(bound);
        !line.waiters.is_empty()
    }

    /// Lets a writer leave the line; `false` if it was answered. The caller serves the line then.
    pub fn leave(&self, bound: &Bound, place: Place) -> bool {
        let mut line = self.line.lock();
        let has_left = line.waiters.remove(&place).is_some();
        if has_left {
            line.open_if_empty(bound);
            // The next writer may need less room.
            bound.announce();
        }
        has_left
    }

    /// Hands a grant to its writer, which owns the room from now on; `None` if it lapsed.
    pub fn take(&self, place: Place) -> Option<usize> {
        self.line.lock().grants.remove(&place).map(|grant| grant.count)
    }

    /// Lets a writer that is gone leave the line, or releases its grant. The caller serves the line
    /// then.
    pub fn forget(&self, bound: &Bound, place: Place) {
        if !self.leave(bound, place) {
            if let Some(count) = self.take(place) {
                bound.release(count);
            }
        }
    }

    /// Lets the grants lapse that no writer took for a `time`, if others wait. The caller serves the
    /// line then.
    pub fn lapse(&self, bound: &Bound, time: Duration) {
        let mut line = self.line.lock();
        let Line { waiters, grants, .. } = &mut *line;
        if !waiters.is_empty() {
            grants.retain(|_place, grant| {
                let lasts = grant.since.elapsed() < time;
                if !lasts {
                    bound.release(grant.count);
                }
                lasts
            });
        }
    }

    /// Whether a grant may lapse: others wait.
    pub fn may_lapse(&self) -> bool {
        let line = self.line.lock();
        !line.waiters.is_empty() && !line.grants.is_empty()
    }

    /// How many writers wait.
    pub fn len(&self) -> usize {
        self.line.lock().waiters.len()
    }

    /// Whether no writer waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many writers joined the line so far.
    pub fn joined(&self) -> usize {
        self.joined.load(Ordering::Relaxed)
    }
}

impl<W> Line<W> {
    /// Lets all writers reserve room if nobody waits.
    fn open_if_empty(&self, bound: &Bound) {
        if self.waiters.is_empty() {
            bound.set_queued(false);
        }
    }
}
