//! The bound of a map, and the threshold of its partition, under thousands of schedules.
//! `partition.rs` tells how to choose them and run one again.
#![allow(missing_docs)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

mod buffer;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use buffer::map::{self, Buffer, Lease};
use buffer::{check, join, spawn};
use common::reading::{all_of, contents, give_back};
use common::{hash, TestHeap, ONE};
use partitioned_buffer_engine::partition::Write;
use partitioned_buffer_engine::waiting::Answer;
use partitioned_buffer_engine::{Access, GiveBack, Heap, Limits, MapPartition, Stored, Waiting, Written};
use shuttle::rand::{thread_rng, Rng};
use shuttle::sync::mpsc::{channel, Sender};

/// A buffer of so many partitions, which hold at most `max` entries together.
fn start(running: u32, max: usize) -> Arc<Buffer> {
    let buffer = map::start(running, true);
    buffer.bound.set_limits(limits(Some(max)));
    buffer.partitions.iter().take(running as usize).for_each(|partition| partition.set_bounded(true));
    buffer
}

/// The limits of a bound that counts bytes as well.
fn limits(entries: Option<usize>) -> Limits {
    Limits { entries, bytes: entries.map(|_| 1 << 40) }
}

/// A buffer of one partition with no bound, but with a threshold.
fn start_with_threshold(enough: usize) -> Arc<Buffer> {
    let buffer = map::start(1, true);
    assert!(!buffer.first().set_threshold(Some(enough)));
    buffer
}

impl Buffer {
    /// The bound holds now.
    fn assert_bounded(&self) {
        let (held, max) = (self.bound.held(), self.bound.limits().entries);
        assert!(max.is_none_or(|max| held <= max), "{held} are held, at most {max:?} may be");
    }

    /// Does a write.
    fn write(&self, write: impl Fn() -> Stored) -> Stored {
        let stored = write();
        self.assert_bounded();
        stored
    }

    /// Puts a key, its own value.
    fn write_key(&self, key: i64) -> Stored {
        self.write(|| self.put_as(|access| access, key, key).expect("the buffer runs"))
    }

    /// Writes a list as a whole; `false` if there is no room for it.
    fn write_list(&self, keys: &[i64]) -> bool {
        let is_reserved = self.bound.reserve(keys.len());
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

    /// Checks that what is held are the entries and their bytes, when nothing is under way, and that
    /// all room comes back.
    fn assert_counted(&self, is_bounded: bool) {
        let infos = self.partitions.each_ref().map(MapPartition::info);
        let entries = infos.iter().map(|info| info.waiting + info.in_flight).sum();
        assert_eq!(self.bound.held(), if is_bounded { entries } else { 0 }, "{infos:?}");
        let bytes = infos.iter().map(|info| info.bytes).sum();
        assert_eq!(self.bound.bytes(), if is_bounded { bytes } else { 0 }, "{infos:?}");
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
        let writers = [0..2, 2..6].map(|keys| {
            spawn(&buffer, move |buffer| keys.for_each(|key| assert_eq!(buffer.write_key(key), Stored::Stored)))
        });
        writers.into_iter().for_each(join);
        assert_eq!(buffer.first().len(ONE), Ok(6));
        buffer.assert_counted(true);
    });
}

#[test]
fn an_overwrite_keeps_the_last_room_from_nobody() {
    check(|| {
        let buffer = start(1, 2);
        assert_eq!(buffer.write_key(1), Stored::Stored);
        let other = spawn(&buffer, |buffer| buffer.write_key(1));
        if thread_rng().gen() {
            assert_eq!(buffer.write_key(2), Stored::Stored);
        } else {
            assert!(buffer.write_list(&[2]));
        }
        assert_eq!(join(other), Stored::Stored);
        buffer.assert_counted(true);
    });
}

/// Writers that wait for room, by the senders of their answers.
type Line = Waiting<Sender<Answer>>;

/// What a writer does that finds no room.
#[derive(Clone, Copy)]
enum Patience {
    /// It waits until it has written.
    Waits,
    /// It gives up at once.
    GivesUp,
    /// It dies.
    Dies,
}

/// Serves the line after news, as the NIF library does.
fn tell_of_room(buffer: &Buffer, line: &Line) {
    if buffer.bound.take_news() {
        serve(buffer, line);
    }
}

/// Serves the line to its end. The receiver of a writer that is gone may be gone too.
fn serve(buffer: &Buffer, line: &Line) {
    while line.serve(&buffer.bound, false, 1, |_place, writer, answer| {
        let _ = writer.send(answer);
    }) {
        buffer.assert_bounded();
    }
    buffer.assert_bounded();
}

/// Writes as a process does that waits for room; `false` if it wrote nothing.
fn write_or_wait(buffer: &Buffer, line: &Line, key: i64, patience: Patience) -> bool {
    if buffer.write_key(key) != Stored::Full {
        return true;
    }
    buffer.bound.fill();
    let (me, answers) = channel();
    let (place, _is_alone) = line.join(&buffer.bound, 1, me.clone());
    serve(buffer, line);
    match patience {
        Patience::Waits => {}
        Patience::GivesUp => {
            let has_left = line.leave(&buffer.bound, place);
            tell_of_room(buffer, line);
            if has_left {
                assert!(answers.try_recv().is_err(), "a writer that left gets no answer");
                return false;
            }
            assert_eq!(answers.try_recv(), Ok(Answer::Granted), "the answer came before");
        }
        Patience::Dies => {
            line.forget(&buffer.bound, place);
            tell_of_room(buffer, line);
            return false;
        }
    }
    loop {
        if let Patience::Waits = patience {
            assert_eq!(answers.recv(), Ok(Answer::Granted));
        }
        if line.take(place).is_some() {
            let stored = buffer.put_as(Access::with_room, key, key).expect("the buffer runs");
            assert_ne!(stored, Stored::Full, "it has room");
            buffer.assert_bounded();
            serve(buffer, line);
            tell_of_room(buffer, line);
            return true;
        }
        // The grant lapsed.
        line.rejoin(&buffer.bound, place, 1, me.clone());
        serve(buffer, line);
        if let Patience::GivesUp = patience {
            line.forget(&buffer.bound, place);
            tell_of_room(buffer, line);
            return false;
        }
    }
}

/// Lets writers run that write each of their keys, while `release` makes room until they are done, or
/// lets grants lapse. Shuttle fails if a writer waits for ever.
fn with_line(
    buffer: &Arc<Buffer>,
    writers: &[(Vec<i64>, Patience)],
    release: impl FnOnce(&Buffer, &Line, &dyn Fn() -> bool) + Send + 'static,
) {
    let (line, left) = (Arc::new(Line::default()), Arc::new(AtomicUsize::new(writers.len())));
    let writers: Vec<_> = writers
        .iter()
        .map(|(keys, patience)| {
            let (keys, patience, line, left) = (keys.clone(), *patience, line.clone(), left.clone());
            spawn(buffer, move |buffer| {
                keys.iter().for_each(|&key| {
                    write_or_wait(buffer, &line, key, patience);
                });
                left.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    let other = spawn(buffer, {
        let line = line.clone();
        move |buffer| release(buffer, &line, &|| left.load(Ordering::SeqCst) == 0)
    });
    writers.into_iter().for_each(join);
    join(other);
    assert!(line.is_empty());
    buffer.assert_counted(true);
    assert!(buffer.bound.clear(), "the buffer is empty and counts as full");
    assert!(buffer.bound.fill());
}

#[test]
fn a_writer_that_waits_gets_in_when_an_entry_leaves() {
    check(|| {
        let buffer = start(1, 1);
        assert_eq!(buffer.write_key(1), Stored::Stored);
        let lease = buffer.lease(1).expect("the entry is in flight");
        with_line(&buffer, &[(vec![2], Patience::Waits)], move |buffer, line, _is_done| {
            buffer.succeed(lease);
            tell_of_room(buffer, line);
        });
    });
}

#[test]
fn writers_that_wait_get_in_when_entries_are_deleted_or_a_list_needs_less() {
    check(|| {
        let buffer = start(1, 2);
        assert_eq!(buffer.write_key(1), Stored::Stored);
        assert!(buffer.bound.reserve(1));
        with_line(&buffer, &[(vec![2], Patience::Waits), (vec![3], Patience::Waits)], |buffer, line, _is_done| {
            buffer.delete(1);
            tell_of_room(buffer, line);
            buffer.bound.release(1);
            tell_of_room(buffer, line);
        });
    });
}

#[test]
fn a_writer_gets_the_room_of_those_that_give_up_or_die_before_it() {
    check(|| {
        let buffer = start(1, 1);
        assert_eq!(buffer.write_key(1), Stored::Stored);
        let writers = [(vec![2], Patience::GivesUp), (vec![3], Patience::Dies), (vec![4], Patience::Waits)];
        with_line(&buffer, &writers, process_until);
    });
}

#[test]
fn a_writer_whose_grant_lapses_waits_again_and_gets_in() {
    check(|| {
        let buffer = start(1, 1);
        assert_eq!(buffer.write_key(1), Stored::Stored);
        let writers = [2, 3].map(|key| (vec![key], Patience::Waits));
        with_line(&buffer, &writers, |buffer, line, is_done| {
            for _ in 0..3 {
                line.lapse(&buffer.bound, Duration::ZERO);
                tell_of_room(buffer, line);
            }
            process_until(buffer, line, is_done);
        });
    });
}

/// Processes all entries until the writers are done.
fn process_until(buffer: &Buffer, line: &Line, is_done: &dyn Fn() -> bool) {
    while !is_done() {
        while let Some(lease) = buffer.lease(2) {
            buffer.succeed(lease);
            tell_of_room(buffer, line);
        }
        shuttle::thread::yield_now();
    }
}

#[test]
fn writers_that_wait_all_get_in_as_long_as_entries_leave() {
    check(|| {
        let buffer = start(1, 2);
        let writers = [vec![1, 2], vec![3, 4], vec![5]].map(|keys| (keys, Patience::Waits));
        with_line(&buffer, &writers, process_until);
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
            buffer.bound.set_limits(limits(Some(100)));
        }
        buffer.partitions.iter().for_each(|partition| partition.set_bounded(is_bounded));
        if !is_bounded {
            buffer.bound.set_limits(limits(None));
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
    flushes.push(contents(&frozen, |record| record.key.term.content().1));
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
