//! Copying arguments out of the target's memory: once, with every length checked.
//!
//! The target's threads run on while we read, and may change what they like. What is copied here is what
//! is judged *and* what is performed; nothing is read twice.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::errands;

/// The kernel's limit for a path, its final NUL included.
const PATH_BYTES_MAX: usize = 4096;
/// A chunk that ends where a page of any supported size ends: one read never needs two mappings.
const CHUNK_BYTES: u64 = 4096;

/// Why an argument could not be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// There is no such memory: the program's own mistake, as the kernel would say (`EFAULT`).
    Fault,
    /// It is longer than the kernel takes (`ENAMETOOLONG`).
    TooLong,
    /// We may not look, or the target is gone.
    Forbidden,
}

/// Copies exactly as many bytes as `buffer` holds.
pub(super) fn read_exact(tid: i32, address: u64, buffer: &mut [u8]) -> Result<(), Unread> {
    if read_some(tid, address, buffer)? == buffer.len() {
        Ok(())
    } else {
        Err(Unread::Fault)
    }
}

/// Copies a NUL-terminated path, without the NUL.
pub(super) fn read_path(tid: i32, address: u64) -> Result<Vec<u8>, Unread> {
    let mut path = Vec::with_capacity(256);
    let mut chunk = [0; CHUNK_BYTES as usize];
    let mut from = address;
    while path.len() < PATH_BYTES_MAX {
        // Most paths are short: begin with little, then go on page by page.
        let to_page_end = (CHUNK_BYTES - from % CHUNK_BYTES) as usize;
        let wanted = if path.is_empty() {
            to_page_end.min(256)
        } else {
            to_page_end
        };
        let got = read_some(tid, from, &mut chunk[..wanted])?;
        let bytes = &chunk[..got];
        if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
            path.extend_from_slice(&bytes[..end]);
            return if path.len() < PATH_BYTES_MAX {
                Ok(path)
            } else {
                Err(Unread::TooLong)
            };
        }
        if got < wanted {
            return Err(Unread::Fault);
        }
        path.extend_from_slice(bytes);
        from = from.checked_add(got as u64).ok_or(Unread::Fault)?;
    }
    Err(Unread::TooLong)
}

/// Copies what can be copied from the beginning of a range.
fn read_some(tid: i32, address: u64, buffer: &mut [u8]) -> Result<usize, Unread> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let (Ok(base), false) = (usize::try_from(address), tid <= 0) else {
        return Err(if tid <= 0 {
            Unread::Forbidden
        } else {
            Unread::Fault
        });
    };
    let remote = [RemoteIoVec {
        base,
        len: buffer.len(),
    }];
    match process_vm_readv(Pid::from_raw(tid), &mut [IoSliceMut::new(buffer)], &remote) {
        Ok(0) | Err(Errno::EFAULT) => Err(Unread::Fault),
        Ok(got) => Ok(got),
        Err(Errno::EPERM) => match errands::read(tid, address, buffer) {
            Ok(0) | Err(Errno::EFAULT) => Err(Unread::Fault),
            Ok(got) => Ok(got),
            Err(_) => read_proc_mem(tid, address, buffer),
        },
        Err(Errno::ENOSYS) => read_proc_mem(tid, address, buffer),
        Err(_) => Err(Unread::Forbidden),
    }
}

/// The way that is open where process_vm_readv(2) is filtered (as in some containers).
fn read_proc_mem(tid: i32, address: u64, buffer: &mut [u8]) -> Result<usize, Unread> {
    let memory = File::open(format!("/proc/{tid}/mem")).map_err(|_| Unread::Forbidden)?;
    match memory.read_at(buffer, address) {
        Ok(0) => Err(Unread::Fault),
        Ok(got) => Ok(got),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EIO | libc::EFAULT | libc::EINVAL)
            ) =>
        {
            Err(Unread::Fault)
        }
        Err(_) => Err(Unread::Forbidden),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> i32 {
        std::process::id().cast_signed()
    }

    #[test]
    fn paths_are_copied_across_pages_and_bounded() {
        let long = [b"/".repeat(4095), vec![0]].concat();
        assert_eq!(read_path(me(), long.as_ptr() as u64).unwrap().len(), 4095);
        let longer = [b"/".repeat(4096), vec![0]].concat();
        assert_eq!(read_path(me(), longer.as_ptr() as u64), Err(Unread::TooLong));
        let endless = b"x".repeat(20_000);
        assert_eq!(read_path(me(), endless.as_ptr() as u64), Err(Unread::TooLong));
        let short = b"abc\0";
        assert_eq!(read_path(me(), short.as_ptr() as u64).unwrap(), b"abc");
    }

    #[test]
    fn what_is_not_mapped_is_a_fault_and_never_a_panic() {
        for address in [0, 1, 4095, u64::MAX, u64::MAX - 3, 1 << 63, 0xffff_8000_0000_0000] {
            assert_eq!(read_path(me(), address), Err(Unread::Fault), "{address:#x}");
            assert_eq!(read_proc_mem(me(), address, &mut [0; 8]), Err(Unread::Fault));
        }
        assert_eq!(read_exact(0, me() as u64, &mut [0; 8]), Err(Unread::Forbidden));
        assert_eq!(read_exact(-1, 4096, &mut [0; 8]), Err(Unread::Forbidden));
    }

    #[test]
    fn proc_mem_reads_the_same() {
        let text = *b"the same bytes";
        let mut copy = [0; 14];
        assert_eq!(read_proc_mem(me(), text.as_ptr() as u64, &mut copy), Ok(14));
        assert_eq!(copy, text);
    }
}
