//! Blocks: the units of a segment's file. A block is used as a whole or not at all.
//!
//! | bytes | field |
//! |---|---|
//! | 0..3 | [`MAGIC`] |
//! | 3 | the version of the format |
//! | 4..8 | the CRC-32 of all other bytes of head and payload |
//! | 8..12 | the length of the payload |
//! | 12..16 | the partition |
//! | 16..20 | the epoch |
//! | 20..28 | the number of the segment |
//! | 28..36 | the offset of the block in its file |
//!
//! All numbers are little-endian. Segment and offset tell a block from a copy of one in a value of the
//! user, so a reader may look for the next block behind a damaged one. Every later format keeps the
//! head and the checksum.
//!
//! Reading a damaged file takes time in proportion to its length. Segment and offset are checked before
//! the checksum. Once checksums that do not fit have covered eight times the bytes of the file, which
//! takes a file made for it, the rest counts as damaged.

use std::ops::Range;

/// The first bytes of a block.
pub const MAGIC: [u8; 3] = *b"PBJ";

/// The version of the format that this library writes. It reads this version only.
pub const VERSION: u8 = 1;

/// The bytes of a head.
pub const HEAD: usize = 36;

/// How many times its bytes the blocks of a file may cover whose checksums do not fit. Those of
/// written blocks cover each byte once.
const TRIALS: usize = 8;

/// The checksum in a head.
const CRC: Range<usize> = 4..8;

/// Where a block belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The partition of its records.
    pub partition: u32,
    /// The epoch of its log.
    pub epoch: u32,
    /// The number of its segment.
    pub segment: u64,
    /// Its offset in the file of the segment.
    pub offset: u64,
}

/// The head of a block with this payload.
pub fn head(place: Place, payload: &[u8]) -> [u8; HEAD] {
    let length = u32::try_from(payload.len()).expect("a payload is shorter than 4 GB");
    let mut head = [0; HEAD];
    head[..3].copy_from_slice(&MAGIC);
    head[3] = VERSION;
    head[8..12].copy_from_slice(&length.to_le_bytes());
    head[12..16].copy_from_slice(&place.partition.to_le_bytes());
    head[16..20].copy_from_slice(&place.epoch.to_le_bytes());
    head[20..28].copy_from_slice(&place.segment.to_le_bytes());
    head[28..36].copy_from_slice(&place.offset.to_le_bytes());
    let crc = checksum(&head, payload);
    head[CRC].copy_from_slice(&crc.to_le_bytes());
    head
}

/// The CRC-32 of a block, without the place of the checksum.
fn checksum(head: &[u8; HEAD], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head[..CRC.start]);
    hasher.update(&head[CRC.end..]);
    hasher.update(payload);
    hasher.finalize()
}

/// A stretch of a segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch<'b> {
    /// A block of this format.
    Block {
        /// Where it belongs.
        place: Place,
        /// Its records.
        payload: &'b [u8],
    },
    /// A block of a later format.
    Newer {
        /// Its format.
        version: u8,
        /// Its bytes.
        bytes: u64,
    },
    /// Bytes outside of all blocks, up to the next block or the end of the file.
    Damaged {
        /// The offset of the first one.
        offset: u64,
        /// Their number.
        bytes: u64,
    },
}

/// The stretches of a segment's file: all its bytes, in their order.
pub fn read(segment: u64, bytes: &[u8]) -> Stretches<'_> {
    Stretches { segment, bytes, at: 0, trials: bytes.len().saturating_mul(TRIALS) }
}

/// Whether a segment's file ends within its first block, or has only zeros: what a crash leaves of a
/// segment that was just begun.
pub fn is_unfinished(segment: u64, bytes: &[u8]) -> bool {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else {
        return bytes.iter().zip(MAGIC).all(|(byte, magic)| *byte == magic) || bytes.iter().all(|byte| *byte == 0);
    };
    let (length, place) = (u32::from_le_bytes(field(head, 8)), (u64::from_le_bytes(field(head, 20)), field(head, 28)));
    let is_begun = head[..3] == MAGIC && place == (segment, [0; 8]) && rest.len() < length as usize;
    is_begun || bytes.iter().all(|byte| *byte == 0)
}

/// See [`read`].
#[derive(Clone, Debug)]
pub struct Stretches<'b> {
    /// The number of the segment.
    segment: u64,
    /// The bytes of the file.
    bytes: &'b [u8],
    /// The offset of the next stretch.
    at: usize,
    /// How many bytes further checksums that do not fit may cover.
    trials: usize,
}

impl<'b> Iterator for Stretches<'b> {
    type Item = Stretch<'b>;

    fn next(&mut self) -> Option<Stretch<'b>> {
        let start = self.at;
        if start == self.bytes.len() {
            return None;
        }
        let mut at = start;
        while let Some(found) = find_magic(&self.bytes[at..]) {
            at += found;
            match self.block(at) {
                Some((stretch, end)) if at == start => {
                    self.at = end;
                    return Some(stretch);
                }
                Some(_) => return Some(self.damaged(at)),
                None => at += 1,
            }
        }
        Some(self.damaged(self.bytes.len()))
    }
}

impl<'b> Stretches<'b> {
    /// The bytes up to `end`, which are no block.
    fn damaged(&mut self, end: usize) -> Stretch<'b> {
        let offset = std::mem::replace(&mut self.at, end);
        Stretch::Damaged { offset: offset as u64, bytes: (end - offset) as u64 }
    }

    /// The block at an offset, if one is there, and its end. The magic is there.
    fn block(&mut self, at: usize) -> Option<(Stretch<'b>, usize)> {
        let (head, rest) = self.bytes[at..].split_first_chunk::<HEAD>()?;
        let place = Place {
            partition: u32::from_le_bytes(field(head, 12)),
            epoch: u32::from_le_bytes(field(head, 16)),
            segment: u64::from_le_bytes(field(head, 20)),
            offset: u64::from_le_bytes(field(head, 28)),
        };
        let version = head[3];
        if version < VERSION || (place.segment, place.offset) != (self.segment, at as u64) {
            return None;
        }
        let length = usize::try_from(u32::from_le_bytes(field(head, 8))).ok()?;
        let payload = rest.get(..length)?;
        let left = self.trials.checked_sub(HEAD + length)?;
        if checksum(head, payload) != u32::from_le_bytes(field(head, CRC.start)) {
            self.trials = left;
            return None;
        }
        let stretch = match version {
            VERSION => Stretch::Block { place, payload },
            _ => Stretch::Newer { version, bytes: (HEAD + length) as u64 },
        };
        Some((stretch, at + HEAD + length))
    }
}

/// The first place of [`MAGIC`].
fn find_magic(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|window| window == MAGIC)
}

/// The bytes of a field of a head.
fn field<const N: usize>(head: &[u8; HEAD], at: usize) -> [u8; N] {
    std::array::from_fn(|byte| head[at + byte])
}
