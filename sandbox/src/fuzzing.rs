//! What must hold of the code that reads bytes from outside, whatever the bytes are.
//!
//! Each function panics where it does not hold. The fuzz targets call them with what a fuzzer chose, the property tests
//! with what proptest chose. They are public behind a feature, because what they try is private.

pub use crate::compile::seccomp::tests::fuzzing::bpf_layout;
pub use crate::keeper::fuzzing::spawner_message;
pub use crate::observe::audit::fuzzing::audit_record;
pub use crate::observe::notify::fuzzing::{dns, notification};

/// Takes numbers off the front of a fuzzer's bytes. Where none are left, they are 0.
pub(crate) struct Source<'a> {
    pub(crate) rest: &'a [u8],
}

impl Source<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let (now, later) = self.rest.split_at(self.rest.len().min(N));
        taken[..now.len()].copy_from_slice(now);
        self.rest = later;
        taken
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// One of these, which must not be none.
    pub(crate) fn pick<'b, T>(&mut self, among: &'b [T]) -> &'b T {
        &among[usize::from(self.u16()) % among.len()]
    }
}
