//! The bound of a map, and the threshold of its partition, under thousands of schedules.
//! `partition.rs` tells how to choose them and run one again.
#![allow(missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

mod buffer;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use buffer::map::{self, Buffer, Lease};
use buffer::{check, join, spawn};
use common::reading::{all_of, contents, give_back};
use common::{hash, TestHeap, ONE};
use partitioned_buffer_engine::partition::{Write, TABLE_SHARDS};
use partitioned_buffer_engine::{Access, GiveBack, Heap, MapPartition, Stored, Written};
use shuttle::rand::{thread_rng, Rng};
use shuttle::sync::mpsc::{channel, Receiver, Sender};

/// A buffer of so many partitions, which hold at most `max` entries together. A shard gets half of
/// what is free.
fn start(running: u32, max: usize) -> Arc<Buffer> {
    let buffer = map::start(running, true);
    buffer.bound.set_max(Some(max), 1);
    buffer.partitions.iter().take(running as usize).for_each(|partition| partition.set_bounded(true));
    buffer
}

/// A buffer of one partition with no bound, but with a threshold.
fn start_with_threshold(enough: usize) -> Arc<Buffer> {
    let buffer = map::start(1, true);
    assert!(!buffer.first().set_threshold(Some(enough)));
    buffer
}

/// Keys of this shard of the only partition.
fn keys_of(buffer: &Buffer, shard: usize) -> impl Iterator<Item = i64> + '_ {
    let shard_of = |key| MapPartition::<TestHeap>::shard_of(hash(&buffer.hasher, TestHeap::new().boxed(key)));
    (0..).filter(move |&key| shard_of(key) == shard)
}

impl Buffer {
    /// The bound holds now.
    fn assert_bounded(&self) {
        let (held, max) = (self.bound.held(), self.bound.max());
        assert!(max.is_none_or(|max| held <= max), "{held} are held, at most {max:?} may be");
    }

    /// Takes the room from all shards that they have not used; `false` if they had none.
    fn take_room(&self) -> bool {
        let is_lent = self.bound.take_lent();
        if is_lent {
            self.partitions.iter().for_each(|partition| partition.take_room());
        }
        self.assert_bounded();
        is_lent
    }

    /// Does a write, and repeats it if there may be room, as the NIF library does.
    fn write(&self, write: impl Fn() -> Stored) -> Stored {
        loop {
            let stored = write();
            self.assert_bounded();
            if stored != Stored::Full || !self.take_room() {
                return stored;
            }
        }
    }

    /// Puts a key, its own value.
    fn write_key(&self, key: i64) -> Stored {
        self.write(|| self.put_as(|access| access, key, key).expect("the buffer runs"))
    }

    /// Writes a list as a whole; `false` if there is no room for it.
    fn write_list(&self, keys: &[i64]) -> bool {
        let reserve = || self.bound.reserve(keys.len(), false);
        let is_reserved = reserve() || (self.take_room() && reserve());
        if is_reserved {
            let used: usize = keys.iter().map(|&key| self.write_one_of_list(key, true).used).sum();
            self.assert_bounded();
            self.bound.release(keys.len() - used);
        }
        is_reserved
    }

    fn write_one_of_list(&self, key: i64, reserved: bool) -> Written {
        let mut caller = TestHeap::new();
        let term = caller.boxed(key);
        let hash = hash(&self.hasher, term);
        let shard = MapPartition::<TestHeap>::shard_of(hash);
        let write = |partition: &MapPartition<TestHeap>, among| {
            partition.write_all(among, shard, reserved, [(hash, Write::Put(term.parcel(), term.parcel()))].iter())
        };
        self.operate(key, write).expect("the buffer runs")
    }

    /// The processor fails for good with a batch, and the dead letters are written.
    fn give_up(&self, lease: &Lease) {
        let partition = &self.partitions[lease.partition];
        let step = GiveBack { max_attempts: Some(1), count: 1, ..all_of(lease.reader) };
        let given_back = give_back(partition, &lease.flush, step);
        if given_back.given_up > 0 {
            lease.flush.bury(0);
            lease.flush.succeed(lease.reader);
            partition.settle(&lease.flush);
        }
    }

    /// The processor succeeds, fails in part, or fails for good, with several batches.
    fn process_at_random(&self, partitions: usize, times: usize) {
        for _ in 0..times {
            let (partition, size) = (thread_rng().gen_range(0..partitions), thread_rng().gen_range(1..4));
            if let Some(lease) = self.lease_from(partition, size) {
                match thread_rng().gen_range(0..4) {
                    0..=1 => self.succeed(lease),
                    2 => drop(self.fail(&lease, Some(&[0]))),
                    _ => self.give_up(&lease),
                }
            }
            self.assert_bounded();
        }
    }

    /// Does random writes and deletes.
    fn write_at_random(&self, times: usize) {
        for _ in 0..times {
            let key = thread_rng().gen_range(0..6);
            match thread_rng().gen_range(0..8) {
                0..=2 => drop(self.write_key(key)),
                3 => drop(self.write(|| self.put_new(key, key).expect("the buffer runs"))),
                4 => drop(self.write(|| self.put_newer(key, thread_rng().gen_range(1..4)).expect("the buffer runs"))),
                5 => drop(self.write_list(&[key, (key + 1) % 6])),
                _ => self.delete(key),
            }
        }
    }

    /// Checks that what is held are the entries, when nothing is under way, and that all room comes
    /// back.
    fn assert_counted(&self, is_bounded: bool) {
        self.partitions.iter().for_each(MapPartition::take_room);
        let infos = self.partitions.each_ref().map(MapPartition::info);
        let entries = infos.iter().map(|info| info.waiting + info.in_flight).sum();
        assert_eq!(self.bound.held(), if is_bounded { entries } else { 0 }, "{infos:?}");
        self.assert_bounded();
        self.succeed_with_all(2);
        assert_eq!(self.bound.held(), 0);
    }
}

#[test]
fn the_bound_is_not_exceeded_by_writes_lists_and_what_is_given_back() {
    check(|| {
        let buffer = start(1, 4);
        let writer = spawn(&buffer, |buffer| {
            [1, 2, 3, 1, 4].into_iter().for_each(|key| {
                buffer.write_key(key);
            });
            buffer.delete(2);
        });
        let list = spawn(&buffer, |buffer| (0..2).filter(|_| buffer.write_list(&[3, 5])).count());
        let processor = spawn(&buffer, |buffer| {
            if let Some(lease) = buffer.lease(2) {
                buffer.fail(&lease, Some(&[0]));
            }
            buffer.lease(3).into_iter().for_each(|lease| buffer.succeed(lease));
        });
        (0..4).for_each(|_| buffer.assert_bounded());
        join(writer);
        join(list);
        join(processor);
        buffer.assert_counted(true);
    });
}

#[test]
fn the_bound_of_two_partitions_counts_whatever_happens() {
    check(|| {
        let buffer = start(2, 5);
        let writers = [(); 2].map(|()| spawn(&buffer, |buffer| buffer.write_at_random(5)));
        let processor = spawn(&buffer, |buffer| buffer.process_at_random(2, 4));
        writers.into_iter().for_each(join);
        join(processor);
        buffer.assert_counted(true);
    });
}

#[test]
fn a_stale_write_to_a_full_buffer_takes_no_room_while_its_key_leaves_it() {
    check(|| {
        let buffer = start(1, 1);
        assert_eq!(buffer.put_newer(1, 2), Ok(Stored::Stored));
        let lease = buffer.lease(1).expect("the entry is in flight");
        let processor = spawn(&buffer, move |buffer| buffer.succeed(lease));
        let stored = buffer.write(|| buffer.put_newer(1, 1).expect("the buffer runs"));
        join(processor);
        assert_eq!(stored == Stored::Stored, buffer.first().len(ONE) == Ok(1));
        buffer.assert_counted(true);
    });
}

#[test]
fn writers_of_as_many_keys_as_there_may_be_all_find_room() {
    check(|| {
        let buffer = start(1, 6);
        // Each has a shard of its own. The first one gets more room there than it needs.
        let writers = [(0, 2), (1, 4)].map(|(shard, count)| {
            spawn(&buffer, move |buffer| {
                let keys: Vec<i64> = keys_of(buffer, shard).take(count).collect();
                keys.into_iter().for_each(|key| assert_eq!(buffer.write_key(key), Stored::Stored));
            })
        });
        writers.into_iter().for_each(join);
        assert_eq!(buffer.first().len(ONE), Ok(6));
        buffer.assert_counted(true);
    });
}

#[test]
fn an_overwrite_that_finds_room_and_needs_none_keeps_it_from_nobody() {
    check(|| {
        let buffer = start(1, 2);
        let [first, second] = [0, 1].map(|shard| keys_of(&buffer, shard).next().expect("a key"));
        assert_eq!(buffer.write_key(first), Stored::Stored);
        buffer.take_room();
        let other = spawn(&buffer, move |buffer| buffer.write_key(first));
        if thread_rng().gen() {
            assert_eq!(buffer.write_key(second), Stored::Stored);
        } else {
            assert!(buffer.write_list(&[second]));
        }
        assert_eq!(join(other), Stored::Stored);
        buffer.assert_counted(true);
    });
}

#[test]
fn the_last_room_which_a_shard_has_not_used_goes_to_one_of_the_writers() {
    check(|| {
        let buffer = start(1, 4);
        let keys: Vec<i64> = (0..TABLE_SHARDS).filter_map(|shard| keys_of(&buffer, shard).next()).collect();
        assert_eq!(buffer.write_key(keys[3]), Stored::Stored);
        assert!(buffer.bound.reserve(2, false), "the shard has the fourth");
        let writers = [0, 1, 2].map(|writer| {
            let key = keys[writer];
            spawn(&buffer, move |buffer| buffer.write_key(key) == Stored::Stored)
        });
        // Which one is not known: others may be refused while it takes the room from the shard.
        assert_eq!(writers.map(join).into_iter().filter(|is_stored| *is_stored).count(), 1);
        buffer.bound.release(2);
        buffer.assert_counted(true);
    });
}

/// What the process is told at which writers wait.
enum Message {
    /// This writer waits.
    Wait(Sender<()>),
    /// The writer whose turn it was is done, and whether it has to wait again, as the first one.
    Done(Option<Sender<()>>),
    /// There is no room.
    Full,
    /// There may be room.
    Room,
}

/// Tells of room, as the NIF library does.
fn tell_of_room(buffer: &Buffer, room: &Sender<Message>) {
    if buffer.bound.take_news() {
        let _ = room.send(Message::Room);
    }
}

/// Writes as a process does that waits for room.
fn write_or_wait(buffer: &Buffer, room: &Sender<Message>, key: i64) {
    let (me, turn) = channel();
    if attempt(buffer, room, |access| access, key) {
        return;
    }
    let _ = room.send(Message::Wait(me.clone()));
    loop {
        turn.recv().expect("its turn comes");
        let is_stored = attempt(buffer, room, Access::of_waiter, key);
        let _ = room.send(Message::Done((!is_stored).then(|| me.clone())));
        if is_stored {
            return;
        }
    }
}

/// Whether a write finds room. If not, it tells of it.
fn attempt(buffer: &Buffer, room: &Sender<Message>, caller: fn(Access) -> Access, key: i64) -> bool {
    while buffer.put_as(caller, key, key).expect("the buffer runs") == Stored::Full {
        if buffer.take_room() {
            tell_of_room(buffer, room);
        } else {
            if buffer.bound.fill() {
                let _ = room.send(Message::Full);
            }
            return false;
        }
    }
    true
}

/// The process at which writers wait, and what it does. See `room.ex`.
struct Room {
    buffer: Arc<Buffer>,
    waiters: VecDeque<Sender<()>>,
    is_turn: bool,
    /// Whether an episode has begun.
    is_full: bool,
    /// Where partitions are told to flush, until it says false.
    flush: Sender<bool>,
}

impl Room {
    /// Serves until all others are gone; `true` if an episode has not ended.
    fn run(mut self, messages: &Receiver<Message>) -> bool {
        while let Ok(message) = messages.recv() {
            self.handle(message);
        }
        assert!(self.waiters.is_empty() && !self.is_turn);
        self.is_full
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Wait(writer) => {
                self.buffer.bound.set_queued(true);
                self.is_full = true;
                self.waiters.push_back(writer);
                if self.waiters.len() > 1 {
                    return;
                }
            }
            Message::Done(again) => {
                self.is_turn = false;
                self.is_full |= again.is_some();
                again.into_iter().for_each(|writer| self.waiters.push_front(writer));
            }
            Message::Full => {
                let _ = self.flush.send(true);
                self.is_full = true;
            }
            Message::Room => {}
        }
        self.serve();
    }

    fn serve(&mut self) {
        let Room { buffer, waiters, .. } = self;
        if self.is_turn {
            return;
        }
        let Some(first) = waiters.front() else {
            buffer.bound.set_queued(false);
            self.is_full &= !buffer.bound.clear();
            return;
        };
        if buffer.bound.has_room(1) || (buffer.take_room() && buffer.bound.has_room(1)) {
            let _ = first.send(());
            waiters.pop_front();
            self.is_turn = true;
        } else {
            let _ = self.flush.send(true);
        }
    }
}

/// Lets `writers` and `release` run, and the process at which writers wait. Then all that is held
/// leaves, and no episode must be left. Shuttle fails if all wait.
fn with_room(
    buffer: &Arc<Buffer>,
    writers: &[Vec<i64>],
    release: impl FnOnce(&Buffer, &dyn Fn(), &Receiver<bool>) + Send + 'static,
) {
    let (room, messages) = channel();
    let (flush, flushes) = channel();
    let end = flush.clone();
    let waiting = spawn(buffer, {
        let buffer = buffer.clone();
        move |_buffer| Room { buffer, waiters: VecDeque::new(), is_turn: false, is_full: false, flush }.run(&messages)
    });
    let writers: Vec<_> = writers
        .iter()
        .map(|keys| {
            let (keys, room) = (keys.clone(), room.clone());
            spawn(buffer, move |buffer| keys.iter().for_each(|&key| write_or_wait(buffer, &room, key)))
        })
        .collect();
    let other = {
        let room = room.clone();
        spawn(buffer, move |buffer| release(buffer, &|| tell_of_room(buffer, &room), &flushes))
    };
    writers.into_iter().for_each(join);
    // Not all of them wait for it.
    let _ = end.send(false);
    join(other);
    buffer.take_room();
    tell_of_room(buffer, &room);
    buffer.succeed_with_all(2);
    tell_of_room(buffer, &room);
    drop(room);
    assert!(!join(waiting), "the buffer is empty and counts as full");
    assert!(!buffer.bound.take_news(), "nobody waits for news");
    assert!(buffer.bound.fill(), "nobody has told that it is full again");
}

#[test]
fn a_writer_that_waits_gets_in_when_an_entry_leaves() {
    check(|| {
        let buffer = start(1, 1);
        assert_eq!(buffer.write_key(1), Stored::Stored);
        let lease = buffer.lease(1).expect("the entry is in flight");
        with_room(&buffer, &[vec![2]], move |buffer, tell, _flushes| {
            buffer.succeed(lease);
            tell();
        });
    });
}

#[test]
fn writers_that_wait_get_in_when_entries_are_deleted_or_a_list_needs_less() {
    check(|| {
        let buffer = start(1, 2);
        assert_eq!(buffer.write_key(1), Stored::Stored);
        buffer.take_room();
        assert!(buffer.bound.reserve(1, false));
        with_room(&buffer, &[vec![2], vec![3]], |buffer, tell, _flushes| {
            buffer.delete(1);
            tell();
            buffer.bound.release(1);
            tell();
        });
    });
}

#[test]
fn a_writer_that_waits_gets_the_room_that_an_overwrite_has_borrowed() {
    check(|| {
        let buffer = start(1, 2);
        let [first, second] = [0, 1].map(|shard| keys_of(&buffer, shard).next().expect("a key"));
        assert_eq!(buffer.write_key(first), Stored::Stored);
        buffer.take_room();
        // No entry leaves.
        with_room(&buffer, &[vec![first], vec![second]], |_buffer, _tell, _flushes| {});
    });
}

#[test]
fn writers_that_wait_all_get_in_as_long_as_a_full_buffer_is_flushed() {
    check(|| {
        let buffer = start(1, 2);
        with_room(&buffer, &[vec![1, 2], vec![3, 4], vec![5]], |buffer, tell, flushes| {
            while flushes.recv() == Ok(true) {
                while let Some(lease) = buffer.lease(2) {
                    buffer.succeed(lease);
                    tell();
                }
            }
        });
    });
}

#[test]
fn the_end_of_an_episode_forgets_no_write_that_has_found_no_room_since() {
    check(|| {
        let buffer = start(1, 1);
        assert_eq!(buffer.write_key(1), Stored::Stored);
        assert!(buffer.bound.fill(), "an episode begins");
        let writer = spawn(&buffer, |buffer| {
            buffer.delete(1);
            assert_eq!(buffer.write_key(2), Stored::Stored);
            assert_eq!(buffer.write_key(3), Stored::Full);
            buffer.bound.fill();
        });
        for _ in 0..2 {
            buffer.bound.clear();
        }
        join(writer);
        assert!(!buffer.bound.fill(), "it is full, and somebody knows");
        buffer.bound.take_news();
        buffer.delete(2);
        assert!(buffer.bound.take_news(), "who is told when there is room");
    });
}

#[test]
fn an_entry_that_leaves_as_an_episode_ends_is_told_or_ends_it() {
    check(|| {
        let buffer = start(1, 16);
        // It takes two entries less to end it.
        (0..16).for_each(|key| assert_eq!(buffer.write_key(key), Stored::Stored));
        assert!(buffer.bound.fill(), "an episode begins");
        let other = spawn(&buffer, |buffer| {
            let told = |key: &i64| {
                buffer.delete(*key);
                buffer.bound.take_news()
            };
            let is_told = [0, 1].iter().filter(|key| told(key)).count() > 0;
            buffer.write_key(16);
            buffer.delete(2);
            is_told | buffer.bound.take_news()
        });
        let is_ended = buffer.bound.clear();
        let is_told = join(other);
        assert!(is_ended || is_told && buffer.bound.clear(), "two have left, and nobody knows");
        assert!(buffer.bound.fill(), "the episode has ended");
    });
}

/// Turns the bound on and off.
fn change_bound(buffer: &Buffer, is_bounded: impl IntoIterator<Item = bool>) {
    for is_bounded in is_bounded {
        // A shard that has a bound must not find that there is none.
        if is_bounded {
            buffer.bound.set_max(Some(100), 1);
        }
        buffer.partitions.iter().for_each(|partition| partition.set_bounded(is_bounded));
        if !is_bounded {
            buffer.bound.set_max(None, 1);
        }
    }
}

/// Turns the bound on and off, or off and on, while writers and a processor are at work.
fn change_at_work<const IS_BOUNDED: bool>() {
    let buffer = start(1, 100);
    change_bound(&buffer, (!IS_BOUNDED).then_some(false));
    buffer.write_key(1);
    buffer.write_key(2);
    let writer = spawn(&buffer, |buffer| {
        buffer.write_at_random(3);
        buffer.write_one_of_list(4, false);
    });
    let processor = spawn(&buffer, |buffer| buffer.process_at_random(1, 3));
    change_bound(&buffer, [!IS_BOUNDED, IS_BOUNDED]);
    join(writer);
    join(processor);
    buffer.assert_counted(IS_BOUNDED);
}

#[test]
fn a_bound_that_goes_and_comes_again_counts_all_entries() {
    check(change_at_work::<true>);
}

#[test]
fn a_bound_that_comes_and_goes_again_counts_none() {
    check(change_at_work::<false>);
}

/// What two writers of different keys and a processor have seen.
#[derive(Default)]
struct Seen {
    /// The keys with which enough entries have waited.
    enough: Vec<i64>,
    /// The keys of each flush.
    flushes: Vec<Vec<i64>>,
}

impl Seen {
    /// Each flush with enough new entries, and what waits, was announced once, and no other one.
    fn assert_announced(&self, enough: usize) {
        let mut known = HashSet::new();
        for keys in &self.flushes {
            let new: Vec<i64> = keys.iter().copied().filter(|&key| known.insert(key)).collect();
            let announced = self.enough.iter().filter(|key| new.contains(key)).count();
            assert_eq!(announced, usize::from(new.len() >= enough), "{:?} of {:?}", self.enough, self.flushes);
        }
    }
}

/// Flushes, and leases all of it, or one entry after one alone has failed.
fn flush_all(buffer: &Buffer, flushes: &mut Vec<Vec<i64>>) -> Option<Lease> {
    let lease = buffer.lease(usize::MAX)?;
    let frozen = lease.flush.entries().expect("it is not finished");
    flushes.push(contents(&frozen, |record| record.key.content().1));
    Some(lease)
}

/// Two writers of three keys each, one of them by lists, while a processor flushes, and fails with
/// what `failed` says.
fn write_to_threshold(failed: fn() -> Option<&'static [usize]>) {
    const ENOUGH: usize = 2;
    let buffer = start_with_threshold(ENOUGH);
    let put = spawn(&buffer, |buffer| {
        let is_enough = |&key: &i64| buffer.write_key(key) == Stored::Enough;
        [1, 2, 3].into_iter().filter(is_enough).collect::<Vec<i64>>()
    });
    let list = spawn(&buffer, |buffer| {
        let is_enough = |&key: &i64| buffer.write_one_of_list(key, false).is_enough;
        [4, 5, 6].into_iter().filter(is_enough).collect::<Vec<i64>>()
    });
    let processor = spawn(&buffer, move |buffer| {
        let mut flushes = Vec::new();
        for _ in 0..3 {
            if let Some(lease) = flush_all(buffer, &mut flushes) {
                buffer.fail(&lease, failed());
            }
        }
        flushes
    });
    let mut seen = Seen { enough: [put, list].map(join).concat(), flushes: join(processor) };
    while let Some(lease) = flush_all(&buffer, &mut seen.flushes) {
        buffer.succeed(lease);
    }
    seen.assert_announced(ENOUGH);
}

#[test]
fn each_flush_of_enough_entries_is_announced_once() {
    check(|| write_to_threshold(|| Some(&[])));
}

#[test]
fn what_is_given_back_is_not_announced_again() {
    check(|| write_to_threshold(|| [None, Some(&[0][..])][thread_rng().gen_range(0..2)]));
}

#[test]
fn enough_entries_are_announced_once_though_the_threshold_changes() {
    check(|| {
        let buffer = start_with_threshold(100);
        let writers = [1, 2].map(|writer| {
            spawn(&buffer, move |buffer| {
                let is_enough = |key: &i64| {
                    let is_enough = buffer.write_key(writer + key) == Stored::Enough;
                    if thread_rng().gen_ratio(1, 3) {
                        buffer.delete(writer + key);
                    }
                    is_enough
                };
                [0, 2, 4].iter().filter(|key| is_enough(key)).count()
            })
        });
        let by_change = buffer.first().set_threshold(Some(3));
        let announced = usize::from(by_change) + writers.map(join).iter().sum::<usize>();
        let waiting = buffer.first().len(ONE).expect("the partition runs");
        assert!(announced <= 1 && (announced == 1 || waiting < 3), "{announced} times, {waiting} wait");
    });
}
