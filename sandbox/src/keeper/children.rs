//! The direct children of this process.
//!
//! Contract: as in `sys`: no allocation, no locks.

use super::sys;

/// Calls back with each direct child, running or not. They are ours to reap, so their pids cannot be recycled
/// meanwhile. A list that changes while it is read may lack one; each such change is told by a SIGCHLD, after which
/// the caller looks again.
pub(super) fn for_each(mut call: impl FnMut(i32)) {
    let Ok(file) = sys::open(c"/proc/thread-self/children", libc::O_RDONLY, 0) else {
        return;
    };
    let mut buffer = [0u8; 4096];
    let mut number = 0i32;
    loop {
        match sys::read(file, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                for byte in &buffer[..read] {
                    if byte.is_ascii_digit() {
                        number = number.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
                    } else {
                        if number > 1 {
                            call(number);
                        }
                        number = 0;
                    }
                }
            }
        }
    }
    if number > 1 {
        call(number);
    }
    sys::close(file);
}
