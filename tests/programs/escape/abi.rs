//! Other doors into the same kernel: foreign call numbers, high bits, new variants of old calls.

use crate::Arguments;
use crate::raw::{Outcome, exit_now, sys};

/// The attempts of this file, by name.
pub(crate) fn attempt(name: &str, arguments: &Arguments) -> Option<Outcome> {
    Some(match name {
        #[cfg(target_arch = "x86_64")]
        "int80-getpid" => i386::call(20, 0, 0),
        #[cfg(target_arch = "x86_64")]
        "int80-socketcall" => i386::socketcall_connect(arguments),
        #[cfg(target_arch = "x86_64")]
        "x32-getpid" => sys!(0x4000_0000 | libc::SYS_getpid),
        "tiocsti" => on_terminal(libc::TIOCSTI, 0),
        "tiocsti-high-bits" => on_terminal(libc::TIOCSTI, 1 << 32),
        "tioclinux" => on_terminal(libc::TIOCLINUX, 0),
        "tioclinux-high-bits" => on_terminal(libc::TIOCLINUX, 1 << 32),
        "clone3" => clone3(0),
        "clone3-user" => clone3(u64::try_from(libc::CLONE_NEWUSER).unwrap_or(0)),
        "future-call" => sys!(9_999_i64),
        _ => {
            let _ = arguments;
            return None;
        }
    })
}

/// An ioctl on a terminal of our own, or on standard input where none is to be had.
fn on_terminal(request: libc::Ioctl, high_bits: u64) -> Outcome {
    let fd = own_terminal().unwrap_or(0);
    let typed = [b'\n', 0, 0, 0];
    #[allow(clippy::useless_conversion)]
    let request = u64::from(request);
    sys!(libc::SYS_ioctl, fd, request | high_bits, typed.as_ptr())
}

fn own_terminal() -> Option<i64> {
    const GET_PEER: i64 = 0x5441;
    const SET_LOCK: i64 = 0x4004_5431;
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = sys!(libc::SYS_openat, libc::AT_FDCWD, c"/dev/ptmx".as_ptr(), flags).ok()?;
    let unlocked = 0_i32;
    sys!(libc::SYS_ioctl, master, SET_LOCK, &raw const unlocked).ok()?;
    sys!(libc::SYS_ioctl, master, GET_PEER, flags).ok()
}

/// clone with its flags behind a pointer, where no filter can see them.
fn clone3(flags: u64) -> Outcome {
    let mut request = [0_u64; 11];
    request[0] = flags;
    request[4] = u64::try_from(libc::SIGCHLD).unwrap_or(0);
    match sys!(
        libc::SYS_clone3,
        request.as_ptr(),
        std::mem::size_of_val(&request)
    ) {
        Ok(0) => exit_now(0),
        other => other,
    }
}

#[cfg(target_arch = "x86_64")]
mod i386 {
    use std::net::Ipv4Addr;

    use crate::Arguments;
    use crate::raw::{Outcome, sys};

    /// A call by the 32-bit entry. Without support in the kernel this ends in a segmentation fault.
    pub(super) fn call(number: i32, first: u32, second: u32) -> Outcome {
        let value: i32;
        // SAFETY: the entry preserves all registers but the result and r8 to r11; `rbx`, which the compiler
        // reserves, is put back. Addresses passed are below 4 GiB and live, see `socketcall_connect`.
        // WHY: no library enters the kernel this way.
        unsafe {
            core::arch::asm!(
                "xchg {first:r}, rbx",
                "int 0x80",
                "xchg {first:r}, rbx",
                first = inout(reg) u64::from(first) => _,
                inout("eax") number => value,
                in("ecx") second,
                in("edx") 0,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        if value < 0 {
            Err(-value)
        } else {
            Ok(i64::from(value))
        }
    }

    /// socket and connect through the 32-bit multiplexer.
    pub(super) fn socketcall_connect(arguments: &Arguments) -> Outcome {
        const SOCKETCALL: i32 = 102;
        const MAP_32BIT: i32 = 0x40;
        let ip: Ipv4Addr = arguments.number(0);
        let port: u16 = arguments.number(1);
        let low = sys!(
            libc::SYS_mmap,
            0,
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | MAP_32BIT,
            -1,
            0
        )?;
        let page = u32::try_from(low).map_err(|_| libc::ENOMEM)?;
        let write = |offset: u32, words: &[u32]| {
            for (index, word) in (0_u32..).zip(words) {
                let address = (page + offset + 4 * index) as usize as *mut u32;
                // SAFETY: the page was just mapped, is writable, aligned and larger than all offsets used.
                // WHY: the 32-bit entry takes addresses below 4 GiB only, which no allocator promises.
                unsafe { address.write(*word) }
            }
        };
        write(0, &[2, 1, 0]);
        let fd = call(SOCKETCALL, 1, page)?;
        let family_and_port = u32::from_ne_bytes([2, 0, port.to_be_bytes()[0], port.to_be_bytes()[1]]);
        write(64, &[family_and_port, u32::from_ne_bytes(ip.octets()), 0, 0]);
        write(0, &[u32::try_from(fd).map_err(|_| libc::EBADF)?, page + 64, 16]);
        call(SOCKETCALL, 3, page)
    }
}
