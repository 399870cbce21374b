//! What the library has allocated and not yet freed: bytes from the VM's allocators, and environments, which hold the
//! copies of terms in memory of the VM's own.
//!
//! A global allocator counts each allocation, in stripes, of which every thread has its own (more than [`STRIPES`] threads
//! share some): nothing that other processors write is touched, and a `put` allocates only once in some hundred. What one
//! thread allocates and another frees is above zero in one stripe and below in the other, so only the sum has a meaning.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use rustler::EnifAllocator;

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

// SAFETY: all memory comes from and goes back to `EnifAllocator`, with the layout it was given.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the contract of this function, which is the same.
        let memory = unsafe { EnifAllocator.alloc(layout) };
        if !memory.is_null() {
            stripe().bytes.fetch_add(layout.size() as isize, Ordering::Relaxed);
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { EnifAllocator.dealloc(memory, layout) };
        stripe().bytes.fetch_sub(layout.size() as isize, Ordering::Relaxed);
    }
}
