//! A file into which the kernel puts the calls that it hands out.
//!
//! It hands out each call once. What is received into memory is lost with its process; what is received into a file's mapped page
//! is in the file, whenever that process dies.
//!
//! Contract of this file: the mapped memory is never read or written by us, so that a file that became shorter or cannot be
//! read costs an error, and no `SIGBUS`. Only the kernel writes there, on behalf of [`Listener::receive_within`].
//!
//! [`Listener::receive_within`]: super::Listener::receive_within
#![allow(unsafe_code)]

use std::io;
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::listener::Notification;

/// Bytes of a slot. None crosses a page.
pub const SLOT_BYTES: usize = 128;
/// How many slots of a file can be received into.
const SLOTS_MAX: u32 = 512;
const MAPPED_BYTES: usize = SLOT_BYTES * SLOTS_MAX as usize;

/// Who has calls received into slots.
pub trait KeepsCalls {
    /// Where the next call is to be received: an empty slot, if there is one.
    fn place(&self) -> Option<Place>;
    /// The call that was received there.
    ///
    /// # Errors
    /// It cannot be read.
    fn placed(&self) -> io::Result<Notification>;
    /// A call was received, and could not be received there.
    fn unplaced(&self, call: &Notification);
}

/// The first slots of a file.
#[derive(Debug)]
pub struct Slots(NonNull<libc::c_void>);

// SAFETY: the address is only ever handed to the kernel, for which every thread of the process is the same.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// Maps a file that is open for reading and writing. It may be shorter: a slot behind its end cannot be received into.
    ///
    /// # Errors
    /// The kernel has no room for it, or files of this kind cannot be mapped.
    pub fn map(file: impl AsFd) -> io::Result<Arc<Self>> {
        const LENGTH: NonZeroUsize = NonZeroUsize::new(MAPPED_BYTES).expect("not zero");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice takes nobody's memory, and nobody looks into it.
        // WHY: received anywhere else, a call is lost with us.
        let address = unsafe { mmap(None, LENGTH, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Arc::new(Self(address)))
    }

    /// Where to receive the next call, which must be all zero in the file; nothing for those past the first 512.
    pub fn place(self: &Arc<Self>, slot: u32) -> Option<Place> {
        let slots = Arc::clone(self);
        (slot < SLOTS_MAX).then_some(Place { slots, slot })
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and whoever has a place in it has it as well.
        // WHY: as above.
        let _ = unsafe { munmap(self.0, MAPPED_BYTES) };
    }
}

/// A slot to receive a call into.
#[derive(Debug)]
pub struct Place {
    slots: Arc<Slots>,
    slot: u32,
}

impl Place {
    /// It is [`SLOT_BYTES`] long, and mapped for as long as this lives.
    pub(super) fn address(&self) -> *mut libc::c_void {
        // SAFETY: `Slots::place` saw that the slot is within the mapping.
        unsafe { self.slots.0.as_ptr().byte_add(self.slot as usize * SLOT_BYTES) }
    }
}

/// A word of a `struct seccomp_notif`.
macro_rules! word {
    ($slot:expr, $kind:ty, $at:expr) => {{
        let at = $at;
        <$kind>::from_ne_bytes($slot[at..at + size_of::<$kind>()].try_into().expect("its length"))
    }};
}

const DATA: usize = offset_of!(libc::seccomp_notif, data);

/// The call in a slot; nothing in an empty one.
pub fn decode(slot: &[u8; SLOT_BYTES]) -> Option<Notification> {
    let arch = word!(slot, u32, DATA + offset_of!(libc::seccomp_data, arch));
    let mut args = [0; 6];
    for (at, arg) in args.iter_mut().enumerate() {
        *arg = word!(slot, u64, DATA + offset_of!(libc::seccomp_data, args) + at * 8);
    }
    let pid = word!(slot, u32, offset_of!(libc::seccomp_notif, pid));
    // No ABI is 0.
    (arch != 0).then(|| Notification {
        id: word!(slot, u64, offset_of!(libc::seccomp_notif, id)),
        pid: i32::try_from(pid).unwrap_or(0),
        number: word!(slot, u32, DATA + offset_of!(libc::seccomp_data, nr)),
        arch,
        args,
    })
}

/// A slot with a call, as the kernel would have written it.
pub fn encode(call: &Notification) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    let mut put = |at: usize, word: &[u8]| slot[at..at + word.len()].copy_from_slice(word);
    put(offset_of!(libc::seccomp_notif, id), &call.id.to_ne_bytes());
    put(offset_of!(libc::seccomp_notif, pid), &call.pid.to_ne_bytes());
    put(
        DATA + offset_of!(libc::seccomp_data, nr),
        &call.number.to_ne_bytes(),
    );
    put(
        DATA + offset_of!(libc::seccomp_data, arch),
        &call.arch.to_ne_bytes(),
    );
    for (at, arg) in call.args.iter().enumerate() {
        let first = DATA + offset_of!(libc::seccomp_data, args);
        put(first + at * 8, &arg.to_ne_bytes());
    }
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_holds_a_whole_call() {
        let call = Notification {
            id: u64::MAX - 1,
            pid: 7,
            number: 42,
            arch: 0xc000_003e,
            args: [1, u64::MAX, 3, 4, 5, 6],
        };
        assert_eq!(decode(&encode(&call)), Some(call));
        assert_eq!(decode(&[0; SLOT_BYTES]), None);
    }
}
