//! What the library has allocated and not yet freed: bytes from the VM's allocators, and environments, which hold the
//! copies of terms in memory of the VM's own.
//!
//! A global allocator counts each allocation, in stripes, of which every thread has its own (more than [`STRIPES`] threads
//! share some): nothing that other processors write is touched, and a `put` allocates only once in some hundred. What one
//! thread allocates and another frees is above zero in one stripe and below in the other, so only the sum has a meaning.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use rustler::sys::{enif_alloc, enif_free};

/// More than the threads of most VMs.
const STRIPES: usize = 64;

/// What the threads of one stripe have counted. Aligned to two cache lines, which processors fetch together.
#[repr(align(128))]
struct Stripe {
    /// Bytes asked for, less those given back.
    bytes: AtomicIsize,
    /// Environments made, less those freed.
    environments: AtomicIsize,
}

/// The counts.
static COUNTS: [Stripe; STRIPES] =
    [const { Stripe { bytes: AtomicIsize::new(0), environments: AtomicIsize::new(0) } }; STRIPES];

/// The stripe of the calling thread.
fn stripe() -> &'static Stripe {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        // Neither allocates nor has a destructor, so the allocator may use it at any time.
        static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
    }
    let number = NUMBER.get().unwrap_or_else(|| {
        let number = THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES;
        NUMBER.set(Some(number));
        number
    });
    &COUNTS[number]
}

/// Counts environments that were made or, below zero, freed.
pub(crate) fn count_environments(change: isize) {
    stripe().environments.fetch_add(change, Ordering::Relaxed);
}

/// Bytes and environments that are allocated now.
pub(crate) fn allocated() -> (isize, isize) {
    let sum =
        |count: fn(&Stripe) -> &AtomicIsize| COUNTS.iter().map(|stripe| count(stripe).load(Ordering::Relaxed)).sum();
    (sum(|stripe| &stripe.bytes), sum(|stripe| &stripe.environments))
}

/// The VM's allocators, counted; `:erlang.memory/0` shows what they have.
struct CountingAllocator;

/// What Rust allocates with.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What the VM's allocators align to.
const ALIGNED: usize = 8;

// SAFETY: memory is of the size and alignment that is asked for, and belongs to nobody else until it is given back; no
// function unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let memory = if layout.align() <= ALIGNED { allocate(layout.size()) } else { allocate_aligned(layout) };
        if !memory.is_null() {
            stripe().bytes.fetch_add(layout.size() as isize, Ordering::Relaxed);
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller gives what `alloc` returned for this layout. Where the alignment is larger than the VM's, the
        // address of the block stands before it.
        unsafe {
            let block = if layout.align() <= ALIGNED { memory } else { memory.cast::<*mut u8>().sub(1).read() };
            enif_free(block.cast());
        }
        stripe().bytes.fetch_sub(layout.size() as isize, Ordering::Relaxed);
    }
}

/// A block of the VM's, or null without memory.
fn allocate(size: usize) -> *mut u8 {
    // SAFETY: may be called on any thread.
    unsafe { enif_alloc(size).cast() }
}

/// Memory in a larger block, whose address stands before it; null without memory.
fn allocate_aligned(layout: Layout) -> *mut u8 {
    let Some(size) = layout.size().checked_add(layout.align()) else { return std::ptr::null_mut() };
    let block = allocate(size);
    if block.is_null() {
        return block;
    }
    // At least `ALIGNED`, the size of an address, as both are aligned to that, and at most the alignment.
    let before = layout.align() - block.addr() % layout.align();
    // SAFETY: `before` and the size of the layout are within the block.
    unsafe {
        let memory = block.add(before);
        memory.cast::<*mut u8>().sub(1).write(block);
        memory
    }
}
