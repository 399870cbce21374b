//! From the name of a buffer to the buffer, on the path of every operation: without a lock and without writing memory
//! that processors share.
//!
//! Buffers are never removed: their names are atoms, so their number is bounded, and an empty buffer is small. So a
//! buffer that was found can be used without counting references, and what a crashed supervision tree left behind is
//! there when it starts again.
//!
//! That is also what keeps the library in memory, with the thread that runs in it: the VM does not unload one while there
//! are resources with a destructor of its own.
//!
//! The table is open-addressed, in levels of doubling size. A name is in the first free of the few places it may have
//! in the first level where one is free; so the search ends at a free place.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustler::ResourceArc;

use crate::buffer::Buffer;

/// Places of the first level.
const FIRST_LEVEL: usize = 64;

/// Places a name may have in a level.
const PROBES: usize = 8;

/// With the doubling sizes, room for more names than the VM has atoms.
const LEVELS: usize = 26;

/// One place in the table.
#[derive(Default)]
struct Slot {
    /// The name, as the word of the atom; 0 while the place is free. Written after `buffer`.
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
        for slot in places(level.get()?, name) {
            match slot.name.load(Ordering::Acquire) {
                0 => return None,
                found if found == name => return slot.buffer.get(),
                _ => {}
            }
        }
    }
    None
}

/// The buffer of this name, given as the word of the atom, which the first call makes.
pub(crate) fn find_or_add(name: usize) -> &'static ResourceArc<Buffer> {
    let _guard = ADDING.lock();
    if let Some(buffer) = find(name) {
        return buffer;
    }
    let level = |size: usize| (0..size).map(|_| Slot::default()).collect();
    let slot = TABLE
        .iter()
        .enumerate()
        .flat_map(|(number, slots)| places(slots.get_or_init(|| level(FIRST_LEVEL << number)), name))
        .find(|slot| slot.name.load(Ordering::Relaxed) == 0)
        .expect("there is room for more names than there can be atoms");
    let buffer = slot.buffer.get_or_init(|| ResourceArc::new(Buffer::new()));
    slot.name.store(name, Ordering::Release);
    buffer
}

/// The places that `name` may have in a level.
#[inline]
fn places(slots: &[Slot], name: usize) -> impl Iterator<Item = &Slot> {
    let spread = (name as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (0..PROBES).map(move |probe| &slots[(spread as usize + probe) & (slots.len() - 1)])
}
