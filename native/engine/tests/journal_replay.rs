//! The format of the journal, and the entries that a log holds.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use common::journal::{all_seen, record, replay_bytes, sample, seen, Log, Seen, KINDS, OLD};
use common::Random;
use partitioned_buffer_engine::journal::block::{self, Place, Stretch, HEAD, VERSION};
use partitioned_buffer_engine::journal::record::{records, EntryPlace, Malformed, Record, RunOf, SavedVersion};
use partitioned_buffer_engine::journal::replay::{Content, Damage, Kind, Replayed, Saved};

fn at(generation: u64, id: u32) -> EntryPlace {
    EntryPlace { generation, shard: 0, id }
}

fn run(generation: u64, first: u32, length: u32) -> RunOf {
    RunOf { generation, shard: 0, first, length }
}

fn value<'b>(generation: u64, id: u32, key: &'b str, value: &'b str) -> Record<'b> {
    let version = SavedVersion::Int(0);
    let (key, value) = (key.as_bytes(), value.as_bytes());
    Record::Value { place: at(generation, id), attempts: 0, updates: 0, version, key, value }
}

fn sum(generation: u64, id: u32, key: &str, sum: i128) -> Record<'_> {
    let key = key.as_bytes();
    Record::Sum { place: at(generation, id), attempts: 0, absorbs: false, sum, count: 1, key }
}

fn absorbing(generation: u64, id: u32, key: &str, sum: i128) -> Record<'_> {
    let key = key.as_bytes();
    Record::Sum { place: at(generation, id), attempts: 0, absorbs: true, sum, count: 1, key }
}

fn done(generation: u64) -> Record<'static> {
    Record::Done { run: run(generation, 1, 1) }
}

fn item(generation: u64, id: u32, origin: Option<EntryPlace>, item: &str) -> Record<'_> {
    Record::Item { place: at(generation, id), attempts: 0, origin, item: item.as_bytes() }
}

/// An entry in short: its place, its attempts, and its key and value, key and sum, or item.
fn short(saved: &Saved) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let what = match saved.content {
        Content::Value { key, value, .. } => format!("{}={}", text(key), text(value)),
        Content::Sum { sum, count, key } => format!("{}+{sum}/{count}", text(key)),
        Content::Item { item } => text(item),
    };
    format!("{}.{}x{} {what}", saved.place.generation, saved.place.id, saved.attempts)
}

/// The entries that a log of one block holds, in short, those given up behind a `|`.
fn fold(kind: Kind, records: &[Record]) -> String {
    let mut log = Log::start(1);
    log.write(0, records);
    let replayed = log.replay(kind);
    assert_eq!((replayed.damaged_records, replayed.records), (0, records.len()));
    let shorts = |entries: &[Saved]| entries.iter().map(short).collect::<Vec<_>>().join(", ");
    let given_up = if replayed.given_up.is_empty() { "" } else { " | " };
    // Reading all of it twice changes nothing.
    let mut doubled = log.clone();
    doubled.write(0, records);
    let twice = doubled.replay(kind);
    assert_eq!((&twice.entries, &twice.given_up), (&replayed.entries, &replayed.given_up));
    format!("{}{given_up}{}", shorts(&replayed.entries), shorts(&replayed.given_up))
}

/// The entries, in short.
fn keys(replayed: &Replayed) -> Vec<String> {
    replayed.entries.iter().map(short).collect()
}

#[test]
fn records_are_read_as_they_were_written() {
    let mut random = Random(1);
    let pool: Vec<Vec<u8>> = [0, 1, 3, 127, 128, 5_000].map(|length| vec![length as u8; length]).into();
    for _ in 0..2_000 {
        let written: Vec<Record> = (0..random.below(6)).map(|_| record(&mut random, &pool)).collect();
        let mut payload = Vec::new();
        let mut ends = vec![0];
        for record in &written {
            record.write(&mut payload);
            ends.push(payload.len());
        }
        let read: Vec<_> = records(&payload).collect();
        assert_eq!(read, written.iter().map(|record| Ok(*record)).collect::<Vec<_>>());
        // A cut leaves the records before it, and an error unless it is between two.
        let cut = random.below(payload.len() as u64 + 1) as usize;
        let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
        let read: Vec<_> = records(&payload[..cut]).collect();
        assert_eq!(read.len(), whole + usize::from(!ends.contains(&cut)));
        assert!(read[..whole].iter().zip(&written).all(|(read, written)| *read == Ok(*written)));
        assert!(read[whole..].iter().all(|read| *read == Err(Malformed)));
    }
}

#[test]
fn extreme_numbers_are_read_as_they_were_written() {
    for sum in [0, 1, -1, 63, 64, -64, -65, i128::MAX, i128::MIN] {
        for count in [0, 127, 128, u128::MAX] {
            let place = EntryPlace { generation: u64::MAX, shard: 255, id: u32::MAX };
            let record = Record::Sum { place, attempts: u32::MAX, absorbs: true, sum, count, key: &[] };
            let mut payload = Vec::new();
            record.write(&mut payload);
            assert_eq!(records(&payload).collect::<Vec<_>>(), [Ok(record)]);
        }
    }
}

#[test]
fn numbers_beyond_their_field_and_unknown_kinds_are_malformed() {
    let mut ended = vec![10];
    ended.extend([0xff; 9]);
    for (last, is_read) in [(1, true), (2, false), (0x81, false)] {
        let payload = [&ended[..], &[last]].concat();
        assert_eq!(records(&payload).next().unwrap().is_ok(), is_read, "{last}");
    }
    // A sum with a count of 128 bits, and of more.
    for (last, is_read) in [(3, true), (4, false)] {
        let payload = [&[4, 0, 0, 0, 0, 0, 0][..], &[0xff; 18], &[last, 0]].concat();
        assert_eq!(records(&payload).next().unwrap().is_ok(), is_read, "{last}");
    }
    let endless = [&[10][..], &[0x80; 30]].concat();
    // An item that claims almost all memory, and one without its last byte.
    let claims = [&[5, 1, 0, 1, 0, 0][..], &[0xff; 8], &[0x7f]].concat();
    for payload in [&[0][..], &[11], &[255], &endless, &claims, &[5, 1, 0, 1, 0, 0, 2, b'a'], &[5, 1, 0, 1, 0, 2, 0]] {
        assert_eq!(records(payload).collect::<Vec<_>>(), [Err(Malformed)], "{payload:?}");
    }
}

#[test]
fn the_last_record_of_a_place_counts() {
    assert_eq!(fold(Kind::Map, &[value(1, 1, "a", "1"), value(1, 1, "a", "2")]), "1.1x0 a=2");
    // The id is reused by another key.
    assert_eq!(fold(Kind::Map, &[value(1, 1, "a", "1"), value(1, 1, "b", "2")]), "1.1x0 b=2");
    assert_eq!(fold(Kind::Counter, &[sum(1, 1, "a", 1), sum(1, 1, "a", 5)]), "1.1x0 a+5/1");
    assert_eq!(fold(Kind::Queue, &[item(1, 1, None, "a"), item(1, 1, None, "b")]), "1.1x0 b");
}

#[test]
fn entries_in_different_shards_generations_and_partitions_are_different() {
    let mut log = Log::start(1);
    let shard = |shard| Record::Item {
        place: EntryPlace { generation: 1, shard, id: 1 },
        attempts: 0,
        origin: None,
        item: if shard == 0 { b"a" } else { b"b" },
    };
    log.write(1, &[item(2, 1, None, "later"), shard(1), shard(0)]);
    log.write(0, &[item(1, 1, None, "other")]);
    assert_eq!(keys(&log.replay(Kind::Queue)), ["1.1x0 other", "1.1x0 a", "1.1x0 b", "2.1x0 later"]);
    log.write(1, &[Record::Done { run: run(1, 1, 1) }]);
    assert_eq!(keys(&log.replay(Kind::Queue)), ["1.1x0 other", "1.1x0 b", "2.1x0 later"]);
    log.write(1, &[Record::Ended { generation: 1 }]);
    assert_eq!(keys(&log.replay(Kind::Queue)), ["1.1x0 other", "2.1x0 later"]);
    let last = EntryPlace { generation: u64::MAX, shard: u8::MAX, id: u32::MAX };
    log.write(0, &[Record::Item { place: last, attempts: 0, origin: None, item: b"last" }]);
    assert_eq!(log.replay(Kind::Queue).entries.len(), 3);
    log.write(0, &[Record::Ended { generation: u64::MAX }]);
    assert_eq!(keys(&log.replay(Kind::Queue)), ["2.1x0 later"]);
}

#[test]
fn what_is_gone_done_or_ended_was_written_before() {
    let all = [value(1, 1, "a", "1"), value(1, 2, "b", "2"), value(1, 3, "c", "3"), value(2, 1, "d", "4")];
    for removal in [Record::Gone { run: run(1, 2, 2) }, Record::Done { run: run(1, 2, 2) }] {
        let before = [&all[..], &[removal]].concat();
        assert_eq!(fold(Kind::Map, &before), "1.1x0 a=1, 2.1x0 d=4");
        let after = [&before[..], &[value(1, 2, "e", "5")]].concat();
        assert_eq!(fold(Kind::Map, &after), "1.1x0 a=1, 1.2x0 e=5, 2.1x0 d=4");
    }
    let ended = [&all[..], &[Record::Ended { generation: 1 }]].concat();
    assert_eq!(fold(Kind::Map, &ended), "2.1x0 d=4");
    // Runs of no entry, of all, and beyond the last id.
    for (first, length, left) in [(1, 0, 3), (0, u32::MAX, 0), (2, u32::MAX, 1), (u32::MAX, u32::MAX, 3)] {
        let mut log = Log::start(1);
        log.write(0, &[&all[..3], &[Record::Done { run: run(1, first, length) }]].concat());
        assert_eq!(log.replay(Kind::Map).entries.len(), left, "{first} {length}");
    }
}

#[test]
fn a_call_sets_the_attempts_of_the_entries_that_are_there() {
    let began = |attempts| Record::Began { run: run(1, 1, 2), attempts };
    let history = [value(1, 1, "a", "1"), began(1), value(1, 2, "b", "2"), value(1, 3, "c", "3"), began(2)];
    assert_eq!(fold(Kind::Map, &history), "1.1x2 a=1, 1.2x2 b=2, 1.3x0 c=3");
    assert_eq!(fold(Kind::Map, &[&history[..], &[value(1, 1, "d", "4")]].concat()), "1.1x0 d=4, 1.2x2 b=2, 1.3x0 c=3");
}

#[test]
fn a_key_of_a_map_has_the_value_of_its_highest_generation() {
    assert_eq!(fold(Kind::Map, &[value(1, 1, "a", "old"), value(2, 9, "a", "new")]), "2.9x0 a=new");
    assert_eq!(fold(Kind::Map, &[value(2, 9, "a", "new"), value(1, 1, "a", "old")]), "2.9x0 a=new");
    // Without the newer entry, the older one remains: it is in flight.
    let deleted = [value(1, 1, "a", "old"), value(2, 9, "a", "new"), Record::Gone { run: run(2, 9, 1) }];
    assert_eq!(fold(Kind::Map, &deleted), "1.1x0 a=old");
}

#[test]
fn within_a_generation_the_last_record_of_a_key_counts() {
    for (first, second) in [(1, 2), (2, 1)] {
        assert_eq!(
            fold(Kind::Map, &[value(1, first, "a", "old"), value(1, second, "a", "new")]),
            format!("1.{second}x0 a=new")
        );
        assert_eq!(
            fold(Kind::Counter, &[sum(1, first, "a", 1), sum(1, second, "a", 2)]),
            format!("1.{second}x0 a+2/1")
        );
    }
}

#[test]
fn an_entry_given_up_stays_beside_a_newer_one_until_its_dead_letter_is_written() {
    let given_up = [value(1, 1, "a", "old"), Record::GivenUp { run: run(1, 1, 1) }, value(2, 9, "a", "new")];
    assert_eq!(fold(Kind::Map, &given_up), "2.9x0 a=new | 1.1x0 a=old");
    for removal in [Record::Gone { run: run(1, 1, 1) }, Record::Done { run: run(1, 1, 1) }] {
        assert_eq!(fold(Kind::Map, &[&given_up[..], &[removal]].concat()), "2.9x0 a=new");
    }
    // A later entry in the place was not given up.
    assert_eq!(fold(Kind::Map, &[&given_up[..2], &[value(1, 1, "b", "2")]].concat()), "1.1x0 b=2");
}

#[test]
fn the_sums_of_a_key_are_added_up() {
    let began = Record::Began { run: run(1, 1, 1), attempts: 4 };
    assert_eq!(
        fold(Kind::Counter, &[sum(1, 1, "a", 5), began, sum(2, 1, "b", 1), sum(2, 2, "a", -2), sum(3, 7, "a", 10)]),
        "2.1x0 b+1/1, 3.7x4 a+13/3"
    );
    let most =
        Record::Sum { place: at(1, 1), attempts: 0, absorbs: false, sum: i128::MAX, count: u128::MAX, key: b"a" };
    let saturated = format!("2.1x0 a+{}/{}", i128::MAX, u128::MAX);
    assert_eq!(fold(Kind::Counter, &[most, sum(2, 1, "a", 3)]), saturated);
}

#[test]
fn a_sum_that_absorbs_contains_those_of_all_generations_before() {
    // Nothing is counted twice, whether the failed sum is done or not, and in any order of the log.
    assert_eq!(fold(Kind::Counter, &[sum(1, 1, "a", 5), absorbing(2, 1, "a", 8)]), "2.1x0 a+8/1");
    assert_eq!(fold(Kind::Counter, &[sum(1, 1, "a", 5), absorbing(2, 1, "a", 8), done(1)]), "2.1x0 a+8/1");
    assert_eq!(fold(Kind::Counter, &[absorbing(2, 1, "a", 8), sum(1, 1, "a", 5)]), "2.1x0 a+8/1");
    // Other keys are not in it, and later generations.
    let others = [sum(2, 2, "b", 1), absorbing(3, 1, "a", 8), sum(2, 3, "c", 1), sum(4, 1, "a", 5)];
    assert_eq!(fold(Kind::Counter, &others), "2.2x0 b+1/1, 2.3x0 c+1/1, 4.1x0 a+13/2");
    // The log may lack the generation between.
    assert_eq!(fold(Kind::Counter, &[sum(1, 1, "a", 5), absorbing(3, 1, "a", 8)]), "3.1x0 a+8/1");
    // A chain, whose middle may be done.
    let chain = [sum(1, 1, "a", 5), absorbing(2, 1, "a", 7), absorbing(3, 1, "a", 8)];
    assert_eq!(fold(Kind::Counter, &chain), "3.1x0 a+8/1");
    assert_eq!(fold(Kind::Counter, &[&chain[..2], &[done(2)], &chain[2..]].concat()), "3.1x0 a+8/1");
    // It remains absorbed if the newer sum is delivered or deleted.
    for removal in [done(2), Record::Gone { run: run(2, 1, 1) }, Record::Ended { generation: 2 }] {
        assert_eq!(fold(Kind::Counter, &[sum(1, 1, "a", 5), absorbing(2, 1, "a", 8), removal]), "");
    }
    assert_eq!(fold(Kind::Counter, &[absorbing(0, 1, "a", 8)]), "0.1x0 a+8/1");
}

#[test]
fn a_sum_given_up_is_neither_added_nor_absorbed() {
    let given_up = Record::GivenUp { run: run(1, 1, 1) };
    assert_eq!(fold(Kind::Counter, &[sum(1, 1, "a", 5), given_up, sum(2, 1, "a", 8)]), "2.1x0 a+8/1 | 1.1x0 a+5/1");
    assert_eq!(
        fold(Kind::Counter, &[sum(1, 1, "a", 5), given_up, absorbing(2, 1, "a", 8)]),
        "2.1x0 a+8/1 | 1.1x0 a+5/1"
    );
}

#[test]
fn items_are_in_the_order_of_generations_and_ids() {
    let items = [item(2, 0, None, "c"), item(1, 2, None, "b"), item(1, 1, None, "a"), item(2, 1, None, "d")];
    assert_eq!(fold(Kind::Queue, &items), "1.1x0 a, 1.2x0 b, 2.0x0 c, 2.1x0 d");
}

#[test]
fn an_item_that_waits_again_replaces_the_failed_one() {
    let failed = [item(1, 1, None, "a"), item(1, 2, None, "b")];
    let again = item(2, 7, Some(at(1, 1)), "a");
    assert_eq!(fold(Kind::Queue, &[&failed[..], &[again]].concat()), "1.2x0 b, 2.7x0 a");
    assert_eq!(fold(Kind::Queue, &[&[again], &failed[..]].concat()), "1.2x0 b, 2.7x0 a");
    assert_eq!(fold(Kind::Queue, &[&failed[..], &[done(1), again]].concat()), "1.2x0 b, 2.7x0 a");
    let given_up = Record::GivenUp { run: run(1, 1, 1) };
    assert_eq!(fold(Kind::Queue, &[&failed[..], &[given_up, again]].concat()), "1.2x0 b, 2.7x0 a");
    // No item replaces itself, or a later one.
    assert_eq!(
        fold(Kind::Queue, &[item(1, 1, Some(at(1, 1)), "a"), item(1, 2, Some(at(2, 1)), "b")]),
        "1.1x0 a, 1.2x0 b"
    );
}

#[test]
fn the_highest_complete_epoch_counts() {
    let mut log = Log::start(4);
    log.write(0, &[Record::Opened { partitions: 2 }, value(1, 1, "a", "old"), value(1, 2, "b", "old")]);
    // A copy that is unfinished.
    log.next_segment();
    log.epoch = 6;
    log.write(0, &[Record::Opened { partitions: 3 }, value(1, 1, "a", "new")]);
    let replayed = log.replay(Kind::Map);
    assert_eq!((replayed.epoch, replayed.partitions, replayed.records), (6, Some(2), 3));
    assert_eq!(keys(&replayed), ["1.1x0 a=old", "1.2x0 b=old"]);
    // The old epoch goes on.
    log.next_segment();
    log.epoch = 4;
    log.write(0, &[value(1, 2, "b", "newer")]);
    assert_eq!(keys(&log.replay(Kind::Map)), ["1.1x0 a=old", "1.2x0 b=newer"]);
    log.next_segment();
    log.epoch = 6;
    // Not yet: it has lost a block, or has one that was not copied.
    let Record::Complete { first, bytes } = log.complete(0) else { panic!() };
    for bytes in [bytes + 1, bytes - 1] {
        log.write(1, &[Record::Complete { first, bytes }]);
        assert_eq!(keys(&log.replay(Kind::Map)), ["1.1x0 a=old", "1.2x0 b=newer"]);
    }
    log.next_segment();
    log.write(0, &[value(1, 1, "a", "new")]);
    let complete = log.complete(4);
    log.write(1, &[complete]);
    let replayed = log.replay(Kind::Map);
    assert_eq!((replayed.partitions, replayed.records), (Some(3), 6));
    assert_eq!(keys(&replayed), ["1.1x0 a=new"]);
    // The next copy, unfinished.
    log.next_segment();
    log.epoch = 7;
    log.write(0, &[Record::Opened { partitions: 1 }]);
    let replayed = log.replay(Kind::Map);
    assert_eq!((replayed.epoch, replayed.partitions, keys(&replayed)), (7, Some(3), vec!["1.1x0 a=new".into()]));
    // An old segment whose epoch is complete as well.
    log.segments.insert(0, (0, Vec::new()));
    let payload = &mut Vec::new();
    Record::Complete { first: 0, bytes: 0 }.write(payload);
    let head = block::head(Place { partition: 0, epoch: 2, segment: 0, offset: 0 }, payload);
    log.segments[0].1 = [&head[..], payload].concat();
    assert_eq!(keys(&log.replay(Kind::Map)), ["1.1x0 a=new"]);
}

#[test]
fn an_empty_log_holds_nothing() {
    for kind in KINDS {
        assert_eq!(Log::default().replay(kind), Replayed::default());
        assert_eq!(Log::start(1).replay(kind), Replayed::default());
    }
}

#[test]
fn the_last_tail_of_an_epoch_is_torn_and_that_of_an_earlier_segment_is_damaged() {
    for tail in [&[0; 700][..], b"PBJ", &[7; 40]] {
        let bytes = tail.len() as u64;
        let mut log = Log::start(1);
        log.write(0, &[value(1, 1, "a", "1")]);
        let end = log.segments[0].1.len() as u64;
        log.segments[0].1.extend_from_slice(tail);
        let torn = log.replay(Kind::Map);
        assert_eq!((torn.torn_bytes, torn.damaged.len(), keys(&torn).len()), (bytes, 0, 1));
        // The first segment of a copy does not make it damaged, but one of the epoch does.
        log.next_segment();
        log.epoch = 2;
        log.write(0, &[value(1, 1, "a", "1")]);
        log.segments[1].1.extend_from_slice(tail);
        let torn = log.replay(Kind::Map);
        assert_eq!((torn.torn_bytes, torn.damaged.len()), (2 * bytes, 0));
        log.next_segment();
        log.epoch = 1;
        log.write(0, &[value(1, 2, "b", "2")]);
        let damaged = log.replay(Kind::Map);
        assert_eq!(damaged.damaged, [Damage { segment: 1, offset: end, bytes }]);
        assert_eq!((damaged.torn_bytes, keys(&damaged).len()), (bytes, 2));
        // A file without any block is damaged, unless its first block may have been interrupted.
        log.next_segment();
        log.segments[3].1.extend_from_slice(tail);
        let replayed = log.replay(Kind::Map);
        if tail[0] == 7 {
            assert_eq!(replayed.damaged[1], Damage { segment: 4, offset: 0, bytes });
        } else {
            assert_eq!((replayed.damaged.len(), replayed.torn_bytes), (1, 2 * bytes));
        }
    }
}

#[test]
fn the_first_block_of_a_segment_may_be_torn_and_is_damaged_if_it_is_whole() {
    let mut log = Log::start(1);
    log.write(0, &[value(1, 1, "a", "1")]);
    let whole = log.segments[0].1.clone();
    for length in 1..whole.len() {
        log.segments[0].1 = whole[..length].to_vec();
        let torn = log.replay(Kind::Map);
        assert_eq!((torn.torn_bytes, torn.damaged.len()), (length as u64, 0), "the first segment of all");
    }
    log.segments[0].1 = whole.clone();
    *log.segments[0].1.last_mut().unwrap() ^= 1;
    assert_eq!(log.replay(Kind::Map).damaged, [Damage { segment: 1, offset: 0, bytes: whole.len() as u64 }]);

    // Between two epochs, as after a second crash, it is torn; within one it is damaged.
    let mut log = Log::start(1);
    log.write(0, &[value(1, 1, "a", "1")]);
    log.next_segment();
    log.write(0, &[value(1, 2, "b", "2")]);
    log.segments[1].1.pop();
    let bytes = log.segments[1].1.len() as u64;
    log.next_segment();
    log.epoch = 2;
    log.write(0, &[value(1, 1, "a", "1")]);
    let torn = log.replay(Kind::Map);
    assert_eq!((torn.torn_bytes, torn.damaged.len(), keys(&torn).len()), (bytes, 0, 1));
    log.next_segment();
    log.epoch = 1;
    log.write(0, &[value(1, 3, "c", "3")]);
    assert_eq!(log.replay(Kind::Map).damaged, [Damage { segment: 2, offset: 0, bytes }]);
}

#[test]
fn a_record_that_cannot_be_read_ends_its_block_only() {
    let mut log = Log::start(1);
    let mut payload = Vec::new();
    value(1, 1, "a", "1").write(&mut payload);
    payload.push(99);
    value(1, 2, "b", "2").write(&mut payload);
    log.write_payload(0, &payload);
    log.write(0, &[value(1, 3, "c", "3")]);
    let replayed = log.replay(Kind::Map);
    assert_eq!((replayed.damaged_records, replayed.records), (1, 2));
    assert_eq!(keys(&replayed), ["1.1x0 a=1", "1.3x0 c=3"]);
    assert_eq!((replayed.torn_bytes, replayed.damaged.len()), (0, 0));
}

#[test]
fn records_of_another_kind_are_counted_and_left_out() {
    for (kind, kept) in [(Kind::Map, "1.1x0 a=1"), (Kind::Counter, "1.1x0 a+1/1"), (Kind::Queue, "1.1x0 a")] {
        let mut log = Log::start(1);
        log.write(0, &[value(1, 1, "a", "1"), sum(1, 1, "a", 1), item(1, 1, None, "a")]);
        let replayed = log.replay(kind);
        assert_eq!((replayed.damaged_records, replayed.records, keys(&replayed)), (2, 1, vec![kept.into()]));
    }
}

/// The log with another format in the head of its last block.
fn with_format(mut log: Log, version: u8) -> Log {
    let (segment, offset, length) = *log.blocks.last().unwrap();
    let bytes = &mut log.segments[segment].1[offset..offset + length];
    bytes[3] = version;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..4]);
    hasher.update(&bytes[8..]);
    bytes[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
    log
}

#[test]
fn a_block_of_a_newer_format_is_reported_unless_it_is_damaged() {
    let mut log = Log::start(1);
    log.write(0, &[value(1, 1, "a", "1")]);
    log.write(0, &[value(1, 2, "b", "2")]);
    assert_eq!(with_format(log.clone(), VERSION).replay(Kind::Map), log.replay(Kind::Map));
    let newer = with_format(log.clone(), VERSION + 3);
    let replayed = newer.replay(Kind::Map);
    assert_eq!((replayed.newer_format, replayed.torn_bytes), (Some(VERSION + 3), 0));
    let mut damaged = newer.clone();
    *damaged.segments[0].1.last_mut().unwrap() ^= 1;
    assert_eq!(damaged.replay(Kind::Map).newer_format, None);
    assert!(with_format(log, 0).replay(Kind::Map).torn_bytes > 0, "there was no format 0");
}

#[test]
fn a_copy_of_a_block_in_a_value_is_not_taken_for_a_block() {
    let mut log = Log::start(1);
    log.write(0, &[value(1, 1, "a", "1")]);
    let copy = log.segments[0].1.clone();
    let copies = [&copy[..], &copy].concat();
    let place = at(1, 2);
    let holds =
        Record::Value { place, attempts: 0, updates: 0, version: SavedVersion::Int(0), key: b"b", value: &copies };
    log.write(0, &[holds]);
    log.write(0, &[value(1, 3, "c", "3")]);
    // The block whose value it is, is damaged: each byte of its head, and some of the payload.
    let (_segment, offset, length) = log.blocks[1];
    for byte in (0..HEAD).chain([length - 1]) {
        let mut log = log.clone();
        log.segments[0].1[offset + byte] ^= 0x10;
        let replayed = log.replay(Kind::Map);
        assert_eq!(keys(&replayed), ["1.1x0 a=1", "1.3x0 c=3"]);
        assert_eq!(replayed.damaged, [Damage { segment: 1, offset: offset as u64, bytes: length as u64 }]);
    }
    // The copy is where the end of the file was: a block is at the offset in its head.
    log.segments[0].1.extend_from_slice(&copies);
    assert_eq!(log.replay(Kind::Map).torn_bytes, copies.len() as u64);
}

#[test]
fn a_segment_under_another_number_is_damaged() {
    let mut log = sample(Kind::Map, "v", 10, &mut Random(1));
    log.segments[1].0 = 9;
    let bytes = log.segments[1].1.len() as u64;
    assert_eq!(log.replay(Kind::Map).damaged, [Damage { segment: 9, offset: 0, bytes }]);
}

#[test]
fn heads_that_claim_much_take_no_quadratic_time() {
    // Heads in a row, each of which claims the rest of the file, but has a wrong checksum. With a
    // checksum over each, this would take minutes.
    let length = 4 << 20;
    let mut bytes = Vec::with_capacity(length + HEAD);
    while bytes.len() < length {
        let offset = bytes.len();
        let place = Place { partition: 0, epoch: 1, segment: 1, offset: offset as u64 };
        let mut head = block::head(place, &[]);
        head[8..12].copy_from_slice(&(length.saturating_sub(offset) as u32 / 2).to_le_bytes());
        bytes.extend_from_slice(&head);
    }
    let all = bytes.len() as u64;
    assert_eq!(block::read(1, &bytes).collect::<Vec<_>>(), [Stretch::Damaged { offset: 0, bytes: all }]);
}

/// Checks a replay of a damaged log: each entry was written.
fn assert_written(log: &Log, kind: Kind, written: &std::collections::HashSet<Seen>) {
    let replayed = log.replay(kind);
    for saved in replayed.entries.iter().chain(&replayed.given_up) {
        for seen in seen(saved) {
            assert!(written.contains(&seen), "{saved:?} was written");
        }
    }
}

/// Checks a damaged log against the original: exactly the blocks in which no byte is changed count,
/// and the damage is exactly the others.
fn assert_whole_blocks(original: &Log, damaged: &Log, kind: Kind) {
    let mut only_whole = original.clone();
    let mut expected: Vec<Damage> = Vec::new();
    let mut last_used = None;
    for &(index, offset, length) in &original.blocks {
        let (segment, bytes) = &damaged.segments[index];
        let block = offset..offset + length;
        if bytes.get(block.clone()) == Some(&original.segments[index].1[block.clone()]) {
            last_used = Some(*segment);
            continue;
        }
        only_whole.segments[index].1[block.clone()].fill(0);
        let (offset, bytes) = (offset as u64, bytes.len().min(block.end).saturating_sub(offset) as u64);
        match expected.last_mut() {
            Some(last) if last.segment == *segment && last.offset + last.bytes == offset => last.bytes += bytes,
            _ if bytes > 0 => expected.push(Damage { segment: *segment, offset, bytes }),
            _ => {}
        }
    }
    let is_torn = |damage: &Damage| {
        let (_segment, bytes) = damaged.segments.iter().find(|(segment, _bytes)| *segment == damage.segment).unwrap();
        // A segment whose first block is cut, and none of the epoch behind it.
        let (_segment, before) = original.segments.iter().find(|(segment, _)| *segment == damage.segment).unwrap();
        let is_begun = damage.offset == 0
            && last_used < Some(damage.segment)
            && (before.starts_with(bytes) || bytes.iter().all(|byte| *byte == 0));
        is_begun || last_used == Some(damage.segment) && damage.offset + damage.bytes == bytes.len() as u64
    };
    let (torn, expected): (Vec<Damage>, Vec<Damage>) = expected.into_iter().partition(is_torn);
    let replayed = damaged.replay(kind);
    let whole = only_whole.replay(kind);
    assert_eq!((&replayed.entries, &replayed.given_up), (&whole.entries, &whole.given_up), "whole blocks only");
    assert_eq!(replayed.damaged, expected, "the damage is exact");
    assert_eq!(replayed.torn_bytes, torn.iter().map(|torn| torn.bytes).sum::<u64>(), "so is the torn tail");
}

/// The number of blocks in a log whose bytes are all changed: some hundred records.
const BLOCKS: u64 = 24;

#[test]
fn a_log_cut_at_any_length_has_its_whole_blocks() {
    for kind in KINDS {
        let log = sample(kind, "v", BLOCKS, &mut Random(3));
        for cut in 0..log.segments.len() {
            for length in 0..=log.segments[cut].1.len() {
                // The end of this segment is missing, and either all that was written later or nothing.
                let mut rest = log.clone();
                rest.segments[cut].1.truncate(length);
                if length % 2 == 0 {
                    rest.segments[cut + 1..].iter_mut().for_each(|(_segment, bytes)| bytes.clear());
                }
                assert_whole_blocks(&log, &rest, kind);
            }
        }
    }
}

#[test]
fn a_log_with_any_byte_changed_has_its_other_blocks() {
    for kind in KINDS {
        let log = sample(kind, "v", BLOCKS, &mut Random(4));
        let mut random = Random(5);
        for &(index, offset, length) in &log.blocks {
            let block = offset..offset + length;
            let mut changed = log.clone();
            changed.segments[index].1[block.clone()].fill(0);
            assert_whole_blocks(&log, &changed, kind);
            let without = changed.clone();
            let without = without.replay(kind);
            changed.segments[index].1.clone_from(&log.segments[index].1);
            for at in block {
                for change in [1 << random.below(8), 1 + random.below(255) as u8] {
                    changed.segments[index].1[at] ^= change;
                    assert_eq!(changed.replay(kind), without, "byte {at} of {}", log.segments[index].0);
                    changed.segments[index].1[at] ^= change;
                }
            }
        }
    }
}

#[test]
fn a_log_with_any_sector_lost_or_old_has_only_what_was_written() {
    const SECTOR: usize = 512;
    for kind in KINDS {
        for seed in 0..6 {
            let log = sample(kind, "new", 4 * BLOCKS, &mut Random(seed));
            let old = sample(kind, OLD, 4 * BLOCKS, &mut Random(if seed % 2 == 0 { seed } else { 100 + seed }));
            let mut written = all_seen(&log);
            written.extend(all_seen(&old));
            for index in 0..log.segments.len() {
                for start in (0..log.segments[index].1.len()).step_by(SECTOR) {
                    let mut lost = log.clone();
                    let bytes = &mut lost.segments[index].1;
                    let sector = start..bytes.len().min(start + SECTOR);
                    bytes[sector.clone()].fill(0);
                    assert_whole_blocks(&log, &lost, kind);
                    let Some(old) = old.segments.get(index).and_then(|(_segment, old)| old.get(sector.clone())) else {
                        continue;
                    };
                    lost.segments[index].1[sector].copy_from_slice(old);
                    assert_written(&lost, kind, &written);
                }
            }
        }
    }
}

#[test]
fn any_bytes_can_be_replayed() {
    let mut random = Random(6);
    for _ in 0..300 {
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| (random.below(256) >> random.below(8)) as u8).collect();
        replay_bytes(&bytes);
    }
}

#[test]
fn behind_a_lost_block_nothing_has_moved() {
    let moved = [Record::Moved { run: run(1, 1, 1) }, Record::Ended { generation: 1 }];
    for record in moved {
        for (blocks, is_lost) in [(8, false), (7, false), (9, true), (20, true)] {
            let mut log = Log::start(1);
            log.write(0, &[Record::Follows { blocks: 7 }, value(1, 1, "a", "1")]);
            log.write(0, &[value(9, 1, "b", "2")]);
            log.write(0, &[Record::Follows { blocks }, record]);
            let expected = if is_lost { vec!["1.1x0 a=1", "9.1x0 b=2"] } else { vec!["9.1x0 b=2"] };
            assert_eq!(keys(&log.replay(Kind::Map)), expected);
            // Outcomes count.
            log.write(0, &[Record::Done { run: run(1, 1, 1) }]);
            assert_eq!(keys(&log.replay(Kind::Map)), ["9.1x0 b=2"]);
        }
    }
}

#[test]
fn a_value_that_is_gone_ended_the_older_ones_of_its_key() {
    let mut log = Log::start(1);
    log.write(0, &[value(1, 1, "a", "old"), value(1, 2, "b", "old"), value(2, 1, "a", "new")]);
    log.write(0, &[Record::Done { run: run(2, 1, 1) }]);
    assert_eq!(keys(&log.replay(Kind::Map)), ["1.2x0 b=old"]);
}

#[test]
fn an_item_that_waits_again_and_again_is_there_once() {
    let first = item(1, 1, None, "i");
    let again = |generation: u64| item(generation, 9, Some(at(1, 1)), "i");
    assert_eq!(fold(Kind::Queue, &[first, again(4)]), "4.9x0 i");
    assert_eq!(fold(Kind::Queue, &[first, again(4), again(2)]), "4.9x0 i");
    let last_is_done = [first, again(2), again(4), Record::Done { run: run(4, 9, 1) }];
    assert_eq!(fold(Kind::Queue, &last_is_done), "");
}
