//! Records: the statements of a block's payload about the entries of its partition.
//!
//! A record gives the state of an entry, and not the operation on it, so reading one twice changes nothing.
//! It consists of a byte for its kind and of its fields in their order. Numbers are little-endian
//! base 128, with the sign in the lowest bit if they have one, and bytes have their length in front.
//! The records of a payload follow each other without a gap.
//!
//! A reader trusts nothing: it copies no bytes, reserves no memory, and refuses an unknown kind, a
//! field that ends behind the payload, and a number that its field cannot have.

/// The first byte of a record.
mod tag {
    /// See [`Record::Opened`](super::Record::Opened).
    pub(super) const OPENED: u8 = 1;
    /// See [`Record::Complete`](super::Record::Complete).
    pub(super) const COMPLETE: u8 = 2;
    /// See [`Record::Value`](super::Record::Value).
    pub(super) const VALUE: u8 = 3;
    /// See [`Record::Sum`](super::Record::Sum).
    pub(super) const SUM: u8 = 4;
    /// See [`Record::Item`](super::Record::Item).
    pub(super) const ITEM: u8 = 5;
    /// See [`Record::Gone`](super::Record::Gone).
    pub(super) const GONE: u8 = 6;
    /// See [`Record::Began`](super::Record::Began).
    pub(super) const BEGAN: u8 = 7;
    /// See [`Record::GivenUp`](super::Record::GivenUp).
    pub(super) const GIVEN_UP: u8 = 8;
    /// See [`Record::Done`](super::Record::Done).
    pub(super) const DONE: u8 = 9;
    /// See [`Record::Ended`](super::Record::Ended).
    pub(super) const ENDED: u8 = 10;
    /// See [`Record::Moved`](super::Record::Moved).
    pub(super) const MOVED: u8 = 11;
    /// See [`Record::Follows`](super::Record::Follows).
    pub(super) const FOLLOWS: u8 = 12;
}

/// Where an entry is in its partition. A later entry may have the place of a deleted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryPlace {
    /// The number of flushes that the partition began before the entry's own one.
    pub generation: u64,
    /// The shard of the partition.
    pub shard: u8,
    /// The id in the store of the shard.
    pub id: u32,
}

/// Entries of a shard with consecutive ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunOf {
    /// Their generation.
    pub generation: u64,
    /// Their shard.
    pub shard: u8,
    /// The first id.
    pub first: u32,
    /// The number of ids.
    pub length: u32,
}

/// The version of a value. Integers of more than 64 bits are in the external term format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedVersion<'b> {
    /// An integer of 64 bits.
    Int(i64),
    /// An integer below those of 64 bits.
    Below(&'b [u8]),
    /// An integer above those of 64 bits.
    Above(&'b [u8]),
}

/// See the module's documentation. Keys, values and items are in the external term format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'b> {
    /// The number of partitions in this epoch.
    Opened {
        /// That number.
        partitions: u32,
    },
    /// The epoch holds all that earlier epochs held, if all its blocks are there that came before this
    /// record and from this segment on.
    Complete {
        /// The segment.
        first: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// An entry of a map.
    Value {
        /// Its place.
        place: EntryPlace,
        /// The calls of the processor that began with it.
        attempts: u32,
        /// The number of writes that it has replaced.
        updates: u64,
        /// Its version.
        version: SavedVersion<'b>,
        /// Its key.
        key: &'b [u8],
        /// Its value.
        value: &'b [u8],
    },
    /// An entry of a counter.
    Sum {
        /// Its place.
        place: EntryPlace,
        /// The calls of the processor that began with it.
        attempts: u32,
        /// Whether the sum contains those of the key's entries of earlier generations that are not done.
        absorbs: bool,
        /// Its sum.
        sum: i128,
        /// The number of its additions.
        count: u128,
        /// Its key.
        key: &'b [u8],
    },
    /// An entry of a queue.
    Item {
        /// Its place.
        place: EntryPlace,
        /// The calls of the processor that began with it.
        attempts: u32,
        /// The place of the same item before it waited again for the first time.
        origin: Option<EntryPlace>,
        /// The item.
        item: &'b [u8],
    },
    /// Entries were deleted.
    Gone {
        /// These entries.
        run: RunOf,
    },
    /// A call of the processor began with entries.
    Began {
        /// These entries.
        run: RunOf,
        /// Their attempts, with this call.
        attempts: u32,
    },
    /// The processor does not get entries again, but their dead letters are not written.
    GivenUp {
        /// These entries.
        run: RunOf,
    },
    /// Entries have their outcome.
    Done {
        /// These entries.
        run: RunOf,
    },
    /// Entries wait again under a later generation, or newer ones replaced them: earlier blocks have
    /// those.
    Moved {
        /// These entries.
        run: RunOf,
    },
    /// All entries of the partition in this and earlier generations are done, or have moved.
    Ended {
        /// The generation.
        generation: u64,
    },
    /// So many blocks were written before this one, but for those of outcomes on a full disk.
    Follows {
        /// That number.
        blocks: u64,
    },
}

impl Record<'_> {
    /// Writes the record behind what is in `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Record::Opened { partitions } => {
                out.push(tag::OPENED);
                write_number(out, partitions.into());
            }
            Record::Complete { first, bytes } => {
                out.push(tag::COMPLETE);
                write_number(out, first.into());
                write_number(out, bytes.into());
            }
            Record::Value { place, attempts, updates, version, key, value } => {
                out.push(tag::VALUE);
                write_place(out, place);
                write_number(out, attempts.into());
                write_number(out, updates.into());
                match version {
                    SavedVersion::Int(version) => {
                        out.push(0);
                        write_signed(out, version.into());
                    }
                    SavedVersion::Below(term) => {
                        out.push(1);
                        write_bytes(out, term);
                    }
                    SavedVersion::Above(term) => {
                        out.push(2);
                        write_bytes(out, term);
                    }
                }
                write_bytes(out, key);
                write_bytes(out, value);
            }
            Record::Sum { place, attempts, absorbs, sum, count, key } => {
                out.push(tag::SUM);
                write_place(out, place);
                write_number(out, attempts.into());
                out.push(absorbs.into());
                write_signed(out, sum);
                write_number(out, count);
                write_bytes(out, key);
            }
            Record::Item { place, attempts, origin, item } => {
                out.push(tag::ITEM);
                write_place(out, place);
                write_number(out, attempts.into());
                out.push(origin.is_some().into());
                if let Some(origin) = origin {
                    write_place(out, origin);
                }
                write_bytes(out, item);
            }
            Record::Gone { run } => write_run(out, tag::GONE, run),
            Record::Began { run, attempts } => {
                write_run(out, tag::BEGAN, run);
                write_number(out, attempts.into());
            }
            Record::GivenUp { run } => write_run(out, tag::GIVEN_UP, run),
            Record::Done { run } => write_run(out, tag::DONE, run),
            Record::Moved { run } => write_run(out, tag::MOVED, run),
            Record::Ended { generation } => {
                out.push(tag::ENDED);
                write_number(out, generation.into());
            }
            Record::Follows { blocks } => {
                out.push(tag::FOLLOWS);
                write_number(out, blocks.into());
            }
        }
    }
}

/// Writes a number.
#[inline]
fn write_number(out: &mut Vec<u8>, mut number: u128) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes a number with its sign.
fn write_signed(out: &mut Vec<u8>, number: i128) {
    write_number(out, (number << 1 ^ number >> 127) as u128);
}

/// Writes bytes and their length.
fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_number(out, bytes.len() as u128);
    out.extend_from_slice(bytes);
}

/// Writes a place.
fn write_place(out: &mut Vec<u8>, place: EntryPlace) {
    write_number(out, place.generation.into());
    out.push(place.shard);
    write_number(out, place.id.into());
}

/// Writes the start of a record about a run.
fn write_run(out: &mut Vec<u8>, tag: u8, run: RunOf) {
    out.push(tag);
    write_number(out, run.generation.into());
    out.push(run.shard);
    write_number(out, run.first.into());
    write_number(out, run.length.into());
}

/// The records of a payload.
pub fn records(payload: &[u8]) -> Records<'_> {
    Records { rest: payload }
}

/// A malformed record. The beginning of the next one is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// See [`records`]. A record that cannot be read is the last one.
#[derive(Clone, Debug)]
pub struct Records<'b> {
    /// The unread bytes.
    rest: &'b [u8],
}

impl<'b> Iterator for Records<'b> {
    type Item = Result<Record<'b>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_none() {
            self.rest = &[];
        }
        Some(record.ok_or(Malformed))
    }
}

impl<'b> Records<'b> {
    /// Reads a record.
    fn record(&mut self) -> Option<Record<'b>> {
        Some(match self.byte()? {
            tag::OPENED => Record::Opened { partitions: self.number()? },
            tag::COMPLETE => Record::Complete { first: self.number()?, bytes: self.number()? },
            tag::VALUE => Record::Value {
                place: self.place()?,
                attempts: self.number()?,
                updates: self.number()?,
                version: self.version()?,
                key: self.bytes()?,
                value: self.bytes()?,
            },
            tag::SUM => Record::Sum {
                place: self.place()?,
                attempts: self.number()?,
                absorbs: self.flag()?,
                sum: self.signed()?,
                count: self.number()?,
                key: self.bytes()?,
            },
            tag::ITEM => Record::Item {
                place: self.place()?,
                attempts: self.number()?,
                origin: if self.flag()? { Some(self.place()?) } else { None },
                item: self.bytes()?,
            },
            tag::GONE => Record::Gone { run: self.run()? },
            tag::BEGAN => Record::Began { run: self.run()?, attempts: self.number()? },
            tag::GIVEN_UP => Record::GivenUp { run: self.run()? },
            tag::DONE => Record::Done { run: self.run()? },
            tag::ENDED => Record::Ended { generation: self.number()? },
            tag::MOVED => Record::Moved { run: self.run()? },
            tag::FOLLOWS => Record::Follows { blocks: self.number()? },
            _ => return None,
        })
    }

    /// Reads a byte.
    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    /// Reads what is true or false.
    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// Reads a number.
    #[inline]
    fn number<N: TryFrom<u128>>(&mut self) -> Option<N> {
        let mut number = 0;
        for shift in (0..u128::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u128::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return N::try_from(number).ok();
            }
        }
        None
    }

    /// Reads a number with its sign.
    fn signed<N: TryFrom<i128>>(&mut self) -> Option<N> {
        let number: u128 = self.number()?;
        N::try_from((number >> 1) as i128 ^ -((number & 1) as i128)).ok()
    }

    /// Reads bytes.
    #[inline]
    fn bytes(&mut self) -> Option<&'b [u8]> {
        let length = self.number()?;
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(bytes)
    }

    /// Reads a place.
    #[inline]
    fn place(&mut self) -> Option<EntryPlace> {
        Some(EntryPlace { generation: self.number()?, shard: self.byte()?, id: self.number()? })
    }

    /// Reads a run.
    fn run(&mut self) -> Option<RunOf> {
        Some(RunOf { generation: self.number()?, shard: self.byte()?, first: self.number()?, length: self.number()? })
    }

    /// Reads a version.
    fn version(&mut self) -> Option<SavedVersion<'b>> {
        match self.byte()? {
            0 => self.signed().map(SavedVersion::Int),
            1 => self.bytes().map(SavedVersion::Below),
            2 => self.bytes().map(SavedVersion::Above),
            _ => None,
        }
    }
}
