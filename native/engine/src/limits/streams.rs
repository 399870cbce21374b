//! Which numbers of which streams a buffer took: whoever sends entries numbers them, and each number
//! counts once.
//!
//! Like the entries, the numbers outlive a run. A stream is held while its entries are written, so of
//! two calls with the same number the second one finds it taken. A forgotten stream begins again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::sync::{AtomicU64, Mutex, Ordering};

/// The id of a stream: its sender chooses both parts.
pub type StreamId = (u64, u64);

/// A stream.
struct Stream {
    /// Held while entries with a number of this stream are written.
    writing: Mutex<()>,
    /// The last number taken; 0 before the first.
    last: AtomicU64,
}

impl Stream {
    /// A stream that took no number.
    fn new() -> Arc<Self> {
        Arc::new(Stream { writing: Mutex::default(), last: AtomicU64::new(0) })
    }
}

/// The streams by the parts of their ids.
type ById = BTreeMap<u64, BTreeMap<u64, Arc<Stream>>>;

/// See the module's documentation.
#[derive(Default)]
pub struct Streams(Mutex<ById>);

/// The result of [`Streams::take`].
#[derive(Debug, PartialEq, Eq)]
pub enum Take<R> {
    /// The result of the write.
    Done(R),
    /// The number, or a later one, was taken before.
    Duplicate,
    /// Another call holds the stream.
    Busy,
}

impl Streams {
    /// Calls `write` unless the stream took `number` or a later one before, and takes the number if the
    /// result is `Ok`. It waits for another call with this stream if it `may_wait`.
    pub fn take<T, E>(
        &self,
        id: StreamId,
        number: u64,
        may_wait: bool,
        write: impl FnOnce() -> Result<T, E>,
    ) -> Take<Result<T, E>> {
        let stream = self.0.lock().entry(id.0).or_default().entry(id.1).or_insert_with(Stream::new).clone();
        let writing = if may_wait { Some(stream.writing.lock()) } else { stream.writing.try_lock() };
        let Some(writing) = writing else { return Take::Busy };
        if number <= stream.last.load(Ordering::Acquire) {
            return Take::Duplicate;
        }
        let result = write();
        if result.is_ok() {
            stream.last.store(number, Ordering::Release);
        }
        drop(writing);
        if stream.last.load(Ordering::Acquire) == 0 {
            self.remove_unused(id, &stream);
        }
        Take::Done(result)
    }

    /// Removes a stream that took no number, unless other calls use it.
    #[cold]
    fn remove_unused(&self, (first, second): StreamId, stream: &Arc<Stream>) {
        let mut streams = self.0.lock();
        let Some(seconds) = streams.get_mut(&first) else { return };
        // Only this lock gives out references: one is in the map, and one is the caller's.
        let is_unused = |own: &Arc<Stream>| {
            Arc::ptr_eq(own, stream) && Arc::strong_count(own) == 2 && own.last.load(Ordering::Acquire) == 0
        };
        if seconds.get(&second).is_some_and(is_unused) {
            seconds.remove(&second);
            if seconds.is_empty() {
                streams.remove(&first);
            }
        }
    }

    /// Forgets the streams with this first part whose last number is at most `most`, unless a call uses
    /// them: it may take a later one.
    pub fn forget(&self, first: u64, most: u64) {
        let mut streams = self.0.lock();
        let Some(seconds) = streams.get_mut(&first) else { return };
        // Only this lock gives out references, so no call has one of a stream with a single reference.
        seconds.retain(|_, stream| Arc::strong_count(stream) > 1 || stream.last.load(Ordering::Acquire) > most);
        if seconds.is_empty() {
            streams.remove(&first);
        }
    }

    /// The streams with the last number taken, in the order of their ids.
    pub fn all(&self) -> Vec<(u64, u64, u64)> {
        let streams = self.0.lock();
        let each = |(&first, seconds): (&u64, &BTreeMap<u64, Arc<Stream>>)| {
            let last = |(&second, stream): (&u64, &Arc<Stream>)| (first, second, stream.last.load(Ordering::Acquire));
            seconds.iter().map(last).collect::<Vec<_>>()
        };
        streams.iter().flat_map(each).filter(|&(_, _, last)| last > 0).collect()
    }
}
