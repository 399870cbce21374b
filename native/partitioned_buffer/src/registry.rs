//! Finds a buffer by its name. Every operation does this, so it takes no lock and writes no memory that CPUs share.
//!
//! Buffers are never removed. Their names are atoms, so their number is bounded, and an empty buffer is small. In return,
//! operations use a buffer without counting references, and a supervision tree that starts again after a crash finds the
//! entries that are left.
//!
//! This also keeps the library, and the thread that runs in it, in memory: the VM does not unload a library that has
//! resources with a destructor.
//!
//! The table is open-addressed and has levels of doubling size. In each level a name may have one of a few slots. It takes
//! the first free one of the first level that has one, so a search ends at a free slot.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustler::ResourceArc;

use crate::buffer::Buffer;

/// Slots of the first level.
const FIRST_LEVEL: usize = 64;

/// Slots that a name may have in each level.
const PROBES: usize = 8;

/// Enough levels of doubling size for more names than the VM has atoms.
const LEVELS: usize = 26;

/// One slot of the table.
#[derive(Default)]
struct Slot {
    /// The name, as the word of the atom; 0 while the slot is free. It is written after `buffer`.
    name: AtomicUsize,
    /// The buffer of that name.
    buffer: OnceLock<ResourceArc<Buffer>>,
}

/// The table.
static TABLE: [OnceLock<Box<[Slot]>>; LEVELS] = [const { OnceLock::new() }; LEVELS];

/// Held while a name is added.
static ADDING: Mutex<()> = Mutex::new(());

/// The buffer of this name, given as the word of the atom, if there has ever been one.
#[inline]
pub(crate) fn find(name: usize) -> Option<&'static ResourceArc<Buffer>> {
    for level in &TABLE {
        for slot in slots_of(level.get()?, name) {
            match slot.name.load(Ordering::Acquire) {
                0 => return None,
                found if found == name => return slot.buffer.get(),
                _ => {}
            }
        }
    }
    None
}

/// The buffer of this name, given as the word of the atom. The first call makes it.
pub(crate) fn find_or_add(name: usize) -> &'static ResourceArc<Buffer> {
    let _guard = ADDING.lock();
    if let Some(buffer) = find(name) {
        return buffer;
    }
    let level = |size: usize| (0..size).map(|_| Slot::default()).collect();
    let slot = TABLE
        .iter()
        .enumerate()
        .flat_map(|(depth, slots)| slots_of(slots.get_or_init(|| level(FIRST_LEVEL << depth)), name))
        .find(|slot| slot.name.load(Ordering::Relaxed) == 0)
        .expect("there is room for more names than there can be atoms");
    let buffer = slot.buffer.get_or_init(|| ResourceArc::new(Buffer::new()));
    slot.name.store(name, Ordering::Release);
    buffer
}

/// The slots that `name` may have in a level.
#[inline]
fn slots_of(slots: &[Slot], name: usize) -> impl Iterator<Item = &Slot> {
    let spread = (name as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (0..PROBES).map(move |probe| &slots[(spread as usize + probe) & (slots.len() - 1)])
}
