//! Counts the memory that the library holds: bytes from the VM's allocators, and environments,
//! which hold the copies of terms in the VM's own memory.
//!
//! A global allocator counts each allocation in a stripe. Every thread has its own stripe (with
//! more than [`STRIPES`] threads some share one), so it writes no memory that other CPUs write. A
//! `put` allocates only once in some hundred calls. If one thread allocates memory and another
//! frees it, their stripes are too high and too low, so only the sum has a meaning.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use rustler::sys::{enif_alloc, enif_alloc_env, enif_free, enif_make_new_binary};

/// More than the threads of most VMs.
const STRIPES: usize = 64;

/// The counts of the threads of one stripe. Aligned to two cache lines, which CPUs fetch together.
#[repr(align(128))]
struct Stripe {
    /// Bytes allocated, less bytes freed.
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
        // It neither allocates nor has a destructor, so the allocator may use it at any time.
        static STRIPE: Cell<Option<usize>> = const { Cell::new(None) };
    }
    let stripe = STRIPE.get().unwrap_or_else(|| {
        let stripe = THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES;
        STRIPE.set(Some(stripe));
        stripe
    });
    &COUNTS[stripe]
}

/// Counts new environments, or freed ones if `change` is negative.
pub(crate) fn count_environments(change: isize) {
    stripe().environments.fetch_add(change, Ordering::Relaxed);
}

/// The currently allocated bytes and environments.
pub(crate) fn allocated() -> (isize, isize) {
    let sum =
        |count: fn(&Stripe) -> &AtomicIsize| COUNTS.iter().map(|stripe| count(stripe).load(Ordering::Relaxed)).sum();
    (sum(|stripe| &stripe.bytes), sum(|stripe| &stripe.environments))
}

/// Allocates with the VM's allocators, so `:erlang.memory/0` includes the memory, and counts it.
struct CountingAllocator;

/// The allocator of all Rust code here.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The alignment of the VM's allocators.
const ALIGNED: usize = 8;

// SAFETY: memory has the requested size and alignment and belongs to the caller alone until it is
// freed. No function unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let memory = if layout.align() <= ALIGNED { allocate(layout.size()) } else { allocate_aligned(layout) };
        if memory.is_null() {
            give_up(layout.size());
        } else {
            stripe().bytes.fetch_add(layout.size() as isize, Ordering::Relaxed);
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` is from `alloc` with this layout. If its alignment is larger than the
        // VM's, the address of the block stands before it.
        unsafe {
            let block = if layout.align() <= ALIGNED { memory } else { memory.cast::<*mut u8>().sub(1).read() };
            enif_free(block.cast());
        }
        stripe().bytes.fetch_sub(layout.size() as isize, Ordering::Relaxed);
    }
}

/// A block from the VM, or null if the VM has no memory.
fn allocate(size: usize) -> *mut u8 {
    // SAFETY: may be called on any thread.
    unsafe { enif_alloc(size).cast() }
}

/// The size of a binary that a VM without memory cannot make.
const UNAVAILABLE: usize = 64 * 1024 * 1024;

/// Ends the VM with a line on stderr and its crash dump, since Rust would abort without either. It
/// allocates nothing.
#[cold]
fn give_up(size: usize) {
    let mut line = Cursor::new([0; 128]);
    let _ = writeln!(line, "partitioned_buffer: the VM is out of memory: {size} bytes could not be allocated");
    let length = line.position() as usize;
    let _ = std::io::stderr().write_all(&line.get_ref()[..length]);
    let mut term = 0;
    // SAFETY: any thread may make an environment, and a binary in there. The VM ends itself if it has
    // no memory for one.
    unsafe { enif_make_new_binary(enif_alloc_env(), size.max(UNAVAILABLE), &mut term) };
}

/// Memory in a larger block, with the address of the block before it; null if the VM has no memory.
fn allocate_aligned(layout: Layout) -> *mut u8 {
    let Some(size) = layout.size().checked_add(layout.align()) else { return std::ptr::null_mut() };
    let block = allocate(size);
    if block.is_null() {
        return block;
    }
    // At least `ALIGNED`, the size of an address, because both are aligned to that; at most the
    // requested alignment.
    let before = layout.align() - block.addr() % layout.align();
    // SAFETY: `before` and the size of the layout are within the block.
    unsafe {
        let memory = block.add(before);
        memory.cast::<*mut u8>().sub(1).write(block);
        memory
    }
}
