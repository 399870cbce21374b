//! Finds a buffer by its name. Every operation does this, so it takes no lock and writes no memory
//! that CPUs share.
//!
//! Buffers are never removed. Their names are atoms, so their number is bounded, and an empty
//! buffer is small. In return, operations use a buffer without counting references, and a
//! supervision tree that starts again after a crash finds the leftover entries.
//!
//! This also keeps the library, and the thread that runs in it, in memory: the VM does not unload a
//! library whose resources have a destructor.
//!
//! The table is open-addressed and has levels of doubling size. Each level offers a name a few
//! slots. A new name takes the first free slot on its way through the levels, so a search ends at a
//! free slot.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustler::{Atom, ResourceArc};

use crate::buffer::Buffer;

/// Slots of the first level.
const FIRST_LEVEL: usize = 64;

/// Slots that a name may have in each level.
const PROBES: usize = 8;

/// Enough levels of doubling size for more names than the VM has atoms.
const LEVELS: usize = 26;

/// One slot of the table. Aligned to its size, so that it is in a single cache line.
#[derive(Default)]
#[repr(align(32))]
struct Slot {
    /// The name, as the word of the atom; 0 while the slot is free. It is written after `buffer`.
    name: AtomicUsize,
    /// The name, and its buffer, which is never freed.
    buffer: OnceLock<(Atom, &'static Buffer)>,
}

/// Fails the build if a slot fills more than half a cache line.
const _: () = assert!(size_of::<usize>() != 8 || size_of::<Slot>() == 32);

/// The table.
static TABLE: [OnceLock<Box<[Slot]>>; LEVELS] = [const { OnceLock::new() }; LEVELS];

/// Held while a name is added.
static ADDING: Mutex<()> = Mutex::new(());

/// The buffer of this name, given as the word of the atom, if the name was ever used.
#[inline]
pub(crate) fn find(name: usize) -> Option<&'static Buffer> {
    for level in &TABLE {
        for slot in slots_of(level.get()?, name) {
            match slot.name.load(Ordering::Acquire) {
                0 => return None,
                found if found == name => return slot.buffer.get().map(|&(_name, buffer)| buffer),
                _ => {}
            }
        }
    }
    None
}

/// The buffer of this name. The first call makes it.
pub(crate) fn find_or_add(atom: Atom, name: usize) -> &'static Buffer {
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
        .expect("the table has room for more names than there can be atoms");
    let &(_name, buffer) = slot.buffer.get_or_init(|| {
        let resource: &'static ResourceArc<Buffer> = Box::leak(Box::new(ResourceArc::new(Buffer::new())));
        (atom, resource)
    });
    slot.name.store(name, Ordering::Release);
    buffer
}

/// Calls `each` with every name ever used, and its buffer.
pub(crate) fn all(mut each: impl FnMut(Atom, &'static Buffer)) {
    for slot in TABLE.iter().map_while(OnceLock::get).flatten() {
        if let Some(&(name, buffer)) = slot.buffer.get() {
            each(name, buffer);
        }
    }
}

/// The slots that `name` may have in a level.
#[inline]
fn slots_of(slots: &[Slot], name: usize) -> impl Iterator<Item = &Slot> {
    let spread = (name as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (0..PROBES).map(move |probe| &slots[(spread as usize + probe) & (slots.len() - 1)])
}
