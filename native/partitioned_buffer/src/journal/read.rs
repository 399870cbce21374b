//! Reads and removes a journal that no buffer uses.

use std::io::{self, ErrorKind};
use std::path::Path;

use partitioned_buffer_engine::journal::disk::{Directory, Disk};
use partitioned_buffer_engine::journal::replay::{replay, Kind, Replayed};

use super::Refusal;

/// Reads a journal, and calls `use_it` with its contents. Changes nothing.
pub(crate) fn read<R>(path: &Path, kind: Kind, use_it: impl FnOnce(&Replayed<'_>) -> R) -> Result<R, Refusal> {
    let directory = Directory::read_only(path)?;
    let segments = directory.segments()?.into_iter().map(|(number, _)| Ok((number, directory.read(number)?)));
    let segments: Vec<_> = segments.collect::<io::Result<_>>()?;
    let replayed = replay(&segments, kind);
    match replayed.newer_format {
        Some(version) => Err(Refusal::Format(version)),
        None => Ok(use_it(&replayed)),
    }
}

/// Removes a journal with its directory, unless a buffer uses it. Other files there stay, and so does the
/// directory then.
pub(crate) fn delete(path: &Path) -> Result<(), Refusal> {
    if !path.try_exists()? {
        return Ok(());
    }
    let lock = Directory::open(path).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => Refusal::Locked,
        _ => error.into(),
    })?;
    Ok(lock.delete()?)
}
