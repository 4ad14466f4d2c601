//! Memory that an init gives back once its command runs.
//!
//! An init is a copy of the spawner that shares its pages until one of both writes to them. The spawner goes on writing,
//! so each init would keep the heap of its moment for as long as it lives, other commands' arguments and environments
//! included. It needs none of it, nor the stack that its command had before it executed.
//!
//! Contract: as in `sys`: system calls alone. After [`give_back`] nothing of the heap is read or written.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

use super::sys;

/// Where pages are larger the kernel refuses, and nothing is given back.
const PAGE: usize = 4 * 1024;
/// This function's own frame, and those of what it calls.
const FRAMES_BYTES: usize = 4 * PAGE;
/// A heap is never so large here; what looks so is no heap.
const HEAP_BYTES_MAX: usize = 1 << 30;

/// An address of the heap; 0 while none is known.
static HEAP: AtomicUsize = AtomicUsize::new(0);

/// Takes note of where the heap is, before anything is forked. What was allocated before stays: among it may be what a
/// statically linked C library keeps for its only thread.
pub(super) fn note_heap() {
    let mark = Box::new([0u8; 64]);
    HEAP.store((&raw const *mark).addr(), Ordering::Relaxed);
}

/// Gives back the heap, and the stack below the caller's, of which up to `stack_bytes` were used.
///
/// # Safety
/// The caller uses nothing of the heap any more, nor does whatever it calls.
#[inline(never)]
pub(super) unsafe fn give_back(stack_bytes: usize) {
    let heap = HEAP.load(Ordering::Relaxed);
    let heap_end = sys::heap_end();
    // An allocator that does not take its memory there leaves nothing to give back.
    if heap != 0 && heap < heap_end && heap_end - heap < HEAP_BYTES_MAX {
        let from = heap.next_multiple_of(PAGE);
        // SAFETY: promised by the caller.
        unsafe { sys::forget_memory(from, heap_end.saturating_sub(from)) };
    }
    let here = 0u8;
    let to = ((&raw const here).addr() & !(PAGE - 1)).saturating_sub(FRAMES_BYTES);
    let bytes = stack_bytes.next_multiple_of(PAGE) + FRAMES_BYTES;
    // SAFETY: the stack grows downwards: what lies below is nobody's. The kernel keeps other mappings further away.
    unsafe { sys::forget_memory(to.saturating_sub(bytes), bytes) };
}
