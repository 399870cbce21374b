//! The past of a map's entry: the version of its value, the number of replacements, and the
//! attempts of the processor.

use crate::term::{Term, Version};

/// See the module's documentation. The variants are those of [`Version`], since a field of that
/// type would take more room.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum History<T> {
    /// The version is a term below the range of `i64`, in the segment of the value.
    Below(T, Counts),
    /// The version is an integer in the range of `i64`.
    Int(i64, Counts),
    /// The version is a term above the range of `i64`, in the segment of the value.
    Above(T, Counts),
}

/// The counts of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(Rust, packed(4))]
pub struct Counts {
    /// The number of replacements by `put_newer`.
    pub updates: u64,
    /// The failed attempts of the processor.
    pub attempts: u32,
}

impl<T: Term> History<T> {
    /// A history.
    #[inline]
    pub fn new(version: Version<T>, counts: Counts) -> Self {
        match version {
            Version::Below(version) => History::Below(version, counts),
            Version::Int(version) => History::Int(version, counts),
            Version::Above(version) => History::Above(version, counts),
        }
    }

    /// The version.
    #[inline]
    pub fn version(self) -> Version<T> {
        match self {
            History::Below(version, _) => Version::Below(version),
            History::Int(version, _) => Version::Int(version),
            History::Above(version, _) => Version::Above(version),
        }
    }

    /// The counts.
    #[inline]
    pub fn counts(self) -> Counts {
        match self {
            History::Below(_, counts) | History::Int(_, counts) | History::Above(_, counts) => counts,
        }
    }
}

impl<T: Term> Default for History<T> {
    /// The history of an entry without a version.
    #[inline]
    fn default() -> Self {
        History::Int(0, Counts::default())
    }
}
